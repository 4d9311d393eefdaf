"""Random operation streams: they keep the rules, and meet everything that they are there for."""

from __future__ import annotations

from collections import Counter

import pytest
from emte.sim.model import Model
from emte.sim.ops import ACCESSES, FIELDS, Stream, check
from emte.sim.traffic import directed_stream, random_stream

PAGE = 4096
COMMON = {
    *("pass", "async", "squashed", "tag_check_fault", "permission_fault", "alignment_fault"),
    "external_abort",
}
"""Outcomes that every traffic must meet."""

pytestmark = pytest.mark.parametrize(
    ("draw", "outcomes"),
    [(random_stream, COMMON | {"translation_fault", "undefined"}), (directed_stream, COMMON)],
    ids=["random", "directed"],
)


def met(stream: Stream) -> Counter[str]:
    return Counter(outcome.get("outcome", "") for outcome in Model().run(stream))


def test_stream_follows_from_its_seed(draw, outcomes, seed):
    assert list(draw(seed, 200)) == list(draw(seed, 200))
    assert list(draw(seed, 200)) != list(draw(seed + 1, 200))


@pytest.mark.parametrize("held", [2, 4, 16])
def test_stream_keeps_the_contract(draw, outcomes, held, seed):
    check(draw(seed, 3000, held=held), held=held)


def test_every_operation_and_every_outcome_occurs(draw, outcomes, seed):
    stream = draw(seed, 6000)
    assert {operation.op for operation in stream} == set(FIELDS)
    assert met(stream).keys() == {"", *outcomes}


def test_tags_are_kept_back_beside_tagged_memory(draw, outcomes, seed):
    kinds = {o.address: o.memory for o in reversed(list(draw(seed, 300).select(["map"])))}
    sides = {(kind, kinds.get(page + 4096)) for page, kind in kinds.items()}
    assert {("tagged", "no_tag_access"), ("no_tag_access", "tagged")} <= sides


def test_data_accesses_meet_memory_whose_tags_are_kept_back(draw, outcomes, seed):
    """Nothing else is a permission fault to them. Some of them cross into it, or out of it."""
    stream = draw(seed, 12_000)
    refused = [
        operation
        for operation, outcome in zip(stream, Model().run(stream), strict=True)
        if outcome.get("outcome") == "permission_fault" and operation.op in ACCESSES
    ]
    assert len(refused) > 50
    assert any(o.address % PAGE + o.size > PAGE for o in refused)

"""The quick properties of ``properties.py``; ``prove.py`` runs all of them."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from amaranth.hdl import Assert, Cover, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from formal import Counterexample, FormalError
from properties import PROPERTIES, Mutant, Spec, check

QUICK = [entry for entry in PROPERTIES if entry.quick]
PAGE = Path(__file__).parents[2] / "docs" / "verification.md"


@pytest.mark.formal
@pytest.mark.parametrize("entry", QUICK, ids=lambda entry: entry.id)
def test_property_holds(entry):
    assert entry.verify()


@pytest.mark.formal
@pytest.mark.parametrize(
    ("entry", "mutant"),
    [
        pytest.param(entry, mutant, id=f"{entry.id}-{mutant.name}")
        for entry in QUICK
        for mutant in entry.mutants
    ],
)
def test_mutant_is_refuted(entry, mutant):
    entry.refute(mutant)


def test_names_are_unique():
    assert len({entry.id for entry in PROPERTIES}) == len(PROPERTIES)
    for entry in PROPERTIES:
        assert re.fullmatch(r"\w+\.[a-z0-9-]+", entry.id)
        assert len({mutant.name for mutant in entry.mutants}) == len(entry.mutants)


def test_page_tells_of_each_property():
    named = set(re.findall(r"^\| `([\w.-]+)` \|", PAGE.read_text(), re.MULTILINE))
    assert named == {entry.id for entry in PROPERTIES}


class Counting(wiring.Component):
    """Counts to a limit and begins again."""

    step: In(1)

    def __init__(self, limit: int = 5, *, covered: bool = True) -> None:
        self.limit = limit
        self.covered = covered
        super().__init__()

    def elaborate(self, platform) -> Module:
        m = Module()
        count = Signal(3)
        with m.If(self.step):
            m.d.sync += count.eq(Mux(count == self.limit, 0, count + 1))
        m.d.comb += Assert(count < 6, "below 6")
        if self.covered:
            m.d.comb += Cover(count == 5, "the last number")
        return m


COUNTING = Spec(
    name="limit",
    unit="Counting",
    spec=Counting,
    cover_depth=8,
    mutants=(Mutant("Further", partial(Counting, 6), "below 6"),),
)


@pytest.mark.formal
@pytest.mark.parametrize(("depth", "extent"), [(None, "unbounded"), (7, "7 cycles")])
def test_row_tells_what_was_shown(depth, extent):
    row = check(replace(COUNTING, depth=depth))
    assert (row.property, row.unit, row.extent) == ("limit", "Counting", extent)
    assert row.covers == {"spec.the last number": 5}
    assert row.refuted == ["Further"]


def test_property_without_mutant_is_refused():
    with pytest.raises(ValueError, match=r"Counting\.limit has no mutant"):
        replace(COUNTING, mutants=())


@pytest.mark.formal
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"spec": partial(Counting, covered=False)}, "the spec has no cover"),
        ({"spec": partial(Counting, 4)}, "not reached within 8 cycles: spec.the last number"),
        ({"mutants": (Mutant("Same", Counting, "below 6"),)}, "Same keeps 'below 6'"),
        (
            {"mutants": (Mutant("Further", partial(Counting, 6), "below 7"),)},
            "no assertion with 'below 7'",
        ),
    ],
)
def test_property_that_may_mean_nothing_is_refused(change, problem):
    with pytest.raises(FormalError, match=problem):
        check(replace(COUNTING, **change))


@pytest.mark.formal
@pytest.mark.parametrize("depth", [None, 10])
def test_property_that_does_not_hold_is_refuted(depth):
    with pytest.raises(Counterexample, match=r"^spec\.below 6 \(cycle 6\), see"):
        check(replace(COUNTING, spec=partial(Counting, 6), depth=depth))

import pytest
from confidentiality import (
    DESIGNS,
    PUBLISHED,
    SECRETS,
    UNDEFINED_AFTER_RESET,
    UNOBSERVED,
    relate,
    report,
)
from emte.rtl.barrier import SpeculationBarrier
from emte.rtl.config import SMALL
from emte.rtl.pipeline import TagPipeline
from variants import LEAKS, pipeline_with

pytestmark = pytest.mark.formal


@pytest.mark.parametrize("name", DESIGNS)
def test_tags_are_secret_until_release(name):
    relation = relate(TagPipeline(DESIGNS[name]))
    assert report(name, relation)
    assert relation.differing == []
    # The delaying barrier holds no outcomes.
    assert SECRETS - set(relation.secret) <= {"barrier.secret_findings"}
    assert set(relation.public) >= PUBLISHED
    assert set(relation.without_reset) == UNDEFINED_AFTER_RESET
    # The ports of the design, by hand: nothing may become unobserved unseen.
    assert set(relation.observed) == {
        *("access__ready", "verdict__valid", "verdict__payload", "tfsr", "storage_error"),
        *("busy", "idle", "generate__request__ready", "generate__response__valid"),
        *("generate__response__payload", "generate__rgsr"),
        *(f"memory__aw{name}" for name in ("id", "addr", "len", "size", "burst", "valid")),
        *(f"memory__ar{name}" for name in ("id", "addr", "len", "size", "burst", "valid")),
        *("memory__wstrb", "memory__wlast", "memory__wvalid", "memory__bready", "memory__rready"),
    }
    assert not set(relation.observed) & UNOBSERVED


@pytest.mark.parametrize("variant", LEAKS, ids=lambda variant: variant.__name__)
def test_leak_is_refuted(variant):
    barrier = "barrier.unit" if variant.Unit is SpeculationBarrier else "barrier"
    with pipeline_with(variant):
        relation = relate(TagPipeline(SMALL), barrier=barrier)
    assert set(relation.differing) >= variant.differing


def test_secrets_that_are_taken_as_public_are_seen_to_differ():
    array, mismatches = "cache.array.secret_tags", "check.secret_mismatches"
    relation = relate(TagPipeline(SMALL), published={*PUBLISHED, array, mismatches})
    assert set(relation.differing) == {f"next:{array}.WR_DATA"}
    relation = relate(TagPipeline(SMALL), published={*PUBLISHED, mismatches})
    assert set(relation.differing) == {f"next:{mismatches}"}

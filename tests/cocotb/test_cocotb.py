"""Runs the cocotb benches: with three seeds, and with seeded bugs.

``pytest --seed N tests/cocotb`` runs seeds N, N + 1 and N + 2.
"""

from __future__ import annotations

import os
import re

import pytest
from coverage_run import merge
from simulation import SimulationFailed, simulate
from tops import TOPS

TRANSACTIONS = int(os.environ.get("EMTE_TRANSACTIONS", "20000"))
"""Of each random test; a tenth is enough for a seeded bug."""
RANDOM_TESTS = {
    "tag_cache": "random_probes",
    "barrier": "random_accesses",
    "pipeline": "random_operations",
}

pytestmark = [pytest.mark.cocotb, pytest.mark.slow]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("bench", RANDOM_TESTS)
def test_random(bench, number, seed):
    simulate(bench, RANDOM_TESTS[bench], seed + number, TRANSACTIONS)


@pytest.mark.parametrize(
    ("bench", "bug"),
    [
        pytest.param(bench, number, id=f"{bench}-{bug.description.replace(' ', '-')}")
        for bench, top in TOPS.items()
        for number, bug in enumerate(top.bugs, 1)
    ],
)
def test_seeded_bug_is_found(bench, bug, seed):
    with pytest.raises(SimulationFailed, match=r"AssertionError: cycle \d+, seed"):
        simulate(bench, RANDOM_TESTS[bench], seed, TRANSACTIONS // 10, bug)


@pytest.mark.parametrize("number", range(3))
def test_certain_accesses_pass_a_full_table(number, seed):
    simulate("barrier", "certain_accesses_pass_a_full_table", seed + number, TRANSACTIONS)


def test_coverage_is_collected(seed):
    """A short cut of ``make coverage``: little is hit in so short a run, and nothing impossible."""
    folder = simulate("pipeline", "directed_operations", seed, TRANSACTIONS // 5)
    coverages = {c.group.name: c for c in merge([folder / "coverage.npz"])}
    assert coverages["access"].samples > TRANSACTIONS // 10
    for coverage in coverages.values():
        values = [cross for cross in coverage.group.crosses if len(cross.dimensions) == 1]
        assert not coverage.missing(values), "no sample has one of the plan's values"
        missing = len(coverage.missing())
        assert missing < coverage.reachable() // 5, f"{coverage.group.name} misses {missing} bins"


def test_failing_assertion_of_the_design_is_a_failure(seed):
    message = re.escape("a finding does not come when it is announced")
    with pytest.raises(SimulationFailed, match=message):
        simulate("barrier", "outcome_that_nobody_waits_for", seed, TRANSACTIONS)


def test_run_without_a_test_is_a_failure(seed):
    with pytest.raises(SimulationFailed, match="No tests left after filtering"):
        simulate("barrier", "test_that_does_not_exist", seed, TRANSACTIONS)

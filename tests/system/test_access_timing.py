"""When each access goes into the Verilated pipeline and its verdict comes out."""

import numpy as np
import pytest
from emte.rtl import DEFAULT
from emte.sim import ops, verilated, workloads
from emte.sim.core import Program
from emte.sim.ops import Operation, Stream
from emte.sim.transactions import TIMING, Kind

pytestmark = pytest.mark.xdist_group("verilator")

LATENCY = 40
BASE = 1 << 30


def program(*operations: Operation) -> Program:
    scene = Operation("map", address=BASE, bytes=1 << 20, memory="tagged")
    return Program.of(Stream("timing", [scene, *operations]))


def run(program: Program, *, gap=0, data=0, waits=0):
    """Times of the accesses, and the statistics of the run."""
    timing = np.zeros(len(program.transactions), TIMING)
    timing["gap"], timing["data"], timing["waits"] = gap, data, waits
    done = verilated.run(program, DEFAULT, seed=0, latency=LATENCY, timing=timing)
    return timing[program.transactions["kind"] == Kind.ACCESS], done.statistics


LOADS = [Operation("load", address=BASE + 8 * n, size=8) for n in range(40)]


def test_every_access_at_full_speed():
    timing, statistics = run(program(*LOADS))
    assert len(timing) == statistics.accesses == len(LOADS)
    assert (np.diff(timing["transferred"].astype(int)) >= 1).all()
    latency = (timing["answered"] - timing["transferred"]).astype(int)
    assert latency[0] > LATENCY, "the first one misses"
    assert 1 < latency[-1] < LATENCY, "the last one hits"
    assert timing["answered"].max() < statistics.cycles


def test_observing_changes_nothing():
    stream = ops.read(f"{ops.__file__.removesuffix('ops.py')}traces/bug_uaf.npz")
    recorded = Program.of(stream)
    plain = verilated.run(recorded, DEFAULT, seed=0, latency=LATENCY)
    timing = np.zeros(len(recorded.transactions), TIMING)
    timed = verilated.run(recorded, DEFAULT, seed=0, latency=LATENCY, timing=timing)
    assert timed.statistics == plain.statistics
    assert np.array_equal(timed.results, plain.results)


def test_gap_and_data_are_kept():
    timing, _ = run(program(*LOADS), gap=20, data=7)
    steps = np.diff(timing["transferred"].astype(int))
    assert (steps[3:] == 27).all()


def test_core_works_longer_than_the_harness_has_patience():
    timing, _ = run(program(*LOADS[:2]), gap=30_000)
    first, second = timing["transferred"].astype(int)
    assert second - first == 30_000


def test_core_waits_for_verdicts():
    timing, _ = run(program(*LOADS), gap=3, waits=1)
    went_on = timing["transferred"][1:].astype(int) - timing["answered"][:-1].astype(int)
    assert (went_on == 3).all()


def test_longer_of_data_and_verdict_counts():
    timing, _ = run(program(*LOADS), gap=3, data=100, waits=1)
    assert (np.diff(timing["transferred"].astype(int))[1:] == 103).all()


def test_squashed_access_keeps_nobody_waiting():
    """The core waits for a load that is squashed; then it goes on."""
    speculative = Operation("load", address=BASE, size=8, branches=(0,))
    timing, _ = run(
        program(
            LOADS[0],
            Operation("branch", id=0),
            speculative,
            Operation("resolve", id=0, mispredicted=1),
            LOADS[1],
        ),
        waits=1,
    )
    _, squashed, other = timing
    assert squashed["answered"] == 0
    assert 0 < squashed["transferred"] < other["transferred"] < other["answered"]


def test_wrong_array_is_refused():
    refused = program(*LOADS)
    with pytest.raises(ValueError, match="one TIMING for each transaction"):
        verilated.run(refused, DEFAULT, seed=0, latency=LATENCY, timing=np.zeros(3, TIMING))


def test_time_does_not_depend_on_tags():
    """Rule R3, on which measurements rely: they take stretches without the tags of before."""
    stream = workloads.generate("retag", operations=3000)
    assert stream.columns is not None
    untagged = ops.ColumnarStream(
        stream.path, {**stream.columns, "tag": np.minimum(stream.columns["tag"], 1)}, []
    )
    runs = []
    for some in (stream, untagged):
        recorded = Program.of(some)
        timing = np.zeros(len(recorded.transactions), TIMING)
        done = verilated.run(recorded, DEFAULT, seed=0, latency=LATENCY, timing=timing)
        runs.append((timing, done.statistics, done.results["outcome"]))
    (times, costs, passed), (other_times, other_costs, faults) = runs
    assert np.array_equal(times, other_times)
    assert costs == other_costs
    assert not passed.any()
    assert np.count_nonzero(faults) > 500

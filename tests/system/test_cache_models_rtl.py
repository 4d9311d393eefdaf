"""The functional model of the tag cache moves what the hardware moves."""

import numpy as np
import pytest
from emte.rtl import DEFAULT, SMALL, TagConfig
from emte.sim import ops, verilated, workloads
from emte.sim.access_trace import AccessTrace
from emte.sim.cache_models import TagPolicy, tag_traffic
from emte.sim.core import Program
from emte.sim.transactions import TIMING

pytestmark = pytest.mark.xdist_group("verilator")

STREAMS = ("hash_join", "graph_walk", "key_value", "page_stride", "set_stride", "pointer_chase",
           "tag_storm", "two_words", "whole_words")  # fmt: skip


def policy(config: TagConfig) -> TagPolicy:
    return TagPolicy(cache_bytes=config.cache_bytes, ways=config.ways, line_bytes=config.line_bytes)


def hardware(program: Program, config: TagConfig):
    """Counters of the hardware, before a core that waits for each verdict: lookups keep their
    order, however many misses the cache may have outstanding."""
    timing = np.zeros(len(program.transactions), TIMING)
    timing["waits"] = 1
    return verilated.run(program, config, seed=0, latency=2, timing=timing).statistics


@pytest.mark.parametrize("config", [SMALL, DEFAULT], ids=["small", "default"])
@pytest.mark.parametrize("name", STREAMS)
def test_same_lookups_same_traffic(name, config):
    stream = workloads.generate(name, operations=6000)
    trace = AccessTrace(stream)
    counted = hardware(trace.program, config)
    modelled = tag_traffic(trace.every_lookup, policy(config))
    assert modelled.lookups == counted.lookups
    assert (modelled.fetches, modelled.read_bytes) == (counted.read_bursts, 8 * counted.read_beats)
    assert modelled.misses == counted.misses > 0
    assert modelled.write_backs == counted.write_bursts
    assert modelled.written_bytes == 8 * counted.write_beats


def test_write_backs_occur():
    """The comparison above would hold of a model that never writes back, if none came."""
    for config in (SMALL, DEFAULT):
        trace = AccessTrace(workloads.generate("tag_storm", operations=6000))
        assert tag_traffic(trace.every_lookup, policy(config)).write_backs > 100


@pytest.mark.parametrize("name", ["bug_uaf", "bug_overflow"])
def test_recorded_programs(name):
    trace = AccessTrace(ops.read(f"{ops.__file__.removesuffix('ops.py')}traces/{name}.npz"))
    counted = hardware(trace.program, SMALL)
    modelled = tag_traffic(trace.every_lookup, policy(SMALL))
    assert (modelled.lookups, modelled.misses, modelled.write_backs) == (
        counted.lookups,
        counted.misses,
        counted.write_bursts,
    )

"""The streams that are made up for measurements."""

import pytest
from emte.sim import model, ops, workloads
from emte.sim.access_trace import AccessTrace
from emte.sim.cache_models import TagPolicy, tag_traffic
from emte.sim.workloads import PATTERNS, WORKLOADS, generate

NAMES = (*WORKLOADS, *PATTERNS)
SHORT = 6000


@pytest.mark.parametrize("name", NAMES)
def test_every_access_passes(name):
    stream = generate(name, operations=SHORT)
    ops.check(stream)
    assert 0 <= len(stream) - SHORT <= 2
    kinds = {outcome.get("outcome", "pass") for outcome in model.run(stream)}
    assert kinds == {"pass"}


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_stream(name, tmp_path):
    def written(seed):
        path = tmp_path / "stream.jsonl"
        ops.write(path, generate(name, operations=SHORT, seed=seed))
        return path.read_bytes()

    first = written(1)
    assert first == written(1)
    draws = name in WORKLOADS or name in ("pointer_chase", "retag", "tag_storm", "whole_words")
    assert (first != written(2)) == draws


@pytest.mark.parametrize("name", NAMES)
def test_is_a_valid_file(name, tmp_path):
    stream = generate(name, operations=SHORT)
    path = tmp_path / ("stream.jsonl" if stream.columns is None else "stream.npz")
    ops.write(path, stream)
    assert list(ops.read(path)) == list(stream)


@pytest.mark.parametrize("name", WORKLOADS)
def test_tags_take_four_times_the_cache(name):
    assert AccessTrace(generate(name)).lookups.footprint() >= 4 * TagPolicy().cache_bytes


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("hits", 0.999, 1),
        ("hits_under_misses", 0.98, 0.99),
        ("speculative_hits", 0.999, 1),
        ("two_words", 0.99, 1),
        ("page_stride", 0, 0),
        ("set_stride", 0, 0),
        ("pointer_chase", 0, 0.2),
        ("retag", 0.999, 1),
        ("tag_storm", 0.5, 0.501),
        ("block_tags", 31 / 32 - 0.001, 31 / 32 + 0.001),
        ("memset", 31 / 32 - 0.001, 31 / 32 + 0.001),
        ("whole_words", 7 / 8 - 0.001, 7 / 8 + 0.001),
    ],
)
def test_pattern_does_what_it_says(name, low, high):
    assert low <= tag_traffic(AccessTrace(generate(name)).lookups, TagPolicy()).hit_rate <= high


def test_every_pattern_is_tested_and_described():
    for makers in (WORKLOADS, PATTERNS):
        for name, make in makers.items():
            assert make.__doc__, name


def test_full_arena(monkeypatch):
    monkeypatch.setattr(workloads, "_ARENA", 1 << 16)
    with pytest.raises(MemoryError, match="the arena is too small for this workload"):
        generate("key_value")

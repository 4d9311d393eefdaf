"""A short run of the fuzzer, and whether it would notice."""

import gzip

import fuzz_ops
import pytest
from emte.sim import model, ops
from emte.sim.ops import StreamError


def test_reader_accepts_or_refuses(rng):
    counts = fuzz_ops.by_chance(rng, lambda number: number < 1500)
    for ending in fuzz_ops.ENDINGS:
        assert counts[ending, True] > 10
        assert counts[ending, False] > 100


def test_seeds_are_valid():
    for ending, data in fuzz_ops.seeds().items():
        assert fuzz_ops.try_bytes(ending, data)


@pytest.mark.parametrize("ending", fuzz_ops.ENDINGS)
def test_what_is_damaged_can_be_mutated_further(rng, ending):
    mutants = {fuzz_ops.mutate(rng, ending, b"PK\x03\x04 nonsense") for _ in range(50)}
    assert len(mutants) > 25


def raises(error):
    def call(*args, **kwargs):
        raise error

    return call


@pytest.mark.parametrize(
    ("owner", "name", "replacement", "message"),
    [
        (ops, "read", raises(ValueError("escapes")), "escapes"),
        (ops, "read", raises(StreamError("two\nlines")), "not one line"),
        (ops, "read", raises(StreamError("")), "not one line"),
        (ops, "write", lambda path, operations: path.write_bytes(b""), "another one"),
        (ops, "check", raises(KeyError("escapes")), "escapes"),
        (model, "run", lambda stream: iter(()), "not one outcome"),
    ],
)
def test_failure_is_noticed_and_kept(monkeypatch, tmp_path, owner, name, replacement, message):
    monkeypatch.setattr(fuzz_ops, "BUILD", tmp_path / "fuzz")
    data = gzip.compress(b'{"op":"gcr"}\n')
    assert fuzz_ops.try_bytes("jsonl.gz", data)
    monkeypatch.setattr(owner, name, replacement)
    with pytest.raises((ValueError, KeyError, fuzz_ops.Failure), match=message):
        fuzz_ops.try_bytes("jsonl.gz", data)
    (kept,) = (tmp_path / "fuzz").iterdir()
    assert kept.name.endswith(".jsonl.gz")
    assert kept.read_bytes() == data

"""The engines against the golden model, and against each other."""

import gzip
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.hdl import Module
from emte.rtl import DEFAULT, SMALL, Barrier, TagCheck, TagConfig
from emte.sim import engines, ops, verilated
from emte.sim.ops import Operation, Regime, Stream, StreamError
from emte.sim.traffic import Traffic, random_stream
from emte.sim.transactions import Waves
from hypothesis import given, settings
from hypothesis import strategies as st
from variants import Wrapper

VECTORS = Path(__file__).parent.parent / "data" / "vectors"
TRACES = Path(ops.__file__).parent / "traces"
NAMES = ("seed1", "seed2", "seed101")

# Tests that need a library of the Verilator engine run in one process, so that each is built once.
verilator = pytest.mark.xdist_group("verilator")


def vector(name: str) -> Stream:
    return ops.read(VECTORS / f"{name}.ops.jsonl.gz")


def assert_like_model(stream: Stream, engine: str, config: TagConfig, **options) -> None:
    expected = engines.run(stream)
    result = engines.run(stream, engine=engine, config=config, **options)
    assert engines.compare(stream, result.outcomes, expected.outcomes) is None
    assert result.tfsr == expected.tfsr
    assert result.statistics is not None
    assert result.statistics.operations == len(stream)


# ---- The Amaranth simulator ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_pysim_on_vectors(name):
    """The first lines set up the tags; some of what follows them."""
    assert_like_model(vector(name).head(600), "pysim", SMALL)


@pytest.mark.parametrize("barrier", Barrier)
def test_pysim_on_random_stream(barrier, seed):
    config = replace(SMALL, barrier=barrier)
    assert_like_model(random_stream(seed, 250, held=SMALL.held), "pysim", config, seed=seed)


@settings(max_examples=8)
@given(rng=st.randoms(use_true_random=False), count=st.integers(1, 50))
def test_pysim_on_small_streams(rng, count):
    stream = Stream("small stream", Traffic(rng, held=SMALL.held).operations(count))
    assert_like_model(stream, "pysim", SMALL, latency=3)


def test_pysim_writes_waveforms(tmp_path):
    path = tmp_path / "waves" / "run.vcd"
    stream = Stream("stream", [Operation("load", address=0, size=1, line=1)])
    engines.run(stream, engine="pysim", config=SMALL, waves=Waves(path))
    assert "access__payload" in path.read_text()


class Blind(Wrapper):
    """Never sees a mismatch in the highest granule of a tag word."""

    Unit = TagCheck

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.detail.mask[15].eq(0)


class Babbler(Wrapper):
    """Has findings of accesses that nobody sent."""

    Unit = TagCheck

    def change(self, m: Module) -> None:
        m.d.comb += [self.result_valid.eq(1), self.result.ticket.direct.eq(1)]


def test_difference_names_the_line(monkeypatch):
    operations = [
        Operation("map", address=0, bytes=4096, memory="tagged"),
        Operation("load", address=0x70, size=1),
        Operation("load", address=1 << 56 | 0xE0, size=1),
        Operation("load", address=1 << 56 | 0xF0, size=1),
    ]
    for line, operation in enumerate(operations, 1):
        operation.line = line
    stream = Stream("stream", operations)
    monkeypatch.setattr("emte.rtl.pipeline.TagCheck", Blind)
    result = engines.run(stream, engine="pysim", config=SMALL)
    difference = engines.compare(stream, result.outcomes, engines.run(stream).outcomes)
    fault = {"outcome": "tag_check_fault", "far": "0x1000000000000f0", "wnr": 0}
    assert difference == engines.Difference(4, {"outcome": "pass"}, fault)


def test_failed_assertion_names_the_line(monkeypatch):
    stream = Stream("stream", [Operation("load", address=0, size=1, line=7)])
    monkeypatch.setattr("emte.rtl.pipeline.TagCheck", Babbler)
    message = r"^stream:7: a finding does not come when it is announced \(cycle \d+\)$"
    with pytest.raises(engines.PipelineError, match=message):
        engines.run(stream, engine="pysim", config=SMALL)


def test_failed_assertion_in_an_empty_stream(monkeypatch):
    monkeypatch.setattr("emte.rtl.pipeline.TagCheck", Babbler)
    with pytest.raises(engines.PipelineError, match=r"^stream: a finding does not come .* \d+\)$"):
        engines.run(Stream("stream", []), engine="pysim", config=SMALL)


# ---- Verilator -----------------------------------------------------------------------------------


@verilator
@pytest.mark.parametrize("config", [SMALL, DEFAULT], ids=["small", "default"])
@pytest.mark.parametrize("name", NAMES)
def test_verilator_on_vectors(name, config, seed):
    stream = vector(name)
    assert_like_model(stream, "verilator", config)
    assert_like_model(stream, "verilator", config, seed=seed)


@verilator
@pytest.mark.parametrize("name", NAMES)
def test_verilator_gives_every_expected_field(name):
    """Not by way of the model."""
    with gzip.open(VECTORS / f"{name}.expected.jsonl.gz", "rt") as file:
        expected = [json.loads(line) for line in file]
    outcomes = engines.run(vector(name), engine="verilator", config=DEFAULT).outcomes
    assert len(outcomes) == len(expected)
    for line, (outcome, fields) in enumerate(zip(outcomes, expected, strict=True), 1):
        assert fields.items() <= outcome.items(), line


@verilator
@pytest.mark.parametrize("config", [SMALL, DEFAULT], ids=["small", "default"])
@pytest.mark.parametrize("name", ["sort", "sqlite"])
def test_verilator_on_recorded_programs(name, config):
    stream = ops.read(TRACES / f"{name}.npz").head(100_000)
    assert_like_model(stream, "verilator", config)


@verilator
@pytest.mark.parametrize(("name", "op"), [("bug_overflow", "store"), ("bug_uaf", "load")])
def test_verilator_stops_the_bugs_at_their_last_row(name, op):
    stream = ops.read(TRACES / f"{name}.npz")
    outcomes = engines.run(stream, engine="verilator", config=DEFAULT).outcomes
    faults = [row for row, each in enumerate(outcomes) if each.get("outcome", "pass") != "pass"]
    assert faults == [len(stream) - 1]
    assert outcomes[-1]["outcome"] == "tag_check_fault"
    assert outcomes[-1]["wnr"] == (op == "store")


@verilator
@pytest.mark.parametrize("config", [SMALL, DEFAULT], ids=["small", "default"])
def test_verilator_on_random_streams(config, seed):
    seen = set()
    for number in range(50):
        rng = random.Random(f"{seed} {number}")
        stream = random_stream(rng.randrange(1 << 32), 1000, held=config.held)
        pauses = rng.choice([0, rng.randrange(1, 1 << 64)])
        latency = rng.choice([1, 5, 40, 200])
        assert_like_model(stream, "verilator", config, seed=pauses, latency=latency)
        seen |= {outcome.get("outcome") for outcome in engines.run(stream).outcomes}
    assert seen == {
        *("pass", "async", "squashed", "undefined", None),
        *("tag_check_fault", "permission_fault", "alignment_fault", "translation_fault"),
        "external_abort",
    }


@verilator
@pytest.mark.parametrize("pauses", [0, 1])
def test_both_simulators_agree_on_every_cycle(pauses, seed):
    stream = random_stream(seed, 200, held=SMALL.held)
    options = {"config": SMALL, "seed": pauses and seed, "latency": 12}
    pysim = engines.run(stream, engine="pysim", **options)
    native = engines.run(stream, engine="verilator", **options)
    assert pysim.outcomes == native.outcomes
    assert pysim.statistics == native.statistics
    assert native.statistics.read_bursts > 0
    assert native.statistics.write_bursts > 0


@verilator
@pytest.mark.parametrize(
    "operations",
    [
        [],
        [Operation("regime", regime=Regime())],
        [Operation("load", address=0, size=1), Operation("regime", regime=Regime())],
        [Operation("load", address=0, size=1), Operation("rgsr", tag=1, seed=2)],
    ],
)
def test_both_simulators_end_in_the_same_cycle(operations):
    """Also where what is last does not go through the pipeline, or nothing does."""
    stream = Stream("stream", operations)
    pysim, native = (
        engines.run(stream, engine=engine, config=SMALL) for engine in ("pysim", "verilator")
    )
    assert pysim.statistics == native.statistics


@verilator
def test_progress_reaches_the_caller():
    stream = ops.read(TRACES / "sort.npz").head(150_000)
    reports = []
    engines.run(
        stream, engine="verilator", config=DEFAULT, progress=lambda *report: reports.append(report)
    )
    assert reports
    assert reports == sorted(reports)
    assert {total for _, total in reports} == {len(stream)}


@verilator
def test_library_comes_from_the_cache():
    first = verilated.build(SMALL)
    number = first.stat().st_ino
    os.utime(first, (0, 0))
    assert verilated.build(SMALL) == first
    assert first.stat().st_ino == number
    assert first.stat().st_mtime > 0, "it counts as used"
    assert verilated.build(DEFAULT) != first
    assert first.is_relative_to(verilated.cache_folder())


def test_key_follows_what_is_loaded(monkeypatch):
    """Not what lies on the disk: another class in the place of a unit must not get its library."""
    healthy = verilated.library_path(SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("emte.rtl.pipeline.TagCheck", Blind)
        blind = verilated.library_path(SMALL)
        patch.setattr("emte.rtl.pipeline.TagCheck", Babbler)
        assert len({healthy, blind, verilated.library_path(SMALL)}) == 3
    assert verilated.library_path(SMALL) == healthy
    assert verilated.library_path(SMALL, waves="vcd") != healthy


def test_key_is_the_same_in_every_process():
    program = (
        "from emte.rtl import SMALL; from emte.sim import verilated;"
        "print(verilated.library_path(SMALL))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        path = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
        assert Path(path.strip()) == verilated.library_path(SMALL)


def test_cache_keeps_what_was_used_last(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verilated, "_KEPT", 2)

    def build(folder, *_):
        (folder / "pipeline.so").touch()
        return folder / "pipeline.so"

    monkeypatch.setattr(verilated, "_build", build)
    configs = [replace(SMALL, held=held) for held in (2, 3, 4)]
    first, second = (verilated.build(config) for config in configs[:2])
    os.utime(second, (1, 1))
    assert verilated.build(configs[0]) == first
    third = verilated.build(configs[2])
    assert {first, third} == set((tmp_path / "emte").iterdir())


@pytest.mark.parametrize("barrier", Barrier)
def test_every_barrier_is_translated(barrier, tmp_path):
    """Not compiled, which takes long; but Verilator's warnings that count are errors."""
    verilated.translate(tmp_path, replace(SMALL, barrier=barrier))
    assert (
        f"HOLDS_BRANCHES = {str(barrier is not Barrier.NONE).lower()}"
        in (tmp_path / "layout.h").read_text()
    )
    assert (tmp_path / "Pipeline.cpp").exists()


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert verilated.cache_folder() == tmp_path / "emte"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert verilated.cache_folder() == tmp_path / ".cache" / "emte"


# ---- What cannot be run --------------------------------------------------------------------------

STREAM = Stream("stream", [Operation("load", address=0, size=1, line=1)])


def refused(message: str, stream: Stream = STREAM, **options) -> None:
    with pytest.raises(engines.EngineError) as refusal:
        engines.run(stream, **options)
    assert str(refusal.value) == message


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    refused(
        "the verilator engine needs a C++ compiler, and the PATH leads to none (c++, g++, clang++)",
        engine="verilator",
    )
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    refused(
        "the verilator engine needs a C++ compiler, and $CXX leads to none (no-such-compiler)",
        engine="verilator",
    )


def test_compiler_that_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'all.cc:1: error: no' >&2\necho more >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    refused("compiler failed with status 3: all.cc:1: error: no", engine="verilator", config=SMALL)
    assert list((tmp_path / "emte").iterdir()) == []


def test_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    refused(f"cannot build in {tmp_path}/file/emte: Not a directory", engine="verilator")


def test_unknown_engine():
    refused("engine must be one of model, pysim, verilator, not 'fpga'", engine="fpga")


def test_model_has_no_waveforms():
    message = "the model has no waveforms: take the engine pysim or verilator"
    refused(message, waves=Waves("model.vcd"))


@pytest.mark.parametrize("waves", [Waves("w.fst", "fst"), Waves("w.vcd", first=1)])
def test_pysim_has_one_form_of_waveforms(waves):
    message = "pysim writes a VCD of all cycles alone: take the engine verilator"
    refused(message, engine="pysim", config=SMALL, waves=waves)


@pytest.mark.parametrize(
    "fields", [{"pa_bits": 40}, {"memory_bits": 38}, {"axi_address_bits": 40}, {"branches": 4}]
)
def test_configuration_that_streams_do_not_fit(fields):
    message = (
        "streams need pa_bits = 52, memory_bits = 40, axi_address_bits of 48 or more and branches "
        "of 8 or more"
    )
    refused(message, engine="pysim", config=replace(SMALL, **fields))


def test_latency_of_nothing():
    refused("latency must be at least 1, not 0", engine="pysim", latency=0)


def test_more_unresolved_accesses_than_the_barrier_holds():
    operations = [
        Operation("branch", id=0),
        *(Operation("load", address=n, size=1, branches=(0,)) for n in range(5)),
        Operation("resolve", id=0),
    ]
    for line, operation in enumerate(operations, 1):
        operation.line = line
    stream = Stream("stream", operations)
    engines.run(stream)
    with pytest.raises(StreamError, match=r"^stream:6: branches: "):
        engines.run(stream, engine="pysim", config=SMALL)


def test_compare_wants_an_outcome_for_each_operation():
    with pytest.raises(ValueError, match="shorter"):
        engines.compare(STREAM, [], [{}])

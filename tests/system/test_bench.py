"""The measurement of speed: that it measures; and that speed is not lost altogether."""

import json
import subprocess
import sys
import time
from collections import deque

import bench
import pytest
from emte.sim import engines, ops
from emte.sim.model import Model

MODEL_FLOOR = 100_000
COMMAND_FLOOR = 150_000
"""Operations per second of CPU. Neighbours that share a core make the same work take up to twice as
long, so these are at most a third of what ``make bench`` aims at; and one slow run does no harm."""


@pytest.mark.xdist_group("verilator")
@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ((1, 1), ("above", "above")),
        ((10**12, 1), ("BELOW", "above")),
        ((1, 10**12), ("above", "BELOW")),
    ],
)
def test_small_run(targets, words, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "_SLOW", 50)
    monkeypatch.setattr(bench, "_RANDOM", 200)
    monkeypatch.setattr(bench, "PRESETS", {name: bench.PRESETS[name] for name in ("default",)})
    path = tmp_path / "new" / "bench.json"
    arguments = ["--programs", "sort", "--operations", "3000", "--runs", "3", "--out", str(path)]
    model, command = targets
    arguments += ["--target", str(model), "--command-target", str(command)]
    assert bench.main(arguments) == ("BELOW" in words)
    for line, word, target in zip(
        capsys.readouterr().out.splitlines()[-2:], words, targets, strict=True
    ):
        assert f"{word} the target of {target:,}" in line

    record = json.loads(path.read_text())
    assert record["machine"]["cores"] >= 1
    figures = {(figure["engine"], figure["stream"]): figure for figure in record["figures"]}
    assert figures["model", "sort"]["operations"] == 3000
    assert figures["model", "sort"]["cycles"] is None
    stream = ops.read(bench.TRACES / "sort.npz").head(3000)
    expected = engines.run(stream, engine="verilator").statistics
    assert figures["verilator default", "sort"]["cycles"] == expected.cycles
    assert ("pysim default", "sort") in figures
    assert figures[bench.COMMAND, "sort"]["operations"] == 3000
    assert all(figure["cpu_rate"] > 0 < figure["wall_rate"] for figure in figures.values())


def test_median_of_the_runs(monkeypatch):
    stream = ops.read(bench.TRACES / "bug_uaf.npz")
    samples = iter([(2.0, 4.0), (1.0, 100.0), (50.0, 5.0)])
    monkeypatch.setattr(bench, "timed", lambda perform: next(samples))
    figure = bench.measure("model", stream, 3)
    assert figure.cpu_rate == len(stream) / 2
    assert figure.wall_rate == len(stream) / 5


def test_timed_tells_work_from_waiting():
    cpu, wall = bench.timed(lambda: time.sleep(0.2))
    assert wall >= 0.2
    assert cpu < 0.1


def test_timed_counts_child_processes():
    program = "import time\nwhile time.process_time() < 0.3: pass"
    cpu, _ = bench.timed(lambda: subprocess.run([sys.executable, "-c", program], check=True))
    assert cpu >= 0.25


def best(perform) -> float:
    """CPU seconds of the fastest of three runs."""
    return min(bench.timed(perform)[0] for _ in range(3))


@pytest.mark.parametrize("program", bench.PROGRAMS)
def test_model_is_not_slow(program):
    stream = ops.read(bench.TRACES / f"{program}.npz").head(100_000)
    assert len(stream) / best(lambda: deque(Model().run(stream), 0)) > MODEL_FLOOR


@pytest.mark.slow
@pytest.mark.xdist_group("verilator")
def test_command_is_not_slow():
    figure = bench.measure_command(ops.read(bench.TRACES / "sort.npz"), 3)
    assert figure.cpu_rate > COMMAND_FLOOR

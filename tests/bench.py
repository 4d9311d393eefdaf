"""How fast the golden model and the engines are: a table, and ``build/bench.json``.

    python tests/bench.py --runs 5

Times are CPU seconds of the process that works, which is single-threaded, so that a busy machine
falsifies them less; wall time is given beside them. Each figure is the median of several runs. Of
the command ``emte run`` all is measured, from the start of Python to the last outcome written; of
the rest neither reading the streams nor printing outcomes. Building the engines is no part of it.
Ends with exit code 1 if the model, or the command, misses its target on any recorded program.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from emte.rtl.config import PRESETS
from emte.sim import engines, ops
from emte.sim.ops import Stream
from emte.sim.summary import table
from emte.sim.traffic import random_stream

TARGET = 300_000
"""Operations per second of the model on columnar streams."""
COMMAND_TARGET = 500_000
"""Operations per second of the command with the fast engine."""
COMMAND = "emte run, verilator default"

TRACES = Path(ops.__file__).parent / "traces"
PROGRAMS = ("sort", "gzip", "awk", "sqlite")

_SLOW = 2_000
"""Operations for the Amaranth simulator."""
_RANDOM = 20_000


@dataclass(frozen=True)
class Figure:
    """One row: rates in operations per second."""

    engine: str
    stream: str
    operations: int
    runs: int
    cpu_rate: float
    wall_rate: float
    cycles: int | None
    """Simulated clock cycles; None for the model, and for the command."""

    @property
    def cycles_rate(self) -> float:
        """Cycles per second, of an engine."""
        assert self.cycles is not None
        return self.cycles * self.cpu_rate / self.operations


def measure(
    engine: str, stream: Stream, runs: int, *, preset: str = "default", seed: int = 0
) -> Figure:
    """The median of several runs of a stream, after one that builds what it needs."""
    config = None if engine == "model" else PRESETS[preset]

    def perform() -> engines.RunResult:
        return engines.run(stream, engine=engine, config=config, seed=seed)

    statistics = perform().statistics
    samples = [timed(perform) for _ in range(runs)]
    return Figure(
        engine=engine if engine == "model" else f"{engine} {preset}",
        stream=Path(stream.path).stem,
        operations=len(stream),
        runs=runs,
        cpu_rate=len(stream) / median(cpu for cpu, _ in samples),
        wall_rate=len(stream) / median(wall for _, wall in samples),
        cycles=None if statistics is None else statistics.cycles,
    )


def measure_command(stream: Stream, runs: int) -> Figure:
    """The median of several runs of the whole command, after one that builds what it needs."""
    program = "from emte.sim.cli import main; raise SystemExit(main())"
    with TemporaryDirectory() as folder:
        path, out = Path(folder) / f"{Path(stream.path).stem}.npz", Path(folder) / "out.jsonl"
        ops.write(path, stream)
        command = [sys.executable, "-c", program, "run", path, "--engine", "verilator"]

        def perform() -> None:
            subprocess.run([*command, "--out", out], check=True, capture_output=True)

        perform()
        samples = [timed(perform) for _ in range(runs)]
        lines = out.read_bytes().count(b"\n")
    assert lines == len(stream)
    return Figure(
        engine=COMMAND,
        stream=path.stem,
        operations=lines,
        runs=runs,
        cpu_rate=lines / median(cpu for cpu, _ in samples),
        wall_rate=lines / median(wall for _, wall in samples),
        cycles=None,
    )


def timed(perform: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds, of finished child processes too, and wall seconds of a call."""

    def used() -> float:
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    cpu, wall = used(), time.perf_counter()
    perform()
    return used() - cpu, time.perf_counter() - wall


def machine() -> dict[str, object]:
    """What was measured on."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def figures(programs: Sequence[str], runs: int, operations: int | None) -> Iterator[Figure]:
    """All rows of the table; only the first ``operations`` of each program where they are given."""
    streams = [ops.read(TRACES / f"{name}.npz") for name in programs]
    if operations is not None:
        streams = [stream.head(operations) for stream in streams]
    mixed = random_stream(1, _RANDOM)
    for stream in (*streams, mixed):
        yield measure("model", stream, runs)
    for stream in streams:
        yield measure("verilator", stream, runs)
    for stream in streams:
        yield measure_command(stream, runs)
    for preset, config in PRESETS.items():
        yield measure("verilator", random_stream(1, _RANDOM, held=config.held), runs, preset=preset)
    yield measure("pysim", streams[0].head(_SLOW), 1)


def rows(measured: Sequence[Figure]) -> list[list[str]]:
    """The table, with its heads."""
    heads = ["engine", "stream", "operations", "operations/s (CPU)", "(wall)", "cycles/s (CPU)"]
    return [heads] + [
        [
            figure.engine,
            figure.stream,
            f"{figure.operations:,}",
            f"{figure.cpu_rate:,.0f}",
            f"{figure.wall_rate:,.0f}",
            "" if figure.cycles is None else f"{figure.cycles_rate:,.0f}",
        ]
        for figure in measured
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--operations", type=int, help="of each program; default: all")
    for name, target in (("", TARGET), ("command-", COMMAND_TARGET)):
        parser.add_argument(f"--{name}target", type=int, default=target, help=f"default: {target}")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench.json"), help="default: %(default)s"
    )
    arguments = parser.parse_args(argv)

    host = machine()
    print(", ".join(f"{name} {value}" for name, value in host.items()))
    measured = []
    for figure in figures(arguments.programs, arguments.runs, arguments.operations):
        measured.append(figure)
        print(f"  {figure.engine}, {figure.stream}", file=sys.stderr)
    print("\n".join(table(rows(measured))))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": host, "figures": [asdict(figure) for figure in measured]}
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")

    reached = True
    for engine, target in (("model", arguments.target), (COMMAND, arguments.command_target)):
        programs = (f for f in measured if f.engine == engine and f.stream in arguments.programs)
        slowest = min(programs, key=lambda figure: figure.cpu_rate)
        above = slowest.cpu_rate >= target
        reached &= above
        print(
            f"{engine}: slowest on {slowest.stream}, {slowest.cpu_rate:,.0f} operations/s, "
            f"{'above' if above else 'BELOW'} the target of {target:,}."
        )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())

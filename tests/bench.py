"""How fast the golden model and the engines are: a table, and ``build/bench.json``.

    python tests/bench.py --runs 5

Times are CPU seconds of this process, which is single-threaded, so that a busy machine falsifies
them less; wall time is given beside them. Each figure is the median of several runs. Reading the
streams and printing outcomes are not part of it, nor is building the engines. Ends with exit code 1
if the model performs less than its target on any recorded program.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from emte.rtl.config import PRESETS
from emte.sim import engines, ops
from emte.sim.ops import Stream
from emte.sim.summary import table
from emte.sim.traffic import random_stream

TARGET = 300_000
"""Operations per second of the model on columnar streams."""

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
    """Simulated clock cycles; None for the model."""

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


def timed(perform: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    perform()
    return time.process_time() - cpu, time.perf_counter() - wall


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
    parser.add_argument("--target", type=int, default=TARGET, help="default: %(default)s")
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

    programs = (f for f in measured if f.engine == "model" and f.stream in arguments.programs)
    slowest = min(programs, key=lambda figure: figure.cpu_rate)
    reached = slowest.cpu_rate >= arguments.target
    print(
        f"The model's slowest program is {slowest.stream}: {slowest.cpu_rate:,.0f} operations/s, "
        f"{'above' if reached else 'BELOW'} the target of {arguments.target:,}."
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())

"""The command ``emte``: run operation streams, convert them, show what the pipeline does."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from .engines import DEFAULT_LATENCY, ENGINES, EngineError, PipelineError, Waves, compare, run
from .ops import StreamError, check, read, replacing, write
from .summary import progress_bar, summarize
from .workloads import PATTERNS, WORKLOADS, generate

if TYPE_CHECKING:
    from emte.rtl import TagConfig

__all__ = ["main"]

PRESETS = ("small", "default", "ecp5")
BARRIERS = ("oblivious", "delay", "none")

OK = 0
DIFFERENT = 1
BAD_INPUT = 2
INTERRUPTED = 130


class UserError(Exception):
    """A wish that cannot be granted; the text is one line."""


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, as all errors of the command do."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}\n")


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            message = f"must be an integer from {low} to {high}, not {text!r}"
            raise argparse.ArgumentTypeError(message)
        return value

    return parse


def _window(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 1 << 56):
        message = f"must be two cycles as FIRST:LAST, not {text!r}"
        raise argparse.ArgumentTypeError(message)
    return int(first), int(last)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="emte",
        description="Check the memory accesses of a program as Enhanced Memory Tagging does.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    runner = commands.add_parser(
        "run",
        help="run an operation stream",
        description="Run an operation stream (.jsonl, .jsonl.gz, .npz); write one outcome for each "
        "of its lines, and a summary to standard error.",
        epilog="Exit code 0: the run completed, with whatever faults; 1: the hardware and the "
        "golden model differ; 2: bad input.",
    )
    runner.add_argument("stream", metavar="STREAM")
    runner.add_argument("--engine", choices=ENGINES, default="model", help="default: model")
    runner.add_argument(
        "--out", metavar="OUTCOMES.jsonl", help="write the outcomes here, not to standard output"
    )
    runner.add_argument(
        "--check", action="store_true", help="compare the hardware with the golden model"
    )
    runner.add_argument("--preset", choices=PRESETS, default="default", help="default: default")
    runner.add_argument(
        "--barrier", choices=BARRIERS, default="oblivious", help="default: oblivious"
    )
    runner.add_argument(
        "--seed",
        type=_integer(0, (1 << 64) - 1),
        default=0,
        metavar="N",
        help="0: all ports at full speed (default); else they pause at random, by this seed",
    )
    runner.add_argument(
        "--latency",
        type=_integer(1, 1_000_000),
        default=DEFAULT_LATENCY,
        metavar="CYCLES",
        help="of the DRAM, from a read address to its first beat (default: %(default)s)",
    )
    waveforms = runner.add_mutually_exclusive_group()
    waveforms.add_argument("--vcd", metavar="FILE", help="write waveforms of the hardware")
    waveforms.add_argument(
        "--fst", metavar="FILE", help="the same in a far smaller form, from the engine verilator"
    )
    runner.add_argument(
        "--window",
        type=_window,
        metavar="FIRST:LAST",
        help="cycles between which waveforms are written, by the engine verilator (default: all)",
    )
    runner.add_argument("--observe", metavar="FILE", help="not in this version")
    runner.set_defaults(perform=_run)

    converter = commands.add_parser(
        "convert",
        help="write a stream in another form",
        description="Write a stream in another form; the endings (.jsonl, .jsonl.gz, .npz) choose.",
    )
    converter.add_argument("source", metavar="A")
    converter.add_argument("target", metavar="B")
    converter.set_defaults(perform=_convert)

    _add_bench(commands)

    generator = commands.add_parser(
        "generate",
        help="write the stream of a workload or pattern",
        description="Write the operation stream of a workload or pattern of emte bench.",
    )
    generator.add_argument("name", metavar="NAME", choices=_GENERATED, help=", ".join(_GENERATED))
    generator.add_argument("target", metavar="STREAM")
    generator.add_argument("--operations", type=_integer(1, 1 << 26), metavar="N")
    generator.add_argument("--seed", type=_integer(0, (1 << 64) - 1), default=1, metavar="N")
    generator.set_defaults(perform=_generate)

    demo = commands.add_parser(
        "demo",
        help="three recorded programs through the hardware",
        description="Run a clean program, one with a heap overflow and one with a use after free "
        "through the hardware, and check every outcome against the golden model.",
    )
    demo.set_defaults(perform=_demo)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : Sequence[str], optional
        The arguments; those of the process if not given.

    Returns
    -------
    int
        The exit code.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as wanted:  # --help, or a wrong option
        return int(wanted.code or 0)
    try:
        return arguments.perform(arguments)
    except (StreamError, EngineError, UserError) as error:
        message = str(error)
    except OSError as error:
        message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    except PipelineError as error:
        print(f"emte: the hardware broke a rule: {error}", file=sys.stderr)
        return DIFFERENT
    except KeyboardInterrupt:
        return INTERRUPTED
    print(f"emte: {message}", file=sys.stderr)
    return BAD_INPUT


# ---- emte run ------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    engine = arguments.engine
    if arguments.observe:
        raise UserError("--observe is not in this version")
    if engine == "model":
        if arguments.check:
            raise UserError("--check compares hardware with the model: --engine pysim or verilator")
        for option in ("vcd", "fst"):
            if getattr(arguments, option):
                raise UserError(f"--{option} shows hardware: --engine pysim or verilator")
    waves = _waves(arguments)
    stream = read(arguments.stream)
    for path in (arguments.out, arguments.vcd, arguments.fst):
        if path and os.path.exists(path) and os.path.samefile(path, arguments.stream):
            raise UserError(f"{path} is the stream itself: it would be overwritten")
    config = None
    if engine != "model" or arguments.preset != "default":
        config = configuration(arguments.preset, arguments.barrier)
        check(stream, held=config.held)
    title = f"{stream.path} on {engine}"
    if engine != "model":
        title += f", preset {arguments.preset}, barrier {arguments.barrier}"

    if waves is not None:
        _expect_writable(os.fspath(waves.path))

    difference = None
    with replacing(arguments.out) if arguments.out else nullcontext() as file:
        with progress_bar(engine) as progress:
            result = run(
                stream,
                engine=engine,
                config=config,
                seed=arguments.seed,
                latency=arguments.latency,
                waves=waves,
                progress=progress,
            )
        if arguments.check:
            with progress_bar("model") as progress:
                expected = run(stream, progress=progress).outcomes
            difference = compare(stream, result.outcomes, expected)
        if file is not None:
            file.writelines(result.outcomes.lines())
    if not arguments.out:
        _print(result.outcomes.lines())

    lines = summarize(stream, result, title=title)
    if arguments.check and difference is None:
        lines.append(f"  all {len(stream):,} outcomes equal the golden model's")
    print("\n".join(lines), file=sys.stderr)
    if difference is not None:
        print(
            f"emte: {stream.path}:{difference.line}: the hardware says "
            f"{json.dumps(difference.outcome)}, the golden model {json.dumps(difference.expected)}",
            file=sys.stderr,
        )
        return DIFFERENT
    return OK


def _waves(arguments: argparse.Namespace) -> Waves | None:
    """The waveforms that the options ask for."""
    path = arguments.vcd or arguments.fst
    if not path:
        if arguments.window:
            raise UserError("--window is for waveforms: --vcd or --fst")
        return None
    first, last = arguments.window or (0, Waves.last)
    return Waves(path, "vcd" if arguments.vcd else "fst", first, last)


def configuration(preset: str, barrier: str) -> TagConfig:
    """The geometry that the options name. Loads Amaranth."""
    from emte.rtl import config

    return replace(config.PRESETS[preset], barrier=config.Barrier(barrier))


def _expect_writable(path: str) -> None:
    """Fail now, and not in the middle of a run, where a file cannot be written."""
    exists = os.path.exists(path)
    with open(path, "ab"):
        pass
    if not exists:
        os.unlink(path)


def _print(blocks: Iterable[bytes]) -> None:
    try:
        for block in blocks:
            sys.stdout.buffer.write(block)
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer has nowhere to go: the interpreter must not try at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from None


# ---- emte bench, emte generate -------------------------------------------------------------------

_GENERATED = (*WORKLOADS, *PATTERNS)


def _sweep(text: str) -> tuple[str, list[int]]:
    name, _, values = text.partition("=")
    return name, [_integer(1, 1_000_000)(value) for value in values.split(",")]


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure what checking costs",
        description="Measure DRAM traffic with models of the caches, and cycles with the hardware.",
    )
    parser.add_argument(
        "streams",
        nargs="*",
        metavar="STREAM",
        help="a file, or the name of a recorded program, workload or pattern; all: every one of "
        "these (default, where no --pattern is given)",
    )
    parser.add_argument(
        "--pattern", action="append", default=[], choices=_GENERATED, help="may be repeated"
    )
    points = parser.add_mutually_exclusive_group()
    points.add_argument(
        "--sweep",
        action="append",
        default=[],
        type=_sweep,
        metavar="PARAMETER=N,N",
        help="values of size (KiB), ways, line (bytes), mshrs or latency (cycles); repeated: all "
        "combinations. Default: the usual values of each parameter, one at a time",
    )
    points.add_argument(
        "--full", action="store_true", help="all combinations of the usual values; takes hours"
    )
    parser.add_argument(
        "--operations",
        type=_integer(100, 1 << 26),
        metavar="N",
        help="measured on the hardware (default: 50,000 of a program, 6,000 of a pattern)",
    )
    parser.add_argument(
        "--length",
        type=_integer(100, 1 << 26),
        metavar="N",
        help="operations of workloads and patterns for the models (default: as each is meant)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--plots", metavar="DIR", help="draw plots, as SVG")
    parser.add_argument("--page", metavar="FILE.md", help="write the tables as a page")
    parser.add_argument(
        "--jobs", type=_integer(1, 1024), metavar="N", help="processes (default: one for each core)"
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="run on this Dask cluster instead")
    parser.add_argument("--seed", type=_integer(0, (1 << 64) - 1), default=1, metavar="N")
    parser.set_defaults(perform=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    try:
        from . import bench, bench_report

        # Found missing now, and not after a long run.
        needed = {"matplotlib": arguments.plots, "distributed": arguments.scheduler}
        for module, wanted in needed.items():
            if wanted is not None:
                import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"emte bench needs {error.name}: pip install 'emte[bench]'") from None
    names = [*arguments.streams, *arguments.pattern] or ["all"]
    sources = bench.sources(names, arguments.seed)
    for source in sources:
        if source.kind == "file":
            bench.examine(source)
    swept: dict[str, list[int]] = {}
    for name, values in arguments.sweep:
        if name not in bench.SWEEP:
            raise UserError(f"--sweep: parameters are {', '.join(bench.SWEEP)}, not {name!r}")
        swept.setdefault(name, []).extend(values)
    points, left_out = bench.points(swept, full=arguments.full)
    if not points:
        raise UserError("--sweep: the hardware can be built in none of these forms")
    plan = bench.Plan(sources, points, length=arguments.length)
    if arguments.operations:
        plan = replace(plan, operations=arguments.operations, few=arguments.operations)
    for path in (arguments.json, arguments.page):
        if path:
            _expect_writable(path)
    if arguments.plots:
        os.makedirs(arguments.plots, exist_ok=True)

    jobs = arguments.jobs or bench.default_jobs()
    with bench.executor(jobs, arguments.scheduler) as pool, progress_bar("bench") as progress:
        results = bench.measure(plan, pool, progress)

    from rich.console import Console

    bench_report.show(Console(width=None if sys.stdout.isatty() else 200), results, plan)
    if left_out:
        print(f"{left_out} more configurations cannot be built.", file=sys.stderr)
    drawn = bench_report.plot(results, plan, arguments.plots) if arguments.plots else []
    if arguments.json:
        with replacing(arguments.json) as file:
            file.write(json.dumps(bench.record(results, plan), indent=1).encode() + b"\n")
    if arguments.page:
        folder = os.path.dirname(os.path.abspath(arguments.page))
        seen = [os.path.relpath(path, folder) for path in drawn]
        with replacing(arguments.page) as file:
            file.write(bench_report.page(results, plan, seen).encode())
    return OK


def _generate(arguments: argparse.Namespace) -> int:
    stream = generate(arguments.name, operations=arguments.operations, seed=arguments.seed)
    write(arguments.target, stream)
    return OK


# ---- emte convert, emte demo ---------------------------------------------------------------------


def _convert(arguments: argparse.Namespace) -> int:
    stream = read(arguments.source)
    write(arguments.target, stream)
    lost = stream.columns is not None and "insn" in stream.columns
    if lost and not arguments.target.endswith(".npz"):
        print("emte: note: a line has no field for its instruction word", file=sys.stderr)
    return OK


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import demo

    return OK if demo() else DIFFERENT

"""Builds bitstreams and measures the pipeline: ``python -m emte.fpga``."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from emte.rtl import PRESETS, Arrays, Barrier, TagConfig, TagPipeline

from .boards import BOARDS, DEFAULT_BOARD, BoardsMissing
from .build import BuildRefused, build
from .report import CLOCK_LIMITS, measure, table
from .tools import ToolFailed, ToolMissing

__all__ = ["main"]

_BARRIERS = [barrier.value for barrier in Barrier]


class _Parser(argparse.ArgumentParser):
    """Reports a bad argument in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _seeds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 1000, not {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="emte.fpga", description="Bitstreams and measurements of the tag pipeline on ECP5."
    )
    parser.add_argument("--list", action="store_true", help="list the boards")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    command = commands.add_parser("build", help="build the self-test for a board")
    command.add_argument(
        "--board",
        choices=BOARDS,
        default=DEFAULT_BOARD,
        metavar="BOARD",
        help=f"see --list (default: {DEFAULT_BOARD})",
    )
    command.add_argument("--preset", choices=PRESETS, default="ecp5", help="(default: ecp5)")
    command.add_argument("--barrier", choices=_BARRIERS, default="oblivious")
    command.add_argument(
        "--force", action="store_true", help="build even a pipeline that leaks tags"
    )
    command.add_argument("--out", type=Path, default=Path("build/fpga"), metavar="FOLDER")

    command = commands.add_parser("report", help="measure size and clock of the pipeline")
    command.add_argument(
        "--preset",
        choices=PRESETS,
        nargs="+",
        default=["ecp5"],
        help="one or more (default: ecp5)",
    )
    command.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="KIB",
        help="KiB of tags, by the number of sets; one or more (default: as in the preset)",
    )
    command.add_argument("--barrier", choices=_BARRIERS, default="oblivious")
    command.add_argument("--speed", type=int, choices=CLOCK_LIMITS, default=6, help="speed grade")
    command.add_argument(
        "--seeds", type=_seeds, default=1, metavar="N", help="placements (default: 1)"
    )
    command.add_argument("--out", type=Path, default=Path("build/fpga-report.json"), metavar="FILE")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _BadSize(Exception):
    """The pipeline cannot be built with so many tags."""


def _config(preset: str, barrier: str, size: int | None = None) -> TagConfig:
    config = replace(PRESETS[preset], barrier=Barrier(barrier), arrays=Arrays.ECP5)
    if size is None:
        return config
    try:
        return config.resized(size << 10)
    except ValueError as error:
        raise _BadSize(f"--size {size}, preset {preset}: {error}") from None


def _list() -> None:
    for name, board in BOARDS.items():
        platform = board.create()
        mhz = platform.default_clk_frequency / 1e6
        default = " (default)" if name == DEFAULT_BOARD else ""
        restart = [] if board.button is None else [f"button {board.button}"]
        if platform.default_rst is not None:
            restart.append("reset button")
        print(f"{name}{default}")
        print(f"    {platform.device}, speed grade {platform.speed}, {mhz:g} MHz")
        print(f"    {board.lights.describe()}; restart: {' or '.join(restart) or 'load it again'}")


def _build(arguments: argparse.Namespace) -> None:
    bitstream = build(
        arguments.board,
        _config(arguments.preset, arguments.barrier),
        folder=arguments.out,
        force=arguments.force,
        say=_say,
    )
    print(bitstream)


def _report(arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    configs: dict[str, TagConfig] = {}
    for preset in arguments.preset:
        for size in arguments.size or [None]:
            name = preset if size is None else f"{preset}-{size}k"
            configs[name] = _config(preset, arguments.barrier, size)
    # A file that cannot be written is refused before the tools run for minutes.
    if out.is_dir():
        raise IsADirectoryError(21, os.strerror(21), str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        with unfinished.open("w") as file:
            figures = {}
            for name, config in configs.items():
                figures[name] = measure(
                    TagPipeline(config),
                    folder=out.with_suffix("") / name,
                    speed=arguments.speed,
                    seeds=arguments.seeds,
                    say=_say,
                )
                print(f"{name}, barrier {arguments.barrier}")
                print(table(figures[name]), flush=True)
            json.dump(figures, file, indent=2)
            file.write("\n")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    _say(f"written: {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 1 if a tool failed, 2 for a bad request."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.list:
            _list()
        elif arguments.command == "build":
            _build(arguments)
        elif arguments.command == "report":
            _report(arguments)
        else:
            parser.error("say what to do: build, report or --list")
    except ToolFailed as error:
        _say(f"emte.fpga: {error}")
        return 1
    except (BoardsMissing, BuildRefused, ToolMissing, _BadSize) as error:
        _say(f"emte.fpga: {error}")
        return 2
    except OSError as error:
        _say(f"emte.fpga: {error.filename}: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        _say("emte.fpga: interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m emte.rtl``: the tag pipeline as one Verilog file."""

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

from amaranth.back import verilog
from amaranth.lib import data, enum

from .config import PRESETS, Barrier, TagConfig
from .layouts import (
    access_layout,
    gcr_layout,
    generate_request_layout,
    generate_response_layout,
    rgsr_layout,
    tfsr_layout,
    verdict_layout,
)
from .pipeline import TagPipeline

__all__ = ["main", "verilog_text"]


def _fields(layout: data.Layout, prefix: str = "", offset: int = 0) -> Iterator[str]:
    """A line of text for each leaf field: its bits and its name."""
    for name, field in layout:
        path = f"{prefix}{name}"
        low = offset + field.offset
        if isinstance(field.shape, data.StructLayout):
            yield from _fields(field.shape, f"{path}.", low)
        else:
            bits = f"[{low + field.width - 1}:{low}]" if field.width > 1 else f"[{low}]"
            values = ""
            if isinstance(field.shape, enum.EnumType):
                members: Iterable[enum.Enum] = field.shape.__members__.values()
                values = "  " + " ".join(f"{member.name}={member.value}" for member in members)
            yield f"  {bits:10} {path}{values}"


def verilog_text(config: TagConfig, *, name: str = "tag_pipeline") -> str:
    """The pipeline as Verilog, headed by its parameters and the fields of its payloads.

    Parameters
    ----------
    config : :class:`TagConfig`
        Geometry and policy.
    name : str
        Name of the top module.
    """
    payloads = {
        "access__payload": access_layout(config),
        "verdict__payload": verdict_layout(config),
        "generate__request__payload": generate_request_layout(),
        "generate__response__payload": generate_response_layout(),
        "generate__gcr": gcr_layout(),
        "generate__rgsr": rgsr_layout(),
        "generate__rgsr_value": rgsr_layout(),
        "tfsr": tfsr_layout(),
    }
    header = ["emte: tag pipeline for Enhanced Memory Tagging. SPDX-License-Identifier: Apache-2.0"]
    header.append("")
    header.append("Parameters")
    for field in fields(config):
        value = getattr(config, field.name)
        header.append(f"  {field.name} = {value.value if isinstance(value, Barrier) else value}")
    for port, layout in payloads.items():
        header.append("")
        header.append(f"Fields of {port}")
        header += _fields(layout)
    comment = "".join(f"// {line}".rstrip() + "\n" for line in header)
    return comment + verilog.convert(TagPipeline(config), name=name, strip_internal_attrs=True)


def main(argv: list[str] | None = None) -> int:
    """Write the file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m emte.rtl", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument(
        "--barrier", choices=[form.value for form in Barrier], default=Barrier.OBLIVIOUS.value
    )
    parser.add_argument("--out", type=Path, default=Path("build/tag_pipeline.v"))
    args = parser.parse_args(argv)

    config = dataclasses.replace(PRESETS[args.preset], barrier=Barrier(args.barrier))
    text = verilog_text(config)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
            whole = Path(folder) / "whole.v"
            whole.write_text(text)
            os.replace(whole, args.out)
    except OSError as error:
        print(f"{args.out}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(text.splitlines())} lines, preset {args.preset}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

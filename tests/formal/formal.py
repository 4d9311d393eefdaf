"""Proves, refutes and covers formal specs.

A *spec* is a component in the ``sync`` domain: its input ports are free in every cycle, its
``Assume`` statements restrict them, its ``Assert`` statements, and those of the units within, are
the properties, and its ``Cover`` statements show that the assumptions leave something to happen.
Reset is free, too: a property holds also when traffic is cut off by a reset.

Properties are proved without bound by property directed reachability (``pdr`` of ABC), after
sequential sweeping (``scorr``). Covers and mutants are found by bounded model checking (``bmc3``).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyosys
from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal, Value
from amaranth.lib import wiring

__all__ = ["Counterexample", "FormalError", "Lowered", "cover", "lower", "prove", "refute"]

ABC = Path(pyosys.__file__).parent / "yosys-abc"


class FormalError(Exception):
    """A tool failed or gave no answer: neither proved nor refuted."""


class Counterexample(AssertionError):
    """A property does not hold.

    Attributes
    ----------
    properties : dict[str, int]
        Properties that were seen to fail, and the cycle after reset in which they did.
    """

    def __init__(self, properties: dict[str, int]) -> None:
        self.properties = properties
        super().__init__("; ".join(f"{name} (cycle {n})" for name, n in properties.items()))


class _Top(Elaboratable):
    """A spec with clock, reset and its own ports as ports: an undriven clock proves anything."""

    def __init__(self, spec: wiring.Component) -> None:
        self.spec = spec
        self.clk = Signal()
        self.rst = Signal()
        members = spec.signature.flatten(spec)
        self.ports = [self.clk, self.rst, *(Value.cast(value) for _, _, value in members)]

    def elaborate(self, platform) -> Module:
        m = Module()
        m.domains.sync = sync = ClockDomain()
        m.d.comb += [sync.clk.eq(self.clk), sync.rst.eq(self.rst)]
        m.submodules.spec = self.spec
        return m


@dataclass(frozen=True)
class Lowered:
    """A spec as AIGER: the folder with the files of ``lower.py``, and the names of properties."""

    folder: tempfile.TemporaryDirectory
    asserts: list[str]
    covers: list[str]

    def file(self, name: str) -> Path:
        return Path(self.folder.name) / name


def lower(spec: wiring.Component) -> Lowered:
    """Lower a spec; see ``lower.py``."""
    folder = tempfile.TemporaryDirectory(prefix="emte-formal-")
    top = _Top(spec)
    source = Path(folder.name) / "spec.il"
    source.write_text(rtlil.convert(top, ports=top.ports, platform="formal"))
    script = Path(__file__).with_name("lower.py")
    run([sys.executable, script, source, folder.name])
    properties = json.loads((Path(folder.name) / "properties.json").read_text())
    return Lowered(folder, properties["assert"], properties["cover"])


def prove(lowered: Lowered, *, seconds: int = 60) -> None:
    """Prove every assertion for all time.

    Raises
    ------
    Counterexample
        One does not hold.
    FormalError
        There was no answer in time, or there is nothing to prove.
    """
    if not lowered.asserts:
        raise FormalError("the spec has no assertion")
    reduced = lowered.file("reduced.aig")
    source = lowered.file("assert.aig")
    abc(f"read_aiger {source}; strash; scorr; dc2; scorr; write_aiger {reduced}")
    latches, outputs = aiger_outputs(reduced)
    if len(outputs) != len(lowered.asserts):
        raise FormalError("the sweep lost properties")
    if all(literal == 0 for literal in outputs):
        return  # the sweep itself proved them, by induction
    if latches == 0 or 1 in outputs:
        raise Counterexample(_search(lowered, "assert", lowered.asserts, depth=2, seconds=seconds))
    log = abc(f"read_aiger {reduced}; pdr -T {seconds}", seconds=seconds + 30)
    if "Property proved" in log:
        return
    if match := re.search(r"Output (\d+) of miter .* was asserted in frame (\d+)", log):
        raise Counterexample({lowered.asserts[int(match[1])]: int(match[2])})
    raise FormalError(f"pdr gave no answer in {seconds} s:\n{log[-2000:]}")


def refute(lowered: Lowered, *, depth: int, seconds: int = 60) -> dict[str, int]:
    """Assertions that fail within ``depth`` cycles after reset, with the first such cycle."""
    return _search(lowered, "assert", lowered.asserts, depth=depth, seconds=seconds)


def cover(lowered: Lowered, *, depth: int, seconds: int = 60) -> dict[str, int]:
    """The cycle in which each cover is reached first.

    Raises
    ------
    FormalError
        One is not reached within ``depth`` cycles: the spec may assume too much.
    """
    if not lowered.covers:
        raise FormalError("the spec has no cover")
    reached = _search(lowered, "cover", lowered.covers, depth=depth, seconds=seconds)
    if missing := [name for name in lowered.covers if name not in reached]:
        raise FormalError(f"not reached within {depth} cycles: {', '.join(missing)}")
    return reached


def _search(
    lowered: Lowered, flavor: str, names: list[str], *, depth: int, seconds: int
) -> dict[str, int]:
    log = abc(
        f"read_aiger {lowered.file(flavor + '.aig')}; strash; bmc3 -a -F {depth} -T {seconds}",
        seconds=seconds + 30,
    )
    return {
        names[int(output)]: int(frame)
        for output, frame in re.findall(r"Output (\d+) .*?asserted in frame +(\d+)", log)
    }


def abc(commands: str, *, seconds: float = 120) -> str:
    """Run commands of ABC; returns what it prints."""
    log = run([ABC, "-q", commands], seconds=seconds)
    if match := re.search(r"^.*(?:error|cannot|failed).*$", log, re.IGNORECASE | re.MULTILINE):
        raise FormalError(f"abc: {match[0]}")
    return log


def run(command: list[str | os.PathLike], *, seconds: float = 300) -> str:
    """Run a tool; returns what it prints."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise FormalError(f"{Path(command[0]).name} was stopped after {seconds} s") from e
    if done.returncode != 0:
        raise FormalError(f"{Path(command[0]).name} failed:\n{done.stdout[-1500:]}")
    return done.stdout


def aiger_outputs(path: Path) -> tuple[int, list[int]]:
    """Number of latches, and the literals of the outputs (0 and 1 are constants)."""
    with path.open("rb") as file:
        latches, outputs = file.readline().split()[3:5]
        for _ in range(int(latches)):
            file.readline()
        return int(latches), [int(file.readline()) for _ in range(int(outputs))]

"""Proves, refutes and covers formal specs.

A *spec* is a component in the ``sync`` domain: its input ports are free in every cycle, its
``Assume`` statements restrict them, its ``Assert`` statements, and those of the units within, are
the properties, and its ``Cover`` statements show that the assumptions leave something to happen.
Reset is free, too: a property holds also when traffic is cut off by a reset.

Properties are proved without bound: by sequential sweeping (``scorr`` of ABC), and what that leaves
open by property directed reachability (``pdr``), one property after the other. Lemmas, which are
assertions named "lemma" and a number, come first, in that order, and help the proofs after them.
Where all that a unit shows follows from the inputs of its last few cycles, induction over these
cycles proves it without any lemma, and one call of a solver (``kissat``) decides each assertion.
Covers, mutants and bounded claims go to ``bmc3``.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyosys
from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal, Value
from amaranth.lib import wiring

__all__ = [
    "Counterexample",
    "FormalError",
    "Lowered",
    "cover",
    "decide",
    "hold",
    "induct",
    "lower",
    "prove",
]

ABC = Path(pyosys.__file__).parent / "yosys-abc"
SCRIPTS = Path(__file__).parent
BUILD = SCRIPTS.parents[1] / "build" / "formal"


FEW = 2
"""Cycles of induction that are tried before more are."""


class FormalError(Exception):
    """A tool failed or gave no answer: neither proved nor refuted."""


class Counterexample(AssertionError):
    """A property does not hold.

    Attributes
    ----------
    properties : dict[str, int]
        Properties that were seen to fail, and the cycle after reset in which they did.
    waveform : :class:`pathlib.Path`
        A VCD file that shows it.
    """

    def __init__(self, properties: dict[str, int], waveform: Path) -> None:
        self.properties = properties
        self.waveform = waveform
        failed = "; ".join(f"{name} (cycle {n})" for name, n in properties.items())
        super().__init__(f"{failed}, see {waveform}")


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
    """A spec as AIGER: its name, the folder of ``lower.py``, and the names of its properties."""

    name: str
    folder: Path
    asserts: list[str]
    covers: list[str]

    def file(self, name: str) -> Path:
        return self.folder / name


@contextmanager
def lower(spec: wiring.Component, *, name: str = "") -> Iterator[Lowered]:
    """Lower a spec; see ``lower.py``. Its files are there within the context.

    ``name`` is that of the waveform of a counterexample; by default it is the spec's own.
    """
    with tempfile.TemporaryDirectory(prefix="emte-formal-") as temporary:
        folder = Path(temporary)
        top = _Top(spec)
        source = folder / "spec.il"
        source.write_text(rtlil.convert(top, ports=top.ports, platform="formal"))
        run([sys.executable, SCRIPTS / "lower.py", source, folder])
        properties = json.loads((folder / "properties.json").read_text())
        yield Lowered(
            name or type(spec).__name__, folder, properties["assert"], properties["cover"]
        )


def prove(lowered: Lowered, *, only: str = "", seconds: int = 60) -> None:
    """Prove every assertion whose name contains ``only`` for all time.

    Raises
    ------
    Counterexample
        One does not hold.
    FormalError
        There was no answer within ``seconds`` for each, or there is nothing to prove.
    """
    reduced = lowered.file("reduced.aig")
    literals = _sweep(f"read_aiger {lowered.file('assert.aig')}", reduced)
    unanswered = [number for number in _select(lowered, only) if literals[number]]
    lemmas: list[int] = []

    def is_lemma(number: int) -> bool:
        return "lemma " in lowered.asserts[number]

    for number in sorted(unanswered, key=lambda n: (not is_lemma(n), lowered.asserts[n])):
        if decide(lowered, reduced, number, lemmas, seconds=seconds):
            unanswered.remove(number)
            if is_lemma(number):
                lemmas.append(number)
    if unanswered:
        names = "; ".join(lowered.asserts[number] for number in unanswered)
        raise FormalError(f"neither proved nor refuted: {names}")


def _select(lowered: Lowered, only: str) -> list[int]:
    """Numbers of the assertions whose name contains ``only``."""
    numbers = [number for number, name in enumerate(lowered.asserts) if only in name]
    if not numbers:
        raise FormalError(f"the spec has no assertion with {only!r} in its name")
    return numbers


def _sweep(read: str, target: Path) -> list[int]:
    """Reduce a network by induction; returns its outputs, of which 0 is proved and 1 refuted."""
    abc(f"{read}; strash; scorr; dc2; scorr; write_aiger {target}", seconds=300)
    return aiger_outputs(target)[1]


def decide(
    lowered: Lowered, reduced: Path, number: int, lemmas: list[int], *, seconds: int
) -> bool:
    """Is assertion ``number`` proved? False if there is no answer in time.

    Lemmas, which are proved, make a proof very short, or else longer.
    """
    selected, swept = lowered.file("selected.aig"), lowered.file("swept.aig")
    attempts = [([], seconds)]
    if lemmas:
        attempts = [(lemmas, 1), *attempts, (lemmas, seconds)]
    for helpers, limit in attempts:
        select_outputs(reduced, selected, [number, *helpers])
        fold = f"; constr -N {len(helpers)}; fold" if helpers else ""
        (literal,) = _sweep(f"read_aiger {selected}{fold}", swept)
        if literal == 0:
            return True
        log = abc(f"read_aiger {swept}; pdr -T {limit}", seconds=limit + 60)
        if re.search(r"Verification of .*failed", log):
            continue  # the time was up while ABC checked the invariant that it had found
        if "Property proved" in log:
            return True
        if match := re.search(r"was asserted in frame +(\d+)", log):
            frame = int(match[1])
            waveform = _replay(lowered, number, frame)
            raise Counterexample({lowered.asserts[number]: frame}, waveform)
        if "UNDECIDED" not in log:
            raise FormalError(f"pdr did not answer:\n{log[-1500:]}")
    return False


def induct(lowered: Lowered, *, steps: int, only: str = "", seconds: int = 60) -> None:
    """Prove every assertion whose name contains ``only`` for all time.

    The unit is in any state, and none of these fails for ``steps`` cycles: then they hold in the
    next cycle. And they hold in the first ``steps`` cycles. For those that need fewer cycles fewer
    are taken.

    Raises
    ------
    Counterexample
        One fails within the first cycles.
    FormalError
        One does not follow from the cycles before, there was no answer within ``seconds`` for each,
        or there is nothing to prove.
    """
    numbers = _select(lowered, only)
    total = len(lowered.asserts)
    unrolled, question = lowered.file("unrolled.aig"), lowered.file("question.aig")
    read = f"read_aiger {lowered.file('assert.aig')}; strash; dc2"

    def possible(cycle: int, number: int) -> bool:
        """May the assertion be the first to fail, in this cycle?"""
        before = [earlier * total + other for earlier in range(cycle) for other in numbers]
        select_outputs(unrolled, question, [cycle * total + number], negated=before)
        conjunction = "andpos; strash; " if before else ""
        prepare = f"read_aiger {question}; {conjunction}write_aiger {question}"
        # Kissat is for the hard ones; it fails where there is nothing to decide.
        for solver in (f"{prepare}; sat -C 10000", f"&read {question}; &kissat"):
            log = abc(solver, seconds=seconds)
            if match := re.search(r"\b(un)?satisfiable", log, re.IGNORECASE):
                return not match[1]
        raise FormalError(f"neither proved nor refuted: {lowered.asserts[number]}\n{log[-1500:]}")

    searched = _search(lowered, numbers, depth=steps, seconds=5)
    needed: dict[int, int] = {}
    for cycles in sorted({min(FEW, steps), steps}):
        abc(f"{read}; frames -F {cycles + 1}; comb; write_aiger {unrolled}")
        for number in numbers:
            if number not in needed and not possible(cycles, number):
                needed[number] = cycles
    if missing := [lowered.asserts[number] for number in numbers if number not in needed]:
        raise FormalError(f"does not follow from {steps} cycles before: {'; '.join(missing)}")
    # What is left of the first cycles, one by one.
    if searched < max(needed.values()):
        abc(f"{read}; frames -i -F {steps}; write_aiger {unrolled}")
    for number, cycles in needed.items():
        for cycle in range(searched, cycles):
            if possible(cycle, number):
                waveform = _replay(lowered, number, cycle)
                raise Counterexample({lowered.asserts[number]: cycle}, waveform)


def _replay(lowered: Lowered, number: int, frame: int) -> Path:
    """Write the waveform of a counterexample; returns its path."""
    selected, witness = lowered.file("selected.aig"), lowered.file("witness.aiw")
    select_outputs(lowered.file("assert.aig"), selected, [number])
    log = abc(f"read_aiger {selected}; strash; bmc3 -F {frame + 1}; write_cex -a {witness}")
    if not witness.exists():
        raise FormalError(f"the counterexample is not found again:\n{log[-1500:]}")
    waveform = BUILD / f"{lowered.name}.vcd"
    waveform.parent.mkdir(parents=True, exist_ok=True)
    run([sys.executable, SCRIPTS / "replay.py", lowered.folder, witness, waveform])
    return waveform


def hold(lowered: Lowered, *, depth: int, only: str = "", seconds: int = 60) -> None:
    """Check that no assertion whose name contains ``only`` fails within ``depth`` cycles.

    Raises
    ------
    Counterexample
        One does.
    FormalError
        Not all cycles were searched in time, or there is nothing to search for.
    """
    numbers = _select(lowered, only)
    searched = _search(lowered, numbers, depth=depth, seconds=seconds)
    if searched < depth:
        raise FormalError(f"searched for {searched} cycles of {depth}")


def _search(lowered: Lowered, numbers: list[int], *, depth: int, seconds: int) -> int:
    """Search for cycles in which an assertion fails; how many there was time for, up to depth."""
    source = lowered.file("held.aig")
    select_outputs(lowered.file("assert.aig"), source, numbers)
    log = abc(f"read_aiger {source}; strash; bmc3 -F {depth} -T {seconds}", seconds=seconds + 60)
    if match := re.search(r"Output +(\d+) .*?asserted in frame +(\d+)", log):
        number, frame = numbers[int(match[1])], int(match[2])
        waveform = _replay(lowered, number, frame)
        raise Counterexample({lowered.asserts[number]: frame}, waveform)
    if match := re.search(r"No output asserted in (\d+) frames", log):
        return int(match[1])
    raise FormalError(f"bmc3 did not answer:\n{log[-1500:]}")


def cover(lowered: Lowered, *, depth: int, seconds: int = 60) -> dict[str, int]:
    """The cycle in which each cover is reached first.

    Raises
    ------
    FormalError
        One is not reached within ``depth`` cycles: the spec may assume too much.
    """
    if not lowered.covers:
        raise FormalError("the spec has no cover")
    source = lowered.file("cover.aig")
    # Without -x it may crash where one trace reaches several covers.
    search = f"bmc3 -a -x -F {depth} -T {seconds}"
    log = abc(f"read_aiger {source}; strash; {search}", seconds=seconds + 60)
    reached = {
        lowered.covers[int(output)]: int(frame)
        for output, frame in re.findall(r"Output +(\d+) .*?asserted in frame +(\d+)", log)
    }
    if missing := [name for name in lowered.covers if name not in reached]:
        raise FormalError(f"not reached within {depth} cycles: {', '.join(missing)}")
    return reached


def abc(commands: str, *, seconds: float = 120) -> str:
    """Run commands of ABC; returns what it prints."""
    log = run([ABC, "-q", commands], seconds=seconds)
    complaint = r"^(?!Verification of ).*(?:error|cannot|failed).*$"
    if match := re.search(complaint, log, re.IGNORECASE | re.MULTILINE):
        raise FormalError(f"abc: {match[0]}\n{log[-800:]}")
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


def select_outputs(
    source: Path, target: Path, numbers: list[int], *, negated: Iterable[int] = ()
) -> None:
    """Write the network of ``source`` with nothing but these outputs, in this order.

    Those of ``negated`` come after ``numbers``, and are negated.
    """
    with source.open("rb") as file:
        kind, top, inputs, latches, outputs, gates = file.readline().split()[:6]
        state = [file.readline() for _ in range(int(latches))]
        literals = [int(file.readline()) for _ in range(int(outputs))]
        rest = file.read()
    chosen = [*(literals[n] for n in numbers), *(literals[n] ^ 1 for n in negated)]
    header = b" ".join((kind, top, inputs, latches, b"%d" % len(chosen), gates)) + b"\n"
    # Names of outputs, at the end, are dropped with everything else that is no gate.
    target.write_bytes(b"".join((header, *state, *(b"%d\n" % n for n in chosen), rest)))

"""``emte demo``: three recorded programs through the hardware, checked against the golden model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from .engines import DEFAULT_LATENCY, EngineError, compare, run
from .ops import Stream, read
from .summary import Fault, cost, faults, instruction_word, progress_bar, table

__all__ = ["demo"]

_TRACES = Path(__file__).with_name("traces")


@dataclass(frozen=True)
class _Program:
    trace: str
    title: str
    why: str | None = None
    """What it means that an access is stopped; None where none may be."""


_PROGRAMS = (
    _Program("sort", "A correct program: busybox sort"),
    _Program(
        "bug_overflow",
        "A heap overflow: one byte is written beyond the end of a block",
        "the store left its block: malloc() gave the memory behind it another tag",
    ),
    _Program(
        "bug_uaf",
        "A use after free: a block is read that was given back",
        "the pointer is stale: free() gave the block another tag",
    ),
)
_SHORT = 4_000
"""Operations of the correct program where only the slow engine is there."""


def demo() -> bool:
    """Run the programs and print what became of them.

    Returns
    -------
    bool
        Did every outcome equal the golden model's, and was stopped what has to be?
    """
    print("Preparing the hardware; the first time takes a minute.", flush=True)
    engine, missing = _best_engine()
    if missing is not None:
        print(f"The Amaranth simulator runs it, some 100 times slower: {missing}.")
        print(f"So only the first {_SHORT:,} operations of the correct program are run.")
    good = True
    for number, program in enumerate(_PROGRAMS, 1):
        stream = read(_TRACES / f"{program.trace}.npz")
        if program.why is None and missing is not None:
            stream = stream.head(_SHORT)
        print(f"\n{number}. {program.title}", flush=True)
        good &= _show(program, stream, engine)
    print("\nAll as it should be." if good else "\nSomething is wrong.")
    return good


def _best_engine() -> tuple[str, str | None]:
    """The fastest engine that works here, and what a faster one lacks."""
    from emte.rtl import DEFAULT

    from .verilated import build

    try:
        build(DEFAULT)
    except EngineError as error:
        return "pysim", str(error)
    return "verilator", None


def _show(program: _Program, stream: Stream, engine: str) -> bool:
    start = time.perf_counter()
    with progress_bar(engine) as progress:
        result = run(stream, engine=engine, progress=progress)
    seconds = time.perf_counter() - start
    with progress_bar("model") as progress:
        expected = run(stream, progress=progress)
    difference = compare(stream, result.outcomes, expected.outcomes)
    stopped = list(faults(stream, result.outcomes))

    instructions = stream.instructions()
    rows = [("ran", f"{len(stream):,} operations of {instructions:,} instructions")]
    if difference is None:
        rows.append(("golden model", "every outcome is the same"))
    else:
        rows.append(
            (
                "golden model",
                f"line {difference.line}: {difference.outcome}, not {difference.expected}",
            )
        )
    if not stopped:
        rows.append(("stopped", "no access"))
    for fault in stopped:
        rows += _story(stream, fault, program.why or "a correct program should not do this")
    assert result.statistics is not None
    rows += cost(result.statistics, instructions)
    rows.append(
        ("simulated in", f"{seconds:.1f} s by {engine}, DRAM {DEFAULT_LATENCY} cycles away")
    )
    for line in table(rows):
        print(f"   {line}")
    return difference is None and len(stopped) == (program.why is not None)


def _story(stream: Stream, fault: Fault, why: str) -> list[tuple[str, str]]:
    """Which access was stopped, where, and why."""
    operation = fault.operation
    size = "1 byte" if operation.size == 1 else f"{operation.size} bytes"
    word = instruction_word(stream, operation)
    instruction = "not recorded" if word is None else f"{word:#010x} at pc {operation.pc:#x}"
    memory = "none" if fault.memory_tag is None else f"{fault.memory_tag:#x}"
    granule = fault.address & ~(0xFF << 56) & ~0xF
    return [
        ("STOPPED", f"line {operation.line:,}: {operation.op} of {size}"),
        ("  address", f"{operation.address:#x}"),
        ("  instruction", instruction),
        ("  verdict", fault.outcome["outcome"]),
        ("  pointer tag", f"{fault.pointer_tag:#x}"),
        ("  memory tag", f"{memory}, of the 16 bytes at {granule:#x}"),
        ("  why", why),
    ]

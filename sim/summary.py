"""What a run shows: how the accesses ended, where the first faults are, what checking cost."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from .model import Model
from .ops import TAG_STORES, Operation, Regime, Stream, granules
from .outcomes import Outcome, Outcomes

if TYPE_CHECKING:
    from .engines import RunResult
    from .transactions import Progress, Statistics

__all__ = ["Fault", "cost", "faults", "instruction_word", "progress_bar", "summarize", "table"]

_HARMLESS = ("pass", "squashed")
_CHANGES = (*TAG_STORES, "map", "storage", "regime")


@dataclass(frozen=True)
class Fault:
    """An access that did not pass.

    Attributes
    ----------
    operation, outcome
        What it was, and how it ended.
    address
        Where it failed: the pointer to the first failing granule.
    memory_tag
        The tag of that granule at that time; None where it has none.
    """

    operation: Operation
    outcome: Outcome
    address: int
    memory_tag: int | None

    @property
    def pointer_tag(self) -> int:
        return self.address >> 56 & 0xF


def faults(stream: Stream, outcomes: Outcomes) -> Iterator[Fault]:
    """The faults of a run, in order.

    The tags in memory come from a golden model that is given only what changes them.
    """
    model = Model()
    regime = Regime()
    changes = stream.select(_CHANGES)
    change = next(changes, None)
    for row in outcomes.where(lambda outcome: outcome.get("outcome", "pass") not in _HARMLESS):
        operation, outcome = stream[row], outcomes[row]
        kind = outcome["outcome"]
        while change is not None and change.line < operation.line:
            model.step(change)
            regime = change.regime or regime
            change = next(changes, None)
        assert operation.address is not None
        address = int(outcome["far"], 16) if "far" in outcome else operation.address
        if kind == "async":
            address = _first_mismatch(model, operation, regime)
        tag = model.tag_at(address)
        if tag is None and kind in ("tag_check_fault", "async"):
            tag = 0xF * (address >> 55 & 1)  # the canonical one
        yield Fault(operation, outcome, address, tag)


def _first_mismatch(model: Model, operation: Operation, regime: Regime) -> int:
    """The address at which an access that was checked asynchronously first met a wrong tag."""
    assert operation.address is not None
    top = operation.address >> 52 << 52
    pointer_tag = operation.address >> 56 & 0xF
    canonical = 0xF * (operation.address >> 55 & 1)
    for granule in granules(operation, regime):
        tag = model.tag_at(granule << 4)
        if pointer_tag != (canonical if tag is None and any(regime.mtx) else tag):
            start = top | granule << 4
            return start if operation.op == "dc_zva" else max(operation.address, start)
    return operation.address


def instruction_word(stream: Stream, operation: Operation) -> int | None:
    """The instruction of an operation, where the stream has recorded it."""
    columns = stream.columns
    if columns is None or "insn" not in columns or operation.pc is None:
        return None
    return int(columns["insn"][columns["pc_index"][operation.line - 1]])


@contextmanager
def progress_bar(what: str) -> Iterator[Progress | None]:
    """A progress bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# ---- Text ----------------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _listing(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {name}" for name, count in ordered)


def _bytes(count: int) -> str:
    return f"{count:,} bytes" if count < 10_240 else f"{count / 1024:,.1f} KiB"


def cost(statistics: Statistics, instructions: int) -> list[tuple[str, str]]:
    """What checking cost in the hardware, as (name, value)."""
    accesses = statistics.accesses
    rows = [("cycles", f"{statistics.cycles:,}")]
    if accesses:
        rows[0] = ("cycles", f"{rows[0][1]}, {statistics.cycles / accesses:.2f} for each access")
    lookups = f"{statistics.lookups:,}"
    if statistics.lookups:
        rate = statistics.hits / statistics.lookups
        lookups += f", {rate:.2%} hits; missed {statistics.misses:,}"
    rows.append(("tag lookups", lookups))
    read, written = 8 * statistics.read_beats, 8 * statistics.write_beats
    traffic = f"{_bytes(read)} read, {_bytes(written)} written"
    if instructions:
        traffic += f"; {1000 * (read + written) / instructions:.2f} bytes per 1,000 instructions"
    rows.append(("DRAM added", traffic))
    return rows


def summarize(stream: Stream, result: RunResult, *, title: str, shown: int = 8) -> list[str]:
    """The summary of a run, line by line."""
    outcomes = result.outcomes
    verdicts = outcomes.verdicts()
    rows = [
        ("operations", f"{len(stream):,}: {_listing(stream.counts())}" if len(stream) else "none"),
        ("verdicts", _listing(verdicts) or "none"),
        ("TFSR", _tfsr(result.tfsr)),
    ]
    if result.statistics is not None:
        rows += cost(result.statistics, stream.instructions())
    lines = [title, *(f"  {line}" for line in table(rows))]
    count = sum(number for kind, number in verdicts.items() if kind not in _HARMLESS)
    if count:
        lines.append(f"  faults{f', the first {shown} of {count:,}' if count > shown else ''}")
        first = islice(faults(stream, outcomes), shown)
        cells = [_HEADER, *(_row(stream, fault) for fault in first)]
        recorded = [column for column in zip(*cells, strict=True) if set(column[1:]) != {"-"}]
        lines += (f"    {line}" for line in table(list(zip(*recorded, strict=True))))
    return lines


def _tfsr(tfsr: dict[str, list[int]]) -> str:
    names = [f"{el.upper()}.TF{half}" for el in ("el0", "el1") for half in (0, 1) if tfsr[el][half]]
    return ", ".join(names) or "clear"


_HEADER = ("line", "operation", "address", "pointer", "memory", "verdict", "pc", "instruction")


def _row(stream: Stream, fault: Fault) -> tuple[str, ...]:
    operation = fault.operation
    verdict = fault.outcome["outcome"]
    if fault.address != operation.address:
        verdict += f" at {fault.address:#x}"
    word = instruction_word(stream, operation)
    return (
        str(operation.line),
        f"{operation.op} {operation.size}" if operation.size else operation.op,
        f"{operation.address:#x}",
        f"tag {fault.pointer_tag:x}",
        "-" if fault.memory_tag is None else f"tag {fault.memory_tag:x}",
        verdict,
        "-" if operation.pc is None else f"{operation.pc:#x}",
        "-" if word is None else f"{word:08x}",
    )

"""The figures of :mod:`emte.sim.bench` as tables, on a terminal or as a page, and as plots."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from . import workloads
from .bench import FORMS, SWEEP, Cycles, Plan, Point, Results, Traffic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

__all__ = ["Table", "page", "plot", "show", "tables"]

LOWRISC = {16: 1.589, 32: 1.356, 64: 1.159}
"""Mean traffic ratio of lowRISC's tag cache by KiB, SPECint2006."""


@dataclass(frozen=True)
class Table:
    """Heads and cells are text; the first column names the row."""

    title: str
    text: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def _programs(rows: Iterable[Any]) -> list[Any]:
    return [row for row in rows if row.kind != "pattern"]


def _patterns(rows: Iterable[Any]) -> list[Any]:
    return [row for row in rows if row.kind == "pattern"]


def _names(rows: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(row.source for row in rows))


def tables(results: Results, plan: Plan) -> list[Table]:
    """All tables for which there are figures."""
    made = [
        *_traffic_tables(_programs(results.traffic)),
        *_pattern_traffic(_patterns(results.traffic)),
        *_program_cycles(_programs(results.cycles), plan),
        *_sweep(_programs(results.cycles)),
        *_pattern_cycles(_patterns(results.cycles), plan),
    ]
    return [table for table in made if table.rows]


# ---- Traffic -------------------------------------------------------------------------------------


def _traffic_tables(rows: list[Traffic]) -> list[Table]:
    if not rows:
        return []
    return [_by_size(rows), _by_form(rows), _hits(rows)]


def _by_size(rows: list[Traffic]) -> Table:
    """The table that lowRISC has, for lines of two lengths."""
    ways, lines = Point().ways, (64, 16)
    found = {
        (row.source, row.size, row.line): row
        for row in rows
        if row.form is None and row.ways == ways
    }
    columns = [(size, line) for line in lines for size in LOWRISC]
    cells = []
    for name in _names(rows):
        some = found[name, *columns[0]]
        ratios = [_ratio(found[name, *column].ratio) for column in columns]
        cells.append([name, f"{some.footprint / 1024:.0f}", *ratios])
    means = [_mean(found[name, *column].ratio for name in _names(rows)) for column in columns]
    cells.append(["**mean**", "", *map(_ratio, means)])
    same = [_ratio(LOWRISC[size]) for size, _ in columns]
    reach = [_ratio(LOWRISC.get(2 * size)) for size, _ in columns]
    cells.append(["lowRISC, mean of SPECint2006, same size", "", *same])
    cells.append(["lowRISC, same reach", "", *reach])
    worst = [
        max((found[name, 32, line].ratio or 0, name, line) for name in _names(rows))
        for line in lines
    ]
    largest = " and ".join(
        f"{ratio:.3f} (`{name}`) with lines of {line} bytes" for ratio, name, line in worst
    )
    return Table(
        "DRAM traffic with tags, by size of the tag cache",
        "Bytes that the data side and the tag cache move to and from memory, divided by those of "
        "the data side alone. The data side is modelled: 16 KiB L1D (4 ways) and 256 KiB L2 (8 "
        "ways), lines of 64 bytes, write-back, LRU. Instructions are not fetched, and what is in "
        "the caches at the end counts for neither side. The tag cache has 8 ways. A byte of tags "
        "reaches over 32 bytes of data here, and over 16 in lowRISC's tagged memory, which has 4 "
        "bits for each 8 bytes: 32 KiB here have the reach of 64 KiB there. The programs differ, "
        "and so does what the tag cache sees: here all checked accesses, there what misses in L2. "
        f"The largest ratio at 32 KiB is {largest}; lowRISC's mean at that reach is {LOWRISC[64]}.",
        ["program", "KiB of tags", *(f"{size} KiB, line {line}" for size, line in columns)],
        cells,
    )


def _by_form(rows: list[Traffic]) -> Table:
    found = {(row.form, row.source): row.ratio for row in rows if row.form}
    names = _names(rows)
    cells = [
        [
            form.name,
            form.what,
            form.hardware,
            *(_ratio(found[form.name, name]) for name in names),
            _ratio(_mean(found[form.name, name] for name in names)),
        ]
        for form in FORMS
    ]
    return Table(
        "What each form of the cache gives, at 32 KiB",
        "The same ratio. All forms keep rule R3: what they do follows from addresses and from "
        "what translation says, never from tags. That rules out what others do with tags that "
        "are all zero or all equal, since a miss would then tell of their values. *Parameter*: "
        "the hardware can be built so. *Model only*: the hardware has it not. The touched map "
        "saves the first fetch of tags that were never written back since reset, and so gives "
        "most to programs that have just begun. Bytes are those of the AXI port. Memory whose "
        "shortest burst is 64 bytes gains nothing from lines and sectors of 16; a 16-bit DDR3 "
        "bus, as on ECP5 boards, has bursts of 16.",
        ["form", "what it is", "hardware", *names, "mean"],
        cells,
    )


def _hits(rows: list[Traffic]) -> Table:
    usual = Point()
    found = {(row.source, row.size, row.ways, row.line): row for row in rows if row.form is None}
    shapes = [
        *((size, usual.ways, usual.line) for size in SWEEP["size"]),
        *((usual.size, ways, usual.line) for ways in (1, 4, 16)),
        *((usual.size, usual.ways, line) for line in SWEEP["line"] if line != usual.line),
    ]
    cells = [
        [name, *(_percent(found[name, *shape].hit_rate, 2) for shape in shapes)]
        for name in _names(rows)
    ]
    heads = [f"{size} KiB, {ways} ways, line {line}" for size, ways, line in shapes]
    return Table("Hit rates", "Of all lookups.", ["program", *heads], cells)


def _pattern_traffic(rows: list[Traffic]) -> list[Table]:
    names = ["flat cache", "lines of 16", "hashed sets", "lines of 16, gathering"]
    found = {(row.source, row.form): row for row in rows}
    cells = []
    for name in _names(rows):
        per_lookup = [
            found[name, form].tag_bytes / found[name, form].lookups
            if found[name, form].lookups
            else 0
            for form in names
        ]
        ratio = found[name, names[0]].ratio
        cells.append([name, _ratio(ratio), *(f"{number:.2f}" for number in per_lookup)])
    return [
        Table(
            "Patterns: tag traffic at 32 KiB",
            "Bytes of tags moved for each lookup, and the ratio of the flat cache where the "
            "pattern moves data at all.",
            ["pattern", "ratio, flat cache", *names],
            cells,
        )
    ]


# ---- Cycles --------------------------------------------------------------------------------------

_LATENCY_HEADS = ("mean", "p50", "p99", "max")


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _latency(row: Cycles) -> list[str]:
    return [f"{row.mean:.1f}", f"{row.p50:.0f}", f"{row.p99:.0f}", str(row.longest)]


def _is_at(row: Cycles, point: Point) -> bool:
    return all(getattr(row, name) == getattr(point, name) for name in SWEEP)


def _shown_point(plan: Plan) -> Point:
    """The DEFAULT preset, or the first point of a sweep that has it not."""
    return Point() if Point() in plan.points else plan.points[0]


def _describe(point: Point) -> str:
    return (
        f"{point.size} KiB, {point.ways} ways, lines of {point.line} bytes, {point.mshrs} "
        f"MSHR{'s' * (point.mshrs > 1)}, DRAM {point.latency} cycles away"
    )


def _program_cycles(rows: list[Cycles], plan: Plan) -> list[Table]:
    point = _shown_point(plan)
    cells = [
        [
            row.source,
            _percent(row.hit_rate, 2),
            f"{row.accesses / row.cycles:.2f}",
            f"{row.probes_per_cycle:.2f}",
            _rate(row.under_misses),
            *_latency(row),
            _percent(row.free, 2),
            _percent(row.waiting),
        ]
        for row in rows
        if _is_at(row, point)
    ]
    return [
        Table(
            "Programs on the hardware",
            f"Verilated hardware: {_describe(point)}. {plan.operations:,} operations from the "
            "middle of each program, after as many that warm the caches up. First the core "
            "offers an access whenever it can: accesses and lookups for each cycle (accesses to "
            "untagged memory need no lookup); accesses for each cycle in which a line is on its "
            "way from memory; and cycles from the transfer of an access to its verdict. Then it "
            "is an in-order core that does one instruction per cycle, and "
            "waits for the data of a load: no cycle in L1, 8 in L2, 8 more than the tags' "
            "memory is away in DRAM. The last columns tell how much longer it takes with "
            "checking: if it goes on and holds back what it has loaded until the verdict is "
            "there, so that it waits only while the pipeline takes no access; and if it stands "
            "still until the verdict of each load.",
            [
                *("program", "hits", "accesses/cycle", "lookups/cycle", "under misses"),
                *_LATENCY_HEADS,
                *("slower, not waiting", "slower, waiting"),
            ],
            cells,
        )
    ]


def _sweep(rows: list[Cycles]) -> list[Table]:
    by_point: dict[tuple[int, ...], list[Cycles]] = {}
    for row in rows:
        by_point.setdefault(tuple(getattr(row, name) for name in SWEEP), []).append(row)
    cells = [
        [
            *map(str, point),
            _percent(fmean(row.hit_rate for row in found), 2),
            f"{fmean(row.accesses / row.cycles for row in found):.2f}",
            f"{fmean(row.mean for row in found):.1f}",
            f"{fmean(row.p99 for row in found):.0f}",
            str(max(row.longest for row in found)),
            _percent(fmean(row.free for row in found), 2),
            _percent(fmean(row.waiting for row in found)),
        ]
        for point, found in by_point.items()
    ]
    if len(cells) < 2:
        return []
    return [
        Table(
            "Configurations of the hardware",
            "Means over the programs; the largest latency of all.",
            [
                *("KiB", "ways", "line", "MSHRs", "DRAM cycles"),
                *("hits", "accesses/cycle", "mean", "p99", "max"),
                *("slower, not waiting", "slower, waiting"),
            ],
            cells,
        )
    ]


def _pattern_cycles(rows: list[Cycles], plan: Plan) -> list[Table]:
    point = _shown_point(plan)
    mshrs = sorted({row.mshrs for row in rows})
    rates = {(row.source, row.mshrs): row.probes_per_cycle for row in rows}
    cells = [
        [
            row.source,
            _percent(row.hit_rate, 2),
            *(f"{rates[row.source, number]:.2f}" for number in mshrs),
            _rate(row.under_misses),
            *_latency(row),
            _percent(row.free),
        ]
        for row in rows
        if _is_at(row, point)
    ]
    heads = [f"lookups/cycle, {number} MSHR{'s' * (number > 1)}" for number in mshrs]
    return [
        Table(
            "Patterns on the hardware",
            f"{_describe(point)}, but for the number of MSHRs where a column names another. "
            f"Lookups for each cycle are of the last {plan.few:,} operations. Under misses: "
            "accesses for each cycle in which a line is on its way from memory.",
            ["pattern", "hits", *heads, "under misses", *_LATENCY_HEADS, "slower, not waiting"],
            cells,
        )
    ]


# ---- As text -------------------------------------------------------------------------------------


def show(console: Console, results: Results, plan: Plan) -> None:
    """Print all tables."""
    from rich.table import Table as RichTable

    for table in tables(results, plan):
        grid = RichTable(title=table.title, title_justify="left", title_style="bold")
        skipped = _index_of(table.heads, "what it is")
        for number, head in enumerate(table.heads):
            if number != skipped:
                grid.add_column(head, justify="right" if number else "left")
        for row in table.rows:
            cells = [cell.strip("*") for number, cell in enumerate(row) if number != skipped]
            grid.add_row(*cells)
        console.print(grid)


def _index_of(heads: Sequence[str], head: str) -> int | None:
    return heads.index(head) if head in heads else None


def page(results: Results, plan: Plan, plots: Iterable[str] = ()) -> str:
    """The page of results, in Markdown; ``plots`` are paths as seen from the page."""
    parts = [
        "# Results",
        "What checking costs, in DRAM traffic and in cycles. This page is written by `make "
        "bench`: edit `sim/bench_report.py`, not the page. [How to measure](how-to/bench.md) "
        "tells what runs and how to measure a program of your own.",
    ]
    for table in tables(results, plan):
        parts += [f"## {table.title}", table.text, _markdown(table)]
    drawn = [f"![{Path(path).stem.replace('_', ' ')}]({path})" for path in plots]
    if drawn:
        parts += ["## Plots", *drawn]
    parts += ["## Programs and patterns", _descriptions()]
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    rows = [table.heads, ["---", *["--:"] * (len(table.heads) - 1)], *table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _descriptions() -> str:
    lines = [
        "The recorded programs are told of in `sim/traces/README.md`; those that begin in the "
        "middle of a program first set the tags that were there, which is not counted.",
        "",
    ]
    for name, make in {**workloads.WORKLOADS, **workloads.PATTERNS}.items():
        lines.append(f"- `{name}`: {' '.join((make.__doc__ or '').split())}")
    return "\n".join(lines)


# ---- Plots ---------------------------------------------------------------------------------------


def plot(results: Results, plan: Plan, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw what there are figures for, as SVG files.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    import matplotlib

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    # Equal figures give equal files, with text as text.
    style: dict[Any, Any] = {"svg.hashsalt": "emte", "svg.fonttype": "none", "font.size": 9.0}
    with matplotlib.rc_context(style):
        for name, draw in _PLOTS.items():
            figure = draw(results, plan)
            if figure is not None:
                path = folder / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None})
                drawn.append(path)
    return drawn


def _figure(columns: int) -> tuple[Figure, list[Any]]:
    """A figure with some panels in a row, without the state of ``pyplot``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * columns, 3.6), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def _draw_sizes(results: Results, plan: Plan) -> Figure | None:
    """Traffic ratio by size, a panel for each length of lines."""
    rows = [row for row in _programs(results.traffic) if row.form is None]
    if not rows:
        return None
    lines = (64, 32, 16)
    figure, panels = _figure(len(lines))
    for panel, line in zip(panels, lines, strict=True):
        for name in _names(rows):
            some = [
                row
                for row in rows
                if (row.source, row.line, row.ways) == (name, line, Point().ways)
            ]
            panel.plot([row.size for row in some], [row.ratio for row in some], "o-", label=name)
        panel.plot(list(LOWRISC), list(LOWRISC.values()), "k--", label="lowRISC, mean")
        panel.set_xscale("log", base=2)
        panel.set_xticks(SWEEP["size"], [str(size) for size in SWEEP["size"]])
        panel.set_ylim(0.95, 2.0)
        panel.set_title(f"lines of {line} bytes")
        panel.set_xlabel("KiB of tags in the cache")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("DRAM traffic, with tags / without")
    panels[0].legend(fontsize=7)
    return figure


def _draw_forms(results: Results, plan: Plan) -> Figure | None:
    """Mean and worst traffic ratio of each form."""
    rows = [row for row in _programs(results.traffic) if row.form and row.ratio is not None]
    if not rows:
        return None
    figure, (panel,) = _figure(1)
    figure.set_size_inches(8, 5)
    names = [form.name for form in FORMS][::-1]
    ratios = [[row.ratio - 1 for row in rows if row.form == name] for name in names]
    panel.barh(names, [max(some) for some in ratios], color="0.8", label="worst program")
    panel.barh(names, [fmean(some) for some in ratios], height=0.5, label="mean of the programs")
    panel.axvline(LOWRISC[64] - 1, color="k", ls="--", label="lowRISC, same reach, mean")
    panel.set_xlabel("added DRAM traffic, 32 KiB of tags")
    panel.legend(fontsize=7)
    return figure


def _draw_latencies(results: Results, plan: Plan) -> Figure | None:
    """Verdict latency and slowdown of the programs."""
    rows = [row for row in _programs(results.cycles) if _is_at(row, _shown_point(plan))]
    if not rows:
        return None
    figure, (left, right) = _figure(2)
    names = _names(rows)
    for label, value in (("max", "longest"), ("p99", "p99"), ("mean", "mean"), ("p50", "p50")):
        left.plot(names, [getattr(row, value) for row in rows], "o", label=label)
    left.set_yscale("log")
    left.set_ylabel("cycles to the verdict")
    for label, value in (("waiting for verdicts", "waiting"), ("not waiting", "free")):
        right.plot(names, [100 * getattr(row, value) for row in rows], "o", label=label)
    right.set_yscale("symlog", linthresh=1)
    right.set_ylabel("slower by %")
    for panel in (left, right):
        panel.tick_params(axis="x", rotation=45)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    return figure


def _draw_sweep(results: Results, plan: Plan) -> Figure | None:
    """Slowdown of a core that does not wait, by each parameter alone."""
    rows = _programs(results.cycles)
    usual = Point()
    varied = [
        name
        for name in SWEEP
        if len({getattr(row, name) for row in rows if _differs_in(row, usual, name)}) > 1
    ]
    if not varied:
        return None
    figure, panels = _figure(len(varied))
    figure.set_size_inches(3.2 * len(varied), 3.4)
    for panel, parameter in zip(panels, varied, strict=True):
        for name in _names(rows):
            some = sorted(
                (getattr(row, parameter), 100 * row.free)
                for row in rows
                if row.source == name and _differs_in(row, usual, parameter)
            )
            panel.plot(*zip(*some, strict=True), "o-", label=name)
        panel.set_xscale("log", base=2)
        values = sorted({getattr(row, parameter) for row in rows})
        panel.set_xticks(values, map(str, values))
        panel.set_ylim(bottom=0)
        panel.set_xlabel(parameter)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("slower by %, core not waiting")
    panels[0].legend(fontsize=7)
    return figure


def _differs_in(row: Cycles, point: Point, parameter: str) -> bool:
    """Is a row like a point in all but one parameter?"""
    return all(getattr(row, name) == getattr(point, name) for name in SWEEP if name != parameter)


_PLOTS: dict[str, Callable[[Results, Plan], Figure | None]] = {
    "traffic_by_size": _draw_sizes,
    "traffic_by_form": _draw_forms,
    "latency_and_slowdown": _draw_latencies,
    "slowdown_by_parameter": _draw_sweep,
}

"""The coverage of a plan as text, and as one page of HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from itertools import product
from math import log10

from coverage_plan import Coverage, Cross, Group

__all__ = ["html_report", "share", "text_report"]


def share(coverages: Sequence[Coverage]) -> tuple[int, int]:
    """Bins hit, and bins that can be hit."""
    reachable = sum(coverage.reachable() for coverage in coverages)
    return reachable - sum(len(coverage.missing()) for coverage in coverages), reachable


def _percent(hit: int, reachable: int) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{1000 * hit // reachable / 10 if reachable else 100.0:.1f} %"


def _kinds(group: Group) -> dict[str, list[Cross]]:
    names = ("dimensions", "pairs", "triples")
    return {
        name: [cross for cross in group.crosses if len(cross.dimensions) == length]
        for length, name in enumerate(names, 1)
    }


def _explained(group: Group) -> Counter[int]:
    """For how many bins each exclusion is needed, by its number."""
    return Counter(
        number for bins in group.unreachable.values() for why in bins.values() for number in why
    )


def text_report(coverages: Sequence[Coverage], source: str) -> str:
    """Shares, missing bins, and exclusions with their reasons."""
    hit, reachable = share(coverages)
    total = sum(hits.size for coverage in coverages for hits in coverage.hits.values())
    lines = [
        f"{_percent(hit, reachable)}: {hit:,} of {reachable:,} reachable bins are hit; "
        f"{total - reachable:,} more are excluded",
        source,
    ]
    for coverage in coverages:
        group = coverage.group
        lines += ["", f"{group.title}: {coverage.samples:,} samples"]
        for name, crosses in _kinds(group).items():
            of_kind = coverage.reachable(crosses)
            hit = of_kind - len(coverage.missing(crosses))
            lines.append(f"  {name:<12} {hit:>6,} of {of_kind:>6,}  {_percent(hit, of_kind)}")
    for coverage in coverages:
        lines += [
            f"missing: {coverage.group.name}: {cross}: {' '.join(values)}"
            for cross, values in coverage.missing()
        ]
    for coverage in coverages:
        group = coverage.group
        explained = _explained(group)
        lines += ["", f"Exclusions of {group.name}, with the number of bins that need them:"]
        for number, exclusion in enumerate(group.exclusions):
            lines += [f"  {explained[number]:>5}  {exclusion.reason}", f"         {exclusion}"]
    return "\n".join(lines) + "\n"


# ---- HTML ----------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --miss: #d22; --none: #8882; --accent: #1a7f5a; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; }
h1 { margin-bottom: 0 } h2 { margin-top: 3rem; border-bottom: 2px solid var(--line) }
p.share { font-size: 1.6rem; margin: .6rem 0 } .bad { color: var(--miss) }
.good { color: var(--accent) } .quiet { opacity: .7 }
table { border-collapse: collapse; font-size: 12px; margin: .6rem 0 1.4rem }
th { font-weight: 500; text-align: left; padding: 1px 6px; white-space: nowrap }
thead th { vertical-align: bottom } thead th.up { writing-mode: vertical-rl; padding: 6px 1px }
td { border: 1px solid var(--line); min-width: 2.6em; text-align: right; padding: 1px 4px }
td.x { background: repeating-linear-gradient(45deg, var(--none) 0 3px, transparent 3px 6px) }
td.miss { background: var(--miss); color: #fff; font-weight: 700 }
td a { text-decoration: none; color: inherit; display: block }
.bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); }
.bars { gap: 1rem 2rem }
.bars h4 { margin: .2rem 0 0 } .bars p { margin: 0 0 .3rem }
.bar { display: grid; grid-template-columns: 9.5em 1fr 5em; font-size: 12px; align-items: center }
.bar i { display: block; height: .7em; background: var(--accent); border-radius: 2px }
.bar b { font-weight: 400; text-align: right }
details { margin: .3rem 0 } summary { cursor: pointer }
.scroll { overflow-x: auto }
"""


def _cell(hits: int, why: str | None, most: int) -> str:
    """A bin of a heat map."""
    if why is not None:
        note = f"{why} Seen all the same." if hits else why
        return f'<td class="x" title="{escape(note)}"></td>'
    if not hits:
        return '<td class="miss" title="never hit">0</td>'
    warmth = (1 + log10(hits)) / (1 + log10(most))
    text = f"{hits}" if hits < 10_000 else f"{hits // 1000}k"
    return (
        f'<td style="background: rgb(26 127 90 / {10 + 65 * warmth:.0f}%)" title="{hits} hits">'
        f"{text}</td>"
    )


def _heat_map(coverage: Coverage, cross: Cross) -> Iterator[str]:
    """The last dimension across, the others down."""
    group = coverage.group
    *down, across = cross.dimensions
    hits, unreachable = coverage.hits[cross], group.unreachable[cross]
    columns = group.dimensions[across]
    yield '<div class="scroll"><table><thead><tr>'
    yield f'<th colspan="{len(down)}">{escape(" × ".join(down))} ↓ {escape(across)} →</th>'  # noqa: RUF001
    yield "".join(f'<th class="up">{escape(value)}</th>' for value in columns)
    yield "</tr></thead>"
    for row in product(*(enumerate(group.dimensions[name]) for name in down)):
        places = [(*(number for number, _ in row), column) for column in range(len(columns))]
        if len(down) > 1 and all(place in unreachable for place in places):
            continue
        yield "<tr>" + "".join(f"<th>{escape(value)}</th>" for _, value in row)
        for place in places:
            numbers = unreachable.get(place)
            why = None
            if numbers is not None:
                why = " ".join(group.exclusions[number].reason for number in numbers)
            yield _cell(int(hits[place]), why, int(hits.max()))
        yield "</tr>"
    yield "</table></div>"


def _details(coverage: Coverage, crosses: Sequence[Cross]) -> Iterator[str]:
    for cross in crosses:
        missing, reachable = len(coverage.missing([cross])), coverage.reachable([cross])
        anchor = escape(f"{coverage.group.name}-{'-'.join(cross.dimensions)}")
        title = " × ".join(cross.dimensions)  # noqa: RUF001
        name = f"{cross.name}: {title}" if cross.name else title
        note = f'<span class="bad">{missing} missing</span>' if missing else "all hit"
        yield f'<details id="{anchor}"{" open" if missing else ""}>'
        yield f"<summary>{escape(name)}: {reachable} bins, {note}</summary>"
        yield from _heat_map(coverage, cross)
        yield "</details>"


def _bars(coverage: Coverage, crosses: Sequence[Cross]) -> Iterator[str]:
    """Each dimension by itself."""
    group = coverage.group
    yield '<div class="bars">'
    for cross in crosses:
        (name,) = cross.dimensions
        hits = coverage.hits[cross]
        yield f"<div><h4>{escape(name)}</h4>"
        yield f'<p class="quiet">{escape(group.descriptions[name])}</p>'
        for value, count in zip(group.dimensions[name], hits.tolist(), strict=True):
            width = 100 * count / max(1, int(hits.max()))
            bad = "" if count else ' class="bad"'
            yield (
                f'<div class="bar"><span>{escape(value)}</span>'
                f'<i style="width: {width:.1f}%"></i><b{bad}>{count:,}</b></div>'
            )
        yield "</div>"
    yield "</div>"


def _overview(coverage: Coverage) -> Iterator[str]:
    """The pairs as a table of links, with what is missing in each."""
    group = coverage.group
    names = list(group.dimensions)
    yield '<div class="scroll"><table><thead><tr><th></th>'
    yield "".join(f'<th class="up">{escape(name)}</th>' for name in names[1:])
    yield "</tr></thead>"
    for row, first in enumerate(names[:-1]):
        yield f"<tr><th>{escape(first)}</th>" + "<td></td>" * row
        for second in names[row + 1 :]:
            pair = [Cross((first, second))]
            missing, reachable = len(coverage.missing(pair)), coverage.reachable(pair)
            anchor = escape(f"{group.name}-{first}-{second}")
            text = f"-{missing}" if missing else f"{reachable}"
            kind = "miss" if missing else "hit"
            yield f'<td class="{kind}"><a href="#{anchor}">{text}</a></td>'
        yield "</tr>"
    yield "</table></div>"


def _missing(coverage: Coverage) -> Iterator[str]:
    missing = coverage.missing()
    yield f"<h3>Missing bins: {len(missing):,}</h3>"
    if missing:
        rows = (
            f"<tr><th>{escape(str(cross))}</th><th>{escape(' '.join(values))}</th></tr>"
            for cross, values in missing
        )
        yield f"<table>{''.join(rows)}</table>"


def _exclusions(group: Group) -> Iterator[str]:
    explained = _explained(group)
    yield f"<details><summary>Exclusions: {len(group.exclusions)}</summary><table><thead><tr>"
    yield "<th>bins</th><th>reason</th><th>no sample has</th></tr></thead>"
    for number, exclusion in enumerate(group.exclusions):
        yield (
            f'<tr><td>{explained[number]}</td><th style="white-space: normal">'
            f'{escape(exclusion.reason)}</th><th style="white-space: normal">'
            f"{escape(str(exclusion))}</th></tr>"
        )
    yield "</table></details>"


def html_report(coverages: Sequence[Coverage], source: str) -> str:
    """One page that needs nothing else: shares, dimensions, heat maps, exclusions."""
    hit, reachable = share(coverages)
    total = sum(hits.size for coverage in coverages for hits in coverage.hits.values())
    kind = "good" if hit == reachable else "bad"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>emte: functional coverage</title><style>{_STYLE}</style></head><body>",
        "<h1>Functional coverage of TagPipeline</h1>",
        f'<p class="share {kind}">{_percent(hit, reachable)}: {hit:,} of {reachable:,} bins</p>',
        f'<p class="quiet">{escape(source)}. {total - reachable:,} more bins are excluded: '
        "hatched; the pointer shows the reason. Red: never hit.</p>",
    ]
    for coverage in coverages:
        group = coverage.group
        kinds = _kinds(group)
        parts.append(f"<h2>{escape(group.title)}</h2><p>{coverage.samples:,} samples.</p>")
        parts += _missing(coverage)
        parts += ["<h3>Dimensions</h3>", *_bars(coverage, kinds["dimensions"])]
        parts += [
            '<h3>Pairs</h3><p class="quiet">Number of bins of each pair; -n: n are missing.</p>'
        ]
        parts += [*_overview(coverage), *_details(coverage, kinds["pairs"])]
        parts += ["<h3>Triples</h3>", *_details(coverage, kinds["triples"])]
        parts += [*_exclusions(group)]
    parts.append("</body></html>\n")
    return "\n".join(parts)

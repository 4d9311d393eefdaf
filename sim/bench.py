"""What checking costs: traffic by the models of the caches, cycles by the Verilated hardware.

:func:`measure` performs tasks in parallel, on the cores of this machine or on a Dask cluster, and
collects what they give. Every task is a call of a function of this module with plain values, so
that it can be sent to another process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    as_completed,
)
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from emte.rtl import DEFAULT, TagConfig

from . import ops, verilated, workloads
from .access_trace import AccessTrace
from .cache_models import DataTraffic, TagPolicy, TagTraffic, data_traffic, tag_traffic
from .engines import DEFAULT_LATENCY
from .ops import ColumnarStream, Stream, StreamError
from .transactions import TIMING, EngineError, Progress, Statistics

__all__ = [
    "FORMS",
    "GRID",
    "PROGRAMS",
    "SWEEP",
    "Cycles",
    "Form",
    "Plan",
    "Point",
    "Results",
    "Source",
    "Traffic",
    "default_jobs",
    "examine",
    "executor",
    "measure",
    "points",
    "record",
    "sources",
]

_TRACES = Path(__file__).with_name("traces")
PROGRAMS = ("sort", "gzip", "awk", "sqlite")
"""The recorded programs that run to their end; the others are too short to measure."""


# ---- What is measured ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where a stream comes from."""

    name: str
    kind: str
    """``recorded``, ``workload``, ``pattern`` or ``file``."""
    seed: int = 1

    def stream(self, operations: int | None = None) -> Stream:
        """The stream; of those that are made up, as many operations as asked for."""
        if self.kind == "recorded":
            return ops.read(_TRACES / f"{self.name}.npz")
        if self.kind == "file":
            return ops.read(self.name)
        return workloads.generate(self.name, operations=operations, seed=self.seed)

    @property
    def label(self) -> str:
        return Path(self.name).name


def sources(names: Iterable[str], seed: int = 1) -> list[Source]:
    """Sources by name: of a recorded program, workload, pattern, or file; ``all`` of the first
    three."""
    known = {
        **{name: Source(name, "recorded") for name in PROGRAMS},
        **{name: Source(name, "workload", seed) for name in workloads.WORKLOADS},
        **{name: Source(name, "pattern", seed) for name in workloads.PATTERNS},
    }
    found: dict[Source, None] = {}
    for name in names:
        wanted = known.values() if name == "all" else [known.get(name) or Source(name, "file")]
        found |= dict.fromkeys(wanted)
    return list(found)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration of the hardware, and the distance of its memory."""

    size: int = DEFAULT.cache_bytes >> 10
    """KiB of tags."""
    ways: int = DEFAULT.ways
    line: int = DEFAULT.line_bytes
    mshrs: int = -1
    """By default as in the DEFAULT preset, or as many as there are ways."""
    latency: int = DEFAULT_LATENCY

    def __post_init__(self) -> None:
        if self.mshrs == -1:
            object.__setattr__(self, "mshrs", min(DEFAULT.mshrs, self.ways))

    @property
    def config(self) -> TagConfig:
        """
        Raises
        ------
        ValueError
            The hardware cannot be built so.
        """
        config = replace(DEFAULT, ways=self.ways, line_bytes=self.line, mshrs=self.mshrs)
        return config.resized(self.size << 10)

    @property
    def policy(self) -> TagPolicy:
        return TagPolicy(cache_bytes=self.size << 10, ways=self.ways, line_bytes=self.line)


SWEEP: Mapping[str, Sequence[int]] = {
    "size": (8, 16, 32, 64),
    "ways": (2, 4, 8),
    "line": (16, 32, 64, 128),
    "mshrs": (1, 2, 4, 8),
    "latency": (20, 40, 80, 160),
}
"""Values of each parameter; by default one of them at a time leaves that of the DEFAULT preset."""


def points(given: Mapping[str, Sequence[int]], *, full: bool = False) -> tuple[list[Point], int]:
    """The configurations of a sweep, and how many more there would be that cannot be built.

    Parameters
    ----------
    given : Mapping
        Values by parameter: all combinations, with the others as in the DEFAULT preset. If there
        is none, the parameters of :data:`SWEEP` one by one; or, with ``full``, all combinations.
    """
    chosen = given or (SWEEP if full else {})
    if chosen:
        wanted = [
            Point(**dict(zip(chosen, values, strict=True))) for values in product(*chosen.values())
        ]
    else:
        wanted = [Point()]
        for name, values in SWEEP.items():
            wanted += [Point(**{name: value}) for value in values]
    wanted = list(dict.fromkeys(wanted))
    possible = [point for point in wanted if _is_possible(point)]
    return possible, len(wanted) - len(possible)


def _is_possible(point: Point) -> bool:
    try:
        return bool(point.config)
    except ValueError:
        return False


GRID = tuple(
    Point(size=size, ways=ways, line=line)
    for size, ways, line in product(SWEEP["size"], (1, *SWEEP["ways"], 16), SWEEP["line"])
)
"""Geometries of which the models tell hits and traffic."""


@dataclass(frozen=True)
class Form:
    """Something that changes the traffic of a tag cache of 32 KiB, by itself or with others."""

    name: str
    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    every_page_tagged: bool = False

    @property
    def policy(self) -> TagPolicy:
        return TagPolicy(**self.changes)

    @property
    def hardware(self) -> str:
        """Has the hardware it?"""
        if self.every_page_tagged:
            return "never so"
        if not self.changes.keys() <= _BUILT:
            return "model only"
        return "as it is" if self.policy.line_bytes == DEFAULT.line_bytes else "parameter"


_BUILT = {"line_bytes"}
"""Fields of :class:`TagPolicy` that the hardware has too, beside its size and ways."""

FORMS = (
    Form("flat cache", "8 ways, lines of 64 bytes, fetched and written back whole"),
    Form(
        "no hint",
        "translation does not tell which pages have tags: every access is looked up",
        every_page_tagged=True,
    ),
    Form("lines of 128", "lines of 128 bytes", {"line_bytes": 128}),
    Form("lines of 32", "lines of 32 bytes", {"line_bytes": 32}),
    Form(
        "lines of 16",
        "lines of 16 bytes; the directory has four times the entries",
        {"line_bytes": 16},
    ),
    Form("sectors", "a miss fetches 16 bytes of a line", {"sector_bytes": 16}),
    Form("dirty words", "only the 16 bytes that are dirty are written back", {"write_bytes": 16}),
    Form(
        "gathering",
        "a tag store that misses fetches nothing; the rest of the line is fetched when it is "
        "needed, or when a fifth line begins to gather",
        {"gathering": 4},
    ),
    Form("LRU", "replacement by true LRU, not by a tree", {"replacement": "lru"}),
    Form("FIFO", "replacement in the order of filling", {"replacement": "fifo"}),
    Form("RRIP", "replacement by re-reference interval", {"replacement": "rrip"}),
    Form("tree alone", "free ways are not looked for", {"free_first": False}),
    Form("hashed sets", "upper address bits are folded into the set", {"hashed": True}),
    Form("prefetch", "a miss fetches the next line too", {"prefetch": True}),
    Form(
        "touched map",
        "a bit in memory for each 64 bytes of tags, set when they are first written back; a cache "
        "of 1 KiB holds such bits",
        {"touched_map": 16},
    ),
    Form(
        "sectors, dirty words, gathering",
        "the three together",
        {"sector_bytes": 16, "write_bytes": 16, "gathering": 4},
    ),
    Form("lines of 16, gathering", "the two together", {"line_bytes": 16, "gathering": 4}),
    Form(
        "lines of 16, gathering, touched map",
        "the three together",
        {"line_bytes": 16, "gathering": 4, "touched_map": 16},
    ),
)


# ---- Traffic: whole streams through the models ---------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """What one stream moves through one tag cache, beside the data side."""

    source: str
    kind: str
    instructions: int
    data_bytes: int
    footprint: int
    """Bytes of all lines of 64 bytes of tags that the program touches."""
    form: str | None
    """Name of a :class:`Form`; None for a point of :data:`GRID`."""
    size: int
    ways: int
    line: int
    lookups: int
    misses: int
    read_bytes: int
    written_bytes: int
    map_bytes: int

    @property
    def tag_bytes(self) -> int:
        return self.read_bytes + self.written_bytes + self.map_bytes

    @property
    def hit_rate(self) -> float:
        return 1 - self.misses / self.lookups if self.lookups else 1.0

    @property
    def ratio(self) -> float | None:
        """DRAM traffic with tags by that without; None if there is none without to speak of."""
        return 1 + self.tag_bytes / self.data_bytes if self.data_bytes > 1024 else None


def traffic_of(source: Source, operations: int | None = None) -> list[Traffic]:
    """All forms and all geometries, for one stream."""
    stream = source.stream(operations)
    trace = AccessTrace(stream)
    data = data_traffic(trace.data)
    unhinted = AccessTrace(stream, every_page_tagged=True).lookups

    def row(form: str | None, policy: TagPolicy, found: TagTraffic) -> Traffic:
        return Traffic(
            source=source.label,
            kind=source.kind,
            instructions=stream.instructions(),
            data_bytes=data.bytes,
            footprint=trace.lookups.footprint(),
            form=form,
            size=policy.cache_bytes >> 10,
            ways=policy.ways,
            line=policy.line_bytes,
            lookups=found.lookups,
            misses=found.misses,
            read_bytes=found.read_bytes,
            written_bytes=found.written_bytes,
            map_bytes=found.map_bytes,
        )

    rows = []
    for form in FORMS:
        lookups = unhinted if form.every_page_tagged else trace.lookups
        rows.append(row(form.name, form.policy, tag_traffic(lookups, form.policy)))
    if source.kind != "pattern":  # these show one thing, which the forms tell
        for point in GRID:
            rows.append(row(None, point.policy, tag_traffic(trace.lookups, point.policy)))
    return rows


# ---- Cycles: stretches of streams through the hardware -------------------------------------------

_L2_CYCLES = 8
"""Cycles that a load of the core waits for data in the second level; those in memory take as many
more as memory is away."""


@dataclass(frozen=True)
class Cycles:
    """One stretch of a stream on one configuration of the hardware.

    Attributes
    ----------
    cycles, lookups
        Of the stretch at full speed: the core offers an access whenever it can.
    under_misses
        Accesses transferred per cycle while a line comes from memory: in the first cycles after
        that of an access which misses, as many as memory is away. None if none misses.
    mean, p50, p99, longest
        Cycles from the transfer of an access to its verdict, at full speed.
    instructions, plain_cycles
        Of the stretch, on an in-order core that does one instruction per cycle and waits for the
        data of its loads.
    waiting_cycles, free_cycles
        Cycles that checking adds to these where the core waits for the verdict of each load, and
        where it goes on and holds what it has loaded elsewhere.
    """

    source: str
    kind: str
    size: int
    ways: int
    line: int
    mshrs: int
    latency: int
    accesses: int
    lookups: int
    hit_rate: float
    tag_bytes: int
    cycles: int
    under_misses: float | None
    mean: float
    p50: float
    p99: float
    longest: int
    instructions: int
    plain_cycles: int
    waiting_cycles: int
    free_cycles: int

    @property
    def probes_per_cycle(self) -> float:
        return self.lookups / self.cycles

    @property
    def waiting(self) -> float:
        """Slowdown of a core that waits, as a fraction."""
        return self.waiting_cycles / self.plain_cycles

    @property
    def free(self) -> float:
        return self.free_cycles / self.plain_cycles


@dataclass(frozen=True, eq=False)
class _Stretch:
    """A part of a stream, the first half of which only warms the caches up."""

    trace: AccessTrace
    data: DataTraffic
    measured: np.ndarray
    """Numbers of the accesses among the transactions that are measured."""


_COLUMNS = ("op", "address", "size", "tag", "flags", "gap")


@lru_cache(maxsize=64)
def _stretch(source: Source, operations: int) -> _Stretch:
    """From the middle of a stream, where that can be cut.

    Tags are not brought along: by rule R3 time does not depend on them, so it is the same whether
    the accesses of the stretch pass.
    """
    stream = source.stream(2 * operations if source.kind == "pattern" else None)
    columns = stream.columns
    length = 2 * operations
    if columns is not None and len(stream) > length and "branches" not in columns:
        first = (len(stream) - length) // 2
        rows = np.arange(len(stream))
        maps = columns["op"] == columns["op_names"].tolist().index("map")
        kept = (rows < first + length) & ((rows >= first) | maps)
        part = {name: columns[name][kept] for name in _COLUMNS}
        stream = ColumnarStream(stream.path, {**part, "op_names": columns["op_names"]}, [])
    trace = AccessTrace(stream)
    accesses = np.flatnonzero(trace.is_access)
    return _Stretch(trace, data_traffic(trace.data), accesses[len(accesses) // 2 :])


def build(point: Point) -> None:
    """Build the hardware, so that it is there when it is needed."""
    verilated.build(point.config)


def cycles_of(source: Source, point: Point, operations: int) -> Cycles:
    """A stretch of so many operations, after one as long that warms up."""
    stretch = _stretch(source, operations)
    trace, measured = stretch.trace, stretch.measured
    transactions = trace.program.transactions

    def run(timing: np.ndarray) -> tuple[np.ndarray, Statistics]:
        config, program = point.config, trace.program
        done = verilated.run(program, config, seed=0, latency=point.latency, timing=timing)
        return timing[measured], done.statistics

    times, statistics = run(np.zeros(len(transactions), TIMING))
    answered = times[times["answered"] > 0]  # what was squashed has no verdict
    if not len(answered):
        raise StreamError("every access of the stretch is squashed", path=source.name)
    latency = (answered["answered"] - answered["transferred"]).astype(np.int64)
    lookups = np.isin(trace.every_lookup.transaction, measured).sum()

    paced = np.zeros(len(transactions), TIMING)
    paced["gap"] = trace.gaps
    loads = trace.loads[trace.data.transaction]
    away = np.array([0, _L2_CYCLES, _L2_CYCLES + point.latency])[stretch.data.level]
    paced["data"][trace.data.transaction[loads]] = away[loads]
    work = int(paced["gap"][measured[1:]].sum() + paced["data"][measured[:-1]].sum())
    added = {}
    for waits in (False, True):
        timing = paced.copy()
        # A branch may hang on a speculative load, so nobody can wait for its verdict.
        timing["waits"] = trace.loads & waits & (transactions["branches"] == 0)
        added[waits] = _duration(run(timing)[0]) - work
    return Cycles(
        source=source.label,
        kind=source.kind,
        **asdict(point),
        accesses=len(measured),
        lookups=int(lookups),
        hit_rate=statistics.hits / statistics.lookups if statistics.lookups else 1.0,
        tag_bytes=statistics.tag_bytes,
        cycles=_duration(times) + 1,
        under_misses=_under_misses(answered, point.latency),
        mean=float(latency.mean()),
        p50=float(np.percentile(latency, 50)),
        p99=float(np.percentile(latency, 99)),
        longest=int(latency.max()),
        instructions=int(trace.gaps[measured].sum()),
        plain_cycles=work,
        waiting_cycles=added[True],
        free_cycles=added[False],
    )


_HIT_CYCLES = 12
"""From the transfer of an access that waits for nothing to its verdict."""


def _under_misses(times: np.ndarray, latency: int) -> float | None:
    """Transfers per cycle while memory is waited for."""
    began = times["transferred"].astype(np.int64)
    # A miss adds more than 34 cycles to the two, and what the scrubber holds up 22 to a hit.
    missed = times["answered"].astype(np.int64) - began > latency + 2 * _HIT_CYCLES
    begins = began[missed & (began + latency <= began[-1])]
    if not len(begins):
        return None
    until = np.searchsorted(began, begins + latency, "right")
    return float((until - np.searchsorted(began, begins, "right")).mean() / latency)


def _duration(times: np.ndarray) -> int:
    """Cycles from the first transfer to the last one."""
    went = times["transferred"][times["transferred"] > 0].astype(np.int64)
    return int(went[-1] - went[0])


# ---- All of it -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes
    ----------
    operations, few
        Length of a stretch of a program, and of a pattern.
    length
        Of the streams that are made up, for the models; None: as long as they are meant to be.
    """

    sources: Sequence[Source]
    points: Sequence[Point]
    operations: int = 50_000
    few: int = 6_000
    length: int | None = None

    def stretches(self) -> Iterator[tuple[Source, Point, int]]:
        """Programs on every point; patterns where memory is as far away as by default, and
        only the number of MSHRs differs, or where there is no such point at all."""
        usual = {Point(mshrs=mshrs) for mshrs in SWEEP["mshrs"]}
        some = [point for point in self.points if point in usual] or self.points
        for source in self.sources:
            pattern = source.kind == "pattern"
            for point in some if pattern else self.points:
                yield source, point, self.few if pattern else self.operations


@dataclass(frozen=True)
class Results:
    """All figures."""

    traffic: list[Traffic]
    cycles: list[Cycles]


def record(results: Results, plan: Plan) -> dict[str, Any]:
    """All figures as JSON, with what follows from them."""
    return {
        "operations": {"program": plan.operations, "pattern": plan.few},
        "traffic": [
            {**asdict(row), "hit_rate": row.hit_rate, "ratio": row.ratio} for row in results.traffic
        ],
        "cycles": [
            {**asdict(row), "probes_per_cycle": row.probes_per_cycle} for row in results.cycles
        ],
    }


def examine(source: Source) -> None:
    """Refuse a file that cannot be measured, before anything is.

    Raises
    ------
    StreamError
        Something in it is wrong, or the models do not know it.
    """
    stream = source.stream()
    ops.check(stream, held=DEFAULT.held)
    accesses = int(AccessTrace(stream).is_access.sum())
    if accesses < _FEWEST:
        raise StreamError(f"{_FEWEST} accesses are needed, not {accesses}", path=source.name)


_FEWEST = 100
"""Accesses without which there is nothing to measure."""


_PATIENCE = 10
"""Seconds after which a cluster that does not answer is given up."""


@contextmanager
def executor(jobs: int, scheduler: str | None) -> Iterator[Executor]:
    """What performs the tasks: processes of this machine, or a Dask cluster.

    Raises
    ------
    EngineError
        The cluster does not answer, or a process died.
    """
    if scheduler is None:
        # An interrupt is for this process alone, which then cancels what has not begun.
        with ProcessPoolExecutor(
            jobs,
            get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        ) as pool:
            try:
                yield pool
            except BrokenExecutor:
                raise EngineError("a process died while it measured, maybe for memory") from None
    else:
        from distributed import Client

        try:
            client = Client(scheduler, timeout=_PATIENCE)
        except (OSError, ValueError) as error:
            raise EngineError(f"no Dask cluster at {scheduler}: {error}") from None
        with client:
            yield client.get_executor()


def measure(plan: Plan, pool: Executor, progress: Progress | None = None) -> Results:
    """Perform a plan; the figures come in its order, whoever is done first."""
    configs = {point.config: point for point in plan.points}
    traffic = [pool.submit(traffic_of, source, plan.length) for source in plan.sources]
    builds = [pool.submit(build, point) for point in configs.values()]
    total = len(traffic) + len(builds) + len(list(plan.stretches()))
    done = 0

    def wait(futures: list[Future[Any]]) -> list[Any]:
        nonlocal done
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                if progress:
                    progress(done, total)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return [future.result() for future in futures]

    found = wait([*traffic, *builds])[: len(traffic)]
    cycles = wait([pool.submit(cycles_of, *stretch) for stretch in plan.stretches()])
    return Results([row for rows in found for row in rows], cycles)


def default_jobs() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

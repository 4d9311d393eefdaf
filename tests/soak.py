"""Long random runs of the hardware against the golden model, on all cores.

    python tests/soak.py --operations 10000000 --seed 1
    python tests/soak.py --operations 1000000 --seed 1 --upsets

Stream number n of a seed is the same on every machine: its operations, the geometry and barrier
that perform it, where the ports pause, and how far away memory is. With pauses memory takes another
time for each burst: reads and writes overtake each other, and so do reads of different ids. The run
stops at the first stream whose outcomes differ, or on which the hardware breaks a rule of its
ports; it then says which one, drops what the failure does not need, and writes the rest as a stream
for ``emte run``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import count, islice, product
from pathlib import Path

from emte.rtl import TagConfig
from emte.rtl.config import PRESETS, Barrier
from emte.sim import engines, ops, verilated
from emte.sim.device import upset_period
from emte.sim.ops import Operation, Stream, StreamError
from emte.sim.summary import table
from emte.sim.traffic import directed_stream, random_stream

STREAMS: Mapping[str, Callable[..., Stream]] = {
    "random": random_stream,
    "directed": directed_stream,
}
"""Kinds of traffic."""

BARRIERS = (Barrier.OBLIVIOUS.value, Barrier.DELAY.value)
"""Not NONE, which is for measuring alone."""

MUST_OCCUR = frozenset(
    {
        *("pass", "async", "squashed", "undefined"),
        *("tag_check_fault", "permission_fault", "alignment_fault", "translation_fault"),
        "external_abort",
    }
)
"""A run without one of these has proved less than it says."""

SCRUB = 64
"""Period of the scrubber where there are upsets, so that there can be many of them."""

_REPORT_SECONDS = 20
_QUEUED = 2
"""Streams handed out for each process, so that none has to wait."""


@dataclass(frozen=True)
class Case:
    """A stream, and what performs it."""

    traffic: str
    """Which of :data:`STREAMS`."""
    seed: int
    count: int
    """Operations asked for, or accesses of directed traffic; the stream has some more or less."""
    preset: str
    barrier: str
    pauses: int
    """Seed of the pauses at all ports; 0: none."""
    latency: int
    engine: str
    upsets: bool = False
    """Stored bits flip now and then, and the scrubber is quick."""

    @property
    def config(self) -> TagConfig:
        config = replace(PRESETS[self.preset], barrier=Barrier(self.barrier))
        return replace(config, injection=True, scrub_period=SCRUB) if self.upsets else config

    def stream(self) -> Stream:
        return STREAMS[self.traffic](self.seed, self.count, held=self.config.held)


@dataclass(frozen=True)
class Report:
    """What came of a case: what happened how often, and what went wrong, if anything."""

    case: Case
    counts: Counter[str]
    failure: str | None


def cases(
    seed: int,
    configurations: Sequence[tuple[str, str]],
    *,
    engine: str = "verilator",
    upsets: bool = False,
) -> Iterator[Case]:
    """The cases of a seed, without end; each configuration has its turn."""
    for number in count():
        rng = random.Random(f"{seed} {number}")
        preset, barrier = configurations[number % len(configurations)]
        yield Case(
            traffic=rng.choice(list(STREAMS)),
            seed=rng.randrange(1 << 32),
            count=round(10 ** rng.uniform(2, 4.5)),
            preset=preset,
            barrier=barrier,
            pauses=rng.choice([0, *(rng.randrange(1, 1 << 64) for _ in range(3))]),
            latency=rng.choice([1, 1, 5, 5, 5, 40, 40, 200]),
            engine=engine,
            upsets=upsets,
        )


def attempt(case: Case, stream: Stream) -> tuple[Counter[str], str | None]:
    """Perform a stream as the case says: what happened how often, and what went wrong."""
    expected = engines.run(stream)
    counts = Counter(outcome.get("outcome", "") for outcome in expected.outcomes)
    counts["operations"] = len(stream)
    try:
        result = engines.run(
            stream,
            engine=case.engine,
            config=case.config,
            seed=case.pauses,
            latency=case.latency,
        )
    except engines.PipelineError as error:
        return counts, f"the hardware broke a rule: {error}"
    assert result.statistics is not None
    for name in ("cycles", "lookups", "read_bursts", "write_bursts"):
        counts[name] = getattr(result.statistics, name)
    if case.upsets:
        counts["upsets"] = counts["cycles"] // upset_period(case.config)
    difference = engines.compare(stream, result.outcomes, expected.outcomes)
    if difference is not None:
        return counts, (
            f"{stream.path}:{difference.line}: the hardware says {difference.outcome}, "
            f"the golden model {difference.expected}"
        )
    if result.tfsr != expected.tfsr:
        return counts, (
            f"{stream.path}: at its end TFSR of the hardware is {result.tfsr}, "
            f"of the golden model {expected.tfsr}"
        )
    return counts, None


def perform(case: Case) -> Report:
    """Run one case; what a process does."""
    try:
        return Report(case, *attempt(case, case.stream()))
    except Exception as error:
        error.add_note(f"in {case}")
        raise


# ---- What a failure needs ------------------------------------------------------------------------


def closed(operations: Sequence[Operation]) -> list[Operation]:
    """A selection of a stream's operations as a stream: every branch is opened once before it is
    named, and resolved in the end."""
    kept: list[Operation] = []
    opened: set[int] = set()
    for operation in operations:
        if operation.op == "branch":
            if operation.id in opened:
                continue
            opened.add(operation.id)
        elif operation.op == "resolve":
            if operation.id not in opened:
                continue
            opened.remove(operation.id)
        branches = tuple(branch for branch in operation.branches if branch in opened)
        kept.append(replace(operation, branches=branches))
    kept += (Operation("resolve", id=branch) for branch in sorted(opened))
    return [replace(operation, line=line) for line, operation in enumerate(kept, 1)]


def shrink(stream: Stream, fails: Callable[[Stream], bool], attempts: int) -> Stream:
    """Drop what a stream that fails does not need: first its end, then ever smaller pieces.

    Parameters
    ----------
    fails : callable
        Tells whether a part of the stream still fails.
    attempts : int
        How often it may be asked.
    """
    best = list(stream)
    size = len(best) // 2
    while size:
        stop = len(best)
        while stop > 0:
            if not attempts:
                return Stream(stream.path, best)
            attempts -= 1
            start = max(stop - size, 0)
            shorter = closed(best[:start] + best[stop:])
            # Resolving what was left open may add as much as was dropped.
            if 0 < len(shorter) < len(best) and fails(Stream(stream.path, shorter)):
                best = shorter
            stop = start
        size //= 2
    return Stream(stream.path, best)


def explain(case: Case, folder: Path, attempts: int) -> str:
    """Write the shortest stream found on which a case fails; the command that shows it."""

    def fails(stream: Stream) -> bool:
        try:
            return attempt(case, stream)[1] is not None
        except StreamError:  # a tag store now meets an access that was resolved before
            return False

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case.preset}-{case.barrier}-{case.seed}.jsonl"
    ops.write(path, shrink(case.stream(), fails, attempts))
    if case.upsets:
        return f"soak.attempt({case}, ops.read({str(path)!r}))"
    return (
        f"emte run {path} --engine {case.engine} --preset {case.preset} --barrier {case.barrier} "
        f"--seed {case.pauses} --latency {case.latency} --check"
    )


# ---- The run -------------------------------------------------------------------------------------


def soak(
    wanted: int, upcoming: Iterator[Case], pool: ProcessPoolExecutor, jobs: int
) -> list[Report]:
    """Run cases until they have enough operations, or one fails: that one is the last report."""
    reports: list[Report] = []
    operations = 0
    begun = told = time.monotonic()
    running: set[Future[Report]] = {
        pool.submit(perform, case) for case in islice(upcoming, _QUEUED * jobs)
    }
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            report = future.result()
            reports.append(report)
            if report.failure is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                return reports
            operations += report.counts["operations"]
            if operations < wanted:
                running.add(pool.submit(perform, next(upcoming)))
        now = time.monotonic()
        if now - told > _REPORT_SECONDS:
            told = now
            rate = operations / (now - begun)
            print(f"{operations:,} of {wanted:,} operations, {rate:,.0f}/s", flush=True)
    return reports


def summarize(reports: Sequence[Report]) -> list[str]:
    """What was run, by configuration."""
    totals: dict[tuple[str, str], Counter[str]] = {}
    for report in reports:
        total = totals.setdefault((report.case.preset, report.case.barrier), Counter())
        total.update(report.counts)
        total["streams"] += 1
        total["with pauses"] += report.case.pauses != 0
    columns = ("streams", "with pauses", "operations", "cycles", "lookups")
    columns += ("read_bursts", "write_bursts", "upsets", *sorted(MUST_OCCUR))
    heads = ["", *(" ".join(key) for key in totals), "all"]
    everything = sum(totals.values(), Counter())
    rows = [
        [name.replace("_", " "), *(f"{total[name]:,}" for total in (*totals.values(), everything))]
        for name in columns
    ]
    return table([heads, *rows])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=10_000_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--barriers", nargs="+", choices=BARRIERS, default=BARRIERS)
    parser.add_argument("--engine", choices=("verilator", "pysim"), default="verilator")
    parser.add_argument(
        "--upsets", action="store_true", help="flip stored bits now and then; verilator alone"
    )
    parser.add_argument(
        "--attempts", type=int, default=600, help="to shorten what fails (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.upsets and arguments.engine != "verilator":
        parser.error("--upsets needs the engine verilator")

    print(f"seed {arguments.seed}, {arguments.operations:,} operations, {arguments.jobs} processes")
    configurations = list(product(arguments.presets, arguments.barriers))
    options = {"engine": arguments.engine, "upsets": arguments.upsets}
    upcoming = cases(arguments.seed, configurations, **options)
    # Fresh interpreters: what a fork copies is not the same with every Python.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        if arguments.engine == "verilator":
            configs = [
                case.config
                for case in islice(cases(0, configurations, **options), len(configurations))
            ]
            list(pool.map(verilated.build, configs))
        begun = time.monotonic()
        reports = soak(arguments.operations, upcoming, pool, arguments.jobs)
    seconds = time.monotonic() - begun

    print("\n".join(summarize(reports)))
    total = sum((report.counts for report in reports), Counter())
    print(f"{total['operations']:,} operations in {seconds:,.0f} s: ", end="")
    print(f"{total['operations'] / seconds:,.0f} operations/s")
    last = reports[-1]
    if last.failure is not None:
        print(f"FAILED: {last.failure}")
        print(f"  {last.case}")
        print(f"  to see it: {explain(last.case, arguments.out, arguments.attempts)}")
        return 1
    wanted = {*MUST_OCCUR, "write_bursts", *(["upsets"] if arguments.upsets else [])}
    if missing := {name for name in wanted if not total[name]}:
        print(f"FAILED: never met: {', '.join(sorted(missing))}")
        return 1
    print("No difference.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

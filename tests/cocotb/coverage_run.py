"""``make coverage``: runs the bench of TagPipeline with several seeds, and reports the coverage.

Exit status: 0 if every reachable bin of the plan is hit, 1 if not, or if a simulation fails.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from coverage_plan import Contradiction, Coverage, read_plan
from coverage_report import html_report, share, text_report
from simulation import SimulationFailed, build, simulate

TESTS = ("directed_operations", "random_operations")
OUT = Path(__file__).parents[2] / "build" / "coverage"


def merge(paths: Sequence[Path]) -> list[Coverage]:
    """The coverage of each group of the plan by all runs together."""
    runs = []
    for path in paths:
        with np.load(path) as archive:
            runs.append({name: archive[name] for name in archive.files})
    return [
        Coverage(group, np.concatenate([run[name] for run in runs]))
        for name, group in read_plan().items()
    ]


def report(paths: Sequence[Path], source: str, out: Path) -> int:
    """Write the coverage as HTML and text; the exit status."""
    try:
        coverages = merge(paths)
    except Contradiction as error:
        print(error, file=sys.stderr)
        return 1
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(html_report(coverages, source))
    text = text_report(coverages, source)
    (out / "report.txt").write_text(text)
    print(text.partition("\nExclusions of ")[0])
    print(f"All of it: {out / 'index.html'}")
    hit, reachable = share(coverages)
    return int(hit != reachable)


def run(transactions: int, job: tuple[int, str]) -> Path:
    """One simulation; where its samples are."""
    seed, test = job
    return simulate("pipeline", test, seed, transactions) / "coverage.npz"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default: 1)")
    parser.add_argument("--seeds", type=int, default=6, help="how many (default: 6)")
    parser.add_argument("--transactions", type=int, default=20_000, help="of each simulation")
    parser.add_argument("--jobs", type=int, default=2, help="simulations at a time (default: 2)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the report")
    options = parser.parse_args(arguments)

    start = time.monotonic()
    seeds = range(options.seed, options.seed + options.seeds)
    jobs = list(product(seeds, TESTS))
    build("pipeline", waves=False)
    try:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
            paths = list(pool.map(partial(run, options.transactions), jobs))
    except SimulationFailed as error:
        print(error, file=sys.stderr)
        return 1
    source = (
        f"{len(jobs)} simulations of {options.transactions:,} transactions, "
        f"seeds {seeds.start} to {seeds.stop - 1}, in {time.monotonic() - start:.0f} s"
    )
    return report(paths, source, options.out)


if __name__ == "__main__":
    sys.exit(main())

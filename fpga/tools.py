"""Finds and runs the open FPGA tools."""

import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = [
    "STRIP_ASSERTIONS",
    "TOOLS",
    "Say",
    "ToolFailed",
    "ToolMissing",
    "find",
    "run",
    "version",
]

TOOLS = {"yosys": "YOSYS", "nextpnr-ecp5": "NEXTPNR_ECP5", "ecppack": "ECPPACK"}
"""The tools, and the environment variable that overrides where each is."""

STRIP_ASSERTIONS = "chformal -remove"
"""Yosys command that comes before synthesis: else each assertion of the RTL costs logic."""

Say = Callable[[str], None]
"""Takes one line that tells the user how far things are."""

_HEARTBEAT = 20.0
"""Seconds between two signs of life."""


class ToolMissing(Exception):
    """A tool is not installed. The message is one line."""


class ToolFailed(Exception):
    """A tool ended with an error. The message is one line."""


def find(tool: str) -> str:
    """Path of a tool.

    The environment variable decides if it is set. Otherwise the tool that is installed beside
    this Python (its environment need not be activated) is taken, then what the PATH has.

    Raises
    ------
    ToolMissing
    """
    variable = TOOLS[tool]
    chosen = os.environ.get(variable)
    if chosen:
        path = shutil.which(chosen)
        if path is None:
            raise ToolMissing(f"{tool}: {variable} names {chosen!r}, which cannot be run")
        return path
    names = (f"yowasp-{tool}", tool)
    for folder in (sysconfig.get_path("scripts"), None):
        for name in names:
            path = shutil.which(name, path=folder)
            if path is not None:
                return path
    raise ToolMissing(
        f"{tool} is not installed: run `pip install emte[fpga]`, or set {variable} to its path"
    )


def run(
    tool: str, arguments: Sequence[str], *, folder: Path, log: str, say: Say, title: str = ""
) -> float:
    """Run a tool in ``folder`` and tell how far it is.

    Parameters
    ----------
    tool : str
        Key of :data:`TOOLS`.
    arguments
        Of its command line.
    folder : Path
        Where it runs.
    log : str
        File in ``folder`` that gets all it prints.
    say
        Gets a line at the start, every 20 seconds, and at the end.
    title : str
        Added to the tool's name in these lines.

    Returns
    -------
    float
        Seconds that it took.

    Raises
    ------
    ToolMissing, ToolFailed
    """
    command = [find(tool), *arguments]
    name = f"{tool} {title}".rstrip()
    log_path = folder / log
    started = time.monotonic()
    said = started
    say(f"{name}: started (log: {log_path})")
    with log_path.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                time.sleep(0.1)
                now = time.monotonic()
                if now - said >= _HEARTBEAT:
                    said = now
                    say(f"{name}: {now - started:.0f} s{_stage(log_path)}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    seconds = time.monotonic() - started
    if process.returncode != 0:
        raise ToolFailed(f"{name} failed: {_error(log_path)} (log: {log_path})")
    say(f"{name}: done in {seconds:.0f} s")
    return seconds


def version(tool: str) -> str:
    """What a tool says of its version, in one line."""
    result = subprocess.run([find(tool), "--version"], capture_output=True, text=True, check=False)
    lines = (result.stdout + result.stderr).strip().splitlines()
    return lines[-1] if lines else "unknown"


def _tail(path: Path, size: int = 1 << 16) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace").splitlines()


def _stage(path: Path) -> str:
    lines = [" ".join(line.removeprefix("Info:").split()) for line in _tail(path)]
    last = next((line for line in reversed(lines) if line), "")
    return f", {last[:60]}" if last else ""


def _error(path: Path) -> str:
    lines = [line.strip() for line in _tail(path) if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return errors[0] if errors else (lines[-1] if lines else "it printed nothing")

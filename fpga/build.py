"""Builds the bitstream of the self-test."""

import shlex
from pathlib import Path

from emte.rtl import Barrier, TagConfig

from .boards import BOARDS
from .tools import STRIP_ASSERTIONS, TOOLS, Say, find, run
from .top import Top

__all__ = ["BuildRefused", "build"]

_NAME = "selftest"


class BuildRefused(Exception):
    """The build was asked for something that it does not do. The message is one line."""


def build(board_name: str, config: TagConfig, *, folder: Path, force: bool, say: Say) -> Path:
    """Build the self-test for a board.

    Parameters
    ----------
    board_name : str
        Key of :data:`~emte.fpga.boards.BOARDS`.
    config : :class:`TagConfig`
        Of the pipeline.
    folder : Path
        Gets a folder of the board's name with the bitstream and all files of the tools. The
        bitstream of an earlier build is removed first.
    force : bool
        Build even a pipeline that leaks tags.
    say
        Gets the progress, line by line.

    Returns
    -------
    Path
        The bitstream.

    Raises
    ------
    BuildRefused, ToolMissing, ToolFailed
    """
    board = BOARDS[board_name]
    if config.barrier is Barrier.NONE and not force:
        raise BuildRefused(
            "barrier none leaks tags: it is for measurements in simulation (--force builds it)"
        )
    for tool in TOOLS:
        find(tool)
    folder = folder / board_name
    folder.mkdir(parents=True, exist_ok=True)
    bitstream = folder / f"{_NAME}.bit"
    bitstream.unlink(missing_ok=True)

    say(f"{board_name}: generating the netlist")
    plan = board.create().prepare(
        Top(board, config), _NAME, script_after_read=STRIP_ASSERTIONS, verbose=True
    )
    plan.extract(folder)

    # The commands of the plan's script, one at a time.
    tools = {f"${variable}": tool for tool, variable in TOOLS.items()}
    for line in plan.files[f"{plan.script}.sh"].splitlines():
        if not line.startswith('"$'):
            continue
        program, *arguments = shlex.split(line)
        if program in tools:
            tool = tools[program]
            run(tool, arguments, folder=folder, log=f"{tool}.log", say=say)
        else:
            say(
                f"left to you, in {folder}: {program.removeprefix('$').lower()} "
                f"{shlex.join(arguments)}"
            )
    return bitstream

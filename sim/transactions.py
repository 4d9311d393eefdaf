"""What the core in front of the pipeline, and the harnesses that drive its ports, agree on.

The C++ harness (``verilator.cpp``) repeats these numbers and layouts.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "RESULT",
    "TRANSACTION",
    "Completion",
    "EngineError",
    "Flag",
    "Kind",
    "PipelineError",
    "Progress",
    "Statistics",
    "Status",
    "TIMING",
    "Waves",
]


class Kind(enum.IntEnum):
    """What a transaction does at the ports."""

    ACCESS = 0
    """Transfer an access; its result is the verdict."""
    GENERATE = 1
    """Transfer a request for a tag, ``tags``: the packed payload; and wait for the response."""
    RESOLVE = 2
    """Strobe ``resolve`` for branch ``op``."""
    REGIME = 3
    """Set the translation regime, ``tags``: the first fields of ``control_layout``, packed."""
    STORAGE = 4
    """Set the storage map: ``va`` is its memory base, ``bytes`` its size, ``tags`` its storage."""
    GCR = 5
    """Set ``generate.gcr`` to ``tags``."""
    RGSR = 6
    """Write ``tags`` into RGSR."""


class Flag(enum.IntFlag):
    """How a transaction is done. The first five are bits 4:0, ``memory`` to ``el0`` of
    ``access_layout``."""

    TAGGED = 1
    NO_TAG_ACCESS = 2
    EXEMPT = 4
    TCO = 8
    EL0 = 16
    IF_PASSED = 32
    """Only if the transaction before it passed."""
    DRAIN = 64
    """Not before all accesses have their verdicts, and the pipeline is idle."""
    MISPREDICTED = 128
    """Of a resolve."""


class Status(enum.IntEnum):
    """The ``outcome`` of a result, where it is none of :class:`~emte.rtl.layouts.Outcome`."""

    SQUASHED = 8
    NOT_SENT = 9


TRANSACTION = np.dtype(
    [
        ("va", "<u8"),
        ("tags", "<u8"),  # of a tag store; otherwise see Kind
        ("bytes", "<u8"),
        ("row", "<u4"),  # number of the operation, from 0
        ("kind", "u1"),
        ("op", "u1"),  # Op, or number of a branch
        ("flags", "u1"),
        ("branches", "u1"),
    ]
)
"""A port transaction. The physical address is bits 51:0 of ``va``."""

RESULT = np.dtype(
    [
        ("far", "<u8"),  # GENERATE: RGSR after it
        ("tags", "<u8"),  # GENERATE: the tag
        ("outcome", "<u4"),
        ("wnr", "<u4"),
    ]
)
"""What came of a transaction; all 0 for those that have no result."""

TIMING = np.dtype(
    [
        ("transferred", "<u8"),  # out: cycle of the transfer at `access`
        ("answered", "<u8"),  # out: cycle of the verdict
        ("gap", "<u4"),  # in: cycles that the core works before it offers this access
        ("data", "<u4"),  # in: cycles that it stands still for the data of this access
        ("waits", "<u8"),  # in: it stands still until the verdict too
    ]
)
"""When an access goes through the ports. The core begins to work towards an access when the one
before it was transferred, its data are there and, if it waits for that, its verdict."""


@dataclass(frozen=True)
class Waves:
    """Waveforms that a run writes.

    Attributes
    ----------
    path : str or path
        The file; its folder is created.
    form : str
        ``vcd``, or ``fst``: far smaller, for the native engine alone.
    first, last : int
        Cycles between which everything is written; for the native engine alone.
    """

    path: str | os.PathLike[str]
    form: str = "vcd"
    first: int = 0
    last: int = (1 << 56) - 1

    @property
    def is_whole(self) -> bool:
        """Are all cycles written?"""
        return (self.first, self.last) == (0, Waves.last)


Progress = Callable[[int, int], None]
"""Called now and then with the number of operations begun, and of all."""


class EngineError(Exception):
    """An engine cannot run. The text is one line that says what is missing."""


class PipelineError(Exception):
    """The pipeline broke a rule of its ports. The text is one line that names the operation."""


@dataclass(frozen=True)
class Statistics:
    """What checking cost, as seen at the ports."""

    operations: int
    cycles: int
    accesses: int
    """Transfers at ``access``."""
    lookups: int
    """Tag words looked up in the cache."""
    read_bursts: int
    """Lines of tags fetched; each is a miss."""
    read_beats: int
    write_bursts: int
    """Lines of tags written back."""
    write_beats: int

    @property
    def misses(self) -> int:
        return self.read_bursts

    @property
    def hits(self) -> int:
        return self.lookups - self.misses

    @property
    def tag_bytes(self) -> int:
        """Tag traffic at the memory port, in bytes."""
        return 8 * (self.read_beats + self.write_beats)

    @property
    def tag_bytes_per_access(self) -> float:
        return self.tag_bytes / self.accesses if self.accesses else 0.0


@dataclass(frozen=True, eq=False)
class Completion:
    """What a harness returns."""

    results: npt.NDArray[np.void]
    """One :data:`RESULT` for each transaction."""
    statistics: Statistics

"""The page table of a stream: which memory has allocation tags."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
import numpy.typing as npt

from .ops import MEMORIES

__all__ = ["MemoryMap"]

_PAGE = 4096
_END = 1 << 52


class MemoryMap:
    """What translation says of every page, by bits 51:0 of its address; at first all untagged.

    A range costs the same whatever its size: only the places where the kind changes are kept.
    """

    def __init__(self) -> None:
        # Interval i reaches from _starts[i] to _starts[i + 1].
        self._starts = [0]
        self._kinds = ["untagged"]

    def set(self, address: int, bytes: int, memory: str) -> None:
        """Make a range of whole pages one of :data:`~emte.sim.ops.MEMORIES`.

        Raises
        ------
        ValueError
            The range is not made of whole pages, ends above 2**52, or the kind is unknown.
        """
        start = address % _END
        end = start + bytes
        if start % _PAGE or bytes % _PAGE or bytes < 0 or end > _END:
            raise ValueError(f"not a range of pages below 2**52: {address:#x}, {bytes:#x} bytes")
        if memory not in MEMORIES:
            raise ValueError(f"memory must be one of {', '.join(MEMORIES)}, not {memory!r}")
        first = bisect_left(self._starts, start)
        last = bisect_right(self._starts, end)
        kinds = [memory, self._kinds[last - 1]]  # of the range, and of what follows it
        self._starts[first:last] = [start, end]
        self._kinds[first:last] = kinds

    def kind(self, address: int) -> str:
        """Which of :data:`~emte.sim.ops.MEMORIES` the page of an address is."""
        return self._kinds[bisect_right(self._starts, address % _END) - 1]

    def kinds(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
        """:meth:`kind` of many addresses, as its number in ``MEMORIES``."""
        numbers = np.array([MEMORIES.index(kind) for kind in self._kinds])
        starts = np.array(self._starts, np.uint64)
        return numbers[np.searchsorted(starts, addresses % _END, side="right") - 1]

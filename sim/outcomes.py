"""What became of the operations of a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

__all__ = ["Outcome", "Outcomes"]

Outcome = dict[str, Any]
"""As the outcome is written, without its line ending: see docs/streams.md."""

_BLOCK = 65536
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Outcomes(Sequence[Outcome]):
    """One outcome for each operation, in order.

    Millions of operations have a handful of outcomes, so each of these is there only once: they
    must not be modified.

    Parameters
    ----------
    distinct : Sequence
        The outcomes that occur. Equal ones may be there more than once.
    which : array of unsigned
        Of each operation: the place of its outcome in ``distinct``.
    """

    def __init__(self, distinct: Sequence[Outcome], which: npt.NDArray[np.uint32]) -> None:
        self._distinct = distinct
        self._which = which

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Outcomes:
        """Outcomes that come one by one; those that are one object are kept as one."""
        objects = list(outcomes)
        distinct = dict(zip(map(id, objects), objects, strict=True))
        places = {identity: place for place, identity in enumerate(distinct)}
        which = np.fromiter(map(places.__getitem__, map(id, objects)), np.uint32, len(objects))
        return cls(list(distinct.values()), which)

    def __len__(self) -> int:
        return len(self._which)

    def __iter__(self) -> Iterator[Outcome]:
        return map(self._distinct.__getitem__, self._which.tolist())

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> Outcomes: ...
    def __getitem__(self, index: int | slice) -> Outcome | Outcomes:
        if isinstance(index, slice):
            return Outcomes(self._distinct, self._which[index])
        return self._distinct[self._which[index]]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def where(self, condition: Callable[[Outcome], object]) -> list[int]:
        """The numbers of the operations whose outcome meets a condition, from 0."""
        chosen = np.array([bool(condition(outcome)) for outcome in self._distinct], bool)
        return np.flatnonzero(chosen[self._which]).tolist() if chosen.any() else []

    def verdicts(self) -> dict[str, int]:
        """How many operations have each verdict; those that have none do not count."""
        counts: dict[str, int] = {}
        numbers = np.bincount(self._which, minlength=len(self._distinct)).tolist()
        for outcome, number in zip(self._distinct, numbers, strict=True):
            if number and "outcome" in outcome:
                counts[outcome["outcome"]] = counts.get(outcome["outcome"], 0) + number
        return counts

    def lines(self) -> Iterator[bytes]:
        """The outcomes as lines of JSON, in large pieces."""
        encoded = [_encode(outcome).encode() + b"\n" for outcome in self._distinct]
        for first in range(0, len(self), _BLOCK):
            block = self._which[first : first + _BLOCK].tolist()
            yield b"".join(map(encoded.__getitem__, block))

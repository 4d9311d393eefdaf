"""What a stream asks of the caches: its data accesses, and the tag words that are looked up.

Both are arrays, made from the transactions that the engines send to the hardware
(:class:`~emte.sim.core.Program`), so that the cache models and the hardware see the same accesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from emte.rtl.layouts import Op

from .core import Program
from .ops import PA_MASK, STORAGE_BASE, ColumnarStream, Stream, StreamError
from .transactions import Flag, Kind

__all__ = ["AccessTrace", "DataAccesses", "Lookups"]

_LOADS = (Op.LOAD.value, Op.ATOMIC.value)
_STORES = (Op.STORE.value, Op.ATOMIC.value)
_DATA = (Op.LOAD.value, Op.STORE.value, Op.ATOMIC.value)
_TAG_STORES = (Op.STG.value, Op.STGM.value)
_TAG_OPS = (Op.LDG.value, Op.LDGM.value, *_TAG_STORES)
_ZEROING = ("stzg", "stz2g", "stgp", "stzgm", "dc_gzva")
"""Tag stores that write data too."""

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class DataAccesses:
    """Accesses to data, in order."""

    first: Integers
    """Physical address of the first byte."""
    last: Integers
    """... and of the last one."""
    store: Flags
    transaction: Integers
    """Number of the transaction."""


@dataclass(frozen=True, eq=False)
class Lookups:
    """Tag words that are looked up, in order."""

    word: Integers
    """Physical address of the data / 256."""
    mask: npt.NDArray[np.uint16]
    """The granules that are compared, read or written."""
    store: Flags
    transaction: Integers
    """Number of the transaction."""
    stored_before: Integers
    """Tag words that were stored before the first of them."""

    def __len__(self) -> int:
        return len(self.word)

    def after(self, transaction: int) -> Lookups:
        """Those of a transaction and of all that follow it."""
        cut = int(np.searchsorted(self.transaction, transaction))
        stored = self.word[:cut][self.store[:cut]]
        return Lookups(
            self.word[cut:],
            self.mask[cut:],
            self.store[cut:],
            self.transaction[cut:],
            np.unique(np.concatenate([self.stored_before, stored])),
        )

    def footprint(self, line_bytes: int = 64) -> int:
        """Bytes of all lines of tags that are touched."""
        return line_bytes * len(np.unique(self.word // (line_bytes // 8)))


class AccessTrace:
    """A stream as accesses to data and to tags.

    What stands before the first access to data only sets the scene: a recording that begins in the
    middle of a program stores the tags that were there. It is no traffic of the program.

    Parameters
    ----------
    stream : Stream
        Operations under the default regime, without maintenance and with tag storage in its
        default place: all else has no meaning for the cache models.
    every_page_tagged : bool
        Look up tags for data accesses of untagged memory too, as if translation did not tell which
        pages have tags.

    Raises
    ------
    StreamError
        The stream has an operation that the models do not know.
    """

    def __init__(self, stream: Stream, *, every_page_tagged: bool = False) -> None:
        self.stream = stream
        self.program = Program.of(stream)
        self._every_page_tagged = every_page_tagged
        transactions = self.program.transactions
        self._kind, self._op = transactions["kind"], transactions["op"]
        self.is_access: Flags = self._kind == Kind.ACCESS
        self._check()
        self._first = (transactions["va"] & PA_MASK).astype(np.int64)
        size = np.maximum(transactions["bytes"], 1).astype(np.int64)
        self._last = self._first + size - 1

    def _check(self) -> None:
        transactions = self.program.transactions
        # One of each kind is sent before the first operation, for the state at the start.
        regimes, storages = (
            np.flatnonzero(self._kind == kind)[1:] for kind in (Kind.REGIME, Kind.STORAGE)
        )
        maintenance = np.flatnonzero(self.is_access & (self._op > Op.STGM.value))
        for places, what in (
            (regimes, "a regime of its own"),
            (storages, "tag storage in another place"),
            (maintenance, "maintenance"),
        ):
            if len(places):
                where = self.program.place(int(transactions["row"][places[0]]))
                raise StreamError(f"{where}: the cache models know no stream with {what}")

    @cached_property
    def loads(self) -> Flags:
        """Which transactions give the core something: data, or tags."""
        readers = (*_LOADS, Op.LDG.value, Op.LDGM.value)
        return self.is_access & np.isin(self._op, readers)

    @cached_property
    def gaps(self) -> Integers:
        """Of each access, the instructions since the access before; at least 1, as both ports of
        the core take one access per cycle."""
        if isinstance(self.stream, ColumnarStream):
            gap = self.stream.columns["gap"].astype(np.int64)
        else:
            gap = np.array([operation.gap for operation in self.stream], np.int64)
        executed = np.cumsum(gap)[self.program.transactions["row"]] if len(gap) else gap
        gaps = np.zeros(len(self._op), np.int64)
        gaps[self.is_access] = np.maximum(np.diff(executed[self.is_access], prepend=0), 1)
        return gaps

    @cached_property
    def data(self) -> DataAccesses:
        """All accesses to data, checked or not."""
        touches = self.is_access & (np.isin(self._op, _DATA) | self._zeroing())
        places = np.flatnonzero(touches)
        return DataAccesses(
            first=self._first[places],
            last=self._last[places],
            store=~np.isin(self._op[places], _LOADS) | np.isin(self._op[places], _STORES),
            transaction=places,
        )

    def _zeroing(self) -> Flags:
        """Which transactions are tag stores that write data too; the columnar form has none."""
        if isinstance(self.stream, ColumnarStream):
            return np.zeros(len(self._op), bool)
        rows = [row for row, op in enumerate(self.stream) if op.op in _ZEROING]
        return np.isin(self.program.transactions["row"], rows) & (self._op == Op.STG.value)

    @cached_property
    def lookups(self) -> Lookups:
        """Tag words that the program looks up."""
        data = self.data.transaction
        return self.every_lookup.after(int(data[0])) if len(data) else self.every_lookup

    @cached_property
    def every_lookup(self) -> Lookups:
        """All tag words that are looked up, those that set the scene among them."""
        flags, op = self.program.transactions["flags"], self._op
        tagged = flags & Flag.TAGGED != 0
        unchecked = flags & (Flag.EXEMPT | Flag.TCO | Flag.NO_TAG_ACCESS) != 0
        faulty = (op == Op.STG.value) & (self._first % 16 != 0)
        checked = np.isin(op, _DATA) & ~unchecked & (tagged | self._every_page_tagged)
        looked_up = (
            self.is_access
            & (checked | np.isin(op, _TAG_OPS) & tagged & ~faulty)
            & (self._last < STORAGE_BASE)
        )
        places = np.flatnonzero(looked_up)
        first, last, op = self._first[places] >> 4, self._last[places] >> 4, op[places]
        last = np.where(op == Op.LDG.value, first, last)
        counts = (last >> 4) - (first >> 4) + 1
        of = np.repeat(np.arange(len(first)), counts)
        part = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        word = (first[of] >> 4) + part
        begin = np.maximum(first[of] - (word << 4), 0)
        end = np.minimum(last[of] - (word << 4), 15) + 1
        mask = ((1 << end) - (1 << begin)).astype(np.uint16)
        return Lookups(word, mask, np.isin(op, _TAG_STORES)[of], places[of], np.zeros(0, np.int64))

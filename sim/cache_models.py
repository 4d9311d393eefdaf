"""Functional models of caches: what they hold and what they move, without a clock.

:func:`data_traffic` is the data side that a core has in any case. :func:`tag_traffic` is the tag
cache, as the hardware has it and in forms that it could have: each form is a :class:`TagPolicy`.
All decisions follow from addresses and from what translation says, never from tags (rule R3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from .access_trace import DataAccesses, Lookups

__all__ = [
    "REPLACEMENTS",
    "DataCaches",
    "DataTraffic",
    "TagPolicy",
    "TagTraffic",
    "data_traffic",
    "tag_traffic",
]

REPLACEMENTS = ("plru", "lru", "fifo", "rrip")
_PLRU, _LRU, _FIFO, _RRIP = range(4)
_RRIP_FAR = 3
_WORD_BYTES = 8
_ALL = 0xFFFF
"""All granules of a tag word."""


# ---- The data side -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DataCaches:
    """Two levels of write-back, write-allocate caches with LRU replacement.

    A store that covers a whole line fetches nothing. A line that leaves the first level dirty goes
    to the second one, and from there to memory.
    """

    l1_bytes: int = 16 << 10
    l1_ways: int = 4
    l2_bytes: int = 256 << 10
    l2_ways: int = 8
    line_bytes: int = 64


@dataclass(frozen=True, eq=False)
class DataTraffic:
    """What the data side moves to and from memory."""

    read_bytes: int
    written_bytes: int
    level: npt.NDArray[np.uint8]
    """Of each access, where its data were: 0 first level, 1 second level, 2 memory."""

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


def data_traffic(accesses: DataAccesses, caches: DataCaches | None = None) -> DataTraffic:
    """Run the accesses of a program through the data side."""
    caches = caches or DataCaches()
    level = np.zeros(len(accesses.first), np.uint8)
    lines = [
        (size // (ways * caches.line_bytes), ways)
        for size, ways in ((caches.l1_bytes, caches.l1_ways), (caches.l2_bytes, caches.l2_ways))
    ]
    l1, l2 = (
        _Level(np.full(shape, -1, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.bool_))
        for shape in lines
    )
    read, written = _run_data(
        accesses.first, accesses.last, accesses.store, caches.line_bytes, l1, l2, level
    )
    return DataTraffic(caches.line_bytes * read, caches.line_bytes * written, level)


class _Level(NamedTuple):
    """One cache; arrays of sets x ways."""

    line: npt.NDArray[np.int64]  # -1: none
    used: npt.NDArray[np.int64]  # when last
    dirty: npt.NDArray[np.bool_]


@njit(cache=True)
def _find(lines, line):
    """The way of a set in which a line is, or -1."""
    for way in range(len(lines)):
        if lines[way] == line:
            return way
    return -1


@njit(cache=True)
def _place(level, line, now):
    """Make room for a line: its way, and the line that was there if it is dirty, else -1."""
    index = line % len(level.line)
    way = level.used[index].argmin()
    victim = level.line[index, way] if level.dirty[index, way] else np.int64(-1)
    level.line[index, way] = line
    level.used[index, way] = now
    level.dirty[index, way] = False
    return way, victim


@njit(cache=True)
def _run_data(first, last, store, line_bytes, l1, l2, level):
    read = written = now = 0
    for n in range(len(first)):
        for line in range(first[n] // line_bytes, last[n] // line_bytes + 1):
            now += 2  # one for a line that comes from above, one for the line itself
            index = line % len(l1.line)
            way = _find(l1.line[index], line)
            if way < 0:
                way, victim = _place(l1, line, now)
                if victim >= 0:
                    below = victim % len(l2.line)
                    place = _find(l2.line[below], victim)
                    if place < 0:
                        place, lost = _place(l2, victim, now - 1)
                        written += lost >= 0
                    l2.dirty[below, place] = True
                    l2.used[below, place] = now - 1
                begin = line * line_bytes
                whole = first[n] <= begin and last[n] >= begin + line_bytes - 1
                if not (store[n] and whole):
                    below = line % len(l2.line)
                    place = _find(l2.line[below], line)
                    if place < 0:
                        _, lost = _place(l2, line, now)
                        written += lost >= 0
                        read += 1
                        level[n] = 2
                    else:
                        l2.used[below, place] = now
                        level[n] = max(level[n], 1)
            l1.used[index, way] = now
            if store[n]:
                l1.dirty[index, way] = True
    return read, written


# ---- The tag cache -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TagPolicy:
    """Geometry and policy of a tag cache. The defaults are those of the hardware."""

    cache_bytes: int = 32 << 10
    ways: int = 8
    line_bytes: int = 64
    sector_bytes: int = 0
    """Bytes that a miss fetches of a line; 0: all of it."""
    write_bytes: int = 0
    """Grain of write-backs: pieces of that size which hold a dirty word; 0: the whole line."""
    gathering: int = 0
    """Lines that may hold tags stored while the rest has not been fetched. Such a line is never
    fetched if it is written completely; it is at the first lookup of a tag that is not there, when
    it must give way to another one, or when it is replaced with half a byte known. 0: a tag store
    that misses fetches."""
    replacement: str = "plru"
    free_first: bool = True
    """A miss takes a free way, if there is one, and asks the replacement policy only then."""
    hashed: bool = False
    """Fold the upper bits of a line's number into the number of its set."""
    prefetch: bool = False
    """A miss fetches the next line too."""
    touched_map: int = 0
    """Lines of 64 bytes of an on-chip cache of the *touched map*: one bit in memory for each 64
    bytes of tags (or line, if that is longer), set when any of them is first written back. What was
    never written back holds zeros and need not be fetched. 0: no such map."""

    def __post_init__(self) -> None:
        sets = self.cache_bytes // (self.ways * self.line_bytes)
        if sets < 1 or sets & (sets - 1):
            raise ValueError(f"{self} has {sets} sets, which is no power of two")
        if self.replacement not in REPLACEMENTS:
            raise ValueError(f"replacement must be one of {', '.join(REPLACEMENTS)}")

    @property
    def sets(self) -> int:
        return self.cache_bytes // (self.ways * self.line_bytes)

    @property
    def reach(self) -> int:
        """Bytes of data whose tags fit."""
        return 32 * self.cache_bytes


@dataclass(frozen=True)
class TagTraffic:
    """What a tag cache did."""

    lookups: int
    misses: int
    """Lookups that waited for memory."""
    fetches: int
    """Bursts read, of lines or sectors."""
    read_bytes: int
    write_backs: int
    """Lines written back."""
    written_bytes: int
    map_bytes: int
    """Bytes of the touched map, read and written."""

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes + self.map_bytes

    @property
    def hit_rate(self) -> float:
        return 1 - self.misses / self.lookups if self.lookups else 1.0


def tag_traffic(lookups: Lookups, policy: TagPolicy) -> TagTraffic:
    """Run lookups through a tag cache that is empty at first, over storage that holds zeros."""
    line_words = policy.line_bytes // _WORD_BYTES
    shape = (policy.sets, policy.ways)
    pieces = np.zeros(0, np.int64)
    piece_words = max(line_words, _PIECE_WORDS)
    if policy.touched_map:
        pieces = np.unique(np.concatenate([lookups.word, lookups.stored_before]) // piece_words)
    state = _TagState(
        line=np.full(shape, -1, np.int64),
        known=np.zeros((*shape, line_words), np.uint16),
        dirty=np.zeros((*shape, line_words), np.bool_),
        order=np.zeros(shape, np.int64),
        tree=np.zeros(policy.sets, np.int64),
        open=np.full((max(policy.gathering, 1), 2), -1, np.int64),
        pieces=pieces,
        touched=np.isin(pieces, lookups.stored_before // piece_words),
        map_line=np.full(max(policy.touched_map, 1), -1, np.int64),
        map_used=np.zeros(max(policy.touched_map, 1), np.int64),
        map_dirty=np.zeros(max(policy.touched_map, 1), np.bool_),
        counts=np.zeros(_COUNTS, np.int64),
    )
    form = _Form(
        line_words=line_words,
        sector_words=(policy.sector_bytes or policy.line_bytes) // _WORD_BYTES,
        write_words=(policy.write_bytes or policy.line_bytes) // _WORD_BYTES,
        gathering=policy.gathering,
        replacement=REPLACEMENTS.index(policy.replacement),
        free_first=policy.free_first,
        hashed=policy.hashed,
        prefetch=policy.prefetch,
        mapped=policy.touched_map > 0,
    )
    _run_tags(lookups.word, lookups.mask, lookups.store, form, state)
    counts = state.counts.tolist()
    return TagTraffic(
        lookups=len(lookups),
        misses=counts[_MISSES],
        fetches=counts[_FETCHES],
        read_bytes=_WORD_BYTES * counts[_READ],
        write_backs=counts[_WRITE_BACKS],
        written_bytes=_WORD_BYTES * counts[_WRITTEN],
        map_bytes=_MAP_LINE_BYTES * counts[_MAP],
    )


_MISSES, _FETCHES, _READ, _WRITE_BACKS, _WRITTEN, _MAP, _COUNTS = range(7)
_MAP_LINE_BYTES = 64
_MAP_REACH = 8 * _MAP_LINE_BYTES
"""Bits in a line of the touched map."""
_PIECE_WORDS = 8
"""Tag words for which the touched map has a bit, at least."""


class _Form(NamedTuple):
    """A policy as the compiled code takes it."""

    line_words: int
    sector_words: int
    write_words: int
    gathering: int
    replacement: int
    free_first: bool
    hashed: bool
    prefetch: bool
    mapped: bool


class _TagState(NamedTuple):
    """State of a tag cache: arrays of sets x ways, and of words of a line where a third axis is."""

    line: npt.NDArray[np.int64]  # -1: none
    known: npt.NDArray[np.uint16]  # granules whose tags are there
    dirty: npt.NDArray[np.bool_]
    order: npt.NDArray[np.int64]  # when last used, when filled, or how soon again
    tree: npt.NDArray[np.int64]  # bit n - 1: where node n of the pseudo-LRU tree points
    open: npt.NDArray[np.int64]  # set and way of each line that is gathering, the oldest first
    pieces: npt.NDArray[np.int64]  # what the touched map has bits for, in order
    touched: npt.NDArray[np.bool_]  # the bits
    map_line: npt.NDArray[np.int64]
    map_used: npt.NDArray[np.int64]
    map_dirty: npt.NDArray[np.bool_]
    counts: npt.NDArray[np.int64]


@njit(cache=True)
def _touch_map(form, state, line, write, now):
    """Look a line up in the touched map, or mark it there; was it marked before?"""
    piece = line * form.line_words // max(form.line_words, _PIECE_WORDS)
    wanted = piece // _MAP_REACH
    way = _find(state.map_line, wanted)
    if way < 0:
        way = state.map_used.argmin()
        state.counts[_MAP] += 1 + state.map_dirty[way]
        state.map_line[way] = wanted
        state.map_dirty[way] = False
    state.map_used[way] = now
    place = np.searchsorted(state.pieces, piece)
    if place == len(state.pieces) or state.pieces[place] != piece:
        return False  # only ever prefetched
    marked = state.touched[place]
    if write and not marked:
        state.touched[place] = True
        state.map_dirty[way] = True
    return marked


@njit(cache=True)
def _fetch(form, state, index, way, sector, now):
    """Fetch a sector; true if memory was asked for tags."""
    known = state.known[index, way]
    if form.mapped and not _touch_map(form, state, state.line[index, way], False, now):
        known[:] = _ALL
        return False
    state.counts[_FETCHES] += 1
    state.counts[_READ] += form.sector_words
    begin = sector * form.sector_words
    known[begin : begin + form.sector_words] = _ALL
    return True


@njit(cache=True)
def _is_partial(form, known, sector):
    """Has a sector tags that are known, and some that are not?"""
    some = False
    every = True
    for word in range(sector * form.sector_words, (sector + 1) * form.sector_words):
        some |= known[word] != 0
        every &= known[word] == _ALL
    return some and not every


@njit(cache=True)
def _gather(form, state, index, way, now):
    """Keep the list of lines that gather; the oldest one is completed where there is no room."""
    known = state.known[index, way]
    partial = False
    for sector in range(form.line_words // form.sector_words):
        partial |= _is_partial(form, known, sector)
    length = 0
    place = -1
    for n in range(form.gathering):
        if state.open[n, 0] < 0:
            break
        length += 1
        if state.open[n, 0] == index and state.open[n, 1] == way:
            place = n
    if partial == (place >= 0):
        return
    if not partial:
        _close(state, place)
        return
    if length == form.gathering:
        old_index, old_way = state.open[0]
        for sector in range(form.line_words // form.sector_words):
            if _is_partial(form, state.known[old_index, old_way], sector):
                _fetch(form, state, old_index, old_way, sector, now)
        _close(state, 0)
        length -= 1
    state.open[length, 0] = index
    state.open[length, 1] = way


@njit(cache=True)
def _close(state, place):
    state.open[place:-1] = state.open[place + 1 :].copy()
    state.open[-1] = -1


@njit(cache=True)
def _evict(form, state, index, way, now):
    """Write back what a way holds, if it is dirty, and empty it."""
    known, dirty = state.known[index, way], state.dirty[index, way]
    if dirty.any():
        for sector in range(form.line_words // form.sector_words):
            for word in range(sector * form.sector_words, (sector + 1) * form.sector_words):
                # Storage takes bytes, each of two granules.
                if dirty[word] and (known[word] ^ known[word] >> 1) & 0x5555:
                    _fetch(form, state, index, way, sector, now)
        state.counts[_WRITE_BACKS] += 1
        for begin in range(0, form.line_words, form.write_words):
            if dirty[begin : begin + form.write_words].any():
                state.counts[_WRITTEN] += form.write_words
        if form.mapped:
            _touch_map(form, state, state.line[index, way], True, now)
    if form.gathering:
        for n in range(form.gathering):
            if state.open[n, 0] == index and state.open[n, 1] == way:
                _close(state, n)
                break
    known[:] = 0
    dirty[:] = False
    state.line[index, way] = -1


@njit(cache=True)
def _victim(form, state, index):
    """The way that a miss replaces: the lowest free one, or the choice of the policy."""
    ways = state.line.shape[1]
    if form.free_first:
        free = _find(state.line[index], -1)
        if free >= 0:
            return free
    if form.replacement == _PLRU:
        node = 1
        while node < ways:
            node = 2 * node + (state.tree[index] >> (node - 1) & 1)
        return node - ways
    order = state.order[index]
    if form.replacement == _RRIP:
        order += _RRIP_FAR - order.max()
        return order.argmax()
    return order.argmin()


@njit(cache=True)
def _use(form, state, index, way, filled, now):
    """Update what the policy knows of a set after a use."""
    if form.replacement == _PLRU:
        node = way + state.line.shape[1]
        while node > 1:
            bit = 1 << (node // 2 - 1)
            if node & 1:
                state.tree[index] &= ~bit
            else:
                state.tree[index] |= bit
            node //= 2
    elif form.replacement == _LRU or (form.replacement == _FIFO and filled):
        state.order[index, way] = now
    elif form.replacement == _RRIP:
        state.order[index, way] = _RRIP_FAR - 1 if filled else 0


@njit(cache=True)
def _index(form, state, line):
    sets = len(state.line)
    if form.hashed and sets > 1:
        folded = line
        rest = line // sets
        while rest:
            folded ^= rest
            rest //= sets
        return folded % sets
    return line % sets


@njit(cache=True)
def _run_tags(words, masks, stores, form, state):
    for n in range(len(words)):
        now = n + 1
        line = words[n] // form.line_words
        word = words[n] % form.line_words
        sector = word // form.sector_words
        index = _index(form, state, line)
        way = _find(state.line[index], line)
        filled = way < 0
        if filled:
            way = _victim(form, state, index)
            _evict(form, state, index, way, now)
            state.line[index, way] = line
        known = state.known[index, way]
        if stores[n] and form.gathering:
            if known[word] != _ALL:
                known[word] |= masks[n]
                _gather(form, state, index, way, now)
        elif (stores[n] and known[word] != _ALL) or masks[n] & ~known[word]:
            state.counts[_MISSES] += _fetch(form, state, index, way, sector, now)
            if form.gathering:
                _gather(form, state, index, way, now)
        if stores[n]:
            state.dirty[index, way, word] = True
        _use(form, state, index, way, filled, now)
        if filled and form.prefetch:
            index = _index(form, state, line + 1)
            if _find(state.line[index], line + 1) < 0:
                way = _victim(form, state, index)
                _evict(form, state, index, way, now)
                state.line[index, way] = line + 1
                for sector in range(form.line_words // form.sector_words):
                    _fetch(form, state, index, way, sector, now)
                _use(form, state, index, way, True, now)

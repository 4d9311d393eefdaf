"""Operation streams made up for measurements, the same for the same seed.

*Workloads* (:data:`WORKLOADS`) are programs with a large heap: what they do to memory, with an
allocator that tags what it gives out and takes the tags back, as glibc's does. Their tags take
more than four times 32 KiB. *Patterns* (:data:`PATTERNS`) are short loops; most are known to be
hard for memory tagging, a few show a limit of the pipeline. No access of either fails its check.
"""

from __future__ import annotations

import random
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import accumulate, cycle

import numpy as np

from .ops import MEMORIES, ColumnarStream, Operation, Stream

__all__ = ["PATTERNS", "PATTERN_OPERATIONS", "WORKLOADS", "WORKLOAD_OPERATIONS", "generate"]

WORKLOAD_OPERATIONS = 1_500_000
PATTERN_OPERATIONS = 60_000

_BASE = 1 << 33
_ARENA = 1 << 26
_PAGE = 4096
_GRANULE = 16
_BLOCK = 64
"""Bytes of one DC ZVA or DC GVA."""
_ACCESS_GAP = 3
"""Instructions for each access to data; in the recorded programs it is 3 to 4."""
_LOOP_GAP = 2
"""... and for each tag store, which stands in a tight loop."""

_OPS = ("load", "store", "ldg", "stg", "st2g", "dc_gva", "dc_zva", "map", "branch", "resolve")
_NUMBER = {name: number for number, name in enumerate(_OPS)}


class _Enough(Exception):
    """The stream is as long as wanted."""


class _Recorder:
    """Collects operations as columns.

    Parameters
    ----------
    operations : int
        How many are wanted: the next one raises :class:`_Enough`.
    """

    def __init__(self, operations: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self._wanted = operations
        self._open: list[int] = []
        self._op, self._tag, self._branches = array("B"), array("B"), array("B")
        self._address, self._size, self._gap = array("Q"), array("L"), array("L")
        self.append("map", _BASE, size=_ARENA, tag=MEMORIES.index("tagged"), gap=0)

    def append(
        self, op: str, address: int, *, size: int = 0, tag: int = 0, gap: int, branches: int = 0
    ) -> None:
        if len(self._op) == self._wanted:
            raise _Enough
        if op == "branch":
            self._open.append(tag)
        elif op == "resolve":
            self._open.remove(tag)
        self._op.append(_NUMBER[op])
        self._address.append(address)
        self._size.append(size)
        self._tag.append(tag)
        self._gap.append(gap)
        self._branches.append(branches)

    def load(self, pointer: int, size: int = 8, *, gap: int = _ACCESS_GAP) -> None:
        self.append("load", pointer, size=size, gap=gap)

    def store(self, pointer: int, size: int = 8, *, gap: int = _ACCESS_GAP) -> None:
        self.append("store", pointer, size=size, gap=gap)

    def tag(self, pointer: int, size: int) -> None:
        """Give memory the tag of its pointer, as a C library does: DC GVA for blocks, ST2G."""
        tag = pointer >> 56 & 0xF
        end = pointer + size
        while pointer < end:
            if pointer % _BLOCK == 0 and end - pointer >= _BLOCK:
                self.append("dc_gva", pointer, gap=_LOOP_GAP)
                pointer += _BLOCK
            elif end - pointer >= 2 * _GRANULE and pointer % _BLOCK != _BLOCK - _GRANULE:
                self.append("st2g", pointer, tag=tag, gap=_LOOP_GAP)
                pointer += 2 * _GRANULE
            else:
                self.append("stg", pointer, tag=tag, gap=_LOOP_GAP)
                pointer += _GRANULE

    def stream(self, name: str) -> Stream:
        """What has been collected, and what resolves the last branches."""
        self._wanted += len(self._open)
        for branch in tuple(self._open):
            self.append("resolve", 0, tag=branch, gap=0)
        columns: dict[str, np.ndarray] = {
            "op": np.array(self._op, np.uint8),
            "address": np.array(self._address, np.uint64),
            "size": np.array(self._size, np.uint32),
            "tag": np.array(self._tag, np.uint8),
            "flags": np.zeros(len(self._op), np.uint8),
            "gap": np.array(self._gap, np.uint32),
            "op_names": np.array(_OPS),
        }
        if any(self._branches):
            columns["branches"] = np.array(self._branches, np.uint8)
        return ColumnarStream(name, columns, [])


class _Heap:
    """An allocator with a free list for each size. A header of one granule with tag 0 stands before
    each block, and what is free has tag 0 and holds a pointer to the next free block."""

    def __init__(self, recorder: _Recorder) -> None:
        self._recorder = recorder
        self._top = _BASE
        self._free: dict[int, list[int]] = defaultdict(list)

    def malloc(self, size: int) -> int:
        """A pointer to a block, which is tagged."""
        recorder = self._recorder
        size = -(-size // _GRANULE) * _GRANULE
        if self._free[size]:
            block = self._free[size].pop()
            recorder.load(block)
        else:
            block = self._top + _GRANULE
            self._top = block + size
            if self._top > _BASE + _ARENA:
                raise MemoryError("the arena is too small for this workload")
        recorder.store(block - _GRANULE + 8)
        pointer = block | recorder.rng.randint(1, 15) << 56
        recorder.tag(pointer, size)
        return pointer

    def free(self, pointer: int, size: int) -> None:
        recorder = self._recorder
        size = -(-size // _GRANULE) * _GRANULE
        block = pointer & (1 << 56) - 1
        recorder.load(block - _GRANULE + 8)
        recorder.tag(block, size)
        recorder.store(block)
        self._free[size].append(block)


def _copy(recorder: _Recorder, pointer: int, size: int, access: Callable[..., None]) -> None:
    """Read or write a block from its start to its end, 16 bytes at a time."""
    for offset in range(0, size, 16):
        access(pointer + offset, min(16, size - offset), gap=_LOOP_GAP)


# ---- Workloads -----------------------------------------------------------------------------------


def _hash_join(recorder: _Recorder) -> None:
    """Hash join: a table of 32,768 rows becomes a hash table with chains, each row a block of 48
    bytes; then 131,072 rows of another table look their partners up, and the pairs are written out.
    """
    rng, heap = recorder.rng, _Heap(recorder)
    build, probe, row = 1 << 15, 1 << 17, 32
    inner, outer = heap.malloc(row * build), heap.malloc(row * probe)
    buckets = heap.malloc(8 * build)
    chains: dict[int, list[int]] = defaultdict(list)
    for n in range(build):
        recorder.load(inner + row * n, 16)
        node = heap.malloc(48)
        bucket = rng.randrange(build)
        recorder.load(buckets + 8 * bucket)
        _copy(recorder, node, 48, recorder.store)
        recorder.store(buckets + 8 * bucket)
        chains[bucket].insert(0, node)
    output = heap.malloc(row * probe)
    for n in range(probe):
        recorder.load(outer + row * n, 16)
        bucket = rng.randrange(build)
        recorder.load(buckets + 8 * bucket)
        for node in chains[bucket]:
            recorder.load(node, 16)
        if chains[bucket]:
            recorder.load(chains[bucket][-1] + 16, 16)
            _copy(recorder, output + row * n, row, recorder.store)


def _graph_walk(recorder: _Recorder) -> None:
    """Breadth-first search: 32,768 vertices of 112 bytes and their lists of edges, each a block of
    its own; few vertices have many edges. From a random vertex on, again and again."""
    rng, heap = recorder.rng, _Heap(recorder)
    count = 1 << 15
    degrees = [min(int(2 * rng.paretovariate(1.2)), 64) for _ in range(count)]
    vertices, edges = [], []
    for degree in degrees:
        vertex, neighbours = heap.malloc(112), heap.malloc(8 * degree)
        _copy(recorder, vertex, 32, recorder.store)
        _copy(recorder, neighbours, 8 * degree, recorder.store)
        vertices.append(vertex)
        edges.append(neighbours)
    targets = [[rng.randrange(count) for _ in range(degree)] for degree in degrees]
    queue_block = heap.malloc(8 * count)
    while True:
        start = rng.randrange(count)
        seen, queue = {start}, [start]
        for place, vertex in enumerate(queue):
            recorder.load(queue_block + 8 * place)
            recorder.load(vertices[vertex], 16)
            for n, target in enumerate(targets[vertex]):
                recorder.load(edges[vertex] + 8 * n)
                recorder.load(vertices[target] + 16)
                if target not in seen:
                    seen.add(target)
                    recorder.store(vertices[target] + 16)
                    recorder.store(queue_block + 8 * len(queue))
                    queue.append(target)


def _key_value(recorder: _Recorder) -> None:
    """Key-value store: 16,384 entries, with values of 64 to 1,024 bytes in blocks of their own. Of
    the requests three of four read a value, the others replace it by one of another size: the old
    block is freed, which takes its tag away, and a new one tagged. Keys are Zipf distributed."""
    rng, heap = recorder.rng, _Heap(recorder)
    count = 1 << 14
    buckets = heap.malloc(8 * count)
    entries, values = [], []

    def value() -> tuple[int, int]:
        size = int(64 * 16 ** rng.random())
        pointer = heap.malloc(size)
        _copy(recorder, pointer, size, recorder.store)
        return pointer, size

    for n in range(count):
        entry = heap.malloc(48)
        values.append(value())
        _copy(recorder, entry, 48, recorder.store)
        recorder.store(buckets + 8 * n)
        entries.append(entry)
    keys = list(range(count))
    rng.shuffle(keys)
    weights = list(accumulate(1 / rank**0.99 for rank in range(1, count + 1)))
    while True:
        (key,) = rng.choices(keys, cum_weights=weights)
        recorder.load(buckets + 8 * key)
        recorder.load(entries[key], 16)
        recorder.load(entries[key] + 16, 16)
        if rng.randrange(4):
            _copy(recorder, *values[key], recorder.load)
        else:
            heap.free(*values[key])
            values[key] = value()
            recorder.store(entries[key] + 16, 16)


# ---- Patterns ------------------------------------------------------------------------------------


def _hits(recorder: _Recorder) -> None:
    """Loads of one tag word each that all hit, one after the other without a pause."""
    while True:
        for offset in range(0, 2 * _PAGE, 8):
            recorder.load(_BASE + offset, gap=1)


def _hits_under_misses(recorder: _Recorder) -> None:
    """As ``hits``, but each 64th load misses."""
    far = _BASE + (1 << 20)
    while True:
        for n in range(63):
            recorder.load(_BASE + 8 * n, gap=1)
        recorder.load(far, gap=1)
        far = _BASE + (far + 2048 - _BASE) % _ARENA


def _speculative_hits(recorder: _Recorder) -> None:
    """As ``hits``, but all speculative: each two loads hang on a branch of their own, which is
    resolved when the next two have been sent."""
    recorder.append("branch", 0, tag=0, gap=0)
    for group, offset in enumerate(cycle(range(0, 2 * _PAGE, 16))):
        here, before = group % 2, (group - 1) % 2
        for address in (_BASE + offset, _BASE + offset + 8):
            recorder.append("load", address, size=8, gap=1, branches=1 << here)
        if group:
            recorder.append("resolve", 0, tag=before, gap=0)
        recorder.append("branch", 0, tag=before, gap=0)


def _two_words(recorder: _Recorder) -> None:
    """Loads that reach over the end of a tag word, so that each takes two lookups."""
    while True:
        for offset in range(252, 4 * _PAGE - 256, 256):
            recorder.load(_BASE + offset, gap=1)


def _page_stride(recorder: _Recorder) -> None:
    """One load of each page of 16 MiB, again and again: each needs a line of tags of its own."""
    while True:
        for page in range(0, 1 << 24, _PAGE):
            recorder.load(_BASE + page)


def _set_stride(recorder: _Recorder) -> None:
    """64 places 512 KiB apart in turn: all their lines of tags belong to the same set."""
    while True:
        for n in range(64):
            recorder.load(_BASE + (n << 19) % _ARENA)


def _pointer_chase(recorder: _Recorder) -> None:
    """4,096 nodes of 64 bytes, one in each 2 KiB of 8 MiB and each with a tag of its own, visited
    in an order that leaps about."""
    nodes = [
        _BASE + address | recorder.rng.randint(1, 15) << 56 for address in range(0, 1 << 23, 2048)
    ]
    recorder.load(_BASE)
    for node in nodes:
        recorder.tag(node, 64)
    recorder.rng.shuffle(nodes)
    while True:
        for node in nodes:
            recorder.load(node)


def _retag(recorder: _Recorder) -> None:
    """The same few blocks are tagged anew and used at once: each load follows a tag store to its
    granule."""
    while True:
        for block in range(8):
            pointer = _BASE + 64 * block | recorder.rng.randint(1, 15) << 56
            recorder.tag(pointer, 32)
            recorder.store(pointer, gap=1)
            recorder.load(pointer, gap=1)
            recorder.tag(pointer & (1 << 56) - 1, 32)


def _tag_storm(recorder: _Recorder) -> None:
    """A tag store to one granule of each KiB of 16 MiB, so that each line becomes dirty for the
    sake of two granules."""
    recorder.load(_BASE)
    while True:
        for offset in range(0, 1 << 24, 1024):
            recorder.append("stg", _BASE + offset, tag=recorder.rng.randint(1, 15), gap=_LOOP_GAP)


def _block_tags(recorder: _Recorder) -> None:
    """16 MiB are tagged from start to end with DC GVA, 64 bytes at a time."""
    recorder.load(_BASE)
    tag = 0
    while True:
        tag = tag % 15 + 1
        for offset in range(0, 1 << 24, _BLOCK):
            recorder.append("dc_gva", _BASE + offset | tag << 56, gap=_LOOP_GAP)


def _memset(recorder: _Recorder) -> None:
    """16 MiB are zeroed from start to end with DC ZVA, 64 bytes at a time, each checked."""
    while True:
        for offset in range(0, 1 << 24, _BLOCK):
            recorder.append("dc_zva", _BASE + offset, gap=_LOOP_GAP)


def _whole_words(operations: int, seed: int) -> Stream:
    """The operating system tags 16 MiB from start to end with STGM, a tag word at a time."""
    rng = random.Random(seed)
    made = [
        Operation("map", address=_BASE, bytes=_ARENA, memory="tagged"),
        Operation("load", address=_BASE, size=8, el=1, gap=1),
    ]
    for n in range(operations - len(made)):
        address = _BASE + 256 * n % (1 << 24)
        made.append(
            Operation("stgm", address=address, tags=rng.getrandbits(64), el=1, gap=_LOOP_GAP)
        )
    for line, operation in enumerate(made, 1):
        operation.line = line
    return Stream("whole_words", made)


def _recorded(program: Callable[[_Recorder], None], name: str) -> Callable[[int, int], Stream]:
    def make(operations: int, seed: int) -> Stream:
        recorder = _Recorder(operations, seed)
        with suppress(_Enough):
            program(recorder)
        return recorder.stream(name)

    make.__doc__ = program.__doc__
    return make


def _named(*programs: Callable[[_Recorder], None]) -> dict[str, Callable[[int, int], Stream]]:
    names = [program.__name__.removeprefix("_") for program in programs]
    return {name: _recorded(program, name) for name, program in zip(names, programs, strict=True)}


WORKLOADS: Mapping[str, Callable[[int, int], Stream]] = _named(_hash_join, _graph_walk, _key_value)
PATTERNS: Mapping[str, Callable[[int, int], Stream]] = {
    **_named(
        *(_hits, _hits_under_misses, _speculative_hits, _two_words),
        *(_page_stride, _set_stride, _pointer_chase),
        *(_retag, _tag_storm, _block_tags, _memset),
    ),
    "whole_words": _whole_words,
}


def generate(name: str, *, operations: int | None = None, seed: int = 1) -> Stream:
    """The stream of a workload or pattern.

    Parameters
    ----------
    operations : int
        About how many; by default as many as show what there is to see.
    """
    if name in WORKLOADS:
        return WORKLOADS[name](operations or WORKLOAD_OPERATIONS, seed)
    return PATTERNS[name](operations or PATTERN_OPERATIONS, seed)

"""DRAM behind an AXI4 port, cycle by cycle.

:class:`Dram` and ``dram.h`` do the same in the same cycles.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar

from emte.rtl.axi import Burst

__all__ = ["BrokenRule", "Chance", "Dram", "Lane", "Ports", "expect"]

_OUTSTANDING_BURSTS = 8
_INTERLEAVED = 64
"""Of 256 beats: how many may be of another burst than the one before."""

Ports = dict[str, int]
"""Values by names such as ``memory.rvalid``."""


class BrokenRule(Exception):
    """The pipeline broke a rule of its ports."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise BrokenRule(message)


class Lane(enum.IntEnum):
    """What has a random byte of its own in every cycle."""

    REQUEST = 0
    VERDICT = 1
    RESOLVE = 2
    READ_ADDRESS = 3
    WRITE_ADDRESS = 4
    WRITE_DATA = 5
    READ_DATA = 6
    MEMORY = 7


class Chance:
    """Random pauses: 8 bytes of each draw, one for each lane, in moods of 256 cycles."""

    _LEVELS = (0, 32, 128, 240)
    _MOOD_CYCLES = 256

    def __init__(self, seed: int) -> None:
        self.active = seed != 0
        self._state = seed % (1 << 64)
        self._mood = 0
        self._draw = 0

    def next_cycle(self, cycle: int) -> None:
        if self.active:
            if cycle % self._MOOD_CYCLES == 0:
                self._mood = self._next()
            self._draw = self._next()

    def pauses(self, lane: Lane) -> bool:
        """Does this lane pause in this cycle? Never with seed 0."""
        return self.byte(lane) < self._LEVELS[self._mood >> 8 * lane & 3] and self.active

    def byte(self, lane: Lane) -> int:
        return self._draw >> 8 * lane & 0xFF

    def _next(self) -> int:
        """SplitMix64."""
        self._state = (self._state + 0x9E3779B97F4A7C15) % (1 << 64)
        z = self._state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
        z = (z ^ z >> 27) * 0x94D049BB133111EB % (1 << 64)
        return z ^ z >> 31


@dataclass(eq=False)
class _ReadBurst:
    id: int
    words: list[int]
    due: int


@dataclass(eq=False)
class _WriteBurst:
    id: int
    address: int
    length: int
    due: int = 0
    beats: list[tuple[int, int]] = field(default_factory=list)


_Burst = TypeVar("_Burst", _ReadBurst, _WriteBurst)


class Dram:
    """DRAM behind AXI4: sparse, zero at first, several bursts at a time.

    It is as unhelpful as AXI allows: a read returns what memory held when its address was taken,
    and a write is seen only once its response is offered. With random pauses bursts of different
    ids overtake each other, reads and writes alike, and the beats of reads come interleaved.

    Parameters
    ----------
    chance : Chance
        The random pauses.
    latency : int
        Cycles from a read address to its first beat, and from the last write beat to its response;
        with random pauses up to 15 more.

    Attributes
    ----------
    storage : range
        The addresses that may be accessed.
    read_bursts, read_beats, write_bursts, write_beats : int
        What was transferred so far.
    """

    def __init__(self, chance: Chance, latency: int) -> None:
        self._chance = chance
        self._latency = latency
        self._words: dict[int, int] = {}
        self._reads: list[_ReadBurst] = []
        self._reading: _ReadBurst | None = None
        self._beat_offered = False
        self._writes: deque[_WriteBurst] = deque()
        self._write_beats: deque[tuple[int, int, int]] = deque()
        self._responses: list[_WriteBurst] = []
        self._answering: _WriteBurst | None = None
        self.storage = range(0)
        self.read_bursts = self.read_beats = self.write_bursts = self.write_beats = 0

    def drive(self, ports: Ports, cycle: int) -> None:
        """Set the inputs of the port for this cycle."""
        pauses = self._chance.pauses
        ports["memory.arready"] = int(
            len(self._reads) < _OUTSTANDING_BURSTS and not pauses(Lane.READ_ADDRESS)
        )
        ports["memory.awready"] = int(
            len(self._writes) < _OUTSTANDING_BURSTS and not pauses(Lane.WRITE_ADDRESS)
        )
        ports["memory.wready"] = int(not pauses(Lane.WRITE_DATA))

        draw = self._chance.byte(Lane.MEMORY)
        if not self._beat_offered:
            if self._reading is None or (self._chance.active and draw < _INTERLEAVED):
                self._reading = self._choose(self._reads, cycle, draw)
            self._beat_offered = self._reading is not None and not pauses(Lane.READ_DATA)
        ports["memory.rvalid"] = int(self._beat_offered)
        if self._reading is not None and self._beat_offered:
            ports["memory.rid"] = self._reading.id
            ports["memory.rdata"] = self._reading.words[0]
            ports["memory.rlast"] = int(len(self._reading.words) == 1)

        if self._answering is None:
            self._answering = self._choose(self._responses, cycle, draw >> 4)
            if self._answering is not None:
                self._perform(self._answering)
                ports["memory.bid"] = self._answering.id
        ports["memory.bvalid"] = int(self._answering is not None)

    def observe(self, ports: Ports, driven: Ports, cycle: int) -> bool:
        """Take note of the transfers of this cycle; was there one?"""
        progress = False
        due = cycle + self._latency
        if self._chance.active:
            due += self._chance.byte(Lane.MEMORY) % 16
        if driven["memory.rvalid"] and ports["memory.rready"]:
            progress = True
            assert self._reading is not None
            self.read_beats += 1
            self._beat_offered = False
            self._reading.words.pop(0)
            if not self._reading.words:
                self._reads.remove(self._reading)
                self._reading = None
        if driven["memory.bvalid"] and ports["memory.bready"]:
            progress = True
            assert self._answering is not None
            self._responses.remove(self._answering)
            self._answering = None
        if ports["memory.arvalid"] and driven["memory.arready"]:
            progress = True
            self.read_bursts += 1
            first = self._burst(ports, "ar")
            words = [self._words.get(first + n, 0) for n in range(ports["memory.arlen"] + 1)]
            self._reads.append(_ReadBurst(ports["memory.arid"], words, due))
        if ports["memory.awvalid"] and driven["memory.awready"]:
            progress = True
            self.write_bursts += 1
            first = self._burst(ports, "aw")
            self._writes.append(_WriteBurst(ports["memory.awid"], first, ports["memory.awlen"] + 1))
        if ports["memory.wvalid"] and driven["memory.wready"]:
            progress = True
            self.write_beats += 1
            self._write_beats.append(
                (ports["memory.wdata"], ports["memory.wstrb"], ports["memory.wlast"])
            )
        while self._writes and self._write_beats:
            burst = self._writes[0]
            data, strobes, last = self._write_beats.popleft()
            burst.beats.append((data, strobes))
            complete = len(burst.beats) == burst.length
            expect(last == complete, "wlast does not mark the last beat")
            if complete:
                burst.due = due
                self._responses.append(self._writes.popleft())
        return progress

    def _choose(self, bursts: list[_Burst], cycle: int, draw: int) -> _Burst | None:
        """Of the bursts that are due, one that is the oldest with its id."""
        ids: set[int] = set()
        eligible = []
        for burst in bursts:
            if burst.id not in ids and burst.due <= cycle:
                eligible.append(burst)
            ids.add(burst.id)
        if not eligible:
            return None
        return eligible[draw % len(eligible) if self._chance.active else 0]

    def _burst(self, ports: Ports, channel: str) -> int:
        """The number of the first word of a burst."""
        address = ports[f"memory.{channel}addr"]
        size = 8 * (ports[f"memory.{channel}len"] + 1)
        expect(ports[f"memory.{channel}size"] == 3, f"{channel}size is not that of the data bus")
        expect(ports[f"memory.{channel}burst"] == Burst.INCR.value, f"{channel}burst is not INCR")
        expect(address % 8 == 0, f"{channel}addr is not aligned to a beat")
        expect(address % 4096 + size <= 4096, f"the {channel} burst crosses 4096 bytes")
        expect(
            self.storage.start <= address and address + size <= self.storage.stop,
            f"the {channel} burst at {address:#x} leaves tag storage",
        )
        return address // 8

    def _perform(self, burst: _WriteBurst) -> None:
        for number, (data, strobes) in enumerate(burst.beats, burst.address):
            mask = sum(0xFF << 8 * byte for byte in range(8) if strobes >> byte & 1)
            self._words[number] = self._words.get(number, 0) & ~mask | data & mask

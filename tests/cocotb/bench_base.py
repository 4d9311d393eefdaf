"""What the cocotb benches share: payloads, streams, random pauses, tag storage, the clock."""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import cocotb
from amaranth.lib import data
from cocotb.clock import Clock
from cocotb.handle import HierarchyObject, LogicArrayObject, LogicObject
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiBus, AxiRam

__all__ = [
    "Bench",
    "Input",
    "Packing",
    "Pauses",
    "Payload",
    "Resolution",
    "Resolve",
    "Sink",
    "Source",
    "TagStorage",
    "argument",
]

Payload = dict[str, Any]
"""The fields of a struct: numbers, and dictionaries for the structs within."""


def argument(name: str) -> int:
    """A number from the simulator's command line: ``+name=number``."""
    return int(cocotb.plusargs[name])


Resolution = tuple[int, bool]
"""A branch, and whether it was mispredicted."""


class Packing:
    """Packs and unpacks payloads of a layout; enumerations and arrays are plain numbers."""

    def __init__(self, layout: data.StructLayout) -> None:
        self._fields = {
            name: (
                field.offset,
                (1 << field.width) - 1,
                Packing(field.shape) if isinstance(field.shape, data.StructLayout) else None,
            )
            for name, field in layout
        }

    def pack(self, payload: Mapping[str, Any]) -> int:
        """All fields must be given, and fit."""
        if payload.keys() != self._fields.keys():
            raise ValueError(f"fields are {list(self._fields)}, not {list(payload)}")
        bits = 0
        for name, (offset, mask, inner) in self._fields.items():
            value = inner.pack(payload[name]) if inner else payload[name]
            if not 0 <= value <= mask:
                raise ValueError(f"{name} must be from 0 to {mask:#x}, not {value:#x}")
            bits |= value << offset
        return bits

    def unpack(self, bits: int) -> Payload:
        return {
            name: inner.unpack(bits >> offset & mask) if inner else bits >> offset & mask
            for name, (offset, mask, inner) in self._fields.items()
        }

    def random(self, rng: random.Random) -> Payload:
        """Each bit of each field is random."""
        return {
            name: inner.random(rng) if inner else rng.randint(0, mask)
            for name, (_, mask, inner) in self._fields.items()
        }


class Pauses:
    """Random pauses, in moods: for some hundred cycles none, few or many."""

    _LEVELS = (0.0, 0.0, 0.2, 0.7)

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._level = 0.0
        self._left = 0

    def __call__(self) -> bool:
        """Shall there be a pause in the next cycle?"""
        if not self._left:
            self._level = self._rng.choice(self._LEVELS)
            self._left = self._rng.randint(50, 500)
        self._left -= 1
        return self._rng.random() < self._level


class Input:
    """A plain input of the design. It is written only when it changes, which saves much time."""

    def __init__(self, handle: LogicObject | LogicArrayObject) -> None:
        self._handle = handle
        self._value: int | None = None

    def drive(self, value: int) -> None:
        if value != self._value:
            self._value = value
            self._handle.value = value


class Resolve:
    """The port ``resolve``."""

    def __init__(self, dut: HierarchyObject) -> None:
        self._valid = Input(dut.resolve__valid)
        self._branch = Input(dut.resolve__branch)
        self._mispredicted = Input(dut.resolve__mispredicted)

    def drive(self, resolution: Resolution | None) -> None:
        """Resolve a branch in the next cycle, or none."""
        self._valid.drive(int(resolution is not None))
        if resolution is not None:
            branch, mispredicted = resolution
            self._branch.drive(branch)
            self._mispredicted.drive(int(mispredicted))


class _End:
    """One end of a stream."""

    def __init__(self, dut: HierarchyObject, name: str, layout: data.StructLayout) -> None:
        self.packing = Packing(layout)
        self.payload = getattr(dut, f"{name}__payload")


class Source(_End):
    """Drives a stream into the design. What is offered stays offered until it is taken."""

    def __init__(self, dut: HierarchyObject, name: str, layout: data.StructLayout) -> None:
        super().__init__(dut, name, layout)
        self.valid = Input(getattr(dut, f"{name}__valid"))
        self.ready = getattr(dut, f"{name}__ready")
        self.offered: Payload | None = None
        self.valid.drive(0)

    def offer(self, payload: Payload) -> None:
        """Offer a payload from now on; only while nothing is offered."""
        assert self.offered is None
        self.offered = payload
        self.payload.value = self.packing.pack(payload)
        self.valid.drive(1)

    def observe(self) -> Payload | None:
        """At a clock edge: the payload that is transferred, if one is."""
        if self.offered is None or not self.ready.value:
            return None
        taken, self.offered = self.offered, None
        self.valid.drive(0)
        return taken


class Sink(_End):
    """Takes a stream out of the design."""

    def __init__(self, dut: HierarchyObject, name: str, layout: data.StructLayout) -> None:
        super().__init__(dut, name, layout)
        self.valid = getattr(dut, f"{name}__valid")
        self.ready = Input(getattr(dut, f"{name}__ready"))
        self.drive(False)

    def drive(self, ready: bool) -> None:
        """Be ready in the next cycle, or not."""
        self.is_ready = ready
        self.ready.drive(int(ready))

    def peek(self) -> Payload | None:
        """At a clock edge: the payload that is offered, if one is."""
        return self.packing.unpack(int(self.payload.value)) if self.valid.value else None

    def observe(self) -> Payload | None:
        """At a clock edge: the payload that is transferred, if one is."""
        return self.peek() if self.is_ready else None


class TagStorage(AxiRam):
    """Memory behind the port ``memory``, with random pauses on all five channels."""

    def __init__(self, dut: HierarchyObject, rng: random.Random) -> None:
        logging.getLogger("cocotb.top").setLevel("ERROR")  # it reports every burst
        super().__init__(AxiBus.from_prefix(dut, "memory_"), dut.clk, dut.rst, size=1 << 48)
        self._pauses = [
            (channel, Pauses(rng))
            for channel in (
                self.read_if.ar_channel,
                self.read_if.r_channel,
                self.write_if.aw_channel,
                self.write_if.w_channel,
                self.write_if.b_channel,
            )
        ]

    def fail_reads(self, fails: Callable[[int], bool]) -> None:
        """Answer a beat of a read with SLVERR where ``fails`` says so of its address."""
        read = self.read_if.read

        def read_or_fail(address: int, length: int) -> bytes:
            if fails(address):
                raise OSError
            return read(address, length)

        self.read_if.read = read_or_fail

    def drive(self) -> None:
        """Choose the channels that pause in the next cycle."""
        for channel, pauses in self._pauses:
            channel.pause = pauses()


class Bench(ABC):
    """The world around a unit, in the rhythm of the clock.

    In each cycle :meth:`drive` sets the unit's inputs; at the clock edge that ends it
    :meth:`observe` looks at inputs and outputs, before the edge has changed any of them.
    """

    PATIENCE = 5_000
    """Cycles without progress after which a run is given up."""

    def __init__(self, dut: HierarchyObject) -> None:
        self.dut = dut
        self.seed = argument("bench_seed")
        cocotb.log.info("seed %d", self.seed)
        self.rng = random.Random(self.seed)
        self._edge = RisingEdge(dut.clk)
        self.cycle = 0
        self.last_progress = 0
        dut.seeded_bug.value = argument("seeded_bug")

    @abstractmethod
    def drive(self) -> None:
        """Set inputs for the next cycle."""

    @abstractmethod
    def observe(self) -> None:
        """Look at the ports at the end of a cycle; say :meth:`progress` if something goes on."""

    @abstractmethod
    def is_done(self) -> bool:
        """Is there nothing left to do?"""

    def expect(self, condition: object, message: str) -> None:
        """Fail, and tell the cycle, unless the condition holds."""
        assert condition, f"cycle {self.cycle}, seed {self.seed}: {message}"

    def progress(self) -> None:
        self.last_progress = self.cycle

    async def reset(self) -> None:
        """Start the clock, and reset the unit."""
        Clock(self.dut.clk, 10, "ns").start()
        self.dut.rst.value = 1
        for _ in range(3):
            await self._edge
        self.dut.rst.value = 0

    async def step(self) -> None:
        """One cycle."""
        self.drive()
        await self._edge
        self.observe()
        self.cycle += 1
        self.expect(self.cycle - self.last_progress < self.PATIENCE, "nothing goes on any more")

    async def run(self) -> None:
        """Go on until all is done."""
        while not self.is_done():
            await self.step()

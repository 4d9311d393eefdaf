"""A memory behind an AXI4 port, for unit tests in the Amaranth simulator."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import Cat, Value
from amaranth.lib import data, wiring
from amaranth.sim._async import TestbenchContext
from emte.rtl.axi import Burst, Response

__all__ = ["AxiMemory", "Transaction"]

GARBAGE = 0xDEAD_BEEF_DEAD_BEEF
"""What comes with an error response."""


@dataclass(eq=False)
class Transaction:
    """One burst, with the cycles in which its address was taken and its last transfer was."""

    write: bool
    id: int
    address: int
    beats: int
    started: int
    words: list[int] = field(default_factory=list)
    finished: int | None = None


_Answer = tuple[int, Transaction, list[int]]


class AxiMemory:
    """A sparse memory, zero at first, that keeps AXI4's rules and holds the manager to them.

    It is as unhelpful as AXI allows: a read returns what memory held when its address was taken,
    a write is seen only once its response is offered, and an error comes with garbage. Bursts of
    each kind are answered in order, unless they are to be shuffled. Writes must be of whole words.

    Parameters
    ----------
    axi : interface of an :class:`~emte.rtl.AXI4Signature`
        The manager's port. :meth:`bench` runs in the background of its simulation.
    latency : int
        Cycles from a read address to its first beat, and from the last write beat to its response.
    pauses : mapping
        For the channels ``"aw"``, ``"w"``, ``"b"``, ``"ar"`` and ``"r"``: the idle cycles before
        each transfer; see :mod:`emte.sim.streams`.
    shuffle : random.Random
        Bursts of different ids are answered in an order that this chooses, beat by beat.

    Attributes
    ----------
    words : dict
        Content, by byte address of each word.
    read_errors, write_errors : container
        Addresses of words to which a transfer fails. May be changed at any time.
    transactions : list
        All bursts, in the order of their addresses.
    cycle : int
        Cycles so far.

    Raises
    ------
    AssertionError
        The manager broke a rule: a burst that is not INCR, not of whole words, not aligned to its
        words or crosses 4096 bytes; ``wlast`` in the wrong place; a beat without all its strobes.
    """

    def __init__(
        self,
        axi: wiring.PureInterface,
        *,
        latency: int = 2,
        pauses: Mapping[str, Iterator[int]] | None = None,
        shuffle: random.Random | None = None,
    ) -> None:
        members = axi.signature.members

        def bundle(flow: wiring.Flow) -> data.View:
            names = [name for name, member in members.items() if member.flow is flow]
            layout = data.StructLayout({name: members[name].shape for name in names})
            return data.View(layout, Cat(Value.cast(getattr(axi, name)) for name in names))

        self._driven = bundle(wiring.In)
        self._sampled = bundle(wiring.Out)
        self._word_bytes = members["wdata"].shape.width // 8
        self._latency = latency
        self._shuffle = shuffle
        self._pauses = {
            channel: (pauses or {}).get(channel, itertools.repeat(0))
            for channel in ("aw", "w", "b", "ar", "r")
        }
        self._idle = {channel: next(pauses) for channel, pauses in self._pauses.items()}
        # With the cycle from which on they are answered, and with the words that reads return.
        self._reads: list[_Answer]
        self._reading: _Answer | None
        self._writes: deque[Transaction]
        self._write_beats: deque[tuple[int, int]]
        self._responses: list[_Answer]
        self._responding: _Answer | None
        self._response: Response | None
        self.reset()
        self.words: dict[int, int] = {}
        self.read_errors: Container[int] = ()
        self.write_errors: Container[int] = ()
        self.transactions: list[Transaction] = []
        self.cycle = 0

    async def bench(self, ctx: TestbenchContext) -> None:
        """The testbench: never returns, so it belongs to the background."""
        while True:
            driven = self._drive()
            ctx.set(self._driven, driven)
            _, _, sampled = await ctx.tick().sample(self._sampled)
            self._observe(driven, sampled)
            self.cycle += 1

    def reset(self) -> None:
        """Forget all that is under way, as when the bus is reset; content stays."""
        self._reads = []
        self._reading = None
        self._writes = deque()
        self._write_beats = deque()
        self._responses = []
        self._responding = None
        self._response = None

    def addresses(self, transaction: Transaction) -> list[int]:
        """Addresses of the words of a burst."""
        return [transaction.address + self._word_bytes * beat for beat in range(transaction.beats)]

    def _drive(self) -> dict[str, Any]:
        driven: dict[str, Any] = {f"{c}ready": int(not self._idle[c]) for c in ("aw", "w", "ar")}
        self._reading = self._reading or self._choose(self._reads)
        if self._reading and not self._idle["r"]:
            _, read, fetched = self._reading
            beat = len(read.words)
            failed = self.addresses(read)[beat] in self.read_errors
            driven |= {
                "rvalid": 1,
                "rid": read.id,
                "rdata": GARBAGE if failed else fetched[beat],
                "rresp": Response.SLVERR if failed else Response.OKAY,
                "rlast": int(beat == read.beats - 1),
            }
        self._responding = self._responding or self._choose(self._responses)
        if self._responding and not self._idle["b"]:
            _, write, _ = self._responding
            if self._response is None:
                self._response = self._perform(write)
            driven |= {"bvalid": 1, "bid": write.id, "bresp": self._response}
        return driven

    def _observe(self, driven: dict[str, Any], sampled: Any) -> None:
        transferred = {
            "aw": driven["awready"] and sampled.awvalid,
            "w": driven["wready"] and sampled.wvalid,
            "b": driven.get("bvalid") and sampled.bready,
            "ar": driven["arready"] and sampled.arvalid,
            "r": driven.get("rvalid") and sampled.rready,
        }
        if transferred["r"]:
            assert self._reading is not None
            read = self._reading[1]
            read.words.append(driven["rdata"])
            if driven["rlast"]:
                read.finished = self.cycle
                self._reads.remove(self._reading)
            self._reading = None
        if transferred["b"]:
            assert self._responding is not None
            self._responding[1].finished = self.cycle
            self._responses.remove(self._responding)
            self._responding = self._response = None
        if transferred["ar"]:
            read = self._begin("ar", sampled)
            fetched = [self.words.get(address, 0) for address in self.addresses(read)]
            self._reads.append((self.cycle + self._latency, read, fetched))
        if transferred["aw"]:
            self._writes.append(self._begin("aw", sampled))
        if transferred["w"]:
            assert sampled.wstrb == (1 << self._word_bytes) - 1, "a beat without all its strobes"
            self._write_beats.append((sampled.wdata, sampled.wlast))
        while self._writes and self._write_beats:
            write = self._writes[0]
            word, last = self._write_beats.popleft()
            write.words.append(word)
            complete = len(write.words) == write.beats
            assert last == complete, "wlast does not mark the last beat"
            if complete:
                self._responses.append((self.cycle + self._latency, self._writes.popleft(), []))
        for channel, transfer in transferred.items():
            if transfer:
                self._idle[channel] = next(self._pauses[channel], 0)
            else:
                self._idle[channel] = max(self._idle[channel] - 1, 0)

    def _choose(self, answers: list[_Answer]) -> _Answer | None:
        """Of what is due, the oldest; or, shuffled, any that is the oldest with its id."""
        oldest = {answer[1].id: answer for answer in reversed(answers)}
        due = [answer for answer in answers if answer[0] <= self.cycle]
        if self._shuffle is None:
            return due[0] if due else None
        eligible = [answer for answer in due if answer is oldest[answer[1].id]]
        return self._shuffle.choice(eligible) if eligible else None

    def _begin(self, channel: str, sampled: Any) -> Transaction:
        id_, address, length, size, burst = (
            getattr(sampled, channel + name) for name in ("id", "addr", "len", "size", "burst")
        )
        beats = length + 1
        assert burst == Burst.INCR, f"{channel}burst is {burst}"
        assert 1 << size == self._word_bytes, f"{channel}size is {size}"
        assert address % self._word_bytes == 0, f"{channel}addr {address:#x} is not aligned"
        assert address % 4096 + beats * self._word_bytes <= 4096, (
            f"the {channel} burst at {address:#x} crosses 4096 bytes"
        )
        transaction = Transaction(channel == "aw", id_, address, beats, self.cycle)
        self.transactions.append(transaction)
        return transaction

    def _perform(self, write: Transaction) -> Response:
        failed = False
        for address, word in zip(self.addresses(write), write.words, strict=True):
            if address in self.write_errors:
                failed = True
            else:
                self.words[address] = word
        return Response.SLVERR if failed else Response.OKAY

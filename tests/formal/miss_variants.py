"""Miss units with a fault, which the proofs must refute."""

from amaranth.hdl import Module, Signal
from emte.rtl.axi import Response
from emte.rtl.miss_unit import MissUnit
from variants import Wrapper

__all__ = [
    "AnswerNotAwaited",
    "BeatLost",
    "BeatsOfOtherRead",
    "ErrorHidden",
    "FilledEarly",
    "MatchLate",
    "MshrForgotten",
    "PlaceAskedTwice",
    "PoisonIgnored",
    "WordRepeated",
]


class MissVariant(Wrapper):
    Unit = MissUnit


class AnswerNotAwaited(MissVariant):
    """A write is taken as done when its last word has gone."""

    def change(self, m: Module) -> None:
        memory, inside = self.memory, self.unit.memory
        buffer = Signal()
        last = memory.wvalid & memory.wready & memory.wlast
        m.d.sync += buffer.eq(buffer ^ last)
        m.d.comb += [inside.bvalid.eq(last), inside.bid.eq(buffer)]


class BeatLost(MissVariant):
    """The first beat after reset is not seen."""

    def change(self, m: Module) -> None:
        first = Signal(init=1)
        with m.If(self.memory.rvalid & self.memory.rready):
            m.d.sync += first.eq(0)
        m.d.comb += self.unit.memory.rvalid.eq(self.memory.rvalid & ~first)


class MshrForgotten(MissVariant):
    """Of two MSHRs that are allocated one right behind the other, the second one never asks."""

    def change(self, m: Module) -> None:
        behind = Signal()
        asking = Signal()
        m.d.sync += behind.eq(self.allocate)
        with m.If(self.allocate & behind):
            m.d.sync += asking.eq(1)
        hidden = asking & (self.unit.memory.arid == 1)
        m.d.comb += [
            self.memory.arvalid.eq(self.unit.memory.arvalid & ~hidden),
            self.unit.memory.arready.eq(self.memory.arready | hidden),
        ]


class BeatsOfOtherRead(MissVariant):
    """A beat counts for the MSHR of the beat before."""

    def change(self, m: Module) -> None:
        memory = self.memory
        before = Signal.like(memory.rid)
        with m.If(memory.rvalid & memory.rready):
            m.d.sync += before.eq(memory.rid)
        m.d.comb += self.unit.memory.rid.eq(before)


class WordRepeated(MissVariant):
    """A word comes to the index of the one before."""

    def change(self, m: Module) -> None:
        m.d.comb += self.fill.payload.index[0].eq(0)


class ErrorHidden(MissVariant):
    """An error counts only with the last beat."""

    def change(self, m: Module) -> None:
        with m.If(~self.memory.rlast):
            m.d.comb += self.unit.memory.rresp.eq(Response.OKAY)


class FilledEarly(MissVariant):
    """A broken line is told as filled before it is dropped."""

    def change(self, m: Module) -> None:
        with m.If(self.unit.broken):
            m.d.comb += self.unit.mended.eq(1)


class PoisonIgnored(MissVariant):
    """A poisoned MSHR gets its line."""

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.settle_poisoned.eq(0)


class PlaceAskedTwice(MissVariant):
    """The way of an MSHR is free for the next one."""

    def change(self, m: Module) -> None:
        m.d.comb += self.busy_ways.eq(0)


class MatchLate(MissVariant):
    """A probe's line is compared in the cycle behind."""

    def change(self, m: Module) -> None:
        late = Signal.like(self.line)
        m.d.sync += late.eq(self.line)
        m.d.comb += self.unit.line.eq(late)

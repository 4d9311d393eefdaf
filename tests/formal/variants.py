"""Pipelines with a fault built in, which the proofs must refute.

Each is a wrapper around a real unit, put in its place. They live here and never in ``rtl/``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from unittest import mock

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, connect, flipped
from emte.rtl import pipeline
from emte.rtl.access import AccessDecoder
from emte.rtl.barrier import SpeculationBarrier
from emte.rtl.config import TagConfig
from emte.rtl.layouts import Memory, Op, Outcome, ProbeKind
from emte.rtl.tag_cache import TagCache
from emte.rtl.tag_check import TagCheck


class Wrapper(wiring.Component):
    """A unit with the same ports around the real one; subclasses change a port or two."""

    Unit: type[wiring.Component]
    """The real unit."""

    replaced: tuple[str, ...] = ()
    """Ports that :meth:`change` connects. All others are, before it is called."""

    differing: frozenset[str]
    """What of the pipeline is seen to differ because of the leak."""

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        self.unit = self.Unit(config)
        super().__init__(self.unit.signature)

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        for name, member in self.signature.members.items():
            outside, inside = getattr(self, name), getattr(unit, name)
            if name in self.replaced:
                continue
            if member.is_signature:
                if member.flow == In:
                    connect(m, flipped(outside), inside)
                else:
                    connect(m, inside, flipped(outside))
            else:
                driven, driving = (inside, outside) if member.flow == In else (outside, inside)
                pairs = (
                    zip(driven, driving, strict=True) if member.dimensions else [(driven, driving)]
                )
                m.d.comb += [target.eq(source) for target, source in pairs]
        self.change(m)
        return m

    def change(self, m: Module) -> None:
        """Build the fault in."""
        raise NotImplementedError


class LateOnMismatch(Wrapper):
    """A fault takes one cycle longer than a pass."""

    Unit = TagCheck
    replaced = ("result_valid",)
    differing = frozenset({"next:check.waited", "next:barrier.pair_done"})

    def change(self, m: Module) -> None:
        waited = Signal()
        passed = self.unit.result.secret_finding.outcome == Outcome.PASS
        m.d.comb += self.result_valid.eq((self.unit.result_valid & passed) | waited)
        m.d.sync += waited.eq(self.unit.result_valid & ~passed)


class ZeroWordsNotWritten(Wrapper):
    """A tag word of zeros is written back with no strobe set, to spare the memory a write."""

    Unit = TagCache
    replaced = ("memory",)
    differing = frozenset({"memory__wstrb"})

    def change(self, m: Module) -> None:
        inside, outside = self.unit.memory, self.memory
        for name, member in outside.signature.members.items():
            if member.flow == In:
                m.d.comb += getattr(inside, name).eq(getattr(outside, name))
            elif name == "wstrb":
                m.d.comb += outside.wstrb.eq(inside.wstrb & inside.wdata.any().replicate(8))
            else:
                m.d.comb += getattr(outside, name).eq(getattr(inside, name))


class FlagBeforeRelease(Wrapper):
    """An asynchronous fault shows in TFSR when it is found, not when it is released."""

    Unit = SpeculationBarrier
    replaced = ("tfsr",)
    differing = frozenset({"next:barrier.early"})

    def change(self, m: Module) -> None:
        early = Signal()
        m.d.comb += [
            self.tfsr.eq(self.unit.tfsr),
            self.tfsr.el0[0].eq(self.unit.tfsr.el0[0] | early),
        ]
        with m.If(self.result_valid & (self.result.secret_finding.outcome == Outcome.ASYNC)):
            m.d.sync += early.eq(1)


class VerdictAhead(Wrapper):
    """The payload of ``verdict`` shows the next outcome before it is valid."""

    Unit = SpeculationBarrier
    replaced = ("verdict",)
    differing = frozenset({"verdict__payload"})

    def change(self, m: Module) -> None:
        inside, outside = self.unit.verdict, self.verdict
        connect(m, inside, flipped(outside))
        with m.If(~inside.valid):
            m.d.comb += outside.payload.wnr.eq(self.result.secret_finding.wnr)


class FillSuppressed(Wrapper):
    """A line that was asked for is not fetched while a granule does not match."""

    Unit = TagCache
    replaced = ("memory",)
    differing = frozenset({"memory__arvalid"})

    def change(self, m: Module) -> None:
        inside, outside = self.unit.memory, self.memory
        connect(m, inside, flipped(outside))
        m.d.comb += outside.arvalid.eq(inside.arvalid & ~self.secret_damaged)


class CorrectionTakesTime(Wrapper):
    """The door is shut for a cycle in which a tag is corrected."""

    Unit = TagCache
    replaced = ("pause",)
    differing = frozenset({"next:barrier.door.leave"})

    def change(self, m: Module) -> None:
        m.d.comb += self.pause.eq(self.unit.pause | self.secret_errors)


LEAKS = [
    LateOnMismatch,
    ZeroWordsNotWritten,
    FlagBeforeRelease,
    VerdictAhead,
    FillSuppressed,
    CorrectionTakesTime,
]


def withdrawn(unit: type[wiring.Component], output: str) -> type[Wrapper]:
    """A unit that offers at one output in every second cycle only.

    ``output`` is what comes before the names ``valid`` and ``ready`` of the stream or channel.
    """

    class Withdrawn(Wrapper):
        Unit = unit

        def change(self, m: Module) -> None:
            even = Signal()
            m.d.sync += even.eq(~even)
            valid, ready = attrgetter(f"{output}valid"), attrgetter(f"{output}ready")
            m.d.comb += [
                valid(self).eq(valid(self.unit) & even),
                ready(self.unit).eq(ready(self) & even),
            ]

    return Withdrawn


class CanonicalByTagAlone(Wrapper):
    """TCMA looks at the tag, and not at bit 55 with it: tag 15 in the low half is let off."""

    Unit = AccessDecoder

    def change(self, m: Module) -> None:
        outside, inside = self.admitted, self.unit.admitted
        tag = outside.access.va[56:60]
        tcma = outside.regime.tcma.bit_select(outside.access.va[55], 1)
        with m.If(tcma & ((tag == 0x0) | (tag == 0xF))):
            m.d.comb += inside.access.exempt.eq(1)


class LastByteForgotten(Wrapper):
    """An access of two bytes or more is taken for one that is a byte shorter."""

    Unit = AccessDecoder

    def change(self, m: Module) -> None:
        size = self.admitted.access.bytes
        with m.If((size > 1) & (size <= 64)):
            m.d.comb += self.unit.admitted.access.bytes.eq(size - 1)


class UncheckedUnbounded(Wrapper):
    """An access with PSTATE.TCO set is not asked whether it leaves the map."""

    Unit = AccessDecoder

    def change(self, m: Module) -> None:
        access = self.admitted.access
        with m.If(access.tco & (access.op == Op.STORE)):
            m.d.comb += self.unit.admitted.access.memory.eq(Memory.UNTAGGED)


class AbortOfFetchIsWrite(Wrapper):
    """The abort of a tag fetch is reported as that of the store whose tags were fetched."""

    Unit = AccessDecoder

    def change(self, m: Module) -> None:
        stores, stored = Signal(), Signal()
        m.d.sync += [stores.eq(self.admitted.access.op == Op.STORE), stored.eq(stores)]
        with m.If(stored & (self.unit.detail.outcome == Outcome.EXTERNAL_ABORT)):
            m.d.comb += self.detail.write.eq(1)


class BlockByItsFirstByte(Wrapper):
    """A block of 512 bytes that begins before the carve-out is not seen to reach into it."""

    Unit = AccessDecoder

    def change(self, m: Module) -> None:
        access = self.admitted.access
        with m.If((access.op == Op.STORE) & (access.bytes == 512)):
            m.d.comb += self.unit.admitted.access.bytes.eq(128)


class WordRepeated(Wrapper):
    """The second word of an access is the first one again, where that ends with 7."""

    Unit = AccessDecoder

    def change(self, m: Module) -> None:
        word, again = Signal.like(self.word), Signal()
        m.d.sync += [word.eq(self.unit.word), again.eq(self.unit.again)]
        with m.If(again & (word[:3] == 7)):
            m.d.comb += self.word.eq(word)


class SecondIsFirst(Wrapper):
    """The first granule of a second word is taken for the first byte of the access."""

    Unit = TagCheck

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.detail.ticket.second.eq(0)


class AbortIsRead(Wrapper):
    """The abort of a tag store is reported as that of a read."""

    Unit = TagCheck

    def change(self, m: Module) -> None:
        finding = self.result.secret_finding
        with m.If(finding.outcome == Outcome.EXTERNAL_ABORT):
            m.d.comb += finding.wnr.eq(0)


class DamageForgotten(Wrapper):
    """A load does not ask whether the last granule of its word can be corrected."""

    Unit = TagCheck

    def change(self, m: Module) -> None:
        with m.If(self.detail.kind == ProbeKind.LOAD):
            m.d.comb += self.unit.secret_codes[120:].eq(0)


class LossForgotten(Wrapper):
    """That tags were lost does not keep a check from passing."""

    Unit = TagCheck

    def change(self, m: Module) -> None:
        with m.If(self.detail.kind == ProbeKind.CHECK):
            m.d.comb += self.unit.secret_lost.eq(0)


class NeighbourChecked(Wrapper):
    """A check of granule 3 alone looks at granule 2 as well."""

    Unit = TagCheck

    def change(self, m: Module) -> None:
        with m.If(self.detail.mask == 1 << 3):
            m.d.comb += self.unit.detail.mask.eq(0b1100)


@contextmanager
def pipeline_with(variant: type[Wrapper]) -> Iterator[None]:
    """Within the context a ``TagPipeline`` that is elaborated has ``variant`` in its place."""
    with mock.patch.object(pipeline, variant.Unit.__name__, variant):
        yield

"""Tag generators with a fault built in, which their spec must refute."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib.wiring import connect, flipped
from emte.rtl.layouts import GenerateOp
from emte.rtl.tag_generator import TagGenerator
from variants import Wrapper

__all__ = [
    "EntropyReversed",
    "ExcludeIgnored",
    "LateOnZero",
    "SeedNotTaken",
    "SubtractsBackwards",
    "TagsWithoutAccess",
    "UpperSeedLost",
]


class _Generator(Wrapper):
    """Its ports are connected with each other, for :meth:`change` to override a part."""

    Unit = TagGenerator


class ExcludeIgnored(_Generator):
    """IRG looks at GCR_EL1 alone, not at its register operand."""

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.generate.request.payload.exclude.eq(0)


class SubtractsBackwards(_Generator):
    """SUBG walks backwards."""

    def change(self, m: Module) -> None:
        payload = self.generate.request.payload
        with m.If(payload.op == GenerateOp.SUBG):
            m.d.comb += self.unit.generate.request.payload.tag_offset.eq(-payload.tag_offset)


class EntropyReversed(_Generator):
    """RRND = 1: entropy is taken from the wrong end."""

    def change(self, m: Module) -> None:
        entropy = self.generate.request.payload.entropy
        m.d.comb += self.unit.generate.request.payload.entropy.eq(entropy[::-1])


class TagsWithoutAccess(_Generator):
    """SCTLR_ELx.ATA is not looked at."""

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.ata.eq(0b11)


class UpperSeedLost(_Generator):
    """RGSR_EL1.SEED has 16 bits."""

    def change(self, m: Module) -> None:
        m.d.comb += self.generate.rgsr.seed[16:].eq(0)


class SeedNotTaken(_Generator):
    """The upper half of the seed that is written is kept, the lower one, which counts, is not."""

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.generate.rgsr_value.seed[:16].eq(0)


class LateOnZero(_Generator):
    """Tag 0 takes one cycle longer than the others."""

    replaced = ("generate",)

    def change(self, m: Module) -> None:
        inside, outside = self.unit.generate, self.generate
        connect(m, flipped(outside.request), inside.request)
        waited = Signal()
        given = (inside.response.payload.tag != 0) | waited
        m.d.sync += waited.eq(inside.response.valid & ~waited)
        m.d.comb += [
            inside.gcr.eq(outside.gcr),
            inside.rgsr_write.eq(outside.rgsr_write),
            inside.rgsr_value.eq(outside.rgsr_value),
            outside.rgsr.eq(inside.rgsr),
            outside.response.valid.eq(inside.response.valid & given),
            inside.response.ready.eq(outside.response.ready & given),
            outside.response.payload.tag.eq(Mux(given, inside.response.payload.tag, 0)),
        ]

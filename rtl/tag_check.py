"""The synchronous tag check: every granule at once."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .codes import corrected_granule, granule_code, granule_syndrome
from .config import TagConfig
from .layouts import Outcome, ProbeKind, Refusal, detail_layout, result_layout

__all__ = ["TagCheck"]


class TagCheck(wiring.Component):
    """Compares the granules of a tag word with the pointer's tag, in two cycles.

    All 16 granules are compared at once, and whatever is found changes the result and never the
    time. A code within distance 1 of that of the key matches, so a flipped bit costs nothing; one
    that is 2 away from every code word is *damaged*, and no access to its granule passes.
    """

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "valid": In(1),
                "detail": In(detail_layout(config)),
                "refusal": In(Refusal),
                "secret_codes": In(8 * config.word_granules),
                "secret_lost": In(1),
                "result_valid": Out(1),
                "result": Out(result_layout(config)),
                "secret_corrected": Out(config.word_bits),
                "secret_damaged": Out(1),
                "secret_errors": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        key = granule_code(self.detail.key)
        s1_valid = Signal()
        s1 = Signal(detail_layout(config))
        s1_refusal = Signal(Refusal)
        secret_far = Signal(16)
        secret_damage = Signal(16)
        secret_odd = Signal(16)
        m.d.sync += [s1_valid.eq(self.valid), s1.eq(self.detail), s1_refusal.eq(self.refusal)]
        for n in range(16):
            code = self.secret_codes.word_select(n, 8)
            diff = code ^ key
            bits = [diff[i] for i in range(8)]
            two = Cat(a & b for i, a in enumerate(bits) for b in bits[i + 1 :]).any()
            syndrome = granule_syndrome(code)
            m.d.sync += [
                secret_far[n].eq(two),
                secret_damage[n].eq(syndrome.any() & ~syndrome.xor()),
                secret_odd[n].eq(syndrome.xor()),
                self.secret_corrected.word_select(n, 4).eq(corrected_granule(code)),
            ]
        m.d.comb += [
            self.secret_damaged.eq(secret_damage.any()),
            self.secret_errors.eq(secret_odd.any()),
        ]
        lost = Signal()
        m.d.sync += lost.eq(self.secret_lost)
        is_check = s1.kind == ProbeKind.CHECK
        is_load = s1.kind == ProbeKind.LOAD
        fails = Signal(16)
        damaged = Signal()
        index = Signal(4)
        tags = Signal(64)
        finding = Signal(result_layout(config)["secret_finding"].shape)
        exact = ~s1.ticket.second
        m.d.comb += [
            fails.eq(secret_far & s1.mask),
            damaged.eq((secret_damage & s1.mask).any() | lost),
            tags.eq(
                Cat(
                    (self.secret_corrected.word_select(n, 4) | s1.ones.replicate(4))
                    & s1.mask[n].replicate(4)
                    for n in range(16)
                )
            ),
        ]
        for n in reversed(range(16)):
            with m.If(fails[n]):
                m.d.comb += index.eq(n)
        single = Cat(Cat(tags[4 * n + b] for n in range(16)).any() for b in range(4))
        secret_tags = Signal(64)
        with m.If(s1.kind == ProbeKind.NONE):
            m.d.comb += finding.outcome.eq(s1.outcome)
            with m.If((s1.outcome != Outcome.PASS) & (s1.outcome != Outcome.ASYNC)):
                m.d.comb += [finding.index.eq(s1.start), finding.exact.eq(exact), finding.wnr.eq(s1.write)]
            with m.Elif(s1.ones):
                with m.If(s1.single):
                    m.d.comb += finding.tag.eq(single)
                with m.Else():
                    m.d.comb += secret_tags.eq(tags)
        with m.Elif(s1_refusal != Refusal.NONE):
            m.d.comb += [
                finding.outcome.eq(
                    Mux(s1_refusal == Refusal.ABORT, Outcome.EXTERNAL_ABORT, Outcome.UNCORRECTABLE)
                ),
                finding.index.eq(s1.start),
                finding.exact.eq(exact),
                finding.wnr.eq(s1.kind == ProbeKind.STORE),
            ]
        with m.Elif(is_check & (damaged | fails.any())):
            with m.If(damaged | ~s1.asynchronous):
                m.d.comb += [
                    finding.outcome.eq(
                        Mux(damaged, Outcome.UNCORRECTABLE, Outcome.TAG_CHECK_FAULT)
                    ),
                    finding.index.eq(Mux(fails.any(), index, s1.start)),
                    finding.exact.eq(exact & ((index == s1.start) | ~fails.any())),
                    finding.wnr.eq(s1.write),
                ]
            with m.Else():
                m.d.comb += finding.outcome.eq(Outcome.ASYNC)
        with m.Elif(is_load & damaged):
            m.d.comb += [
                finding.outcome.eq(Outcome.UNCORRECTABLE),
                finding.index.eq(s1.start),
                finding.exact.eq(exact),
            ]
        with m.Elif(is_load):
            with m.If(s1.single):
                m.d.comb += finding.tag.eq(single)
            with m.Else():
                m.d.comb += secret_tags.eq(tags)
        secret_finding = Signal(finding.shape())
        secret_result_tags = Signal(64)
        ticket = Signal(s1.ticket.shape())
        m.d.sync += [
            self.result_valid.eq(s1_valid),
            ticket.eq(s1.ticket),
            secret_finding.eq(finding),
            secret_result_tags.eq(secret_tags),
        ]
        m.d.comb += [
            self.result.ticket.eq(ticket),
            self.result.secret_finding.eq(secret_finding),
            self.result.secret_tags.eq(secret_result_tags),
        ]
        return m

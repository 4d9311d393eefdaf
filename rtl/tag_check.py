"""The synchronous tag check: every granule at once."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .codes import corrected_granule, granule_code, granule_damaged, granule_syndrome
from .config import TagConfig
from .layouts import (
    Outcome,
    ProbeKind,
    Refusal,
    detail_layout,
    finding_layout,
    result_layout,
    ticket_layout,
)

__all__ = ["TagCheck"]


class TagCheck(wiring.Component):
    """Compares the granules of a tag word with the pointer's tag, all of them at once.

    A result comes two cycles after its probe, one per cycle, whatever is found. Nothing is
    corrected before it is compared: a code within distance 1 of that of the key matches, so a
    flipped bit costs no time. A code at distance 2 from every code word is *damaged*: no access
    to its granule passes.

    A check tells the lowest granule that fails, a damaged one among them. An access that the cache
    has refused, or whose tags may have been lost before, fails at its first granule.

    Members
    -------
    valid, detail : ``In(1)``, ``In(detail_layout(config))``
        A probe. The mask of a CHECK has no gap; unless it is of an access's second word, it begins
        with granule ``start``. An LDG touches one granule.
    refusal : ``In(Refusal)``
        Why there are no tags for it. NONE: ``secret_codes`` are those of its word.
    secret_codes : ``In(128)``
        The code of granule *n* in bits 8n+7:8n, in the cycle of the probe.
    secret_lost : ``In(1)``
        Tags were lost on their way to storage: none that is read may be trusted.
    result_valid, result : ``Out(1)``, ``Out(result_layout(config))``
        What was found out about the probe of two cycles before.
    secret_corrected : ``Out(64)``
        The tags whose codes stood at ``secret_codes`` in the cycle before, corrected.
    secret_damaged, secret_errors : ``Out(1)``
        Of the same codes: some granule is damaged, of those that the probe touches if there was
        one; some granule had one flipped bit. Two LUTs behind a register.
    """

    valid: Signal
    detail: data.View
    refusal: Signal
    secret_codes: Signal
    secret_lost: Signal
    result_valid: Signal
    result: data.View
    secret_corrected: Signal
    secret_damaged: Signal
    secret_errors: Signal

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
        granules = range(config.word_granules)
        detail = self.detail

        # First cycle. The codes come late, out of block RAM: they go through two LUTs, and what is
        # left to do is done in the second cycle. A difference of two bits is one in two pairs of
        # bits, or in both bits of a pair. What does not concern a lane goes through the reset of
        # its registers, which costs no LUT behind the memory: granules that no check touches do
        # not differ, those that a probe does not touch are not damaged, and where tags are all ones
        # without a look, all lanes hold that.
        refused = self.refusal != Refusal.NONE
        decided = detail.kind == ProbeKind.NONE
        checks = detail.kind == ProbeKind.CHECK
        loads = detail.kind == ProbeKind.LOAD
        ones = Signal()
        secret_checks = Signal()
        secret_loads = Signal()
        m.d.comb += [
            ones.eq(self.valid & decided & detail.ones & (detail.outcome == Outcome.PASS)),
            secret_checks.eq(checks & ~(refused | self.secret_lost)),
            secret_loads.eq(loads & ~(refused | self.secret_lost)),
        ]
        secret_pairs = Signal(config.word_granules, reset_less=True)
        secret_pair = Signal(config.word_granules, reset_less=True)
        secret_damage = Signal(config.word_granules, reset_less=True)
        secret_odd = Signal(config.word_granules, reset_less=True)
        # An FPGA's register is initialised to what its reset makes of it.
        secret_tags = Signal(config.word_bits, init=(1 << config.word_bits) - 1, reset_less=True)
        key = granule_code(detail.key)
        for n in granules:
            code = self.secret_codes.word_select(n, 8)
            pairs = [(code ^ key)[at : at + 2] for at in range(0, 8, 2)]
            m.d.sync += [
                secret_pairs[n].eq(_two_of(Cat(pair.any() for pair in pairs))),
                secret_pair[n].eq(Cat(pair.all() for pair in pairs).any()),
                secret_damage[n].eq(granule_damaged(code)),
                secret_odd[n].eq(granule_syndrome(code).xor()),
                secret_tags.word_select(n, config.tag_bits).eq(corrected_granule(code)),
            ]
            with m.If(~(detail.mask[n] & secret_checks)):
                m.d.sync += [secret_pairs[n].eq(0), secret_pair[n].eq(0)]
            with m.If(self.valid & ~detail.mask[n]):
                m.d.sync += secret_damage[n].eq(0)
        with m.If(ones):
            m.d.sync += secret_tags.eq(~0)
        m.d.comb += [
            self.secret_corrected.eq(secret_tags),
            self.secret_damaged.eq(secret_damage.any()),
            self.secret_errors.eq(secret_odd.any()),
        ]

        # What is found without a look at the tags. A load's place is here, too, should its tag
        # prove damaged.
        s1_valid = Signal()
        s1_ticket = Signal(ticket_layout(config), reset_less=True)
        s1_mask = Signal(config.word_granules, reset_less=True)
        s1_write = Signal(reset_less=True)
        secret_reads = Signal(reset_less=True)
        secret_asynchronous = Signal(reset_less=True)
        secret_lenient = Signal(reset_less=True)  # tags count, and their damage alone is a fault
        secret_single = Signal(reset_less=True)
        secret_all = Signal(reset_less=True)
        known = data.StructLayout(
            {name: field.shape for name, field in finding_layout() if name != "tag"}
        )
        secret_given = Signal(known, reset_less=True)
        secret_known = Signal(known)
        secret_place = Signal()
        fails = (detail.outcome != Outcome.PASS) & (detail.outcome != Outcome.ASYNC)
        with m.If(decided):
            m.d.comb += [
                secret_place.eq(fails),
                secret_known.outcome.eq(detail.outcome),
                secret_known.wnr.eq(fails & detail.write),
            ]
        with m.Else():
            secret_missing = refused | (self.secret_lost & (checks | loads))
            uncorrectable = Mux(secret_missing, Outcome.UNCORRECTABLE, Outcome.PASS)
            aborted = self.refusal == Refusal.ABORT
            m.d.comb += [
                secret_place.eq(secret_missing | loads),
                secret_known.outcome.eq(Mux(aborted, Outcome.EXTERNAL_ABORT, uncorrectable)),
                secret_known.wnr.eq(
                    Mux(
                        refused,
                        detail.kind == ProbeKind.STORE,
                        self.secret_lost & checks & detail.write,
                    )
                ),
            ]
        with m.If(secret_place):
            m.d.comb += [
                secret_known.index.eq(detail.start),
                secret_known.exact.eq(~detail.ticket.second),
            ]
        m.d.sync += [
            s1_valid.eq(self.valid),
            s1_ticket.eq(detail.ticket),
            s1_mask.eq(detail.mask),
            s1_write.eq(detail.write),
            secret_reads.eq(secret_checks | secret_loads),
            secret_asynchronous.eq(secret_checks & detail.asynchronous),
            secret_lenient.eq((secret_checks & detail.asynchronous) | secret_loads),
            secret_single.eq((secret_loads | ones) & detail.single),
            secret_all.eq((secret_loads | ones) & ~detail.single),
            secret_given.eq(secret_known),
        ]

        # Second cycle: which granule fails first. The access's own first byte is at fault if the
        # first granule of the mask fails.
        secret_failing = Signal(config.word_granules)
        secret_fails = Signal()
        m.d.comb += [
            secret_failing.eq(secret_pairs | secret_pair),
            secret_fails.eq(secret_failing.any()),
        ]
        begins = ~(s1_mask << 1)[: config.word_granules]
        first_word = (~s1_ticket.second).replicate(config.word_granules)
        masked = [
            secret_tags.word_select(n, config.tag_bits) & s1_mask[n].replicate(config.tag_bits)
            for n in granules
        ]
        result_ticket = Signal(ticket_layout(config), reset_less=True)
        secret_finding = Signal(finding_layout(), reset_less=True)
        secret_result_tags = Signal(config.word_bits, reset_less=True)
        given = Value.cast(secret_given.outcome)
        m.d.sync += [
            self.result_valid.eq(s1_valid),
            result_ticket.eq(s1_ticket),
            # Bit by bit, for here it is short that nothing is given where tags count, and that a
            # granule that is damaged fails: ASYNC, TAG_CHECK_FAULT, and both for UNCORRECTABLE.
            Value.cast(secret_finding.outcome).eq(
                Cat(
                    Mux(secret_asynchronous, secret_fails & ~self.secret_damaged, given[0]),
                    Mux(secret_lenient, self.secret_damaged, secret_fails | given[1]),
                    (secret_reads & self.secret_damaged) | given[2],
                )
            ),
            secret_finding.index.eq(_first(secret_failing) | secret_given.index),
            secret_finding.exact.eq(
                Cat(secret_failing & begins & first_word, secret_given.exact).any()
            ),
            secret_finding.wnr.eq((secret_fails & s1_write) | secret_given.wnr),
            secret_finding.tag.eq(_any_of(masked)),
            secret_result_tags.eq(secret_tags),
        ]
        with m.If(secret_lenient & ~self.secret_damaged):
            m.d.sync += [
                secret_finding.index.eq(0),
                secret_finding.exact.eq(0),
                secret_finding.wnr.eq(0),
            ]
        with m.If(~secret_single):
            m.d.sync += secret_finding.tag.eq(0)
        for n in granules:
            with m.If(~(s1_mask[n] & secret_all)):
                m.d.sync += secret_result_tags.word_select(n, config.tag_bits).eq(0)
        m.d.comb += [
            self.result.ticket.eq(result_ticket),
            self.result.secret_finding.eq(secret_finding),
            self.result.secret_tags.eq(secret_result_tags),
        ]
        return m


def _two_of(flags: Value) -> Value:
    """Are two of four bits set?"""
    a, b, c, d = flags
    return (a & b) | (c & d) | ((a | b) & (c | d))


def _any_of(words: list[Value]) -> Value:
    """The OR of words, bit by bit."""
    return Cat(Cat(bits).any() for bits in zip(*words, strict=True))


def _first(flags: Value) -> Value:
    """The number of the lowest bit that is set; 0 if none is."""
    if len(flags) == 1:
        return Const(0, 0)
    half = len(flags) // 2
    low, high = flags[:half], flags[half:]
    in_low = low.any()
    return Cat(
        Mux(in_low, _first(low), _first(high)),
        ~in_low & high.any(),
    )

"""The synchronous tag check: every granule at once."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .config import TagConfig
from .layouts import (
    Outcome,
    ProbeKind,
    finding_layout,
    probe_layout,
    result_layout,
    tag_word_layout,
)
from .stream_util import PayloadRegister

__all__ = ["TagCheck"]


class TagCheck(wiring.Component):
    """Compares the granules of each tag word with the pointer's tag, and sums an access up.

    All 16 granules are compared in the same cycle, and every word of an access is waited for,
    whatever the ones before it showed: what is found changes the result and never the time. The
    result is offered two cycles after the transfer of the access's last word at the earliest;
    words are sustained at one per cycle.

    The lowest failing address decides. A word that could not be had fails at its first touched
    granule, and an abort also stands against an asynchronous mismatch below it, since that does
    not stop the access.

    Members
    -------
    i : ``In(stream.Signature(tag_word_layout(config)))``
        Tag words; those of one access follow one another.
    o : ``Out(stream.Signature(result_layout(config)))``
        One result per access, in order.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(tag_word_layout(config))),
                "o": Out(stream.Signature(result_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config

        # Stage 1: the masked tags, and which of them differ from the key.
        s1_register = PayloadRegister(probe_layout(config), name="s1")
        s1 = Signal(probe_layout(config))
        s1_valid = Signal()
        s1_abort = Signal()
        s1_room = Signal()
        secret_tags = Signal(config.word_bits)
        secret_mismatches = Signal(config.word_granules)
        probe = self.i.payload.probe
        m.d.comb += [self.i.ready.eq(s1_room), *s1_register.drive(s1)]
        with m.If(s1_room):
            m.d.sync += [
                s1_valid.eq(self.i.valid),
                s1_abort.eq(self.i.payload.abort),
                *s1_register.load(probe),
            ]
            for number in range(config.word_granules):
                tag = self.i.payload.secret_word.word_select(number, config.tag_bits)
                masked = probe.mask[number]
                m.d.sync += [
                    secret_tags.word_select(number, config.tag_bits).eq(
                        tag & masked.replicate(config.tag_bits)
                    ),
                    secret_mismatches[number].eq(masked & (tag != probe.address[56:60])),
                ]

        # Stage 2: the finding of this word, and of the words of the access up to it.
        secret_earlier = Signal(finding_layout())
        earlier = Signal(finding_layout())
        here = Signal(finding_layout())
        found = Signal(finding_layout())
        index = Signal(range(config.word_granules))
        with m.If(~s1.first):
            m.d.comb += earlier.eq(secret_earlier)
        for number in reversed(range(config.word_granules)):
            with m.If(secret_mismatches[number]):
                m.d.comb += index.eq(number)

        m.d.comb += here.far.eq(s1.address)
        with m.If(s1_abort):
            m.d.comb += [
                here.outcome.eq(Outcome.EXTERNAL_ABORT),
                here.wnr.eq(s1.kind == ProbeKind.STORE),
            ]
        with m.Elif((s1.kind == ProbeKind.CHECK) & secret_mismatches.any()):
            m.d.comb += [
                here.outcome.eq(Mux(s1.asynchronous, Outcome.ASYNC, Outcome.TAG_CHECK_FAULT)),
                here.wnr.eq(s1.write),
            ]
            with m.If(index != s1.address[4:8]):
                m.d.comb += [here.far[4:8].eq(index), here.far[:4].eq(0)]
        with m.Elif((s1.kind == ProbeKind.LOAD) & s1.single):
            m.d.comb += here.tags.eq(
                Cat(
                    Cat(
                        secret_tags[number * config.tag_bits + bit]
                        for number in range(config.word_granules)
                    ).any()
                    for bit in range(config.tag_bits)
                )
            )
        with m.Elif(s1.kind == ProbeKind.LOAD):
            m.d.comb += here.tags.eq(secret_tags)

        m.d.comb += found.eq(here)
        with m.If(
            (earlier.outcome != Outcome.PASS) & ~((earlier.outcome == Outcome.ASYNC) & s1_abort)
        ):
            m.d.comb += found.eq(earlier)

        # The result: addresses of faults only.
        result_valid = Signal()
        result_room = Signal()
        result = PayloadRegister(result_layout(config), name="result")
        entering = Signal(result_layout(config))
        m.d.comb += [
            result_room.eq(~result_valid | self.o.ready),
            s1_room.eq(~s1_valid | ~s1.last | result_room),
            entering.ticket.eq(s1.ticket),
            entering.secret_finding.eq(found),
            self.o.valid.eq(result_valid),
            *result.drive(self.o.payload),
        ]
        with m.If((found.outcome == Outcome.PASS) | (found.outcome == Outcome.ASYNC)):
            m.d.comb += [
                entering.secret_finding.far.eq(0),
                entering.secret_finding.wnr.eq(0),
            ]
        with m.If(s1_valid & s1_room):
            m.d.sync += secret_earlier.eq(found)
        with m.If(result_room):
            m.d.sync += [result_valid.eq(s1_valid & s1.last), *result.load(entering)]
        return m

"""Formal spec of the tag check: it equals the reference for every access."""

from amaranth.hdl import Assert, Assume, Cover, Module, Mux, Signal, Value
from check_reference import CheckReference
from emte.rtl.layouts import Outcome, finding_layout, result_layout, tag_word_layout
from unit_spec import UnitSpec

OUTCOMES = (Outcome.PASS, Outcome.ASYNC, Outcome.TAG_CHECK_FAULT, Outcome.EXTERNAL_ABORT)
"""All that the check can tell."""


class TagCheckSpec(UnitSpec):
    """A result is what the reference says of the access's words, however many there are.

    The check holds one word, which waits only if it is an access's last, for room in the register
    of the result. Assumed is what the descriptions of the ports say of tag words, by the names that
    ``CheckReference.documented`` gives it; all else is free.
    """

    def specify(self, m: Module) -> None:
        unit = self.unit
        config = unit.config
        word = Signal(tag_word_layout(config))  # while `busy`
        busy = Signal()
        result = Signal(result_layout(config))  # while `done`
        done = Signal()
        room = ~done | unit.o.ready
        reference = CheckReference(m, word, busy & unit.i.ready)

        # `word` is a copy of what was transferred, so this restricts the input and nothing else.
        for text, condition in reference.documented.items():
            m.d.comb += Assume(~busy | condition, text)

        with m.If(unit.i.ready):
            m.d.sync += [busy.eq(unit.i.valid), word.eq(unit.i.payload)]
        with m.If(room):
            m.d.sync += [
                done.eq(busy & word.probe.last),
                result.ticket.eq(word.probe.ticket),
                *(
                    Value.cast(result.secret_finding[name]).eq(getattr(reference, name))
                    for name in finding_layout().members
                ),
            ]
        m.d.comb += [
            Assert(
                unit.i.ready == (~busy | ~word.probe.last | room),
                "a word waits without need, or is overwritten",
            ),
            Assert(unit.o.valid == done, "a result that is none, or none where there is one"),
        ]
        with m.If(unit.o.valid):
            m.d.comb += Assert(unit.o.payload.ticket == result.ticket, "the ticket")
            for name in finding_layout().members:
                found, expected = (
                    Value.cast(payload.secret_finding[name]) for payload in (unit.o.payload, result)
                )
                m.d.comb += Assert(found == expected, f"the {name} of a result")

        # Each outcome comes, from each place in an access.
        finding = unit.o.payload.secret_finding
        fault = unit.o.valid & (finding.outcome == Outcome.TAG_CHECK_FAULT)
        abort = unit.o.valid & (finding.outcome == Outcome.EXTERNAL_ABORT)
        counted = Signal(2)  # words of the access whose result is next
        with m.If(busy & unit.i.ready):
            m.d.sync += counted.eq(Mux(word.probe.first, 1, counted + (counted != 3)))
        mismatch_before = Signal()
        with m.If(room):
            m.d.sync += mismatch_before.eq(reference.before.mismatch.happened & ~word.probe.first)
        for outcome in OUTCOMES:
            m.d.comb += Cover(
                unit.o.valid & (finding.outcome == outcome), f"{outcome.name} is the outcome"
            )
        m.d.comb += [
            Cover(fault & finding.wnr, "a store fails"),
            Cover(fault & finding.far[:4].any(), "the first granule fails"),
            Cover(fault & (finding.far[:8] == 0xF0), "the last granule of a word fails"),
            Cover(fault & (counted == 3) & ~mismatch_before, "the third word fails"),
            Cover(fault & (counted == 3) & mismatch_before, "a word before the third fails"),
            Cover(abort & mismatch_before, "an abort behind an asynchronous mismatch"),
            Cover(abort & finding.wnr, "a tag store is aborted"),
            Cover(unit.o.valid & finding.tags[60:].all(), "tags are loaded"),
        ]

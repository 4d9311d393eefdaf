"""Formal spec of the access decoder: it equals the reference for every access."""

from access_reference import AccessReference, documented
from amaranth.hdl import Assert, Assume, Cat, Const, Cover, Module, Signal, Value
from amaranth.lib import wiring
from emte.rtl.layouts import Memory, Outcome, ProbeKind, admitted_layout
from unit_spec import UnitSpec

OUTCOMES = (
    Outcome.PASS,
    Outcome.ASYNC,
    Outcome.TAG_CHECK_FAULT,
    Outcome.PERMISSION_FAULT,
    Outcome.ALIGNMENT_FAULT,
    Outcome.EXTERNAL_ABORT,
)
"""All that the decoder can tell by itself: it reads no tag, so that none is uncorrectable."""


class AccessDecoderSpec(UnitSpec):
    """What comes out of the decoder is what the reference says of what went in, and nothing else.

    The decoder holds one access, and offers what becomes of it from the cycle after its transfer
    on. Assumed is what the descriptions of the ports say of an access, by the names that
    ``documented`` gives it; all else is free.

    Parameters
    ----------
    unit : :class:`amaranth.lib.wiring.Component`
        The decoder, or what is to be held to it.
    lemmas : bool
        State what a proof for all time needs to know of the decoder's registers.
    """

    def __init__(self, unit: wiring.Component, *, lemmas: bool = False) -> None:
        self.lemmas = lemmas
        super().__init__(unit)

    def specify(self, m: Module) -> None:
        unit = self.unit
        held = Signal(admitted_layout(unit.config))  # while `busy`
        busy = Signal()
        number = Signal(2)  # of the probe that is next
        reference = AccessReference(m, held.access, held.control)
        expected = reference.probe(number)
        probe, finding = unit.probe.payload, unit.unchecked.payload.secret_finding

        # `held` is a copy of what was transferred, so this restricts the input and nothing else.
        for text, condition in documented(unit.config, held.access, held.control).items():
            m.d.comb += Assume(~busy | condition, text)

        is_probe = Signal()
        last = Signal()
        done = Signal()  # by the end of the cycle
        m.d.comb += [
            is_probe.eq(reference.probes),
            last.eq(expected.last),
            done.eq(
                ~busy
                | (unit.probe.valid & unit.probe.ready & last)
                | (unit.unchecked.valid & unit.unchecked.ready)
            ),
        ]
        with m.If(unit.i.ready):
            m.d.sync += [busy.eq(unit.i.valid), held.eq(unit.i.payload), number.eq(0)]
        with m.Elif(unit.probe.valid & unit.probe.ready):
            m.d.sync += number.eq(number + 1)

        m.d.comb += [
            Assert(unit.i.ready == done, "it is ready when it holds nothing any more"),
            Assert(unit.probe.valid == (busy & is_probe), "a probe where there is none"),
            Assert(
                unit.unchecked.valid == (busy & ~is_probe),
                "an outcome where there is none",
            ),
        ]
        kind = expected.kind
        granular = (kind == ProbeKind.CHECK) | (kind == ProbeKind.LOAD) | (kind == ProbeKind.STORE)
        of_all = (kind == ProbeKind.CLEAN_ALL) | (kind == ProbeKind.CLEAN_INVALIDATE_ALL)
        with m.If(unit.probe.valid):
            for name, counts, value in (
                ("ticket", Const(1), held.ticket),
                ("kind", Const(1), kind),
                ("word", ~of_all, expected.word),
                ("mask", granular, expected.mask),
                ("secret_tags", kind == ProbeKind.STORE, expected.tags),
                ("address", granular, expected.address),
                ("single", kind == ProbeKind.LOAD, expected.single),
                ("asynchronous", kind == ProbeKind.CHECK, expected.asynchronous),
                ("write", kind == ProbeKind.CHECK, expected.write),
                ("first", Const(1), number == 0),
                ("last", Const(1), last),
            ):
                with m.If(counts):
                    m.d.comb += Assert(
                        Value.cast(probe[name]) == Value.cast(value), f"the {name} of a probe"
                    )
        with m.If(unit.unchecked.valid):
            m.d.comb += Assert(unit.unchecked.payload.ticket == held.ticket, "the ticket")
            for name in ("outcome", "far", "wnr", "tags"):
                m.d.comb += Assert(
                    Value.cast(finding[name]) == getattr(reference.finding, name),
                    f"the {name} of an outcome",
                )

        if self.lemmas:
            # Where the decoder is in an access is where the reference is.
            left = self.see(m, "probe_end", 6)
            m.d.comb += Assert(
                ~unit.probe.valid
                | (
                    (busy & (probe.last == last))
                    & (
                        (held.access.bytes == 0)
                        | ((left == reference.granules_from(number)) & (left > 0))
                    )
                ),
                "lemma: the granules that are left",
            )

        # Each reason by itself lets an access off; each kind of probe, and each outcome, comes.
        taken = unit.probe.valid & unit.probe.ready
        access = held.access
        for name, reason in reference.let_off.items():
            others = [other for key, other in reference.let_off.items() if key != name]
            m.d.comb += Cover(
                unit.unchecked.valid
                & (access.memory == Memory.TAGGED)
                & reason
                & ~Cat(others).any(),
                f"an access is let off, because of {name} alone",
            )
        for each in ProbeKind:
            m.d.comb += Cover(taken & (probe.kind == each), f"{each.name} is probed")
        for each in OUTCOMES:
            m.d.comb += Cover(
                unit.unchecked.valid & (finding.outcome == each), f"{each.name} is the outcome"
            )
        m.d.comb += [
            Cover(taken & last & (number == 1) & (access.bytes <= 64), "64 bytes lie in two words"),
            Cover(taken & last & (access.bytes == 512), "the largest block"),
            Cover(
                taken & (probe.kind == ProbeKind.CHECK) & (probe.mask == 0x1F),
                "64 bytes, not aligned, touch five granules",
            ),
            Cover(unit.unchecked.valid & finding.tags.any(), "canonical tags are loaded"),
            Cover(
                unit.unchecked.valid
                & (finding.outcome == Outcome.EXTERNAL_ABORT)
                & access.tco
                & finding.wnr,
                "the carve-out refuses an unchecked store",
            ),
        ]

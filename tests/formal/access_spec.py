"""Formal spec of the access decoder: it equals the reference for every access."""

from access_reference import AccessReference, documented, touches_two
from amaranth.hdl import Assert, Assume, Cat, Const, Cover, Module, Signal, Value
from emte.rtl.access import may_touch_two, reaches_on
from emte.rtl.layouts import Memory, Op, Outcome, ProbeKind, admitted_layout, map_layout
from unit_spec import UnitSpec

STEPS = 5
"""Cycles in which all that was in the decoder has left it, and the map is known to stand still."""

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

    Each tag word comes in its cycle. Assumed is what the descriptions of the ports say of an
    access, by the names that ``documented`` gives it, that the map stands still, and that the slot
    of a second word is left free; all else is free.
    """

    def specify(self, m: Module) -> None:
        unit = self.unit

        for text, condition in documented(unit.config, unit.admitted.access, unit.map).items():
            m.d.comb += Assume(~unit.admitted_valid | condition, text)
        started = Signal()
        storage_map = Signal(map_layout(unit.config))
        m.d.sync += [started.eq(1), storage_map.eq(unit.map)]
        m.d.comb += [
            Assume(~started | (storage_map == unit.map), "the map stands still"),
            Assume(started | ~unit.admitted_valid, "it did so before the first access"),
        ]

        # The barrier tells what the decoder's own functions say.
        two = Signal()
        m.d.comb += [
            two.eq(may_touch_two(unit.admitted.access) & reaches_on(unit.admitted.access)),
            Assume(~unit.admitted_valid | (unit.admitted.two == two), "the barrier tells of two"),
        ]

        # Copies of the access whose word is there, and of the one whose detail is.
        word_valid, word_second = Signal(), Signal()
        word_of = Signal(admitted_layout(unit.config))
        valid, second = Signal(), Signal()
        held = Signal(admitted_layout(unit.config))
        follows = Signal()
        m.d.comb += follows.eq(word_valid & ~word_second & touches_two(word_of.access))
        with m.If(follows):
            m.d.sync += word_second.eq(1)
        with m.Else():
            m.d.sync += [
                word_valid.eq(unit.admitted_valid),
                word_of.eq(unit.admitted),
                word_second.eq(0),
            ]
        m.d.sync += [valid.eq(word_valid), second.eq(word_second), held.eq(word_of)]

        m.d.comb += Assume(~(follows & unit.admitted_valid), "the slot of a second word is free")

        m.d.comb += [
            Assert(
                ~unit.admitted_valid | (two == touches_two(unit.admitted.access)),
                "how many words it touches",
            ),
            Assert(unit.word_valid == word_valid, "a word where there is none"),
            Assert(unit.again == follows, "the second word does not follow, or one that is none"),
        ]
        word = Signal.like(unit.word)
        m.d.sync += word.eq(unit.word)
        detail = unit.detail
        reference = AccessReference(m, held.access, held.regime, unit.map)
        expected = reference.part(second)
        kind = expected.kind
        granular = (kind == ProbeKind.CHECK) | (kind == ProbeKind.LOAD) | (kind == ProbeKind.STORE)
        of_all = (kind == ProbeKind.CLEAN_ALL) | (kind == ProbeKind.CLEAN_INVALIDATE_ALL)
        none = kind == ProbeKind.NONE
        fails = none & (expected.outcome != Outcome.PASS) & (expected.outcome != Outcome.ASYNC)
        with m.If(valid):
            for name, counts, value, wanted in (
                ("number", Const(1), detail.ticket.number, held.ticket.number),
                ("table or queue", Const(1), detail.ticket.direct, held.ticket.direct),
                ("place in the access", Const(1), detail.ticket.second, second),
                ("kind", Const(1), detail.kind, kind),
                ("word", ~none & ~of_all, word, expected.word),
                ("mask", granular | expected.ones, detail.mask, expected.mask),
                ("start", granular | fails, detail.start, expected.start),
                ("key", kind == ProbeKind.CHECK, detail.key, held.access.va[56:60]),
                ("place in the buffer", kind == ProbeKind.STORE, detail.store, held.store),
                (
                    "single",
                    (kind == ProbeKind.LOAD) | expected.ones,
                    detail.single,
                    expected.single,
                ),
                (
                    "asynchronous",
                    kind == ProbeKind.CHECK,
                    detail.asynchronous,
                    expected.asynchronous,
                ),
                (
                    "write",
                    (kind == ProbeKind.CHECK) | (kind == ProbeKind.STORE) | fails,
                    detail.write,
                    expected.write,
                ),
                ("outcome", Const(1), detail.outcome, expected.outcome),
                ("ones", Const(1), detail.ones, expected.ones),
            ):
                with m.If(counts):
                    m.d.comb += Assert(
                        Value.cast(value) == Value.cast(wanted)[: len(Value.cast(value))],
                        f"the {name} of a word",
                    )

        # Each reason by itself lets an access off; each kind of probe, and each outcome, comes.
        of = held.access
        for name, reason in reference.let_off.items():
            others = [other for key, other in reference.let_off.items() if key != name]
            m.d.comb += Cover(
                valid
                & (detail.kind == ProbeKind.NONE)
                & (of.memory == Memory.TAGGED)
                & reason
                & ~Cat(others).any(),
                f"an access is let off, because of {name} alone",
            )
        for each in ProbeKind:
            m.d.comb += Cover(valid & (detail.kind == each), f"{each.name} is probed")
        for each in OUTCOMES:
            m.d.comb += Cover(
                valid & (detail.kind == ProbeKind.NONE) & (detail.outcome == each),
                f"{each.name} is the outcome",
            )
        m.d.comb += [
            Cover(valid & second & (of.bytes <= 64), "64 bytes lie in two words"),
            Cover(valid & second & (of.bytes == 512), "the largest block"),
            Cover(
                valid & (detail.kind == ProbeKind.CHECK) & (detail.mask == 0x1F),
                "64 bytes, not aligned, touch five granules",
            ),
            Cover(valid & detail.ones, "canonical tags are loaded"),
            Cover(
                valid
                & (detail.kind == ProbeKind.NONE)
                & (detail.outcome == Outcome.EXTERNAL_ABORT)
                & of.tco
                & detail.write,
                "the carve-out refuses an unchecked store",
            ),
            Cover(
                valid
                & (detail.outcome == Outcome.EXTERNAL_ABORT)
                & (of.op == Op.STORE)
                & (of.bytes == 512)
                & (of.pa < unit.map.storage_base),
                "a block reaches into the carve-out",
            ),
            Cover(valid & word_valid & unit.admitted_valid, "three accesses at once"),
        ]

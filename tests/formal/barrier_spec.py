"""Formal spec of the speculation barrier: one verdict for each access, never before its time.

A monitor outside the unit sees nothing but its ports. It follows one id, any id, through all its
uses; and one of these uses, any of them, it marks, to follow what is known of that access.
"""

from dataclasses import fields

from amaranth.asserts import AnyConst, AnySeq
from amaranth.hdl import Assert, Assume, Cat, Const, Cover, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from emte.rtl.barrier import SpeculationBarrier
from emte.rtl.config import Barrier, TagConfig
from emte.rtl.layouts import Op, Outcome, finding_layout, request_layout, ticket_layout
from unit_spec import TINY, UnitSpec

WORDS = 3
"""Tag words that are in the pipeline at a time."""

AGE = 3
"""Cycles from the admission until a finding may be announced. The true pipeline takes seven."""

WITHIN = 12
"""Cycles until an access has its verdict, or is admitted, while nothing is in its way."""


class ShortRing(TagConfig):
    """A geometry with few tickets: so many contexts are enough for so few accesses."""

    ticket_bits = 5


def barrier_config(form: Barrier) -> TagConfig:
    """The geometry in which the barrier is searched."""
    parameters = {field.name: getattr(TINY, field.name) for field in fields(TINY)}
    return ShortRing(**{**parameters, "barrier": form})


class SpeculationBarrierSpec(UnitSpec):
    """Every access that is not squashed gets one verdict, not before its branches are resolved.

    Parameters
    ----------
    config : :class:`TagConfig`
        Geometry; its barrier is not NONE, which promises nothing of this kind.
    whole : bool
        Follow every field of the marked access and its findings, not the mark alone.
    unit : :class:`amaranth.lib.wiring.Component`
        What is to be held to it, instead of the barrier of that geometry.

    Contract of the core, assumed: an id is not in use when an access offers it; it is free in the
    cycle after its verdict, and in the cycle after the resolve that squashed its access.

    Contract of the pipeline, assumed: for each word of an admitted access a finding comes once,
    after any time and in any order, announced two cycles before.
    """

    def __init__(
        self, config: TagConfig, *, whole: bool = False, unit: wiring.Component | None = None
    ) -> None:
        self.config = config
        self.whole = whole
        super().__init__(unit or SpeculationBarrier(config))

    def specify(self, m: Module) -> None:
        unit = self.unit
        config = self.config
        access = unit.access.payload.access
        verdict = unit.verdict

        # The followed id, and what the core knows of its use.
        followed = Signal(config.id_bits)
        m.d.comb += followed.eq(AnyConst(config.id_bits))
        owed = Signal()  # offered, neither squashed nor answered
        taken = Signal()  # and transferred
        unresolved = Signal(config.branches)

        resolved = Signal(config.branches)
        wrong = Signal(config.branches)
        with m.If(unit.resolve.valid):
            m.d.comb += resolved.eq(1 << unit.resolve.branch)
            with m.If(unit.resolve.mispredicted):
                m.d.comb += wrong.eq(1 << unit.resolve.branch)

        offered_before = Signal()
        m.d.sync += offered_before.eq(unit.access.valid & ~unit.access.ready)
        offered = unit.access.valid & ~offered_before  # for the first time
        use = offered & (access.id == followed)
        answer = verdict.valid & (verdict.payload.id == followed)
        with m.If(use):
            m.d.sync += [
                owed.eq(~(access.branches & wrong).any()),
                taken.eq(unit.access.ready),
                unresolved.eq(access.branches & ~resolved),
            ]
        with m.Else():
            m.d.sync += unresolved.eq(unresolved & ~resolved)
            with m.If((unresolved & wrong).any() | (answer & verdict.ready)):
                m.d.sync += owed.eq(0)
            with m.If(offered_before & unit.access.ready & (access.id == followed)):
                m.d.sync += taken.eq(1)
        m.d.comb += [
            Assume(~(use & owed), "an id is free when it is offered"),
            Assert(~answer | owed, "a verdict for an access that is squashed, or answered, or new"),
            Assert(~answer | taken, "a verdict for an access that is not transferred yet"),
            Assert(~answer | (unresolved == 0), "a verdict before the branches are resolved"),
            Assert(
                verdict.valid | (verdict.payload.as_value() == 0),
                "the verdict's payload shows something while it is not valid",
            ),
        ]

        # The mark: bit 40 of the address, which means nothing to the barrier.
        marked_once = Signal()
        marked = Signal()  # the use that is owed is the marked one
        request = Signal(request_layout(config))
        mark = access.va[40]
        with m.If(use):
            m.d.sync += marked.eq(mark)
        with m.If(use & mark):
            m.d.sync += [marked_once.eq(1), request.eq(unit.access.payload)]
        m.d.comb += Assume(~(offered & mark) | (use & ~marked_once), "one use is marked")

        inside, done, findings = self._pipeline(m, request)
        whole = Mux(inside.two, done == 3, done == 1)

        # The marked access gets what was found out for it, and nobody else does.
        answered = answer & marked
        m.d.comb += [
            Assert(
                ~verdict.valid | (verdict.payload.wnr == answered),
                "a verdict shows the finding of another access",
            ),
            Assert(~answered | (inside.once & whole), "a verdict before the findings have come"),
            Assert(~(unit.idle & owed & taken & marked), "idle, and an access is owed its verdict"),
        ]
        late = Signal(range(WITHIN + 1))
        with m.If(
            owed
            & marked
            & taken
            & (unresolved == 0)
            & inside.alone
            & verdict.ready
            & unit.store_ready
            & ~unit.pause
        ):
            m.d.sync += late.eq(late + 1)
        with m.Else():
            m.d.sync += late.eq(0)
        m.d.comb += Assert(late != WITHIN, "an access is not answered")

        # What may be looked up, and when.
        speculates = Cat(
            request.access.op == op for op in (Op.LOAD, Op.STORE, Op.ATOMIC, Op.LDG)
        ).any()
        if config.barrier is Barrier.DELAY:
            speculates = Const(0)
            self._order(m, owed & marked & taken, unresolved & ~resolved, wrong, inside.once)
        m.d.comb += Assert(
            ~inside.enters | speculates | (owed & (unresolved == 0)),
            "an access is looked up before its branches are resolved",
        )
        if self.whole:
            self._fields(m, answered, inside, request, findings)

        # What must be able to happen, for all these assertions to mean something.
        was_speculative = Signal()
        squashed_once = Signal()
        with m.If(use):
            m.d.sync += was_speculative.eq(access.branches.any())
        with m.If((unresolved & wrong).any()):
            m.d.sync += squashed_once.eq(1)
        m.d.comb += [
            Cover(answered & was_speculative, "a speculative access is answered"),
            Cover(answered & ~was_speculative, "a certain access is answered"),
            Cover(answered & inside.two, "an access of two words is answered"),
            Cover(answer & squashed_once, "an id is answered after a squash of that id"),
        ]

    def _pipeline(self, m: Module, request: data.View) -> tuple:
        """Restrict what comes back from the pipeline; what is known of the marked access there."""
        unit = self.unit
        config = self.config
        word = data.StructLayout({"valid": 1, "ticket": ticket_layout(config), "marked": 1})
        words = [Signal(word, name=f"word{n}") for n in range(WORDS)]
        ages = [Signal(range(AGE + 1), name=f"age{n}") for n in range(WORDS)]
        inside = Signal(data.StructLayout({"enters": 1, "once": 1, "two": 1, "alone": 1}))
        ticket = unit.admitted.ticket
        enters_marked = unit.admitted_valid & unit.admitted.access.va[40]

        # Admitted accesses take free places. There are enough, or the door is shut.
        first, second = Signal(WORDS), Signal(WORDS)  # one-hot
        free = Cat(~place.valid for place in words)
        was_paused = Signal()
        m.d.comb += [
            first.eq(free & (~free + 1)),
            second.eq((free & ~first) & (~(free & ~first) + 1)),
            Assume(~unit.admitted_valid | (second != 0), "the pipeline pauses in time"),
            Assert(~unit.admitted_valid | ~was_paused, "an access is admitted in a pause"),
        ]
        m.d.sync += was_paused.eq(unit.pause)
        choice = Signal(range(WORDS))
        m.d.comb += choice.eq(AnySeq(len(choice)))
        coming = Signal(word)
        for number, (place, age) in enumerate(zip(words, ages, strict=True)):
            m.d.sync += age.eq(Mux(age == AGE, AGE, age + 1))
            for free_place, of_second in ((first, 0), (second, 1)):
                takes = unit.admitted_valid & free_place[number]
                with m.If(takes & (unit.admitted.two if of_second else 1)):
                    m.d.sync += [
                        age.eq(1),
                        place.valid.eq(1),
                        place.ticket.eq(ticket),
                        place.ticket.second.eq(of_second),
                        place.marked.eq(enters_marked),
                    ]
            m.d.comb += Assert(
                ~(unit.admitted_valid & place.valid)
                | (place.ticket.number != ticket.number)
                | (place.ticket.direct != ticket.direct),
                "a ticket is given away twice",
            )
            with m.If(unit.coming_valid & (choice == number)):
                m.d.comb += [
                    coming.eq(place),
                    Assume(place.valid & (age == AGE), "a finding comes for a word"),
                ]
                m.d.sync += place.valid.eq(0)
        announced, result = Signal(word), Signal(word)
        finding = unit.result.secret_finding
        m.d.sync += [announced.eq(coming), result.eq(announced)]
        m.d.comb += [
            Assume(~unit.coming_valid | (choice < WORDS), "of a word"),
            Assume(~unit.coming_valid | (unit.coming == coming.ticket), "with its ticket"),
            Assume(unit.result_valid == result.valid, "it comes when it was announced"),
            Assume(~result.valid | (unit.result.ticket == result.ticket), "and is the same"),
            Assume(finding.wnr == (result.valid & result.marked), "the mark of a finding"),
            Assume(
                ~result.valid | result.ticket.direct | (unit.result.secret_tags == 0),
                "tags have no place in the table",
            ),
            Assume(
                ~(result.valid & result.ticket.second) | ~(finding.exact | finding.tag.any()),
                "the first byte is in the first word",
            ),
            Assume(~finding.outcome.as_value().all(), "an outcome"),
            Assume(~unit.waiting_valid, "the ring is longer than this search"),
        ]

        # The marked access: whether it is inside, and its findings.
        done = Signal(2)
        findings = [Signal(finding_layout(), name=f"finding{n}") for n in range(2)]
        tags = Signal(config.word_bits)
        comes_marked = result.valid & result.marked
        m.d.comb += [
            inside.enters.eq(enters_marked),
            inside.alone.eq(
                ~Cat(place.valid for place in words).any()
                & ~announced.valid
                & ~result.valid
                & ~unit.access.valid
            ),
        ]
        with m.If(enters_marked):
            m.d.sync += [inside.once.eq(1), inside.two.eq(unit.admitted.two)]
        m.d.comb += Assert(~(enters_marked & inside.once), "an access is admitted twice")
        for number in range(2):
            with m.If(comes_marked & (result.ticket.second == number)):
                m.d.sync += [done[number].eq(1), findings[number].eq(finding)]
        with m.If(comes_marked):
            m.d.sync += tags.eq(unit.result.secret_tags)
        if self.whole:
            stores_tags = (unit.admitted.access.op == Op.STG) | (unit.admitted.access.op == Op.STGM)
            passed = unit.admitted
            for name in passed.access.shape().members:
                expected = 0 if name in ("branches", "tags") else request.access[name]
                m.d.comb += Assert(
                    ~enters_marked | (passed.access[name] == expected),
                    f"{name} of an access is changed on its way into the pipeline",
                )
            m.d.comb += [
                Assert(
                    ~enters_marked | (passed.regime == request.regime),
                    "the regime of an access is changed on its way into the pipeline",
                ),
                Assert(
                    unit.store == (unit.admitted_valid & stores_tags), "a tag store is not told"
                ),
                Assert(~unit.store | unit.store_ready, "a tag store has no place"),
            ]
            with m.If(enters_marked & stores_tags):
                for granule in range(config.word_granules):
                    shown = Mux(
                        passed.access.op == Op.STG,
                        request.access.tags[:4],
                        request.access.tags.word_select(granule, 4),
                    )
                    m.d.comb += Assert(
                        unit.secret_store_tags.word_select(granule, 4) == shown,
                        "the tags of a tag store are changed on their way",
                    )
        return inside, done, (*findings, tags)

    def _order(self, m: Module, here: Value, after: Value, wrong: Value, admitted: Value) -> None:
        """In the delaying form: an access that was certain when another one, which hangs on no
        branch, was offered, is admitted before that. The other is marked by bit 41."""
        unit = self.unit
        access = unit.access.payload.access
        offered_before = Signal()
        m.d.sync += offered_before.eq(unit.access.valid & ~unit.access.ready)
        younger = unit.access.valid & ~offered_before & access.va[41]
        once = Signal()
        behind = Signal()
        with m.If(younger):
            m.d.sync += [once.eq(1), behind.eq(here & (after == 0) & (wrong == 0) & ~admitted)]
            m.d.comb += Assume(
                ~once & ~access.branches.any() & ~access.va[40], "one younger access is marked"
            )
        m.d.comb += Assert(
            ~(unit.admitted_valid & unit.admitted.access.va[41] & behind & ~admitted),
            "a younger access overtakes one that became certain before it",
        )

    def _fields(
        self, m: Module, answered: Value, inside: data.View, request: data.View, findings: tuple
    ) -> None:
        """The verdict is that of the first word, unless that of the second is worse."""
        verdict = self.unit.verdict.payload
        first, second, tags = findings

        def faults(finding):
            return (finding.outcome != Outcome.PASS) & (finding.outcome != Outcome.ASYNC)

        shown = Signal(finding_layout())
        of_second = Signal()
        m.d.comb += shown.eq(first)
        with m.If(
            inside.two
            & ~faults(first)
            & (
                faults(second)
                | ((second.outcome == Outcome.ASYNC) & (first.outcome == Outcome.PASS))
            )
        ):
            m.d.comb += [shown.eq(second), of_second.eq(1)]
        va = request.access.va
        low = Mux(shown.exact & (request.access.op != Op.LDG), va[:4], 0)
        address = Cat(low, shown.index, (va[8:12] + of_second)[:4], va[12:])
        expected = (
            ("outcome", shown.outcome),
            ("far", Mux(faults(shown), address, 0)),
            ("tags", Mux(faults(shown), 0, tags | shown.tag)),
        )
        for name, value in expected:
            m.d.comb += Assert(
                ~answered | (verdict[name] == value), f"the verdict's {name} is another"
            )

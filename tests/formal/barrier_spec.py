"""Formal spec of the speculation barrier: one verdict for each access, never before its time.

A monitor outside the unit sees nothing but its handshakes. It follows one id, any id, through all
its uses; and one of these uses, any of them, it marks, to follow what is known of that access.
"""

from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume, Cat, Const, Cover, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from emte.rtl.barrier import SpeculationBarrier
from emte.rtl.config import Barrier, TagConfig
from emte.rtl.layouts import Op, access_layout, finding_layout, request_layout, ticket_layout
from unit_spec import UnitSpec

CERTAIN_IN_PIPELINE = 1
"""Certain accesses, other than the one that is followed, that the pipeline holds at a time."""


class SpeculationBarrierSpec(UnitSpec):
    """Every access that is not squashed gets one verdict, not before its branches are resolved.

    Parameters
    ----------
    config : :class:`TagConfig`
        Geometry; its barrier is not NONE, which promises nothing of this kind.
    lemmas : bool
        State what a proof for all time needs to know of the unit's registers.
    whole : bool
        Follow every field of the marked access and its outcome, not the mark alone.
    unit : :class:`amaranth.lib.wiring.Component`
        What is to be held to it, instead of the barrier of that geometry.

    Contract of the core, assumed:

    - an id is not in use when an access offers it; it is free in the cycle after its verdict, and
      in the cycle after the resolve that squashed its access;
    - tag stores and maintenance hang on no branch.

    Contract of the pipeline, assumed: each admitted ticket comes back once, after any time and in
    any order, in a later cycle, through ``checked`` or ``unchecked``; one that is speculative
    brings its slot back, any other its id.
    """

    def __init__(
        self,
        config: TagConfig,
        *,
        lemmas: bool = False,
        whole: bool = False,
        unit: wiring.Component | None = None,
    ) -> None:
        self.config = config
        self.lemmas = lemmas
        self.whole = whole
        super().__init__(unit or SpeculationBarrier(config))

    def specify(self, m: Module) -> None:
        unit = self.unit
        config = self.config
        access = unit.access.payload.access
        ticket = unit.admitted.payload.ticket
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

        must_be_certain = ~(
            (access.op == Op.LOAD)
            | (access.op == Op.STORE)
            | (access.op == Op.ATOMIC)
            | (access.op == Op.LDG)
            | (access.op == Op.LDGM)
        )
        m.d.comb += [
            Assume(~(use & owed), "an id is free when it is offered"),
            Assume(
                ~(offered & must_be_certain & access.branches.any()),
                "tag stores and maintenance hang on no branch",
            ),
            Assert(~answer | owed, "a verdict for an access that is squashed, or answered, or new"),
            Assert(~answer | taken, "a verdict for an access that is not transferred yet"),
            Assert(~answer | (unresolved == 0), "a verdict before the branches are resolved"),
            Assert(
                verdict.valid | (verdict.payload.as_value() == 0),
                "the verdict's payload shows something while it is not valid",
            ),
        ]

        # The mark: bit 0 of the address, which means nothing to the barrier.
        marked_once = Signal()
        marked = Signal()  # the use that is owed is the marked one
        request = Signal(request_layout(config))
        mark = access.va[0]
        with m.If(use):
            m.d.sync += marked.eq(mark)
        with m.If(use & mark):
            m.d.sync += [marked_once.eq(1), request.eq(unit.access.payload)]
        m.d.comb += Assume(~(offered & mark) | (use & ~marked_once), "one use is marked")

        # The pipeline: tickets that are in it.
        slots = Signal(config.held)  # entries that it owes an outcome
        certain = Signal()  # the followed access, certain
        others = Signal(range(CERTAIN_IN_PIPELINE + 1))
        marked_inside = Signal()
        marked_back = Signal()
        marked_ticket = Signal(ticket_layout(config))
        marked_finding = Signal(finding_layout())

        admitted = unit.admitted.valid & unit.admitted.ready
        admitted_marked = admitted & unit.admitted.payload.access.va[0]
        with m.If(admitted & ticket.speculative):
            m.d.sync += slots.bit_select(ticket.slot, 1).eq(1)
        with m.If(admitted & ~ticket.speculative & (ticket.id == followed)):
            m.d.sync += certain.eq(1)
        with m.If(admitted_marked):
            m.d.sync += [marked_inside.eq(1), marked_ticket.eq(ticket)]
            m.d.comb += Assert(ticket.id == followed, "lemma 2: the marked access has another id")
            if self.whole:
                passed = unit.admitted.payload
                stores_tags = (passed.access.op == Op.STG) | (passed.access.op == Op.STGM)
                for name in request_layout(config)["access"].shape.members:
                    means_something = stores_tags if name == "tags" else Const(1)
                    m.d.comb += Assert(
                        ~means_something | (passed.access[name] == request.access[name]),
                        f"{name} of an access is changed on its way into the pipeline",
                    )
                m.d.comb += Assert(
                    passed.control == request.control,
                    "the control bits of an access are changed on its way into the pipeline",
                )
        m.d.comb += [
            Assume(~admitted | (others < CERTAIN_IN_PIPELINE), "the pipeline is not endless"),
            Assert(
                ~(admitted & ticket.speculative & slots.bit_select(ticket.slot, 1)),
                "lemma 1: an entry is given away twice",
            ),
            Assert(
                ~(admitted & ~ticket.speculative & (ticket.id == followed) & certain),
                "lemma 6: an access is admitted twice",
            ),
            Assert(~admitted | (ticket.id == unit.admitted.payload.access.id), "a ticket's id"),
        ]

        def outcome(source: stream.Interface, name: str):
            """Restrict an outcome to tickets that are inside; is it one of the others?"""
            back = source.payload.ticket
            other = ~back.speculative & (back.id != followed)
            own = marked_inside & Mux(
                back.speculative,
                marked_ticket.speculative & (back.slot == marked_ticket.slot),
                ~marked_ticket.speculative & ~other,
            )
            with m.If(source.valid):
                with m.If(back.speculative):
                    m.d.comb += Assume(
                        slots.bit_select(back.slot, 1), f"{name}: the entry is owed an outcome"
                    )
                with m.Elif(other):
                    m.d.comb += Assume(others != 0, f"{name}: another access is inside")
                with m.Else():
                    m.d.comb += Assume(certain, f"{name}: the followed access is inside")
                # Bit 0 of an address that the barrier carries marks the finding.
                m.d.comb += Assume(
                    source.payload.secret_finding.far[0] == own, f"{name}: the mark of its finding"
                )
            with m.If(source.valid & source.ready):
                with m.If(back.speculative):
                    m.d.sync += slots.bit_select(back.slot, 1).eq(0)
                with m.Elif(~other):
                    m.d.sync += certain.eq(0)
                with m.If(own):
                    m.d.sync += [
                        marked_inside.eq(0),
                        marked_back.eq(1),
                        marked_finding.eq(source.payload.secret_finding),
                    ]
            return other

        checked, unchecked = unit.checked, unit.unchecked
        checked_other = outcome(checked, "checked")
        unchecked_other = outcome(unchecked, "unchecked")
        m.d.sync += others.eq(
            others
            + (admitted & ~ticket.speculative & (ticket.id != followed))
            - (checked.valid & checked.ready & checked_other)
            - (unchecked.valid & unchecked.ready & unchecked_other)
        )
        with m.If(checked.valid & unchecked.valid):
            first, second = checked.payload.ticket, unchecked.payload.ticket
            m.d.comb += Assume(
                Mux(
                    first.speculative & second.speculative,
                    first.slot != second.slot,
                    first.speculative
                    | second.speculative
                    | Mux(
                        checked_other & unchecked_other,
                        others > 1,
                        checked_other != unchecked_other,
                    ),
                ),
                "a ticket comes back once",
            )

        # The marked access gets the outcome that came back for it, and nobody else does.
        m.d.comb += Assert(
            ~verdict.valid | (verdict.payload.far[0] == (answer & marked)),
            "a verdict shows the finding of another access",
        )
        with m.If(answer & marked):
            m.d.comb += Assert(marked_back, "a verdict before the outcome came back")
            if self.whole:
                for name in ("outcome", "far", "wnr", "tags"):
                    m.d.comb += Assert(
                        verdict.payload[name] == marked_finding[name],
                        f"the verdict's {name} is another access's",
                    )

        m.d.comb += Assert(
            ~(unit.idle & owed & taken & marked), "idle, and an access is owed its verdict"
        )

        if self.lemmas:
            # Lemmas: where in the unit an access is that is owed its verdict, and that entries and
            # the count of accesses in the pipeline are what the pipeline has.
            def place(path: str, valid: Value, va: Value) -> Value:
                """Is the marked access in a place of the queue or the table?"""
                return (
                    valid
                    & va[0]
                    & ~self.see(m, f"{path}_squashed", 1)
                    & (self.see(m, f"{path}_branches", config.branches) == unresolved)
                )

            places = [unit.admitted.valid & unit.admitted.payload.access.va[0]]
            for path, valid in (
                ("queue.head", "queue.o__valid"),
                ("queue.tail", "queue.tail_valid"),
            ):
                va = self.see(m, f"{path}_access_va", 64)
                places.append(place(path, self.see(m, valid, 1), va))
            entries = self.see(m, "table.taken", config.held)
            done = self.see(m, "table.done", config.held)
            if config.barrier is Barrier.DELAY:
                for number in range(config.held):
                    # A row is a request without its 64 bits of `tags`, which come after `va`.
                    row = self.see(m, f"waiting[{number}]", request_layout(config).size - 64)
                    va = row[access_layout(config)["va"].offset :]
                    places.append(place(f"table.entry{number}", entries[number], va))
            resolved_since = self.see(m, "queue.resolved_since", config.branches)
            inside = self.see(m, "inside", range(config.held + 32))
            marked_slot = marked_ticket.slot
            m.d.comb += [
                Assert(
                    ~(owed & ~taken & marked)
                    | (
                        ~self.see(m, "queue.offered_squashed", 1)
                        & ((access.branches & ~resolved_since) == unresolved)
                    ),
                    "lemma 4: an access is lost at the door",
                ),
                Assert(
                    ~(owed & taken & marked & ~marked_inside & ~marked_back) | Cat(places).any(),
                    "lemma 5: an access is lost on its way into the pipeline",
                ),
                Assert(
                    ~marked_inside
                    | Mux(
                        marked_ticket.speculative,
                        slots.bit_select(marked_slot, 1),
                        certain & (marked_ticket.id == followed),
                    ),
                    "lemma 8: an access is lost in the pipeline",
                ),
                Assert(
                    ~(owed & marked & marked_back)
                    | answer
                    | (
                        marked_ticket.speculative
                        & entries.bit_select(marked_slot, 1)
                        & done.bit_select(marked_slot, 1)
                    ),
                    "lemma 3: an outcome is lost on its way out of the pipeline",
                ),
                Assert(
                    inside
                    == sum(slots[number] for number in range(config.held)) + certain + others,
                    "lemma 7: the count of accesses in the pipeline is wrong",
                ),
            ]

        # What must be able to happen, for all these assertions to mean something.
        was_speculative = Signal()
        squashed_once = Signal()
        with m.If(use):
            m.d.sync += was_speculative.eq(access.branches.any())
        with m.If((unresolved & wrong).any()):
            m.d.sync += squashed_once.eq(1)
        m.d.comb += [
            Cover(answer & marked & was_speculative, "a speculative access is answered"),
            Cover(answer & ~was_speculative, "a certain access is answered"),
            Cover(answer & squashed_once, "an id is answered after a squash of that id"),
        ]

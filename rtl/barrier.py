"""The speculation barrier: the only unit that knows branches."""

from typing import Any

from amaranth.hdl import Assert, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .branch_table import BranchTable
from .config import Barrier, TagConfig
from .door import Door
from .layouts import (
    Op,
    Outcome,
    admitted_layout,
    finding_layout,
    request_layout,
    resolve_signature,
    result_layout,
    tfsr_layout,
    ticket_layout,
    verdict_layout,
)
from .tag_array import ContextArray
from .verdict_queue import VerdictQueue, is_fault

__all__ = ["SpeculationBarrier"]

RING_BITS = 3
"""Upper bits of the numbers of direct accesses that tell how far the newest is ahead."""

PATIENCE = 7
"""Cycles that an entry which may leave waits for one without a direct finding."""


def _context_layout(config: TagConfig) -> data.StructLayout:
    return data.StructLayout({"va": 64, "id": config.id_bits, "el0": 1})


def _second_layout() -> data.StructLayout:
    """A finding of the second tag word: the rest of its fields is 0."""
    names = ("outcome", "index", "wnr")
    return data.StructLayout({name: finding_layout()[name].shape for name in names})


def _parked_layout(config: TagConfig) -> data.StructLayout:
    """A request without tags, which only tag stores have, and branches, which the table knows."""
    request = request_layout(config)
    fields = {name: field.shape for name, field in request["access"].shape}
    del fields["tags"], fields["branches"]
    return data.StructLayout(
        {
            "access": data.StructLayout(fields),
            "regime": request["regime"].shape,
            "two": 1,
        }
    )


def _assign(to: Any, of: Any) -> list:
    """Statements that assign those fields of a struct that both have."""
    return [to[name].eq(of[name]) for name in to.shape().members if name in of.shape().members]


class SpeculationBarrier(wiring.Component):
    """Admits accesses to the pipeline, and holds every outcome until it may be seen.

    An access is *speculative* while it hangs on an unresolved branch, and *certain* from then on.
    An outcome becomes a verdict only once its access is certain; that of a squashed access is
    dropped. The forms of ``config.barrier`` differ in what a speculative access may do meanwhile:

    ``OBLIVIOUS``
        It is admitted, and takes an entry of the table. Its findings go into the entry, and
        nothing looks at them there until it leaves. (LDGM alone waits at the door until it is
        certain: its 64 bits have no place in the table.)
    ``DELAY``
        It waits in the table, whole, and is admitted when it is certain.
    ``NONE``
        Branches are ignored. Each access gets a verdict at once, also one that turns out to be
        squashed. This leaks tags; it exists to measure the price of the other forms.

    An access that is certain when it is admitted, and touches one tag word, is *direct*: its
    finding is a verdict at once. One of two words takes an entry of its own, kept for such, that
    joins the findings. So a certain access never waits for what speculative ones hold; but it waits
    behind a speculative one that waits for an entry.

    An access is admitted in the cycle after its transfer at the earliest. A verdict is offered two
    cycles after the finding of a direct access came; from the table eight or nine after its last
    finding was announced, or its last branch resolved, if nothing holds it up. Direct accesses and
    their verdicts are sustained at one per cycle.

    Members
    -------
    access : ``In(stream.Signature(request_layout(config)))``
        Accesses from the core.
    resolve : ``In(resolve_signature(config))``
        The branch that is resolved in this cycle.
    admitted_valid : ``Out(1)``, admitted : ``Out(admitted_layout(config))``
        An access enters the pipeline, in this cycle. One of two tag words also takes the slot of
        the next cycle. ``access.branches`` and ``access.tags`` are 0.
    pause : ``In(1)``
        Nothing is admitted in the next cycle.
    store_ready : ``In(1)``, store_slot : ``In(config.store_bits)``
        In the next cycle there is place for the tags of a tag store; where it is in this one.
    store : ``Out(1)``, secret_store_tags : ``Out(64)``
        A tag store is admitted; its tags, at their granules.
    coming_valid : ``In(1)``, coming : ``In(ticket_layout(config))``
        Two cycles later the finding with this ticket comes. Not before seven cycles after the
        admission.
    result_valid : ``In(1)``, result : ``In(result_layout(config))``
        What was found out.
    waiting_valid : ``In(1)``, waiting : ``In(ticket_layout(config))``
        Ticket of the probe that waits longest for its line.
    room : ``Out(1)``
        There is room for the verdicts of what is replayed; a register.
    verdict : ``Out(stream.Signature(verdict_layout(config)))``
        Outcomes that the core may see, in any order. The payload is 0 while not valid.
    tfsr : ``Out(tfsr_layout())``
        Sticky asynchronous faults, set in the cycle after the transfer of an ASYNC verdict.
    idle : ``Out(1)``
        No access is waiting, in the pipeline or at ``verdict``.
    """

    access: stream.Interface
    resolve: wiring.PureInterface
    admitted_valid: Signal
    admitted: data.View
    pause: Signal
    store_ready: Signal
    store_slot: Signal
    store: Signal
    secret_store_tags: Signal
    coming_valid: Signal
    coming: data.View
    result_valid: Signal
    result: data.View
    waiting_valid: Signal
    waiting: data.View
    room: Signal
    verdict: stream.Interface
    tfsr: data.View
    idle: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "access": In(stream.Signature(request_layout(config))),
                "resolve": In(resolve_signature(config)),
                "admitted_valid": Out(1),
                "admitted": Out(admitted_layout(config)),
                "pause": In(1),
                "store_ready": In(1),
                "store_slot": In(config.store_bits),
                "store": Out(1),
                "secret_store_tags": Out(config.word_bits),
                "coming_valid": In(1),
                "coming": In(ticket_layout(config)),
                "result_valid": In(1),
                "result": In(result_layout(config)),
                "waiting_valid": In(1),
                "waiting": In(ticket_layout(config)),
                "room": Out(1),
                "verdict": Out(stream.Signature(verdict_layout(config))),
                "tfsr": Out(tfsr_layout()),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        form = config.barrier

        # What was resolved in the last cycle, one-hot.
        resolving = Signal(config.branches)
        resolved = Signal(config.branches)
        wrong = Signal(config.branches)
        m.d.comb += resolving.bit_select(self.resolve.branch, 1).eq(self.resolve.valid)
        m.d.sync += [
            resolved.eq(resolving),
            wrong.eq(resolving & self.resolve.mispredicted.replicate(config.branches)),
        ]

        m.submodules.door = door = Door(config)
        wiring.connect(m, wiring.flipped(self.resolve), door.resolve)
        m.d.comb += [
            door.i.valid.eq(self.access.valid),
            door.i.payload.eq(self.access.payload),
            self.access.ready.eq(door.i.ready),
            door.resolved.eq(resolved),
            door.wrong.eq(wrong),
        ]
        if form is Barrier.NONE:
            m.d.comb += door.i.payload.access.branches.eq(0)

        # The table: for accesses that are admitted, or parked, before they are certain.
        m.submodules.table = table = BranchTable(config, parks=form is Barrier.DELAY)
        m.d.comb += [
            table.resolving.eq(resolving),
            table.resolved.eq(resolved),
            table.wrong.eq(wrong),
            table.branches.eq(door.branches),
            table.squashed.eq(door.squashed),
            table.two.eq(door.two),
        ]

        # The access that enters next.
        request = Signal(request_layout(config))
        speculative = Signal()
        two = Signal()
        stores_tags = Signal()
        direct_free = Signal(init=1)  # there is place for a certain access of one tag word
        pair_free = Signal(init=1)  # and of two
        inside = Signal()  # an access is here
        opens = Signal()  # in the next cycle an access may be admitted
        m.d.comb += [
            opens.eq(~self.pause & ~(self.admitted_valid & two)),
            request.eq(door.o),
            speculative.eq(door.speculative),
            two.eq(door.two),
            stores_tags.eq(door.tag_store),
            inside.eq(door.valid | door.leave),
            door.one_free.eq(direct_free),
            door.two_free.eq(pair_free),
            door.store_free.eq(self.store_ready),
            door.certain_free.eq(opens),
            door.speculative_free.eq(opens & table.stays_available),
            table.allocate.eq(door.leave & door.speculative),
            self.admitted_valid.eq(door.leave),
        ]
        if form is Barrier.DELAY:
            # A speculative access is parked in the table. From there it moves into a register of
            # its own, and is admitted before the one at the door: which may be a tag store to the
            # same granule, sent in the cycle of the resolve or later.
            layout = _parked_layout(config)
            m.submodules.parked = parked = memory.Memory(shape=layout, depth=config.held, init=[])
            write, read = parked.write_port(), parked.read_port(domain="comb")
            unparked = Signal(layout, reset_less=True)
            unparked_valid = Signal()
            unparked_new = Signal()
            unparked_squashed = Signal()
            unparked_goes = Signal()
            unparked_leaves = Signal()
            open_ = Signal()
            m.d.comb += [
                write.addr.eq(table.slot),
                *_assign(write.data.access, door.o.access),
                write.data.regime.eq(door.o.regime),
                write.data.two.eq(door.two),
                write.en.eq(table.available),
                read.addr.eq(table.picked_slot),
                unparked_squashed.eq(unparked_new & table.dropped),
                unparked_goes.eq(
                    unparked_valid
                    & ~unparked_squashed
                    & open_
                    & Mux(unparked.two, pair_free, direct_free)
                ),
                unparked_leaves.eq(unparked_goes | unparked_squashed),
                table.release.eq(table.picked & (~unparked_valid | unparked_leaves)),
                door.speculative_free.eq(table.stays_available),
                door.certain_free.eq(opens & ~(unparked_valid | table.picked | table.certain)),
                self.admitted_valid.eq((door.leave & ~door.speculative) | unparked_goes),
                inside.eq(door.valid | door.leave | unparked_valid),
                speculative.eq(0),
            ]
            m.d.sync += [
                open_.eq(opens),
                unparked_new.eq(table.release),
                unparked_valid.eq(table.release | (unparked_valid & ~unparked_leaves)),
                Assert(
                    ~(unparked_valid & door.leave & ~door.speculative),
                    "an access at the door goes before one that was parked",
                ),
            ]
            with m.If(table.release):
                m.d.sync += unparked.eq(read.data)
            with m.If(unparked_valid):
                m.d.comb += [
                    *_assign(request.access, unparked.access),
                    request.regime.eq(unparked.regime),
                    two.eq(unparked.two),
                    stores_tags.eq(0),
                ]

        # A certain access of one word needs room for its verdict, and a number of a ring that must
        # not overtake the oldest one that still waits for its line. One of two words needs the
        # entry that is kept for such.
        m.submodules.verdicts = verdicts = VerdictQueue(config)
        ring = Signal(config.ticket_bits)
        ring_top = ring[-RING_BITS:]
        oldest = Signal(RING_BITS)
        ahead = Signal(RING_BITS)
        starved = Signal()
        with m.If(~self.waiting_valid):
            m.d.sync += oldest.eq(ring_top)
        with m.Elif(self.waiting.direct):
            m.d.sync += oldest.eq(self.waiting.number[-RING_BITS:])
        m.d.comb += [self.room.eq(verdicts.room), ahead.eq(ring_top - oldest)]
        m.d.sync += direct_free.eq(verdicts.room & ~starved & (ahead < (1 << RING_BITS) - 2))

        direct = Signal()
        m.d.comb += direct.eq(~speculative & ~two)
        with m.If(self.admitted_valid):  # that others leave numbers out is simpler, and no harm
            m.d.sync += ring.eq(ring + 1)
        number = Signal(config.ticket_bits)
        with m.If(speculative):
            m.d.comb += number.eq(table.slot)
        with m.Elif(two):
            m.d.comb += number.eq(config.held)
        with m.Else():
            m.d.comb += number.eq(ring)
        m.d.comb += [
            self.admitted.access.eq(request.access),
            self.admitted.access.tags.eq(0),
            self.admitted.regime.eq(request.regime),
            self.admitted.ticket.number.eq(number),
            self.admitted.ticket.direct.eq(direct),
            self.admitted.two.eq(two),
            self.admitted.store.eq(self.store_slot),
            self.store.eq(self.admitted_valid & stores_tags),
            # One bit tells STGM from STG.
            self.secret_store_tags.eq(
                Mux(
                    Value.cast(door.o.access.op)[1],
                    door.o.access.tags,
                    door.o.access.tags[: config.tag_bits].replicate(config.word_granules),
                )
            ),
        ]

        # The context of the access, to which the verdict will need to refer.
        m.submodules.contexts = contexts = ContextArray(config, _context_layout(config).size)
        context_write = Signal(_context_layout(config))
        m.d.comb += [
            context_write.va.eq(request.access.va),
            context_write.id.eq(request.access.id),
            context_write.el0.eq(request.access.el0),
            contexts.write.eq(self.admitted_valid),
            contexts.write_address.eq(Cat(number, direct)),
            contexts.write_data.eq(context_write),
        ]
        with m.If(request.access.op == Op.LDG):
            m.d.comb += context_write.va[:4].eq(0)

        # Findings of the certain access of two words.
        finding = self.result.secret_finding
        is_finding = self.result_valid & ~self.result.ticket.direct
        of_second = self.result.ticket.second
        secret_pair_first = Signal(finding_layout(), reset_less=True)
        secret_pair_second = Signal(_second_layout(), reset_less=True)
        pair_done = Signal(2)
        pair_ready = Signal()
        pair_leaves = Signal()
        with m.If(is_finding & self._is_pair(self.result.ticket)):
            with m.If(of_second):
                m.d.sync += [*_assign(secret_pair_second, finding), pair_done[1].eq(1)]
            with m.Else():
                m.d.sync += [*_assign(secret_pair_first, finding), pair_done[0].eq(1)]
        with m.If(self.admitted_valid & ~speculative & two):
            m.d.sync += pair_free.eq(0)
        with m.If(pair_leaves):
            m.d.sync += [pair_free.eq(1), pair_done.eq(0), pair_ready.eq(0)]
        with m.Elif(pair_done.all()):
            m.d.sync += pair_ready.eq(1)

        # First stage of the way out: whose context is read? That of a direct access whose finding
        # comes, else that of an entry. Its findings are there by then.
        picked = table.picked if form is Barrier.OBLIVIOUS else Const(0)
        comes_direct = Signal()
        leaves = Signal()
        patience = Signal(range(PATIENCE + 1))
        m.d.comb += [
            comes_direct.eq(self.coming_valid & self.coming.direct),
            leaves.eq(~comes_direct & verdicts.room & (pair_ready | picked)),
            pair_leaves.eq(leaves & pair_ready),
            contexts.address.eq(
                Mux(
                    comes_direct,
                    Cat(self.coming.number, Const(1, 1)),
                    Mux(pair_ready, config.held, table.picked_slot),
                )
            ),
        ]
        m.d.sync += starved.eq(patience == PATIENCE)
        with m.If(leaves):
            m.d.sync += patience.eq(0)
        with m.Elif((pair_ready | picked) & (patience != PATIENCE)):
            m.d.sync += patience.eq(patience + 1)

        first: Value = secret_pair_first
        second: Value = secret_pair_second
        is_double: Value = Const(1)
        if form is Barrier.OBLIVIOUS:
            first, second, is_double = self._add_findings(m, table, two)
            first = Mux(pair_ready, secret_pair_first, first)
            second = Mux(pair_ready, secret_pair_second, second)
            is_double |= pair_ready
            m.d.comb += table.release.eq(leaves & ~pair_ready)
        s1_valid = Signal()
        s1_pair = Signal()
        s1_direct = Signal()
        secret_s1_first = Signal(finding_layout(), reset_less=True)
        secret_s1_second = Signal(_second_layout(), reset_less=True)
        m.d.sync += [
            s1_valid.eq(leaves),
            s1_pair.eq(pair_ready),
            s1_direct.eq(comes_direct),
            secret_s1_first.eq(first),
            secret_s1_second.eq(Mux(is_double, second, 0)),
        ]

        # Second stage: the findings of an entry become one.
        s2_valid = Signal()
        s2_direct = Signal()
        secret_joined = Signal(finding_layout(), reset_less=True)
        secret_fault = Signal(reset_less=True)
        secret_of_second = Signal(reset_less=True)
        first_faults = is_fault(secret_s1_first.outcome)
        second_faults = is_fault(secret_s1_second.outcome)
        m.d.sync += [
            s2_valid.eq(s1_valid & (s1_pair | ~table.dropped)),
            s2_direct.eq(s1_direct),
            secret_joined.eq(secret_s1_first),
            secret_fault.eq(first_faults | second_faults),
            secret_of_second.eq(~first_faults & second_faults),
        ]
        with m.If(
            second_faults & ~first_faults
            | (secret_s1_second.outcome == Outcome.ASYNC)
            & (secret_s1_first.outcome == Outcome.PASS)
        ):
            m.d.sync += [
                *_assign(secret_joined, secret_s1_second),
                secret_joined.exact.eq(0),
                secret_joined.tag.eq(0),
            ]

        # Third stage: finding and context become the verdict.
        shown = Signal(finding_layout())
        value = Signal(64)
        fault = Signal()
        context = data.View(_context_layout(config), contexts.data)
        m.d.comb += [
            shown.eq(Mux(s2_direct, finding, secret_joined)),
            fault.eq(Mux(s2_direct, is_fault(finding.outcome), secret_fault)),
            value.eq(self.result.secret_tags & s2_direct.replicate(64)),
            value[:4].eq((self.result.secret_tags[:4] & s2_direct.replicate(4)) | shown.tag),
            verdicts.push.eq(s2_direct | s2_valid),
            verdicts.released.value.eq(value),
            verdicts.released.id.eq(context.id),
            verdicts.released.outcome.eq(shown.outcome),
            verdicts.released.wnr.eq(shown.wnr),
            verdicts.released.el0.eq(context.el0),
            verdicts.released.half.eq(context.va[55]),
        ]
        with m.If(fault):
            m.d.comb += verdicts.released.value.eq(
                Cat(
                    context.va[:4] & shown.exact.replicate(4),
                    shown.index,
                    (context.va[8:12] + (secret_of_second & ~s2_direct))[:4],
                    context.va[12:],
                )
            )
        wiring.connect(m, verdicts.verdict, wiring.flipped(self.verdict))
        m.d.comb += self.tfsr.eq(verdicts.tfsr)

        # Direct accesses in the pipeline. Those of the last cycle count from the next one on.
        enters = Signal()
        count = Signal(config.ticket_bits)
        m.d.sync += [
            enters.eq(self.admitted_valid & direct),
            count.eq(count + enters - s2_direct),
            Assert(
                ~s2_direct | (count != 0),
                "a finding comes for an access that is not inside",
            ),
            Assert(
                s2_direct == (self.result_valid & self.result.ticket.direct),
                "a finding does not come when it is announced",
            ),
        ]
        m.d.comb += self.idle.eq(
            ~inside
            & ~enters
            & (count == 0)
            & pair_free
            & table.empty
            & ~(s1_valid | s2_valid)
            & verdicts.empty
        )
        return m

    def _is_pair(self, ticket: data.View) -> Value:
        """Is a ticket, which is not direct, that of the certain access of two words?"""
        held = self.config.held
        return ticket.number[: held.bit_length()] == held

    def _add_findings(self, m: Module, table: BranchTable, two: Value) -> tuple:
        """Memories for findings of the table's entries; returns those of the picked entry."""
        config = self.config
        ticket = self.result.ticket
        finds = self.result_valid & ~ticket.direct & ~self._is_pair(ticket)
        m.submodules.secret_firsts = firsts = memory.Memory(
            shape=finding_layout(), depth=config.held, init=[]
        )
        m.submodules.secret_seconds = seconds = memory.Memory(
            shape=_second_layout(), depth=config.held, init=[]
        )
        m.submodules.doubles = doubles = memory.Memory(shape=1, depth=config.held, init=[])
        reads = []
        for findings in (firsts, seconds, doubles):
            reads.append(findings.read_port(domain="comb"))
            m.d.comb += reads[-1].addr.eq(table.picked_slot)
        for findings, of_second in ((firsts, 0), (seconds, 1)):
            write = findings.write_port()
            m.d.comb += [
                write.addr.eq(ticket.number),
                *_assign(write.data, self.result.secret_finding),
                write.en.eq(finds & (ticket.second == of_second)),
            ]
        write = doubles.write_port()
        m.d.comb += [
            write.addr.eq(table.slot),
            write.data.eq(two),
            write.en.eq(table.available),
            table.finish.eq(self.coming_valid & ~self.coming.direct & ~self._is_pair(self.coming)),
            table.finish_slot.eq(self.coming.number),
        ]
        return tuple(read.data for read in reads)

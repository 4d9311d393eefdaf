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

__all__ = ["SpeculationBarrier"]

VERDICTS = 16
"""Verdicts that wait for the core: one block of distributed RAM."""

UNDER_WAY = 12
"""Cycles from the admission of a direct access to the count of its verdict, and one more."""

RING_MARGIN = 48
"""Direct accesses between the door and the waiting list, several times over."""

PATIENCE = 8
"""Cycles that an entry which may be seen waits for one without a direct finding."""


def _context_layout(config: TagConfig) -> data.StructLayout:
    return data.StructLayout({"va": 64, "id": config.id_bits, "el0": 1})


def _queued_layout(config: TagConfig) -> data.StructLayout:
    """A verdict, with what TFSR needs to know of it. ``value`` is the address or the tags."""
    return data.StructLayout(
        {
            "value": 64,
            "id": config.id_bits,
            "outcome": Outcome,
            "wnr": 1,
            "el0": 1,
            "half": 1,
        }
    )


def _parked_layout(config: TagConfig) -> data.StructLayout:
    """A request without ``tags``: tag stores are never speculative, and so are never parked."""
    request = request_layout(config)
    access = {name: field.shape for name, field in request["access"].shape if name != "tags"}
    return data.StructLayout(
        {"access": data.StructLayout(access), "regime": request["regime"].shape}
    )


def _assign(to: Any, of: Any) -> list:
    """Statements that assign a request, field by field, without ``tags``."""
    names = [name for name in of.access.shape().members if name != "tags"]
    fields = [getattr(to.access, name).eq(getattr(of.access, name)) for name in names]
    return [*fields, to.regime.eq(of.regime)]


def _is_fault(outcome: Value) -> Value:
    return (outcome != Outcome.PASS) & (outcome != Outcome.ASYNC)


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

    An access that is certain when it is admitted, and covers one tag word, is *direct*: its finding
    is a verdict at once. One of two words takes an entry of its own, kept for such, that joins the
    findings. So a certain access never waits for what speculative ones hold, but it waits behind a
    speculative one that waits for an entry.

    An access is admitted in the cycle after its transfer at the earliest; a verdict is offered two
    cycles after its finding came, or, from the table, four to eight cycles after the later of the
    finding and the resolve. Accesses and verdicts are sustained at one per cycle.

    Members
    -------
    access : ``In(stream.Signature(request_layout(config)))``
        Accesses from the core.
    resolve : ``In(resolve_signature(config))``
        The branch that is resolved in this cycle.
    admitted_valid : ``Out(1)``, admitted : ``Out(admitted_layout(config))``
        An access enters the pipeline, in this cycle.
    two : ``In(1)``
        It covers two tag words, and takes the slot of the next cycle too. In the same cycle.
    pause : ``In(1)``
        Nothing is admitted in this cycle.
    store_ready : ``In(1)``, store_slot : ``In(config.store_bits)``
        The store buffer's place for the tags of a tag store.
    store : ``Out(1)``, secret_store_tags : ``Out(64)``
        A tag store is admitted; its tags, at their granules.
    coming_valid : ``In(1)``, coming : ``In(ticket_layout(config))``
        Two cycles later comes the finding with this ticket.
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
    two: Signal
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
                "two": In(1),
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

        # What was resolved in the last cycle.
        resolved = Signal(config.branches)
        wrong = Signal(config.branches)
        if form is not Barrier.NONE:
            bit = Signal(config.branches)
            m.d.comb += bit.bit_select(self.resolve.branch, 1).eq(self.resolve.valid)
            m.d.sync += [
                resolved.eq(bit),
                wrong.eq(bit & self.resolve.mispredicted.replicate(config.branches)),
            ]

        m.submodules.door = door = Door(config)
        wiring.connect(m, door.i, wiring.flipped(self.access))
        m.d.comb += [door.resolved.eq(resolved), door.wrong.eq(wrong)]
        m.submodules.table = table = BranchTable(config)
        m.d.comb += [table.resolved.eq(resolved), table.wrong.eq(wrong)]

        # The access that enters next: in the delaying form, one that was parked goes first.
        request = Signal(request_layout(config))
        valid = Signal()
        speculative = Signal()
        squashed = Signal()
        m.d.comb += [
            request.eq(door.o),
            valid.eq(door.valid),
            speculative.eq(door.speculative if form is not Barrier.NONE else 0),
            squashed.eq(door.squashed if form is not Barrier.NONE else 0),
        ]
        unparked_valid = Signal()
        if form is Barrier.DELAY:
            m.submodules.parked = parked = memory.Memory(
                shape=_parked_layout(config), depth=config.held, init=[]
            )
            parked_write = parked.write_port()
            parked_read = parked.read_port(domain="comb")
            unparked = Signal(_parked_layout(config))
            m.d.comb += [
                parked_write.addr.eq(table.slot),
                *_assign(parked_write.data, door.o),
                parked_write.en.eq(table.allocate),
                parked_read.addr.eq(table.picked_slot),
            ]
            with m.If(unparked_valid):
                m.d.comb += [
                    *_assign(request, unparked),
                    request.access.tags.eq(0),
                    valid.eq(1),
                    speculative.eq(0),
                    squashed.eq(0),
                ]
            with m.If(~unparked_valid | self.admitted_valid):
                m.d.comb += table.release.eq(table.picked)
                m.d.sync += [unparked_valid.eq(table.picked), unparked.eq(parked_read.data)]

        op = request.access.op
        tag_store = (op == Op.STG) | (op == Op.STGM)
        alone = self.two  # certain, it takes the entry that is kept for such
        shut = Signal()  # the slot is that of a second word
        open_ = Signal()
        m.d.comb += open_.eq(
            valid & ~squashed & ~self.pause & ~shut & (~tag_store | self.store_ready)
        )
        m.d.sync += shut.eq(self.admitted_valid & self.two)

        # Direct accesses have numbers from a ring, which must not overtake the oldest one that
        # still waits for its line.
        ring = Signal(config.ticket_bits)
        oldest = Signal(config.ticket_bits)
        ahead = Signal(config.ticket_bits)
        ring_free = Signal()
        starved = Signal()
        pair_free = Signal(init=1)
        with m.If(~self.waiting_valid):
            m.d.sync += oldest.eq(ring)
        with m.Elif(self.waiting.direct):
            m.d.sync += oldest.eq(self.waiting.number)
        m.d.sync += [
            ahead.eq(ring - oldest),
            ring_free.eq(ahead < (1 << config.ticket_bits) - RING_MARGIN),
        ]
        direct = Signal()
        goes_certain = Signal()
        m.d.comb += [
            direct.eq(~speculative & ~alone),
            goes_certain.eq(
                open_ & ~speculative & self.room & ~starved & Mux(alone, pair_free, ring_free)
            ),
        ]

        # What the form does with a speculative access.
        parks = Signal()
        goes_speculative = Signal()
        m.d.comb += [
            table.branches.eq(door.branches),
            table.squashed.eq(door.squashed_after),
            self.admitted_valid.eq(goes_certain | goes_speculative),
        ]
        if form is Barrier.OBLIVIOUS:
            m.d.comb += [
                goes_speculative.eq(open_ & speculative & table.available & (op != Op.LDGM)),
                table.allocate.eq(goes_speculative),
                table.owes.eq(Cat(1, self.two)),
                door.leave.eq(self.admitted_valid | (door.valid & door.squashed)),
            ]
        elif form is Barrier.DELAY:
            # What became certain in the table is older than the access at the door, which may be a
            # tag store to the same granule: so the door waits for it, and also for what becomes
            # certain in this very cycle.
            older = unparked_valid | table.picked | table.certain
            m.d.comb += [
                parks.eq(door.valid & ~door.squashed & door.speculative & table.available),
                table.allocate.eq(parks),
                table.owes.eq(0),
                door.leave.eq(
                    parks | (door.valid & door.squashed) | (self.admitted_valid & ~unparked_valid)
                ),
            ]
            with m.If(older & ~unparked_valid):
                m.d.comb += goes_certain.eq(0)
        else:
            m.d.comb += door.leave.eq(self.admitted_valid)

        with m.If(self.admitted_valid & direct):
            m.d.sync += ring.eq(ring + 1)
        number = Signal(config.ticket_bits)
        with m.If(direct):
            m.d.comb += number.eq(ring)
        with m.Elif(speculative):
            m.d.comb += number.eq(table.slot)
        with m.Else():
            m.d.comb += number.eq(config.held)
        m.d.comb += [
            self.admitted.access.eq(request.access),
            self.admitted.regime.eq(request.regime),
            self.admitted.ticket.number.eq(number),
            self.admitted.ticket.direct.eq(direct),
            self.admitted.store.eq(self.store_slot),
            self.store.eq(self.admitted_valid & tag_store),
            self.secret_store_tags.eq(
                Mux(op == Op.STG, request.access.tags[:4].replicate(16), request.access.tags)
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
        with m.If(op == Op.LDG):
            m.d.comb += context_write.va[:4].eq(0)

        # Findings of accesses that are not direct, one for each word. The last row is that of the
        # certain access of two words.
        finding = self.result.secret_finding
        entry_bits = config.held.bit_length()
        entry = self.result.ticket.number[:entry_bits]
        to_entry = self.result_valid & ~self.result.ticket.direct
        rows = []
        for word, name in enumerate(("secret_findings_first", "secret_findings_second")):
            m.submodules[name] = findings = memory.Memory(
                shape=finding_layout(), depth=config.held + 1, init=[]
            )
            write, read = findings.write_port(), findings.read_port(domain="comb")
            m.d.comb += [
                write.addr.eq(entry),
                write.data.eq(finding),
                write.en.eq(to_entry & (self.result.ticket.second == word)),
            ]
            rows.append(read)
        first, second = (read.data for read in rows)
        finishes = Cat(to_entry & ~self.result.ticket.second, to_entry & self.result.ticket.second)
        of_pair = entry == config.held
        m.d.comb += [
            table.finish_slot.eq(entry),
            table.finish.eq(finishes & ~of_pair.replicate(2)),
        ]
        two_words = Signal(config.held + 1)
        with m.If(self.admitted_valid & ~direct):
            m.d.sync += two_words.bit_select(number[:entry_bits], 1).eq(self.two)

        pair_owed = Signal(2)
        pair_ready = Signal()
        pair_released = Signal()
        with m.If(self.admitted_valid & ~speculative & alone):
            m.d.sync += [pair_free.eq(0), pair_owed.eq(3)]
        with m.Elif(of_pair):
            m.d.sync += pair_owed.eq(pair_owed & ~finishes)
        m.d.comb += pair_ready.eq(~pair_free & (pair_owed == 0))
        with m.If(pair_released):
            m.d.sync += pair_free.eq(1)

        # The tail. First stage: whose context is read? A direct finding that comes goes first.
        releases = Signal()
        entry_released = Signal(entry_bits)
        table_picked = table.picked if form is Barrier.OBLIVIOUS else Const(0)
        tail_free = ~(self.coming_valid & self.coming.direct)
        m.d.comb += [
            releases.eq(tail_free & self.room & (pair_ready | table_picked)),
            pair_released.eq(releases & pair_ready),
            entry_released.eq(Mux(pair_ready, config.held, table.picked_slot)),
            contexts.address.eq(
                Mux(
                    tail_free,
                    entry_released,
                    Cat(self.coming.number, Const(1, 1)),
                )
            ),
        ]
        if form is Barrier.OBLIVIOUS:
            m.d.comb += table.release.eq(releases & ~pair_ready)
        patience = Signal(range(PATIENCE + 1))
        m.d.sync += starved.eq(patience == PATIENCE)
        with m.If(~(pair_ready | table_picked) | releases):
            m.d.sync += patience.eq(0)
        with m.Elif(patience != PATIENCE):
            m.d.sync += patience.eq(patience + 1)

        # Second stage: the findings of an entry become one.
        t1_valid = Signal()
        t1_entry = Signal(entry_bits)
        t1_two = Signal()
        secret_second = Signal(finding_layout())
        joined = Signal(finding_layout())
        joined_second = Signal()
        m.d.sync += [
            t1_valid.eq(releases),
            t1_entry.eq(entry_released),
            t1_two.eq(two_words.bit_select(entry_released, 1)),
        ]
        m.d.comb += [read.addr.eq(t1_entry) for read in rows]
        with m.If(t1_two):
            m.d.comb += secret_second.eq(second)
        m.d.comb += joined.eq(first)
        with m.If(
            ~_is_fault(first.outcome)
            & (_is_fault(secret_second.outcome) | (secret_second.outcome == Outcome.ASYNC))
        ):
            m.d.comb += [joined.eq(secret_second), joined_second.eq(1)]

        # Third stage: finding and context make the verdict.
        t2_valid = Signal()
        secret_joined = Signal(finding_layout())
        secret_joined_second = Signal()
        m.d.sync += [
            t2_valid.eq(t1_valid),
            secret_joined.eq(joined),
            secret_joined_second.eq(joined_second),
        ]
        is_direct = self.result_valid & self.result.ticket.direct
        shown = Signal(finding_layout())
        of_second = Signal()
        context = data.View(_context_layout(config), contexts.data)
        m.d.comb += shown.eq(Mux(is_direct, finding, secret_joined))
        with m.If(~is_direct):
            m.d.comb += of_second.eq(secret_joined_second)
        fault = _is_fault(shown.outcome)
        address = Cat(
            Mux(shown.exact, context.va[:4], 0),
            shown.index,
            (context.va[8:12] + of_second)[:4],
            context.va[12:],
        )
        tags = Cat(
            self.result.secret_tags[:4] | shown.tag,
            self.result.secret_tags[4:],
        )
        m.submodules.verdicts = verdicts = memory.Memory(
            shape=_queued_layout(config), depth=VERDICTS, init=[]
        )
        queue_write = verdicts.write_port()
        queue_read = verdicts.read_port(domain="comb")
        push = Signal()
        pop = Signal()
        queue_head = Signal(range(VERDICTS))
        queue_tail = Signal(range(VERDICTS))
        queue_count = Signal(range(VERDICTS + 1))
        queue_empty = Signal(init=1)
        queued = queue_write.data
        m.d.comb += [
            push.eq(is_direct | t2_valid),
            queue_write.en.eq(push),
            queue_write.addr.eq(queue_tail),
            queued.value.eq(
                Mux(fault, address, Mux(is_direct, tags, Cat(shown.tag, Const(0, 60))))
            ),
            queued.id.eq(context.id),
            queued.outcome.eq(shown.outcome),
            queued.wnr.eq(shown.wnr),
            queued.el0.eq(context.el0),
            queued.half.eq(context.va[55]),
            queue_read.addr.eq(queue_head),
        ]
        with m.If(push):
            m.d.sync += queue_tail.eq(queue_tail + 1)
        with m.If(pop):
            m.d.sync += queue_head.eq(queue_head + 1)
        with m.If(push & ~pop):
            m.d.sync += [queue_count.eq(queue_count + 1), queue_empty.eq(0)]
        with m.Elif(pop & ~push):
            m.d.sync += [queue_count.eq(queue_count - 1), queue_empty.eq(queue_count == 1)]
        m.d.sync += self.room.eq(queue_count <= VERDICTS - UNDER_WAY - 1)

        # The verdict. Address and tags share a field of the queue; the one that does not apply is
        # cleared on the way out.
        out = queue_read.data
        verdict_valid = Signal()
        verdict = Signal(verdict_layout(config))
        verdict_el0 = Signal()
        verdict_half = Signal()
        load = Signal()
        m.d.comb += [
            load.eq(~verdict_valid | self.verdict.ready),
            pop.eq(load & ~queue_empty),
            self.verdict.valid.eq(verdict_valid),
            self.verdict.payload.eq(verdict),
        ]
        with m.If(load):
            m.d.sync += [
                verdict_valid.eq(~queue_empty),
                verdict.id.eq(out.id),
                verdict.outcome.eq(out.outcome),
                verdict.wnr.eq(out.wnr),
                verdict.far.eq(out.value),
                verdict.tags.eq(out.value),
                verdict_el0.eq(out.el0),
                verdict_half.eq(out.half),
            ]
            with m.If(queue_empty):
                m.d.sync += [verdict.id.eq(0), verdict.outcome.eq(0), verdict.wnr.eq(0)]
            with m.If(queue_empty | ~_is_fault(out.outcome)):
                m.d.sync += verdict.far.eq(0)
            with m.If(queue_empty | _is_fault(out.outcome)):
                m.d.sync += verdict.tags.eq(0)
        with m.If(self.verdict.valid & self.verdict.ready & (verdict.outcome == Outcome.ASYNC)):
            with m.If(verdict_el0):
                m.d.sync += self.tfsr.el0.bit_select(verdict_half, 1).eq(1)
            with m.Else():
                m.d.sync += self.tfsr.el1.bit_select(verdict_half, 1).eq(1)

        # Findings that are to come.
        inside = Signal(8)
        m.d.sync += [
            inside.eq(
                inside + self.admitted_valid + (self.admitted_valid & self.two) - self.result_valid
            ),
            Assert(~self.result_valid | (inside != 0), "a finding came, and nothing is inside"),
            Assert(~push | (queue_count != VERDICTS), "the queue of verdicts overflows"),
            Assert(~(is_direct & t2_valid), "two verdicts at once"),
        ]
        m.d.comb += self.idle.eq(
            ~door.valid
            & ~unparked_valid
            & (inside == 0)
            & table.empty
            & pair_free
            & ~(t1_valid | t2_valid)
            & queue_empty
            & ~verdict_valid
        )
        return m

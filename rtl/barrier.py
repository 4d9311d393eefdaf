"""The speculation barrier: the only unit that knows branches."""

from typing import Any

from amaranth.hdl import Assert, Const, Module, Mux, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .access_queue import AccessQueue
from .branch_table import BranchTable
from .config import Barrier, TagConfig
from .layouts import (
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
from .stream_util import PayloadRegister

__all__ = ["SpeculationBarrier"]


def _waiting_layout(config: TagConfig) -> data.StructLayout:
    """A request without ``tags``: tag stores are never speculative, and so never wait."""
    request = request_layout(config)
    access = {name: field.shape for name, field in request["access"].shape if name != "tags"}
    return data.StructLayout(
        {"access": data.StructLayout(access), "control": request["control"].shape}
    )


def _assign(to: Any, of: Any) -> list:
    """Statements that assign a request, field by field, without ``tags``."""
    names = [name for name in of.access.shape().members if name != "tags"]
    fields = [getattr(to.access, name).eq(getattr(of.access, name)) for name in names]
    return [*fields, to.control.eq(of.control)]


class SpeculationBarrier(wiring.Component):
    """Admits accesses to the pipeline, and holds every outcome until it may be seen.

    An access is *speculative* while it hangs on an unresolved branch, and *certain* from then on.
    An outcome becomes a verdict only once its access is certain; that of a squashed access is
    dropped. The forms of ``config.barrier`` differ in what a speculative access may do meanwhile:

    ``OBLIVIOUS``
        It is admitted, and takes an entry of the table. Its outcome goes into the entry, and
        nothing looks at it there until it leaves.
    ``DELAY``
        It waits in the table, whole, and is admitted when it is certain.
    ``NONE``
        Branches are ignored. Each access gets a verdict at once, also one that turns out to be
        squashed. This leaks tags; it exists to measure the price of the other forms.

    An access is admitted two cycles after its transfer at the earliest, and a verdict is offered
    in the cycle after the outcome came, or, from the table, two cycles after the later of the
    outcome and the resolve. Accesses and verdicts are sustained at one per cycle. A certain access
    never waits for an entry, but it waits behind a speculative one that does.

    Members
    -------
    access : ``In(stream.Signature(request_layout(config)))``
        Accesses from the core.
    admitted : ``Out(stream.Signature(admitted_layout(config)))``
        Accesses for the pipeline, each with the ticket that its outcome must carry.
    checked, unchecked : ``In(stream.Signature(result_layout(config)))``
        Outcomes: of accesses that needed tags, and of those that did not.
    verdict : ``Out(stream.Signature(verdict_layout(config)))``
        Outcomes that the core may see, in any order. The payload is 0 while not valid.
    resolve : ``In(resolve_signature(config))``
        The branch that is resolved in this cycle.
    tfsr : ``Out(tfsr_layout())``
        Sticky asynchronous faults, set in the cycle after the transfer of an ASYNC verdict.
    idle : ``Out(1)``
        No access is waiting, in the pipeline or at ``verdict``.
    """

    access: stream.Interface
    admitted: stream.Interface
    checked: stream.Interface
    unchecked: stream.Interface
    verdict: stream.Interface
    resolve: wiring.PureInterface
    tfsr: data.View
    idle: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "access": In(stream.Signature(request_layout(config))),
                "admitted": Out(stream.Signature(admitted_layout(config))),
                "checked": In(stream.Signature(result_layout(config))),
                "unchecked": In(stream.Signature(result_layout(config))),
                "verdict": Out(stream.Signature(verdict_layout(config))),
                "resolve": In(resolve_signature(config)),
                "tfsr": Out(tfsr_layout()),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config

        m.submodules.queue = queue = AccessQueue(config)
        wiring.connect(m, queue.i, wiring.flipped(self.access))
        wiring.connect(m, queue.resolve, wiring.flipped(self.resolve))

        # The access that is offered to the pipeline.
        admitted = PayloadRegister(admitted_layout(config), name="admitted")
        admitted_valid = Signal()
        admit = Signal()  # `entering` goes into the register
        entering = Signal(admitted_layout(config))
        room = Signal()
        m.d.comb += [
            room.eq(~admitted_valid | self.admitted.ready),
            self.admitted.valid.eq(admitted_valid),
            *admitted.drive(self.admitted.payload),
        ]
        with m.If(room):
            m.d.sync += admitted_valid.eq(admit)
            m.d.sync += admitted.load(entering)

        # The next outcome from the pipeline: the two sources take turns.
        outcome = Signal(result_layout(config))
        outcome_valid = Signal()
        outcome_ready = Signal()
        last_checked = Signal()
        from_checked = Signal()
        m.d.comb += [
            from_checked.eq(self.checked.valid & ~(self.unchecked.valid & last_checked)),
            outcome_valid.eq(self.checked.valid | self.unchecked.valid),
            outcome.eq(Mux(from_checked, self.checked.payload, self.unchecked.payload)),
            self.checked.ready.eq(outcome_ready & from_checked),
            self.unchecked.ready.eq(outcome_ready & ~from_checked),
        ]
        with m.If(outcome_valid & outcome_ready):
            m.d.sync += last_checked.eq(from_checked)

        # The verdict, public from here on.
        leaving = Signal(result_layout(config))
        leave = Signal()  # `leaving` goes into the register
        verdict_valid = Signal()
        verdict_room = Signal()
        verdict_ticket = Signal(ticket_layout(config))
        verdict_finding = Signal(finding_layout())
        m.d.comb += [
            verdict_room.eq(~verdict_valid | self.verdict.ready),
            self.verdict.valid.eq(verdict_valid),
        ]
        with m.If(verdict_room):
            m.d.sync += [
                verdict_valid.eq(leave),
                verdict_ticket.eq(leaving.ticket),
                verdict_finding.eq(Mux(leave, leaving.secret_finding, 0)),
            ]
        with m.If(verdict_valid):
            m.d.comb += self.verdict.payload.id.eq(verdict_ticket.id)
        m.d.comb += [
            self.verdict.payload.outcome.eq(verdict_finding.outcome),
            self.verdict.payload.far.eq(verdict_finding.far),
            self.verdict.payload.wnr.eq(verdict_finding.wnr),
            self.verdict.payload.tags.eq(verdict_finding.tags),
        ]
        with m.If(self.verdict.valid & self.verdict.ready):
            with m.If(verdict_finding.outcome == Outcome.ASYNC):
                with m.If(verdict_ticket.el0):
                    m.d.sync += self.tfsr.el0.bit_select(verdict_ticket.half, 1).eq(1)
                with m.Else():
                    m.d.sync += self.tfsr.el1.bit_select(verdict_ticket.half, 1).eq(1)

        # What the form does with speculative accesses.
        speculative = queue.o_branches.any()
        request = Signal(request_layout(config))  # that enters next
        m.d.comb += [request.eq(queue.o.payload), leaving.eq(outcome)]
        table_empty: Value = Const(1)
        if config.barrier is Barrier.NONE:
            m.d.comb += [
                admit.eq(queue.o.valid),
                queue.o.ready.eq(room),
                leave.eq(outcome_valid),
                outcome_ready.eq(verdict_room),
            ]
        else:
            m.submodules.table = table = BranchTable(config)
            wiring.connect(m, table.resolve, wiring.flipped(self.resolve))
            m.d.comb += table.branches.eq(queue.o_branches)
            table_empty = table.empty

        if config.barrier is Barrier.DELAY:
            m.submodules.waiting = waiting = memory.Memory(
                shape=_waiting_layout(config), depth=config.held, init=[]
            )
            waiting_write = waiting.write_port()
            waiting_read = waiting.read_port(domain="comb")
            certain_head = queue.o.valid & ~queue.o_squashed & ~speculative
            # What became certain in the table is older than the head, so it goes first: the head
            # may be a tag store to the same granule.
            m.d.comb += [
                table.allocate.eq(
                    queue.o.valid & ~queue.o_squashed & speculative & table.available
                ),
                table.finish.eq(table.allocate),
                table.finish_slot.eq(table.slot),
                table.release.eq(table.ready & room),
                waiting_write.addr.eq(table.slot),
                *_assign(waiting_write.data, queue.o.payload),
                waiting_write.en.eq(table.allocate),
                waiting_read.addr.eq(table.ready_slot),
                admit.eq(table.ready | certain_head),
                queue.o.ready.eq(
                    queue.o_squashed | Mux(speculative, table.available, room & ~table.ready)
                ),
                leave.eq(outcome_valid),
                outcome_ready.eq(verdict_room),
            ]
            with m.If(table.ready):
                m.d.comb += [*_assign(request, waiting_read.data), request.access.tags.eq(0)]

        if config.barrier is Barrier.OBLIVIOUS:
            m.submodules.owners = owners = memory.Memory(
                shape=ticket_layout(config), depth=config.held, init=[]
            )
            owners_write = owners.write_port()
            owners_read = owners.read_port(domain="comb")
            m.submodules.secret_findings = findings = memory.Memory(
                shape=finding_layout(), depth=config.held, init=[]
            )
            findings_write = findings.write_port()
            findings_read = findings.read_port(domain="comb")
            take = room & ~queue.o_squashed & (~speculative | table.available)
            m.d.comb += [
                admit.eq(queue.o.valid & take),
                queue.o.ready.eq(queue.o_squashed | take),
                entering.ticket.speculative.eq(speculative),
                entering.ticket.slot.eq(table.slot),
                table.allocate.eq(admit & speculative),
                owners_write.addr.eq(table.slot),
                owners_write.data.eq(entering.ticket),
                owners_write.en.eq(table.allocate),
            ]
            # A speculative outcome always finds its entry. A certain one takes turns at the
            # verdict register with those that leave the table.
            to_table = outcome.ticket.speculative
            certain_outcome = outcome_valid & ~to_table
            last_from_table = Signal()
            from_table = Signal()
            m.d.comb += [
                findings_write.addr.eq(outcome.ticket.slot),
                findings_write.data.eq(outcome.secret_finding),
                findings_write.en.eq(outcome_valid & to_table),
                table.finish.eq(findings_write.en),
                table.finish_slot.eq(outcome.ticket.slot),
                from_table.eq(table.ready & ~(certain_outcome & last_from_table)),
                outcome_ready.eq(to_table | (verdict_room & ~from_table)),
                owners_read.addr.eq(table.ready_slot),
                findings_read.addr.eq(table.ready_slot),
                leave.eq(certain_outcome | table.ready),
                table.release.eq(from_table & verdict_room),
            ]
            with m.If(from_table):
                m.d.comb += [
                    leaving.ticket.eq(owners_read.data),
                    leaving.secret_finding.eq(findings_read.data),
                ]
            with m.If(leave & verdict_room):
                m.d.sync += last_from_table.eq(from_table)

        m.d.comb += [
            entering.access.eq(request.access),
            entering.control.eq(request.control),
            entering.ticket.id.eq(request.access.id),
            entering.ticket.half.eq(request.access.va[55]),
            entering.ticket.el0.eq(request.access.el0),
        ]

        # Accesses in the pipeline.
        inside = Signal(range(config.held + 32))
        enters = self.admitted.valid & self.admitted.ready
        returns = outcome_valid & outcome_ready
        m.d.sync += [
            inside.eq(inside + enters - returns),
            Assert(~returns | (inside != 0), "an outcome came back, and no access is inside"),
        ]
        m.d.comb += self.idle.eq(
            ~queue.o.valid & ~admitted_valid & (inside == 0) & table_empty & ~verdict_valid
        )
        return m

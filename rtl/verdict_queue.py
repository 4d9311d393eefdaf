"""The way of a verdict to the core."""

from amaranth.hdl import Assert, Module, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import TagConfig
from .layouts import Outcome, tfsr_layout, verdict_layout

__all__ = ["VerdictQueue", "is_fault", "released_layout"]

DEPTH = 16
"""Verdicts that wait for the core: as many as distributed RAM holds in one piece."""

UNDER_WAY = 13
"""Verdicts that may come after ``room`` has fallen: one in each cycle until the last access that
was admitted, or replayed, in its sight is through the pipeline."""


def is_fault(outcome: Value) -> Value:
    """Does an outcome have an address? All but PASS and ASYNC do."""
    bits = Value.cast(outcome)
    return bits[1] | bits[2]


def released_layout(config: TagConfig) -> data.StructLayout:
    """A verdict, with what TFSR needs to know of it."""
    return data.StructLayout(
        {
            "value": 64,  # of a fault its address, else tags
            "id": config.id_bits,
            "outcome": Outcome,
            "wnr": 1,
            "el0": 1,
            "half": 1,
        }
    )


class VerdictQueue(wiring.Component):
    """A queue of verdicts, and the register from which the core takes them.

    A verdict is offered two cycles after it came, at the earliest. All that comes here may be seen.

    Members
    -------
    push : ``In(1)``, released : ``In(released_layout(config))``
        A verdict.
    room : ``Out(1)``
        There is room for all that may be under way; a register.
    verdict : ``Out(stream.Signature(verdict_layout(config)))``
        The verdicts, in order. The payload is 0 while not valid.
    tfsr : ``Out(tfsr_layout())``
        Sticky asynchronous faults, set in the cycle after the transfer of an ASYNC verdict.
    empty : ``Out(1)``
        No verdict is here.
    """

    push: Signal
    released: data.View
    room: Signal
    verdict: stream.Interface
    tfsr: data.View
    empty: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "push": In(1),
                "released": In(released_layout(config)),
                "room": Out(1, init=1),
                "verdict": Out(stream.Signature(verdict_layout(config))),
                "tfsr": Out(tfsr_layout()),
                "empty": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.queue = queue = memory.Memory(
            shape=released_layout(self.config), depth=DEPTH, init=[]
        )
        write, read = queue.write_port(), queue.read_port(domain="comb")
        head = Signal(range(DEPTH))
        tail = Signal(range(DEPTH))
        count = Signal(range(DEPTH + 1))
        waits = Signal()  # a verdict is in the queue
        load = Signal()
        pop = Signal()
        m.d.comb += [
            write.en.eq(self.push),
            write.addr.eq(tail),
            write.data.eq(self.released),
            read.addr.eq(head),
            load.eq(~self.verdict.valid | self.verdict.ready),
            pop.eq(load & waits),
        ]
        with m.If(self.push):
            m.d.sync += tail.eq(tail + 1)
        with m.If(pop):
            m.d.sync += head.eq(head + 1)
        with m.If(self.push & ~pop):
            m.d.sync += [count.eq(count + 1), waits.eq(1)]
        with m.Elif(pop & ~self.push):
            m.d.sync += [count.eq(count - 1), waits.eq(count != 1)]
        m.d.sync += [
            self.room.eq(count <= DEPTH - UNDER_WAY),
            Assert(~self.push | (count != DEPTH), "the queue of verdicts overflows"),
        ]

        # Address and tags share a field of the queue. What does not apply is cleared here, which
        # costs nothing but the reset of the registers.
        out = read.data
        payload = Signal(verdict_layout(self.config))
        el0 = Signal()
        half = Signal()
        m.d.comb += [
            self.verdict.payload.eq(payload),
            self.empty.eq(~waits & ~self.verdict.valid),
        ]
        with m.If(load):
            m.d.sync += [
                self.verdict.valid.eq(waits),
                payload.id.eq(out.id),
                payload.outcome.eq(out.outcome),
                payload.wnr.eq(out.wnr),
                payload.far.eq(out.value),
                payload.tags.eq(out.value),
                el0.eq(out.el0),
                half.eq(out.half),
            ]
        fault = is_fault(out.outcome)
        with m.If(load & ~waits):
            m.d.sync += [payload.id.eq(0), payload.outcome.eq(0), payload.wnr.eq(0)]
        with m.If(load & ~(waits & fault)):
            m.d.sync += payload.far.eq(0)
        with m.If(load & ~(waits & ~fault)):
            m.d.sync += payload.tags.eq(0)

        taken = self.verdict.valid & self.verdict.ready
        with m.If(taken & (payload.outcome == Outcome.ASYNC)):
            with m.If(el0):
                m.d.sync += self.tfsr.el0.bit_select(half, 1).eq(1)
            with m.Else():
                m.d.sync += self.tfsr.el1.bit_select(half, 1).eq(1)
        return m

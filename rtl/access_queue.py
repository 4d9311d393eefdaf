"""The door: two accesses wait here, and every resolve reaches them."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .branch_table import Dependence, Resolution
from .config import TagConfig
from .layouts import request_layout, resolve_signature
from .stream_util import PayloadRegister

__all__ = ["AccessQueue"]


class AccessQueue(wiring.Component):
    """A queue of two accesses that keeps account of their branches.

    ``i.ready`` is a register's value, so no combinational path crosses the queue. An access
    appears at ``o`` in the cycle after its transfer at the earliest; the queue sustains one
    transfer per cycle.

    A branch that is resolved while an access is offered at ``i`` and not yet taken, or waits
    inside, no longer counts for it; a mispredicted one squashes it. The access stays in the queue
    all the same, so that ``o`` keeps the rules of a stream; whoever takes it drops it.

    Members
    -------
    i : ``In(stream.Signature(request_layout(config)))``
        Accesses as the core offers them.
    o : ``Out(stream.Signature(request_layout(config)))``
        The same accesses, in order. ``access.branches`` is as the core gave it.
    o_branches : ``Out(config.branches)``
        Branches of the access at ``o`` that are unresolved at the end of this cycle.
    o_squashed : ``Out(1)``
        The access at ``o`` hangs on a mispredicted branch.
    resolve : ``In(resolve_signature(config))``
        The branch that is resolved in this cycle.
    """

    i: stream.Interface
    o: stream.Interface
    o_branches: Signal
    o_squashed: Signal
    resolve: wiring.PureInterface

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        request = request_layout(config)
        super().__init__(
            {
                "i": In(stream.Signature(request)),
                "o": Out(stream.Signature(request)),
                "o_branches": Out(config.branches),
                "o_squashed": Out(1),
                "resolve": In(resolve_signature(config)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        request = request_layout(self.config)
        resolution = Resolution(m, self.config, self.resolve)
        push = self.i.valid & self.i.ready
        pop = self.o.valid & self.o.ready

        # The access at the port. The core leaves its mask as it was in the first cycle of `valid`,
        # so what has been resolved since then is remembered here.
        offered = Dependence(self.config, resolution, name="offered")
        resolved_since = Signal(self.config.branches)
        squashed_since = Signal()
        m.d.comb += [
            offered.branches.eq(self.i.payload.access.branches & ~resolved_since),
            offered.squashed.eq(squashed_since),
        ]
        with m.If(self.i.valid & ~self.i.ready):
            m.d.sync += [
                resolved_since.eq(resolved_since | resolution.resolved),
                squashed_since.eq(offered.squashed_after),
            ]
        with m.Else():
            m.d.sync += [resolved_since.eq(0), squashed_since.eq(0)]

        # The two that wait.
        head = PayloadRegister(request, name="head")
        head_valid = Signal()
        head_dependence = Dependence(self.config, resolution, name="head")
        tail = PayloadRegister(request, name="tail")
        tail_valid = Signal()
        tail_dependence = Dependence(self.config, resolution, name="tail")

        m.d.sync += head_dependence.follow()
        m.d.sync += tail_dependence.follow()
        with m.If(pop | ~head_valid):
            m.d.sync += [head_valid.eq(tail_valid | push), tail_valid.eq(0)]
            with m.If(tail_valid):
                m.d.sync += [*head.copy(tail), *head_dependence.follow(tail_dependence)]
            with m.Else():
                m.d.sync += [*head.load(self.i.payload), *head_dependence.follow(offered)]
        with m.Elif(push):
            m.d.sync += tail_valid.eq(1)
            m.d.sync += [*tail.load(self.i.payload), *tail_dependence.follow(offered)]

        m.d.comb += [
            self.i.ready.eq(~tail_valid),
            self.o.valid.eq(head_valid),
            self.o_branches.eq(head_dependence.branches_after),
            self.o_squashed.eq(head_dependence.squashed_after),
        ]
        m.d.comb += head.drive(self.o.payload)
        return m

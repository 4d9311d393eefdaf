"""The door: the access that is next, and what it hangs on."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .branch_table import Dependence, Resolution
from .config import TagConfig
from .layouts import request_layout
from .stream_util import PayloadRegister

__all__ = ["Door"]


class Door(wiring.Component):
    """A register for the access that the core offered, which keeps account of its branches.

    An access appears at ``o`` in the cycle after its transfer, and stays until ``leave``; then the
    next one may be transferred in the same cycle. ``i.ready`` is a function of registers and of
    ``leave``.

    A branch that is resolved while an access is offered at ``i`` and not yet taken, or waits
    inside, no longer counts for it; a mispredicted one squashes it.

    Members
    -------
    i : ``In(stream.Signature(request_layout(config)))``
        Accesses as the core offers them.
    valid : ``Out(1)``
        An access is inside; a register.
    o : ``Out(request_layout(config))``
        The access; registers. ``access.branches`` is as the core gave it.
    branches : ``Out(config.branches)``
        Branches of the access that are unresolved at the end of this cycle.
    speculative : ``Out(1)``
        It hung on a branch at the end of the last cycle; a register.
    squashed : ``Out(1)``
        It hangs on a mispredicted branch, as of the end of the last cycle; a register.
    squashed_after : ``Out(1)``
        The same, as of the end of this cycle.
    leave : ``In(1)``
        The access goes, in or away; only while ``valid``.
    resolved, wrong : ``In(config.branches)``
        The branch that was resolved in the last cycle, one-hot; and whether it was mispredicted.
    """

    i: stream.Interface
    valid: Signal
    branches: Signal
    speculative: Signal
    squashed: Signal
    squashed_after: Signal
    leave: Signal
    resolved: Signal
    wrong: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(request_layout(config))),
                "valid": Out(1),
                "o": Out(request_layout(config)),
                "branches": Out(config.branches),
                "speculative": Out(1),
                "squashed": Out(1),
                "squashed_after": Out(1),
                "leave": In(1),
                "resolved": In(config.branches),
                "wrong": In(config.branches),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        resolution = Resolution(self.resolved, self.wrong)

        # The access at the port. The core leaves its mask as it was in the first cycle of `valid`,
        # so what has been resolved since then is remembered here. A resolve is known one cycle
        # late: in its first cycle nothing that is known concerns the access.
        offered_before = Signal()
        resolved_since = Signal(self.config.branches)
        squashed_since = Signal()
        offered = Dependence(self.config, name="offered")
        m.d.comb += [
            offered.branches.eq(self.i.payload.access.branches & ~resolved_since),
            offered.squashed.eq(squashed_since),
        ]
        offered_branches = Signal(self.config.branches)
        offered_squashed = Signal()
        m.d.comb += [
            offered_branches.eq(self.i.payload.access.branches),
            offered_squashed.eq(0),
        ]
        with m.If(offered_before):
            m.d.comb += [
                offered_branches.eq(offered.branches_after(resolution)),
                offered_squashed.eq(offered.squashed_after(resolution)),
            ]
        m.d.sync += offered_before.eq(self.i.valid & ~self.i.ready)
        with m.If(self.i.valid & ~self.i.ready):
            with m.If(offered_before):
                m.d.sync += [
                    resolved_since.eq(resolved_since | self.resolved),
                    squashed_since.eq(offered_squashed),
                ]
        with m.Else():
            m.d.sync += [resolved_since.eq(0), squashed_since.eq(0)]

        # The access inside.
        access = PayloadRegister(request_layout(self.config), name="door")
        inside = Dependence(self.config, name="inside")
        m.d.comb += [
            self.i.ready.eq(~self.valid | self.leave),
            *access.drive(self.o),
            self.branches.eq(inside.branches_after(resolution)),
            self.squashed.eq(inside.squashed),
            self.squashed_after.eq(inside.squashed_after(resolution)),
        ]
        with m.If(self.i.ready):
            m.d.sync += [
                self.valid.eq(self.i.valid),
                *access.load(self.i.payload),
                inside.branches.eq(offered_branches),
                inside.squashed.eq(offered_squashed),
                self.speculative.eq(offered_branches.any()),
            ]
        with m.Else():
            m.d.sync += [
                inside.branches.eq(self.branches),
                inside.squashed.eq(self.squashed_after),
                self.speculative.eq(self.branches.any()),
            ]
        return m

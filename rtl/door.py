"""The door: the access that is next, and what it hangs on."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .access import touches_two
from .config import TagConfig
from .layouts import Op, request_layout, resolve_signature

__all__ = ["Door"]


class Door(wiring.Component):
    """A register for one access, which keeps account of its branches.

    An access appears at ``o`` in the cycle after its transfer, and stays until ``leave``; then the
    next one may be transferred in the same cycle. ``i.ready`` is a function of ``leave`` and
    ``valid``.

    A branch that is resolved while an access is offered at ``i``, or waits inside, no longer counts
    for it. A mispredicted one squashes it: it is taken all the same, and is gone in the next cycle.

    Members
    -------
    i : ``In(stream.Signature(request_layout(config)))``
        Accesses as the core offers them.
    valid : ``Out(1)``
        An access is inside; a register.
    o : ``Out(request_layout(config))``
        The access; registers. ``access.branches`` is 0.
    two, tag_store : ``Out(1)``
        It touches two tag words; it is STG or STGM. Registers.
    certain : ``Out(1)``
        It hung on no branch at the start of this cycle, as far as was known then. A function of
        registers, as are the next two; they mean something only if ``valid``.
    goes : ``Out(1)``
        It is certain, and there was place for it.
    speculative : ``Out(1)``
        It is not certain, and is one of those accesses that need not wait here until they are.
    branches : ``Out(config.branches)``
        Branches that it hangs on at the end of this cycle.
    squashed : ``Out(1)``
        It hangs on a mispredicted branch at the end of this cycle.
    one_free, two_free : ``In(1)``
        There is place for a certain access that touches one tag word, or two. Counts in the next
        cycle. A certain access of two words that leaves takes the place of such.
    leave : ``In(1)``
        The access goes; only while ``valid``.
    resolve : ``In(resolve_signature(config))``
        The branch that is resolved in this cycle.
    resolved, wrong : ``In(config.branches)``
        The branch that was resolved in the last cycle, one-hot; the same if it was mispredicted.
    """

    i: stream.Interface
    valid: Signal
    o: data.View
    two: Signal
    tag_store: Signal
    certain: Signal
    goes: Signal
    speculative: Signal
    branches: Signal
    squashed: Signal
    one_free: Signal
    two_free: Signal
    leave: Signal
    resolve: wiring.PureInterface
    resolved: Signal
    wrong: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(request_layout(config))),
                "valid": Out(1),
                "o": Out(request_layout(config)),
                "two": Out(1),
                "tag_store": Out(1),
                "certain": Out(1),
                "goes": Out(1),
                "speculative": Out(1),
                "branches": Out(config.branches),
                "squashed": Out(1),
                "one_free": In(1),
                "two_free": In(1),
                "leave": In(1),
                "resolve": In(resolve_signature(config)),
                "resolved": In(config.branches),
                "wrong": In(config.branches),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        branches = self.config.branches
        access = self.i.payload.access

        # The access at the port. The core leaves its mask as it was in the first cycle of `valid`,
        # so what has been resolved since then is remembered here. What is resolved in the cycle of
        # the transfer reaches the access inside, a cycle later.
        resolved_since = Signal(branches)
        squashed_since = Signal()  # but for the last cycle
        squashed_last = Signal()
        waited = Signal()
        was_squashed = Signal()
        offered = Signal(branches)
        waits = self.i.valid & ~self.i.ready
        m.d.comb += [
            offered.eq(access.branches & ~resolved_since),
            was_squashed.eq((squashed_since | squashed_last) & waited),
        ]
        resolving = Signal(branches)
        hit = offered.bit_select(self.resolve.branch, 1)
        m.d.comb += resolving.bit_select(self.resolve.branch, 1).eq(self.resolve.valid)
        m.d.sync += [
            waited.eq(waits),
            resolved_since.eq((resolved_since | resolving) & waits.replicate(branches)),
            squashed_last.eq(self.resolve.valid & self.resolve.mispredicted & hit),
            squashed_since.eq(was_squashed),
        ]

        # The access inside. Of its branches both cases are kept, that it came and that it stayed,
        # since it is known late in a cycle which it was. Its flags are made of both as late.
        was_ready = Signal()
        came = Signal(branches)
        stayed = Signal(branches)
        hangs_on = Mux(was_ready, came, stayed)
        m.d.comb += [
            self.i.ready.eq(~self.valid | self.leave),
            self.branches.eq(hangs_on & ~self.resolved),
            self.squashed.eq((hangs_on & self.wrong).any()),
        ]
        m.d.sync += [was_ready.eq(self.i.ready), came.eq(offered), stayed.eq(self.branches)]
        op = access.op
        hangs = (op == Op.LOAD) | (op == Op.STORE) | (op == Op.ATOMIC) | (op == Op.LDG)
        may_hang = Signal()
        one_place = Signal()
        two_place = Signal()
        comes = self.i.valid & ~was_squashed
        stays = self.valid & ~self.squashed
        flags = (
            (self.valid, comes, stays),
            (self.certain, ~offered.any(), ~self.branches.any()),
            (two_place, self.two_free & ~(self.two & self.certain), self.two_free),
        )
        for flag, if_comes, if_stays in flags:
            m.d.sync += flag.eq(Mux(self.i.ready, if_comes, if_stays))
        m.d.sync += one_place.eq(self.one_free)
        m.d.comb += [
            self.goes.eq(self.certain & Mux(self.two, two_place, one_place)),
            self.speculative.eq(~self.certain & may_hang),
        ]
        with m.If(self.i.ready):
            m.d.sync += [
                may_hang.eq(hangs),
                self.two.eq(touches_two(access)),
                self.tag_store.eq((op == Op.STG) | (op == Op.STGM)),
            ]
        fields = {name: access[name] for name in access.shape().members if name != "branches"}
        for name, field in (*fields.items(), ("regime", self.i.payload.regime)):
            prefix = "secret_inside" if name == "tags" else "inside"
            inside = Signal(field.shape(), name=f"{prefix}_{name}", reset_less=True)
            with m.If(self.i.ready):
                m.d.sync += inside.eq(field)
            m.d.comb += (self.o.access[name] if name in fields else self.o.regime).eq(inside)
        return m

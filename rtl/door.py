"""The door: the access that is next, and what it hangs on."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .access import may_touch_two, reaches_on
from .config import TagConfig
from .layouts import Op, request_layout, resolve_signature

__all__ = ["Door"]


class Door(wiring.Component):
    """A register for one access, which keeps account of its branches.

    An access appears at ``o`` in the cycle after its transfer, and stays up to the cycle of
    ``leave``; then the next one may be transferred in the same cycle. Whether it leaves is decided
    a cycle ahead, from what was known then. So ``leave`` is a register, and ``i.ready``, on which
    hundreds of registers hang, a function of two.

    A branch that is resolved while an access is offered at ``i``, or waits inside, no longer counts
    for it. A mispredicted one squashes it: it is taken all the same. One that has not left by the
    next cycle is gone then.

    Members
    -------
    i : ``In(stream.Signature(request_layout(config)))``
        Accesses as the core offers them.
    valid : ``Out(1)``
        An access is inside that is not known to be squashed.
    o : ``Out(request_layout(config))``
        The access; registers. ``access.branches`` is 0.
    two, tag_store : ``Out(1)``
        It touches two tag words; it is STG or STGM. Registers.
    leave : ``Out(1)``
        It leaves in this cycle; a register.
    speculative : ``Out(1)``
        With ``leave``: as one that hung on a branch, as far as was known. A register.
    branches : ``Out(config.branches)``
        Branches that it hangs on at the end of this cycle.
    squashed : ``Out(1)``
        It hung on a mispredicted branch.
    one_free, two_free : ``In(1)``
        In the next cycle there is place for a certain access that touches one tag word, or two.
        The latter does not yet count the one that leaves in this cycle.
    certain_free, speculative_free : ``In(1)``
        Nothing else holds up a certain access in the next cycle, or a speculative one.
    store_free : ``In(1)``
        In the next cycle there is place for the tags of a tag store.
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
    leave: Signal
    speculative: Signal
    branches: Signal
    squashed: Signal
    one_free: Signal
    two_free: Signal
    certain_free: Signal
    speculative_free: Signal
    store_free: Signal
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
                "leave": Out(1),
                "speculative": Out(1),
                "branches": Out(config.branches),
                "squashed": Out(1),
                "one_free": In(1),
                "two_free": In(1),
                "certain_free": In(1),
                "speculative_free": In(1),
                "store_free": In(1),
                "resolve": In(resolve_signature(config)),
                "resolved": In(config.branches),
                "wrong": In(config.branches),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        branches = self.config.branches
        access = self.i.payload.access

        inside = Signal()
        ready = Signal()

        # The access at the port. The core leaves its mask as it was in the first cycle of `valid`,
        # so what has been resolved since then is remembered here. What is resolved in the cycle of
        # the transfer reaches the access inside, a cycle later.
        resolved_since = Signal(branches)
        squashed_since = Signal()  # but for the last cycle
        squashed_last = Signal()
        waited = Signal()
        was_squashed = Signal()
        offered = Signal(branches)
        waits = self.i.valid & ~ready
        m.d.comb += [
            ready.eq(~inside | self.leave),
            self.i.ready.eq(ready),
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

        # The access inside. Of its branches both cases are kept, that it came and that it stayed.
        gone = Signal()  # it was squashed before the last cycle was over
        was_ready = Signal()
        came = Signal(branches)
        stayed = Signal(branches)
        hangs_on = Mux(was_ready, came, stayed)
        m.d.comb += [
            self.valid.eq(inside & ~gone),
            self.branches.eq(hangs_on & ~self.resolved),
            self.squashed.eq(gone | (hangs_on & self.wrong).any()),
        ]
        m.d.sync += [
            was_ready.eq(ready),
            came.eq(offered),
            stayed.eq(self.branches),
            gone.eq(self.squashed & ~ready),
        ]
        op = access.op
        hangs = (op == Op.LOAD) | (op == Op.STORE) | (op == Op.ATOMIC) | (op == Op.LDG)
        stores_tags = (op == Op.STG) | (op == Op.STGM)
        may_hang = Signal()
        two = Signal(reset_less=True)
        m.d.comb += self.two.eq(two)
        with m.If(ready):
            m.d.sync += [
                may_hang.eq(hangs),
                two.eq(reaches_on(access)),
                self.tag_store.eq(stores_tags),
            ]
            # The reset of the register: that takes no LUT on the longer way.
            with m.If(~may_touch_two(access)):
                m.d.sync += two.eq(0)
        fields = {name: access[name] for name in access.shape().members if name != "branches"}
        for name, field in (*fields.items(), ("regime", self.i.payload.regime)):
            prefix = "secret_inside" if name == "tags" else "inside"
            register = Signal(field.shape(), name=f"{prefix}_{name}", reset_less=True)
            with m.If(ready):
                m.d.sync += register.eq(field)
            m.d.comb += (self.o.access[name] if name in fields else self.o.regime).eq(register)

        # What becomes of the access in the next cycle: for one that comes, and for one that stays,
        # which goes by what was known at the start of this cycle. That one touches two tag words is
        # known too late for those that come; where it matters, they stay if they might.
        certain = Signal()  # at the start of this cycle, the one inside hung on no branch
        two_place = Signal()
        near_end = access.bytes[9] | access.pa[6:8].all()
        m.d.comb += two_place.eq(self.two_free & ~(self.leave & self.two & ~self.speculative))
        hangs_now = offered.any()
        comes = self.i.valid & ~was_squashed
        comes_certain = (
            self.one_free
            & (two_place | ~near_end)
            & (self.store_free | ~stores_tags)
            & self.certain_free
        )
        stays_certain = (
            Mux(self.two, two_place, self.one_free)
            & (self.store_free | ~self.tag_store)
            & self.certain_free
        )
        stays_leaves = Mux(certain, stays_certain, may_hang & self.speculative_free)
        # Written such that the longest way, that of the branches, comes last.
        m.d.sync += [
            inside.eq(Mux(ready, comes, self.valid)),
            certain.eq(Mux(ready, ~hangs_now, ~self.branches.any())),
            self.speculative.eq(Mux(ready, hangs_now & hangs, ~certain & may_hang)),
            self.leave.eq(
                (~hangs_now & (ready & comes & comes_certain))
                | (hangs_now & (ready & comes & hangs & self.speculative_free))
                | (~ready & self.valid & stays_leaves)
            ),
        ]
        return m

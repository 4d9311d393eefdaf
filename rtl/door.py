"""The door: the access that is next, and what it hangs on."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .access import touches_two
from .config import TagConfig
from .layouts import Op, request_layout

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
        An access is inside.
    o : ``Out(request_layout(config))``
        The access; registers. ``access.branches`` is 0.
    two, tag_store : ``Out(1)``
        It touches two tag words; it is STG or STGM. Registers.
    certain : ``Out(1)``
        It is valid, and hung on no branch at the start of this cycle, as far as was known then; a
        function of registers, as are ``valid`` and the next two.
    goes : ``Out(1)``
        It is certain, and there was place for it.
    speculative : ``Out(1)``
        It is valid, hung on a branch at the start of this cycle, and is one of those accesses that
        need not wait here until they are certain.
    branches : ``Out(config.branches)``
        Branches that it hangs on at the end of this cycle.
    squashed : ``Out(1)``
        It hangs on a mispredicted branch at the end of this cycle.
    one_free, two_free : ``In(1)``
        There is place for a certain access that touches one tag word, or two. Counts in the next
        cycle. A certain access of two words that leaves takes the place of such.
    leave : ``In(1)``
        The access goes; only while ``valid``.
    resolving, failing : ``In(config.branches)``
        The branch that is resolved in this cycle, one-hot; the same if it was mispredicted.
    resolved, wrong : ``In(config.branches)``
        ``resolving`` and ``failing`` of the cycle before.
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
    resolving: Signal
    failing: Signal
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
                "resolving": In(config.branches),
                "failing": In(config.branches),
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
        offered_before = Signal()
        resolved_since = Signal(branches)
        squashed_since = Signal()
        since = Signal(branches)
        offered = Signal(branches)
        offered_squashed = Signal()
        m.d.comb += [
            since.eq(resolved_since & offered_before.replicate(branches)),
            offered.eq(access.branches & ~since),
            offered_squashed.eq(squashed_since & offered_before),
        ]
        m.d.sync += [
            offered_before.eq(self.i.valid & ~self.i.ready),
            resolved_since.eq(since | self.resolving),
            squashed_since.eq(offered_squashed | (offered & self.failing).any()),
        ]

        # The access inside.
        hangs_on = Signal(branches)
        m.d.comb += [
            self.i.ready.eq(~self.valid | self.leave),
            self.branches.eq(hangs_on & ~self.resolved),
            self.squashed.eq((hangs_on & self.wrong).any()),
        ]
        op = access.op
        waits = ~((op == Op.LOAD) | (op == Op.STORE) | (op == Op.ATOMIC) | (op == Op.LDG))
        must_wait = Signal()
        # Whether an access has come is known late in a cycle. So flags are kept for both cases, and
        # the choice is made in the next cycle.
        was_ready = Signal(init=1)
        m.d.sync += was_ready.eq(self.i.ready)
        comes = self.i.valid & ~offered_squashed
        stays = self.valid & ~self.squashed
        flags = (
            (self.valid, comes, stays),
            (self.certain, comes & ~offered.any(), stays & ~self.branches.any()),
            (
                self.speculative,
                comes & offered.any() & ~waits,
                stays & self.branches.any() & ~must_wait,
            ),
            (hangs_on, offered, self.branches),
        )
        for flag, if_ready, else_ in flags:
            came = Signal(len(flag), name=f"{flag.name}_came")
            stayed = Signal(len(flag), name=f"{flag.name}_stayed")
            m.d.sync += [came.eq(if_ready), stayed.eq(else_)]
            m.d.comb += flag.eq(Mux(was_ready, came, stayed))

        # So it is with the place, of which there are two kinds.
        came_one = Signal()
        came_two = Signal()
        stayed_place = Signal()
        certain_comes = comes & ~offered.any()
        m.d.sync += [
            came_one.eq(certain_comes & self.one_free),
            came_two.eq(certain_comes & self.two_free & ~(self.two & self.certain)),
            stayed_place.eq(
                stays & ~self.branches.any() & Mux(self.two, self.two_free, self.one_free)
            ),
        ]
        m.d.comb += self.goes.eq(Mux(was_ready, Mux(self.two, came_two, came_one), stayed_place))
        with m.If(self.i.ready):
            m.d.sync += [
                must_wait.eq(waits),
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

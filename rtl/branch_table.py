"""Who waits for which branches."""

from amaranth.hdl import Assert, Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .config import TagConfig
from .layouts import resolve_signature

__all__ = ["BranchTable", "Dependence", "Resolution"]


class Resolution:
    """The resolve port of a unit, as one-hot masks.

    ``resolved`` has the branch that is resolved in this cycle, ``wrong`` has it if it was
    mispredicted.
    """

    def __init__(self, m: Module, config: TagConfig, resolve: wiring.PureInterface) -> None:
        self.resolved = Signal(config.branches)
        self.wrong = Signal(config.branches)
        with m.If(resolve.valid):
            m.d.comb += self.resolved.bit_select(resolve.branch, 1).eq(1)
            with m.If(resolve.mispredicted):
                m.d.comb += self.wrong.bit_select(resolve.branch, 1).eq(1)


class Dependence:
    """The unresolved branches of one access, and whether one of them squashed it.

    ``branches`` and ``squashed`` are the state at the start of a cycle; ``branches_after`` and
    ``squashed_after`` count in what is resolved in the cycle.
    """

    def __init__(self, config: TagConfig, resolution: Resolution, *, name: str) -> None:
        self.branches = Signal(config.branches, name=f"{name}_branches")
        self.squashed = Signal(name=f"{name}_squashed")
        self.branches_after = self.branches & ~resolution.resolved
        self.squashed_after = self.squashed | (self.branches & resolution.wrong).any()

    def follow(self, other: "Dependence | None" = None) -> list:
        """Statements that take over the state after this cycle: its own, or another's."""
        source = self if other is None else other
        return [
            self.branches.eq(source.branches_after),
            self.squashed.eq(source.squashed_after),
        ]


def _lowest(m: Module, index: Signal, flags: Value) -> None:
    """Drive ``index`` with the number of the lowest flag that is set."""
    for number in reversed(range(len(flags))):
        with m.If(flags[number]):
            m.d.comb += index.eq(number)


class BranchTable(wiring.Component):
    """Entries for accesses that hang on unresolved branches.

    An entry is taken by ``allocate``, becomes *done* by ``finish`` and is *ready* from the cycle
    in which it is done and hangs on no branch. Ready entries are offered one at a time, in turn,
    so that none waits for ever; the choice looks at nothing but the entries' numbers. A squashed
    entry is never offered: it frees itself when it is done.

    Members
    -------
    resolve : ``In(resolve_signature(config))``
        The branch that is resolved in this cycle.
    allocate : ``In(1)``
        Take entry ``slot``; only while ``available``.
    branches : ``In(config.branches)``
        Branches of the new entry that are unresolved at the end of this cycle.
    available : ``Out(1)``
        An entry is free.
    slot : ``Out(config.slot_bits)``
        Number of a free entry.
    finish : ``In(1)``
        Entry ``finish_slot`` is done. May come with its ``allocate``, or in any later cycle.
    finish_slot : ``In(config.slot_bits)``
        Which entry is done.
    ready : ``Out(1)``
        Entry ``ready_slot`` may be seen.
    ready_slot : ``Out(config.slot_bits)``
        Which entry may be seen; stays until ``release``.
    release : ``In(1)``
        Entry ``ready_slot`` is taken out.
    empty : ``Out(1)``
        No entry is taken.
    """

    resolve: wiring.PureInterface
    allocate: Signal
    branches: Signal
    available: Signal
    slot: Signal
    finish: Signal
    finish_slot: Signal
    ready: Signal
    ready_slot: Signal
    release: Signal
    empty: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "resolve": In(resolve_signature(config)),
                "allocate": In(1),
                "branches": In(config.branches),
                "available": Out(1),
                "slot": Out(config.slot_bits),
                "finish": In(1),
                "finish_slot": In(config.slot_bits),
                "ready": Out(1),
                "ready_slot": Out(config.slot_bits),
                "release": In(1),
                "empty": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        held = self.config.held
        resolution = Resolution(m, self.config, self.resolve)

        taken = Signal(held)
        done = Signal(held)
        dependences = [
            Dependence(self.config, resolution, name=f"entry{number}") for number in range(held)
        ]
        certain = Cat(dependence.branches == 0 for dependence in dependences)
        squashed = Cat(dependence.squashed for dependence in dependences)

        # A free entry for the next access.
        m.d.comb += [self.available.eq(~taken.all()), self.empty.eq(taken == 0)]
        _lowest(m, self.slot, ~taken)

        # A ready entry for the core: the lowest number at or above the turn, else the lowest.
        # The turn moves only by a release, so an offered entry stays offered.
        ready = Signal(held)
        below = Signal(held)  # entries whose turn has been, a thermometer code
        upper = Signal(held)
        offered = Signal()
        offered_slot = Signal(self.config.slot_bits)
        choice = Signal(self.config.slot_bits)
        m.d.comb += [
            ready.eq(taken & done & certain & ~squashed),
            upper.eq(ready & ~below),
            self.ready.eq(ready.any()),
        ]
        with m.If(upper.any()):
            _lowest(m, choice, upper)
        with m.Else():
            _lowest(m, choice, ready)
        m.d.comb += self.ready_slot.eq(choice)
        with m.If(offered):
            m.d.comb += self.ready_slot.eq(offered_slot)
        m.d.sync += [offered.eq(self.ready & ~self.release), offered_slot.eq(self.ready_slot)]
        with m.If(self.release):
            for number in range(held):
                m.d.sync += below[number].eq(number <= self.ready_slot)

        # The life of an entry.
        for number, dependence in enumerate(dependences):
            m.d.sync += dependence.follow()
            with m.If(taken[number] & done[number] & dependence.squashed):
                m.d.sync += [taken[number].eq(0), done[number].eq(0)]
            with m.If(self.release & (self.ready_slot == number)):
                m.d.sync += [taken[number].eq(0), done[number].eq(0)]
            with m.If(self.finish & (self.finish_slot == number)):
                m.d.sync += done[number].eq(1)
            with m.If(self.allocate & (self.slot == number)):
                m.d.sync += [
                    taken[number].eq(1),
                    dependence.branches.eq(self.branches),
                    dependence.squashed.eq(0),
                ]

        m.d.sync += [
            Assert(~self.allocate | self.available, "an entry is allocated, and none is free"),
            Assert(~self.release | self.ready, "an entry is released, and none is ready"),
        ]
        return m

"""Who waits for which branches."""

from amaranth.hdl import Assert, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .config import TagConfig

__all__ = ["BranchTable", "Dependence", "Resolution"]

GROUP = 4
"""Entries among which one is picked in a cycle: four flags are the inputs of one LUT."""


class Resolution:
    """What was resolved in the last cycle, as one-hot masks: any, and mispredicted ones."""

    def __init__(self, resolved: Value, wrong: Value) -> None:
        self.resolved = resolved
        self.wrong = wrong


class Dependence:
    """The unresolved branches of one access, and whether one of them squashed it."""

    def __init__(self, config: TagConfig, *, name: str) -> None:
        self.branches = Signal(config.branches, name=f"{name}_branches")
        self.squashed = Signal(name=f"{name}_squashed")

    def branches_after(self, resolution: Resolution) -> Value:
        """The branches, with what was just resolved counted in."""
        return self.branches & ~resolution.resolved

    def squashed_after(self, resolution: Resolution) -> Value:
        """Is it squashed, with what was just resolved counted in?"""
        return self.squashed | (self.branches & resolution.wrong).any()


def _lowest(flags: Value, start: Value | None = None) -> Value:
    """Number of the lowest flag that is set, of up to four; of the first one from ``start`` on."""
    numbers = range(len(flags))
    width = max(ceil_log2(len(flags)), 1)

    def first_from(begin: int) -> Value:
        number: Value = Value.cast(begin % len(flags))
        for n in reversed([(begin + n) % len(flags) for n in numbers]):
            number = Mux(flags[n], n, number)
        return number[:width]

    if start is None or len(flags) == 1:
        return first_from(0)
    result = first_from(0)
    for begin in range(1, len(flags)):
        result = Mux(start == begin, first_from(begin), result)
    return result


class BranchTable(wiring.Component):
    """Entries for accesses that hang on unresolved branches.

    An entry is taken by ``allocate`` and owes a finding for each of its tag words; ``finish`` pays.
    It is *ready* when it owes nothing, hangs on no branch, and is not squashed. Ready entries are
    picked one at a time, by a scan that goes round groups of four entries, so that none waits for
    ever; it looks at nothing but these flags. A squashed entry is never picked: it frees itself
    when it owes nothing.

    Members
    -------
    resolved, wrong : ``In(config.branches)``
        The branch that was resolved in the last cycle, one-hot; and whether it was mispredicted.
    allocate : ``In(1)``
        Take entry ``slot``; only while ``available``.
    branches : ``In(config.branches)``, squashed : ``In(1)``
        State of the new entry at the end of this cycle.
    owes : ``In(2)``
        The findings of the new entry that are to come.
    available, slot : ``Out(1)``, ``Out(config.slot_bits)``
        A free entry, and its number; registers. One can be taken in every cycle.
    finish : ``In(2)``
        A finding of entry ``finish_slot`` has come, of its first or its second word.
    finish_slot : ``In(config.slot_bits)``
        Which entry.
    picked : ``Out(1)``, picked_slot : ``Out(config.slot_bits)``
        Entry that may be seen; registers. It stays until ``release``.
    release : ``In(1)``
        The picked entry is taken out.
    certain : ``Out(1)``
        Some entry that was not squashed hangs on no branch, or will not from the next cycle on.
    empty : ``Out(1)``
        No entry is taken.
    """

    resolved: Signal
    wrong: Signal
    allocate: Signal
    branches: Signal
    squashed: Signal
    owes: Signal
    available: Signal
    slot: Signal
    finish: Signal
    finish_slot: Signal
    picked: Signal
    picked_slot: Signal
    release: Signal
    certain: Signal
    empty: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "resolved": In(config.branches),
                "wrong": In(config.branches),
                "allocate": In(1),
                "branches": In(config.branches),
                "squashed": In(1),
                "owes": In(2),
                "available": Out(1),
                "slot": Out(config.slot_bits),
                "finish": In(2),
                "finish_slot": In(config.slot_bits),
                "picked": Out(1),
                "picked_slot": Out(config.slot_bits),
                "release": In(1),
                "certain": Out(1),
                "empty": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        held = config.held
        resolution = Resolution(self.resolved, self.wrong)
        taken = Signal(held)
        ready = Signal(held)
        freed = Signal(held)

        # The life of an entry.
        certain = Signal(held)
        for number in range(held):
            here = Dependence(config, name=f"entry{number}")
            owed = Signal(2, name=f"entry{number}_owed")
            branches = Signal(config.branches, name=f"entry{number}_after")
            m.d.comb += branches.eq(here.branches_after(resolution))
            squashed = here.squashed_after(resolution)
            released = self.release & (self.picked_slot == number)
            m.d.comb += certain[number].eq(taken[number] & ~branches.any() & ~squashed)
            m.d.sync += [
                here.branches.eq(branches),
                here.squashed.eq(squashed),
                ready[number].eq(
                    taken[number]
                    & ~here.branches.any()
                    & ~here.squashed
                    & (owed == 0)
                    & ~freed[number]
                ),
            ]
            with m.If(self.finish_slot == number):
                m.d.sync += owed.eq(owed & ~self.finish)
            with m.If(released | (here.squashed & (owed == 0))):
                m.d.sync += taken[number].eq(0)
            with m.If(self.allocate & (self.slot == number)):
                m.d.sync += [
                    taken[number].eq(1),
                    here.branches.eq(self.branches),
                    here.squashed.eq(self.squashed),
                    owed.eq(self.owes),
                    ready[number].eq(0),
                ]

        # A free entry for the next access: not the one that is on offer.
        groups = [slice(at, min(at + GROUP, held)) for at in range(0, held, GROUP)]
        offered = Signal(held)
        m.d.comb += offered.bit_select(self.slot, 1).eq(self.available)
        free = Signal(held)
        m.d.comb += free.eq(~taken & ~offered)
        slot: Value = Value.cast(0)
        for number, group in reversed(list(enumerate(groups))):
            slot = Mux(free[group].any(), _lowest(free[group]) + GROUP * number, slot)
        with m.If(self.allocate | ~self.available):
            m.d.sync += [self.available.eq(free.any()), self.slot.eq(slot)]

        # A ready entry for the core: a look at one group in each cycle, from another start after
        # each round. An entry that is picked is no candidate any more.
        turn = Signal(range(len(groups)))
        start = Signal(2)
        flags = Signal(GROUP)
        number = Signal(config.slot_bits)
        gone = Signal(held)
        m.d.comb += gone.bit_select(self.picked_slot, 1).eq(self.picked)
        m.d.comb += freed.eq(gone)
        for index, group in enumerate(groups):
            with m.If(turn == index):
                m.d.comb += [
                    flags.eq((ready & ~gone)[group]),
                    number.eq(_lowest((ready & ~gone)[group], start) + GROUP * index),
                ]
        with m.If(self.release | ~self.picked):
            m.d.sync += [self.picked.eq(flags.any()), self.picked_slot.eq(number)]
            if len(groups) > 1:
                m.d.sync += turn.eq(turn + 1)
                with m.If(turn == len(groups) - 1):
                    m.d.sync += [turn.eq(0), start.eq(start + 1)]
            else:
                m.d.sync += start.eq(start + 1)

        m.d.comb += [self.certain.eq(certain.any()), self.empty.eq(taken == 0)]
        m.d.sync += [
            Assert(~self.allocate | self.available, "an entry is allocated, and none is free"),
            Assert(~self.release | self.picked, "an entry is released, and none is picked"),
        ]
        return m

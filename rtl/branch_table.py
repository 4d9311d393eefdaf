"""Who waits for which branches."""

from amaranth.hdl import Assert, Cat, Module, Mux, Signal, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .config import TagConfig

__all__ = ["BranchTable"]

GROUP = 4
"""Entries of which one is picked at a time: so many flags, and where to start, fit six inputs."""


def _first(flags: Value, start: Value) -> Value:
    """Number of the first flag that is set, from ``start`` on and round to it. There is one."""
    width = ceil_log2(len(flags))

    def first_from(begin: int) -> Value:
        order = [(begin + n) % len(flags) for n in range(len(flags))]
        number: Value = Value.cast(order[-1])
        for candidate in reversed(order[:-1]):
            number = Mux(flags[candidate], candidate, number)
        return number[:width]

    result = first_from(0)
    for begin in range(1, len(flags)):
        result = Mux(start == begin, first_from(begin), result)
    return result


class BranchTable(wiring.Component):
    """Entries for accesses that hang on unresolved branches.

    An entry is taken by ``allocate``. It is *settled* when it hangs on no branch, or is squashed;
    and *done* when its findings have come, one for each of its tag words. Entries that are both are
    picked one at a time, in turn, so that none waits for ever; the choice looks at nothing but
    these flags. It takes three cycles. An entry is free again after ``release``.

    Parameters
    ----------
    config : :class:`~emte.rtl.TagConfig`
        Number of entries and branches.
    parks : bool
        Nothing is to come for an entry: it is done from the start.

    Members
    -------
    resolving : ``In(config.branches)``
        The branch that is resolved in this cycle, one-hot; for ``certain`` alone.
    resolved, wrong : ``In(config.branches)``
        The branch that was resolved in the last cycle, one-hot; the same if it was mispredicted.
    allocate : ``In(1)``
        Take entry ``slot``; only while ``available``.
    branches : ``In(config.branches)``, squashed : ``In(1)``
        What the new entry hangs on at the end of this cycle, and whether it is squashed then.
    two : ``In(1)``
        It has two tag words.
    available : ``Out(1)``, slot : ``Out(config.slot_bits)``
        A free entry, and its number; registers. One can be taken in every cycle.
    stays_available : ``Out(1)``
        So it will be in the next cycle.
    finish : ``In(1)``
        A finding of entry ``finish_slot`` comes; not in the cycle after its ``allocate``.
    finish_slot : ``In(config.slot_bits)``
        Which entry.
    picked : ``Out(1)``, picked_slot : ``Out(config.slot_bits)``
        An entry that is settled and done; registers. It stays until ``release``.
    release : ``In(1)``
        The picked entry is taken out.
    dropped : ``Out(1)``
        The entry that was taken out in the cycle before had been squashed.
    certain : ``Out(1)``
        With ``parks``: an entry that is not picked yet, or comes in this cycle, hangs on no branch
        any more, as far as is known at the end of this cycle.
    empty : ``Out(1)``
        No entry is taken.
    """

    resolving: Signal
    resolved: Signal
    wrong: Signal
    allocate: Signal
    branches: Signal
    squashed: Signal
    two: Signal
    available: Signal
    slot: Signal
    stays_available: Signal
    finish: Signal
    finish_slot: Signal
    picked: Signal
    picked_slot: Signal
    release: Signal
    dropped: Signal
    certain: Signal
    empty: Signal

    def __init__(self, config: TagConfig, *, parks: bool = False) -> None:
        self.config = config
        self.parks = parks
        super().__init__(
            {
                "resolving": In(config.branches),
                "resolved": In(config.branches),
                "wrong": In(config.branches),
                "allocate": In(1),
                "branches": In(config.branches),
                "squashed": In(1),
                "two": In(1),
                "available": Out(1),
                "slot": Out(config.slot_bits),
                "stays_available": Out(1),
                "finish": In(1),
                "finish_slot": In(config.slot_bits),
                "picked": Out(1),
                "picked_slot": Out(config.slot_bits),
                "release": In(1),
                "dropped": Out(1),
                "certain": Out(1),
                "empty": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        held = config.held
        slot_bits = config.slot_bits

        # Free entries: a queue of their numbers. In its first round after reset it gives the
        # numbers in their order, so that nothing needs to be written into it. Two that come next
        # have left it, so that it need not know of an `allocate`.
        m.submodules.free = free = memory.Memory(shape=slot_bits, depth=held, init=[])
        free_write, free_read = free.write_port(), free.read_port(domain="comb")
        head = Signal(slot_bits)
        tail = Signal(slot_bits)
        left = Signal(range(held + 1), init=held)
        fresh = Signal(init=1)
        freed = Signal()
        freed_slot = Signal(slot_bits)
        some = Signal(init=1)
        next_ = Signal(slot_bits)
        second_next = Signal()
        second_next_slot = Signal(slot_bits)
        m.d.comb += [
            free_read.addr.eq(head),
            free_write.addr.eq(tail),
            free_write.data.eq(freed_slot),
            free_write.en.eq(freed),
            next_.eq(Mux(fresh, head, free_read.data)),
        ]
        m.d.sync += [
            freed.eq(self.release),
            freed_slot.eq(self.picked_slot),
            second_next.eq(self.available & ~self.allocate & (second_next | some)),
        ]
        m.d.comb += self.stays_available.eq((self.available & ~self.allocate) | second_next | some)
        m.d.sync += self.available.eq(self.stays_available)
        with m.If(self.allocate | ~self.available):
            m.d.sync += self.slot.eq(Mux(second_next, second_next_slot, next_))
        pops = some & ~second_next
        with m.If(~second_next):
            m.d.sync += second_next_slot.eq(next_)
        with m.If(pops):
            m.d.sync += head.eq(head + 1)
            with m.If(head == held - 1):
                m.d.sync += [head.eq(0), fresh.eq(0)]
        with m.If(freed):
            m.d.sync += tail.eq(tail + 1)
            with m.If(tail == held - 1):
                m.d.sync += tail.eq(0)
        m.d.sync += [
            left.eq(left + freed - pops),
            some.eq(freed | (some & ~(pops & (left == 1)))),
        ]

        # The new entry waits here for a cycle, which spares the table a long way. Whether it is
        # squashed comes still a cycle later; nothing depends on that before it has been picked.
        new = Signal(held)  # one-hot
        new_branches = Signal(config.branches)
        new_squashed = Signal()
        new_two = Signal()
        newest = Signal(held)  # one-hot
        newest_squashed = Signal()
        m.d.sync += [
            *(new[number].eq(self.slot == number) for number in range(held)),
            new_branches.eq(self.branches),
            new_squashed.eq(self.squashed),
            new_two.eq(self.two),
            newest.eq(new),
            newest_squashed.eq(new_squashed | (new_branches & self.wrong).any()),
        ]
        with m.If(~self.allocate):
            m.d.sync += new.eq(0)

        finished = Signal(held)  # one-hot
        m.d.sync += (finished[number].eq(self.finish_slot == number) for number in range(held))
        with m.If(~self.finish):
            m.d.sync += finished.eq(0)

        # The life of an entry. That it is done, is told until it is a candidate.
        groups = max(1 << ceil_log2(-(-held // GROUP)), 2)
        candidate_valid = Signal(groups)
        candidates = [Signal(ceil_log2(GROUP), name=f"candidate{n}") for n in range(groups)]
        squashed = Signal(held)
        ready = Signal(held)
        certain = Signal(held)
        unresolved = ~(self.resolved | self.resolving)
        for number in range(held):
            branches = Signal(config.branches, name=f"entry{number}_branches")
            settled = Signal(name=f"entry{number}_settled")
            owes = Signal(name=f"entry{number}_owes")  # the first of two findings
            done = Signal(name=f"entry{number}_done")
            starts = new[number]
            group, place = number % groups, number // groups
            hit = Signal(name=f"entry{number}_hit")
            was_squashed = squashed[number]
            finishes = finished[number]
            if self.parks:
                finishes = newest[number]
                was_squashed &= ~newest[number]  # by the one that had the entry before
            else:
                m.d.sync += owes.eq((owes & ~finishes) | (starts & new_two))
            m.d.comb += [
                ready[number].eq(settled & done),
                certain[number].eq((done | finishes) & ~(branches & unresolved).any()),
            ]
            m.d.sync += [
                branches.eq(Mux(starts, new_branches, branches) & ~self.resolved),
                hit.eq((branches & self.wrong).any()),
                squashed[number].eq(Mux(newest[number], newest_squashed, squashed[number] | hit)),
                settled.eq(was_squashed | ~(branches & ~self.resolved).any()),
                done.eq(
                    (done | (finishes & ~owes))
                    & ~(candidate_valid[group] & (candidates[group] == place))
                ),
            ]

        # Each group of entries has a candidate. One of those is picked.
        taken_candidate = Signal(groups)
        for group, candidate in enumerate(candidates):
            flags = Cat(ready[number] for number in range(group, held, groups))
            with m.If(~candidate_valid[group]):
                m.d.sync += [
                    candidate_valid[group].eq(flags.any()),
                    candidate.eq(_first(flags, (candidate + 1)[: len(candidate)])),
                ]
            with m.Elif(taken_candidate[group]):
                m.d.sync += candidate_valid[group].eq(0)
        # In each cycle one of two groups is looked at; each is the preferred one once in a round.
        # Two that are picked have places, so that the choice need not know of a release.
        half = groups // 2
        turn = Signal(range(groups))
        prefers = Signal(groups)  # one-hot
        chosen = Signal(slot_bits)
        any_chosen = Signal()
        second = Signal()
        second_slot = Signal(slot_bits)
        m.d.comb += prefers.bit_select(turn, 1).eq(1)
        for group in range(half):
            pair = (group, group + half)
            for one, other in (pair, pair[::-1]):
                m.d.comb += taken_candidate[one].eq(
                    ~second & (prefers[one] | (prefers[other] & ~candidate_valid[other]))
                )
            with m.If(prefers[pair[0]] | prefers[pair[1]]):
                first_of_pair = candidate_valid[pair[0]] & ~(
                    prefers[pair[1]] & candidate_valid[pair[1]]
                )
                m.d.comb += [
                    any_chosen.eq(candidate_valid[pair[0]] | candidate_valid[pair[1]]),
                    chosen.eq(
                        Mux(
                            first_of_pair,
                            pair[0] + groups * candidates[pair[0]],
                            pair[1] + groups * candidates[pair[1]],
                        )
                    ),
                ]
        with m.If(~second):
            m.d.sync += [turn.eq(turn + 1), second_slot.eq(chosen)]
        m.d.sync += second.eq(self.picked & ~self.release & (second | any_chosen))
        with m.If(self.release | ~self.picked):
            m.d.sync += [
                self.picked.eq(second | any_chosen),
                self.picked_slot.eq(Mux(second, second_slot, chosen)),
            ]
        m.d.comb += self.dropped.eq(squashed.bit_select(freed_slot, 1))

        taken = Signal(range(held + 1))
        allocated = Signal()
        m.d.sync += [
            allocated.eq(self.allocate),
            taken.eq(taken + allocated - freed),
            Assert(
                ~self.allocate | self.available,
                "an entry is allocated, and none is free",
            ),
            Assert(~self.release | self.picked, "an entry is released, and none is picked"),
        ]
        if self.parks:
            certain_new = new.any() & ~(new_branches & unresolved).any()
            comes = self.allocate & ~(self.branches & ~self.resolving).any()
            m.d.comb += self.certain.eq(
                comes | certain_new | certain.any() | candidate_valid.any() | second
            )
        m.d.comb += self.empty.eq((taken == 0) & ~allocated)
        return m

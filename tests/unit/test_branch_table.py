# amaranth: UnusedElaboratable=no
from dataclasses import dataclass

import pytest
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.branch_table import BranchTable
from emte.rtl.config import SMALL, TagConfig
from emte.rtl.layouts import resolve_signature
from emte.sim.harness import simulate


def test_init():
    config = TagConfig(held=5, branches=3)
    dut = BranchTable(config)
    assert dut.config is config
    assert dut.signature == Signature(
        {
            "resolve": In(resolve_signature(config)),
            "allocate": In(1),
            "branches": In(3),
            "available": Out(1),
            "slot": Out(3),
            "finish": In(1),
            "finish_slot": In(3),
            "ready": Out(1),
            "ready_slot": Out(3),
            "release": In(1),
            "empty": Out(1),
        }
    )


@dataclass
class Entry:
    branches: set
    done: bool = False
    squashed: bool = False
    waited: int = 0


class Bench:
    """Drives a table cycle by cycle, and holds it to what an entry is said to live through."""

    def __init__(self, dut, ctx):
        self.dut = dut
        self.ctx = ctx
        self.entries = {}
        self.offered = None

    async def cycle(self, *, allocate=None, finish=None, resolve=None, release=False):
        """One cycle; ``allocate`` is a set of branches, ``resolve`` a branch and whether it was
        mispredicted, ``finish`` a slot, or "new" for the one that is allocated."""
        dut, ctx = self.dut, self.ctx
        held = dut.config.held
        slot = self.check()
        if finish == "new":
            finish = slot
        ctx.set(dut.allocate, allocate is not None)
        ctx.set(dut.branches, sum(1 << branch for branch in allocate or ()))
        ctx.set(dut.finish, finish is not None)
        ctx.set(dut.finish_slot, finish or 0)
        ctx.set(dut.resolve.valid, resolve is not None)
        ctx.set(dut.resolve.branch, resolve[0] if resolve else 0)
        ctx.set(dut.resolve.mispredicted, bool(resolve and resolve[1]))
        ctx.set(dut.release, release)
        # The choice is made from registers alone.
        assert (ctx.get(dut.ready), ctx.get(dut.ready_slot)) == self.offer
        await ctx.tick()

        for number, entry in list(self.entries.items()):
            if entry.done and entry.squashed:
                del self.entries[number]
            elif resolve and resolve[0] in entry.branches:
                entry.branches.remove(resolve[0])
                entry.squashed |= resolve[1]
        if release:
            _, released = self.offer
            del self.entries[released]
            self.offered = None
            for entry in self.entries.values():
                if entry.done and not entry.branches and not entry.squashed:
                    entry.waited += 1
                    assert entry.waited <= held, "a ready entry is passed over"
        if allocate is not None:
            self.entries[slot] = Entry(set(allocate))
        if finish is not None and finish in self.entries:
            self.entries[finish].done = True

    def check(self):
        """What the table shows at the start of a cycle; returns the slot that it would take."""
        dut, ctx = self.dut, self.ctx
        ready = [
            number
            for number, entry in self.entries.items()
            if entry.done and not entry.branches and not entry.squashed
        ]
        assert ctx.get(dut.available) == (len(self.entries) < dut.config.held)
        assert ctx.get(dut.empty) == (not self.entries)
        assert ctx.get(dut.ready) == bool(ready)
        self.offer = (ctx.get(dut.ready), ctx.get(dut.ready_slot))
        if ready:
            assert self.offer[1] in ready
            assert self.offered in (None, self.offer[1]), "another entry is offered"
            self.offered = self.offer[1]
        slot = ctx.get(dut.slot)
        if ctx.get(dut.available):
            assert slot not in self.entries
        return slot


def play(config, scenario):
    dut = BranchTable(config)

    async def bench(ctx):
        await scenario(Bench(dut, ctx))

    simulate(dut, bench)


@pytest.mark.parametrize(
    "config",
    [SMALL, TagConfig(held=2, branches=1), TagConfig(held=5, branches=3), TagConfig(held=16)],
    ids=["small", "2 of 1", "5 of 3", "16 of 8"],
)
def test_sim_random(config, rng):
    seen = {"full": 0, "squashed": 0, "released": 0}

    async def scenario(bench):
        eagerness = 0.5
        for cycle in range(1500):
            if cycle % 100 == 0:
                eagerness = rng.choice([0.1, 0.5, 0.9])
            waiting = [n for n, entry in bench.entries.items() if not entry.done]
            full = len(bench.entries) == config.held
            opened = {branch for entry in bench.entries.values() for branch in entry.branches}
            resolve = None
            if opened and rng.random() < 0.4:
                resolve = (rng.choice(sorted(opened)), rng.random() < 0.3)
            allocate = finish = None
            if not full and rng.random() < 0.6:
                names = range(config.branches)
                allocate = set(rng.sample(names, rng.randint(0, min(3, config.branches))))
                allocate -= {resolve[0]} if resolve else set()
                if rng.random() < 0.2:
                    finish = "new"
            if finish is None and waiting and rng.random() < 0.5:
                finish = rng.choice(waiting)
            bench.check()
            release = bool(bench.offer[0] and rng.random() < eagerness)
            await bench.cycle(allocate=allocate, finish=finish, resolve=resolve, release=release)
            seen["full"] += full
            seen["released"] += release
            seen["squashed"] += any(entry.squashed for entry in bench.entries.values())

    play(config, scenario)
    assert all(count > 20 for count in seen.values()), seen


def test_timing_resolve():
    """An entry that is done is ready in the cycle after its last branch is resolved."""

    async def scenario(bench):
        await bench.cycle(allocate={0, 2}, finish="new")
        await bench.cycle(resolve=(2, False))
        assert not bench.ctx.get(bench.dut.ready)
        await bench.cycle(resolve=(0, False))
        assert bench.ctx.get(bench.dut.ready)
        await bench.cycle(release=True)
        assert bench.ctx.get(bench.dut.empty)

    play(SMALL, scenario)


def test_sim_resolve_while_offered():
    """A ready entry hangs on no branch, so nothing that is resolved takes it back."""

    async def scenario(bench):
        await bench.cycle(allocate={1}, finish="new")
        await bench.cycle(resolve=(1, False))
        for _ in range(4):
            await bench.cycle(resolve=(1, True))
        await bench.cycle(release=True)

    play(SMALL, scenario)


def test_sim_squashed_entry_waits_until_it_is_done():
    async def scenario(bench):
        await bench.cycle(allocate={1})
        await bench.cycle(resolve=(1, True))
        for _ in range(5):
            await bench.cycle()
            assert not bench.ctx.get(bench.dut.empty)
        await bench.cycle(finish=0)
        await bench.cycle()
        assert not bench.ctx.get(bench.dut.ready)
        assert bench.ctx.get(bench.dut.empty)

    play(SMALL, scenario)


def test_sim_one_of_several_branches_squashes():
    async def scenario(bench):
        await bench.cycle(allocate={0, 1, 2}, finish="new")
        await bench.cycle(resolve=(1, True))
        await bench.cycle()
        assert bench.ctx.get(bench.dut.empty)
        await bench.cycle(resolve=(0, False))
        await bench.cycle(resolve=(2, False))
        assert not bench.ctx.get(bench.dut.ready)

    play(SMALL, scenario)


def test_sim_new_owner_of_a_branch_name():
    """A name that is used again means another branch: the old resolve is forgotten."""

    async def scenario(bench):
        await bench.cycle(allocate={3}, finish="new")
        await bench.cycle(resolve=(3, True))
        await bench.cycle(allocate={3}, finish="new")
        await bench.cycle(resolve=(3, False))
        assert bench.ctx.get(bench.dut.ready)
        await bench.cycle(release=True)

    play(SMALL, scenario)


def test_sim_takes_turns():
    """While the others are taken again and again, each one still leaves in turn."""

    async def scenario(bench):
        for _ in range(SMALL.held):
            await bench.cycle(allocate=set(), finish="new")
        order = []
        for _ in range(3 * SMALL.held):
            bench.check()
            order.append(bench.offer[1])
            await bench.cycle(release=True)
            await bench.cycle(allocate=set(), finish="new")
        assert order == [0, 1, 2, 3] * 3

    play(SMALL, scenario)


@pytest.mark.parametrize(
    ("port", "message"),
    [
        ("allocate", "an entry is allocated, and none is free"),
        ("release", "an entry is released, and none is ready"),
    ],
)
def test_sim_misuse_is_an_error(port, message):
    dut = BranchTable(TagConfig(held=2))

    async def bench(ctx):
        ctx.set(dut.allocate, 1)
        ctx.set(dut.branches, 1)
        await ctx.tick().repeat(2)
        ctx.set(dut.allocate, 0)
        await ctx.tick().repeat(2)
        ctx.set(getattr(dut, port), 1)
        await ctx.tick()
        await ctx.tick()

    with pytest.raises(AssertionError, match=f"{message}$"):
        simulate(dut, bench)

# amaranth: UnusedElaboratable=no
from dataclasses import dataclass

import pytest
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.branch_table import BranchTable
from emte.rtl.config import SMALL, TagConfig
from emte.sim.harness import simulate

CONFIGS = {
    "small": SMALL,
    "2 of 1": TagConfig(held=2, branches=1),
    "3 of 2": TagConfig(held=3, branches=2),
    "5 of 3": TagConfig(held=5, branches=3),
    "16 of 8": TagConfig(held=16),
    "33 of 8": TagConfig(held=33),
}


@pytest.mark.parametrize("parks", [False, True])
def test_init(parks):
    config = TagConfig(held=5, branches=3)
    dut = BranchTable(config, parks=parks)
    assert dut.config is config
    assert dut.parks == parks
    assert dut.signature == Signature(
        {
            "resolving": In(3),
            "resolved": In(3),
            "wrong": In(3),
            "allocate": In(1),
            "branches": In(3),
            "squashed": In(1),
            "two": In(1),
            "available": Out(1),
            "slot": Out(3),
            "stays_available": Out(1),
            "finish": In(1),
            "finish_slot": In(3),
            "picked": Out(1),
            "picked_slot": Out(3),
            "release": In(1),
            "dropped": Out(1),
            "certain": Out(1),
            "empty": Out(1),
        }
    )


@dataclass
class Entry:
    slot: int
    branches: set
    owes: int
    born: int
    squashed: bool = False
    ready: int | None = None
    """Releases before it was settled and done."""


class Bench:
    """Drives a table cycle by cycle, and holds it to what an entry is said to live through."""

    def __init__(self, dut, ctx):
        self.dut = dut
        self.ctx = ctx
        self.entries = {}
        self.offered = None
        self.released = None
        self.now = 0
        self.releases = 0

    async def cycle(self, *, allocate=None, two=0, finish=None, resolve=None, release=False):
        """One cycle; ``allocate`` is a set of branches, ``resolve`` the branch that was resolved in
        the cycle before and whether it was mispredicted, ``finish`` a slot. Returns the entry that
        was allocated."""
        dut, ctx = self.dut, self.ctx
        self.look()
        slot = ctx.get(dut.slot)
        onehot = 1 << resolve[0] if resolve else 0
        ctx.set(dut.allocate, allocate is not None)
        ctx.set(dut.branches, sum(1 << branch for branch in allocate or ()))
        ctx.set(dut.two, two)
        ctx.set(dut.finish, finish is not None)
        ctx.set(dut.finish_slot, finish or 0)
        ctx.set(dut.resolved, onehot)
        ctx.set(dut.wrong, onehot if resolve and resolve[1] else 0)
        ctx.set(dut.release, release)
        if dut.parks:
            for entry in self.entries.values():
                if not entry.branches - ({resolve[0]} if resolve else set()):
                    picked = self.offered == entry.slot or entry.squashed
                    assert ctx.get(dut.certain) or picked
        await ctx.tick()
        self.now += 1

        for entry in self.entries.values():
            if resolve and resolve[0] in entry.branches:
                entry.branches.remove(resolve[0])
                entry.squashed |= resolve[1]
        if release:
            self.released = self.entries.pop(self.offered)
            self.offered = None
            self.releases += 1
        else:
            self.released = None
        new = None
        if allocate is not None:
            assert slot not in self.entries
            new = self.entries[slot] = Entry(slot, set(allocate), 1 + two, self.now)
            if dut.parks:
                new.owes = 0
        if finish is not None:
            self.entries[finish].owes -= 1
        for entry in self.entries.values():
            done = not entry.owes and (not entry.branches or entry.squashed)
            if done and entry.ready is None:
                entry.ready = self.releases
        return new

    def look(self):
        """What the table shows at the start of a cycle."""
        dut, ctx = self.dut, self.ctx
        if ctx.get(dut.available):
            assert ctx.get(dut.slot) not in self.entries
        assert not self.entries or not ctx.get(dut.empty)
        if ctx.get(dut.picked):
            slot = ctx.get(dut.picked_slot)
            assert self.entries[slot].ready is not None, "an entry is picked too early"
            assert self.offered in (None, slot), "another entry is offered"
            self.offered = slot
        else:
            assert self.offered is None
        if self.released:
            assert ctx.get(dut.dropped) == self.released.squashed

    def finishable(self):
        return [e.slot for e in self.entries.values() if e.owes and self.now > e.born + 1]


def play(config, scenario, *, parks=False):
    dut = BranchTable(config, parks=parks)

    async def bench(ctx):
        await scenario(Bench(dut, ctx))

    simulate(dut, bench)


@pytest.mark.parametrize("parks", [False, True])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_sim_random(config, parks, rng):
    seen = {"full": 0, "squashed": 0, "released": 0}

    async def scenario(bench):
        eagerness = 0.5
        opened = set()
        for cycle in range(2500):
            if cycle % 100 == 0:
                eagerness, rate = rng.choice([0.1, 0.5, 1]), rng.choice([0.1, 0.6, 1])
            resolve = None
            if opened and rng.random() < 0.4:
                resolve = (rng.choice(sorted(opened)), rng.random() < 0.3)
            allocate = finish = None
            if bench.ctx.get(bench.dut.available) and rng.random() < rate:
                names = range(config.branches)
                allocate = set(rng.sample(names, rng.randint(0, min(3, config.branches))))
                # What was resolved before the entry came, concerns it no more.
                allocate -= {resolve[0]} if resolve else set()
            if bench.finishable() and rng.random() < 0.7:
                finish = rng.choice(bench.finishable())
            bench.look()
            release = bench.offered is not None and rng.random() < eagerness
            await bench.cycle(
                allocate=allocate,
                two=0 if parks else rng.getrandbits(1),
                finish=finish,
                resolve=resolve,
                release=release,
            )
            opened |= allocate or set()
            opened -= {resolve[0]} if resolve else set()
            for entry in bench.entries.values():
                opened |= entry.branches
            seen["full"] += len(bench.entries) == config.held
            if bench.released:
                seen["released"] += 1
                seen["squashed"] += bench.released.squashed
        for _ in range(6 * config.held + 20):
            branches = {branch for entry in bench.entries.values() for branch in entry.branches}
            finish = bench.finishable()
            bench.look()
            await bench.cycle(
                resolve=(branches.pop(), False) if branches else None,
                finish=finish[0] if finish else None,
                release=bench.offered is not None,
            )
        assert bench.ctx.get(bench.dut.empty)

    play(config, scenario, parks=parks)
    assert all(count > 20 for count in seen.values()), seen


async def ready_cycle(bench):
    """The cycles until an entry is picked."""
    for cycles in range(20):
        if bench.ctx.get(bench.dut.picked):
            return cycles
        await bench.cycle()
    raise AssertionError("no entry is picked")


def test_timing_resolve():
    """Three cycles from the last resolve until an entry that is done is picked."""

    async def scenario(bench):
        await bench.cycle()
        entry = await bench.cycle(allocate={0, 2})
        await bench.cycle()
        await bench.cycle(finish=entry.slot)
        await bench.cycle(resolve=(2, False))
        for _ in range(6):
            await bench.cycle()
            assert not bench.ctx.get(bench.dut.picked)
        await bench.cycle(resolve=(0, False))
        assert await ready_cycle(bench) == 2
        await bench.cycle(release=True)
        assert not bench.ctx.get(bench.dut.empty)
        await bench.cycle()
        assert bench.ctx.get(bench.dut.empty)

    play(SMALL, scenario)


def test_timing_finish():
    """Four cycles from the last finding until an entry that hangs on no branch is picked."""

    async def scenario(bench):
        await bench.cycle()
        entry = await bench.cycle(allocate=set(), two=1)
        await bench.cycle()
        await bench.cycle(finish=entry.slot)
        for _ in range(6):
            await bench.cycle()
            assert not bench.ctx.get(bench.dut.picked)
        await bench.cycle(finish=entry.slot)
        assert await ready_cycle(bench) == 3

    play(SMALL, scenario)


def test_timing_throughput():
    """One entry is taken, and one released, in every cycle."""

    async def scenario(bench):
        finishes = []
        for cycle in range(60):
            bench.look()
            available = bench.ctx.get(bench.dut.available)
            assert available or cycle == 0
            due = finishes.pop(0) if finishes and finishes[0][0] == cycle else (0, None)
            entry = await bench.cycle(
                allocate=set() if available else None,
                finish=due[1],
                release=bench.offered is not None,
            )
            if entry:
                finishes.append((cycle + 3, entry.slot))
        assert bench.releases > 45

    play(TagConfig(), scenario)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_sim_takes_turns(config, rng):
    """While others are taken and done again and again, none waits longer than a few rounds."""

    async def scenario(bench):
        for _ in range(2000):
            finish = bench.finishable()
            bench.look()
            available = bench.ctx.get(bench.dut.available)
            await bench.cycle(
                allocate=set() if available else None,
                finish=min(finish) if finish else None,
                release=bench.offered is not None and rng.random() < 0.3,
            )
            for entry in bench.entries.values():
                if entry.ready is not None:
                    assert bench.releases - entry.ready <= 2 * config.held + 4

    play(config, scenario)


def test_sim_squashed_entry_waits_until_it_is_done():
    async def scenario(bench):
        await bench.cycle()
        entry = await bench.cycle(allocate={1, 2})
        await bench.cycle()
        await bench.cycle(resolve=(1, True))
        for _ in range(8):
            await bench.cycle()
            assert not bench.ctx.get(bench.dut.picked)
        await bench.cycle(finish=entry.slot)
        assert await ready_cycle(bench) == 3
        bench.look()
        await bench.cycle(release=True)
        assert bench.released.squashed
        await bench.cycle()

    play(SMALL, scenario)


def test_sim_new_owner_of_an_entry():
    """That the one before was squashed is nothing to the new one."""

    async def scenario(bench):
        for n in range(3 * SMALL.held):
            while not bench.ctx.get(bench.dut.available):
                await bench.cycle()
            entry = await bench.cycle(allocate={n % 2, 3})
            await bench.cycle()
            await bench.cycle(finish=entry.slot)
            await bench.cycle(resolve=(n % 2, n % 3 > 0))
            await bench.cycle(resolve=(3, False))
            await ready_cycle(bench)
            bench.look()
            await bench.cycle(release=True)
            assert bench.released.squashed == (n % 3 > 0)

    play(SMALL, scenario)


@pytest.mark.parametrize(
    ("port", "message"),
    [
        ("allocate", "an entry is allocated, and none is free"),
        ("release", "an entry is released, and none is picked"),
    ],
)
def test_sim_misuse_is_an_error(port, message):
    dut = BranchTable(TagConfig(held=2))

    async def bench(ctx):
        await ctx.tick()
        ctx.set(dut.allocate, 1)
        ctx.set(dut.branches, 1)
        await ctx.tick().repeat(2)
        ctx.set(dut.allocate, 0)
        await ctx.tick().repeat(2)
        ctx.set(getattr(dut, port), 1)
        await ctx.tick()
        await ctx.tick()

    with pytest.raises(AssertionError, match=message):
        simulate(dut, bench)

# amaranth: UnusedElaboratable=no
from dataclasses import dataclass, field

from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.access_queue import AccessQueue
from emte.rtl.config import SMALL, TagConfig
from emte.rtl.layouts import request_layout, resolve_signature
from emte.sim.harness import simulate
from unit_support import integer, watched

CONFIG = TagConfig(branches=4, id_bits=8)
REQUEST = request_layout(CONFIG)


def test_init():
    dut = AccessQueue(SMALL)
    assert dut.config is SMALL
    request = stream.Signature(request_layout(SMALL))
    assert dut.signature == Signature(
        {
            "i": In(request),
            "o": Out(request),
            "o_branches": Out(SMALL.branches),
            "o_squashed": Out(1),
            "resolve": In(resolve_signature(SMALL)),
        }
    )


@dataclass
class Access:
    id: int
    branches: set
    unresolved: set = field(init=False)
    squashed: bool = False

    def __post_init__(self):
        self.unresolved = set(self.branches)

    def resolve(self, branch, mispredicted):
        if branch in self.unresolved:
            self.unresolved.remove(branch)
            self.squashed |= mispredicted


class Bench:
    """Drives the queue cycle by cycle beside a list of the accesses that wait in it."""

    def __init__(self, dut, ctx):
        self.dut = dut
        self.ctx = ctx
        self.waiting = []
        self.offered = None
        self.next_id = 0

    def offer(self, branches):
        """Offer another access, from this cycle on."""
        self.offered = Access(self.next_id % 256, set(branches))
        self.next_id += 1
        self.payload = integer(
            REQUEST,
            {
                "access": {
                    "id": self.offered.id,
                    "va": self.next_id * 0x1234_5678_9ABC_DEF1 % (1 << 64),
                    "branches": sum(1 << branch for branch in branches),
                    "tags": self.next_id,
                },
                "control": {"tbi": self.next_id % 4, "storage_base": self.next_id << 20},
            },
        )
        self.offered.payload = self.payload

    async def cycle(self, *, ready=0, resolve=None):
        """One cycle; returns the access that left, if one did."""
        dut, ctx = self.dut, self.ctx
        ctx.set(dut.i.valid, self.offered is not None)
        if self.offered is not None:
            ctx.set(dut.i.payload.as_value(), self.offered.payload)
        ctx.set(dut.resolve.valid, resolve is not None)
        ctx.set(dut.resolve.branch, resolve[0] if resolve else 0)
        ctx.set(dut.resolve.mispredicted, bool(resolve and resolve[1]))
        ctx.set(dut.o.ready, ready)
        if resolve:
            for access in [*self.waiting, *([self.offered] if self.offered else [])]:
                access.resolve(*resolve)

        room = len(self.waiting) < 2
        assert ctx.get(dut.i.ready) == room
        assert ctx.get(dut.o.valid) == bool(self.waiting)
        if self.waiting:
            head = self.waiting[0]
            assert ctx.get(dut.o.payload.as_value()) == head.payload
            assert ctx.get(dut.o_squashed) == head.squashed
            if not head.squashed:
                unresolved = sum(1 << branch for branch in head.unresolved)
                assert ctx.get(dut.o_branches) == unresolved
        await ctx.tick()

        left = self.waiting.pop(0) if ready and self.waiting else None
        if self.offered is not None and room:
            self.waiting.append(self.offered)
            self.offered = None
        return left


def play(scenario):
    dut = AccessQueue(CONFIG)

    async def bench(ctx):
        await scenario(Bench(dut, ctx))

    simulate(watched(dut), bench)


def test_sim_random(rng):
    seen = {"squashed": 0, "certain": 0, "resolved at the door": 0}

    async def scenario(bench):
        eagerness = 0.5
        for cycle in range(2500):
            if cycle % 64 == 0:
                eagerness = rng.choice([0.1, 0.5, 1])
            if bench.offered is None and rng.random() < 0.7:
                bench.offer(rng.sample(range(4), rng.choice([0, 1, 1, 2, 4])))
            resolve = None
            if rng.random() < 0.4:
                resolve = (rng.randrange(4), rng.random() < 0.3)
                door = bench.offered
                seen["resolved at the door"] += bool(
                    door and resolve[0] in door.unresolved and len(bench.waiting) == 2
                )
            left = await bench.cycle(ready=rng.random() < eagerness, resolve=resolve)
            if left is not None:
                seen["squashed"] += left.squashed
                seen["certain"] += not left.squashed and not left.unresolved

    play(scenario)
    assert all(count > 50 for count in seen.values()), seen


def test_timing_transfer():
    """One access in each cycle, each of them for one cycle inside."""

    async def scenario(bench):
        bench.offer(())
        await bench.cycle(ready=1)
        for expected in range(20):
            bench.offer(())
            left = await bench.cycle(ready=1)
            assert left.id == expected

    play(scenario)


def test_timing_backpressure():
    """Two are taken; the third one waits at the door until there is room again."""

    async def scenario(bench):
        for _ in range(2):
            bench.offer(())
            await bench.cycle()
        bench.offer(())
        for _ in range(3):
            await bench.cycle()
            assert bench.offered is not None
        assert (await bench.cycle(ready=1)).id == 0
        assert (await bench.cycle(ready=1)).id == 1
        assert (await bench.cycle(ready=1)).id == 2

    play(scenario)


def test_sim_resolve_in_the_cycle_of_the_transfer():
    async def scenario(bench):
        bench.offer({1, 2})
        await bench.cycle(resolve=(1, False))
        bench.offer({2})
        await bench.cycle(resolve=(2, True))
        first = await bench.cycle(ready=1)
        second = await bench.cycle(ready=1)
        assert first.squashed
        assert second.squashed

    play(scenario)


def test_sim_resolve_in_the_first_cycle_at_a_closed_door():
    """The mask at the port stays as it was; the resolve is remembered, for this access alone."""

    async def scenario(bench):
        for _ in range(2):
            bench.offer(())
            await bench.cycle()
        bench.offer({0, 3})
        await bench.cycle(resolve=(3, True))
        await bench.cycle(resolve=(0, False))
        await bench.cycle(ready=1)
        await bench.cycle()
        bench.offer({0, 3})  # other branches of the same names
        await bench.cycle(ready=1)
        assert (await bench.cycle(ready=1)).squashed
        left = await bench.cycle(ready=1)
        assert left.unresolved == {0, 3}

    play(scenario)


def test_sim_every_place_sees_every_resolve():
    """At the door, in the tail and at the head: in each cycle of each stay."""

    async def scenario(bench):
        for cycle in range(12):
            for mispredicted in (False, True):
                for n in range(3):
                    bench.offer({n})
                    await bench.cycle()
                for n in range(3):
                    resolve = (n, mispredicted) if cycle % 4 == n else None
                    await bench.cycle(resolve=resolve)
                for n in range(3):
                    resolve = (n, mispredicted) if cycle // 4 == n and cycle % 4 != n else None
                    left = await bench.cycle(ready=1, resolve=resolve)
                    resolved = n in (cycle % 4, cycle // 4)
                    assert left.unresolved == (set() if resolved else {n})
                    assert left.squashed == (resolved and mispredicted)

    play(scenario)

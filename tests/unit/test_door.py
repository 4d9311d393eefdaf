# amaranth: UnusedElaboratable=no
from dataclasses import dataclass, field

import pytest
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.config import SMALL, TagConfig
from emte.rtl.door import Door
from emte.rtl.layouts import Op, request_layout, resolve_signature
from emte.sim.harness import simulate
from unit_support import integer, plain, watched

CONFIG = TagConfig(branches=4, id_bits=8)
REQUEST = request_layout(CONFIG)
PATIENT = set(Op) - {Op.LOAD, Op.STORE, Op.ATOMIC, Op.LDG}


def test_init():
    dut = Door(SMALL)
    assert dut.config is SMALL
    request = request_layout(SMALL)
    flags = ("valid", "two", "tag_store", "certain", "goes", "speculative", "squashed")
    assert dut.signature == Signature(
        {
            "i": In(stream.Signature(request)),
            "o": Out(request),
            **{name: Out(1) for name in flags},
            "branches": Out(SMALL.branches),
            **{name: In(1) for name in ("one_free", "two_free", "leave")},
            "resolve": In(resolve_signature(SMALL)),
            **{name: In(SMALL.branches) for name in ("resolved", "wrong")},
        }
    )


@dataclass
class Access:
    serial: int
    fields: dict
    branches: set
    unresolved: set = field(init=False)
    squashed: bool = False

    def __post_init__(self):
        self.unresolved = set(self.branches)

    @property
    def op(self):
        return self.fields["access"]["op"]

    def resolve(self, branch, mispredicted):
        if branch in self.unresolved:
            self.unresolved.remove(branch)
            self.squashed |= mispredicted


class Bench:
    """Drives the door cycle by cycle, beside an account of the access inside.

    The door hears of a resolve a cycle late, so the account is kept as of the cycle before.
    """

    def __init__(self, dut, ctx):
        self.dut = dut
        self.ctx = ctx
        self.offered = None
        self.inside = None
        self.last = None
        self.serial = 0
        self.free = (1, 1)

    def offer(self, branches=(), *, op=Op.LOAD, two=0):
        """Offer another access, from this cycle on."""
        self.serial += 1
        access = {
            "id": self.serial % 256,
            "op": op,
            "va": self.serial * 0x1234_5678_9ABC_DEF1 % (1 << 64),
            "pa": 0xFFF0 if two else 0xFF00,
            "bytes": 17,
            "branches": sum(1 << branch for branch in branches),
            "tags": self.serial,
        }
        bits = integer(REQUEST, {"access": access, "regime": {"tbi": self.serial % 4}})
        self.offered = Access(self.serial, plain(REQUEST.from_bits(bits)), set(branches))
        self.payload = bits
        return self.offered

    async def cycle(self, *, leave=True, resolve=None, free=(1, 1)):
        """One cycle; returns the access that left, if one did. ``leave`` tells whether one that
        may leave does."""
        dut, ctx = self.dut, self.ctx
        ctx.set(dut.i.valid, self.offered is not None)
        if self.offered is not None:
            ctx.set(dut.i.payload.as_value(), self.payload)
        ctx.set(dut.resolve.valid, resolve is not None)
        ctx.set(dut.resolve.branch, resolve[0] if resolve else 0)
        ctx.set(dut.resolve.mispredicted, bool(resolve and resolve[1]))
        ctx.set(dut.resolved, 1 << self.last[0] if self.last else 0)
        ctx.set(dut.wrong, 1 << self.last[0] if self.last and self.last[1] else 0)
        ctx.set(dut.one_free, free[0])
        ctx.set(dut.two_free, free[1])

        inside = self.inside
        assert ctx.get(dut.valid) == (inside is not None)
        if inside:
            hangs = bool(inside.unresolved)
            access = inside.fields["access"] | {"branches": 0}
            assert plain(ctx.get(dut.o)) == inside.fields | {"access": access}
            two = access["pa"] == 0xFFF0 and inside.op in (Op.LOAD, Op.STORE, Op.ATOMIC, Op.STG)
            assert ctx.get(dut.two) == two
            assert ctx.get(dut.tag_store) == (inside.op in (Op.STG, Op.STGM))
            assert ctx.get(dut.certain) == (not hangs)
            assert ctx.get(dut.speculative) == (hangs and inside.op not in PATIENT)
            assert ctx.get(dut.goes) == (not hangs and self.free[two])
            # What is known in this cycle, as of its end.
            if self.last:
                inside.resolve(*self.last)
            assert ctx.get(dut.branches) == sum(1 << branch for branch in inside.unresolved)
            assert ctx.get(dut.squashed) == inside.squashed
        goes = inside is not None and (ctx.get(dut.goes) or ctx.get(dut.speculative)) and leave
        ctx.set(dut.leave, goes)
        taken = ctx.get(dut.i.ready)
        assert taken == (inside is None or goes)
        two_left = ctx.get(dut.two) and ctx.get(dut.certain)
        await ctx.tick()

        self.free = free
        if goes or (inside and inside.squashed):
            self.inside = None
        if taken and two_left:
            self.free = (free[0], 0)
        if self.offered:
            # One that is squashed while it is offered is taken, and gone.
            if taken:
                came, self.offered = self.offered, None
                self.inside = None if came.squashed else came
            if resolve and not taken:
                self.offered.resolve(*resolve)
        self.last = resolve
        return inside if goes else None


def play(scenario):
    dut = Door(CONFIG)

    async def bench(ctx):
        await scenario(Bench(dut, ctx))

    simulate(watched(dut), bench)


def test_sim_random(rng):
    seen = {"left": 0, "speculative": 0, "squashed": 0, "squashed at the port": 0}

    async def scenario(bench):
        eagerness = 0.5
        for cycle in range(2500):
            if cycle % 64 == 0:
                eagerness = rng.choice([0.1, 0.5, 1])
            if bench.offered is None and rng.random() < 0.7:
                branches = rng.sample(range(4), rng.choice([0, 0, 1, 1, 2, 4]))
                bench.offer(branches, op=rng.choice(list(Op)), two=rng.getrandbits(1))
            resolve = (rng.randrange(4), rng.random() < 0.3) if rng.random() < 0.4 else None
            before, offered = bench.inside, bench.offered
            left = await bench.cycle(
                leave=rng.random() < eagerness,
                resolve=resolve,
                free=(rng.random() < 0.7, rng.random() < 0.7),
            )
            if left:
                seen["left"] += 1
                seen["speculative"] += bool(left.unresolved)
            seen["squashed"] += bool(before and not left and bench.inside is None)
            seen["squashed at the port"] += bool(
                offered and offered.squashed and bench.offered is None
            )

    play(scenario)
    assert all(count > 25 for count in seen.values()), seen


def test_timing_transfer():
    """One access in each cycle, each of them for one cycle inside."""

    async def scenario(bench):
        bench.offer()
        await bench.cycle()
        for serial in range(1, 20):
            bench.offer()
            left = await bench.cycle()
            assert left.serial == serial

    play(scenario)


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "mispredicted"])
def test_sim_resolve_in_the_cycle_of_the_transfer(wrong):
    async def scenario(bench):
        access = bench.offer({1})
        await bench.cycle(resolve=(1, wrong))
        await bench.cycle(leave=False)
        assert access.squashed == wrong
        assert access.unresolved == set()
        left = await bench.cycle()
        assert left is (None if wrong else access)

    play(scenario)


def test_sim_new_owner_of_a_branch_name():
    """An access that is offered first in the cycle after a resolve means another branch."""

    async def scenario(bench):
        bench.offer()
        await bench.cycle(resolve=(2, True))
        access = bench.offer({2})
        await bench.cycle()
        await bench.cycle(leave=False)
        assert access.unresolved == {2}
        assert not access.squashed

    play(scenario)

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
    flags = ("valid", "two", "tag_store", "leave", "speculative", "squashed")
    free = ("one_free", "two_free", "certain_free", "speculative_free", "store_free")
    assert dut.signature == Signature(
        {
            "i": In(stream.Signature(request)),
            "o": Out(request),
            **{name: Out(1) for name in flags},
            "branches": Out(SMALL.branches),
            **{name: In(1) for name in free},
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


@dataclass(frozen=True)
class Free:
    """What there is place for in the next cycle."""

    one: bool = True
    two: bool = True
    certain: bool = True
    speculative: bool = True
    store: bool = True

    @staticmethod
    def random(rng, eagerness):
        return Free(*(rng.random() < eagerness for _ in range(5)))


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
        self.may_leave = (False, False)  # as a certain access, as a speculative one
        self.must_leave = False

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

    def decide(self, access, hangs, free, two_left, sure):
        """May an access, which is inside in the next cycle, leave then; and must it? For one that
        comes it is not known (``sure``) whether it touches two tag words, only whether it might."""
        two = self.two(access)
        near_end = access.fields["access"]["pa"] == 0xFFF0
        two_free = free.two and not two_left
        store = access.op not in (Op.STG, Op.STGM) or free.store
        certain = not hangs and free.certain and store and (two_free if two else free.one)
        speculative = hangs and free.speculative and access.op not in PATIENT
        hurries = sure or (free.one and (two_free or not near_end))
        return (certain, speculative), speculative or (certain and hurries)

    @staticmethod
    def two(access):
        two_words = access.op in (Op.LOAD, Op.STORE, Op.ATOMIC, Op.STG)
        return access.fields["access"]["pa"] == 0xFFF0 and two_words

    async def cycle(self, *, resolve=None, free=Free()):
        """One cycle; returns the access that left, if one did, and whether as a speculative one."""
        dut, ctx = self.dut, self.ctx
        ctx.set(dut.i.valid, self.offered is not None)
        if self.offered is not None:
            ctx.set(dut.i.payload.as_value(), self.payload)
        ctx.set(dut.resolve.valid, resolve is not None)
        ctx.set(dut.resolve.branch, resolve[0] if resolve else 0)
        ctx.set(dut.resolve.mispredicted, bool(resolve and resolve[1]))
        ctx.set(dut.resolved, 1 << self.last[0] if self.last else 0)
        ctx.set(dut.wrong, 1 << self.last[0] if self.last and self.last[1] else 0)
        for name in ("one", "two", "certain", "speculative", "store"):
            ctx.set(getattr(dut, f"{name}_free"), getattr(free, name))

        inside = self.inside
        gone = inside is not None and inside.squashed
        leaves = bool(ctx.get(dut.leave))
        speculative = bool(ctx.get(dut.speculative))
        assert ctx.get(dut.valid) == (inside is not None and not gone)
        hung = False
        if inside:
            hung = bool(inside.unresolved)
            access = inside.fields["access"] | {"branches": 0}
            assert plain(ctx.get(dut.o)) == inside.fields | {"access": access}
            assert ctx.get(dut.two) == self.two(inside)
            assert ctx.get(dut.tag_store) == (inside.op in (Op.STG, Op.STGM))
            # What is known in this cycle, as of its end.
            if self.last:
                inside.resolve(*self.last)
            assert ctx.get(dut.branches) == sum(1 << branch for branch in inside.unresolved)
            assert ctx.get(dut.squashed) == inside.squashed
        if leaves:
            assert self.may_leave[speculative]
        else:
            assert not self.must_leave
        ready = ctx.get(dut.i.ready)
        assert ready == (inside is None or leaves)
        two_left = leaves and not speculative and self.two(inside)
        await ctx.tick()

        self.may_leave, self.must_leave = (False, False), False
        if ready:
            came, self.offered = self.offered, None
            # One that is squashed while it is offered is taken, and gone.
            self.inside = None if came is None or came.squashed else came
            if self.inside:
                hangs = bool(came.unresolved)
                self.may_leave, self.must_leave = self.decide(came, hangs, free, two_left, False)
        else:
            if self.offered and resolve:
                self.offered.resolve(*resolve)
            if gone:
                self.inside = None
            else:
                self.may_leave, self.must_leave = self.decide(inside, hung, free, False, True)
        self.last = resolve
        return (inside, speculative) if leaves else None


def play(scenario):
    dut = Door(CONFIG)

    async def bench(ctx):
        await scenario(Bench(dut, ctx))

    simulate(watched(dut), bench)


def test_sim_random(rng):
    seen = {"left": 0, "speculative": 0, "squashed": 0, "squashed at the port": 0}

    async def scenario(bench):
        eagerness = 0.5
        for cycle in range(4000):
            if cycle % 64 == 0:
                eagerness = rng.choice([0.3, 0.7, 1])
            if bench.offered is None and rng.random() < 0.7:
                branches = rng.sample(range(4), rng.choice([0, 0, 1, 1, 2, 4]))
                bench.offer(branches, op=rng.choice(list(Op)), two=rng.getrandbits(1))
            resolve = (rng.randrange(4), rng.random() < 0.3) if rng.random() < 0.4 else None
            before, offered = bench.inside, bench.offered
            left = await bench.cycle(resolve=resolve, free=Free.random(rng, eagerness))
            if left:
                seen["left"] += 1
                seen["speculative"] += left[1]
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
            bench.offer(op=Op.STG if serial % 2 else Op.LOAD)
            left, speculative = await bench.cycle()
            assert left.serial == serial
            assert not speculative

    play(scenario)


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "mispredicted"])
def test_sim_resolve_in_the_cycle_of_the_transfer(wrong):
    async def scenario(bench):
        access = bench.offer({1})
        await bench.cycle(resolve=(1, wrong), free=Free(speculative=False))
        await bench.cycle(free=Free(speculative=False))
        assert access.squashed == wrong
        assert access.unresolved == set()
        # That it hung on no branch is known to the decision a cycle later.
        assert await bench.cycle() is None
        left = await bench.cycle()
        assert left == (None if wrong else (access, False))

    play(scenario)


def test_sim_new_owner_of_a_branch_name():
    """An access that is offered first in the cycle after a resolve means another branch."""

    async def scenario(bench):
        bench.offer()
        await bench.cycle(resolve=(2, True))
        access = bench.offer({2})
        await bench.cycle(free=Free(speculative=False))
        await bench.cycle(free=Free(speculative=False))
        assert access.unresolved == {2}
        assert not access.squashed

    play(scenario)

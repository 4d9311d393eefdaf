# amaranth: UnusedElaboratable=no
from collections import deque

from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.config import SMALL
from emte.rtl.store_buffer import UNDER_WAY, StoreBuffer
from emte.sim.harness import simulate

DEPTH = 16


def test_init():
    dut = StoreBuffer(SMALL)
    assert dut.config is SMALL
    assert dut.signature == Signature(
        {
            "ready": Out(1),
            "slot": Out(4),
            "write": In(1),
            "secret_write_tags": In(64),
            "read_slot": In(4),
            "secret_tags": Out(64),
            "waits": In(1),
            "waits_slot": In(4),
            "leaves": In(1),
            "leaves_slot": In(4),
        }
    )


async def cycle(ctx, dut, tags=None, *, waits=None, leaves=None, reads=0):
    """One cycle; the tags at place ``reads`` in it."""
    ctx.set(dut.write, tags is not None)
    ctx.set(dut.secret_write_tags, 0 if tags is None else tags)
    ctx.set(dut.read_slot, reads)
    for name, slot in (("waits", waits), ("leaves", leaves)):
        ctx.set(getattr(dut, name), slot is not None)
        ctx.set(getattr(dut, f"{name}_slot"), slot or 0)
    seen = ctx.get(dut.secret_tags)
    await ctx.tick()
    return seen


def test_sim_random(rng):
    """Each tag store reads its own tags, as it passes by and as it leaves the list, in order."""
    dut = StoreBuffer(SMALL)
    stores = waited = 0

    async def bench(ctx):
        nonlocal stores, waited
        under_way = deque([None] * (UNDER_WAY - 1))
        waiting = deque()
        for step in range(6000):
            if step % 100 == 0:
                rate, misses, arrivals = (rng.choice((0.1, 0.5, 0.95)) for _ in range(3))
            new = tags = None
            if ctx.get(dut.ready) and rng.random() < rate:
                tags = rng.getrandbits(64)
                new = ctx.get(dut.slot), tags
                stores += 1
            under_way.append(new)
            passing = under_way.popleft()
            joins = passing is not None and (bool(waiting) or rng.random() < misses)
            # A replay takes a slot of the pipeline, so nothing passes beside it.
            goes = passing is None and bool(waiting) and rng.random() < arrivals
            reader = waiting[0] if goes else passing
            seen = await cycle(
                ctx,
                dut,
                tags,
                waits=passing[0] if joins else None,
                leaves=waiting[0][0] if goes else None,
                reads=reader[0] if reader else rng.randrange(DEPTH),
            )
            if reader:
                assert seen == reader[1]
            if joins:
                waiting.append(passing)
                waited += 1
            if goes:
                waiting.popleft()

    simulate(dut, bench)
    assert waited > 100
    assert stores > waited + 100


def test_timing_one_per_cycle(rng):
    """While none of them waits, there is always a place."""
    dut = StoreBuffer(SMALL)

    async def bench(ctx):
        await cycle(ctx, dut)
        await cycle(ctx, dut)
        for number in range(50):
            assert ctx.get(dut.ready)
            assert ctx.get(dut.slot) == number % DEPTH
            await cycle(ctx, dut, number)

    simulate(dut, bench)


def test_sim_ring_stops_before_the_one_that_waits(rng):
    """As long as a tag store waits, its place is not written, and it is given back later."""
    dut = StoreBuffer(SMALL)

    async def bench(ctx):
        await cycle(ctx, dut)
        await cycle(ctx, dut)
        await cycle(ctx, dut, 0x1234)
        for _ in range(UNDER_WAY - 2):
            await cycle(ctx, dut)
        await cycle(ctx, dut, waits=0)
        for step in range(100):
            await cycle(ctx, dut, step if ctx.get(dut.ready) else None)
        assert not ctx.get(dut.ready)
        assert await cycle(ctx, dut, reads=0) == 0x1234
        await cycle(ctx, dut, leaves=0)
        for _ in range(4):
            await cycle(ctx, dut)
        assert ctx.get(dut.ready)

    simulate(dut, bench)

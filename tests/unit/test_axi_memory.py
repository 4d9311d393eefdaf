import itertools
from itertools import pairwise

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from emte.rtl.axi import AXI4Signature, Burst, Response
from emte.sim.axi_memory import GARBAGE, AxiMemory
from emte.sim.harness import simulate
from emte.sim.streams import random_pauses

SIGNATURE = AXI4Signature(address_width=32, data_width=64, id_width=4)


class Manager(wiring.Component):
    """The signals of a manager, for a testbench to drive."""

    axi: Out(SIGNATURE)

    def elaborate(self, platform):
        return Module()


def perform(*bursts, rules=None, prepare=None, **options):
    """Perform bursts, (address, words to write) or (address, beats to read), one by one."""
    dut = Manager()
    axi = dut.axi
    memory = AxiMemory(axi, **options)
    if prepare is not None:
        prepare(memory)
    results = []
    rules = {"burst": Burst.INCR, "size": 3, "strb": 0xFF, "last": 0, "id": 5} | (rules or {})

    async def until(ctx, ready):
        taken = 0
        while not taken:
            _, _, taken = await ctx.tick().sample(ready)

    async def address(ctx, channel, start, beats):
        for name, value in {
            "addr": start,
            "len": beats - 1,
            "burst": rules["burst"],
            "size": rules["size"],
            "id": rules["id"],
            "valid": 1,
        }.items():
            ctx.set(getattr(axi, channel + name), value)
        await until(ctx, getattr(axi, f"{channel}ready"))
        ctx.set(getattr(axi, f"{channel}valid"), 0)

    async def bench(ctx):
        for start, what in bursts:
            if isinstance(what, int):
                await address(ctx, "ar", start, what)
                ctx.set(axi.rready, 1)
                last = 0
                while not last:
                    _, _, valid, last, *beat = await ctx.tick().sample(
                        axi.rvalid, axi.rlast, axi.rdata, axi.rresp, axi.rid
                    )
                    last = last and valid
                    if valid:
                        results.append(tuple(beat))
                ctx.set(axi.rready, 0)
                continue
            await address(ctx, "aw", start, len(what))
            for n, word in enumerate(what):
                ctx.set(axi.wdata, word)
                ctx.set(axi.wstrb, rules["strb"])
                ctx.set(axi.wlast, (n == len(what) - 1) ^ rules["last"])
                ctx.set(axi.wvalid, 1)
                await until(ctx, axi.wready)
                ctx.set(axi.wvalid, 0)
            ctx.set(axi.bready, 1)
            valid = 0
            while not valid:
                _, _, valid, *response = await ctx.tick().sample(axi.bvalid, axi.bresp, axi.bid)
            ctx.set(axi.bready, 0)
            results.append(tuple(response))

    simulate(dut, bench, background=[memory.bench])
    return memory, results


def test_what_is_written_is_read():
    memory, results = perform((0x100, [1, 2, 3]), (0x0F8, 5))
    assert results == [(Response.OKAY, 5)] + [(n, Response.OKAY, 5) for n in (0, 1, 2, 3, 0)]
    assert memory.words == {0x100: 1, 0x108: 2, 0x110: 3}
    assert [(t.write, t.address, t.words) for t in memory.transactions] == [
        (True, 0x100, [1, 2, 3]),
        (False, 0x0F8, [0, 1, 2, 3, 0]),
    ]


@pytest.mark.parametrize("latency", [0, 1, 7])
def test_latency(latency):
    memory, _ = perform((0, 3), latency=latency)
    (read,) = memory.transactions
    assert read.finished - read.started == max(latency, 1) + 2


def test_pauses():
    once = itertools.repeat(1)
    memory, _ = perform((0, 3), latency=0, pauses={"r": once})
    (read,) = memory.transactions
    assert read.finished - read.started == 1 + 4
    pauses = {channel: random_pauses(channel) for channel in ("aw", "w", "b", "ar", "r")}
    perform((0, [1, 2, 3]), (0, 3), pauses=pauses)


def test_errors():
    def prepare(memory):
        memory.read_errors = {8}
        memory.write_errors = {16}

    memory, results = perform((0, [1, 2, 3]), (0, 3), prepare=prepare)
    assert memory.words == {0: 1, 8: 2}
    assert results == [
        (Response.SLVERR, 5),
        (1, Response.OKAY, 5),
        (GARBAGE, Response.SLVERR, 5),
        (0, Response.OKAY, 5),
    ]


@pytest.mark.parametrize(
    ("rules", "burst", "message"),
    [
        ({"burst": Burst.WRAP}, (0, 1), r"^arburst is Burst\.WRAP$"),
        ({"size": 2}, (0, [1]), r"^awsize is 2$"),
        ({}, (0x1004, [1]), r"^awaddr 0x1004 is not aligned$"),
        ({}, (0xFF8, 2), r"^the ar burst at 0xff8 crosses 4096 bytes$"),
        ({"last": 1}, (0, [1, 2]), r"^wlast does not mark the last beat$"),
        ({"strb": 0x7F}, (0, [1]), r"^a beat without all its strobes$"),
    ],
)
def test_broken_rules(rules, burst, message):
    with pytest.raises(AssertionError, match=message):
        perform(burst, rules=rules)


def perform_at_once(count, **options):
    """Write words with three ids, and then read them; ids of what is answered, words that come."""
    dut = Manager()
    axi = dut.axi
    memory = AxiMemory(axi, **options)
    written, read = [], []

    async def send(ctx, channel, **fields):
        for name, value in fields.items():
            ctx.set(getattr(axi, channel + name), value)
        ctx.set(getattr(axi, f"{channel}valid"), 1)
        ready = 0
        while not ready:
            _, _, ready = await ctx.tick().sample(getattr(axi, f"{channel}ready"))
        ctx.set(getattr(axi, f"{channel}valid"), 0)

    async def send_addresses(ctx):
        for channel, beats in (("aw", 1), ("ar", 2)):
            for n in range(0, count, beats):
                fields = {"addr": 8 * n, "id": n // beats % 3, "len": beats - 1}
                await send(ctx, channel, burst=Burst.INCR, size=3, **fields)
            while len(written) < count:
                await ctx.tick()

    async def send_words(ctx):
        for n in range(count):
            await send(ctx, "w", data=n, strb=0xFF, last=1)

    async def collect(ctx):
        ctx.set(axi.rready, 1)
        ctx.set(axi.bready, 1)
        while len(read) < count:
            _, _, rvalid, rid, rdata, bvalid, bid = await ctx.tick().sample(
                axi.rvalid, axi.rid, axi.rdata, axi.bvalid, axi.bid
            )
            if rvalid:
                read.append((rid, rdata))
            if bvalid:
                written.append(bid)

    simulate(dut, send_addresses, send_words, collect, background=[memory.bench])
    return written, read


def test_bursts_are_answered_in_order():
    written, read = perform_at_once(60, latency=30)
    assert written == [n % 3 for n in range(60)]
    assert read == [(n // 2 % 3, n) for n in range(60)]


def test_shuffled_bursts_of_different_ids(rng):
    slow = {channel: itertools.repeat(3) for channel in ("b", "r")}  # so that several are due
    written, read = perform_at_once(60, latency=30, shuffle=rng, pauses=slow)
    assert written != [n % 3 for n in range(60)]
    assert sorted(written) == sorted(n % 3 for n in range(60))
    for id in range(3):
        assert [word for of, word in read if of == id] == [n for n in range(60) if n // 2 % 3 == id]
    halves = [word for _, word in read]
    assert any(second != first + 1 for first, second in pairwise(halves) if first % 2 == 0)

# amaranth: UnusedElaboratable=no
import itertools

import pytest
from amaranth.hdl import Shape
from amaranth.lib.wiring import In, Out
from emte.rtl.config import SMALL
from emte.rtl.layouts import GenerateOp, generate_signature
from emte.rtl.tag_generator import TagGenerator
from emte.sim.harness import simulate
from emte.sim.streams import get, put
from unit_support import watched

LATENCY = 19
"""Cycles from the transfer of a request to its response."""

IRG, ADDG, SUBG = GenerateOp.IRG, GenerateOp.ADDG, GenerateOp.SUBG


def test_init():
    dut = TagGenerator(SMALL)
    assert dut.config is SMALL
    members = dut.signature.members
    assert set(members) == {"generate", "ata", "idle"}
    assert members["ata"] == In(2)
    assert members["idle"] == Out(1)
    assert members["generate"].flow is Out
    assert set(members["generate"].signature.members) == set(generate_signature(SMALL).members)


class Bench:
    """The core's side of the generator."""

    def __init__(self, dut, ctx):
        self.port = dut.generate
        self.ctx = ctx
        ctx.set(dut.ata, 0b11)

    def gcr(self, *, exclude=0, rrnd=0):
        self.ctx.set(self.port.gcr, {"exclude": exclude, "rrnd": rrnd})

    async def write_rgsr(self, tag, seed):
        self.ctx.set(self.port.rgsr_value, {"tag": tag, "seed": seed})
        self.ctx.set(self.port.rgsr_write, 1)
        await self.ctx.tick()
        self.ctx.set(self.port.rgsr_write, 0)
        assert self.rgsr == (tag, seed)

    @property
    def rgsr(self):
        rgsr = self.ctx.get(self.port.rgsr)
        return rgsr.tag, rgsr.seed

    async def ask(self, op, *, el0=1, tag=0, tag_offset=0, exclude=0, entropy=0):
        """The tag that is chosen."""
        await put(
            self.ctx,
            self.port.request,
            {
                "op": op,
                "el0": el0,
                "tag": tag,
                "tag_offset": tag_offset,
                "exclude": exclude,
                "entropy": entropy,
            },
        )
        return (await get(self.ctx, self.port.response)).tag


def play(scenario):
    dut = TagGenerator(SMALL)

    async def bench(ctx):
        await scenario(Bench(dut, ctx))

    simulate(watched(dut), bench)


# The architecture's algorithm, bit by bit and step by step


def step(seed):
    """One step of the LFSR: the bit, and the new seed."""
    low = [seed >> n & 1 for n in range(16)]
    top = low[5] ^ low[3] ^ low[2] ^ low[0]
    low = [*low[1:], top]
    return top, seed >> 16 << 16 | sum(bit << n for n, bit in enumerate(low))


def random_offset(seed):
    bits = []
    for _ in range(4):
        bit, seed = step(seed)
        bits.append(bit)
    return sum(bit << n for n, bit in enumerate(bits)), seed


def walk(tag, offset, exclude):
    allowed = [n for n in range(16) if not exclude >> n & 1]
    if not allowed:
        return 0
    if offset == 0:
        while tag not in allowed:
            tag = (tag + 1) % 16
    while offset:
        tag = (tag + 1) % 16
        if tag in allowed:
            offset -= 1
    return tag


VECTORS = [
    # seed, start, exclude: tag, new seed
    (0x0001, 0x0, 0x0000, 0x1, 0x1000),
    (0x8000, 0x0, 0x0001, 0x1, 0x0800),
    (0xACE1, 0x0, 0x0001, 0x2, 0x2ACE),
    (0xACE1, 0x3, 0x8001, 0x5, 0x2ACE),
    (0xBEEF, 0xF, 0xFFFE, 0x0, 0xEBEE),
    (0x1234, 0x7, 0xFFFF, 0x0, 0xE123),
    (0x0000, 0x5, 0x0021, 0x6, 0x0000),
    (0x0000, 0x4, 0x0000, 0x4, 0x0000),
]

SEQUENCES = [
    # seed, start, exclude, tags of 12 IRGs, final seed
    (0x1234, 0x0, 0x0001, "E59B755AA2EB", 0xCC70),
    (0xFFFF, 0x5, 0x8001, "55DCCADE65BD", 0x26D6),
]

WALKS = [
    # start, offset, exclude: tag
    (0xF, 1, 0x0000, 0x0),
    (0x0, 1, 0x0002, 0x2),
    (0x3, 0, 0x0008, 0x4),
    (0x3, 1, 0x0008, 0x4),
    (0xE, 2, 0x8001, 0x2),
    (0x5, 15, 0xFFDF, 0x5),
]


@pytest.mark.parametrize("by", ["gcr", "register"])
def test_sim_vectors(by):
    """Bit for bit; GCR_EL1 excludes as the register operand does."""

    async def scenario(bench):
        for seed, start, exclude, tag, new_seed in VECTORS:
            await bench.write_rgsr(start, seed)
            bench.gcr(exclude=exclude if by == "gcr" else 0)
            assert await bench.ask(IRG, exclude=0 if by == "gcr" else exclude) == tag
            assert bench.rgsr == (tag, new_seed)

    play(scenario)


@pytest.mark.parametrize(("seed", "start", "exclude", "tags", "final"), SEQUENCES)
def test_sim_sequences(seed, start, exclude, tags, final):
    """The upper 32 bits of the seed stay as they are."""

    async def scenario(bench):
        await bench.write_rgsr(start, 0xCAFE_F00D << 16 | seed)
        bench.gcr(exclude=exclude)
        for tag in tags:
            # The pointer's tag is not used.
            assert await bench.ask(IRG, tag=9, tag_offset=7) == int(tag, 16)
        assert bench.rgsr == (int(tags[-1], 16), 0xCAFE_F00D << 16 | final)

    play(scenario)


@pytest.mark.parametrize("op", [ADDG, SUBG])
def test_sim_walks(op):
    """ADDG and SUBG both walk forwards, and leave RGSR alone."""

    async def scenario(bench):
        before = bench.rgsr
        for start, offset, exclude, tag in WALKS:
            bench.gcr(exclude=exclude)
            # The exclude operand belongs to IRG.
            assert await bench.ask(op, tag=start, tag_offset=offset, exclude=0xFFFF) == tag
        bench.gcr(exclude=0x8421)
        for start, offset in itertools.product(range(16), repeat=2):
            chosen = await bench.ask(op, tag=start, tag_offset=offset)
            assert chosen == walk(start, offset, 0x8421)
        assert bench.rgsr == before

    play(scenario)


def test_sim_state_after_reset():
    async def scenario(bench):
        assert bench.rgsr == (0, 1)

    play(scenario)


def test_sim_random(rng):
    """IRG in a row, over masks from empty to full."""

    async def scenario(bench):
        tag, seed = 0, 1
        for _ in range(300):
            if rng.random() < 0.1:
                tag, seed = rng.randrange(16), rng.getrandbits(48)
                await bench.write_rgsr(tag, seed)
            masks = [0, 0xFFFF, 1 << rng.randrange(16), rng.getrandbits(16)]
            masks += [0xFFFF ^ 1 << rng.randrange(16)]
            by_gcr, by_register = rng.choice(masks), rng.choice(masks)
            bench.gcr(exclude=by_gcr)
            offset, seed = random_offset(seed)
            tag = walk(tag, offset, by_gcr | by_register)
            assert await bench.ask(IRG, exclude=by_register) == tag
            assert bench.rgsr == (tag, seed)

    play(scenario)


def test_sim_entropy(rng):
    """With RRND = 1, entropy e takes number e * n >> 32 of n allowed tags; RGSR stays."""

    async def scenario(bench):
        before = bench.rgsr
        for mask in (0x0000, 0x8001, 0xFFFE, 0x7FFF, 0xAAAA, 0xFFFF, rng.getrandbits(16)):
            by_gcr = mask & rng.getrandbits(16)
            bench.gcr(exclude=by_gcr, rrnd=1)
            allowed = [n for n in range(16) if not mask >> n & 1]
            chosen = set()
            # The two ends of each tag's share of the 32 bits, and something in between.
            count = max(len(allowed), 1)
            ends = [-(-(k << 32) // count) for k in range(count + 1)]
            draws = [*ends[:-1], *(end - 1 for end in ends[1:]), rng.getrandbits(32)]
            for entropy in draws:
                tag = await bench.ask(IRG, exclude=mask, entropy=entropy)
                assert tag == (allowed[entropy * len(allowed) >> 32] if allowed else 0)
                chosen.add(tag)
            assert chosen == set(allowed or [0])
        assert bench.rgsr == before

    play(scenario)


def test_sim_entropy_is_not_for_walks():
    async def scenario(bench):
        bench.gcr(exclude=0, rrnd=1)
        assert await bench.ask(ADDG, tag=3, tag_offset=4, entropy=0xFFFF_FFFF) == 7
        assert await bench.ask(SUBG, tag=3, tag_offset=4, entropy=0xFFFF_FFFF) == 7

    play(scenario)


def test_sim_tag_access_off():
    """The tag is 0, and RGSR stays; the exception level chooses the bit."""

    dut = TagGenerator(SMALL)

    async def run(ctx):
        bench = Bench(dut, ctx)
        await bench.write_rgsr(5, 0x1234)
        for rrnd, ata, el0 in itertools.product((0, 1), range(4), (0, 1)):
            bench.gcr(rrnd=rrnd)
            ctx.set(dut.ata, ata)
            enabled = ata >> (0 if el0 else 1) & 1
            for op in (ADDG, SUBG):
                tag = await bench.ask(op, el0=el0, tag=5, tag_offset=1)
                assert tag == (6 if enabled else 0)
            before = bench.rgsr
            tag = await bench.ask(IRG, el0=el0, exclude=1, entropy=0x8000_0000)
            assert (tag != 0) == enabled  # tag 0 is excluded
            assert (bench.rgsr != before) == (enabled and not rrnd)

    simulate(watched(dut), run)


def test_timing_response(rng):
    """The same time from request to response for every input: nothing of a tag is in the time."""
    dut = TagGenerator(SMALL)
    port = dut.generate
    request_shape = port.request.signature.members["payload"].shape
    width = Shape.cast(request_shape).width

    async def bench(ctx):
        ctx.set(port.response.ready, 1)
        for n in range(150):
            ctx.set(dut.ata, rng.choice([3, 3, 3, 0]))
            ctx.set(
                port.gcr, {"exclude": rng.choice([0, 0xFFFF, rng.getrandbits(16)]), "rrnd": n % 2}
            )
            ctx.set(port.rgsr_value, {"tag": rng.getrandbits(4), "seed": rng.getrandbits(48)})
            ctx.set(port.rgsr_write, 1)
            await ctx.tick()
            ctx.set(port.rgsr_write, 0)
            bits = rng.getrandbits(width) & ~0b11 | rng.randrange(3)
            ctx.set(port.request.payload.as_value(), bits)
            ctx.set(port.request.valid, 1)
            assert ctx.get(port.request.ready)
            for _ in range(LATENCY):
                assert not ctx.get(port.response.valid)
                await ctx.tick()
                ctx.set(port.request.valid, 0)
                assert not ctx.get(port.request.ready)
            assert ctx.get(port.response.valid)
            await ctx.tick()
            assert not ctx.get(port.response.valid)
            assert ctx.get(port.request.ready)

    simulate(watched(dut), bench)


def test_timing_backpressure():
    """A response stays until it is taken, and the unit is not idle until then."""
    dut = TagGenerator(SMALL)

    async def bench(ctx):
        ctx.set(dut.ata, 0b11)
        assert ctx.get(dut.idle)
        await put(ctx, dut.generate.request, {"op": ADDG, "tag": 3, "tag_offset": 2})
        for cycle in range(1, 100):
            assert not ctx.get(dut.idle)
            assert not ctx.get(dut.generate.request.ready)
            assert ctx.get(dut.generate.response.valid) == (cycle >= LATENCY)
            assert ctx.get(dut.generate.response.payload.tag) == (5 if cycle >= LATENCY else 0)
            await ctx.tick()
        assert (await get(ctx, dut.generate.response)).tag == 5
        assert ctx.get(dut.idle)

    simulate(watched(dut), bench)


def test_sim_gcr_counts_at_the_transfer():
    """What GCR and ATA become after the request was taken does not matter to it."""
    dut = TagGenerator(SMALL)

    async def bench(ctx):
        port = dut.generate
        ctx.set(dut.ata, 0b11)
        ctx.set(port.gcr, {"exclude": 0x0010, "rrnd": 0})
        await put(ctx, port.request, {"op": ADDG, "el0": 1, "tag": 3, "tag_offset": 1})
        ctx.set(dut.ata, 0)
        ctx.set(port.gcr, {"exclude": 0xFFFF, "rrnd": 1})
        assert (await get(ctx, port.response)).tag == 5

    simulate(watched(dut), bench)

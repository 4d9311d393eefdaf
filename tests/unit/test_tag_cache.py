# amaranth: UnusedElaboratable=no
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from amaranth.hdl import Cat, Elaboratable, Module
from emte.rtl.codes import corrected_granule, granule_damaged, granule_syndrome
from emte.rtl.config import SMALL, TagConfig
from emte.rtl.layouts import ProbeKind, Refusal, detail_layout
from emte.rtl.tag_cache import TagCache
from emte.sim.axi_memory import AxiMemory
from emte.sim.harness import simulate
from emte.sim.streams import random_pauses
from unit_support import integer

CHECK, LOAD, STORE, NONE = ProbeKind.CHECK, ProbeKind.LOAD, ProbeKind.STORE, ProbeKind.NONE
CLEAN, CLEAN_ALL = ProbeKind.CLEAN, ProbeKind.CLEAN_ALL
FLUSH, FLUSH_ALL = ProbeKind.CLEAN_INVALIDATE, ProbeKind.CLEAN_INVALIDATE_ALL

BASE = (1 << 40) + 0x4080
"""Of tag storage: aligned to the longest line, and to nothing more."""

NEVER = 1 << 24
CONFIGS = {
    "small": SMALL,
    "1 line": TagConfig(sets=1, ways=1, mshrs=1, line_bytes=16),
    "1 way": TagConfig(sets=2, ways=1, mshrs=1, line_bytes=128),
    "1 set": TagConfig(sets=1, ways=4, mshrs=4),
    "4 MSHRs": TagConfig(sets=2, ways=4, mshrs=4, line_bytes=32, scrub_period=64),
    "16 ways": TagConfig(sets=1, ways=16, mshrs=8, line_bytes=16),
}


def lanes(mask: int) -> int:
    """The bits of the tags of the granules in a mask."""
    return sum(0xF << 4 * n for n in range(16) if mask >> n & 1)


class Corrector(Elaboratable):
    """What TagCheck gives back to the cache: tags, corrected, one cycle after their codes."""

    def __init__(self, cache: TagCache) -> None:
        self.cache = cache

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.cache = cache = self.cache
        codes = [cache.secret_codes.word_select(n, 8) for n in range(16)]
        m.d.sync += [
            cache.secret_corrected.eq(Cat(corrected_granule(code) for code in codes)),
            cache.secret_damaged.eq(Cat(granule_damaged(code) for code in codes).any()),
            cache.secret_errors.eq(Cat(granule_syndrome(code).xor() for code in codes).any()),
        ]
        return m


@dataclass
class Answer:
    """What came out for a probe, in a cycle: its tags, as the check sees them."""

    cycle: int
    refusal: Refusal
    tags: int
    damaged: int


@dataclass
class Probe:
    kind: ProbeKind
    word: int
    mask: int = 0xFFFF
    tags: int = 0
    admitted: int | None = None
    expected: int | None = None
    answer: Answer | None = None


@dataclass
class Bench:
    """Drives a cache as door and decoder do, and collects what comes out."""

    config: TagConfig = SMALL
    latency: int = 2
    memory: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dut = TagCache(self.config)
        self.top = Corrector(self.dut)
        self.storage = AxiMemory(self.dut.memory, latency=self.latency, **self.memory)
        self.cycle = 0
        self.waiting: list[Probe] = []
        self.flying: dict[int, Probe] = {}
        self.tags: dict[int, int] = {}  # as the probes so far leave them
        self.room = itertools.repeat(1)

    def expect(self, probe: Probe) -> None:
        old = self.tags.get(probe.word, 0)
        probe.expected = old & lanes(probe.mask)
        if probe.kind is STORE:
            keep = ~lanes(probe.mask)
            self.tags[probe.word] = old & keep | probe.tags & lanes(probe.mask)

    async def start(self, ctx, *, zeroed: bool = True, storage_bytes: int = 0) -> None:
        ctx.set(self.dut.storage_base, BASE)
        ctx.set(self.dut.storage_bytes, storage_bytes)
        ctx.set(self.dut.storage_zeroed, zeroed)
        while not ctx.get(self.dut.ready):
            await self.tick(ctx)
        await self.tick(ctx)

    async def tick(self, ctx) -> None:
        dut = self.dut
        if ctx.get(dut.check_valid):
            detail = ctx.get(dut.check_detail)
            number = detail.ticket.number | detail.ticket.direct << 8
            probe = self.flying.pop(number)
            codes = ctx.get(dut.secret_codes)
            granules = [codes >> 8 * n & 0xFF for n in range(16)]
            probe.answer = Answer(
                self.cycle,
                ctx.get(dut.check_refusal),
                sum(DECODED[code] << 4 * n for n, code in enumerate(granules)),
                sum((code in DAMAGED) << n for n, code in enumerate(granules)),
            )
        await ctx.tick()
        ctx.set(dut.room, next(self.room))
        self.cycle += 1

    async def run(self, ctx, probes, *, gaps=None, drain: bool = True) -> None:
        """Admit the probes in order, as fast as the cache lets, and wait for all answers."""
        dut = self.dut
        gaps = gaps or itertools.repeat(0)
        todo = list(reversed(probes))
        decoded: Probe | None = None  # its word comes in this cycle
        detailed: Probe | None = None
        gap = 0
        while todo or decoded or detailed or (drain and self.flying):
            ctx.set(dut.word_valid, decoded is not None)
            if decoded:
                ctx.set(dut.word, decoded.word)
            if detailed:
                ctx.set(dut.detail.as_value(), detailed.detail)
            admitted = None
            ctx.set(dut.store, 0)
            if todo and not gap and not ctx.get(dut.pause):
                probe = todo[-1]
                if probe.kind is not STORE or ctx.get(dut.store_ready):
                    admitted = todo.pop()
                    admitted.admitted = self.cycle
                    self.admit(ctx, admitted)
                    gap = next(gaps)
            elif gap:
                gap -= 1
            await self.tick(ctx)
            detailed, decoded = decoded, admitted
        ctx.set(dut.word_valid, 0)

    def admit(self, ctx, probe: Probe) -> None:
        number = (
            next(
                n for n in itertools.count(getattr(self, "number", 0)) if n % 512 not in self.flying
            )
            % 512
        )
        self.number = number + 1
        self.flying[number] = probe
        self.expect(probe)
        slot = 0
        if probe.kind is STORE:
            slot = ctx.get(self.dut.store_slot)
            ctx.set(self.dut.secret_store_tags, probe.tags)
            ctx.set(self.dut.store, 1)
        probe.detail = integer(
            detail_layout(self.config),
            {
                "ticket": {"number": number & 0xFF, "direct": number >> 8, "second": 0},
                "kind": probe.kind,
                "mask": probe.mask,
                "store": slot,
            },
        )

    def simulate(self, scenario, **options) -> None:
        async def bench(ctx):
            await scenario(ctx)

        simulate(self.top, bench, background=[self.storage.bench], **options)

    def in_storage(self, word: int) -> int:
        return self.storage.words.get(BASE + 8 * word, 0)


def _code(tag: int) -> int:
    checks = [(tag & (0b1111 ^ 1 << n)).bit_count() & 1 for n in range(4)]
    return tag | sum(bit << 4 + n for n, bit in enumerate(checks))


DECODED = {}
for _tag in range(16):
    for _flip in (0, *(1 << n for n in range(8))):
        DECODED[_code(_tag) ^ _flip] = _tag
DAMAGED = set(range(256)) - set(DECODED)
for _damaged in DAMAGED:
    DECODED[_damaged] = 0


def check(probes) -> None:
    for number, probe in enumerate(probes):
        assert probe.answer is not None, f"probe {number} has no answer"
        assert probe.answer.refusal == Refusal.NONE, (number, probe)
        if probe.kind in (CHECK, LOAD):
            assert not probe.answer.damaged & probe.mask, (number, probe)
            assert probe.answer.tags & lanes(probe.mask) == probe.expected, (number, probe)


def stimulus(rng: random.Random, config: TagConfig, count: int, *, words=None, maintenance=0.01):
    """Random probes to a few lines, more than the cache holds."""
    lines = config.sets * config.ways
    words = words or [
        rng.randrange(3 * lines + 2) * config.line_words + rng.randrange(config.line_words)
        for _ in range(4 * lines + 6)
    ]
    for _ in range(count):
        if rng.random() < maintenance:
            kind = rng.choice((CLEAN, CLEAN_ALL, FLUSH, FLUSH_ALL))
            yield Probe(kind, rng.choice(words))
            continue
        kind = rng.choice((CHECK, CHECK, LOAD, STORE, STORE, NONE))
        mask = rng.choice((0xFFFF, 1 << rng.randrange(16), rng.getrandbits(16) or 1))
        yield Probe(kind, rng.choice(words), mask, rng.getrandbits(64))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", [1, 2])
def test_sim_random(name, seed):
    """Every probe sees the tags of the tag stores before it, whatever memory does."""
    rng = random.Random(f"{name}-{seed}")
    bench = Bench(
        CONFIGS[name],
        latency=rng.choice((0, 3, 20)),
        memory={
            "pauses": {
                channel: random_pauses(rng.getrandbits(32))
                for channel in ("aw", "w", "b", "ar", "r")
            },
            "shuffle": random.Random(rng.getrandbits(32)),
        },
    )
    bench.room = (rng.random() < 0.8 for _ in itertools.count())
    probes = list(stimulus(rng, CONFIGS[name], 250))
    gaps = itertools.cycle([0]) if seed == 1 else random_pauses(rng.getrandbits(32))

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, [*probes, flush := Probe(FLUSH_ALL, 0)], gaps=gaps)
        check([*probes, flush])
        while not ctx.get(bench.dut.idle):
            await bench.tick(ctx)
        for word, tags in bench.tags.items():
            assert bench.in_storage(word) == tags, f"word {word}"

    bench.simulate(scenario, max_cycles=60_000)

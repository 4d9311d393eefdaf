# amaranth: UnusedElaboratable=no
import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from amaranth.hdl import Cat, Elaboratable, Module, ResetInserter, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.codes import DirectoryCode, corrected_granule, granule_damaged, granule_syndrome
from emte.rtl.config import ECP5, SMALL, TagConfig
from emte.rtl.keeper import flip_layout
from emte.rtl.layouts import ProbeKind, Refusal, detail_layout, memory_signature, ticket_layout
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
INJECTION = TagConfig(sets=2, ways=2, held=4, injection=True)
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
        self.reset = Signal()
        self.top = ResetInserter(self.reset)(Corrector(self.dut))
        self.storage = AxiMemory(self.dut.memory, latency=self.latency, **self.memory)
        self.cycle = 0
        self.waiting: list[Probe] = []
        self.flying: dict[int, Probe] = {}
        self.tags: dict[int, int] = {}  # as the probes so far leave them
        self.room = itertools.repeat(1)
        self.open = self.store_open = False

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
            assert ctx.get(self.dut.pause)
            await self.tick(ctx)
        await self.tick(ctx)

    async def restart(self, ctx, **options) -> None:
        """Reset everything, in the middle of whatever goes on; tags of before count no more."""
        ctx.set(self.reset, 1)
        ctx.set(self.dut.word_valid, 0)
        ctx.set(self.dut.store, 0)
        await ctx.tick()
        ctx.set(self.reset, 0)
        self.storage.reset()
        self.flying.clear()
        self.tags.clear()
        await self.start(ctx, **options)

    async def settle(self, ctx) -> None:
        """Wait until nothing goes on."""
        while not ctx.get(self.dut.idle):
            await self.tick(ctx)

    async def flip(self, ctx, index: int, *, lanes: int = 0, entry: int = 0) -> None:
        """Flip stored bits."""
        flips = {"index": index, "lanes": lanes, "entry": entry}
        ctx.set(self.dut.flips.payload.as_value(), integer(flip_layout(self.config), flips))
        ctx.set(self.dut.flips.valid, 1)
        while not ctx.get(self.dut.flips.ready):
            await self.tick(ctx)
        await self.tick(ctx)
        ctx.set(self.dut.flips.valid, 0)
        await self.settle(ctx)

    def bursts(self, *, write: bool) -> list[int]:
        """Numbers of the lines that were fetched, or written back, in order."""
        line_bytes = self.config.line_bytes
        return [
            (burst.address - BASE) // line_bytes
            for burst in self.storage.transactions
            if burst.write == write
        ]

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
        # The door decides a cycle ahead.
        self.open, self.store_open = not ctx.get(dut.pause), ctx.get(dut.store_ready)
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
            if todo and not gap and self.open:
                probe = todo[-1]
                if probe.kind is not STORE or self.store_open:
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


def test_init():
    dut = TagCache(ECP5)
    assert dut.config is ECP5
    members = {
        "word_valid": In(1),
        "word": In(32),
        "again": In(1),
        "detail": In(detail_layout(ECP5)),
        "pause": Out(1),
        "store_ready": Out(1),
        "store_slot": Out(4),
        "store": In(1),
        "secret_store_tags": In(64),
        "room": In(1),
        "check_valid": Out(1),
        "check_detail": Out(detail_layout(ECP5)),
        "check_refusal": Out(Refusal),
        "secret_codes": Out(128),
        "secret_corrected": In(64),
        "secret_damaged": In(1),
        "secret_errors": In(1),
        "secret_lost": Out(1),
        "waiting_valid": Out(1),
        "waiting": Out(ticket_layout(ECP5)),
        "storage_base": In(48),
        "storage_bytes": In(36),
        "storage_zeroed": In(1),
        "storage_error": Out(1),
        "secret_corrections": Out(16),
        "ready": Out(1),
        "busy": Out(1),
        "idle": Out(1),
    }
    found = dict(dut.signature.members.items())
    memory = found.pop("memory")
    assert memory.flow is Out
    assert dict(memory.signature.members.items()) == dict(memory_signature(ECP5).members.items())
    assert found == dict(Signature(members).members.items())
    flips = {"flips": In(stream.Signature(flip_layout(INJECTION)))}
    assert TagCache(INJECTION).signature.members["flips"] == flips["flips"]


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
    probes = list(stimulus(rng, CONFIGS[name], 100 if name == "16 ways" else 160))
    gaps = itertools.cycle([0]) if seed == 1 else random_pauses(rng.getrandbits(32))

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, [*probes, flush := Probe(FLUSH_ALL, 0)], gaps=gaps)
        check([*probes, flush])
        await bench.settle(ctx)
        for word, tags in bench.tags.items():
            assert bench.in_storage(word) == tags, f"word {word}"

    bench.simulate(scenario, max_cycles=60_000)


# ---- Tag stores ----------------------------------------------------------------------------------


def test_sim_neighbours():
    """Granules of one byte of storage, stored alone with evictions between them: none is lost."""
    bench = Bench()
    far = SMALL.sets * SMALL.line_words  # words between lines of one set
    probes = []
    for granule in (0, 1, 7, 6, 15, 14):
        probes.append(Probe(STORE, 1, 1 << granule, 0x5A5A_5A5A_5A5A_5A5A))
        probes += [Probe(STORE, 1 + far * n, 0x8001, 0x1234) for n in (1, 2)]
    probes += [Probe(LOAD, 1), Probe(FLUSH_ALL, 0)]

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, probes)
        check(probes)
        assert bench.in_storage(1) == 0x5A00_0000_5A00_005A

    bench.simulate(scenario)


def test_sim_store_is_seen_by_the_next_probe():
    """Also right behind it, with nothing between them, and while the line is fetched."""
    bench = Bench()
    rounds = [
        [
            Probe(STORE, 3, 0x00FF, tags),
            Probe(LOAD, 3),
            Probe(STORE, 3, 0x8000, tags),
            Probe(LOAD, 3),
        ]
        for tags in (0x1111_1111_1111_1111, 0xF0E0_D0C0_B0A0_9080, 0)
    ]

    async def scenario(ctx):
        await bench.start(ctx)
        for number, probes in enumerate(rounds):
            await bench.run(ctx, probes)
            check(probes)
            if number:
                assert [probe.answer.cycle - probe.admitted for probe in probes] == [7] * 4
                assert probes[-1].admitted == probes[0].admitted + 3

    bench.simulate(scenario)


@pytest.mark.parametrize("store", [True, False])
def test_sim_merged_miss_keeps_the_order(store):
    """All probes of a line that is fetched wait in order; it is fetched once."""
    bench = Bench(latency=30)
    probes = []
    for n in range(5):
        kind = STORE if store else LOAD
        probes += [Probe(kind, n, 1 << n, 0x1111_1111_1111_1111 * n), Probe(CHECK, n)]

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, probes)
        check(probes)
        cycles = [probe.answer.cycle for probe in probes]
        assert cycles == sorted(cycles)
        assert bench.bursts(write=False) == [0]

    bench.simulate(scenario)


def test_sim_several_misses_are_fetched_at_once():
    """As many lines as there are MSHRs are asked for before the first of them is there."""
    config = TagConfig(sets=2, ways=4, mshrs=4, held=4)
    bench = Bench(config, latency=80)
    probes = [Probe(CHECK, n * config.line_words) for n in range(4)]

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, probes)
        check(probes)
        started = [burst.started for burst in bench.storage.transactions]
        assert len(started) == 4
        assert max(started) < min(burst.finished for burst in bench.storage.transactions)

    bench.simulate(scenario)


# ---- Replacement ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [1, 2, 4, 8])
def test_sim_pseudo_lru(ways, rng):
    """Which lines are fetched again tells which ones were replaced."""
    config = TagConfig(sets=1, ways=ways, mshrs=1, line_bytes=16, scrub_period=1 << 20)
    bench = Bench(config)
    held: dict[int, int] = {}  # line by way
    path: dict[tuple[int, ...], int] = {}  # which half is next, by the node of the tree

    def touch(way: int) -> None:
        node: tuple[int, ...] = ()
        for level in reversed(range((ways - 1).bit_length())):
            bit = way >> level & 1
            path[node] = 1 - bit
            node += (bit,)

    def victim() -> int:
        node: tuple[int, ...] = ()
        for _ in range((ways - 1).bit_length()):
            node += (path.get(node, 0),)
        return int("0" + "".join(map(str, node)), 2)

    async def scenario(ctx):
        await bench.start(ctx)
        fetched = []
        for _ in range(60):
            line = rng.randrange(ways + 2)
            if line in held.values():
                way = next(way for way, inside in held.items() if inside == line)
            else:
                way = next((way for way in range(ways) if way not in held), None)
                way = victim() if way is None else way
                held[way] = line
                fetched.append(line)
            touch(way)
            probe = Probe(CHECK, line * config.line_words)
            await bench.run(ctx, [probe])
            await bench.settle(ctx)
            check([probe])
            assert bench.bursts(write=False) == fetched

    bench.simulate(scenario)


# ---- Maintenance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CLEAN, FLUSH])
def test_sim_maintenance_by_address(kind):
    """The line alone is written, if it is dirty; it stays, or leaves the cache."""
    bench = Bench()
    words = SMALL.line_words

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, [Probe(STORE, 1, 3, 0x21), Probe(STORE, words, 1, 7), Probe(kind, 2)])
        assert bench.bursts(write=True) == [0]
        assert bench.in_storage(1) == 0x21
        await bench.run(ctx, [Probe(kind, 3), Probe(kind, 2 * words)])
        assert bench.bursts(write=True) == [0], "a clean line, and one that is not there"
        last = [Probe(LOAD, 1), Probe(LOAD, words)]
        await bench.run(ctx, last)
        check(last)
        assert bench.bursts(write=False) == ([0, 1] if kind is CLEAN else [0, 1, 0])

    bench.simulate(scenario)


@pytest.mark.parametrize("kind", [CLEAN_ALL, FLUSH_ALL])
def test_sim_maintenance_of_all(kind):
    """Every line of every set and way."""
    config = TagConfig(sets=2, ways=4, mshrs=4, line_bytes=32)
    bench = Bench(config)
    lines = config.sets * config.ways
    stores = [Probe(STORE, n * config.line_words, 1, n + 1) for n in range(lines - 1)]
    clean = Probe(CHECK, (lines - 1) * config.line_words)

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, [*stores, clean, Probe(kind, 0)])
        assert sorted(bench.bursts(write=True)) == list(range(lines - 1))
        assert [bench.in_storage(n * config.line_words) for n in range(lines)] == [
            *range(1, lines),
            0,
        ]
        await bench.run(ctx, [Probe(kind, 0)])
        assert len(bench.bursts(write=True)) == lines - 1, "nothing is dirty any more"
        again = [Probe(LOAD, n * config.line_words) for n in range(lines)]
        await bench.run(ctx, again)
        check(again)
        fetched = lines if kind is CLEAN_ALL else 2 * lines
        assert len(bench.bursts(write=False)) == fetched

    bench.simulate(scenario)


def test_sim_maintenance_waits_for_write_backs():
    """Its answer means that storage has what was evicted before it."""
    bench = Bench(latency=60)
    far = SMALL.sets * SMALL.line_words
    stores = [Probe(STORE, far * n, 1, n + 1) for n in range(5)]

    async def scenario(ctx):
        await bench.start(ctx)
        clean = Probe(CLEAN, 99)
        await bench.run(ctx, [*stores, clean])
        evicted = bench.bursts(write=True)
        assert len(evicted) >= 3
        assert all(burst.finished for burst in bench.storage.transactions)

    bench.simulate(scenario)


# ---- Errors of storage ---------------------------------------------------------------------------


def refusals(probes) -> list[Refusal]:
    return [probe.answer.refusal for probe in probes]


@pytest.mark.parametrize("word", [0, 3, 7])
def test_sim_refill_error(word):
    """All that wait for the line abort, and leave nothing behind: neither line nor damage."""
    bench = Bench(latency=20)
    far = SMALL.sets * SMALL.line_words
    bench.storage.read_errors = {BASE + 8 * word}

    async def scenario(ctx):
        await bench.start(ctx)
        others = [Probe(STORE, far * n, 1, n + 8) for n in (1, 2)]
        await bench.run(ctx, others)
        probes = [Probe(CHECK, 0), Probe(LOAD, 1), Probe(STORE, 0, 1, 5), Probe(CHECK, 0)]
        await bench.run(ctx, probes)
        assert refusals(probes) == [Refusal.ABORT] * 4
        bench.storage.read_errors = ()
        bench.tags.pop(0)
        again = [Probe(LOAD, n) for n in (0, 1, far, 2 * far)]
        await bench.run(ctx, again)
        check(again)
        assert bench.bursts(write=False).count(0) == 2

    bench.simulate(scenario)


def test_sim_write_back_error():
    """From then on CHECK and LOAD abort, hits too, and so does maintenance; until reset."""
    bench = Bench()
    bench.storage.write_errors = {BASE + 8}

    async def scenario(ctx):
        await bench.start(ctx)
        probes = [Probe(STORE, 1, 1, 5), Probe(CHECK, 2), Probe(CLEAN, 1)]
        await bench.run(ctx, probes)
        assert refusals(probes) == [Refusal.NONE, Refusal.NONE, Refusal.ABORT]
        assert ctx.get(bench.dut.storage_error)
        late = [Probe(CHECK, 1), Probe(LOAD, 1), Probe(FLUSH_ALL, 0), Probe(NONE, 1)]
        await bench.run(ctx, late)
        assert refusals(late) == [Refusal.ABORT] * 3 + [Refusal.NONE]
        bench.storage.write_errors = ()
        await bench.restart(ctx)
        assert not ctx.get(bench.dut.storage_error)
        probe = Probe(CHECK, 2)
        await bench.run(ctx, [probe])
        check([probe])

    bench.simulate(scenario)


# ---- Reset ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_sim_initialise(lines):
    """Unless storage is vouched for, each of its lines is zeroed, once, before a probe comes in."""
    bench = Bench()
    size = lines * SMALL.line_bytes
    inside = range(BASE, BASE + size, 8)
    around = [BASE - 8, BASE + size]
    full = (1 << 64) - 1
    bench.storage.words = dict.fromkeys([*inside, *around], full)

    async def scenario(ctx):
        await bench.start(ctx, zeroed=False, storage_bytes=size)
        assert bench.bursts(write=True) == list(range(lines))
        assert [bench.storage.words[address] for address in inside] == [0] * len(inside)
        assert [bench.storage.words[address] for address in around] == [full] * 2
        probes = [Probe(STORE, 5, 0xF, 0x4321), Probe(LOAD, 5)] if lines else []
        await bench.run(ctx, probes)
        check(probes)

    bench.simulate(scenario)


def test_sim_initialise_error():
    bench = Bench()
    bench.storage.write_errors = {BASE + 64}

    async def scenario(ctx):
        await bench.start(ctx, zeroed=False, storage_bytes=256)
        assert ctx.get(bench.dut.storage_error)
        probe = Probe(CHECK, 0)
        await bench.run(ctx, [probe])
        assert refusals([probe]) == [Refusal.ABORT]

    bench.simulate(scenario)


def test_sim_vouched_for_storage_is_left_alone():
    bench = Bench()
    bench.storage.words = {BASE + 40: 0x1234}
    bench.tags = {5: 0x1234}

    async def scenario(ctx):
        await bench.start(ctx, storage_bytes=3 * 128)
        probe = Probe(LOAD, 5)
        await bench.run(ctx, [probe])
        check([probe])
        assert bench.bursts(write=True) == []

    bench.simulate(scenario)


@pytest.mark.parametrize("drain", [True, False])
def test_sim_reset_forgets_every_line(drain):
    """What was in the cache is gone, dirty or not, also what was under way."""
    config = TagConfig(sets=4, ways=2, line_bytes=16)
    bench = Bench(config, latency=10)
    words = range(0, 16, 2)

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, [Probe(STORE, word, 0xFFFF, 0xAAAA) for word in words], drain=drain)
        await bench.restart(ctx)
        assert bench.storage.words == {}
        loads = [Probe(LOAD, word) for word in words]
        await bench.run(ctx, [*loads, Probe(CLEAN_ALL, 0)])
        check(loads)
        assert bench.bursts(write=True) == []

    bench.simulate(scenario)


def test_sim_reset_makes_storage_doubtful_again():
    bench = Bench()

    async def scenario(ctx):
        await bench.start(ctx, zeroed=False, storage_bytes=128)
        await bench.run(ctx, [Probe(STORE, 0, 0xFFFF, 0xAAAA), Probe(CLEAN_ALL, 0)])
        assert bench.in_storage(0) == 0xAAAA
        await bench.restart(ctx, zeroed=False, storage_bytes=128)
        probe = Probe(LOAD, 0)
        await bench.run(ctx, [probe])
        check([probe])

    bench.simulate(scenario)


# ---- Time ----------------------------------------------------------------------------------------


def timeline(rng: random.Random, tags) -> list[tuple[int, ...]]:
    """What can be seen of the cache in each cycle, with the tags that ``tags()`` gives."""
    config = TagConfig(sets=2, ways=2, held=4, scrub_period=64)
    bench = Bench(config, memory={"pauses": {"r": random_pauses(7)}})
    words = [rng.randrange(8 * config.line_words) for _ in range(12)]
    bench.storage.words = {BASE + 8 * word: tags() for word in words}
    probes = [replace(probe, tags=tags()) for probe in stimulus(rng, config, 90, words=words)]
    bus = [f"{c}{name}" for c in ("aw", "ar") for name in ("valid", "ready", "addr", "id")]
    bus += ["wvalid", "wready", "wlast", "bvalid", "bready", "rvalid", "rready"]
    seen = []

    async def watch(ctx):
        dut = bench.dut
        public = Cat(
            *(dut.pause, dut.check_valid, dut.check_detail, dut.check_refusal, dut.store_ready),
            *(dut.waiting_valid, dut.waiting, dut.busy, dut.idle, dut.storage_error),
            *(getattr(dut.memory, name) for name in bus),
        )
        while True:
            seen.append(ctx.get(public))
            await ctx.tick()

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, probes)

    simulate(bench.top, scenario, background=[bench.storage.bench, watch])
    return seen


def test_timing_is_the_same_for_every_tag():
    """Neither what storage holds nor what is stored moves anything in any cycle."""
    source = random.Random(6)
    zeros = timeline(random.Random(5), lambda: 0)
    assert timeline(random.Random(5), lambda: source.getrandbits(64)) == zeros
    assert len(set(zeros)) > 100


def test_timing_hits_under_a_miss():
    """While a line is fetched, hits come out one per cycle, six cycles after their words."""
    config = TagConfig(sets=2, ways=2, held=4, scrub_period=1 << 20)
    bench = Bench(config, latency=100)
    hits = [Probe(CHECK, n % 8) for n in range(60)]
    miss = Probe(CHECK, 5 * config.line_words)

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, [Probe(CHECK, 0)])
        await bench.settle(ctx)
        await bench.run(ctx, [miss, *hits])
        check([miss, *hits])
        assert [probe.answer.cycle - probe.admitted for probe in hits] == [7] * 60
        assert hits[-1].admitted - hits[0].admitted == 59
        assert miss.answer.cycle > hits[-1].answer.cycle

    bench.simulate(scenario)


# ---- Codes ---------------------------------------------------------------------------------------

ENTRY = DirectoryCode(INJECTION.directory_tag_bits + 1).width
HOME = 0
"""Index in the array of word 0, which the first line of its set takes into way 0."""


def test_sim_every_flip_of_a_tag_is_borne():
    """Any one bit of a granule's code may flip, in all granules at once."""
    bench = Bench(INJECTION)

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, [Probe(STORE, 0, 0xFFFF, 0xFEDC_BA98_7654_3210)])
        for bit in range(8):
            lanes_of_bit = sum(1 << 8 * granule + bit for granule in range(16))
            await bench.flip(ctx, HOME, lanes=lanes_of_bit)
            probe = Probe(LOAD, 0)
            await bench.run(ctx, [probe])
            check([probe])
            await bench.flip(ctx, HOME, lanes=lanes_of_bit)
        # What is written back is corrected.
        await bench.flip(ctx, HOME, lanes=1 << 6)
        await bench.run(ctx, [Probe(FLUSH, 0)])
        assert bench.in_storage(0) == 0xFEDC_BA98_7654_3210
        assert ctx.get(bench.dut.secret_corrections) >= 1
        assert not ctx.get(bench.dut.secret_lost)

    bench.simulate(scenario)


def test_sim_scrubber_repairs():
    """Two flips in one granule are borne, if the scrubber comes by between them."""
    config = TagConfig(sets=1, ways=1, mshrs=1, line_bytes=16, injection=True, scrub_period=64)
    bench = Bench(config)

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, [Probe(STORE, 0, 0xFFFF, 0x9999_9999_9999_9999)])
        for bit in range(8):
            await bench.flip(ctx, HOME, lanes=1 << 8 * bit + bit, entry=1 << bit)
            for _ in range(4 * 64):
                await bench.tick(ctx)
        probe = Probe(LOAD, 0)
        await bench.run(ctx, [probe])
        check([probe])
        assert ctx.get(bench.dut.secret_corrections) == 8
        assert bench.bursts(write=False) == [0]

    bench.simulate(scenario)


def test_sim_double_flip_of_a_tag_is_noticed(rng):
    """It never looks like a tag; and once it is written back, that is told for good."""
    bench = Bench(INJECTION)

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, [Probe(STORE, 0, 0xFFFF, rng.getrandbits(64))])
        for first, second in itertools.combinations(range(8), 2):
            both = 1 << 8 * 5 + first | 1 << 8 * 5 + second
            await bench.flip(ctx, HOME, lanes=both)
            probe = Probe(LOAD, 0)
            await bench.run(ctx, [probe])
            assert probe.answer.damaged == 1 << 5
            await bench.run(ctx, [Probe(STORE, 0, 1 << 5, rng.getrandbits(64))])
        await bench.flip(ctx, HOME, lanes=3)
        assert not ctx.get(bench.dut.secret_lost)
        await bench.run(ctx, [Probe(FLUSH, 0)])
        assert ctx.get(bench.dut.secret_lost)

    bench.simulate(scenario)


def test_sim_every_flip_of_an_entry_is_borne():
    """The line is still found, and still written back where it belongs."""
    bench = Bench(INJECTION)
    far = INJECTION.sets * INJECTION.line_words

    async def scenario(ctx):
        await bench.start(ctx)
        await bench.run(ctx, [Probe(STORE, 0, 0xFFFF, 0x1111), Probe(CHECK, far)])
        for bit in range(ENTRY):
            await bench.flip(ctx, HOME, entry=1 << bit)
            probes = [Probe(LOAD, 0), Probe(LOAD, far)]
            await bench.run(ctx, probes)
            check(probes)
            await bench.flip(ctx, HOME, entry=1 << bit)
        assert bench.bursts(write=False) == [0, far // INJECTION.line_words]
        await bench.flip(ctx, HOME, entry=2)
        await bench.run(ctx, [Probe(FLUSH_ALL, 0)])
        assert bench.in_storage(0) == 0x1111

    bench.simulate(scenario)


def test_sim_double_flip_of_an_entry_is_noticed(rng):
    """The line may be there, so a probe to its set gets no tags; hits of other lines do."""
    bench = Bench(INJECTION)
    far = INJECTION.sets * INJECTION.line_words

    async def scenario(ctx):
        await bench.start(ctx)
        for first, second in rng.sample(list(itertools.combinations(range(ENTRY), 2)), 12):
            await bench.run(ctx, [Probe(STORE, 0, 0xFFFF, 0x1111), Probe(CHECK, far)])
            await bench.flip(ctx, HOME, entry=1 << first | 1 << second)
            probes = [
                Probe(CHECK, 0),
                Probe(LOAD, 2 * far),
                Probe(STORE, 0, 1, 2),
                Probe(LOAD, far),
            ]
            await bench.run(ctx, probes)
            assert refusals(probes) == [Refusal.UNCORRECTABLE] * 3 + [Refusal.NONE]
            await bench.restart(ctx)

    bench.simulate(scenario)

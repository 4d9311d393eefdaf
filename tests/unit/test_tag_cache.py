# amaranth: UnusedElaboratable=no
from dataclasses import dataclass, field

import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out
from emte.rtl.config import SMALL, TagConfig
from emte.rtl.layouts import ProbeKind, memory_signature, probe_layout, tag_word_layout
from emte.rtl.tag_cache import TagCache
from emte.sim.axi_memory import AxiMemory
from emte.sim.harness import simulate
from emte.sim.streams import collect, random_pauses, send
from unit_support import integer, plain, watched

CHECK, LOAD, STORE = ProbeKind.CHECK, ProbeKind.LOAD, ProbeKind.STORE
CLEAN, CLEAN_ALL = ProbeKind.CLEAN, ProbeKind.CLEAN_ALL
FLUSH, FLUSH_ALL = ProbeKind.CLEAN_INVALIDATE, ProbeKind.CLEAN_INVALIDATE_ALL

BASE = (1 << 40) + 0x4080
"""Of tag storage: aligned to the longest line, and to nothing more."""

CONFIGS = {
    "small": SMALL,
    "1 line": TagConfig(sets=1, ways=1, line_bytes=16),
    "1 way": TagConfig(sets=2, ways=1, line_bytes=128),
    "1 set": TagConfig(sets=1, ways=4),
    "8 ways": TagConfig(sets=2, ways=8, line_bytes=32),
    "16 ways": TagConfig(sets=1, ways=16, line_bytes=16),
}


def test_init():
    dut = TagCache(SMALL)
    assert dut.config is SMALL
    members = dut.signature.members
    assert members["probe"] == In(stream.Signature(probe_layout(SMALL)))
    assert members["tag_word"] == Out(stream.Signature(tag_word_layout(SMALL)))
    assert members["memory"].flow is Out
    assert set(members["memory"].signature.members) == set(memory_signature(SMALL).members)
    assert {
        name: (member.flow, member.shape)
        for name, member in members.items()
        if not member.is_signature
    } == {
        "storage_base": (In, 48),
        "storage_bytes": (In, 36),
        "storage_zeroed": (In, 1),
        "storage_error": (Out, 1),
        "ready": (Out, 1),
        "busy": (Out, 1),
        "idle": (Out, 1),
    }


# What a cache does, in plain Python


class Tree:
    """Tree pseudo-LRU over some ways: which half the next victim is in, and a tree in each half."""

    def __init__(self, ways):
        self.ways = ways
        self.victim_half = 0
        half = len(ways) // 2
        self.halves = [Tree(ways[:half]), Tree(ways[half:])] if half else []

    def victim(self):
        return self.halves[self.victim_half].victim() if self.halves else self.ways[0]

    def touch(self, way):
        if self.halves:
            used = int(way in self.halves[1].ways)
            self.victim_half = 1 - used
            self.halves[used].touch(way)


@dataclass
class Line:
    number: int
    words: list
    dirty: bool = False


@dataclass
class Reference:
    """A cache of lines over a dictionary of words; keeps count of what it fetches and writes."""

    config: TagConfig
    storage: dict = field(default_factory=dict)
    reads: list = field(default_factory=list)
    writes: list = field(default_factory=list)

    def __post_init__(self):
        ways = range(self.config.ways)
        self.sets = [[None] * self.config.ways for _ in range(self.config.sets)]
        self.trees = [Tree(ways) for _ in range(self.config.sets)]

    def probe(self, kind, word, mask, tags):
        """The tag word, where the probe asks for one."""
        if kind in (CLEAN_ALL, FLUSH_ALL):
            for lines in self.sets:
                for way in range(self.config.ways):
                    self.maintain(lines, way, drop=kind is FLUSH_ALL)
            return None
        number, index = divmod(word, self.config.line_words)
        set_ = number % self.config.sets
        lines = self.sets[set_]
        ways = [way for way, line in enumerate(lines) if line and line.number == number]
        if kind in (CLEAN, FLUSH):
            for way in ways:
                self.maintain(lines, way, drop=kind is FLUSH)
            return None
        way = ways[0] if ways else self.refill(set_, number)
        self.trees[set_].touch(way)
        line = lines[way]
        if kind is not STORE:
            return line.words[index]
        line.dirty = True
        for n in range(16):
            if mask >> n & 1:
                line.words[index] &= ~(0xF << 4 * n)
                line.words[index] |= tags & 0xF << 4 * n
        return None

    def refill(self, set_, number):
        lines = self.sets[set_]
        way = lines.index(None) if None in lines else self.trees[set_].victim()
        self.maintain(lines, way, drop=True)
        words = [self.storage.get(address, 0) for address in self.addresses(number)]
        self.reads.append(self.addresses(number)[0])
        lines[way] = Line(number, words)
        return way

    def maintain(self, lines, way, *, drop):
        line = lines[way]
        if line and line.dirty:
            self.writes.append(self.addresses(line.number)[0])
            self.storage.update(zip(self.addresses(line.number), line.words, strict=True))
            line.dirty = False
        if drop:
            lines[way] = None

    def addresses(self, number):
        start = BASE + number * self.config.line_bytes
        return list(range(start, start + self.config.line_bytes, 8))


class Bench:
    """A cache with its storage; ``reset`` resets it."""

    def __init__(self, config=SMALL, *, storage_bytes=1 << 20, zeroed=1, **options):
        self.config = config
        self.dut = TagCache(config)
        self.memory = AxiMemory(self.dut.memory, **options)
        self.storage_bytes = storage_bytes
        self.zeroed = zeroed
        self.reset = Signal()
        self.probes = 0

    def run(self, *benches, background=()):
        async def configure(ctx):
            ctx.set(self.dut.storage_base, BASE)
            ctx.set(self.dut.storage_bytes, self.storage_bytes)
            ctx.set(self.dut.storage_zeroed, self.zeroed)

        design = ResetInserter(self.reset)(watched(self.dut))
        simulate(design, configure, *benches, background=[self.memory.bench, *background])

    def payload(self, kind, word=0, mask=0xFFFF, tags=0):
        """A probe with a number, so that its answer can be told from others."""
        self.probes += 1
        return integer(
            probe_layout(self.config),
            {
                "ticket": {"id": self.probes % 64},
                "kind": kind,
                "word": word,
                "mask": mask,
                "secret_tags": tags,
                "address": self.probes,
            },
        )

    def play(self, probes, *, pauses_in=(), pauses_out=()):
        """The answers to probes, each a tuple of what :meth:`payload` takes."""
        answers = []
        payloads = [self.payload(*probe) for probe in probes]
        self.run(
            send(self.dut.probe, payloads, pauses=pauses_in),
            collect(self.dut.tag_word, answers, len(payloads), pauses=pauses_out),
        )
        assert [plain(answer)["probe"] for answer in answers] == [
            plain(probe_layout(self.config).from_bits(payload)) for payload in payloads
        ]
        return answers

    def script(self, script):
        """Run a coroutine function that is given :meth:`ask`: one probe, its (word, abort)."""
        dut = self.dut

        async def bench(ctx):
            async def ask(*probe):
                ctx.set(dut.probe.payload.as_value(), self.payload(*probe))
                ctx.set(dut.probe.valid, 1)
                ctx.set(dut.tag_word.ready, 1)
                taken = 0
                while not taken:
                    _, _, taken = await ctx.tick().sample(dut.probe.ready)
                ctx.set(dut.probe.valid, 0)
                valid = 0
                while not valid:
                    _, _, valid, answer = await ctx.tick().sample(
                        dut.tag_word.valid, dut.tag_word.payload
                    )
                ctx.set(dut.tag_word.ready, 0)
                return answer.secret_word, answer.abort

            await script(ctx, ask)

        self.run(bench)

    @property
    def reads(self):
        return [t.address for t in self.memory.transactions if not t.write]

    @property
    def writes(self):
        return [t.address for t in self.memory.transactions if t.write]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_sim_random(config, rng, seed):
    """Every word, every refill and every write-back is that of the reference."""
    channels = ("aw", "w", "b", "ar", "r")
    bench = Bench(config, pauses={c: random_pauses(f"{seed} {c}") for c in channels})
    reference = Reference(config)
    lines = rng.sample(range(4 * config.sets * config.ways), config.sets * config.ways * 3 // 2 + 2)
    lines[0] = (1 << config.line_address_bits) - 1
    for number in lines:
        for address in reference.addresses(number):
            reference.storage[address] = bench.memory.words[address] = rng.getrandbits(64)
    probes = []
    for _ in range(160):
        kind = rng.choice([CHECK, LOAD, STORE, STORE] * 12 + list(ProbeKind))
        if not probes or rng.random() < 0.4:
            number = rng.choice(lines)
        word = number * config.line_words + rng.randrange(config.line_words) % 3
        mask = rng.choice([0xFFFF, 1 << rng.randrange(16), rng.getrandbits(16)])
        probes.append((kind, word, mask, rng.getrandbits(64)))
    probes.append((CLEAN_ALL, 0, 0, 0))
    expected = [reference.probe(*probe) for probe in probes]
    answers = bench.play(
        probes,
        pauses_in=random_pauses(f"{seed} in", probability=0.1),
        pauses_out=random_pauses(f"{seed} out", probability=0.1),
    )
    for answer, word in zip(answers, expected, strict=True):
        assert not answer.abort
        if word is not None:
            assert answer.secret_word == word
    assert bench.reads == reference.reads
    assert bench.writes == reference.writes
    assert bench.memory.words == reference.storage
    # There were hits, misses and evictions to speak of.
    assert 10 < len(reference.reads) < 130
    assert len(reference.writes) > 10


@pytest.mark.parametrize("ways", [2, 4, 8, 16])
def test_sim_pseudo_lru(ways, rng):
    """Which lines are fetched again tells which ones were replaced."""
    config = TagConfig(sets=1, ways=ways, line_bytes=16)
    bench = Bench(config, latency=0)
    reference = Reference(config)
    recent = list(range(2 * ways))
    probes = []
    for _ in range(200):
        number = rng.choice(recent[: rng.choice([2, ways, 2 * ways])])
        recent.remove(number)
        recent.insert(0, number)
        probes.append((CHECK, 2 * number, 1, 0))
    for probe in probes:
        reference.probe(*probe)
    bench.play(probes)
    assert bench.reads == reference.reads
    assert len(reference.reads) > 1.5 * ways


def test_sim_neighbours():
    """Granules of one word, stored alone with evictions between them: none is lost."""
    bench = Bench(latency=0)
    other_lines = [8 * 2 * n for n in range(1, 4)]  # of the same set
    probes = []
    word = 0
    for step, n in enumerate([3, 2, 0, 1, 15, 14, 7, 6, 8, 9, 5, 4, 10, 11, 13, 12]):
        tag = (7 * n + 3) % 16
        word |= tag << 4 * n
        # All other bits of the payload are against it.
        probes.append((STORE, 5, 1 << n, ~(0xF << 4 * n) & (1 << 64) - 1 | tag << 4 * n))
        if step % 3 == 1:
            probes += [(CHECK, other) for other in other_lines]
    probes += [(LOAD, 5), (CLEAN_ALL,)]
    answers = bench.play(probes)
    assert answers[-2].secret_word == word
    assert bench.memory.words[BASE + 5 * 8] == word
    assert len(bench.writes) > 4


def test_sim_store_is_seen_by_the_next_probe():
    """Also right behind it, with nothing between them."""
    bench = Bench()
    probes = [(CHECK, 0)]
    for n in range(16):
        probes += [(STORE, n % 3, 1 << n, (n + 1) % 16 << 4 * n), (LOAD, n % 3)]
    answers = bench.play(probes)
    for n in range(16):
        assert answers[2 * n + 2].secret_word >> 4 * n & 0xF == (n + 1) % 16


def test_sim_refill_error():
    """The probe aborts, and leaves nothing behind: neither its line nor damage to its victim."""
    bench = Bench()
    line = BASE + 64 * 6
    bench.memory.words[line + 8] = 0x1234

    async def script(ctx, ask):
        await ask(STORE, 0, 0xFFFF, 0x5555)  # line 0
        await ask(STORE, 16, 0xFFFF, 0x6666)  # line 2: set 0 is full, line 0 goes next
        bench.memory.read_errors = {line + 16}
        for kind in (CHECK, LOAD, STORE):
            _, abort = await ask(kind, 49, 0xFFFF, 0x7777)
            assert abort
        bench.memory.read_errors = ()
        assert await ask(CHECK, 49) == (0x1234, 0)
        assert await ask(LOAD, 0) == (0x5555, 0)
        assert await ask(LOAD, 16) == (0x6666, 0)
        assert not ctx.get(bench.dut.storage_error)

    bench.script(script)
    assert bench.memory.words[line + 8] == 0x1234
    assert bench.reads.count(line) == 4


def test_sim_write_back_error():
    """From then on CHECK and LOAD abort, hits too, and so does maintenance."""
    bench = Bench()
    bench.memory.write_errors = {BASE}

    async def script(ctx, ask):
        await ask(STORE, 0, 0xFFFF, 0x5555)
        await ask(STORE, 8, 0xFFFF, 0x6666)
        assert await ask(LOAD, 8) == (0x6666, 0)
        assert not ctx.get(bench.dut.storage_error)
        _, abort = await ask(CLEAN, 0)
        assert abort
        assert ctx.get(bench.dut.storage_error)
        for kind in (CHECK, LOAD, CLEAN, FLUSH, CLEAN_ALL, FLUSH_ALL):
            for word in (8, 800):
                _, abort = await ask(kind, word)
                assert abort, kind
        _, abort = await ask(STORE, 8)
        assert not abort
        assert ctx.get(bench.dut.storage_error)

    bench.script(script)


def test_sim_write_back_error_behind_a_refill():
    """The error of an eviction is known before a later CHECK or LOAD is answered."""
    bench = Bench(latency=0, pauses={"b": iter([100])})
    bench.memory.write_errors = {BASE}

    async def script(ctx, ask):
        for line in (0, 2):
            await ask(STORE, 8 * line, 0xFFFF, 0x5555)
        _, abort = await ask(CHECK, 8 * 4)  # evicts line 0; storage has not answered yet
        assert not abort
        _, abort = await ask(CHECK, 8 * 6)  # waits for that answer
        assert ctx.get(bench.dut.storage_error)
        _, abort = await ask(CHECK, 8 * 6)
        assert abort

    bench.script(script)


def test_sim_maintenance_by_address():
    """CLEAN keeps the line, CLEAN_INVALIDATE drops it; both write it only if it is dirty."""
    bench = Bench()

    async def script(ctx, ask):
        def traffic():
            return len(bench.reads), len(bench.writes)

        await ask(CLEAN, 3)
        await ask(FLUSH, 3)
        assert traffic() == (0, 0)
        await ask(STORE, 3, 1, 9)
        await ask(STORE, 11, 1, 8)
        assert traffic() == (2, 0)
        await ask(CLEAN, 7)  # the same line, another word
        assert traffic() == (2, 1)
        assert bench.memory.words[BASE + 24] == 9
        assert BASE + 88 not in bench.memory.words
        await ask(CLEAN, 3)
        assert await ask(LOAD, 3) == (9, 0)
        assert traffic() == (2, 1)
        await ask(FLUSH, 3)
        assert traffic() == (2, 1)
        bench.memory.words[BASE + 24] = 10
        assert await ask(LOAD, 3) == (10, 0)
        assert traffic() == (3, 1)
        await ask(FLUSH, 11)
        assert traffic() == (3, 2)
        assert bench.memory.words[BASE + 88] == 8

    bench.script(script)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_sim_maintenance_of_all(config):
    """Every line of every set and way."""
    bench = Bench(config)
    lines = list(range(config.sets * config.ways))
    words = [number * config.line_words for number in lines]

    async def script(ctx, ask):
        for word in words:
            await ask(STORE, word, 0xFFFF, word + 1)
        assert bench.memory.words == {}
        await ask(CLEAN_ALL)
        for word in words:
            assert bench.memory.words[BASE + 8 * word] == word + 1
            bench.memory.words[BASE + 8 * word] = 0xBAD
            assert await ask(LOAD, word) == (word + 1, 0)
        writes = len(bench.writes)
        await ask(FLUSH_ALL)
        assert len(bench.writes) == writes
        assert [await ask(LOAD, word) for word in words] == [(0xBAD, 0)] * len(words)

    bench.script(script)


def test_sim_maintenance_waits_for_write_backs():
    """Its answer means that storage has what was evicted before it."""
    bench = Bench(latency=0, pauses={"b": iter([300])})

    async def script(ctx, ask):
        for line in (0, 2):
            await ask(STORE, 8 * line, 0xFFFF, 0x5555)
        await ask(CHECK, 8 * 4)
        assert BASE not in bench.memory.words
        await ask(CLEAN, 0)
        assert bench.memory.words[BASE] == 0x5555

    bench.script(script)


def test_sim_new_map_after_flush():
    """Lines are named by their number, so the same word is another one under another base."""
    bench = Bench()
    bench.memory.words[BASE + (1 << 16)] = 0x77

    async def script(ctx, ask):
        await ask(STORE, 0, 0xFFFF, 0x55)
        await ask(FLUSH_ALL)
        ctx.set(bench.dut.storage_base, BASE + (1 << 16))
        assert await ask(LOAD, 0) == (0x77, 0)
        assert bench.memory.words[BASE] == 0x55

    bench.script(script)


@pytest.mark.parametrize("kind", [CHECK, LOAD, STORE, CLEAN, FLUSH_ALL])
def test_sim_initialise(kind):
    """Unless storage is vouched for, it is zeroed after reset, before any probe is taken."""
    bench = Bench(storage_bytes=3 * 128, zeroed=0, latency=0)
    inside = range(BASE, BASE + 3 * 128, 8)
    around = [BASE - 8, BASE + 3 * 128]
    full = (1 << 64) - 1
    bench.memory.words = dict.fromkeys([*inside, *around], full)

    async def script(ctx, ask):
        dut = bench.dut

        async def watch(ctx):
            while not ctx.get(dut.ready):
                assert ctx.get(dut.busy)
                assert not ctx.get(dut.probe.ready)
                assert not ctx.get(dut.idle)
                await ctx.tick()
            assert not ctx.get(dut.busy)
            assert [bench.memory.words[address] for address in inside] == [0] * len(inside)

        word, abort = await ask(kind, 5, 0xF, 0x4321)
        assert not abort
        if kind in (CHECK, LOAD):
            assert word == 0
        await ask(STORE, 40, 0xF, 0x1234)
        await ask(FLUSH_ALL)
        assert await ask(LOAD, 40) == (0x1234, 0)
        assert (await ask(LOAD, 5))[0] == (0x4321 if kind is STORE else 0)
        assert ctx.get(dut.ready)

    bench.script(script)
    assert [bench.memory.words[address] for address in around] == [full, full]


def test_sim_initialise_without_being_asked():
    """Storage is zeroed with no probe in sight, once; ``storage_zeroed`` counts at reset alone."""
    bench = Bench(storage_bytes=3 * 128, zeroed=0)
    bench.memory.words = {BASE: 0x1234}

    async def script(ctx, ask):
        while not ctx.get(bench.dut.ready):
            await ctx.tick()
        assert bench.memory.words[BASE] == 0
        bench.memory.words[BASE] = 0x5678
        assert await ask(LOAD, 0) == (0x5678, 0)

    bench.script(script)
    lines = 3 * 128 // SMALL.line_bytes
    assert bench.writes == [BASE + SMALL.line_bytes * n for n in range(lines)]


def test_sim_initialise_error():
    bench = Bench(storage_bytes=256, zeroed=0)
    bench.memory.write_errors = {BASE + 64}

    async def script(ctx, ask):
        _, abort = await ask(CHECK, 0)
        assert abort
        assert ctx.get(bench.dut.storage_error)

    bench.script(script)


def test_sim_vouched_for_storage_is_left_alone():
    bench = Bench(storage_bytes=3 * 128)
    bench.memory.words = {BASE + 40: 0x1234}

    async def script(ctx, ask):
        assert await ask(LOAD, 5) == (0x1234, 0)

    bench.script(script)
    assert bench.writes == []


async def reset(bench, ctx):
    """Reset the cache for a cycle; nothing is outstanding at its memory."""
    ctx.set(bench.reset, 1)
    await ctx.tick()
    ctx.set(bench.reset, 0)


def test_sim_reset_forgets_every_line():
    """What was in the cache is gone, dirty or not; the sweep takes a cycle for each set."""
    config = TagConfig(sets=8, ways=2, line_bytes=16)
    bench = Bench(config)

    async def script(ctx, ask):
        assert ctx.get(bench.dut.busy)
        for word in range(0, 32, 2):
            await ask(STORE, word, 0xFFFF, 0xAAAA)
        assert bench.memory.words == {}
        await reset(bench, ctx)
        for _ in range(config.sets):
            assert ctx.get(bench.dut.busy)
            assert not ctx.get(bench.dut.idle)
            assert not ctx.get(bench.dut.probe.ready)
            assert not ctx.get(bench.dut.ready)
            await ctx.tick()
        assert ctx.get(bench.dut.ready)
        assert not ctx.get(bench.dut.busy)
        assert ctx.get(bench.dut.idle)
        for word in range(0, 32, 2):
            assert await ask(LOAD, word) == (0, 0)
        # Nothing that was dirty before is written now.
        await ask(CLEAN_ALL)

    bench.script(script)
    assert bench.writes == []


def test_sim_reset_makes_storage_doubtful_again():
    bench = Bench(storage_bytes=128, zeroed=0)

    async def script(ctx, ask):
        await ask(STORE, 0, 0xFFFF, 0xAAAA)
        await ask(CLEAN_ALL)
        assert bench.memory.words[BASE] == 0xAAAA
        await reset(bench, ctx)
        assert await ask(LOAD, 0) == (0, 0)

    bench.script(script)


def test_sim_reset_clears_storage_error():
    bench = Bench()
    bench.memory.write_errors = {BASE}

    async def script(ctx, ask):
        await ask(STORE, 0)
        await ask(CLEAN, 0)
        assert ctx.get(bench.dut.storage_error)
        await reset(bench, ctx)
        assert not ctx.get(bench.dut.storage_error)
        _, abort = await ask(CHECK, 0)
        assert not abort

    bench.script(script)


def timeline(bench, probes, cycles, *, warm=(0,), ready=lambda cycle: 1):
    """For each cycle, after ``warm`` words are in the cache: the number of the probe that is taken,
    and of the one whose word is offered; None where there is none."""
    dut = bench.dut
    seen = []

    async def script(ctx, ask):
        for word in warm:
            await ask(CHECK, word)
        number = 0
        payloads = [bench.payload(*probe) for probe in probes]
        first = bench.probes - len(probes) + 1
        for cycle in range(cycles):
            ctx.set(dut.probe.valid, number < len(payloads))
            if number < len(payloads):
                ctx.set(dut.probe.payload.as_value(), payloads[number])
            ctx.set(dut.tag_word.ready, ready(cycle))
            _, _, taken, valid, answer = await ctx.tick().sample(
                dut.probe.ready, dut.tag_word.valid, dut.tag_word.payload
            )
            taken = taken and number < len(payloads)
            answered = answer.probe.address - first if valid else None
            seen.append((number if taken else None, answered))
            number += taken

    bench.script(script)
    return [taken for taken, _ in seen], [answered for _, answered in seen]


def test_timing_hit():
    """Two cycles from a probe to its word; one probe per cycle, whatever kind and word."""
    kinds = [CHECK, STORE, LOAD, STORE, STORE, CHECK, CHECK, LOAD, STORE, LOAD, STORE, CHECK]
    probes = [(kind, (0, 9, 3)[n % 3], 1 << n, n << 4 * n) for n, kind in enumerate(kinds)]
    count = len(probes)
    taken, answered = timeline(Bench(), probes, count + 3, warm=(0, 8))
    assert taken == [*range(count), None, None, None]
    assert answered == [None, None, *range(count), None]


def test_timing_miss():
    """The lookups behind a miss wait; then they go on, one per cycle."""
    latency = 4
    probes = [(CHECK, 0), (CHECK, 16), (CHECK, 0), (CHECK, 17), (CHECK, 0)]
    taken, answered = timeline(Bench(latency=latency), probes, 40)
    miss = answered.index(1)
    assert answered[:miss] == [None, None, 0] + [None] * (miss - 3)
    assert answered[miss : miss + 5] == [1, 2, 3, 4, None]
    # The lookup, a request to the miss unit, and one to memory; its latency and 7 more beats; then
    # the end of the refill, a read of the directory, the lookup once more, and the tags.
    assert miss - taken.index(1) == 3 + latency + 7 + 4


def test_timing_is_the_same_for_every_tag():
    """Neither what storage holds nor what is stored moves any cycle."""
    seen = []
    for fill in (0, (1 << 64) - 1):
        bench = Bench()
        bench.memory.words = {BASE + 8 * n: fill for n in range(64)}
        probes = [(STORE, 0, 0xF, fill), (CHECK, 16), (STORE, 32, 1, fill), (LOAD, 0), (CLEAN_ALL,)]
        seen.append(timeline(bench, probes, 150))
    assert seen[0] == seen[1]
    assert 4 in seen[0][1]


def test_timing_backpressure():
    """A word that nobody takes stays; one probe waits behind it, and no more is taken."""
    probes = [(CHECK, 0), (LOAD, 1), (STORE, 2), (CHECK, 3)]
    taken, answered = timeline(Bench(), probes, 12, ready=lambda cycle: cycle >= 6)
    assert taken == [0, 1, None, None, None, None, 2, 3, None, None, None, None]
    assert answered == [None, None, 0, 0, 0, 0, 0, 1, 2, 3, None, None]

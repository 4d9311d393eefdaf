# amaranth: UnusedElaboratable=no
import pytest
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out
from emte.rtl.config import DEFAULT, SMALL, TagConfig
from emte.rtl.layouts import memory_signature
from emte.rtl.miss_unit import MissKind, MissUnit, miss_layout
from emte.sim.axi_memory import AxiMemory
from emte.sim.harness import simulate
from emte.sim.streams import random_pauses
from unit_support import watched

BASE = (1 << 40) + 0x80
"""Of tag storage: aligned to the longest line, and to nothing more."""

CONFIGS = {
    "64 bytes": DEFAULT,
    "16 bytes": TagConfig(line_bytes=16),
    "128 bytes": TagConfig(line_bytes=128),
}


def test_init():
    dut = MissUnit(SMALL)
    assert dut.config is SMALL
    members = dut.signature.members
    assert members["request"] == In(stream.Signature(miss_layout(SMALL)))
    assert members["memory"].flow is Out
    assert set(members["memory"].signature.members) == set(memory_signature(SMALL).members)
    assert {
        name: (member.flow, member.shape)
        for name, member in members.items()
        if not member.is_signature
    } == {
        "done": (Out, 1),
        "failed": (Out, 1),
        "word": (Out, 3),
        "tags_read": (Out, 1),
        "tags": (In, 64),
        "tags_write": (Out, 1),
        "tags_value": (Out, 64),
        "storage_base": (In, 48),
        "storage_bytes": (In, 36),
        "storage_error": (Out, 1),
        "idle": (Out, 1),
    }


class Bench:
    """The cache's side of the unit: requests, and a row of the array for the line at work."""

    def __init__(self, config, *, storage_bytes=0, **options):
        self.config = config
        self.dut = MissUnit(config)
        self.memory = AxiMemory(self.dut.memory, **options)
        self.storage_bytes = storage_bytes
        self.row = [0] * config.line_words
        self.cycle = 0

    def run(self, scenario):
        async def bench(ctx):
            ctx.set(self.dut.storage_base, BASE)
            ctx.set(self.dut.storage_bytes, self.storage_bytes)
            self.ctx = ctx
            await scenario()

        simulate(watched(self.dut), bench, background=[self.memory.bench])

    async def tick(self):
        """One cycle, in which the array does what it is told."""
        dut = self.dut
        _, _, word, read, write, value = await self.ctx.tick().sample(
            dut.word, dut.tags_read, dut.tags_write, dut.tags_value
        )
        assert not (read and write)
        self.cycle += 1
        # A word is there for one cycle; what is there in others is nothing to rely on.
        self.ctx.set(dut.tags, self.row[word] if read else 0xBAD0_BAD0_BAD0_BAD0)
        if write:
            self.row[word] = value

    async def request(self, kind, *, line=0, victim_line=0, victim_dirty=0):
        """Returns whether it failed, and the cycles in which it was taken and done."""
        dut, ctx = self.dut, self.ctx
        ctx.set(
            dut.request.payload,
            {
                "kind": kind,
                "line": line,
                "victim_line": victim_line,
                "victim_dirty": victim_dirty,
            },
        )
        ctx.set(dut.request.valid, 1)
        while not ctx.get(dut.request.ready):
            assert not ctx.get(dut.done)
            await self.tick()
        taken = self.cycle
        await self.tick()
        ctx.set(dut.request.valid, 0)
        ctx.set(dut.request.payload, {"kind": MissKind.INITIALISE})
        while not ctx.get(dut.done):
            assert not ctx.get(dut.idle)
            await self.tick()
        failed = ctx.get(dut.failed)
        done = self.cycle
        await self.tick()
        assert not ctx.get(dut.done)
        return failed, taken, done

    async def settle(self):
        while not self.ctx.get(self.dut.idle):
            await self.tick()

    def address(self, line):
        return BASE + self.config.line_bytes * line

    def stored(self, line):
        start = self.address(line)
        return [self.memory.words.get(start + 8 * n, 0) for n in range(self.config.line_words)]

    def store(self, line, words):
        for n, word in enumerate(words):
            self.memory.words[self.address(line) + 8 * n] = word


def assert_write_backs_come_first(memory):
    """No line is fetched while a write to it is not answered."""
    for number, read in enumerate(memory.transactions):
        if read.write:
            continue
        for write in memory.transactions[:number]:
            if write.write and write.address == read.address:
                assert write.finished is not None
                assert write.finished < read.started


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_sim_random(config, rng, seed):
    """Refills, evictions and cleaning of a few lines, with random pauses on every channel."""
    channels = ("aw", "w", "b", "ar", "r")
    bench = Bench(config, pauses={c: random_pauses(f"{seed} {c}") for c in channels}, latency=3)
    lines = [0, 1, 2, (1 << config.line_address_bits) - 1]
    content = {line: [rng.getrandbits(64) for _ in range(config.line_words)] for line in lines}
    expected = []
    for line, words in content.items():
        bench.store(line, words)

    async def scenario():
        held = None
        for _ in range(50):
            kind = rng.choice([MissKind.REFILL, MissKind.REFILL, MissKind.CLEAN])
            if held is None:
                kind = MissKind.REFILL
            if held is not None:
                bench.row = [rng.getrandbits(64) for _ in range(config.line_words)]
            dirty = held is not None and (kind is MissKind.CLEAN or rng.random() < 0.6)
            if dirty:
                content[held] = list(bench.row)
                expected.append((True, bench.address(held)))
            if kind is MissKind.CLEAN:
                failed, _, _ = await bench.request(
                    kind, line=rng.choice(lines), victim_line=held, victim_dirty=1
                )
                # Storage has it when the request is done.
                assert bench.stored(held) == content[held]
            else:
                # The line that was just replaced may be asked for again.
                line = rng.choice(lines)
                expected.append((False, bench.address(line)))
                failed, _, _ = await bench.request(
                    kind, line=line, victim_line=held or 0, victim_dirty=int(dirty)
                )
                if line != held or not dirty:
                    assert bench.row == content[line]
                held = line
            assert not failed
            if rng.random() < 0.2:
                await bench.settle()
        await bench.settle()

    bench.run(scenario)
    assert {line: bench.stored(line) for line in lines} == content
    transactions = bench.memory.transactions
    for write in (False, True):
        assert [t.address for t in transactions if t.write is write] == [
            address for of_write, address in expected if of_write is write
        ]
    assert {t.beats for t in transactions} == {config.line_words}
    assert {t.id for t in transactions} == {0}
    assert not bench.storage_bytes
    assert_write_backs_come_first(bench.memory)


def test_sim_refill_of_the_line_just_written_back():
    """It waits until storage has answered: the refill brings what was written."""
    bench = Bench(SMALL, latency=20)
    words = [0x1111_1111_1111_1111 * n for n in range(8)]

    async def scenario():
        bench.row = list(words)
        await bench.request(MissKind.REFILL, line=5, victim_line=3, victim_dirty=1)
        assert bench.row == [0] * 8
        await bench.request(MissKind.REFILL, line=3, victim_line=5)
        assert bench.row == words

    bench.run(scenario)
    assert_write_backs_come_first(bench.memory)


def test_sim_clean_victim_is_not_written():
    bench = Bench(SMALL)

    async def scenario():
        await bench.request(MissKind.REFILL, line=5, victim_line=3)
        await bench.settle()

    bench.run(scenario)
    assert [t.write for t in bench.memory.transactions] == [False]


@pytest.mark.parametrize("word", range(8))
def test_sim_read_error(word):
    """An error of any beat fails the refill, when all beats are there; the next one is fine."""
    bench = Bench(SMALL)
    bench.memory.read_errors = {bench.address(5) + 8 * word}

    async def scenario():
        failed, _, _ = await bench.request(MissKind.REFILL, line=5)
        assert failed
        failed, _, _ = await bench.request(MissKind.REFILL, line=6)
        assert not failed
        assert not bench.ctx.get(bench.dut.storage_error)

    bench.run(scenario)
    assert len(bench.memory.transactions[0].words) == 8


def test_sim_write_error():
    """It has no one to blame, and is known from the end of the request on until reset."""
    bench = Bench(SMALL)
    bench.memory.write_errors = {bench.address(5)}

    async def scenario():
        seen = []
        for kind, line in [
            (MissKind.CLEAN, 6),
            (MissKind.CLEAN, 5),
            (MissKind.CLEAN, 6),
            (MissKind.REFILL, 5),
        ]:
            failed, _, _ = await bench.request(kind, line=line, victim_line=line)
            assert not failed
            seen.append(bench.ctx.get(bench.dut.storage_error))
        assert seen == [0, 1, 1, 1]

    bench.run(scenario)


def test_sim_write_error_behind_a_refill():
    """The refill is not to blame for the write-back of its victim."""
    bench = Bench(SMALL, latency=30)
    bench.memory.write_errors = {bench.address(3)}

    async def scenario():
        failed, _, _ = await bench.request(MissKind.REFILL, line=5, victim_line=3, victim_dirty=1)
        assert not failed
        await bench.settle()
        assert bench.ctx.get(bench.dut.storage_error)

    bench.run(scenario)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_sim_initialise(config):
    """Zeros to all of tag storage, and to nothing else."""
    bench = Bench(config, storage_bytes=3 * 128)
    inside = range(BASE, BASE + 3 * 128, 8)
    around = [BASE - 8, BASE + 3 * 128]
    bench.memory.words = dict.fromkeys([*inside, *around], 0xFFFF_FFFF_FFFF_FFFF)

    async def scenario():
        bench.row = [0x55] * config.line_words
        failed, _, _ = await bench.request(MissKind.INITIALISE)
        assert not failed
        assert {bench.memory.words[address] for address in inside} == {0}
        bench.row = [0x77] * config.line_words
        # The unit writes no zeros from then on.
        await bench.request(MissKind.CLEAN, victim_line=1, victim_dirty=1)
        assert bench.stored(1) == [0x77] * config.line_words

    bench.run(scenario)
    assert [bench.memory.words[address] for address in around] == [0xFFFF_FFFF_FFFF_FFFF] * 2


def test_sim_initialise_nothing():
    bench = Bench(SMALL, storage_bytes=0)

    async def scenario():
        await bench.request(MissKind.INITIALISE)

    bench.run(scenario)
    assert bench.memory.transactions == []


def test_sim_initialise_error():
    bench = Bench(SMALL, storage_bytes=256)
    bench.memory.write_errors = {BASE + 128}

    async def scenario():
        await bench.request(MissKind.INITIALISE)
        assert bench.ctx.get(bench.dut.storage_error)

    bench.run(scenario)


@pytest.mark.parametrize("latency", [1, 10])
def test_timing_refill(latency):
    """A cycle to ask, the memory's latency, a beat per cycle, and a cycle to say so."""
    bench = Bench(SMALL, latency=latency)

    async def scenario():
        _, taken, done = await bench.request(MissKind.REFILL, line=5)
        assert done - taken == 1 + latency + 8
        assert bench.ctx.get(bench.dut.idle)

    bench.run(scenario)


def test_timing_eviction():
    """The victim is read out first, which takes a cycle for each word and one more."""
    bench = Bench(SMALL, latency=1)

    async def scenario():
        _, taken, done = await bench.request(MissKind.REFILL, line=5, victim_line=3, victim_dirty=1)
        assert done - taken == 9 + 1 + 1 + 8

    bench.run(scenario)


def test_timing_backpressure():
    """While the write-back is not answered the next request waits."""
    bench = Bench(SMALL, pauses={"b": iter([200])})

    async def scenario():
        bench.row = [9] * 8
        await bench.request(MissKind.REFILL, line=5, victim_line=3, victim_dirty=1)
        assert not bench.ctx.get(bench.dut.request.ready)
        assert not bench.ctx.get(bench.dut.idle)
        await bench.request(MissKind.REFILL, line=6)
        write, first, second = sorted(bench.memory.transactions, key=lambda t: not t.write)
        assert write.write
        assert first.started < write.finished < second.started

    bench.run(scenario)

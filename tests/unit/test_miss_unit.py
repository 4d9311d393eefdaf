# amaranth: UnusedElaboratable=no
import random
from collections import deque

import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out
from emte.rtl.config import DEFAULT, ECP5, SMALL, TagConfig
from emte.rtl.layouts import Refusal, memory_signature
from emte.rtl.miss_unit import MissUnit, fill_layout
from emte.sim.axi_memory import AxiMemory
from emte.sim.harness import simulate
from emte.sim.streams import random_pauses
from unit_support import watched

BASE = (1 << 40) + 0x80
"""Of tag storage: aligned to the longest line, and to nothing more."""

CONFIGS = {
    "small": SMALL,
    "default": DEFAULT,
    "16 bytes": TagConfig(line_bytes=16),
    "128 bytes": TagConfig(line_bytes=128, sets=16),
    "one MSHR": TagConfig(sets=4, ways=2, mshrs=1),
    "one way": TagConfig(sets=16, ways=1, mshrs=1, axi_id_bits=1),
    "one set": TagConfig(sets=1, ways=4, mshrs=2),
    "16 MSHRs": TagConfig(sets=4, ways=16, mshrs=16),
}


def test_init():
    dut = MissUnit(ECP5)
    assert dut.config is ECP5
    members = dut.signature.members
    assert members["fill"] == Out(stream.Signature(fill_layout(ECP5)))
    assert members["refusals"] == Out(Refusal).array(4)
    assert members["memory"].flow is Out
    assert set(members["memory"].signature.members) == set(memory_signature(ECP5).members)
    assert {
        name: (member.flow, member.shape)
        for name, member in members.items()
        if member.is_port and not member.dimensions
    } == {
        "allocate": (In, 1),
        "allocate_line": (In, 29),
        "available": (Out, 1),
        "next": (Out, 2),
        "line": (In, 29),
        "match": (Out, 4),
        "valid": (Out, 4),
        "filled": (Out, 4),
        "refused": (Out, 4),
        "free": (In, 4),
        "arrived": (Out, 1),
        "unsettled": (Out, 1),
        "unsettled_line": (Out, 29),
        "busy_ways": (Out, 4),
        "urgent": (Out, 1),
        "settle": (In, 1),
        "settle_way": (In, 2),
        "settle_poisoned": (In, 1),
        "broken": (Out, 1),
        "broken_line": (Out, 29),
        "broken_way": (Out, 2),
        "mended": (In, 1),
        "evict_ready": (Out, 1),
        "evict_start": (In, 1),
        "evict_line": (In, 29),
        "evict_zero": (In, 1),
        "evict_write": (In, 1),
        "evict_word": (In, 3),
        "secret_evict_tags": (In, 64),
        "evict_done": (In, 1),
        "writes_idle": (Out, 1),
        "storage_error": (Out, 1),
        "storage_base": (In, 48),
        "idle": (Out, 1),
    }


STROBES = ("allocate", "settle", "mended", "evict_start", "evict_write", "evict_done", "free")


class Bench:
    """The cache's side of the unit, cycle by cycle: what it does in the next cycle is set first."""

    def __init__(self, config, **options):
        self.config = config
        self.dut = MissUnit(config)
        self.memory = AxiMemory(self.dut.memory, **options)
        self.array = {}
        """What was filled, by index."""
        self.cycle = 0
        self.expected_matches = deque([None, None])

    def run(self, scenario, *, max_cycles=20_000):
        async def bench(ctx):
            ctx.set(self.dut.storage_base, BASE)
            self.ctx = ctx
            await self.tick()
            await self.tick()
            assert self.get("available")
            await scenario()

        simulate(watched(self.dut), bench, background=[self.memory.bench], max_cycles=max_cycles)

    def get(self, name):
        return self.ctx.get(getattr(self.dut, name))

    def set(self, **values):
        for name, value in values.items():
            self.ctx.set(getattr(self.dut, name), value)

    def ready(self, ready):
        """Whether the array takes a word in this cycle."""
        self.ctx.set(self.dut.fill.ready, ready)

    async def tick(self):
        """One cycle; strobes last for one."""
        dut, ctx = self.dut, self.ctx
        if ctx.get(dut.fill.valid) and ctx.get(dut.fill.ready):
            payload = ctx.get(dut.fill.payload)
            self.array[payload.index] = payload.secret_tags
        await ctx.tick()
        self.cycle += 1
        for name in STROBES:
            ctx.set(getattr(dut, name), 0)

    async def until(self, name, value=1):
        """Returns the cycles that it took."""
        start = self.cycle
        while self.get(name) != value:
            await self.tick()
        return self.cycle - start

    async def allocate(self, line):
        await self.until("available")
        number = self.get("next")
        self.set(allocate=1, allocate_line=line)
        await self.tick()
        return number

    async def settle(self, way=0, *, poisoned=0):
        await self.until("unsettled")
        self.set(settle=1, settle_way=way, settle_poisoned=poisoned)
        await self.tick()

    async def evict(self, line, words):
        await self.until("evict_ready")
        self.set(evict_start=1, evict_line=line)
        await self.tick()
        for number, word in enumerate(words):
            self.set(evict_write=1, evict_word=number, secret_evict_tags=word)
            await self.tick()
        self.set(evict_done=1)
        await self.tick()

    async def zero(self, line):
        await self.until("evict_ready")
        self.set(evict_start=1, evict_line=line, evict_zero=1)
        await self.tick()
        self.set(evict_zero=0)

    async def arrival(self):
        """Until some MSHR is filled; the array takes all words."""
        self.ready(1)
        return await self.until("arrived")

    def refusal(self, number):
        return self.ctx.get(self.dut.refusals[number])

    def address(self, line):
        return BASE + self.config.line_bytes * line

    def stored(self, line):
        start = self.address(line)
        return [self.memory.words.get(start + 8 * n, 0) for n in range(self.config.line_words)]

    def store(self, line, words):
        for n, word in enumerate(words):
            self.memory.words[self.address(line) + 8 * n] = word

    def rows(self, line, way):
        """Indices of a line's words in the array."""
        config = self.config
        place = line % config.sets | way << config.set_bits
        return [place << config.word_index_bits | n for n in range(config.line_words)]

    def held(self, line, way):
        return [self.array.get(row, 0) for row in self.rows(line, way)]


class Random(Bench):
    """A cache that does all it may, at random, and knows what it has to find."""

    def __init__(self, config, rng, **options):
        super().__init__(config, **options)
        self.rng = rng
        # Lines of two sets, more than fit, and some that differ in their high bits alone.
        top = (1 << config.line_address_bits) - 1
        self.lines = [
            *(
                config.sets * n + low
                for n in range(config.ways + 2)
                for low in (0, config.sets - 1)
            ),
            *(top, top ^ 1 << 9, 1 << 20, 1 << 20 | 1 << 10),
        ]
        self.lines = list(dict.fromkeys(self.lines))
        self.content = {line: self.words() for line in self.lines}
        for line, words in self.content.items():
            self.store(line, words)
        self.directory = {}
        """The way of each line, from the time that it is settled on."""
        self.dirty = set()
        self.mshrs = {}
        """Line, way and whether it is poisoned, of those in use, by number."""
        self.filled = set()
        self.spoilt = set()
        """Lines that storage fails to give."""
        self.evicting = None
        self.seen = {"match": 0, "broken": 0, "poisoned": 0, "zero": 0, "cleaned": 0, "evicted": 0}

    def words(self):
        return [self.rng.getrandbits(64) for _ in range(self.config.line_words)]

    def likely(self, probability):
        return self.rng.random() < probability

    def of(self, line):
        return next((n for n, (other, *_) in self.mshrs.items() if other == line), None)

    async def traffic(self, cycles, *, ready, drain=False):
        """``ready``: how often the array takes a word."""
        while cycles > 0 or (drain and not self.get("idle")):
            cycles -= 1
            self.match()
            self.fill(ready)
            self.eviction()
            self.cleaning(drain)
            self.allocation(drain)
            self.release(drain)
            self.placing()
            await self.tick()

    def match(self):
        """The line of two cycles ago was compared with the MSHRs of then."""
        expected = self.expected_matches.popleft()
        if expected is not None:
            assert self.get("match") == expected
            self.seen["match"] += expected != 0
        line = self.rng.choice(self.lines)
        self.set(line=line)
        number = self.of(line)
        self.expected_matches.append(0 if number is None else 1 << number)
        assert self.get("valid") == sum(1 << n for n in self.mshrs)

    def fill(self, ready):
        self.ready(self.likely(ready))
        if self.get("arrived"):
            known = self.filled
            self.filled = {n for n in self.mshrs if self.get("filled") >> n & 1}
            (number,) = self.filled - known
            line, way, poisoned = self.mshrs[number]
            assert self.get("refused") >> number & 1 == (poisoned or line in self.spoilt)
            if poisoned:
                assert self.refusal(number) is Refusal.UNCORRECTABLE
                self.seen["poisoned"] += 1
            elif line in self.spoilt:
                assert self.refusal(number) is Refusal.ABORT
                assert line not in self.directory
            else:
                assert self.refusal(number) is Refusal.NONE
                assert self.held(line, way) == self.content[line]
        assert self.get("filled") == sum(1 << n for n in self.filled)

    def allocation(self, drain):
        number = self.get("next")
        if self.get("available"):
            assert number not in self.mshrs
        if drain or not self.get("available") or self.likely(0.4):
            return
        line = self.rng.choice(self.lines)
        if line in self.directory or self.of(line) is not None or line == self.leaving():
            return
        self.set(allocate=1, allocate_line=line)
        if line not in self.spoilt and self.likely(0.2):
            self.spoilt.add(line)
            bad = self.rng.randrange(self.config.line_words)
            self.memory.read_errors.add(self.address(line) + 8 * bad)
        elif line in self.spoilt and self.likely(0.5):
            self.spoilt.discard(line)
            self.memory.read_errors -= set(range(self.address(line), self.address(line + 1)))
        self.mshrs[number] = (line, None, False)

    def leaving(self):
        """The line that is about to be written back, and not announced yet."""
        return self.evicting["line"] if self.evicting and not self.evicting["begun"] else None

    def release(self, drain):
        done = [n for n in self.filled if self.likely(0.3)]
        for number in done:
            line, _, poisoned = self.mshrs.pop(number)
            self.filled.discard(number)
            if not poisoned and line not in self.spoilt and self.likely(0.6):
                # What waited for it stored tags.
                self.modify(line)
        self.set(free=sum(1 << n for n in done))
        resident = [line for line in self.directory if self.of(line) is None]
        if resident and not drain and self.likely(0.1):
            # Also while it is cleaned, so that it is written back twice in a row.
            self.modify(self.rng.choice(resident))

    def modify(self, line):
        self.content[line] = self.words()
        for row, word in zip(
            self.rows(line, self.directory[line]), self.content[line], strict=True
        ):
            self.array[row] = word
        self.dirty.add(line)

    def busy(self, line):
        return {
            way
            for other, way, poisoned in self.mshrs.values()
            if way is not None and not poisoned and (other - line) % self.config.sets == 0
        }

    def placing(self):
        self.set(settle_poisoned=self.rng.getrandbits(1))
        if self.get("broken") and self.likely(0.2):
            line, way = self.get("broken_line"), self.get("broken_way")
            assert self.directory.pop(line) == way
            assert line in self.spoilt
            self.set(mended=1)
            self.seen["broken"] += 1
        if not self.get("unsettled"):
            return
        line = self.get("unsettled_line")
        number = self.of(line)
        assert self.mshrs[number] == (line, None, False)
        if self.evicting or not self.likely(0.15):
            return
        told = {way for way in range(self.config.ways) if self.get("busy_ways") >> way & 1}
        # Those that were freed in the meantime may be told, too.
        assert self.busy(line) <= told
        assert len(told) < self.config.ways
        if self.likely(0.1):
            self.set(settle=1, settle_poisoned=1)
            self.mshrs[number] = (line, None, True)
            return
        way = self.rng.choice([way for way in range(self.config.ways) if way not in told])
        victim = next(
            (
                other
                for other, place in self.directory.items()
                if place == way and (other - line) % self.config.sets == 0
            ),
            None,
        )
        if victim in self.dirty:
            self.evict_from(victim, way)
            self.seen["evicted"] += 1
            del self.directory[victim]
            return
        if victim is not None:
            del self.directory[victim]
        self.set(settle=1, settle_way=way, settle_poisoned=0)
        self.directory[line] = way
        self.mshrs[number] = (line, way, False)

    def evict_from(self, line, way):
        self.evicting = {"line": line, "words": self.held(line, way), "next": 0, "begun": False}
        self.dirty.discard(line)

    def eviction(self):
        """The words of a line, which is on its way to a buffer, one or none in a cycle."""
        work = self.evicting
        self.set(
            evict_line=self.rng.choice(self.lines),
            evict_zero=self.rng.getrandbits(1),
            secret_evict_tags=self.rng.getrandbits(64),
        )
        if work is None:
            return
        if not work["begun"]:
            if self.get("evict_ready"):
                self.set(evict_start=1, evict_line=work["line"], evict_zero=0)
                work["begun"] = True
            return
        if self.likely(0.3):
            return
        word = work["next"]
        if word < self.config.line_words:
            self.set(evict_write=1, evict_word=word, secret_evict_tags=work["words"][word])
        work["next"] += 1
        # The strobe comes with the last word, or later.
        if work["next"] >= self.config.line_words and self.likely(0.5):
            self.set(evict_done=1)
            self.evicting = None

    def cleaning(self, drain):
        if self.evicting or not self.get("evict_ready"):
            return
        busy = {line for line, *_ in self.mshrs.values()}
        clean = [line for line in self.dirty if line not in busy]
        if clean and (drain or self.likely(0.1)):
            line = self.rng.choice(clean)
            self.evict_from(line, self.directory[line])
            self.seen["cleaned"] += 1
        elif not drain and self.likely(0.05):
            gone = [line for line in self.content if line not in busy.union(self.directory)]
            if gone:
                line = self.rng.choice(gone)
                self.set(evict_start=1, evict_line=line, evict_zero=1)
                self.content[line] = [0] * self.config.line_words
                self.seen["zero"] += 1


def assert_writes_come_first(memory):
    """No line is asked for, and none written, while a write to it is not answered."""
    for number, later in enumerate(memory.transactions):
        for write in memory.transactions[:number]:
            if write.write and write.address == later.address:
                assert write.finished is not None
                assert write.finished < later.started


@pytest.mark.parametrize("paused", [False, True], ids=["fast", "paused"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_sim_random(config, paused, rng, seed):
    """All that a cache may do, on a few lines, before a memory that keeps no order."""
    channels = ("aw", "w", "b", "ar", "r")
    pauses = {c: random_pauses(f"{seed} {c}") for c in channels} if paused else None
    bench = Random(config, rng, pauses=pauses, latency=5, shuffle=random.Random(seed))
    bench.memory.read_errors = set()

    async def scenario():
        for ready in (1, 0.5, 0.1, 1):
            await bench.traffic(800, ready=ready)
        await bench.traffic(0, ready=1, drain=True)
        while bench.dirty or not bench.get("idle"):
            await bench.traffic(100, ready=1, drain=True)

    bench.run(scenario)
    assert {line: bench.stored(line) for line in bench.lines} == {
        line: bench.content[line] for line in bench.lines
    }
    assert_writes_come_first(bench.memory)
    transactions = bench.memory.transactions
    assert {t.beats for t in transactions} == {config.line_words}
    assert {t.id for t in transactions if not t.write} == set(range(config.mshrs))
    assert {t.id for t in transactions if t.write} == {0, 1}
    assert all(bench.seen.values()), bench.seen


def test_sim_refill_of_the_line_just_written_back():
    """It waits until storage has answered: the refill brings what was written."""
    bench = Bench(SMALL, latency=20)
    words = [0x1111_1111_1111_1111 * n for n in range(8)]

    async def scenario():
        await bench.evict(3, words)
        await bench.allocate(3)
        await bench.settle(1)
        await bench.arrival()
        assert bench.held(3, 1) == words

    bench.run(scenario)
    assert_writes_come_first(bench.memory)


def test_sim_line_asked_for_in_the_cycle_in_which_its_write_back_begins():
    bench = Bench(SMALL, latency=20)

    async def scenario():
        bench.set(evict_start=1, evict_line=3, evict_zero=1)
        await bench.allocate(3)
        await bench.until("idle", 0)
        await bench.until("writes_idle")

    bench.run(scenario)
    assert_writes_come_first(bench.memory)


def test_sim_other_lines_pass_a_write_back():
    """A read waits for no write of a line that differs in the bits that are looked at."""
    bench = Bench(ECP5, pauses={"b": iter([500])})

    async def scenario():
        await bench.evict(3, [1] * 8)
        await bench.allocate(3 + ECP5.sets)
        await bench.settle()
        await bench.arrival()
        assert not bench.get("writes_idle")

    bench.run(scenario)


def test_sim_line_is_written_back_twice():
    """The second one waits for the first: the later words stay, whatever storage does."""
    bench = Bench(SMALL, latency=40, shuffle=random.Random(1))

    async def scenario():
        await bench.evict(3, [1] * 8)
        await bench.evict(3, [2] * 8)
        await bench.until("idle")
        assert bench.stored(3) == [2] * 8

    bench.run(scenario)
    assert_writes_come_first(bench.memory)


def test_sim_zeros():
    """Lines of zeros, one after the other, and nothing else; then words again."""
    bench = Bench(SMALL)
    inside = range(BASE, BASE + 4 * 64, 8)
    around = [BASE - 8, BASE + 4 * 64]
    bench.memory.words = dict.fromkeys([*inside, *around], 0xFFFF_FFFF_FFFF_FFFF)

    async def scenario():
        await bench.evict(7, [0x55] * 8)
        for line in range(4):
            await bench.zero(line)
        await bench.until("writes_idle")
        assert {bench.memory.words[address] for address in inside} == {0}
        await bench.evict(1, [0x77] * 8)
        await bench.evict(2, [0x78] * 8)
        await bench.until("writes_idle")
        assert bench.stored(1) == [0x77] * 8
        assert bench.stored(2) == [0x78] * 8

    bench.run(scenario)
    assert [bench.memory.words[address] for address in around] == [0xFFFF_FFFF_FFFF_FFFF] * 2


@pytest.mark.parametrize("word", range(8))
def test_sim_read_error(word):
    """An error of any beat breaks the line, when all beats are there; the next one is fine."""
    bench = Bench(SMALL)
    bench.memory.read_errors = {bench.address(5) + 8 * word}

    async def scenario():
        bench.ready(1)
        first = await bench.allocate(5)
        await bench.settle(1)
        second = await bench.allocate(6)
        await bench.settle(0)
        await bench.until("broken")
        assert len(bench.memory.transactions[0].words) == 8
        assert (bench.get("broken_line"), bench.get("broken_way")) == (5, 1)
        for _ in range(20):
            await bench.tick()
            assert bench.get("broken")
            assert not bench.get("filled")
            assert not bench.get("arrived")
        bench.set(mended=1)
        await bench.tick()
        assert not bench.get("broken")
        assert bench.get("arrived")
        assert bench.get("filled") == bench.get("refused") == 1 << first
        assert bench.refusal(first) is Refusal.ABORT
        await bench.tick()
        await bench.arrival()
        assert bench.get("refused") == 1 << first
        assert bench.refusal(second) is Refusal.NONE
        assert not bench.get("storage_error")
        # Nothing of it is left in the MSHR.
        bench.set(free=0b11)
        await bench.tick()
        assert not bench.get("refused")
        assert bench.get("idle")
        assert await bench.allocate(6) == first
        await bench.settle(1)
        await bench.arrival()
        assert not bench.get("refused")

    bench.run(scenario)


@pytest.mark.parametrize("failing", [False, True])
def test_sim_poisoned(failing):
    """Its beats go nowhere, and it says so, whether or not storage answers with an error."""
    bench = Bench(SMALL)
    bench.memory.read_errors = {bench.address(5)} if failing else ()

    async def scenario():
        number = await bench.allocate(5)
        await bench.settle(1, poisoned=1)
        await bench.arrival()
        assert bench.get("refused") == 1 << number
        assert bench.refusal(number) is Refusal.UNCORRECTABLE
        assert not bench.get("broken")
        assert not bench.array
        assert len(bench.memory.transactions[0].words) == 8
        # Its way is free for the next one of the set.
        await bench.allocate(7)
        await bench.until("unsettled")
        assert bench.get("busy_ways") == 0

    bench.run(scenario)


def test_sim_write_error():
    """It has no one to blame, and is known until reset."""
    bench = Bench(SMALL)
    bench.memory.write_errors = {bench.address(5) + 8}

    async def scenario():
        seen = []
        for line in (6, 5, 6):
            await bench.evict(line, [0] * 8)
            await bench.until("writes_idle")
            seen.append(bench.get("storage_error"))
        assert seen == [0, 1, 1]
        number = await bench.allocate(5)
        await bench.settle()
        await bench.arrival()
        assert bench.refusal(number) is Refusal.NONE

    bench.run(scenario)


def test_sim_beats_wait_for_a_place():
    """They wait in the buffer, and urgently; then the bus does."""
    config = TagConfig(mshrs=4)
    bench = Bench(config, latency=1)
    for line in range(4):
        bench.store(line, [line + 1] * 8)

    async def scenario():
        bench.ready(1)
        for line in range(4):
            await bench.allocate(line)
        await bench.until("urgent")
        for _ in range(50):
            await bench.tick()
            assert bench.get("urgent")
        assert not bench.ctx.get(bench.dut.memory.rready)
        taken = sum(len(t.words) for t in bench.memory.transactions)
        assert 12 <= taken <= 16
        assert not bench.array
        for line in range(4):
            await bench.until("unsettled")
            assert bench.get("unsettled_line") == line
            await bench.settle(line)
        while bench.get("filled") != 0b1111:
            await bench.tick()
        assert [bench.held(line, line) for line in range(4)] == [[n + 1] * 8 for n in range(4)]
        assert not bench.get("urgent")

    bench.run(scenario)


def test_sim_busy_ways():
    """Ways of the same set that MSHRs have, until these are free."""
    bench = Bench(DEFAULT)
    beside = DEFAULT.sets

    async def scenario():
        bench.ready(1)
        told = []
        for line, way in ((5, 3), (5 + beside, 0), (6, 1), (5 + 2 * beside, 7)):
            await bench.allocate(line)
            await bench.until("unsettled")
            told.append(bench.get("busy_ways"))
            await bench.settle(way)
        assert told == [0, 1 << 3, 0, 1 << 3 | 1 << 0]
        while bench.get("filled") != 0b1111:
            await bench.tick()
        bench.set(free=0b0011)
        await bench.tick()
        await bench.allocate(5 + 3 * beside)
        await bench.until("unsettled")
        assert bench.get("busy_ways") == 1 << 7

    bench.run(scenario)


def test_sim_mshrs_are_taken_in_a_ring():
    """One in each cycle; the next one is waited for, though another one is free."""
    bench = Bench(DEFAULT, latency=60)

    async def scenario():
        bench.ready(1)
        for number in range(4):
            assert bench.get("available")
            assert bench.get("next") == number
            bench.set(allocate=1, allocate_line=number)
            await bench.tick()
        assert bench.get("valid") == 0b1111
        for number in range(4):
            await bench.settle(number)
        while bench.get("filled") != 0b1111:
            await bench.tick()
        bench.set(free=0b0110)
        for _ in range(20):
            await bench.tick()
            assert not bench.get("available")
        bench.set(free=0b0001)
        await bench.tick()
        assert bench.get("valid") == 0b1000
        # It was valid up to three cycles before.
        assert await bench.until("available") == 3
        assert bench.get("next") == 0

    bench.run(scenario)
    assert [t.address for t in bench.memory.transactions] == [bench.address(n) for n in range(4)]


def test_sim_reset_in_the_middle_of_traffic():
    """Beats that came before count for no line that is fetched later."""
    reset = Signal()
    bench = Bench(SMALL, latency=4)
    bench.store(6, range(8))
    bench.memory.read_errors = {bench.address(5)}
    design = ResetInserter(reset)(watched(bench.dut))

    async def scenario(ctx):
        bench.ctx = ctx
        ctx.set(bench.dut.storage_base, BASE)
        bench.ready(1)
        await bench.allocate(5)
        await bench.settle(0)
        while len(bench.array) < 3:
            await bench.tick()
        ctx.set(reset, 1)
        for _ in range(2):
            await bench.tick()
        bench.memory.reset()  # now that nothing is transferred
        ctx.set(reset, 0)
        assert bench.get("idle")
        await bench.allocate(6)
        await bench.settle(1)
        await bench.arrival()
        assert not bench.get("refused")
        assert bench.held(6, 1) == list(range(8))

    simulate(design, scenario, background=[bench.memory.bench], max_cycles=1000)


def test_timing_fetch():
    """Two cycles to ask, two for each word on its way, and one to say so."""
    bench = Bench(SMALL, latency=10)

    async def scenario():
        bench.ready(1)
        bench.set(allocate=1, allocate_line=5)
        start = bench.cycle
        await bench.tick()
        assert await bench.until("unsettled") <= SMALL.mshrs + 4
        await bench.settle(1)
        await bench.arrival()
        (read,) = bench.memory.transactions
        # The memory counts from the same reset.
        assert read.started - start == 2
        assert bench.cycle - start == 2 + 10 + 8 + 2
        assert read.finished == bench.cycle - 3

    bench.run(scenario)


def test_timing_words_of_a_burst():
    """One word in each cycle, both ways."""
    bench = Bench(SMALL, latency=30)

    async def scenario():
        bench.ready(1)
        await bench.allocate(5)
        await bench.allocate(6)
        await bench.evict(9, range(8))
        await bench.settle(0)
        await bench.settle(0)
        for _ in range(2):
            await bench.arrival()
            await bench.tick()
        await bench.until("idle", 0)
        first, second = (t for t in bench.memory.transactions if not t.write)
        assert second.finished - first.finished == 8

    bench.run(scenario)


def test_timing_zeros():
    """Two lines at a time."""
    bench = Bench(SMALL, latency=20)

    async def scenario():
        for line in range(8):
            await bench.zero(line)
        await bench.until("writes_idle")

    bench.run(scenario)
    starts = [t.started for t in bench.memory.transactions]
    assert starts[-1] - starts[0] <= 4 * (20 + 2 * 8 + 5)

# amaranth: UnusedElaboratable=no
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from amaranth.hdl import Cat, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.codes import DirectoryCode
from emte.rtl.config import SMALL, TagConfig
from emte.rtl.keeper import Keeper, flip_layout
from emte.rtl.layouts import ProbeKind
from emte.sim.harness import simulate
from unit_support import integer, watched

CLEAN, CLEAN_ALL = ProbeKind.CLEAN, ProbeKind.CLEAN_ALL
FLUSH, FLUSH_ALL = ProbeKind.CLEAN_INVALIDATE, ProbeKind.CLEAN_INVALIDATE_ALL
KINDS = (CLEAN, CLEAN_ALL, FLUSH, FLUSH_ALL)

CONFIGS = {
    "small": SMALL,
    "1 line": TagConfig(sets=1, ways=1, line_bytes=16),
    "1 way": TagConfig(sets=2, ways=1, line_bytes=128),
    "1 set": TagConfig(sets=1, ways=4),
    "16 ways": TagConfig(sets=1, ways=16, line_bytes=16),
    "injection": TagConfig(sets=4, ways=4, line_bytes=32, scrub_period=64, injection=True),
}
FOUR_WAYS = TagConfig(sets=2, ways=4, line_bytes=16)
INJECTION = CONFIGS["injection"]

TAG_LATENCY = 4
"""Cycles from ``index`` to the tags of this word, corrected."""

PATIENCE = 100
"""Cycles in which anything that may happen would have happened."""


def configs(*names):
    return pytest.mark.parametrize(
        "config", [CONFIGS[name] for name in names or CONFIGS], ids=names or CONFIGS
    )


def test_init():
    config = INJECTION
    dut = Keeper(config)
    assert dut.config is config
    entry = DirectoryCode(29).width
    assert entry == 36
    members = {
        "close": Out(1, init=1),
        "closes": Out(1),
        "quiet": In(1),
        "owns": Out(1, init=1),
        "set": Out(2),
        "index": Out(6),
        "entries": In(data.ArrayLayout(entry, 4)),
        "dirty": In(4),
        "tree_victim": In(2),
        "enter": Out(4, init=0b1111),
        "entry": Out(entry),
        "keep_dirty": Out(1),
        "touch": Out(1),
        "sweep": Out(1, init=1),
        "rewrite": Out(1),
        "scrubbing": Out(1),
        "flipping": Out(1),
        "unsettled": In(1),
        "unsettled_line": In(30),
        "urgent": In(1),
        "busy_ways": In(4),
        "settle": Out(1),
        "settle_way": Out(2),
        "settle_poisoned": Out(1),
        "broken": In(1),
        "broken_line": In(30),
        "broken_way": In(2),
        "mended": Out(1),
        "evict_ready": In(1),
        "evict_start": Out(1),
        "evict_line": Out(30),
        "evict_zero": Out(1),
        "evict_write": Out(1),
        "evict_word": Out(2),
        "evict_done": Out(1),
        "writes_idle": In(1),
        "maintain": In(1),
        "maintain_kind": In(ProbeKind),
        "maintain_line": In(30),
        "maintained": Out(1),
        "calm": In(1),
        "storage_bytes": In(36),
        "storage_zeroed": In(1),
        "ready": Out(1),
        "idle": Out(1),
        "scrubbed": Out(1),
    }
    flips = In(stream.Signature(flip_layout(config)))
    assert dut.signature == Signature(members | {"flips": flips})
    assert flip_layout(config) == data.StructLayout({"index": 6, "lanes": 128, "entry": entry})
    assert "flips" not in Keeper(SMALL).signature.members


STROBES = (
    *("enter", "rewrite", "scrubbing", "settle", "mended", "maintained", "scrubbed"),
    *("evict_start", "evict_write", "evict_done"),
)
OUTPUTS = (
    *("close", "owns", "set", "index", "entry", "keep_dirty", "touch", "sweep", "flipping"),
    *("settle_way", "settle_poisoned", "evict_line", "evict_zero", "evict_word", "ready", "idle"),
    *STROBES,
)


@dataclass
class Want:
    """A line that needs a way."""

    line: int
    busy: int = 0
    urgent: bool = True


@dataclass
class Writing:
    """A line on its way to the write-back buffer."""

    line: int
    set: int
    way: int
    words: list = field(default_factory=list)


@dataclass
class Buffer:
    """A write-back buffer in use."""

    line: int
    left: int | None = None
    """Cycles until storage acknowledges; unknown while words come."""


class Bench:
    """What is around the keeper: arrays, miss unit and pipeline; judges all that it does.

    Nothing is defined of what the arrays give for an address that was not the keeper's, or for a
    place that was written in the cycle of the read.
    """

    def __init__(self, config, rng, *, traffic=0.0, acknowledge=(1, 20)):
        self.config = config
        self.rng = rng
        self.dut = Keeper(config)
        code = DirectoryCode(config.directory_tag_bits + 1)
        self.columns, self.bits, self.width = code.columns, code.bits, code.width
        self.decoded = {}
        self.traffic = traffic
        """How often the door lets something in, when it can."""
        self.acknowledge = acknowledge
        """Bounds of the cycles that storage takes to acknowledge a write."""
        self.held_up = 0
        """Cycles for which the stages stay in use anyway."""
        self.calm = True

        self.directory = [
            [rng.getrandbits(self.width) for _ in range(config.ways)] for _ in range(config.sets)
        ]
        self.dirty = [rng.getrandbits(config.ways) for _ in range(config.sets)]
        self.tree = [rng.randrange(config.ways) for _ in range(config.sets)]
        self.tags = {n: (rng.getrandbits(64), 0) for n in range(1 << config.index_bits)}
        """Tags, and which bits of their codes are flipped, by index."""
        self.storage = {}

        self.unsettled = None
        self.broken = None
        self.maintenance = None
        self.flips = None
        self.buffers = []
        self.buffer_rest = 0
        self.storage_bytes = 0
        self.storage_zeroed = 1

        self.cycle = 0
        self.inputs = {}
        self.entries_on_way = deque([self.garbage(), self.garbage()])
        self.reads = deque([None] * (TAG_LATENCY - 1))
        self.tag_writes = []
        self.last = SimpleNamespace(owns=1, close=1, quiet=1, busy=0, ready=0, index=None)
        self.under_way = 0
        """Whether the stages are in use, for each of the next cycles."""
        self.writing = None
        self.owed = deque()
        """Entries that must follow on what was told."""
        self.flipped = False
        self.new_written = []
        """Lines written back since the last answer."""

        self.zeroed = []
        self.written_back = []
        self.entered = []
        self.scrubbed = []
        self.settled = []
        self.mended = 0
        self.maintained = 0
        self.scrubs = []
        self.closed = 0
        """Cycles in which the door was shut."""

    # The directory's code.

    def encode(self, value):
        checks = 0
        for bit in range(self.bits):
            if value >> bit & 1:
                checks ^= self.columns[bit]
        return value | checks << self.bits

    def decode(self, word):
        """The value within one flip, or None."""
        if word not in self.decoded:
            self.decoded[word] = self.decode_anew(word)
        return self.decoded[word]

    def decode_anew(self, word):
        syndrome = 0
        for bit in range(self.width):
            if word >> bit & 1:
                syndrome ^= self.columns[bit]
        if syndrome and syndrome.bit_count() % 2 == 0:
            return None
        if syndrome:
            word ^= 1 << self.columns.index(syndrome)
        return word & (1 << self.bits) - 1

    def flip(self, count):
        """So many different bits of a code word."""
        return sum(1 << bit for bit in self.rng.sample(range(self.width), count))

    # Lines and places.

    def entry_of(self, line):
        return self.encode(line >> self.config.set_bits | 1 << self.bits - 1)

    def set_of(self, line):
        return line % self.config.sets

    def line_at(self, set_, way):
        """The line that a way holds: None if it is empty, or damaged."""
        value = self.decode(self.directory[set_][way])
        if value is None or not value >> self.bits - 1:
            return None
        return (value & ~(1 << self.bits - 1)) << self.config.set_bits | set_

    def places(self):
        return [(s, w) for s in range(self.config.sets) for w in range(self.config.ways)]

    def held(self):
        """Set and way of each line that the directory holds."""
        return {
            line: place for place in self.places() if (line := self.line_at(*place)) is not None
        }

    def index(self, set_, way, word):
        config = self.config
        return (way << config.set_bits | set_) << config.word_index_bits | word

    def words(self, set_, way):
        return [self.tags[self.index(set_, way, n)][0] for n in range(self.config.line_words)]

    def line(self, set_=None):
        """A line that is not in the directory."""
        config, held = self.config, self.held()
        while True:
            line = self.rng.getrandbits(config.line_address_bits)
            if set_ is not None:
                line = line >> config.set_bits << config.set_bits | set_
            if line not in held:
                return line

    def put(self, set_, way, *, dirty=False, flips=0, line=None):
        """Put a line there; so many bits of its entry are flipped."""
        if line is None:
            line = self.line(set_)
        self.directory[set_][way] = self.entry_of(line) ^ self.flip(flips)
        self.dirty[set_] = self.dirty[set_] & ~(1 << way) | dirty << way
        return line

    def fill_all(self, dirty=0.5):
        """Put a line everywhere."""
        return {self.put(*place, dirty=self.likely(dirty)): place for place in self.places()}

    # Randomness.

    def garbage(self):
        return [self.rng.getrandbits(self.width) for _ in range(self.config.ways)]

    def likely(self, probability):
        return self.rng.random() < probability

    # Cycles.

    def run(self, scenario, *, max_cycles=20_000, start=True):
        top = watched(self.dut)
        values = [Value.cast(getattr(self.dut, name)) for name in OUTPUTS]
        if self.config.injection:
            values.append(self.dut.flips.ready)
        seen = Signal(sum(len(value) for value in values))
        top.d.comb += seen.eq(Cat(values))
        self.seen = seen
        self.fields = []
        at = 0
        for name, value in zip((*OUTPUTS, "flips_ready"), values, strict=False):
            self.fields.append((name, at, (1 << len(value)) - 1))
            at += len(value)

        async def bench(ctx):
            self.ctx = ctx
            if start:
                await self.start()
            await scenario()
            await self.drain()

        simulate(top, bench, max_cycles=max_cycles)

    async def start(self):
        while not self.last.ready:
            await self.tick()
        await self.tick()

    async def wait(self, cycles):
        for _ in range(cycles):
            await self.tick()

    async def drain(self):
        """Until all is answered."""
        while self.unsettled or self.broken or self.maintenance or self.flips or self.buffers:
            await self.tick()
        self.traffic = 0
        while not self.last.idle:
            await self.tick()
        assert not self.owed
        assert self.writing is None

    def look(self):
        seen = self.ctx.get(self.seen)
        return SimpleNamespace(**{name: seen >> at & mask for name, at, mask in self.fields})

    def drive(self, **inputs):
        for name, value in inputs.items():
            if self.inputs.get(name) != value:
                self.inputs[name] = value
                port = self.dut
                for part in name.split("."):
                    port = getattr(port, part)
                port = Value.cast(port)
                if len(port):
                    self.ctx.set(port, value)

    async def tick(self):
        """One cycle: show what there is, judge what the keeper does, and let time pass."""
        owner = self.look()
        self.show(owner)
        now = self.look()
        now.quiet = self.inputs["quiet"]
        now.busy = self.under_way & 1
        self.properties(now)
        self.read_arrays(now)
        self.evictions(now)
        self.answers(now)
        self.entering(now)
        if getattr(now, "flips_ready", 0) and self.flips:
            assert self.flipped, "flips are taken, and nothing is flipped"
            self.flipped = False
            self.flips = None
        self.pass_by(now)
        self.last = now
        self.cycle += 1
        await self.ctx.tick()

    def show(self, owner):
        rng, config = self.rng, self.config
        any_way = rng.randrange(config.ways)
        unsettled = self.unsettled or Want(rng.getrandbits(config.line_address_bits), urgent=False)
        broken = self.broken or (rng.getrandbits(config.line_address_bits), any_way)
        maintenance = self.maintenance or (CLEAN, 0)
        quiet = not self.last.busy  # a register tells
        self.drive(
            quiet=quiet,
            calm=quiet and self.calm,
            entries=sum(
                entry << self.width * way for way, entry in enumerate(self.entries_on_way.popleft())
            ),
            dirty=self.dirty[owner.set] if owner.owns else rng.getrandbits(config.ways),
            tree_victim=self.tree[owner.set] if owner.owns else any_way,
            unsettled=self.unsettled is not None,
            unsettled_line=unsettled.line,
            urgent=unsettled.urgent,
            busy_ways=unsettled.busy,
            broken=self.broken is not None,
            broken_line=broken[0],
            broken_way=broken[1],
            maintain=self.maintenance is not None,
            maintain_kind=maintenance[0].value,
            maintain_line=maintenance[1],
            evict_ready=len(self.buffers) < 2 and not self.writing and not self.buffer_rest,
            writes_idle=not self.buffers,
            storage_bytes=self.storage_bytes,
            storage_zeroed=self.storage_zeroed,
        )
        if config.injection:
            self.drive(**{"flips.valid": self.flips is not None})
            if self.flips:
                self.drive(**{"flips.payload": integer(flip_layout(config), self.flips)})

    def properties(self, now):
        last = self.last
        if now.owns:
            assert now.close, "the arrays are used, and the door is open"
            assert last.owns or last.quiet, "the arrays are used while a probe uses them"
            assert not now.busy
        else:
            for name in STROBES:
                assert not getattr(now, name), f"{name}, and the arrays are not the keeper's"
            if last.owns:
                assert not now.close, "the arrays are given back, and the door stays shut"
                assert not self.owed
                assert not self.new_written
        if now.ready:
            assert not now.sweep
            assert not now.evict_zero
        else:
            assert now.close
            assert now.owns
            assert not last.ready
        if now.ready and not last.ready:
            assert not self.buffers
        if now.idle:
            assert not now.close
            for request in (self.unsettled, self.broken, self.maintenance, self.flips):
                assert request is None
        assert now.scrubbed == (now.rewrite and not now.flipping)
        self.closed += now.close

    def read_arrays(self, now):
        """Entries and tags come after their latencies; ``rewrite`` and fills write a cycle late."""
        row = self.garbage()
        if now.owns:
            for way, entry in enumerate(self.directory[now.set]):
                if not now.enter >> way & 1:
                    row[way] = entry
        self.entries_on_way.append(row)

        self.corrected = self.reads.popleft()
        address = self.last.index if self.last.owns else None
        content = None
        if address is not None and all(index != address for index, *_ in self.tag_writes):
            content = (address, *self.tags[address])
        self.reads.append(content)
        for index, *value in self.tag_writes:
            self.tags[index] = tuple(value)
        self.tag_writes = []

    def evictions(self, now):
        config = self.config
        for buffer in self.buffers:
            if buffer.left is not None:
                buffer.left -= 1
        self.buffers = [buffer for buffer in self.buffers if buffer.left != 0]
        self.buffer_rest = max(self.buffer_rest - 1, 0)
        if now.evict_start:
            assert self.inputs["evict_ready"]
            self.buffers.append(Buffer(now.evict_line))
            if now.evict_zero:
                assert not now.ready
                self.zeroed.append(now.evict_line)
                self.acknowledged_later()
            else:
                set_ = self.set_of(now.evict_line)
                ways = [w for w in range(config.ways) if self.line_at(set_, w) == now.evict_line]
                assert len(ways) == 1, "a line is written back that is not there"
                assert self.dirty[set_] >> ways[0] & 1, "a line is written back without need"
                assert not self.writing
                self.writing = Writing(now.evict_line, set_, ways[0])
        elif now.evict_write:
            writing = self.writing
            assert now.evict_word == len(writing.words)
            index = self.index(writing.set, writing.way, now.evict_word)
            assert self.corrected is not None, "a word is written back that was not read"
            assert self.corrected[0] == index
            writing.words.append(self.corrected[1])
        if now.evict_done:
            writing = self.writing
            assert writing.words == self.words(writing.set, writing.way)
            self.storage[writing.line] = writing.words
            self.written_back.append(writing.line)
            self.new_written.append(writing.line)
            self.acknowledged_later()
            self.writing = None

    def acknowledged_later(self):
        self.buffers[-1].left = self.rng.randint(*self.acknowledge)
        self.buffer_rest = self.rng.randrange(3)

    def concerns(self, line):
        """Is maintenance of this line asked for?"""
        kind, wanted = self.maintenance
        return line is not None and (kind in (CLEAN_ALL, FLUSH_ALL) or line == wanted)

    def answers(self, now):
        config = self.config
        assert now.settle + now.mended + now.maintained + now.rewrite <= 1
        if now.settle or now.mended or now.maintained or now.rewrite:
            assert not self.owed
        written, self.new_written = self.new_written, []
        if now.settle:
            want, self.unsettled = self.unsettled, None
            set_ = self.set_of(want.line)
            values = [self.decode(word) for word in self.directory[set_]]
            if now.settle_poisoned:
                assert None in values
                assert not written
                self.settled.append(None)
            else:
                assert None not in values
                free = [w for w in range(config.ways) if self.line_at(set_, w) is None]
                allowed = [w for w in range(config.ways) if not want.busy >> w & 1]
                candidates = [w for w in free if w in allowed]
                tree = self.tree[set_]
                if not candidates:
                    candidates = [tree] if tree in allowed else allowed
                way = candidates[0]
                assert now.settle_way == way
                dirty = way not in free and self.dirty[set_] >> way & 1
                assert written == ([self.line_at(set_, way)] if dirty else [])
                self.owed.append((set_, way, self.entry_of(want.line), 0, 1))
                self.settled.append(way)
        elif now.mended:
            assert not written
            (line, way), self.broken = self.broken, None
            self.owed.append((self.set_of(line), way, 0, 0, 0))
            self.mended += 1
        elif now.maintained:
            assert self.inputs["writes_idle"]
            assert all(self.concerns(line) for line in written)
            for set_, way in self.places():
                if self.concerns(self.line_at(set_, way)):
                    assert self.maintenance[0] in (CLEAN, CLEAN_ALL)
                    assert not self.dirty[set_] >> way & 1
            self.maintenance = None
            self.maintained += 1
        elif now.rewrite:
            assert not written
            self.scrub(now)
        else:
            self.new_written = written

    def scrub(self, now):
        index = now.index
        assert now.scrubbing
        assert self.corrected is not None, "a word is rewritten that was not read"
        read_index, tags, wrong = self.corrected
        assert read_index == index
        place = index >> self.config.word_index_bits
        set_, way = place % self.config.sets, place >> self.config.set_bits
        value = self.decode(self.directory[set_][way])
        entry, lanes = (None if value is None else self.encode(value)), 0
        if now.flipping:
            assert self.flips["index"] == index
            assert not self.flipped
            self.flipped = True
            lanes = self.flips["lanes"]
        else:
            count = 1 << self.config.index_bits
            assert index == len(self.scrubs) % count
            self.scrubs.append(self.cycle)
        if not any((wrong >> 8 * n & 0xFF).bit_count() > 1 for n in range(16)):
            self.tag_writes.append((index, tags, lanes))
        if entry is not None:
            self.owed.append((set_, way, entry, 1, 0))

    def entering(self, now):
        config = self.config
        if not now.enter:
            return
        entry = now.entry
        assert now.sweep == (not now.ready)
        if now.sweep:
            assert now.enter == (1 << config.ways) - 1
            assert entry == 0
            assert not now.keep_dirty
        else:
            way = now.enter.bit_length() - 1
            assert now.enter == 1 << way
            if self.owed:
                expected = self.owed.popleft()
                assert (now.set, way, entry, now.keep_dirty, now.touch) == expected
            else:
                assert self.maintenance, "an entry is written without need"
                line = self.line_at(now.set, way)
                assert self.concerns(line)
                assert not now.keep_dirty
                assert not now.touch
                drop = self.maintenance[0] in (FLUSH, FLUSH_ALL)
                assert entry == (0 if drop else self.entry_of(line))
                if self.dirty[now.set] >> way & 1:
                    assert self.new_written[-1] == line
                    assert self.storage[line] == self.words(now.set, way)
            (self.scrubbed if now.keep_dirty else self.entered).append((now.set, way))
            assert now.flipping == self.flipped
            if now.flipping:
                entry ^= self.flips["entry"]
        for way in range(config.ways):
            if now.enter >> way & 1:
                self.directory[now.set][way] = entry
        if not now.keep_dirty:
            self.dirty[now.set] &= ~now.enter
        if now.touch:
            self.tree[now.set] = self.rng.randrange(config.ways)

    def pass_by(self, now):
        """What the door lets in uses the arrays for a while, from the next cycle on.

        The door is told of ``close`` by a register.
        """
        self.under_way >>= 1
        if not self.last.close and self.likely(self.traffic):
            cycles = self.held_up or self.rng.randint(1, 12)
            self.under_way |= (1 << cycles) - 1

    # Requests, up to their answers.

    async def settle(self, line, **options):
        """The way that a line gets: None if it is poisoned."""
        self.unsettled = Want(line, **options)
        count = len(self.entered)
        while self.unsettled:
            await self.tick()
        await self.wait(4)
        if self.settled[-1] is None:
            assert len(self.entered) == count
        else:
            assert self.entered[count] == (self.set_of(line), self.settled[-1])
        return self.settled[-1]

    async def maintain(self, kind, line=0):
        """Lines that are written back, and places whose entries are written."""
        self.maintenance = kind, line
        written, entered = len(self.written_back), len(self.entered)
        while self.maintenance:
            await self.tick()
        return self.written_back[written:], self.entered[entered:]

    async def flip_bits(self, index, *, lanes=0, entry=0):
        self.flips = {"index": index, "lanes": lanes, "entry": entry}
        while self.flips:
            await self.tick()
        await self.wait(4)


@configs()
def test_timing_sweep(config, rng):
    """One set in each cycle."""
    bench = Bench(config, rng)

    async def scenario():
        while not bench.last.ready:
            await bench.tick()
        assert bench.cycle == config.sets + 2
        assert bench.directory == [[0] * config.ways] * config.sets
        assert bench.dirty == [0] * config.sets
        assert not bench.zeroed

    bench.run(scenario, start=False)


@pytest.mark.parametrize("lines", [0, 5, 16])
@pytest.mark.parametrize(
    "geometry",
    [
        {"sets": 2, "ways": 2, "line_bytes": 64, "memory_bits": 15},
        {"sets": 1, "ways": 1, "line_bytes": 16, "memory_bits": 13},
        {"sets": 4, "ways": 2, "line_bytes": 128, "memory_bits": 16},
        {"sets": 4, "ways": 2, "line_bytes": 32},
    ],
    ids=str,
)
def test_sim_zeroing(geometry, lines, rng):
    """Every line of storage once, up to all of the largest storage, before anything else."""
    config = TagConfig(**geometry)
    bench = Bench(config, rng)
    bench.storage_zeroed = 0
    bench.storage_bytes = lines * config.line_bytes
    bench.unsettled = Want(3)

    async def scenario():
        assert bench.zeroed == list(range(lines))
        assert bench.directory == [[0] * config.ways] * config.sets

    bench.run(scenario)
    assert bench.zeroed == list(range(lines))
    assert bench.settled == [0]


@configs()
def test_sim_free_ways(config, rng):
    """The lowest first; nothing is written back."""
    bench = Bench(config, rng)

    async def scenario():
        for set_ in range(config.sets):
            ways = [await bench.settle(bench.line(set_)) for _ in range(config.ways)]
            assert ways == list(range(config.ways))
        assert not bench.written_back

    bench.run(scenario)


@configs()
@pytest.mark.parametrize("dirty", [0, 1])
def test_sim_victim(config, dirty, rng):
    """The way at which the tree points; it is written back if it is dirty."""
    bench = Bench(config, rng)

    async def scenario():
        bench.fill_all(dirty=dirty)
        for set_, way in bench.places():
            victim = bench.line_at(set_, way)
            words = bench.words(set_, way)
            bench.tree[set_] = way
            line = bench.line(set_)
            assert await bench.settle(line) == way
            assert bench.directory[set_][way] == bench.entry_of(line)
            assert not bench.dirty[set_] >> way & 1
            if dirty:
                assert bench.written_back.pop() == victim
                assert bench.storage.pop(victim) == words
            assert not bench.written_back

    bench.run(scenario)


def test_sim_choice(rng):
    """A free way, else the tree's, else any: but none of a line that is waited for.

    The dirty bit of a way without a line means nothing.
    """
    bench = Bench(FOUR_WAYS, rng)

    async def scenario():
        for valid, busy, tree, way in (
            (0b0000, 0b0000, 3, 0),
            (0b0001, 0b0000, 0, 1),
            (0b1011, 0b0000, 0, 2),
            (0b0111, 0b0000, 1, 3),
            (0b0000, 0b0011, 0, 2),
            (0b0111, 0b1000, 1, 1),
            (0b1111, 0b0000, 3, 3),
            (0b1111, 0b0100, 2, 0),
            (0b1111, 0b0011, 1, 2),
            (0b1111, 0b0111, 0, 3),
            (0b1011, 0b0101, 0, 1),
            (0b1011, 0b0101, 3, 3),
        ):
            for other in range(4):
                bench.directory[1][other] = 0
                if valid >> other & 1:
                    bench.put(1, other)
            bench.dirty[1] = 0b1111
            bench.tree[1] = tree
            victim = bench.line_at(1, way)
            assert await bench.settle(bench.line(1), busy=busy) == way
            assert bench.written_back == ([] if victim is None else [victim])
            bench.written_back.clear()

    bench.run(scenario)


@configs("1 line", "small", "16 ways")
def test_sim_damaged_entry(config, rng):
    """The line may be there: it is poisoned, and all stays as it is."""
    bench = Bench(config, rng)

    async def scenario():
        for set_, way in bench.places():
            bench.fill_all(dirty=1)
            bench.put(set_, way, dirty=True, flips=2)
            before = [list(row) for row in bench.directory]
            bench.tree[set_] = rng.randrange(config.ways)
            assert await bench.settle(bench.line(set_)) is None
            assert bench.directory == before
            # An empty one may have been a line's.
            bench.directory[set_] = [0] * config.ways
            bench.directory[set_][way] = bench.flip(2)
            assert await bench.settle(bench.line(set_)) is None
        assert not bench.written_back
        assert not bench.entered
        # One of another set does not count.
        if config.sets > 1:
            bench.fill_all()
            bench.put(1, 0, flips=2)
            assert await bench.settle(bench.line(0)) is not None

    bench.run(scenario)


@configs("1 line", "small", "1 way")
def test_sim_corrected_victim(config, rng):
    """One flipped bit changes nothing, whichever it is."""
    bench = Bench(config, rng)

    async def scenario():
        for bit in range(bench.width):
            set_, way = rng.choice(bench.places())
            bench.directory[set_] = [bench.entry_of(bench.line(set_)) for _ in range(config.ways)]
            victim = bench.put(set_, way, dirty=True)
            bench.directory[set_][way] ^= 1 << bit
            bench.tree[set_] = way
            assert await bench.settle(bench.line(set_)) == way
            assert bench.written_back[-1] == victim
            # A valid bit that is set by error frees no way, and takes none.
            bench.directory[set_][way] = 1 << bit
            count = len(bench.written_back)
            assert await bench.settle(bench.line(set_)) == way
            assert len(bench.written_back) == count

    bench.run(scenario)


@configs("1 line", "small", "16 ways")
def test_sim_broken(config, rng):
    """A line that storage failed to give is dropped, whatever stands there."""
    bench = Bench(config, rng)

    async def scenario():
        for set_, way in bench.places():
            lines = bench.fill_all()
            flips = rng.randrange(3)
            line = bench.put(set_, way, dirty=True, flips=flips)
            others = [place for place in lines.values() if place != (set_, way)]
            before = [bench.directory[s][w] for s, w in others]
            bench.broken = line, way
            bench.calm = False
            while bench.broken:
                await bench.tick()
            await bench.wait(20)
            assert bench.directory[set_][way] == 0
            assert not bench.dirty[set_] >> way & 1
            assert [bench.directory[s][w] for s, w in others] == before
        assert bench.mended == len(bench.entered) == len(bench.places())
        assert not bench.written_back

    bench.run(scenario)


@configs()
@pytest.mark.parametrize("kind", [CLEAN, FLUSH], ids=lambda kind: kind.name.lower())
def test_sim_maintenance_of_a_line(config, kind, rng):
    """It is written back if it is dirty; other lines stay as they are."""
    bench = Bench(config, rng)

    async def scenario():
        lines = list(bench.fill_all().items())
        for line, (set_, way) in rng.sample(lines, min(len(lines), 8)):
            dirty = bench.dirty[set_] >> way & 1
            bench.directory[set_][way] ^= bench.flip(rng.randrange(2))
            assert await bench.maintain(kind, line) == ([line] * dirty, [(set_, way)])
            assert bench.directory[set_][way] == (0 if kind is FLUSH else bench.entry_of(line))
            # It is done.
            assert (await bench.maintain(kind, line))[0] == []
            assert await bench.maintain(kind, bench.line(set_)) == ([], [])

    bench.run(scenario)


@configs()
@pytest.mark.parametrize("kind", [CLEAN_ALL, FLUSH_ALL], ids=lambda kind: kind.name.lower())
def test_sim_maintenance_of_all(config, kind, rng):
    """Every line that can be told; what is empty or damaged stays as it is."""
    bench = Bench(config, rng)

    async def scenario():
        for _ in range(3):
            for place in bench.places():
                bench.put(*place, dirty=bench.likely(0.5), flips=rng.choice([0, 0, 1, 2]))
                if bench.likely(0.2):
                    bench.directory[place[0]][place[1]] = bench.flip(rng.randrange(3))
            lines = bench.held()
            before = [list(row) for row in bench.directory]
            dirty = [line for line, (s, w) in lines.items() if bench.dirty[s] >> w & 1]
            written, entered = await bench.maintain(kind, bench.line())
            assert written == dirty
            assert entered == list(lines.values())
            for set_, way in bench.places():
                if (set_, way) not in entered:
                    assert bench.directory[set_][way] == before[set_][way]
            assert list(bench.held()) == ([] if kind is FLUSH_ALL else list(lines))
            assert (await bench.maintain(kind))[0] == []

    bench.run(scenario)


def test_sim_line_of_the_same_tag(rng):
    """Maintenance of a line leaves that of the same tag in another set alone."""
    bench = Bench(SMALL, rng)

    async def scenario():
        bench.put(0, 0, line=6, dirty=True)
        bench.put(1, 0, line=7, dirty=True)
        assert await bench.maintain(FLUSH, 7) == ([7], [(1, 0)])
        assert list(bench.held()) == [6]

    bench.run(scenario)


def test_sim_maintenance_waits_for_writes(rng):
    """It begins, and ends, when storage has all that was written back."""
    bench = Bench(SMALL, rng, acknowledge=(200, 200))

    async def scenario():
        line = bench.put(0, 0, dirty=True)
        bench.put(0, 1)
        bench.tree[0] = 0
        other = bench.put(1, 1, dirty=True)
        await bench.settle(bench.line(0))
        assert bench.written_back == [line]
        bench.maintenance = FLUSH, other
        await bench.wait(PATIENCE)
        # The door is open meanwhile.
        assert not bench.last.close
        assert not bench.last.idle
        while len(bench.written_back) == 1:
            await bench.tick()
        start = bench.cycle
        while bench.maintenance:
            await bench.tick()
        assert bench.cycle - start >= 200

    bench.run(scenario)


def test_sim_write_back_waits_for_a_buffer(rng):
    """There are two; the third line waits until storage has the first."""
    bench = Bench(SMALL, rng, acknowledge=(100, 100))

    async def scenario():
        lines = bench.fill_all(dirty=1)
        start = bench.cycle
        assert (await bench.maintain(CLEAN_ALL))[0] == sorted(lines, key=lines.get)
        assert bench.cycle - start >= 200

    bench.run(scenario)


@configs("1 line", "small")
def test_timing_scrubber(config, rng):
    """One word in each period, in order, and then from the beginning."""
    config = TagConfig(
        sets=config.sets, ways=config.ways, line_bytes=config.line_bytes, scrub_period=64
    )
    bench = Bench(config, rng)
    count = 1 << config.index_bits

    async def scenario():
        bench.calm = False
        while len(bench.scrubs) < count + 2:
            await bench.tick()

    bench.run(scenario)
    # The first one may be due before the directory is swept.
    gaps = [b - a for a, b in zip(bench.scrubs, bench.scrubs[1:], strict=False)]
    assert gaps == [64] * len(gaps)
    # The door is shut for a few cycles of each.
    assert bench.closed <= 20 * len(bench.scrubs) + config.sets + 2


def test_sim_scrubber_repairs(rng):
    """One flipped bit of an entry or of a tag; two stay. Dirty bits stay, too."""
    config = TagConfig(sets=2, ways=2, line_bytes=16, scrub_period=64)
    bench = Bench(config, rng, traffic=0.2)
    word = TagConfig.word_granules * 8

    async def scenario():
        bench.fill_all()
        bench.put(1, 1, dirty=True, flips=2)
        before = [list(row) for row in bench.directory]
        for set_, way in bench.places()[:3]:
            bench.directory[set_][way] ^= bench.flip(1)
        tags = {index: tags for index, (tags, _) in bench.tags.items()}
        for index in tags:
            bench.tags[index] = tags[index], 1 << rng.randrange(word)
        bench.tags[3] = tags[3], 0b11 << 8
        dirty = list(bench.dirty)
        while len(bench.scrubs) < len(tags):
            await bench.tick()
        await bench.wait(10)
        assert bench.directory == before
        assert bench.dirty == dirty
        assert bench.tags == {n: (tags[n], 0b11 << 8 if n == 3 else 0) for n in tags}

    bench.run(scenario)


def test_sim_scrubber_and_fills(rng):
    """A word that comes while the scrubber has it is not lost."""
    bench = Bench(TagConfig(sets=1, ways=1, line_bytes=16, scrub_period=64), rng)

    async def scenario():
        expected = {}
        stopped = 0
        while len(bench.scrubs) < 4:
            index = len(bench.scrubs) % 2
            if not bench.look().scrubbing:
                expected[index] = rng.getrandbits(64)
                writes = [(index, expected[index], 0)]
            else:
                stopped += 1
                writes = []
            await bench.tick()
            bench.tag_writes += writes
        await bench.wait(10)
        assert {n: bench.tags[n][0] for n in (0, 1)} == expected
        assert 4 * TAG_LATENCY < stopped <= 4 * 20

    bench.run(scenario)


def test_sim_flips(rng):
    """Bits of a word and of its line's entry are flipped, at any place, and dirty bits stay."""
    bench = Bench(INJECTION, rng, traffic=0.2)

    async def scenario():
        bench.fill_all()
        dirty = list(bench.dirty)
        for _ in range(30):
            index = rng.randrange(1 << INJECTION.index_bits)
            set_, way = index >> 2 & 3, index >> 4
            lanes, entry = rng.getrandbits(128), bench.flip(rng.randrange(3))
            before = bench.entry_of(bench.line_at(set_, way))
            tags, _ = bench.tags[index]
            await bench.flip_bits(index, lanes=lanes, entry=entry)
            assert bench.directory[set_][way] == before ^ entry
            assert bench.tags[index] == (tags, lanes)
            # What is damaged stays.
            if bench.decode(before ^ entry) is None:
                await bench.flip_bits(index, entry=1)
                assert bench.directory[set_][way] == before ^ entry
            bench.directory[set_][way] = before
            bench.tags[index] = tags, 0
        assert bench.dirty == dirty

    bench.run(scenario)


def test_sim_flips_in_a_row(rng):
    """Each is done once."""
    bench = Bench(INJECTION, rng)

    async def scenario():
        for index in (5, 5, 6, 5):
            bench.flips = {"index": index, "lanes": 1 << index, "entry": 0}
            while bench.flips:
                await bench.tick()
        await bench.wait(10)
        assert (bench.tags[5][1], bench.tags[6][1]) == (1 << 5, 1 << 6)
        # Of all of them the entry is that of one way, which is empty.
        assert bench.scrubbed.count((1, 0)) >= 4
        assert not bench.directory[1][0]

    bench.run(scenario)


def test_sim_patience(rng):
    """A line gets its way when its words come, or nothing else goes on; not before."""
    bench = Bench(SMALL, rng)

    async def scenario():
        for urgent in (True, False):
            while not bench.last.idle:
                await bench.tick()
            bench.calm = False
            bench.unsettled = Want(bench.line(), urgent=False)
            for _ in range(PATIENCE):
                await bench.tick()
                assert not bench.last.close
                assert not bench.last.idle
            if urgent:
                bench.unsettled.urgent = True
            else:
                bench.calm = True
            start = bench.cycle
            while bench.unsettled:
                await bench.tick()
            assert bench.cycle - start < 30
        # Calm alone is no reason.
        await bench.wait(PATIENCE)
        assert not bench.last.close
        assert bench.last.idle

    bench.run(scenario)


def test_sim_several_requests_shut_the_door_once(rng):
    bench = Bench(SMALL, rng)

    async def scenario():
        bench.calm = False
        bench.put(0, 0, line=4)
        bench.put(1, 0, line=5)
        bench.unsettled = Want(bench.line(), urgent=False)
        bench.broken = 4, 0
        bench.maintenance = FLUSH, 5
        for _ in range(3):
            await bench.tick()
        assert bench.last.close
        opened = 0
        while bench.unsettled or bench.broken or bench.maintenance:
            await bench.tick()
            opened += not bench.last.close
        assert not opened

    bench.run(scenario)


@pytest.mark.parametrize("cycles", [1, 2, 5, 40])
def test_timing_door(cycles, rng):
    """The keeper begins when the stages are empty, and opens the door when it is done."""
    bench = Bench(SMALL, rng, traffic=1)
    bench.held_up = cycles

    async def scenario():
        bench.calm = False
        for _ in range(4):
            bench.unsettled = Want(bench.line())
            while not bench.last.close:
                await bench.tick()
            shut = bench.cycle
            while not bench.last.owns:
                assert bench.last.close
                await bench.tick()
            assert bench.cycle - shut <= cycles + 3
            while bench.last.owns:
                await bench.tick()
            assert not bench.last.close
            assert not bench.unsettled
            await bench.wait(10)

    bench.run(scenario)


class Random(Bench):
    """All at once: lines that need ways and come word by word, maintenance, errors, stores."""

    def __init__(self, config, rng):
        super().__init__(config, rng)
        self.active = True
        self.fills = []
        """Line, way, and the words still to come, of those that are waited for."""
        self.failing = None
        self.flip_count = 0

    def busy(self, set_):
        return sum({1 << way for line, way, _ in self.fills if self.set_of(line) == set_})

    async def play(self, cycles):
        self.fill_all()
        for cycle in range(cycles):
            if cycle % 200 == 0:
                self.traffic = self.rng.choice([0.1, 0.5, 1])
                self.rate = self.rng.choice([0.05, 0.3, 1])
                self.acknowledge = self.rng.choice([(1, 5), (20, 60)])
            self.request()
            await self.tick()
        self.active = False
        await self.drain()
        assert self.last.idle

    def request(self):
        rng, config = self.rng, self.config
        self.calm = self.likely(0.3)
        if self.unsettled is None and len(self.fills) < config.mshrs and self.likely(self.rate):
            line = self.line()
            self.unsettled = Want(line, self.busy(self.set_of(line)), urgent=False)
        elif self.unsettled and self.likely(0.1):
            self.unsettled.urgent = True
        if self.maintenance is None and self.likely(self.rate / 30):
            held = [*self.held(), self.line()]
            self.maintenance = rng.choice(KINDS), rng.choice(held)
        if config.injection and self.flips is None and self.likely(self.rate / 4):
            lanes = 1 << rng.randrange(128)
            index = rng.randrange(1 << config.index_bits)
            self.flips = {"index": index, "lanes": lanes, "entry": self.flip(rng.randrange(2))}
            self.flip_count += 1

    def answers(self, now):
        want, failing = self.unsettled, self.broken
        super().answers(now)
        if now.settle and now.settle_poisoned:
            if self.likely(0.5):
                self.heal()
        elif now.settle:
            self.fills.append((want.line, now.settle_way, list(range(self.config.line_words))))
        if now.mended:
            self.fills = [fill for fill in self.fills if fill[0] != failing[0]]

    def pass_by(self, now):
        super().pass_by(now)
        if not now.scrubbing and not now.rewrite:
            self.fill()
        if not now.owns:
            self.meddle(now)

    def fill(self):
        """A word comes; the last one with an error, at times."""
        if not self.fills or self.broken or not self.likely(0.5):
            return
        fill = self.rng.choice(self.fills)
        line, way, left = fill
        if left:
            index = self.index(self.set_of(line), way, left.pop(0))
            self.tag_writes.append((index, self.rng.getrandbits(64), 0))
        elif self.active and self.likely(0.2):
            self.broken = line, way
        else:
            self.fills.remove(fill)

    def heal(self):
        """Entries that were lost become those of empty ways."""
        for set_, way in self.places():
            if self.decode(self.directory[set_][way]) is None:
                self.directory[set_][way] = 0
                self.dirty[set_] &= ~(1 << way)

    def meddle(self, now):
        """Tag stores, as long as probes are under way; and flipped bits, which heal in time."""
        rng = self.rng
        if self.likely(0.2):
            self.heal()
        held = [(s, w) for s, w in self.held().values() if not self.busy(s) >> w & 1]
        if now.busy and held and self.likely(0.5):
            set_, way = rng.choice(held)
            self.dirty[set_] |= 1 << way
            index = self.index(set_, way, rng.randrange(self.config.line_words))
            if all(index != other for other, *_ in self.tag_writes):
                self.tag_writes.append((index, rng.getrandbits(64), 0))
        set_, way = rng.choice(self.places())
        value = self.decode(self.directory[set_][way])
        if self.active and value is not None and self.likely(0.1):
            flips = 1 + self.likely(0.2)
            self.directory[set_][way] = self.encode(value) ^ self.flip(flips)

    def line(self, set_=None):
        """Nor is it waited for."""
        while True:
            line = super().line(set_)
            if line not in [fill[0] for fill in self.fills]:
                return line


@configs()
def test_sim_random(config, rng):
    """Whatever is asked for, and however long the stages take to empty, all is answered."""
    bench = Random(config, rng)

    async def scenario():
        await bench.play(2000)

    bench.run(scenario)
    assert len(bench.settled) > 10
    assert bench.mended
    assert bench.maintained
    assert bench.written_back
    assert bool(bench.flip_count) == config.injection

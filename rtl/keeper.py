"""The keeper of the arrays: all work for which they must stand still."""

from collections.abc import Iterator
from contextlib import contextmanager

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, ValueLike
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .codes import DirectoryCode
from .config import TagConfig
from .layouts import ProbeKind

__all__ = ["Keeper", "flip_layout"]

READ_LATENCY = 4
"""Cycles from ``index`` to the corrected tags at ``secret_corrected``."""


def flip_layout(config: TagConfig) -> data.StructLayout:
    """Bits of a stored code that are to be flipped, for tests."""
    return data.StructLayout(
        {
            "index": config.index_bits,  # word, set and way
            "lanes": 8 * config.word_granules,
            "entry": DirectoryCode(config.directory_tag_bits + 1).width,
        }
    )


class _States:
    """Steps of which one is going on. Each has a register: that takes less logic than a number.

    Parameters
    ----------
    m : Module
        Where the statements go.
    first : str
        The step after reset.
    """

    def __init__(self, m: Module, first: str) -> None:
        self._m = m
        self._first = first
        self._flags: dict[str, Signal] = {}
        self._moves: list[tuple[str, str, ValueLike]] = []
        self._step = first

    def __call__(self, step: str) -> Signal:
        """Is it this one?"""
        if step not in self._flags:
            self._flags[step] = Signal(name=f"at_{step.lower()}", init=step == self._first)
        return self._flags[step]

    @contextmanager
    def state(self, step: str) -> Iterator[None]:
        """What happens in a step, as with :meth:`Module.If`."""
        self._step = step
        with self._m.If(self(step)):
            yield

    def goes(self, step: str, when: ValueLike = 1) -> None:
        """From the step that is described, this one follows; conditions exclude each other."""
        self._moves.append((self._step, step, when))

    def move(self) -> None:
        """Add what makes the steps follow each other, after all are described."""
        for step, flag in self._flags.items():
            comes = [self(before) & when for before, to, when in self._moves if to == step]
            leaves = [when for before, _, when in self._moves if before == step]
            self._m.d.sync += flag.eq(Cat(comes).any() | (flag & ~Cat(leaves).any()))


class Keeper(wiring.Component):
    """Sweeps the directory, finds victims, writes lines back, scrubs.

    For each of these the keeper shuts the door and waits until the stages that use the arrays are
    empty; then it has them for itself, and goes step by step. Tags that it moves are corrected on
    the way. When it works, and for how long, follows from addresses and from the memory port's
    handshakes, and for the scrubber from time alone.

    A line for which an MSHR is allocated needs a way. The keeper chooses it when a beat of the line
    is there, or nothing else goes on: the lowest way that holds no line, else the one at which the
    tree points; never one of a line that is waited for. Before, it looks at every way of the set:
    if an entry has two flipped bits, the line may be there, so the MSHR is poisoned.

    Members
    -------
    close : ``Out(1)``, closes : ``Out(1)``
        The door stays shut, and nothing is replayed; a register. In the next cycle it will.
    quiet : ``In(1)``
        No probe was in a stage that uses the arrays, one cycle ago.
    owns : ``Out(1)``
        ``set`` and ``index`` address the arrays; a register.
    set : ``Out(config.set_bits)``, index : ``Out(config.index_bits)``
        Registers.
    entries : ``In(code words, for each way)``
        Two cycles after ``set``.
    dirty : ``In(config.ways)``
        Dirty bits of ``set``, one cycle later.
    tree_victim : ``In(config.way_bits)``
        The way at which ``tree`` points.
    enter : ``Out(config.ways)``
        Ways whose entries become ``entry``; a register.
    keep_dirty : ``Out(1)``
        With ``enter``: their dirty bits stay; else they are cleared.
    entry : ``Out(code word)``
        A register.
    touch : ``Out(1)``
        With ``enter``: the way is used, as the tree sees it.
    sweep : ``Out(1)``
        With ``enter``: the tree is cleared as well.
    rewrite : ``Out(1)``
        Write ``secret_corrected``, which is of the word at ``index``, back to where it is from, if
        it is not damaged.
    scrubbing : ``Out(1)``
        A word was read, and will be rewritten: nothing else may be written meanwhile, not even a
        word of a line that arrives. A register.
    flipping : ``Out(1)``
        With ``enter`` or ``rewrite``: flip bits, as ``flips`` tells.
    unsettled, unsettled_line, urgent, busy_ways, settle, settle_way, settle_poisoned
        See :class:`MissUnit`.
    broken, broken_line, broken_way, mended
        See :class:`MissUnit`.
    evict_ready, evict_start, evict_line, evict_zero, evict_write, evict_word, evict_done
        See :class:`MissUnit`.
    writes_idle : ``In(1)``
        Storage has all that was written back.
    maintain : ``In(1)``, maintain_kind : ``In(ProbeKind)``, maintain_line : ``In``
        Maintenance is asked for, until ``maintained``.
    maintained : ``Out(1)``
        Strobe.
    calm : ``In(1)``
        Nothing goes on in the pipeline; a good time to work.
    storage_bytes, storage_zeroed : ``In``
        For the initialiser.
    flips : ``In(stream.Signature(flip_layout(config)))``
        Asks for flipped bits; not there unless ``config.injection``.
    ready : ``Out(1)``
        The directory is swept, and storage is zeroed. Stays until reset.
    idle : ``Out(1)``
        Nothing to do.
    scrubbed : ``Out(1)``
        Strobe: the scrubber read a word; its errors may be counted.
    """

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        entry = DirectoryCode(config.directory_tag_bits + 1).width
        line = config.line_address_bits
        members = {
            "close": Out(1, init=1),
            "closes": Out(1),
            "quiet": In(1),
            "owns": Out(1, init=1),
            "set": Out(config.set_bits),
            "index": Out(config.index_bits),
            "entries": In(data.ArrayLayout(entry, config.ways)),
            "dirty": In(config.ways),
            "tree_victim": In(config.way_bits),
            "enter": Out(config.ways, init=(1 << config.ways) - 1),
            "entry": Out(entry),
            "keep_dirty": Out(1),
            "touch": Out(1),
            "sweep": Out(1, init=1),
            "rewrite": Out(1),
            "scrubbing": Out(1),
            "flipping": Out(1),
            "unsettled": In(1),
            "unsettled_line": In(line),
            "urgent": In(1),
            "busy_ways": In(config.ways),
            "settle": Out(1),
            "settle_way": Out(config.way_bits),
            "settle_poisoned": Out(1),
            "broken": In(1),
            "broken_line": In(line),
            "broken_way": In(config.way_bits),
            "mended": Out(1),
            "evict_ready": In(1),
            "evict_start": Out(1),
            "evict_line": Out(line),
            "evict_zero": Out(1),
            "evict_write": Out(1),
            "evict_word": Out(config.word_index_bits),
            "evict_done": Out(1),
            "writes_idle": In(1),
            "maintain": In(1),
            "maintain_kind": In(ProbeKind),
            "maintain_line": In(line),
            "maintained": Out(1),
            "calm": In(1),
            "storage_bytes": In(config.memory_bits - 4),
            "storage_zeroed": In(1),
            "ready": Out(1),
            "idle": Out(1),
            "scrubbed": Out(1),
        }
        if config.injection:
            members["flips"] = In(stream.Signature(flip_layout(config)))
        super().__init__(members)

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        code = DirectoryCode(config.directory_tag_bits + 1)
        ways, words = config.ways, config.line_words

        way = Signal(config.way_bits)
        word = Signal(config.word_index_bits)
        line_tag = Signal(config.directory_tag_bits)  # of the line that is worked for
        last_set = Signal()
        m.d.comb += [self.index.eq(Cat(word, self.set, way)), self.settle_way.eq(way)]

        def take_line(line: Value) -> list:
            return [self.set.eq(line[: config.set_bits]), line_tag.eq(line[config.set_bits :])]

        # An entry on its way: read, checked, corrected, each a cycle.
        read_entry = Signal(code.width)
        read_syndrome = Signal(code.check_bits)
        read_word = Signal(code.width)
        value = Signal(code.bits)
        damaged = Signal()
        corrected, _, is_damaged = code.repair(read_word, read_syndrome)
        m.d.sync += [
            read_entry.eq(Value.cast(self.entries).word_select(way, code.width)),
            read_word.eq(read_entry),
            read_syndrome.eq(code.syndrome(read_entry)),
            value.eq(corrected),
            damaged.eq(is_damaged),
        ]
        value_tag, value_valid = value[:-1], value[-1]
        same_line = Signal()
        m.d.sync += same_line.eq(value_tag == line_tag)

        # A tag word on its way is followed by a shift register.
        reading = Signal(READ_LATENCY)
        issued = Signal()
        m.d.sync += reading.eq(Cat(issued, reading))
        evict_word = Signal(config.word_index_bits)
        m.d.comb += self.evict_word.eq(evict_word)

        # What is going on: steps of a job, for those that wait for the arrays.
        at = _States(m, "SWEEP")
        timed = Cat(at(step) for step in ("SCAN", "VICTIM", "VISIT", "SCRUB")).any()
        timed_before = Signal()
        since = Signal(8)

        def after(cycles: int) -> Value:
            """So many cycles have passed since such a step began."""
            return since[cycles - 1]

        scanning = Signal()
        checking = Signal()
        scan_way = Signal(config.way_bits)
        scanned_damaged = Signal()
        scanned_valid = Signal(ways)
        all_ways = Signal()  # maintenance of all lines
        drop = Signal()  # and they leave the cache
        act = Signal()
        way_dirty = Signal()
        last_way = Signal()
        set_done = Signal()  # of all of them, with its last way
        pointed = Signal(config.way_bits)  # the tree's choice
        fallback = Signal(config.way_bits)
        choice = Signal(config.way_bits)
        free = ~scanned_valid & ~self.busy_ways
        m.d.sync += [
            timed_before.eq(timed),
            since.eq(Cat(~timed_before, since) & timed.replicate(len(since))),
            way_dirty.eq(self.dirty.bit_select(way, 1)),
            last_way.eq(way == ways - 1),
            set_done.eq(all_ways & (way == ways - 1)),
            pointed.eq(self.tree_victim),
            fallback.eq(
                Mux(
                    self.busy_ways.bit_select(pointed, 1),
                    _lowest(~self.busy_ways),
                    pointed,
                )
            ),
            choice.eq(Mux(free.any(), _lowest(free), fallback)),
            all_ways.eq(
                (self.maintain_kind == ProbeKind.CLEAN_ALL)
                | (self.maintain_kind == ProbeKind.CLEAN_INVALIDATE_ALL)
            ),
            drop.eq(
                (self.maintain_kind == ProbeKind.CLEAN_INVALIDATE)
                | (self.maintain_kind == ProbeKind.CLEAN_INVALIDATE_ALL)
            ),
            scanning.eq(at("SCAN") & (scanning | after(1))),
            checking.eq(at("SCAN") & (checking | after(4))),
            act.eq(value_valid & ~damaged & (all_ways | same_line)),
        ]

        # The line that is written back; or zeroed, by the initialiser.
        zero_line = Cat(self.set, line_tag)
        zero_lines = self.storage_bytes[config.line_bytes.bit_length() - 1 :]
        zeroed = Signal()
        begun = Signal()
        m.d.sync += last_set.eq(self.set == config.sets - 1)
        zeroing = at("ZERO_LINE")
        m.d.comb += [
            self.evict_line.eq(Cat(self.set, Mux(zeroing, line_tag, value_tag))),
            self.evict_zero.eq(zeroing),
            self.evict_write.eq(reading[-1]),
        ]

        # The scrubber's clock, and where it is.
        timer = Signal(exact_log2(config.scrub_period) + 1)
        scrub_due = Signal()
        scrub_index = Signal(config.index_bits)
        m.d.sync += timer.eq(timer[:-1] + 1)
        with m.If(timer[-1]):
            m.d.sync += scrub_due.eq(1)

        flip_due: Value = Const(0)
        flip_index: Value = scrub_index
        if config.injection:
            flip_due, flip_index = self.flips.valid, self.flips.payload.index
        flipping = Signal()

        # What is to be done next, one-hot, and where, as of the last cycle.
        set_end = len(word) + config.set_bits
        maintaining = Signal()
        work = Signal()
        next_drop = Signal()
        next_scan = Signal()
        next_maintain = Signal()
        next_flip = Signal()
        next_scrub = Signal()
        next_rest = Signal()
        next_index = Signal(config.index_bits)
        before: Value = Const(0)
        for chosen, wanted in (
            (next_drop, self.broken),
            (next_scan, self.unsettled),
            (next_maintain, maintaining),
            (next_flip, flip_due),
            (next_scrub, scrub_due),
            (next_rest, Const(1)),
        ):
            m.d.sync += chosen.eq(wanted & ~before)
            before |= wanted
        with m.If(self.broken):
            m.d.sync += next_index.eq(
                Cat(Const(0, len(word)), self.broken_line[: config.set_bits], self.broken_way)
            )
        with m.Elif(self.unsettled):
            m.d.sync += next_index.eq(Cat(Const(0, len(word)), self.unsettled_line)[:set_end])
        with m.Elif(maintaining):
            every_set = all_ways.replicate(config.set_bits)
            m.d.sync += next_index.eq(
                Cat(Const(0, len(word)), self.maintain_line[: config.set_bits] & ~every_set)
            )
        with m.Elif(flip_due):
            m.d.sync += next_index.eq(flip_index)
        with m.Else():
            m.d.sync += next_index.eq(scrub_index)
        serves_mshr = Signal()  # the way is for an MSHR, not for maintenance
        m.d.sync += [
            maintaining.eq(self.maintain & self.writes_idle),
            work.eq(
                self.broken
                | maintaining
                | (self.unsettled & (self.urgent | self.calm))
                | scrub_due
                | flip_due
            ),
        ]
        m.d.comb += self.idle.eq(
            at("IDLE")
            & ~(work | self.broken | self.unsettled | self.maintain | scrub_due | flip_due)
        )

        opens = at("OPEN") | (at("WAIT") & self.quiet & next_rest)
        m.d.comb += self.closes.eq((self.close | (at("IDLE") & work)) & ~opens)
        m.d.sync += self.close.eq(self.closes)

        # What is entered: nothing, the line that comes, or what was there.
        m.d.sync += [
            self.enter.eq(
                Mux(at("SWEEP"), ~0, 0)
                | Mux(
                    at("DROP") | at("ENTER") | (at("LEAVE") & act) | (at("SCRUB_ENTRY") & ~damaged),
                    1 << way,
                    0,
                )
            ),
            self.touch.eq(at("ENTER")),
            self.keep_dirty.eq(at("SCRUB_ENTRY")),
            self.entry.eq(code.encode(Mux(at("ENTER"), Cat(line_tag, 1), value))),
        ]

        with m.If(at("SWEEP") | at("DROP") | (at("LEAVE") & drop)):
            m.d.sync += self.entry.eq(0)

        with at.state("SWEEP"):
            m.d.sync += self.set.eq(self.set + 1)
            swept = self.set == config.sets - 1
            at.goes("OPEN", swept & self.storage_zeroed)
            at.goes("ZERO", swept & ~self.storage_zeroed)

        # Is the last line zeroed? A map of the largest size ends where it begins.
        ends = [
            zero_line[n : n + 8] == zero_lines[:-1][n : n + 8] for n in range(0, len(zero_line), 8)
        ]
        empty = [~zero_lines[n : n + 8].any() for n in range(0, len(zero_lines), 8)]
        is_last = Signal(len(ends))
        is_empty = Signal(len(empty))
        m.d.sync += [
            is_last.eq(Cat(ends)),
            is_empty.eq(Cat(empty)),
            zeroed.eq(Mux(begun, is_last.all(), is_empty.all())),
        ]

        with at.state("ZERO"):
            at.goes("ZERO_CHECKED")
        with at.state("ZERO_CHECKED"):
            at.goes("ZERO_LINE")

        with at.state("ZERO_LINE"):
            with m.If(~zeroed & self.evict_ready):
                m.d.comb += self.evict_start.eq(1)
                m.d.sync += [
                    self.set.eq(self.set + 1),
                    line_tag.eq(line_tag + last_set),
                    begun.eq(1),
                ]
            at.goes("OPEN", zeroed & self.writes_idle)
            at.goes("ZERO", ~zeroed & self.evict_ready)

        with at.state("OPEN"):
            m.d.sync += [self.owns.eq(0), self.sweep.eq(0), self.ready.eq(1)]
            at.goes("IDLE")

        with at.state("IDLE"):
            at.goes("CLOSE", work)

        # The door was open in the last cycle; what came through is seen in this one, and `quiet`
        # tells of it in the next.
        with at.state("CLOSE"):
            at.goes("CLOSE_2")
        with at.state("CLOSE_2"):
            at.goes("WAIT")

        with at.state("WAIT"):
            m.d.sync += [
                evict_word.eq(0),
                scan_way.eq(0),
                scanned_damaged.eq(0),
                serves_mshr.eq(next_scan),
                flipping.eq(next_flip),
                self.owns.eq(self.quiet & ~next_rest),
                self.scrubbing.eq(self.quiet & (next_flip | next_scrub)),
                line_tag.eq(
                    Mux(next_scan, self.unsettled_line, self.maintain_line)[config.set_bits :]
                ),
            ]
            m.d.sync += Cat(word, self.set, way).eq(next_index)
            with m.If(self.quiet & next_scrub):
                m.d.sync += [scrub_index.eq(scrub_index + 1), scrub_due.eq(0)]
            at.goes("DROP", self.quiet & next_drop)
            at.goes("SCAN", self.quiet & next_scan)
            at.goes("VISIT", self.quiet & next_maintain)
            at.goes("SCRUB", self.quiet & (next_flip | next_scrub))
            at.goes("IDLE", self.quiet & next_rest)

        with at.state("DROP"):
            m.d.comb += self.mended.eq(1)
            at.goes("AGAIN")

        # Requests that were just served need two cycles to fall.
        with at.state("AGAIN"):
            at.goes("AGAIN_2")
        with at.state("AGAIN_2"):
            at.goes("WAIT")

        # A way for a line: look at all of them first.
        with at.state("SCAN"):
            with m.If(scanning):
                m.d.sync += way.eq(way + 1)
            with m.If(checking):
                m.d.sync += [
                    scan_way.eq(scan_way + 1),
                    scanned_valid.eq(Cat(scanned_valid[1:], value_valid)),
                    scanned_damaged.eq(scanned_damaged | damaged),
                ]
            at.goes("CHOOSE", checking & (scan_way == ways - 1))

        # The lowest free way, else the tree's, but never a busy one: then the lowest that is not.
        with at.state("CHOOSE"):
            at.goes("CHOSEN")
        with at.state("CHOSEN"):
            m.d.sync += way.eq(choice)
            at.goes("VICTIM")

        with at.state("VICTIM"):
            # Its entry is read once more: so far it was one of many.
            evicts = value_valid & way_dirty
            at.goes("POISON", after(3) & scanned_damaged)
            at.goes("EVICT", after(3) & ~scanned_damaged & evicts)
            at.goes("ENTER", after(3) & ~scanned_damaged & ~evicts)

        with at.state("POISON"):
            m.d.comb += [self.settle.eq(1), self.settle_poisoned.eq(1)]
            at.goes("AGAIN")

        with at.state("ENTER"):
            m.d.comb += self.settle.eq(1)
            at.goes("AGAIN")

        # A line goes to the write-back buffer.
        with at.state("EVICT"):
            m.d.comb += self.evict_start.eq(self.evict_ready)
            at.goes("EVICT_READ", self.evict_ready)

        with at.state("EVICT_READ"):
            m.d.comb += issued.eq(1)
            m.d.sync += word.eq(word + 1)
            at.goes("EVICT_REST", word == words - 1)

        with at.state("EVICT_REST"):
            last = Signal()
            m.d.comb += [
                last.eq(self.evict_write & (evict_word == words - 1)),
                self.evict_done.eq(last),
            ]
            at.goes("ENTER", last & serves_mshr)
            at.goes("LEAVE", last & ~serves_mshr)

        with m.If(self.evict_write):
            m.d.sync += evict_word.eq(evict_word + 1)

        # Maintenance: every way of one set, or of all.
        with at.state("VISIT"):
            at.goes("EVICT", after(8) & act & way_dirty)
            at.goes("LEAVE", after(8) & ~(act & way_dirty))

        # The entry of a line that stays is written again, as it should be.
        with at.state("LEAVE"):
            at.goes("NEXT")

        with at.state("NEXT"):
            m.d.sync += way.eq(way + 1)
            with m.If(set_done):
                m.d.sync += self.set.eq(self.set + 1)
            at.goes("VISIT", ~last_way | (set_done & ~last_set))
            at.goes("MAINTAINED", last_way & ~(set_done & ~last_set))

        with at.state("MAINTAINED"):
            m.d.comb += self.maintained.eq(self.writes_idle)
            at.goes("AGAIN", self.writes_idle)

        # One word and one entry are read, corrected and written back.
        with at.state("SCRUB"):
            m.d.comb += [
                self.rewrite.eq(after(8)),
                self.scrubbed.eq(after(8) & ~flipping),
            ]
            at.goes("SCRUB_ENTRY", after(8))

        with at.state("SCRUB_ENTRY"):
            at.goes("SCRUBBED")

        with at.state("SCRUBBED"):
            if config.injection:
                m.d.comb += self.flips.ready.eq(flipping)
            at.goes("AGAIN")

        m.d.comb += self.flipping.eq(flipping & (self.rewrite | at("SCRUBBED")))
        at.move()
        return m


def _lowest(flags: Value) -> Value:
    """The number of the lowest flag that is set; the last one's if none is."""
    number: Value = Value.cast(len(flags) - 1)
    for position in reversed(range(len(flags) - 1)):
        number = Mux(flags[position], position, number)
    return number

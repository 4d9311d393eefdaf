"""The keeper of the arrays: all work for which they must stand still."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
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
    close : ``Out(1)``
        The door stays shut, and nothing is replayed.
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
        last_set = self.set == config.sets - 1
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
        entry_value = Signal(code.bits)  # what is written
        m.d.comb += self.entry.eq(code.encode(entry_value))
        same_line = Signal()
        m.d.sync += same_line.eq(value_tag == line_tag)

        # A tag word on its way is followed by a shift register.
        reading = Signal(READ_LATENCY)
        issued = Signal()
        m.d.sync += reading.eq(Cat(issued, reading))
        evict_word = Signal(config.word_index_bits)
        m.d.comb += self.evict_word.eq(evict_word)

        # What is going on: steps of a job, for those that wait for the arrays.
        step = Signal(range(16))
        scan_way = Signal(config.way_bits)
        scanned_damaged = Signal()
        scanned_valid = Signal(ways)
        all_ways = Signal()  # maintenance of all lines
        drop = Signal()  # and they leave the cache
        act = Signal()
        way_dirty = Signal()
        victim = Signal(config.way_bits)
        m.d.sync += [
            way_dirty.eq(self.dirty.bit_select(way, 1)),
            victim.eq(self.tree_victim),
        ]

        # The line that is written back; or zeroed, by the initialiser.
        zeroing = Signal()
        zero_line = Cat(self.set, line_tag)
        zero_lines = self.storage_bytes[config.line_bytes.bit_length() - 1 :]
        zeroed = Signal()
        begun = Signal()
        m.d.comb += [
            self.evict_line.eq(Cat(self.set, Mux(zeroing, line_tag, value_tag))),
            self.evict_zero.eq(zeroing),
        ]

        # The scrubber's clock, and where it is.
        timer = Signal(exact_log2(config.scrub_period) + 1)
        scrub_due = Signal()
        scrub_index = Signal(config.index_bits)
        m.d.sync += timer.eq(timer[:-1] + 1)
        with m.If(timer[-1]):
            m.d.sync += scrub_due.eq(1)

        flip_due: Value = Signal()
        if config.injection:
            flip_due = self.flips.valid
        flipping = Signal()

        after_evict = Signal()  # 0: an MSHR waits for the way; 1: maintenance
        maintaining = Signal()
        m.d.comb += maintaining.eq(self.maintain & self.writes_idle)

        m.d.sync += [self.enter.eq(0), self.touch.eq(0), self.keep_dirty.eq(0)]
        with m.FSM():
            with m.State("SWEEP"):
                m.d.sync += [self.enter.eq(~0), self.set.eq(self.set + 1)]
                with m.If(last_set):
                    with m.If(self.storage_zeroed):
                        m.next = "OPEN"
                    with m.Else():
                        m.next = "ZERO"

            with m.State("ZERO"):
                m.d.comb += zeroing.eq(1)
                # A map of the largest size ends where it begins.
                m.d.sync += zeroed.eq(begun & (zero_line == zero_lines[:-1]))
                m.next = "ZERO_LINE"

            with m.State("ZERO_LINE"):
                m.d.comb += zeroing.eq(1)
                with m.If(zeroed | (~begun & ~zero_lines.any())):
                    with m.If(self.writes_idle):
                        m.next = "OPEN"
                with m.Elif(self.evict_ready):
                    m.d.comb += self.evict_start.eq(1)
                    m.d.sync += [zero_line.eq(zero_line + 1), begun.eq(1)]
                    m.next = "ZERO"

            with m.State("OPEN"):
                m.d.sync += [
                    self.close.eq(0),
                    self.owns.eq(0),
                    self.sweep.eq(0),
                    self.ready.eq(1),
                ]
                m.next = "IDLE"

            with m.State("IDLE"):
                work = Signal()
                m.d.comb += [
                    work.eq(
                        self.broken
                        | maintaining
                        | (self.unsettled & (self.urgent | self.calm))
                        | scrub_due
                        | flip_due
                    ),
                    self.idle.eq(~work & ~self.unsettled & ~self.maintain),
                ]
                with m.If(work):
                    m.d.sync += self.close.eq(1)
                    m.next = "CLOSE"

            with m.State("CLOSE"):
                # The door was open in the last cycle; what came through is seen in this one, and
                # `quiet` tells of it in the next.
                m.next = "CLOSE_2"

            with m.State("CLOSE_2"):
                m.next = "WAIT"

            with m.State("WAIT"):
                m.d.sync += [
                    step.eq(0),
                    word.eq(0),
                    way.eq(0),
                    scanned_damaged.eq(0),
                    scanned_valid.eq(0),
                    flipping.eq(0),
                    self.owns.eq(self.quiet),
                    self.scrubbing.eq(0),
                ]
                with m.If(self.quiet):
                    with m.If(self.broken):
                        m.d.sync += [
                            self.set.eq(self.broken_line[: config.set_bits]),
                            way.eq(self.broken_way),
                            entry_value.eq(0),
                        ]
                        m.next = "DROP"
                    with m.Elif(self.unsettled):
                        m.d.sync += take_line(self.unsettled_line)
                        m.next = "SCAN"
                    with m.Elif(maintaining):
                        m.d.sync += take_line(self.maintain_line)
                        m.d.sync += [
                            all_ways.eq(
                                (self.maintain_kind == ProbeKind.CLEAN_ALL)
                                | (self.maintain_kind == ProbeKind.CLEAN_INVALIDATE_ALL)
                            ),
                            drop.eq(
                                (self.maintain_kind == ProbeKind.CLEAN_INVALIDATE)
                                | (self.maintain_kind == ProbeKind.CLEAN_INVALIDATE_ALL)
                            ),
                        ]
                        m.next = "MAINTAIN"
                    with m.Elif(flip_due):
                        if config.injection:
                            m.d.sync += [
                                Cat(word, self.set, way).eq(self.flips.payload.index),
                                flipping.eq(1),
                            ]
                        m.d.sync += self.scrubbing.eq(1)
                        m.next = "SCRUB"
                    with m.Elif(scrub_due):
                        m.d.sync += [
                            Cat(word, self.set, way).eq(scrub_index),
                            scrub_index.eq(scrub_index + 1),
                            scrub_due.eq(0),
                            self.scrubbing.eq(1),
                        ]
                        m.next = "SCRUB"
                    with m.Else():
                        m.d.sync += [self.close.eq(0), self.owns.eq(0)]
                        m.next = "IDLE"

            with m.State("DROP"):
                m.d.sync += self.enter.eq(1 << way)
                m.d.comb += self.mended.eq(1)
                m.next = "AGAIN"

            with m.State("AGAIN"):
                # Requests that were just served need a cycle to fall.
                m.next = "AGAIN_2"

            with m.State("AGAIN_2"):
                m.next = "WAIT"

            # A way for a line: look at all of them first.
            with m.State("SCAN"):
                m.d.sync += step.eq(step + 1)
                with m.If(step >= 2):
                    m.d.sync += way.eq(way + 1)
                with m.If(step == 5):
                    m.d.sync += [step.eq(5), scan_way.eq(scan_way + 1)]
                    m.d.sync += scanned_valid.bit_select(scan_way, 1).eq(value_valid)
                    with m.If(damaged):
                        m.d.sync += scanned_damaged.eq(1)
                    with m.If(scan_way == ways - 1):
                        m.next = "CHOOSE"
                with m.Else():
                    m.d.sync += scan_way.eq(0)

            with m.State("CHOOSE"):
                m.d.sync += [
                    way.eq(_choice(victim, ~scanned_valid, self.busy_ways)),
                    step.eq(0),
                ]
                m.next = "VICTIM"

            with m.State("VICTIM"):
                # Its entry is read once more: so far it was one of many.
                m.d.sync += [
                    step.eq(step + 1),
                    entry_value.eq(Cat(line_tag, 1)),
                    after_evict.eq(0),
                    word.eq(0),
                    evict_word.eq(0),
                ]
                with m.If(step == 4):
                    m.d.sync += step.eq(0)
                    with m.If(scanned_damaged):
                        m.next = "POISON"
                    with m.Elif(value_valid & way_dirty):
                        m.next = "EVICT"
                    with m.Else():
                        m.next = "ENTER"

            with m.State("POISON"):
                m.d.comb += [self.settle.eq(1), self.settle_poisoned.eq(1)]
                m.next = "AGAIN"

            with m.State("ENTER"):
                m.d.sync += [self.enter.eq(1 << way), self.touch.eq(1)]
                m.d.comb += self.settle.eq(1)
                m.next = "AGAIN"

            # A line goes to the write-back buffer.
            with m.State("EVICT"):
                m.d.comb += self.evict_start.eq(self.evict_ready)
                with m.If(self.evict_ready):
                    m.next = "EVICT_READ"

            with m.State("EVICT_READ"):
                m.d.comb += [issued.eq(1), self.evict_write.eq(reading[-1])]
                m.d.sync += word.eq(word + 1)
                with m.If(self.evict_write):
                    m.d.sync += evict_word.eq(evict_word + 1)
                with m.If(word == words - 1):
                    m.next = "EVICT_REST"

            with m.State("EVICT_REST"):
                m.d.comb += self.evict_write.eq(reading[-1])
                with m.If(self.evict_write):
                    m.d.sync += evict_word.eq(evict_word + 1)
                with m.If(self.evict_write & (evict_word == words - 1)):
                    m.d.comb += self.evict_done.eq(1)
                    with m.If(after_evict):
                        m.next = "CLEANED"
                    with m.Else():
                        m.next = "ENTER"

            # Maintenance: every way of one set, or of all.
            with m.State("MAINTAIN"):
                m.d.sync += [way.eq(0), step.eq(0)]
                with m.If(all_ways):
                    m.d.sync += self.set.eq(0)
                m.next = "VISIT"

            with m.State("VISIT"):
                m.d.sync += [
                    step.eq(step + 1),
                    act.eq(value_valid & ~damaged & (all_ways | same_line)),
                    after_evict.eq(1),
                    word.eq(0),
                    evict_word.eq(0),
                ]
                with m.If(step == 8):
                    with m.If(act & way_dirty):
                        m.next = "EVICT"
                    with m.Else():
                        m.next = "CLEANED"

            with m.State("CLEANED"):
                # The entry of a line that stays is written again, as it should be.
                m.d.sync += entry_value.eq(Mux(drop, 0, value))
                m.next = "LEAVE"

            with m.State("LEAVE"):
                with m.If(act):
                    m.d.sync += self.enter.eq(1 << way)
                m.next = "NEXT"

            with m.State("NEXT"):
                m.d.sync += [step.eq(0), way.eq(way + 1)]
                with m.If(way != ways - 1):
                    m.next = "VISIT"
                with m.Elif(all_ways & ~last_set):
                    m.d.sync += self.set.eq(self.set + 1)
                    m.next = "VISIT"
                with m.Else():
                    m.next = "MAINTAINED"

            with m.State("MAINTAINED"):
                with m.If(self.writes_idle):
                    m.d.comb += self.maintained.eq(1)
                    m.next = "AGAIN"

            # One word and one entry are read, corrected and written back.
            with m.State("SCRUB"):
                m.d.sync += [step.eq(step + 1), entry_value.eq(value)]
                with m.If(step == 8):
                    m.d.comb += [self.rewrite.eq(1), self.flipping.eq(flipping)]
                    m.d.comb += self.scrubbed.eq(~flipping)
                    m.next = "SCRUB_ENTRY"

            with m.State("SCRUB_ENTRY"):
                m.d.sync += self.keep_dirty.eq(1)
                with m.If(~damaged):
                    m.d.sync += self.enter.eq(1 << way)
                m.next = "SCRUBBED"

            with m.State("SCRUBBED"):
                m.d.comb += self.flipping.eq(flipping)
                if config.injection:
                    m.d.comb += self.flips.ready.eq(flipping)
                m.next = "AGAIN"
        return m


def _choice(tree: Value, free: Value, busy: Value) -> Value:
    """The lowest free way, else the tree's, but never a busy one: then the lowest that is not."""

    def lowest(flags: Value) -> Value:
        number: Value = Value.cast(len(flags) - 1)
        for position in reversed(range(len(flags) - 1)):
            number = Mux(flags[position], position, number)
        return number

    candidates = free & ~busy
    return Mux(
        candidates.any(),
        lowest(candidates),
        Mux(busy.bit_select(tree, 1), lowest(~busy), tree),
    )

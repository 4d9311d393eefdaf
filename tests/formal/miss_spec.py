"""Formal spec of the miss unit: what it does with one line, any one, and with each MSHR.

One line of tag storage is followed, and of it one bit of one word: from storage into the array, and
from the cache into storage.
"""

from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Mux, Signal
from amaranth.lib import wiring
from emte.rtl.axi import Burst
from emte.rtl.config import TagConfig
from emte.rtl.layouts import Refusal
from emte.rtl.miss_unit import MissUnit
from unit_spec import UnitSpec

__all__ = ["PATIENCE", "MissUnitSpec"]

PATIENCE = 9
"""Cycles for which an MSHR may be in want of its line while the unit asks nobody for anything: the
way of each MSHR of the smallest geometry is looked for before a place is asked for."""


class MissUnitSpec(UnitSpec):
    """Refills and write-backs of a line come to their places, whole, and in their order.

    Parameters
    ----------
    config : :class:`TagConfig`
        Geometry.
    unit : :class:`amaranth.lib.wiring.Component`
        What is to be held to it, instead of the miss unit of that geometry.

    Assumed of the cache: the rules that the unit's documentation gives for each strobe; no line is
    in two MSHRs; ways that are told to be busy are not taken; a line is not written back while it
    is fetched; the words of a line are all written before ``evict_done``; tag storage stays where
    it is. Assumed of the memory: a write is answered at its end, and beats come for reads alone.
    The order of answers, and the time that any of them takes, is free.

    **No MSHR leaks.** In every cycle in which an MSHR is valid and not filled, somebody is asked
    for something that brings it nearer to that: storage for an address, a word, a beat or an
    answer, the cache for a place, for room in the array, or to drop a broken line; or that has been
    so within the last cycles. Each MSHR asks a bounded number of times, and those that come later
    never keep one from asking; so if all who are asked answer in time, it is filled in time.
    """

    def __init__(self, config: TagConfig, *, unit: wiring.Component | None = None) -> None:
        self.config = config
        super().__init__(unit or MissUnit(config))

    def specify(self, m: Module) -> None:
        unit = self.unit
        config = self.config
        memory = unit.memory
        mshrs = range(config.mshrs)
        beats = range(config.line_words + 1)
        last_word = config.line_words - 1

        # What is followed.
        line = Signal(config.line_address_bits)
        word = Signal(config.word_index_bits)
        bit = Signal(range(config.word_bits))
        base = Signal(config.axi_address_bits)
        place = Signal(config.axi_address_bits)  # of the line in tag storage
        m.d.comb += [
            *(signal.eq(AnyConst(len(signal))) for signal in (line, word, bit, base)),
            place.eq(base + (line << (config.line_bytes.bit_length() - 1))),
            Assume(unit.storage_base == base, "tag storage stays where it is"),
            Assume(base[:7] == 0, "the place of tag storage is a multiple of 128 bytes"),
        ]

        # MSHRs are taken and freed.
        used = Signal(config.mshrs)
        turn = Signal(config.mshr_bits)
        history = [used]
        for age in range(1, 4):
            before = Signal(config.mshrs, name=f"used_{age}")
            m.d.sync += before.eq(history[-1])
            history.append(before)
        ours = Signal()  # the line has an MSHR
        number = Signal(config.mshr_bits)
        takes = unit.allocate & (unit.allocate_line == line)
        filled = unit.filled.bit_select(number, 1)
        fetching = ours & ~filled
        for n in mshrs:
            m.d.sync += used[n].eq((used[n] | (unit.allocate & (unit.next == n))) & ~unit.free[n])
        with m.If(unit.allocate):
            m.d.sync += turn.eq(turn + 1)
        with m.If(takes):
            m.d.sync += [ours.eq(1), number.eq(turn)]
        with m.Elif(ours & unit.free.bit_select(number, 1)):
            m.d.sync += ours.eq(0)
        m.d.comb += [
            Assume(~unit.allocate | unit.available, "only if one is available"),
            Assume(~(takes & ours), "a line is in one MSHR at a time"),
            Assume((unit.free & ~unit.filled) == 0, "only what is filled is freed"),
            Assert(unit.valid == used, "MSHRs are valid from allocation until they are free"),
            Assert(unit.next == turn, "MSHRs are taken in a ring"),
            Assert(
                ~unit.available | ~Cat(h.bit_select(turn, 1) for h in history).any(),
                "an MSHR is available that was valid within the last three cycles",
            ),
        ]

        # Lines are compared.
        asked_1, asked_2 = Signal(), Signal()
        match_1, match_2 = Signal(config.mshrs), Signal(config.mshrs)
        m.d.sync += [
            asked_1.eq(unit.line == line),
            asked_2.eq(asked_1),
            match_1.eq(Mux(ours, 1 << number, 0)),
            match_2.eq(match_1),
        ]
        m.d.comb += Assert(~asked_2 | (unit.match == match_2), "a match that is none, or is missed")

        # Places are asked for in the order of the ring.
        homeless = Signal(config.mshr_bits + 1)
        ahead = Signal(config.mshr_bits + 1)
        settled = Signal()
        way = Signal(config.way_bits)
        poisoned = Signal()
        our_turn = fetching & ~settled & (ahead == 0)
        settling = Signal(config.mshr_bits)
        homes = [Signal(1 + config.set_bits + config.way_bits, name=f"home_{n}") for n in mshrs]
        m.d.sync += homeless.eq(homeless + unit.allocate - unit.settle)
        with m.If(takes):
            m.d.sync += [ahead.eq(homeless - unit.settle), settled.eq(0)]
        with m.Elif(unit.settle & our_turn):
            m.d.sync += [
                settled.eq(1),
                way.eq(unit.settle_way),
                poisoned.eq(unit.settle_poisoned),
            ]
        with m.Elif(unit.settle & ~settled):
            m.d.sync += ahead.eq(ahead - 1)
        with m.If(unit.settle):
            m.d.sync += settling.eq(settling + 1)
        for n in mshrs:
            with m.If(unit.settle & (settling == n)):
                home = Cat(unit.unsettled_line[: config.set_bits], unit.settle_way)
                m.d.sync += homes[n].eq(Cat(home, ~unit.settle_poisoned))
        busy = unit.busy_ways.bit_select(unit.settle_way, 1)
        same_set = unit.unsettled_line[: config.set_bits] == line[: config.set_bits]
        m.d.comb += [
            Assume(~unit.settle | unit.unsettled, "only if a place is asked for"),
            Assume(~unit.settle | unit.settle_poisoned | ~busy, "a busy way is not taken"),
            Assert(~unit.unsettled | (homeless != 0), "a place for nothing is asked for"),
            Assert(
                ~unit.unsettled | ((unit.unsettled_line == line) == our_turn),
                "a place is asked for another line than the oldest",
            ),
            Assert(
                ~(unit.unsettled & ours & settled & ~poisoned & same_set)
                | unit.busy_ways.bit_select(way, 1),
                "a way of an MSHR is not told to be busy",
            ),
            Assert(~(unit.unsettled & unit.busy_ways.all()), "all ways are told to be busy"),
        ]

        # Storage is asked for lines, and gives beats.
        asked = Signal()
        owed = [Signal(beats, name=f"owed_{n}") for n in mshrs]
        came = Signal(beats)
        failed = Signal()
        value = Signal()
        ar = memory.arvalid & memory.arready
        r = memory.rvalid & memory.rready
        ar_ours = memory.araddr == place
        r_ours = fetching & asked & (memory.rid[: config.mshr_bits] == number)
        for n in mshrs:
            starts = ar & (memory.arid == n)
            beat = r & (memory.rid == n)
            m.d.sync += owed[n].eq(Mux(starts, config.line_words, owed[n] - beat))
            m.d.comb += [
                Assert(
                    ~(memory.arvalid & (memory.arid == n)) | (owed[n] == 0), "an id of two reads"
                ),
                Assume(~(memory.rvalid & (memory.rid == n)) | (owed[n] != 0), "beats are of reads"),
            ]
        m.d.comb += [
            Assume(~memory.rvalid | (memory.rid < config.mshrs), "ids are those of reads"),
            Assert(~memory.arvalid | (memory.arid < config.mshrs), "ids are numbers of MSHRs"),
            Assert(
                ~(memory.arvalid & ar_ours) | (fetching & ~asked & (memory.arid == number)),
                "a line is asked for that nobody wants, or twice",
            ),
            Assert(
                ~(memory.arvalid & fetching & (memory.arid == number)) | ar_ours,
                "another line is asked for",
            ),
        ]
        with m.If(takes):
            m.d.sync += [asked.eq(0), came.eq(0), failed.eq(0)]
        with m.Elif(ar & ar_ours):
            m.d.sync += asked.eq(1)
        with m.Elif(r & r_ours):
            m.d.sync += [
                came.eq(came + 1),
                failed.eq(failed | memory.rresp.as_value()[1]),
            ]
            with m.If(came == word):
                m.d.sync += value.eq(memory.rdata.bit_select(bit, 1))

        # Beats come to their places.
        gone = Signal(beats)
        fill = unit.fill
        fill_word = fill.payload.index[: config.word_index_bits]
        fill_home = fill.payload.index[config.word_index_bits :]
        home = Cat(line[: config.set_bits], way)
        fill_ours = fill.valid & fetching & settled & ~poisoned & (fill_home == home)
        with m.If(takes):
            m.d.sync += gone.eq(0)
        with m.Elif(fill_ours & fill.ready):
            m.d.sync += gone.eq(gone + 1)
        m.d.comb += [
            Assert(~fill_ours | ((fill_word == gone) & (gone < came)), "a beat at another index"),
            Assert(
                ~(fill_ours & (fill_word == word))
                | (fill.payload.secret_tags.bit_select(bit, 1) == value),
                "other tags than those of storage",
            ),
            Assert(
                ~fill.valid
                | Cat(
                    used[n] & ~unit.filled[n] & (homes[n] == Cat(fill_home, 1)) for n in mshrs
                ).any(),
                "a beat at a place of no MSHR",
            ),
        ]

        # Lines are filled, or are broken first.
        mended = Signal()
        broken = unit.broken & (unit.broken_line == line)
        all_came = settled & (came == config.line_words)
        all_gone = all_came & ~poisoned & (gone == config.line_words)
        told = unit.refusals[0].as_value()
        for n in mshrs:
            told = Mux(number == n, unit.refusals[n].as_value(), told)
        filled_before = Signal(config.mshrs)
        m.d.sync += filled_before.eq(unit.filled)
        with m.If(takes):
            m.d.sync += mended.eq(0)
        with m.Elif(broken & unit.mended):
            m.d.sync += mended.eq(1)
        m.d.comb += [
            Assume(~unit.mended | unit.broken, "only what is broken is mended"),
            Assert(
                ~broken | (fetching & all_gone & failed & (unit.broken_way == way)),
                "a line is told to be broken that is not, or not yet, or elsewhere",
            ),
            Assert(
                ~(ours & filled) | Mux(poisoned, all_came, all_gone),
                "filled, and words are missing",
            ),
            Assert(
                ~(ours & filled)
                | (
                    told
                    == Mux(
                        poisoned, Refusal.UNCORRECTABLE, Mux(failed, Refusal.ABORT, Refusal.NONE)
                    )
                ),
                "a broken or poisoned line is told to be filled with tags, or a good one not",
            ),
            Assert(
                ~(ours & filled & failed & ~poisoned) | mended,
                "a line is told to be refused before it is dropped",
            ),
            Assert(~fetching | (told == Refusal.NONE.value), "refused before it is filled"),
            Assert(
                unit.refused == Cat(unit.refusals[n].as_value().any() for n in mshrs),
                "refused, and with no reason",
            ),
            Assert((unit.filled & ~used) == 0, "filled, and not valid"),
            Assert(unit.arrived == (unit.filled & ~filled_before).any(), "an arrival is not told"),
        ]

        # Lines are written back: words into one buffer after the other.
        buffer = Signal()
        loading = Signal()
        written = Signal()  # the word that is followed
        outstanding = Signal(2)
        complete = Signal(2)
        of_line = Signal(2)
        stored = Signal(2)  # the bit that is followed
        starting = unit.evict_start & ~unit.evict_zero
        starts_ours = unit.evict_start & (unit.evict_line == line)
        writes_word = unit.evict_write & (unit.evict_word == word)
        loaded = Mux(buffer, 0b01, 0b10)  # `buffer` has gone on since the line began
        m.d.comb += [
            Assume(~unit.evict_start | unit.evict_ready, "only if there is a buffer"),
            Assume(~unit.evict_write | loading, "words follow a line"),
            Assume(~unit.evict_done | (loading & (written | writes_word)), "all words are there"),
            Assume(~(starts_ours & fetching), "no line is written back while it is fetched"),
            Assert(~unit.evict_ready | ~loading, "a second line before the first is whole"),
            Assert(
                ~unit.evict_ready | ~outstanding.bit_select(buffer, 1),
                "a buffer is promised that is not free",
            ),
        ]
        m.d.sync += loading.eq((loading | starting) & ~unit.evict_done)
        with m.If(unit.evict_start):
            m.d.sync += [buffer.eq(~buffer), written.eq(0)]
        with m.Elif(writes_word):
            m.d.sync += written.eq(1)

        # Storage takes addresses and words, and answers.
        aw = memory.awvalid & memory.awready
        w = memory.wvalid & memory.wready
        b = memory.bvalid & memory.bready
        aw_ours = memory.awaddr == place
        aw_id = Signal()  # of the next address
        w_id = Signal()  # of the burst whose words go
        w_word = Signal(config.word_index_bits)
        addressed = Signal(2)
        sent = Signal(2)
        lost = Signal()
        m.d.sync += [
            aw_id.eq(aw_id ^ aw),
            w_word.eq(w_word + w),
            w_id.eq(w_id ^ (w & (w_word == last_word))),
            lost.eq(lost | (b & memory.bresp.as_value()[1])),
        ]
        for n in range(2):
            answered = b & (memory.bid == n)
            begins = unit.evict_start & (buffer == n)
            m.d.sync += [
                outstanding[n].eq((outstanding[n] & ~answered) | begins),
                of_line[n].eq((of_line[n] & ~answered) | (begins & starts_ours)),
                complete[n].eq(
                    (complete[n] & ~answered)
                    | (begins & unit.evict_zero)
                    | (unit.evict_done & loaded[n])
                ),
                addressed[n].eq((addressed[n] & ~answered) | (aw & (memory.awid == n))),
                sent[n].eq((sent[n] & ~answered) | (w & (w_word == last_word) & (w_id == n))),
            ]
            with m.If(begins):
                m.d.sync += stored[n].eq(0)
            with m.Elif(writes_word & loaded[n]):
                m.d.sync += stored[n].eq(unit.secret_evict_tags.bit_select(bit, 1))
            m.d.comb += [
                Assume(
                    ~(memory.bvalid & (memory.bid == n)) | (addressed[n] & sent[n]),
                    "a write is answered at its end",
                ),
                Assert(
                    ~(memory.awvalid & (memory.awid == n))
                    | (complete[n] & ~addressed[n] & (aw_ours == of_line[n])),
                    "another line is written, or one that is not whole",
                ),
                Assert(
                    ~(memory.wvalid & (w_id == n)) | (complete[n] & ~sent[n]),
                    "words of no line are written",
                ),
                Assert(
                    ~(memory.wvalid & (w_id == n) & (w_word == word) & of_line[n])
                    | (memory.wdata.bit_select(bit, 1) == stored[n]),
                    "other tags are written than those of the cache",
                ),
            ]
        written_back = memory.awvalid & aw_ours
        m.d.comb += [
            Assume(~memory.bvalid | (memory.bid < 2), "ids are those of writes"),
            Assert(~memory.awvalid | (memory.awid == aw_id), "writes take turns with their ids"),
            Assert(~memory.wvalid | (memory.wlast == (w_word == last_word)), "WLAST"),
            Assert(~memory.wvalid | memory.wstrb.all(), "a word is written in part"),
            Assert(
                ~(memory.arvalid & ar_ours) | ~of_line.any(),
                "a refill overtakes the write-back of its line",
            ),
            Assert(
                ~written_back | ~(of_line & addressed).any(),
                "a write-back overtakes one of the same line",
            ),
            Assert(unit.writes_idle == ~outstanding.any(), "writes are done that are not"),
            Assert(unit.storage_error == lost, "a failed write is not told"),
            Assert(unit.idle == ~(outstanding.any() | used.any()), "idle that is not"),
        ]
        for prefix in ("aw", "ar"):
            field = {
                name: getattr(memory, prefix + name)
                for name in ("addr", "len", "size", "burst", "valid")
            }
            whole = (
                (field["addr"][: config.line_bytes.bit_length() - 1] == 0)
                & (field["len"] == last_word)
                & (field["size"] == 3)
                & (field["burst"] == Burst.INCR)
            )
            m.d.comb += Assert(~field["valid"] | whole, f"{prefix}: a burst is not a line's")

        # Somebody is asked, as long as something is wanted.
        writing = memory.awvalid | memory.wvalid | loading | (addressed & sent).any()
        reading = memory.arvalid | (~memory.rvalid & asked & (came != config.line_words))
        storing = fill.valid | unit.unsettled | unit.broken | r
        patience = Signal(range(PATIENCE + 2))
        write_patience = Signal(range(PATIENCE + 2))
        with m.If(~fetching | writing | reading | storing):
            m.d.sync += patience.eq(0)
        with m.Elif(patience <= PATIENCE):
            m.d.sync += patience.eq(patience + 1)
        with m.If(writing | ~outstanding.any()):
            m.d.sync += write_patience.eq(0)
        with m.Elif(write_patience <= PATIENCE):
            m.d.sync += write_patience.eq(write_patience + 1)
        m.d.comb += [
            Assert(patience <= PATIENCE, "an MSHR leaks"),
            Assert(write_patience <= PATIENCE, "a write-back is stuck"),
        ]

        # What may happen.
        waited = Signal()  # the fetch waited for a write-back
        again = Signal()  # the line was fetched before
        with m.If(takes):
            m.d.sync += [waited.eq(of_line.any()), again.eq(again | ours)]
        with m.If(ours & filled):
            m.d.sync += again.eq(1)
        m.d.comb += [
            Cover(ours & filled & waited & (told == 0), "filled, after its write-back"),
            Cover(ours & filled & again & (told == 0), "filled once more"),
            Cover(ours & filled & (told == Refusal.ABORT.value), "broken, and mended"),
            Cover(ours & filled & (told == Refusal.UNCORRECTABLE.value), "poisoned"),
            Cover(unit.filled.all(), "all MSHRs are filled"),
            Cover(unit.urgent & our_turn & (came != 0), "beats wait for a place"),
            Cover(
                fill_ours & owed[0].any() & owed[1].any() if config.mshrs > 1 else fill_ours,
                "beats of two reads come by turns",
            ),
            Cover(of_line.all(), "the line is written back twice"),
            Cover(lost & ours & filled, "filled, after a failed write"),
        ]

"""What is around the control of the tag cache, as its proofs need it: units that may do anything
that the real ones are allowed to, in any time, and keep the tags of one granule alone.

Each stands for a unit that has a proof of its own, and does at least what that one does: so what
holds with them holds of the cache.
"""

from functools import reduce
from operator import or_

from amaranth.asserts import AnyConst, AnySeq
from amaranth.hdl import Array, Assert, Assume, Cat, Module, Mux, Signal, Value
from emte.rtl.config import TagConfig
from emte.rtl.keeper import READ_LATENCY, Keeper
from emte.rtl.layouts import ProbeKind
from emte.rtl.miss_unit import MissUnit
from emte.rtl.store_buffer import StoreBuffer
from emte.rtl.tag_array import TagArray, directory_code

__all__ = ["Followed", "lane", "models", "with_lane"]


def lane(word: Value, granule: Value, size: int) -> Value:
    """What a word has of a granule."""
    parts = (
        word[size * n : size * (n + 1)] & (granule == n).replicate(size)
        for n in range(TagConfig.word_granules)
    )
    return reduce(or_, parts)


def with_lane(value: Value, granule: Value) -> Value:
    """A word that has ``value`` at a granule, and anything at the others."""
    return Cat(Mux(granule == n, value, AnySeq(len(value))) for n in range(TagConfig.word_granules))


class Followed:
    """The granule that is followed, and where its tag is.

    Attributes
    ----------
    line, index, granule : Signal
        Its line, the number of its word in that, and its own in that.
    started : Signal
        0 in the first cycle.
    entries, cells, next_cells : list[Signal]
        What each way has: the value of its entry, the code of the tag, and that after this cycle.
    storage : Signal
        The tag in storage.
    loading, copied, kept, pending : Signal
        The line goes to a buffer for write-backs; the tag is there; it; and it is on its way.
    written_back : Signal
        Strobe: storage has it.
    leaving : Signal
        The line is whole in the buffer, or clean, and loses its way next, or its dirty bit.
    fetching : Signal
        An MSHR that is not filled has the line.
    came, tag : Signal
        Meanwhile: the tag has come from storage; it.
    way, filled : Signal
        Meanwhile: the way of the line; its word is there.
    fetches : Signal
        Strobe: the tag comes.
    kept_mshrs : Signal
        An MSHR is filled, and not free yet.
    """

    def __init__(self, config: TagConfig) -> None:
        if config.sets != 1:
            raise ValueError("the models have one set")
        ways = range(config.ways)
        self.line = Signal(config.line_address_bits)
        self.index = Signal(config.word_index_bits)
        self.granule = Signal(4)
        self.started = Signal()
        self.entries = [Signal(directory_code(config).bits, name=f"entry_{w}") for w in ways]
        self.cells = [Signal(8, name=f"cell_{w}") for w in ways]
        self.next_cells = [Signal(8, name=f"next_cell_{w}") for w in ways]
        self.storage = Signal(4)
        self.loading = Signal()
        self.copied = Signal()
        self.kept = Signal(4)
        self.pending = Signal()
        self.written_back = Signal()
        self.leaving = Signal()
        self.fetching = Signal()
        self.came = Signal()
        self.tag = Signal(4)
        self.way = Signal(config.way_bits)
        self.filled = Signal()
        self.fetches = Signal()
        self.kept_mshrs = Signal()

    def start(self, m: Module, name: str, width: int) -> tuple[Value, Signal]:
        """A register with any value at first: its value, and its next one."""
        register = Signal(width, name=f"{name}_register")
        value = Signal(width, name=f"{name}_value")
        following = Signal(width, name=f"{name}_next")
        m.d.sync += register.eq(following)
        m.d.comb += value.eq(Mux(self.started, register, AnyConst(width)))
        return value, following


def models(followed: Followed) -> dict[str, type]:
    """Classes in the place of the cache's units, by the names of those."""
    f = followed

    class ArrayModel(TagArray):
        """The directory, and one granule of each way. What is read where it is written is
        undefined."""

        def elaborate(self, platform) -> Module:
            m = Module()
            config = self.config
            code = directory_code(config)
            shown = Signal.like(self.entries.as_value())
            read = Signal.like(shown)
            m.d.sync += f.started.eq(1)
            rows = []
            for way in range(config.ways):
                value, following = f.start(m, f"row_{way}", code.width)
                m.d.comb += following.eq(value)
                with m.If(self.directory_write[way]):
                    m.d.comb += following.eq(self.directory_value)
                entry = f.entries[way]
                m.d.comb += [
                    entry.eq(value[: code.bits]),
                    Assume(f.started | (value == code.encode(entry)), "entries are good"),
                ]
                rows.append(value)
            clash = Signal()
            m.d.sync += [
                clash.eq(self.directory_write.any()),
                read.eq(Cat(rows)),
                shown.eq(Mux(clash, AnySeq(len(read)), read)),
            ]
            m.d.comb += self.entries.as_value().eq(shown)

            codes = [Signal(8, name=f"codes_{n}") for n in range(2)]
            way = self.index[config.word_index_bits :]
            ours = self.index[: config.word_index_bits] == f.index
            write_way = self.write_index[config.word_index_bits :]
            write_ours = self.write_index[: config.word_index_bits] == f.index
            for number in range(config.ways):
                value, following = f.start(m, f"tags_{number}", 8)
                m.d.comb += [
                    f.cells[number].eq(value),
                    following.eq(value),
                    f.next_cells[number].eq(following),
                ]
                with m.If(
                    write_ours & (write_way == number) & self.write_lanes.bit_select(f.granule, 1)
                ):
                    m.d.comb += following.eq(lane(self.secret_write_codes, f.granule, 8))
            same = (self.index == self.write_index) & self.write_lanes.any()
            m.d.sync += [
                codes[0].eq(Mux(ours & ~same, Array(f.cells)[way], AnySeq(8))),
                codes[1].eq(codes[0]),
            ]
            m.d.comb += self.secret_codes.eq(with_lane(codes[1], f.granule))
            return m

    class StoreModel(StoreBuffer):
        """The number of a place tells what is there, of the granule that is followed.

        Nobody but the buffer looks at the numbers of places, so each tag store may have one that is
        the tag that it stores. The spec says so of what is written.
        """

        def elaborate(self, platform) -> Module:
            m = Module()
            m.d.comb += [
                self.ready.eq(AnySeq(1)),
                self.slot.eq(AnySeq(self.config.store_bits)),
                self.secret_tags.eq(with_lane(self.read_slot, f.granule)),
            ]
            return m

    class MissModel(MissUnit):
        """Each line comes at any time, and in any order with others."""

        def elaborate(self, platform) -> Module:
            m = Module()
            config = self.config
            mshrs = range(config.mshrs)
            last_word = config.line_words - 1
            lines = [Signal(config.line_address_bits, name=f"line_{n}") for n in mshrs]
            ways = [Signal(config.way_bits, name=f"way_{n}") for n in mshrs]
            words = [Signal(config.word_index_bits, name=f"word_{n}") for n in mshrs]
            settled = Signal(config.mshrs)
            came = Signal(config.mshrs)
            done = Signal(config.mshrs)  # strobes
            history = [self.valid]
            for age in range(1, 4):
                before = Signal(config.mshrs, name=f"valid_{age}")
                m.d.sync += before.eq(history[-1])
                history.append(before)
            taken = Signal(config.mshr_bits)
            due = Signal(config.mshr_bits)
            lately = Cat(h.bit_select(taken, 1) for h in history).any()

            # Write-backs of the line that is followed.
            loading, loading_ours = Signal(), f.loading
            kept, next_kept = f.start(m, "kept", 4)
            m.d.comb += [f.kept.eq(kept), next_kept.eq(kept)]
            storage, next_storage = f.start(m, "storage", 4)
            m.d.comb += [f.storage.eq(storage), next_storage.eq(storage)]
            ack = f.pending & AnySeq(1)
            pending, next_pending = f.start(m, "pending", 1)
            m.d.comb += [
                f.pending.eq(pending),
                next_pending.eq((pending & ~ack) | (self.evict_done & loading_ours)),
            ]
            m.d.sync += [
                loading.eq((loading | self.evict_start) & ~self.evict_done),
            ]
            starts_ours = self.evict_start & (self.evict_line == f.line)
            with m.If(self.evict_start):
                m.d.sync += [loading_ours.eq(starts_ours), f.copied.eq(0)]
            with m.Elif(self.evict_done):
                m.d.sync += loading_ours.eq(0)
            with m.If(loading_ours & self.evict_write & (self.evict_word == f.index)):
                m.d.sync += f.copied.eq(1)
                m.d.comb += next_kept.eq(lane(self.secret_evict_tags, f.granule, 4))
            with m.If(ack):
                m.d.comb += next_storage.eq(kept)
            m.d.comb += [
                f.written_back.eq(ack),
                self.evict_ready.eq(AnySeq(1) & ~loading & ~f.pending),
                self.writes_idle.eq(~loading & ~f.pending & AnySeq(1)),
                Assert(~self.evict_start | self.evict_ready, "only if there is a buffer"),
                Assert(~(starts_ours & f.fetching), "a line is written back while it is fetched"),
            ]

            # MSHRs.
            allocated = Mux(self.allocate, 1 << taken, 0)
            fetched = f.tag
            ours = Cat(line == f.line for line in lines) & self.valid
            m.d.comb += [
                self.next.eq(taken),
                self.available.eq(AnySeq(1) & ~lately),
                f.kept_mshrs.eq((self.valid & self.filled).any()),
                f.fetching.eq((ours & ~self.filled).any()),
                Assert(~self.allocate | self.available, "an MSHR is allocated that is in use"),
                Assert((self.free & ~self.filled) == 0, "an MSHR is freed that is not filled"),
                Assert(
                    ~(self.allocate & (self.allocate_line == f.line)) | ~(ours & ~self.free).any(),
                    "a line is in two MSHRs",
                ),
                self.idle.eq(~self.valid.any() & ~loading & ~f.pending),
            ]
            m.d.sync += [
                taken.eq(taken + self.allocate),
                due.eq(due + self.settle),
                self.arrived.eq(done.any()),
                self.filled.eq((self.filled | done) & ~self.free),
                self.valid.eq((self.valid | allocated) & ~self.free),
            ]
            fetches = Signal(config.mshrs)
            line_busy = loading_ours | f.pending | starts_ours
            for n in mshrs:
                m.d.comb += fetches[n].eq(
                    self.valid[n] & ~came[n] & AnySeq(1) & ~(ours[n] & line_busy)
                )
                with m.If(allocated[n]):
                    m.d.sync += [
                        lines[n].eq(self.allocate_line),
                        settled[n].eq(0),
                        came[n].eq(0),
                        words[n].eq(0),
                    ]
                with m.If(fetches[n]):
                    m.d.sync += came[n].eq(1)
                    with m.If(ours[n]):
                        m.d.sync += fetched.eq(f.storage)
                with m.If(self.settle & (due == n)):
                    m.d.sync += [
                        settled[n].eq(1),
                        ways[n].eq(self.settle_way),
                    ]
            m.d.comb += f.fetches.eq((fetches & ours).any())

            groups = [Signal(name=f"group_{n}") for n in mshrs]
            for n in mshrs:
                m.d.sync += [
                    groups[n].eq((self.line == lines[n]) & self.valid[n]),
                    self.match[n].eq(groups[n]),
                ]

            for n in mshrs:
                with m.If(ours[n] & ~self.filled[n]):
                    m.d.comb += [
                        f.came.eq(came[n]),
                        f.way.eq(ways[n]),
                        f.filled.eq(settled[n] & came[n] & (words[n] > f.index)),
                    ]

            # Places.
            asking = Signal()
            homeless = (self.valid & ~settled).bit_select(due, 1)
            m.d.sync += asking.eq((asking | (homeless & AnySeq(1))) & ~self.settle)
            m.d.comb += [
                self.unsettled.eq(asking),
                self.unsettled_line.eq(Array(lines)[due]),
                self.urgent.eq(AnySeq(1)),
                Assert(~self.settle | asking, "a place for nothing"),
            ]
            for way in range(config.ways):
                m.d.comb += self.busy_ways[way].eq(
                    Cat(self.valid[n] & settled[n] & (ways[n] == way) for n in mshrs).any()
                )

            # Words for the array.
            number = Signal(config.mshr_bits)
            choice = Signal(config.mshr_bits)
            ready = self.valid & settled & came & ~self.filled & ~done
            word = Array(words)[number]
            m.d.comb += choice.eq(AnySeq(len(choice)))
            took = self.fill.valid & self.fill.ready
            with m.If(~self.fill.valid & ready.bit_select(choice, 1)):
                m.d.sync += [self.fill.valid.eq(AnySeq(1)), number.eq(choice)]
            last = took & (word == last_word)
            with m.If(took):
                m.d.sync += [self.fill.valid.eq(0), word.eq(word + 1)]
            m.d.comb += [
                self.fill.payload.index.eq(Cat(word, Array(ways)[number])),
                self.fill.payload.secret_tags.eq(
                    with_lane(
                        Mux(ours.bit_select(number, 1) & (word == f.index), fetched, AnySeq(4)),
                        f.granule,
                    )
                ),
            ]
            for n in mshrs:
                m.d.comb += done[n].eq((number == n) & last)
            return m

    class KeeperModel(Keeper):
        """Closes the door whenever it likes, and does one job after the other, of any kind."""

        def elaborate(self, platform) -> Module:
            m = Module()
            config = self.config
            code = directory_code(config)
            close, owns, way = Signal(), Signal(), Signal(config.way_bits)
            enter, touch, scrubs = Signal(config.ways), Signal(), Signal()
            entry_value = Signal(code.bits)
            word = Signal(config.word_index_bits)
            evict_word = Signal(config.word_index_bits)
            reading, issued = Signal(READ_LATENCY), Signal()
            steps = Signal(range(READ_LATENCY + 3))
            maintaining = Signal()
            value = Array(f.entries)[way]
            tag, valid = value[:-1], value[-1]
            all_lines = (self.maintain_kind == ProbeKind.CLEAN_ALL) | (
                self.maintain_kind == ProbeKind.CLEAN_INVALIDATE_ALL
            )
            drops = (self.maintain_kind == ProbeKind.CLEAN_INVALIDATE) | (
                self.maintain_kind == ProbeKind.CLEAN_INVALIDATE_ALL
            )
            m.d.comb += [
                self.close.eq(close),
                self.closes.eq(close),
                self.owns.eq(owns),
                self.enter.eq(enter),
                self.touch.eq(touch),
                self.keep_dirty.eq(scrubs),
                self.scrubbing.eq(scrubs),
                self.sweep.eq(0),
                self.ready.eq(1),
                self.entry.eq(code.encode(entry_value)),
                self.index.eq(Cat(word, way)),
                self.settle_way.eq(way),
                self.evict_line.eq(tag),
                self.evict_word.eq(evict_word),
            ]
            m.d.sync += [
                close.eq(self.closes),
                enter.eq(0),
                touch.eq(0),
                reading.eq(Cat(issued, reading)),
            ]
            goes = Signal()
            m.d.comb += goes.eq(AnySeq(1))
            with m.FSM() as fsm:
                m.d.comb += f.leaving.eq(
                    (fsm.ongoing("ENTER") | fsm.ongoing("LEAVE")) & (value == Cat(f.line, 1))
                )
                with m.State("OPEN"):
                    m.d.comb += self.idle.eq(~self.unsettled & ~self.maintain)
                    with m.If(goes):
                        m.d.comb += self.closes.eq(1)
                        m.next = "CLOSE"
                with m.State("CLOSE"):
                    m.next = "CLOSE_2"
                with m.State("CLOSE_2"):
                    m.next = "WAIT"
                with m.State("WAIT"):
                    m.d.sync += [
                        owns.eq(self.quiet),
                        scrubs.eq(0),
                        steps.eq(0),
                        word.eq(0),
                        evict_word.eq(0),
                        way.eq(AnySeq(config.way_bits)),
                        maintaining.eq(0),
                    ]
                    with m.If(self.quiet):
                        with m.If(goes):
                            m.next = "LOOK"
                        with m.Else():
                            m.d.comb += self.closes.eq(0)
                            m.d.sync += owns.eq(0)
                            m.next = "OPEN"
                with m.State("LOOK"):
                    # The dirty bits are there in the next cycle.
                    m.next = "ACT"
                with m.State("ACT"):
                    line_dirty = valid & self.dirty.bit_select(way, 1)
                    with m.If(self.unsettled & goes):
                        m.d.sync += entry_value.eq(Cat(self.unsettled_line, 1))
                        with m.If(self.busy_ways.bit_select(way, 1)):
                            m.next = "AGAIN"
                        with m.Elif(line_dirty):
                            m.next = "EVICT"
                        with m.Else():
                            m.next = "ENTER"
                    with m.Elif(self.maintain & AnySeq(1)):
                        m.d.sync += [
                            maintaining.eq(1),
                            entry_value.eq(Mux(drops & AnySeq(1), 0, value)),
                        ]
                        with m.If(line_dirty & AnySeq(1)):
                            m.next = "EVICT"
                        with m.Elif(valid & ~line_dirty):
                            m.next = "LEAVE"
                        with m.Else():
                            m.next = "MAINTAINED"
                    with m.Else():
                        m.d.sync += [scrubs.eq(1), entry_value.eq(value)]
                        m.d.sync += word.eq(AnySeq(config.word_index_bits))
                        m.next = "SCRUB"
                with m.State("ENTER"):
                    m.d.sync += [enter.eq(1 << way), touch.eq(1)]
                    m.d.comb += self.settle.eq(1)
                    m.next = "AGAIN"
                with m.State("EVICT"):
                    m.d.comb += self.evict_start.eq(self.evict_ready)
                    with m.If(self.evict_ready):
                        m.next = "EVICT_READ"
                with m.State("EVICT_READ"):
                    m.d.comb += issued.eq(steps < config.line_words)
                    m.d.sync += word.eq(word + issued)
                    with m.If(issued):
                        m.d.sync += steps.eq(steps + 1)
                    m.d.comb += self.evict_write.eq(reading[-1])
                    with m.If(self.evict_write):
                        m.d.sync += evict_word.eq(evict_word + 1)
                    with m.If(self.evict_write & (evict_word == config.line_words - 1)):
                        m.d.comb += self.evict_done.eq(1)
                        with m.If(maintaining):
                            m.next = "LEAVE"
                        with m.Else():
                            m.next = "ENTER"
                with m.State("LEAVE"):
                    m.d.sync += enter.eq(1 << way)
                    m.next = "AGAIN"
                with m.State("MAINTAINED"):
                    # The line that is followed is as maintenance leaves it.
                    in_way = Cat(e == Cat(f.line, 1) for e in f.entries)
                    meant = all_lines | (self.maintain_line == f.line)
                    left = meant & in_way.any() & (drops | (in_way & self.dirty).any())
                    with m.If(self.writes_idle & ~left):
                        m.d.comb += self.maintained.eq(1)
                    m.next = "AGAIN"
                with m.State("SCRUB"):
                    m.d.sync += steps.eq(steps + 1)
                    # What was on its way to the array when the step began is there by the read.
                    with m.If(steps == READ_LATENCY + 2):
                        m.d.comb += [self.rewrite.eq(1), self.scrubbed.eq(1)]
                        m.d.sync += enter.eq(1 << way)
                        m.next = "AGAIN"
                with m.State("AGAIN"):
                    m.next = "WAIT"
            return m

    return {
        "TagArray": ArrayModel,
        "StoreBuffer": StoreModel,
        "MissUnit": MissModel,
        "Keeper": KeeperModel,
    }

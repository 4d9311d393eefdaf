"""Formal spec of the keeper: it works while the arrays stand still, and loses no line.

Directory and dirty bits are modelled outside. While the keeper does not own the arrays they become
anything, so each of its jobs begins with any content, flipped bits included.
"""

from amaranth.asserts import AnyConst, AnySeq
from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from amaranth.utils import exact_log2
from emte.rtl.codes import DirectoryCode
from emte.rtl.config import TagConfig
from emte.rtl.keeper import READ_LATENCY, Keeper
from emte.rtl.layouts import ProbeKind
from unit_spec import UnitSpec

__all__ = ["KeeperSpec"]


class KeeperSpec(UnitSpec):
    """What the keeper does to the arrays, and what it tells the miss unit.

    Parameters
    ----------
    config : :class:`TagConfig`
        Geometry.
    unit : type[:class:`amaranth.lib.wiring.Component`]
        What is to be held to it, instead of the keeper of that geometry.

    What "always" is in the name of is proved for all time.

    Assumed of the cache: probes come into the stages no later than two cycles after the door was
    open last, and ``quiet`` tells of them; requests stay until they are served. Assumed of the miss
    unit: a way is left for a line that wants one; there is no buffer while a line is loaded.
    """

    def __init__(self, config: TagConfig, *, unit: type[wiring.Component] = Keeper) -> None:
        self.config = config
        self.unit = unit(config)
        # Inputs alone, for Yosys draws no waveform with a port of no bits.
        members = self.unit.signature.members.items()
        wiring.Component.__init__(
            self, {name: port for name, port in members if port.flow == In and name != "entries"}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        for name in self.signature.members:
            m.d.comb += getattr(unit, name).eq(getattr(self, name))
        self.specify(m)
        return m

    def specify(self, m: Module) -> None:
        unit = self.unit
        config = self.config
        code = DirectoryCode(config.directory_tag_bits + 1)
        ways = range(config.ways)

        def of_set(line: Value) -> Value:
            return line[: config.set_bits]

        def of_tag(line: Value) -> Value:
            return line[config.set_bits :]

        def pick(items: list, number: Value) -> Value:
            return Cat(items).word_select(number, len(Value.cast(items[0])))

        # The scrubber's clock may have gone for any time.
        if isinstance(unit, Keeper):
            timer = self.see(m, "timer", exact_log2(config.scrub_period) + 1, free=True)
            started = Signal()
            m.d.sync += started.eq(1)
            m.d.comb += Assume(started | ~timer[-1], "the clock is within its period")

        # The stages.
        used, used_before, close_1, close_2 = Signal(), Signal(), Signal(init=1), Signal(init=1)
        m.d.sync += [used_before.eq(used), close_1.eq(unit.close), close_2.eq(close_1)]
        m.d.comb += [
            used.eq(AnySeq(1)),
            Assume(~used | used_before | ~close_2, "probes come through an open door"),
            Assume(unit.quiet == ~used_before, "the stages are quiet when nothing is in them"),
        ]

        # The arrays.
        directory = [
            [Signal(code.width, name=f"entry_{s}_{w}") for w in ways] for s in range(config.sets)
        ]
        dirty = [Signal(config.ways, name=f"dirty_{s}") for s in range(config.sets)]
        read = Signal(code.width * config.ways)
        shown = Signal.like(read)
        set_before = Signal(config.set_bits)
        index = [unit.index]
        for n in range(READ_LATENCY):
            before = Signal(config.index_bits, name=f"index_{n + 1}")
            m.d.sync += before.eq(index[-1])
            index.append(before)
        m.d.sync += [
            read.eq(pick([Cat(row) for row in directory], unit.set)),
            shown.eq(read),
            set_before.eq(unit.set),
        ]
        for number, (row, flags) in enumerate(zip(directory, dirty, strict=True)):
            here = unit.set == number
            for way in ways:
                with m.If(~unit.owns):
                    m.d.sync += [row[way].eq(AnySeq(code.width)), flags[way].eq(AnySeq(1))]
                with m.Elif(unit.enter[way] & here):
                    m.d.sync += [
                        row[way].eq(unit.entry),
                        flags[way].eq(flags[way] & unit.keep_dirty),
                    ]
        m.d.comb += [
            Value.cast(unit.entries).eq(shown),
            Assume(unit.dirty == pick(dirty, set_before), "and so do the dirty bits"),
        ]
        decoded = [[code.correct(entry) for entry in row] for row in directory]
        tags = [[Value.cast(value)[:-1] for value, _, _ in row] for row in decoded]
        lost = [Cat(lost for _, _, lost in row) for row in decoded]
        valid = [Cat(Value.cast(value)[-1] & ~lost for value, _, lost in row) for row in decoded]

        # Requests.
        def stays(name: str, served: Value, *fields: str) -> None:
            """A request stays, unchanged, until it is served; then it falls."""
            request = getattr(unit, name)
            values = Cat(Value.cast(getattr(unit, field)) for field in fields)
            asked, was = Signal(name=f"{name}_asked"), Signal(len(values), name=f"{name}_was")
            fell = Signal(name=f"{name}_fell")
            m.d.sync += [asked.eq(request & ~served), fell.eq(served), was.eq(values)]
            m.d.comb += [
                Assume(~asked | (request & (values == was)), f"{name} stays until it is served"),
                Assume(~fell | ~request, f"{name} falls when it is served"),
                Assert(~served | request, f"nothing was asked for at {name}"),
            ]

        stays("unsettled", unit.settle, "unsettled_line", "busy_ways")
        stays("broken", unit.mended, "broken_line", "broken_way")
        stays("maintain", unit.maintained, "maintain_kind", "maintain_line")
        kind = unit.maintain_kind
        all_lines = (kind == ProbeKind.CLEAN_ALL) | (kind == ProbeKind.CLEAN_INVALIDATE_ALL)
        drops = (kind == ProbeKind.CLEAN_INVALIDATE) | (kind == ProbeKind.CLEAN_INVALIDATE_ALL)
        m.d.comb += [
            Assume(~unit.busy_ways.all(), "a way is left"),
            Assume(
                (kind.as_value() >= ProbeKind.CLEAN.value) & (kind != ProbeKind.NONE),
                "maintenance of some kind",
            ),
        ]
        victim = Signal(config.way_bits)
        m.d.sync += victim.eq(unit.tree_victim)
        m.d.comb += Assume(~unit.owns | (unit.tree_victim == victim), "trees stand still")

        # The write-back buffer.
        loading = Signal()
        writing = Signal()
        words = Signal(config.line_words)
        source = Signal(config.set_bits + config.way_bits)
        source_line = Signal(config.line_address_bits)
        saved = Signal()
        starts = unit.evict_start & ~unit.evict_zero
        m.d.sync += [
            loading.eq((loading | starts) & ~unit.evict_done),
            writing.eq(unit.evict_start | loading | (writing & ~AnySeq(1))),
            saved.eq((unit.evict_done | saved) & unit.owns & ~unit.evict_start & ~unit.enter.any()),
        ]
        with m.If(starts):
            m.d.sync += [
                words.eq(0),
                source.eq(unit.index[config.word_index_bits :]),
                source_line.eq(unit.evict_line),
            ]
        with m.If(unit.evict_write):
            m.d.sync += words.bit_select(unit.evict_word, 1).eq(1)
        all_words = words | Mux(unit.evict_write, 1 << unit.evict_word, 0)
        m.d.comb += [
            Assume(~unit.evict_ready | ~loading, "no buffer while a line is loaded"),
            Assume(~writing | ~unit.writes_idle, "what is to be written is not idle"),
            Assert(
                ~unit.evict_start | unit.evict_ready, "always: a line for which there is no buffer"
            ),
            Assert(~unit.evict_write | loading, "a word of no line"),
            Assert(~unit.evict_done | (loading & all_words.all()), "words are missing"),
            Assert(
                ~unit.evict_write | (index[READ_LATENCY] == Cat(unit.evict_word, source)),
                "a word from another place",
            ),
        ]

        # It works while the arrays stand still.
        works = (
            unit.enter.any() | unit.rewrite | unit.evict_write | unit.settle | unit.mended | starts
        )
        m.d.comb += [
            Assert(~unit.owns | ~used, "always: the arrays are taken while they are in use"),
            Assert(~unit.owns | unit.close, "always: the door is open, and the arrays are taken"),
            Assert(~works | unit.owns, "always: works without the arrays"),
        ]

        # A way for a line.
        chosen = unit.settle_way
        here = of_set(unit.unsettled_line)
        places = pick(valid, here)
        good = unit.settle & ~unit.settle_poisoned
        free = ~places & ~unit.busy_ways
        settled, settled_line, settled_way = (
            Signal(),
            Signal.like(unit.unsettled_line),
            Signal(config.way_bits),
        )
        m.d.sync += [settled.eq(good), settled_line.eq(unit.unsettled_line), settled_way.eq(chosen)]
        m.d.comb += [
            Assert(~good | ~unit.busy_ways.bit_select(chosen, 1), "a busy way is chosen"),
            Assert(
                ~good | ~free.any() | free.bit_select(chosen, 1),
                "a line leaves, and there is a way with none",
            ),
            Assert(
                ~good | free.any() | unit.busy_ways.bit_select(victim, 1) | (chosen == victim),
                "another way than that at which the tree points",
            ),
            Assert(
                ~unit.settle | (unit.settle_poisoned == pick(lost, here).any()),
                "poisoned, and no entry is damaged, or not, and one is",
            ),
            Assert(
                ~settled
                | (
                    (unit.enter == 1 << settled_way)
                    & (unit.set == of_set(settled_line))
                    & (unit.entry == code.encode(Cat(of_tag(settled_line), 1)))
                    & unit.touch
                    & ~unit.keep_dirty
                ),
                "the line is not entered",
            ),
        ]

        # What else is entered: an entry as it should be, or none.
        dropping = Signal()
        mended = Signal()
        mended_place = Signal(config.set_bits + config.way_bits)
        m.d.sync += [
            mended.eq(unit.mended),
            mended_place.eq(Cat(of_set(unit.broken_line), unit.broken_way)),
        ]
        m.d.comb += dropping.eq(unit.maintain & drops)
        for way in ways:
            entered = unit.ready & unit.enter[way]
            broken = mended & (mended_place == Cat(unit.set, way)[: len(mended_place)])
            value = pick([row[way] for row in directory], unit.set)
            corrected, _, damaged = code.correct(value)
            corrected = Value.cast(corrected)
            line = Cat(unit.set, corrected[:-1])
            of_line = corrected[-1] & ((line == unit.maintain_line) | all_lines)
            is_dirty = pick(dirty, unit.set)[way]
            m.d.comb += [
                Assert(
                    ~entered
                    | settled
                    | broken
                    | (~damaged & (unit.entry == code.encode(corrected)))
                    | (~damaged & dropping & of_line & (unit.entry == 0)),
                    f"way {way} gets another entry",
                ),
                Assert(
                    ~entered
                    | unit.keep_dirty
                    | broken
                    | ~corrected[-1]
                    | damaged
                    | ~is_dirty
                    | (
                        saved
                        & (source == Cat(unit.set, way)[: len(source)])
                        & (source_line == line)
                    ),
                    f"way {way} is clean, and its line is not written back",
                ),
                Assert(
                    ~(mended & ~entered & (mended_place[config.set_bits :] == way)),
                    f"always: way {way} keeps a broken line",
                ),
            ]

        # Maintenance.
        for number in range(config.sets):
            for way in ways:
                line = Cat(Value.cast(number)[: config.set_bits], tags[number][way])
                meant = valid[number][way] & (all_lines | (line == unit.maintain_line))
                m.d.comb += Assert(
                    ~(unit.maintained & meant) | ~(drops | dirty[number][way]),
                    f"maintenance is done, and way {way} of set {number} is as before",
                )
        m.d.comb += Assert(
            ~unit.maintained | unit.writes_idle,
            "always: maintenance is done, and storage has not all",
        )

        # After reset.
        ready_before = Signal()
        followed = Signal(config.line_address_bits)
        zeroed = Signal()
        size = Signal.like(unit.storage_bytes)
        vouched = Signal()
        m.d.sync += ready_before.eq(unit.ready)
        with m.If(unit.evict_start & unit.evict_zero & (unit.evict_line == followed)):
            m.d.sync += zeroed.eq(1)
        lines = size[config.line_bytes.bit_length() - 1 :]
        m.d.comb += [
            *(signal.eq(AnyConst(len(signal))) for signal in (followed, size, vouched)),
            Assume(unit.storage_bytes == size, "the size of storage stays"),
            Assume(unit.storage_zeroed == vouched, "and what the firmware says of it"),
            Assume(lines <= 1 << config.line_address_bits, "no larger than there are lines"),
            Assert(
                unit.ready | ~unit.owns | unit.close,
                "always: the door is open before the keeper is ready",
            ),
            Assert(
                ~(unit.ready & ~ready_before) | vouched | (zeroed == (followed < lines)),
                "always: ready, and a line is not zeroed, or too many are",
            ),
            Assert(
                ~(unit.ready & ~ready_before) | ~Cat(directory).any(),
                "always: ready, and the directory is not swept",
            ),
            Assert(
                ~(unit.evict_zero & unit.evict_start & unit.ready), "always: zeros when it is ready"
            ),
        ]

        written, written_back = Signal(), Signal()
        m.d.sync += [
            written.eq(written | (unit.evict_done & unit.unsettled)),
            written_back.eq((written_back | unit.evict_done) & unit.maintain),
        ]
        m.d.comb += [
            Cover(good & written & unit.unsettled, "a line gets the way of a dirty one"),
            Cover(unit.settle & unit.settle_poisoned, "an MSHR is poisoned"),
            Cover(good & unit.busy_ways.bit_select(victim, 1) & ~free.any(), "the tree's is busy"),
            Cover(unit.mended, "a broken line is dropped"),
            Cover(unit.maintained & dropping & written_back, "a dirty line is dropped"),
            Cover(unit.maintained & all_lines, "all lines are visited"),
            Cover(unit.ready & ~ready_before & ~vouched & zeroed, "storage is zeroed"),
            Cover(unit.rewrite, "a word is scrubbed"),
        ]

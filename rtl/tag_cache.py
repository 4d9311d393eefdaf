"""The tag-storage cache: lookup pipeline and its control."""

from amaranth.hdl import Assert, Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .config import TagConfig
from .layouts import ProbeKind, memory_signature, probe_layout, tag_word_layout
from .miss_unit import MissKind, MissUnit
from .stream_util import PayloadRegister
from .tag_array import TagArray

__all__ = ["TagCache"]


def _encode(flags: Value) -> Value:
    """Number of the flag that is set; at most one is."""
    width = (len(flags) - 1).bit_length()
    return Cat(
        Cat(flag for number, flag in enumerate(flags) if number >> bit & 1).any()
        for bit in range(width)
    )


def _tree_victim(tree: Value, way_bits: int) -> Value:
    """The way that the pseudo-LRU tree points at.

    Node 1 is the root and the children of node *n* are *2n* and *2n + 1*; bit *n - 1* of ``tree``
    tells which of them to follow. The path, read from the root, is the way's number.
    """
    path: list[Value] = []
    for level in range(way_bits):
        nodes = tree[2**level - 1 : 2 ** (level + 1) - 1]
        path.insert(0, nodes.bit_select(Cat(path), 1) if path else nodes[0])
    return Cat(path)


def _tree_touched(tree: Value, way: Value, way_bits: int) -> Value:
    """The tree after a use of ``way``: each node on the path points away from it."""
    nodes = []
    for level in range(way_bits):
        direction = way[way_bits - 1 - level]
        prefix = way[way_bits - level :]
        for node in range(2**level):
            old = tree[2**level - 1 + node]
            nodes.append(Mux(prefix == node, ~direction, old) if level else ~direction)
    return Cat(nodes)


class TagCache(wiring.Component):
    """Set-associative, write-back, write-allocate cache of tag words; tree pseudo-LRU.

    A probe that hits appears at ``tag_word`` two cycles after its transfer at the earliest; probes
    are answered in order, one per cycle. A miss stops the lookups behind it until its line is
    there. A tag store writes its granules in the cycle in which the next probe's tags are read, so
    that nothing needs to be forwarded.

    What the cache does, and when, follows from the probes' kinds, words and masks and from the
    memory port's handshakes, never from tags.

    After reset the directory is swept, which takes ``config.sets`` cycles, and then all of tag
    storage is zeroed, line after line, unless ``storage_zeroed`` is set. No probe is taken before
    ``ready``.

    Members
    -------
    probe : ``In(stream.Signature(probe_layout(config)))``
        Tag words to be looked up, and maintenance.
    tag_word : ``Out(stream.Signature(tag_word_layout(config)))``
        Each probe, in order, with its tag word. ``abort`` is set if that could not be had; a STORE
        with ``abort`` did not happen. Maintenance is answered when storage has all that was written
        back, and aborts if ``storage_error`` is set.
    storage_base, storage_bytes, storage_zeroed : ``In``
        The tag-storage map, for the initialiser from the end of reset on. It changes only while
        nothing is in the cache; then the new map's storage is the firmware's to zero.
    memory : ``Out(memory_signature(config))``
        Tag storage.
    storage_error : ``Out(1)``
        Sticky: a write to tag storage failed. From then on CHECK and LOAD probes abort.
    ready : ``Out(1)``
        The directory is swept, and storage holds no tags of before. Stays until reset.
    busy : ``Out(1)``
        The cache is not ready, waits for storage, or does maintenance.
    idle : ``Out(1)``
        No probe is inside, and nothing is outstanding at ``memory``.
    """

    probe: stream.Interface
    tag_word: stream.Interface
    storage_base: Signal
    storage_bytes: Signal
    storage_zeroed: Signal
    memory: wiring.PureInterface
    storage_error: Signal
    ready: Signal
    busy: Signal
    idle: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "probe": In(stream.Signature(probe_layout(config))),
                "tag_word": Out(stream.Signature(tag_word_layout(config))),
                "storage_base": In(config.axi_address_bits),
                "storage_bytes": In(config.memory_bits - 4),
                "storage_zeroed": In(1),
                "memory": Out(memory_signature(config)),
                "storage_error": Out(1),
                "ready": Out(1),
                "busy": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        all_ways = (1 << config.ways) - 1

        m.submodules.array = array = TagArray(config)
        m.submodules.miss_unit = miss_unit = MissUnit(config)
        wiring.connect(m, miss_unit.memory, wiring.flipped(self.memory))
        m.d.comb += [
            miss_unit.storage_base.eq(self.storage_base),
            miss_unit.storage_bytes.eq(self.storage_bytes),
            self.storage_error.eq(miss_unit.storage_error),
        ]

        # Stage 1: the directory has answered for the probe in `s1`.
        s1_register = PayloadRegister(probe_layout(config), name="s1")
        s1 = Signal(probe_layout(config))
        s1_valid = Signal()
        s1_done = Signal()  # maintenance is finished, or the probe aborts
        s1_abort = Signal()
        s1_complete = Signal()  # the probe leaves if there is room
        s1_leaves = Signal()
        s1_word = s1.word[: config.word_index_bits]
        s1_line = s1.word[config.word_index_bits :]
        s1_set = s1_line[: config.set_bits]
        s1_tag = s1_line[config.set_bits :]
        hit_ways = Signal(config.ways)
        valid_ways = Signal(config.ways)
        hit_way = Signal(config.way_bits)
        m.d.comb += s1_register.drive(s1)
        m.d.comb += hit_way.eq(_encode(hit_ways))
        for way in range(config.ways):
            entry = array.directory[way]
            m.d.comb += [
                valid_ways[way].eq(entry.valid),
                hit_ways[way].eq(entry.valid & (entry.tag == s1_tag)),
            ]
        maintenance = ~(
            (s1.kind == ProbeKind.CHECK)
            | (s1.kind == ProbeKind.LOAD)
            | (s1.kind == ProbeKind.STORE)
        )
        maintain_all = (s1.kind == ProbeKind.CLEAN_ALL) | (
            s1.kind == ProbeKind.CLEAN_INVALIDATE_ALL
        )
        invalidate = (s1.kind == ProbeKind.CLEAN_INVALIDATE) | (
            s1.kind == ProbeKind.CLEAN_INVALIDATE_ALL
        )

        # The way that a miss replaces: the lowest free one, else the tree's choice.
        victim_way = Signal(config.way_bits)
        m.d.comb += victim_way.eq(_tree_victim(array.replacement, config.way_bits))
        for way in reversed(range(config.ways)):
            with m.If(~valid_ways[way]):
                m.d.comb += victim_way.eq(way)
        fill_way = Signal(config.way_bits)

        # Stage 2: the tags of the probe in `s2` are at the array's output.
        s2 = PayloadRegister(probe_layout(config), name="s2")
        s2_valid = Signal()
        s2_abort = Signal()
        s2_room = Signal()
        m.d.comb += [
            s2_room.eq(~s2_valid | self.tag_word.ready),
            self.tag_word.valid.eq(s2_valid),
            self.tag_word.payload.secret_word.eq(array.tags),
            self.tag_word.payload.abort.eq(s2_abort),
            *s2.drive(self.tag_word.payload.probe),
            s1_leaves.eq(s1_complete & s2_room),
        ]
        with m.If(s2_room):
            m.d.sync += [s2_valid.eq(s1_complete), s2_abort.eq(s1_abort), *s2.load(s1)]

        # Between the two: tags are read or written, and the state of the set is updated.
        looked_up = s1_leaves & ~s1_done
        m.d.comb += [
            array.directory_set.eq(s1_set),
            array.state_set.eq(s1_set),
            array.tags_way.eq(hit_way),
            array.tags_set.eq(s1_set),
            array.tags_word.eq(s1_word),
            array.tags_value.eq(s1.secret_tags),
            array.replacement_value.eq(_tree_touched(array.replacement, hit_way, config.way_bits)),
            array.replacement_write.eq(looked_up),
        ]
        with m.If(looked_up):
            with m.If(s1.kind == ProbeKind.STORE):
                m.d.comb += [
                    array.tags_write.eq(s1.mask),
                    array.dirty_write.eq(hit_ways),
                    array.dirty_value.eq(1),
                ]
            with m.Else():
                m.d.comb += array.tags_read.eq(1)

        # A probe enters stage 1 when that is free. While it stays there its set is read in every
        # cycle, so that the directory's answer is never older than one cycle.
        accept = Signal()  # lookups are going on
        m.d.comb += self.probe.ready.eq(accept & (~s1_valid | s1_leaves))
        with m.If(self.probe.valid & self.probe.ready):
            m.d.comb += array.directory_set.eq(
                self.probe.payload.word[config.word_index_bits :][: config.set_bits]
            )
            m.d.sync += s1_register.load(self.probe.payload)
        with m.If(accept & (~s1_valid | s1_leaves)):
            m.d.sync += [s1_valid.eq(self.probe.valid), s1_done.eq(0), s1_abort.eq(0)]

        # A walk visits lines for maintenance: one, or all. The sweep after reset uses its counter.
        walk_set = Signal(config.set_bits)
        walk_way = Signal(config.way_bits)
        walking = Signal()
        walk_entry = array.directory[walk_way]
        walk_dirty = array.dirty.bit_select(walk_way, 1) & walk_entry.valid
        last_set = walk_set == config.sets - 1
        with m.If(walking):
            m.d.comb += [array.directory_set.eq(walk_set), array.state_set.eq(walk_set)]

        # The miss unit works on the row of the line that is filled or written back.
        request = miss_unit.request.payload
        m.d.comb += [
            request.line.eq(s1_line),
            request.victim_line.eq(
                Mux(
                    walking,
                    Cat(walk_set, walk_entry.tag),
                    Cat(s1_set, array.directory[victim_way].tag),
                )
            ),
            request.victim_dirty.eq(
                valid_ways.bit_select(victim_way, 1) & array.dirty.bit_select(victim_way, 1)
            ),
            miss_unit.tags.eq(array.tags),
            array.directory_write_set.eq(Mux(walking, walk_set, s1_set)),
        ]
        serving = Signal()  # the miss unit has the array
        with m.If(serving):
            m.d.comb += [
                array.tags_way.eq(Mux(walking, walk_way, fill_way)),
                array.tags_set.eq(Mux(walking, walk_set, s1_set)),
                array.tags_word.eq(miss_unit.word),
                array.tags_read.eq(miss_unit.tags_read),
                array.tags_write.eq(miss_unit.tags_write.replicate(config.word_granules)),
                array.tags_value.eq(miss_unit.tags_value),
            ]

        with m.FSM(init="SWEEP") as fsm:
            with m.State("SWEEP"):
                m.d.comb += [
                    walking.eq(1),
                    array.directory_write.eq(all_ways),
                    array.dirty_write.eq(all_ways),
                    array.replacement_write.eq(1),
                    array.replacement_value.eq(0),
                ]
                m.d.sync += walk_set.eq(walk_set + 1)
                with m.If(last_set & self.storage_zeroed):
                    m.next = "LOOKUP"
                with m.Elif(last_set):
                    m.next = "INITIALISE"

            with m.State("INITIALISE"):
                m.d.comb += [
                    request.kind.eq(MissKind.INITIALISE),
                    miss_unit.request.valid.eq(1),
                ]
                with m.If(miss_unit.request.ready):
                    m.next = "INITIALISING"

            with m.State("INITIALISING"):
                with m.If(miss_unit.done):
                    m.next = "LOOKUP"

            with m.State("LOOKUP"):
                m.d.comb += accept.eq(1)
                m.d.sync += [walk_set.eq(0), walk_way.eq(0)]
                with m.If(s1_valid & s1_done):
                    m.d.comb += s1_complete.eq(1)
                with m.Elif(s1_valid & maintenance & ~miss_unit.idle):
                    pass  # what was evicted before must be in storage too
                with m.Elif(s1_valid & maintenance):
                    with m.If(maintain_all):
                        m.next = "WALK"
                    with m.Elif(hit_ways.any()):
                        m.d.sync += [walk_set.eq(s1_set), walk_way.eq(hit_way)]
                        m.next = "WALK"
                    with m.Else():
                        m.d.sync += [s1_done.eq(1), s1_abort.eq(self.storage_error)]
                with m.Elif(s1_valid & self.storage_error & (s1.kind != ProbeKind.STORE)):
                    m.d.sync += [s1_done.eq(1), s1_abort.eq(1)]
                with m.Elif(s1_valid & hit_ways.any()):
                    m.d.comb += s1_complete.eq(1)
                with m.Elif(s1_valid):
                    m.next = "MISS"

            with m.State("MISS"):
                # The array's output belongs to stage 2 until that is empty. The victim's entry
                # goes first: if the refill fails, nothing is left of either line.
                m.d.comb += miss_unit.request.valid.eq(~s2_valid)
                m.d.sync += fill_way.eq(victim_way)
                with m.If(~s2_valid & miss_unit.request.ready):
                    m.d.comb += array.directory_write.eq(1 << victim_way)
                    m.next = "REFILL"

            with m.State("REFILL"):
                m.d.comb += serving.eq(1)
                with m.If(miss_unit.done):
                    with m.If(miss_unit.failed):
                        m.d.sync += [s1_done.eq(1), s1_abort.eq(1)]
                    with m.Else():
                        m.d.comb += [
                            array.directory_write.eq(1 << fill_way),
                            array.directory_write_entry.tag.eq(s1_tag),
                            array.directory_write_entry.valid.eq(1),
                            array.dirty_write.eq(1 << fill_way),
                        ]
                    m.next = "REREAD"

            with m.State("REREAD"):
                # The directory answers with what was written in the last cycle.
                m.next = "LOOKUP"

            with m.State("WALK"):
                m.d.comb += walking.eq(1)
                m.next = "VISIT"

            with m.State("VISIT"):
                m.d.comb += [walking.eq(1), request.kind.eq(MissKind.CLEAN)]
                with m.If(walk_dirty):
                    m.d.comb += miss_unit.request.valid.eq(~s2_valid)
                    with m.If(~s2_valid & miss_unit.request.ready):
                        m.next = "CLEAN"
                with m.Elif(maintain_all & (walk_way != config.ways - 1)):
                    m.d.sync += walk_way.eq(walk_way + 1)
                with m.Else():
                    with m.If(invalidate):
                        m.d.comb += array.directory_write.eq(
                            Mux(maintain_all, all_ways, 1 << walk_way)
                        )
                    m.d.sync += [walk_way.eq(0), walk_set.eq(walk_set + 1)]
                    with m.If(maintain_all & ~last_set):
                        m.next = "WALK"
                    with m.Else():
                        m.d.sync += [s1_done.eq(1), s1_abort.eq(self.storage_error)]
                        m.next = "REREAD"

            with m.State("CLEAN"):
                m.d.comb += [walking.eq(1), serving.eq(1)]
                with m.If(miss_unit.done):
                    m.d.comb += array.dirty_write.eq(1 << walk_way)
                    m.next = "VISIT"

        m.d.comb += [
            self.ready.eq(
                ~fsm.ongoing("SWEEP") & ~fsm.ongoing("INITIALISE") & ~fsm.ongoing("INITIALISING")
            ),
            self.busy.eq(~fsm.ongoing("LOOKUP")),
            self.idle.eq(fsm.ongoing("LOOKUP") & ~s1_valid & ~s2_valid & miss_unit.idle),
        ]

        # A line is in one way at most.
        m.d.sync += Assert(
            ~(s1_valid & fsm.ongoing("LOOKUP")) | ((hit_ways & (hit_ways - 1)) == 0),
            "a line is in two ways",
        )
        return m

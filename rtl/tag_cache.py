"""The tag-storage cache: a lookup pipeline that never stops."""

from amaranth.hdl import Assert, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .codes import DirectoryCode, granule_code
from .config import TagConfig
from .keeper import Keeper, flip_layout
from .layouts import ProbeKind, Refusal, detail_layout, memory_signature, ticket_layout
from .miss_unit import MissUnit
from .store_buffer import StoreBuffer
from .tag_array import TagArray
from .waiting_list import WaitingList

__all__ = ["TagCache"]

NEIGHBOURS = 3
"""Probes behind one that waits which cannot see its MSHR yet."""


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


def _tree_touched(tree: Value, ways: Value) -> Value:
    """The tree after a use of the one of ``ways`` that is set: its path points away from it."""
    count = len(ways)
    nodes: list[Value] = []
    half = count // 2
    while half:
        for first in range(0, count, 2 * half):
            lower, upper = ways[first : first + half], ways[first + half : first + 2 * half]
            nodes.append((tree[len(nodes)] | lower.any()) & ~upper.any())
        half //= 2
    return Cat(nodes)


def _groups(a: Value, b: Value, size: int = 8) -> list[Value]:
    """Whether two values are equal, a piece at a time: a piece takes two levels of LUTs."""
    return [a[at : at + size] == b[at : at + size] for at in range(0, len(a), size)]


class TagCache(wiring.Component):
    """Set-associative, write-back, write-allocate cache of tag words; tree pseudo-LRU.

    A probe that finds its line is at ``check`` six cycles after its number was at ``word``. One
    that does not goes onto the waiting list, and comes there after its line. Nothing is refused: a
    word may come in every cycle but the second one after ``pause``.

    What the cache does, and when, follows from the probes' kinds, words and masks and from the
    memory port's handshakes, never from tags.

    After reset the directory is swept, which takes ``config.sets`` cycles, and then all of tag
    storage is zeroed, line after line, unless ``storage_zeroed`` is set. Up to then ``pause`` is
    set.

    Members
    -------
    word_valid : ``In(1)``, word : ``In(config.word_address_bits)``, again : ``In(1)``
        A probe; ``again`` tells that the next cycle brings another one.
    detail : ``In(detail_layout(config))``
        What it wants; one cycle later.
    pause : ``Out(1)``
        The door admits nothing in the next cycle, so that in the one after no word comes.
    store_ready, store_slot, store, secret_store_tags
        The store buffer, see :class:`StoreBuffer`: tags come with the admission of a tag store.
    room : ``In(1)``
        Verdicts have room for what is replayed.
    check_valid, check_detail, check_refusal, secret_codes : ``Out``
        For :class:`TagCheck`: codes of the 16 granules, each 8 bits.
    secret_corrected : ``In(64)``, secret_damaged : ``In(1)``, secret_errors : ``In(1)``
        From :class:`TagCheck`, one cycle later.
    secret_lost : ``Out(1)``
        Tags with two flipped bits were written back; sticky.
    waiting_valid : ``Out(1)``, waiting : ``Out(ticket_layout(config))``
        Ticket of the probe that waits longest.
    storage_base, storage_bytes, storage_zeroed : ``In``
        The tag-storage map, for the initialiser from the end of reset on. It changes only while
        nothing is in the cache; then the new map's storage is the firmware's to zero.
    memory : ``Out(memory_signature(config))``
        Tag storage.
    storage_error : ``Out(1)``
        Sticky: a write to tag storage failed. From then on CHECK and LOAD probes abort.
    secret_corrections : ``Out(16)``
        Words in which the scrubber, or a write-back, corrected a tag; stays at its maximum.
    flips : ``In(stream.Signature(flip_layout(config)))``
        Flips stored bits, for tests; not there unless ``config.injection``.
    ready : ``Out(1)``
        The directory is swept, and storage holds no tags of before. Stays until reset.
    busy : ``Out(1)``
        The cache is not ready, waits for storage, or works on its lines.
    idle : ``Out(1)``
        No probe is inside, and nothing is outstanding at ``memory``.
    """

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        members = {
            "word_valid": In(1),
            "word": In(config.word_address_bits),
            "again": In(1),
            "detail": In(detail_layout(config)),
            "pause": Out(1),
            "store_ready": Out(1),
            "store_slot": Out(config.store_bits),
            "store": In(1),
            "secret_store_tags": In(config.word_bits),
            "room": In(1),
            "check_valid": Out(1),
            "check_detail": Out(detail_layout(config)),
            "check_refusal": Out(Refusal),
            "secret_codes": Out(8 * config.word_granules),
            "secret_corrected": In(config.word_bits),
            "secret_damaged": In(1),
            "secret_errors": In(1),
            "secret_lost": Out(1),
            "waiting_valid": Out(1),
            "waiting": Out(ticket_layout(config)),
            "storage_base": In(config.axi_address_bits),
            "storage_bytes": In(config.memory_bits - 4),
            "storage_zeroed": In(1),
            "memory": Out(memory_signature(config)),
            "storage_error": Out(1),
            "secret_corrections": Out(16),
            "ready": Out(1),
            "busy": Out(1),
            "idle": Out(1),
        }
        if config.injection:
            members["flips"] = In(stream.Signature(flip_layout(config)))
        super().__init__(members)
        # For statistics: a probe is looked up for the first time.
        self.looked_up = Signal()

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        code = DirectoryCode(config.directory_tag_bits + 1)
        line_at = config.word_index_bits  # of a word's number
        tag_at = line_at + config.set_bits

        m.submodules.array = array = TagArray(config)
        m.submodules.miss_unit = miss = MissUnit(config)
        m.submodules.keeper = keeper = Keeper(config)
        m.submodules.waiting_list = waiting = WaitingList(config)
        m.submodules.stores = stores = StoreBuffer(config)
        wiring.connect(m, miss.memory, wiring.flipped(self.memory))

        # c0: a new probe, or one from the waiting list, or the keeper.
        c0_word = Signal(config.word_address_bits)
        m.d.comb += [
            c0_word.eq(Mux(waiting.word_valid, waiting.word, self.word)),
            array.directory_set.eq(Mux(keeper.owns, keeper.set, c0_word[line_at:tag_at])),
        ]

        # c1: what it wants; its line is compared with those of MSHRs and of the probes before it.
        c1_valid = Signal()
        c1_replay = Signal()
        c1_epoch = Signal()
        c1_place = Signal(config.waiting_bits)
        c1_word = Signal(config.word_address_bits)
        c1_detail = Signal(detail_layout(config))
        m.d.sync += [
            c1_valid.eq(self.word_valid | waiting.word_valid),
            c1_replay.eq(waiting.word_valid),
            c1_epoch.eq(waiting.epoch),
            c1_place.eq(waiting.place),
            c1_word.eq(c0_word),
        ]
        m.d.comb += [
            waiting.detail_place.eq(c1_place),
            c1_detail.eq(Mux(c1_replay, waiting.detail, self.detail)),
            miss.line.eq(c1_word[line_at:]),
        ]

        # c2: the directory answers. An entry within distance 1 of the wanted one's code is it.
        c2_valid = Signal()
        c2_replay = Signal()
        c2_epoch = Signal()
        c2_word = Signal(config.word_address_bits)
        c2_detail = Signal(detail_layout(config))
        c2_code = Signal(code.width)
        c2_looks = Signal()
        c2_stores = Signal()
        c2_maintains = Signal()
        c2_refuses = Signal()

        def c1_is(*kinds: ProbeKind) -> Value:
            """Is the probe of one of these kinds? Where it is from is asked last."""
            of_list, of_new = (
                Cat(detail.kind == kind for kind in kinds).any()
                for detail in (waiting.detail, self.detail)
            )
            return c1_valid & Mux(c1_replay, of_list, of_new)

        looking = (ProbeKind.CHECK, ProbeKind.LOAD, ProbeKind.STORE)
        maintaining = tuple(kind for kind in ProbeKind if kind not in (*looking, ProbeKind.NONE))
        c2_reads = (c2_detail.kind == ProbeKind.CHECK) | (c2_detail.kind == ProbeKind.LOAD)
        m.d.sync += [
            c2_valid.eq(c1_valid),
            c2_replay.eq(c1_replay),
            c2_epoch.eq(c1_epoch),
            c2_word.eq(c1_word),
            c2_detail.eq(c1_detail),
            c2_code.eq(code.encode(Cat(c1_word[tag_at:], 1))),
            c2_looks.eq(c1_is(*looking)),
            c2_stores.eq(c1_is(ProbeKind.STORE)),
            c2_maintains.eq(c1_is(*maintaining)),
        ]
        c3_word = Signal(config.word_address_bits)
        c4_word = Signal(config.word_address_bits)
        near: list[Value] = []
        for distance, before in enumerate((c2_word, c3_word, c4_word), 1):
            pieces = _groups(c1_word[line_at:], before[line_at:])
            equal = Signal(len(pieces), name=f"c2_near_{distance}")
            near.append(equal)
            m.d.sync += equal.eq(Cat(pieces))
        # Of each group of eight bits: is none different, is at most one? It is so if at most one
        # pair differs, and in no pair both bits, which takes the reset of the register: then it
        # costs no LUT more behind the memory.
        ways_none, ways_few = [], []
        for way in range(config.ways):
            starts = range(0, code.width, 8)
            none = Signal(len(starts), name=f"c3_none_{way}")
            few = Signal(len(starts), name=f"c3_few_{way}", reset_less=True)
            ways_none.append(none)
            ways_few.append(few)
            difference = array.entries[way] ^ c2_code
            for group, at in enumerate(starts):
                bits = difference[at : at + 8]
                pairs = [bits[n : n + 2] for n in range(0, len(bits), 2)]
                differs = [pair.any() for pair in pairs]
                m.d.sync += [
                    none[group].eq(~Cat(differs).any()),
                    few[group].eq(_at_most_one(differs)),
                ]
                with m.If(Cat(pair.all() for pair in pairs if len(pair) == 2).any()):
                    m.d.sync += few[group].eq(0)
        m.d.comb += stores.read_slot.eq(c2_detail.store)

        # c3: the decision.
        c3_valid = Signal()
        c3_replay = Signal()
        c3_epoch = Signal()
        c3_detail = Signal(detail_layout(config))
        c3_looks = Signal()
        c3_stores = Signal()
        c3_maintains = Signal()
        c3_refuses = Signal()  # tags are not given, whatever the directory says
        c3_near = Signal(NEIGHBOURS)
        secret_c3_tags = Signal(config.word_bits)
        m.d.comb += c2_refuses.eq(c2_valid & c2_reads & miss.storage_error)
        m.d.sync += [
            c3_valid.eq(c2_valid),
            c3_replay.eq(c2_replay),
            c3_epoch.eq(c2_epoch),
            c3_word.eq(c2_word),
            c3_detail.eq(c2_detail),
            c3_looks.eq(c2_looks & ~c2_refuses),
            c3_stores.eq(c2_stores),
            c3_maintains.eq(c2_maintains),
            c3_refuses.eq(c2_refuses),
            c3_near.eq(Cat(equal.all() for equal in near)),
            secret_c3_tags.eq(stores.secret_tags),
        ]
        hits = Signal(config.ways)
        for way in range(config.ways):
            m.d.comb += hits[way].eq(
                ways_few[way].all() & _at_most_one([~flag for flag in ways_none[way]])
            )
        c4_waits = Signal()
        c5_waits = Signal()
        c6_waits = Signal()
        closed = Signal()  # someone waits without an MSHR, so all do
        dying = Signal(config.mshrs)
        dead = Signal(config.mshrs)
        maintained = Signal()
        matches = Signal(config.mshrs)
        live = Signal()
        must_wait = Signal()
        found = Signal()  # if it hits, it goes
        goes_anyway = Signal()
        m.d.comb += [
            matches.eq(miss.match & miss.valid & ~dying & ~dead),
            live.eq(c3_epoch == waiting.now),
            must_wait.eq(
                closed | matches.any() | (c3_near & Cat(c4_waits, c5_waits, c6_waits)).any()
            ),
            found.eq(c3_looks & Mux(c3_replay, live & ~(matches & ~miss.filled).any(), ~must_wait)),
            goes_anyway.eq(
                Mux(
                    c3_replay,
                    live & (c3_refuses | (c3_maintains & maintained)),
                    c3_valid & ~c3_looks & ~c3_maintains,
                )
            ),
        ]
        m.d.comb += self.looked_up.eq(c3_valid & ~c3_replay & (c3_looks | c3_refuses))

        # What is written into the data array: a tag store, a word of a line, or a scrubbed word.
        scrubs = Signal()
        m.d.sync += [
            scrubs.eq(keeper.scrubbing),
            miss.fill.ready.eq(~c2_stores & ~keeper.scrubbing),
        ]
        write_index = Signal(config.index_bits)
        write_lanes = Signal(config.word_granules)
        stores_found = Signal()
        fills = Signal()
        secret_rewrites = Signal()
        secret_write_tags = Signal(config.word_bits)
        hit_way = Signal(config.way_bits)
        hit_index = Cat(c3_word[:tag_at], hit_way)
        m.d.comb += hit_way.eq(_encode(hits))
        c4_index = Signal(config.index_bits)
        m.d.sync += [
            c4_index.eq(Mux(keeper.owns, keeper.index, hit_index)),
            write_lanes.eq(Mux(c3_stores, c3_detail.mask, ~0)),
            stores_found.eq(found & c3_stores),
            fills.eq(miss.fill.valid & miss.fill.ready),
            secret_rewrites.eq(keeper.rewrite & ~self.secret_damaged),
        ]
        with m.If(scrubs):
            m.d.sync += [write_index.eq(keeper.index), secret_write_tags.eq(self.secret_corrected)]
        with m.Elif(c3_stores):
            m.d.sync += [write_index.eq(hit_index), secret_write_tags.eq(secret_c3_tags)]
        with m.Else():
            m.d.sync += [
                write_index.eq(miss.fill.payload.index),
                secret_write_tags.eq(miss.fill.payload.secret_tags),
            ]

        # c4: the data array works; and what the decision means for lists and state. Whether there
        # was a hit is the last to be known: it meets the rest of the decision here.
        c4_valid = Signal()  # it goes on
        c4_detail = Signal(detail_layout(config))
        c4_first = Signal()  # it is no replay
        c4_replay = Signal()
        c4_live = Signal()
        c4_pops = Signal()
        c4_fails = Signal()
        c4_maintains = Signal()
        c4_may_miss = Signal()
        c4_missed = Signal()  # it needs an MSHR
        c4_matches = Signal(config.mshrs)
        c4_near = Signal(NEIGHBOURS)
        c4_hit = Signal()
        c4_found = Signal()
        c4_goes_anyway = Signal()
        c4_refused = Signal()  # a replay whose line was refused
        c4_used = Signal()
        c4_stores = Signal()
        c4_refusal = Signal(Refusal)
        c4_any = Signal()
        m.d.comb += [
            c4_used.eq(c4_found & c4_hit),
            c4_valid.eq(c4_used | c4_goes_anyway | c4_refused),
            c4_waits.eq(c4_first & ~(c4_used | c4_goes_anyway)),
            c4_pops.eq(c4_replay & c4_valid),
            c4_fails.eq(c4_live & ~c4_valid),
            c4_missed.eq(c4_may_miss & ~c4_hit),
        ]
        refusal = Signal(Refusal)
        with m.If(c3_refuses):
            m.d.comb += refusal.eq(Refusal.ABORT)
        with m.Elif(c3_maintains & miss.storage_error):
            m.d.comb += refusal.eq(Refusal.ABORT)
        with m.Elif(c3_replay & c3_looks):
            for number in range(config.mshrs):
                with m.If(matches[number] & miss.refused[number]):
                    m.d.comb += refusal.eq(miss.refusals[number])
        m.d.sync += [
            c4_any.eq(c3_valid),
            c4_first.eq(c3_valid & ~c3_replay),
            c4_detail.eq(c3_detail),
            c4_replay.eq(c3_replay),
            c4_live.eq(c3_replay & live),
            c4_word.eq(c3_word),
            c4_maintains.eq(c3_maintains),
            c4_may_miss.eq(c3_looks & Mux(c3_replay, live & ~matches.any(), ~must_wait)),
            c4_found.eq(found),
            c4_goes_anyway.eq(goes_anyway),
            c4_refused.eq(c3_replay & live & c3_looks & (matches & miss.refused).any()),
            c4_hit.eq(hits.any()),
            c4_matches.eq(matches),
            c4_near.eq(c3_near & Cat(c4_waits, c5_waits, c6_waits)),
            c4_stores.eq(c3_stores),
            c4_refusal.eq(refusal),
        ]
        m.d.comb += [
            array.index.eq(c4_index),
            array.write_lanes.eq(
                write_lanes
                & ((stores_found & c4_hit) | fills | secret_rewrites).replicate(
                    config.word_granules
                )
            ),
            array.write_index.eq(write_index),
            array.secret_write_codes.eq(
                Cat(
                    granule_code(secret_write_tags.word_select(number, config.tag_bits))
                    for number in range(config.word_granules)
                )
            ),
        ]

        # Replacement and dirty bits: read and written in one cycle. What the keeper enters is noted
        # one cycle later.
        state_layout = data.StructLayout({"tree": config.ways - 1, "dirty": config.ways})
        m.submodules.state = state = memory.Memory(shape=state_layout, depth=config.sets, init=[])
        state_read = state.read_port(domain="comb")
        state_write = state.write_port()
        tree, dirty = state_read.data.tree, state_read.data.dirty
        state_set = Signal(config.set_bits)
        touched = Signal(config.ways)
        changed = Signal(config.ways)
        cleans = Signal()
        enters = Signal()
        sweeps = Signal()
        m.d.sync += [
            state_set.eq(Mux(keeper.owns, keeper.set, c3_word[line_at:tag_at])),
            changed.eq(Mux(keeper.owns, keeper.enter, hits)),
            touched.eq(Mux(keeper.owns, keeper.enter & keeper.touch.replicate(config.ways), hits)),
            cleans.eq(keeper.owns & ~keeper.keep_dirty),
            enters.eq(keeper.enter.any()),
            sweeps.eq(keeper.sweep),
        ]
        m.d.comb += [
            state_read.addr.eq(state_set),
            state_write.addr.eq(state_set),
            state_write.en.eq(c4_used | enters),
            state_write.data.tree.eq(_tree_touched(tree, touched)),
            state_write.data.dirty.eq(
                (dirty & ~(changed & cleans.replicate(config.ways)))
                | (changed & c4_stores.replicate(config.ways))
            ),
            keeper.dirty.eq(dirty),
            keeper.tree_victim.eq(_tree_victim(tree, config.way_bits)),
        ]
        with m.If(sweeps):
            m.d.comb += state_write.data.eq(0)

        # Who waits, and for which MSHR. A probe waits for that of its line; one behind it whose
        # line is the same, and that came too soon to see the MSHR, waits for the same.
        allocates = Signal()
        alone = Signal()  # it waits, and no MSHR is its own
        waits_for = Signal(config.mshrs)
        c5_waits_for = Signal(config.mshrs)
        c6_waits_for = Signal(config.mshrs)
        c7_waits_for = Signal(config.mshrs)
        new_mshr = 1 << miss.next
        m.d.comb += [
            waiting.push.eq(c4_waits),
            waiting.push_word.eq(c4_word),
            waiting.push_detail.eq(c4_detail),
            waiting.pop.eq(c4_pops),
            waiting.fail.eq(c4_fails),
            allocates.eq(c4_missed & (c4_replay | ~closed) & miss.available),
            alone.eq(c4_waits & (c4_maintains | (c4_missed & ~miss.available))),
            miss.allocate.eq(allocates),
            miss.allocate_line.eq(c4_word[line_at:]),
        ]
        # All that apply name the same MSHR.
        m.d.comb += waits_for.eq(
            c4_matches
            | (c5_waits_for & c4_near[0].replicate(config.mshrs))
            | (c6_waits_for & c4_near[1].replicate(config.mshrs))
            | (c7_waits_for & c4_near[2].replicate(config.mshrs))
            | (new_mshr & allocates.replicate(config.mshrs))
        )
        m.d.sync += [
            c5_waits.eq(c4_waits),
            c6_waits.eq(c5_waits),
            c5_waits_for.eq(waits_for),
            c6_waits_for.eq(c5_waits_for),
            c7_waits_for.eq(c6_waits_for),
        ]
        with m.If(alone):
            m.d.sync += closed.eq(1)
        with m.Elif(waiting.empty & ~c4_waits):
            m.d.sync += closed.eq(0)

        # An MSHR lives until the last probe that waits for it has left the list. The probes behind
        # that one may have come to wait for it anew: then it lives on. Those behind see by their
        # neighbours that they must wait.
        c5_place = Signal(config.waiting_bits)
        c4_place = Signal(config.waiting_bits)
        c3_place = Signal(config.waiting_bits)
        c2_place = Signal(config.waiting_bits)
        c5_tail = Signal(config.waiting_bits)
        c5_pops = Signal()
        c5_renews = Signal()
        renewed = Signal(config.mshrs)
        renewed_before = Signal(config.mshrs)
        replaced = Signal(config.mshrs)  # a probe on the list has taken a new MSHR
        m.d.comb += renewed.eq(c5_waits_for & c5_renews.replicate(config.mshrs))
        m.d.sync += [
            c2_place.eq(c1_place),
            c3_place.eq(c2_place),
            c4_place.eq(c3_place),
            c5_place.eq(c4_place),
            c5_tail.eq(waiting.tail),
            c5_pops.eq(c4_pops),
            replaced.eq(new_mshr & (allocates & c4_replay).replicate(config.mshrs)),
            c5_renews.eq(c4_waits & ~closed),
            renewed_before.eq(renewed),
            dead.eq(dying),
        ]
        for number in range(config.mshrs):
            last = Signal(config.waiting_bits, name=f"last_{number}")
            with m.If(renewed[number]):
                m.d.sync += last.eq(c5_tail)
            with m.Elif(replaced[number]):
                m.d.sync += last.eq(c5_place)
            m.d.sync += dying[number].eq(
                c5_pops & miss.filled[number] & miss.valid[number] & (last == c5_place)
            )
        wake = Signal()
        wake_mshr = Signal()
        m.d.comb += miss.free.eq(dead & ~renewed & ~renewed_before)
        m.d.sync += [
            wake.eq(miss.arrived | alone | (c4_waits & closed & waiting.empty) | maintained),
            wake_mshr.eq(miss.free.any() | (renewed & miss.filled).any()),
        ]
        m.d.comb += [
            waiting.wake.eq(wake | wake_mshr),
            waiting.hold.eq(keeper.close | ~self.room | self.again),
            self.waiting_valid.eq(~waiting.empty),
            self.waiting.eq(waiting.head_ticket),
        ]

        # Tag stores on the list keep their place in the store buffer.
        c5_stores = Signal()
        c5_detail = Signal(detail_layout(config))
        m.d.sync += c5_stores.eq(c4_stores)
        m.d.comb += [
            self.store_ready.eq(stores.ready),
            self.store_slot.eq(stores.slot),
            stores.write.eq(self.store),
            stores.secret_write_tags.eq(self.secret_store_tags),
            stores.waits.eq(c5_waits & c5_stores),
            stores.waits_slot.eq(c5_detail.store),
            stores.leaves.eq(c5_pops & c5_stores),
            stores.leaves_slot.eq(c5_detail.store),
        ]

        # Maintenance at the head of the list is the keeper's.
        maintain = Signal()
        maintain_kind = Signal(ProbeKind)
        maintain_line = Signal(config.line_address_bits)
        with m.If(c4_fails & c4_maintains & ~maintained):
            m.d.sync += [
                maintain.eq(1),
                maintain_kind.eq(c4_detail.kind),
                maintain_line.eq(c4_word[line_at:]),
            ]
        with m.If(keeper.maintained):
            m.d.sync += [maintain.eq(0), maintained.eq(1)]
        with m.Elif(c4_pops & c4_maintains):
            m.d.sync += maintained.eq(0)

        # c5, c6: on the way to the check.
        c5_valid = Signal()
        c6_valid = Signal()
        c6_detail = Signal(detail_layout(config))
        c5_refusal = Signal(Refusal)
        c6_refusal = Signal(Refusal)
        m.d.sync += [
            c5_valid.eq(c4_valid),
            c6_valid.eq(c5_valid),
            c5_detail.eq(c4_detail),
            c6_detail.eq(c5_detail),
            c5_refusal.eq(c4_refusal),
            c6_refusal.eq(c5_refusal),
        ]
        m.d.comb += [
            self.check_valid.eq(c6_valid),
            self.check_detail.eq(c6_detail),
            self.check_refusal.eq(c6_refusal),
            self.secret_codes.eq(array.secret_codes),
        ]

        # The keeper's side of the arrays and of the miss unit.
        quiet = Signal()
        m.d.sync += [keeper.quiet.eq(quiet), keeper.calm.eq(quiet & ~waiting.replay)]
        m.d.comb += [
            quiet.eq(
                ~(
                    self.word_valid
                    | self.again
                    | waiting.word_valid
                    | c1_valid
                    | c2_valid
                    | c3_valid
                    | c4_any
                )
            ),
            keeper.entries.eq(array.entries),
            array.directory_write.eq(keeper.enter),
            array.directory_write_set.eq(keeper.set),
            array.directory_value.eq(keeper.entry),
            keeper.maintain.eq(maintain),
            keeper.maintain_kind.eq(maintain_kind),
            keeper.maintain_line.eq(maintain_line),
            keeper.storage_bytes.eq(self.storage_bytes),
            keeper.storage_zeroed.eq(self.storage_zeroed),
            miss.storage_base.eq(self.storage_base),
            miss.secret_evict_tags.eq(self.secret_corrected),
        ]
        for name in ("unsettled", "unsettled_line", "urgent", "busy_ways", "evict_ready"):
            m.d.comb += getattr(keeper, name).eq(getattr(miss, name))
        for name in ("broken", "broken_line", "broken_way", "writes_idle"):
            m.d.comb += getattr(keeper, name).eq(getattr(miss, name))
        for name in ("settle", "settle_way", "settle_poisoned", "mended", "evict_start"):
            m.d.comb += getattr(miss, name).eq(getattr(keeper, name))
        for name in ("evict_line", "evict_zero", "evict_write", "evict_word", "evict_done"):
            m.d.comb += getattr(miss, name).eq(getattr(keeper, name))
        if config.injection:
            wiring.connect(m, wiring.flipped(self.flips), keeper.flips)
            flipping = Signal()
            m.d.sync += flipping.eq(keeper.flipping)
            with m.If(flipping & secret_rewrites):
                m.d.comb += array.flip_lanes.eq(self.flips.payload.lanes)
            with m.If(keeper.flipping):
                m.d.comb += array.flip_directory.eq(self.flips.payload.entry)

        # Reports of errors are secret: a cell that is stuck shows only under one value.
        secret_counts = Signal()
        m.d.sync += secret_counts.eq((keeper.evict_write | keeper.scrubbed) & self.secret_errors)
        with m.If(keeper.evict_write & self.secret_damaged):
            m.d.sync += self.secret_lost.eq(1)
        with m.If(secret_counts & ~self.secret_corrections.all()):
            m.d.sync += self.secret_corrections.eq(self.secret_corrections + 1)

        # What follows on a closed list would have to wait there: rather at the door.
        shut = Signal(init=1)
        m.d.sync += shut.eq(keeper.closes | ~waiting.room | closed)
        m.d.comb += self.pause.eq(shut | waiting.replays)
        m.d.comb += [
            self.storage_error.eq(miss.storage_error),
            self.ready.eq(keeper.ready),
            self.busy.eq(~keeper.ready | ~miss.idle | keeper.close),
            self.idle.eq(quiet & ~c5_valid & ~c6_valid & waiting.empty & keeper.idle & miss.idle),
        ]

        # A line is in one way at most.
        m.d.sync += Assert(
            ~c3_looks | ((hits & (hits - 1)) == 0),
            "a line is in two ways",
        )
        return m


def _at_most_one(flags: list[Value]) -> Value:
    """Is at most one of the flags set? A function of four takes one LUT."""
    if len(flags) <= 1:
        return ~Cat(flags[:0]).any()
    pairs = [a & b for number, a in enumerate(flags) for b in flags[number + 1 :]]
    return ~Cat(pairs).any()

"""From an access to probes: is it checked, and which granules does it touch?"""

from collections.abc import Callable

from amaranth.hdl import Assert, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import TagConfig
from .layouts import (
    CheckMode,
    Memory,
    Op,
    Outcome,
    ProbeKind,
    admitted_layout,
    detail_layout,
    map_layout,
)

__all__ = ["AccessDecoder", "may_touch_two", "reaches_on"]

_PAGE = 12
"""log2 of a page: the tagged memory consists of pages, and no access crosses one."""

_BLOCK = 7
"""log2 of a block: the tags of a page take one, and so the carve-out consists of them."""


def _register(shape, name: str) -> Signal:
    """A register for a part of a payload; what it holds matters only beside a valid bit."""
    return Signal(shape, name=name, reset_less=True)


def _table(index: Value, function: Callable[[int], int]) -> Value:
    """One bit, as a function of a few: a table rather than a chain of carries."""
    size = 1 << len(index)
    return Const(sum(function(place) << place for place in range(size)), size).bit_select(index, 1)


def _tables(index: Value, function: Callable[[int], int], width: int) -> Value:
    """The lowest bits of a function of a few bits."""

    def only(bit: int) -> Callable[[int], int]:
        return lambda place: function(place) >> bit & 1

    return Cat(_table(index, only(bit)) for bit in range(width))


def _pair(access: data.View, at: int, condition: Callable[[int], bool]) -> Value:
    """Of two bits of the address and the same two of the size: does their sum meet a condition?"""
    bits = Cat(access.pa[at : at + 2], access.bytes[at : at + 2])
    return _table(bits, lambda place: condition(place % 4 + place // 4))


def _over(access: data.View) -> tuple[Value, Value]:
    """Of the last four bits of address and size: is their sum more than 0, more than 16?"""
    return Cat(access.pa[:4], access.bytes[:4]).any(), (
        _pair(access, 2, lambda total: total > 4)
        | (_pair(access, 2, lambda total: total == 4) & _pair(access, 0, lambda total: total > 0))
        | (_pair(access, 2, lambda total: total == 3) & _pair(access, 0, lambda total: total > 4))
    )


def may_touch_two(access: data.View) -> Value:
    """Can an access of this kind touch two tag words?

    LDG means one granule, whatever its size; LDGM and STGM are within one word, and maintenance is
    of one line.
    """
    return (
        (access.op == Op.LOAD)
        | (access.op == Op.STORE)
        | (access.op == Op.ATOMIC)
        | (access.op == Op.STG)
    )


def reaches_on(access: data.View) -> Value:
    """Do an access's bytes reach into a second tag word?

    With up to 64 bytes they do so in the last quarter of a word, if there the sum of place and size
    is more than 64: the upper pair of bits tells, or leaves it open to what is below. A block
    larger than that is aligned; only one of 512 bytes has two words.
    """
    over_0, over_16 = _over(access)
    wide = access.bytes[9]
    whole = access.bytes[6]  # 64 bytes: more than 64 with any place but 0
    quarter = access.pa[6:8].all()
    # 3: more than 64; 2: if the rest is more than 0; 1: if it is more than 16.
    upper = Mux(whole, access.pa[4:6].any(), _pair(access, 4, lambda t: t > 4 or t == 3))
    code = Cat(
        wide | (quarter & upper),
        wide | (quarter & (whole | _pair(access, 4, lambda total: total >= 4))),
    )
    return _table(
        Cat(over_16, over_0, code), lambda place: (0, place & 1, place >> 1 & 1, 1)[place >> 2]
    )


class AccessDecoder(wiring.Component):
    """Decides what an access needs of tag storage.

    An access becomes one probe for each tag word that it touches, one per cycle; those that need
    no tags become probes of the kind NONE, which carry the outcome. Nothing stops it: a probe's
    word comes one cycle, its detail two cycles after the access was admitted.

    What is decided here follows from the access, the translation regime and the storage map. With
    TCMA off for the address half, the pointer's tag enters nothing but ``detail.key``, and the
    outcome of a check against canonical tags.

    Members
    -------
    admitted_valid : ``In(1)``, admitted : ``In(admitted_layout(config))``
        An access, in cycle *n*. Not in the cycle after one with ``admitted.two``.
    map : ``In(map_layout(config))``
        The storage map: it stands still from two cycles before an access until its last probe.
    word_valid : ``Out(1)``, word : ``Out(config.word_address_bits)``
        A probe's tag word, from registers: in cycle *n + 1*, the second one in *n + 2*.
    again : ``Out(1)``
        In cycle *n + 1*, a register: the second word follows.
    detail : ``Out(detail_layout(config))``
        What is wanted of the word of the cycle before: in cycle *n + 2*, the second in *n + 3*.
        At most two LUTs behind registers.
    """

    admitted_valid: Signal
    admitted: data.View
    map: data.View
    word_valid: Signal
    word: Signal
    again: Signal
    detail: data.View

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "admitted_valid": In(1),
                "admitted": In(admitted_layout(config)),
                "map": In(map_layout(config)),
                "word_valid": Out(1),
                "word": Out(config.word_address_bits),
                "again": Out(1),
                "detail": Out(detail_layout(config)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        access = self.admitted.access
        regime = self.admitted.regime

        # Granules behind the first one. Those of an aligned block fall out of the same sum: 0 - 1.
        over_0, over_16 = _over(access)
        behind = Cat(
            _tables(
                Cat(access.bytes[4:7], over_0, over_16),
                lambda place: place % 8 + place // 8 % 2 + place // 16 - 1,
                3,
            ),
            access.bytes[8:].any(),
        )

        # What kind of access it is.
        load = access.op == Op.LOAD
        store = access.op == Op.STORE
        atomic = access.op == Op.ATOMIC
        tag_load = (access.op == Op.LDG) | (access.op == Op.LDGM)
        tag_store = (access.op == Op.STG) | (access.op == Op.STGM)
        data_access = load | store | atomic
        maintenance = ~(data_access | tag_load | tag_store)
        every_line = maintenance & ~access.bytes.any()
        misaligned = (access.op == Op.STG) & access.pa[:4].any()
        kind = Signal(ProbeKind)
        with m.Switch(access.op):
            with m.Case(Op.LOAD, Op.STORE, Op.ATOMIC):
                m.d.comb += kind.eq(ProbeKind.CHECK)
            with m.Case(Op.LDG, Op.LDGM):
                m.d.comb += kind.eq(ProbeKind.LOAD)
            with m.Case(Op.STG, Op.STGM):
                m.d.comb += kind.eq(ProbeKind.STORE)
            with m.Case(Op.CLEAN):
                m.d.comb += kind.eq(ProbeKind.CLEAN)
            with m.Default():
                m.d.comb += kind.eq(ProbeKind.CLEAN_INVALIDATE)

        # The control bits that apply to it.
        half = access.va[55]
        level = ~access.el0
        store_only = regime.tcso.bit_select(level, 1)
        ata = regime.ata.bit_select(level, 1)
        tbi = regime.tbi.bit_select(half, 1)
        mtx = regime.mtx.bit_select(half, 1)
        tcma = regime.tcma.bit_select(half, 1)
        mode = Signal(CheckMode)
        m.d.comb += mode.eq(Mux(access.el0, regime.tcf[0], regime.tcf[1]))
        tag = access.va[56:60]
        canonical = tag == half.replicate(4)

        # Does it use tags: is it checked, or a tag load or store? A store-only regime makes a write
        # of an atomic, for the report too. With TCF = none a mismatch would have no effect, so no
        # tag is looked up, while all else is as if it were checked.
        write = store | (atomic & store_only)
        effective = mode != CheckMode.NONE
        tag_checked = (
            ((load & ~store_only) | store | atomic)
            & ~access.exempt
            & (tbi | mtx)
            & ~(tcma & canonical)
            & ~access.tco
        )
        tag_access = (tag_load | tag_store) & ~misaligned

        # Cycle n + 1. All that the second word needs stays for a cycle more.
        s1_second = Signal()
        s1_ticket = _register(self.admitted.ticket.shape(), "s1_ticket")
        s1_store = _register(config.store_bits, "s1_store")
        s1_key = _register(4, "s1_key")
        s1_memory = _register(Memory, "s1_memory")
        s1_kind = _register(ProbeKind, "s1_kind")
        s1_single = _register(1, "s1_single")
        s1_write = _register(1, "s1_write")
        s1_asynchronous = _register(1, "s1_asynchronous")
        s1_misaligned = _register(1, "s1_misaligned")
        s1_bounded = _register(1, "s1_bounded")  # it may not touch the carve-out
        s1_all = _register(1, "s1_all")  # it is of all lines
        s1_maintenance = _register(1, "s1_maintenance")
        s1_allowed = _register(1, "s1_allowed")  # it may use tags
        s1_checked = _register(1, "s1_checked")  # and does: it is checked, or a tag load or store
        s1_tagging = _register(1, "s1_tagging")
        s1_effective = _register(1, "s1_effective")  # and looks them up
        # What follows if it uses tags of memory that has none.
        s1_forbidden = _register(1, "s1_forbidden")
        s1_mismatch = _register(1, "s1_mismatch")
        s1_ones = _register(1, "s1_ones")
        s1_begin = _register(4, "s1_begin")
        s1_behind = _register(4, "s1_behind")
        s1_wide = _register(1, "s1_wide")
        # The word's number within its page, and the page's within the map; the block's number
        # within the carve-out. The topmost bit is a sign.
        s1_place = _register(_PAGE - 8, "s1_place")
        s1_page = _register(config.pa_bits - _PAGE + 1, "s1_page")
        s1_block = _register(max(config.pa_bits, config.axi_address_bits) - _BLOCK + 1, "s1_block")
        m.d.sync += [
            self.word_valid.eq(self.admitted_valid | self.again),
            self.again.eq(self.admitted.two),
            s1_second.eq(self.again),
        ]
        with m.If(~self.admitted_valid):
            m.d.sync += self.again.eq(0)
        with m.If(self.again):
            m.d.sync += s1_place.eq(s1_place + 1)
        with m.Else():
            m.d.sync += [
                s1_ticket.eq(self.admitted.ticket),
                s1_store.eq(self.admitted.store),
                s1_key.eq(tag),
                s1_memory.eq(access.memory),
                s1_kind.eq(kind),
                s1_single.eq(access.op == Op.LDG),
                s1_write.eq(write),
                s1_asynchronous.eq((mode == CheckMode.ASYNC) | ((mode == CheckMode.ASYM) & write)),
                s1_misaligned.eq(misaligned),
                s1_bounded.eq(~(maintenance | misaligned)),
                s1_all.eq(every_line),
                s1_maintenance.eq(maintenance),
                s1_allowed.eq(ata),
                s1_checked.eq(tag_checked),
                s1_tagging.eq(tag_access),
                s1_effective.eq(effective | tag_load | tag_store),
                s1_forbidden.eq(tag_store & mtx),
                s1_mismatch.eq(data_access & effective & mtx & ~canonical),
                s1_ones.eq(tag_load & mtx & half),
                s1_begin.eq(access.pa[4:8]),
                s1_behind.eq(behind),
                s1_wide.eq(access.bytes[9]),
                s1_place.eq(access.pa[8:_PAGE]),
                s1_page.eq(access.pa[_PAGE:] - self.map.memory_base[_PAGE:]),
                s1_block.eq(access.pa[_BLOCK:] - self.map.storage_base[_BLOCK:]),
            ]
            # LDG means one granule, whatever its size.
            with m.If(access.op == Op.LDG):
                m.d.sync += [s1_behind.eq(0), s1_wide.eq(0)]
        page_bits = config.memory_bits - _PAGE
        m.d.comb += self.word.eq(Cat(s1_place, s1_page[:page_bits]))
        m.d.sync += Assert(
            ~(self.again & self.admitted_valid), "an access comes, and a second word follows"
        )

        # Is it in the map, does it touch the carve-out? The map has as many pages as the carve-out
        # has blocks. An access that begins before the carve-out may reach into it.
        pages = self.map.memory_bytes[_PAGE:]
        some_page = Signal()
        m.d.sync += some_page.eq(pages.any())
        near_carve_out = ~s1_block[page_bits:].any()
        near_map = ~s1_page[page_bits:].any()
        # Granule of its last byte; and does it go on from half a word to the next one?
        low = Cat(s1_begin[:2], s1_behind[:2])
        carry_2 = _table(low, lambda place: place % 4 + place // 4 > 3)
        upper = Cat(s1_begin[2:], s1_behind[2:], carry_2)
        end = Cat(
            _tables(low, lambda place: place % 4 + place // 4, 2),
            _tables(upper, lambda place: place % 4 + place // 4 % 4 + place // 16, 2),
        )
        goes_on = s1_behind[3] | (
            (s1_begin[2] & s1_behind[2]) | ((s1_begin[2] | s1_behind[2]) & carry_2)
        )

        # What becomes of it, if it lies where it may.
        s1_uses = s1_allowed & (s1_checked | s1_tagging)
        tagged = s1_memory == Memory.TAGGED
        untagged = s1_memory == Memory.UNTAGGED
        forbidden = s1_uses & ((untagged & s1_forbidden) | ~(tagged | untagged))
        mismatch = s1_uses & untagged & s1_mismatch
        bounded = s1_bounded & ~forbidden
        mapped = tagged & ~s1_misaligned & ~s1_all
        wanted = Signal(ProbeKind, init=ProbeKind.NONE)
        with m.If(s1_all):
            m.d.comb += wanted.eq(
                Mux(s1_kind == ProbeKind.CLEAN, ProbeKind.CLEAN_ALL, ProbeKind.CLEAN_INVALIDATE_ALL)
            )
        with m.Elif(tagged & ((s1_uses & s1_effective) | s1_maintenance)):
            m.d.comb += wanted.eq(s1_kind)
        outcome = Signal(Outcome)
        with m.If(s1_misaligned):
            m.d.comb += outcome.eq(Outcome.ALIGNMENT_FAULT)
        with m.Elif(forbidden):
            m.d.comb += outcome.eq(Outcome.PERMISSION_FAULT)
        with m.Elif(mismatch):
            m.d.comb += outcome.eq(Mux(s1_asynchronous, Outcome.ASYNC, Outcome.TAG_CHECK_FAULT))

        # Cycle n + 2. Where it lies has the last word; to compare that takes most of a cycle.
        s2_ticket = _register(s1_ticket.shape(), "s2_ticket")
        s2_store = _register(config.store_bits, "s2_store")
        s2_key = _register(4, "s2_key")
        s2_begin = _register(4, "s2_begin")
        s2_end = _register(4, "s2_end")
        s2_kind = _register(ProbeKind, "s2_kind")
        s2_outcome = _register(Outcome, "s2_outcome")
        s2_single = _register(1, "s2_single")
        s2_ones = _register(1, "s2_ones")
        s2_asynchronous = _register(1, "s2_asynchronous")
        s2_write = _register(1, "s2_write")
        s2_tag_store = _register(1, "s2_tag_store")
        s2_reports = _register(1, "s2_reports")
        s2_before = _register(2, "s2_before")
        s2_reaches = _register(1, "s2_reaches")
        s2_near = _register(1, "s2_near")
        s2_block_below = _register(1, "s2_block_below")
        s2_outside = _register(1, "s2_outside")
        s2_mapped = _register(1, "s2_mapped")
        s2_page_below = _register(1, "s2_page_below")
        tag_stored = s1_kind == ProbeKind.STORE
        m.d.sync += [
            s2_ticket.eq(s1_ticket),
            s2_ticket.second.eq(s1_second),
            s2_store.eq(s1_store),
            s2_key.eq(s1_key),
            s2_begin.eq(s1_begin),
            s2_end.eq(end),
            s2_kind.eq(wanted),
            s2_outcome.eq(outcome),
            s2_single.eq(s1_single),
            s2_ones.eq(s1_uses & untagged & s1_ones),
            s2_asynchronous.eq(s1_asynchronous),
            # The tag check that a permission fault refuses is a read.
            s2_write.eq(tag_stored | (s1_write & ~forbidden)),
            s2_tag_store.eq(tag_stored),
            s2_reports.eq(bounded),
            s2_block_below.eq((s1_block[:page_bits] - pages)[-1]),
            s2_near.eq(bounded & near_carve_out),
            s2_before.eq(Cat(s1_block[2:24].all() & bounded & some_page, s1_block[24:].all())),
            s2_reaches.eq((goes_on & s1_block[:2].all()) | (s1_wide & s1_block[:2].any())),
            s2_page_below.eq((s1_page[:page_bits] - pages)[-1]),
            s2_mapped.eq(mapped),
            s2_outside.eq(mapped & ~near_map),
        ]
        with m.If(self.again):
            m.d.sync += s2_end.eq(~0)
        with m.If(s1_second):
            m.d.sync += [s2_begin.eq(0), s2_outcome.eq(Outcome.PASS), s2_reports.eq(0)]

        refused = (s2_near & s2_block_below) | (s2_before.all() & s2_reaches)
        lost = s2_outside | (s2_mapped & ~s2_page_below)
        nowhere = refused | lost
        m.d.comb += [
            self.detail.ticket.eq(s2_ticket),
            self.detail.kind.eq(Value.cast(s2_kind) | nowhere.replicate(3)),
            self.detail.mask.eq(
                Cat((s2_begin <= place) & (s2_end >= place) for place in range(16))
            ),
            self.detail.start.eq(s2_begin),
            self.detail.key.eq(s2_key),
            self.detail.store.eq(s2_store),
            self.detail.single.eq(s2_single),
            self.detail.ones.eq(s2_ones & ~nowhere),
            self.detail.asynchronous.eq(s2_asynchronous),
            # An abort outside the carve-out is one of the tag fetch, which is a read.
            self.detail.write.eq(Mux(lost & ~refused, s2_tag_store, s2_write)),
            self.detail.outcome.eq(Mux(s2_reports & nowhere, Outcome.EXTERNAL_ABORT, s2_outcome)),
        ]
        return m

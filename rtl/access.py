"""From an access to probes: is it checked, and which granules does it touch?"""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
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

__all__ = ["AccessDecoder"]


def _below(end: Value) -> Value:
    """A mask of the granules of a tag word whose number is below ``end``."""
    return Cat(number < end for number in range(TagConfig.word_granules))


class AccessDecoder(wiring.Component):
    """Decides what an access needs of tag storage."""

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "admitted_valid": In(1),
                "admitted": In(admitted_layout(config)),
                "map": In(map_layout(config)),
                "two": Out(1),
                "word_valid": Out(1),
                "word": Out(config.word_address_bits),
                "again": Out(1),
                "detail": Out(detail_layout(config)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config

        # Cycle n.
        def reach_of(access):
            reach = Signal(range(config.max_bytes))
            with m.If((access.op != Op.LDG) & access.bytes.any()):
                m.d.comb += reach.eq(access.bytes - 1)
            return reach

        def maintains(access):
            return (
                (access.op == Op.CLEAN)
                | (access.op == Op.INVALIDATE)
                | (access.op == Op.CLEAN_INVALIDATE)
            )

        now = self.admitted.access
        total = Signal(11)
        m.d.comb += [
            total.eq(now.pa[:8] + reach_of(now)),
            self.two.eq((total >= 256) & ~maintains(now)),
        ]
        s1 = Signal(admitted_layout(config))
        s1_two = Signal()
        s1_valid = Signal()
        s1_second = Signal()
        s1_offset = Signal(config.memory_bits)
        m.d.sync += [
            s1_valid.eq(self.admitted_valid),
            s1_second.eq(s1_valid & s1_two & ~s1_second),
        ]
        with m.If(self.again):
            m.d.sync += s1_offset[8:12].eq(s1_offset[8:12] + 1)
            m.d.sync += s1_two.eq(s1_two)
        with m.Else():
            m.d.sync += [
                s1.eq(self.admitted),
                s1_two.eq(self.two),
                s1_offset.eq(now.pa - self.map.memory_base),
            ]
        m.d.comb += [
            self.again.eq(s1_valid & s1_two & ~s1_second),
            self.word_valid.eq(s1_valid | s1_second),
            self.word.eq(s1_offset[8:]),
        ]

        # Cycle n + 1.
        access = s1.access
        control = s1.regime
        # What kind of access it is.
        load = access.op == Op.LOAD
        store = access.op == Op.STORE
        atomic = access.op == Op.ATOMIC
        tag_load = (access.op == Op.LDG) | (access.op == Op.LDGM)
        tag_store = (access.op == Op.STG) | (access.op == Op.STGM)
        data_access = load | store | atomic
        maintenance = ~(data_access | tag_load | tag_store)
        tagged = access.memory == Memory.TAGGED
        untagged = access.memory == Memory.UNTAGGED

        # The control bits that apply to it.
        half = access.va[55]
        level = ~access.el0
        tbi = control.tbi.bit_select(half, 1)
        mtx = control.mtx.bit_select(half, 1)
        tcma = control.tcma.bit_select(half, 1)
        ata = control.ata.bit_select(level, 1)
        store_only = control.tcso.bit_select(level, 1)
        mode = Signal(CheckMode)
        m.d.comb += mode.eq(Mux(access.el0, control.tcf[0], control.tcf[1]))

        # Is it checked? A store-only regime makes a write of an atomic, for the report too. With
        # TCF = none a mismatch would have no effect, so no tag is looked up.
        canonical_pointer = access.va[55:60] == half.replicate(5)
        write = store | (atomic & store_only)
        tag_checked = Signal()
        checked = Signal()
        m.d.comb += tag_checked.eq(
            data_access
            & ~access.exempt
            & (tbi | mtx)
            & ~(tcma & canonical_pointer)
            & ata
            & ~access.tco
            & ~(store_only & ~write)
        )
        m.d.comb += checked.eq(tag_checked & (mode != CheckMode.NONE))
        asynchronous = (mode == CheckMode.ASYNC) | ((mode == CheckMode.ASYM) & write)

        # Where it lies. The last byte counts, not the end, so that nothing wraps at the top. LDG
        # means one granule, whatever its address and size.
        reach = Signal(range(config.max_bytes))
        with m.If((access.op != Op.LDG) & access.bytes.any()):
            m.d.comb += reach.eq(access.bytes - 1)
        first = Signal(config.pa_bits)
        last = Signal(config.pa_bits + 1)
        offset = Signal(config.pa_bits)
        last_offset = Signal(config.pa_bits + 1)
        carve_out_end = Signal(config.axi_address_bits + 1)
        in_map = Signal()
        in_carve_out = Signal()
        m.d.comb += [
            first.eq(access.pa),
            last.eq(access.pa + reach),
            offset.eq(first - self.map.memory_base),
            last_offset.eq(last - self.map.memory_base),
            in_map.eq((first >= self.map.memory_base) & (last_offset < self.map.memory_bytes)),
            carve_out_end.eq(self.map.storage_base + self.map.memory_bytes[5:]),
            in_carve_out.eq(
                (last >= self.map.storage_base)
                & (first < carve_out_end)
                & (self.map.memory_bytes != 0)  # an empty one has no inside
            ),
        ]

        # Which granules it touches: those from `begin` to below `end`, counted from the start of
        # its first tag word.
        begin = access.pa[4:8]
        span = Signal(range(255 + config.max_bytes))
        end = Signal(range((255 + config.max_bytes) // 16 + 2))
        granules = Signal(config.word_granules)
        m.d.comb += [
            span.eq(access.pa[:8] + reach),
            end.eq(span[4:] + 1),
            granules.eq(_below(end) & ~_below(begin)),
        ]

        # What becomes of it.
        outcome = Signal(Outcome)
        ones = Signal()
        needs_tags = Signal()
        with m.If((access.op == Op.STG) & access.va[:4].any()):
            m.d.comb += outcome.eq(Outcome.ALIGNMENT_FAULT)
        with m.Elif(tag_store & ata & mtx & untagged):
            m.d.comb += outcome.eq(Outcome.PERMISSION_FAULT)
        with m.Elif((tag_checked | ((tag_load | tag_store) & ata)) & ~(tagged | untagged)):
            m.d.comb += outcome.eq(Outcome.PERMISSION_FAULT)
        with m.Elif(maintenance):
            m.d.comb += needs_tags.eq(~access.bytes.any() | (tagged & in_map))
        with m.Elif(in_carve_out | (tagged & ~in_map)):
            m.d.comb += outcome.eq(Outcome.EXTERNAL_ABORT)
        with m.Elif(tagged):
            m.d.comb += needs_tags.eq(checked | ((tag_load | tag_store) & ata))
        with m.Elif(checked & mtx & (access.va[56:60] != half.replicate(4))):
            m.d.comb += outcome.eq(Mux(asynchronous, Outcome.ASYNC, Outcome.TAG_CHECK_FAULT))
        with m.Elif(tag_load & ata & mtx & half):
            m.d.comb += ones.eq(1)

        s2 = Signal(detail_layout(config))
        detail = Signal(detail_layout(config))
        m.d.comb += [
            detail.ticket.eq(s1.ticket),
            detail.ticket.second.eq(s1_second),
            detail.key.eq(access.va[56:60]),
            detail.store.eq(s1.store),
            detail.single.eq(access.op == Op.LDG),
            detail.asynchronous.eq(asynchronous),
            detail.mask.eq(Mux(s1_second, _below(end - 16), granules)),
            detail.start.eq(Mux(s1_second, 0, access.va[4:8])),
        ]
        with m.If(needs_tags):
            m.d.comb += detail.write.eq(write | tag_store)
            with m.If(tag_load):
                m.d.comb += detail.kind.eq(ProbeKind.LOAD)
            with m.Elif(tag_store):
                m.d.comb += detail.kind.eq(ProbeKind.STORE)
            with m.Elif(access.op == Op.CLEAN):
                m.d.comb += detail.kind.eq(
                    Mux(access.bytes.any(), ProbeKind.CLEAN, ProbeKind.CLEAN_ALL)
                )
            with m.Elif(maintenance):
                m.d.comb += detail.kind.eq(
                    Mux(
                        access.bytes.any(),
                        ProbeKind.CLEAN_INVALIDATE,
                        ProbeKind.CLEAN_INVALIDATE_ALL,
                    )
                )
            with m.Else():
                m.d.comb += detail.kind.eq(ProbeKind.CHECK)
        with m.Else():
            m.d.comb += detail.kind.eq(ProbeKind.NONE)
            of_tags = (outcome == Outcome.PERMISSION_FAULT) | (
                (outcome == Outcome.EXTERNAL_ABORT) & ~in_carve_out
            )
            with m.If(~s1_second):
                m.d.comb += [detail.outcome.eq(outcome), detail.ones.eq(ones)]
                with m.If((outcome != Outcome.PASS) & (outcome != Outcome.ASYNC)):
                    m.d.comb += detail.write.eq(tag_store | (write & ~of_tags))
        m.d.sync += s2.eq(detail)
        m.d.comb += self.detail.eq(s2)
        return m

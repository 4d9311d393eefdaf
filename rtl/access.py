"""From an access to probes: is it checked, and which granules does it touch?"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .config import TagConfig
from .layouts import (
    CheckMode,
    Memory,
    Op,
    Outcome,
    ProbeKind,
    admitted_layout,
    probe_layout,
    result_layout,
)
from .stream_util import PayloadRegister

__all__ = ["AccessDecoder"]


def _below(end: Value) -> Value:
    """A mask of the granules of a tag word whose number is below ``end``."""
    return Cat(number < end for number in range(TagConfig.word_granules))


class AccessDecoder(wiring.Component):
    """Decides what an access needs of tag storage.

    An access that needs tags becomes one probe for each tag word that it touches, in ascending
    order, one per cycle; any other gets its outcome here. Either is offered in the cycle after the
    transfer at ``i``. Accesses of one probe are sustained at one per cycle.

    What is decided here follows from the access, the translation regime and the storage map; with
    TCMA off for the address half, the pointer's tag enters nothing but ``secret_finding``,
    and the ``address`` of probes.

    Members
    -------
    i : ``In(stream.Signature(admitted_layout(config)))``
        Admitted accesses.
    probe : ``Out(stream.Signature(probe_layout(config)))``
        Tag words to be compared, read or written, and maintenance.
    unchecked : ``Out(stream.Signature(result_layout(config)))``
        Outcomes of accesses that need no tags.
    """

    i: stream.Interface
    probe: stream.Interface
    unchecked: stream.Interface

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(admitted_layout(config))),
                "probe": Out(stream.Signature(probe_layout(config))),
                "unchecked": Out(stream.Signature(result_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        access = self.i.payload.access
        control = self.i.payload.control

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
            offset.eq(first - control.memory_base),
            last_offset.eq(last - control.memory_base),
            in_map.eq((first >= control.memory_base) & (last_offset < control.memory_bytes)),
            carve_out_end.eq(control.storage_base + control.memory_bytes[5:]),
            in_carve_out.eq(
                (last >= control.storage_base)
                & (first < carve_out_end)
                & (control.memory_bytes != 0)  # an empty one has no inside
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
        address = Signal(64)
        m.d.comb += address.eq(access.va)
        with m.If(access.op == Op.LDG):
            m.d.comb += address[:4].eq(0)

        # What becomes of it.
        outcome = Signal(Outcome)
        tags = Signal(config.word_bits)
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
            with m.If(access.op == Op.LDG):
                m.d.comb += tags.eq(0xF)
            with m.Else():
                m.d.comb += tags.eq(Cat(bit.replicate(4) for bit in granules))
        result = Signal(result_layout(config))
        m.d.comb += [
            result.ticket.eq(self.i.payload.ticket),
            result.secret_finding.outcome.eq(outcome),
            result.secret_finding.tags.eq(tags),
        ]
        with m.If((outcome != Outcome.PASS) & (outcome != Outcome.ASYNC)):
            # An abort outside the carve-out is one of the tag fetch, which is a read, and so is
            # the tag check that a permission fault refuses.
            of_tags = (outcome == Outcome.PERMISSION_FAULT) | (
                (outcome == Outcome.EXTERNAL_ABORT) & ~in_carve_out
            )
            m.d.comb += [
                result.secret_finding.far.eq(address),
                result.secret_finding.wnr.eq(tag_store | (write & ~of_tags)),
            ]

        # The first probe.
        kind = Signal(ProbeKind)
        entering = Signal(probe_layout(config))
        m.d.comb += [
            entering.kind.eq(kind),
            entering.ticket.eq(self.i.payload.ticket),
            entering.word.eq(offset[8:]),
            entering.mask.eq(granules),
            entering.secret_tags.eq(
                Mux(access.op == Op.STG, access.tags[:4].replicate(16), access.tags)
            ),
            entering.address.eq(address),
            entering.single.eq(access.op == Op.LDG),
            entering.asynchronous.eq(asynchronous),
            entering.write.eq(write | tag_store),
            entering.first.eq(1),
            entering.last.eq(maintenance | (end <= config.word_granules)),
        ]
        with m.If(tag_load):
            m.d.comb += kind.eq(ProbeKind.LOAD)
        with m.Elif(tag_store):
            m.d.comb += kind.eq(ProbeKind.STORE)
        with m.Elif(access.op == Op.CLEAN):
            m.d.comb += kind.eq(Mux(access.bytes.any(), ProbeKind.CLEAN, ProbeKind.CLEAN_ALL))
        with m.Elif(maintenance):
            m.d.comb += kind.eq(
                Mux(
                    access.bytes.any(),
                    ProbeKind.CLEAN_INVALIDATE,
                    ProbeKind.CLEAN_INVALIDATE_ALL,
                )
            )
        with m.Else():
            m.d.comb += kind.eq(ProbeKind.CHECK)

        # The probe or the result on offer; and the probe that comes after it.
        probe = PayloadRegister(probe_layout(config), name="probe")
        probe_valid = Signal()
        probe_end = Signal.like(end)
        unchecked = PayloadRegister(result_layout(config), name="unchecked")
        unchecked_valid = Signal()
        following = Signal(probe_layout(config))
        following_end = Signal.like(end)
        m.d.comb += [
            self.probe.valid.eq(probe_valid),
            *probe.drive(self.probe.payload),
            self.unchecked.valid.eq(unchecked_valid),
            *unchecked.drive(self.unchecked.payload),
            following_end.eq(probe_end - config.word_granules),
            following.eq(self.probe.payload),
            following.word.eq(self.probe.payload.word + 1),
            following.mask.eq(_below(following_end)),
            following.address.eq(Cat(Const(0, 8), self.probe.payload.address[8:] + 1)),
            following.first.eq(0),
            following.last.eq(following_end <= config.word_granules),
        ]
        probe_taken = ~probe_valid | self.probe.ready
        unchecked_taken = ~unchecked_valid | self.unchecked.ready
        with m.If(probe_valid & ~self.probe.payload.last):
            with m.If(self.probe.ready):
                m.d.sync += [*probe.load(following), probe_end.eq(following_end)]
        with m.Else():
            m.d.comb += self.i.ready.eq(probe_taken & unchecked_taken)
            with m.If(probe_taken):
                m.d.sync += probe_valid.eq(self.i.valid & self.i.ready & needs_tags)
            with m.If(unchecked_taken):
                m.d.sync += unchecked_valid.eq(self.i.valid & self.i.ready & ~needs_tags)
            with m.If(self.i.ready):
                m.d.sync += [*probe.load(entering), probe_end.eq(end), *unchecked.load(result)]
        return m

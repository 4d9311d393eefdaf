"""The way to tag storage: refills, several at a time, and write-backs over AXI4."""

from amaranth.hdl import Assert, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .axi import Burst
from .config import TagConfig
from .layouts import Refusal, memory_signature

__all__ = ["MissUnit", "fill_layout"]

_BEATS = 16
"""Beats that the buffer behind the read channel holds: one block of distributed RAM."""

_HAZARD_BITS = 5
"""Bits of a line's number by which reads and writes of one line are told: those behind the set's
number, for lines of one set come and go together. Others that have them in common wait without
need. One bit more costs a level of logic where the clock is set."""

_DISTRIBUTED = {"ram_style": "distributed"}


def fill_layout(config: TagConfig) -> data.StructLayout:
    """A tag word on its way from storage into the data array."""
    return data.StructLayout({"index": config.index_bits, "secret_tags": config.word_bits})


def _flag(flags: Value, number: Value) -> Value:
    """The flag of this number."""
    return flags.bit_select(number, 1) if len(flags) > 1 else flags[0]


class MissUnit(wiring.Component):
    """Moves lines between the tag cache and tag storage.

    **MSHRs** are taken in a ring. Each fetches one line with one burst, whose id is the MSHR's
    number; beats of different bursts may come in any order. The place of the line is told later:
    until then its beats wait in a buffer of 16, and so do those behind them.

    **Write-backs** go through two buffers of a line each, one after the other. A read is not asked
    for, nor a write, while a write that may concern the same line (by five bits of its number) is
    not acknowledged: storage need not keep the order of bursts.

    An error response to a read leaves the MSHR without tags, and the cache has to drop the line.
    One to a write-back has no access left to blame: it sets ``storage_error`` until reset.

    Outputs are functions of registers alone; those that are strobes or level signals named
    *registered* are registers.

    Members
    -------
    allocate, allocate_line : ``In(1)``, ``In(config.line_address_bits)``
        Strobe: MSHR ``next`` takes this line, and asks for it: ``memory.arvalid`` is set two
        cycles later, at the earliest. Only if ``available``.
    available, next : ``Out(1)``, ``Out(range(config.mshrs))``
        The next MSHR in the ring, registered. It is available if it was not valid in the last
        three cycles either.
    line : ``In(config.line_address_bits)``
        Compared with all MSHRs, in every cycle.
    match : ``Out(config.mshrs)``
        MSHRs that were valid, and for this line, two cycles ago. Registered.
    valid, filled, refused : ``Out(config.mshrs)``
        MSHRs in use; those whose line has come; those of them for which there are no tags.
    refusals : ``Out(Refusal).array(config.mshrs)``
        Why there are none: ABORT, storage answered with an error; UNCORRECTABLE, the MSHR was
        poisoned. NONE until filled.
    free : ``In(config.mshrs)``
        Strobes: the MSHR is done with. Only if filled.
    arrived : ``Out(1)``
        Strobe: an MSHR is filled, and was not in the cycle before. Registered.
    unsettled, unsettled_line : ``Out(1)``, ``Out(config.line_address_bits)``
        The oldest MSHR that has no place yet, and its line; registered. Up to
        ``config.mshrs + 5`` cycles after it was allocated, or the one before it was settled.
    busy_ways : ``Out(config.ways)``
        While ``unsettled``: ways of its set that belong to valid MSHRs, or did when they were
        looked for. Registered. At least one is not.
    urgent : ``Out(1)``
        Beats wait for an MSHR without a place. Registered.
    settle, settle_way, settle_poisoned : ``In(1)``, ``In(config.way_bits)``, ``In(1)``
        Strobe: that MSHR's line goes to this way; or it is poisoned, and its beats go nowhere. Only
        if ``unsettled``.
    fill : ``Out(stream.Signature(fill_layout(config)))``
        A word for the data array, at ``Cat(word, set, way)``: two cycles after its beat at the
        earliest. Secret but for ``index``.
    broken, broken_line, broken_way : ``Out``
        Storage answered with an error to a beat of this line, and all its beats are there. Stays
        until ``mended``, and no beat goes on before that.
    mended : ``In(1)``
        Strobe: the line is dropped. Only if ``broken``.
    evict_ready : ``Out(1)``
        There is a buffer for a line.
    evict_start, evict_line, evict_zero : ``In(1)``, ``In(config.line_address_bits)``, ``In(1)``
        Strobe: a line is to be written; with ``evict_zero`` zeros are, and nothing more follows.
        Only if ``evict_ready``, and no later than in the cycle in which the line is asked for
        again by ``allocate``.
    evict_write, evict_word : ``In(1)``, ``In(config.word_index_bits)``
        Strobe: ``secret_evict_tags`` is this word of the line.
    secret_evict_tags : ``In(64)``
        The word.
    evict_done : ``In(1)``
        Strobe: all its words are there, the last one in this cycle or before.
    writes_idle : ``Out(1)``
        Storage has acknowledged all that was to be written.
    storage_error : ``Out(1)``
        Sticky: a write to tag storage failed. Registered.
    storage_base : ``In(config.axi_address_bits)``
        Where tag storage begins: a multiple of 128. Changes only while ``idle``.
    memory : ``Out(memory_signature(config))``
        Tag storage. Bursts of one line; read ids are numbers of MSHRs, write ids are 0 and 1.
    idle : ``Out(1)``
        No MSHR is valid, and ``writes_idle``.
    """

    allocate: Signal
    allocate_line: Signal
    available: Signal
    next: Signal
    line: Signal
    match: Signal
    valid: Signal
    filled: Signal
    refused: Signal
    refusals: list[Signal]
    free: Signal
    arrived: Signal
    unsettled: Signal
    unsettled_line: Signal
    busy_ways: Signal
    urgent: Signal
    settle: Signal
    settle_way: Signal
    settle_poisoned: Signal
    fill: stream.Interface
    broken: Signal
    broken_line: Signal
    broken_way: Signal
    mended: Signal
    evict_ready: Signal
    evict_start: Signal
    evict_line: Signal
    evict_zero: Signal
    evict_write: Signal
    evict_word: Signal
    secret_evict_tags: Signal
    evict_done: Signal
    writes_idle: Signal
    storage_error: Signal
    storage_base: Signal
    memory: wiring.PureInterface
    idle: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        line = config.line_address_bits
        super().__init__(
            {
                "allocate": In(1),
                "allocate_line": In(line),
                "available": Out(1),
                "next": Out(config.mshr_bits),
                "line": In(line),
                "match": Out(config.mshrs),
                "valid": Out(config.mshrs),
                "filled": Out(config.mshrs),
                "refused": Out(config.mshrs),
                "refusals": Out(Refusal).array(config.mshrs),
                "free": In(config.mshrs),
                "arrived": Out(1),
                "unsettled": Out(1),
                "unsettled_line": Out(line),
                "busy_ways": Out(config.ways),
                "urgent": Out(1),
                "settle": In(1),
                "settle_way": In(config.way_bits),
                "settle_poisoned": In(1),
                "fill": Out(stream.Signature(fill_layout(config))),
                "broken": Out(1),
                "broken_line": Out(line),
                "broken_way": Out(config.way_bits),
                "mended": In(1),
                "evict_ready": Out(1, init=1),
                "evict_start": In(1),
                "evict_line": In(line),
                "evict_zero": In(1),
                "evict_write": In(1),
                "evict_word": In(config.word_index_bits),
                "secret_evict_tags": In(config.word_bits),
                "evict_done": In(1),
                "writes_idle": Out(1),
                "storage_error": Out(1),
                "storage_base": In(config.axi_address_bits),
                "memory": Out(memory_signature(config)),
                "idle": Out(1),
            }
        )

    def _address(self, line: Value) -> Value:
        """Where a line is in storage, but for the bits that are the same in every line."""
        # Storage is aligned to the longest line: the sum begins at bit 7.
        low = 8 - self.config.line_bytes.bit_length()
        return Cat(line[:low], (self.storage_base[7:] + line[low:])[: len(self.storage_base) - 7])

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        axi = self.memory
        mshrs = range(config.mshrs)
        line_bits = config.line_address_bits
        last_word = config.line_words - 1
        offset = Const(0, config.line_bytes.bit_length() - 1)
        hazard_bits = min(_HAZARD_BITS, line_bits)
        hazard_start = min(config.set_bits, line_bits - hazard_bits)
        hazard = slice(hazard_start, hazard_start + hazard_bits)
        for channel in ("aw", "ar"):
            m.d.comb += [
                getattr(axi, f"{channel}len").eq(last_word),
                getattr(axi, f"{channel}size").eq(exact_log2(config.word_bits // 8)),
                getattr(axi, f"{channel}burst").eq(Burst.INCR),
            ]

        # Lines of the MSHRs: registers for those who compare all of them, distributed RAM for
        # those who want one.
        lines = [Signal(line_bits, name=f"line_{n}", reset_less=True) for n in mshrs]
        m.submodules.lines = line_memory = memory.Memory(
            shape=line_bits, depth=config.mshrs, init=[], attrs=_DISTRIBUTED
        )
        line_write = line_memory.write_port()
        line_read = line_memory.read_port(domain="comb")
        settled = Signal(config.mshrs)
        allocated = Signal(config.mshrs)  # strobes
        placed = Signal(config.mshrs)
        completed = Signal(config.mshrs)
        refusals = [Signal(Refusal, name=f"refusal_{n}") for n in mshrs]

        # Allocation. One bit more than the number tells a full ring from an empty one.
        taken = Signal(config.mshr_bits + 1)
        asked = Signal(config.mshr_bits + 1)
        due = Signal(config.mshr_bits + 1)
        was_valid = Signal(config.mshrs)
        quiet = Signal(config.mshrs, init=-1)
        one_after = Cat(quiet[1:], quiet[0]) if config.mshrs > 1 else Const(0)
        m.d.comb += [
            self.next.eq(taken),
            line_write.addr.eq(self.next),
            line_write.data.eq(self.allocate_line),
            line_write.en.eq(self.allocate),
            allocated.eq(Mux(self.allocate, 1 << self.next, 0)),
        ]
        m.d.sync += [
            taken.eq(taken + self.allocate),
            was_valid.eq(self.valid),
            quiet.eq(~(self.valid | was_valid)),
            self.available.eq(
                Mux(self.allocate, _flag(one_after, self.next), _flag(quiet, self.next))
            ),
        ]
        for n in mshrs:
            with m.If(allocated[n]):
                m.d.sync += [lines[n].eq(self.allocate_line), quiet[n].eq(0)]
            # Written as logic, like other flags below: that is smaller and faster than the enable
            # and the reset of a flip-flop.
            m.d.sync += [
                self.valid[n].eq((self.valid[n] | allocated[n]) & ~self.free[n]),
                settled[n].eq((settled[n] | placed[n]) & ~self.free[n]),
                self.filled[n].eq((self.filled[n] | completed[n]) & ~self.free[n]),
            ]
            with m.If(self.free[n]):
                m.d.sync += refusals[n].eq(Refusal.NONE)
            m.d.comb += [
                self.refusals[n].eq(refusals[n]),
                self.refused[n].eq(refusals[n] != Refusal.NONE),
            ]

        # Comparison with a probe's line: groups of eight bits, then all.
        for n in mshrs:
            starts = range(0, line_bits, 8)
            groups = Signal(len(starts), name=f"groups_{n}")
            for g, at in enumerate(starts):
                equal = self.line[at : at + 8] == lines[n][at : at + 8]
                # The last group has the fewest bits, and so a place for the valid bit.
                m.d.sync += groups[g].eq(equal & self.valid[n] if at == starts[-1] else equal)
            m.d.sync += self.match[n].eq(groups.all())

        # Write-backs: words go into one buffer while the other one is sent.
        m.submodules.secret_lines = secret_lines = memory.Memory(
            shape=config.word_bits, depth=2 * config.line_words, init=[], attrs=_DISTRIBUTED
        )
        word_write = secret_lines.write_port()
        word_read = secret_lines.read_port(domain="comb")
        loading = Signal()  # buffer that is next to take a line, or takes it
        sending = Signal()  # buffer that is next to be sent, or is sent
        active = Signal(2)
        complete = Signal(2)  # and not sent yet
        sent = Signal(2)
        zero = Signal(2)
        acknowledged = Signal(2)  # strobes
        write_go = Signal()
        write_line = Signal(line_bits, reset_less=True)
        write_line_valid = Signal()
        kin = [Signal(hazard_bits, name=f"kin_{n}", reset_less=True) for n in range(2)]
        m.d.comb += [
            word_write.addr.eq(Cat(self.evict_word, loading)),
            word_write.data.eq(self.secret_evict_tags),
            word_write.en.eq(self.evict_write),
            self.writes_idle.eq(~active.any()),
            self.idle.eq(~active.any() & ~self.valid.any()),
        ]
        with m.If(self.evict_start):
            m.d.sync += [write_line.eq(self.evict_line), write_line_valid.eq(1)]
        zero_start = self.evict_start & self.evict_zero
        m.d.sync += [
            loading.eq(loading ^ (self.evict_done | zero_start)),
            self.evict_ready.eq(~(_flag(active, loading) | write_line_valid | self.evict_start)),
        ]
        for n in range(2):
            mine = loading == n
            with m.If(self.evict_start & mine):
                m.d.sync += [zero[n].eq(self.evict_zero), kin[n].eq(self.evict_line[hazard])]
            m.d.sync += [
                active[n].eq((active[n] & ~acknowledged[n]) | (self.evict_start & mine)),
                complete[n].eq(
                    (complete[n] & ~(write_go & (sending == n)))
                    | ((self.evict_done | zero_start) & mine)
                ),
                sent[n].eq((sent[n] & ~acknowledged[n]) | (write_go & (sending == n))),
            ]

        # The address is formed while the words come, and offered when they are there. Storage may
        # take bursts with different ids in any order, so one to the same line waits for the other.
        write_address = Signal(len(self._address(write_line)), reset_less=True)
        address_valid = Signal()
        write_id = Signal()
        same = Signal()
        words_left = Signal()
        m.d.comb += [
            axi.awaddr.eq(Cat(offset, write_address)),
            axi.awid.eq(write_id),
        ]
        m.d.sync += [
            same.eq(kin[0] == kin[1]),
            write_go.eq(
                address_valid
                & ~axi.awvalid
                & ~words_left
                & _flag(complete, sending)
                & ~(same & sent.any())
                & ~write_go
            ),
        ]
        with m.If(~address_valid):
            m.d.sync += [
                write_address.eq(self._address(write_line)),
                address_valid.eq(write_line_valid),
            ]
            with m.If(write_line_valid):
                m.d.sync += write_line_valid.eq(0)
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += [axi.awvalid.eq(0), address_valid.eq(0)]
        with m.If(write_go):
            m.d.sync += [axi.awvalid.eq(1), words_left.eq(1), write_id.eq(sending)]

        # Words go through a register.
        write_word = Signal(config.word_index_bits)
        secret_wdata = Signal(config.word_bits, reset_less=True)
        m.d.comb += [
            word_read.addr.eq(Cat(write_word, sending)),
            axi.wdata.eq(secret_wdata),
            axi.wstrb.eq(~0),
        ]
        with m.If(~axi.wvalid | axi.wready):
            m.d.sync += [
                axi.wvalid.eq(words_left),
                axi.wlast.eq(write_word == last_word),
                secret_wdata.eq(word_read.data),
                write_word.eq(write_word + words_left),
            ]
            with m.If(_flag(zero, sending)):
                m.d.sync += secret_wdata.eq(0)
            with m.If(words_left & (write_word == last_word)):
                m.d.sync += [words_left.eq(0), sending.eq(~sending)]

        m.d.comb += [
            axi.bready.eq(1),
            *(acknowledged[n].eq(axi.bvalid & (axi.bid[0] == n)) for n in range(2)),
        ]
        with m.If(axi.bvalid & axi.bresp.as_value()[1]):
            m.d.sync += self.storage_error.eq(1)

        # Reads are asked for in the order of allocation. A line that finds the stage empty goes
        # there at once. The address may be formed in vain, but it is not offered during a hazard.
        ask_line = Signal(line_bits, reset_less=True)
        ask_id = Signal(config.mshr_bits)
        ask_valid = Signal()
        ask_busy = ask_valid | axi.arvalid
        line_turn = Signal()  # reads have their turn at the lines' memory
        backlog = Signal()  # there are lines before: right in each turn, and else perhaps late
        ask_load = Signal()
        ask_kin = ask_line[hazard]
        hazards = [active[n] & (kin[n] == ask_kin) for n in range(2)]
        read_address = Signal(len(self._address(ask_line)), reset_less=True)
        read_id = Signal(config.mshr_bits)
        m.d.comb += [
            axi.araddr.eq(Cat(offset, read_address)),
            axi.arid.eq(read_id),
            ask_load.eq(~ask_busy & Mux(backlog, line_turn, self.allocate)),
        ]
        m.d.sync += [
            asked.eq(asked + ask_load),
            backlog.eq(Mux(backlog, (asked != taken) | self.allocate, ask_busy & self.allocate)),
        ]
        with m.If(~ask_busy):
            m.d.sync += [
                ask_line.eq(Mux(backlog, line_read.data, self.allocate_line)),
                ask_id.eq(asked),
            ]
        with m.If(~axi.arvalid):
            m.d.sync += [read_address.eq(self._address(ask_line)), read_id.eq(ask_id)]
        m.d.sync += [
            ask_valid.eq(ask_load | (ask_valid & ~axi.arvalid)),
            axi.arvalid.eq(Mux(axi.arvalid, ~axi.arready, ask_valid & ~Cat(hazards).any())),
        ]

        # Beats wait in distributed RAM. What is to be known of the next one is in registers, which
        # it reaches at once if there is no other.
        beat_layout = data.StructLayout({"id": config.mshr_bits, "failed": 1})
        m.submodules.secret_beats = secret_beats = memory.Memory(
            shape=config.word_bits, depth=_BEATS, init=[], attrs=_DISTRIBUTED
        )
        m.submodules.beats = beats = memory.Memory(
            shape=beat_layout, depth=_BEATS, init=[], attrs=_DISTRIBUTED
        )
        tags_write = secret_beats.write_port()
        tags_read = secret_beats.read_port(domain="comb")
        beats_write = beats.write_port()
        beats_read = beats.read_port(domain="comb")
        pointer = range(_BEATS)
        beats_in = Signal(pointer)
        beats_out = Signal(pointer)
        beat_valid = Signal()
        beat = Signal(beat_layout)
        beat_place = Signal(pointer)
        beat_go = Signal()
        came = axi.rvalid & axi.rready
        queued = Signal()
        m.d.comb += [
            tags_write.addr.eq(beats_in),
            tags_write.data.eq(axi.rdata),
            tags_write.en.eq(came),
            beats_write.addr.eq(beats_in),
            beats_write.data.id.eq(axi.rid),
            beats_write.data.failed.eq(axi.rresp.as_value()[1]),
            beats_write.en.eq(came),
            beats_read.addr.eq(beats_out),
            tags_read.addr.eq(beat_place),
        ]
        waiting = Signal(pointer)
        takes = ~beat_valid | beat_go
        one = (beats_in - beats_out)[: len(beats_in)] == 1
        m.d.sync += [
            waiting.eq(beats_in - beats_out),
            # Three more may come before this is seen, and one is in `beat`.
            axi.rready.eq(waiting < _BEATS - 5),
            beats_in.eq(beats_in + came),
            queued.eq(Mux(takes, queued & (came | ~one), queued | came)),
        ]
        with m.If(takes):
            m.d.sync += [
                beat_valid.eq(queued | came),
                beat.eq(Mux(queued, beats_read.data.as_value(), beats_write.data.as_value())),
                beat_place.eq(beats_out),
                beats_out.eq(beats_out + (queued | came)),
            ]

        # Where it goes. The number of the next word, and whether one before failed, are cleared
        # when the line gets its place: in the cycle behind that no beat goes on.
        m.submodules.places = places = memory.Memory(
            shape=config.set_bits + config.way_bits + 1,
            depth=config.mshrs,
            init=[],
            attrs=_DISTRIBUTED,
        )
        places_write = places.write_port()
        places_read = places.read_port(domain="comb")
        m.submodules.progress = progress = memory.Memory(
            shape=config.word_index_bits + 1, depth=config.mshrs, init=[], attrs=_DISTRIBUTED
        )
        progress_write = progress.write_port()
        progress_read = progress.read_port(domain="comb")
        clearing = Signal()
        clearing_id = Signal(config.mshr_bits)
        place = places_read.data[: config.set_bits + config.way_bits]
        poisoned = places_read.data[-1]
        word = progress_read.data[1:]
        failed = progress_read.data[0] | beat.failed
        last = word == last_word
        has_place = _flag(settled, beat.id)
        m.d.comb += [
            places_read.addr.eq(beat.id),
            progress_read.addr.eq(beat.id),
            progress_write.addr.eq(Mux(clearing, clearing_id, beat.id)),
            progress_write.data.eq(
                Mux(clearing, 0, Cat(failed, (word + 1)[: config.word_index_bits]))
            ),
            progress_write.en.eq(clearing | beat_go),
        ]
        m.d.sync += self.urgent.eq(beat_valid & ~has_place)

        # The register of `fill`. What is swallowed passes it, too. Behind the last beat of a line
        # that failed nothing goes on until the line is dropped.
        fill_free = Signal()
        fill_swallow = Signal()
        fill_place = Signal(config.set_bits + config.way_bits)
        fill_word = Signal(config.word_index_bits)
        fill_id = Signal(config.mshr_bits)
        fill_last = Signal()
        fill_breaks = Signal()
        breaking = Signal()
        secret_fill = Signal(config.word_bits, reset_less=True)
        m.d.comb += [
            fill_free.eq(~breaking & (~self.fill.valid | (self.fill.ready & ~fill_breaks))),
            beat_go.eq(beat_valid & has_place & ~clearing & fill_free),
            self.fill.payload.index.eq(Cat(fill_word, fill_place)),
            self.fill.payload.secret_tags.eq(secret_fill),
            self.broken_way.eq(fill_place[config.set_bits :]),
        ]
        with m.If(fill_free):
            m.d.sync += [
                self.fill.valid.eq(beat_go & ~poisoned),
                fill_swallow.eq(beat_go & poisoned),
                fill_place.eq(place),
                fill_word.eq(word),
                fill_id.eq(beat.id),
                fill_last.eq(last),
                fill_breaks.eq(last & failed & ~poisoned),
                secret_fill.eq(tags_read.data),
            ]
        with m.Elif(self.fill.ready):
            m.d.sync += self.fill.valid.eq(0)
        with m.If(self.fill.valid & self.fill.ready & fill_breaks):
            m.d.sync += breaking.eq(1)
        with m.If(self.mended):
            m.d.sync += [breaking.eq(0), self.broken.eq(0)]
        complete_line = Signal()
        m.d.comb += complete_line.eq(
            self.mended
            | (fill_last & (fill_swallow | (self.fill.valid & self.fill.ready & ~fill_breaks)))
        )
        m.d.sync += self.arrived.eq(complete_line)
        m.d.comb += completed.eq(Mux(complete_line, 1 << fill_id, 0))
        for n in mshrs:
            with m.If(completed[n]):
                m.d.sync += refusals[n].as_value().eq(Cat(fill_breaks, fill_swallow))

        # The MSHR that wants a place, and then the ways that it cannot have.
        settling = due[: config.mshr_bits]
        line_number = Signal(config.mshr_bits)
        looked_up = Signal()
        visit = Signal(config.mshr_bits + 1)
        visited = Signal()
        neighbour_settled = Signal()
        neighbour_beside = Signal()  # in the same set
        neighbour_way = Signal(config.way_bits)
        m.d.comb += [
            places_write.addr.eq(settling),
            places_write.data.eq(
                Cat(
                    self.unsettled_line[: config.set_bits],
                    self.settle_way,
                    self.settle_poisoned,
                )
            ),
            places_write.en.eq(self.settle),
            placed.eq(Mux(self.settle, 1 << settling, 0)),
        ]
        m.d.sync += [
            due.eq(due + self.settle),
            clearing.eq(self.settle),
            clearing_id.eq(settling),
        ]

        # Reads have the lines' memory in every second cycle, these two in the other ones. Its
        # address is a register, which a number that has just changed has not reached yet.
        line_broken = Signal()
        m.d.comb += line_read.addr.eq(line_number)
        m.d.sync += line_turn.eq(~line_turn)
        with m.If(~line_turn):
            m.d.sync += line_number.eq(asked)
        with m.Elif(breaking & ~self.broken):
            m.d.sync += [line_number.eq(fill_id), line_broken.eq(1)]
        with m.Else():
            m.d.sync += [line_number.eq(settling), line_broken.eq(0)]
        with m.If(~line_turn & line_broken):
            m.d.sync += [self.broken_line.eq(line_read.data), self.broken.eq(1)]
        with m.If(~line_turn & ~line_broken):
            m.d.sync += self.unsettled_line.eq(line_read.data)
            with m.If((due != taken) & ~clearing):
                m.d.sync += looked_up.eq(1)
        # The other MSHRs are visited one after the other.
        neighbour_read = places.read_port(domain="comb")
        neighbour_set = neighbour_read.data[: config.set_bits]
        m.d.comb += neighbour_read.addr.eq(visit)
        with m.If(looked_up):
            m.d.sync += [
                visit.eq(visit + ~visit[-1]),
                visited.eq(visit[-1]),
                self.unsettled.eq(visited),
            ]
        m.d.sync += [
            neighbour_settled.eq(
                looked_up & ~visit[-1] & _flag(settled, visit[:-1]) & ~neighbour_read.data[-1]
            ),
            neighbour_beside.eq(neighbour_set == self.unsettled_line[: config.set_bits]),
            neighbour_way.eq(neighbour_read.data[config.set_bits :]),
        ]
        for way in range(config.ways):
            with m.If(neighbour_settled & neighbour_beside & (neighbour_way == way)):
                m.d.sync += self.busy_ways[way].eq(1)
        with m.If(self.settle):
            m.d.sync += [looked_up.eq(0), self.unsettled.eq(0)]
        with m.If(~looked_up):
            m.d.sync += [visit.eq(0), visited.eq(0), self.busy_ways.eq(0)]
        m.d.sync += [
            Assert(~self.allocate | self.available, "an MSHR is allocated that is in use"),
            Assert(waiting <= _BEATS - 3, "the buffer of beats overflows"),
        ]
        return m

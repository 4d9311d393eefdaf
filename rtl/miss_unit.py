"""The way to tag storage: refill, write-back and initialisation over AXI4."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, enum, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .axi import Burst
from .config import TagConfig
from .layouts import memory_signature

__all__ = ["MissKind", "MissUnit", "miss_layout"]


class MissKind(enum.Enum, shape=2):
    """What the cache wants of tag storage."""

    REFILL = 0
    """Fetch a line; before that, write back the one that it replaces if ``victim_dirty``."""
    CLEAN = 1
    """Write the victim back, and wait until storage has it."""
    INITIALISE = 2
    """Write zeros to the whole of tag storage."""


def miss_layout(config: TagConfig) -> data.StructLayout:
    """A request to the miss unit."""
    return data.StructLayout(
        {
            "kind": MissKind,
            "line": config.line_address_bits,  # to be fetched
            "victim_line": config.line_address_bits,  # to be written back
            "victim_dirty": 1,
        }
    )


class MissUnit(wiring.Component):
    """Moves lines between the tag cache and tag storage.

    One request at a time. A refill is done when the last word is in the array; the write-back of
    its victim goes on behind it, and the next request waits for that. A line that is being written
    back is thus never fetched before storage has it.

    An error response to a read fails the refill. One to a write-back has no access left to blame:
    it sets ``storage_error`` until reset.

    Members
    -------
    request : ``In(stream.Signature(miss_layout(config)))``
        What is to be done.
    done : ``Out(1)``
        Strobe: the request is finished.
    failed : ``Out(1)``
        With ``done``: storage answered a read with an error.
    word : ``Out(config.word_index_bits)``
        Word of the line that is read from, or written to, the tag array. The cache knows the
        line's place.
    tags_read : ``Out(1)``
        Read the word; ``tags`` has it in the next cycle.
    tags : ``In(64)``
        The word that was read. Secret.
    tags_write : ``Out(1)``
        Write the word.
    tags_value : ``Out(64)``
        What is written. Secret.
    storage_base : ``In(config.axi_address_bits)``
        Where tag storage begins.
    storage_bytes : ``In(config.memory_bits - 4)``
        Its size, for INITIALISE.
    memory : ``Out(memory_signature(config))``
        Tag storage. Bursts of one line, all with id 0.
    storage_error : ``Out(1)``
        Sticky: a write to tag storage failed.
    idle : ``Out(1)``
        No request is under way, and no write-back is outstanding.
    """

    request: stream.Interface
    done: Signal
    failed: Signal
    word: Signal
    tags_read: Signal
    tags: Signal
    tags_write: Signal
    tags_value: Signal
    storage_base: Signal
    storage_bytes: Signal
    memory: wiring.PureInterface
    storage_error: Signal
    idle: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "request": In(stream.Signature(miss_layout(config))),
                "done": Out(1),
                "failed": Out(1),
                "word": Out(config.word_index_bits),
                "tags_read": Out(1),
                "tags": In(config.word_bits),
                "tags_write": Out(1),
                "tags_value": Out(config.word_bits),
                "storage_base": In(config.axi_address_bits),
                "storage_bytes": In(config.memory_bits - 4),
                "memory": Out(memory_signature(config)),
                "storage_error": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        axi = self.memory
        last_word = config.line_words - 1
        size = (config.word_bits // 8).bit_length() - 1

        def bus_address(line):
            return self.storage_base + (line << (config.line_bytes.bit_length() - 1))

        # The line that is written back waits here, so that the array is free for the refill.
        m.submodules.secret_line = secret_line = memory.Memory(
            shape=config.word_bits, depth=config.line_words, init=[]
        )
        line_write = secret_line.write_port()
        line_read = secret_line.read_port(domain="comb")

        # The write channels run by themselves.
        write_start = Signal()
        write_zeros = Signal()
        write_address = Signal(config.axi_address_bits)
        write_word = Signal(config.word_index_bits)
        responding = Signal()
        writing = Signal()
        m.d.comb += [
            writing.eq(axi.awvalid | axi.wvalid | responding),
            axi.awaddr.eq(write_address),
            axi.awlen.eq(last_word),
            axi.awsize.eq(size),
            axi.awburst.eq(Burst.INCR),
            line_read.addr.eq(write_word),
            axi.wstrb.eq(~0),
            axi.wlast.eq(write_word == last_word),
            axi.bready.eq(responding),
        ]
        with m.If(~write_zeros):
            m.d.comb += axi.wdata.eq(line_read.data)
        with m.If(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        with m.If(axi.wvalid & axi.wready):
            m.d.sync += write_word.eq(write_word + 1)
            with m.If(axi.wlast):
                m.d.sync += axi.wvalid.eq(0)
        with m.If(axi.bvalid & axi.bready):
            m.d.sync += responding.eq(0)
            with m.If(axi.bresp.as_value()[1]):
                m.d.sync += self.storage_error.eq(1)
        with m.If(write_start):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.wvalid.eq(1),
                responding.eq(1),
                write_word.eq(0),
            ]

        # One request after the other.
        kind = Signal(MissKind)
        read_address = Signal(config.axi_address_bits)
        count = Signal(range(config.line_words + 1))
        read_failed = Signal()
        next_line = Signal(config.line_address_bits + 1)
        m.d.comb += [
            axi.araddr.eq(read_address),
            axi.arlen.eq(last_word),
            axi.arsize.eq(size),
            axi.arburst.eq(Burst.INCR),
            self.word.eq(count),
            self.tags_value.eq(axi.rdata),
            line_write.addr.eq(count - 1),
            line_write.data.eq(self.tags),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.request.ready.eq(~writing), self.idle.eq(~writing)]
                with m.If(self.request.valid & self.request.ready):
                    # Only now: the address of a write-back must not move while it is offered.
                    m.d.sync += [
                        kind.eq(self.request.payload.kind),
                        read_address.eq(bus_address(self.request.payload.line)),
                        write_address.eq(bus_address(self.request.payload.victim_line)),
                        write_zeros.eq(0),
                        next_line.eq(0),
                        count.eq(0),
                        read_failed.eq(0),
                    ]
                    with m.Switch(self.request.payload.kind):
                        with m.Case(MissKind.REFILL):
                            with m.If(self.request.payload.victim_dirty):
                                m.next = "EVICT"
                            with m.Else():
                                m.next = "READ"
                        with m.Case(MissKind.CLEAN):
                            m.next = "EVICT"
                        with m.Default():
                            m.next = "ZERO"

            with m.State("EVICT"):
                # A word arrives in the cycle after it was read.
                m.d.comb += [
                    self.tags_read.eq(count <= last_word),
                    line_write.en.eq(count != 0),
                ]
                m.d.sync += count.eq(count + 1)
                with m.If(count == last_word + 1):
                    m.d.comb += write_start.eq(1)
                    m.d.sync += count.eq(0)
                    with m.If(kind == MissKind.REFILL):
                        m.next = "READ"
                    with m.Else():
                        m.next = "WRITE"

            with m.State("READ"):
                m.d.comb += axi.arvalid.eq(1)
                with m.If(axi.arready):
                    m.next = "REFILL"

            with m.State("REFILL"):
                m.d.comb += axi.rready.eq(1)
                with m.If(axi.rvalid):
                    m.d.comb += self.tags_write.eq(1)
                    m.d.sync += count.eq(count + 1)
                    with m.If(axi.rresp.as_value()[1]):
                        m.d.sync += read_failed.eq(1)
                    with m.If(count == last_word):
                        m.next = "DONE"

            with m.State("ZERO"):
                with m.If(next_line == self.storage_bytes[config.line_bytes.bit_length() - 1 :]):
                    m.next = "DONE"
                with m.Else():
                    m.d.comb += write_start.eq(1)
                    m.d.sync += [
                        write_address.eq(bus_address(next_line)),
                        write_zeros.eq(1),
                        next_line.eq(next_line + 1),
                    ]
                    m.next = "WRITE"

            with m.State("WRITE"):
                with m.If(~writing):
                    with m.If(kind == MissKind.INITIALISE):
                        m.next = "ZERO"
                    with m.Else():
                        m.next = "DONE"

            with m.State("DONE"):
                m.d.comb += [
                    self.done.eq(1),
                    self.failed.eq(read_failed),
                ]
                m.next = "IDLE"
        return m

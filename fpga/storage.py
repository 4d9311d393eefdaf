"""A small tag storage in block RAM, behind an AXI4 port."""

from amaranth.hdl import Module, Signal
from amaranth.lib import enum, memory, wiring
from amaranth.lib.wiring import In
from amaranth.utils import exact_log2
from emte.rtl.axi import AXI4Signature, Burst, Response

__all__ = ["Fault", "TagStorage"]


class Fault(enum.Enum, shape=2):
    """What is wrong with the storage; for tests, which must see the difference."""

    NONE = 0
    FLIP = 1
    """Bit 0 of every beat that is read is inverted."""
    HANG = 2
    """Reads are never accepted."""


class TagStorage(wiring.Component):
    """AXI4 subordinate: INCR bursts of full-width beats, one read and one write at a time.

    A read burst takes two cycles for each beat, a write burst one. Any other kind of burst is
    answered with SLVERR, and one that begins outside the storage with DECERR; neither has an
    effect. Content survives a reset.

    Parameters
    ----------
    signature : :class:`AXI4Signature`
        Of the manager.
    base : int
        First address; a multiple of ``bytes``.
    bytes : int
        Size, a power of two.

    Members
    -------
    bus : ``In(signature)``
        From the manager.
    fault : ``In(Fault)``
        Tie it to :attr:`Fault.NONE`, and synthesis drops it.

    Raises
    ------
    ValueError
        ``bytes`` is not a power of two of at least two beats, or ``base`` is not aligned to it.
    """

    bus: wiring.PureInterface
    fault: Signal

    def __init__(self, signature: AXI4Signature, *, base: int, bytes: int) -> None:
        beat_bytes = signature.data_width // 8
        if bytes < 2 * beat_bytes or bytes & (bytes - 1):
            raise ValueError(
                f"bytes must be a power of two of at least {2 * beat_bytes}, not {bytes!r}"
            )
        if base % bytes:
            raise ValueError(f"base must be a multiple of bytes, not {base:#x}")
        self.base = base
        self.bytes = bytes
        super().__init__({"bus": In(signature), "fault": In(Fault)})

    def elaborate(self, platform) -> Module:
        m = Module()
        bus = self.bus
        beat_bytes = len(bus.wdata) // 8
        offset_bits = exact_log2(beat_bytes)
        top_bits = exact_log2(self.bytes)

        m.submodules.words = words = memory.Memory(
            shape=len(bus.wdata), depth=self.bytes // beat_bytes, init=[]
        )
        # A read that meets a write of the same word may see either value: the manager orders them.
        words_read = words.read_port(transparent_for=())
        words_write = words.write_port(granularity=8)

        def response(address, size, burst):
            """How a burst that begins so is to be answered."""
            result = Signal(Response)
            with m.If(address[top_bits:] != self.base >> top_bits):
                m.d.comb += result.eq(Response.DECERR)
            with m.Elif(
                (burst != Burst.INCR) | (size != offset_bits) | address[:offset_bits].any()
            ):
                m.d.comb += result.eq(Response.SLVERR)
            return result

        # Reads.
        read_beats = Signal(8)
        m.d.comb += [
            words_read.en.eq(0),
            bus.rdata.eq(words_read.data ^ (self.fault == Fault.FLIP)),
            bus.rlast.eq(read_beats == 0),
        ]
        with m.FSM(name="read"):
            with m.State("IDLE"):
                m.d.comb += bus.arready.eq(self.fault != Fault.HANG)
                with m.If(bus.arvalid & bus.arready):
                    m.d.sync += [
                        bus.rid.eq(bus.arid),
                        bus.rresp.eq(response(bus.araddr, bus.arsize, bus.arburst)),
                        words_read.addr.eq(bus.araddr[offset_bits:]),
                        read_beats.eq(bus.arlen),
                    ]
                    m.next = "FETCH"
            with m.State("FETCH"):
                m.d.comb += words_read.en.eq(1)
                m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += bus.rvalid.eq(1)
                with m.If(bus.rready):
                    m.d.sync += [
                        words_read.addr.eq(words_read.addr + 1),
                        read_beats.eq(read_beats - 1),
                    ]
                    with m.If(bus.rlast):
                        m.next = "IDLE"
                    with m.Else():
                        m.next = "FETCH"

        # Writes.
        m.d.comb += words_write.data.eq(bus.wdata)
        with m.FSM(name="write"):
            with m.State("IDLE"):
                m.d.comb += bus.awready.eq(1)
                with m.If(bus.awvalid):
                    m.d.sync += [
                        bus.bid.eq(bus.awid),
                        bus.bresp.eq(response(bus.awaddr, bus.awsize, bus.awburst)),
                        words_write.addr.eq(bus.awaddr[offset_bits:]),
                    ]
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += bus.wready.eq(1)
                with m.If(bus.wvalid):
                    with m.If(bus.bresp == Response.OKAY):
                        m.d.comb += words_write.en.eq(bus.wstrb)
                    m.d.sync += words_write.addr.eq(words_write.addr + 1)
                    with m.If(bus.wlast):
                        m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += bus.bvalid.eq(1)
                with m.If(bus.bready):
                    m.next = "IDLE"
        return m

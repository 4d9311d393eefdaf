"""Where the tags of tag stores wait for their turn."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from .config import TagConfig

__all__ = ["StoreBuffer"]

UNDER_WAY = 6
"""Places that may be written after the count of them is known which tells that there is none."""


class StoreBuffer(wiring.Component):
    """A ring of tags that are to be stored; only its number goes through the pipeline.

    A place is not given back: it is taken again when the ring comes round. So the ring must not
    overtake the oldest tag store on the waiting list, whose place is remembered.

    Members
    -------
    ready : ``Out(1)``
        A tag store may be admitted in the next cycle; a register.
    slot : ``Out(config.store_bits)``
        The place that is written next.
    write : ``In(1)``
        A tag store is admitted, with ``secret_write_tags``; only in the cycle after ``ready``.
    secret_write_tags : ``In(64)``
        A tag for each granule of the word.
    read_slot : ``In(config.store_bits)``
        The place that is read.
    secret_tags : ``Out(64)``
        What is there; in the same cycle.
    waits, leaves : ``In(1)``
        A tag store goes onto the waiting list, or leaves it.
    waits_slot, leaves_slot : ``In(config.store_bits)``
        Its place.
    """

    ready: Signal
    slot: Signal
    write: Signal
    secret_write_tags: Signal
    read_slot: Signal
    secret_tags: Signal
    waits: Signal
    waits_slot: Signal
    leaves: Signal
    leaves_slot: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "ready": Out(1),
                "slot": Out(config.store_bits),
                "write": In(1),
                "secret_write_tags": In(config.word_bits),
                "read_slot": In(config.store_bits),
                "secret_tags": Out(config.word_bits),
                "waits": In(1),
                "waits_slot": In(config.store_bits),
                "leaves": In(1),
                "leaves_slot": In(config.store_bits),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        depth = 1 << config.store_bits

        m.submodules.secret_places = places = memory.Memory(
            shape=config.word_bits, depth=depth, init=[]
        )
        places_write = places.write_port()
        places_read = places.read_port(domain="comb")
        m.d.comb += [
            places_write.addr.eq(self.slot),
            places_write.data.eq(self.secret_write_tags),
            # The next place takes whatever comes: it counts only once the ring goes on.
            places_write.en.eq(1),
            places_read.addr.eq(self.read_slot),
            self.secret_tags.eq(places_read.data),
        ]
        with m.If(self.write):
            m.d.sync += self.slot.eq(self.slot + 1)

        # Tag stores go onto the list and leave it in the order of the ring.
        waiting = Signal(range(config.waiting + 1))
        oldest = Signal(config.store_bits)
        ahead = Signal(config.store_bits)
        m.d.sync += [
            waiting.eq(waiting + self.waits - self.leaves),
            ahead.eq(self.slot - oldest),
            self.ready.eq(ahead < depth - UNDER_WAY),
        ]
        with m.If(self.leaves):
            m.d.sync += oldest.eq(self.leaves_slot)
        with m.Elif(waiting == 0):
            m.d.sync += oldest.eq(Mux(self.waits, self.waits_slot, self.slot))
        return m

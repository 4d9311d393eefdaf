"""What the initialiser of tag storage promises."""

from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Signal
from emte.rtl import TagCache
from unit_spec import UnitSpec


class InitialiserSpec(UnitSpec):
    """A cache is not ready, and takes no probe, before tag storage is known good.

    One line of tag storage is looked at, any one. It is good if ``storage_zeroed`` vouched for it
    after reset, or if a burst of zeros was written to it and storage has answered. If the
    answer was an error, ``storage_error`` tells.

    Assumed is the contract of the core: the map and ``storage_zeroed`` stand when reset ends and
    stay, the map's size is a multiple of 4096 bytes of memory, and its place one of 128 bytes; and
    of AXI, that a write is answered after its address and its last word.
    """

    unit: TagCache

    def specify(self, m: Module) -> None:
        config = self.unit.config
        line_bits = config.line_bytes.bit_length() - 1
        memory = self.memory

        vouched = self.storage_zeroed
        contract = Cat(self.storage_base, self.storage_bytes, vouched)
        started = Signal()
        before = Signal.like(contract)
        m.d.sync += [started.eq(1), before.eq(contract)]
        m.d.comb += [
            Assume(self.storage_base[:7] == 0),
            Assume(self.storage_bytes[:7] == 0),
            Assume(self.storage_base + self.storage_bytes <= 1 << config.axi_address_bits),
            Assume(~started | (contract == before)),
        ]

        line = Signal(config.line_address_bits)
        m.d.comb += line.eq(AnyConst(config.line_address_bits))
        inside = line < self.storage_bytes[line_bits:]

        # The burst under way; the unit has one at a time.
        addressed = Signal()
        ours = Signal()
        written = Signal()
        zeros = Signal(init=1)
        good = Signal()
        with m.If(memory.awvalid & memory.awready):
            m.d.sync += [
                addressed.eq(1),
                ours.eq(memory.awaddr == self.storage_base + (line << line_bits)),
            ]
        with m.If(memory.wvalid & memory.wready):
            m.d.sync += written.eq(memory.wlast)
            with m.If(memory.wdata.any() | ~memory.wstrb.all()):
                m.d.sync += zeros.eq(0)
        with m.If(memory.bvalid & memory.bready):
            m.d.sync += [addressed.eq(0), written.eq(0), zeros.eq(1), good.eq(good | ours & zeros)]
        m.d.comb += Assume(~memory.bvalid | (addressed & written))
        m.d.comb += [
            Assert(~self.ready | ~inside | vouched | good, "ready, and a line is not zeroed"),
            Assert(self.ready | ~self.probe.ready, "a probe is taken before the cache is ready"),
            Cover(self.ready & inside & ~vouched & (line == 1), "storage is zeroed"),
            Cover(self.ready & vouched, "storage is vouched for"),
        ]

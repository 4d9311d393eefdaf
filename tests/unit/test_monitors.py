import pytest
from amaranth.hdl import Module, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In
from emte.rtl.axi import AXI4Signature
from emte.sim.harness import simulate
from emte.sim.monitors import StreamMonitor, axi4_channels

SIGNATURE = stream.Signature(data.StructLayout({"a": 3, "b": 5}))


def run(*cycles):
    """Show a monitor ``(valid, ready, a)`` of successive cycles."""
    dut = StreamMonitor(SIGNATURE)

    async def bench(ctx):
        for valid, ready, a in cycles:
            # First a wrong value: what counts is the clock edge.
            ctx.set(dut.valid, 1 - valid)
            ctx.set(dut.payload, {"a": a ^ 7})
            ctx.set(dut.valid, valid)
            ctx.set(dut.ready, ready)
            ctx.set(dut.payload, {"a": a})
            await ctx.tick()

    simulate(dut, bench)


def test_allowed():
    run((0, 0, 1), (0, 1, 2), (1, 1, 3), (1, 0, 4), (1, 0, 4), (1, 1, 4), (0, 1, 5), (1, 1, 6))


def test_valid_falls():
    with pytest.raises(AssertionError, match="valid fell before the payload was taken"):
        run((1, 0, 1), (0, 0, 1), (0, 0, 1))


def test_payload_changes():
    with pytest.raises(AssertionError, match="the payload changed before it was taken"):
        run((1, 0, 1), (1, 1, 2), (0, 0, 0))


def test_watch_connects_every_member():
    class Watched(wiring.Component):
        i: In(SIGNATURE)

        def elaborate(self, platform):
            m = Module()
            StreamMonitor.watch(m, self.i, "i_monitor")
            m.d.comb += self.i.ready.eq(0)
            return m

    dut = Watched()

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        await ctx.tick()
        ctx.set(dut.i.payload, {"b": 1})
        await ctx.tick()
        await ctx.tick()

    with pytest.raises(AssertionError, match="the payload changed before it was taken"):
        simulate(dut, bench)


AXI = AXI4Signature(address_width=32, data_width=64, id_width=2)


class WatchedAXI(wiring.Component):
    axi: In(AXI)

    def elaborate(self, platform):
        m = Module()
        for name, channel in axi4_channels(m, self.axi).items():
            StreamMonitor.watch(m, channel, name)
        return m


@pytest.mark.parametrize(
    ("channel", "member"),
    [("aw", "awaddr"), ("w", "wlast"), ("b", "bresp"), ("ar", "arlen"), ("r", "rdata")],
)
def test_each_channel_of_axi_is_watched(channel, member):
    def run(change_after):
        dut = WatchedAXI()

        async def bench(ctx):
            ctx.set(getattr(dut.axi, f"{channel}valid"), 1)
            for cycle in range(3):
                ctx.set(Value.cast(getattr(dut.axi, member)), int(cycle > change_after))
                ctx.set(getattr(dut.axi, f"{channel}ready"), int(cycle == 1))
                await ctx.tick()

        simulate(dut, bench)

    run(change_after=1)
    with pytest.raises(AssertionError, match="the payload changed before it was taken"):
        run(change_after=0)

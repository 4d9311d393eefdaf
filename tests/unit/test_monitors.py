import pytest
from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In
from emte.sim.harness import simulate
from emte.sim.monitors import StreamMonitor

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

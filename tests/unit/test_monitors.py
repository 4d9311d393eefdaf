import pytest
from amaranth.hdl import Module, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In
from emte.rtl import SMALL, Op
from emte.rtl.axi import AXI4Signature
from emte.sim.harness import simulate
from emte.sim.monitors import CoreMonitor, StreamMonitor, axi4_channels

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


def run_core(*cycles):
    """Show a monitor of the core successive cycles.

    Each is a dictionary: ``offer`` an access, which stays until ``taken``; ``answer`` an id;
    ``resolve`` a branch, and ``wrong`` if it was mispredicted.
    """
    dut = CoreMonitor(SMALL)

    async def bench(ctx):
        for cycle in ({"offer": None}, *cycles, {}):
            if "offer" in cycle:
                ctx.set(dut.valid, cycle["offer"] is not None)
                ctx.set(dut.payload, {"bytes": 16, **(cycle["offer"] or {})})
            ctx.set(dut.ready, cycle.get("taken", 1))
            ctx.set(dut.answered, "answer" in cycle)
            ctx.set(dut.id, cycle.get("answer", 0))
            ctx.set(dut.resolve.valid, "resolve" in cycle)
            ctx.set(dut.resolve.branch, cycle.get("resolve", 0))
            ctx.set(dut.resolve.mispredicted, cycle.get("wrong", 0))
            await ctx.tick()

    simulate(dut, bench)


STORE_TAG = {"id": 1, "op": Op.STG, "pa": 0x2040, "bytes": 32}
NONE = {"offer": None}


def test_core_keeps_the_contract():
    speculative = {"id": 0, "branches": 0b10, "pa": 0x2050}
    run_core(
        {"offer": speculative, "taken": 0},
        {"taken": 0},
        {"taken": 1},
        {"offer": {**STORE_TAG, "pa": 0x2060}},  # beside what the unresolved access looks at
        {**NONE, "resolve": 1},
        {"offer": {**STORE_TAG, "id": 2}},
        {**NONE, "answer": 0},
        {"offer": {"id": 0, "branches": 1, "pa": 0x2FF0}},
        {**NONE, "resolve": 0, "wrong": 1},
        {"offer": {"id": 0, "pa": 0x2FF8, "bytes": 8}},
        {"offer": {"id": 3, "op": Op.STG, "va": 0x2FF8, "pa": 0x2FF8, "bytes": 16}},  # misaligned
        NONE,
    )


@pytest.mark.parametrize(
    ("cycles", "clause"),
    [
        ([{"offer": {"id": 3}}, {"offer": {"id": 3}}], "the id of one that is outstanding"),
        (
            [{"offer": {"id": 3, "branches": 1}}, {**NONE, "resolve": 0}, {"offer": {"id": 3}}],
            "the id of one that is outstanding",
        ),
        (
            [
                {"offer": {"id": 3, "branches": 1}},
                {**NONE, "resolve": 1, "wrong": 1},
                {"offer": {"id": 3}},
            ],
            "the id of one that is outstanding",
        ),
        ([{"offer": {"pa": 0x2FF1}}], "crosses a page"),
        ([{"offer": {**STORE_TAG, "branches": 1}}], "is speculative"),
        ([{"offer": {"op": Op.CLEAN, "branches": 1}}], "is speculative"),
        (
            [{"offer": {"branches": 1, "pa": 0x205F, "bytes": 1}}, {"offer": STORE_TAG}],
            "at which an unresolved access looks",
        ),
        (
            [{"offer": {"branches": 1, "pa": 0x203F, "bytes": 2}}, {"offer": STORE_TAG}],
            "at which an unresolved access looks",
        ),
    ],
)
def test_core_breaks_the_contract(cycles, clause):
    with pytest.raises(AssertionError, match=clause):
        run_core(*cycles, NONE)

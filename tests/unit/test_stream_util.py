import re

from amaranth.back import rtlil
from amaranth.hdl import Module
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out
from emte.rtl.stream_util import PayloadRegister
from emte.sim.harness import simulate
from unit_support import plain


class Kind(enum.Enum, shape=2):
    A = 0
    B = 3


LAYOUT = data.StructLayout(
    {
        "kind": Kind,
        "tags": 8,
        "nested": data.StructLayout({"number": 5, "secret_key": 4}),
        "secret_all": data.StructLayout({"flag": 1, "modes": data.ArrayLayout(Kind, 2)}),
    }
)


class Pair(wiring.Component):
    """Two registers of one layout: the second one copies the first."""

    i: In(LAYOUT)
    load: In(1)
    copy: In(1)
    o: Out(LAYOUT)

    def elaborate(self, platform):
        m = Module()
        first = PayloadRegister(LAYOUT, name="first")
        second = PayloadRegister(LAYOUT, name="second")
        m.d.comb += second.drive(self.o)
        with m.If(self.load):
            m.d.sync += first.load(self.i)
        with m.If(self.copy):
            m.d.sync += second.copy(first)
        return m


def test_sim_load_copy_drive():
    dut = Pair()
    values = [
        {
            "kind": Kind.B,
            "tags": 0xA5,
            "nested": {"number": 17, "secret_key": 9},
            "secret_all": {"flag": 1, "modes": [Kind.B, Kind.A]},
        },
        {
            "kind": Kind.A,
            "tags": 0x5A,
            "nested": {"number": 14, "secret_key": 6},
            "secret_all": {"flag": 0, "modes": [Kind.A, Kind.B]},
        },
    ]

    async def bench(ctx):
        for value in values:
            before = ctx.get(dut.o)
            ctx.set(dut.i, value)
            ctx.set(dut.load, 1)
            ctx.set(dut.copy, 0)
            await ctx.tick()
            assert ctx.get(dut.o) == before
            ctx.set(dut.i, {})
            ctx.set(dut.load, 0)
            await ctx.tick()
            ctx.set(dut.copy, 1)
            await ctx.tick()
            assert plain(ctx.get(dut.o)) == value

    simulate(dut, bench)


def test_secret_leaves_have_secret_names():
    wires = re.findall(r"wire width \d+ \\(\w*first_\w+)", rtlil.convert(Pair()))
    assert set(wires) == {
        "first_kind",
        "secret_first_tags",
        "first_nested_number",
        "secret_first_nested_secret_key",
        "secret_first_secret_all_flag",
        "secret_first_secret_all_modes",
    }

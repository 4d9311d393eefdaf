import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from emte.sim.harness import CycleLimitExceeded, simulate


class Counter(wiring.Component):
    enable: In(1)
    count: Out(8)

    def elaborate(self, platform):
        m = Module()
        with m.If(self.enable):
            m.d.sync += self.count.eq(self.count + 1)
        return m


class Inverter(wiring.Component):
    i: In(1)
    o: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(~self.i)
        return m


def test_runs_until_every_bench_has_returned():
    dut = Counter()
    ends = []

    def bench(cycles):
        async def run(ctx):
            ctx.set(dut.enable, 1)
            await ctx.tick().repeat(cycles)
            ends.append(ctx.get(dut.count))

        return run

    simulate(dut, bench(7), bench(3))
    assert ends == [3, 7]


def test_combinational_design():
    dut = Inverter()

    async def bench(ctx):
        for value in (0, 1):
            ctx.set(dut.i, value)
            await ctx.tick()
            assert ctx.get(dut.o) == 1 - value

    simulate(dut, bench)


def test_background_does_not_keep_it_running():
    dut = Counter()
    seen = []

    async def bench(ctx):
        ctx.set(dut.enable, 1)
        await ctx.tick().repeat(5)

    async def watch(ctx):
        async for _, _, count in ctx.tick().sample(dut.count):
            seen.append(count)

    simulate(dut, bench, background=[watch])
    assert seen == [0, 1, 2, 3, 4]


def test_cycle_limit():
    dut = Counter()
    never = Signal()

    async def bench(ctx):
        while not ctx.get(never):
            await ctx.tick()

    with pytest.raises(CycleLimitExceeded, match=r"^a testbench is still running after 20 cycles$"):
        simulate(dut, bench, max_cycles=20)


def test_a_failing_bench_fails():
    async def bench(ctx):
        await ctx.tick()
        raise AssertionError("seen")

    with pytest.raises(AssertionError, match=r"^seen$"):
        simulate(Counter(), bench)


def test_vcd_only_on_request(tmp_path, monkeypatch):
    monkeypatch.delenv("EMTE_VCD", raising=False)
    monkeypatch.chdir(tmp_path)

    async def bench(ctx):
        await ctx.tick()

    simulate(Counter(), bench)
    assert list(tmp_path.iterdir()) == []

    simulate(Counter(), bench, vcd=tmp_path / "by" / "name.vcd")
    assert "count" in (tmp_path / "by" / "name.vcd").read_text()

    monkeypatch.setenv("EMTE_VCD", str(tmp_path / "by_environment.vcd"))
    simulate(Counter(), bench)
    assert "count" in (tmp_path / "by_environment.vcd").read_text()

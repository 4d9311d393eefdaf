# amaranth: UnusedElaboratable=no

"""The boards of the FPGA build, and the chip around the self-test."""

import itertools
import pkgutil
import re
from importlib import import_module
from types import SimpleNamespace

import amaranth_boards
import pytest
from amaranth.hdl import Elaboratable, Fragment, Module, Signal
from amaranth.lib import io, wiring
from amaranth.lib.wiring import In, Out
from amaranth.vendor import LatticeECP5Platform
from emte.fpga import boards, top
from emte.fpga.boards import BOARDS, DEFAULT_BOARD, RGB, Board, BoardsMissing, LEDs
from emte.fpga.build import BuildRefused, build
from emte.fpga.storage import Fault
from emte.fpga.top import Top
from emte.rtl import SMALL, Barrier, TagConfig
from emte.sim.harness import simulate


class Stub(wiring.Component):
    """In place of the self-test: after eight cycles it passes, or fails if ``fails`` is set."""

    fails = False

    running: Out(1)
    passed: Out(1)
    failed: Out(1)
    fault: In(Fault)

    def __init__(self, config: TagConfig) -> None:
        super().__init__()

    def elaborate(self, platform) -> Module:
        m = Module()
        count = Signal(4)
        with m.If(~count[3]):
            m.d.sync += count.eq(count + 1)
        m.d.comb += [
            self.running.eq(~count[3]),
            self.passed.eq(count[3] & (not self.fails)),
            self.failed.eq(count[3] & self.fails),
        ]
        return m


@pytest.fixture(autouse=True)
def _stub(monkeypatch):
    monkeypatch.setattr(top, "SelfTest", Stub)
    monkeypatch.setattr(Stub, "fails", False)


def test_default_board():
    assert DEFAULT_BOARD == "ulx3s-85f"
    assert BOARDS[DEFAULT_BOARD].create().device == "LFE5U-85F"


@pytest.mark.parametrize("name", BOARDS)
def test_board(name):
    """Lights and button are pins of their own, the clock is constrained and slow enough."""
    board = BOARDS[name]
    platform = board.create()
    assert isinstance(platform, LatticeECP5Platform)
    clock = platform.default_clk_frequency
    plan = platform.prepare(Top(board, SMALL), "selftest")
    constraints = plan.files["selftest.lpf"]

    sites = re.findall(r'LOCATE COMP "\w+(?:\[\d+\])?" SITE "(\w+)"', constraints)
    assert len(sites) == len(set(sites))
    single = isinstance(board.lights, LEDs) and len(board.lights.numbers) == 1
    lights = 1 if single else 3
    if name == "butterstick":
        lights += 7
    assert len(sites) == 1 + lights + sum(
        pin is not None for pin in (board.button, platform.default_rst)
    )

    rates = [float(rate) for rate in re.findall(r"FREQUENCY \w+ \S+ ([\d.]+) HZ", constraints)]
    assert clock in rates
    assert 5e6 < min(rates) <= Top.max_hz
    assert len(rates) == (1 if clock <= Top.max_hz else 2)


def test_boards_are_all_of_the_package():
    """Every ECP5 board of amaranth-boards is in the list."""
    found = set()
    for module in pkgutil.iter_modules(amaranth_boards.__path__):
        loaded = import_module(f"amaranth_boards.{module.name}")
        for name in getattr(loaded, "__all__", ()):
            value = getattr(loaded, name)
            if str(getattr(value, "device", "")).startswith("LFE5"):
                found.add((module.name, name))
    listed = {(board.module, board.platform) for board in BOARDS.values()}
    # The OrangeCrab r0.2 without a size is the 25F.
    assert found - listed == {("orangecrab_r0_2", "OrangeCrabR0_2Platform")}
    assert listed <= found


def test_boards_missing(monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(boards, "import_module", refuse)
    with pytest.raises(BoardsMissing, match=r"pip install emte\[fpga\]"):
        BOARDS[DEFAULT_BOARD].create()


class Chip(Elaboratable):
    """The top on a board that exists in the simulator only."""

    default_clk_frequency = 24.0

    def __init__(self, lights, *, button=0) -> None:
        self.ports: dict = {}
        self.constraints: list[float] = []
        self.board = Board("", "", lights, button)

    def request(self, name, number, dir):
        assert dir == "-"
        if name == "button":
            return self.ports.setdefault(name, io.SimulationPort("i", 1))
        if name == "rgb_led":
            for colour in "rgb":
                self.ports[colour] = io.SimulationPort("o", 1)
            return SimpleNamespace(**{colour: self.ports[colour] for colour in "rgb"})
        return self.ports.setdefault(number, io.SimulationPort("o", 1))

    def add_clock_constraint(self, clock, frequency):
        self.constraints.append(frequency)

    def elaborate(self, platform):
        return Top(self.board, SMALL).elaborate(self)


def lights(ctx, chip, *names) -> tuple[int, ...]:
    return tuple(ctx.get(chip.ports[name].o) for name in names)


@pytest.mark.parametrize(
    ("lights_", "names"), [(LEDs((5, 3, 4)), (5, 3, 4)), (RGB(), ("b", "g", "r"))]
)
@pytest.mark.parametrize("fails", [False, True])
def test_lights(lights_, names, fails, monkeypatch):
    monkeypatch.setattr(Stub, "fails", fails)
    chip = Chip(lights_)
    design = Fragment.get(chip, None)

    async def bench(ctx):
        for _ in range(20):
            assert lights(ctx, chip, *names) == (1, 0, 0)
            await ctx.tick()
        await ctx.tick().repeat(10)
        assert lights(ctx, chip, *names) == (0, not fails, fails)

    simulate(design, bench)


def test_button_restarts():
    chip = Chip(LEDs((0, 1, 2)))
    design = Fragment.get(chip, None)

    async def bench(ctx):
        await ctx.tick().repeat(40)
        assert lights(ctx, chip, 0, 1, 2) == (0, 1, 0)
        ctx.set(chip.ports["button"].i, 1)
        await ctx.tick().repeat(4)
        for _ in range(50):
            assert lights(ctx, chip, 0, 1, 2) == (1, 0, 0)
            await ctx.tick()
        ctx.set(chip.ports["button"].i, 0)
        await ctx.tick().repeat(40)
        assert lights(ctx, chip, 0, 1, 2) == (0, 1, 0)

    simulate(design, bench)


@pytest.mark.parametrize("fails", [False, True])
def test_single_led(fails, monkeypatch):
    monkeypatch.setattr(Stub, "fails", fails)
    chip = Chip(LEDs((0,)), button=None)
    design = Fragment.get(chip, None)

    async def bench(ctx):
        for _ in range(20):
            assert lights(ctx, chip, 0) == (0,)
            await ctx.tick()
        await ctx.tick().repeat(10)
        seen = []
        for _ in range(24):
            seen += lights(ctx, chip, 0)
            await ctx.tick()
        changes = sum(a != b for a, b in itertools.pairwise(seen))
        if fails:
            assert changes in (3, 4)
        else:
            assert seen == [1] * 24

    simulate(design, bench)


def test_clock_is_halved(monkeypatch):
    monkeypatch.setattr(Top, "max_hz", 24.0)
    monkeypatch.setattr(Chip, "default_clk_frequency", 96.0)
    chip = Chip(LEDs((0, 1, 2)))
    design = Fragment.get(chip, None)
    assert chip.constraints == [24.0]

    async def bench(ctx):
        cycles = 0
        while lights(ctx, chip, 0, 1, 2) == (1, 0, 0):
            await ctx.tick()
            cycles += 1
        assert lights(ctx, chip, 0, 1, 2) == (0, 1, 0)
        assert 4 * 20 <= cycles <= 4 * 30

    simulate(design, bench)


def test_build_refuses_no_barrier(tmp_path):
    config = TagConfig(barrier=Barrier.NONE)
    with pytest.raises(BuildRefused, match=r"leaks tags.*--force"):
        build(DEFAULT_BOARD, config, folder=tmp_path, force=False, say=print)
    assert not list(tmp_path.iterdir())

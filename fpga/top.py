"""The self-test as a whole chip: clock, restart and lights of a board around it."""

from amaranth.hdl import (
    ClockDomain,
    ClockSignal,
    Const,
    DomainRenamer,
    Elaboratable,
    Module,
    Signal,
)
from amaranth.lib import io
from amaranth.lib.cdc import FFSynchronizer
from emte.rtl import TagConfig

from .boards import RGB, Board
from .selftest import SelfTest

__all__ = ["Top"]


class Top(Elaboratable):
    """The self-test on a board.

    It runs in its own clock domain, ``test``: the board's clock, halved until it is at most
    :attr:`max_hz`, with a synchronous reset for some cycles after power-up and while the button
    is held.

    Parameters
    ----------
    board : :class:`Board`
        Where it runs; the platform that it is elaborated for must be of that board.
    config : :class:`TagConfig`
        Of the pipeline.
    """

    max_hz = 30e6
    """Far below what the pipeline reaches: this is a test of function."""

    def __init__(self, board: Board, config: TagConfig) -> None:
        self.board = board
        self.config = config

    def elaborate(self, platform) -> Module:
        m = Module()
        hz = platform.default_clk_frequency
        m.domains.test = test = ClockDomain()

        # Clock: one bit of a counter. There is no path between it and the undivided clock.
        halvings = 0
        while hz > self.max_hz:
            hz /= 2
            halvings += 1
        if halvings == 0:
            m.d.comb += test.clk.eq(ClockSignal())
        else:
            divider = Signal(halvings)
            clock = Signal(attrs={"keep": "true"})
            m.d.sync += divider.eq(divider + 1)
            m.d.comb += [clock.eq(divider[-1]), test.clk.eq(clock)]
            platform.add_clock_constraint(clock, hz)

        # Reset: the counter stands at 0 after configuration, and while the button is held.
        m.domains.restart = restart = ClockDomain()
        m.d.comb += restart.clk.eq(test.clk)
        if self.board.button is None:
            m.d.comb += restart.rst.eq(0)
        else:
            m.submodules.button = button = io.Buffer(
                io.Direction.Input, platform.request("button", self.board.button, dir="-")
            )
            m.submodules.button_synchronizer = FFSynchronizer(
                button.i, restart.rst, o_domain="test", reset_less=True
            )
        started = Signal(4)
        with m.If(~started.all()):
            m.d.restart += started.eq(started + 1)
        m.d.comb += test.rst.eq(~started.all())

        m.submodules.selftest = selftest = DomainRenamer("test")(SelfTest(self.config))

        # About two blinks a second.
        blink = Signal(range(int(hz / 4)))
        blink_on = Signal()
        with m.If(blink == int(hz / 4) - 1):
            m.d.restart += [blink.eq(0), blink_on.eq(~blink_on)]
        with m.Else():
            m.d.restart += blink.eq(blink + 1)

        def light(name, port, value):
            m.submodules[name] = buffer = io.Buffer(io.Direction.Output, port)
            m.d.comb += buffer.o.eq(value.replicate(len(port)))

        states = (selftest.running, selftest.passed, selftest.failed)
        lights = self.board.lights
        if isinstance(lights, RGB):
            resource = platform.request(lights.resource, 0, dir="-")
            for colour, value in zip("bgr", states, strict=True):
                light(colour, getattr(resource, colour), value)
            if hasattr(resource, "leds"):
                light("leds", resource.leds, Const(1))
        elif len(lights.numbers) == 1:
            port = platform.request("led", lights.numbers[0], dir="-")
            light("led", port, selftest.passed | (selftest.failed & blink_on))
        else:
            for number, value in zip(lights.numbers, states, strict=True):
                light(f"led_{number}", platform.request("led", number, dir="-"), value)
        return m

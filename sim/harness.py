"""Runs a component in the Amaranth simulator."""

import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

from amaranth.hdl import ClockDomain, Elaboratable, Module
from amaranth.sim import Simulator
from amaranth.sim._async import TestbenchContext

__all__ = ["CycleLimitExceeded", "Testbench", "simulate"]

CLOCK_PERIOD = 1e-8
"""Period of the clock in seconds; nothing but the time axis of a VCD depends on it."""

Testbench = Callable[[TestbenchContext], Awaitable[None]]


class CycleLimitExceeded(AssertionError):
    """A simulation went on for longer than its cycle limit."""


def simulate(
    dut: Elaboratable,
    *benches: Testbench,
    vcd: str | os.PathLike[str] | None = None,
    max_cycles: int = 100_000,
    background: Iterable[Testbench] = (),
) -> None:
    """Run ``dut`` in its ``sync`` domain until every testbench has returned.

    Parameters
    ----------
    dut : :class:`Elaboratable`
        The design. It need not have a clock of its own.
    benches
        Testbenches, in the order in which they run within a cycle.
    vcd
        File for the waveforms; its folder is created. Without it the environment variable
        ``EMTE_VCD`` names the file; without that none is written, which doubles the speed.
    max_cycles
        Clock cycles after which the simulation is given up.
    background
        Testbenches that do not keep the simulation running. They wait for single ticks only:
        on Python below 3.13 one left within ``.until()`` or ``.repeat()`` at the end of the
        simulation causes a spurious error. (So does any testbench when an assertion ends the run.)

    Raises
    ------
    CycleLimitExceeded
        A testbench was still running after ``max_cycles``.
    AssertionError
        An assertion of the design or of a testbench failed.
    """

    async def watchdog(ctx):
        for _ in range(max_cycles):
            await ctx.tick()
        raise CycleLimitExceeded(f"a testbench is still running after {max_cycles} cycles")

    # A combinational design has no clock domain, yet its testbenches count cycles.
    m = Module()
    m.domains.sync = ClockDomain()
    m.submodules.dut = dut

    simulator = Simulator(m)
    simulator.add_clock(CLOCK_PERIOD)
    for bench in benches:
        simulator.add_testbench(bench)
    for bench in (*background, watchdog):
        simulator.add_testbench(bench, background=True)

    path = vcd or os.environ.get("EMTE_VCD")
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    with simulator.write_vcd(os.fspath(path)) if path else nullcontext():
        simulator.run()

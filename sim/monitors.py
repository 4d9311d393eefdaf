"""Protocol monitors: components that watch ports, for simulation and for formal verification."""

from typing import Any

from amaranth.hdl import Assert, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In

__all__ = ["StreamMonitor"]


class StreamMonitor(wiring.Component):
    """Asserts the rules of a stream: what is offered stays offered, unchanged, until it is taken.

    The assertions are evaluated at clock edges, so a testbench may set signals in any order within
    a cycle.

    Parameters
    ----------
    signature : :class:`stream.Signature`
        Signature of the stream.

    Members
    -------
    payload : ``In(shape of the payload)``
    valid : ``In(1)``
    ready : ``In(1)``
    """

    payload: Any
    valid: Signal
    ready: Signal

    def __init__(self, signature: stream.Signature) -> None:
        shape = signature.members["payload"].shape
        super().__init__({"payload": In(shape), "valid": In(1), "ready": In(1)})

    @classmethod
    def watch(cls, m: Module, interface: stream.Interface, name: str) -> "StreamMonitor":
        """Add a monitor of ``interface`` to ``m``, as the submodule ``name``."""
        monitor = cls(interface.signature)
        m.submodules[name] = monitor
        m.d.comb += [
            monitor.payload.eq(interface.payload),
            monitor.valid.eq(interface.valid),
            monitor.ready.eq(interface.ready),
        ]
        return monitor

    def elaborate(self, platform) -> Module:
        m = Module()

        waiting = Signal()
        offered = Signal.like(self.payload)
        m.d.sync += [waiting.eq(self.valid & ~self.ready), offered.eq(self.payload)]

        with m.If(waiting):
            m.d.sync += [
                Assert(self.valid, "valid fell before the payload was taken"),
                Assert(self.payload == offered, "the payload changed before it was taken"),
            ]

        return m

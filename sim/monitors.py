"""Protocol monitors: components that watch ports, for simulation and for formal verification."""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Assert, Cat, Module, Shape, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In

__all__ = ["StreamMonitor", "axi4_channels"]


class StreamMonitor(wiring.Component):
    """Asserts the rules of a stream: what is offered stays offered, unchanged, until it is taken.

    The assertions are evaluated at clock edges, so a testbench may set signals in any order within
    a cycle.

    Parameters
    ----------
    signature : :class:`stream.Signature`
        Signature of the stream.
    statement
        What states a rule: ``Assert``, or ``Assume`` where a formal spec relies on the rules.

    Members
    -------
    payload : ``In(shape of the payload)``
    valid : ``In(1)``
    ready : ``In(1)``
    """

    payload: Any
    valid: Signal
    ready: Signal

    def __init__(
        self, signature: stream.Signature, *, statement: Callable[..., Any] = Assert
    ) -> None:
        self._statement = statement
        shape = signature.members["payload"].shape
        super().__init__({"payload": In(shape), "valid": In(1), "ready": In(1)})

    @classmethod
    def watch(
        cls,
        m: Module,
        interface: stream.Interface,
        name: str,
        *,
        statement: Callable[..., Any] = Assert,
    ) -> "StreamMonitor":
        """Add a monitor of ``interface`` to ``m``, as the submodule ``name``."""
        monitor = cls(interface.signature, statement=statement)
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
                self._statement(self.valid, "valid fell before the payload was taken"),
                self._statement(
                    Value.cast(self.payload) == Value.cast(offered),
                    "the payload changed before it was taken",
                ),
            ]

        return m


def axi4_channels(m: Module, axi: wiring.PureInterface) -> dict[str, stream.Interface]:
    """The channels of an AXI4 interface as streams, which are driven in ``m``, to be watched.

    The channels are ``aw``, ``w``, ``b``, ``ar`` and ``r``; each payload is the channel's other
    signals side by side.
    """
    channels = {}
    for channel in ("aw", "w", "b", "ar", "r"):
        names = [
            name
            for name in axi.signature.members
            if name.startswith(channel) and name not in (f"{channel}valid", f"{channel}ready")
        ]
        payload = Cat(Value.cast(getattr(axi, name)) for name in names)
        watched = stream.Signature(Shape(len(payload))).create(path=(channel,))
        m.d.comb += [
            watched.payload.eq(payload),
            watched.valid.eq(getattr(axi, f"{channel}valid")),
            watched.ready.eq(getattr(axi, f"{channel}ready")),
        ]
        channels[channel] = watched
    return channels

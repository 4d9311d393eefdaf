"""Protocol monitors: components that watch ports, for simulation and for formal verification."""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Assert, Cat, Module, Shape, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In
from emte.rtl import Barrier, Op, TagConfig, TagPipeline
from emte.rtl.layouts import access_layout, resolve_signature

__all__ = ["CoreMonitor", "StreamMonitor", "axi4_channels"]


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


class CoreMonitor(wiring.Component):
    """Asserts what the pipeline expects of its core, clause by clause.

    That a younger access to the granule of a tag store comes after it, and that no branch waits
    for an access that cannot move, cannot be seen at the ports.

    Members
    -------
    payload, valid, ready : ``In``
        The stream ``access``.
    id, answered : ``In``
        The id at ``verdict``, and whether the verdict is taken.
    resolve : ``In(resolve_signature(config))``
    """

    payload: Any
    valid: Signal
    ready: Signal
    id: Signal
    answered: Signal
    resolve: Any

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "payload": In(access_layout(config)),
                "valid": In(1),
                "ready": In(1),
                "id": In(config.id_bits),
                "answered": In(1),
                "resolve": In(resolve_signature(config)),
            }
        )

    @classmethod
    def watch(cls, m: Module, pipeline: TagPipeline, name: str = "core_monitor") -> "CoreMonitor":
        """Add a monitor of the core in front of ``pipeline`` to ``m``."""
        monitor = cls(pipeline.config)
        m.submodules[name] = monitor
        m.d.comb += [
            monitor.payload.eq(pipeline.access.payload),
            monitor.valid.eq(pipeline.access.valid),
            monitor.ready.eq(pipeline.access.ready),
            monitor.id.eq(pipeline.verdict.payload.id),
            monitor.answered.eq(pipeline.verdict.valid & pipeline.verdict.ready),
        ]
        resolve: Any = pipeline.resolve
        m.d.comb += [
            monitor.resolve.valid.eq(resolve.valid),
            monitor.resolve.branch.eq(resolve.branch),
            monitor.resolve.mispredicted.eq(resolve.mispredicted),
        ]
        return monitor

    def elaborate(self, platform) -> Module:
        m = Module()
        access = self.payload
        tag_store = (access.op == Op.STG) | (access.op == Op.STGM)
        maintenance = (
            (access.op == Op.CLEAN)
            | (access.op == Op.INVALIDATE)
            | (access.op == Op.CLEAN_INVALIDATE)
        )
        misaligned = (access.op == Op.STG) & access.va[:4].any()  # faults, and touches nothing
        first_granule = access.pa[4:]
        last_granule = (access.pa + access.bytes - 1)[4:]

        waiting = Signal()
        offered = Signal()  # for the first time
        m.d.comb += offered.eq(self.valid & ~waiting)
        m.d.sync += waiting.eq(self.valid & ~self.ready)
        resolved = Signal(self.config.branches)
        m.d.comb += resolved.bit_select(self.resolve.branch, 1).eq(self.resolve.valid)

        # What the core knows of the access that has each id.
        outstanding = []
        looked_at = []
        for id in range(1 << self.config.id_bits):
            live = Signal(name=f"live_{id}")
            branches = Signal(self.config.branches, name=f"branches_{id}")
            first = Signal.like(first_granule, name=f"first_{id}")
            last = Signal.like(last_granule, name=f"last_{id}")
            outstanding.append(live)
            looked_at.append(
                live & branches.any() & (first_granule <= last) & (last_granule >= first)
            )
            m.d.sync += branches.eq(branches & ~resolved)
            with m.If(self.answered & (self.id == id)):
                m.d.sync += live.eq(0)
            if self.config.barrier is not Barrier.NONE:  # which answers what is squashed, too
                with m.If(self.resolve.mispredicted & (branches & resolved).any()):
                    m.d.sync += live.eq(0)
            with m.If(offered & (access.id == id)):
                squashed = self.resolve.mispredicted & (access.branches & resolved).any()
                m.d.sync += [
                    live.eq(~squashed | (self.config.barrier is Barrier.NONE)),
                    branches.eq(access.branches & ~resolved),
                    first.eq(first_granule),
                    last.eq(last_granule),
                ]

        with m.If(offered):
            m.d.sync += [
                Assert(
                    ~Cat(outstanding).bit_select(access.id, 1),
                    "an access has the id of one that is outstanding",
                ),
                Assert(
                    maintenance
                    | misaligned
                    | (access.op == Op.LDG)
                    | (access.pa[:12] + access.bytes <= 4096),
                    "an access crosses a page",
                ),
                Assert(
                    ~(tag_store | maintenance) | ~access.branches.any(),
                    "a tag store or maintenance is speculative",
                ),
                Assert(
                    ~tag_store | misaligned | ~Cat(looked_at).any(),
                    "a tag store to a granule at which an unresolved access looks",
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

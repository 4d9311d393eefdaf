"""What the formal specs of all units have in common."""

from functools import reduce

from amaranth.asserts import AnySeq
from amaranth.hdl import (
    Assert,
    Assume,
    Cover,
    Module,
    Mux,
    Shape,
    ShapeLike,
    Signal,
    Value,
    ValueLike,
)
from amaranth.lib import stream, wiring
from emte.rtl.axi import AXI4Signature
from emte.rtl.config import TagConfig
from emte.sim.monitors import StreamMonitor, axi4_channels

__all__ = ["TINY", "UnitSpec", "first_of"]

TINY = TagConfig(
    sets=2,
    ways=2,
    mshrs=2,
    line_bytes=16,
    held=2,
    branches=2,
    id_bits=1,
    pa_bits=32,
    memory_bits=12,
    axi_address_bits=32,
    axi_id_bits=1,
)
"""Everything twice: two of each kind can meet, and the searches stay short."""


class UnitSpec(wiring.Component):
    """The rules of streams at every port of a unit.

    The unit's outputs are asserted to obey them as long as its inputs do. The rules are also those
    of the channels of AXI4. A subclass adds assumptions, assertions and covers in
    :meth:`specify`; by default each output stream, and channel, is covered to transfer twice.

    Parameters
    ----------
    unit : :class:`amaranth.lib.wiring.Component`
        The unit. Its ports become those of the spec.
    slow : str
        An output stream for which one transfer must do, since two take too many cycles.
    """

    def __init__(self, unit: wiring.Component, *, slow: str = "") -> None:
        self.unit = unit
        self.slow = slow
        super().__init__(unit.signature)

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        wiring.connect(m, wiring.flipped(self), unit)
        for name, flow, interface in _streams(m, unit):
            statement = Assert if flow == wiring.Out else Assume
            StreamMonitor.watch(m, interface, f"{name}_rules", statement=statement)
            if flow == wiring.Out:
                transfer = interface.valid & interface.ready
                transferred = Signal(name=f"{name}_transferred")
                with m.If(transfer):
                    m.d.sync += transferred.eq(1)
                if name == self.slow:
                    m.d.comb += Cover(transfer, f"{name} transfers")
                else:
                    m.d.comb += Cover(transferred & transfer, f"{name} transfers twice")
        self.specify(m)
        return m

    def specify(self, m: Module) -> None:
        """Add what this unit's spec has beyond the rules of streams."""

    def see(self, m: Module, path: str, shape: ShapeLike, *, free: bool = False) -> Signal:
        """A register within the unit, or a row of a memory, by its path from the unit.

        For lemmas alone, and for where a search begins: what a unit promises is told by its ports.
        With ``free`` the register holds anything in the first cycle, for the spec to restrict.
        """
        attributes = {"see": f"unit.{path}"} | ({"free": "yes"} if free else {})
        signal = Signal(shape, attrs=attributes)
        m.d.comb += Value.cast(signal).eq(AnySeq(Shape.cast(shape).width))
        return signal


def first_of(*cases: tuple[Value, ValueLike], default: ValueLike) -> Value:
    """The value of the first case whose condition holds."""
    return reduce(lambda rest, case: Mux(case[0], case[1], rest), reversed(cases), default)


def _streams(m: Module, unit: wiring.Component):
    """Name, flow seen from the unit, and interface of each stream among its ports."""
    queue = [(name, member, getattr(unit, name)) for name, member in unit.signature.members.items()]
    for name, member, interface in queue:
        if not member.is_signature:
            continue
        if isinstance(member.signature, stream.Signature):
            yield name, member.flow, interface
        elif isinstance(member.signature, AXI4Signature):
            for channel, watched in axi4_channels(m, interface).items():
                outgoing = wiring.Out if channel in ("aw", "w", "ar") else wiring.In
                flow = outgoing if member.flow == wiring.Out else wiring.Flow.flip(outgoing)
                yield f"{name}_{channel}", flow, watched
        else:
            for inner, inner_member in member.signature.members.items():
                flipped = inner_member if member.flow == wiring.Out else inner_member.flip()
                queue.append((f"{name}_{inner}", flipped, getattr(interface, inner)))

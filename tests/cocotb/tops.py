"""What the cocotb benches simulate: units of the pipeline, with monitors and seeded bugs."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

from amaranth.back import verilog
from amaranth.hdl import Assert, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import Flow, In
from emte.rtl import SMALL, SpeculationBarrier, TagCache, TagConfig, TagPipeline
from emte.sim.monitors import StreamMonitor, axi4_channels

__all__ = ["TOPS", "Bug", "Top"]

Unit = type[wiring.Component]


@dataclass(frozen=True)
class Bug:
    """A mistake that a bench must find.

    Attributes
    ----------
    description : str
        What is wrong.
    statements
        Called with the outside of a unit and the unit within; statements that take the place of
        the plain connection between the two.
    """

    description: str
    statements: Callable[[wiring.Component, wiring.Component], list]


class _Interposer(wiring.Component):
    """A unit whose ports pass through one of ``bugs``, as ``selector`` says; none if that is 0."""

    def __init__(self, unit: wiring.Component, bugs: Sequence[Bug], selector: Signal) -> None:
        self._unit = unit
        self._bugs = bugs
        self._selector = selector
        super().__init__(dict(unit.signature.members))

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.unit = self._unit
        wiring.connect(m, wiring.flipped(self), self._unit)
        with m.Switch(self._selector):
            for number, bug in enumerate(self._bugs, 1):
                with m.Case(number):
                    m.d.comb += bug.statements(self, self._unit)
        return m


def _streams(interface: wiring.PureInterface, name: str = "") -> Iterator[tuple[str, object]]:
    """Every stream of an interface, with its path."""
    for member_name, member in interface.signature.members.items():
        if member.is_signature:
            path = f"{name}{member_name}"
            inner = getattr(interface, member_name)
            if isinstance(member.signature, stream.Signature):
                yield path, inner
            else:
                yield from _streams(inner, f"{path}_")


class _BenchTop(wiring.Component):
    """The unit, its ports, and ``seeded_bug``; all streams and AXI channels are watched."""

    def __init__(self, unit: wiring.Component, bugs: int) -> None:
        self.unit = unit
        super().__init__({**unit.signature.members, "seeded_bug": In(range(bugs + 1))})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        for name, member in unit.signature.members.items():
            outside, inside = getattr(self, name), getattr(unit, name)
            if member.is_signature:
                wiring.connect(m, wiring.flipped(outside), inside)
            elif member.flow is Flow.In:
                m.d.comb += Value.cast(inside).eq(Value.cast(outside))
            else:
                m.d.comb += Value.cast(outside).eq(Value.cast(inside))

        watched = dict(_streams(unit))
        if "memory" in unit.signature.members:
            watched |= axi4_channels(m, unit.memory)
        for name, port in watched.items():
            StreamMonitor.watch(m, port, f"{name}_monitor")
        if "verdict" in unit.signature.members:
            payload = Value.cast(unit.verdict.payload)
            m.d.sync += Assert(
                unit.verdict.valid | (payload == 0),
                "the payload of verdict is not 0 while it is not valid",
            )
        return m


@dataclass(frozen=True)
class Top:
    """A unit in one configuration, with the bugs that can be seeded into one of its parts.

    Attributes
    ----------
    unit
        The unit under test.
    config : TagConfig
        Its parameters.
    victim : str
        Where ``unit`` finds the class of the part that gets the bugs.
    bugs
        Input ``seeded_bug`` chooses among them, from 1; 0 is the unit as it is.
    """

    unit: Unit
    config: TagConfig
    victim: str
    bugs: tuple[Bug, ...]

    def verilog(self) -> str:
        """The design, with top module ``top``."""
        top = _BenchTop(self.unit(self.config), len(self.bugs))
        healthy = pkgutil.resolve_name(self.victim)
        interposed = []

        def interpose(config: TagConfig) -> wiring.Component:
            interposed.append(_Interposer(healthy(config), self.bugs, top.seeded_bug))
            return interposed[-1]

        with mock.patch(self.victim, interpose):
            text = verilog.convert(top, name="top", emit_src=False)
        assert len(interposed) == 1, f"{self.victim} is built {len(interposed)} times"
        return text


TOPS = {
    "tag_cache": Top(
        TagCache,
        SMALL,
        "emte.rtl.tag_cache.TagArray",
        (
            Bug(
                "a tag store writes the neighbours of its granules",
                lambda outer, inner: [inner.tags_write.eq(outer.tags_write.rotate_left(1))],
            ),
            Bug(
                "a tag store does not make its line dirty",
                lambda outer, inner: [
                    inner.dirty_write.eq(Mux(outer.dirty_value, 0, outer.dirty_write))
                ],
            ),
        ),
    ),
    "barrier": Top(
        SpeculationBarrier,
        SMALL,
        "emte.rtl.barrier.BranchTable",
        (
            Bug(
                "the table takes a mispredicted branch for a well predicted one",
                lambda outer, inner: [inner.resolve.mispredicted.eq(0)],
            ),
            Bug(
                "an entry of the table forgets branch 0",
                lambda outer, inner: [inner.branches.eq(outer.branches & ~1)],
            ),
        ),
    ),
    "pipeline": Top(
        TagPipeline,
        SMALL,
        "emte.rtl.pipeline.TagCheck",
        (
            Bug(
                "the fault address names the granule behind the failing one",
                lambda outer, inner: [
                    outer.o.payload.secret_finding.far.eq(
                        inner.o.payload.secret_finding.far
                        + (inner.o.payload.secret_finding.far.any() << 4)
                    )
                ],
            ),
        ),
    ),
}

"""The pipeline as the engines simulate it."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value
from emte.rtl import TagConfig, TagPipeline
from emte.rtl.layouts import ProbeKind

from .monitors import CoreMonitor

__all__ = ["ObservedPipeline"]


class ObservedPipeline(TagPipeline):
    """The pipeline, with one look inside for statistics.

    Parameters
    ----------
    config : TagConfig
        Geometry and policy.
    monitored : bool
        With a monitor that asserts the contract of the core; it doubles the time of a native run.

    Attributes
    ----------
    lookup : Signal
        A tag word is looked up in the cache in this cycle; not part of the signature.
    """

    def __init__(self, config: TagConfig, *, monitored: bool = False) -> None:
        super().__init__(config)
        self.monitored = monitored
        self.lookup = Signal()

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        if self.monitored:
            CoreMonitor.watch(m, self)
        probe = m.submodules.cache.probe
        for kind in (ProbeKind.CHECK, ProbeKind.LOAD, ProbeKind.STORE):
            with m.If(probe.payload.kind == kind):
                m.d.comb += self.lookup.eq(probe.valid & probe.ready)
        return m

    @property
    def ports(self) -> list[Value]:
        """All that crosses the boundary, and ``lookup``."""
        members = self.signature.flatten(self)
        return [*(Value.cast(signal) for _, _, signal in members), self.lookup]

"""The pipeline as the engines simulate it."""

from __future__ import annotations

from amaranth.hdl import Cat, ClockDomain, Elaboratable, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from emte.rtl import TagConfig, TagPipeline
from emte.rtl.keeper import flip_layout

from .monitors import CoreMonitor

__all__ = ["ClockedPipeline", "ObservedPipeline", "Upsets", "upset_period"]


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
        m.d.comb += self.lookup.eq(m.submodules.cache.looked_up)
        return m


def upset_period(config: TagConfig) -> int:
    """Cycles between two upsets: twice what the scrubber needs, as it may wait for its turn."""
    return 2 * config.scrub_period << config.index_bits


class Upsets(wiring.Component):
    """Flips stored bits of the tag cache: one anywhere, whenever the scrubber has been everywhere.

    So no code word has two, and nothing but the time of an access may show that they are there.

    Members
    -------
    flips : ``Out(stream.Signature(flip_layout(config)))``
        For a pipeline with ``config.injection``.
    """

    flips: stream.Interface

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__({"flips": Out(stream.Signature(flip_layout(config)))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        period = upset_period(self.config)
        timer = Signal(range(period))
        chance = Signal(32, init=1)
        index, bit = chance[: self.config.index_bits], chance[-9:]
        m.d.sync += [
            timer.eq(timer + 1),
            # x^32 + x^22 + x^2 + x + 1
            chance.eq(Cat(chance[31] ^ chance[21] ^ chance[1] ^ chance[0], chance)),
        ]
        flips = self.flips
        with m.If(flips.ready):
            m.d.sync += flips.valid.eq(0)
        with m.If(timer == period - 1):
            m.d.sync += [timer.eq(0), flips.valid.eq(1), flips.payload.index.eq(index)]
            # Up to a quarter goes into the directory: as far as its words are so long.
            into_directory = bit[7:].all() & (bit[:6] < len(flips.payload.entry))
            m.d.sync += [
                flips.payload.lanes.eq(Mux(into_directory, 0, 1 << bit[:7])),
                flips.payload.entry.eq(Mux(into_directory, 1 << bit[:6], 0)),
            ]
        return m


class ClockedPipeline(Elaboratable):
    """The pipeline behind a register for each input, for a simulator that is driven from outside.

    A simulator evaluates once more whatever depends on an input that it was given. Here nothing
    does: inputs are set one cycle ahead, change with the clock as all other registers do, and after
    the edge everything has its value of the new cycle. That doubles the speed of a native run.

    The inputs have a clock of their own. It rises with that of the pipeline, and once before it:
    then the inputs of the first cycle are taken. There is no reset: all begins with its initial
    value, and logic that no longer waits for a reset is faster.

    Attributes
    ----------
    pipeline : ObservedPipeline
        What is behind the registers.
    inputs : dict
        By name: ``next_`` and the name of an input of the pipeline, which follows it.
    outputs : dict
        By name: those of the pipeline, and ``lookup``.

    With ``config.injection`` stored bits are flipped, by :class:`Upsets`.
    """

    def __init__(self, config: TagConfig) -> None:
        self.pipeline = ObservedPipeline(config)
        self._sync = ClockDomain("sync", reset_less=True)
        self._inputs = ClockDomain("inputs", reset_less=True)
        self._followers: list[tuple[Value, Signal]] = []
        self.inputs: dict[str, Signal] = {}
        self.outputs: dict[str, Value] = {"lookup": self.pipeline.lookup}
        for path, member, signal in self.pipeline.signature.flatten(self.pipeline):
            name, value = "__".join(map(str, path)), Value.cast(signal)
            if path[0] == "flips":
                continue
            if member.flow is In:
                port = self.inputs[f"next_{name}"] = Signal(len(value), name=f"next_{name}")
                self._followers.append((value, port))
            else:
                self.outputs[name] = value

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains += self._sync, self._inputs
        m.submodules.pipeline = self.pipeline
        if self.pipeline.config.injection:
            m.submodules.upsets = upsets = Upsets(self.pipeline.config)
            wiring.connect(m, upsets.flips, self.pipeline.flips)  # type: ignore[attr-defined]
        for value, port in self._followers:
            register = Signal(len(value), name=port.name.removeprefix("next_"))
            m.d.inputs += register.eq(port)
            m.d.comb += value.eq(register)
        return m

    @property
    def ports(self) -> list[Value]:
        """All that crosses the boundary: inputs, outputs, ``clk`` and ``inputs_clk``."""
        clocks = (self._sync.clk, self._inputs.clk)  # type: ignore[attr-defined]  # not in stubs
        return [*clocks, *self.inputs.values(), *self.outputs.values()]

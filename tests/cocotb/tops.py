"""What the cocotb benches simulate: units of the pipeline, with monitors and seeded bugs."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

from amaranth.back import verilog
from amaranth.hdl import Assert, Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import Flow, In, Out
from emte.rtl import SMALL, SpeculationBarrier, TagCache, TagConfig, TagPipeline
from emte.rtl.layouts import Outcome, ProbeKind, detail_layout
from emte.rtl.tag_check import TagCheck
from emte.sim.monitors import StreamMonitor, axi4_channels

__all__ = ["TOPS", "Bug", "Top", "probe_layout"]

Unit = type[wiring.Component]


@dataclass(frozen=True)
class Bug:
    """A mistake that a bench must find.

    Attributes
    ----------
    description : str
        What is wrong.
    victim : str
        Where the class of the part is found that gets the bug.
    statements
        Called with the outside of a unit and the unit within; statements that take the place of
        the plain connection between the two.
    """

    description: str
    victim: str
    statements: Callable[[wiring.Component, wiring.Component], list]


class _Interposer(wiring.Component):
    """A part whose ports pass through the one of ``bugs`` that ``selector`` names, if any."""

    def __init__(self, unit: wiring.Component, bugs: Mapping[int, Bug], selector: Signal) -> None:
        self._unit = unit
        self._bugs = bugs
        self._selector = selector
        super().__init__(dict(unit.signature.members))

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.unit = self._unit
        wiring.connect(m, wiring.flipped(self), self._unit)
        with m.Switch(self._selector):
            for number, bug in self._bugs.items():
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

    def __init__(self, unit: wiring.Component, bugs: int, selector: Signal) -> None:
        self.unit = unit
        self._selector = selector
        super().__init__({**unit.signature.members, "seeded_bug": In(range(bugs + 1))})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        m.d.comb += self._selector.eq(self.seeded_bug)
        _pass_through(m, self, unit, unit.signature.members)
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


def probe_layout(config: TagConfig) -> data.StructLayout:
    """What :class:`CacheDoor` admits: an access of one tag word, or of two that follow on."""
    return data.StructLayout(
        {
            "word": config.word_address_bits,
            "detail": detail_layout(config),
            "tags": config.word_bits,  # of a tag store
            "two": 1,
            "second_mask": config.word_granules,
        }
    )


class CacheDoor(wiring.Component):
    """A TagCache, with what stands around it: door and decoder in front, the check behind it.

    ``probe`` admits; ``corrected`` and ``damaged`` come one cycle after ``check_valid``.
    """

    _FROM_CHECK = ("secret_corrected", "secret_damaged", "secret_errors")
    _FROM_DOOR = ("word_valid", "word", "again", "detail", "store", "secret_store_tags")
    _TO_DOOR = ("store_ready", "store_slot", "pause")

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        self.cache = TagCache(config)
        inner = {*self._FROM_CHECK, *self._FROM_DOOR, *self._TO_DOOR, "secret_codes"}
        members = self.cache.signature.members
        self.through = [name for name in members if name not in inner]
        super().__init__(
            {
                "probe": In(stream.Signature(probe_layout(config))),
                "corrected": Out(config.word_bits),
                "damaged": Out(1),
                **{name: members[name] for name in self.through},
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.cache = cache = self.cache
        m.submodules.check = check = TagCheck(self.config)
        _pass_through(m, self, cache, self.through)
        m.d.comb += [
            check.valid.eq(cache.check_valid),
            check.detail.eq(cache.check_detail),
            check.refusal.eq(cache.check_refusal),
            check.secret_codes.eq(cache.secret_codes),
            check.secret_lost.eq(cache.secret_lost),
            self.corrected.eq(check.secret_corrected),
            self.damaged.eq(check.secret_damaged),
        ]
        for name in self._FROM_CHECK:
            m.d.comb += getattr(cache, name).eq(getattr(check, name))

        probe = self.probe.payload
        stores = probe.detail.kind == ProbeKind.STORE
        admits = Signal()
        shut = Signal()
        opened = Signal()  # the cache tells a cycle ahead
        store_opened = Signal()
        m.d.sync += [opened.eq(~cache.pause), store_opened.eq(cache.store_ready)]
        m.d.comb += [
            self.probe.ready.eq(opened & ~shut & (~stores | store_opened)),
            admits.eq(self.probe.valid & self.probe.ready),
            cache.store.eq(admits & stores),
            cache.secret_store_tags.eq(probe.tags),
        ]
        first = Signal(probe_layout(self.config))
        m.d.sync += [
            shut.eq(admits & probe.two),
            cache.again.eq(admits & probe.two),
            cache.word_valid.eq(admits | shut),
            cache.word.eq(cache.word + 1),
            cache.detail.eq(first.detail),
            first.detail.mask.eq(first.second_mask),
            first.detail.ticket.second.eq(1),
        ]
        with m.If(admits):
            m.d.sync += [
                cache.word.eq(probe.word),
                first.eq(probe),
                first.detail.store.eq(cache.store_slot),
            ]
        return m


def _pass_through(
    m: Module, outer: wiring.Component, inner: wiring.Component, names: Iterable[str]
) -> None:
    """Connect members of a unit with those of the same name of the component around it."""
    for name in names:
        member = inner.signature.members[name]
        outside, inside = getattr(outer, name), getattr(inner, name)
        if member.is_signature:
            wiring.connect(m, wiring.flipped(outside), inside)
        elif member.flow is Flow.In:
            m.d.comb += Value.cast(inside).eq(Value.cast(outside))
        else:
            m.d.comb += Value.cast(outside).eq(Value.cast(inside))


@dataclass(frozen=True)
class Top:
    """A unit in one configuration, with the bugs that can be seeded into its parts.

    Attributes
    ----------
    unit
        The unit under test.
    config : TagConfig
        Its parameters.
    bugs
        Input ``seeded_bug`` chooses among them, from 1; 0 is the unit as it is.
    """

    unit: Unit
    config: TagConfig
    bugs: tuple[Bug, ...]

    def verilog(self) -> str:
        """The design, with top module ``top``."""
        selector = Signal(range(len(self.bugs) + 1))
        built = []
        with ExitStack() as patches:
            for victim in {bug.victim: None for bug in self.bugs}:
                bugs = {n: bug for n, bug in enumerate(self.bugs, 1) if bug.victim == victim}
                healthy = pkgutil.resolve_name(victim)

                def interpose(config, *, victim=victim, bugs=bugs, healthy=healthy, **options):
                    built.append(victim)
                    return _Interposer(healthy(config, **options), bugs, selector)

                patches.enter_context(mock.patch(victim, interpose))
            top = _BenchTop(self.unit(self.config), len(self.bugs), selector)
            text = verilog.convert(top, name="top", emit_src=False)
        assert sorted(built) == sorted({bug.victim for bug in self.bugs}), built
        return text


def _is_fault(outcome: Value) -> Value:
    return (outcome != Outcome.PASS) & (outcome != Outcome.ASYNC)


TOPS = {
    "tag_cache": Top(
        CacheDoor,
        SMALL,
        (
            Bug(
                "a tag store writes the neighbours of its granules",
                "emte.rtl.tag_cache.TagArray",
                lambda outer, inner: [inner.write_lanes.eq(outer.write_lanes.rotate_left(1))],
            ),
            Bug(
                "lines that were stored to are not written back",
                "emte.rtl.tag_cache.Keeper",
                lambda outer, inner: [inner.dirty.eq(0)],
            ),
        ),
    ),
    "barrier": Top(
        SpeculationBarrier,
        SMALL,
        (
            Bug(
                "the table takes a mispredicted branch for a well predicted one",
                "emte.rtl.barrier.BranchTable",
                lambda outer, inner: [inner.wrong.eq(0)],
            ),
            Bug(
                "an entry of the table forgets branch 0",
                "emte.rtl.barrier.BranchTable",
                lambda outer, inner: [inner.branches.eq(outer.branches & ~1)],
            ),
        ),
    ),
    "pipeline": Top(
        TagPipeline,
        SMALL,
        (
            Bug(
                "the fault address names the granule behind the failing one",
                "emte.rtl.pipeline.TagCheck",
                lambda outer, inner: [
                    outer.result.secret_finding.index.eq(
                        inner.result.secret_finding.index
                        + _is_fault(inner.result.secret_finding.outcome)
                    )
                ],
            ),
        ),
    ),
}

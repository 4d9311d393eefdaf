"""Samples of the coverage plan: what each transaction of the pipeline's bench exercises.

What the stream decides is worked out from it ahead of the run: :func:`classify`. It names the rule
that decides an access, from the regime, the maps and the golden tags; the bench compares the
outcome that goes with the rule with the verdict. What only the run decides, lookups and squashes,
is seen by an :class:`Observer` between the units.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from amaranth.lib import data
from cocotb.handle import HierarchyObject
from coverage_plan import Samples, read_plan
from emte.rtl import TagConfig
from emte.rtl.layouts import (
    Op,
    Outcome,
    ProbeKind,
    admitted_layout,
    detail_layout,
    ticket_layout,
)
from emte.sim.core import Program
from emte.sim.memory_map import MemoryMap
from emte.sim.model import Model, random_tag
from emte.sim.ops import PA_MASK, STORAGE_BASE, Operation, Regime, Stream
from emte.sim.transactions import Flag, Kind

__all__ = ["OUTCOMES", "Observer", "Point", "classify", "save_samples"]

OUTCOMES = {
    "alignment": Outcome.ALIGNMENT_FAULT,
    "canonical_store": Outcome.PERMISSION_FAULT,
    "no_tag_access": Outcome.PERMISSION_FAULT,
    "carve_out": Outcome.EXTERNAL_ABORT,
    "outside_map": Outcome.EXTERNAL_ABORT,
    "fault_first": Outcome.TAG_CHECK_FAULT,
    "fault_later": Outcome.TAG_CHECK_FAULT,
    "canonical_fault": Outcome.TAG_CHECK_FAULT,
    "async_first": Outcome.ASYNC,
    "async_later": Outcome.ASYNC,
    "canonical_async": Outcome.ASYNC,
}
"""What each rule ends in; all others pass."""

_LOOKED_UP = {
    *("match", "fault_first", "fault_later", "async_first", "async_later"),
    *("tags_read", "tags_written"),
}
_MAINTENANCE = {Op.CLEAN, Op.INVALIDATE, Op.CLEAN_INVALIDATE}
_TAG_LOADS = {Op.LDG, Op.LDGM}
_TAG_STORES = {Op.STG, Op.STGM}
_SIZES = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512}


@dataclass(eq=False)
class Point:
    """A transaction on its way to becoming a sample.

    Attributes
    ----------
    group : str
        Of the plan.
    values
        By dimension, as far as they are known.
    va : int
        Address of an access.
    looks_up : bool
        It reaches the tag cache, unless it is squashed before.
    """

    group: str
    values: dict[str, str]
    va: int = 0
    looks_up: bool = False
    id: int | None = None
    done: bool = False
    probes: int = 0
    missed: bool = False
    waited: bool = False
    written: bool = False

    @property
    def outcome(self) -> Outcome:
        """How the transaction must end, if it is not squashed."""
        return OUTCOMES.get(self.values.get("rule", ""), Outcome.PASS)

    def finish(self, speculation: str) -> None:
        """It has its verdict, or is squashed."""
        assert not self.done
        self.done = True
        if self.group == "access":
            self.values["speculation"] = speculation

    def sample(self) -> dict[str, str]:
        """All dimensions; once the run is over."""
        if self.group == "access":
            lookup = "none"
            if self.probes:
                lookup = ("miss" if self.missed else "hit") + "_after_wait" * self.waited
            return {**self.values, "lookup": lookup}
        if self.group == "maintenance":
            effect = "ignored"
            if self.looks_up:
                effect = "written" if self.written else "clean"
            return {**self.values, "effect": effect, "wait": "yes" if self.waited else "no"}
        return self.values


def classify(stream: Stream, program: Program) -> dict[int, Point]:
    """The points of a stream, by the number of their transaction."""
    classifier = _Classifier()
    points = {}
    transactions = defaultdict(list)
    for number, transaction in enumerate(program.transactions.tolist()):
        transactions[transaction[3]].append((number, transaction))
    for row, operation in enumerate(stream):
        for number, point in classifier.points(operation, transactions[row]):
            points[number] = point
        classifier.perform(operation)
    return points


class _Classifier:
    """Follows a stream, and knows the state before each operation."""

    def __init__(self) -> None:
        self._model = Model()
        self._regime = Regime()
        self._memory = MemoryMap()
        self._covered = range(1 << 40)
        self._carve_out = range(STORAGE_BASE, STORAGE_BASE + (1 << 35))
        self._exclude = self._rrnd = self._rgsr_tag = 0
        self._rgsr_seed = 1

    def perform(self, operation: Operation) -> None:
        """Go on behind an operation."""
        outcome = self._model.step(operation)
        match operation.op:
            case "regime":
                assert operation.regime is not None
                self._regime = operation.regime
            case "storage":
                assert operation.address is not None
                self._covered = range(operation.address, operation.address + operation.bytes)
                self._carve_out = range(operation.base, operation.base + operation.bytes // 32)
            case "gcr":
                self._exclude, self._rrnd = operation.exclude, operation.rrnd
            case "rgsr":
                self._rgsr_tag, self._rgsr_seed = operation.tag, operation.seed
            case "irg":
                self._rgsr_tag = outcome["rgsr"]["tag"]
                self._rgsr_seed = int(outcome["rgsr"]["seed"], 16)

    def points(
        self, operation: Operation, transactions: list[tuple[int, tuple]]
    ) -> Iterator[tuple[int, Point]]:
        """The points of an operation, each with the number of its transaction."""
        parts = self._parts(operation, [t for _, t in transactions if t[4] == Kind.ACCESS])
        for number, (va, _, size, _, kind, op, flags, _) in transactions:
            if kind == Kind.GENERATE:
                yield number, self._generate(operation)
            elif kind == Kind.ACCESS and Op(op) in _MAINTENANCE:
                yield number, self._maintenance(Op(op), va, size, flags)
            elif kind == Kind.ACCESS:
                yield number, self._access(operation.op, next(parts), Op(op), va, size, flags)

    @staticmethod
    def _parts(operation: Operation, accesses: list[tuple]) -> Iterator[str]:
        """What each access of an operation is of it.

        The first part of a tag store is sent alone if the page of the second is not mapped.
        """
        if len(accesses) == 1:
            va, _, size, *_ = accesses[0]
            alone = operation.op in ("st2g", "stz2g") and size == 16 and va % 16 == 0
            return iter(["first" if alone else "whole"])
        return iter(["first", "second"])

    # Choice of tags

    def _generate(self, operation: Operation) -> Point:
        irg = operation.op == "irg"
        exclude = self._exclude | operation.exclude if irg else self._exclude
        count = exclude.bit_count()
        start, offset = "unused", "unused"
        if not self._regime.ata[operation.el]:
            rule = "no_ata"
        elif count == 16:
            rule = "all_excluded"
        elif irg and self._rrnd:
            rule = "entropy"
        else:
            rule = "walk"
            assert operation.address is not None
            tag = self._rgsr_tag if irg else operation.address >> 56 & 0xF
            steps = random_tag(self._rgsr_seed)[0] if irg else operation.tag_offset
            start = "excluded" if exclude >> tag & 1 else "allowed"
            offset = "more" if steps > 1 else str(steps)
        return Point(
            "generate",
            {
                "operation": operation.op,
                "rule": rule,
                "excluded": {0: "none", 15: "all_but_one", 16: "all"}.get(count, "some"),
                "start": start,
                "offset": offset,
                "rrnd": str(self._rrnd),
                "el": f"el{operation.el}",
            },
        )

    # Maintenance

    def _maintenance(self, op: Op, va: int, size: int, flags: int) -> Point:
        if not size:
            target = "all"
        elif not flags & Flag.TAGGED:
            target = "no_tag_access" if flags & Flag.NO_TAG_ACCESS else "untagged"
        else:
            target = "tagged" if va & PA_MASK in self._covered else "outside_map"
        values = {"operation": op.name.lower(), "target": target}
        return Point("maintenance", values, va, looks_up=target in ("all", "tagged"))

    # Accesses

    def _access(self, name: str, part: str, op: Op, va: int, size: int, flags: int) -> Point:
        regime = self._regime
        half, el = va >> 55 & 1, int(not flags & Flag.EL0)
        if va % 16 == 0:
            alignment = "granule"
        else:
            alignment = "byte" if size not in _SIZES or va % size else "natural"
        if flags & Flag.TAGGED:
            memory = "tagged"
        elif flags & Flag.NO_TAG_ACCESS:
            memory = "no_tag_access"
        else:
            memory = "canonical" if regime.mtx[half] else "untagged"
        rule = self._rule(op, va, size, flags, memory)
        bits = ("off", "on")
        return Point(
            "access",
            {
                "rule": rule,
                "operation": name,
                "size": str(size) if size in _SIZES else "odd",
                "alignment": alignment,
                "granules": str((va % 16 + size + 15) // 16),
                "words": "two" if va % 256 + size > 256 else "one",
                "part": part,
                "memory": memory,
                "tcf": regime.tcf[el],
                "top_byte": ("neither", "tbi", "mtx", "both")[
                    regime.tbi[half] + 2 * regime.mtx[half]
                ],
                "tcma": bits[regime.tcma[half]],
                "ata": bits[regime.ata[el]],
                "tcso": bits[regime.tcso[el]],
                "exemption": ("none", "form", "tco", "both")[
                    bool(flags & Flag.EXEMPT) + 2 * bool(flags & Flag.TCO)
                ],
                "el": f"el{el}",
                "half": ("low", "high")[half],
            },
            va,
            looks_up=rule in _LOOKED_UP,
        )

    def _rule(self, op: Op, va: int, size: int, flags: int, memory: str) -> str:
        """The first rule that applies."""
        el = int(not flags & Flag.EL0)
        pa = va & PA_MASK
        transfer = op in _TAG_LOADS or op in _TAG_STORES
        reason = None if transfer else self._unchecked(op, va, flags)
        wants_tags = bool(self._regime.ata[el]) if transfer else reason in (None, "tcf_none")
        if op is Op.STG and va % 16:
            return "alignment"
        if op in _TAG_STORES and memory == "canonical" and wants_tags:
            return "canonical_store"
        if memory == "no_tag_access" and wants_tags:
            return "no_tag_access"
        if pa < self._carve_out.stop and pa + size > self._carve_out.start and self._carve_out:
            return "carve_out"
        if memory == "tagged" and pa not in self._covered:
            return "outside_map"
        if reason:
            return reason
        if transfer and not wants_tags:
            return "tags_off"
        if op in _TAG_LOADS:
            return {"tagged": "tags_read"}.get(memory, f"{memory}_read")
        if op in _TAG_STORES:
            return {"tagged": "tags_written"}.get(memory, "untagged_store")
        return self._compare(op, va, size, el, memory)

    def _unchecked(self, op: Op, va: int, flags: int) -> str | None:
        """Why a data access is not checked, if it is not."""
        regime = self._regime
        half, el = va >> 55 & 1, int(not flags & Flag.EL0)
        canonical = va >> 55 & 0x1F in (0, 0x1F)
        reasons = {
            "exempt": flags & Flag.EXEMPT,
            "no_tbi_no_mtx": not (regime.tbi[half] or regime.mtx[half]),
            "match_all": regime.tcma[half] and canonical,
            "no_ata": not regime.ata[el],
            "tco": flags & Flag.TCO,
            "store_only": regime.tcso[el] and op is Op.LOAD,
            "tcf_none": regime.tcf[el] == "none",
        }
        return next((name for name, applies in reasons.items() if applies), None)

    def _compare(self, op: Op, va: int, size: int, el: int, memory: str) -> str:
        """The rule for an access that is checked."""
        tag, half = va >> 56 & 0xF, va >> 55 & 1
        write = op is Op.STORE or (op is Op.ATOMIC and bool(self._regime.tcso[el]))
        mode = self._regime.tcf[el]
        kind = "async" if mode == "async" or (mode == "asym" and write) else "fault"
        if memory == "untagged":
            return "untagged"
        if memory == "canonical":
            return "canonical_match" if tag == 15 * half else f"canonical_{kind}"
        first = va & PA_MASK & -16
        stored = [self._model.tag_at(at) for at in range(first, (va & PA_MASK) + size, 16)]
        if all(other == tag for other in stored):
            return "match"
        return f"{kind}_later" if stored[0] == tag else f"{kind}_first"


# What only the run decides


def _reader(layout: data.StructLayout, *path: str) -> Callable[[int], int]:
    """Reads a field of a packed payload."""
    offset, shape = 0, layout
    for name in path:
        offset += shape[name].offset
        shape = shape[name].shape
    mask = (1 << data.Field(shape, 0).width) - 1
    return lambda bits: bits >> offset & mask


def _ticket_reader(layout: data.StructLayout, *path: str) -> Callable[[int], int]:
    """Reads number and kind of a ticket, as one number."""
    number = _reader(layout, *path, "number")
    direct = _reader(layout, *path, "direct")
    return lambda bits: 2 * number(bits) + direct(bits)


@dataclass
class Observer:
    """Sees between the units which access looks up what, and what comes of it.

    :meth:`observe` must be called in every cycle, ahead of the :meth:`take` of that cycle.
    """

    dut: HierarchyObject
    config: TagConfig
    _taken: deque[Point] = field(default_factory=deque)
    """Accesses that are not yet admitted, oldest first; or squashed, and never admitted."""
    _inside: dict[int, Point] = field(default_factory=dict)
    """Accesses that have been admitted, by number of their ticket: the last one that had it."""

    def __post_init__(self) -> None:
        unit = self.dut.unit
        self._barrier, self._cache, self._keeper = unit.barrier, unit.cache, unit.cache.keeper
        admitted, detail = admitted_layout(self.config), detail_layout(self.config)
        self._admitted_id = _reader(admitted, "access", "id")
        self._admitted_va = _reader(admitted, "access", "va")
        self._admitted_ticket = _ticket_reader(admitted, "ticket")
        self._ticket = _ticket_reader(detail, "ticket")
        self._second = _reader(detail, "ticket", "second")
        self._kind = _reader(detail, "kind")
        self._head_ticket = _ticket_reader(ticket_layout(self.config))

    def take(self, id: int, point: Point) -> None:
        """The pipeline takes an access."""
        point.id = id
        self._taken.append(point)

    def observe(self) -> None:
        """Look at the end of a cycle."""
        barrier, cache = self._barrier, self._cache
        allocates = cache.allocates.value
        if allocates or cache.c4_waits.value:
            # The probe of this stage is new and goes to the waiting list, or comes from it.
            point = self._inside[self._ticket(int(cache.c4_detail.value))]
            if allocates:
                point.missed = True
            elif point.group == "access" or cache.waiting_valid.value:
                point.waited = True
        if self._keeper.evict_start.value and not (
            self._keeper.serves_mshr.value or self._keeper.evict_zero.value
        ):
            self._head().written = True
        if cache.check_valid.value:
            self._leave(int(cache.check_detail.value))
        if barrier.admitted_valid.value:
            self._admit(int(barrier.admitted.value))

    def _head(self) -> Point:
        """The maintenance for which the keeper works: it waits at the head of the list."""
        ticket = self._head_ticket(int(self._cache.waiting.value))
        point = self._inside[ticket]
        assert point.group == "maintenance", f"a write-back for {point}"
        return point

    def _admit(self, payload: int) -> None:
        """An access reaches the decoder.

        One that was squashed on the way may have been dropped there or not, and its id may belong
        to another one by now; but their addresses differ.
        """
        name = self._admitted_id(payload), self._admitted_va(payload)
        point = self._taken.popleft()
        while (point.id, point.va) != name:
            assert point.values.get("speculation") == "squashed", f"{point} is not admitted"
            point = self._taken.popleft()
        self._inside[self._admitted_ticket(payload)] = point

    def _leave(self, payload: int) -> None:
        """A probe leaves the cache."""
        point = self._inside[self._ticket(payload)]
        looks_up = self._kind(payload) != ProbeKind.NONE.value
        if not self._second(payload):
            assert looks_up == point.looks_up, f"lookup is {looks_up}: {point}"
        point.probes += looks_up


def save_samples(path: Path, points: dict[int, Point]) -> dict[str, Samples]:
    """Write the samples of a run, by group of the plan."""
    samples = {}
    for name, group in read_plan().items():
        rows = [
            group.encode(point.sample())
            for point in points.values()
            if point.done and point.group == name
        ]
        samples[name] = np.array(rows, dtype=np.uint8).reshape(len(rows), len(group.dimensions))
    np.savez_compressed(path, **samples)
    return samples

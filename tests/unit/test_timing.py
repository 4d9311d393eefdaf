"""Replays the timing diagrams of docs/units/ against the hardware, cycle by cycle.

A lane of a diagram is named after a port of the unit. If the unit reads the port, the lane drives
it, else it is what the port must show. Labels on a lane are numbers, or are explained in the scene
that has the name of the diagram.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Value
from amaranth.lib import wiring
from emte.rtl import (
    SMALL,
    AccessDecoder,
    BranchTable,
    CheckMode,
    Door,
    GenerateOp,
    Memory,
    MissUnit,
    Op,
    Outcome,
    SpeculationBarrier,
    TagArray,
    TagCache,
    TagCheck,
    TagGenerator,
    TagPipeline,
    VerdictQueue,
)
from emte.rtl.keeper import Keeper
from emte.rtl.layouts import ProbeKind
from emte.rtl.store_buffer import StoreBuffer
from emte.rtl.waiting_list import WaitingList
from emte.sim.harness import simulate

PAGES = Path(__file__).parents[2] / "docs" / "units"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the picture of a diagram leaves out.

    ``unit`` makes the hardware; ``inputs`` holds ports at a value throughout; ``labels`` maps
    labels to values: for a payload some of its fields, the others being 0 on an input and free on
    an output. ``wait`` cycles pass first; after that the diagram ``after`` is played.
    """

    unit: Callable[[], wiring.Component]
    inputs: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    wait: int = 0
    after: str | None = None


BARRIER_A = {"id": 1, "va": 0x1008, "bytes": 8}
BARRIER_LABELS = {
    "A in": {"access": {**BARRIER_A, "branches": 0b1}},
    "B in": {"access": {"id": 2}},
    "A on": {"access": BARRIER_A, "ticket": {"number": 0, "direct": 0}},
    "B on": {"access": {"id": 2}, "ticket": {"number": 1, "direct": 1}},
    "A": {"number": 0, "direct": 0},
    "B": {"number": 1, "direct": 1},
    "A out": {
        "ticket": {"number": 0, "direct": 0},
        "secret_finding": {"outcome": Outcome.TAG_CHECK_FAULT, "exact": 1},
    },
    "B out": {"ticket": {"number": 1, "direct": 1}},
    "A fault": {"id": 1, "outcome": Outcome.TAG_CHECK_FAULT, "far": 0x1008},
    "B pass": {"id": 2, "outcome": Outcome.PASS, "far": 0},
}
CONTROL = {
    "tbi": 0b11,
    "ata": 0b11,
    "tcf": [CheckMode.SYNC, CheckMode.SYNC],
    "memory_bytes": 1 << 40,
    "storage_base": 1 << 40,
    "storage_zeroed": 1,
}
TINY = replace(SMALL, line_bytes=16)
"""Lines of two tag words, so that a refill fits into a picture."""

CACHE_INPUTS = {
    "storage_base": 1 << 40,
    "storage_bytes": 1 << 35,
    "storage_zeroed": 1,
    "room": 1,
}
# Bit 4 + n of a code is the parity of its tag without bit n; see docs/units/codes.md.
CACHE_LABELS = {
    "A": {"ticket": {"number": 1, "direct": 1}, "kind": ProbeKind.CHECK, "mask": 0b01},
    "B": {"ticket": {"number": 2, "direct": 1}, "kind": ProbeKind.STORE, "mask": 0b10},
    "C": {"ticket": {"number": 3, "direct": 1}, "kind": ProbeKind.CHECK, "mask": 0b11},
    "line 2": (1 << 40) + 2 * TINY.line_bytes,
    "7654": 0x87_66_55_B4,
    "7694": 0x87_66_99_B4,
}
REGIME = {"tbi": 0b11, "ata": 0b11, "tcf": [CheckMode.SYNC, CheckMode.SYNC]}
CHECKED = {"outcome": Outcome.PASS, "index": 0, "exact": 0, "wnr": 0}
ENTRY_OF_LINE_5 = 0xE50000002
"""Its tag is 2, for it is in set 1; with a valid bit and seven check bits."""
PIPELINE_INPUTS = {
    **{f"control.{name}": value for name, value in CONTROL.items()},
    "verdict.ready": 1,
}
PIPELINE_LABELS = {
    "load": {"id": 1, "va": 5 << 56 | 0x1008, "pa": 0x1008, "bytes": 8, "memory": 1, "el0": 1},
    "store": {
        "id": 2,
        "op": Op.STORE,
        "va": 6 << 56 | 0x1018,
        "pa": 0x1018,
        "bytes": 16,
        "memory": 1,
        "el0": 1,
    },
    "spec": {
        "id": 3,
        "va": 6 << 56 | 0x1010,
        "pa": 0x1010,
        "bytes": 8,
        "memory": 1,
        "el0": 1,
        "branches": 0b1,
    },
    "line": (1 << 40) + (0x1000 >> 5),
    "tags": 0x55,
    "0": 0,
    "pass": {"id": 1, "outcome": Outcome.PASS, "far": 0},
    "fault": {"id": 2, "outcome": Outcome.TAG_CHECK_FAULT, "far": 6 << 56 | 0x1018, "wnr": 1},
    "held": {"id": 3, "outcome": Outcome.TAG_CHECK_FAULT, "far": 6 << 56 | 0x1010, "wnr": 0},
}

SCENES = {
    "door_resolve": Scene(
        unit=lambda: Door(SMALL),
        inputs={"one_free": 1, "two_free": 1, "store_free": 1},
        labels={
            "A": {"access": {"id": 1, "branches": 0b01}},
            "B": {"access": {"id": 2, "branches": 0b11}},
            "C": {"access": {"id": 3}},
            "A on": {"access": {"id": 1, "branches": 0}},
            "C on": {"access": {"id": 3, "branches": 0}},
        },
    ),
    "branch_table_turns": Scene(unit=lambda: BranchTable(SMALL), wait=1),
    "verdict_queue_order": Scene(
        unit=lambda: VerdictQueue(SMALL),
        labels={
            "A": {"id": 1, "value": 7},
            "B": {"id": 2, "outcome": Outcome.TAG_CHECK_FAULT, "value": 0x1008, "wnr": 1},
            "none": {"id": 0, "far": 0, "tags": 0},
            "tags": {"id": 1, "outcome": Outcome.PASS, "far": 0, "tags": 7},
            "fault": {"id": 2, "outcome": Outcome.TAG_CHECK_FAULT, "far": 0x1008, "tags": 0},
        },
    ),
    "barrier_hold": Scene(
        unit=lambda: SpeculationBarrier(SMALL),
        inputs={"verdict.ready": 1},
        labels=BARRIER_LABELS,
    ),
    "barrier_squash": Scene(
        unit=lambda: SpeculationBarrier(SMALL),
        inputs={"verdict.ready": 1},
        labels=BARRIER_LABELS,
    ),
    "access_probes": Scene(
        unit=lambda: AccessDecoder(SMALL),
        inputs={"map": {"memory_bytes": 1 << 40, "storage_base": 1 << 40}},
        labels={
            "A": {
                "access": {
                    "op": Op.STORE,
                    "va": 7 << 56 | 0x10F8,
                    "pa": 0x10F8,
                    "bytes": 24,
                    "memory": Memory.TAGGED,
                },
                "regime": REGIME,
                "ticket": {"number": 4},
                "two": 1,
            },
            "B": {
                "access": {
                    "va": 7 << 56 | 0x2000,
                    "pa": 0x2000,
                    "bytes": 8,
                    "memory": Memory.TAGGED,
                    "tco": 1,
                },
                "regime": REGIME,
                "ticket": {"number": 2, "direct": 1},
            },
            "A0": 0x10,
            "A1": 0x11,
            "B word": 0x20,
            "A0 check": {
                "ticket": {"number": 4, "second": 0},
                "kind": ProbeKind.CHECK,
                "mask": 0x8000,
                "start": 15,
                "key": 7,
                "write": 1,
            },
            "A1 check": {
                "ticket": {"number": 4, "second": 1},
                "kind": ProbeKind.CHECK,
                "mask": 0x0001,
                "start": 0,
                "key": 7,
                "write": 1,
            },
            "B pass": {
                "ticket": {"number": 2, "direct": 1},
                "kind": ProbeKind.NONE,
                "outcome": Outcome.PASS,
            },
        },
    ),
    "tag_cache_miss": Scene(
        unit=lambda: TagCache(TINY),
        inputs=CACHE_INPUTS,
        wait=TINY.sets + 4,
        labels=CACHE_LABELS,
    ),
    "tag_cache_hit": Scene(
        unit=lambda: TagCache(TINY),
        inputs=CACHE_INPUTS,
        after="tag_cache_miss",
        labels=CACHE_LABELS,
    ),
    "waiting_list_replay": Scene(
        unit=lambda: WaitingList(SMALL),
        labels={
            "A": {"ticket": {"number": 1}},
            "B": {"ticket": {"number": 2}},
            "of A": {"number": 1},
            "of B": {"number": 2},
        },
    ),
    "store_buffer_ring": Scene(unit=lambda: StoreBuffer(SMALL), wait=2),
    "keeper_entry": Scene(
        unit=lambda: Keeper(SMALL),
        inputs={"storage_zeroed": 1, "evict_ready": 1, "writes_idle": 1},
        wait=SMALL.sets + 6,
        labels={"way 0": 0b01, "line 5": ENTRY_OF_LINE_5},
    ),
    "tag_array_write": Scene(
        unit=lambda: TagArray(SMALL),
        labels={
            "77…77": 0x7777_7777_7777_7777_7777_7777_7777_7777,
            "33 in lane 1": 0x3300,
            "77…3377": 0x7777_7777_7777_7777_7777_7777_7777_3377,
        },
    ),
    "miss_unit_refill": Scene(
        unit=lambda: MissUnit(TINY),
        inputs={"storage_base": 1 << 40},
        labels={
            "of 5": (1 << 40) + 5 * TINY.line_bytes,
            "word 0": {"index": 0b110, "secret_tags": 0x33},
            "word 1": {"index": 0b111, "secret_tags": 0x44},
        },
    ),
    "miss_unit_write_back": Scene(
        unit=lambda: MissUnit(TINY),
        inputs={"storage_base": 1 << 40},
        labels={"of 4": (1 << 40) + 4 * TINY.line_bytes},
    ),
    "tag_check_words": Scene(
        unit=lambda: TagCheck(SMALL),
        labels={
            "A0": {"ticket": {"number": 1}, "mask": 0x8000, "start": 15, "key": 7, "write": 1},
            "A1": {
                "ticket": {"number": 1, "second": 1},
                "mask": 0x0001,
                "key": 7,
                "write": 1,
            },
            "B": {"ticket": {"number": 2, "direct": 1}, "mask": 0x0004, "start": 2, "key": 7},
            "7": 0x87 << 8 * 15,
            "3": 0x33,
            "7 flipped": (0x87 ^ 0x10) << 8 * 2,
            "A0 pass": {"ticket": {"number": 1, "second": 0}, "secret_finding": CHECKED},
            "A1 fault": {
                "ticket": {"number": 1, "second": 1},
                "secret_finding": {
                    "outcome": Outcome.TAG_CHECK_FAULT,
                    "index": 0,
                    "exact": 0,
                    "wnr": 1,
                },
            },
            "B pass": {"ticket": {"number": 2, "direct": 1}, "secret_finding": CHECKED},
        },
    ),
    "tag_generator_irg": Scene(
        unit=lambda: TagGenerator(SMALL),
        inputs={"ata": 0b11, "generate.gcr": {"exclude": 0x0001}},
        labels={
            "init": {"tag": 0, "seed": 0xACE1},
            "irg": {"op": GenerateOp.IRG},
            "2": {"tag": 2},
            "0, ACE1": {"tag": 0, "seed": 0xACE1},
            "0, 2ACE": {"tag": 0, "seed": 0x2ACE},
            "2, 2ACE": {"tag": 2, "seed": 0x2ACE},
        },
    ),
    "pipeline_miss": Scene(
        unit=lambda: TagPipeline(TINY),
        inputs=PIPELINE_INPUTS,
        wait=TINY.sets + 6,
        labels=PIPELINE_LABELS,
    ),
    "pipeline_hit": Scene(
        unit=lambda: TagPipeline(TINY),
        inputs=PIPELINE_INPUTS,
        after="pipeline_miss",
        labels=PIPELINE_LABELS,
    ),
    "pipeline_speculative": Scene(
        unit=lambda: TagPipeline(TINY),
        inputs=PIPELINE_INPUTS,
        after="pipeline_miss",
        labels=PIPELINE_LABELS,
    ),
}


Diagram = dict[str, list[dict[str, Any]]]
"""Lanes by the title of their group, "in" or "out"."""


def read_diagrams() -> dict[str, Diagram]:
    """The timing diagrams of the unit pages, by name."""
    found = {}
    for page in sorted(PAGES.glob("*.md")):
        for name, source in re.findall(
            r"^\.\. wavedrom:: (\w+)\n((?:\n|   .*\n)*)", page.read_text(), re.MULTILINE
        ):
            _clock, *groups = json.loads(source)["signal"]
            found[name] = {title: lanes for title, *lanes in groups}
    return found


DIAGRAMS = read_diagrams()


def cycles(lane: dict[str, Any], labels: dict[str, Any]) -> Iterator[Any]:
    """The value that a lane has in each cycle; None where it has none."""
    data = iter(lane.get("data", ()))
    value = None
    for symbol in lane["wave"]:
        if symbol == "=":
            label = next(data)
            value = labels[label] if label in labels else int(label, 0)
        elif symbol != ".":
            value = {"0": 0, "1": 1, "x": None}[symbol]
        yield value


def differs(seen: Any, expected: Any) -> bool:
    """Is a value other than expected, in the fields that are named?"""
    if isinstance(expected, dict):
        return any(differs(seen[name], value) for name, value in expected.items())
    return seen != expected


def play(name: str) -> Callable:
    """A testbench that plays the diagram ``name`` and all that comes before it."""
    scene = SCENES[name]

    def read(title: str) -> list[tuple[str, list[Any]]]:
        return [(lane["name"], list(cycles(lane, scene.labels))) for lane in DIAGRAMS[name][title]]

    async def bench(ctx, ports):
        for path, value in scene.inputs.items():
            ctx.set(ports[path], value)
        if scene.after is not None:
            await play(scene.after)(ctx, ports)
        for _ in range(scene.wait):
            await ctx.tick()
        inputs, outputs = read("in"), read("out")
        for cycle in range(len(inputs[0][1])):
            for path, values in inputs:
                if values[cycle] is None:
                    ctx.set(Value.cast(ports[path]), 0)
                else:
                    ctx.set(ports[path], values[cycle])
            for path, values in outputs:
                if values[cycle] is not None:
                    seen = ctx.get(ports[path])
                    assert not differs(seen, values[cycle]), (
                        f"{name}, cycle {cycle}: {path} is {seen!r}, not {values[cycle]!r}"
                    )
            await ctx.tick()

    return bench


def replay(name: str) -> None:
    """Play a diagram against its unit."""
    dut = SCENES[name].unit()
    ports = {".".join(map(str, path)): value for path, _, value in dut.signature.flatten(dut)}

    async def bench(ctx):
        await play(name)(ctx, ports)

    simulate(dut, bench)


@pytest.mark.parametrize("name", sorted(DIAGRAMS.keys() | SCENES.keys()))
def test_timing(name):
    assert name in DIAGRAMS, "a scene without a diagram"
    assert name in SCENES, "a diagram without a scene"
    lanes = [lane for group in DIAGRAMS[name].values() for lane in group]
    assert len({len(lane["wave"]) for lane in lanes}) == 1, "lanes differ in length"
    replay(name)


@pytest.mark.parametrize("name", sorted(SCENES))
def test_wrong_timing_is_noticed(name, monkeypatch):
    """An output whose last level is turned round, or whose last label is another, is refused."""
    lane, *others = DIAGRAMS[name]["out"]
    if "data" in lane:
        wrong = {"data": [*lane["data"][:-1], "1234"]}
    else:
        last = list(cycles(lane, {}))[-1]
        wrong = {"wave": f"{lane['wave'][:-1]}{1 - last}"}
    monkeypatch.setitem(DIAGRAMS[name], "out", [lane | wrong, *others])
    with pytest.raises(AssertionError, match=f"{name}, cycle"):
        replay(name)

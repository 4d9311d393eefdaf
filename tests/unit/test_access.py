# amaranth: UnusedElaboratable=no
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.access import AccessDecoder, may_touch_two, reaches_on
from emte.rtl.config import SMALL, TagConfig
from emte.rtl.layouts import (
    CheckMode,
    Memory,
    Op,
    Outcome,
    ProbeKind,
    admitted_layout,
    detail_layout,
    map_layout,
)
from emte.sim.harness import simulate
from unit_support import integer, plain

CONFIG = TagConfig()
NARROW = TagConfig(pa_bits=36, memory_bits=32, axi_address_bits=36)
WIDE = TagConfig(pa_bits=40, memory_bits=36, axi_address_bits=48)

DATA = (Op.LOAD, Op.STORE, Op.ATOMIC)
TAG_LOADS = (Op.LDG, Op.LDGM)
TAG_STORES = (Op.STG, Op.STGM)
MAINTENANCE = (Op.CLEAN, Op.INVALIDATE, Op.CLEAN_INVALIDATE)

BASE = 1 << 32
"""Of the tagged memory in the directed tests: 1 MiB, with its tags at STORAGE, within a page."""
STORAGE = (1 << 40) + 0x400

ACCESS = {
    "id": 0,
    "op": Op.LOAD,
    "va": 0x0500_0001_0000_0000,
    "pa": BASE,
    "bytes": 8,
    "memory": Memory.TAGGED,
    "exempt": 0,
    "tco": 0,
    "el0": 1,
    "branches": 0,
    "tags": 0,
}
CONTROL = {
    "tbi": 0b11,
    "mtx": 0b00,
    "tcma": 0b00,
    "ata": 0b11,
    "tcso": 0b00,
    "tcf": [CheckMode.SYNC, CheckMode.SYNC],
    "memory_base": BASE,
    "memory_bytes": 1 << 20,
    "storage_base": STORAGE,
}
MAP = ("memory_base", "memory_bytes", "storage_base")


def case(**changes):
    """An access and its control bits. ``at`` is an offset from BASE, ``tag`` the logical tag,
    ``upper`` chooses the upper half of the address space."""
    access = ACCESS | {name: value for name, value in changes.items() if name in ACCESS}
    control = CONTROL | {name: value for name, value in changes.items() if name in CONTROL}
    if "pa" not in changes:
        access["pa"] = BASE + changes.get("at", 0)
    if "va" not in changes:
        top = 0xF080 if changes.get("upper") else 0
        top |= changes.get("tag", 5) << 8
        access["va"] = (top << 48) ^ (access["pa"] & (1 << 52) - 1)
    return access, control


def payload(config, number, access, control):
    """What the barrier admits, with a ticket and a place in the store buffer of its number."""
    last = access["pa"] + access["bytes"] - 1
    return {
        "access": access | {"id": number % (1 << config.id_bits)},
        "regime": {name: value for name, value in control.items() if name not in MAP},
        "ticket": {"number": number % 256, "direct": number % 2, "second": 0},
        "two": last // 256 > access["pa"] // 256 and access["op"] in (*DATA, Op.STG),
        "store": number % 16,
    }


def run(cases, *, config=CONFIG, gaps=None):
    """What the decoder makes of accesses: for each the list of its probes.

    A probe is its detail with the number of its word. Each comes in its cycle, or this fails.

    Parameters
    ----------
    gaps
        Cycles without an access, before each of them; the map changes while the decoder is idle.
    """
    dut = AccessDecoder(config)
    admitted, storage_map = admitted_layout(config), map_layout(config)
    maps = [{name: control[name] for name in MAP} for _, control in cases]
    inputs = [
        integer(admitted, payload(config, number, access, control))
        for number, (access, control) in enumerate(cases)
    ]
    coming = []  # (case, second) of each cycle from which a probe must come, or None
    seen = []

    async def drive(ctx):
        async def tick(probe=None):
            coming.append(probe)
            *_, valid, word, again, detail = await ctx.tick().sample(
                dut.word_valid, dut.word, dut.again, dut.detail
            )
            seen.append((valid, word, again, detail))

        now = None
        for number, value in enumerate(inputs):
            for _ in range(next(gaps, 0) if gaps else 0):
                await tick()
            if maps[number] != now:
                for _ in range(3):
                    await tick()
                now = maps[number]
                ctx.set(dut.map.as_value(), integer(storage_map, now))
                for _ in range(2):
                    await tick()
            ctx.set(dut.admitted.as_value(), value)
            ctx.set(dut.admitted_valid, 1)
            two = ctx.get(dut.admitted.two)
            await tick((number, 0))
            ctx.set(dut.admitted_valid, 0)
            if two:
                # The next access is there, and waits for the door.
                if number + 1 < len(inputs):
                    ctx.set(dut.admitted.as_value(), inputs[number + 1])
                await tick((number, 1))
        for _ in range(3):
            await tick()

    simulate(dut, drive)
    answers = [[] for _ in cases]
    for cycle, probe in enumerate(coming[:-2]):
        valid, word, again, _ = seen[cycle + 1]
        assert valid == (probe is not None)
        following = coming[cycle + 1]
        assert again == (probe is not None and following == (probe[0], 1))
        if probe is None:
            continue
        number, second = probe
        answer = {"word": word} | plain(seen[cycle + 2][3])
        ticket = {"number": number % 256, "direct": number % 2, "second": second}
        assert (answer.pop("ticket"), answer.pop("store")) == (ticket, number % 16)
        answers[number].append(answer)
    return answers


# What the architecture says, granule by granule and byte by byte


def is_tag_checked(access, control):
    half = access["va"] >> 55 & 1
    level = 0 if access["el0"] else 1
    store_only = control["tcso"] >> level & 1
    writes = access["op"] is Op.STORE or (access["op"] is Op.ATOMIC and store_only)
    if access["op"] not in DATA or access["exempt"]:
        return False
    if not (control["tbi"] | control["mtx"]) >> half & 1:
        return False
    if control["tcma"] >> half & 1 and access["va"] >> 55 & 0x1F in (0, 0x1F):
        return False
    if not control["ata"] >> level & 1 or access["tco"]:
        return False
    return not store_only or writes


def is_checked(access, control):
    mode = control["tcf"][0 if access["el0"] else 1]
    return is_tag_checked(access, control) and mode is not CheckMode.NONE


def expected(access, control):
    """The probes of an access, by the rules of the architecture: fields of which they say one."""
    op = access["op"]
    half = access["va"] >> 55 & 1
    level = 0 if access["el0"] else 1
    mtx = control["mtx"] >> half & 1
    ata = control["ata"] >> level & 1
    mode = control["tcf"][level]
    tagged = access["memory"] is Memory.TAGGED
    writes = op is Op.STORE or (op is Op.ATOMIC and control["tcso"] >> level & 1)
    asynchronous = mode is CheckMode.ASYNC or (mode is CheckMode.ASYM and bool(writes))
    va, pa, size = access["va"], access["pa"], access["bytes"]
    if op is Op.LDG:
        pa, size = pa - pa % 16, 16
    memory = range(control["memory_base"], control["memory_base"] + control["memory_bytes"])
    tags = control["memory_bytes"] // 32
    carve_out = range(control["storage_base"], control["storage_base"] + tags)
    touched = range(pa, pa + size)
    in_map = all(byte in memory for byte in touched)
    in_carve_out = any(byte in carve_out for byte in touched)

    # Word by word.
    granules = range(pa - pa % 16, pa + size, 16)
    words = []
    for word, members in groupby(granules, lambda granule: granule // 256 - memory.start // 256):
        mask = sum(1 << member % 256 // 16 for member in members)
        start = 0 if words else va % 256 // 16
        words.append({"mask": mask, "start": start} | ({"word": word} if in_map else {}))

    def finding(outcome, *, wnr=0, ones=0):
        first = {"outcome": outcome, "ones": ones}
        if outcome not in (Outcome.PASS, Outcome.ASYNC):
            first["write"] = int(wnr)
        later = {"outcome": Outcome.PASS, "ones": ones}
        parts = [first, *[later] * (len(words) - 1)]
        return [
            word | part | {"kind": ProbeKind.NONE} for word, part in zip(words, parts, strict=True)
        ]

    def probes(kind, **fields):
        fields |= {"kind": kind, "outcome": Outcome.PASS, "key": va >> 56 & 0xF}
        return [word | fields for word in words]

    if op in MAINTENANCE:
        kind = "CLEAN" if op is Op.CLEAN else "CLEAN_INVALIDATE"
        if size == 0:
            return [{"kind": ProbeKind[kind + "_ALL"]}]
        if tagged and in_map:
            return [{"kind": ProbeKind[kind], "word": words[0]["word"]}]
        return [{"kind": ProbeKind.NONE, "outcome": Outcome.PASS, "ones": 0}]
    if op is Op.STG and va % 16:
        return finding(Outcome.ALIGNMENT_FAULT, wnr=1)
    if access["memory"] is Memory.NO_TAG_ACCESS:
        uses_tags = ata if op not in DATA else is_tag_checked(access, control)
        if uses_tags:
            return finding(Outcome.PERMISSION_FAULT, wnr=op in TAG_STORES)
        if in_carve_out:
            return finding(Outcome.EXTERNAL_ABORT, wnr=op in TAG_STORES or writes)
        return finding(Outcome.PASS)
    if op in TAG_STORES and ata and mtx and not tagged:
        return finding(Outcome.PERMISSION_FAULT, wnr=1)
    if in_carve_out:
        return finding(Outcome.EXTERNAL_ABORT, wnr=op in TAG_STORES or writes)
    if tagged and not in_map:
        return finding(Outcome.EXTERNAL_ABORT, wnr=op in TAG_STORES)
    if not tagged:
        canonical = 0xF if half else 0
        if is_checked(access, control) and mtx and va >> 56 & 0xF != canonical:
            outcome = Outcome.ASYNC if asynchronous else Outcome.TAG_CHECK_FAULT
            return finding(outcome, wnr=writes)
        return finding(Outcome.PASS, ones=int(op in TAG_LOADS and ata and mtx and half))
    if op in DATA:
        if not is_checked(access, control):
            return finding(Outcome.PASS)
        return probes(ProbeKind.CHECK, asynchronous=int(asynchronous), write=int(writes))
    if not ata:
        return finding(Outcome.PASS)
    if op in TAG_LOADS:
        return probes(ProbeKind.LOAD, single=int(op is Op.LDG))
    return probes(ProbeKind.STORE, write=1)


def check(cases, answers):
    """Compare answers with :func:`expected`, where that says something."""
    for (access, control), answer in zip(cases, answers, strict=True):
        wanted = expected(access, control)
        assert len(answer) == len(wanted), (access, control)
        for probe, fields in zip(answer, wanted, strict=True):
            assert {name: probe[name] for name in fields} == fields, (access, control)


def test_init():
    dut = AccessDecoder(SMALL)
    assert dut.config is SMALL
    assert dut.signature == Signature(
        {
            "admitted_valid": In(1),
            "admitted": In(admitted_layout(SMALL)),
            "map": In(map_layout(SMALL)),
            "word_valid": Out(1),
            "word": Out(SMALL.word_address_bits),
            "again": Out(1),
            "detail": Out(detail_layout(SMALL)),
        }
    )


def become(answer):
    """Name of what becomes of an access: its outcome, or the kind of its probes."""
    first = answer[0]
    return (first["outcome"] if first["kind"] is ProbeKind.NONE else first["kind"]).name


def outcomes(*cases):
    """Names of what becomes of accesses."""
    answers = run(cases)
    check(cases, answers)
    return [become(answer) for answer in answers]


def test_sim_which_accesses_are_checked():
    """The rules of the architecture in their order; TBI or MTX, each alone, enables checking."""
    off = CheckMode.NONE
    sync = CheckMode.SYNC
    assert outcomes(
        case(),
        case(op=Op.STORE),
        case(op=Op.ATOMIC),
        case(exempt=1),
        case(tbi=0b00, mtx=0b00),
        case(tbi=0b00, mtx=0b01),
        case(tbi=0b10, mtx=0b10),
        case(tbi=0b10, mtx=0b00, upper=True),
        case(tbi=0b01, mtx=0b01, upper=True),
        case(tcma=0b01, tag=0),
        case(tcma=0b01, tag=15),  # tag 15 is no match-all tag in the lower half
        case(tcma=0b10, tag=0),
        case(tcma=0b10, tag=15, upper=True),
        case(tcma=0b10, tag=0, upper=True),
        case(tcma=0b01, tag=15, upper=True),
        case(ata=0b10),
        case(ata=0b10, el0=0),
        case(ata=0b01, el0=0),
        case(tco=1),
        case(tcso=0b01),
        case(tcso=0b10),
        case(tcso=0b01, op=Op.STORE),
        case(tcso=0b01, op=Op.ATOMIC),
        case(tcso=0b10, el0=0),
        case(tcf=[off, sync]),
        case(tcf=[off, sync], el0=0),
        case(tcf=[sync, off], el0=0),
    ) == (
        ["CHECK"] * 3
        + ["PASS"]
        + ["PASS", "CHECK", "PASS", "CHECK", "PASS"]
        + ["PASS", "CHECK", "CHECK", "PASS", "CHECK", "CHECK"]
        + ["PASS", "CHECK", "PASS"]
        + ["PASS"]
        + ["PASS", "CHECK", "CHECK", "CHECK", "PASS"]
        + ["PASS", "CHECK", "PASS"]
    )


def test_sim_canonical_tags():
    """Memory without allocation tags: compared under MTX only, by the half's canonical tag."""
    untagged = {"memory": Memory.UNTAGGED}
    assert outcomes(
        case(**untagged),
        case(**untagged, mtx=0b01),
        case(**untagged, mtx=0b10),
        case(**untagged, mtx=0b01, tag=0),
        case(**untagged, mtx=0b01, tag=15),
        case(**untagged, mtx=0b10, tag=15, upper=True),
        case(**untagged, mtx=0b10, tag=0, upper=True),
        case(**untagged, mtx=0b01, tco=1),
        case(**untagged, mtx=0b01, exempt=1),
        case(**untagged, mtx=0b01, pa=0),  # outside the map as well
    ) == [
        "PASS",
        "TAG_CHECK_FAULT",
        "PASS",
        "PASS",
        "TAG_CHECK_FAULT",
        "PASS",
        "TAG_CHECK_FAULT",
        "PASS",
        "PASS",
        "TAG_CHECK_FAULT",
    ]


def test_sim_modes_of_a_canonical_mismatch():
    def mismatch(mode, **changes):
        tcf = [mode, CheckMode.SYNC]
        return case(memory=Memory.UNTAGGED, mtx=0b11, tcf=tcf, **changes)

    store = {"op": Op.STORE}
    atomic = {"op": Op.ATOMIC}
    cases = [
        mismatch(CheckMode.ASYNC),
        mismatch(CheckMode.ASYNC, **store),
        mismatch(CheckMode.ASYM),
        mismatch(CheckMode.ASYM, **store),
        mismatch(CheckMode.ASYM, **atomic),
        mismatch(CheckMode.ASYM, **atomic, tcso=0b01),
        mismatch(CheckMode.SYNC, **store),
        mismatch(CheckMode.SYNC, **atomic),
        mismatch(CheckMode.SYNC, **atomic, tcso=0b01),
        mismatch(CheckMode.ASYNC, el0=0),
    ]
    answers = run(cases)
    check(cases, answers)
    fault = Outcome.TAG_CHECK_FAULT
    assert [
        (answer[0]["outcome"], answer[0]["write"] if answer[0]["outcome"] is fault else 0)
        for answer in answers
    ] == [
        (Outcome.ASYNC, 0),
        (Outcome.ASYNC, 0),
        (fault, 0),
        (Outcome.ASYNC, 0),
        (fault, 0),
        (Outcome.ASYNC, 0),
        (fault, 1),
        (fault, 0),
        (fault, 1),
        (fault, 0),
    ]


def test_sim_modes_of_a_probe():
    """The probe carries what a mismatch would be: asynchronous or not, a write or not."""
    cases = [
        case(op=op, tcso=tcso, tcf=[mode, mode], el0=el0)
        for op in (Op.LOAD, Op.STORE, Op.ATOMIC)
        for tcso in (0, 1)
        for el0 in (0, 1)
        for mode in CheckMode
    ]
    check(cases, run(cases))


@pytest.mark.parametrize("op", [Op.LOAD, Op.STG], ids=["load", "stg"])
def test_sim_one_to_five_granules(op):
    """Every start within 512 bytes and many sizes: no granule more, none less."""
    sizes = (1, 2, 8, 15, 16, 17, 32, 48, 63, 64) if op is Op.LOAD else (16, 32, 64, 16, 32)
    starts = range(512) if op is Op.LOAD else range(0, 1024, 16)
    cases = [case(op=op, at=at, bytes=size) for at in starts for size in sizes[at % 5 :: 5]]
    answers = run(cases)
    check(cases, answers)
    counts = {sum(probe["mask"].bit_count() for probe in answer) for answer in answers}
    assert counts == ({1, 2, 3, 4, 5} if op is Op.LOAD else {1, 2, 4})
    assert {len(answer) for answer in answers} == {1, 2}


def test_sim_blocks():
    """DC ZVA, DC GVA and STZGM up to 512 bytes, LDGM and STGM up to 256, all aligned."""
    cases = [
        case(op=op, at=at, bytes=size, tags=0xFEDC_BA98_7654_3210)
        for op in (Op.STORE, Op.STG, Op.LDGM, Op.STGM)
        for size in (16, 32, 64, 128, 256, 512)
        for at in range(0, 1024, size)
        if size <= 256 or op in (Op.STORE, Op.STG)
    ]
    answers = run(cases)
    check(cases, answers)
    assert [probe["mask"] for probe in answers[-1]] == [0xFFFF]
    assert {len(answer) for answer in answers} == {1, 2}


def test_sim_edges_of_the_map():
    """The last byte decides; nothing wraps where the map ends at the top of memory."""
    end = 1 << 20
    top = {"memory_base": (1 << 52) - end, "storage_base": STORAGE}
    bottom = {"memory_base": 0, "memory_bytes": 1 << 40}
    assert outcomes(
        case(at=-1, bytes=1),
        case(at=0, bytes=1),
        case(at=end - 8),
        case(at=end - 1, bytes=1),
        case(at=end),
        case(at=-8, tco=1),
        case(at=-16, op=Op.STG, ata=0),
        case(at=-16, op=Op.STG),
        case(at=end - 16, op=Op.STG, bytes=16),
        case(at=end - 16, op=Op.LDG, bytes=16),
        case(at=end, op=Op.LDG, bytes=16),
        case(at=-8, memory=Memory.UNTAGGED),
        case(pa=(1 << 52) - 64, bytes=64, **top),
        case(pa=(1 << 52) - 1, bytes=1, **top),
        case(pa=(1 << 52) - end - 1, bytes=1, **top),
        case(pa=0, bytes=1, **top),
        case(pa=0, bytes=1, **bottom),
        case(pa=(1 << 40) - 1, bytes=1, **bottom, storage_base=1 << 41),
        case(pa=1 << 40, bytes=1, **bottom, storage_base=1 << 41),
        case(pa=(1 << 52) - 1, bytes=1, **bottom),
        case(memory_bytes=0),
    ) == (
        ["EXTERNAL_ABORT", "CHECK", "CHECK", "CHECK", "EXTERNAL_ABORT"]
        + ["EXTERNAL_ABORT"] * 3
        + ["STORE", "LOAD", "EXTERNAL_ABORT"]
        + ["PASS"]
        + ["CHECK", "CHECK", "EXTERNAL_ABORT", "EXTERNAL_ABORT"]
        + ["CHECK", "CHECK", "EXTERNAL_ABORT", "EXTERNAL_ABORT"]
        + ["EXTERNAL_ABORT"]
    )


def test_sim_carve_out():
    """No access touches it: checked or not, tagged or not; what only lies beside it may pass."""
    end = STORAGE + (1 << 15)
    untagged = {"memory": Memory.UNTAGGED}
    inside = {"memory_base": 0, "memory_bytes": 1 << 40, "storage_base": 1 << 32}
    assert outcomes(
        case(**untagged, pa=STORAGE - 1, bytes=1),
        case(**untagged, pa=STORAGE, bytes=1),
        case(**untagged, pa=STORAGE - 7),
        case(**untagged, pa=STORAGE - 8),
        case(**untagged, pa=end - 1, bytes=1),
        case(**untagged, pa=end, bytes=1),
        case(**untagged, pa=STORAGE, tco=1),
        case(**untagged, pa=STORAGE, exempt=1, el0=0),
        case(**untagged, pa=STORAGE, op=Op.LDG, ata=0),
        case(**untagged, pa=STORAGE, op=Op.STGM, bytes=256, ata=0),
        case(**untagged, pa=STORAGE, tcf=[CheckMode.NONE, CheckMode.NONE]),
        case(**untagged, pa=STORAGE, mtx=0b11),  # comes before the canonical check
        case(**inside),
        case(**inside, at=-8),
        case(**inside, at=(1 << 35) - 8),
        case(**inside, at=1 << 35),
        case(**untagged, pa=STORAGE - 4, memory_bytes=0),
    ) == (
        ["PASS", "EXTERNAL_ABORT", "EXTERNAL_ABORT", "PASS", "EXTERNAL_ABORT", "PASS"]
        + ["EXTERNAL_ABORT"] * 6
        + ["EXTERNAL_ABORT", "CHECK", "EXTERNAL_ABORT", "CHECK"]
        + ["PASS"]
    )


def test_sim_blocks_that_reach_into_the_carve_out():
    """Every multiple of 128 may be its base, while larger blocks are aligned to their size."""
    cases = [
        case(
            op=op,
            pa=(1 << 44) + at,
            bytes=size,
            memory=Memory.UNTAGGED,
            storage_base=(1 << 44) + base,
            memory_bytes=memory_bytes,
        )
        for base in range(0, 1024, 128)
        for memory_bytes in (0, 1 << 12, 1 << 13)
        for op, size in (
            (Op.STORE, 64),
            (Op.STORE, 128),
            (Op.STORE, 256),
            (Op.STORE, 512),
            (Op.LDGM, 256),
        )
        for at in range(0, 1536, size)
    ]
    # Those of up to 64 bytes lie anywhere.
    cases += [
        case(
            pa=(1 << 44) + at,
            bytes=size,
            memory=Memory.UNTAGGED,
            storage_base=(1 << 44) + base,
            memory_bytes=1 << 12,
        )
        for base in (128, 256)
        for size in (1, 2, 17, 63, 64)
        for at in (base - size - 1, base - size, base - size + 1, base - 1, base, base + 127)
    ]
    answers = run(cases)
    check(cases, answers)
    assert {become(answer) for answer in answers} == {"PASS", "EXTERNAL_ABORT"}


def test_sim_wnr_of_an_abort():
    """Of the access where the access itself is refused; of the fetch where only tags are."""
    asynchronous = [CheckMode.ASYNC, CheckMode.ASYNC]
    for place, store, store_only_atomic in (
        ({"pa": STORAGE, "memory": Memory.UNTAGGED}, 1, 1),
        ({"pa": 0, "tcf": asynchronous}, 0, 0),
    ):
        cases = [
            case(**place),
            case(**place, op=Op.STORE),
            case(**place, op=Op.STORE, tco=1),
            case(**place, op=Op.ATOMIC),
            case(**place, op=Op.ATOMIC, tcso=0b01),
            case(**place, op=Op.LDG),
            case(**place, op=Op.LDGM, bytes=256),
            case(**place, op=Op.STG, bytes=16),
            case(**place, op=Op.STGM, bytes=256),
        ]
        answers = run(cases)
        check(cases, answers)
        assert {answer[0]["outcome"] for answer in answers} == {Outcome.EXTERNAL_ABORT}
        assert [answer[0]["write"] for answer in answers] == [
            0,
            store,
            store,
            0,
            store_only_atomic,
            0,
            0,
            1,
            1,
        ]


def test_sim_order_of_faults():
    """Alignment, permission, external abort, tag check: the first one that applies."""
    canonical = {"memory": Memory.UNTAGGED, "mtx": 0b11}
    assert outcomes(
        case(op=Op.STG, at=8, bytes=16),
        case(op=Op.STG, at=8, bytes=16, **canonical),
        case(op=Op.STG, pa=STORAGE + 8, bytes=16, **canonical),
        case(op=Op.STG, at=8, bytes=16, ata=0),
        case(op=Op.STG, pa=STORAGE, bytes=16, **canonical),
        case(op=Op.STG, bytes=16, **canonical),
        case(op=Op.STGM, bytes=256, **canonical),
        case(op=Op.STG, bytes=16, **canonical, ata=0),
        case(op=Op.STG, bytes=16, memory=Memory.UNTAGGED),
        case(op=Op.STG, bytes=16, mtx=0b11),
        case(op=Op.STG, pa=STORAGE, bytes=16, **canonical, ata=0),
        case(op=Op.LDG, at=8, bytes=16),
        case(op=Op.LDG, **canonical),
        case(at=3),
    ) == (
        ["ALIGNMENT_FAULT"] * 4
        + ["PERMISSION_FAULT"] * 3
        + ["PASS", "PASS", "STORE", "EXTERNAL_ABORT"]
        + ["LOAD", "PASS", "CHECK"]
    )


def test_sim_tag_loads_of_canonical_memory():
    untagged = {"memory": Memory.UNTAGGED, "bytes": 16}
    cases = [
        case(op=Op.LDG, **untagged),
        case(op=Op.LDG, **untagged, mtx=0b11),
        case(op=Op.LDG, **untagged, upper=True),
        case(op=Op.LDG, **untagged, upper=True, mtx=0b10),
        case(op=Op.LDG, **untagged, upper=True, mtx=0b01),
        case(op=Op.LDG, **untagged, upper=True, mtx=0b10, ata=0b10),
        case(op=Op.LDG, at=0x1F0, **untagged, upper=True, mtx=0b10),
        case(op=Op.LDGM, at=0x1C0, **untagged | {"bytes": 32}, upper=True, mtx=0b10),
        case(op=Op.LDGM, **untagged | {"bytes": 256}, upper=True, mtx=0b10),
        case(op=Op.LDGM, **untagged | {"bytes": 256}, mtx=0b10),
    ]
    answers = run(cases)
    check(cases, answers)
    assert [(answer[0]["ones"], answer[0]["single"]) for answer in answers] == [
        (0, 1),
        (0, 1),
        (0, 1),
        (1, 1),
        (0, 1),
        (0, 1),
        (1, 1),
        (1, 0),
        (1, 0),
        (0, 0),
    ]
    assert [answer[0]["mask"] for answer in answers[6:]] == [0x8000, 0x3000, 0xFFFF, 0xFFFF]


def test_sim_ldg_is_aligned():
    """LDG reads the granule of any address."""
    answers = run(
        cases := [
            case(op=Op.LDG, at=0x123, bytes=16),
            case(op=Op.LDG, pa=STORAGE + 0x123, bytes=16, memory=Memory.UNTAGGED),
            case(op=Op.LDG, pa=0x123, bytes=16),
        ]
    )
    check(cases, answers)
    assert [[(probe["mask"], probe["start"]) for probe in answer] for answer in answers] == [
        [(1 << 2, 2)]
    ] * 3


def test_sim_ldg_beside_the_edges():
    """The granule counts, not the bytes from an address within it on."""
    cases = [
        case(op=Op.LDG, at=(1 << 20) - 1, bytes=16),
        case(op=Op.LDG, pa=STORAGE - 1, bytes=16, memory=Memory.UNTAGGED),
    ]
    check(cases, run(cases))


def test_sim_maintenance():
    """By address where there are tags, all at once, and nothing elsewhere; INVALIDATE cleans."""
    untagged = {"memory": Memory.UNTAGGED}
    by_address = {"at": 0x1234, "bytes": 1}
    assert outcomes(
        case(op=Op.CLEAN, **by_address),
        case(op=Op.INVALIDATE, **by_address),
        case(op=Op.CLEAN_INVALIDATE, **by_address),
        case(op=Op.CLEAN, bytes=0, **untagged),
        case(op=Op.INVALIDATE, bytes=0, **untagged),
        case(op=Op.CLEAN_INVALIDATE, bytes=0, **untagged),
        case(op=Op.CLEAN, **by_address, **untagged),
        case(op=Op.CLEAN_INVALIDATE, at=-16, bytes=1),
        case(op=Op.CLEAN, **by_address, ata=0, tbi=0, tco=1, exempt=1),
        case(op=Op.CLEAN, bytes=0, memory_bytes=0, **untagged),
    ) == [
        "CLEAN",
        "CLEAN_INVALIDATE",
        "CLEAN_INVALIDATE",
        "CLEAN_ALL",
        "CLEAN_INVALIDATE_ALL",
        "CLEAN_INVALIDATE_ALL",
        "PASS",
        "PASS",
        "CLEAN",
        "CLEAN_ALL",
    ]


def random_case(rng, config):
    """An access near one of the places where something changes."""
    pages = 1 << rng.choice([0, 1, 4, config.memory_bits - 12])
    memory_bytes = pages << 12
    top = 1 << config.pa_bits
    memory_base = rng.choice([0, 1 << 31, top - memory_bytes, top // 2])
    storage_bits = min(config.pa_bits, config.axi_address_bits)
    storage_base = rng.choice(
        [
            0,
            1 << 30,
            (1 << 30) + 128 * rng.randrange(32),
            (1 << storage_bits) - memory_bytes // 32,
            memory_base % (1 << storage_bits),
        ]
    )
    place = rng.choice(
        [
            memory_base,
            *3 * [memory_base + memory_bytes // 2],
            memory_base + memory_bytes,
            storage_base,
            storage_base + memory_bytes // 32,
            top,
            rng.randrange(0, top),
        ]
    )
    op = rng.choice([*DATA, *DATA, *TAG_STORES, *Op])
    size = rng.choice([1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 48, 63, 64])
    if (op is Op.STORE and rng.random() < 0.3) or op is Op.STG:
        size = rng.choice([16, 32, 64, 128, 256, 512])
    elif op in (Op.LDGM, Op.STGM):
        size = rng.choice([16, 32, 64, 128, 256])
    elif op is Op.LDG:
        size = 16
    elif op in MAINTENANCE:
        size = rng.choice([0, 1, 1, 1])
    pa = (place + rng.randint(-80, 80)) % top
    if op in (Op.LDGM, Op.STGM) or size > 64:
        pa -= pa % size
    if op is Op.LDG or (op is Op.STG and rng.random() < 0.6):
        pa -= pa % 16
    if pa % 4096 + size > 4096:  # comes as two
        pa -= pa % 4096 + size - 4096
    top_bits = rng.choice([0, 0xFF, 0x0F, 0xF0, rng.randrange(256)])
    half = rng.getrandbits(1)
    va = top_bits << 56 | half << 55 | rng.getrandbits(3) << 52 | pa
    access = {
        "id": 0,
        "op": op,
        "va": va,
        "pa": pa,
        "bytes": size,
        "memory": rng.choice([Memory.TAGGED, Memory.UNTAGGED, *Memory]),
        "exempt": rng.random() < 0.1,
        "tco": rng.random() < 0.1,
        "el0": rng.getrandbits(1),
        "branches": rng.getrandbits(8),
        "tags": rng.getrandbits(64),
    }
    rare = [0, 0, 0, 1, 2, 3]
    control = {
        "tbi": rng.getrandbits(2),
        "mtx": rng.getrandbits(2),
        "tcma": rng.choice(rare),
        "ata": rng.choice([3, 3, 3, 2, 1, 0]),
        "tcso": rng.choice(rare),
        "tcf": [rng.choice([CheckMode.SYNC, CheckMode.ASYNC, *CheckMode]) for _ in range(2)],
        "memory_base": memory_base,
        "memory_bytes": memory_bytes,
        "storage_base": storage_base,
    }
    return access, control


def test_random_cases_are_those_of_their_seed():
    """In every process: what is drawn hangs on no order of a set."""
    draw = (
        "import random, test_access as t; rng = random.Random(5);"
        "print([t.random_case(rng, t.CONFIG) for _ in range(50)])"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    drawn = {
        subprocess.check_output(
            [sys.executable, "-c", draw],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
        )
        for hash_seed in "123"
    }
    assert len(drawn) == 1


@pytest.mark.parametrize("config", [CONFIG, NARROW, WIDE], ids=["default", "narrow", "wide"])
def test_sim_random(config, rng):
    cases = [random_case(rng, config) for _ in range(800)]
    answers = run(cases, config=config, gaps=iter(lambda: rng.choice([0, 0, 0, 1, 2]), None))
    check(cases, answers)
    assert {become(answer) for answer in answers} == {
        "PASS",
        "ASYNC",
        "TAG_CHECK_FAULT",
        "PERMISSION_FAULT",
        "ALIGNMENT_FAULT",
        "EXTERNAL_ABORT",
    } | {kind.name for kind in ProbeKind if kind is not ProbeKind.NONE}


def test_sim_random_back_to_back(rng):
    """Under one map nothing comes between the accesses."""
    cases = []
    while len(cases) < 2000:
        access, control = random_case(rng, CONFIG)
        control |= {name: CONTROL[name] for name in MAP}
        place = rng.choice([BASE, BASE + (1 << 19), BASE + (1 << 20), STORAGE, STORAGE + (1 << 15)])
        page = place - 4096 * rng.choice([0, 1])
        access["pa"] = page + access["pa"] % 4096
        cases.append((access, control))
    check(cases, run(cases))


def timeline(cases, cycles):
    """For each cycle: is an access admitted, a word there, and another to follow?"""
    dut = AccessDecoder(CONFIG)
    seen = []

    async def drive(ctx):
        ctx.set(dut.map, {name: CONTROL[name] for name in MAP})
        await ctx.tick().repeat(2)
        left = [
            integer(admitted_layout(CONFIG), payload(CONFIG, number, access, control))
            for number, (access, control) in enumerate(cases)
        ]
        shut = 0
        for _ in range(cycles):
            valid = bool(left) and not shut
            ctx.set(dut.admitted_valid, valid)
            if left:
                ctx.set(dut.admitted.as_value(), left[0])
            shut = valid and ctx.get(dut.admitted.two)
            if valid:
                left.pop(0)
            *_, word_valid, again, detail = await ctx.tick().sample(
                dut.word_valid, dut.again, dut.detail
            )
            seen.append((int(valid), word_valid, again, detail.ticket.number, detail.ticket.second))

    simulate(dut, drive)
    return seen


def test_timing_probes():
    """Each access of one word is a probe in the next cycle, whether it needs tags or not."""
    seen = timeline([case(at=16 * n, tco=n in (2, 5)) for n in range(8)], 10)
    assert [taken for taken, *_ in seen] == [1] * 8 + [0, 0]
    assert [(valid, again) for _, valid, again, *_ in seen] == [(0, 0), *[(1, 0)] * 8, (0, 0)]
    assert [number for *_, number, _ in seen[2:]] == list(range(8))


def test_timing_access_probes():
    """As the page of the unit shows: an access of two words, and one that is not checked."""
    seen = timeline([case(op=Op.STORE, at=0xF8, bytes=24), case(tco=1)], 6)
    assert seen[:2] == [(1, 0, 0, 0, 0), (0, 1, 1, 0, 0)]
    assert seen[2] == (1, 1, 0, 0, 0)
    assert seen[3] == (0, 1, 0, 0, 1)
    assert seen[4] == (0, 0, 0, 1, 0)


def test_timing_two_words():
    """An access of two words takes a cycle more; no cycle is lost."""
    seen = timeline([case(at=0xFC), case(), case(at=0xF0, bytes=32), case()], 9)
    assert [taken for taken, *_ in seen] == [1, 0, 1, 1, 0, 1, 0, 0, 0]
    assert [valid for _, valid, *_ in seen] == [0, 1, 1, 1, 1, 1, 1, 0, 0]
    assert [again for _, _, again, *_ in seen] == [0, 1, 0, 0, 1, 0, 0, 0, 0]
    assert [second for *_, second in seen[2:8]] == [0, 1, 0, 0, 1, 0]


class Two(wiring.Component):
    """What the door asks of an access."""

    access: In(admitted_layout(CONFIG)["access"].shape)
    two: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.two.eq(may_touch_two(self.access) & reaches_on(self.access))
        return m


def test_two_of_every_place_and_size():
    dut = Two()
    layout = admitted_layout(CONFIG)["access"].shape
    edges = [*range(4), 63, 64, 127, 128, *range(190, 256)]
    cases = [(at, size) for at in edges for size in range(1, 65)]
    cases += [(at, size) for size in (128, 256, 512) for at in range(0, 512, size)]

    async def drive(ctx):
        for number, (at, size) in enumerate(cases):
            op = (Op.LOAD, Op.STORE, Op.ATOMIC, Op.STG, Op.LDG, *MAINTENANCE)[number % 8]
            access = ACCESS | {"pa": BASE + at, "bytes": size, "op": op}
            ctx.set(dut.access.as_value(), integer(layout, access))
            touches = (at + size - 1) // 256 > at // 256
            assert ctx.get(dut.two) == (touches and op in (*DATA, Op.STG)), (op, at, size)

    simulate(dut, drive)

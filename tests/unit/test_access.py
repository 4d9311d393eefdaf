# amaranth: UnusedElaboratable=no
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.access import AccessDecoder
from emte.rtl.config import SMALL, TagConfig
from emte.rtl.layouts import (
    CheckMode,
    Memory,
    Op,
    Outcome,
    ProbeKind,
    admitted_layout,
    probe_layout,
    result_layout,
)
from emte.sim.harness import simulate
from emte.sim.streams import collect, put, random_pauses, send
from unit_support import integer, plain, watched

# Wide ids, so that each access of a simulation has its own.
CONFIG = TagConfig(id_bits=16)
NARROW = TagConfig(id_bits=16, pa_bits=36, memory_bits=32, axi_address_bits=36)

DATA = (Op.LOAD, Op.STORE, Op.ATOMIC)
TAG_LOADS = (Op.LDG, Op.LDGM)
TAG_STORES = (Op.STG, Op.STGM)
MAINTENANCE = (Op.CLEAN, Op.INVALIDATE, Op.CLEAN_INVALIDATE)

BASE = 1 << 32
"""Of the tagged memory in the directed tests: 1 MiB, with its tags at 1 << 40."""
STORAGE = 1 << 40

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
    "storage_zeroed": 1,
}


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


def run(cases, *, config=CONFIG, pauses=None):
    """What the decoder makes of accesses: for each the list of its probes, or its result."""
    dut = AccessDecoder(config)
    admitted = admitted_layout(config)
    payloads = [
        integer(
            admitted,
            {
                "access": access | {"id": number},
                "control": control,
                "ticket": {"id": number, "slot": number % 16, "speculative": number % 2},
            },
        )
        for number, (access, control) in enumerate(cases)
    ]
    answers = {}
    pauses = pauses or {}

    def receive(port, append):
        async def bench(ctx):
            remaining = pauses.get(port, iter(()))
            ctx.set(getattr(dut, port).ready, 1)
            while True:
                idle = next(remaining, 0)
                ctx.set(getattr(dut, port).ready, not idle)
                for _ in range(idle):
                    await ctx.tick()
                ctx.set(getattr(dut, port).ready, 1)
                valid = 0
                while not valid:
                    interface = getattr(dut, port)
                    _, _, valid, payload = await ctx.tick().sample(
                        interface.valid, interface.payload
                    )
                append(plain(payload))

        return bench

    def probe(payload):
        answers.setdefault(payload["ticket"]["id"], []).append(payload)

    def result(payload):
        assert payload["ticket"]["id"] not in answers
        answers[payload["ticket"]["id"]] = payload

    async def drive(ctx):
        await send(dut.i, payloads, pauses=pauses.get("i", ()))(ctx)
        for _ in range(40):
            await ctx.tick()

    simulate(
        watched(dut), drive, background=[receive("probe", probe), receive("unchecked", result)]
    )
    assert sorted(answers) == list(range(len(cases)))
    for number, answer in answers.items():
        for part in answer if isinstance(answer, list) else [answer]:
            assert part["ticket"] == {
                "id": number,
                "slot": number % 16,
                "speculative": number % 2,
                "half": 0,
                "el0": 0,
            }
    return [answers[number] for number in range(len(cases))]


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
    """The probes of an access, or its finding, by the rules of the architecture."""
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
        va, pa, size = va - va % 16, pa - pa % 16, 16
    memory = range(control["memory_base"], control["memory_base"] + control["memory_bytes"])
    tags = control["memory_bytes"] // 32
    carve_out = range(control["storage_base"], control["storage_base"] + tags)
    touched = range(pa, pa + size)
    in_map = all(byte in memory for byte in touched)
    in_carve_out = any(byte in carve_out for byte in touched)

    def finding(outcome, *, wnr=0, tags=0):
        faults = outcome not in (Outcome.PASS, Outcome.ASYNC)
        return {
            "outcome": outcome,
            "far": va if faults else 0,
            "wnr": int(wnr) if faults else 0,
            "tags": tags,
        }

    if op in MAINTENANCE:
        kind = "CLEAN" if op is Op.CLEAN else "CLEAN_INVALIDATE"
        if size == 0:
            return [{"kind": ProbeKind[kind + "_ALL"], "first": 1, "last": 1}]
        if tagged and in_map:
            word = (pa - memory.start) // 256
            return [{"kind": ProbeKind[kind], "word": word, "first": 1, "last": 1}]
        return finding(Outcome.PASS)
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
    canonical = 0xF if half else 0
    granules = range(pa - pa % 16, pa + size, 16)
    if not tagged:
        if is_checked(access, control) and mtx and va >> 56 & 0xF != canonical:
            outcome = Outcome.ASYNC if asynchronous else Outcome.TAG_CHECK_FAULT
            return finding(outcome, wnr=writes)
        if op is Op.LDG and ata and mtx:
            return finding(Outcome.PASS, tags=canonical)
        if op is Op.LDGM and ata and mtx:
            tags = sum(canonical << granule % 256 // 4 for granule in granules)
            return finding(Outcome.PASS, tags=tags)
        return finding(Outcome.PASS)
    if op in DATA:
        if not is_checked(access, control):
            return finding(Outcome.PASS)
        of_kind = {"kind": ProbeKind.CHECK, "asynchronous": int(asynchronous), "write": int(writes)}
    elif not ata:
        return finding(Outcome.PASS)
    elif op in TAG_LOADS:
        of_kind = {"kind": ProbeKind.LOAD, "single": int(op is Op.LDG)}
    else:
        of_kind = {"kind": ProbeKind.STORE}
    probes = []
    for word, members in groupby(granules, lambda granule: (granule - memory.start) // 256):
        members = list(members)
        places = [member % 256 // 16 for member in members]
        address = va if not probes else (va - va % 256 + 256 * len(probes)) % (1 << 64)
        probe = {
            "word": word,
            "mask": sum(1 << place for place in places),
            "address": address,
            "first": int(not probes),
            "last": int(members[-1] == granules[-1]),
        }
        if op in TAG_STORES:
            probe["secret_tags"] = sum(
                (access["tags"] if op is Op.STG else access["tags"] >> 4 * place) % 16 << 4 * place
                for place in places
            )
        probes.append(probe | of_kind)
    return probes


def check(cases, answers):
    """Compare answers with :func:`expected`, where that says something."""
    for (access, control), answer in zip(cases, answers, strict=True):
        wanted = expected(access, control)
        if isinstance(wanted, dict):
            assert isinstance(answer, dict), (access, control)
            assert answer["secret_finding"] == wanted, (access, control)
            continue
        assert isinstance(answer, list), (access, control)
        seen = []
        for probe, wanted_probe in zip(answer, wanted, strict=True):
            if "secret_tags" in wanted_probe:
                written = sum(0xF << 4 * n for n in range(16) if probe["mask"] >> n & 1)
                probe = probe | {"secret_tags": probe["secret_tags"] & written}
            seen.append({name: probe[name] for name in wanted_probe})
        assert seen == wanted, (access, control)


def test_init():
    dut = AccessDecoder(SMALL)
    assert dut.config is SMALL
    assert dut.signature == Signature(
        {
            "i": In(stream.Signature(admitted_layout(SMALL))),
            "probe": Out(stream.Signature(probe_layout(SMALL))),
            "unchecked": Out(stream.Signature(result_layout(SMALL))),
        }
    )


def outcomes(*cases):
    """Names of what becomes of accesses: an outcome, or the kind of probe."""
    answers = run(cases)
    check(cases, answers)
    return [
        answer["secret_finding"]["outcome"].name
        if isinstance(answer, dict)
        else answer[0]["kind"].name
        for answer in answers
    ]


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
    va = case()[0]["va"]
    fault = Outcome.TAG_CHECK_FAULT
    assert [
        (finding["outcome"], finding["far"], finding["wnr"])
        for finding in (answer["secret_finding"] for answer in answers)
    ] == [
        (Outcome.ASYNC, 0, 0),
        (Outcome.ASYNC, 0, 0),
        (fault, va, 0),
        (Outcome.ASYNC, 0, 0),
        (fault, va, 0),
        (Outcome.ASYNC, 0, 0),
        (fault, va, 1),
        (fault, va, 0),
        (fault, va, 1),
        (fault, va, 0),
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
        case(at=end - 4),
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
        ["EXTERNAL_ABORT", "CHECK", "CHECK", "CHECK", "EXTERNAL_ABORT", "EXTERNAL_ABORT"]
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
        findings = [answer["secret_finding"] for answer in answers]
        assert {finding["outcome"] for finding in findings} == {Outcome.EXTERNAL_ABORT}
        assert [finding["wnr"] for finding in findings] == [
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
    assert [answer["secret_finding"]["tags"] for answer in answers] == [
        0,
        0,
        0,
        15,
        0,
        0,
        15,
        0xFF << 48,
        (1 << 64) - 1,
        0,
    ]


def test_sim_ldg_is_aligned():
    """LDG reads the granule of any address, and every report is of its start."""
    answers = run(
        cases := [
            case(op=Op.LDG, at=0x123, bytes=16),
            case(op=Op.LDG, pa=STORAGE + 0x123, bytes=16, memory=Memory.UNTAGGED),
            case(op=Op.LDG, pa=0x123, bytes=16),
        ]
    )
    check(cases, answers)
    assert answers[0][0]["mask"] == 1 << 2
    assert answers[1]["secret_finding"]["far"] & 0xFFF == 0x120
    assert answers[2]["secret_finding"]["far"] & 0xFFF == 0x120


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
        [0, 1 << 30, (1 << storage_bits) - memory_bytes // 32, memory_base % (1 << storage_bits)]
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
        "storage_zeroed": 1,
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


@pytest.mark.parametrize("config", [CONFIG, NARROW], ids=["default", "narrow"])
def test_sim_random(config, rng, seed):
    cases = [random_case(rng, config) for _ in range(800)]
    pauses = {port: random_pauses(f"{seed} {port}") for port in ("i", "probe", "unchecked")}
    answers = run(cases, config=config, pauses=pauses)
    check(cases, answers)
    seen = [
        answer["secret_finding"]["outcome"].name
        if isinstance(answer, dict)
        else answer[0]["kind"].name
        for answer in answers
    ]
    assert set(seen) == {
        "PASS",
        "ASYNC",
        "TAG_CHECK_FAULT",
        "PERMISSION_FAULT",
        "ALIGNMENT_FAULT",
        "EXTERNAL_ABORT",
    } | {kind.name for kind in ProbeKind}


def timeline(cases, cycles, *, ready=lambda cycle: 1):
    """For each cycle: is an access taken, a probe offered, a result offered?"""
    dut = AccessDecoder(CONFIG)
    seen = []

    async def drive(ctx):
        for access, control in cases:
            await put(ctx, dut.i, {"access": access, "control": control})

    async def observe(ctx):
        for cycle in range(cycles):
            ctx.set(dut.probe.ready, ready(cycle))
            ctx.set(dut.unchecked.ready, ready(cycle))
            _, _, valid, taken, probe, unchecked = await ctx.tick().sample(
                dut.i.valid, dut.i.ready, dut.probe.valid, dut.unchecked.valid
            )
            seen.append((valid & taken, probe, unchecked))

    simulate(watched(dut), drive, observe)
    return seen


def test_timing_probes():
    """Each access of one word is a probe in the next cycle, as is each result."""
    cases = [case(at=16 * n, tco=n in (2, 5)) for n in range(8)]
    seen = timeline(cases, 10)
    assert seen[0] == (1, 0, 0)
    assert seen[1:9] == [(n < 7, n not in (2, 5), n in (2, 5)) for n in range(8)]
    assert seen[9] == (0, 0, 0)


def test_timing_two_words():
    """An access of two words takes a cycle more; no cycle is lost."""
    cases = [case(at=0xFC), case(), case(at=0xF0, bytes=32), case()]
    seen = timeline(cases, 8)
    assert [taken for taken, _, _ in seen] == [1, 0, 1, 1, 0, 1, 0, 0]
    assert [probe for _, probe, _ in seen] == [0, 1, 1, 1, 1, 1, 1, 0]


def test_timing_backpressure():
    """What is offered stays until it is taken; nothing is taken behind it."""
    seen = timeline([case(), case(tco=1), case()], 12, ready=lambda cycle: cycle in (4, 8, 9))
    assert [taken for taken, _, _ in seen] == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert [probe for _, probe, _ in seen] == [0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0]
    assert [unchecked for _, _, unchecked in seen] == [0] * 5 + [1] * 4 + [0] * 3


def test_sim_results_do_not_wait_for_each_other(seed):
    """A probe that nobody takes holds up no result that is already on offer."""
    dut = AccessDecoder(CONFIG)
    results = []

    async def drive(ctx):
        for access, control in (case(tco=1), case()):
            await put(ctx, dut.i, {"access": access, "control": control})

    simulate(watched(dut), drive, collect(dut.unchecked, results, 1))
    assert results[0].secret_finding.outcome == Outcome.PASS

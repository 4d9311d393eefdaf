"""The rules of docs/semantics.toml as operation streams, with the outcomes that the rules demand.

Each case stands for itself: it begins in the state of the start, with memory as :func:`prologue`
says and tag storage that nobody has written. What is expected is written down by hand. The golden
model and the hardware (in the Amaranth simulator) perform all cases as one stream.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from emte.rtl import SMALL
from emte.sim import engines, ops
from emte.sim.ops import STORAGE_BASE, Operation, Regime

Outcome = dict[str, Any]
Step = tuple[Operation, Outcome]

TAGGED = 0x4000_0000
HOLE = TAGGED + 0x1_0000
"""Not mapped; it follows on tagged memory."""
UNTAGGED = 0x5000_0000
NO_ACCESS = 0x6000_0000
"""Tagged memory whose tags stage 2 keeps back; tagged memory follows on it."""

PASS: Outcome = {"outcome": "pass"}
SQUASHED: Outcome = {"outcome": "squashed"}
UNDEFINED: Outcome = {"outcome": "undefined"}
TF0: Outcome = {"outcome": "async", "tfsr": [1, 0]}
TF1: Outcome = {"outcome": "async", "tfsr": [0, 1]}

CHECKED_OPS = ("load", "store", "atomic")
TAG_STORES = ("stg", "st2g", "stzg", "stz2g", "stgp", "stgm", "stzgm", "dc_gva", "dc_gzva")


# ---- Words of the cases --------------------------------------------------------------------------


def low(address: int, tag: int) -> int:
    """A pointer of the low half."""
    return tag << 56 | address


def high(address: int, tag: int) -> int:
    """A pointer of the high half to the same memory."""
    return 0xF080_0000_0000_0000 | tag << 56 | address


def do(expected: Outcome, op: str, **fields: Any) -> Step:
    return Operation(op, **fields), expected


def setup(op: str, **fields: Any) -> Step:
    return do({}, op, **fields)


def regime(**fields: Any) -> Step:
    return setup("regime", regime=Regime(**fields))


def stg(address: int, *tags: int) -> list[Step]:
    """Give tags to consecutive granules."""
    return [do(PASS, "stg", address=address + 16 * n, tag=tag) for n, tag in enumerate(tags)]


def load(expected: Outcome, address: int, size: int = 8, **fields: Any) -> Step:
    return do(expected, "load", address=address, size=size, **fields)


def store(expected: Outcome, address: int, size: int = 8, **fields: Any) -> Step:
    return do(expected, "store", address=address, size=size, **fields)


def atomic(expected: Outcome, address: int, size: int = 8, **fields: Any) -> Step:
    return do(expected, "atomic", address=address, size=size, **fields)


def ldg(tag: int, address: int, **fields: Any) -> Step:
    return do({"outcome": "pass", "tag": tag}, "ldg", address=address, **fields)


def ldgm(tags: int, address: int) -> Step:
    return do({"outcome": "pass", "tags": hex(tags)}, "ldgm", address=address, el=1)


def fault(outcome: str, far: int, wnr: int) -> Outcome:
    return {"outcome": outcome, "far": hex(far), "wnr": wnr}


def mismatch(far: int, wnr: int = 0) -> Outcome:
    return fault("tag_check_fault", far, wnr)


def permission(far: int, wnr: int) -> Outcome:
    return fault("permission_fault", far, wnr)


def abort(far: int, wnr: int) -> Outcome:
    return fault("external_abort", far, wnr)


def translation(far: int, wnr: int = 0) -> Outcome:
    return fault("translation_fault", far, wnr)


def tag_store(expected: Outcome, op: str, address: int, tag: int, el: int = 1) -> Step:
    """Any of the tag stores; its pointer has the tag, and so have its operands."""
    fields: dict[str, Any] = {"address": low(address, tag), "el": el}
    if op == "stgm":
        fields["tags"] = tag * 0x1111_1111_1111_1111
    elif not op.startswith("dc_"):
        fields["tag"] = tag
    return do(expected, op, **fields)


def irg(tag: int, rgsr: tuple[int, int], pointer: int = TAGGED, **fields: Any) -> Step:
    """``rgsr`` is TAG and SEED afterwards."""
    chosen = (pointer & ~(0xF << 56)) | tag << 56
    state = {"tag": rgsr[0], "seed": hex(rgsr[1])}
    return do({"address": hex(chosen), "rgsr": state}, "irg", address=pointer, **fields)


def rgsr(tag: int, seed: int) -> Step:
    return setup("rgsr", tag=tag, seed=seed)


def moved(op: str, to: int, pointer: int, offset: int, tag_offset: int, **fields: Any) -> Step:
    """ADDG or SUBG."""
    fields |= {"address": pointer, "offset": offset, "tag_offset": tag_offset}
    return do({"address": hex(to)}, op, **fields)


def prologue(number: int) -> Iterator[Step]:
    """Back to the state of the start, with tag storage of the case's own."""
    yield regime()
    yield setup("gcr")
    yield rgsr(0, 1)
    yield setup("storage", address=0, bytes=1 << 40, base=STORAGE_BASE + (number << 35))
    for address, size, memory in (
        (0, 1 << 52, "untagged"),
        (TAGGED, 0x1_0000, "tagged"),
        (HOLE, 0x1_0000, "none"),
        (NO_ACCESS, 0x1000, "no_tag_access"),
        (NO_ACCESS + 0x1000, 0x1000, "tagged"),
    ):
        yield setup("map", address=address, bytes=size, memory=memory)


# ---- Cases ---------------------------------------------------------------------------------------

CASES: dict[str, list[Step]] = {}

# Choice of tags

CASES["irg_lfsr_vectors"] = [
    step
    for seed, start, exclude, tag, new_seed in (
        (0x0001, 0x0, 0x0000, 0x1, 0x1000),
        (0x8000, 0x0, 0x0001, 0x1, 0x0800),
        (0xACE1, 0x0, 0x0001, 0x2, 0x2ACE),
        (0xACE1, 0x3, 0x8001, 0x5, 0x2ACE),
        (0xBEEF, 0xF, 0xFFFE, 0x0, 0xEBEE),
        (0x1234, 0x7, 0xFFFF, 0x0, 0xE123),
        (0x0000, 0x5, 0x0021, 0x6, 0x0000),
        (0x0000, 0x4, 0x0000, 0x4, 0x0000),
    )
    for step in (setup("gcr", exclude=exclude), rgsr(start, seed), irg(tag, (tag, new_seed)))
]
CASES["irg_sequence_repeats_tags"] = [
    setup("gcr", exclude=0x0001),
    rgsr(0, 0x1234),
    *(
        irg(tag, (tag, seed))
        for tag, seed in (
            *((0xE, 0xE123), (0x5, 0x6E12), (0x9, 0x46E1), (0xB, 0x246E)),
            *((0x7, 0xB246), (0x5, 0xDB24), (0x5, 0x0DB2), (0xA, 0x50DB)),
            *((0xA, 0x050D), (0x2, 0x7050), (0xE, 0xC705), (0xB, 0xCC70)),
        )
    ),
]
CASES["irg_starts_from_rgsr"] = [
    rgsr(6, 0x0001),  # an offset of 1
    irg(7, (7, 0x1000), low(TAGGED, 0xC)),
]
CASES["irg_takes_the_union_of_masks"] = [
    setup("gcr", exclude=0x0002),
    rgsr(0, 0x0001),  # an offset of 1, from 0
    irg(3, (3, 0x1000), exclude=0x0004),
]
CASES["irg_with_all_excluded_steps"] = [
    setup("gcr", exclude=0xFF00),
    rgsr(9, 0x0001),
    irg(0, (0, 0x1000), exclude=0x00FF),
    setup("gcr"),
    rgsr(9, 0x1000),
    irg(0, (0, 0x0100), exclude=0xFFFF),
]
CASES["irg_keeps_the_upper_seed"] = [rgsr(0, 0xABCD_EF12_0001), irg(1, (1, 0xABCD_EF12_1000))]
CASES["irg_seed_0_sticks"] = [
    rgsr(5, 0xABCD_0000_0000),
    irg(5, (5, 0xABCD_0000_0000)),
    irg(5, (5, 0xABCD_0000_0000)),
]
CASES["irg_seed_at_the_start_is_1"] = [irg(1, (1, 0x1000))]
CASES["irg_from_entropy"] = [
    setup("gcr", exclude=0x8001, rrnd=1),  # 1 to E are left
    rgsr(3, 0x1234),
    irg(0x1, (3, 0x1234), entropy=0),
    irg(0x8, (3, 0x1234), entropy=0x8000_0000),
    irg(0xE, (3, 0x1234), entropy=0xFFFF_FFFF),
    irg(0x2, (3, 0x1234), entropy=0x8000_0000, exclude=0x7FF8),  # 1 and 2 are left
    irg(0x0, (3, 0x1234), entropy=0x8000_0000, exclude=0x7FFE),
]
CASES["irg_from_entropy_does_not_stick_at_seed_0"] = [
    setup("gcr", rrnd=1),
    rgsr(0, 0),
    irg(0x3, (0, 0), entropy=0x3000_0000),
    irg(0xA, (0, 0), entropy=0xA000_0000),
]
CASES["irg_without_tag_access"] = [
    regime(ata=(0, 1)),
    rgsr(6, 0x0001),
    irg(0, (6, 0x0001), low(TAGGED, 0xC), el=0),
    irg(7, (7, 0x1000), low(TAGGED, 0xC), el=1),
    setup("gcr", rrnd=1),
    irg(0, (7, 0x1000), entropy=0xFFFF_FFFF, el=0),
]
CASES["addg_and_subg_walk_forward"] = [
    step
    for start, offset, exclude, tag in (
        (0xF, 0x1, 0x0000, 0x0),
        (0x0, 0x1, 0x0002, 0x2),
        (0x3, 0x0, 0x0008, 0x4),
        (0x3, 0x1, 0x0008, 0x4),
        (0xE, 0x2, 0x8001, 0x2),
        (0x5, 0xF, 0xFFDF, 0x5),
        (0x5, 0xF, 0xFFFF, 0x0),
    )
    for step in (
        setup("gcr", exclude=exclude),
        moved("addg", low(TAGGED + 0x3F0, tag), low(TAGGED, start), 0x3F0, offset),
        moved("subg", low(TAGGED - 0x3F0, tag), low(TAGGED, start), 0x3F0, offset),
    )
]
CASES["addg_and_subg_move_all_64_bits"] = [
    moved("addg", 0xF000_0000_0000_0000, 0xFDFF_FFFF_FFFF_FFF0, 0x10, 3),
    moved("addg", 0x0000_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFF0, 0x10, 1),
    moved("subg", 0x0EFF_FFFF_FFFF_FC10, 0x0D00_0000_0000_0000, 0x3F0, 1),
    moved("subg", 0xF0FF_FFFF_FFFF_FFF0, 0x0000_0000_0000_0000, 0x10, 0),
]
CASES["addg_and_subg_leave_rgsr"] = [
    rgsr(6, 0x0001),
    moved("addg", low(TAGGED, 3), low(TAGGED, 1), 0, 2),
    moved("subg", low(TAGGED, 3), low(TAGGED, 1), 0, 2),
    irg(7, (7, 0x1000)),
]
CASES["addg_and_subg_without_tag_access"] = [
    regime(ata=(1, 0)),
    moved("addg", low(TAGGED + 16, 0), low(TAGGED, 9), 16, 2, el=1),
    moved("subg", low(TAGGED - 16, 0), low(TAGGED, 9), 16, 2, el=1),
    moved("addg", low(TAGGED + 16, 0xB), low(TAGGED, 9), 16, 2, el=0),
]
CASES["gmi"] = [
    regime(ata=(0, 0)),
    do({"mask": "0x8"}, "gmi", address=low(TAGGED, 3), mask=0),
    do({"mask": "0xf000000000008001"}, "gmi", address=low(TAGGED, 15), mask=0xF << 60 | 1),
]

# Tag loads and stores

CASES["ldg_of_each_memory"] = [
    *stg(TAGGED, 5, 6),
    ldg(5, low(TAGGED + 0x0F, 9)),  # aligned down; the pointer's tag is no matter
    ldg(6, high(TAGGED + 0x10, 9)),
    ldg(0, low(UNTAGGED, 9)),
    ldg(0, high(UNTAGGED, 9)),
    do(translation(low(HOLE, 9)), "ldg", address=low(HOLE + 0x0F, 9)),
]
CASES["ldg_of_canonical_memory"] = [
    *stg(TAGGED, 5),
    regime(mtx=(1, 1)),
    ldg(0x0, low(UNTAGGED, 9)),
    ldg(0xF, high(UNTAGGED, 9)),
    ldg(0x5, low(TAGGED, 9)),
    ldg(0x5, high(TAGGED, 9)),
    regime(mtx=(1, 0)),
    ldg(0x0, high(UNTAGGED, 9)),
]
CASES["ldg_without_tag_access"] = [
    *stg(TAGGED, 5),
    regime(ata=(0, 1), mtx=(1, 1)),
    ldg(0, TAGGED, el=0),
    ldg(5, TAGGED, el=1),
    ldg(0x0, high(UNTAGGED, 9), el=0),
    ldg(0xF, high(UNTAGGED, 9), el=1),
    do(translation(HOLE), "ldg", address=HOLE, el=0),
]
CASES["ldgm_and_stgm_place_tags_by_address"] = [
    do(PASS, "stgm", address=low(TAGGED + 0x1FF, 3), tags=0xFEDC_BA98_7654_3210, el=1),
    *(ldg(n, TAGGED + 0x100 + 16 * n) for n in range(16)),
    ldg(0, TAGGED + 0xF0),
    ldg(0, TAGGED + 0x200),
    regime(gmid_bs=4),  # blocks of 64 bytes
    ldgm(0x0000_0000_7654_0000, TAGGED + 0x17F),
    do(PASS, "stgm", address=TAGGED + 0x1C5, tags=0x1234_5678_9ABC_DEF0, el=1),
    regime(),
    ldgm(0x1234_BA98_7654_3210, TAGGED + 0x100),
    regime(gmid_bs=2),  # one granule
    ldgm(0x0000_0090_0000_0000, TAGGED + 0x190),
    ldgm(0x0000_0000_0000_0010, TAGGED + 0x11F),
]
CASES["ldgm_of_canonical_memory_fills_only_its_block"] = [
    regime(mtx=(1, 1), gmid_bs=4),
    ldgm(0x0000_FFFF_0000_0000, high(UNTAGGED + 0x80, 9)),
    ldgm(0, low(UNTAGGED + 0x80, 9)),
    regime(mtx=(1, 1)),
    ldgm(0xFFFF_FFFF_FFFF_FFFF, high(UNTAGGED, 9)),
    regime(gmid_bs=4),
    ldgm(0, high(UNTAGGED + 0x80, 9)),
]
CASES["block_transfers_are_undefined_at_el0"] = [
    *stg(TAGGED, 5),
    do(UNDEFINED, "ldgm", address=TAGGED, el=0),
    do(UNDEFINED, "stgm", address=TAGGED, tags=0x9999, el=0),
    do(UNDEFINED, "stzgm", address=HOLE, tag=9, el=0),
    ldg(5, TAGGED),
]
CASES["tag_stores_have_their_own_sources"] = [
    do(PASS, "stg", address=low(TAGGED + 0x00, 9), tag=1),
    do(PASS, "stzg", address=low(TAGGED + 0x10, 9), tag=2),
    do(PASS, "st2g", address=low(TAGGED + 0x20, 9), tag=3),
    do(PASS, "stz2g", address=low(TAGGED + 0x40, 9), tag=4),
    do(PASS, "stgp", address=low(TAGGED + 0x60, 9), tag=5),
    ldgm(0x0944_3321, TAGGED),
    do(PASS, "stzgm", address=low(TAGGED + 0x100, 9), tag=6, el=1),
    do(PASS, "dc_gva", address=low(TAGGED + 0x140, 7)),
    do(PASS, "dc_gzva", address=low(TAGGED + 0x180, 8)),
    do(PASS, "stgm", address=low(TAGGED + 0x200, 9), tags=0xA, el=1),
    ldgm(0x0000_8888_7777_6666, TAGGED + 0x100),
    ldgm(0xA, TAGGED + 0x200),
]
CASES["blocks_are_aligned_down"] = [
    regime(dczid_bs=5),  # 128 bytes
    do(PASS, "dc_gva", address=low(TAGGED + 0xFF, 7)),
    ldgm(0x7777_7777_0000_0000, TAGGED),
    do(PASS, "stzgm", address=TAGGED + 0x7F, tag=3, el=1),
    ldgm(0x7777_7777_3333_3333, TAGGED),
    regime(dczid_bs=2),
    do(PASS, "dc_gzva", address=low(TAGGED + 0x2F, 9)),
    ldgm(0x7777_7777_3333_3933, TAGGED),
    regime(dczid_bs=7),  # two tag words
    do(PASS, "dc_gva", address=low(TAGGED + 0x3FF, 0xB)),
    ldgm(0, TAGGED + 0x100),
    ldgm(0xBBBB_BBBB_BBBB_BBBB, TAGGED + 0x200),
    ldgm(0xBBBB_BBBB_BBBB_BBBB, TAGGED + 0x300),
    ldgm(0, TAGGED + 0x400),
]
CASES["misaligned_tag_store_beats_everything"] = [
    step
    for op in ("stg", "st2g", "stzg", "stz2g", "stgp")
    for step in (
        do(fault("alignment_fault", low(TAGGED + 8, 9), 1), op, address=low(TAGGED + 8, 9), tag=9),
        do(fault("alignment_fault", HOLE + 1, 1), op, address=HOLE + 1, tag=9),
        ldg(0, TAGGED),
    )
]
CASES["tag_stores_are_unchecked"] = [
    *stg(TAGGED, *[5] * 16),
    *(tag_store(PASS, op, TAGGED, 9) for op in TAG_STORES),
    ldg(9, low(TAGGED, 3)),
]
CASES["tag_store_without_allocation_tags_is_dropped"] = [
    *(tag_store(PASS, op, UNTAGGED, 9) for op in TAG_STORES),
    setup("map", address=UNTAGGED, bytes=4096, memory="tagged"),
    ldgm(0, UNTAGGED),
]
CASES["tag_store_without_tag_access_is_dropped"] = [
    regime(ata=(1, 0), mtx=(1, 1)),
    *(tag_store(PASS, op, TAGGED, 9) for op in TAG_STORES),
    *(tag_store(PASS, op, UNTAGGED, 9) for op in TAG_STORES),
    tag_store(translation(low(HOLE, 9), 1), "stg", HOLE, 9),
    regime(),
    ldgm(0, TAGGED),
]
CASES["tag_store_to_canonical_memory_is_refused"] = [
    regime(mtx=(1, 0)),
    *(tag_store(permission(low(UNTAGGED, 9), 1), op, UNTAGGED, 9) for op in TAG_STORES),
    tag_store(permission(low(UNTAGGED, 0), 1), "stg", UNTAGGED, 0),
    do(PASS, "stg", address=high(UNTAGGED, 9), tag=9),  # MTX is off in that half
    do(PASS, "stg", address=TAGGED, tag=9),
]
CASES["pair_store_keeps_its_first_tag"] = [
    do(translation(low(HOLE, 3), 1), "st2g", address=low(HOLE - 16, 3), tag=9),
    ldg(9, HOLE - 16),
    setup("map", address=HOLE, bytes=4096, memory="untagged"),
    regime(mtx=(1, 1)),
    do(permission(low(HOLE, 3), 1), "stz2g", address=low(HOLE - 16, 3), tag=8),
    ldg(8, HOLE - 16),
]
CASES["pair_store_stops_at_its_first_fault"] = [
    regime(mtx=(1, 1)),
    setup("map", address=TAGGED, bytes=0x1000, memory="untagged"),
    do(permission(TAGGED + 0xFF0, 1), "st2g", address=TAGGED + 0xFF0, tag=9),
    ldg(0, TAGGED + 0x1000),
]
CASES["nibbles_do_not_disturb_each_other"] = [
    *stg(TAGGED, 5, 10),
    *stg(TAGGED, 3),
    ldg(10, TAGGED + 16),
    *stg(TAGGED + 16, 12),
    ldg(3, TAGGED),
    ldg(12, TAGGED + 16),
]
CASES["pages_of_one_granule_share_its_tag"] = [
    do(PASS, "stg", address=high(TAGGED, 0), tag=6),
    load(PASS, low(TAGGED, 6)),
    load(mismatch(low(TAGGED, 5)), low(TAGGED, 5)),
    load(PASS, high(TAGGED, 6)),
]
CASES["new_tag_counts_at_once"] = [
    step
    for tag in range(1, 16)
    for step in (
        *stg(TAGGED, tag),
        store(PASS, low(TAGGED, tag)),
        load(mismatch(low(TAGGED, tag - 1)), low(TAGGED, tag - 1)),
    )
]
CASES["data_and_maintenance_change_no_tag"] = [
    *stg(TAGGED, 5, 6),
    store(PASS, low(TAGGED, 5), 16),
    store(PASS, TAGGED, 32, exempt=1),
    do(PASS, "dc_zva", address=low(TAGGED, 9), tco=1),
    *(setup(op, address=TAGGED) for op in ("clean", "clean_invalidate", "invalidate")),
    *(setup(op) for op in ("clean", "clean_invalidate", "invalidate")),
    setup("map", address=TAGGED, bytes=0x1000, memory="untagged"),
    setup("map", address=TAGGED, bytes=0x1000, memory="tagged"),
    ldg(5, TAGGED),
    ldg(6, TAGGED + 16),
]

# When an access is checked

CASES["checked_access_is_compared_with_storage"] = [
    *stg(TAGGED, 5),
    load(PASS, low(TAGGED, 5)),
    store(PASS, low(TAGGED, 5)),
    atomic(PASS, low(TAGGED, 5)),
    do(PASS, "dc_zva", address=low(TAGGED + 0x40, 0)),
    load(mismatch(low(TAGGED, 4)), low(TAGGED, 4)),
    store(mismatch(low(TAGGED, 4), 1), low(TAGGED, 4)),
    atomic(mismatch(low(TAGGED, 4)), low(TAGGED, 4)),
    do(mismatch(low(TAGGED, 4), 1), "dc_zva", address=low(TAGGED, 4)),
    load(PASS, low(UNTAGGED, 4)),
]
CASES["exempt_forms_and_tco_are_unchecked"] = [
    *stg(TAGGED, 5),
    regime(mtx=(1, 1)),
    *(
        do(PASS, op, address=low(place, 4), size=8, **{reason: 1})
        for op in CHECKED_OPS
        for place in (TAGGED, UNTAGGED)
        for reason in ("exempt", "tco")
    ),
    do(PASS, "dc_zva", address=low(TAGGED, 4), tco=1),
    load(translation(HOLE), HOLE, exempt=1),  # unchecked is not untranslated
]
CASES["either_tbi_or_mtx_enables_checks"] = [
    *stg(TAGGED, 5),
    regime(tbi=(1, 0), mtx=(0, 1)),
    load(mismatch(low(TAGGED, 4)), low(TAGGED, 4)),
    load(mismatch(high(TAGGED, 4)), high(TAGGED, 4)),
    regime(tbi=(0, 0)),
    load(PASS, TAGGED),  # its tag is 0, that of memory 5
    store(PASS, high(TAGGED, 15)),
    regime(tbi=(1, 1), mtx=(1, 1)),
    load(mismatch(TAGGED), TAGGED),
    load(PASS, low(TAGGED, 5)),
]
CASES["halves_are_chosen_by_bit_55"] = [
    *stg(TAGGED, 5),
    regime(tbi=(1, 0)),
    load(mismatch(low(TAGGED, 15)), low(TAGGED, 15)),
    load(PASS, high(TAGGED, 15)),
    regime(tbi=(0, 1)),
    load(PASS, TAGGED),
    load(mismatch(high(TAGGED, 0)), high(TAGGED, 0)),
    # Bits 63:56 do not choose, with TBI on.
    regime(tbi=(1, 1), tcma=(0, 1)),
    load(mismatch(0xFF << 56 | TAGGED), 0xFF << 56 | TAGGED),
]
CASES["tcma_compares_five_bits"] = [
    *stg(TAGGED, 5),
    regime(tcma=(1, 1)),
    load(PASS, low(TAGGED, 0)),
    load(mismatch(low(TAGGED, 15)), low(TAGGED, 15)),
    load(PASS, high(TAGGED, 15)),
    load(mismatch(high(TAGGED, 0)), high(TAGGED, 0)),
    load(PASS, 0xA0 << 56 | TAGGED),  # bits 63:60 are no matter
    regime(tcma=(1, 0)),
    load(PASS, low(TAGGED, 0)),
    load(mismatch(high(TAGGED, 15)), high(TAGGED, 15)),
    regime(tcma=(0, 1)),
    load(mismatch(low(TAGGED, 0)), low(TAGGED, 0)),
    load(PASS, high(TAGGED, 15)),
]
CASES["canonical_pointers_are_checked_without_tcma"] = [
    *stg(TAGGED, 5),
    regime(mtx=(1, 1), tcma=(0, 0)),
    load(mismatch(low(TAGGED, 0)), low(TAGGED, 0)),
    load(mismatch(high(TAGGED, 15)), high(TAGGED, 15)),
    load(PASS, low(UNTAGGED, 0)),
    load(PASS, high(UNTAGGED, 15)),
]
CASES["tag_access_off_means_unchecked"] = [
    *stg(TAGGED, 5),
    regime(ata=(0, 1), mtx=(1, 1)),
    load(PASS, low(TAGGED, 4), el=0),
    load(PASS, low(UNTAGGED, 4), el=0),
    load(mismatch(low(TAGGED, 4)), low(TAGGED, 4), el=1),
    regime(ata=(1, 0)),
    load(mismatch(low(TAGGED, 4)), low(TAGGED, 4), el=0),
    load(PASS, low(TAGGED, 4), el=1),
]
CASES["store_only"] = [
    *stg(TAGGED, 5),
    regime(tcso=(1, 0)),
    load(PASS, low(TAGGED, 4), el=0),
    store(mismatch(low(TAGGED, 4), 1), low(TAGGED, 4), el=0),
    atomic(mismatch(low(TAGGED, 4), 1), low(TAGGED, 4), el=0),
    do(mismatch(low(TAGGED, 4), 1), "dc_zva", address=low(TAGGED, 4), el=0),
    load(mismatch(low(TAGGED, 4)), low(TAGGED, 4), el=1),
    atomic(mismatch(low(TAGGED, 4)), low(TAGGED, 4), el=1),
    regime(tcso=(0, 1), mtx=(1, 1)),
    load(PASS, low(UNTAGGED, 4), el=1),
    store(mismatch(low(UNTAGGED, 4), 1), low(UNTAGGED, 4), el=1),
]
CASES["tcf_none_means_unchecked"] = [
    *stg(TAGGED, 5),
    regime(tcf=("none", "sync"), mtx=(1, 1)),
    *(do(PASS, op, address=low(TAGGED, 4), size=8) for op in CHECKED_OPS),
    store(PASS, low(UNTAGGED, 4)),
    store(mismatch(low(TAGGED, 4), 1), low(TAGGED, 4), el=1),
]

# Which granules, which address

CASES["every_granule_counts"] = [
    *stg(TAGGED, 5, 5, 5, 5, 5, 6),
    load(PASS, low(TAGGED + 0x0F, 5), 64),  # 0f to 4e
    load(PASS, low(TAGGED + 0x10, 5), 64),
    load(mismatch(low(TAGGED + 0x50, 5)), low(TAGGED + 0x11, 5), 64),
    load(mismatch(low(TAGGED + 0x50, 5)), low(TAGGED + 0x4F, 5), 2),
    load(PASS, low(TAGGED + 0x4F, 5), 1),
    *stg(TAGGED + 0x20, 7),
    *(
        do(mismatch(low(TAGGED + 0x20, 5), op == "store"), op, address=low(TAGGED, 5), size=64)
        for op in CHECKED_OPS
    ),
]
CASES["far_is_the_lowest_failing_address"] = [
    *stg(TAGGED + 0xE0, 5, 5, 7, 5, 7),
    load(mismatch(low(TAGGED + 0x100, 5)), low(TAGGED + 0xE3, 5), 64),  # into the next tag word
    load(mismatch(low(TAGGED + 0x107, 5)), low(TAGGED + 0x107, 5), 64),  # its own first granule
    load(mismatch(low(TAGGED + 0x120, 5)), low(TAGGED + 0x11F, 5), 64),
    load(mismatch(low(TAGGED + 0xE3, 7)), low(TAGGED + 0xE3, 7), 64),
]
CASES["far_keeps_the_pointer"] = [
    *stg(TAGGED, 5, 6),
    load(mismatch(0xA500_0000_0000_0010 | TAGGED), 0xA500_0000_0000_0008 | TAGGED, 16),
    load(mismatch(0x5A80_0000_0000_000C | TAGGED), 0x5A80_0000_0000_000C | TAGGED, 4),
    store(translation(0xA700_0000_0000_0000 | HOLE, 1), 0xA700_0000_0000_0000 | HOLE),
]
CASES["dc_zva_is_checked_over_its_block"] = [
    step
    for bs in range(2, 8)
    for size in (4 << bs,)
    for block in (TAGGED + 0x400,)
    for step in (
        regime(dczid_bs=bs),
        do(PASS, "dc_gva", address=low(block, 5)),
        do(PASS, "dc_zva", address=low(block + size - 1, 5)),
        *stg(block + size - 16, 6),
        do(
            mismatch(low(block + size - 16, 5), 1),
            "dc_zva",
            address=low(block + size - 1, 5),
        ),
        *stg(block, 7),  # below the given address
        do(mismatch(low(block, 5), 1), "dc_zva", address=low(block + size - 1, 5)),
    )
]
CASES["pages_are_judged_by_their_own_kind"] = [
    setup("map", address=HOLE, bytes=0x1000, memory="untagged"),
    *stg(HOLE - 16, 5),
    load(PASS, low(HOLE - 8, 5), 64),
    load(mismatch(low(HOLE - 8, 4)), low(HOLE - 8, 4), 64),
    regime(mtx=(1, 1)),
    load(mismatch(low(HOLE, 5)), low(HOLE - 8, 5), 64),
    load(mismatch(low(HOLE - 8, 0)), low(HOLE - 8, 0), 64),
    *stg(HOLE - 16, 0),
    load(PASS, low(HOLE - 8, 0), 64),
    setup("map", address=TAGGED, bytes=0x1000, memory="untagged"),
    *stg(TAGGED + 0x1000, 7),
    load(mismatch(low(TAGGED + 0x1000, 0)), low(TAGGED + 0xFF8, 0), 16),
    regime(),
    load(PASS, low(TAGGED + 0xFF8, 7), 16),
]
CASES["second_part_keeps_the_top_byte"] = [
    # The carry out of bit 55 goes nowhere: the second part lies at the bottom of memory.
    setup("map", address=0, bytes=0x1000, memory="tagged"),
    setup("map", address=(1 << 52) - 0x1000, bytes=0x1000, memory="untagged"),
    do(PASS, "stg", address=0, tag=3),
    load(PASS, low((1 << 56) - 8, 3), 16),
    load(mismatch(low(0, 4)), low((1 << 56) - 8, 4), 16),
]
CASES["first_fault_of_a_crossing_access_wins"] = [
    *stg(HOLE - 16, 5),
    load(translation(low(HOLE, 4)), low(HOLE - 8, 4), 16),  # beats the mismatch before it
    store(translation(low(HOLE, 5), 1), low(HOLE - 8, 5), 16),
    *stg(TAGGED + 0xFF0, 5, 6),
    load(mismatch(low(TAGGED + 0xFF8, 4)), low(TAGGED + 0xFF8, 4), 16),
    load(mismatch(low(TAGGED + 0x1000, 5)), low(TAGGED + 0xFF8, 5), 16),
    load(mismatch(low(TAGGED + 0xFF8, 6)), low(TAGGED + 0xFF8, 6), 16),
]

# What a mismatch does

CASES["tcf_is_chosen_by_level"] = [
    *stg(TAGGED, 5),
    regime(tcf=("async", "sync")),
    load(TF0, low(TAGGED, 4), el=0),
    load(mismatch(low(TAGGED, 4)), low(TAGGED, 4), el=1),
    regime(tcf=("asym", "async")),
    load(mismatch(low(TAGGED, 4)), low(TAGGED, 4), el=0),
    load(TF0, low(TAGGED, 4), el=1),
]
CASES["async_names_the_half"] = [
    *stg(TAGGED, 5),
    regime(tcf=("async", "async"), mtx=(1, 1)),
    load(TF0, low(TAGGED, 4)),
    store(TF1, high(TAGGED, 4)),
    atomic(TF0, low(UNTAGGED, 4)),
    do(TF1, "dc_zva", address=high(UNTAGGED, 4)),
    load(PASS, low(TAGGED, 5)),
]
CASES["asym_checks_reads_synchronously"] = [
    *stg(TAGGED, 5),
    regime(tcf=("asym", "asym"), tcso=(0, 1)),
    load(mismatch(low(TAGGED, 4)), low(TAGGED, 4), el=0),
    store(TF0, low(TAGGED, 4), el=0),
    atomic(mismatch(low(TAGGED, 4)), low(TAGGED, 4), el=0),
    do(TF0, "dc_zva", address=low(TAGGED, 4), el=0),
    atomic(TF0, low(TAGGED, 4), el=1),  # a write, where only stores are checked
]
CASES["crossing_access_sets_no_flag_if_a_part_faults"] = [
    regime(tcf=("async", "async")),
    *stg(TAGGED + 0xFF0, 5, 6),
    load(TF0, low(TAGGED + 0xFF8, 4), 16),
    load(TF0, low(TAGGED + 0xFF8, 5), 16),
    load(translation(low(HOLE, 4)), low(HOLE - 8, 4), 16),
    setup("storage", address=TAGGED, bytes=0x1000, base=1 << 47),
    load(abort(low(TAGGED + 0x1000, 4), 0), low(TAGGED + 0xFF8, 4), 16),
]
CASES["crossing_access_may_set_both_flags"] = [
    # From the end of the low half into the high one: bit 55 changes.
    setup("map", address=0, bytes=0x1000, memory="tagged"),
    setup("map", address=(1 << 52) - 0x1000, bytes=0x1000, memory="untagged"),
    regime(tcf=("async", "async"), mtx=(1, 1)),
    load({"outcome": "async", "tfsr": [1, 1]}, low((1 << 55) - 8, 4), 16),
]

# FEAT_MTE4

CASES["canonical_check"] = [
    regime(mtx=(1, 1)),
    *(
        load(PASS if tag == good else mismatch(half(UNTAGGED, tag)), half(UNTAGGED, tag))
        for half, good in ((low, 0), (high, 15))
        for tag in range(16)
    ),
    store(mismatch(low(UNTAGGED + 3, 5), 1), low(UNTAGGED + 3, 5), 64),
    regime(mtx=(1, 0)),
    load(mismatch(low(UNTAGGED, 5)), low(UNTAGGED, 5)),
    load(PASS, high(UNTAGGED, 5)),
]
CASES["canonical_check_obeys_every_exemption"] = [
    regime(mtx=(1, 1), ata=(0, 1)),
    store(PASS, low(UNTAGGED, 5), el=0),
    store(PASS, low(UNTAGGED, 5), el=1, tco=1),
    store(PASS, low(UNTAGGED, 5), el=1, exempt=1),
    store(mismatch(low(UNTAGGED, 5), 1), low(UNTAGGED, 5), el=1),
    regime(mtx=(1, 1), tcf=("none", "asym"), tcso=(0, 1)),
    store(PASS, low(UNTAGGED, 5), el=0),
    load(PASS, low(UNTAGGED, 5), el=1),
    store(TF0, low(UNTAGGED, 5), el=1),
]
CASES["tagged_memory_is_compared_with_storage_also_under_mtx"] = [
    *stg(TAGGED, 0, 5),
    regime(mtx=(1, 1)),
    load(PASS, low(TAGGED, 0)),
    load(mismatch(high(TAGGED, 15)), high(TAGGED, 15)),
    load(PASS, high(TAGGED, 0)),
    load(PASS, high(TAGGED + 16, 5)),
    load(mismatch(low(TAGGED + 16, 0)), low(TAGGED + 16, 0)),
]
CASES["no_address_tags"] = [
    *stg(TAGGED, 5),
    regime(tbi=(0, 0), mtx=(1, 1)),
    load(PASS, low(TAGGED, 5)),
    load(translation(low(TAGGED, 5) | 1 << 60), low(TAGGED, 5) | 1 << 60),
    store(PASS, high(TAGGED, 5)),
    store(translation(high(TAGGED, 5) ^ 1 << 63, 1), high(TAGGED, 5) ^ 1 << 63),
    load(mismatch(low(TAGGED, 4)), low(TAGGED, 4)),
    regime(tbi=(0, 0), mtx=(0, 0)),  # neither: the whole top byte has to be canonical
    load(translation(low(TAGGED, 5)), low(TAGGED, 5)),
    atomic(translation(high(TAGGED, 5)), high(TAGGED, 5)),
    load(PASS, high(TAGGED, 15)),
    regime(tbi=(1, 1), mtx=(1, 1)),
    load(PASS, 0xA5 << 56 | TAGGED),
]
CASES["no_tag_access_refuses_what_is_tag_checked"] = [
    load(permission(low(NO_ACCESS, 0), 0), low(NO_ACCESS, 0)),
    store(permission(low(NO_ACCESS + 3, 5), 0), low(NO_ACCESS + 3, 5)),
    atomic(permission(high(NO_ACCESS, 5), 0), high(NO_ACCESS, 5)),
    do(permission(low(NO_ACCESS, 5), 0), "dc_zva", address=low(NO_ACCESS + 7, 5)),
    do(permission(low(NO_ACCESS, 5), 0), "ldg", address=low(NO_ACCESS + 7, 5)),
    do(permission(NO_ACCESS, 0), "ldgm", address=NO_ACCESS + 7, el=1),
    *(tag_store(permission(low(NO_ACCESS, 5), 1), op, NO_ACCESS, 5) for op in TAG_STORES),
    regime(tcf=("none", "async")),  # whatever a mismatch would do
    load(permission(NO_ACCESS, 0), NO_ACCESS, el=0),
    store(permission(NO_ACCESS, 0), NO_ACCESS, el=1),
    setup("map", address=NO_ACCESS, bytes=0x1000, memory="tagged"),
    ldgm(0, NO_ACCESS),
]
CASES["no_tag_access_lets_pass_what_is_not_checked"] = [
    regime(mtx=(1, 1), tcma=(1, 0), ata=(1, 0), tcso=(1, 0)),
    load(PASS, low(NO_ACCESS, 5), el=0),
    store(PASS, low(NO_ACCESS, 0), el=0),
    store(PASS, low(NO_ACCESS, 5), el=0, tco=1),
    store(PASS, low(NO_ACCESS, 5), el=0, exempt=1),
    store(PASS, low(NO_ACCESS, 5), el=1),
    ldg(0, low(NO_ACCESS, 5), el=1),
    do(PASS, "stg", address=NO_ACCESS, tag=5, el=1),
]
CASES["no_tag_access_beside_tagged_memory"] = [
    *stg(NO_ACCESS + 0x1000, 5),
    load(permission(low(NO_ACCESS + 0xFF8, 5), 0), low(NO_ACCESS + 0xFF8, 5), 16),
    load(PASS, low(NO_ACCESS + 0x1000, 5)),
    setup("map", address=NO_ACCESS - 0x1000, bytes=0x1000, memory="tagged"),
    *stg(NO_ACCESS - 16, 5),
    load(permission(low(NO_ACCESS, 5), 0), low(NO_ACCESS - 8, 5), 16),
    load(mismatch(low(NO_ACCESS - 8, 4)), low(NO_ACCESS - 8, 4), 16),
    do(permission(low(NO_ACCESS, 5), 1), "st2g", address=low(NO_ACCESS - 16, 5), tag=9),
    ldg(9, NO_ACCESS - 16),
]

# Tag storage

STORAGE = 0x7000_0000

CASES["range_of_the_map_is_exact"] = [
    setup("storage", address=TAGGED + 0x1000, bytes=0x2000, base=STORAGE),
    load(PASS, TAGGED + 0x1000),
    load(PASS, TAGGED + 0x2FC0, 64),
    load(abort(TAGGED + 0xFFF, 0), TAGGED + 0xFFF, 1),
    store(abort(TAGGED + 0x3000, 0), TAGGED + 0x3000, 1),
    load(abort(TAGGED + 0x3000, 0), TAGGED + 0x2FF8, 16),
    store(abort(TAGGED + 0x3000, 0), TAGGED + 0x3000, tco=1),  # checked or not
    do(abort(TAGGED + 0x3000, 0), "ldg", address=TAGGED + 0x3000),
    do(abort(TAGGED + 0x3000, 1), "stg", address=TAGGED + 0x3000, tag=1),
    load(PASS, low(UNTAGGED, 3)),  # untagged memory needs no tags
]
CASES["carve_out_is_closed"] = [
    step
    for memory in ("untagged", "tagged")
    for step in (
        setup("map", address=STORAGE, bytes=0x1000, memory=memory),
        setup("storage", address=STORAGE - 0x1000, bytes=0x2000, base=STORAGE),  # 256 bytes
        load(abort(STORAGE, 0), STORAGE),
        load(abort(STORAGE + 0xFF, 0), STORAGE + 0xFF, 1),
        load(PASS, STORAGE + 0x100, 1),
        store(abort(STORAGE + 0x10, 1), STORAGE + 0x10),
        store(abort(STORAGE + 0x10, 1), STORAGE + 0x10, exempt=1),
        atomic(abort(STORAGE + 0x10, 0), STORAGE + 0x10, tco=1),
        do(abort(STORAGE + 0xC0, 1), "dc_zva", address=STORAGE + 0xFF),
        do(abort(STORAGE, 0), "ldg", address=STORAGE),
        do(abort(STORAGE, 1), "stg", address=STORAGE, tag=1),
        load(abort(STORAGE, 0), STORAGE - 8, 16),
    )
]
CASES["empty_map_has_no_carve_out"] = [
    setup("storage", address=0, bytes=0, base=STORAGE),
    load(PASS, STORAGE),
    load(abort(TAGGED, 0), TAGGED),
]
CASES["tags_stay_at_their_storage_addresses"] = [
    setup("storage", address=TAGGED, bytes=0x2000, base=STORAGE),
    *stg(TAGGED + 0x1000, 5, 6),
    setup("storage", address=TAGGED, bytes=0x1000, base=STORAGE + 0x80),
    ldg(5, TAGGED),
    ldg(6, TAGGED + 16),
    ldg(0, TAGGED + 32),
]
CASES["permission_comes_after_translation_before_abort"] = [
    regime(mtx=(1, 1)),
    setup("map", address=STORAGE, bytes=0x1000, memory="untagged"),
    setup("storage", address=STORAGE, bytes=0x1000, base=STORAGE),
    do(permission(STORAGE, 1), "stg", address=STORAGE, tag=1),
    load(abort(low(STORAGE, 4), 0), low(STORAGE, 4)),  # which comes before the tag check
    do(translation(HOLE, 1), "stg", address=HOLE, tag=1),
    setup("storage", address=0, bytes=0x1000, base=STORAGE),
    load(permission(NO_ACCESS, 0), NO_ACCESS),
]

# Speculation

CASES["squashed_access_is_not_reported"] = [
    *stg(TAGGED, 5),
    setup("branch", id=3),
    load(SQUASHED, low(TAGGED, 4), branches=(3,)),
    do(SQUASHED, "ldg", address=TAGGED, branches=(3,)),
    load(SQUASHED, HOLE, branches=(3,)),
    setup("resolve", id=3, mispredicted=1),
    load(PASS, low(TAGGED, 5)),
    ldg(5, TAGGED),
]
CASES["held_outcome_is_that_of_a_certain_access"] = [
    *stg(TAGGED, 5),
    setup("branch", id=0),
    setup("branch", id=7),
    load(mismatch(low(TAGGED, 4)), low(TAGGED, 4), branches=(0, 7)),
    load(PASS, low(TAGGED, 5), branches=(7,)),
    do({"outcome": "pass", "tag": 5}, "ldg", address=TAGGED, branches=(0,)),
    store(mismatch(low(TAGGED, 6), 1), low(TAGGED, 6)),  # certain, and so before them
    setup("resolve", id=7),
    setup("resolve", id=0),
]
CASES["branches_are_independent"] = [
    *stg(TAGGED, 5),
    setup("branch", id=1),
    setup("branch", id=2),
    load(SQUASHED, low(TAGGED, 4), branches=(1, 2)),
    load(mismatch(low(TAGGED, 4)), low(TAGGED, 4), branches=(2,)),
    setup("resolve", id=1, mispredicted=1),
    setup("resolve", id=2),
]


# ---- Both of them --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict[str, list[Outcome]]]:
    """What each engine makes of each case."""
    operations: list[Operation] = []
    ends = [0]
    for number, steps in enumerate(CASES.values(), 1):
        operations += [operation for operation, _ in (*prologue(number), *steps)]
        ends.append(len(operations))
    # By way of a file, so that every field is checked.
    path = tmp_path_factory.mktemp("semantics") / "cases.jsonl"
    ops.write(path, operations)
    stream = ops.read(path)
    results: dict[str, dict[str, list[Outcome]]] = {name: {} for name in CASES}
    for engine in ("model", "pysim"):
        outcomes = engines.run(stream, engine=engine, config=SMALL).outcomes
        for (name, steps), (_, end) in zip(CASES.items(), pairwise(ends), strict=True):
            results[name][engine] = outcomes[end - len(steps) : end]
    return results


@pytest.mark.xdist_group("semantics")
@pytest.mark.parametrize("name", CASES)
def test_case(name, results):
    expected = [outcome for _, outcome in CASES[name]]
    assert results[name]["model"] == expected
    assert results[name]["pysim"] == expected

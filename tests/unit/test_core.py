"""The front end alone: which transactions a stream becomes, and what outcomes their results."""

from unittest.mock import patch

import numpy as np
import pytest
from emte.rtl.layouts import Op, Outcome
from emte.sim import core, ops
from emte.sim.core import Program
from emte.sim.ops import STORAGE_BASE, Operation, Regime, Stream
from emte.sim.outcomes import Outcomes
from emte.sim.traffic import Traffic
from emte.sim.transactions import RESULT, Flag, Kind, Status
from hypothesis import given, settings
from hypothesis import strategies as st

PAGE = 4096
TAGGED = Operation("map", address=0, bytes=16 * PAGE, memory="tagged")
NONE = Operation("map", address=4 * PAGE, bytes=PAGE, memory="none")
UNTAGGED = Operation("map", address=8 * PAGE, bytes=PAGE, memory="untagged")
MAP = (TAGGED, NONE, UNTAGGED)
PREAMBLE = 2  # the initial regime and storage map


def program_of(*operations: Operation) -> Program:
    """A program whose first rows are the memory map."""
    for line, operation in enumerate((*MAP, *operations), 1):
        operation.line = line
    return Program.of(Stream("stream", [*MAP, *operations]))


def sent(program: Program) -> list[dict[str, int]]:
    """The transactions after the preamble."""
    names = program.transactions.dtype.names
    rows = program.transactions[PREAMBLE:].tolist()
    return [dict(zip(names, row, strict=True)) for row in rows]


def outcomes_of(program: Program, *results: tuple[int, int, int, int]) -> list[dict]:
    """Outcomes after those of the map, from results (far, tags, outcome, wnr)."""
    array = np.array([(0, 0, 0, 0)] * PREAMBLE + list(results), dtype=RESULT)
    assert len(array) == len(program.transactions)
    return program.outcomes(array)[len(MAP) :]


def access(op: Op, va: int, size: int, *, flags: int = Flag.TAGGED | Flag.EL0, **fields: int):
    """What an access must look like, but for its row."""
    expected = {"kind": Kind.ACCESS, "op": op.value, "va": va, "bytes": size, "flags": flags}
    return expected | {"tags": 0, "branches": 0} | fields


def assert_sent(program: Program, *expected: dict[str, int]) -> None:
    transactions = sent(program)
    for transaction in transactions:
        del transaction["row"]
    assert transactions == list(expected)


# ---- Accesses ------------------------------------------------------------------------------------


def test_preamble_sets_default_regime_and_storage_map():
    regime, storage = Program.of(Stream("stream", [])).transactions.tolist()
    names = Program.of(Stream("stream", [])).transactions.dtype.names
    regime, storage = (dict(zip(names, each, strict=True)) for each in (regime, storage))
    assert (regime["kind"], regime["tags"]) == (Kind.REGIME, 0b01_01_00_11_00_00_11)
    assert (storage["kind"], storage["va"], storage["bytes"]) == (Kind.STORAGE, 0, 1 << 40)
    assert storage["tags"] == STORAGE_BASE


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({}, Flag.TAGGED | Flag.EL0),
        ({"el": 1}, Flag.TAGGED),
        ({"exempt": 1}, Flag.TAGGED | Flag.EL0 | Flag.EXEMPT),
        ({"tco": 1}, Flag.TAGGED | Flag.EL0 | Flag.TCO),
    ],
)
@pytest.mark.parametrize("op", ["load", "store", "atomic"])
def test_access_keeps_pointer_and_attributes(op, fields, flags):
    program = program_of(Operation(op, address=0x3B << 56 | 0x1238, size=8, **fields))
    assert_sent(program, access(Op[op.upper()], 0x3B << 56 | 0x1238, 8, flags=flags))


def test_access_to_untagged_page():
    program = program_of(Operation("load", address=8 * PAGE, size=1))
    assert_sent(program, access(Op.LOAD, 8 * PAGE, 1, flags=Flag.EL0))


def test_access_that_ends_at_page_boundary_is_one():
    program = program_of(Operation("load", address=PAGE - 64, size=64))
    assert_sent(program, access(Op.LOAD, PAGE - 64, 64))


def test_page_crossing_access_is_two_with_their_own_memory():
    top = 0x7A << 56
    program = program_of(Operation("store", address=top | (8 * PAGE - 3), size=16))
    assert_sent(
        program,
        access(Op.STORE, top | (8 * PAGE - 3), 3),
        access(Op.STORE, top | 8 * PAGE, 13, flags=Flag.EL0),
    )


def test_second_part_keeps_top_byte_over_carry():
    program = program_of(Operation("load", address=0xAB_FF_FFFF_FFFF_FFFF, size=2))
    assert [each["va"] for each in sent(program)] == [0xAB_FF_FFFF_FFFF_FFFF, 0xAB << 56]


@pytest.mark.parametrize(
    ("op", "write"), [("load", 0), ("store", 1), ("atomic", 0), ("ldg", 0), ("stg", 1)]
)
def test_translation_fault_sends_nothing(op, write):
    size = 8 if op in ("load", "store", "atomic") else 0
    program = program_of(Operation(op, address=0xA << 56 | 4 * PAGE, size=size))
    assert_sent(program)
    fault = {"outcome": "translation_fault", "far": hex(0xA << 56 | 4 * PAGE), "wnr": write}
    assert outcomes_of(program) == [fault]


def test_translation_fault_of_second_part_is_at_its_page():
    program = program_of(Operation("load", address=4 * PAGE - 1, size=2))
    assert_sent(program)
    assert outcomes_of(program)[0]["far"] == hex(4 * PAGE)


@pytest.mark.parametrize(
    ("tbi", "mtx", "top", "accepted"),
    [
        (1, 0, 0xFF, True),
        (0, 0, 0x00, True),
        (0, 0, 0x01, False),
        (0, 0, 0x10, False),
        (0, 1, 0x0F, True),
        (0, 1, 0x10, False),
    ],
)
@pytest.mark.parametrize("half", [0, 1])
def test_which_top_bytes_translation_accepts(tbi, mtx, top, accepted, half):
    regime = Regime(tbi=(tbi, tbi), mtx=(mtx, mtx))
    address = (top ^ 0xFF * half) << 56 | half << 55 | PAGE
    program = program_of(
        Operation("regime", regime=regime), Operation("load", address=address, size=1)
    )
    assert (len(sent(program)) == 2) == accepted


def test_regime_is_set_before_the_access_that_it_is_for():
    regime = Regime(
        tbi=(1, 0), mtx=(0, 1), tcma=(1, 1), ata=(1, 0), tcso=(0, 1), tcf=("async", "asym")
    )
    program = program_of(Operation("regime", regime=regime), Operation("load", address=0, size=1))
    first, second = sent(program)
    assert (first["kind"], first["tags"]) == (Kind.REGIME, 0b11_10_10_01_11_10_01)
    assert second["kind"] == Kind.ACCESS


# ---- Tag loads and stores ------------------------------------------------------------------------


def test_ldg_is_aligned():
    program = program_of(Operation("ldg", address=0x5 << 56 | 0x107F))
    assert_sent(program, access(Op.LDG, 0x5 << 56 | 0x1070, 16))
    assert outcomes_of(program, (0, 9, 0, 0)) == [{"outcome": "pass", "tag": 9}]


@pytest.mark.parametrize(("op", "size"), [("stg", 16), ("stzg", 16), ("st2g", 32), ("stz2g", 32)])
def test_tag_store(op, size):
    program = program_of(Operation(op, address=0x5 << 56 | 0x1070, tag=9))
    assert_sent(program, access(Op.STG, 0x5 << 56 | 0x1070, size, tags=9))


def test_stgp_takes_its_tag_from_the_address():
    program = program_of(Operation("stgp", address=0x5 << 56 | 0x1070, tag=9))
    assert_sent(program, access(Op.STG, 0x5 << 56 | 0x1070, 16, tags=5))


@pytest.mark.parametrize("op", ["stg", "st2g", "stgp"])
@pytest.mark.parametrize("page", [0, 4 * PAGE, 8 * PAGE])
def test_misaligned_tag_store_is_sent_before_translation(op, page):
    program = program_of(Operation(op, address=page + 0x78, tag=0))
    assert_sent(program, access(Op.STG, page + 0x78, 16, flags=Flag.EL0))


def test_second_part_of_tag_store_waits_for_the_first():
    program = program_of(Operation("st2g", address=PAGE - 16, tag=3))
    second = Flag.TAGGED | Flag.EL0 | Flag.IF_PASSED
    assert_sent(
        program,
        access(Op.STG, PAGE - 16, 16, tags=3),
        access(Op.STG, PAGE, 16, tags=3, flags=second),
    )
    refused = (PAGE - 16, 0, Outcome.EXTERNAL_ABORT.value, 1)
    fault = {"outcome": "external_abort", "far": hex(PAGE - 16), "wnr": 1}
    assert outcomes_of(program, refused, (0, 0, Status.NOT_SENT, 0)) == [fault]


def test_first_part_of_tag_store_stays_where_the_second_is_not_mapped():
    program = program_of(Operation("st2g", address=4 * PAGE - 16, tag=3))
    assert_sent(program, access(Op.STG, 4 * PAGE - 16, 16, tags=3))
    fault = {"outcome": "translation_fault", "far": hex(4 * PAGE), "wnr": 1}
    assert outcomes_of(program, (0, 0, 0, 0)) == [fault]


def test_blocks_are_aligned_down():
    top = 0xB6 << 56
    program = program_of(
        Operation("regime", regime=Regime(gmid_bs=3, dczid_bs=7)),
        Operation("dc_zva", address=top | 0x13FF),
        Operation("dc_gva", address=top | 0x13FF),
        Operation("dc_gzva", address=top | 0x13FF),
        Operation("stzgm", address=top | 0x13FF, tag=9, el=1),
        Operation("ldgm", address=top | 0x13FF, el=1),
        Operation("stgm", address=top | 0x13FF, tags=0xF00D << 48, el=1),
    )
    transactions = sent(program)[1:]
    assert [each["op"] for each in transactions] == [
        op.value for op in (Op.STORE, Op.STG, Op.STG, Op.STG, Op.LDGM, Op.STGM)
    ]
    assert [each["va"] for each in transactions] == [top | 0x1200] * 4 + [top | 0x13E0] * 2
    assert [each["bytes"] for each in transactions] == [512] * 4 + [32] * 2
    assert [each["tags"] for each in transactions] == [0, 6, 6, 9, 0, 0xF00D << 48]


@pytest.mark.parametrize("op", ["ldgm", "stgm", "stzgm"])
def test_undefined_at_el0(op):
    program = program_of(Operation(op, address=0))
    assert_sent(program)
    assert outcomes_of(program) == [{"outcome": "undefined"}]


def test_ldgm_gives_all_tags():
    program = program_of(Operation("ldgm", address=0, el=1))
    tags = 0xFEDC_BA98_7654_3210
    assert outcomes_of(program, (0, tags, 0, 0)) == [{"outcome": "pass", "tags": hex(tags)}]


def test_maintenance():
    program = program_of(
        Operation("clean", address=0x1234),
        Operation("invalidate", address=8 * PAGE),
        Operation("clean_invalidate"),
    )
    assert_sent(
        program,
        access(Op.CLEAN, 0x1234, 1, flags=Flag.TAGGED),
        access(Op.INVALIDATE, 8 * PAGE, 1, flags=0),
        access(Op.CLEAN_INVALIDATE, 0, 0, flags=0),
    )
    aborted = (0, 0, Outcome.EXTERNAL_ABORT.value, 0)
    assert outcomes_of(program, aborted, (0, 0, 0, 0), (0, 0, 0, 0)) == [{}, {}, {}]


# ---- Choice of tags ------------------------------------------------------------------------------


def test_irg_gives_address_and_rgsr():
    program = program_of(Operation("irg", address=0xFF << 56 | 0x40, exclude=0x8001, entropy=7))
    (request,) = sent(program)
    assert request["kind"] == Kind.GENERATE
    assert request["tags"] == 0 | 1 << 2 | 0x8001 << 11 | 7 << 27
    assert outcomes_of(program, (0xACE1 << 4 | 5, 5, 0, 0)) == [
        {"address": hex(0xF5 << 56 | 0x40), "rgsr": {"tag": 5, "seed": "0xace1"}}
    ]


@pytest.mark.parametrize(
    ("op", "number", "address", "moved"),
    [
        ("addg", 1, 0x04FF_FFFF_FFFF_FFF8, 0x0500_0000_0000_0008),
        ("addg", 1, 0xFFFF_FFFF_FFFF_FFF8, 0x0000_0000_0000_0008),
        ("subg", 2, 0x0400_0000_0000_0008, 0x03FF_FFFF_FFFF_FFF8),
        ("subg", 2, 0x0000_0000_0000_0008, 0xFFFF_FFFF_FFFF_FFF8),
    ],
)
def test_address_arithmetic_takes_64_bits_and_then_gets_its_tag(op, number, address, moved):
    program = program_of(Operation(op, address=address, offset=16, tag_offset=3))
    (request,) = sent(program)
    assert request["tags"] == number | 1 << 2 | (address >> 56 & 0xF) << 3 | 3 << 7
    expected = moved & ~(0xF << 56) | 0xC << 56
    assert outcomes_of(program, (0, 0xC, 0, 0)) == [{"address": hex(expected)}]


def test_gmi_is_the_core_s_own():
    program = program_of(Operation("gmi", address=0xD8 << 56, mask=0x10000))
    assert_sent(program)
    assert outcomes_of(program) == [{"mask": "0x10100"}]


def test_gcr_and_rgsr():
    program = program_of(
        Operation("gcr", exclude=0x8001, rrnd=1), Operation("rgsr", tag=5, seed=0xACE1)
    )
    gcr, rgsr = sent(program)
    assert (gcr["kind"], gcr["tags"]) == (Kind.GCR, 0x18001)
    assert (rgsr["kind"], rgsr["tags"]) == (Kind.RGSR, 0xACE1 << 4 | 5)


# ---- Outcomes ------------------------------------------------------------------------------------

FAULT = (0x1234, 0, Outcome.TAG_CHECK_FAULT.value, 1)
ABORT = (0x2000, 0, Outcome.EXTERNAL_ABORT.value, 0)
ASYNC = (0, 0, Outcome.ASYNC.value, 0)
PASS = (0, 0, Outcome.PASS.value, 0)


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (PASS, PASS, {"outcome": "pass"}),
        (FAULT, ABORT, {"outcome": "tag_check_fault", "far": "0x1234", "wnr": 1}),
        (PASS, ABORT, {"outcome": "external_abort", "far": "0x2000", "wnr": 0}),
        (ASYNC, ABORT, {"outcome": "external_abort", "far": "0x2000", "wnr": 0}),
        (PASS, ASYNC, {"outcome": "async", "tfsr": [1, 0]}),
        (ASYNC, PASS, {"outcome": "async", "tfsr": [1, 0]}),
    ],
)
def test_outcome_of_page_crossing_access(first, second, outcome):
    program = program_of(Operation("store", address=PAGE - 1, size=2))
    assert outcomes_of(program, first, second) == [outcome]


def test_tfsr_bit_follows_half_and_level():
    program = program_of(
        Operation("load", address=1 << 55, size=1, el=1), Operation("load", address=0, size=1)
    )
    outcomes = outcomes_of(program, ASYNC, PASS)
    assert outcomes == [{"outcome": "async", "tfsr": [0, 1]}, {"outcome": "pass"}]
    every = Outcomes.of([*[{}] * len(MAP), *outcomes])
    assert program.tfsr(every) == {"el0": [0, 0], "el1": [0, 1]}


@pytest.mark.parametrize(
    "outcome", [each for each in Outcome if each not in (Outcome.PASS, Outcome.ASYNC)]
)
def test_each_fault_has_its_name(outcome):
    program = program_of(Operation("load", address=0, size=1))
    (fault,) = outcomes_of(program, (0x1FF, 0, outcome.value, 1))
    assert fault == {"outcome": outcome.name.lower(), "far": "0x1ff", "wnr": 1}


# ---- Branches ------------------------------------------------------------------------------------


def test_branches_are_named_and_resolved_in_order():
    program = program_of(
        Operation("branch", id=1),
        Operation("branch", id=4),
        Operation("load", address=0, size=1, branches=(1, 4)),
        Operation("resolve", id=4, mispredicted=1),
        Operation("resolve", id=1),
    )
    load, first, second = sent(program)
    assert load["branches"] == 0b10010
    assert (first["kind"], first["op"], first["flags"]) == (Kind.RESOLVE, 4, Flag.MISPREDICTED)
    assert (second["kind"], second["op"], second["flags"]) == (Kind.RESOLVE, 1, 0)


@pytest.mark.parametrize("address", [0, 4 * PAGE])
def test_squashed_access_is_squashed_whatever_came_of_it(address):
    program = program_of(
        Operation("branch", id=1),
        Operation("load", address=address, size=1, branches=(1,)),
        Operation("resolve", id=1, mispredicted=1),
    )
    results = [FAULT] * (len(sent(program)) - 1) + [PASS]
    assert outcomes_of(program, *results)[1] == {"outcome": "squashed"}


def test_branch_of_the_same_name_squashes_its_own_accesses_only():
    program = program_of(
        Operation("branch", id=1),
        Operation("load", address=0, size=1, branches=(1,)),
        Operation("resolve", id=1),
        Operation("branch", id=1),
        Operation("load", address=0, size=1, branches=(1,)),
        Operation("resolve", id=1, mispredicted=1),
    )
    outcomes = outcomes_of(program, PASS, PASS, PASS, PASS)
    assert [outcomes[1], outcomes[4]] == [{"outcome": "pass"}, {"outcome": "squashed"}]


# ---- Storage map ---------------------------------------------------------------------------------


def test_storage_map_changes_in_an_idle_pipeline_without_lines():
    program = program_of(Operation("storage", address=PAGE, bytes=8 * PAGE, base=1 << 20))
    clean, storage = sent(program)
    assert (clean["kind"], clean["op"]) == (Kind.ACCESS, Op.CLEAN_INVALIDATE.value)
    assert (clean["bytes"], clean["flags"]) == (0, Flag.DRAIN)
    assert (storage["kind"], storage["flags"]) == (Kind.STORAGE, Flag.DRAIN)
    assert (storage["va"], storage["bytes"], storage["tags"]) == (PAGE, 8 * PAGE, 1 << 20)


def test_branches_are_resolved_before_the_storage_map_changes():
    program = program_of(
        Operation("branch", id=1),
        Operation("branch", id=2),
        Operation("branch", id=3),
        Operation("load", address=0, size=1, branches=(1, 2)),
        Operation("storage", address=0, bytes=PAGE, base=1 << 20),
        Operation("load", address=16, size=1, branches=(1,)),
        Operation("load", address=32, size=1, branches=(1, 3)),
        Operation("load", address=48, size=1, branches=(2,)),
        Operation("resolve", id=2, mispredicted=1),
        Operation("resolve", id=1),
        Operation("resolve", id=3),
    )
    transactions = sent(program)
    kinds = [(each["kind"], each["op"], each["branches"]) for each in transactions]
    load = Op.LOAD.value
    assert kinds == [
        (Kind.ACCESS, load, 0b110),
        (Kind.RESOLVE, 1, 0),
        (Kind.RESOLVE, 2, 0),
        (Kind.ACCESS, Op.CLEAN_INVALIDATE.value, 0),
        (Kind.STORAGE, 0, 0),
        (Kind.ACCESS, load, 0),  # branch 1 is known to be right
        (Kind.ACCESS, load, 0b1000),
        (Kind.RESOLVE, 3, 0),  # the access that names branch 2 is not sent: it is squashed
    ]
    assert transactions[2]["flags"] == Flag.MISPREDICTED
    outcomes = outcomes_of(program, *[PASS] * len(transactions))
    assert [outcome["outcome"] for outcome in outcomes if outcome] == [
        *("squashed", "pass", "pass", "squashed")
    ]


# ---- Columnar streams ----------------------------------------------------------------------------

COLUMNAR = (
    *("load", "store", "atomic", "ldg", "stg", "st2g", "dc_gva", "dc_zva"),
    *("map", "branch", "resolve", "regime"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("columnar")


@settings(max_examples=50)
@given(
    rng=st.randoms(use_true_random=False),
    count=st.integers(0, 400),
    few=st.sampled_from((1, 64)),
    many=st.sampled_from((1, 7, 1 << 15)),
)
def test_columns_are_translated_as_their_operations(rng, count, few, many, folder):
    operations = [each for each in Traffic(rng).operations(count) if each.op in COLUMNAR]
    path = folder / "stream.npz"
    ops.write(path, Stream("stream", operations))
    stream = ops.read(path)
    with patch.multiple(core, _FEW=few, _MANY=many):
        columnar = Program.of(stream)
    single = Program.of(Stream(stream.path, list(stream)))
    assert columnar.transactions.tolist() == single.transactions.tolist()
    assert columnar.lines.tolist() == single.lines.tolist()
    results = np.zeros(len(single.transactions), dtype=RESULT)
    results["outcome"] = rng.choices([0, 1, 2, 5], k=len(results))
    results["far"] = np.arange(len(results))
    assert columnar.outcomes(results) == single.outcomes(results)

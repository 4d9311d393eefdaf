"""Operation streams: reading, writing, and every way in which they can be wrong."""

import gzip
import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emte.sim import ops
from emte.sim.ops import FIELDS, Operation, Regime, Stream, StreamError
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
TRACES = ROOT / "sim" / "traces"
VECTORS = ROOT / "tests" / "data" / "vectors"
ENDINGS = ("jsonl", "jsonl.gz", "npz")


def error(call, *args, **kwargs):
    """The text of the StreamError that a call raises; it has to be one line."""
    with pytest.raises(StreamError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    return text


def write_lines(path, *lines):
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    """Paths in messages are as short as they were given."""
    monkeypatch.chdir(tmp_path)


def read_line(line):
    """The operation of one line of JSON."""
    (operation,) = ops.read(write_lines(Path("s.jsonl"), line))
    return operation


def read_error(*lines):
    return error(ops.read, write_lines(Path("s.jsonl"), *lines))


# ---- Round trips ---------------------------------------------------------------------------------

u64 = st.integers(0, (1 << 64) - 1)
bit = st.integers(0, 1)
branch_ids = st.integers(0, 7)
page_ranges = st.tuples(st.integers(0, (1 << 40) - 1), st.integers(1, (1 << 20) - 1)).map(
    lambda pages: {"address": pages[0] << 12, "bytes": min(pages[1], (1 << 40) - pages[0]) << 12}
)
regimes = st.builds(
    Regime,
    tbi=st.tuples(bit, bit),
    mtx=st.tuples(bit, bit),
    tcma=st.tuples(bit, bit),
    ata=st.tuples(bit, bit),
    tcso=st.tuples(bit, bit),
    tcf=st.tuples(*[st.sampled_from(["none", "sync", "async", "asym"])] * 2),
    gmid_bs=st.integers(2, 6),
    dczid_bs=st.integers(2, 7),
)
VALUES = {
    "address": u64,
    "size": st.integers(1, 64),
    "exempt": bit,
    "tco": bit,
    "el": bit,
    "branches": st.sets(branch_ids).map(lambda ids: tuple(sorted(ids))),
    "tag": st.integers(0, 15),
    "tags": u64,
    "exclude": st.integers(0, 0xFFFF),
    "rrnd": bit,
    "seed": st.integers(0, (1 << 48) - 1),
    "entropy": st.integers(0, (1 << 32) - 1),
    "offset": st.integers(0, 63).map(lambda n: 16 * n),
    "tag_offset": st.integers(0, 15),
    "mask": u64,
    "id": branch_ids,
    "mispredicted": bit,
    "gap": st.integers(0, (1 << 32) - 1),
    "pc": st.none() | st.integers(1, (1 << 64) - 1),
}
COLUMNAR = (
    *("load", "store", "atomic", "dc_zva", "ldg", "stg", "st2g", "dc_gva"),
    *("map", "branch", "resolve", "regime"),
)


def operations(names):
    @st.composite
    def build(draw):
        op = draw(st.sampled_from(names))
        chosen = {"op": op}
        if op == "regime":
            chosen["regime"] = draw(regimes)
        elif op == "map":
            chosen |= draw(page_ranges) | {"memory": draw(st.sampled_from(ops.MEMORIES))}
        elif op == "storage":
            chosen |= {"address": 0x4000_0000, "bytes": draw(st.integers(0, 1 << 28)) << 12}
            chosen["base"] = draw(st.integers(0, 1 << 40)) << 7
        else:
            chosen |= {f: draw(VALUES[f]) for f in FIELDS[op] if f not in ("gap", "pc")}
        if draw(st.booleans()):
            chosen |= {"gap": draw(VALUES["gap"]), "pc": draw(VALUES["pc"])}
        return Operation(**chosen)

    return st.lists(build(), max_size=12)


def numbered(operations):
    return [replace(operation, line=line) for line, operation in enumerate(operations, 1)]


def round_trip(operations, ending):
    path = Path(f"round.{ending}")
    ops.write(path, operations)
    return list(ops.read(path))


@given(operations(sorted(FIELDS)))
def test_text_round_trip(written):
    for ending in ("jsonl", "jsonl.gz"):
        assert round_trip(written, ending) == numbered(written)


@given(operations(COLUMNAR))
def test_columnar_round_trip(written):
    assert round_trip(written, "npz") == numbered(written)


@given(operations(COLUMNAR))
def test_conversion_there_and_back(written):
    ops.write("a.npz", written)
    ops.write("b.jsonl", ops.read("a.npz"))
    ops.write("c.npz", ops.read("b.jsonl"))
    assert list(ops.read("c.npz")) == numbered(written)


def test_every_operation_is_covered_by_the_round_trips():
    fields = {field for op in FIELDS for field in FIELDS[op]}
    special = {"bytes", "memory", "base"} | set(FIELDS["regime"])
    assert fields == set(VALUES) | special


@pytest.mark.parametrize("ending", ENDINGS)
def test_equal_streams_give_equal_files(ending):
    path = Path(f"s.{ending}")
    written = [Operation("load", address=8, size=8), Operation("regime", regime=Regime(mtx=(1, 1)))]
    ops.write(path, written)
    first = path.read_bytes()
    ops.write(path, ops.read(path))
    assert path.read_bytes() == first


def test_only_what_differs_from_the_default_is_written():
    ops.write("s.jsonl", [Operation("store", address=0x40, size=8, el=1, branches=(2,), gap=3)])
    expected = '{"op":"store","address":"0x40","size":8,"el":1,"branches":[2],"gap":3}\n'
    assert Path("s.jsonl").read_text() == expected


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_stream_can_be_iterated_again(ending):
    ops.write(f"s.{ending}", [Operation("load", address=n, size=1) for n in range(20_000)])
    stream = ops.read(f"s.{ending}")
    assert stream.path == f"s.{ending}"
    assert len(stream) == 20_000
    assert (stream.columns is not None) == (ending == "npz")
    for _ in range(2):
        assert [operation.address for operation in stream] == list(range(20_000))


@pytest.mark.parametrize("ending", ENDINGS)
def test_select(ending):
    names = ("load", "stg", "map")
    written = [Operation(names[n % 3], address=n << 12, size=4 * (n % 3 == 0)) for n in range(9)]
    for operation in written[2::3]:
        operation.bytes = 4096
    ops.write(f"s.{ending}", written)
    stream = ops.read(f"s.{ending}")
    assert list(stream.select(("map", "stg"))) == [o for o in stream if o.op != "load"]
    assert list(stream.select(("irg",))) == []
    assert stream.counts() == {"load": 3, "stg": 3, "map": 3}


@pytest.mark.parametrize("ending", ENDINGS)
def test_parts_of_a_stream(ending):
    ops.write(f"s.{ending}", [Operation("load", address=n, size=1, gap=n) for n in range(9)])
    stream = ops.read(f"s.{ending}")
    assert stream[3] == list(stream)[3]
    assert stream[-1].line == 9
    with pytest.raises(IndexError):
        stream[9]
    assert list(stream.head(4)) == list(stream)[:4]
    assert len(stream.head(100)) == 9
    assert stream.instructions() == 36
    assert stream.head(4).instructions() == 6


@pytest.mark.parametrize("ending", ENDINGS)
def test_empty_stream(ending):
    ops.write(f"s.{ending}", [])
    assert list(ops.read(f"s.{ending}")) == []


# ---- Text ----------------------------------------------------------------------------------------


def test_numbers_may_be_hexadecimal():
    operation = read_line('{"op":"load","address":"0xFFfF0000000000a0","size":"0x10","gap":"0x2"}')
    assert (operation.address, operation.size, operation.gap) == (0xFFFF_0000_0000_00A0, 16, 2)


def test_defaults():
    assert read_line('{"op":"load","address":0,"size":1}') == Operation(
        op="load", line=1, address=0, size=1
    )
    assert read_line('{"op":"regime"}').regime == Regime()
    assert read_line('{"op":"clean"}').address is None


def test_branches_are_a_set():
    line = '{"op":"load","address":0,"size":1,"branches":[5,2,5]}'
    assert read_line(line).branches == (2, 5)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_map_may_reach_the_end_of_memory(ending):
    last = Operation("map", 1, (1 << 52) - 4096, bytes=4096, memory="none")
    assert round_trip([last], ending) == [last]


def test_pc_0_is_not_known():
    assert read_line('{"op":"gcr","pc":0}').pc is None


def test_last_line_may_lack_its_end():
    Path("s.jsonl").write_text('{"op":"gcr"}\n{"op":"clean"}')
    assert [operation.op for operation in ops.read("s.jsonl")] == ["gcr", "clean"]


LOAD = '{"op":"load","address":4096,"size":8}'
MAX64 = "0xffffffffffffffff"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # What is no object
        ("", "not JSON: Expecting value (column 1)"),
        ("{", "not JSON: Expecting property name enclosed in double quotes (column 2)"),
        ('{"op":"load"} x', "not JSON: Extra data (column 15)"),
        ('[{"op":"gcr"}]', 'must be a JSON object, not [{"op": "gcr"}]'),
        ("7", "must be a JSON object, not 7"),
        # The operation
        ("{}", "op: missing"),
        ('{"op":7}', "op: unknown operation 7"),
        ('{"op":"lod"}', 'op: unknown operation "lod"; did you mean load?'),
        ('{"op":"nonsense"}', 'op: unknown operation "nonsense"'),
        # Names of fields
        (
            '{"op":"load","adress":0,"size":8}',
            "adress: load has no such field; did you mean address?",
        ),
        ('{"op":"gmi","address":0,"mask":0,"size":8}', "size: gmi has no such field"),
        ('{"op":"gcr","a\\nb":0}', '"a\\nb": gcr has no such field'),
        ('{"op":"gcr","rrnd":0,"rrnd":1}', "rrnd: given twice"),
        ('{"op":"load","size":8}', "address: missing; load needs it"),
        ('{"op":"load","address":0}', "size: missing; load needs it"),
        ('{"op":"branch"}', "id: missing; branch needs it"),
        # Types and ranges
        (
            '{"op":"load","address":0,"size":-8}',
            "size: must be an integer from 1 to 64, not -8",
        ),
        ('{"op":"load","address":0,"size":0}', "size: must be an integer from 1 to 64, not 0"),
        ('{"op":"load","address":0,"size":65}', "size: must be an integer from 1 to 64, not 65"),
        (
            '{"op":"load","address":0,"size":true}',
            "size: must be an integer from 1 to 64, not true",
        ),
        ('{"op":"load","address":0,"size":8.0}', "size: must be an integer from 1 to 64, not 8.0"),
        ('{"op":"load","address":0,"size":"8"}', 'size: must be an integer from 1 to 64, not "8"'),
        (
            '{"op":"load","address":0,"size":"0x1_0"}',
            'size: must be an integer from 1 to 64, not "0x1_0"',
        ),
        (
            '{"op":"load","address":null,"size":8}',
            f"address: must be an integer from 0 to {MAX64}, not null",
        ),
        (
            '{"op":"load","address":"0x10000000000000000","size":8}',
            f'address: must be an integer from 0 to {MAX64}, not "0x10000000000000000"',
        ),
        (
            '{"op":"load","address":18446744073709551616,"size":8}',
            f"address: must be an integer from 0 to {MAX64}, not 18446744073709551616",
        ),
        (
            '{"op":"store","address":0,"size":8,"tco":2}',
            "tco: must be an integer from 0 to 1, not 2",
        ),
        ('{"op":"ldg","address":0,"el":2}', "el: must be an integer from 0 to 1, not 2"),
        ('{"op":"stg","address":0,"tag":16}', "tag: must be an integer from 0 to 15, not 16"),
        (
            '{"op":"addg","address":0,"offset":8,"tag_offset":0}',
            "offset: must be a multiple of 16 from 0 to 1008, not 8",
        ),
        (
            '{"op":"addg","address":0,"offset":1024,"tag_offset":0}',
            "offset: must be a multiple of 16 from 0 to 1008, not 1024",
        ),
        ('{"op":"gcr","exclude":65536}', "exclude: must be an integer from 0 to 65535, not 65536"),
        ('{"op":"branch","id":8}', "id: must be an integer from 0 to 7, not 8"),
        (
            '{"op":"ldg","address":0,"branches":[8]}',
            "branches: must be an integer from 0 to 7, not 8",
        ),
        (
            '{"op":"ldg","address":0,"branches":3}',
            "branches: must be a list of branches, not 3",
        ),
        ('{"op":"gcr","gap":-1}', "gap: must be an integer from 0 to 0xffffffff, not -1"),
        # Memory
        (
            '{"op":"map","address":4096,"bytes":4096,"memory":"taged"}',
            'memory: must be one of untagged, tagged, none, no_tag_access, not "taged"',
        ),
        (
            '{"op":"map","address":16,"bytes":4096,"memory":"tagged"}',
            f"address: must be a multiple of 4096 from 0 to {MAX64}, not 16",
        ),
        (
            '{"op":"map","address":0,"bytes":0,"memory":"tagged"}',
            "bytes: must be a multiple of 4096 from 4096 to 0x10000000000000, not 0",
        ),
        (
            '{"op":"map","address":"0xffffffffff000","bytes":8192,"memory":"tagged"}',
            "bytes: the range ends above 2**52",
        ),
        (
            '{"op":"storage","address":0,"bytes":4096,"base":64}',
            "base: must be a multiple of 128 from 0 to 0xffffffffffff, not 64",
        ),
        (
            '{"op":"storage","address":0,"bytes":8192,"base":"0xffffffffff80"}',
            "base: tag storage ends above 2**48",
        ),
        # The regime
        ('{"op":"regime","tbi":1}', "tbi: must be a list of two, not 1"),
        ('{"op":"regime","mtx":[0,0,0]}', "mtx: must be a list of two, not [0, 0, 0]"),
        ('{"op":"regime","mtx":[0,false]}', "mtx: must be an integer from 0 to 1, not false"),
        (
            '{"op":"regime","tcf":["sync","asymm"]}',
            'tcf: must be one of none, sync, async, asym, not "asymm"',
        ),
        ('{"op":"regime","gmid_bs":7}', "gmid_bs: must be an integer from 2 to 6, not 7"),
    ],
)
def test_wrong_line(line, message):
    assert read_error(LOAD, LOAD, line) == f"s.jsonl:3: {message}"


def test_hostile_lines():
    assert read_error("[" * 100_000).startswith("s.jsonl:1: not JSON: ")
    assert read_error('{"op":' + "9" * 5000 + "}").startswith("s.jsonl:1: not JSON: ")
    text = read_error('{"op":"gcr","exclude":' + "9" * 4000 + "}")
    assert text == f"s.jsonl:1: exclude: must be an integer from 0 to 65535, not {'9' * 37}..."


def test_not_utf8():
    Path("s.jsonl").write_bytes(LOAD.encode() + b'\n{"op":"\xff"}\n')
    assert error(ops.read, "s.jsonl") == "s.jsonl:2: not UTF-8 text (byte 8)"


def test_truncated_gzip():
    # Random addresses, so that the file is too long for one block of its reader.
    numbers = np.random.default_rng(1).integers(0, 1 << 60, 20_000).tolist()
    ops.write("s.jsonl.gz", [Operation("load", address=n, size=1) for n in numbers])
    whole = Path("s.jsonl.gz").read_bytes()
    Path("s.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    text = error(ops.read, "s.jsonl.gz")
    place = re.fullmatch(r"s\.jsonl\.gz:(\d+): the gzip data is truncated", text)
    assert place
    assert 5_000 < int(place[1]) < 15_000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "s.jsonl.gz: not gzip data: the file is empty"),
        (
            lambda data: b"{}" + data,
            "s.jsonl.gz:1: bad gzip data: Not a gzipped file (b'{}')",
        ),
        (lambda data: data[:-1], "s.jsonl.gz:2: the gzip data is truncated"),
        (lambda data: data[:9], "s.jsonl.gz:1: the gzip data is truncated"),
    ],
)
def test_bad_gzip(damage, message):
    ops.write("s.jsonl.gz", [Operation("gcr")])
    Path("s.jsonl.gz").write_bytes(damage(Path("s.jsonl.gz").read_bytes()))
    assert error(ops.read, "s.jsonl.gz") == message


def test_bad_checksum_of_gzip():
    ops.write("s.jsonl.gz", [Operation("gcr")])
    data = bytearray(Path("s.jsonl.gz").read_bytes())
    data[-5] ^= 1
    Path("s.jsonl.gz").write_bytes(data)
    assert error(ops.read, "s.jsonl.gz").startswith("s.jsonl.gz:2: bad gzip data: CRC check failed")


@pytest.mark.parametrize("ending", ENDINGS)
def test_missing_file(ending):
    assert error(ops.read, f"no.{ending}") == f"no.{ending}: No such file or directory"


@pytest.mark.parametrize("ending", ENDINGS)
def test_folder(ending):
    Path(f"s.{ending}").mkdir()
    assert error(ops.read, f"s.{ending}") == f"s.{ending}: Is a directory"


def test_unknown_ending():
    message = "s.json: a stream's name ends in .jsonl, .jsonl.gz or .npz"
    assert error(ops.read, "s.json") == message
    assert error(ops.write, "s.json", []) == message
    assert os.listdir() == []


# ---- Columnar form -------------------------------------------------------------------------------


def columns(**changes):
    """Arrays of a small stream, changed; None leaves one out."""
    arrays = {
        "op": np.array([0, 1, 2, 3, 4, 5], "u1"),
        "address": np.array([0x10000, 0x10008, 0x10020, 0, 0, 0], "u8"),
        "size": np.array([4096, 8, 0, 0, 0, 0], "u4"),
        "tag": np.array([1, 0, 7, 3, 3, 0], "u1"),
        "flags": np.array([0, 3, 4, 0, 8, 0], "u1"),
        "gap": np.array([0, 1, 2, 3, 4, 5], "u4"),
        "op_names": np.array(["map", "load", "stg", "branch", "resolve", "regime"]),
        "pc_index": np.array([0, 1, 2, 0, 0, 0], "u2"),
        "pcs": np.array([0, 0x400100, 0x400104], "u4"),
        "insn": np.array([0, 0xF9400000, 0xD9200800], "u4"),
        "regimes": np.array(['{"tcf":["async","sync"]}']),
        **changes,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def write_columns(**changes):
    np.savez("s.npz", **columns(**changes))
    return "s.npz"


def test_columns_become_operations():
    stream = ops.read(write_columns())
    assert list(stream) == [
        Operation("map", 1, 0x10000, bytes=4096, memory="tagged"),
        Operation("load", 2, 0x10008, 8, exempt=1, tco=1, gap=1, pc=0x400100),
        Operation("stg", 3, 0x10020, tag=7, el=1, gap=2, pc=0x400104),
        Operation("branch", 4, id=3, gap=3),
        Operation("resolve", 5, id=3, mispredicted=1, gap=4),
        Operation("regime", 6, regime=Regime(tcf=("async", "sync")), gap=5),
    ]
    assert stream.columns["insn"][1] == 0xF9400000


def test_instruction_words_survive_rewriting():
    ops.write("t.npz", ops.read(write_columns()))
    assert ops.read("t.npz").columns["insn"].tolist() == [0, 0xF9400000, 0xD9200800]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": None}, "address: missing column"),
        ({"op_names": None}, "op_names: missing column"),
        ({"adress": np.zeros(6, "u8")}, "adress: unknown column; did you mean address?"),
        ({"gap": np.zeros(6, "i8")}, "gap: must be an array of u4, not of i8"),
        ({"tag": np.zeros(6)}, "tag: must be an array of u1, not of f8"),
        ({"pcs": np.zeros(3, "i4")}, "pcs: must be an array of u4 or u8, not of i4"),
        ({"op_names": np.zeros(3, "u1")}, "op_names: must be an array of U, not of u1"),
        ({"size": np.zeros((6, 1), "u4")}, "size: must have one dimension, not 2"),
        ({"size": np.zeros(5, "u4")}, "size: has 5 rows, but op has 6"),
        ({"pc_index": None}, "pc_index: comes with pcs, and only with it"),
        ({"insn": np.zeros(2, "u4")}, "insn: must have as many entries as pcs"),
        (
            {"op_names": np.array(["map", "irg"])},
            'op_names: the columnar form has no operation "irg"',
        ),
        ({"op": np.array([0, 1, 2, 3, 4, 6], "u1")}, "op: 6 is no index into the 6 op_names"),
        (
            {"pc_index": np.array([0, 9, 0, 0, 0, 0], "u2")},
            "pc_index: 9 is no index into the 3 pcs",
        ),
        ({"regimes": None}, "size: 0 is no index into the 0 regimes"),
        ({"regimes": np.array(["{}}"])}, "regimes: not JSON: Extra data (column 3)"),
        (
            {"regimes": np.array(['{"tfc":["sync","sync"]}'])},
            "regimes: tfc: regime has no such field; did you mean tcf?",
        ),
        (
            {"regimes": np.array(['{"gmid_bs":1}'])},
            "regimes: gmid_bs: must be an integer from 2 to 6, not 1",
        ),
        (
            {"size": np.array([4096, 65, 0, 0, 0, 0], "u4")},
            "size: size of load must be an integer from 1 to 64, not 65",
        ),
        (
            {"size": np.array([4095, 8, 0, 0, 0, 0], "u4")},
            "size: bytes of map must be a multiple of 4096 from 4096 to 0x10000000000000, not 4095",
        ),
        (
            {"tag": np.array([4, 0, 7, 3, 3, 0], "u1")},
            "tag: memory of map must be an integer from 0 to 3, not 4",
        ),
        (
            {"tag": np.array([1, 0, 16, 3, 3, 0], "u1")},
            "tag: tag of stg must be an integer from 0 to 15, not 16",
        ),
        (
            {"tag": np.array([1, 0, 7, 8, 3, 0], "u1")},
            "tag: id of branch must be an integer from 0 to 7, not 8",
        ),
        (
            {"flags": np.array([0, 16, 4, 0, 8, 0], "u1")},
            "flags: 0x10 has bits that load does not know",
        ),
        (
            {"flags": np.array([0, 3, 1, 0, 8, 0], "u1")},
            "flags: 0x1 has bits that stg does not know",
        ),
        (
            {"branches": np.array([0, 1, 2, 0, 0, 0], "u1")},
            "branches: stg depends on no branch",
        ),
        (
            {
                "address": np.array([0xFFFFFFFFFF000, 8, 0, 0, 0, 0], "u8"),
                "size": np.array([8192, 8, 0, 0, 0, 0], "u4"),
            },
            "size: the range ends above 2**52",
        ),
    ],
)
def test_wrong_columns(changes, message):
    text = error(ops.read, write_columns(**changes))
    place = re.fullmatch(r"s\.npz(?::(\d+))?: (.*)", text)
    assert place[2] == message


def test_wrong_row_is_named():
    path = write_columns(tag=np.array([1, 0, 16, 3, 3, 0], "u1"))
    assert error(ops.read, path).startswith("s.npz:3: tag: ")


def test_pickled_columns_are_refused():
    path = write_columns(address=np.array([{}] * 6, dtype=object))
    assert error(ops.read, path).startswith("s.npz: damaged .npz file: Object arrays cannot")


def test_member_that_is_no_array():
    path = write_columns()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, b"nonsense" if name == "tag.npy" else data)
    assert error(ops.read, path) == "s.npz: tag: is no array"


@pytest.mark.parametrize("order", ["<", ">"])
def test_strings_that_are_no_text(order):
    numbers = np.array([0x6C, 0x11_0000], f"{order}u4")
    path = write_columns(op_names=numbers.view(f"{order}U1"))
    assert error(ops.read, path) == "s.npz: op_names: holds what is no text"


def test_not_an_npz():
    Path("s.npz").write_bytes(b"PK nonsense")
    assert error(ops.read, "s.npz") == "s.npz: not an .npz file, or it is truncated"


def test_damaged_npz(rng):
    """Wherever a file is cut or a bit flipped: read as before, or refused in one line."""
    whole = Path(write_columns()).read_bytes()
    before = list(ops.read("s.npz"))
    for _ in range(300):
        data = bytearray(whole)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        Path("s.npz").write_bytes(data)
        try:
            text = ""
            assert list(ops.read("s.npz")) == before
        except StreamError as caught:
            text = str(caught)
        assert text == "" or (text.startswith("s.npz") and text.isprintable())


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Operation("irg", 7, 0), "op: the columnar form has no irg"),
        (
            Operation("map", 7, 0, bytes=1 << 32, memory="tagged"),
            "bytes: the columnar form holds less than 2**32",
        ),
    ],
)
def test_what_the_columnar_form_cannot_hold(operation, message):
    stream = Stream("a.jsonl", [operation])
    assert error(ops.write, "s.npz", stream) == f"a.jsonl:7: {message}"
    assert os.listdir() == []


# ---- Writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failed_write_leaves_the_old_file(ending):
    path = Path(f"s.{ending}")
    ops.write(path, [Operation("load", address=0, size=1)])
    before = path.read_bytes()

    def broken():
        yield Operation("load", address=0, size=1)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        ops.write(path, broken())
    assert path.read_bytes() == before
    assert os.listdir() == [path.name]


def test_a_link_stays_a_link():
    Path("there").mkdir()
    Path("s.jsonl").symlink_to("there/t.jsonl")
    ops.write("s.jsonl", [Operation("gcr")])
    assert Path("s.jsonl").is_symlink()
    assert Path("there/t.jsonl").read_text() == '{"op":"gcr"}\n'


def test_devices_are_not_replaced():
    with ops.replacing("/dev/null") as file:
        file.write(b"x")
    assert not Path("/dev/null").is_file()


def test_missing_folder():
    with pytest.raises(FileNotFoundError) as caught:
        ops.write("no/s.jsonl", [])
    assert caught.value.filename == "no/s.jsonl"


# ---- Rules of the whole stream -------------------------------------------------------------------


def check(*lines, held=16):
    operations = [Operation(line=number, **fields) for number, fields in enumerate(lines, 1)]
    ops.check(Stream("s.jsonl", operations), held=held)


def branch(id):
    return {"op": "branch", "id": id}


def resolve(id, mispredicted=0):
    return {"op": "resolve", "id": id, "mispredicted": mispredicted}


def load(address, *branches, size=8, **fields):
    return {"op": "load", "address": address, "size": size, "branches": branches, **fields}


def stg(address, op="stg"):
    return {"op": op, "address": address}


def test_branches_in_order():
    check(
        branch(0), branch(1), load(0, 0, 1), resolve(0), resolve(1), stg(0), branch(0), resolve(0)
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([branch(2), branch(2)], "s.jsonl:2: id: branch 2 is open already, since line 1"),
        ([resolve(2)], "s.jsonl:1: id: branch 2 is not open"),
        ([branch(1), resolve(1), resolve(1)], "s.jsonl:3: id: branch 1 is not open"),
        ([branch(1), load(0, 0, 1)], "s.jsonl:2: branches: branch 0 is not open"),
        (
            [branch(0), branch(1), resolve(0)],
            "s.jsonl:2: id: branch 1 is still open at the end of the stream",
        ),
    ],
)
def test_wrong_branches(lines, message):
    assert error(check, *lines) == message


def test_unresolved_accesses():
    close = resolve(0)
    check(branch(0), *[load(0, 0)] * 16, close)
    message = "branches: 17 accesses would be unresolved; at most 16 may"
    assert error(check, branch(0), *[load(0, 0)] * 17, close) == f"s.jsonl:18: {message}"
    message = "branches: 5 accesses would be unresolved; at most 4 may"
    assert error(check, branch(0), *[load(0, 0)] * 5, close, held=4) == f"s.jsonl:6: {message}"
    assert "at most 16 may" in error(check, branch(0), *[load(0, 0)] * 17, close, held=64)


def test_an_access_across_pages_counts_twice():
    check(branch(0), load(0xFF8, 0), load(0xFF9, 0), load(0, 0), resolve(0), held=4)
    text = error(check, branch(0), load(0xFF9, 0), load(0, 0), load(0xFF9, 0), resolve(0), held=4)
    assert text == "s.jsonl:4: branches: 5 accesses would be unresolved; at most 4 may"


def test_resolved_and_squashed_accesses_do_not_count():
    four = [load(0, 0)] * 4
    check(branch(0), *four, resolve(0), branch(0), *four, resolve(0), held=4)
    both = [load(0, 0, 1)] * 4
    check(branch(0), branch(1), *both, resolve(0, 1), *[load(0, 1)] * 4, resolve(1), held=4)
    text = error(check, branch(0), branch(1), *both, resolve(0), load(0, 1), resolve(1), held=4)
    assert text == "s.jsonl:8: branches: 5 accesses would be unresolved; at most 4 may"


WRITES = "address: writes the tag of a granule at which the unresolved access of line 2 looks"


@pytest.mark.parametrize(
    ("access", "store"),
    [
        (load(0x100, 0), stg(0x100)),
        (load(0x10F, 0, size=2), stg(0x110)),
        (load(0x10F, 0, size=2), stg(0x0700_0000_0000_0110)),
        (load(0xFFF, 0, size=2), stg(0x1000)),
        (load(0x110, 0), stg(0x100, "st2g")),
        (load(0x1F0, 0), stg(0x100, "stgm")),
        (load(0x130, 0), stg(0x100, "dc_gva")),
        ({"op": "ldg", "address": 0x10F, "branches": (0,)}, stg(0x100)),
        ({"op": "dc_zva", "address": 0x100, "branches": (0,)}, stg(0x130)),
    ],
)
def test_tag_store_under_an_unresolved_access(access, store):
    assert error(check, branch(0), access, store, resolve(0)) == f"s.jsonl:3: {WRITES}"
    check(branch(0), access, resolve(0), store)


@pytest.mark.parametrize(
    ("access", "store"),
    [
        (load(0x108, 0), stg(0x110)),
        (load(0x110, 0), stg(0x100)),
        (load(0x120, 0), stg(0x100, "st2g")),
        (load(0x200, 0), stg(0x1F0, "stgm")),
        (load(0x140, 0), stg(0x100, "dc_gva")),
        (load(0x100, 0, exempt=1), stg(0x100)),
        (load(0x100, 0, tco=1), stg(0x100)),
        (load(0x100), stg(0x100)),
    ],
)
def test_tag_store_beside_an_unresolved_access(access, store):
    check(branch(0), access, store, resolve(0))


def test_blocks_have_the_size_that_the_regime_says():
    small = {"op": "regime", "regime": Regime(gmid_bs=2, dczid_bs=2)}
    check(small, branch(0), load(0x110, 0), stg(0x100, "dc_gva"), stg(0x100, "stgm"), resolve(0))


def test_rules_hold_for_columnar_streams():
    for name in ("branch", "resolve"):
        ops.write("s.npz", [Operation("load", address=0, size=1), Operation(name, id=1)])
        assert error(ops.check, ops.read("s.npz")).startswith("s.npz:2: id: branch 1 is ")
    ops.write("s.npz", [Operation("load", address=0, size=1, branches=(1,))])
    text = error(ops.check, ops.read("s.npz"))
    assert text == "s.npz:1: branches: branch 1 is not open"


# ---- Shipped streams -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [path.name for path in sorted(TRACES.glob("*.npz"))])
def test_recorded_trace(name):
    stream = ops.read(TRACES / name)
    ops.check(stream)
    text = (TRACES / "README.md").read_text()
    (row,) = [line for line in text.splitlines() if f"`{name}`" in line]
    assert f"{len(stream):,}" in row


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.ops.jsonl.gz")), ids=lambda path: path.name)
def test_vectors_are_streams(path):
    stream = ops.read(path)
    ops.check(stream)
    expected = path.with_name(path.name.replace(".ops.", ".expected."))
    with gzip.open(expected) as lines:
        assert sum(isinstance(json.loads(line), dict) for line in lines) == len(stream) > 1000

"""What of a stream reaches the caches."""

import pytest
from emte.sim import ops
from emte.sim.access_trace import AccessTrace
from emte.sim.ops import Operation, Regime, Stream, StreamError

BASE = 1 << 30
TAGGED = Operation("map", address=BASE, bytes=1 << 16, memory="tagged", line=1)


def trace(*operations: Operation, **options) -> AccessTrace:
    return AccessTrace(Stream("made.jsonl", [TAGGED, *operations]), **options)


def found(*operations: Operation, **options) -> list[tuple[int, int, bool]]:
    """Tag words from BASE on, with mask and store."""
    lookups = trace(*operations, **options).every_lookup
    words = (lookups.word - BASE // 256).tolist()
    return list(zip(words, lookups.mask.tolist(), lookups.store.tolist(), strict=True))


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (Operation("load", address=BASE, size=8), [(0, 1, False)]),
        (Operation("store", address=BASE + 0x10F, size=2), [(1, 3, False)]),
        (Operation("load", address=BASE + 0x1F8, size=16), [(1, 0x8000, False), (2, 1, False)]),
        (Operation("atomic", address=BASE + 0x20, size=64), [(0, 0x3C, False)]),
        (Operation("dc_zva", address=BASE + 0x1FF), [(1, 0xF000, False)]),
        (Operation("ldg", address=BASE + 0x1F), [(0, 2, False)]),
        (Operation("stg", address=BASE + 0x30, tag=1), [(0, 8, True)]),
        (Operation("st2g", address=BASE + 0xF0, tag=1), [(0, 0x8000, True), (1, 1, True)]),
        (Operation("dc_gva", address=BASE + 0x40), [(0, 0xF0, True)]),
        (Operation("stgm", address=BASE + 0x40, el=1), [(0, 0xFFFF, True)]),
        (Operation("ldgm", address=BASE + 0x40, el=1), [(0, 0xFFFF, False)]),
        # Across a page: two accesses, each with its words.
        (Operation("load", address=BASE + 0xFFC, size=8), [(15, 0x8000, False), (16, 1, False)]),
        # Not looked up:
        (Operation("load", address=BASE, size=8, exempt=1), []),
        (Operation("load", address=BASE, size=8, tco=1), []),
        (Operation("load", address=0, size=8), []),
        (Operation("stg", address=0, tag=1), []),
        (Operation("stg", address=BASE + 8, tag=1), []),
        (Operation("stgm", address=BASE, el=0), []),
        (Operation("irg", address=BASE), []),
    ],
)
def test_lookups(operation, expected):
    assert found(operation) == expected


def test_pointer_tag_is_no_part_of_the_address():
    assert found(Operation("load", address=BASE | 5 << 56, size=8)) == [(0, 1, False)]


def test_without_the_hint_of_translation():
    far = Operation("load", address=BASE + (1 << 20), size=8)
    assert found(far) == []
    assert found(far, every_page_tagged=True) == [(1 << 12, 1, False)]
    assert found(Operation("stg", address=0, tag=1), every_page_tagged=True) == []


def test_data_accesses():
    data = trace(
        Operation("load", address=BASE | 3 << 56, size=8),
        Operation("store", address=8, size=16),
        Operation("atomic", address=16, size=8),
        Operation("stg", address=BASE, tag=1),
        Operation("stzg", address=BASE + 32, tag=1),
        Operation("dc_gzva", address=BASE + 64),
        Operation("ldg", address=BASE),
    ).data
    assert list(zip(data.first.tolist(), data.last.tolist(), data.store.tolist(), strict=True)) == [
        (BASE, BASE + 7, False),
        (8, 23, True),
        (16, 23, True),
        (BASE + 32, BASE + 47, True),
        (BASE + 64, BASE + 127, True),
    ]


def test_scene_is_no_traffic():
    seen = trace(
        Operation("stg", address=BASE, tag=1),
        Operation("load", address=BASE + 0x200, size=8),
        Operation("stg", address=BASE + 0x400, tag=1),
    )
    assert len(seen.every_lookup) == 3
    assert (seen.lookups.word - BASE // 256).tolist() == [2, 4]
    assert (seen.lookups.stored_before - BASE // 256).tolist() == [0]
    assert seen.every_lookup.stored_before.tolist() == []
    only_tags = trace(Operation("stg", address=BASE, tag=1))
    assert len(only_tags.lookups) == 1


def test_gaps():
    made = trace(
        Operation("load", address=BASE, size=8, gap=5),
        Operation("load", address=BASE + 8, size=8),
        Operation("gcr", gap=7),
        Operation("load", address=BASE + 0xFFC, size=8, gap=2),
    )
    assert made.gaps[made.is_access].tolist() == [5, 1, 9, 1]
    assert made.gaps[~made.is_access].tolist() == [0] * 3
    assert made.loads[made.is_access].tolist() == [True] * 4


def test_footprint():
    lookups = trace(*(Operation("load", address=BASE + n, size=8) for n in (0, 8, 2048))).lookups
    assert lookups.footprint() == 128
    assert lookups.footprint(16) == 32


def test_columns_and_lines_agree(tmp_path):
    recorded = ops.read(f"{ops.__file__.removesuffix('ops.py')}traces/bug_uaf.npz")
    ops.write(tmp_path / "same.jsonl", recorded)
    columnar, lines = AccessTrace(recorded), AccessTrace(ops.read(tmp_path / "same.jsonl"))
    for name in ("word", "mask", "store", "transaction"):
        one, other = getattr(columnar.lookups, name), getattr(lines.lookups, name)
        assert one.tolist() == other.tolist()
    assert columnar.gaps.tolist() == lines.gaps.tolist()


@pytest.mark.parametrize(
    ("operation", "what"),
    [
        (Operation("regime", regime=Regime(tcma=(1, 0)), line=2), "a regime of its own"),
        (Operation("storage", bytes=4096, base=1 << 41, line=2), "tag storage in another place"),
        (Operation("clean", line=2), "maintenance"),
    ],
)
def test_refused(operation, what):
    if operation.op == "storage":
        operation.address = 0
    with pytest.raises(StreamError) as refused:
        trace(operation)
    assert str(refused.value) == f"made.jsonl:2: the cache models know no stream with {what}"

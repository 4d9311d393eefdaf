"""The page table of a stream."""

import re

import numpy as np
import pytest
from emte.sim.memory_map import MemoryMap
from emte.sim.ops import MEMORIES
from hypothesis import given
from hypothesis import strategies as st

PAGE = 4096
KINDS = ("tagged", "untagged", "none")


def test_all_memory_is_untagged_at_first():
    pages = MemoryMap()
    for address in (0, 0x4000_0000, (1 << 52) - 1, (1 << 64) - 1):
        assert pages.kind(address) == "untagged"


def test_a_range_has_exact_edges():
    pages = MemoryMap()
    pages.set(0x1000, 2 * PAGE, "tagged")
    assert pages.kind(0x0FFF) == "untagged"
    assert pages.kind(0x1000) == "tagged"
    assert pages.kind(0x2FFF) == "tagged"
    assert pages.kind(0x3000) == "untagged"


def test_the_last_one_wins():
    pages = MemoryMap()
    pages.set(0x1000, 3 * PAGE, "tagged")
    pages.set(0x2000, PAGE, "none")
    assert [pages.kind(a) for a in (0x1000, 0x2000, 0x3000)] == ["tagged", "none", "tagged"]
    pages.set(0, 1 << 52, "untagged")
    assert [pages.kind(a) for a in (0x1000, 0x2000, 0x3000)] == ["untagged"] * 3


def test_bits_63_to_52_are_ignored():
    pages = MemoryMap()
    pages.set(0xFFF0_0000_4000_0000, PAGE, "tagged")
    assert pages.kind(0x4000_0FFF) == "tagged"
    assert pages.kind(0x0700_0000_4000_0000) == "tagged"


def test_the_last_page_can_be_set():
    pages = MemoryMap()
    pages.set((1 << 52) - PAGE, PAGE, "none")
    assert pages.kind((1 << 52) - 1) == "none"
    assert pages.kind((1 << 52) - PAGE - 1) == "untagged"
    assert pages.kind(0) == "untagged"


@pytest.mark.parametrize(
    ("address", "size"), [(1, PAGE), (0, 1), (0, -PAGE), ((1 << 52) - PAGE, 2 * PAGE)]
)
def test_wrong_range(address, size):
    with pytest.raises(ValueError, match=r"^not a range of pages below 2\*\*52: 0x"):
        MemoryMap().set(address, size, "tagged")


def test_wrong_kind():
    message = "memory must be one of untagged, tagged, none, no_tag_access, not 'device'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MemoryMap().set(0, PAGE, "device")


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 8), st.sampled_from(KINDS)), max_size=20)
)
def test_agrees_with_a_list_of_pages(changes):
    pages = MemoryMap()
    expected = ["untagged"] * 24
    for first, count, kind in changes:
        pages.set(first * PAGE, count * PAGE, kind)
        expected[first : first + count] = [kind] * count
    for page, kind in enumerate(expected):
        assert pages.kind(page * PAGE) == kind
        assert pages.kind(page * PAGE + PAGE - 1) == kind


def test_many_at_a_time(rng):
    pages = MemoryMap()
    for _ in range(20):
        pages.set(rng.randrange(64) * PAGE, rng.randrange(8) * PAGE, rng.choice(MEMORIES))
    addresses = [rng.randrange(80 * PAGE) | rng.getrandbits(12) << 52 for _ in range(1000)]
    kinds = pages.kinds(np.array(addresses, np.uint64))
    assert [MEMORIES[kind] for kind in kinds] == [pages.kind(address) for address in addresses]

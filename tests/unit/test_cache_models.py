"""The cache models: against simpler ones, and each form of the tag cache by hand-made lookups."""

from collections import OrderedDict

import numpy as np
import pytest
from emte.sim.access_trace import DataAccesses, Lookups
from emte.sim.cache_models import (
    REPLACEMENTS,
    DataCaches,
    TagPolicy,
    data_traffic,
    tag_traffic,
)

ALL = 0xFFFF


def lookups(*made: tuple[int, int, bool], before: tuple[int, ...] = ()) -> Lookups:
    """Of (tag word, mask, store)."""
    word, mask, store = zip(*made, strict=True)
    return Lookups(
        np.array(word, np.int64),
        np.array(mask, np.uint16),
        np.array(store, bool),
        np.arange(len(word)),
        np.array(before, np.int64),
    )


def loads(*words: int) -> list[tuple[int, int, bool]]:
    return [(word, 1, False) for word in words]


def stores(*words: int, mask: int = ALL) -> list[tuple[int, int, bool]]:
    return [(word, mask, True) for word in words]


# ---- The data side -------------------------------------------------------------------------------


class SlowCache:
    """One level: sets of lines in the order of their last use."""

    def __init__(self, size, ways, line):
        self.sets = [OrderedDict() for _ in range(size // ways // line)]
        self.ways = ways

    def use(self, line, dirty):
        """Was it there, and which dirty line had to go?"""
        lines = self.sets[line % len(self.sets)]
        hit = line in lines
        lost = None
        if not hit and len(lines) == self.ways:
            victim, was_dirty = lines.popitem(last=False)
            lost = victim if was_dirty else None
        lines[line] = lines.pop(line, False) or dirty
        return hit, lost


def slow_data_traffic(accesses, caches):
    l1 = SlowCache(caches.l1_bytes, caches.l1_ways, caches.line_bytes)
    l2 = SlowCache(caches.l2_bytes, caches.l2_ways, caches.line_bytes)
    read = written = 0
    levels = []
    for first, last, store in zip(accesses.first, accesses.last, accesses.store, strict=True):
        level = 0
        for line in range(first // caches.line_bytes, last // caches.line_bytes + 1):
            hit, lost = l1.use(line, store)
            if hit:
                continue
            if lost is not None:
                written += l2.use(lost, True)[1] is not None
            begin, end = line * caches.line_bytes, (line + 1) * caches.line_bytes
            if store and first <= begin and last >= end - 1:
                continue
            hit, lost = l2.use(line, False)
            written += lost is not None
            read += not hit
            level = max(level, 1 if hit else 2)
        levels.append(level)
    return read * caches.line_bytes, written * caches.line_bytes, levels


@pytest.mark.parametrize("shape", [(256, 1, 512, 2), (512, 2, 2048, 4), (1024, 4, 1024, 1)])
def test_data_caches_like_slow_ones(shape, rng):
    l1_bytes, l1_ways, l2_bytes, l2_ways = shape
    caches = DataCaches(l1_bytes=l1_bytes, l1_ways=l1_ways, l2_bytes=l2_bytes, l2_ways=l2_ways)
    first, last, store = [], [], []
    for _ in range(5000):
        address = rng.randrange(6000)
        size = rng.choice([1, 8, 16, 64, 64, 128])
        first.append(address // size * size if rng.randrange(2) else address)
        last.append(first[-1] + size - 1)
        store.append(rng.random() < 0.4)
    accesses = DataAccesses(np.array(first), np.array(last), np.array(store), np.arange(len(first)))
    traffic = data_traffic(accesses, caches)
    read, written, levels = slow_data_traffic(accesses, caches)
    assert (traffic.read_bytes, traffic.written_bytes) == (read, written)
    assert traffic.bytes == read + written > 0 < written
    assert traffic.level.tolist() == levels
    assert {*levels} == {0, 1, 2}


def test_default_data_caches():
    """16 KiB and 256 KiB: what fits is fetched once."""
    for size, again in ((16 << 10, 0), (32 << 10, 1), (512 << 10, 2)):
        first = np.tile(np.arange(0, size, 64), 2)
        accesses = DataAccesses(first, first, np.zeros(len(first), bool), np.arange(len(first)))
        traffic = data_traffic(accesses)
        assert (traffic.level[: len(first) // 2] == 2).all()
        assert (traffic.level[len(first) // 2 :] == again).all()


# ---- The tag cache -------------------------------------------------------------------------------

ONE_SET = {"cache_bytes": 256, "ways": 4}


def test_defaults():
    policy = TagPolicy()
    assert (policy.cache_bytes, policy.sets, policy.reach) == (32 << 10, 64, 1 << 20)
    traffic = tag_traffic(lookups(*loads(0, 7, 8, 0)), policy)
    assert (traffic.lookups, traffic.misses, traffic.read_bytes) == (4, 2, 128)
    assert traffic.hit_rate == 0.5
    assert traffic.bytes == 128


def test_whole_line_is_written_back():
    made = [*stores(3, mask=1), *loads(8, 16, 24, 32)]
    traffic = tag_traffic(lookups(*made), TagPolicy(**ONE_SET))
    assert (traffic.fetches, traffic.write_backs, traffic.written_bytes) == (5, 1, 64)


def test_clean_line_is_not_written_back():
    traffic = tag_traffic(lookups(*loads(0, 8, 16, 24, 32)), TagPolicy(**ONE_SET))
    assert (traffic.write_backs, traffic.written_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("grain", "words", "written"),
    [(0, [3], 64), (8, [3], 8), (8, [0, 7], 16), (16, [2, 3], 16), (16, [0, 7], 32), (32, [5], 32)],
)
def test_grain_of_write_backs(grain, words, written):
    made = [*stores(*words, mask=1), *loads(8, 16, 24, 32)]
    traffic = tag_traffic(lookups(*made), TagPolicy(**ONE_SET, write_bytes=grain))
    assert (traffic.write_backs, traffic.written_bytes) == (1, written)


def test_sectors():
    policy = TagPolicy(**ONE_SET, sector_bytes=16)
    traffic = tag_traffic(lookups(*loads(0, 1, 2, 3, 0, 7)), policy)
    assert (traffic.misses, traffic.fetches, traffic.read_bytes) == (3, 3, 48)


class TestGathering:
    def gather(self, *made, lines=1, **options):
        return tag_traffic(lookups(*made), TagPolicy(**ONE_SET, gathering=lines, **options))

    def test_line_that_is_stored_completely_is_never_fetched(self):
        made = [*stores(*range(8)), *loads(*range(8), 8, 16, 24, 32)]
        traffic = self.gather(*made)
        assert traffic.fetches == 4
        assert (traffic.misses, traffic.write_backs, traffic.written_bytes) == (4, 1, 64)

    def test_granule_by_granule(self):
        made = [(word, 1 << granule, True) for word in range(8) for granule in range(16)]
        assert self.gather(*made, *loads(*range(8))).fetches == 0

    def test_load_of_what_was_stored_fetches_nothing(self):
        assert self.gather(*stores(0, mask=3), (0, 3, False)).fetches == 0

    def test_load_of_what_was_not_stored_fetches(self):
        for load in ((0, 4, False), (0, 7, False), (1, 1, False)):
            traffic = self.gather(*stores(0, mask=3), load, load)
            assert (traffic.misses, traffic.fetches) == (1, 1)

    def test_oldest_line_gives_way(self):
        made = [*stores(0, mask=1), *stores(8, mask=1), *stores(16, mask=1)]
        for lines, fetches in ((1, 2), (2, 1), (3, 0)):
            traffic = self.gather(*made, lines=lines)
            assert (traffic.fetches, traffic.misses) == (fetches, 0)
        # The first line has been completed, the second one not.
        assert self.gather(*made, *loads(1), lines=2).fetches == 1
        assert self.gather(*made, *loads(9), lines=2).fetches == 2

    def test_complete_line_makes_room(self):
        made = [*stores(*range(8)), *stores(8, mask=1)]
        assert self.gather(*made, lines=1).fetches == 0

    @pytest.mark.parametrize(("mask", "fetches"), [(3, 0), (1, 1), (2, 1), (6, 1)])
    def test_half_a_byte_cannot_be_written_back(self, mask, fetches):
        made = [*stores(0, mask=mask), *loads(8, 16, 24, 32)]
        traffic = self.gather(*made)
        assert traffic.fetches == 4 + fetches
        assert traffic.write_backs == 1

    def test_sector_by_sector(self):
        """Only the sector in which something is missing is fetched."""
        made = [*stores(0, 1), *stores(2, mask=1), *stores(8, mask=1)]
        traffic = self.gather(*made, sector_bytes=16)
        assert (traffic.fetches, traffic.read_bytes) == (1, 16)


class TestReplacement:
    def misses(self, policy, *words):
        return tag_traffic(lookups(*loads(*words)), TagPolicy(**ONE_SET, replacement=policy)).misses

    @pytest.mark.parametrize("policy", REPLACEMENTS)
    def test_what_fits_stays(self, policy):
        assert self.misses(policy, *[0, 8, 16, 24] * 5) == 4

    @pytest.mark.parametrize(("free_first", "misses"), [(True, 4), (False, 5)])
    def test_tree_may_point_at_a_used_way(self, free_first, misses):
        """Ways 0, 2 and 1 are filled; then the tree points at way 0, though way 3 is free."""
        made = lookups(*loads(0, 8, 16, 8, 24, 0))
        policy = TagPolicy(**ONE_SET, free_first=free_first)
        assert tag_traffic(made, policy).misses == misses

    def test_lru_drops_the_longest_unused(self):
        assert self.misses("lru", 0, 8, 16, 24, 0, 32, 0) == 5
        assert self.misses("lru", 0, 8, 16, 24, 0, 32, 8) == 6

    def test_fifo_drops_the_first(self):
        assert self.misses("fifo", 0, 8, 16, 24, 0, 32, 0) == 6

    def test_rrip_drops_what_was_used_once(self):
        assert self.misses("rrip", 0, 0, 8, 16, 24, 32, 40, 48, 0) == 7
        assert self.misses("lru", 0, 0, 8, 16, 24, 32, 40, 48, 0) == 8

    def test_plru_keeps_the_last_two(self):
        assert self.misses("plru", 0, 8, 16, 24, 32, 24) == 5


def test_hashed_sets_spread_a_stride():
    words = [8 * 64 * n for n in range(16)] * 2
    for hashed, misses in ((False, 32), (True, 16)):
        assert tag_traffic(lookups(*loads(*words)), TagPolicy(hashed=hashed)).misses == misses


def test_prefetch_fetches_the_next_line():
    traffic = tag_traffic(lookups(*loads(0, 8, 16, 24)), TagPolicy(prefetch=True))
    assert (traffic.misses, traffic.fetches) == (2, 4)
    traffic = tag_traffic(lookups(*loads(8, 0)), TagPolicy(prefetch=True))
    assert (traffic.misses, traffic.fetches) == (2, 3)


class TestTouchedMap:
    def run(self, *made, before=(), lines=1, **options):
        policy = TagPolicy(**ONE_SET, touched_map=lines, **options)
        return tag_traffic(lookups(*made, before=before), policy)

    def test_untouched_lines_are_not_fetched(self):
        traffic = self.run(*loads(0, 8, 16, 24, 32, 0))
        assert (traffic.misses, traffic.fetches, traffic.read_bytes) == (0, 0, 0)
        assert traffic.map_bytes == 64

    def test_line_that_was_written_back_is_fetched(self):
        traffic = self.run(*stores(0), *loads(8, 16, 24, 32, 0))
        assert (traffic.write_backs, traffic.fetches, traffic.misses) == (1, 1, 1)

    def test_tags_of_before_are_fetched(self):
        traffic = self.run(*loads(0, 8), before=(9,))
        assert (traffic.fetches, traffic.misses) == (1, 1)

    def test_map_is_cached(self):
        """A line of the map tells of 512 lines of tags."""
        far = 8 * 512
        assert self.run(*loads(0, 8, far, 16), lines=1).map_bytes == 3 * 64
        assert self.run(*loads(0, 8, far, 16), lines=2).map_bytes == 2 * 64

    def test_bit_tells_of_64_bytes(self):
        """Of several short lines, of which only one was written back."""
        policy = TagPolicy(cache_bytes=64, ways=4, line_bytes=16, touched_map=1)
        made = [*stores(0), *loads(16, 32, 48, 64), *loads(2, 8)]
        traffic = tag_traffic(lookups(*made), policy)
        assert (traffic.write_backs, traffic.fetches, traffic.map_bytes) == (1, 1, 64)

    def test_map_is_written_back(self):
        made = [*stores(0), *loads(8, 16, 24, 32), *loads(8 * 512)]
        assert self.run(*made).map_bytes == 64 + 64 + 64

    def test_prefetch_of_what_is_never_used(self):
        traffic = self.run(*loads(0), prefetch=True)
        assert (traffic.fetches, traffic.map_bytes) == (0, 64)


def test_bad_policies():
    with pytest.raises(ValueError, match="no power of two"):
        TagPolicy(cache_bytes=3 << 10)
    with pytest.raises(ValueError, match=r"^replacement must be one of plru, lru, fifo, rrip$"):
        TagPolicy(replacement="random")

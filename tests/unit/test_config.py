import dataclasses
import re

import pytest
from emte.rtl.config import DEFAULT, ECP5, PRESETS, SMALL, Arrays, Barrier, TagConfig


def test_init():
    config = TagConfig()
    assert (config.sets, config.ways, config.line_bytes) == (64, 8, 64)
    assert (config.mshrs, config.held, config.branches, config.id_bits) == (4, 16, 8, 6)
    assert (config.pa_bits, config.memory_bits) == (52, 40)
    assert (config.axi_address_bits, config.axi_id_bits) == (48, 4)
    assert (config.waiting, config.scrub_period, config.injection) == (16, 4096, False)
    assert config.barrier is Barrier.OBLIVIOUS
    assert config.arrays is Arrays.PORTABLE


@pytest.mark.parametrize(("ways", "mshrs"), [(1, 1), (2, 2), (4, 4), (16, 4)])
def test_mshrs_left_out(ways, mshrs):
    assert TagConfig(ways=ways).mshrs == mshrs
    assert TagConfig(ways=ways, mshrs=1).mshrs == 1


def test_init_is_frozen_and_by_keyword():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.sets = 2
    with pytest.raises(TypeError):
        TagConfig(64)
    assert TagConfig() == DEFAULT
    assert hash(TagConfig()) == hash(DEFAULT)


def test_presets():
    assert PRESETS == {"small": SMALL, "default": DEFAULT, "ecp5": ECP5}
    assert DEFAULT.cache_bytes == 32 << 10
    assert ECP5.cache_bytes == 8 << 10
    assert SMALL.cache_bytes == 256
    assert (SMALL.sets, SMALL.ways, SMALL.held) == (2, 2, 4)
    assert {config.line_bytes for config in PRESETS.values()} == {64}


def test_widths_of_the_default():
    # 2^40 bytes of memory have 2^32 words of 64 bits of tags, in 2^29 lines of 8.
    assert DEFAULT.word_address_bits == 32
    assert DEFAULT.line_words == 8
    assert DEFAULT.word_index_bits == 3
    assert DEFAULT.line_address_bits == 29
    assert DEFAULT.set_bits == 6
    assert DEFAULT.way_bits == 3
    assert DEFAULT.directory_tag_bits == 23
    assert DEFAULT.bytes_bits == 10  # of 512
    assert DEFAULT.slot_bits == 4
    assert DEFAULT.branch_bits == 3


def test_widths_of_the_smallest():
    config = TagConfig(
        sets=1, ways=1, line_bytes=16, held=2, branches=1, memory_bits=10, pa_bits=32
    )
    assert (config.set_bits, config.way_bits, config.branch_bits) == (0, 0, 0)
    assert (config.line_words, config.word_index_bits) == (2, 1)
    assert (config.word_address_bits, config.directory_tag_bits) == (2, 1)
    assert config.slot_bits == 1


@pytest.mark.parametrize(
    ("held", "slot_bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (16, 4), (17, 5), (64, 6)]
)
def test_slot_bits(held, slot_bits):
    assert TagConfig(held=held).slot_bits == slot_bits


@pytest.mark.parametrize(
    ("branches", "branch_bits"), [(1, 0), (2, 1), (3, 2), (8, 3), (9, 4), (32, 5)]
)
def test_branch_bits(branches, branch_bits):
    assert TagConfig(branches=branches).branch_bits == branch_bits


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sets": 3}, "sets must be a power of two from 1 to 65536, not 3"),
        ({"sets": 0}, "sets must be a power of two from 1 to 65536, not 0"),
        ({"sets": 1 << 17}, "sets must be a power of two from 1 to 65536, not 131072"),
        ({"ways": 32}, "ways must be a power of two from 1 to 16, not 32"),
        ({"ways": -1}, "ways must be a power of two from 1 to 16, not -1"),
        ({"line_bytes": 8}, "line_bytes must be a power of two from 16 to 128, not 8"),
        ({"line_bytes": 48}, "line_bytes must be a power of two from 16 to 128, not 48"),
        ({"mshrs": 3}, "mshrs must be a power of two from 1 to 16, not 3"),
        ({"ways": 2, "mshrs": 4}, "mshrs must be at most ways, 2, not 4"),
        (
            {"ways": 16, "mshrs": 8, "axi_id_bits": 2},
            "mshrs must fit axi_id_bits, 2, not 8",
        ),
        ({"waiting": 8}, "waiting must be a power of two from 16 to 64, not 8"),
        (
            {"scrub_period": 100},
            "scrub_period must be a power of two from 64 to 16777216, not 100",
        ),
        ({"injection": 1}, "injection must be True or False, not 1"),
        ({"arrays": "ecp5"}, "arrays must be one of Arrays, not 'ecp5'"),
        ({"held": 1}, "held must be from 2 to 64, not 1"),
        ({"held": 65}, "held must be from 2 to 64, not 65"),
        ({"branches": 0}, "branches must be from 1 to 32, not 0"),
        ({"branches": 33}, "branches must be from 1 to 32, not 33"),
        ({"id_bits": 0}, "id_bits must be from 1 to 16, not 0"),
        ({"pa_bits": 31}, "pa_bits must be from 32 to 52, not 31"),
        ({"pa_bits": 53}, "pa_bits must be from 32 to 52, not 53"),
        ({"axi_address_bits": 65}, "axi_address_bits must be from 32 to 64, not 65"),
        ({"axi_id_bits": 0}, "axi_id_bits must be from 1 to 16, not 0"),
        # 6 bits of sets, 6 of a line's bytes, and 1 to keep; a byte is 32 bytes of memory
        ({"memory_bits": 17}, "memory_bits must be from 18 to 48, not 17"),
        ({"memory_bits": 49}, "memory_bits must be from 18 to 48, not 49"),
        (
            {"pa_bits": 36, "memory_bits": 37},
            "memory_bits must be from 18 to 36, not 37",
        ),
        ({"ways": 8.0}, "ways must be an integer, not 8.0"),
        ({"held": True}, "held must be an integer, not True"),
        ({"sets": "64"}, "sets must be an integer, not '64'"),
        ({"barrier": "none"}, "barrier must be one of Barrier, not 'none'"),
    ],
)
def test_init_wrong(parameters, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TagConfig(**parameters)


def test_barrier_by_name():
    assert [Barrier(name) for name in ("oblivious", "delay", "none")] == list(Barrier)


def test_resized():
    config = TagConfig(ways=4, mshrs=2).resized(16 << 10)
    assert (config.cache_bytes, config.ways, config.mshrs, config.sets) == (16 << 10, 4, 2, 64)
    with pytest.raises(ValueError, match="1000 bytes are no multiple of 4 x 64 bytes"):
        config.resized(1000)
    with pytest.raises(ValueError, match="sets must be a power of two"):
        config.resized(0)

# amaranth: UnusedElaboratable=no
from itertools import combinations

import pytest
from amaranth.hdl import Const, Module, Signal, Value
from emte.rtl.codes import (
    DirectoryCode,
    corrected_granule,
    granule_code,
    granule_damaged,
    granule_syndrome,
)
from emte.rtl.config import PRESETS
from emte.rtl.tag_array import directory_code
from emte.sim.harness import simulate


def tabulate(width, functions, words):
    """What the functions of a signal give for each word."""
    m = Module()
    word = Signal(width)
    outputs = []
    for function in functions:
        value = Value.cast(function(word))
        output = Signal(len(value))
        m.d.comb += output.eq(value)
        outputs.append(output)
    table = {}

    async def bench(ctx):
        for number in words:
            ctx.set(word, number)
            table[number] = tuple(ctx.get(output) for output in outputs)
            await ctx.tick()

    simulate(m, bench, max_cycles=1 << 20)
    return table


def errors(width, count):
    """Every way to flip so many bits of a word."""
    return [sum(1 << bit for bit in bits) for bits in combinations(range(width), count)]


def distance(a, b):
    return (a ^ b).bit_count()


@pytest.fixture(scope="module")
def codes():
    return {tag: code for tag, (code,) in tabulate(4, [granule_code], range(16)).items()}


def test_granule_code(codes):
    assert codes[0] == 0
    assert all(code & 0xF == tag for tag, code in codes.items())
    assert min(distance(a, b) for a, b in combinations(codes.values(), 2)) == 4


def test_granule_every_word(codes):
    """All 256 words: corrected within distance 1 of a code, damaged at distance 2 from all."""
    table = tabulate(8, [granule_syndrome, corrected_granule, granule_damaged], range(256))
    for word, (syndrome, corrected, damaged) in table.items():
        nearest = min(codes, key=lambda tag: distance(codes[tag], word))
        flipped = distance(codes[nearest], word)
        assert flipped <= 2
        assert damaged == (flipped == 2)
        assert (syndrome == 0) == (flipped == 0)
        if flipped < 2:
            assert corrected == nearest


def test_granule_check_bits_are_small():
    """Each check bit depends on three tag bits, so it is one LUT, and so is a check of it."""
    codes = tabulate(4, [granule_code], range(16))
    for bit in range(4, 8):
        moved = {n for n in range(4) if (codes[0][0] ^ codes[1 << n][0]) >> bit & 1}
        assert len(moved) == 3


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 11, 12, 24, 25, 26, 27, 44])
def test_directory_columns(bits):
    """Different, of odd weight, and as few checks as that allows: so distance 4 or more."""
    code = DirectoryCode(bits)
    assert code.bits == bits
    assert code.width == bits + code.check_bits == len(code.columns) == len(set(code.columns))
    assert all(column.bit_count() % 2 for column in code.columns)
    assert code.columns[bits:] == [1 << n for n in range(code.check_bits)]
    smaller = code.check_bits - 1
    assert 2 ** (smaller - 1) - smaller < bits
    rows = [sum(column >> row & 1 for column in code.columns) for row in range(code.check_bits)]
    assert max(rows) - min(rows) <= 1


def test_directory_of_the_presets():
    """A check of the ECP5 preset is 16 bits at most: two levels of LUTs."""
    assert {name: directory_code(config).width for name, config in PRESETS.items()} == {
        "small": 36,
        "default": 30,
        "ecp5": 31,
    }
    code = directory_code(PRESETS["ecp5"])
    assert max(sum(c >> row & 1 for c in code.columns) for row in range(code.check_bits)) == 16


@pytest.mark.parametrize("bits", [1, 2, 5, 25, 27])
def test_directory_every_error(bits, rng):
    """All single errors are corrected, all double ones detected, for any value.

    The code is linear, so what flips do to a syndrome is the same for all values; a few are tried.
    """
    code = DirectoryCode(bits)
    values = {0, (1 << bits) - 1, *(rng.getrandbits(bits) for _ in range(3))}
    words = {
        value: word for value, (word,) in tabulate(bits, [code.encode], sorted(values)).items()
    }
    assert words[0] == 0
    assert all(word & (1 << bits) - 1 == value for value, word in words.items())
    expected = {}
    for value, word in words.items():
        expected[word] = (value, 0, 0)
        for error in errors(code.width, 1):
            expected[word ^ error] = (value, 1, 0)
        for error in errors(code.width, 2):
            lost = word ^ error
            expected[lost] = (lost & (1 << bits) - 1, 0, 1)
    functions = [lambda word, n=n: code.correct(word)[n] for n in range(3)]
    assert tabulate(code.width, functions, expected) == expected


def test_directory_code_is_linear():
    """The code of a sum is the sum of the codes."""
    code = DirectoryCode(6)
    words = {value: word for value, (word,) in tabulate(6, [code.encode], range(64)).items()}
    assert all(words[a] ^ words[b] == words[a ^ b] for a in range(64) for b in range(64))


def test_widths_are_checked():
    with pytest.raises(ValueError, match="bits must be at least 1, not 0"):
        DirectoryCode(0)
    with pytest.raises(ValueError, match="5 bits are needed, not 4"):
        DirectoryCode(5).encode(Const(0, 4))
    with pytest.raises(ValueError, match="4 bits are needed, not 8"):
        granule_code(Const(0, 8))
    with pytest.raises(ValueError, match="8 bits are needed, not 4"):
        corrected_granule(Const(0, 4))

"""The codes that protect stored tags and the directory, as expressions without registers."""

from itertools import combinations

from amaranth.hdl import Cat, Value

__all__ = [
    "DirectoryCode",
    "corrected_granule",
    "granule_code",
    "granule_damaged",
    "granule_syndrome",
]


def granule_code(tag: Value) -> Value:
    """The code word of an allocation tag: extended Hamming (8,4), of distance 4.

    Bits 3:0 are the tag, and bit 4 + *n* is the parity of all its bits but *n*. So each check bit
    depends on three bits, a check of it on four, and 0 is the code of tag 0.
    """
    tag = _bits(tag, 4)
    return Cat(tag, _granule_checks(tag))


def granule_syndrome(code: Value) -> Value:
    """Which of the four checks of a code fail.

    None: a code word. One or three: a code word with one bit flipped. Two or four: neither.
    """
    code = _bits(code, 8)
    return _granule_checks(code[:4]) ^ code[4:]


def corrected_granule(code: Value) -> Value:
    """The tag whose code is within distance 1; undefined where :func:`granule_damaged` is 1."""
    code = _bits(code, 8)
    syndrome = granule_syndrome(code)
    # A flipped tag bit fails all checks but its own; a flipped check bit fails that one alone.
    # Other than these there is no syndrome with one check that holds between two that fail.
    return code[:4] ^ Cat(
        ~syndrome[n] & syndrome[(n + 1) % 4] & syndrome[(n - 1) % 4] for n in range(4)
    )


def granule_damaged(code: Value) -> Value:
    """Is no code word within distance 1? Then two bits have flipped, and the tag is lost."""
    syndrome = granule_syndrome(code)
    return syndrome.any() & ~syndrome.xor()


def _granule_checks(tag: Value) -> Value:
    return Cat((tag & (0b1111 ^ 1 << n)).xor() for n in range(4))


class DirectoryCode:
    """A code that corrects one flipped bit of a value and detects two.

    The check bits follow the value. Every column of the parity check matrix has odd weight (Hsiao),
    so an even syndrome tells of two flips; and the columns are chosen such that no row is much
    longer than the others, for the longest one sets the depth of the logic. 0 is the code of 0.

    Parameters
    ----------
    bits : int
        Width of the value.

    Attributes
    ----------
    bits : int
        Width of the value.
    check_bits : int
        Number of check bits.
    width : int
        Width of a code word.
    columns : list[int]
        For each bit of a code word, the syndrome that it alone makes when it is flipped.
    """

    def __init__(self, bits: int) -> None:
        if bits < 1:
            raise ValueError(f"bits must be at least 1, not {bits!r}")
        self.bits = bits
        self.check_bits = next(n for n in range(2, bits + 4) if (1 << n - 1) - n >= bits)
        self.width = bits + self.check_bits
        self.columns = _balanced_columns(bits, self.check_bits)
        self.columns += [1 << row for row in range(self.check_bits)]

    def encode(self, value: Value) -> Value:
        """The code word of a value."""
        value = _bits(value, self.bits)
        return Cat(value, self._parities(value))

    def syndrome(self, word: Value) -> Value:
        """0 for a code word; else :meth:`repair` tells what it means."""
        return self._parities(_bits(word, self.width))

    def repair(self, word: Value, syndrome: Value) -> tuple[Value, Value, Value]:
        """What :meth:`correct` gives, for a word and its syndrome: the later half of the work."""
        word = _bits(word, self.width)
        flips = Cat(syndrome == column for column in self.columns[: self.bits])
        odd = syndrome.xor()
        return word[: self.bits] ^ flips, odd, syndrome.any() & ~odd

    def correct(self, word: Value) -> tuple[Value, Value, Value]:
        """The value of a word; was one bit corrected; were two flipped, so that the value is lost?

        A lost value is returned as it is stored.
        """
        return self.repair(word, self.syndrome(word))

    def _parities(self, word: Value) -> Value:
        """The parity of those bits that each check covers."""
        return Cat(
            Cat(word[bit] for bit in range(len(word)) if self.columns[bit] >> row & 1).xor()
            for row in range(self.check_bits)
        )


def _balanced_columns(count: int, rows: int) -> list[int]:
    """Different columns of odd weight above 1, the lightest first, spread evenly over the rows."""
    chosen: list[int] = []
    lengths = [0] * rows
    for weight in range(3, rows + 1, 2):
        candidates = list(combinations(range(rows), weight))
        while candidates and len(chosen) < count:
            best = min(candidates, key=lambda column: sorted(lengths[r] for r in column)[::-1])
            candidates.remove(best)
            for row in best:
                lengths[row] += 1
            chosen.append(sum(1 << row for row in best))
    return chosen


def _bits(value: Value, width: int) -> Value:
    value = Value.cast(value)
    if len(value) != width:
        raise ValueError(f"{width} bits are needed, not {len(value)}")
    return value

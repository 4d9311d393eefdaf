"""The parameters of the tag pipeline: all validation, and every derived width."""

import enum
from dataclasses import dataclass, field, fields, replace

from amaranth.utils import exact_log2

__all__ = ["Arrays", "Barrier", "TagConfig", "SMALL", "DEFAULT", "ECP5", "PRESETS"]


class Barrier(enum.Enum):
    """What a speculative access may do before its branches are resolved."""

    OBLIVIOUS = "oblivious"
    """Look its tags up and compare them by address only; hold the outcome."""

    DELAY = "delay"
    """Not even look its tags up."""

    NONE = "none"
    """Everything: outcomes leave at once. Leaks tags; exists to measure the price of the others."""


class Arrays(enum.Enum):
    """What the memories of tags, directory and contexts are made of."""

    PORTABLE = "portable"
    """Memories that every tool infers."""

    ECP5 = "ecp5"
    """Block RAM of the ECP5, instantiated with its output registers."""


def _parameter(default, doc):
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, kw_only=True)
class TagConfig:
    """Geometry and policy of one :class:`~emte.rtl.TagPipeline`.

    A *tag word* is 64 bits: the 4-bit allocation tags of 16 granules, that is of 256 bytes of data.
    It is what one probe compares, one AXI beat carries and one row of the data array holds.

    Raises
    ------
    ValueError
        A parameter is out of range, or names something that this version does not build.
    """

    sets: int = _parameter(64, "sets of the tag cache (a power of two)")
    ways: int = _parameter(8, "ways of each set (a power of two, at most 16)")
    line_bytes: int = _parameter(64, "bytes of tags in a line (a power of two, 16 to 128)")
    mshrs: int = _parameter(
        None,
        "refills outstanding at a time (a power of two, at most `ways`; 4 if left out, or less)",
    )
    waiting: int = _parameter(16, "probes that wait for a line (a power of two, 16 to 64)")
    held: int = _parameter(16, "accesses that the barrier holds at a time (2 to 64)")
    branches: int = _parameter(8, "names of unresolved branches (1 to 32)")
    id_bits: int = _parameter(6, "width of the access ids")
    pa_bits: int = _parameter(52, "width of physical addresses")
    memory_bits: int = _parameter(40, "log2 of the largest tagged memory, in bytes")
    axi_address_bits: int = _parameter(48, "width of addresses on the memory port")
    axi_id_bits: int = _parameter(4, "width of transaction ids on the memory port")
    scrub_period: int = _parameter(4096, "cycles between steps of the scrubber (a power of two)")
    injection: bool = _parameter(False, "with a port that flips stored bits, for tests")
    barrier: Barrier = _parameter(Barrier.OBLIVIOUS, "form of the speculation barrier")
    arrays: Arrays = _parameter(Arrays.PORTABLE, "what the memories are made of")

    granule_bytes = 16
    tag_bits = 4
    word_granules = 16
    word_bits = 64
    max_bytes = 512
    """Largest block of one access: DC ZVA with DCZID_EL0.BS = 7."""

    def __post_init__(self) -> None:
        if self.mshrs is None and isinstance(self.ways, int):
            object.__setattr__(self, "mshrs", max(min(4, self.ways), 1))
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(f.default, enum.Enum):
                kind = type(f.default)
                if not isinstance(value, kind):
                    raise ValueError(f"{f.name} must be one of {kind.__name__}, not {value!r}")
            elif f.name == "injection":
                if not isinstance(value, bool):
                    raise ValueError(f"injection must be True or False, not {value!r}")
            elif isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{f.name} must be an integer, not {value!r}")
        self._check_power("sets", 1, 1 << 16)
        self._check_power("ways", 1, 16)
        self._check_power("line_bytes", 16, 128)
        self._check_power("mshrs", 1, 16)
        if self.mshrs > self.ways:
            # Else all ways of a set may be waited for, and the line that would free one finds none.
            raise ValueError(f"mshrs must be at most ways, {self.ways}, not {self.mshrs!r}")
        self._check_power("waiting", 16, 64)
        self._check_power("scrub_period", 64, 1 << 24)
        self._check_range("held", 2, 64)
        self._check_range("branches", 1, 32)
        self._check_range("id_bits", 1, 16)
        self._check_range("pa_bits", 32, 52)
        self._check_range("axi_address_bits", 32, 64)
        self._check_range("axi_id_bits", 1, 16)
        if self.mshrs > 1 << self.axi_id_bits:
            raise ValueError(f"mshrs must fit axi_id_bits, {self.axi_id_bits}, not {self.mshrs!r}")
        smallest = exact_log2(self.sets) + exact_log2(self.line_bytes) + 6
        self._check_range("memory_bits", smallest, min(self.pa_bits, self.axi_address_bits))

    def _check_power(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not low <= value <= high or value & (value - 1):
            raise ValueError(f"{name} must be a power of two from {low} to {high}, not {value!r}")

    def _check_range(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}, not {value!r}")

    @property
    def cache_bytes(self) -> int:
        """Tags that the cache holds, in bytes; one byte covers 32 bytes of data."""
        return self.sets * self.ways * self.line_bytes

    def resized(self, cache_bytes: int) -> "TagConfig":
        """The same with as many sets as make so many bytes of tags.

        Raises
        ------
        ValueError
            The hardware cannot be built so.
        """
        sets, rest = divmod(cache_bytes, self.ways * self.line_bytes)
        if rest:
            raise ValueError(
                f"{cache_bytes} bytes are no multiple of {self.ways} x {self.line_bytes} bytes"
            )
        return replace(self, sets=sets)

    @property
    def line_words(self) -> int:
        """Tag words in a line, and beats in an AXI burst."""
        return self.line_bytes // 8

    @property
    def word_index_bits(self) -> int:
        """Width of the number of a tag word within its line."""
        return exact_log2(self.line_words)

    @property
    def set_bits(self) -> int:
        """Width of a set's number."""
        return exact_log2(self.sets)

    @property
    def way_bits(self) -> int:
        """Width of a way's number."""
        return exact_log2(self.ways)

    @property
    def word_address_bits(self) -> int:
        """Width of the number of a tag word within tag storage."""
        return self.memory_bits - 8

    @property
    def line_address_bits(self) -> int:
        """Width of the number of a line within tag storage."""
        return self.word_address_bits - self.word_index_bits

    @property
    def directory_tag_bits(self) -> int:
        """Width of the part of a line's number that the directory keeps."""
        return self.line_address_bits - self.set_bits

    @property
    def index_bits(self) -> int:
        """Width of the number of a tag word within the data array."""
        return self.set_bits + self.way_bits + self.word_index_bits

    @property
    def mshr_bits(self) -> int:
        """Width of an MSHR's number."""
        return exact_log2(self.mshrs)

    @property
    def waiting_bits(self) -> int:
        """Width of the number of a place for a waiting probe."""
        return exact_log2(self.waiting)

    store_bits = 4
    """Width of the number of a place in the buffer of tag stores."""

    ticket_bits = 8
    """Width of the number of a ticket: an entry of the barrier's table, or a direct access."""

    @property
    def bytes_bits(self) -> int:
        """Width of the size of an access."""
        return self.max_bytes.bit_length()

    @property
    def slot_bits(self) -> int:
        """Width of the number of an entry of the barrier's table."""
        return (self.held - 1).bit_length()

    @property
    def branch_bits(self) -> int:
        """Width of a branch's number."""
        return (self.branches - 1).bit_length()


SMALL = TagConfig(sets=2, ways=2, held=4)
DEFAULT = TagConfig()
ECP5 = TagConfig(sets=32, ways=4)
PRESETS = {"small": SMALL, "default": DEFAULT, "ecp5": ECP5}

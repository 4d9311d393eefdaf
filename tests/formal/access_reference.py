"""What an access wants of each tag word that it touches: a reference.

Written from the rules of docs/semantics.md, chapters 3 to 8, and from docs/decisions/0001; nothing
is shared with ``rtl/access.py``. There, masks and words come from slices of an address. Here,
addresses are whole numbers, each granule asks for itself whether a byte of the access lies in it,
and the reasons to be let off, and the ways to end, stand one by one in lists, in their order.
"""

from dataclasses import dataclass
from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal, Value, ValueLike
from amaranth.lib import data
from amaranth.utils import exact_log2
from emte.rtl.config import TagConfig
from emte.rtl.layouts import CheckMode, Memory, Op, Outcome, ProbeKind
from unit_spec import first_of

__all__ = ["AccessReference", "Part", "documented", "touches_two"]

GRANULE = 16
WORD = 256
"""Bytes of data whose tags one word holds."""


@dataclass(frozen=True)
class Part:
    """What becomes of one tag word of an access, each field with the kinds that it is for."""

    kind: Value
    word: Value
    """All but NONE and those of all lines: its number within tag storage."""
    mask: Value
    """All but maintenance."""
    start: Value
    """All but maintenance: VA[7:4] of the first byte that the access touches in the word."""
    single: Value
    """LOAD, and where tags are ``ones``."""
    asynchronous: Value
    """CHECK."""
    write: Value
    """CHECK, STORE, and NONE with a fault or an abort."""
    outcome: Value
    ones: Value


def documented(config: TagConfig, access: data.View, control: data.View) -> dict[str, Value]:
    """What the descriptions of the ports promise of an access and of the map, each by a name."""
    tag_block = reduce(
        or_,
        (
            (access.bytes == size) & (_modulo(access.pa, size) == 0)
            for size in (16, 32, 64, 128, 256)
        ),
    )
    aligned_block = reduce(
        or_, ((access.bytes == size) & (_modulo(access.pa, size) == 0) for size in (128, 256, 512))
    )
    return {
        "an operation and a kind of memory that exist": (
            (Value.cast(access.op) <= max(op.value for op in Op))
            & (Value.cast(access.memory) <= max(memory.value for memory in Memory))
        ),
        "1 to 64 bytes, or an aligned block, or maintenance of all lines": (
            ((access.bytes >= 1) & (access.bytes <= 64))
            | aligned_block
            | (_is(access, Op.CLEAN, Op.INVALIDATE, Op.CLEAN_INVALIDATE) & (access.bytes == 0))
        ),
        "LDGM and STGM are of an aligned block of no more than 256 bytes": (
            ~_is(access, Op.LDGM, Op.STGM) | tag_block
        ),
        "what crosses a page comes as two": _modulo(access.pa, 4096) + access.bytes <= 4096,
        "translation keeps the place within a page": (
            _modulo(access.va, 4096) == _modulo(access.pa, 4096)
        ),
        "the map consists of pages, no more than there may be": (
            (_modulo(control.memory_base, 4096) == 0)
            & (_modulo(control.memory_bytes, 4096) == 0)
            & (control.memory_bytes <= 1 << config.memory_bits)
            & (_modulo(control.storage_base, 128) == 0)
        ),
    }


def touches_two(access: data.View) -> Value:
    """Do the first and the last byte of an access lie in different tag words?

    LDG means one granule, whatever size is given, and maintenance one line.
    """
    last = access.pa + access.bytes - 1
    return (last >> 8 != access.pa >> 8) & ~_is(
        access, Op.LDG, Op.CLEAN, Op.INVALIDATE, Op.CLEAN_INVALIDATE
    )


class AccessReference:
    """An access under a translation regime and a storage map.

    Parameters
    ----------
    access : View
        Of ``access_layout``.
    regime, control : View
        Of ``regime_layout`` and ``map_layout``.

    Attributes
    ----------
    let_off : dict[str, Value]
        Reasons not to check it.
    """

    def __init__(self, m: Module, access: data.View, regime: data.View, control: data.View) -> None:
        self._m = m
        self._access = access
        self._regime = regime
        self._control = control
        self._maintenance = self._named(
            "maintenance", _is(access, Op.CLEAN, Op.INVALIDATE, Op.CLEAN_INVALIDATE)
        )
        self._tag_load = self._named("tag_load", _is(access, Op.LDG, Op.LDGM))
        self._tag_store = self._named("tag_store", _is(access, Op.STG, Op.STGM))

        # LDG aligns its address down, and means the granule there, whatever size is given.
        self._single = self._named("single", _is(access, Op.LDG))
        down = self._named("down", Mux(self._single, _modulo(access.va, GRANULE), 0))
        size = Mux(self._single, GRANULE, access.bytes)
        self._address = self._named("address", access.va - down)
        self._first = self._named("first", access.pa - down)
        self._last = self._named("last", access.pa - down + size - 1)

        self._writes = self._named(
            "writes", _is(access, Op.STORE) | (_is(access, Op.ATOMIC) & self._of_level("tcso"))
        )
        mode = self._named("mode", Mux(access.el0, regime.tcf[0], regime.tcf[1]))
        self._asynchronous = self._named(
            "asynchronous",
            (mode == CheckMode.ASYNC) | ((mode == CheckMode.ASYM) & self._writes),
        )
        top = access.va[55:60]
        self.let_off = {
            "class": ~_is(access, Op.LOAD, Op.STORE, Op.ATOMIC),
            "form": access.exempt,
            "neither TBI nor MTX": ~self._of_half("tbi") & ~self._of_half("mtx"),
            "TCMA": self._of_half("tcma") & ((top == 0b00000) | (top == 0b11111)),
            "ATA": ~self._of_level("ata"),
            "TCO": access.tco,
            "store-only": self._of_level("tcso") & ~self._writes,
        }
        tag_checked = self._named("tag_checked", ~reduce(or_, self.let_off.values()))
        checked = self._named("checked", tag_checked & (mode != CheckMode.NONE))
        tag_access = self._named(
            "tag_access", (self._tag_load | self._tag_store) & self._of_level("ata")
        )

        tagged = access.memory == Memory.TAGGED
        canonical = self._named(
            "canonical", (access.memory == Memory.UNTAGGED) & self._of_half("mtx")
        )
        canonical_tag = Mux(access.va[55], 0xF, 0x0)
        mismatch = self._named(
            "mismatch", checked & canonical & (access.va[56:60] != canonical_tag)
        )
        in_map = self._named(
            "in_map",
            (self._first >= control.memory_base)
            & (self._last < control.memory_base + control.memory_bytes),
        )
        storage_bytes = control.memory_bytes >> 5
        in_carve_out = self._named(
            "in_carve_out",
            (self._first < control.storage_base + storage_bytes)
            & (self._last >= control.storage_base)
            & (storage_bytes != 0),
        )
        self._outcome = outcome = self._named(
            "outcome",
            first_of(
                (self._maintenance, Outcome.PASS),
                (_is(access, Op.STG) & (_modulo(access.va, GRANULE) != 0), Outcome.ALIGNMENT_FAULT),
                (self._tag_store & tag_access & canonical, Outcome.PERMISSION_FAULT),
                (
                    (access.memory == Memory.NO_TAG_ACCESS) & (tag_checked | tag_access),
                    Outcome.PERMISSION_FAULT,
                ),
                (in_carve_out | (tagged & ~in_map), Outcome.EXTERNAL_ABORT),
                (mismatch & self._asynchronous, Outcome.ASYNC),
                (mismatch, Outcome.TAG_CHECK_FAULT),
                default=Outcome.PASS,
            ),
        )
        self._probes = self._named(
            "probes",
            Mux(
                self._maintenance,
                (access.bytes == 0) | (tagged & in_map),
                (outcome == Outcome.PASS) & tagged & (checked | tag_access),
            ),
        )
        self._ones = self._named(
            "ones",
            (outcome == Outcome.PASS) & self._tag_load & tag_access & canonical & access.va[55],
        )
        self._wnr = self._named(
            "wnr",
            first_of(
                (self._tag_store, 1),
                # The tags may not be read, or cannot be had: a read fails.
                (outcome == Outcome.PERMISSION_FAULT, 0),
                ((outcome == Outcome.EXTERNAL_ABORT) & ~in_carve_out, 0),
                default=self._writes,
            ),
        )

    def part(self, second: Value) -> Part:
        """What becomes of its first or its second word."""
        access = self._access
        word = self._named("part_word", (self._first >> 8) + second)  # in all of memory
        by_address = access.bytes != 0
        return Part(
            kind=self._named(
                "part_kind",
                first_of(
                    (~self._probes, ProbeKind.NONE),
                    (self._tag_load, ProbeKind.LOAD),
                    (self._tag_store, ProbeKind.STORE),
                    (~self._maintenance, ProbeKind.CHECK),
                    (_is(access, Op.CLEAN) & by_address, ProbeKind.CLEAN),
                    (_is(access, Op.CLEAN), ProbeKind.CLEAN_ALL),
                    (by_address, ProbeKind.CLEAN_INVALIDATE),
                    default=ProbeKind.CLEAN_INVALIDATE_ALL,
                ),
            ),
            word=word - (self._control.memory_base >> 8),
            mask=self._mask("part", word),
            start=Mux(second, 0, _modulo(self._address, WORD) >> exact_log2(GRANULE)),
            single=self._single,
            asynchronous=self._asynchronous,
            write=self._wnr,
            # The first word tells of what concerns the access as a whole.
            outcome=Mux(second, Outcome.PASS, self._outcome),
            ones=self._ones,
        )

    def _named(self, name: str, value: ValueLike) -> Signal:
        """A signal of that value, which shows in waveforms, and is there once."""
        value = Value.cast(value)
        signal = Signal(value.shape(), name=f"reference_{name}")
        self._m.d.comb += signal.eq(value)
        return signal

    def _of_half(self, name: str) -> Value:
        low, high = self._regime[name]
        return Mux(self._access.va[55], high, low)

    def _of_level(self, name: str) -> Value:
        el0, el1 = self._regime[name]
        return Mux(self._access.el0, el0, el1)

    def _mask(self, name: str, word: Value) -> Signal:
        """Of each granule of a word of memory: does a byte of the access lie in it?"""
        begin = self._named(f"{name}_begin", _times(word, WORD))
        return self._named(
            f"{name}_mask",
            Cat(
                (self._first < begin + place + GRANULE) & (self._last >= begin + place)
                for place in range(0, WORD, GRANULE)
            ),
        )


def _is(access: data.View, *ops: Op) -> Value:
    return reduce(or_, (access.op == op for op in ops))


def _modulo(value: Value, power: int) -> Value:
    """The remainder of a division by a power of two; ``%`` would become a divider."""
    return value[: exact_log2(power)]


def _times(value: Value, power: int) -> Value:
    """The product with a power of two; ``*`` would become a multiplier."""
    return value << exact_log2(power)

"""What an access needs of tag storage, and how it ends if it needs nothing: a reference.

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

__all__ = ["AccessReference", "Finding", "Probe", "documented"]

GRANULE = 16
WORD = 256
"""Bytes of data whose tags one word holds."""


@dataclass(frozen=True)
class Finding:
    """How an access ends that needs no tags."""

    outcome: Value
    far: Value
    wnr: Value
    tags: Value


@dataclass(frozen=True)
class Probe:
    """What is asked of one tag word, each field with the kinds of probes that it is for."""

    kind: Value
    word: Value
    """All but those of all lines: its number within tag storage."""
    mask: Value
    """CHECK, LOAD, STORE."""
    tags: Value
    """STORE: the new tag of each granule."""
    address: Value
    """CHECK, LOAD, STORE: the VA of the first byte that the access touches in the word."""
    single: Value
    """LOAD."""
    asynchronous: Value
    """CHECK."""
    write: Value
    """CHECK."""
    last: Value


def documented(config: TagConfig, access: data.View, control: data.View) -> dict[str, Value]:
    """What the descriptions of the ports promise of an access and of the map, each by a name."""
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


class AccessReference:
    """An access under a translation regime and a storage map.

    Attributes
    ----------
    let_off : dict[str, Value]
        Reasons not to check it.
    probes : Value
        It becomes probes; if not, ``finding`` is how it ends.
    finding : Finding
    """

    def __init__(self, m: Module, access: data.View, control: data.View) -> None:
        self._m = m
        self._access = access
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
        mode = self._named("mode", Mux(access.el0, control.tcf[0], control.tcf[1]))
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
        outcome = self._named(
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
        self.probes = self._named(
            "probes",
            Mux(
                self._maintenance,
                (access.bytes == 0) | (tagged & in_map),
                (outcome == Outcome.PASS) & tagged & (checked | tag_access),
            ),
        )
        reported = (outcome != Outcome.PASS) & (outcome != Outcome.ASYNC)
        gives_canonical = (outcome == Outcome.PASS) & self._tag_load & tag_access & canonical
        touched = self._mask("word", self._first >> 8)
        self.finding = Finding(
            outcome=outcome,
            far=self._named("far", Mux(reported, self._address, 0)),
            wnr=self._named(
                "wnr",
                first_of(
                    (~reported, 0),
                    (self._tag_store, 1),
                    # The tags may not be read, or cannot be had: a read fails.
                    (outcome == Outcome.PERMISSION_FAULT, 0),
                    ((outcome == Outcome.EXTERNAL_ABORT) & ~in_carve_out, 0),
                    default=self._writes,
                ),
            ),
            tags=self._named(
                "tags",
                first_of(
                    (~gives_canonical, 0),
                    (self._single, canonical_tag),
                    default=Cat(Mux(granule, canonical_tag, 0)[:4] for granule in touched),
                ),
            ),
        )

    def probe(self, number: Value) -> Probe:
        """The probe of that number, from 0 to the first that is the last."""
        access = self._access
        word = self._named("probe_word", (self._first >> 8) + number)  # in all of memory
        later = self._address - _modulo(self._address, WORD) + _times(number, WORD)
        by_address = access.bytes != 0
        return Probe(
            kind=self._named(
                "probe_kind",
                first_of(
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
            mask=self._mask("probe", word),
            tags=Mux(
                _is(access, Op.STG),
                Cat(access.tags[:4] for _ in range(WORD // GRANULE)),
                access.tags,
            ),
            address=Mux(number == 0, self._address, later)[:64],
            single=self._single,
            asynchronous=self._asynchronous,
            write=self._writes,
            last=self._named("probe_last", self._maintenance | (self._last >> 8 == word)),
        )

    def granules_from(self, number: Value) -> Value:
        """How many granules lie between the start of the probe's word and the access's end."""
        return (self._last >> 4) + 1 - _times((self._first >> 8) + number, WORD // GRANULE)

    def _named(self, name: str, value: ValueLike) -> Signal:
        """A signal of that value, which shows in waveforms, and is there once."""
        value = Value.cast(value)
        signal = Signal(value.shape(), name=f"reference_{name}")
        self._m.d.comb += signal.eq(value)
        return signal

    def _of_half(self, name: str) -> Value:
        low, high = self._control[name]
        return Mux(self._access.va[55], high, low)

    def _of_level(self, name: str) -> Value:
        el0, el1 = self._control[name]
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

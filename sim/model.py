"""The golden model: what the architecture says of every operation, in plain Python.

The model is sequential. :meth:`Model.step` takes one :class:`~emte.sim.ops.Operation` and returns
its outcome, a dictionary of the form in which outcomes are written, as if every branch were
predicted correctly. :meth:`Model.run` takes a stream and settles what was speculative.

Outcomes that occur often are shared constants, so that no dictionary is built for an access that
passes: outcomes must not be modified.

The tags of granules are kept as the pipeline keeps them in memory. The tag of physical address
``pa`` is a nibble of the byte at ``base + ((pa - address) >> 5)`` of tag storage, the low one where
PA[4] is 0; ``address`` and ``base`` are those of the storage map, whose first 1/32 from ``base`` on
is the carve-out that no access may touch.

An access that crosses a page is judged as two parts, each by the attributes of its own page. The
address of the second part keeps bits 63:56 of the pointer, whatever the carry out of bit 55.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

from .memory_map import MemoryMap
from .ops import PA_MASK, STORAGE_BASE, Operation, Regime, StreamError

__all__ = ["Model", "Outcome", "choose_non_excluded_tag", "random_tag", "run"]

Outcome = dict[str, Any]
"""A verdict or a result, in the form in which it is written."""

PASS: Outcome = {"outcome": "pass"}
SQUASHED: Outcome = {"outcome": "squashed"}
UNDEFINED: Outcome = {"outcome": "undefined"}
NOTHING: Outcome = {}
ASYNC: tuple[Outcome, Outcome] = (
    {"outcome": "async", "tfsr": [1, 0]},
    {"outcome": "async", "tfsr": [0, 1]},
)
"""By half of the address space."""

GRANULE = 16
PAGE = 4096
PAGE_MASK = PAGE - 1
PAGE_TAG_BYTES = PAGE // 32
ADDRESS_MASK = (1 << 64) - 1
OFFSET_MASK = (1 << 56) - 1
"""Bits of an address that change from one part of an access to the next."""
PAGE_NUMBER_MASK = PA_MASK >> 12


# What a pointer means under a regime


class Kind(enum.IntEnum):
    """How a data access uses memory; a DC ZVA is a store."""

    LOAD = 0
    STORE = 1
    ATOMIC = 2


class Check(enum.IntEnum):
    """What is done about the tag of an access."""

    NONE = 0
    SYNC = 1
    ASYNC = 2


def half(address: int) -> int:
    """Which half of the address space, by bit 55: it selects TBI, MTX, TCMA and the TFSR bit."""
    return address >> 55 & 1


def logical_tag(address: int) -> int:
    """The tag in a pointer: bits 59:56."""
    return address >> 56 & 0xF


def canonical_tag(address: int) -> int:
    """The tag that memory without allocation tags has under MTX: 0, or 0xF in the upper half."""
    return 0xF if half(address) else 0


def with_tag(address: int, tag: int) -> int:
    """The address with bits 59:56 replaced."""
    return (address & ~(0xF << 56)) | (tag << 56)


def is_translated(regime: Regime, address: int) -> bool:
    """Does translation accept bits 63:56? TBI ignores them all, MTX ignores the tag alone."""
    if regime.tbi[half(address)]:
        return True
    if regime.mtx[half(address)]:
        address = with_tag(address, canonical_tag(address))
    return address >> 56 == (0xFF if half(address) else 0)


def is_write(regime: Regime, kind: Kind, el: int) -> bool:
    """Does the tag check treat the access as a write?

    The check of an atomic comes before its read and is that of a read, except with store-only
    checking, where it comes after the read and is that of the write (MemAtomic in the Arm
    pseudocode). A translation fault is always met by the read.
    """
    return kind is Kind.STORE or (kind is Kind.ATOMIC and bool(regime.tcso[el]))


def is_tag_checked(regime: Regime, kind: Kind, el: int, address: int) -> bool:
    """Is a data access tag checked, if neither its form nor PSTATE.TCO exempts it?

    The order is that of AArch64.AccessIsTagChecked in the Arm pseudocode.
    """
    if not regime.mtx[half(address)] and not regime.tbi[half(address)]:
        return False
    if regime.tcma[half(address)] and logical_tag(address) == canonical_tag(address):
        return False
    if not regime.ata[el]:
        return False
    return not regime.tcso[el] or is_write(regime, kind, el)


def check_of(regime: Regime, kind: Kind, el: int, address: int) -> Check:
    """What a mismatch does. With TCF = none it has no effect, so no tag is looked at."""
    if not is_tag_checked(regime, kind, el, address):
        return Check.NONE
    write = is_write(regime, kind, el)
    match regime.tcf[el]:
        case "none":
            return Check.NONE
        case "async":
            return Check.ASYNC
        case "asym":
            return Check.ASYNC if write else Check.SYNC
        case _:
            return Check.SYNC


class _Pointer:
    """All that an access takes from bits 63:55 of its address."""

    __slots__ = ("check", "matches_untagged", "tag", "tag_checked", "translated", "write")

    def __init__(self, regime: Regime, kind: Kind, el: int, address: int) -> None:
        self.translated = is_translated(regime, address)
        self.write = int(is_write(regime, kind, el))
        self.tag_checked = is_tag_checked(regime, kind, el, address)
        self.check = check_of(regime, kind, el, address)
        self.tag = logical_tag(address)
        self.matches_untagged = not regime.mtx[half(address)] or self.tag == canonical_tag(address)


class _Pointers(dict[int, _Pointer]):
    """The meaning of bits 63:55 under one regime, worked out when first met."""

    def __init__(self, regime: Regime, kind: Kind, el: int) -> None:
        self._of = partial(_Pointer, regime, kind, el)

    def __missing__(self, top: int) -> _Pointer:
        pointer = self[top] = self._of(top << 55)
        return pointer


@lru_cache(maxsize=64)
def _pointers(regime: Regime) -> list[list[_Pointers]]:
    """Tables by kind of access and exception level. Streams switch between few regimes."""
    return [[_Pointers(regime, kind, el) for el in (0, 1)] for kind in Kind]


# Choice of tags


def random_tag(seed: int) -> tuple[int, int]:
    """Four steps of the LFSR in bits 15:0 of ``seed``: (offset, new seed).

    The first bit drawn is bit 0 of the offset. Bits 47:16 of the seed stay as they are.
    """
    offset = 0
    for bit in range(4):
        top = (seed >> 5 ^ seed >> 3 ^ seed >> 2 ^ seed) & 1
        seed = (seed & ~0xFFFF) | (top << 15) | (seed >> 1 & 0x7FFF)
        offset |= top << bit
    return offset, seed


def choose_non_excluded_tag(tag: int, offset: int, exclude: int) -> int:
    """``offset`` allowed tags on from ``tag``, or the first allowed one from it if offset is 0.

    0 if the 16-bit mask excludes all tags.
    """
    if exclude & 0xFFFF == 0xFFFF:
        return 0
    while exclude >> tag & 1 and not offset:
        tag = tag + 1 & 0xF
    for _ in range(offset):
        tag = tag + 1 & 0xF
        while exclude >> tag & 1:
            tag = tag + 1 & 0xF
    return tag


def draw_tag(entropy: int, exclude: int) -> int:
    """The tag that IRG takes from 32 bits of entropy when GCR_EL1.RRND is 1.

    Of the n allowed tags in ascending order it is number ``(entropy * n) >> 32``; 0 if n is 0.
    """
    allowed = [tag for tag in range(16) if not exclude >> tag & 1]
    return allowed[entropy * len(allowed) >> 32] if allowed else 0


# Memory


class _Page:
    """What the model needs to know of a page of memory.

    Attributes
    ----------
    kind
        What the page table says: one of :data:`~emte.sim.ops.MEMORIES`.
    tags
        The 128 bytes of tag storage of a tagged page; None for other pages, and for a tagged page
        outside the storage map.
    clear
        No access within the page can end in a translation fault, a permission fault or an external
        abort, unless it is for bits 63:56 of its address.
    """

    __slots__ = ("clear", "kind", "tags")

    def __init__(self, kind: str, tags: bytearray | None, reserved: bool) -> None:
        self.kind = kind
        self.tags = tags
        self.clear = not reserved and (kind == "untagged" or tags is not None)


def _read_tag(tags: bytearray, offset: int) -> int:
    """The tag of the granule at ``offset`` of a page."""
    return tags[offset >> 5] >> (offset >> 2 & 4) & 0xF


def _write_tag(tags: bytearray, offset: int, tag: int) -> None:
    """Replace the tag of one granule; the other nibble of its byte stays."""
    shift = offset >> 2 & 4
    tags[offset >> 5] = (tags[offset >> 5] & 0xF0 >> shift) | (tag << shift)


def _parts(address: int, size: int) -> list[tuple[int, int]]:
    """An access cut at the page boundary: one or two (address, size)."""
    first = PAGE - (address & PAGE_MASK)
    if size <= first:
        return [(address, size)]
    second = (address & ~OFFSET_MASK) | (address + first & OFFSET_MASK)
    return [(address, first), (second, size - first)]


def _fault(outcome: str, address: int, write: int) -> Outcome:
    return {"outcome": outcome, "far": hex(address), "wnr": write}


# Speculation


class _Held:
    """The outcome of an access, and the unresolved branches on which it depends."""

    __slots__ = ("branches", "el", "outcome")

    def __init__(self, outcome: Outcome, el: int = 0, branches: Iterable[int] = ()) -> None:
        self.outcome = outcome
        self.el = el
        self.branches = set(branches)


class Model:
    """The state of the machine: regime, memory and its tags, GCR, RGSR, TFSR, branches.

    At the start all tags are 0, GCR is 0, RGSR has tag 0 and seed 1, all memory is untagged, the
    regime is the default one, and tag storage covers the first 2^40 bytes of memory.

    Attributes
    ----------
    tfsr
        Sticky asynchronous faults of the accesses released so far: [TF0, TF1] of TFSRE0_EL1
        ("el0") and of TFSR_EL1 ("el1").
    """

    def __init__(self) -> None:
        self.tfsr: dict[str, list[int]] = {"el0": [0, 0], "el1": [0, 0]}
        self._set_regime(Regime())
        self._exclude = 0
        self._rrnd = 0
        self._rgsr_tag = 0
        self._rgsr_seed = 1
        self._memory = MemoryMap()
        self._storage: dict[int, bytearray] = {}  # by storage address, 128 bytes each
        self._set_storage_map(0, 1 << 40, STORAGE_BASE)
        self._branches: set[int] = set()
        self._held: list[_Held] = []
        self._handlers: dict[str, Callable[[Operation], Outcome]] = {
            "regime": self._regime_write,
            "map": self._map,
            "storage": self._storage_write,
            "gcr": self._gcr,
            "rgsr": self._rgsr,
            "load": partial(self._data, Kind.LOAD),
            "store": partial(self._data, Kind.STORE),
            "atomic": partial(self._data, Kind.ATOMIC),
            "dc_zva": self._dc_zva,
            "ldg": self._ldg,
            "stg": partial(self._stg, 1),
            "st2g": partial(self._stg, 2),
            "stzg": partial(self._stg, 1),
            "stz2g": partial(self._stg, 2),
            "stgp": self._stgp,
            "ldgm": self._ldgm,
            "stgm": self._stgm,
            "stzgm": self._stzgm,
            "dc_gva": self._dc_gva,
            "dc_gzva": self._dc_gva,
            "irg": self._irg,
            "addg": partial(self._addg, 1),
            "subg": partial(self._addg, -1),
            "gmi": self._gmi,
            "clean": self._maintain,
            "invalidate": self._maintain,
            "clean_invalidate": self._maintain,
            "branch": self._branch,
            "resolve": self._resolve,
        }

    def step(self, operation: Operation) -> Outcome:
        """Perform one operation: the outcome that it has if it is not squashed.

        Raises
        ------
        StreamError
            The operation opens a branch that is open, or resolves or names one that is not.
        """
        outcome = self._handlers[operation.op](operation)
        if operation.branches:
            for branch in operation.branches:
                self._expect_open(branch, operation, "branches")
            self._held.append(_Held(outcome, operation.el, operation.branches))
        elif outcome is not PASS and "tfsr" in outcome:
            self._report(operation.el, outcome)
        return outcome

    def run(self, operations: Iterable[Operation]) -> Iterator[Outcome]:
        """Perform a stream: exactly one outcome per operation, in order.

        Outcomes behind one that still depends on a branch wait until that is resolved.

        Raises
        ------
        StreamError
            As :meth:`step`; or the stream ends with an open branch on which an access depends.
        """
        step = self.step
        waiting: deque[_Held] = deque()
        for operation in operations:
            outcome = step(operation)
            if not waiting and not operation.branches:
                yield outcome
                continue
            waiting.append(self._held[-1] if operation.branches else _Held(outcome))
            while waiting and not waiting[0].branches:
                yield waiting.popleft().outcome
        if waiting:
            raise StreamError(f"branches open at the end of the stream: {sorted(self._branches)}")

    def tag_at(self, address: int) -> int | None:
        """The allocation tag in storage of the granule of an address; None where there is none."""
        tags = self._page(address).tags
        return None if tags is None else _read_tag(tags, address & PAGE_MASK)

    # State

    def _set_regime(self, regime: Regime) -> None:
        self._regime = regime
        self._pointers = _pointers(regime)

    def _regime_write(self, operation: Operation) -> Outcome:
        assert operation.regime is not None
        self._set_regime(operation.regime)
        return NOTHING

    def _set_storage_map(self, address: int, size: int, base: int) -> None:
        """Size and address are multiples of a page, base one of a page's 128 bytes of tags."""
        self._covered = range(address, address + size)
        self._carve_out = range(base, base + size // 32)
        self._pages: dict[int, _Page] = {}

    def _storage_write(self, operation: Operation) -> Outcome:
        self._set_storage_map(_address(operation), operation.bytes, operation.base)
        return NOTHING

    def _map(self, operation: Operation) -> Outcome:
        self._memory.set(_address(operation), operation.bytes, operation.memory)
        self._pages.clear()
        return NOTHING

    def _gcr(self, operation: Operation) -> Outcome:
        self._exclude = operation.exclude
        self._rrnd = operation.rrnd
        return NOTHING

    def _rgsr(self, operation: Operation) -> Outcome:
        self._rgsr_tag = operation.tag
        self._rgsr_seed = operation.seed
        return NOTHING

    def _maintain(self, operation: Operation) -> Outcome:
        """The model has no caches, and invalidation never loses a tag."""
        return NOTHING

    def _page(self, address: int) -> _Page:
        number = address >> 12 & PAGE_NUMBER_MASK
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = self._describe(number * PAGE)
        return page

    def _describe(self, start: int) -> _Page:
        kind = self._memory.kind(start)
        tags = None
        if kind == "tagged" and start in self._covered:
            byte = self._carve_out.start + (start - self._covered.start >> 5)
            tags = self._storage.setdefault(byte, bytearray(PAGE_TAG_BYTES))
        return _Page(kind, tags, self._is_reserved(start, PAGE))

    def _is_reserved(self, physical: int, size: int) -> bool:
        """Does an access touch the carve-out?"""
        first = max(physical, self._carve_out.start)
        return first < min(physical + size, self._carve_out.stop)

    def _is_mapped(self, address: int) -> bool:
        return is_translated(self._regime, address) and self._page(address).kind != "none"

    def _is_refused(self, address: int) -> bool:
        """Does stage 2 refuse an access to the tags of the page (FEAT_MTE_PERM)?

        It is a permission fault for tag loads, tag stores and accesses that are tag checked,
        whatever a mismatch would do; WnR is set for tag stores alone.
        """
        return self._page(address).kind == "no_tag_access"

    def _translation_fault(self, parts: list[tuple[int, int]], *, write: int) -> Outcome | None:
        """The translation fault of the first part that has one."""
        for start, _ in parts:
            if not self._is_mapped(start):
                return _fault("translation_fault", start, write)
        return None

    def _abort(self, address: int, size: int, *, write: int, tag_write: int = 0) -> Outcome | None:
        """The external abort of an access within one page, if it ends so.

        ``write`` is WnR where the access itself is refused: it touches the carve-out.
        ``tag_write`` is WnR where its tags are not to be had: the page is tagged, but outside the
        storage map. A tag fetch is a read, also for a store.
        """
        if self._is_reserved(address & PA_MASK, size):
            return _fault("external_abort", address, write)
        page = self._page(address)
        if page.kind == "tagged" and page.tags is None:
            return _fault("external_abort", address, tag_write)
        return None

    # Data accesses

    def _data(self, kind: Kind, operation: Operation) -> Outcome:
        address = operation.address
        assert address is not None
        return self._access(kind, operation, address, operation.size)

    def _dc_zva(self, operation: Operation) -> Outcome:
        """A store of the whole block, checked over all its granules."""
        size = self._zero_block()
        return self._access(Kind.STORE, operation, _address(operation) & -size, size)

    def _access(self, kind: Kind, operation: Operation, address: int, size: int) -> Outcome:
        pointer = self._pointers[kind][operation.el][address >> 55]
        # Most pages have been met before: that saves a call.
        page = self._pages.get(address >> 12 & PAGE_NUMBER_MASK) or self._page(address)
        exempt = operation.exempt or operation.tco
        if page.clear and pointer.translated and (address & PAGE_MASK) + size <= PAGE:
            if exempt or not pointer.check:
                return PASS
            return self._check(pointer, page, address, size)

        parts = _parts(address, size)
        untranslated = self._translation_fault(parts, write=int(kind is Kind.STORE))
        if untranslated is not None:
            return untranslated
        flags = [0, 0]
        for start, length in parts:
            pointer = self._pointers[kind][operation.el][start >> 55]
            if pointer.tag_checked and not exempt and self._is_refused(start):
                return _fault("permission_fault", start, 0)
            outcome = self._abort(start, length, write=pointer.write)
            if outcome is None and pointer.check and not exempt:
                outcome = self._check(pointer, self._page(start), start, length)
            if outcome is None or outcome is PASS:
                continue
            if "far" in outcome:
                return outcome
            flags[half(start)] = 1
        return {"outcome": "async", "tfsr": flags} if any(flags) else PASS

    def _check(self, pointer: _Pointer, page: _Page, address: int, size: int) -> Outcome:
        """Compare every granule of an access within one page; the lowest mismatch decides."""
        tag = pointer.tag
        tags = page.tags
        if tags is None:
            if pointer.matches_untagged:
                return PASS
            failing = address
        else:
            start = address & PAGE_MASK
            for offset in range(start & -GRANULE, start + size, GRANULE):
                # _read_tag, inlined: most of the model's time is spent here.
                if tags[offset >> 5] >> (offset >> 2 & 4) & 0xF != tag:
                    failing = address + max(offset - start, 0)
                    break
            else:
                return PASS
        if pointer.check is Check.ASYNC:
            return ASYNC[half(address)]
        return _fault("tag_check_fault", failing, pointer.write)

    # Tag loads and stores: never checked themselves

    def _zero_block(self) -> int:
        """Bytes that DC ZVA, GVA, GZVA and STZGM write."""
        return 4 << self._regime.dczid_bs

    def _tag_block(self) -> int:
        """Bytes whose tags LDGM and STGM transfer."""
        return 4 << self._regime.gmid_bs

    def _load_tags(self, el: int, address: int, count: int) -> tuple[Outcome, list[int]]:
        """Tags of ``count`` granules within one page: (PASS or a fault, tags).

        With tag access disabled they read as 0, in memory without allocation tags as the canonical
        tag under MTX and else as 0; the address is translated all the same.
        """
        size = count * GRANULE
        fault = self._translation_fault([(address, size)], write=0)
        if fault is None and self._regime.ata[el] and self._is_refused(address):
            fault = _fault("permission_fault", address, 0)
        fault = fault or self._abort(address, size, write=0)
        if fault is not None:
            return fault, []
        tags = self._page(address).tags
        if not self._regime.ata[el]:
            return PASS, [0] * count
        if tags is None:
            return PASS, [canonical_tag(address) if self._regime.mtx[half(address)] else 0] * count
        start = address & PAGE_MASK
        return PASS, [_read_tag(tags, start + GRANULE * n) for n in range(count)]

    def _store_tags(self, el: int, address: int, tags: Sequence[int]) -> Outcome:
        """Write the tags of consecutive granules, from a 16-aligned address on.

        A translation fault of either page is the outcome, whatever the other part meets; but the
        parts are done one after the other, so that what the first has written stays if the second
        faults.
        """
        parts = _parts(address, len(tags) * GRANULE)
        untranslated = self._translation_fault(parts, write=1)
        outcome = PASS
        for start, length in parts:
            if not self._is_mapped(start):
                break
            here, tags = tags[: length // GRANULE], tags[length // GRANULE :]
            outcome = self._store_part(el, start, here)
            if outcome is not PASS:
                break
        return untranslated or outcome

    def _store_part(self, el: int, address: int, tags: Sequence[int]) -> Outcome:
        """The part of a tag store that lies in one page, which is mapped.

        Where there are no allocation tags, or tag access is disabled, nothing is written. But
        memory that MTX makes canonically tagged refuses tag stores with a permission fault, which
        comes before the external abort as all faults of translation do.
        """
        page = self._page(address)
        enabled = self._regime.ata[el]
        canonical = page.kind == "untagged" and self._regime.mtx[half(address)]
        if enabled and (canonical or self._is_refused(address)):
            return _fault("permission_fault", address, 1)
        abort = self._abort(address, len(tags) * GRANULE, write=1, tag_write=1)
        if abort is not None:
            return abort
        if enabled and page.tags is not None:
            offset = address & PAGE_MASK
            for n, tag in enumerate(tags):
                _write_tag(page.tags, offset + GRANULE * n, tag)
        return PASS

    def _ldg(self, operation: Operation) -> Outcome:
        outcome, tags = self._load_tags(operation.el, _address(operation) & -GRANULE, 1)
        return {"outcome": "pass", "tag": tags[0]} if outcome is PASS else outcome

    def _stg(self, granules: int, operation: Operation) -> Outcome:
        """STG, STZG, ST2G and STZ2G: the data that they zero is never checked."""
        return self._store_aligned(operation, [operation.tag] * granules)

    def _stgp(self, operation: Operation) -> Outcome:
        """The tag comes from the address, not from the data."""
        return self._store_aligned(operation, [logical_tag(_address(operation))])

    def _store_aligned(self, operation: Operation, tags: Sequence[int]) -> Outcome:
        address = _address(operation)
        if address % GRANULE:
            return _fault("alignment_fault", address, 1)
        return self._store_tags(operation.el, address, tags)

    def _ldgm(self, operation: Operation) -> Outcome:
        """The tag of the granule at A is in bits 4n+3:4n of the result, where n is A[7:4]."""
        if operation.el == 0:
            return UNDEFINED
        size = self._tag_block()
        address = _address(operation) & -size
        outcome, tags = self._load_tags(operation.el, address, size // GRANULE)
        if outcome is not PASS:
            return outcome
        first = address >> 4 & 0xF
        value = sum(tag << 4 * n for n, tag in enumerate(tags, first))
        return {"outcome": "pass", "tags": hex(value)}

    def _stgm(self, operation: Operation) -> Outcome:
        if operation.el == 0:
            return UNDEFINED
        size = self._tag_block()
        address = _address(operation) & -size
        first = address >> 4 & 0xF
        tags = [operation.tags >> 4 * n & 0xF for n in range(first, first + size // GRANULE)]
        return self._store_tags(operation.el, address, tags)

    def _stzgm(self, operation: Operation) -> Outcome:
        if operation.el == 0:
            return UNDEFINED
        return self._store_block(operation, operation.tag)

    def _dc_gva(self, operation: Operation) -> Outcome:
        """DC GVA and DC GZVA: the tag comes from the address."""
        return self._store_block(operation, logical_tag(_address(operation)))

    def _store_block(self, operation: Operation, tag: int) -> Outcome:
        size = self._zero_block()
        address = _address(operation) & -size
        return self._store_tags(operation.el, address, [tag] * (size // GRANULE))

    # Choice of tags

    def _irg(self, operation: Operation) -> Outcome:
        """With tag access disabled the tag is 0 and RGSR keeps its value.

        With RRND = 0 the LFSR steps also if all tags are excluded; RRND = 1 does not touch RGSR.
        """
        exclude = operation.exclude | self._exclude
        if not self._regime.ata[operation.el]:
            tag = 0
        elif self._rrnd:
            tag = draw_tag(operation.entropy, exclude)
        else:
            offset, self._rgsr_seed = random_tag(self._rgsr_seed)
            tag = self._rgsr_tag = choose_non_excluded_tag(self._rgsr_tag, offset, exclude)
        return {
            "address": hex(with_tag(_address(operation), tag)),
            "rgsr": {"tag": self._rgsr_tag, "seed": hex(self._rgsr_seed)},
        }

    def _addg(self, sign: int, operation: Operation) -> Outcome:
        """ADDG and SUBG: the tag walks forward in both; only the address goes back."""
        address = _address(operation)
        tag = 0
        if self._regime.ata[operation.el]:
            start = logical_tag(address)
            tag = choose_non_excluded_tag(start, operation.tag_offset, self._exclude)
        moved = address + sign * operation.offset & ADDRESS_MASK
        return {"address": hex(with_tag(moved, tag))}

    def _gmi(self, operation: Operation) -> Outcome:
        return {"mask": hex(operation.mask | 1 << logical_tag(_address(operation)))}

    # Branches

    def _branch(self, operation: Operation) -> Outcome:
        if operation.id in self._branches:
            message = f"branch {operation.id} is open already"
            raise StreamError(message, line=operation.line, field="id")
        self._branches.add(operation.id)
        return NOTHING

    def _resolve(self, operation: Operation) -> Outcome:
        self._expect_open(operation.id, operation, "id")
        self._branches.remove(operation.id)
        still_held = []
        for held in self._held:
            if operation.id not in held.branches:
                still_held.append(held)
            elif operation.mispredicted:
                held.outcome = SQUASHED
                held.branches.clear()
            else:
                held.branches.remove(operation.id)
                if held.branches:
                    still_held.append(held)
                else:
                    self._report(held.el, held.outcome)
        self._held = still_held
        return NOTHING

    def _expect_open(self, branch: int, operation: Operation, field: str) -> None:
        if branch not in self._branches:
            raise StreamError(f"branch {branch} is not open", line=operation.line, field=field)

    def _report(self, el: int, outcome: Outcome) -> None:
        """Set the TFSR bits of an access that is released."""
        for n, flag in enumerate(outcome.get("tfsr", ())):
            self.tfsr["el1" if el else "el0"][n] |= flag


def _address(operation: Operation) -> int:
    """The address of an operation that has one."""
    assert operation.address is not None
    return operation.address


def run(operations: Iterable[Operation]) -> Iterator[Outcome]:
    """The outcomes of a stream from the initial state on: see :meth:`Model.run`."""
    return Model().run(operations)

"""The core in front of the pipeline: turns operations into transactions at its ports.

A :class:`Program` is what a stream becomes: one flat list of port transactions, which a harness
performs in order, and for each operation the recipe by which the results of its transactions
become its outcome. What the pipeline leaves to the core is done here: translation, the splitting
of accesses at page boundaries, the alignment of blocks, address arithmetic, undefined
instructions, and whether an access is squashed in the end.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.lib import data
from emte.rtl.layouts import (
    CheckMode,
    GenerateOp,
    Op,
    Outcome,
    gcr_layout,
    generate_request_layout,
    rgsr_layout,
)

from .memory_map import MemoryMap
from .ops import MEMORIES, STORAGE_BASE, ColumnarStream, Operation, Regime, Stream, StreamError
from .outcomes import Outcomes
from .transactions import TRANSACTION, Flag, Kind, Status

__all__ = ["Program"]

PAGE = 4096
STORAGE_BYTES = 1 << 40
_POINTER_BITS = 0xFF << 56
_OFFSET_BITS = (1 << 56) - 1
_PHYSICAL_BITS = (1 << 52) - 1
_MEMORY_FLAGS: dict[str, int] = {
    "untagged": 0,
    "tagged": Flag.TAGGED,
    "no_tag_access": Flag.NO_TAG_ACCESS,
}
_NONE = 0xFF
_FEW = 64
"""Rows for which arrays are not worth their while."""
_MANY = 1 << 15
"""Rows whose arrays the processor can keep at hand."""


class _Recipe(enum.IntEnum):
    """How an outcome is made."""

    EMPTY = 0
    FIXED = 1
    SQUASHED = 2
    VERDICT = 3
    VERDICT_TAG = 4
    VERDICT_TAGS = 5
    RANDOM_TAG = 6
    ADDRESS = 7


_PASS: dict[str, Any] = {"outcome": "pass"}
_COMMON: tuple[dict[str, Any], ...] = (
    *(_PASS, {}, {"outcome": "squashed"}),
    *({**_PASS, "tag": tag} for tag in range(16)),
)
"""Outcomes that need not be made one by one."""
_COMMON_OF = {_Recipe.VERDICT: 0, _Recipe.EMPTY: 1, _Recipe.SQUASHED: 2, _Recipe.VERDICT_TAG: 3}
"""By recipe: the place in _COMMON of the outcome, if all has passed; of the one with tag 0."""
_FAULTS = frozenset(Outcome) - {Outcome.PASS, Outcome.ASYNC}


def _pack(layout: data.StructLayout, fields: Mapping[str, int]) -> int:
    """The fields of a struct as one number."""
    return sum(value << layout[name].offset for name, value in fields.items())


def _unpack(layout: data.StructLayout, packed: int) -> dict[str, int]:
    return {name: packed >> field.offset & (1 << field.width) - 1 for name, field in layout}


def _pack_regime(regime: Regime) -> int:
    """The fields ``tbi`` to ``tcf`` of ``control_layout`` as one number."""
    packed = shift = 0
    for pair in (regime.tbi, regime.mtx, regime.tcma, regime.ata, regime.tcso):
        packed |= (pair[0] | pair[1] << 1) << shift
        shift += 2
    for mode in regime.tcf:
        packed |= CheckMode[mode.upper()].value << shift
        shift += 2
    return packed


def _is_canonical(regime: Regime, address: int) -> bool:
    """Does translation accept the top byte of the address?"""
    half = address >> 55 & 1
    if regime.tbi[half]:
        return True
    looked_at = 0xF0 if regime.mtx[half] else 0xFF
    return (address >> 56 ^ -half) & looked_at == 0


def _are_canonical(regime: Regime, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """:func:`_is_canonical` of many."""
    accepted = np.ones(len(addresses), bool)
    for half in (0, 1):
        if not regime.tbi[half]:
            looked_at = 0xF0 if regime.mtx[half] else 0xFF
            of_half = (addresses >> 55 & 1) == half
            accepted &= ~of_half | ((addresses >> 56 ^ 0xFF * half) & looked_at == 0)
    return accepted


def _split(address: int, size: int) -> list[tuple[int, int]]:
    """The parts of an access by page; the second keeps the top byte of the address."""
    here = PAGE - address % PAGE
    if size <= here:
        return [(address, size)]
    there = address & _POINTER_BITS | (address + here) & _OFFSET_BITS
    return [(address, here), (there, size - here)]


def _address(operation: Operation) -> int:
    """The address of an operation that must have one."""
    assert operation.address is not None
    return operation.address


def _fault(outcome: str, address: int, write: int) -> dict[str, Any]:
    return {"outcome": outcome, "far": hex(address), "wnr": write}


@dataclass(frozen=True, eq=False)
class Program:
    """A stream as port transactions.

    Attributes
    ----------
    path : str
        Name of the stream.
    transactions : array of :data:`~emte.sim.transactions.TRANSACTION`
        In the order in which they are begun.
    lines : array of unsigned
        Line of each operation.
    """

    path: str
    transactions: npt.NDArray[np.void]
    lines: npt.NDArray[np.uint32]
    _recipes: npt.NDArray[np.uint8]
    _first: npt.NDArray[np.int64]
    _fixed: dict[int, dict[str, Any]]

    @classmethod
    def of(cls, stream: Stream) -> Program:
        """Translate a stream that has passed :func:`~emte.sim.ops.check`.

        Raises
        ------
        StreamError
            The storage map does not fit the ports.
        """
        core = _Core(stream)
        if isinstance(stream, ColumnarStream):
            core.translate_columns(stream)
        else:
            for row, operation in enumerate(stream):
                core.translate(row, operation)
        return core.program()

    def __len__(self) -> int:
        return len(self._recipes)

    def place(self, row: int) -> str:
        """File and line of an operation; the file alone where there is no operation."""
        return f"{self.path}:{self.lines[row]}" if len(self) else self.path

    def outcomes(self, results: npt.NDArray[np.void]) -> Outcomes:
        """The outcome of each operation, from the result of each transaction."""
        common = np.zeros(len(_Recipe), np.uint32)
        common[list(_COMMON_OF)] = list(_COMMON_OF.values())
        which = common[self._recipes]
        with_tag = np.flatnonzero(self._recipes == _Recipe.VERDICT_TAG)
        which[with_tag] += (results["tags"][self._first[with_tag]] & 0xF).astype(np.uint32)
        # All others one by one.
        special = ~np.isin(self._recipes, list(_COMMON_OF))
        special[self.transactions["row"][results["outcome"] != Outcome.PASS.value]] = True
        rows = np.flatnonzero(special)
        which[rows] = np.arange(len(_COMMON), len(_COMMON) + len(rows))
        return Outcomes([*_COMMON, *(self._outcome(row, results) for row in rows.tolist())], which)

    def tfsr(self, outcomes: Outcomes) -> dict[str, list[int]]:
        """The sticky asynchronous faults that the outcomes leave behind."""
        sticky = {"el0": [0, 0], "el1": [0, 0]}
        for row in outcomes.where(lambda outcome: "tfsr" in outcome):
            flags = self.transactions["flags"][self._first[row]]
            level = sticky["el0" if flags & Flag.EL0 else "el1"]
            level[:] = [old | new for old, new in zip(level, outcomes[row]["tfsr"], strict=True)]
        return sticky

    def _outcome(self, row: int, results: npt.NDArray[np.void]) -> dict[str, Any]:
        recipe = self._recipes[row]
        if recipe in (_Recipe.EMPTY, _Recipe.SQUASHED):
            return _COMMON[_COMMON_OF[recipe]]
        if recipe == _Recipe.FIXED:
            return self._fixed[row]
        first = self._first[row]
        result = results[first]
        tag = int(result["tags"])
        if recipe in (_Recipe.RANDOM_TAG, _Recipe.ADDRESS):
            address = int(self.transactions[first]["va"]) & ~(0xF << 56) | tag << 56
            if recipe == _Recipe.ADDRESS:
                return {"address": hex(address)}
            rgsr = _unpack(rgsr_layout(), int(result["far"]))
            state = {"tag": rgsr["tag"], "seed": hex(rgsr["seed"])}
            return {"address": hex(address), "rgsr": state}
        outcome = self._verdict(range(first, self._first[row + 1]), results)
        if outcome["outcome"] == "pass":
            if recipe == _Recipe.VERDICT_TAG:
                return {**outcome, "tag": tag}
            if recipe == _Recipe.VERDICT_TAGS:
                return {**outcome, "tags": hex(tag)}
        return outcome

    def _verdict(self, parts: range, results: npt.NDArray[np.void]) -> dict[str, Any]:
        """The first fault of the parts; else the asynchronous flags that they set."""
        flags = [0, 0]
        for part in parts:
            result = results[part]
            if result["outcome"] == Status.NOT_SENT:
                continue
            outcome = Outcome(int(result["outcome"]))
            if outcome in _FAULTS:
                return _fault(outcome.name.lower(), int(result["far"]), int(result["wnr"]))
            if outcome is Outcome.ASYNC:
                flags[int(self.transactions[part]["va"]) >> 55 & 1] = 1
        return {"outcome": "async", "tfsr": flags} if any(flags) else _PASS


@dataclass(frozen=True, eq=False)
class _Piece:
    """Operations that follow one another, translated."""

    transactions: npt.NDArray[np.void]
    lines: npt.NDArray[np.uint32]
    recipes: npt.NDArray[np.uint8]
    counts: npt.NDArray[np.int64]
    """How many transactions each operation has."""


class _Core:
    """Translates operations one by one."""

    _DATA = {"load": Op.LOAD, "store": Op.STORE, "atomic": Op.ATOMIC}
    # Of the columnar form, with their size; those without one act on a block of DCZID.
    _OF_GRANULES: Mapping[str, tuple[Op, int | None]] = {
        "ldg": (Op.LDG, 16),
        "stg": (Op.STG, 16),
        "st2g": (Op.STG, 32),
        "dc_gva": (Op.STG, None),
        "dc_zva": (Op.STORE, None),
    }
    _MAINTENANCE = {
        "clean": Op.CLEAN,
        "invalidate": Op.INVALIDATE,
        "clean_invalidate": Op.CLEAN_INVALIDATE,
    }

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._memory_map = MemoryMap()
        self._regime = Regime()
        self._row = 0
        self._finished: list[_Piece] = []
        self._transactions: list[tuple[int, ...]] = []
        self._recipes: list[int] = []
        self._counts: list[int] = []
        self._lines: list[int] = []
        self._squashed: list[int] = []
        self._fixed: dict[int, dict[str, Any]] = {}
        # Open branches: the rows that name each; those on which the pipeline has an access; and of
        # those resolved ahead of their line whether they were mispredicted.
        self._dependents: dict[int, list[int]] = {}
        self._in_use: set[int] = set()
        self._resolved_ahead: dict[int, int] = {}
        self._translators: dict[str, Callable[[Operation], None]] = {
            **dict.fromkeys(self._DATA, self._data),
            **dict.fromkeys(self._MAINTENANCE, self._maintain),
            **{name: partial(self._store_tag, granules=1) for name in ("stg", "stzg", "stgp")},
            **{name: partial(self._store_tag, granules=2) for name in ("st2g", "stz2g")},
            "regime": self._set_regime,
            "map": self._set_map,
            "storage": self._set_storage,
            "gcr": self._set_gcr,
            "rgsr": self._set_rgsr,
            "dc_zva": self._zero,
            "ldg": self._load_tag,
            "ldgm": self._load_tags,
            "stgm": self._store_tags,
            "stzgm": self._store_block_tag,
            "dc_gva": self._tag_block,
            "dc_gzva": self._tag_block,
            "irg": self._random_tag,
            "addg": self._add_tag,
            "subg": self._add_tag,
            "gmi": self._insert_mask,
            "branch": self._open_branch,
            "resolve": self._resolve,
        }
        self._send_regime()
        self._send_storage(0, STORAGE_BYTES, STORAGE_BASE)
        self._preamble = len(self._transactions)

    def translate(self, row: int, operation: Operation) -> None:
        """Append the transactions of the next operation."""
        self._row = row
        before = len(self._transactions)
        self._lines.append(operation.line)
        self._recipes.append(_Recipe.EMPTY)
        self._translators[operation.op](operation)
        self._counts.append(len(self._transactions) - before)

    def program(self) -> Program:
        """What has been translated."""
        pieces = [*self._finished, self._take()]
        recipes = np.concatenate([piece.recipes for piece in pieces])
        recipes[self._squashed] = _Recipe.SQUASHED
        counts = np.concatenate([piece.counts for piece in pieces])
        return Program(
            path=self._stream.path,
            # As bytes without fields, of which numpy would copy one after the other.
            transactions=np.concatenate(
                [piece.transactions.view(f"V{TRANSACTION.itemsize}") for piece in pieces]
            ).view(TRANSACTION),
            lines=np.concatenate([piece.lines for piece in pieces]),
            _recipes=recipes,
            _first=self._preamble + np.concatenate([[0], np.cumsum(counts)]),
            _fixed=self._fixed,
        )

    def _take(self) -> _Piece:
        """What has been translated one by one and not yet been taken."""
        piece = _Piece(
            np.array(self._transactions, dtype=TRANSACTION),
            np.array(self._lines, dtype=np.uint32),
            np.array(self._recipes, dtype=np.uint8),
            np.array(self._counts, dtype=np.int64),
        )
        self._transactions, self._lines, self._recipes, self._counts = [], [], [], []
        return piece

    # Many at a time

    def translate_columns(self, stream: ColumnarStream) -> None:
        """Translate a columnar stream: what lies between two changes of state at a time."""
        names = stream.columns["op_names"].tolist()
        changes = [names.index(name) for name in ("map", "regime") if name in names]
        rows = np.flatnonzero(np.isin(stream.columns["op"], changes)).tolist()
        for first, last in pairwise([0, *rows, len(stream)]):
            for start in range(first, last, _MANY):
                self._translate_rows(stream, start, min(start + _MANY, last))

    def _translate_rows(self, stream: ColumnarStream, first: int, last: int) -> None:
        """Translate the rows from ``first`` on; none but the first may change the state."""
        head = first + 1 if last - first > _FEW else last
        for row, operation in enumerate(stream.at(np.arange(first, head)), first):
            self.translate(row, operation)
        if head == last:
            return
        self._finished.append(self._take())
        rows = np.arange(head, last)
        columns = {name: stream.columns[name][head:last] for name in ("op", "tag", "flags")}
        address = stream.columns["address"][head:last].copy()
        size = stream.columns["size"][head:last].astype(np.uint64)
        tags = np.zeros(len(rows), np.uint64)
        flags = (columns["flags"] & 3) << 2 | np.where(columns["flags"] & 4, 0, np.uint8(Flag.EL0))

        # What each becomes if it is an access to memory that is there, and hangs on no branch.
        names = stream.columns["op_names"].tolist()
        codes = {**self._DATA, **{name: op for name, (op, _) in self._OF_GRANULES.items()}}
        op = np.array([codes[name].value if name in codes else 0xFF for name in names], np.uint8)
        op = op[columns["op"]]
        plain = op != 0xFF
        if "branches" in stream.columns:
            plain &= stream.columns["branches"][head:last] == 0
        for number, name in enumerate(names):
            if name not in self._OF_GRANULES:
                continue
            code, fixed = self._OF_GRANULES[name]
            of = np.flatnonzero(columns["op"] == number)
            size[of] = fixed or 4 << self._regime.dczid_bs
            if name in ("stg", "st2g"):
                tags[of] = columns["tag"][of]
                plain[of] &= address[of] % 16 == 0
            else:
                address[of] &= -size[of]
                if code is Op.STG:
                    tags[of] = address[of] >> 56 & 0xF
        memory = self._memory_of(address)
        plain &= memory != _NONE

        # An access that crosses a page becomes two.
        here = PAGE - (address & (PAGE - 1))
        crossing = np.flatnonzero(plain & (size > here))
        here = here[crossing]
        there = address[crossing] & _POINTER_BITS | (address[crossing] + here) & _OFFSET_BITS
        memory_there = self._memory_of(there)
        mapped = memory_there != _NONE
        plain[crossing] = mapped
        crossing, here, there = crossing[mapped], here[mapped], there[mapped]
        size_there = size[crossing] - here
        size[crossing] = here

        # All others one by one.
        others = np.flatnonzero(~plain)
        for row, operation in zip(rows[others].tolist(), stream.at(rows[others]), strict=True):
            self.translate(row, operation)
        piece = self._take()

        counts = np.ones(len(rows), np.int64)
        counts[crossing] = 2
        counts[others] = piece.counts
        recipes = np.where(op == Op.LDG.value, _Recipe.VERDICT_TAG, _Recipe.VERDICT)
        recipes[others] = piece.recipes
        of = np.repeat(np.arange(len(rows)), counts)
        transactions = np.zeros(len(of), dtype=TRANSACTION)
        for name, values in (
            *(("va", address), ("tags", tags), ("bytes", size), ("row", rows)),
            *(("op", op), ("flags", flags | memory)),
        ):
            transactions[name] = values[of]
        at = np.cumsum(counts) - counts
        shift = np.repeat(at[others] - (np.cumsum(piece.counts) - piece.counts), piece.counts)
        transactions[shift + np.arange(len(shift))] = piece.transactions
        seconds = transactions[at[crossing]]
        seconds["va"], seconds["bytes"] = there, size_there
        seconds["flags"] = flags[crossing] | memory_there[mapped]
        seconds["flags"][seconds["op"] == Op.STG.value] |= np.uint8(Flag.IF_PASSED)
        transactions[at[crossing] + 1] = seconds
        lines = (rows + 1).astype(np.uint32)
        self._finished.append(_Piece(transactions, lines, recipes.astype(np.uint8), counts))

    def _memory_of(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """:meth:`_memory` of many: the flags of each, or _NONE."""
        flags = np.array([_MEMORY_FLAGS.get(kind, _NONE) for kind in MEMORIES], np.uint8)
        memory = flags[self._memory_map.kinds(addresses)]
        memory[~_are_canonical(self._regime, addresses)] = _NONE
        return memory

    # What the translators share

    def _append(
        self,
        kind: Kind,
        *,
        op: int = 0,
        va: int = 0,
        size: int = 0,
        tags: int = 0,
        flags: int = 0,
        branches: int = 0,
    ) -> None:
        self._transactions.append((va, tags, size, self._row, kind, op, flags, branches))

    def _fix(self, outcome: dict[str, Any]) -> None:
        self._recipes[-1] = _Recipe.FIXED
        self._fixed[self._row] = outcome

    def _memory(self, address: int) -> str:
        """What translation says of an address: a kind of memory, "none" for a fault."""
        if not _is_canonical(self._regime, address):
            return "none"
        return self._memory_map.kind(address & _PHYSICAL_BITS)

    def _depend(self, operation: Operation) -> int | None:
        """The mask of branches of an access; None if it hangs on one known to be mispredicted."""
        mask = 0
        squashed = False
        for branch in operation.branches:
            self._dependents[branch].append(self._row)
            if branch in self._resolved_ahead:
                squashed |= bool(self._resolved_ahead[branch])
            else:
                mask |= 1 << branch
        return None if squashed else mask

    def _access(
        self,
        operation: Operation,
        op: Op,
        address: int,
        size: int,
        *,
        tags: int = 0,
        recipe: _Recipe = _Recipe.VERDICT,
    ) -> None:
        """An access to memory: one transaction for each page, unless one of them is not mapped."""
        branches = self._depend(operation)
        if branches is None:
            return  # its branch squashes it
        parts = [(*part, self._memory(part[0])) for part in _split(address, size)]
        for n, (part, _, memory) in enumerate(parts):
            if memory == "none":
                write = op in (Op.STORE, Op.STG, Op.STGM)
                self._fix(_fault("translation_fault", part, int(write)))
                # The parts of a tag store are done one after the other: the first one stays.
                parts = parts[:n] if op is Op.STG else []
                break
        else:
            self._recipes[-1] = recipe
        flags = 0
        if operation.exempt:
            flags |= Flag.EXEMPT
        if operation.tco:
            flags |= Flag.TCO
        if not operation.el:
            flags |= Flag.EL0
        for part, part_size, memory in parts:
            self._append(
                Kind.ACCESS,
                op=op.value,
                va=part,
                size=part_size,
                tags=tags,
                flags=flags | _MEMORY_FLAGS[memory],
                branches=branches,
            )
            if op is Op.STG:
                flags |= Flag.IF_PASSED
        if parts:
            self._in_use.update(set(operation.branches) - self._resolved_ahead.keys())

    def _block(self, operation: Operation, log2_words: int) -> tuple[int, int]:
        """The naturally aligned block around an address; its size is given as in DCZID and GMID."""
        size = 4 << log2_words
        return _address(operation) & -size, size

    # Memory accesses

    def _data(self, operation: Operation) -> None:
        self._access(operation, self._DATA[operation.op], _address(operation), operation.size)

    def _zero(self, operation: Operation) -> None:
        address, size = self._block(operation, self._regime.dczid_bs)
        self._access(operation, Op.STORE, address, size)

    def _load_tag(self, operation: Operation) -> None:
        address = _address(operation) & -16
        self._access(operation, Op.LDG, address, 16, recipe=_Recipe.VERDICT_TAG)

    def _store_tag(self, operation: Operation, granules: int) -> None:
        if _address(operation) % 16:
            # The alignment fault comes before translation, so the pipeline gets it all the same.
            flags = 0 if operation.el else Flag.EL0
            self._recipes[-1] = _Recipe.VERDICT
            self._append(
                Kind.ACCESS,
                op=Op.STG.value,
                va=_address(operation),
                size=16,
                tags=operation.tag,
                flags=flags,
            )
            return
        tag = _address(operation) >> 56 & 0xF if operation.op == "stgp" else operation.tag
        self._access(operation, Op.STG, _address(operation), 16 * granules, tags=tag)

    def _tag_block(self, operation: Operation) -> None:
        address, size = self._block(operation, self._regime.dczid_bs)
        self._access(operation, Op.STG, address, size, tags=address >> 56 & 0xF)

    def _load_tags(self, operation: Operation) -> None:
        if self._is_defined(operation):
            address, size = self._block(operation, self._regime.gmid_bs)
            self._access(operation, Op.LDGM, address, size, recipe=_Recipe.VERDICT_TAGS)

    def _store_tags(self, operation: Operation) -> None:
        if self._is_defined(operation):
            address, size = self._block(operation, self._regime.gmid_bs)
            self._access(operation, Op.STGM, address, size, tags=operation.tags)

    def _store_block_tag(self, operation: Operation) -> None:
        if self._is_defined(operation):
            address, size = self._block(operation, self._regime.dczid_bs)
            self._access(operation, Op.STG, address, size, tags=operation.tag)

    def _is_defined(self, operation: Operation) -> bool:
        """LDGM, STGM and STZGM do not exist at EL0."""
        if operation.el == 0:
            self._fix({"outcome": "undefined"})
        return operation.el != 0

    def _maintain(self, operation: Operation) -> None:
        address = operation.address
        if address is None:
            self._append(Kind.ACCESS, op=self._MAINTENANCE[operation.op].value)
            return
        # Maintenance never faults, so nothing is asked of translation but where tags are.
        kind = self._memory_map.kind(address & _PHYSICAL_BITS)
        self._append(
            Kind.ACCESS,
            op=self._MAINTENANCE[operation.op].value,
            va=address,
            size=1,
            flags=_MEMORY_FLAGS.get(kind, 0),
        )

    # Choice of tags

    def _generate(
        self, operation: Operation, op: GenerateOp, address: int, recipe: _Recipe, **fields: int
    ) -> None:
        """``address`` is the result, but for its tag."""
        fields |= {"op": op.value, "el0": int(not operation.el)}
        self._recipes[-1] = recipe
        self._append(Kind.GENERATE, va=address, tags=_pack(generate_request_layout(), fields))

    def _random_tag(self, operation: Operation) -> None:
        self._generate(
            operation,
            GenerateOp.IRG,
            _address(operation),
            _Recipe.RANDOM_TAG,
            exclude=operation.exclude,
            entropy=operation.entropy,
        )

    def _add_tag(self, operation: Operation) -> None:
        op = GenerateOp[operation.op.upper()]
        offset = operation.offset if op is GenerateOp.ADDG else -operation.offset
        self._generate(
            operation,
            op,
            (_address(operation) + offset) % (1 << 64),
            _Recipe.ADDRESS,
            tag=_address(operation) >> 56 & 0xF,
            tag_offset=operation.tag_offset,
        )

    def _insert_mask(self, operation: Operation) -> None:
        tag = _address(operation) >> 56 & 0xF
        self._fix({"mask": hex(operation.mask | 1 << tag)})

    # State

    def _send_regime(self) -> None:
        self._append(Kind.REGIME, tags=_pack_regime(self._regime))

    def _set_regime(self, operation: Operation) -> None:
        assert operation.regime is not None
        self._regime = operation.regime
        self._send_regime()

    def _set_map(self, operation: Operation) -> None:
        self._memory_map.set(_address(operation), operation.bytes, operation.memory)

    def _send_storage(self, address: int, size: int, base: int, flags: int = 0) -> None:
        self._append(Kind.STORAGE, va=address, size=size, tags=base, flags=flags)

    def _set_storage(self, operation: Operation) -> None:
        """Change the storage map while nothing is in the pipeline and no line in the cache.

        An access that hangs on a branch would stay in the pipeline, so the core waits for those
        branches: they are resolved here, ahead of their line.
        """
        for branch in sorted(self._in_use):
            self._resolved_ahead[branch] = self._find_resolve(branch)
            self._send_resolve(branch, self._resolved_ahead[branch])
        self._append(Kind.ACCESS, op=Op.CLEAN_INVALIDATE.value, flags=Flag.DRAIN)
        self._send_storage(_address(operation), operation.bytes, operation.base, Flag.DRAIN)

    def _set_gcr(self, operation: Operation) -> None:
        fields = {"exclude": operation.exclude, "rrnd": operation.rrnd}
        self._append(Kind.GCR, tags=_pack(gcr_layout(), fields))

    def _set_rgsr(self, operation: Operation) -> None:
        fields = {"tag": operation.tag, "seed": operation.seed}
        self._append(Kind.RGSR, tags=_pack(rgsr_layout(), fields))

    # Branches

    def _open_branch(self, operation: Operation) -> None:
        self._dependents[operation.id] = []

    def _resolve(self, operation: Operation) -> None:
        dependents = self._dependents.pop(operation.id)
        if operation.mispredicted:
            self._squashed += dependents
        if self._resolved_ahead.pop(operation.id, None) is None:
            self._send_resolve(operation.id, operation.mispredicted)

    def _send_resolve(self, branch: int, mispredicted: int) -> None:
        self._in_use.discard(branch)
        self._append(Kind.RESOLVE, op=branch, flags=Flag.MISPREDICTED if mispredicted else 0)

    def _find_resolve(self, branch: int) -> int:
        """Will the open branch turn out to be mispredicted?"""
        for operation in islice(self._stream, self._row + 1, None):
            if operation.op == "resolve" and operation.id == branch:
                return operation.mispredicted
        raise StreamError(f"{self._stream.path}: branch {branch} is open at the end")

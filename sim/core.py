"""The core in front of the pipeline: turns operations into transactions at its ports.

A :class:`Program` is what a stream becomes: one flat list of port transactions, which a harness
performs in order, and for each operation the recipe by which the results of its transactions
become its outcome. What the pipeline leaves to the core is done here: translation, the splitting
of accesses at page boundaries, the alignment of blocks, address arithmetic, undefined
instructions, and whether an access is squashed in the end.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
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
from .ops import STORAGE_BASE, ColumnarStream, Operation, Regime, Stream, StreamError
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
_SQUASHED: dict[str, Any] = {"outcome": "squashed"}
_EMPTY: dict[str, Any] = {}
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

    def outcomes(self, results: npt.NDArray[np.void]) -> list[dict[str, Any]]:
        """The outcome of each operation, from the result of each transaction.

        Outcomes that occur often are shared dictionaries: they must not be modified.
        """
        outcomes = [_PASS] * len(self)
        # Nothing is to be done for an operation whose parts have all passed.
        special = self._recipes != _Recipe.VERDICT
        special[self.transactions["row"][results["outcome"] != Outcome.PASS.value]] = True
        for row in np.flatnonzero(special).tolist():
            outcomes[row] = self._outcome(row, results)
        return outcomes

    def tfsr(self, outcomes: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
        """The sticky asynchronous faults that the outcomes leave behind."""
        sticky = {"el0": [0, 0], "el1": [0, 0]}
        for row, outcome in enumerate(outcomes):
            if outcome is not _PASS and "tfsr" in outcome:
                flags = self.transactions["flags"][self._first[row]]
                level = sticky["el0" if flags & Flag.EL0 else "el1"]
                level[:] = [old | new for old, new in zip(level, outcome["tfsr"], strict=True)]
        return sticky

    def _outcome(self, row: int, results: npt.NDArray[np.void]) -> dict[str, Any]:
        recipe = self._recipes[row]
        if recipe == _Recipe.EMPTY:
            return _EMPTY
        if recipe == _Recipe.SQUASHED:
            return _SQUASHED
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
            transactions=np.concatenate([piece.transactions for piece in pieces]),
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
        first = 0
        for row in np.flatnonzero(np.isin(stream.columns["op"], changes)).tolist():
            self._translate_rows(stream, first, row)
            first = row
        self._translate_rows(stream, first, len(stream))

    def _translate_rows(self, stream: ColumnarStream, first: int, last: int) -> None:
        """Translate the rows from ``first`` on; none but the first may change the state."""
        head = min(last, first + _FEW)
        for row, operation in enumerate(stream.at(np.arange(first, head)), first):
            self.translate(row, operation)
        if head == last:
            return
        self._finished.append(self._take())
        rows = np.arange(head, last)
        address = stream.columns["address"][rows]
        size = stream.columns["size"][rows].astype(np.uint64)
        flags = stream.columns["flags"][rows]
        names = stream.columns["op_names"].tolist()
        codes = np.array([self._DATA[name].value if name in self._DATA else 0xFF for name in names])
        op = codes[stream.columns["op"][rows]]

        # Data accesses to memory that is there, and that hang on no branch.
        here = PAGE - address % PAGE
        crossing = size > here
        there = address & _POINTER_BITS | (address + here) & _OFFSET_BITS
        memory, memory_there = self._memory_of(address), self._memory_of(there)
        plain = (op != 0xFF) & (memory != _NONE) & ~(crossing & (memory_there == _NONE))
        if "branches" in stream.columns:
            plain &= stream.columns["branches"][rows] == 0

        # All others one by one.
        others = np.flatnonzero(~plain)
        for row, operation in zip(rows[others].tolist(), stream.at(rows[others]), strict=True):
            self.translate(row, operation)
        piece = self._take()

        counts = np.where(crossing, 2, 1)
        counts[others] = piece.counts
        recipes = np.full(len(rows), _Recipe.VERDICT, dtype=np.uint8)
        recipes[others] = piece.recipes
        at = np.cumsum(counts) - counts
        transactions = np.empty(counts.sum(), dtype=TRANSACTION)
        shift = np.repeat(at[others] - (np.cumsum(piece.counts) - piece.counts), piece.counts)
        transactions[shift + np.arange(len(shift))] = piece.transactions
        flags = (flags & 3) << 2 | np.where(flags & 4, 0, Flag.EL0).astype(np.uint8)
        for part, va, size_of_part, memory_of_part, of in (
            (0, address, np.minimum(size, here), memory, plain),
            (1, there, size - here, memory_there, plain & crossing),
        ):
            places = at[of] + part
            transactions["va"][places] = va[of]
            transactions["tags"][places] = 0
            transactions["bytes"][places] = size_of_part[of]
            transactions["row"][places] = rows[of]
            transactions["kind"][places] = Kind.ACCESS
            transactions["op"][places] = op[of]
            transactions["flags"][places] = flags[of] | memory_of_part[of]
            transactions["branches"][places] = 0
        lines = (rows + 1).astype(np.uint32)
        self._finished.append(_Piece(transactions, lines, recipes, counts))

    def _memory_of(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """:meth:`_memory` of many: the flags of each, or _NONE."""
        numbers = {**_MEMORY_FLAGS, "none": _NONE}
        # An address is accepted or not by its bits 63:55, and the same pages come often.
        pages = addresses >> 55 << 55 | (addresses & _PHYSICAL_BITS) >> 12 << 12
        places, which = np.unique(pages, return_inverse=True)
        kinds = [numbers[self._memory(place)] for place in places.tolist()]
        return np.array(kinds, dtype=np.uint8)[which]

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

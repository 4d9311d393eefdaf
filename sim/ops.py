"""The operation stream: what model, simulators and hardware are all driven by.

A stream is read by :func:`read` from JSON Lines (``.jsonl``, ``.jsonl.gz``) or from the columnar
form (``.npz``), and written by :func:`write`. Both forms are validated completely on reading, so
that whoever iterates over a :class:`Stream` need not check anything. :func:`check` adds the rules
that concern the stream as a whole: which branches are open where.
"""

from __future__ import annotations

import difflib
import gzip
import json
import os
import re
import stat
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, BinaryIO, cast

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ACCESSES",
    "FIELDS",
    "MEMORIES",
    "PA_MASK",
    "STORAGE_BASE",
    "TAG_STORES",
    "ColumnarStream",
    "Operation",
    "Regime",
    "Stream",
    "StreamError",
    "check",
    "granules",
    "read",
    "replacing",
    "write",
]

STORAGE_BASE = 1 << 40
"""Where tag storage lies unless ``storage`` says otherwise; it then covers addresses below it."""

PA_MASK = (1 << 52) - 1
"""A physical address is the virtual one's bits 51:0."""

MEMORIES = ("untagged", "tagged", "none", "no_tag_access")
"""Kinds of memory, in the order of their numbers in the columnar form."""

ACCESSES = ("load", "store", "atomic")
TAG_STORES = (
    *("stg", "st2g", "stzg", "stz2g", "stgp"),
    *("stgm", "stzgm", "dc_gva", "dc_gzva"),
)


class StreamError(Exception):
    """A stream that cannot be used.

    The text is one line: ``FILE:LINE: FIELD: what is wrong``, less the parts that do not apply.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        line: int | None = None,
        field: str | None = None,
    ) -> None:
        place = ":".join(str(part) for part in (path, line) if part is not None)
        super().__init__(": ".join(part for part in (place, field, message) if part))


@dataclass(frozen=True, slots=True)
class Regime:
    """Translation regime. ``tbi``, ``mtx`` and ``tcma`` are ``(low half, high half)`` by VA[55];
    ``ata``, ``tcso`` and ``tcf`` are ``(EL0, EL1)``."""

    tbi: tuple[int, int] = (1, 1)
    mtx: tuple[int, int] = (0, 0)
    tcma: tuple[int, int] = (0, 0)
    ata: tuple[int, int] = (1, 1)
    tcso: tuple[int, int] = (0, 0)
    tcf: tuple[str, str] = ("sync", "sync")
    gmid_bs: int = 6
    dczid_bs: int = 4


@dataclass(slots=True)
class Operation:
    """One line of a stream. Fields that the operation does not have hold their defaults."""

    op: str
    line: int = 0
    """1-based line of a text stream, row + 1 of a columnar one."""
    address: int | None = None
    """64 bits as the program used them; None: maintenance of all lines, or no address at all."""
    size: int = 0
    bytes: int = 0
    memory: str = "untagged"
    base: int = 0
    exempt: int = 0
    tco: int = 0
    el: int = 0
    branches: tuple[int, ...] = ()
    """Ascending, each once."""
    tag: int = 0
    tags: int = 0
    exclude: int = 0
    rrnd: int = 0
    seed: int = 0
    entropy: int = 0
    offset: int = 0
    tag_offset: int = 0
    mask: int = 0
    id: int = 0
    mispredicted: int = 0
    regime: Regime | None = None
    gap: int = 0
    """Instructions executed since the operation before."""
    pc: int | None = None
    """Address of the instruction; None (0 in files) where it is not known."""


# ---- Fields: how each is read, and what it may be ------------------------------------------------

_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_REQUIRED: Any = object()


def _show(value: object) -> str:
    """A value as JSON, on one line and short enough for an error."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


@dataclass(frozen=True)
class _Integer:
    """An integer of a range; the same rule for a JSON value and for a column of numpy integers."""

    low: int
    high: int
    multiple: int = 1

    def __call__(self, value: object) -> int:
        number = value
        if isinstance(value, str) and _HEXADECIMAL.fullmatch(value):
            number = int(value, 16)
        # A bool is not an integer here.
        if type(number) is int and self.low <= number <= self.high and not number % self.multiple:
            return number
        raise ValueError(f"must be {self}, not {_show(value)}")

    def refuses(self, values: np.ndarray) -> np.ndarray:
        """Which numbers of an array are not allowed?"""
        import numpy as np

        # Most columns hold no more than what is allowed: what cannot fail takes no time.
        refused = np.zeros(len(values), bool)
        limits = np.iinfo(values.dtype)
        if self.low > limits.min:
            refused |= values < self.low
        if self.high < limits.max:
            refused |= values > self.high
        if self.multiple != 1:
            refused |= values % self.multiple != 0
        return refused

    def __str__(self) -> str:
        kind = "an integer" if self.multiple == 1 else f"a multiple of {self.multiple}"
        low, high = (hex(n) if n > 0xFFFF else str(n) for n in (self.low, self.high))
        return f"{kind} from {low} to {high}"


def _unsigned(width: int, multiple: int = 1) -> _Integer:
    return _Integer(0, (1 << width) - 1, multiple)


def _choice(*names: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"must be one of {', '.join(names)}, not {_show(value)}")
        return value

    return parse


def _pair(item: Callable[[object], Any]) -> Callable[[object], tuple[Any, Any]]:
    def parse(value: object) -> tuple[Any, Any]:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"must be a list of two, not {_show(value)}")
        return item(value[0]), item(value[1])

    return parse


_BRANCH = _unsigned(3)


def _branches(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"must be a list of branches, not {_show(value)}")
    return tuple(sorted({_BRANCH(item) for item in value}))


Fields = Mapping[str, tuple[Callable[[object], Any], Any]]
"""Of every field: how its value is read, and its default."""

_BIT = _unsigned(1)
_BITS = _pair(_BIT)
_ADDRESS = (_unsigned(64), _REQUIRED)
_TAG = (_unsigned(4), _REQUIRED)
_EL: Fields = {"el": (_BIT, 0)}
_SPECULATION: Fields = {"branches": (_branches, ())}
_ACCESS: Fields = {
    "address": _ADDRESS,
    "size": (_Integer(1, 64), _REQUIRED),
    "exempt": (_BIT, 0),
    "tco": (_BIT, 0),
    **_EL,
    **_SPECULATION,
}
_TAG_STORE: Fields = {"address": _ADDRESS, "tag": _TAG, **_EL}
_OF_BLOCK: Fields = {"address": _ADDRESS, **_EL}
_ARITHMETIC: Fields = {
    "address": _ADDRESS,
    "offset": (_Integer(0, 1008, 16), _REQUIRED),
    "tag_offset": _TAG,
    **_EL,
}
_MAINTENANCE: Fields = {"address": (_unsigned(64), None)}
_EVERYWHERE: Fields = {"gap": (_unsigned(32), 0), "pc": (_unsigned(64), None)}
_PAGE = 4096

_REGIME: Fields = {
    "tbi": (_BITS, (1, 1)),
    "mtx": (_BITS, (0, 0)),
    "tcma": (_BITS, (0, 0)),
    "ata": (_BITS, (1, 1)),
    "tcso": (_BITS, (0, 0)),
    "tcf": (_pair(_choice("none", "sync", "async", "asym")), ("sync", "sync")),
    "gmid_bs": (_Integer(2, 6), 6),
    "dczid_bs": (_Integer(2, 7), 4),
}

_OWN_FIELDS: Mapping[str, Fields] = {
    "regime": _REGIME,
    "map": {
        "address": (_unsigned(64, _PAGE), _REQUIRED),
        "bytes": (_Integer(_PAGE, 1 << 52, _PAGE), _REQUIRED),
        "memory": (_choice(*MEMORIES), _REQUIRED),
    },
    "storage": {
        "address": (_unsigned(52, _PAGE), _REQUIRED),
        "bytes": (_Integer(0, 1 << 40, _PAGE), _REQUIRED),
        "base": (_unsigned(48, 128), _REQUIRED),
    },
    "gcr": {"exclude": (_unsigned(16), 0), "rrnd": (_BIT, 0)},
    "rgsr": {"tag": _TAG, "seed": (_unsigned(48), _REQUIRED)},
    **dict.fromkeys(ACCESSES, _ACCESS),
    "dc_zva": {"address": _ADDRESS, "tco": (_BIT, 0), **_EL, **_SPECULATION},
    "ldg": {"address": _ADDRESS, **_EL, **_SPECULATION},
    **dict.fromkeys(("stg", "st2g", "stzg", "stz2g", "stgp"), _TAG_STORE),
    "ldgm": _OF_BLOCK,
    "stgm": {"address": _ADDRESS, "tags": (_unsigned(64), _REQUIRED), **_EL},
    "stzgm": _TAG_STORE,
    "dc_gva": _OF_BLOCK,
    "dc_gzva": _OF_BLOCK,
    "irg": {
        "address": _ADDRESS,
        "exclude": (_unsigned(16), 0),
        **_EL,
        "entropy": (_unsigned(32), 0),
    },
    "addg": _ARITHMETIC,
    "subg": _ARITHMETIC,
    "gmi": {"address": _ADDRESS, "mask": (_unsigned(64), _REQUIRED)},
    "clean": _MAINTENANCE,
    "invalidate": _MAINTENANCE,
    "clean_invalidate": _MAINTENANCE,
    "branch": {"id": (_BRANCH, _REQUIRED)},
    "resolve": {"id": (_BRANCH, _REQUIRED), "mispredicted": (_BIT, 0)},
}

FIELDS: Mapping[str, Fields] = {op: {**own, **_EVERYWHERE} for op, own in _OWN_FIELDS.items()}
"""The fields of every operation, in the order of writing."""


def _leaves_memory(address: Any, bytes: Any) -> Any:
    """Does a range (or: which ranges of two arrays do) end beyond the last physical address?"""
    return (address & PA_MASK) + bytes > PA_MASK + 1


def _near(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]}?" if close else ""


class _FieldError(Exception):
    """Something is wrong with a field, or (None) with the whole object."""

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field = field


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _FieldError(_name(twice), "given twice")
    return value


def _name(field: str) -> str:
    """The name of a field as an error shows it: what is no plain word is quoted."""
    return field if field.isascii() and field.isidentifier() else _show(field)


_decode = json.JSONDecoder(object_pairs_hook=_object).decode


def _object_of(text: str) -> dict[str, Any]:
    """The JSON object that a text holds."""
    try:
        values = _decode(text)
    except json.JSONDecodeError as error:
        raise _FieldError(None, f"not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, endless nesting
        raise _FieldError(None, f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise _FieldError(None, f"must be a JSON object, not {_show(values)}")
    return values


def _parse(op: str, known: Fields, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are given, checked and decoded."""
    parsed = {}
    for field, value in values.items():
        if field not in known:
            raise _FieldError(_name(field), f"{op} has no such field{_near(field, known)}")
        try:
            parsed[field] = known[field][0](value)
        except ValueError as error:
            raise _FieldError(field, str(error)) from None
    for field, (_, default) in known.items():
        if default is _REQUIRED and field not in parsed:
            raise _FieldError(field, f"missing; {op} needs it")
    return parsed


def _operation(text: str, line: int) -> Operation:
    """The operation of one line of JSON."""
    values = _object_of(text)
    op = values.pop("op", None)
    if op is None:
        raise _FieldError("op", "missing")
    if not isinstance(op, str) or op not in FIELDS:
        near = _near(op, FIELDS) if isinstance(op, str) else ""
        raise _FieldError("op", f"unknown operation {_show(op)}{near}")
    parsed = _parse(op, FIELDS[op], values)
    if op in ("map", "storage") and _leaves_memory(parsed["address"], parsed["bytes"]):
        raise _FieldError("bytes", "the range ends above 2**52")
    if op == "storage" and parsed["base"] + parsed["bytes"] // 32 > 1 << 48:
        raise _FieldError("base", "tag storage ends above 2**48")
    if op == "regime":
        everywhere = {name: parsed.pop(name) for name in _EVERYWHERE if name in parsed}
        parsed = {"regime": Regime(**parsed), **everywhere}
    operation = Operation(op, line, **parsed)
    operation.pc = operation.pc or None
    return operation


# ---- Streams -------------------------------------------------------------------------------------


class Stream:
    """Operations in order, as often as wanted.

    Parameters
    ----------
    path : str
        Where they come from, for messages.
    operations : Sequence[Operation]
        The operations.
    """

    columns: Mapping[str, np.ndarray] | None = None
    """The arrays of a columnar stream."""

    def __init__(self, path: str, operations: Sequence[Operation]) -> None:
        self.path = path
        self._operations = operations

    def __len__(self) -> int:
        return len(self._operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations)

    def __getitem__(self, index: int) -> Operation:
        return self._operations[index]

    def select(self, names: Collection[str]) -> Iterator[Operation]:
        """The operations whose ``op`` is one of the names; cheap where the stream is columnar."""
        return (operation for operation in self._operations if operation.op in names)

    def counts(self) -> dict[str, int]:
        """How many operations of each kind there are."""
        return dict(Counter(operation.op for operation in self._operations))

    def instructions(self) -> int:
        """Instructions executed: the sum of all gaps."""
        return sum(operation.gap for operation in self._operations)

    def head(self, count: int) -> Stream:
        """The first operations."""
        return Stream(self.path, self._operations[:count])


def read(path: str | os.PathLike[str]) -> Stream:
    """Read and validate a stream; its form follows from the ending of its name.

    Raises
    ------
    StreamError
        The file cannot be read, or something in it is wrong.
    """
    path = os.fspath(path)
    try:
        if path.endswith(".npz"):
            return _read_columns(path)
        if path.endswith(".jsonl"):
            with open(path, "rb") as file:
                return _read_lines(path, file)
        if path.endswith(".jsonl.gz"):
            with open(path, "rb") as compressed, gzip.GzipFile(fileobj=compressed) as file:
                if not compressed.peek(1):
                    raise StreamError("not gzip data: the file is empty", path=path)
                return _read_lines(path, file)
    except OSError as error:
        raise StreamError(error.strerror or str(error), path=path) from None
    raise StreamError(_ENDINGS, path=path)


_ENDINGS = "a stream's name ends in .jsonl, .jsonl.gz or .npz"


def _read_lines(path: str, file: Iterable[bytes]) -> Stream:
    operations: list[Operation] = []
    line = 1
    try:
        for line, raw in enumerate(file, 1):
            operations.append(_operation(raw.decode().rstrip(), line))
        return Stream(path, operations)
    except UnicodeDecodeError as error:
        raise StreamError(
            f"not UTF-8 text (byte {error.start + 1})", path=path, line=line
        ) from None
    except _FieldError as error:
        raise StreamError(str(error), path=path, line=line, field=error.field) from None
    except EOFError:
        message, line = "the gzip data is truncated", len(operations) + 1
        raise StreamError(message, path=path, line=line) from None
    except (zlib.error, gzip.BadGzipFile) as error:
        message, line = f"bad gzip data: {error}", len(operations) + 1
        raise StreamError(message, path=path, line=line) from None


# ---- Columnar form -------------------------------------------------------------------------------

_FLAGS = {"exempt": 1, "tco": 2, "el": 4, "mispredicted": 8}

# Of every operation of the columnar form: the column that holds each of its fields. What is not
# here (flags, branches, gap, pc) has columns of its own.
_AN_ACCESS = {"address": "address", "size": "size"}
_WITH_ADDRESS = {"address": "address"}
_WITH_TAG = {"address": "address", "tag": "tag"}
_WITH_ID = {"id": "tag"}
_COLUMNS_OF: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(ACCESSES, _AN_ACCESS),
    "ldg": _WITH_ADDRESS,
    "stg": _WITH_TAG,
    "st2g": _WITH_TAG,
    "dc_gva": _WITH_ADDRESS,
    "dc_zva": _WITH_ADDRESS,
    "map": {"address": "address", "bytes": "size", "memory": "tag"},
    "branch": _WITH_ID,
    "resolve": _WITH_ID,
    "regime": {"regime": "size"},
}

# Of every column, the types that it may have; it is written as the first that holds its values.
_DTYPES: Mapping[str, tuple[str, ...]] = {
    "op": ("u1",),
    "address": ("u8",),
    "size": ("u4",),
    "tag": ("u1",),
    "flags": ("u1",),
    "gap": ("u4",),
    "op_names": ("U",),
    "pc_index": ("u2",),
    "pcs": ("u4", "u8"),
    "insn": ("u4",),
    "branches": ("u1",),
    "regimes": ("U",),
}
_OPTIONAL = {"pc_index", "pcs", "insn", "branches", "regimes"}
_TABLES = {"op_names", "pcs", "insn", "regimes"}  # not one entry for each row
_MEMORY_NUMBER = _Integer(0, len(MEMORIES) - 1)
_CHUNK = 8192
_BRANCHES_OF = [tuple(i for i in range(8) if mask >> i & 1) for mask in range(256)]


class ColumnarStream(Stream):
    """A stream that stays arrays; operations are made while iterating."""

    columns: Mapping[str, np.ndarray]

    def __init__(self, path: str, columns: Mapping[str, np.ndarray], regimes: list[Regime]) -> None:
        self.path = path
        self.columns = columns
        self._regimes = regimes
        self._names: list[str] = columns["op_names"].tolist()

    def __len__(self) -> int:
        return len(self.columns["op"])

    def __iter__(self) -> Iterator[Operation]:
        for first in range(0, len(self), _CHUNK):
            last = min(first + _CHUNK, len(self))
            yield from self._rows(slice(first, last), range(first + 1, last + 1))

    def __getitem__(self, index: int) -> Operation:
        row = range(len(self))[index]
        return next(self._rows(slice(row, row + 1), (row + 1,)))

    def counts(self) -> dict[str, int]:
        import numpy as np

        counts = np.bincount(self.columns["op"], minlength=len(self._names)).tolist()
        return {name: count for name, count in zip(self._names, counts, strict=True) if count}

    def instructions(self) -> int:
        return int(self.columns["gap"].sum(dtype="u8"))

    def head(self, count: int) -> Stream:
        columns = {
            name: array if name in _TABLES else array[:count]
            for name, array in self.columns.items()
        }
        return ColumnarStream(self.path, columns, self._regimes)

    def select(self, names: Collection[str]) -> Iterator[Operation]:
        import numpy as np

        numbers = [n for n, name in enumerate(self._names) if name in names]
        return self.at(np.flatnonzero(np.isin(self.columns["op"], numbers)))

    def at(self, rows: np.ndarray) -> Iterator[Operation]:
        """The operations of some rows, which are numbered from 0."""
        for first in range(0, len(rows), _CHUNK):
            part = rows[first : first + _CHUNK]
            yield from self._rows(part, (part + 1).tolist())

    def _rows(self, rows: slice | np.ndarray, lines: Iterable[int]) -> Iterator[Operation]:
        columns = self.columns
        pcs: Iterable[int] = repeat(0)
        if "pcs" in columns:
            pcs = columns["pcs"][columns["pc_index"][rows]].tolist()
        branches: Iterable[int] = repeat(0)
        if "branches" in columns:
            branches = columns["branches"][rows].tolist()
        for name, line, address, size, tag, flags, gap, pc, mask in zip(
            map(self._names.__getitem__, columns["op"][rows].tolist()),
            lines,
            columns["address"][rows].tolist(),
            columns["size"][rows].tolist(),
            columns["tag"][rows].tolist(),
            columns["flags"][rows].tolist(),
            columns["gap"][rows].tolist(),
            pcs,
            branches,
            strict=False,  # the optional columns repeat for ever
        ):
            if name == "load" or name == "store" or name == "atomic":
                operation = Operation(
                    name,
                    line,
                    address,
                    size,
                    exempt=flags & 1,
                    tco=flags >> 1 & 1,
                    el=flags >> 2 & 1,
                    branches=_BRANCHES_OF[mask],
                )
            elif name == "map":
                operation = Operation(name, line, address, bytes=size, memory=MEMORIES[tag])
            elif name == "branch" or name == "resolve":
                operation = Operation(name, line, id=tag, mispredicted=flags >> 3 & 1)
            elif name == "regime":
                operation = Operation(name, line, regime=self._regimes[size])
            else:
                operation = Operation(
                    name,
                    line,
                    address,
                    tco=flags >> 1 & 1,
                    el=flags >> 2 & 1,
                    branches=_BRANCHES_OF[mask],
                    tag=tag if name == "stg" or name == "st2g" else 0,
                )
            operation.gap = gap
            operation.pc = pc or None
            yield operation


def _read_columns(path: str) -> Stream:
    import numpy as np

    columns: dict[str, np.ndarray] = {}
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise StreamError("not an .npz file, or it is truncated", path=path)
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                for name in archive.files:
                    if name not in _DTYPES:
                        message = f"unknown column{_near(name, _DTYPES)}"
                        raise StreamError(message, path=path, field=_name(name))
                    column = archive[name]
                    if not isinstance(column, np.ndarray):  # bytes that are no .npy file
                        raise StreamError("is no array", path=path, field=name)
                    columns[name] = column
        except StreamError:
            raise
        except Exception as error:  # zipfile, zlib and numpy have a dozen kinds for damaged files
            text = " ".join(str(error).split()) or type(error).__name__
            raise StreamError(f"damaged .npz file: {text}", path=path) from None
    return ColumnarStream(path, columns, _validate_columns(path, columns))


def _validate_columns(path: str, columns: Mapping[str, np.ndarray]) -> list[Regime]:
    """Refuse whatever is wrong with the arrays; gives the decoded ``regimes``."""
    import numpy as np

    def wrong(field: str, message: str, line: int | None = None) -> StreamError:
        return StreamError(message, path=path, line=line, field=field)

    def refuse(bad: np.ndarray, field: str, message: str) -> None:
        """Raise for the first row that is marked; ``{}`` in the message stands for its value."""
        if bad.any():
            row = int(bad.argmax())
            raise wrong(field, message.format(columns[field][row]), row + 1)

    for name, dtypes in _DTYPES.items():
        if name not in columns:
            if name not in _OPTIONAL:
                raise wrong(name, "missing column")
            continue
        array = columns[name]
        dtype = "U" if array.dtype.kind == "U" else array.dtype.str[1:]
        if dtype not in dtypes:
            raise wrong(name, f"must be an array of {' or '.join(dtypes)}, not of {dtype}")
        if array.ndim != 1:
            raise wrong(name, f"must have one dimension, not {array.ndim}")
        if dtype == "U":
            # numpy makes strings of any 32-bit numbers, and Python then trips over them.
            codes = np.frombuffer(
                array.tobytes(), np.dtype("u4").newbyteorder(array.dtype.byteorder)
            )
            if (codes > sys.maxunicode).any():
                raise wrong(name, "holds what is no text")
        if name not in _TABLES and len(array) != len(columns["op"]):
            raise wrong(name, f"has {len(array)} rows, but op has {len(columns['op'])}")
    if ("pc_index" in columns) != ("pcs" in columns):
        raise wrong("pc_index", "comes with pcs, and only with it")
    if "insn" in columns and len(columns["insn"]) != len(columns.get("pcs", ())):
        raise wrong("insn", "must have as many entries as pcs")

    names = columns["op_names"].tolist()
    for name in names:
        if name not in _COLUMNS_OF:
            raise wrong("op_names", f"the columnar form has no operation {_show(name)}")
    regimes = [_regime(path, text) for text in columns["regimes"]] if "regimes" in columns else []

    everywhere = np.ones(len(columns["op"]), bool)
    indices = [("op", everywhere, "op_names", len(names))]
    if "pcs" in columns:
        indices.append(("pc_index", everywhere, "pcs", len(columns["pcs"])))
    if "regime" in names:
        of_regimes = columns["op"] == names.index("regime")
        indices.append(("size", of_regimes, "regimes", len(regimes)))
    for column, rows, table, count in indices:
        message = f"{{}} is no index into the {count} {table}"
        refuse(rows & (columns[column] >= count), column, message)

    for number, name in enumerate(names):
        rows = columns["op"] == number
        for field, column in _COLUMNS_OF[name].items():
            rule = _MEMORY_NUMBER if field == "memory" else FIELDS[name].get(field, (None,))[0]
            if isinstance(rule, _Integer):
                message = f"{field} of {name} must be {rule}, not {{}}"
                refuse(rows & rule.refuses(columns[column]), column, message)
        unknown = 0xFF - sum(bit for field, bit in _FLAGS.items() if field in FIELDS[name])
        message = f"{{:#x}} has bits that {name} does not know"
        refuse(rows & (columns["flags"] & unknown != 0), "flags", message)
        if "branches" in columns and "branches" not in FIELDS[name]:
            refuse(rows & (columns["branches"] != 0), "branches", f"{name} depends on no branch")
        if name == "map":
            bad = rows & _leaves_memory(columns["address"], columns["size"])
            refuse(bad, "size", "the range ends above 2**52")
    return regimes


def _regime(path: str, text: str) -> Regime:
    """A regime of the columnar form: JSON of the fields of a ``regime`` line."""
    try:
        return Regime(**_parse("regime", _REGIME, _object_of(str(text))))
    except _FieldError as error:
        field = "regimes" if error.field is None else f"regimes: {error.field}"
        raise StreamError(str(error), path=path, field=field) from None


# ---- Writing -------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` only once all of it is written.

    It is compressed if the name ends in ``.gz``. What is no plain file (a pipe, a terminal,
    ``/dev/null``) is written as it stands.
    """
    target = os.path.realpath(path)
    try:
        plain = stat.S_ISREG(os.stat(target).st_mode)
    except FileNotFoundError:
        plain = True
    temporary = f"{target}.{os.getpid()}.tmp" if plain else target
    try:
        file = open(temporary, "xb" if plain else "wb")  # noqa: SIM115
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    try:
        with file:
            if path.endswith(".gz"):
                # No name and no time within: equal contents give equal files.
                with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
                    yield cast(BinaryIO, compressed)
            else:
                yield file
        if plain:
            os.replace(temporary, target)
    except BaseException:
        if plain:
            os.unlink(temporary)
        raise


def write(path: str | os.PathLike[str], operations: Stream | Iterable[Operation]) -> None:
    """Write a stream in the form that the ending of its name says; whole, or not at all.

    Raises
    ------
    StreamError
        The ending is unknown, or the columnar form cannot hold an operation.
    OSError
        The file cannot be written.
    """
    path = os.fspath(path)
    if path.endswith(".npz"):
        import numpy as np

        source = operations if isinstance(operations, Stream) else Stream(path, list(operations))
        columns = source.columns or _columns(source)
        with replacing(path) as file:
            np.savez_compressed(file, **dict[str, Any](columns))
    elif path.endswith((".jsonl", ".jsonl.gz")):
        with replacing(path) as file:
            file.writelines(map(_line, operations))
    else:
        raise StreamError(_ENDINGS, path=path)


_encode = json.JSONEncoder(separators=(",", ":")).encode
_AS_HEXADECIMAL = {"address", "base", "pc", "tags", "exclude", "seed", "entropy", "mask"}


def _given(known: Fields, holder: object) -> dict[str, Any]:
    """The fields that differ from their default, as JSON values."""
    values = {}
    for field, (_, default) in known.items():
        value = getattr(holder, field)
        if value != default:
            values[field] = hex(value) if field in _AS_HEXADECIMAL else value
    return values


def _line(operation: Operation) -> bytes:
    """One line of JSON."""
    if operation.op == "regime":
        values = _given(_REGIME, operation.regime) | _given(_EVERYWHERE, operation)
    else:
        values = _given(FIELDS[operation.op], operation)
    return _encode({"op": operation.op, **values}).encode() + b"\n"


def _columns(stream: Stream) -> dict[str, np.ndarray]:
    """The columnar form of operations."""
    import numpy as np

    names = list(_COLUMNS_OF)
    numbers = {name: number for number, name in enumerate(names)}
    regimes: dict[Regime | None, int] = {}
    rows: dict[str, list[int]] = {
        column: [] for column in ("op", "address", "size", "tag", "flags", "gap", "branches", "pc")
    }
    for operation in stream:
        row = dict.fromkeys(rows, 0)
        if operation.op not in numbers:
            message = f"the columnar form has no {operation.op}"
            raise StreamError(message, path=stream.path, line=operation.line or None, field="op")
        row["op"] = numbers[operation.op]
        for field, column in _COLUMNS_OF[operation.op].items():
            value = getattr(operation, field)
            if field == "memory":
                value = MEMORIES.index(value)
            elif field == "regime":
                value = regimes.setdefault(value, len(regimes))
            row[column] = value
        if row["size"] >= 1 << 32:
            message = "the columnar form holds less than 2**32"
            raise StreamError(message, path=stream.path, line=operation.line or None, field="bytes")
        row["flags"] = sum(bit for field, bit in _FLAGS.items() if getattr(operation, field))
        row["branches"] = sum(1 << branch for branch in operation.branches)
        row["gap"] = operation.gap
        row["pc"] = operation.pc or 0
        for column, value in row.items():
            rows[column].append(value)

    columns = {
        column: np.array(rows[column], _DTYPES[column][0])
        for column in ("op", "address", "size", "tag", "flags", "gap")
    }
    columns["op_names"] = np.array(names)
    if any(rows["branches"]):
        columns["branches"] = np.array(rows["branches"], np.uint8)
    if regimes:
        columns["regimes"] = np.array([_encode(_given(_REGIME, regime)) for regime in regimes])
    if any(rows["pc"]):
        pcs, index = np.unique(np.array(rows["pc"], np.uint64), return_inverse=True)
        if len(pcs) > 1 << 16:
            message = f"the columnar form holds at most 65536 addresses, not {len(pcs)}"
            raise StreamError(message, path=stream.path, field="pc")
        columns["pc_index"] = index.astype(np.uint16)
        columns["pcs"] = pcs.astype(np.uint32) if pcs[-1] < 1 << 32 else pcs
    return columns


# ---- Rules of the whole stream -------------------------------------------------------------------

_MAX_UNRESOLVED = 16
_ONE_GRANULE = ("stg", "stzg", "stgp")
_TWO_GRANULES = ("st2g", "stz2g")


def granules(operation: Operation, regime: Regime) -> range:
    """Numbers of the granules that an access looks at, or that a tag store writes."""
    assert operation.address is not None
    address, size = operation.address & PA_MASK, operation.size
    op = operation.op
    if op in _ONE_GRANULE or op in _TWO_GRANULES or op == "ldg":
        size = 32 if op in _TWO_GRANULES else 16
        address -= address % 16
    elif op not in ACCESSES:  # whole blocks
        size = 4 << (regime.gmid_bs if op == "stgm" else regime.dczid_bs)
        address -= address % size
    return range(address >> 4, (address + size - 1 >> 4) + 1)


def check(stream: Stream, *, held: int = _MAX_UNRESOLVED) -> None:
    """Check the rules that concern the stream as a whole: which branches are open where.

    An access is *unresolved* from its line on until a branch that it names is mispredicted, or all
    of them are resolved.

    Parameters
    ----------
    stream : Stream
        What to check.
    held : int
        Entries of the barrier's table; at most 16 accesses may be unresolved in any case.

    Raises
    ------
    StreamError
        A branch is opened while it is open, resolved or named while it is not, or open at the end;
        too many accesses are unresolved at once (one that crosses a page counts twice); a tag store
        writes a granule at which an unresolved access may look.
    """

    columns = stream.columns
    if (
        columns is not None
        and "branches" not in columns
        and next(stream.select(("branch", "resolve")), None) is None
    ):
        return  # nothing is speculative, as in every recorded trace

    def wrong(field: str, message: str) -> StreamError:
        return StreamError(message, path=stream.path, line=operation.line, field=field)

    limit = min(held, _MAX_UNRESOLVED)
    regime = Regime()
    opened: dict[int, Operation] = {}
    unresolved: list[_Unresolved] = []
    for operation in stream:
        op = operation.op
        if op == "regime":
            assert operation.regime is not None
            regime = operation.regime
        elif op == "branch":
            if operation.id in opened:
                since = opened[operation.id].line
                raise wrong("id", f"branch {operation.id} is open already, since line {since}")
            opened[operation.id] = operation
        elif op == "resolve":
            if opened.pop(operation.id, None) is None:
                raise wrong("id", f"branch {operation.id} is not open")
            named = [access for access in unresolved if operation.id in access.branches]
            for access in named:
                access.branches.remove(operation.id)
                if operation.mispredicted or not access.branches:
                    unresolved.remove(access)
        elif operation.branches:
            for branch in operation.branches:
                if branch not in opened:
                    raise wrong("branches", f"branch {branch} is not open")
            unresolved.append(_Unresolved(operation, regime))
            count = sum(access.entries for access in unresolved)
            if count > limit:
                raise wrong(
                    "branches", f"{count} accesses would be unresolved; at most {limit} may"
                )
        elif op in TAG_STORES:
            written = granules(operation, regime)
            for access in unresolved:
                looked = access.granules
                if max(written.start, looked.start) < min(written.stop, looked.stop):
                    where = f"the unresolved access of line {access.line} looks"
                    raise wrong("address", f"writes the tag of a granule at which {where}")
    for operation in opened.values():
        raise wrong("id", f"branch {operation.id} is still open at the end of the stream")


class _Unresolved:
    """An access that waits for branches."""

    def __init__(self, operation: Operation, regime: Regime) -> None:
        assert operation.address is not None
        self.line = operation.line
        self.branches = set(operation.branches)
        unchecked = operation.exempt or operation.tco
        self.granules = range(0) if unchecked else granules(operation, regime)
        # An access that crosses a page reaches the pipeline as two.
        self.entries = 2 if operation.address % _PAGE + operation.size > _PAGE else 1

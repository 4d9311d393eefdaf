"""Random operation streams that keep all rules, and try hard to be awkward.

They touch few pages, among them pages that compete for the same set of the cache, pages without
tags, without access to their tags or without memory next to tagged ones, tag storage itself, and
memory that it does not cover.
Most pointers carry the right tag, many do not.

:class:`Traffic` draws every field by itself, as programs may. :class:`DirectedTraffic` draws what
an access is to meet first, and then the fields and the regime that make it so: it comes to rare
combinations much sooner.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .ops import ACCESSES, PA_MASK, STORAGE_BASE, TAG_STORES, Operation, Regime, Stream

__all__ = ["DirectedTraffic", "Traffic", "directed_stream", "random_stream"]

_PAGE = 4096
_GRANULE = 16
_BRANCHES = 8
_STORAGE_BYTES = 1 << 40
_SETS = 1 << 17
"""Lines that are so far apart, in bytes of memory, share a set in every preset."""


def random_stream(seed: int, count: int, *, held: int = 16) -> Stream:
    """A stream of about ``count`` operations, the same for the same seed.

    Parameters
    ----------
    held : int
        Accesses that may be unresolved at a time.
    """
    operations = Traffic(random.Random(seed), held=held).operations(count)
    return Stream(f"random stream {seed}", operations)


def directed_stream(seed: int, count: int, *, held: int = 16) -> Stream:
    """As :func:`random_stream`, but of :class:`DirectedTraffic`; ``count`` is of accesses."""
    operations = DirectedTraffic(random.Random(seed), held=held).operations(count)
    return Stream(f"directed stream {seed}", operations)


class Traffic:
    """Draws operations one after the other, and remembers what it must to keep the rules.

    Parameters
    ----------
    rng : random.Random
        Source of all choices.
    held : int
        Accesses that may be unresolved at a time.
    """

    def __init__(self, rng: random.Random, *, held: int = 16) -> None:
        self._rng = rng
        self._held = held
        self._regime = Regime()
        self._base = rng.choice([0, 1 << 30, (1 << 39) + (1 << 33), (1 << 40) - (1 << 24)])
        near = [self._base + _PAGE * n for n in range(8)]
        far = [self._base + _SETS * n for n in range(1, 12)]
        self._kinds = {
            **dict.fromkeys([*near, *far], "tagged"),
            near[2]: "no_tag_access",
            near[4]: "untagged",
            near[6]: "none",
        }
        self._pages = [*self._kinds, STORAGE_BASE, STORAGE_BASE + (self._base >> 5) & -_PAGE]
        self._page = self._base
        self._tags: dict[int, int] = {}  # by granule, as if every tag store had its effect
        self._open: list[int] = []
        self._unresolved: list[tuple[set[int], set[int], int]] = []  # branches, pages, entries

    def operations(self, count: int) -> list[Operation]:
        """The memory map, ``count`` operations, and what resolves the last branches."""
        operations = self._begin()
        for _ in range(count):
            operations += self._draw()
        while self._open:
            operations.append(self._resolve())
        for line, operation in enumerate(operations, 1):
            operation.line = line
        return operations

    def _begin(self) -> list[Operation]:
        return [
            Operation("map", address=page, bytes=_PAGE, memory=kind)
            for page, kind in self._kinds.items()
        ]

    def _draw(self) -> list[Operation]:
        """One operation; none if what was drawn would break a rule now."""
        operation = self._next()
        return [] if operation is None else [operation]

    def _next(self) -> Operation | None:
        drawers: list[tuple[int, Callable[[], Operation | None]]] = [
            (50, self._access),
            (6, self._ldg),
            (22, self._tag_store),
            (2, self._ldgm),
            (4, self._choose_tag),
            (3, self._maintain),
            (7, self._branch),
            (7, self._resolve if self._open else self._branch),
            (2, self._set_regime),
            (1, self._set_map),
        ]
        if self._rng.randrange(100) == 0:
            return self._set_storage()
        weights = [weight for weight, _ in drawers]
        return self._rng.choices([draw for _, draw in drawers], weights)[0]()

    # Addresses

    def _address(self, align: int = 1) -> int:
        """Anywhere in the pages, often at their edges, and often in the same page as before."""
        rng = self._rng
        if rng.randrange(2):
            self._page = rng.choice(self._pages)
        page = self._page
        offset = rng.choice(
            [
                rng.randrange(_PAGE),
                rng.randrange(4 * _GRANULE),
                _PAGE - 1 - rng.randrange(4 * _GRANULE),
                rng.randrange(8) * 256 + 256 - rng.randrange(4 * _GRANULE),
            ]
        )
        return (page + offset) % (1 << 52) & -align

    def _pointer(self, address: int) -> int:
        """The address with bits above: mostly the right tag, and what translation accepts."""
        rng = self._rng
        half = int(rng.randrange(4) == 0)
        tag = self._tags.get(address // _GRANULE, 0)
        if rng.randrange(4) == 0:
            tag = rng.choice([0, 15, rng.randrange(16)])
        top = rng.choice([0, 15 * half, rng.randrange(16)])
        if not self._regime.tbi[half] and rng.randrange(8):
            top = 15 * half
            if not self._regime.mtx[half]:
                tag = 15 * half
        middle = rng.choice([0, 7 * half, rng.randrange(8)])
        return top << 60 | tag << 56 | half << 55 | middle << 52 | address

    def _level(self) -> int:
        return int(self._rng.randrange(4) == 0)

    # Accesses

    def _depend(self, address: int, size: int) -> tuple[int, ...] | None:
        """Branches for an access, which is unresolved until they are; None if there is no room."""
        if not self._open or self._rng.randrange(2):
            return ()
        branches = {self._rng.choice(self._open) for _ in range(2)}
        crossing = address % _PAGE + size > _PAGE
        used = sum(entries for _, _, entries in self._unresolved)
        if used + 1 + crossing > self._held:
            return None
        pages = {address // _PAGE % (1 << 40), (address + size - 1) // _PAGE % (1 << 40)}
        self._unresolved.append((branches, pages, 1 + crossing))
        return tuple(sorted(branches))

    def _is_looked_at(self, first: int, last: int) -> bool:
        """Does an unresolved access look at the pages of two addresses?"""
        looked_at: set[int] = set().union(*(pages for _, pages, _ in self._unresolved))
        return bool(looked_at & {first // _PAGE, last // _PAGE % (1 << 40)})

    def _access(self) -> Operation | None:
        rng = self._rng
        op = rng.choice(["load", "load", "store", "store", "atomic", "dc_zva"])
        size = rng.choice([1, 2, 4, 8, 16, 32, 64, 1 + rng.randrange(64)])
        address = self._address(rng.choice([1, 1, 16]))
        branches = self._depend(address, 1 if op == "dc_zva" else size)
        if branches is None:
            return None
        operation = Operation(
            op,
            address=self._pointer(address),
            tco=int(rng.randrange(16) == 0),
            el=self._level(),
            branches=branches,
        )
        if op != "dc_zva":
            operation.size = size
            operation.exempt = int(rng.randrange(16) == 0)
        return operation

    def _ldg(self) -> Operation | None:
        address = self._address()
        branches = self._depend(address, 1)
        if branches is None:
            return None
        pointer = self._pointer(address)
        return Operation("ldg", address=pointer, el=self._level(), branches=branches)

    def _ldgm(self) -> Operation:
        el = int(self._rng.randrange(8) != 0)
        return Operation("ldgm", address=self._pointer(self._address()), el=el)

    def _tag_store(self) -> Operation | None:
        rng = self._rng
        op = rng.choice(TAG_STORES)
        blocks = {"stgm": self._regime.gmid_bs}
        blocks |= dict.fromkeys(["stzgm", "dc_gva", "dc_gzva"], self._regime.dczid_bs)
        if op in blocks:
            address, size = self._address(), 4 << blocks[op]
            first = address & -size
        else:
            address = first = self._address(1 if rng.randrange(16) == 0 else _GRANULE)
            size = 2 * _GRANULE if op in ("st2g", "stz2g") else _GRANULE
        last = first + size - 1
        if self._is_looked_at(first, last):
            return None
        pointer = self._pointer(address)
        operation = Operation(op, address=pointer, el=self._level())
        if op in ("stgm", "stzgm"):
            operation.el = int(rng.randrange(8) != 0)
        if op == "stgm":
            operation.tags = rng.randrange(1 << 64)
        elif op not in ("dc_gva", "dc_gzva"):
            operation.tag = rng.randrange(16)
        self._note_tags(operation, first, last)
        return operation

    def _note_tags(self, operation: Operation, first: int, last: int) -> None:
        """A tag store writes the granules from one address to another."""
        assert operation.address is not None
        tag = operation.tag
        if operation.op in ("stgp", "dc_gva", "dc_gzva"):
            tag = operation.address >> 56 & 0xF
        for granule in range(first // _GRANULE, last // _GRANULE + 1):
            own = operation.tags >> 4 * (granule % 16) & 0xF if operation.op == "stgm" else tag
            self._tags[granule] = own

    def _maintain(self) -> Operation:
        rng = self._rng
        op = rng.choice(["clean", "invalidate", "clean_invalidate"])
        address = None if rng.randrange(8) == 0 else self._pointer(self._address())
        return Operation(op, address=address)

    # Choice of tags

    def _choose_tag(self) -> Operation:
        rng = self._rng
        op = rng.choice(["irg", "irg", "addg", "subg", "gmi", "gcr", "rgsr"])
        all_but_one = 0xFFFF ^ 1 << rng.randrange(16)
        exclude = rng.choice([0, 0x8001, 0xFFFF, all_but_one, rng.randrange(1 << 16)])
        if op == "gcr":
            return Operation("gcr", exclude=exclude, rrnd=rng.randrange(2))
        if op == "rgsr":
            return Operation("rgsr", tag=rng.randrange(16), seed=rng.randrange(1 << 48))
        operation = Operation(op, address=rng.randrange(1 << 64))
        if op == "gmi":
            operation.mask = rng.randrange(1 << 64)
            return operation
        operation.el = self._level()
        if op == "irg":
            operation.exclude = exclude
            operation.entropy = rng.randrange(1 << 32)
        else:
            operation.offset = 16 * rng.randrange(64)
            operation.tag_offset = rng.choice([0, 1, rng.randrange(16)])
        return operation

    # State

    def _set_regime(self) -> Operation:
        rng = self._rng

        def bits(*chances: int) -> tuple[int, int]:
            first, second = (rng.choice(chances) for _ in range(2))
            return first, second

        def modes() -> str:
            return rng.choice(["sync", "sync", "sync", "async", "async", "asym", "none"])

        self._regime = Regime(
            tbi=bits(1, 1, 1, 0),
            mtx=bits(0, 1),
            tcma=bits(0, 0, 1),
            ata=bits(1, 1, 1, 0),
            tcso=bits(0, 0, 1),
            tcf=(modes(), modes()),
            gmid_bs=2 + rng.randrange(5),
            dczid_bs=2 + rng.randrange(6),
        )
        return Operation("regime", regime=self._regime)

    def _set_map(self) -> Operation:
        rng = self._rng
        page = rng.choice(self._pages) % (1 << 52)
        kind = rng.choice([*6 * ["tagged"], "untagged", "none", "no_tag_access"])
        return Operation("map", address=page, bytes=_PAGE, memory=kind)

    def _set_storage(self) -> Operation:
        """All memory most of the time; else little of it, or tags amid what has them."""
        rng = self._rng
        choice = rng.choice([0, 0, 0, 0, 1, 1, 2, 3])
        address, size, base = 0, _STORAGE_BYTES, STORAGE_BASE
        if choice == 1:
            base = 1 << 41
        elif choice == 2:
            address, size = self._base, 4 * _PAGE
        elif choice == 3:
            address, size = self._base, 64 * _PAGE
            base = rng.choice(self._pages) + 128 * rng.randrange(32)
        return Operation("storage", address=address, bytes=size, base=base & PA_MASK)

    # Branches

    def _branch(self) -> Operation | None:
        closed = [branch for branch in range(_BRANCHES) if branch not in self._open]
        if not closed:
            return None
        branch = self._rng.choice(closed)
        self._open.append(branch)
        return Operation("branch", id=branch)

    def _resolve(self) -> Operation:
        branch = self._rng.choice(self._open)
        self._open.remove(branch)
        mispredicted = self._rng.randrange(2)
        remaining = []
        for branches, pages, entries in self._unresolved:
            if branch in branches and (mispredicted or len(branches) == 1):
                continue
            remaining.append((branches - {branch}, pages, entries))
        self._unresolved = remaining
        return Operation("resolve", id=branch, mispredicted=mispredicted)


class DirectedTraffic(Traffic):
    """Draws for each access a regime, a place and a pointer that fit what it is to meet.

    The storage map covers 512 pages and never changes: there is tagged memory behind it, and its
    carve-out is mapped in every way. Pages of all kinds lie side by side.
    """

    _PAGES = 512
    """In the storage map."""

    def __init__(self, rng: random.Random, *, held: int = 16) -> None:
        super().__init__(rng, held=held)
        base, end = self._base, self._base + self._PAGES * _PAGE
        # Every kind has every kind behind it.
        near = [base + _PAGE * n for n in (0, 1, 6, 9)]
        untagged = [base + _PAGE * n for n in (2, 3, 8)]
        kept_back = [base + _PAGE * n for n in (4, 5, 7)]
        tagged = [*near, *(base + _SETS * n for n in range(1, 6))]
        storage = STORAGE_BASE + (base >> 5)  # where the tags of these pages lie anyway
        carve_out = [storage + _PAGE * n for n in range(5)]
        outside = [end, end + _PAGE]
        self._kinds = {
            **dict.fromkeys([*tagged, *outside, carve_out[1], carve_out[2]], "tagged"),
            **dict.fromkeys([*untagged, storage - _PAGE, carve_out[0]], "untagged"),
            **dict.fromkeys([*kept_back, carve_out[3], carve_out[4]], "no_tag_access"),
        }
        self._places = [
            (11, tagged),
            (3, untagged),
            (2, kept_back),
            (2, carve_out),
            (1, outside),
        ]
        self._kinds[end - _PAGE] = "tagged"
        self._pages = [*self._kinds]
        self._edges = [*8 * near[:1], *near, *untagged, *kept_back, end - _PAGE, end]
        self._edges += [storage - _PAGE, *carve_out[:2]]
        """Pages with something of interest behind them, most often tagged memory behind tagged."""

    def _begin(self) -> list[Operation]:
        size = self._PAGES * _PAGE
        base = STORAGE_BASE + (self._base >> 5)
        storage = Operation("storage", address=self._base, bytes=size, base=base)
        return [storage, *super()._begin()]

    def _draw(self) -> list[Operation]:
        rng = self._rng
        op = rng.choice([*4 * ACCESSES, *4 * ["dc_zva"], *2 * ["ldg", "ldgm"], *TAG_STORES])
        half = rng.randrange(2)
        el = 1 if op in ("ldgm", "stgm", "stzgm") else rng.randrange(2)
        drawn: list[Operation | None] = []
        if rng.randrange(3) == 0:
            drawn.append(self._resolve() if self._open and rng.randrange(2) else self._branch())
        if rng.randrange(8):
            drawn.append(self._direct_regime(half, el))
        match rng.randrange(16):
            case 0:
                drawn.append(self._maintain())
            case 1:
                drawn.append(self._choose_tag())
            case _:
                drawn.append(self._direct_access(op, half, el))
        if self._unresolved and rng.randrange(4) == 0:
            drawn.append(self._resolve())
        return [operation for operation in drawn if operation is not None]

    def _direct_regime(self, half: int, el: int) -> Operation:
        """For a half and a level every check is on, or one of them is off; or all is random."""
        rng = self._rng
        tbi, mtx, tcma, ata, tcso = ([rng.randrange(2), rng.randrange(2)] for _ in range(5))
        tcf = [rng.choice(["none", "sync", "async", "asym"]) for _ in range(2)]
        off = rng.choice([*8 * ["nothing"], "pointer", "ata", "tcso", "tcf", "anything"])
        if off != "anything":
            tbi[half], mtx[half] = rng.choice([(0, 1), (1, 0), (1, 1)])
            if off == "pointer":
                tbi[half] = mtx[half] = 0
            tcma[half] = int(rng.randrange(3) == 0)
            ata[el] = int(off != "ata")
            tcso[el] = int(off == "tcso" or rng.randrange(4) == 0)
            tcf[el] = "none" if off == "tcf" else rng.choice(["sync", "async", "asym"])
        self._regime = Regime(
            tbi=(tbi[0], tbi[1]),
            mtx=(mtx[0], mtx[1]),
            tcma=(tcma[0], tcma[1]),
            ata=(ata[0], ata[1]),
            tcso=(tcso[0], tcso[1]),
            tcf=(tcf[0], tcf[1]),
            gmid_bs=2 + rng.randrange(5),
            dczid_bs=2 + rng.randrange(6),
        )
        return Operation("regime", regime=self._regime)

    def _direct_access(self, op: str, half: int, el: int) -> Operation | None:
        rng = self._rng
        size = self._size_of(op)
        address = self._place(op, size)
        blocks = op in _BLOCKS or op == "dc_zva" or op == "ldgm"
        first = address & (-size if blocks else -_GRANULE)
        if op in TAG_STORES:
            if self._is_looked_at(first, first + size - 1):
                return None
            branches: tuple[int, ...] | None = ()
        elif op == "ldgm":
            branches = ()
        else:
            branches = self._depend(address, size if op in ACCESSES else 1)
        if branches is None:
            return None
        pointer = self._direct_pointer(address, first, address + size - 1, half)
        operation = Operation(op, address=pointer, el=el, branches=branches)
        exempt, tco = rng.choice([*10 * [(0, 0)], (1, 0), (0, 1), (1, 1)])
        if op in ACCESSES:
            operation.size = size
            operation.exempt = exempt
        if op in ACCESSES or op == "dc_zva":
            operation.tco = tco
        if op == "stgm":
            operation.tags = rng.choice(
                [rng.randrange(16) * 0x1111_1111_1111_1111, rng.getrandbits(64)]
            )
        elif op in TAG_STORES and op not in ("dc_gva", "dc_gzva"):
            operation.tag = rng.randrange(16)
        if op in TAG_STORES and self._regime.ata[el]:
            self._note_tags(operation, first, first + size - 1)
        return operation

    def _size_of(self, op: str) -> int:
        """Bytes of a data access, or what a tag operation is about."""
        rng = self._rng
        if op in ACCESSES:
            return rng.choice(
                [1, 2, 2, 4, 8, 16, 32, 64, 48, *(3 + rng.randrange(61) for _ in range(2))]
            )
        if op in ("ldgm", "stgm"):
            return 4 << self._regime.gmid_bs
        if op in _BLOCKS or op == "dc_zva":
            return 4 << self._regime.dczid_bs
        return 32 if op in ("st2g", "stz2g") else 16

    def _place(self, op: str, size: int) -> int:
        """An address: at the edges that matter to an access, and often in the page of before."""
        rng = self._rng
        if rng.randrange(3) == 0:
            weights = [weight for weight, _ in self._places]
            self._page = rng.choice(rng.choices(self._places, weights)[0][1])
        few = rng.choice([1, 2, 4, 8, 16, 32, 48, 1 + rng.randrange(63)])
        edge = rng.choice([few, size - few]) % size if size < 128 else 0
        offset = rng.choice(
            [
                _GRANULE * rng.randrange(_PAGE // _GRANULE),
                _GRANULE * rng.randrange(4),  # where accesses that cross a page boundary end
                size * rng.randrange(_PAGE // size),
                rng.randrange(_PAGE),
                *(_GRANULE * rng.randrange(4, _PAGE // _GRANULE) - edge for _ in range(2)),
                256 * rng.randrange(1, _PAGE // 256) - edge,
            ]
        )
        if op in _CROSSING and rng.randrange(4 if op in ACCESSES else 2) == 0:
            self._page = rng.choice(self._edges)
            offset = _PAGE - edge
        # Behind the middle of a page only large blocks change, so that large accesses may match.
        if op in TAG_STORES and size < 128 and _PAGE // 2 <= offset < _PAGE - 64:
            offset -= _PAGE // 2
        if op not in ACCESSES and (op not in _BY_GRANULE or rng.randrange(8)):
            offset &= -_GRANULE
        return self._page + min(offset, _PAGE - 1)

    def _direct_pointer(self, address: int, first: int, last: int, half: int) -> int:
        """A pointer that translation accepts, and that means something for the tags there."""
        rng = self._rng
        canonical = 15 * half
        right = self._tags.get(first // _GRANULE, 0)
        behind = self._tags.get(max(first, last & -_PAGE) // _GRANULE, 0)  # of the second part
        some = self._tags.get(rng.randint(first // _GRANULE, last // _GRANULE), 0)
        tag = rng.choice([right, right, behind, behind, some, canonical, rng.randrange(16)])
        top = canonical
        if self._regime.tbi[half]:
            top = rng.randrange(16)
        elif not self._regime.mtx[half]:
            tag = canonical
        return top << 60 | tag << 56 | half << 55 | rng.randrange(8) << 52 | address


_CROSSING = (*ACCESSES, "st2g", "stz2g")
"""What may cross a page boundary."""
_BLOCKS = ("stgm", "stzgm", "dc_gva", "dc_gzva")
_BY_GRANULE = ("stg", "st2g", "stzg", "stz2g", "stgp")
"""Tag stores whose address must be aligned."""

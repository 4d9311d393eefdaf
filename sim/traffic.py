"""Random operation streams that keep all rules, and try hard to be awkward.

They touch few pages, among them pages that compete for the same set of the cache, pages without
tags or without memory next to tagged ones, tag storage itself, and memory that it does not cover.
Most pointers carry the right tag, many do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .ops import PA_MASK, STORAGE_BASE, TAG_STORES, Operation, Regime, Stream

__all__ = ["Traffic", "random_stream"]

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
        operations = [
            Operation("map", address=page, bytes=_PAGE, memory=kind)
            for page, kind in self._kinds.items()
        ]
        for _ in range(count):
            operation = self._next()
            if operation is not None:
                operations.append(operation)
        while self._open:
            operations.append(self._resolve())
        for line, operation in enumerate(operations, 1):
            operation.line = line
        return operations

    def _next(self) -> Operation | None:
        """One operation; None if what was drawn would break a rule now."""
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
        looked_at = set().union(*(pages for _, pages, _ in self._unresolved))
        if looked_at & {first // _PAGE, last // _PAGE % (1 << 40)}:
            return None
        pointer = self._pointer(address)
        operation = Operation(op, address=pointer, el=self._level())
        tag = rng.randrange(16)
        if op in ("stgp", "dc_gva", "dc_gzva"):
            tag = pointer >> 56 & 0xF
        if op in ("stgm", "stzgm"):
            operation.el = int(rng.randrange(8) != 0)
        if op == "stgm":
            operation.tags = rng.randrange(1 << 64)
        elif op not in ("dc_gva", "dc_gzva"):
            operation.tag = tag
        for granule in range(first // _GRANULE, last // _GRANULE + 1):
            own = operation.tags >> 4 * (granule % 16) & 0xF if op == "stgm" else tag
            self._tags[granule] = own
        return operation

    def _maintain(self) -> Operation:
        rng = self._rng
        op = rng.choice(["clean", "invalidate", "clean_invalidate"])
        address = None if rng.randrange(8) == 0 else self._pointer(self._address())
        return Operation(op, address=address)

    # Choice of tags

    def _choose_tag(self) -> Operation:
        rng = self._rng
        op = rng.choice(["irg", "irg", "addg", "subg", "gmi", "gcr", "rgsr"])
        exclude = rng.choice([0, 0x8001, 0xFFFF, rng.randrange(1 << 16)])
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
            operation.tag_offset = rng.randrange(16)
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
        kind = rng.choice(["tagged", "tagged", "tagged", "tagged", "untagged", "none"])
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

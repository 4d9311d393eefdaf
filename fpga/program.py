"""The program of the self-test: which accesses it makes, and the verdicts that it expects.

:func:`program` is the one table. To add a step, add a line to it:

- ``Access(op, address, …, expect=Expect(…))`` offers one access; ``expect`` is its verdict, and
  is left out exactly where the access is squashed.
- ``Resolve(branch)`` resolves a branch, ``Resolve(branch, mispredicted=True)`` squashes all
  accesses that name it.
- ``Pause(cycles)`` lets time pass, so that a verdict that comes too early is seen.

:func:`assemble` checks the table and turns it into the content of two ROMs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from emte.rtl import Barrier, TagConfig
from emte.rtl.layouts import Memory, Op, Outcome

__all__ = ["Access", "Expect", "Map", "Pause", "Resolve", "Step", "assemble", "program"]


@dataclass(frozen=True)
class Map:
    """Where the self-test's memory and its tag storage lie, in bytes.

    Storage holds twice as many tags as the cache, so that lines can be evicted, and follows the
    memory at once.
    """

    config: TagConfig

    @property
    def storage_bytes(self) -> int:
        return max(2 * self.config.cache_bytes, 128)

    @property
    def memory_bytes(self) -> int:
        return 32 * self.storage_bytes

    @property
    def memory_base(self) -> int:
        return self.memory_bytes

    @property
    def storage_base(self) -> int:
        return self.memory_base + self.memory_bytes

    @property
    def way_bytes(self) -> int:
        """Distance of two addresses whose tags fall into the same set."""
        return 32 * self.config.sets * self.config.line_bytes

    @property
    def address_bits(self) -> int:
        """Width of every address that the self-test uses."""
        return (self.storage_base + self.storage_bytes).bit_length()


@dataclass(frozen=True)
class Expect:
    """The verdict of an access: ``far`` is an address without its tag, which is the pointer's."""

    outcome: Outcome = Outcome.PASS
    far: int = 0
    wnr: int = 0
    tags: int = 0


@dataclass(frozen=True)
class Access:
    """One access; ``pointer`` is the logical tag of its address."""

    op: Op
    address: int
    pointer: int = 0
    bytes: int = 16
    memory: Memory = Memory.TAGGED
    exempt: int = 0
    tco: int = 0
    branches: tuple[int, ...] = ()
    tags: int = 0
    expect: Expect | None = None


@dataclass(frozen=True)
class Resolve:
    """A branch is resolved."""

    branch: int
    mispredicted: bool = False


@dataclass(frozen=True)
class Pause:
    """Nothing happens for 1 to 255 cycles."""

    cycles: int


Step = Access | Resolve | Pause


def program(config: TagConfig) -> list[Step]:
    """The steps of the self-test.

    Every access that is checked for a fault has a sibling that passes, so that neither "always
    pass" nor "always fault" can go through.
    """
    where = Map(config)
    base = where.memory_base
    passes = Expect()

    def mismatch(far: int, wnr: int = 0) -> Expect:
        return Expect(Outcome.TAG_CHECK_FAULT, far, wnr)

    # No tag of before the reset may be left.
    steps: list[Step] = [
        Access(Op.LDGM, base, bytes=256, expect=Expect(tags=0)),
        Access(Op.LOAD, base, expect=passes),
    ]

    # Two neighbours, whose tags share a byte.
    steps += [
        Access(Op.STG, base, tags=0x5, expect=passes),
        Access(Op.STG, base + 16, tags=0xA, expect=passes),
        Access(Op.LDG, base + 3, expect=Expect(tags=0x5)),
        Access(Op.LDG, base + 16, expect=Expect(tags=0xA)),
        Access(Op.LDG, base + 32, expect=Expect(tags=0x0)),
    ]

    # Loads, stores and atomics: the lowest granule that does not match is reported.
    steps += [
        Access(Op.LOAD, base + 8, 0x5, bytes=8, expect=passes),
        Access(Op.LOAD, base + 8, 0x4, bytes=8, expect=mismatch(base + 8)),
        Access(Op.STORE, base + 16, 0xA, expect=passes),
        Access(Op.STORE, base + 15, 0x5, bytes=2, expect=mismatch(base + 16, wnr=1)),
        Access(Op.ATOMIC, base + 16, 0xA, bytes=8, expect=passes),
        Access(Op.ATOMIC, base + 16, 0xB, bytes=8, expect=mismatch(base + 16)),
    ]

    # Sixteen tags at once, and an access that spans two tag words.
    row = base + 256
    steps += [
        Access(Op.STGM, row, bytes=256, tags=0x7777_7777_7777_7777, expect=passes),
        Access(Op.STORE, row, 0x7, bytes=256, expect=passes),
        Access(Op.STG, row + 160, tags=0x8, expect=passes),
        Access(Op.STORE, row, 0x7, bytes=256, expect=mismatch(row + 160, wnr=1)),
        Access(Op.LDGM, row, bytes=256, expect=Expect(tags=0x7777_7877_7777_7777)),
        Access(Op.LOAD, row - 24, bytes=24, expect=passes),
        Access(Op.LOAD, row - 24, bytes=25, expect=mismatch(row)),
    ]

    # Accesses that are not checked, and accesses that are refused.
    steps += [
        Access(Op.LOAD, base, 0x1, exempt=1, expect=passes),
        Access(Op.LOAD, base, 0x1, tco=1, expect=passes),
        Access(Op.LOAD, base, 0x1, memory=Memory.UNTAGGED, expect=passes),
        Access(Op.STG, base + 8, tags=0x1, expect=Expect(Outcome.ALIGNMENT_FAULT, base + 8, 1)),
        Access(
            Op.LOAD,
            where.storage_base,
            memory=Memory.UNTAGGED,
            expect=Expect(Outcome.EXTERNAL_ABORT, where.storage_base),
        ),
        Access(Op.LOAD, base - 16, expect=Expect(Outcome.EXTERNAL_ABORT, base - 16)),
    ]

    # One line more than a set holds: the tags of an evicted line come back from storage.
    lines = [base + 512 + way * where.way_bytes for way in range(config.ways + 1)]
    tags = [1 + number % 15 for number in range(len(lines))]
    steps += [
        Access(Op.STG, line, tags=tag, expect=passes) for line, tag in zip(lines, tags, strict=True)
    ]
    steps += [
        Access(Op.LOAD, line, tag, expect=passes) for line, tag in zip(lines, tags, strict=True)
    ]
    steps += [
        Access(Op.LOAD, lines[0], tags[1], expect=mismatch(lines[0])),
        Access(Op.LDG, lines[1], expect=Expect(tags=tags[1])),
    ]

    # Speculation: no verdict before its branch is resolved, none at all of a squashed access.
    # A set is overfull, so that some of these accesses miss.
    if config.barrier is not Barrier.NONE:
        first, second = 0, 1
        steps += [
            Access(Op.LOAD, lines[0], tags[0], branches=(first,), expect=passes),
            Access(Op.STORE, lines[1], tags[0], branches=(first,), expect=mismatch(lines[1], 1)),
            Access(Op.LOAD, base, 0x5, expect=passes),
            Pause(255),
            Resolve(first),
            Access(Op.LOAD, lines[0], tags[1], branches=(first, second)),
            Access(Op.LDG, lines[-1], branches=(second,), expect=Expect(tags=tags[-1])),
            Pause(255),
            Resolve(first, mispredicted=True),
            Pause(255),
            Resolve(second),
        ]

    # Everything is written back and read again.
    steps += [
        Access(Op.CLEAN_INVALIDATE, base, bytes=0, expect=passes),
        Access(Op.LDGM, base, bytes=256, expect=Expect(tags=0xA5)),
        Access(Op.LDGM, row, bytes=256, expect=Expect(tags=0x7777_7877_7777_7777)),
    ]
    return steps


def assemble(
    steps: Sequence[Step], *, size: int, branches: int
) -> list[tuple[Step, Expect | None, int]]:
    """Check a program, and find out what each verdict has to wait for.

    Parameters
    ----------
    steps
        The program.
    size : int
        Steps that fit: the number of a step is the id of its access.
    branches : int
        Branches that there are.

    Returns
    -------
    list
        For each step: the step, the verdict that it expects (None: none), and the number of the
        last step before that verdict, which is its own or that of a :class:`Resolve`.

    Raises
    ------
    ValueError
        The program is too long, names a branch that does not exist, leaves one unresolved, or
        expects a verdict of a squashed access or none of another.
    """
    if len(steps) > size:
        raise ValueError(f"the program has {len(steps)} steps, and {size} fit")
    open_branches: dict[int, list[int]] = {}
    after = list(range(len(steps)))
    squashed = set()
    for number, step in enumerate(steps):
        match step:
            case Access():
                for branch in step.branches:
                    if not 0 <= branch < branches:
                        raise ValueError(f"step {number}: there is no branch {branch!r}")
                    open_branches.setdefault(branch, []).append(number)
            case Resolve():
                if step.branch not in open_branches:
                    raise ValueError(f"step {number}: branch {step.branch!r} is not open")
                for access in open_branches.pop(step.branch):
                    after[access] = number
                    if step.mispredicted:
                        squashed.add(access)
            case Pause():
                if not 1 <= step.cycles <= 255:
                    raise ValueError(
                        f"step {number}: cycles must be from 1 to 255, not {step.cycles!r}"
                    )
    if open_branches:
        raise ValueError(f"branch {min(open_branches)} is never resolved")

    result = []
    for number, step in enumerate(steps):
        expect = None
        if isinstance(step, Access):
            expect = step.expect
            if number in squashed and expect is not None:
                raise ValueError(f"step {number}: a squashed access has no verdict")
            if number not in squashed and expect is None:
                raise ValueError(f"step {number}: expect is missing")
        result.append((step, expect, after[number]))
    return result

"""Lemmas of the tag generator's spec: how far the unit is in each cycle, and how far the reference.

They tell what stands in the unit's registers when it begins with each of its three parts, and how
the lamp's way is counted: by the rank that the unit looks for. So the proof of each part needs the
few cycles of this part alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from amaranth.hdl import Assert, Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from unit_spec import UnitSpec

__all__ = ["Known", "lemmas"]

TAGS = 16
COUNTED = 7
"""Cycles from the request until the number of allowed tags is there."""
RANKED = 14
"""… and until the rank is."""
ARRIVED = 17
"""… and until the lamp of the reference stands still."""


@dataclass(frozen=True)
class Known:
    """What the spec knows of the request that is under way.

    Attributes
    ----------
    age : Value
        Cycles since its transfer; 0 if there is none.
    last : int
        The age at which the response is there.
    asked : Value
        A request is transferred.
    first : Value
        The tag at lamp 0.
    turned : Value
        The lamps that are allowed.
    allowed, able, random, update, offset, entropy : Value
        As they were at the transfer.
    here, left, steps : Value
        Where the lamp is, how many steps it has to go, and does it go one?
    rgsr : View
        RGSR as it is architected.
    """

    age: Value
    last: int
    asked: Value
    first: Value
    allowed: Value
    turned: Value
    able: Value
    random: Value
    update: Value
    offset: Value
    entropy: Value
    here: Value
    left: Value
    steps: Value
    rgsr: data.View


def _count(tags: Value) -> Value:
    """Number of ones, by halves."""
    half = len(tags) // 2
    return _count(tags[:half]) + _count(tags[half:]) if half else tags


def lemmas(m: Module, spec: UnitSpec, known: Known) -> None:
    """Assert the lemmas."""
    for name, holds in _lemmas(m, spec, known):
        m.d.comb += Assert(holds, f"lemma: {name}")


def _lemmas(m: Module, spec: UnitSpec, known: Known) -> Iterator[tuple[str, Value]]:
    age, last = known.age, known.last
    free, done = age == 0, age == last

    def at(first: int, holds: Value, until: int = last) -> Value:
        return ~((age >= first) & (age <= until)) | holds

    # Control.
    yield "the age of a request", age <= last
    cycle = spec.see(m, "cycle", 5)
    scan = spec.see(m, "scan", 2)
    yield (
        "the number of a cycle",
        Mux(free, cycle == 2, (cycle == age + 1) | (done & (cycle == 2))),
    )
    scanned = Signal(2)
    with m.Switch(cycle):
        with m.Case(2, 3, 4, 13, 14, 15):
            m.d.comb += scanned.eq(1)
        with m.Case(12):
            m.d.comb += scanned.eq(2)
        with m.Case(16):
            m.d.comb += scanned.eq(3)
    yield "what is scanned", scan == scanned

    # What was read of the request.
    leaves = known.offset.any() & ~known.random
    goes = Signal(4)
    m.d.comb += goes.eq(Mux(known.random, 0, known.offset - leaves))
    for name, shape, since, value in (
        ("random", 1, 1, known.random),
        ("update", 1, 1, known.update),
        ("secret_allowed", TAGS, 1, Mux(known.able, known.allowed, 0)),
        ("secret_entropy", 32, 1, known.entropy),
        ("secret_first", 4, 2, known.first),
        ("secret_steps", 4, 2, goes),
    ):
        yield f"{name} is what was asked for", at(since, spec.see(m, name, shape) == value)
    for name, value in (("secret_start", known.first - leaves), ("secret_offset", known.offset)):
        holds = known.random | (spec.see(m, name, 4) == value[:4])
        yield f"{name} is what was asked for", at(1, holds)

    # What the unit counts, and the rank that it makes of it.
    total = Signal(range(TAGS + 1))
    usable = Signal(range(TAGS + 1))
    wanted = Signal(4)
    m.d.comb += [total.eq(_count(known.allowed)), usable.eq(Mux(known.able, total, 0))]
    product = (known.entropy * total)[32:36]
    with m.If(age == 1):
        m.d.sync += wanted.eq(Mux(known.random, product, goes % total))
    yield "the rank of a walk", at(2, known.random | (wanted == goes % total))
    yield "the rank by entropy", at(2, ~known.random | (wanted == product))
    counts = spec.see(m, "secret_sum", 5)
    yield "the number of tags", at(COUNTED, counts == usable, until=RANKED - 1)
    ranked = counts == Cat(~wanted, 1)
    yield "the rank of a walk is found", (age != RANKED) | known.random | ~usable.any() | ranked
    for n in range(1, TAGS + 1):
        yield (
            f"the rank among {n:02} is found",
            (age != RANKED) | ~known.random | (usable != n) | ranked,
        )
    yield "no tag before the rank", at(1, spec.see(m, "secret_tag", 4) == 0, until=RANKED)
    yield "RGSR.TAG", spec.see(m, "secret_rgsr_tag", 4) == known.rgsr.tag
    yield "RGSR.SEED", free | at(3, spec.see(m, "secret_rgsr_seed", 48) == known.rgsr.seed)

    # The lamp: allowed lamps between lamp 0 and this one. Solvers count best in unary numbers: 3 is
    # three ones from bit 0 on.
    before = [Signal(TAGS, name=f"before_{n}") for n in range(TAGS + 1)]
    for n in range(TAGS):
        m.d.comb += before[n + 1].eq(Mux(known.turned[n], Cat(1, before[n]), before[n]))
    rank = Signal(TAGS)
    gone = Signal()
    with m.If(known.asked):
        m.d.sync += [rank.eq(0), gone.eq(0)]
    with m.Elif(~free & known.steps):
        m.d.sync += gone.eq(1)
        with m.If(known.random | gone):
            m.d.sync += rank.eq(Mux(Cat(1, rank)[:TAGS] == before[TAGS], 0, Cat(1, rank)))

    def unary(number: Value) -> Value:
        held = Signal(range(TAGS + 1))
        m.d.comb += held.eq(number)
        return Cat(held > n for n in range(TAGS))

    # The ring has as many lamps as there are tags, however it is turned.
    ring = known.allowed
    for bit in range(4):
        turned = Signal(TAGS, name=f"turned_{bit}")
        m.d.comb += turned.eq(Mux(known.first[bit], ring.rotate_right(1 << bit), ring))
        yield f"turned by {1 << bit}, as many tags", _count(turned) == _count(ring)
        ring = turned
    yield "the ring is turned", free | (known.turned == ring)
    yield "the number of lamps", at(2, _count(known.turned) == total)
    yield "the number of lamps, in unary", before[TAGS] == unary(_count(known.turned))
    one = sum(known.here[n] for n in range(TAGS)) == 1
    yield "one lamp is lit", free | one
    for n in range(TAGS):
        yield (
            f"the rank of the lamp at {n:02}",
            at(2, ~total.any() | ~known.here[n] | (known.turned[n] & (before[n] == rank))),
        )
    yield "the lamp has left", at(2, known.random | (known.offset == 0) | gone)
    taken = Mux(age > TAGS, TAGS - 1, (age - 1)[:4])
    yield (
        "the steps to go",
        at(
            1,
            known.random | (known.left == Mux(known.offset > taken, known.offset - taken, 0)),
        ),
    )
    yield (
        "the steps that were gone",
        at(
            2,
            known.random
            | ~total.any()
            | (rank == unary((known.offset - known.left - leaves)[:4] % total)),
        ),
    )
    reached = Mux(age > ARRIVED, TAGS - 1, (age - 2)[:4])
    for n in range(1, TAGS + 1):
        yield (
            f"the shares that were reached, of {n:02}",
            at(
                2,
                ~known.random
                | (total != n)
                | (rank == unary(Mux(wanted > reached, reached, wanted))),
            ),
        )

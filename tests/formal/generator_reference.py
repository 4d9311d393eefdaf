"""Formal spec of the tag generator: the architecture's algorithm, as the architecture states it.

The reference takes whole steps on a ring of 16 lamps, of which one is lit: the tag. It knows of the
unit nothing but its ports and :data:`LATENCY`.
"""

from amaranth.hdl import Assert, Assume, Cat, Const, Cover, Module, Mux, Signal, Value
from amaranth.lib import wiring
from emte.rtl.config import TagConfig
from emte.rtl.layouts import GenerateOp, rgsr_layout
from emte.rtl.tag_generator import TagGenerator
from unit_spec import UnitSpec

TAGS = 16
ENTROPY_BITS = 32
LATENCY = 3
"""Cycles from the transfer of a request to its response."""


def _number(lamps: Value) -> Value:
    """Number of the lamp that is lit; 0 if none is."""
    return Cat(Cat(lamps[n] for n in range(TAGS) if n >> bit & 1).any() for bit in range(4))


def _choose_non_excluded(m: Module, tag: Value, offset: Value, allowed: Value) -> Value:
    """ChooseNonExcludedTag: number of the tag at the end of the walk, if any tag is allowed.

    With offset 0 an excluded tag moves on to the next that is allowed. Else each of the steps moves
    by one, and then past the excluded ones. The ring is turned so that the walk starts at lamp 0.
    """
    turned = Signal(TAGS)
    m.d.comb += turned.eq(Cat(allowed, allowed).bit_select(tag, TAGS))

    def past_excluded(here: Value) -> Value:
        for _ in range(TAGS - 1):
            moved = Signal(TAGS)
            m.d.comb += moved.eq((here & turned) | (here & ~turned).rotate_left(1))
            here = moved
        return here

    here: Value = Const(1, TAGS)
    end = Signal(TAGS)
    m.d.comb += end.eq(past_excluded(here))
    for steps in range(1, TAGS):
        here = past_excluded(here.rotate_left(1))
        with m.If(offset == steps):
            m.d.comb += end.eq(here)
    return (tag + _number(end))[:4]


def _choose_by_entropy(m: Module, entropy: Value, allowed: Value) -> Value:
    """Number of the tag that entropy picks: each allowed one has an equal share of its range."""
    total = Signal(range(TAGS + 1))
    rank = Signal(range(TAGS))
    m.d.comb += total.eq(sum(allowed[n] for n in range(TAGS)))
    with m.Switch(total):
        for tags in range(2, TAGS + 1):
            shares = [-(-(number << ENTROPY_BITS) // tags) for number in range(1, tags)]
            with m.Case(tags):
                m.d.comb += rank.eq(sum(entropy >= begin for begin in shares))
    below: Value | int = 0
    lamps = Signal(TAGS)
    for n in range(TAGS):
        m.d.comb += lamps[n].eq(allowed[n] & (below == rank))
        count = Signal(range(TAGS + 1))
        m.d.comb += count.eq(below + allowed[n])
        below = count
    return _number(lamps)


def _shifted(seed: Value) -> tuple[Value, Value]:
    """RandomTag: its four bits, and the seed after it."""
    bits = [seed[n] for n in range(16)]
    for n in range(4):
        bits.append(bits[n] ^ bits[n + 2] ^ bits[n + 3] ^ bits[n + 5])
    return Cat(bits[16:]), Cat(bits[4:], seed[16:])


class TagGeneratorSpec(UnitSpec):
    """Every response is the architecture's, after a constant time, and RGSR is too.

    Parameters
    ----------
    config : :class:`TagConfig`
        Means nothing to the generator.
    longest : int
        Offset of the longest walk that is asked for.
    unit : :class:`amaranth.lib.wiring.Component`
        What is to be held to it, instead of the generator.

    Contract of the core, assumed: ``rgsr_write`` comes while no request is offered or under way.
    """

    def __init__(
        self,
        config: TagConfig,
        *,
        longest: int = TAGS - 1,
        unit: wiring.Component | None = None,
    ) -> None:
        self.longest = longest
        super().__init__(unit or TagGenerator(config))

    def specify(self, m: Module) -> None:
        unit = self.unit
        generate = unit.generate
        request, response, gcr = generate.request, generate.response, generate.gcr
        asked = request.valid & request.ready
        irg = request.payload.op == GenerateOp.IRG
        m.d.comb += [
            Assume(request.payload.op.as_value() != 3, "an operation that there is"),
            Assume(~(generate.rgsr_write & request.valid), "RGSR is written between requests"),
        ]

        # When: a request is under way for so many cycles.
        age = Signal(range(LATENCY + 1))
        with m.If(asked):
            m.d.sync += age.eq(1)
        with m.Elif(response.valid & response.ready):
            m.d.sync += age.eq(0)
        with m.Elif((age != 0) & (age != LATENCY)):
            m.d.sync += age.eq(age + 1)
        free = age == 0
        m.d.comb += [
            Assume(~generate.rgsr_write | free, "RGSR is written while no request is under way"),
            Assert(response.valid == (age == LATENCY), "the time to the response is not constant"),
            Assert(request.ready == free, "the time to the next request is not constant"),
            Assert(unit.idle == free, "idle is not told"),
        ]

        # What: the choice is made, and RGSR updated, at the transfer of the request.
        rgsr = Signal(rgsr_layout(), init={"seed": 1})
        allowed = Signal(TAGS)
        able = Signal()
        random_offset, next_seed = _shifted(rgsr.seed)
        m.d.comb += [
            able.eq(Mux(request.payload.el0, unit.ata[0], unit.ata[1])),
            allowed.eq(~(gcr.exclude | Mux(irg, request.payload.exclude, 0))),
        ]
        offset = Signal(4)
        m.d.comb += [
            offset.eq(Mux(irg, random_offset, request.payload.tag_offset)),
            Assume(~asked | (offset <= self.longest), "no longer walk is asked for"),
        ]
        walked = _choose_non_excluded(m, Mux(irg, rgsr.tag, request.payload.tag), offset, allowed)
        picked = _choose_by_entropy(m, request.payload.entropy, allowed)
        choice = Signal(4)
        with m.If(able & allowed.any()):
            m.d.comb += choice.eq(Mux(irg & gcr.rrnd, picked, walked))

        expected = Signal(4)
        was_allowed = Signal(TAGS)
        was_able = Signal()
        was_irg = Signal()
        was_random = Signal()
        was_offset = Signal(4)
        with m.If(asked):
            m.d.sync += [
                expected.eq(choice),
                was_allowed.eq(allowed),
                was_able.eq(able),
                was_irg.eq(irg),
                was_random.eq(irg & gcr.rrnd),
                was_offset.eq(offset),
            ]
            with m.If(irg & ~gcr.rrnd & able):
                m.d.sync += [rgsr.tag.eq(choice), rgsr.seed.eq(next_seed)]
        with m.If(generate.rgsr_write):
            m.d.sync += rgsr.eq(generate.rgsr_value)
        with m.If(response.valid):
            tag = response.payload.tag
            right = tag == expected
            m.d.comb += [
                Assert(
                    ~was_able | ~was_allowed.any() | was_allowed.bit_select(tag, 1),
                    "an excluded tag",
                ),
                Assert(
                    (was_able & was_allowed.any()) | (tag == 0),
                    "no tag is allowed, or tag access is disabled, and the tag is not 0",
                ),
                Assert(~was_random | right, "not the tag that entropy picks"),
            ]
            # One assertion for each offset: together they are beyond a solver.
            for steps in range(self.longest + 1):
                m.d.comb += Assert(
                    was_random | (was_offset != steps) | right,
                    f"not the tag after a walk of {steps:02}",
                )
        with m.Else():
            m.d.comb += Assert(response.payload.tag == 0, "the response shows before it is valid")
        held = Signal()  # the response was there in the last cycle, too
        m.d.sync += held.eq(response.valid & ~response.ready)
        settled = free | held
        seed_of_zero = Signal()  # was written
        with m.If(generate.rgsr_write):
            m.d.sync += seed_of_zero.eq(generate.rgsr_value.seed[:16] == 0)
        m.d.comb += [
            Assert(
                ~settled | (generate.rgsr.tag == rgsr.tag), "RGSR.TAG is not the architected one"
            ),
            Assert(
                ~settled | (generate.rgsr.seed == rgsr.seed), "RGSR.SEED is not the architected one"
            ),
            Assert(
                seed_of_zero | generate.rgsr.seed[:16].any(), "the LFSR is stuck at a seed of zero"
            ),
        ]

        answered = response.valid & response.ready
        m.d.comb += [
            Cover(answered & ~was_able, "tag access is disabled"),
            Cover(answered & was_able & ~was_allowed.any(), "all tags are excluded"),
            Cover(answered & was_irg & ~was_random & (expected == 15), "IRG with RRND = 0"),
            Cover(answered & was_random & (expected == 15), "IRG with RRND = 1"),
            Cover(answered & ~was_irg & (expected == 15), "ADDG or SUBG"),
        ]

"""Formal spec of the tag generator: the architecture's algorithm, as the architecture states it.

The reference takes a step a cycle on a ring of 16 lamps, of which one is lit: the tag. It knows of
the unit nothing but its ports and :data:`LATENCY`; the lemmas know more, and lend a hand.
"""

from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Mux, Signal, Value
from amaranth.lib import wiring
from emte.rtl.config import TagConfig
from emte.rtl.layouts import GenerateOp, rgsr_layout
from emte.rtl.tag_generator import TagGenerator
from generator_lemmas import Known, lemmas
from unit_spec import UnitSpec

TAGS = 16
ENTROPY_BITS = 32
LATENCY = 19
"""Cycles from the transfer of a request to its response."""
TWO_CHOICES = 2 * LATENCY + 4
"""Cycles after reset within which there are two responses."""
PART = 9
"""Cycles of induction that the proof needs with the lemmas: the unit's longest part."""


def _number(lamps: Value) -> Value:
    """Number of the lamp that is lit; 0 if none is."""
    return Cat(Cat(lamps[n] for n in range(TAGS) if n >> bit & 1).any() for bit in range(4))


def _past_excluded(m: Module, here: Value, allowed: Value) -> Value:
    """The lamp, or if it is excluded the next one that is allowed."""
    for _ in range(TAGS - 1):
        moved = Signal(TAGS)
        m.d.comb += moved.eq((here & allowed) | (here & ~allowed).rotate_left(1))
        here = moved
    return here


def _share(m: Module, tags: Value, number: Value) -> tuple[Value, Value]:
    """Each of so many tags has an equal share of the range of entropy: where a share begins.

    Also, is there a share of this number? The one that begins at 0 has number 0.
    """
    begin = Signal(ENTROPY_BITS)
    with m.Switch(Cat(number, tags)):
        for n in range(2, TAGS + 1):
            for k in range(1, n):
                with m.Case(n << len(number) | k):
                    m.d.comb += begin.eq(-(-(k << ENTROPY_BITS) // n))
    return begin, begin != 0


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
    lemmas : bool
        Assert the lemmas, too.
    unit : :class:`amaranth.lib.wiring.Component`
        What is to be held to it, instead of the generator.

    Contract of the core, assumed: ``rgsr_write`` comes while no request is offered or under way.
    """

    def __init__(
        self,
        config: TagConfig,
        *,
        lemmas: bool = False,
        unit: wiring.Component | None = None,
    ) -> None:
        self.lemmas = lemmas
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

        # What: all that the choice depends on is read at the transfer of the request. The ring is
        # turned so that lamp 0 is the start, or if the walk leaves it at once, the one after it. It
        # is tag 0 if entropy picks.
        rgsr = Signal(rgsr_layout(), init={"seed": 1})
        random_offset, next_seed = _shifted(rgsr.seed)
        offset = Signal(4)
        was_allowed = Signal(TAGS)
        was_first = Signal(4)
        turned = Signal(TAGS)
        was_able = Signal()
        was_irg = Signal()
        was_random = Signal()
        was_offset = Signal(4)
        was_entropy = Signal(ENTROPY_BITS)
        left = Signal(4)
        here = Signal(TAGS)
        random = irg & gcr.rrnd
        able = Mux(request.payload.el0, unit.ata[0], unit.ata[1])
        allowed = Signal(TAGS)
        leaves = Signal()
        first = Signal(4)
        m.d.comb += [
            offset.eq(Mux(irg, random_offset, request.payload.tag_offset)),
            allowed.eq(~(gcr.exclude | Mux(irg, request.payload.exclude, 0))),
            leaves.eq(~random & (offset != 0)),
            first.eq(Mux(random, 0, Mux(irg, rgsr.tag, request.payload.tag) + leaves)),
        ]
        with m.If(asked):
            m.d.sync += [
                was_allowed.eq(allowed),
                was_first.eq(first),
                turned.eq(Cat(allowed, allowed).bit_select(first, TAGS)),
                was_able.eq(able),
                was_irg.eq(irg),
                was_random.eq(random),
                was_offset.eq(offset),
                was_entropy.eq(request.payload.entropy),
                left.eq(offset),
                here.eq(Mux(leaves, 1 << (TAGS - 1), 1)),
            ]

        # ChooseNonExcludedTag: with offset 0 an excluded tag moves on to the next that is allowed.
        # Else each of the steps moves by one, and then past the excluded ones. Entropy goes from
        # the lowest allowed tag a step for each share whose begin it has reached.
        total = Signal(range(TAGS + 1))
        begin, is_share = _share(m, total, (age - 1)[:4])
        steps = Signal()
        m.d.comb += total.eq(sum(was_allowed[n] for n in range(TAGS)))
        with m.If(~free & (age <= TAGS)):
            m.d.comb += steps.eq(Mux(was_random, is_share & (was_entropy >= begin), left != 0))
            moved = Mux(steps, here.rotate_left(1), here)
            m.d.sync += [here.eq(_past_excluded(m, moved, turned)), left.eq(left - steps)]
        expected = Signal(4)
        m.d.comb += expected.eq(
            Mux(was_able & was_allowed.any(), (was_first + _number(here))[:4], 0)
        )

        with m.If(asked & irg & ~random & able):
            m.d.sync += rgsr.seed.eq(next_seed)
        with m.If((age == LATENCY) & was_irg & ~was_random & was_able):
            m.d.sync += rgsr.tag.eq(expected)
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
                Assert(was_random | right, "not the tag at the end of the walk"),
            ]
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

        if self.lemmas:
            known = Known(
                age=age,
                last=LATENCY,
                asked=asked,
                first=was_first,
                allowed=was_allowed,
                turned=turned,
                able=was_able,
                random=was_random,
                update=was_irg & ~was_random & was_able,
                offset=was_offset,
                entropy=was_entropy,
                here=here,
                left=left,
                steps=steps,
                rgsr=rgsr,
            )
            lemmas(m, self, known)

        answered = response.valid & response.ready
        m.d.comb += [
            Cover(answered & ~was_able, "tag access is disabled"),
            Cover(answered & was_able & ~was_allowed.any(), "all tags are excluded"),
            Cover(answered & was_irg & ~was_random & (expected == 15), "IRG with RRND = 0"),
            Cover(answered & was_random & (expected == 15), "IRG with RRND = 1"),
            Cover(answered & ~was_irg & (expected == 15), "ADDG or SUBG"),
        ]

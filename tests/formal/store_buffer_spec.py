"""Formal spec of the store buffer: each tag store finds its own tags, for as long as it needs them.

Every place of the ring is told by the tag store that has it: on its way through the pipeline, on
the waiting list, or none. Of the tags one bit is followed, of one place.
"""

from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Mux, Signal
from amaranth.lib import wiring
from emte.rtl.config import TagConfig
from emte.rtl.store_buffer import UNDER_WAY, StoreBuffer
from unit_spec import UnitSpec, first_of

__all__ = ["RECOVERY", "StoreBufferSpec"]

RECOVERY = 4
"""Cycles after which there is place again, once no tag store waits or is under way."""


class StoreBufferSpec(UnitSpec):
    """No place is written that is still needed, and what it holds is what was written.

    Parameters
    ----------
    config : :class:`TagConfig`
        Geometry.
    lemmas : bool
        State what the proof needs to know of the unit's registers.
    unit : :class:`amaranth.lib.wiring.Component`
        What is to be held to it, instead of the buffer of that geometry.

    Assumed of the cache: a tag is stored only if there was place in the cycle before; the tag store
    comes to the decision a fixed number of cycles later, no more than ``UNDER_WAY``, and goes onto
    the list then or is done; no more than the list holds wait there; they leave in their order.
    """

    def __init__(
        self, config: TagConfig, *, lemmas: bool = False, unit: wiring.Component | None = None
    ) -> None:
        self.config = config
        self.lemmas = lemmas
        super().__init__(unit or StoreBuffer(config))

    def specify(self, m: Module) -> None:
        unit = self.unit
        config = self.config
        depth = 1 << config.store_bits

        # On its way: the places of the last tag stores, the youngest first.
        delay = Signal(range(UNDER_WAY))
        ages = [Signal(name=f"age_{n}") for n in range(UNDER_WAY)]
        slots = [Signal(config.store_bits, name=f"slot_{n}") for n in range(UNDER_WAY)]
        before_valid, before_slot = unit.write, unit.slot
        for valid, slot in zip(ages, slots, strict=True):
            m.d.sync += [valid.eq(before_valid), slot.eq(before_slot)]
            before_valid, before_slot = valid, slot
        was_ready = Signal()
        m.d.sync += was_ready.eq(unit.ready)
        decided = Cat(ages).bit_select(delay, 1)
        decided_slot = Cat(slots).word_select(delay, config.store_bits)
        m.d.comb += [
            delay.eq(AnyConst(len(delay))),
            Assume(delay < UNDER_WAY, "no more are under way"),
            Assume(~unit.write | was_ready, "only while there is place"),
            Assume(~unit.waits | (decided & (unit.waits_slot == decided_slot)), "it is decided"),
        ]
        flying = Signal(depth)
        for place in range(depth):
            m.d.comb += flying[place].eq(
                Cat(
                    valid & (slot == place) & (delay >= age)
                    for age, (valid, slot) in enumerate(zip(ages, slots, strict=True))
                ).any()
            )

        # On the list. The next one round the ring is the oldest.
        listed = Signal(depth)
        oldest = Signal(config.store_bits)
        around = [(unit.slot + n)[: config.store_bits] for n in range(depth)]
        m.d.comb += [
            oldest.eq(
                first_of(*((listed.bit_select(at, 1), at) for at in around), default=unit.slot)
            ),
            Assume(
                ~unit.leaves | (listed.any() & (unit.leaves_slot == oldest)),
                "they leave in their order",
            ),
        ]
        for place in range(depth):
            m.d.sync += listed[place].eq(
                (listed[place] & ~(unit.leaves & (unit.leaves_slot == place)))
                | (unit.waits & (unit.waits_slot == place))
            )

        # The tags.
        place = Signal(config.store_bits)
        bit = Signal(range(config.word_bits))
        stored = Signal()
        m.d.comb += [place.eq(AnyConst(config.store_bits)), bit.eq(AnyConst(len(bit)))]
        needed = flying | listed
        ours = needed.bit_select(place, 1)
        with m.If(unit.write & (unit.slot == place)):
            m.d.sync += stored.eq(unit.secret_write_tags.bit_select(bit, 1))
        m.d.comb += [
            # The next place takes whatever comes.
            Assert(~needed.bit_select(unit.slot, 1), "a place is written that is needed"),
            Assert(
                ~(ours & (unit.read_slot == place))
                | (unit.secret_tags.bit_select(bit, 1) == stored),
                "other tags than those of the store",
            ),
        ]

        if self.lemmas:
            # Where they lie in the ring, from the next place backwards.
            oldest_seen = self.see(m, "oldest", config.store_bits)
            waiting = self.see(m, "waiting", range(config.waiting + 1))
            reach = Signal(config.store_bits)
            undecided = Signal(range(UNDER_WAY + 1))
            # How far it reached in the cycles before: it grows by one at a time, but where a tag
            # store goes onto the list that was empty.
            before = [Signal(config.store_bits, name=f"reach_{n + 1}") for n in range(3)]
            for then, now in zip(before, (reach, *before), strict=False):
                m.d.sync += then.eq(now)
                m.d.comb += Assert(
                    (now <= then + 1) | (now <= UNDER_WAY + 2), "lemma 8: it grows slowly"
                )
            m.d.comb += [
                reach.eq(unit.slot - oldest_seen),
                undecided.eq(sum(valid & (delay >= age) for age, valid in enumerate(ages))),
                Assert(waiting == sum(listed), "lemma 2: as many as are counted"),
                Assert(reach < depth - 2, "lemma 3: the ring does not reach round"),
                Assert(self.see(m, "ahead", config.store_bits) == before[0], "lemma 6: ahead"),
                Assert(~unit.ready | (before[1] < depth - UNDER_WAY), "lemma 7: ready"),
            ]
            for age, slot in enumerate(slots):
                back = (unit.slot - sum(ages[: age + 1]))[: config.store_bits]
                m.d.comb += Assert(~ages[age] | (slot == back), f"lemma 4: of age {age}")
            for slot in range(depth):
                back = (unit.slot - slot)[: config.store_bits]
                m.d.comb += Assert(
                    ~listed[slot] | ((back > undecided) & (back <= reach)), f"lemma 5: place {slot}"
                )
            rows = [self.see(m, f"secret_places[{n}]", config.word_bits) for n in range(depth)]
            held = Cat(row.bit_select(bit, 1) for row in rows).bit_select(place, 1)
            m.d.comb += Assert(~ours | (held == stored), "lemma 1: what is held")

        # There is place again.
        rest = Signal(range(RECOVERY + 1))
        m.d.sync += rest.eq(Mux(needed.any() | unit.write, 0, rest + (rest != RECOVERY)))
        m.d.comb += [
            Assert(unit.ready | (rest < RECOVERY), "no place, and nothing is needed"),
            Cover(~unit.ready & listed.any(), "the ring waits for the oldest"),
            Cover(
                ours & (unit.read_slot == place) & (unit.slot[-1] != place[-1]) & stored,
                "tags are read half a ring later",
            ),
            Cover(listed.bit_select(0, 1) & listed.bit_select(1, 1) & unit.leaves, "two wait"),
        ]

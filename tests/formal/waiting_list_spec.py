"""Formal spec of the waiting list: probes leave it in order, and none of them is forgotten.

One probe is followed, any one: its word and one bit of its detail.
"""

from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Mux, Signal, Value
from amaranth.lib import wiring
from emte.rtl.config import TagConfig
from emte.rtl.waiting_list import UNDER_WAY, WaitingList
from unit_spec import UnitSpec, first_of

__all__ = ["DECISION", "PATIENCE", "WaitingListSpec"]

DECISION = 6
"""Cycles from a replay to what becomes of it, at the most."""

BEGIN = 4
"""Cycles from a call to the beginning of a replay."""

PATIENCE = BEGIN + DECISION
"""Cycles from a call, or a decision, to the next decision; not counted are those that are held."""


class WaitingListSpec(UnitSpec):
    """A queue that does not overflow, and replays its head whenever it is called.

    Parameters
    ----------
    config : :class:`TagConfig`
        Geometry.
    lemmas : bool
        State what the proof needs to know of the unit's registers.
    unit : :class:`amaranth.lib.wiring.Component`
        What is to be held to it, instead of the list of that geometry.

    Assumed of the cache: it is decided about a replay a fixed number of cycles after it began, and
    then only if it is live; no more than ``UNDER_WAY`` - 3 probes come while there is no room.
    """

    def __init__(
        self, config: TagConfig, *, lemmas: bool = False, unit: wiring.Component | None = None
    ) -> None:
        self.config = config
        self.lemmas = lemmas
        super().__init__(unit or WaitingList(config))

    def specify(self, m: Module) -> None:
        unit = self.unit
        config = self.config
        depth = config.waiting

        # The queue, as it should be.
        head = Signal(config.waiting_bits)
        count = Signal(range(depth + 1))
        m.d.sync += [head.eq(head + unit.pop), count.eq(count + unit.push - unit.pop)]
        m.d.comb += [
            Assert(count < depth, "the list overflows"),
            Assert(unit.empty == (count == 0), "empty, and it is not"),
            Assert(unit.tail == (head + count)[: config.waiting_bits], "another tail"),
        ]
        late = Signal(range(UNDER_WAY))
        with m.If(unit.room):
            m.d.sync += late.eq(0)
        with m.Elif(unit.push):
            m.d.sync += late.eq(late + 1)
        m.d.comb += Assume(unit.room | ~unit.push | (late < UNDER_WAY - 3), "no more are under way")

        # Replays under way, the youngest first.
        delay = Signal(range(DECISION))
        valid = [Signal(name=f"valid_{n}") for n in range(DECISION)]
        places = [Signal(config.waiting_bits, name=f"place_{n}") for n in range(DECISION)]
        epochs = [Signal(name=f"epoch_{n}") for n in range(DECISION)]
        before: tuple[Value, ...] = unit.word_valid, unit.place, unit.epoch
        for stage in zip(valid, places, epochs, strict=True):
            m.d.sync += [register.eq(value) for register, value in zip(stage, before, strict=True)]
            before = stage
        decided = Cat(valid).bit_select(delay, 1)
        live = decided & (Cat(epochs).bit_select(delay, 1) == unit.now)
        decided_place = Cat(places).word_select(delay, config.waiting_bits)
        m.d.comb += [
            delay.eq(AnyConst(len(delay))),
            Assume((delay > 0) & (delay < DECISION), "it takes two to six cycles"),
            Assume((unit.pop | unit.fail) == live, "what is live is decided"),
            Assume(~(unit.pop & unit.fail), "one way or the other"),
            Assert(~live | (count != 0), "a replay of nothing"),
            Assert(~live | (decided_place == head), "another than the head is replayed"),
        ]

        # What is followed.
        place = Signal(config.waiting_bits)
        detail_bit = Signal(range(len(Value.cast(unit.detail))))
        word = Signal(config.word_address_bits)
        detail = Signal()
        ticket = Signal.like(unit.push_detail.ticket.as_value())
        m.d.comb += [
            place.eq(AnyConst(config.waiting_bits)),
            detail_bit.eq(AnyConst(len(detail_bit))),
        ]
        pushed = Value.cast(unit.push_detail)
        with m.If(unit.push & (unit.tail == place)):
            m.d.sync += [
                word.eq(unit.push_word),
                detail.eq(pushed.bit_select(detail_bit, 1)),
                ticket.eq(unit.push_detail.ticket.as_value()),
            ]
        inside = (place - head)[: config.waiting_bits] < count
        # A replay that is void may be of a place that was left.
        replayed = unit.word_valid & (unit.place == place) & (unit.epoch == unit.now)
        m.d.comb += [
            Assert(~replayed | inside, "a replay of what is not on the list"),
            Assert(~replayed | (unit.word == word), "the word is another"),
            Assert(
                ~(inside & (unit.detail_place == place))
                | (Value.cast(unit.detail).bit_select(detail_bit, 1) == detail),
                "the detail is another",
            ),
            Assert(
                ~(inside & (head == place)) | (unit.head_ticket.as_value() == ticket),
                "the ticket of another",
            ),
        ]

        # Who is called comes: within some cycles a replay is decided that began after the call. The
        # door is open in every second cycle, so a replay may only be held for two in a row.
        owed = Signal()
        held = Signal()
        patience = Signal(range(PATIENCE + 2))
        begun = [Signal(name=f"begun_{n}") for n in range(DECISION)]  # after the call
        answered = live & Cat(begun).bit_select(delay, 1)
        for mark, value in zip(begun, [owed, *begun[:-1]], strict=True):
            m.d.sync += mark.eq(value)
        m.d.sync += [
            owed.eq(
                (unit.wake | (owed & ~answered))
                & (count != 0)
                & ((count != 1) | unit.push | ~unit.pop)
            ),
            held.eq(unit.hold),
        ]
        with m.If(~owed | live):
            m.d.sync += patience.eq(0)
        with m.Elif(~unit.hold & ~held & (patience <= PATIENCE)):
            m.d.sync += patience.eq(patience + 1)
        m.d.comb += Assert(patience <= PATIENCE, "the head is called, and does not come")

        if self.lemmas:
            # The replays under way are those from the head on, and the void ones went before.
            issue = self.see(m, "issue", config.waiting_bits)
            rows = [self.see(m, f"words[{n}]", config.word_address_bits) for n in range(depth)]
            details = [self.see(m, f"details[{n}]", len(pushed)) for n in range(depth)]
            tickets = [self.see(m, f"tickets[{n}]", len(ticket)) for n in range(depth)]
            stages = [(unit.word_valid, unit.place, unit.epoch)]
            stages += [
                (flag & (delay >= age), at, epoch)
                for age, (flag, at, epoch) in enumerate(zip(valid, places, epochs, strict=True))
            ]
            under_way = Cat(flag & (epoch == unit.now) for flag, _, epoch in stages)
            for age, (flag, at, _) in enumerate(stages):
                back = (issue - sum(under_way[: age + 1]))[: config.waiting_bits]
                m.d.comb += [
                    Assert(~under_way[age] | (at == back), f"lemma 1: replay {age}"),
                    Assert(
                        ~flag | under_way[age] | ~under_way[age + 1 :].any(),
                        f"lemma 2: void replay {age}",
                    ),
                ]

            def row(memory: list[Signal]) -> Value:
                return Cat(memory).word_select(place, len(memory[0]))

            awake, woken = self.see(m, "awake", 1), self.see(m, "woken", 1)
            may = self.see(m, "may", 1)
            begins = Mux(awake, Mux(unit.replay, 3, Mux(may, 2 + held, 1 + held)), 0)
            oldest = [(under_way[age], BEGIN + age) for age in reversed(range(DECISION + 1))]
            limit = first_of(*oldest, default=begins)
            room = Mux(
                unit.room, count < depth - UNDER_WAY + 2, count <= depth - UNDER_WAY + 2 + late
            )
            m.d.comb += [
                Assert(self.see(m, "head", config.waiting_bits) == head, "lemma 3: the head"),
                Assert(
                    self.see(m, "count", range(depth + 1)) + self.see(m, "pushed", 1)
                    == count + self.see(m, "popped", 1),
                    "lemma 4: the count",
                ),
                Assert(~(may | unit.replay) | (issue != unit.tail), "lemma 15: there is one"),
                Assert(awake | ~(may | unit.replay), "lemma 16: no replay of a list that sleeps"),
                Assert(
                    (issue - head)[: config.waiting_bits] == sum(under_way), "lemma 5: under way"
                ),
                Assert(sum(under_way) <= count, "lemma 6: no more than there are"),
                Assert(room, "lemma 7: room"),
                Assert(~inside | (row(rows) == word), "lemma 8: the word"),
                Assert(
                    ~inside | (row(details).bit_select(detail_bit, 1) == detail),
                    "lemma 9: the detail",
                ),
                Assert(~inside | (row(tickets) == ticket), "lemma 10: the ticket"),
                Assert(
                    ~owed | woken | (awake & ~(under_way & ~Cat(owed, begun)).any()),
                    "lemma 11: the call is known",
                ),
                Assert(awake | ~under_way.any(), "lemma 13: the list sleeps"),
                Assert(~owed | (patience <= limit), "lemma 14: how long it may take until then"),
                Assert(~owed | (count != 0), "lemma 12: somebody is called"),
            ]

        failed = Signal()
        full = Signal()
        m.d.sync += [failed.eq(failed | unit.fail), full.eq(full | (count == depth - 1))]
        m.d.comb += [
            Cover(unit.pop & (decided_place == place) & failed, "it leaves at another try"),
            Cover(full & (count == 0), "full, and empty again"),
            Cover(decided & ~live, "a void replay"),
            Cover(unit.pop & unit.push & (count == 1), "one comes as the last one leaves"),
        ]

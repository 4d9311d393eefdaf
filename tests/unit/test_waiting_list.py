# amaranth: UnusedElaboratable=no
import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.config import SMALL
from emte.rtl.layouts import detail_layout, ticket_layout
from emte.rtl.waiting_list import UNDER_WAY, WaitingList
from emte.sim.harness import simulate
from unit_support import integer

DETAIL = detail_layout(SMALL)
DECISION = 4
"""Cycles from a replay to what becomes of it, as in the cache."""


def test_init():
    dut = WaitingList(SMALL)
    assert dut.config is SMALL
    assert dut.signature == Signature(
        {
            "push": In(1),
            "push_word": In(32),
            "push_detail": In(DETAIL),
            "pop": In(1),
            "fail": In(1),
            "wake": In(1),
            "hold": In(1),
            "replays": Out(1),
            "replay": Out(1),
            "word_valid": Out(1),
            "word": Out(32),
            "place": Out(4),
            "epoch": Out(1),
            "now": Out(1),
            "detail_place": In(4),
            "detail": Out(DETAIL),
            "tail": Out(4),
            "head_ticket": Out(ticket_layout(SMALL)),
            "empty": Out(1, init=1),
            "room": Out(1),
        }
    )


@dataclass
class Waiting:
    """A probe on the list, and whether its line is there."""

    word: int
    ticket: int
    found: bool = False


@dataclass
class Bench:
    """Plays the pipeline: each replay succeeds, fails, or is void, some cycles after it began."""

    found: random.Random
    dut: WaitingList = field(default_factory=lambda: WaitingList(SMALL))
    inside: deque = field(default_factory=deque)
    left: list = field(default_factory=list)
    flying: deque = field(default_factory=lambda: deque([None] * DECISION))
    replays: int = 0
    voided: int = 0
    pushed: int = 0
    replay_before: int = 0

    async def cycle(self, ctx, push=None, *, hold=0, wake=0):
        """One cycle; the probe that left the list in it, if one did."""
        dut = self.dut
        assert ctx.get(dut.empty) == (not self.inside)
        if self.inside:
            assert ctx.get(dut.head_ticket.number) == self.inside[0].ticket
        assert ctx.get(dut.tail) == self.pushed % SMALL.waiting
        # The door stays shut for one cycle in two at most.
        assert not (ctx.get(dut.replay) and self.replay_before)
        self.replay_before = ctx.get(dut.replay)

        started = None
        if ctx.get(dut.word_valid):
            place = ctx.get(dut.place)
            ctx.set(dut.detail_place, place)
            ticket = ctx.get(dut.detail.ticket.number)
            started = ctx.get(dut.word), ticket, ctx.get(dut.epoch)
            self.replays += 1
        self.flying.append(started)
        decided = self.flying.popleft()
        pop = fail = 0
        if decided is not None:
            word, ticket, epoch = decided
            if epoch != ctx.get(dut.now):
                self.voided += 1
            else:
                head = self.inside[0]
                assert (word, ticket) == (head.word, head.ticket), "not the one that is next"
                pop, fail = head.found, not head.found
        ctx.set(dut.pop, pop)
        ctx.set(dut.fail, fail)
        ctx.set(dut.hold, hold)
        ctx.set(dut.wake, wake)
        ctx.set(dut.push, push is not None)
        if push is not None:
            ctx.set(dut.push_word, push.word)
            detail = {"ticket": {"number": push.ticket}}
            ctx.set(dut.push_detail.as_value(), integer(DETAIL, detail))
        await ctx.tick()
        gone = self.inside.popleft() if pop else None
        if gone is not None:
            self.left.append(gone)
        if push is not None:
            self.inside.append(push)
            self.pushed += 1
        return gone


def play(scenario, rng):
    bench = Bench(rng)

    async def run(ctx):
        await scenario(ctx, bench)

    simulate(bench.dut, run)
    return bench


def test_sim_random(rng):
    """All leave in order, whatever fails; and what the door let in finds room."""
    pushed = []

    async def scenario(ctx, bench):
        under_way = deque([None] * (UNDER_WAY - 3))
        for cycle in range(6000):
            if cycle % 100 == 0:
                rate, arrival = rng.choice((0.05, 0.4, 1)), rng.choice((0.02, 0.2, 0.9))
                held = rng.choice((0, 0.3))
            room = ctx.get(bench.dut.room) and not ctx.get(bench.dut.replay)
            probe = None
            if room and rng.random() < rate:
                probe = Waiting(rng.getrandbits(32), rng.getrandbits(8))
                pushed.append(probe)
            under_way.append(probe)
            arrived = rng.random() < arrival
            if arrived:
                for waiting in list(bench.inside)[: rng.randrange(4)]:
                    waiting.found = True
            await bench.cycle(
                ctx, under_way.popleft(), hold=rng.random() < held, wake=rng.random() < arrival
            )
        while under_way or bench.inside:
            for waiting in bench.inside:
                waiting.found = True
            await bench.cycle(ctx, under_way.popleft() if under_way else None, wake=1)

    bench = play(scenario, rng)
    assert bench.left == pushed
    assert bench.replays > len(pushed)
    assert bench.voided


def test_sim_sleeps_until_woken(rng):
    """A replay that fails is not tried again by itself; one that was woken meanwhile is."""

    async def scenario(ctx, bench):
        for number in range(3):
            await bench.cycle(ctx, Waiting(number, number))
        await bench.cycle(ctx, wake=1)
        for _ in range(20):
            await bench.cycle(ctx)
        replays = bench.replays
        assert replays
        for _ in range(30):
            await bench.cycle(ctx)
        assert bench.replays == replays
        for waiting in bench.inside:
            waiting.found = True
        await bench.cycle(ctx, wake=1)
        for _ in range(20):
            await bench.cycle(ctx)
        assert len(bench.left) == 3
        assert bench.voided

    play(scenario, rng)


def test_sim_wake_of_an_empty_list_is_forgotten(rng):
    async def scenario(ctx, bench):
        for _ in range(3):
            await bench.cycle(ctx, wake=1)
        await bench.cycle(ctx)
        await bench.cycle(ctx, Waiting(1, 1))
        for _ in range(20):
            await bench.cycle(ctx)
        assert not bench.replays

    play(scenario, rng)


def test_sim_as_many_as_may_come(rng):
    """All that the door let in while the list slept leave it once it is woken."""
    pushed = []

    async def scenario(ctx, bench):
        under_way = deque([None] * (UNDER_WAY - 3))
        await bench.cycle(ctx)
        await bench.cycle(ctx)
        for number in range(40):
            probe = Waiting(number, number, found=True) if ctx.get(bench.dut.room) else None
            pushed.extend([probe] if probe else [])
            under_way.append(probe)
            await bench.cycle(ctx, under_way.popleft())
        for _ in range(80):
            await bench.cycle(ctx, wake=1)

    assert play(scenario, rng).left == pushed
    assert len(pushed) == SMALL.waiting - 1


def test_sim_hold_costs_no_probe(rng):
    """While the replay is held, none begins; then it goes on where it was."""

    async def scenario(ctx, bench):
        for number in range(4):
            await bench.cycle(ctx, Waiting(number, number, found=True))
        await bench.cycle(ctx, wake=1, hold=1)
        for _ in range(20):
            await bench.cycle(ctx, hold=1)
        assert not bench.replays
        for _ in range(20):
            await bench.cycle(ctx)
        assert len(bench.left) == bench.replays == 4

    play(scenario, rng)


def test_timing_replay(rng):
    """Every second cycle one goes out, and leaves as soon as it is decided."""
    gone = []

    async def scenario(ctx, bench):
        for number in range(4):
            await bench.cycle(ctx, Waiting(number, number, found=True))
        await bench.cycle(ctx, wake=1)
        gone.extend([await bench.cycle(ctx) is not None for _ in range(20)])

    play(scenario, rng)
    first = gone.index(True)
    # Woken, awake, looked for, planned, begun; then the decision.
    assert first == 4 + DECISION
    assert gone[first : first + 8] == [True, False] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("push", "the waiting list overflows"),
        ("pop", "a probe leaves the waiting list, which is empty"),
    ],
)
def test_sim_misuse_is_an_error(change, message):
    dut = WaitingList(SMALL)

    async def bench(ctx):
        ctx.set(getattr(dut, change), 1)
        for _ in range(SMALL.waiting + 2):
            await ctx.tick()

    with pytest.raises(AssertionError, match=message):
        simulate(dut, bench)

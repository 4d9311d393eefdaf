# amaranth: UnusedElaboratable=no
from collections import deque

import pytest
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.config import SMALL
from emte.rtl.layouts import Outcome, tfsr_layout, verdict_layout
from emte.rtl.verdict_queue import UNDER_WAY, VerdictQueue, released_layout
from emte.sim.harness import simulate
from unit_support import integer, plain, watched

RELEASED = released_layout(SMALL)


def test_init():
    dut = VerdictQueue(SMALL)
    assert dut.config is SMALL
    assert dut.signature == Signature(
        {
            "push": In(1),
            "released": In(RELEASED),
            "room": Out(1, init=1),
            "verdict": Out(stream.Signature(verdict_layout(SMALL))),
            "tfsr": Out(tfsr_layout()),
            "empty": Out(1),
        }
    )


class Bench:
    """Drives the queue cycle by cycle, beside one of the same content."""

    def __init__(self, dut, ctx):
        self.dut = dut
        self.ctx = ctx
        self.inside = deque()
        self.tfsr = {"el0": 0, "el1": 0}
        self.now = 0

    async def cycle(self, push=None, *, ready=True):
        """One cycle; returns the verdict that was transferred."""
        dut, ctx = self.dut, self.ctx
        ctx.set(dut.push, push is not None)
        if push is not None:
            ctx.set(dut.released.as_value(), integer(RELEASED, push))
        ctx.set(dut.verdict.ready, ready)
        shown = plain(ctx.get(dut.verdict.payload))
        valid = ctx.get(dut.verdict.valid)
        assert valid == any(due <= self.now for due, _ in self.inside)
        assert ctx.get(dut.empty) == (not self.inside)
        assert plain(ctx.get(dut.tfsr)) == self.tfsr
        if not valid:
            assert not any(Outcome(v).value if n == "outcome" else v for n, v in shown.items())
        else:
            released = self.inside[0][1]
            fault = released["outcome"] not in (Outcome.PASS, Outcome.ASYNC)
            assert shown == {
                **{name: released[name] for name in ("id", "outcome", "wnr")},
                "far": released["value"] if fault else 0,
                "tags": 0 if fault else released["value"],
            }
        await ctx.tick()
        if valid and ready:
            _, released = self.inside.popleft()
            if released["outcome"] is Outcome.ASYNC:
                level = "el0" if released["el0"] else "el1"
                self.tfsr[level] |= 1 << released["half"]
            # The next one has been waiting for the register.
            if self.inside:
                due, other = self.inside[0]
                self.inside[0] = max(due, self.now + 1), other
        if push is not None:
            self.inside.append((self.now + 2, push))
        self.now += 1
        return shown if valid and ready else None


def play(scenario):
    dut = VerdictQueue(SMALL)

    async def bench(ctx):
        await scenario(Bench(dut, ctx))

    simulate(watched(dut), bench)


def released(rng):
    return {
        "value": rng.getrandbits(64),
        "id": rng.getrandbits(6),
        "outcome": rng.choice(list(Outcome)),
        **{name: rng.getrandbits(1) for name in ("wnr", "el0", "half")},
    }


def test_sim_random(rng):
    """In order, each with the field that it has; and all that is under way finds room."""

    async def scenario(bench):
        under_way = deque([None] * (UNDER_WAY - 1))
        for cycle in range(3000):
            if cycle % 50 == 0:
                eagerness, rate = rng.choice([0.1, 0.5, 1]), rng.choice([0.1, 0.6, 1])
            room = bench.ctx.get(bench.dut.room)
            under_way.append(released(rng) if room and rng.random() < rate else None)
            await bench.cycle(under_way.popleft(), ready=rng.random() < eagerness)
        for _ in range(40):
            await bench.cycle(under_way.popleft() if under_way else None)
        assert bench.ctx.get(bench.dut.empty)
        assert bench.tfsr == {"el0": 3, "el1": 3}

    play(scenario)


def test_timing_throughput(rng):
    """One per cycle, two cycles after it came."""

    async def scenario(bench):
        taken = [await bench.cycle(released(rng)) for _ in range(20)]
        assert all(taken[2:])
        assert not any(taken[:2])

    play(scenario)


def test_sim_overflow_is_an_error(rng):
    async def scenario(bench):
        for _ in range(20):
            await bench.cycle(released(rng), ready=False)

    with pytest.raises(AssertionError, match="the queue of verdicts overflows"):
        play(scenario)

# amaranth: UnusedElaboratable=no
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.barrier import SpeculationBarrier
from emte.rtl.config import Barrier, TagConfig
from emte.rtl.layouts import (
    Op,
    Outcome,
    admitted_layout,
    request_layout,
    resolve_signature,
    result_layout,
    tfsr_layout,
    verdict_layout,
)
from emte.sim.harness import simulate
from unit_support import integer, plain, watched

FORMS = {form.value: TagConfig(held=4, branches=4, id_bits=4, barrier=form) for form in Barrier}
OBLIVIOUS, DELAY, NONE = FORMS.values()


@pytest.mark.parametrize("form", Barrier)
def test_init(form):
    config = TagConfig(held=4, barrier=form)
    dut = SpeculationBarrier(config)
    assert dut.config is config
    assert dut.signature == Signature(
        {
            "access": In(stream.Signature(request_layout(config))),
            "admitted": Out(stream.Signature(admitted_layout(config))),
            "checked": In(stream.Signature(result_layout(config))),
            "unchecked": In(stream.Signature(result_layout(config))),
            "verdict": Out(stream.Signature(verdict_layout(config))),
            "resolve": In(resolve_signature(config)),
            "tfsr": Out(tfsr_layout()),
            "idle": Out(1),
        }
    )


@dataclass
class Access:
    serial: int
    id: int
    branches: set
    fields: dict
    half: int
    el0: int
    unresolved: set = field(init=False)
    squashed: bool = False
    admitted: bool = False
    finding: dict | None = None
    answered: bool = False

    def __post_init__(self):
        self.unresolved = set(self.branches)


class Bench:
    """The core, and a pipeline that finds what it likes, on either side of the barrier.

    Every cycle the bench looks at the outputs, and holds them to the rules.
    """

    def __init__(self, dut, ctx):
        self.dut = dut
        self.ctx = ctx
        self.config = dut.config
        self.request = request_layout(self.config)
        self.result = result_layout(self.config)
        self.accesses = []
        self.owners = {}  # live accesses by id
        self.offered = None
        self.queues = {"checked": deque(), "unchecked": deque()}
        self.offered_results = {"checked": None, "unchecked": None}
        self.at_verdict = None
        self.verdicts = []
        self.tfsr = {"el0": 0, "el1": 0}
        self.cycle_number = 0

    def offer(self, branches=(), *, id=None, half=0, el0=0, op=None, tags=0):
        """Offer an access from the next cycle on. Returns it."""
        serial = len(self.accesses) + 1
        if id is None:
            id = next(n for n in range(1 << self.config.id_bits) if n not in self.owners)
        assert id not in self.owners
        if op is None:
            op = Op.LOAD if branches else Op.STG
        access = {
            "id": id,
            "op": op,
            "va": serial | half << 55,
            "pa": serial << 4,
            "bytes": serial % 64 + 1,
            "el0": el0,
            "branches": sum(1 << branch for branch in branches),
            "tags": tags,
        }
        control = {"tbi": serial % 4, "storage_base": serial << 12}
        fields = plain(
            self.request.from_bits(integer(self.request, {"access": access, "control": control}))
        )
        self.offered = Access(serial, id, set(branches), fields, half, el0)
        self.payload = integer(self.request, fields)
        self.accesses.append(self.offered)
        self.owners[id] = self.offered
        return self.offered

    async def cycle(
        self, *, resolve=None, admit=True, take=True, find=lambda access: None, give=True
    ):
        """One cycle. ``resolve`` is a branch and whether it was mispredicted; ``admit`` and
        ``take`` tell whether the ready signals of ``admitted`` and ``verdict`` are set; ``find``
        gives the queue and the finding of an access that is admitted; ``give`` tells whether
        results may be offered. Returns the access whose verdict was transferred."""
        dut, ctx = self.dut, self.ctx
        self.cycle_number += 1
        ctx.set(dut.access.valid, self.offered is not None)
        if self.offered is not None:
            ctx.set(dut.access.payload.as_value(), self.payload)
        ctx.set(dut.resolve.valid, resolve is not None)
        ctx.set(dut.resolve.branch, resolve[0] if resolve else 0)
        ctx.set(dut.resolve.mispredicted, bool(resolve and resolve[1]))
        ctx.set(dut.admitted.ready, admit)
        ctx.set(dut.verdict.ready, take)
        for name, queue in self.queues.items():
            port = getattr(dut, name)
            if self.offered_results[name] is None and queue and give:
                access, bits = queue[0]
                self.offered_results[name] = access
                ctx.set(port.payload.as_value(), bits)
            ctx.set(port.valid, self.offered_results[name] is not None)
        _, _, *sampled = await ctx.tick().sample(
            dut.access.ready,
            dut.admitted.valid,
            dut.admitted.payload,
            dut.checked.ready,
            dut.unchecked.ready,
            dut.verdict.valid,
            dut.verdict.payload,
            dut.tfsr,
        )
        accepted, admitted_valid, admitted, checked, unchecked, valid, verdict, tfsr = sampled

        assert plain(tfsr) == self.tfsr
        transferred = self._look_at_verdict(valid, verdict, take)
        if admitted_valid:
            self._look_at_admitted(admitted, admit, find)
        for name, ready in (("checked", checked), ("unchecked", unchecked)):
            if self.offered_results[name] is not None and ready:
                self.queues[name].popleft()
                self.offered_results[name] = None
        if resolve is not None:
            self._resolve(*resolve)
        if accepted:
            self.offered = None
        return transferred

    def _look_at_verdict(self, valid, verdict, take):
        if not valid:
            assert verdict.as_bits() == 0, "the payload tells something while it is not valid"
            assert self.at_verdict is None
            return None
        verdict = plain(verdict)
        access = self.at_verdict
        if access is None:
            access = self.at_verdict = self.owners[verdict["id"]]
            if self.config.barrier is not Barrier.NONE:
                assert not access.unresolved, "a verdict before its branches are resolved"
        assert not access.squashed or self.config.barrier is Barrier.NONE
        assert verdict == {"id": access.id, **access.finding}
        if not take:
            return None
        assert not access.answered
        access.answered = True
        self.verdicts.append(access)
        del self.owners[access.id]
        self.at_verdict = None
        if access.finding["outcome"] is Outcome.ASYNC:
            self.tfsr["el0" if access.el0 else "el1"] |= 1 << access.half
        return access

    def _look_at_admitted(self, admitted, admit, find):
        admitted = plain(admitted)
        access = self.accesses[admitted["access"]["va"] % (1 << 55) - 1]
        assert admitted["control"] == access.fields["control"]
        seen = admitted["access"] | {"branches": access.fields["access"]["branches"]}
        assert seen == access.fields["access"]
        ticket = admitted["ticket"]
        assert (ticket["id"], ticket["half"], ticket["el0"]) == (access.id, access.half, access.el0)
        if self.config.barrier is Barrier.DELAY:
            assert not access.unresolved, "looked up before its branches are resolved"
            assert not access.squashed
        if not admit:
            return
        assert not access.admitted
        access.admitted = True
        queue, finding = find(access) or (
            "checked",
            {"outcome": Outcome.PASS, "far": 0, "wnr": 0, "tags": access.serial},
        )
        access.finding = finding
        bits = integer(self.result, {"ticket": ticket, "secret_finding": finding})
        self.queues[queue].append((access, bits))

    def _resolve(self, branch, mispredicted):
        for access in self.accesses:
            if branch not in access.unresolved:
                continue
            access.unresolved.remove(branch)
            # Without a barrier a squashed access keeps its id until its verdict.
            if mispredicted and not access.squashed:
                access.squashed = True
                if self.config.barrier is not Barrier.NONE:
                    del self.owners[access.id]


def play(config, scenario):
    dut = SpeculationBarrier(config)

    async def bench(ctx):
        await scenario(Bench(dut, ctx))

    simulate(watched(dut), bench)


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_sim_random(config, rng):
    """Every access that is not squashed has one verdict, its own, and not too early."""

    def find(access):
        finding = {
            "outcome": rng.choice([Outcome.PASS, Outcome.PASS, *Outcome]),
            "far": rng.getrandbits(40) << 24 | access.serial,
            "wnr": rng.getrandbits(1),
            "tags": rng.getrandbits(64),
        }
        return rng.choice(["checked", "unchecked"]), finding

    async def scenario(bench):
        opened = set()
        moods = [0.5] * 5
        for cycle in range(1500):
            if cycle % 50 == 0:
                moods = [rng.choice([0.1, 0.5, 1]) for _ in moods]
            resolve = None
            if opened and rng.random() < 0.5 * moods[0]:
                resolve = (rng.choice(sorted(opened)), rng.random() < 0.3)
            if bench.offered is None and rng.random() < moods[1] and len(bench.owners) < 16:
                opened |= {rng.randrange(4)}
                branches = set()
                if rng.random() < 0.6:
                    branches = set(rng.sample(sorted(opened), rng.randint(1, len(opened))))
                free = [n for n in range(16) if n not in bench.owners]
                bench.offer(
                    branches,
                    id=rng.choice(free),
                    half=rng.getrandbits(1),
                    el0=rng.getrandbits(1),
                    tags=0 if branches else rng.getrandbits(64),
                )
            await bench.cycle(
                resolve=resolve,
                admit=rng.random() < moods[2],
                take=rng.random() < moods[3],
                give=rng.random() < moods[4],
                find=find,
            )
            if resolve:
                opened.remove(resolve[0])
        for _ in range(200):
            resolve = (opened.pop(), False) if opened else None
            await bench.cycle(resolve=resolve, find=find)
        assert bench.ctx.get(bench.dut.idle)
        for access in bench.accesses:
            assert access.answered != (access.squashed and config is not NONE)
        counts = {
            "squashed": sum(access.squashed for access in bench.accesses),
            "speculative": sum(bool(a.branches) and a.answered for a in bench.accesses),
            "certain": sum(not access.branches for access in bench.accesses),
        }
        assert all(count > 40 for count in counts.values()), counts

    play(config, scenario)


@pytest.mark.parametrize("config", [OBLIVIOUS, DELAY], ids=["oblivious", "delay"])
def test_sim_certain_access_passes_a_full_table(config):
    """Every entry waits for its branch, yet certain accesses come and go."""

    async def scenario(bench):
        for _ in range(config.held):
            bench.offer({0})
            await bench.cycle()
        for _ in range(10):
            await bench.cycle()
        for n in range(6):
            certain = bench.offer()
            for _ in range(8):
                await bench.cycle()
            assert certain.answered
            assert len(bench.verdicts) == n + 1
        await bench.cycle(resolve=(0, False))
        for _ in range(20):
            await bench.cycle()
        assert len(bench.verdicts) == config.held + 6

    play(config, scenario)


@pytest.mark.parametrize("config", [OBLIVIOUS, DELAY], ids=["oblivious", "delay"])
def test_sim_speculative_access_waits_for_an_entry(config):
    """One that is resolved while it waits at the head needs none any more."""

    async def scenario(bench):
        for _ in range(config.held):
            bench.offer({0})
            await bench.cycle()
        last = bench.offer({1})
        for _ in range(10):
            await bench.cycle()
        assert not last.admitted
        await bench.cycle(resolve=(1, False))
        for _ in range(8):
            await bench.cycle()
        assert bench.verdicts == [last]

    play(config, scenario)


@pytest.mark.parametrize("config", [OBLIVIOUS, DELAY], ids=["oblivious", "delay"])
@pytest.mark.parametrize("give", [True, False], ids=["outcome", "no outcome"])
def test_sim_squashed_at_every_stage(config, give):
    """At the door, in the queue, in the pipeline, in the table: it leaves nothing, and its id is
    free in the next cycle."""

    async def scenario(bench):
        answered = []
        for delay in range(10):
            squashed = bench.offer({2}, id=7)
            for _ in range(delay):
                await bench.cycle(give=give)
            await bench.cycle(resolve=(2, True), give=give)
            assert squashed.squashed
            answered.append(bench.offer({3}, id=7))
            for _ in range(12):
                await bench.cycle()
            assert bench.verdicts == answered[:-1]
            await bench.cycle(resolve=(3, False))
            for _ in range(6):
                await bench.cycle()
            assert bench.verdicts == answered
            assert bench.ctx.get(bench.dut.idle)

    play(config, scenario)


def test_sim_squashed_at_a_closed_door():
    """An access that is squashed before it is taken is taken all the same, and dropped."""

    async def scenario(bench):
        first = [bench.offer({0})]
        await bench.cycle(admit=False)
        while bench.offered is None:
            first.append(bench.offer({0}))
            await bench.cycle(admit=False)
        await bench.cycle(resolve=(0, True), admit=False)
        for _ in range(10):
            await bench.cycle()
        assert bench.offered is None
        assert bench.verdicts == []
        assert bench.ctx.get(bench.dut.idle)
        assert len(first) > 3

    play(OBLIVIOUS, scenario)


def test_sim_late_outcome_meets_no_new_owner():
    """The entry of a squashed access is not given away before its outcome has come back."""

    async def scenario(bench):
        for _ in range(OBLIVIOUS.held):
            bench.offer({0})
            await bench.cycle(give=False)
        for _ in range(6):
            await bench.cycle(give=False)
        await bench.cycle(resolve=(0, True), give=False)
        waiting = bench.offer({1})
        for _ in range(6):
            await bench.cycle(give=False)
        assert not waiting.admitted
        for _ in range(12):
            await bench.cycle()
        assert waiting.admitted
        assert bench.verdicts == []
        await bench.cycle(resolve=(1, False))
        for _ in range(4):
            await bench.cycle()
        assert bench.verdicts == [waiting]

    play(OBLIVIOUS, scenario)


@pytest.mark.parametrize("config", [OBLIVIOUS, DELAY], ids=["oblivious", "delay"])
def test_sim_verdict_on_offer_is_not_taken_back(config):
    """What is resolved later has nothing to do with it."""

    async def scenario(bench):
        access = bench.offer({0})
        for _ in range(8):
            await bench.cycle(take=False)
        await bench.cycle(resolve=(0, False), take=False)
        for _ in range(8):
            await bench.cycle(take=False)
        assert bench.at_verdict is access
        for branch in range(4):
            await bench.cycle(resolve=(branch, True), take=False)
        await bench.cycle()
        assert bench.verdicts == [access]

    play(config, scenario)


def test_sim_delay_keeps_older_before_younger():
    """What became certain in the table goes before a certain access at the head of the queue."""

    async def scenario(bench):
        older = bench.offer({0})
        for _ in range(4):
            await bench.cycle()
        await bench.cycle(resolve=(0, False))
        younger = bench.offer()
        for _ in range(12):
            await bench.cycle()
        assert bench.verdicts == [older, younger]

    play(DELAY, scenario)


def test_sim_none_holds_nothing():
    """Without a barrier outcomes leave at once, also those of squashed accesses."""

    async def scenario(bench):
        access = bench.offer({0})
        for _ in range(6):
            await bench.cycle()
        assert bench.verdicts == [access]
        access = bench.offer({1})
        await bench.cycle(resolve=(1, True))
        for _ in range(6):
            await bench.cycle()
        assert bench.verdicts[1:] == [access]

    play(NONE, scenario)


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_sim_tfsr(config):
    """Sticky, by half and exception level, from the verdict's transfer on: not of a squashed
    access, and not while it is held."""

    def find(access):
        return "checked", {"outcome": Outcome.ASYNC, "far": 0, "wnr": 0, "tags": 0}

    async def scenario(bench):
        for half, el0 in ((0, 1), (1, 1), (1, 0), (0, 0)):
            before = dict(bench.tfsr)
            bench.offer({0}, half=half, el0=el0)
            for _ in range(8):
                await bench.cycle(find=find, take=False)
            await bench.cycle(resolve=(0, False), find=find, take=False)
            for _ in range(4):
                await bench.cycle(find=find, take=False)
            assert plain(bench.ctx.get(bench.dut.tfsr)) == before
            await bench.cycle(find=find)
            await bench.cycle(find=find)
            assert plain(bench.ctx.get(bench.dut.tfsr)) != before
        assert plain(bench.ctx.get(bench.dut.tfsr)) == {"el0": 3, "el1": 3}

    play(config, scenario)


def test_sim_squashed_access_sets_no_tfsr():
    def find(access):
        return "checked", {"outcome": Outcome.ASYNC, "far": 0, "wnr": 0, "tags": 0}

    async def scenario(bench):
        bench.offer({0})
        for _ in range(8):
            await bench.cycle(find=find)
        await bench.cycle(resolve=(0, True))
        for _ in range(4):
            await bench.cycle()
        assert plain(bench.ctx.get(bench.dut.tfsr)) == {"el0": 0, "el1": 0}

    play(OBLIVIOUS, scenario)


def test_sim_idle():
    """From the first cycle inside until the verdict is taken, an access keeps it from idling."""

    async def scenario(bench):
        assert bench.ctx.get(bench.dut.idle)
        bench.offer({0})
        for _ in range(10):
            await bench.cycle()
            assert not bench.ctx.get(bench.dut.idle)
        await bench.cycle(resolve=(0, False), take=False)
        for _ in range(4):
            await bench.cycle(take=False)
            assert not bench.ctx.get(bench.dut.idle)
        await bench.cycle()
        assert bench.ctx.get(bench.dut.idle)

    play(OBLIVIOUS, scenario)


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_timing_certain(config):
    """Admitted two cycles after the transfer, verdict one after the outcome; one per cycle."""

    async def scenario(bench):
        order = []
        for n in range(20):
            if n < 12:
                bench.offer()
            done = await bench.cycle()
            # Transfer in cycle n, admitted in n + 2, outcome in n + 3, verdict in n + 4.
            order.append(done.serial if done else None)
        assert order == [None] * 4 + list(range(1, 13)) + [None] * 4

    play(config, scenario)


@pytest.mark.parametrize("delay", [0, 1, 5])
def test_timing_release(delay):
    """Two cycles from the resolve to the verdict, if the outcome is there."""

    async def scenario(bench):
        access = bench.offer({0})
        for _ in range(4 + delay):
            await bench.cycle()
        await bench.cycle(resolve=(0, False))
        assert await bench.cycle() is None
        assert await bench.cycle() is access

    play(OBLIVIOUS, scenario)


def test_timing_late_outcome():
    """Two cycles from the outcome to the verdict, if the branch was resolved before."""

    async def scenario(bench):
        access = bench.offer({0})
        for _ in range(6):
            await bench.cycle(give=False)
        await bench.cycle(resolve=(0, False), give=False)
        await bench.cycle(give=False)
        await bench.cycle()
        assert await bench.cycle() is None
        assert await bench.cycle() is access

    play(OBLIVIOUS, scenario)


def test_timing_backpressure():
    """An untaken verdict holds up certain outcomes, and not those that go into the table."""

    async def scenario(bench):
        certain = [bench.offer()]
        await bench.cycle(take=False)
        certain.append(bench.offer())
        await bench.cycle(take=False)
        for _ in range(8):
            await bench.cycle(take=False)
        assert bench.at_verdict is certain[0]
        assert bench.offered_results["checked"] is certain[1]
        assert await bench.cycle() is certain[0]
        assert await bench.cycle() is certain[1]

        bench.offer()
        await bench.cycle(take=False)
        speculative = bench.offer({0})
        for _ in range(8):
            await bench.cycle(take=False)
        assert bench.offered_results["checked"] is None
        assert speculative.admitted

    play(OBLIVIOUS, scenario)


def test_sim_table_and_certain_outcomes_take_turns():
    """Neither a stream of certain outcomes nor a full table keeps the other from the core."""

    async def scenario(bench):
        held = []
        for _ in range(OBLIVIOUS.held):
            held.append(bench.offer({0}))
            await bench.cycle()
        for _ in range(10):
            if bench.offered is None:
                bench.offer()
            await bench.cycle()
        await bench.cycle(resolve=(0, False))
        start = len(bench.verdicts)
        for _ in range(12):
            if bench.offered is None:
                bench.offer()
            await bench.cycle()
        from_table = [access in held for access in bench.verdicts[start:]]
        assert from_table[:10].count(True) == OBLIVIOUS.held
        assert not any(a and b for a, b in pairwise(from_table))

    play(OBLIVIOUS, scenario)

# amaranth: UnusedElaboratable=no
from collections import deque
from dataclasses import dataclass, field
from dataclasses import replace as changed

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
    ticket_layout,
    verdict_layout,
)
from emte.sim.harness import simulate
from unit_support import integer, plain, watched

FORMS = {form.value: TagConfig(held=4, branches=4, id_bits=5, barrier=form) for form in Barrier}
OBLIVIOUS, DELAY, NONE = FORMS.values()
TABLE_FORMS = {"oblivious": OBLIVIOUS, "delay": DELAY}

DECIDED, COMING, RESULT = 5, 7, 9
"""Cycles from the slot of a word until it has left for the waiting list, and to its finding."""
HARMLESS = (Outcome.PASS, Outcome.ASYNC)
PLAIN = {"outcome": Outcome.PASS, "index": 0, "exact": 0, "wnr": 0, "tag": 0}
SPECULATIVE = (Op.LOAD, Op.STORE, Op.ATOMIC, Op.LDG)


@pytest.mark.parametrize("form", Barrier)
def test_init(form):
    config = TagConfig(held=4, barrier=form)
    dut = SpeculationBarrier(config)
    assert dut.config is config
    assert dut.signature == Signature(
        {
            "access": In(stream.Signature(request_layout(config))),
            "resolve": In(resolve_signature(config)),
            "admitted_valid": Out(1),
            "admitted": Out(admitted_layout(config)),
            "pause": In(1),
            "store_ready": In(1),
            "store_slot": In(config.store_bits),
            "store": Out(1),
            "secret_store_tags": Out(64),
            "coming_valid": In(1),
            "coming": In(ticket_layout(config)),
            "result_valid": In(1),
            "result": In(result_layout(config)),
            "waiting_valid": In(1),
            "waiting": In(ticket_layout(config)),
            "room": Out(1),
            "verdict": Out(stream.Signature(verdict_layout(config))),
            "tfsr": Out(tfsr_layout()),
            "idle": Out(1),
        }
    )


@dataclass(eq=False)
class Access:
    serial: int
    fields: dict
    branches: set
    offered: int
    """The cycle in which it was offered first."""
    unresolved: set = field(init=False)
    certain: int | None = None
    """The cycle in which its last branch was resolved."""
    squashed: bool = False
    admitted: int | None = None
    findings: dict = field(default_factory=dict)
    """By word; with the tags, which are those of LDGM."""
    answered: int | None = None

    def __post_init__(self):
        self.unresolved = set(self.branches)

    @property
    def id(self):
        return self.fields["access"]["id"]

    @property
    def op(self):
        return self.fields["access"]["op"]

    @property
    def words(self):
        access = self.fields["access"]
        crosses = (access["pa"] & 0xFF) + access["bytes"] > 256
        return 1 + (crosses and self.op in (Op.LOAD, Op.STORE, Op.ATOMIC, Op.STG))

    def verdict(self):
        """What its findings come to."""
        shown, tags = self.findings[0]
        second = 0
        if self.words == 2 and shown["outcome"] in HARMLESS:
            other, _ = self.findings[1]
            if other["outcome"] not in HARMLESS or shown["outcome"] is Outcome.PASS:
                shown = other if other["outcome"] is not Outcome.PASS else shown
                second = 1
        far = 0
        if shown["outcome"] not in HARMLESS:
            va = self.fields["access"]["va"]
            low = va & 0xF if shown["exact"] and self.op is not Op.LDG else 0
            page = (va & 0xF00) + 0x100 * second & 0xF00
            far = va & ~0xFFF | page | shown["index"] << 4 | low
            tags = 0
        tags |= shown["tag"]
        wnr = shown["wnr"]
        return {"id": self.id, "outcome": shown["outcome"], "far": far, "wnr": wnr, "tags": tags}


@dataclass(eq=False)
class Word:
    access: Access
    ticket: dict
    slot: int
    """The cycle in which it came into the pipeline, the last time."""


class Bench:
    """The core on one side of the barrier, and on the other a pipeline that finds what it likes.

    In every cycle it looks at the outputs, and holds them to the rules.
    """

    def __init__(self, dut, ctx):
        self.dut = dut
        self.ctx = ctx
        self.config = dut.config
        self.layouts = {
            "access": request_layout(self.config),
            "ticket": ticket_layout(self.config),
            "result": result_layout(self.config),
        }
        self.accesses = []
        self.owners = {}  # live accesses by id
        self.offered = None
        self.words = deque()  # in the pipeline, in the order of their slots
        self.list = deque()  # that wait
        self.replayed = False  # the head is on its way
        self.results = {}  # by cycle
        self.second = None  # word whose slot is this cycle
        self.at_verdict = None
        self.verdicts = []
        self.tfsr = {"el0": 0, "el1": 0}
        self.now = 0
        self.had_room = 0
        self.had_store_ready = False
        self.paused = False
        self.plans = False

    def offer(self, branches=(), *, id=None, half=0, el0=0, op=None, tags=0, two=0, low=0):
        """Offer an access from the next cycle on. Returns it."""
        serial = len(self.accesses) + 1
        if id is None:
            id = next(n for n in range(1 << self.config.id_bits) if n not in self.owners)
        assert id not in self.owners
        if op is None:
            op = Op.LOAD if branches or two else Op.STG
        place = 0xF0 | low if two else low
        access = {
            "id": id,
            "op": op,
            "va": serial << 12 | serial % 16 << 8 | place | half << 55,
            "pa": serial % 1024 << 12 | place,
            "bytes": 17 if two else 1 + serial % 16,
            "el0": el0,
            "branches": sum(1 << branch for branch in branches),
            "tags": tags,
        }
        layout = self.layouts["access"]
        bits = integer(layout, {"access": access, "regime": {"tbi": serial % 4}})
        fields = plain(layout.from_bits(bits))
        self.offered = Access(serial, fields, set(branches), self.now + 1)
        assert self.offered.words == 1 + two
        self.payload = bits
        self.accesses.append(self.offered)
        self.owners[id] = self.offered
        return self.offered

    async def cycle(
        self,
        *,
        resolve=None,
        take=True,
        pause=False,
        store_ready=True,
        find=lambda access: PLAIN,
        waits=lambda access: False,
        replay=True,
    ):
        """One cycle. ``resolve`` is a branch and whether it was mispredicted; ``take`` tells
        whether ``verdict`` is ready; ``pause`` and ``store_ready`` are of the next cycle; ``find``
        gives what is found out about a word, ``waits`` tells whether it goes onto the waiting list
        first, ``replay`` whether the head may leave it, from the next cycle on.
        Returns the access whose verdict was transferred."""
        dut, ctx = self.dut, self.ctx
        self.now += 1
        # A replay is planned a cycle ahead; that of a second word keeps it off.
        replays = self.plans and not self.second
        may_replay = self.list and not (self.replayed or replays) and len(self.list) <= 8
        self.plans = bool(replay and may_replay and self.had_room)
        pause = pause or self.plans or len(self.list) > 8
        was_paused, self.paused = self.paused, pause
        had_store_ready, self.had_store_ready = self.had_store_ready, store_ready
        ctx.set(dut.access.valid, self.offered is not None)
        if self.offered is not None:
            ctx.set(dut.access.payload.as_value(), self.payload)
        ctx.set(dut.resolve.valid, resolve is not None)
        ctx.set(dut.resolve.branch, resolve[0] if resolve else 0)
        ctx.set(dut.resolve.mispredicted, bool(resolve and resolve[1]))
        ctx.set(dut.verdict.ready, take)
        ctx.set(dut.pause, pause)
        ctx.set(dut.store_ready, store_ready)
        ctx.set(dut.store_slot, self.now % 16)
        ctx.set(dut.waiting_valid, bool(self.list))
        if self.list:
            ctx.set(dut.waiting.as_value(), integer(self.layouts["ticket"], self.list[0].ticket))
        self._drive_pipeline(find, waits)
        _, _, *sampled = await ctx.tick().sample(
            dut.access.ready,
            dut.admitted_valid,
            dut.admitted,
            dut.store,
            dut.secret_store_tags,
            dut.verdict.valid,
            dut.verdict.payload,
            dut.tfsr,
            dut.idle,
        )
        accepted, admitted_valid, admitted, store, store_tags, valid, verdict, tfsr, idle = sampled
        assert not (idle and admitted_valid), "idle, and an access enters"
        self.had_room = ctx.get(dut.room)  # of the next cycle

        assert plain(tfsr) == self.tfsr
        transferred = self._look_at_verdict(valid, verdict, take)
        if self.second:
            assert not admitted_valid, "the slot is taken by a second word"
            self.words.append(self.second)
            self.second = None
        if replays:
            self.replayed = True
            self.words.append(changed(self.list[0], slot=self.now))
        if admitted_valid:
            assert not was_paused
            assert not replays
            access = self._look_at_admitted(admitted)
            assert store == (access.op in (Op.STG, Op.STGM))
            if store:
                assert had_store_ready
                assert admitted.store == self.now % 16
                tags = access.fields["access"]["tags"]
                assert store_tags == (tags if access.op is Op.STGM else tags % 16 * (2**64 // 15))
        else:
            assert not store
        if resolve is not None:
            self._resolve(*resolve)
        if accepted:
            self.offered = None
        return transferred

    def _drive_pipeline(self, find, waits):
        ctx, dut = self.ctx, self.dut
        while self.words and self.now - self.words[0].slot >= DECIDED:
            word = self.words.popleft()
            if self.replayed and word.ticket == self.list[0].ticket:
                self.list.popleft()
                self.replayed = False
            elif (self.list and self.list[-1].access is word.access) or waits(word.access):
                # A second word does not overtake the first one, which shows nothing but makes the
                # list longer.
                self.list.append(word)
                continue
            self.results[word.slot + RESULT] = word
        coming = self.results.get(self.now + RESULT - COMING)
        ctx.set(dut.coming_valid, coming is not None)
        if coming:
            ctx.set(dut.coming.as_value(), integer(self.layouts["ticket"], coming.ticket))
        word = self.results.pop(self.now, None)
        ctx.set(dut.result_valid, word is not None)
        if word:
            finding, tags = dict(find(word.access)), 0
            if "tags" in finding:
                tags = finding.pop("tags")
            if word.ticket["second"]:
                finding |= {"exact": 0, "tag": 0}
            word.access.findings[word.ticket["second"]] = (finding, tags)
            result = {"ticket": word.ticket, "secret_finding": finding, "secret_tags": tags}
            ctx.set(dut.result.as_value(), integer(self.layouts["result"], result))

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
        assert verdict == access.verdict()
        if not take:
            return None
        assert access.answered is None
        access.answered = self.now
        self.verdicts.append(access)
        del self.owners[access.id]
        self.at_verdict = None
        if verdict["outcome"] is Outcome.ASYNC:
            fields = access.fields["access"]
            self.tfsr["el0" if fields["el0"] else "el1"] |= 1 << (fields["va"] >> 55 & 1)
        return access

    def _look_at_admitted(self, admitted):
        admitted = plain(admitted)
        access = self.accesses[(admitted["access"]["va"] >> 12) % (1 << 43) - 1]
        assert admitted["regime"] == access.fields["regime"]
        assert admitted["access"] == access.fields["access"] | {"branches": 0, "tags": 0}
        assert access.admitted is None
        access.admitted = self.now
        may_hang = self.config.barrier is not Barrier.DELAY and access.op in SPECULATIVE
        if self.config.barrier is not Barrier.NONE and not may_hang:
            assert not access.unresolved, "looked up before its branches are resolved"
            assert not access.squashed
        if not access.branches and self.config.barrier is not Barrier.NONE:
            for older in self.accesses[: access.serial - 1]:
                # The core sends a tag store once all older loads of the granule are certain.
                if older.admitted is None and not older.squashed:
                    assert older.certain is None or older.certain > access.offered
        ticket = admitted["ticket"]
        assert ticket["second"] == 0
        assert not (ticket["direct"] and access.words == 2)
        self.words.append(Word(access, ticket, self.now))
        if access.words == 2:
            self.second = Word(access, ticket | {"second": 1}, self.now + 1)
        return access

    def _resolve(self, branch, mispredicted):
        for access in self.accesses:
            if branch not in access.unresolved:
                continue
            access.unresolved.remove(branch)
            if not access.unresolved:
                access.certain = self.now
            # Without a barrier a squashed access keeps its id until its verdict.
            if mispredicted and not access.squashed:
                access.squashed = True
                if self.config.barrier is not Barrier.NONE:
                    del self.owners[access.id]

    async def rest(self, cycles=40, **options):
        """Let some cycles pass."""
        for _ in range(cycles):
            await self.cycle(**options)


def play(config, scenario):
    dut = SpeculationBarrier(config)

    async def bench(ctx):
        await scenario(Bench(dut, ctx))

    simulate(watched(dut), bench)


def finder(rng):
    def find(access):
        outcome = rng.choice([Outcome.PASS] * 6 + [Outcome.ASYNC] * 3 + list(Outcome))
        finding = PLAIN | {"outcome": outcome}
        if outcome not in HARMLESS:
            finding |= {name: rng.getrandbits(1) for name in ("exact", "wnr")}
            finding["index"] = rng.getrandbits(4)
        elif outcome is Outcome.PASS and access.op is Op.LDG:
            finding["tag"] = rng.getrandbits(4)
        elif outcome is Outcome.PASS and access.op is Op.LDGM:
            finding["tags"] = rng.getrandbits(64)
        return finding

    return find


@pytest.mark.parametrize("held", [2, 4, 5, 16])
@pytest.mark.parametrize("form", Barrier)
def test_sim_random(form, held, rng):
    """Every access that is not squashed has one verdict, its own, and not too early."""
    config = TagConfig(held=held, branches=4, id_bits=5, barrier=form)
    find = finder(rng)

    async def scenario(bench):
        opened = set()
        for cycle in range(2500):
            if cycle % 50 == 0:
                moods = [rng.choice([0.1, 0.5, 1]) for _ in range(7)]
            resolve = None
            if opened and rng.random() < 0.5 * moods[0]:
                resolve = (rng.choice(sorted(opened)), rng.random() < 0.3)
            if bench.offered is None and rng.random() < moods[1] and len(bench.owners) < 30:
                opened |= {rng.randrange(4)}
                branches = set()
                if rng.random() < moods[6]:
                    branches = set(rng.sample(sorted(opened), rng.randint(1, len(opened))))
                # LDGM may be sent early, but it waits at the door.
                ops = [*SPECULATIVE, Op.LDGM] if branches else list(Op)
                op = rng.choice([Op.LOAD, *ops])
                bench.offer(
                    branches,
                    id=rng.choice([n for n in range(32) if n not in bench.owners]),
                    half=rng.getrandbits(1),
                    el0=rng.getrandbits(1),
                    op=op,
                    tags=rng.getrandbits(64),
                    two=op in (Op.LOAD, Op.STORE, Op.ATOMIC, Op.STG) and rng.random() < 0.3,
                    low=rng.getrandbits(4),
                )
            await bench.cycle(
                resolve=resolve,
                take=rng.random() < moods[2],
                pause=rng.random() > moods[3],
                store_ready=rng.random() < moods[4],
                waits=lambda access: rng.random() < 0.1,
                replay=rng.random() < moods[5],
                find=find,
            )
            if resolve:
                opened.remove(resolve[0])
        for _ in range(400):
            resolve = (opened.pop(), False) if opened else None
            await bench.cycle(resolve=resolve, find=find)
        assert bench.ctx.get(bench.dut.idle)
        assert bench.offered is None
        for access in bench.accesses:
            assert (access.answered is None) == (access.squashed and form is not Barrier.NONE)
        answered = [access for access in bench.accesses if access.answered]
        counts = {
            "squashed": sum(access.squashed for access in bench.accesses),
            "speculative": sum(bool(access.branches) for access in answered),
            "certain": sum(not access.branches for access in answered),
            "of two words": sum(access.words == 2 for access in answered),
        }
        assert all(count > 15 for count in counts.values()), counts

    play(config, scenario)


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_sim_findings_of_two_words(config):
    """The first fault of the two words counts, else an asynchronous one."""
    fault = {"outcome": Outcome.TAG_CHECK_FAULT, "index": 15, "exact": 1, "wnr": 1}
    other = {"outcome": Outcome.EXTERNAL_ABORT, "index": 2, "wnr": 0}
    cases = [{}, {"outcome": Outcome.ASYNC}, fault, other]

    async def scenario(bench):
        for branches in ((), (0,)):
            for first in cases:
                for second in cases:
                    findings = iter([PLAIN | first, PLAIN | second])
                    access = bench.offer(branches, two=1, low=3)
                    await bench.rest(15, find=lambda access, findings=findings: next(findings))
                    await bench.cycle(resolve=(0, False))
                    await bench.rest(25, find=lambda access, findings=findings: next(findings))
                    assert access.answered

    play(config, scenario)


@pytest.mark.parametrize("config", TABLE_FORMS.values(), ids=TABLE_FORMS)
def test_sim_certain_accesses_pass_a_full_table(config):
    """Every entry waits for its branch, yet certain accesses come and go, of one word and two."""

    async def scenario(bench):
        for _ in range(config.held):
            bench.offer({0})
            await bench.cycle()
        await bench.rest(10)
        for n in range(6):
            certain = bench.offer(two=n % 2)
            await bench.rest(22)
            assert certain.answered
            assert len(bench.verdicts) == n + 1
        await bench.cycle(resolve=(0, False))
        await bench.rest()
        assert len(bench.verdicts) == config.held + 6

    play(config, scenario)


@pytest.mark.parametrize("config", TABLE_FORMS.values(), ids=TABLE_FORMS)
def test_sim_speculative_access_waits_for_an_entry(config):
    """One that is resolved while it waits at the door needs none any more."""

    async def scenario(bench):
        for _ in range(config.held):
            bench.offer({0})
            await bench.cycle()
        last = bench.offer({1})
        await bench.rest(20)
        assert last.admitted is None
        await bench.cycle(resolve=(1, False))
        await bench.rest(20)
        assert bench.verdicts == [last]

    play(config, scenario)


def test_sim_ldgm_waits_at_the_door():
    async def scenario(bench):
        access = bench.offer({1}, op=Op.LDGM)
        await bench.rest(10)
        assert access.admitted is None
        await bench.cycle(resolve=(1, False))
        await bench.rest(20, find=lambda access: PLAIN | {"tags": 2**64 - 2})
        assert bench.verdicts == [access]

    play(OBLIVIOUS, scenario)


@pytest.mark.parametrize("config", TABLE_FORMS.values(), ids=TABLE_FORMS)
def test_sim_squashed_at_every_stage(config):
    """At the port, at the door, in the pipeline, in the table: it leaves nothing, and its id is
    free in the next cycle."""

    async def scenario(bench):
        answered = []
        for delay in range(24):
            squashed = bench.offer({2, 1}, id=7)
            await bench.rest(delay)
            await bench.cycle(resolve=(2, True))
            assert squashed.squashed
            answered.append(bench.offer({3}, id=7))
            await bench.rest(20)
            assert bench.verdicts == answered[:-1]
            await bench.cycle(resolve=(3, False))
            await bench.rest(25)
            assert bench.verdicts == answered
            assert bench.ctx.get(bench.dut.idle)

    play(config, scenario)


@pytest.mark.parametrize("config", TABLE_FORMS.values(), ids=TABLE_FORMS)
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "mispredicted"])
def test_sim_resolved_at_the_port(config, wrong):
    """What is resolved while the door is shut counts, and a name that is used again is another
    branch."""

    async def scenario(bench):
        for delay in range(6):
            before = len(bench.verdicts)
            bench.offer(op=Op.STG)
            await bench.cycle(pause=True)
            access = bench.offer({0})
            await bench.rest(delay, pause=True)
            await bench.cycle(resolve=(0, wrong), pause=True)
            await bench.rest(2, pause=True)
            await bench.rest(3)
            assert bench.offered is None
            # The branch that has the name now has nothing to do with it.
            later = bench.offer({0})
            await bench.rest(30)
            assert len(bench.verdicts) == before + 2 - wrong
            assert (access.answered is None) == wrong
            await bench.cycle(resolve=(0, not wrong))
            await bench.rest(30)
            assert (later.answered is None) == (not wrong)

    play(config, scenario)


def test_sim_late_finding_meets_no_new_owner():
    """The entry of a squashed access is not given away before its findings have come."""

    async def scenario(bench):
        for _ in range(OBLIVIOUS.held):
            bench.offer({0})
            await bench.cycle(waits=lambda access: True, replay=False)
        await bench.rest(10, waits=lambda access: True, replay=False)
        await bench.cycle(resolve=(0, True), replay=False)
        waiting = bench.offer({1})
        await bench.rest(20, replay=False)
        assert waiting.admitted is None
        await bench.rest(60)
        assert waiting.admitted
        assert bench.verdicts == []
        await bench.cycle(resolve=(1, False))
        await bench.rest(20)
        assert bench.verdicts == [waiting]

    play(OBLIVIOUS, scenario)


@pytest.mark.parametrize("config", TABLE_FORMS.values(), ids=TABLE_FORMS)
def test_sim_verdict_on_offer_is_not_taken_back(config):
    """What is resolved later has nothing to do with it."""

    async def scenario(bench):
        access = bench.offer({0})
        await bench.rest(20, take=False)
        await bench.cycle(resolve=(0, False), take=False)
        await bench.rest(25, take=False)
        assert bench.at_verdict is access
        for branch in range(4):
            await bench.cycle(resolve=(branch, True), take=False)
        await bench.cycle()
        assert bench.verdicts == [access]

    play(config, scenario)


@pytest.mark.parametrize("offset", range(-6, 8))
def test_sim_delay_keeps_older_before_younger(offset):
    """What is certain when a certain access is sent goes before it, also if it became so in the
    very cycle."""

    async def scenario(bench):
        older = bench.offer({0})
        await bench.rest(6 + min(offset, 0))
        if offset < 0:
            await bench.cycle(resolve=(0, False))
            await bench.rest(-1 - offset)
            younger = bench.offer()
            await bench.cycle()
        else:
            younger = bench.offer()
            await bench.rest(offset)
            await bench.cycle(resolve=(0, False))
        await bench.rest(40)
        first, second = (older, younger) if offset <= 0 else (younger, older)
        assert bench.verdicts == [first, second]

    play(DELAY, scenario)


def test_sim_delay_does_not_hold_the_door_for_other_branches():
    """While an access waits in the table, resolves of other branches hold nobody up."""

    async def scenario(bench):
        bench.offer({0})
        await bench.cycle()
        for n in range(40):
            if bench.offered is None:
                bench.offer()
            await bench.cycle(resolve=(1 + n % 3, n % 2 == 0))
        assert len(bench.verdicts) == 40 - 12

    play(DELAY, scenario)


@pytest.mark.parametrize("config", TABLE_FORMS.values(), ids=TABLE_FORMS)
def test_sim_not_idle_while_a_squashed_access_enters(config):
    """It was let in when its squash was not known yet, and is in the pipeline from then on."""

    async def scenario(bench):
        access = bench.offer({0})
        for _ in range(4):
            await bench.cycle(pause=True)
        await bench.cycle(resolve=(0, True), pause=True)
        await bench.rest(40)
        assert access.squashed
        assert bool(access.admitted) == (config.barrier is Barrier.OBLIVIOUS)
        assert not bench.verdicts

    play(config, scenario)


def test_sim_none_holds_nothing():
    """Without a barrier outcomes leave at once, also those of squashed accesses."""

    async def scenario(bench):
        access = bench.offer({0})
        await bench.rest(13)
        assert bench.verdicts == [access]
        access = bench.offer({1})
        await bench.cycle(resolve=(1, True))
        await bench.rest(13)
        assert bench.verdicts[1:] == [access]

    play(NONE, scenario)


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_sim_tfsr(config):
    """Sticky, by half and exception level, from the verdict's transfer on: not while it is held."""

    def find(access):
        return PLAIN | {"outcome": Outcome.ASYNC}

    async def scenario(bench):
        for half, el0 in ((0, 1), (1, 1), (1, 0), (0, 0)):
            before = dict(bench.tfsr)
            bench.offer({0}, half=half, el0=el0)
            await bench.rest(20, find=find, take=False)
            await bench.cycle(resolve=(0, False), find=find, take=False)
            await bench.rest(25, find=find, take=False)
            assert plain(bench.ctx.get(bench.dut.tfsr)) == before
            await bench.rest(2)
            assert plain(bench.ctx.get(bench.dut.tfsr)) != before
        assert plain(bench.ctx.get(bench.dut.tfsr)) == {"el0": 3, "el1": 3}

    play(config, scenario)


def test_sim_squashed_access_sets_no_tfsr():
    async def scenario(bench):
        bench.offer({0})
        await bench.rest(15, find=lambda access: PLAIN | {"outcome": Outcome.ASYNC})
        await bench.cycle(resolve=(0, True))
        await bench.rest(20)
        assert plain(bench.ctx.get(bench.dut.tfsr)) == {"el0": 0, "el1": 0}

    play(OBLIVIOUS, scenario)


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("two", [0, 1])
@pytest.mark.parametrize("branches", [(), (0,)], ids=["certain", "speculative"])
def test_sim_idle(config, two, branches):
    """From the first cycle inside until the verdict is taken, an access keeps it from idling."""

    async def scenario(bench):
        assert bench.ctx.get(bench.dut.idle)
        access = bench.offer(branches, two=two)
        for cycle in range(45):
            await bench.cycle(
                resolve=(0, False) if cycle == 15 else None,
                take=cycle > 40,
                waits=lambda access: access.admitted + 6 > bench.now,
            )
            assert bench.ctx.get(bench.dut.idle) == (access.answered is not None)

    play(config, scenario)


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_timing_certain(config):
    """Admitted in the cycle after the transfer, verdict eleven after that; one per cycle."""

    async def scenario(bench):
        order = []
        for n in range(36):
            if n < 20:
                bench.offer()
            done = await bench.cycle()
            order.append(done.serial if done else None)
        assert order == [None] * 12 + list(range(1, 21)) + [None] * 4
        assert [access.admitted for access in bench.accesses] == list(range(2, 22))

    play(config, scenario)


def test_timing_two_words():
    """One of two words takes two slots, and is answered five cycles later."""

    async def scenario(bench):
        two = bench.offer(two=1)
        await bench.cycle()
        one = bench.offer()
        await bench.rest()
        assert one.admitted - two.admitted == 2
        assert two.answered - two.admitted == 16
        assert one.answered - one.admitted == 11

    play(OBLIVIOUS, scenario)


def test_timing_release():
    """Eight cycles from the resolve to the verdict, if the finding is there."""

    async def scenario(bench):
        for delay in range(3):
            access = bench.offer({0})
            await bench.rest(15 + delay)
            await bench.cycle(resolve=(0, False))
            await bench.rest(30)
            assert access.answered - access.certain == 8

    play(OBLIVIOUS, scenario)


def test_timing_late_finding():
    """Six cycles from the finding to the verdict, if the branch was resolved before."""

    async def scenario(bench):
        access = bench.offer({0})
        await bench.rest(5)
        await bench.cycle(resolve=(0, False))
        await bench.rest(30)
        assert access.answered - access.admitted == RESULT + 6

    play(OBLIVIOUS, scenario)


@pytest.mark.parametrize("form", [Barrier.OBLIVIOUS, Barrier.DELAY])
def test_timing_speculative_throughput(form, rng):
    """With 16 entries and branches of ten cycles, four of five cycles bring an access."""
    config = TagConfig(id_bits=6, barrier=form)
    rates = {Barrier.OBLIVIOUS: 0.8, Barrier.DELAY: 0.7}

    async def scenario(bench):
        due = deque()
        branch = 0
        for cycle in range(1200):
            resolve = None
            if cycle % 3 == 0:
                branch = (branch + 1) % 8
                due.append((cycle + 10, branch))
            if due[0][0] == cycle:
                resolve = (due.popleft()[1], False)
            if bench.offered is None:
                bench.offer({branch})
            await bench.cycle(resolve=resolve)
        assert len(bench.verdicts) > rates[form] * 1200

    play(config, scenario)


def test_sim_direct_accesses_do_not_starve_the_table():
    """A stream of certain accesses makes place for what is ready, and goes on."""

    async def scenario(bench):
        held = []
        for n in range(OBLIVIOUS.held):
            held.append(bench.offer({0}, two=n % 2))
            await bench.rest(2)
        await bench.rest(20)
        bench.offer(two=1)
        await bench.cycle()
        start = bench.now
        for n in range(60):
            if bench.offered is None:
                bench.offer()
            await bench.cycle(resolve=(0, False) if n == 12 else None)
        assert all(access.answered for access in held)
        assert len(bench.verdicts) > 45 - 12
        assert max(access.answered for access in held) < start + 50

    play(OBLIVIOUS, scenario)


def test_sim_ring_does_not_overtake_what_waits():
    """While one certain access waits for its line, others go on, and their numbers with them; but
    not so far that its number is given away again."""

    async def scenario(bench):
        first = bench.offer()
        await bench.cycle(waits=lambda access: access is first, replay=False)
        for _ in range(400):
            if bench.offered is None:
                bench.offer()
            await bench.cycle(waits=lambda access: access is first, replay=False)
        passed = len(bench.verdicts)
        assert 160 < passed < 250
        assert first.answered is None
        for _ in range(100):
            if bench.offered is None:
                bench.offer()
            await bench.cycle()
        assert first.answered
        assert len(bench.verdicts) > passed + 60

    play(OBLIVIOUS, scenario)


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_sim_core_takes_no_verdicts(config):
    """All that is under way finds room, and the door shuts."""

    async def scenario(bench):
        for n in range(80):
            if bench.offered is None and len(bench.owners) < 31:
                bench.offer({0} if n < config.held else ())
            await bench.cycle(take=False, resolve=(0, False) if n == 30 else None)
        assert bench.offered is not None or len(bench.owners) == 31
        count = len(bench.owners)
        for _ in range(100):
            await bench.cycle()
        assert len(bench.verdicts) == count

    play(config, scenario)

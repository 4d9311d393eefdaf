"""SpeculationBarrier alone: the bench plays both the core and the pipeline behind the barrier.

The core opens and resolves branches, and sends accesses that hang on them. The pipeline finds
something random about each word of an admitted access: nine cycles later; or the word goes onto a
waiting list, which is replayed in order after a random time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import cocotb
from bench_base import (
    Bench,
    Input,
    Packing,
    Pauses,
    Payload,
    Resolution,
    Resolve,
    Sink,
    Source,
    argument,
)
from cocotb.handle import HierarchyObject
from cocotb.triggers import ClockCycles
from emte.rtl.layouts import (
    Op,
    Outcome,
    admitted_layout,
    request_layout,
    result_layout,
    ticket_layout,
    verdict_layout,
)
from tops import TOPS

CONFIG = TOPS["barrier"].config
IDS = 12
"""Few ids, so that they are used again soon."""
DECIDED, COMING, RESULT = 5, 7, 9
"""Cycles from a word's slot until it may be on the waiting list, and to its finding."""
WAITING = 16
"""Words on the waiting list at most."""
LIST_MARGIN = 11
"""Slots in which a word may still be on its way to the list."""
HARMLESS = (Outcome.PASS.value, Outcome.ASYNC.value)


@dataclass(eq=False)
class Access:
    """An access, from its first offer to its verdict or squash."""

    request: Payload
    waits_for: set[int]
    """Its branches that are not resolved yet."""
    squashed: bool = False
    taken: bool = False
    findings: dict[int, Payload] = field(default_factory=dict)
    """What the barrier has been told of each word."""

    @property
    def id(self) -> int:
        return self.request["access"]["id"]

    @property
    def op(self) -> Op:
        return Op(self.request["access"]["op"])

    @property
    def words(self) -> int:
        access = self.request["access"]
        crosses = access["pa"] % 256 + access["bytes"] > 256
        return 1 + (crosses and self.op in (Op.LOAD, Op.STORE, Op.ATOMIC, Op.STG))

    def verdict(self) -> Payload:
        """What the findings come to."""
        shown, second = self.findings[0], 0
        if self.words == 2 and shown["outcome"] in HARMLESS:
            other = self.findings[1]
            if other["outcome"] != Outcome.PASS.value:
                shown, second = other, 1
        va, far = self.request["access"]["va"], 0
        tags = shown["tags"]
        if shown["outcome"] not in HARMLESS:
            low = va & 0xF if shown["exact"] and self.op is not Op.LDG else 0
            page = va & 0xF00
            page = page + 0x100 * second & 0xF00
            far = va & ~0xFFF | page | shown["index"] << 4 | low
            tags = 0
        return {
            "id": self.id,
            "outcome": shown["outcome"],
            "far": far,
            "wnr": shown["wnr"],
            "tags": tags,
        }


@dataclass(eq=False)
class Word:
    """A word of an access in the pipeline."""

    access: Access
    ticket: Payload


class BarrierBench(Bench):
    """Sends accesses that hang on some of the open branches, and looks at every verdict."""

    SPECULATIVE = {Op.LOAD, Op.STORE, Op.ATOMIC, Op.LDG, Op.LDGM}
    """What the core may send before it is certain."""

    def __init__(self, dut: HierarchyObject, accesses: int) -> None:
        super().__init__(dut)
        self.to_send = accesses
        self.access = Source(dut, "access", request_layout(CONFIG))
        self.admitted = Packing(admitted_layout(CONFIG))
        self.ticket = Packing(ticket_layout(CONFIG))
        self.result = Packing(result_layout(CONFIG))
        self.verdict = Sink(dut, "verdict", verdict_layout(CONFIG))
        self.resolve = Resolve(dut)
        self.resolve.drive(None)
        self.inputs = {
            name: Input(getattr(dut, name))
            for name in (
                *("pause", "store_ready", "store_slot"),
                *("coming_valid", "coming", "result_valid", "result"),
                *("waiting_valid", "waiting"),
            )
        }
        for port in self.inputs.values():
            port.drive(0)
        self.pauses = {
            name: Pauses(self.rng)
            for name in ("access", "pause", "store", "replay", "verdict", "resolve")
        }

        self.open_branches: set[int] = set()
        self.resolving: Resolution | None = None
        self.free_ids = list(range(IDS))
        self.owner: dict[int, Access] = {}
        """Neither released nor squashed, by id."""
        self.offered: Access | None = None
        self.to_admit: deque[Access] = deque()
        self.inside: dict[tuple[int, int, int], Word] = {}
        """Words without a finding, by their ticket."""
        self.coming: dict[int, Word] = {}
        """By the cycle in which they are announced."""
        self.results: dict[int, tuple[Word, Payload]] = {}
        """By the cycle in which the barrier is told."""
        self.deciding: dict[int, Word] = {}
        """Words on their way to the waiting list, by the cycle in which they are there."""
        self.list: deque[Word] = deque()
        self.leaving: dict[int, Word] = {}
        """Words that have been replayed, by the cycle in which they leave the list."""
        self.replays_from = 0
        self.second: Word | None = None
        """Its slot is the next one."""
        self.planned: Word | None = None
        """The word that is replayed in the next cycle."""
        self.are_free = self.were_free = False, False
        """May an access be admitted in the next cycle, and a tag store; and in this one?"""
        self.waits = 0.0
        self.room = False
        self.waited = 0
        self.tfsr = 0
        self.squashes = self.full_cycles = 0

    # The core

    def drive(self) -> None:
        self.drive_branches()
        self.resolve.drive(self.resolving)
        if self.to_send and self.offered is None and self.free_ids and not self.pauses["access"]():
            self.offer_access()
        self.verdict.drive(not self.pauses["verdict"]())
        self.drive_pipeline()

    def drive_branches(self) -> None:
        rng = self.rng
        if self.to_send and rng.random() < 0.2:
            self.open_branches.add(rng.randrange(CONFIG.branches))
        due = not self.pauses["resolve"]() and rng.random() < 0.3
        self.resolving = None
        if self.open_branches and due:
            self.resolving = rng.choice(sorted(self.open_branches)), rng.random() < 0.4

    def choose_branches(self) -> set[int]:
        """Branches of the next access: any of the open ones, also one resolved in this cycle."""
        rng = self.rng
        if rng.random() < 0.3:
            return set()
        return {branch for branch in self.open_branches if rng.random() < 0.4}

    def offer_access(self) -> None:
        request = self.access.packing.random(self.rng)
        branches = self.choose_branches()
        ops = self.SPECULATIVE if branches else set(Op)
        request["access"]["op"] = self.rng.choice(sorted(op.value for op in ops))
        request["access"]["id"] = self.free_ids.pop(self.rng.randrange(len(self.free_ids)))
        request["access"]["bytes"] = self.rng.randint(1, 64)
        if self.rng.random() < 0.3:
            request["access"]["pa"] |= 0xE0  # it may touch two words
        request["access"]["branches"] = sum(1 << branch for branch in branches)
        self.offered = self.owner[request["access"]["id"]] = Access(request, branches)
        self.access.offer(request)
        self.to_send -= 1

    # The pipeline

    def drive_pipeline(self) -> None:
        """What happens in this cycle, which nobody can refuse."""
        rng, now = self.rng, self.cycle
        if rng.random() < 0.01:
            self.waits = rng.choice((0.0, 0.05, 0.5))
        if now in self.leaving:
            self.list.remove(self.leaving.pop(now))
        if now in self.deciding:
            word = self.deciding.pop(now)
            if not self.list:
                self.replays_from = now + rng.choice((0, 3, 30, 300))
            self.list.append(word)
            self.waited += 1

        # A second word takes its slot whatever happens; else the list may be replayed, for which
        # the door is shut a cycle ahead.
        pauses = self.pauses["pause"]()
        pauses |= len(self.list) + len(self.deciding) > WAITING - LIST_MARGIN
        if self.second is not None:
            self.enter(self.second)
            self.second = None
        elif self.planned and self.room:
            self.leaving[now + DECIDED] = self.planned
            self.coming[now + COMING] = self.planned
        waiting = [word for word in self.list if word not in self.leaving.values()]
        self.planned = None
        if waiting and now >= self.replays_from and self.room and not self.pauses["replay"]():
            self.planned = waiting[0]
            pauses = True
        self.were_free = self.are_free
        self.are_free = not pauses, not self.pauses["store"]()
        drive = self.inputs
        drive["pause"].drive(int(pauses))
        drive["store_ready"].drive(int(self.are_free[1]))
        drive["store_slot"].drive(now % (1 << CONFIG.store_bits))
        drive["waiting_valid"].drive(int(bool(self.list)))
        if self.list:
            drive["waiting"].drive(self.ticket.pack(self.list[0].ticket))
        coming = self.coming.pop(now, None)
        drive["coming_valid"].drive(int(coming is not None))
        if coming is not None:
            drive["coming"].drive(self.ticket.pack(coming.ticket))
            self.results[now + RESULT - COMING] = coming, self.find(coming)
        word, result = self.results.get(now, (None, None))
        drive["result_valid"].drive(int(word is not None))
        if word is not None:
            drive["result"].drive(self.result.pack(result))

    def enter(self, word: Word) -> None:
        """A word has the slot of this cycle."""
        if self.rng.random() < self.waits:
            self.deciding[self.cycle + DECIDED] = word
        else:
            self.coming[self.cycle + COMING] = word

    def find(self, word: Word) -> Payload:
        """What is found out about a word."""
        rng, op = self.rng, word.access.op
        outcome = rng.choice([*Outcome, Outcome.PASS, Outcome.ASYNC])
        fault = outcome.value not in HARMLESS
        passes = outcome is Outcome.PASS
        first = not word.ticket["second"]
        return {
            "ticket": word.ticket,
            "secret_finding": {
                "outcome": outcome.value,
                "index": rng.randrange(16) if fault else 0,
                "exact": rng.randrange(2) if fault and first else 0,
                "wnr": rng.randrange(2) if fault else 0,
                "tag": rng.randrange(16) if passes and first and op is Op.LDG else 0,
            },
            "secret_tags": rng.getrandbits(64) if passes and op is Op.LDGM else 0,
        }

    # What the barrier does

    def observe(self) -> None:
        # The branches are those of the start of the cycle: what is resolved in it comes last.
        self.observe_verdict()
        self.observe_access()
        self.observe_pipeline()
        self.apply_resolve()

    def observe_verdict(self) -> None:
        dut = self.dut
        held = [access for access in self.owner.values() if access.taken]
        self.full_cycles += sum(bool(access.waits_for) for access in held) >= CONFIG.held
        self.expect(int(dut.tfsr.value) == self.tfsr, f"TFSR is not {self.tfsr:#x}")
        self.expect(not (held and dut.idle.value), "idle with an access inside")

        verdict = self.verdict.peek()
        if verdict is None:
            return
        access = self.owner.get(verdict["id"])
        self.expect(access, f"a verdict that nobody waits for, or of a squashed access: {verdict}")
        self.expect(
            not access.waits_for, f"a verdict before branches {access.waits_for} are resolved"
        )
        self.expect(
            len(access.findings) == access.words, f"a verdict without an outcome: {verdict}"
        )
        golden = access.verdict()
        self.expect(verdict == golden, f"the verdict is {verdict}, not {golden}")
        if self.verdict.is_ready:
            self.progress()
            self.forget(access)
            if verdict["outcome"] == Outcome.ASYNC.value:
                request = access.request["access"]
                level = 0 if request["el0"] else 2
                self.tfsr |= 1 << level + (request["va"] >> 55 & 1)

    def observe_access(self) -> None:
        if self.access.observe() is not None:
            self.progress()
            self.offered.taken = True
            self.to_admit.append(self.offered)
            self.offered = None

    def observe_pipeline(self) -> None:
        dut, now = self.dut, self.cycle
        self.room = bool(dut.room.value)
        if now in self.results:
            word, result = self.results.pop(now)
            ticket = word.ticket
            del self.inside[ticket["number"], ticket["direct"], ticket["second"]]
            tags = result["secret_tags"] | result["secret_finding"]["tag"]
            word.access.findings[ticket["second"]] = {**result["secret_finding"], "tags": tags}
        stores = False
        if dut.admitted_valid.value:
            admitted = self.admitted.unpack(int(dut.admitted.value))
            self.expect(self.were_free[0], "admitted in a pause")
            access = self.match(admitted)
            stores = access.op in (Op.STG, Op.STGM)
            self.admit(access, admitted)
            if stores:
                self.expect(self.were_free[1], "a tag store without a place")
                self.expect(admitted["store"] == int(dut.store_slot.value), "a wrong place")
                self.check_stored(access, int(dut.secret_store_tags.value))
        self.expect(bool(dut.store.value) == stores, f"store is not {stores}")

    def check_stored(self, access: Access, stored: int) -> None:
        tags = access.request["access"]["tags"]
        if access.op is Op.STG:
            tags = (tags & 0xF) * 0x1111_1111_1111_1111
        self.expect(stored == tags, f"the tags are {stored:#x}, not {tags:#x}")

    def admit(self, access: Access, admitted: Payload) -> None:
        """An access enters the pipeline."""
        ticket = admitted["ticket"]
        self.expect(not ticket["second"], f"the first word is the second: {admitted}")
        self.expect(
            not ticket["direct"] or (access.words == 1 and not access.waits_for),
            f"direct: {admitted}",
        )
        self.expect(
            access.op is not Op.LDGM or not access.waits_for, f"LDGM is speculative: {admitted}"
        )
        number, direct = ticket["number"], ticket["direct"]
        for second in range(2):
            self.expect((number, direct, second) not in self.inside, f"ticket in use: {ticket}")
        words = [Word(access, {**ticket, "second": second}) for second in range(access.words)]
        for second, word in enumerate(words):
            self.inside[number, direct, second] = word
        self.enter(words[0])
        self.second = words[1] if access.words == 2 else None

    def match(self, admitted: Payload) -> Access:
        """The access that is admitted: in order, though squashed ones may be left out. Behind the
        barrier nobody sees its branches, and its tags go another way."""
        while self.to_admit:
            access = self.to_admit.popleft()
            sent = {**access.request["access"], "branches": 0, "tags": 0}
            if (admitted["access"], admitted["regime"]) == (sent, access.request["regime"]):
                return access
            self.expect(access.squashed, f"an access is passed over: {access}")
        raise AssertionError(f"cycle {self.cycle}: admitted, but not sent: {admitted}")

    def apply_resolve(self) -> None:
        if self.resolving is None:
            return
        branch, mispredicted = self.resolving
        self.open_branches.discard(branch)
        for access in list(self.owner.values()):
            if branch in access.waits_for:
                access.waits_for.remove(branch)
                if mispredicted:
                    access.squashed = True
                    self.squashes += 1
                    self.forget(access)

    def forget(self, access: Access) -> None:
        """The access has its verdict, or is squashed: its id is free from the next cycle on."""
        del self.owner[access.id]
        self.free_ids.append(access.id)

    def is_done(self) -> bool:
        return not (self.to_send or self.offered or self.owner or self.open_branches or self.inside)


class FullTableBench(BarrierBench):
    """The first accesses fill the table, and their branch stays open until all others are done."""

    SPECULATIVE = BarrierBench.SPECULATIVE - {Op.LDGM}  # it would wait at the door

    def drive_branches(self) -> None:
        alone = len(self.owner) == CONFIG.held and not self.to_send
        self.open_branches.add(0)
        self.resolving = (0, False) if alone else None

    def choose_branches(self) -> set[int]:
        return {0} if len(self.owner) < CONFIG.held else set()

    def is_done(self) -> bool:
        return not (self.to_send or self.offered or self.owner or self.inside)


async def finish(bench: BarrierBench) -> None:
    """Run to the end; then nothing more may come, and the barrier must be idle."""
    await bench.reset()
    await bench.run()
    for _ in range(20):
        await bench.step()
    bench.expect(bench.dut.idle.value, "not idle, though all is done")


@cocotb.test()
async def random_accesses(dut: HierarchyObject) -> None:
    bench = BarrierBench(dut, argument("transactions"))
    await finish(bench)
    cocotb.log.info(
        "%d accesses in %d cycles, %d squashed, %d words waited, table full in %d cycles",
        argument("transactions"),
        bench.cycle,
        bench.squashes,
        bench.waited,
        bench.full_cycles,
    )
    assert bench.squashes > argument("transactions") // 20, "too few squashes to test anything"
    assert bench.full_cycles > argument("transactions") // 100, "the table is hardly ever full"


@cocotb.test()
async def certain_accesses_pass_a_full_table(dut: HierarchyObject) -> None:
    await finish(FullTableBench(dut, 500))


@cocotb.test()
async def outcome_that_nobody_waits_for(dut: HierarchyObject) -> None:
    """Breaks the contract, so that an assertion of the barrier must end the simulation."""
    bench = BarrierBench(dut, 0)
    await bench.reset()
    result = bench.result.random(bench.rng)
    result["ticket"]["direct"] = 1
    bench.inputs["result"].drive(bench.result.pack(result))
    bench.inputs["result_valid"].drive(1)
    await ClockCycles(dut.clk, 20)

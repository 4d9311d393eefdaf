"""SpeculationBarrier alone: the bench plays both the core and the pipeline behind the barrier.

The core opens and resolves branches, and sends accesses that hang on them. The pipeline gives each
admitted access back once, with a random outcome, after a random time and in random order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cocotb
from bench_base import Bench, Pauses, Payload, Resolution, Resolve, Sink, Source, argument
from cocotb.handle import HierarchyObject
from cocotb.triggers import ClockCycles
from emte.rtl.layouts import (
    Outcome,
    admitted_layout,
    request_layout,
    result_layout,
    verdict_layout,
)
from tops import TOPS

CONFIG = TOPS["barrier"].config
IDS = 12
"""Few ids, so that they are used again soon."""
INSIDE = 24
"""Accesses that the pipeline holds at most."""


@dataclass(eq=False)
class Access:
    """An access, from its first offer to its verdict or squash."""

    request: Payload
    waits_for: set[int]
    """Its branches that are not resolved yet."""
    squashed: bool = False
    taken: bool = False
    finding: Payload | None = None
    """The outcome, once the barrier has it."""

    @property
    def id(self) -> int:
        return self.request["access"]["id"]


@dataclass(eq=False)
class Returning:
    """An access in the pipeline."""

    access: Access
    ticket: Payload
    due: int


class BarrierBench(Bench):
    """Sends accesses that hang on some of the open branches, and looks at every verdict."""

    def __init__(self, dut: HierarchyObject, accesses: int) -> None:
        super().__init__(dut)
        self.to_send = accesses
        self.access = Source(dut, "access", request_layout(CONFIG))
        self.admitted = Sink(dut, "admitted", admitted_layout(CONFIG))
        self.returns = [
            Source(dut, name, result_layout(CONFIG)) for name in ("checked", "unchecked")
        ]
        self.verdict = Sink(dut, "verdict", verdict_layout(CONFIG))
        self.resolve = Resolve(dut)
        self.resolve.drive(None)
        self.pauses = {
            name: Pauses(self.rng)
            for name in ("access", "admitted", "checked", "unchecked", "verdict", "resolve")
        }

        self.open_branches: set[int] = set()
        self.resolving: Resolution | None = None
        self.free_ids = list(range(IDS))
        self.owner: dict[int, Access] = {}
        """Neither released nor squashed, by id."""
        self.offered: Access | None = None
        self.to_admit: deque[Access] = deque()
        self.inside: list[Returning] = []
        self.returning: list[Returning | None] = [None, None]
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
        request["access"]["id"] = self.free_ids.pop(self.rng.randrange(len(self.free_ids)))
        request["access"]["branches"] = sum(1 << branch for branch in branches)
        self.offered = self.owner[request["access"]["id"]] = Access(request, branches)
        self.access.offer(request)
        self.to_send -= 1

    # The pipeline

    def drive_pipeline(self) -> None:
        rng = self.rng
        self.admitted.drive(len(self.inside) < INSIDE and not self.pauses["admitted"]())
        for number, source in enumerate(self.returns):
            due = [returning for returning in self.inside if returning.due <= self.cycle]
            name = ("checked", "unchecked")[number]
            if source.offered is None and due and not self.pauses[name]():
                chosen = self.returning[number] = rng.choice(due)
                self.inside.remove(chosen)
                result = source.packing.random(rng)
                result["ticket"] = chosen.ticket
                result["secret_finding"]["outcome"] = rng.choice(list(Outcome)).value
                source.offer(result)

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
        self.expect(access.finding is not None, f"a verdict without an outcome: {verdict}")
        golden = {"id": access.id, **access.finding}
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
        admitted = self.admitted.observe()
        if admitted is not None:
            access = self.match(admitted)
            va = access.request["access"]["va"]
            el0 = access.request["access"]["el0"]
            ticket = admitted["ticket"]
            self.expect(
                (ticket["id"], ticket["half"], ticket["el0"]) == (access.id, va >> 55 & 1, el0),
                f"the ticket is not that of its access: {admitted}",
            )
            due = self.cycle + self.rng.choice((0, 0, 1, 3, 10, 40))
            self.inside.append(Returning(access, ticket, due))
        for number, source in enumerate(self.returns):
            result = source.observe()
            if result is not None:
                self.returning[number].access.finding = result["secret_finding"]
                self.returning[number] = None

    def match(self, admitted: Payload) -> Access:
        """The access that is admitted: in order, though squashed ones may be left out."""
        while self.to_admit:
            access = self.to_admit.popleft()
            if all(admitted[part] == access.request[part] for part in ("access", "control")):
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
        return not (
            self.to_send
            or self.offered
            or self.owner
            or self.open_branches
            or self.inside
            or any(self.returning)
        )


class FullTableBench(BarrierBench):
    """The first accesses fill the table, and their branch stays open until all others are done."""

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
        "%d accesses in %d cycles, %d squashed, table full in %d cycles",
        argument("transactions"),
        bench.cycle,
        bench.squashes,
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
    checked = bench.returns[0]
    checked.offer(checked.packing.random(bench.rng))
    await ClockCycles(dut.clk, 20)

"""The pipeline in the Amaranth simulator, driven cycle by cycle.

:class:`Driver` and ``verilator.cpp`` do the same in the same cycles, so that the two engines
agree not only on outcomes but also on every statistic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from amaranth.hdl import Cat, Value
from emte.rtl import Barrier, TagConfig
from emte.rtl.layouts import Outcome, access_layout, control_layout, verdict_layout

from .core import Program
from .device import ObservedPipeline
from .dram import BrokenRule, Chance, Dram, Lane, Ports, expect
from .harness import simulate
from .transactions import (
    RESULT,
    Completion,
    Flag,
    Kind,
    PipelineError,
    Progress,
    Statistics,
    Status,
    Waves,
)

__all__ = ["INPUTS", "OUTPUTS", "Driver", "run"]

_PATIENCE = 10_000
"""Cycles without any progress, beyond those of a slow memory, after which a run is given up."""


def run(
    program: Program,
    config: TagConfig,
    *,
    seed: int,
    latency: int,
    waves: Waves | None = None,
    progress: Progress | None = None,
) -> Completion:
    """Perform a program on the pipeline.

    Parameters
    ----------
    program : Program
        What to perform.
    config : TagConfig
        Geometry of the pipeline.
    seed : int
        0: everything at full speed; else idle cycles, back-pressure and memory are random.
    latency : int
        Cycles from a read address to its first beat, and from the last write beat to its response.
    waves : Waves
        Waveforms to write: a whole VCD, which is all that this engine can.
    progress : callable
        Told now and then how far the run is.

    Raises
    ------
    PipelineError
        The pipeline broke a rule of its ports, one of its assertions failed, or it hangs.
    """
    pipeline = ObservedPipeline(config, monitored=True)
    driver = Driver(program, config, seed=seed, latency=latency)
    inputs = _Bundle(pipeline, INPUTS)
    outputs = _Bundle(pipeline, OUTPUTS)

    async def bench(ctx):
        reported = 0
        while not driver.done:
            ctx.set(inputs.value, inputs.pack(driver.drive()))
            _, _, sampled = await ctx.tick().sample(outputs.value)
            driver.observe(outputs.unpack(sampled))
            if progress and driver.cycle >= reported + 256:
                reported = driver.cycle
                progress(driver.operations, len(program))

    try:
        simulate(pipeline, bench, vcd=waves.path if waves else None, max_cycles=1 << 62)
    except AssertionError as error:
        message = str(error).removeprefix("Assertion violated: ")
        raise PipelineError(f"{driver.place()}: {message} (cycle {driver.cycle})") from None
    return driver.completion()


INPUTS = (
    "access.valid",
    "access.payload",
    "verdict.ready",
    "resolve.valid",
    "resolve.branch",
    "resolve.mispredicted",
    *(f"control.{name}" for name, _ in control_layout(TagConfig())),
    "generate.request.valid",
    "generate.request.payload",
    "generate.response.ready",
    "generate.gcr",
    "generate.rgsr_write",
    "generate.rgsr_value",
    "memory.arready",
    "memory.awready",
    "memory.wready",
    "memory.rvalid",
    "memory.rid",
    "memory.rdata",
    "memory.rresp",
    "memory.rlast",
    "memory.bvalid",
    "memory.bid",
    "memory.bresp",
)
OUTPUTS = (
    "access.ready",
    "verdict.valid",
    "verdict.payload",
    "generate.request.ready",
    "generate.response.valid",
    "generate.response.payload",
    "generate.rgsr",
    "memory.arvalid",
    "memory.arid",
    "memory.araddr",
    "memory.arlen",
    "memory.arsize",
    "memory.arburst",
    "memory.awvalid",
    "memory.awid",
    "memory.awaddr",
    "memory.awlen",
    "memory.awsize",
    "memory.awburst",
    "memory.wvalid",
    "memory.wdata",
    "memory.wstrb",
    "memory.wlast",
    "memory.rready",
    "memory.bready",
    "tfsr",
    "idle",
    "lookup",
)


class _Bundle:
    """Many signals as one value: the simulator takes as long to set or to sample one as many."""

    def __init__(self, pipeline: ObservedPipeline, names: tuple[str, ...]) -> None:
        self._fields: list[tuple[str, int, int]] = []
        values = []
        position = 0
        for name in names:
            member: Any = pipeline
            for part in name.split("."):
                member = getattr(member, part)
            value = Value.cast(member)
            self._fields.append((name, position, (1 << len(value)) - 1))
            values.append(value)
            position += len(value)
        self.value = Cat(values)

    def pack(self, ports: Ports) -> int:
        packed = 0
        for name, position, _ in self._fields:
            packed |= ports[name] << position
        return packed

    def unpack(self, packed: int) -> Ports:
        return {name: packed >> position & mask for name, position, mask in self._fields}


@dataclass
class _Owner:
    """The access that has an id."""

    number: int
    branches: int
    sent: bool = False


class Driver:
    """The core's side of the ports: what it drives in a cycle, and what it makes of the outputs."""

    def __init__(self, program: Program, config: TagConfig, *, seed: int, latency: int) -> None:
        self._program = program
        self._transactions = program.transactions.tolist()
        self._holds_branches = config.barrier is not Barrier.NONE
        self._access_offsets = {name: f.offset for name, f in access_layout(config)}
        self._verdict_fields = [
            (name, f.offset, (1 << f.width) - 1) for name, f in verdict_layout(config)
        ]
        self._chance = Chance(seed)
        self._memory = Dram(self._chance, latency)
        self._patience = _PATIENCE + 10 * latency
        self._ports: Ports = dict.fromkeys(INPUTS, 0)
        self._ports["control.storage_zeroed"] = 1
        self._ports["generate.response.ready"] = 1
        self.cycle = 0
        self._last_progress = 0
        self._head = 0
        self._free_ids = list(range(1 << config.id_bits))
        self._owners: dict[int, _Owner] = {}
        self._offered: _Owner | None = None
        self._generating = False
        self._generated: int | None = None
        self._resolving = False
        self._idle = True
        self._waiting_verdict: int | None = None
        self._tfsr = 0
        self._accesses = self._lookups = 0
        self._results: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)] * len(self._transactions)

    @property
    def done(self) -> bool:
        return (
            self._head == len(self._transactions)
            and not self._owners
            and self._offered is None
            and self._idle
        )

    @property
    def operations(self) -> int:
        """Operations whose transactions have begun."""
        if self._head == len(self._transactions):
            return len(self._program)
        return self._transactions[self._head][3]

    def place(self) -> str:
        """File and line of the oldest operation that is under way."""
        numbers = [owner.number for owner in self._owners.values()]
        number = min([*numbers, self._head, len(self._transactions) - 1])
        return self._program.place(self._transactions[number][3])

    def completion(self) -> Completion:
        return Completion(
            results=np.array(self._results, dtype=RESULT),
            statistics=Statistics(
                operations=len(self._program),
                cycles=self.cycle,
                accesses=self._accesses,
                lookups=self._lookups,
                read_bursts=self._memory.read_bursts,
                read_beats=self._memory.read_beats,
                write_bursts=self._memory.write_bursts,
                write_beats=self._memory.write_beats,
            ),
        )

    # Inputs of a cycle

    def drive(self) -> Ports:
        """Values of all inputs in the next cycle."""
        ports = self._ports
        self._chance.next_cycle(self.cycle)
        self._resolving = False
        ports["resolve.valid"] = 0
        ports["generate.rgsr_write"] = 0
        while self._head < len(self._transactions) and self._begin(self._transactions[self._head]):
            self._head += 1
            self._last_progress = self.cycle
        ports["verdict.ready"] = int(not self._chance.pauses(Lane.VERDICT))
        self._memory.drive(ports, self.cycle)
        return ports

    def _begin(self, transaction: tuple[int, ...]) -> bool:
        """Begin the transaction at the head, if it may begin in this cycle."""
        va, tags, size, _, kind, op, flags, branches = transaction
        ports = self._ports
        if self._generating or ports["generate.rgsr_write"]:
            return False
        if flags & Flag.DRAIN and not (self._idle and not self._owners and self._offered is None):
            return False
        if kind == Kind.ACCESS:
            return self._offer(va, tags, size, op, flags, branches)
        if kind == Kind.GENERATE:
            if not self._chance.pauses(Lane.REQUEST):
                self._generating = True
                ports["generate.request.valid"] = 1
                ports["generate.request.payload"] = tags
            return False  # stays at the head until the response
        if kind == Kind.RESOLVE:
            if self._resolving or self._chance.pauses(Lane.RESOLVE):
                return False
            self._resolving = True
            ports["resolve.valid"] = 1
            ports["resolve.branch"] = op
            ports["resolve.mispredicted"] = int(bool(flags & Flag.MISPREDICTED))
        elif kind == Kind.GCR:
            ports["generate.gcr"] = tags
        elif kind == Kind.RGSR:
            ports["generate.rgsr_write"] = 1
            ports["generate.rgsr_value"] = tags
        elif self._offered is not None:
            return False  # the control inputs belong to the access on offer
        elif kind == Kind.REGIME:
            for name in ("tbi", "mtx", "tcma", "ata", "tcso"):
                ports[f"control.{name}"] = tags & 3
                tags >>= 2
            ports["control.tcf"] = tags
        else:
            ports["control.memory_base"] = va
            ports["control.memory_bytes"] = size
            ports["control.storage_base"] = tags
            self._memory.storage = range(tags, tags + size // 32)
        return True

    def _offer(self, va: int, tags: int, size: int, op: int, flags: int, branches: int) -> bool:
        if self._offered is not None:
            return False
        if flags & Flag.IF_PASSED:
            if any(owner.number == self._head - 1 for owner in self._owners.values()):
                return False
            if self._results[self._head - 1][2] != Outcome.PASS.value:
                self._results[self._head] = (0, 0, Status.NOT_SENT, 0)
                return True
        # The resolve of this cycle would reach the access, and mean an older branch of that name.
        if self._resolving and branches >> self._ports["resolve.branch"] & 1:
            return False
        if self._chance.pauses(Lane.REQUEST) or not self._free_ids:
            return False
        id = self._free_ids.pop()
        self._offered = self._owners[id] = _Owner(self._head, branches)
        at = self._access_offsets
        self._ports["access.valid"] = 1
        self._ports["access.payload"] = (
            id << at["id"]
            | op << at["op"]
            | va << at["va"]
            | (va & (1 << 52) - 1) << at["pa"]
            | size << at["bytes"]
            | (flags & 0x1F) << at["memory"]
            | branches << at["branches"]
            | tags << at["tags"]
        )
        return True

    # Outputs of a cycle

    def observe(self, outputs: Ports) -> None:
        """Take note of what the pipeline did in the cycle.

        Raises
        ------
        PipelineError
            It broke a rule.
        """
        try:
            self._observe(outputs)
        except BrokenRule as error:
            raise PipelineError(f"{self.place()}: {error} (cycle {self.cycle})") from None

    def _observe(self, outputs: Ports) -> None:
        driven = self._ports
        progress = self._memory.observe(outputs, driven, self.cycle)
        taken = self._offered is not None and bool(outputs["access.ready"])
        if self._offered is not None and taken:
            progress = True
            self._accesses += 1
            self._offered.sent = True
            self._offered = None
            driven["access.valid"] = 0
        progress |= self._observe_generator(outputs)
        progress |= self._observe_verdict(outputs)
        if self._resolving and self._holds_branches:
            self._apply_resolve()
        # `idle` of this cycle does not yet know of an access that was taken in it.
        self._idle = bool(outputs["idle"]) and not taken
        self._lookups += outputs["lookup"]
        if progress:
            self._last_progress = self.cycle
        expect(self.cycle - self._last_progress < self._patience, "the pipeline hangs")
        if self.done:
            expect(outputs["tfsr"] == self._tfsr, "TFSR is not what the ASYNC verdicts make it")
        self.cycle += 1

    def _observe_generator(self, outputs: Ports) -> bool:
        accepted = self._ports["generate.request.valid"] and outputs["generate.request.ready"]
        if accepted:
            self._ports["generate.request.valid"] = 0
        if self._generated is not None:  # RGSR has its new value in the cycle after the response
            self._results[self._head] = (outputs["generate.rgsr"], self._generated, 0, 0)
            self._generated = None
            self._generating = False
            self._head += 1
        if outputs["generate.response.valid"]:
            expect(self._generating, "a tag is given that nobody asked for")
            self._generated = outputs["generate.response.payload"]
        return bool(accepted or outputs["generate.response.valid"])

    def _observe_verdict(self, outputs: Ports) -> bool:
        payload = outputs["verdict.payload"]
        if not outputs["verdict.valid"]:
            expect(self._waiting_verdict is None, "a verdict is withdrawn")
            expect(payload == 0, "the payload of verdict is not 0 while it is not valid")
            return False
        expect(self._waiting_verdict in (None, payload), "a verdict changes before it is taken")
        self._waiting_verdict = None if self._ports["verdict.ready"] else payload
        if self._waiting_verdict is not None:
            return False
        verdict = {name: payload >> at & mask for name, at, mask in self._verdict_fields}
        owner = self._owners.pop(verdict["id"], None)
        expect(owner is not None, f"a verdict for id {verdict['id']}, which no access has")
        assert owner is not None
        expect(owner.sent, "a verdict before its access was taken")
        expect(
            not self._holds_branches or not owner.branches,
            "a verdict before its branches are resolved",
        )
        self._free_ids.append(verdict["id"])
        outcome = verdict["outcome"]
        self._results[owner.number] = (verdict["far"], verdict["tags"], outcome, verdict["wnr"])
        if outcome == Outcome.ASYNC.value:
            transaction = self._transactions[owner.number]
            bit = transaction[0] >> 55 & 1
            self._tfsr |= 1 << (bit if transaction[6] & Flag.EL0 else 2 + bit)
        return True

    def _apply_resolve(self) -> None:
        """The resolve of this cycle counts for all accesses sent, and for the one on offer."""
        bit = 1 << self._ports["resolve.branch"]
        for id, owner in sorted(self._owners.items()):
            if owner.branches & bit and self._ports["resolve.mispredicted"]:
                self._results[owner.number] = (0, 0, Status.SQUASHED, 0)
                del self._owners[id]
                self._free_ids.append(id)
            owner.branches &= ~bit

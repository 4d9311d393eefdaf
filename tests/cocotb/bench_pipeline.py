"""TagPipeline against the golden model: random operation streams, with tag storage behind it.

The bench is a core: it performs the port transactions of a stream in order, as far ahead as the
contract of the pipeline allows. Outcomes, and in the end tag storage, must be the model's; TFSR
must be what the verdicts make it. Each run leaves its samples for the coverage plan in
``coverage.npz``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cocotb
import numpy as np
from amaranth.lib import data, wiring
from bench_base import Bench, Input, Pauses, Resolution, Resolve, Sink, Source, TagStorage, argument
from cocotb.handle import HierarchyObject
from coverage_points import Observer, classify, save_samples
from emte.rtl.layouts import Outcome, access_layout, generate_signature, verdict_layout
from emte.sim.core import Program
from emte.sim.model import Model
from emte.sim.ops import STORAGE_BASE, Operation, Stream, check
from emte.sim.traffic import directed_stream, random_stream
from emte.sim.transactions import RESULT, Flag, Kind, Status
from tops import TOPS

CONFIG = TOPS["pipeline"].config
PAGE = 4096
REGIME = {"tbi": 2, "mtx": 2, "tcma": 2, "ata": 2, "tcso": 2, "tcf": 4}
"""Widths of the fields of a regime in a transaction, LSB first."""


@dataclass(eq=False)
class Owner:
    """The access that has an id."""

    number: int
    """Of its transaction."""
    waits_for: set[int]
    taken: bool = False


class PipelineBench(Bench):
    """Performs the transactions of a stream."""

    def __init__(self, dut: HierarchyObject, stream: Stream) -> None:
        super().__init__(dut)
        rng = self.rng
        self.program = Program.of(stream)
        self.transactions = self.program.transactions.tolist()
        self.points = classify(stream, self.program)
        self.observer = Observer(dut, CONFIG)
        self.results = np.zeros(len(self.transactions), dtype=RESULT)
        self.answered = np.zeros(len(self.transactions), dtype=np.int64)
        """Cycle of each result."""

        generate = generate_signature(CONFIG).members
        self.access = Source(dut, "access", access_layout(CONFIG))
        self.verdict = Sink(dut, "verdict", verdict_layout(CONFIG))
        self.request = Source(dut, "generate__request", payload_of(generate["request"]))
        self.response = Sink(dut, "generate__response", payload_of(generate["response"]))
        self.storage = TagStorage(dut, rng)
        self.pauses = {
            name: Pauses(rng) for name in ("access", "verdict", "resolve", "request", "response")
        }
        dut.control__storage_zeroed.value = 1
        self.resolve = Resolve(dut)
        self.resolve.drive(None)
        self.rgsr_write = Input(dut.generate__rgsr_write)
        self.rgsr_write.drive(0)
        dut.generate__gcr.value = 0

        self.head = 0
        """The transaction that begins next."""
        self.offered: Owner | None = None
        self.owners: dict[int, Owner] = {}
        self.free_ids = list(range(1 << CONFIG.id_bits))
        self.generating: int | None = None
        """The transaction that waits for a tag, which is:"""
        self.generated: int | None = None
        self.resolving: Resolution | None = None
        self.writes_rgsr = False
        self.is_idle = False
        self.tfsr = 0
        self.transfers = 0
        """Accesses, requests for tags and resolves that have been transferred."""

    # What the core does in a cycle

    def drive(self) -> None:
        self.resolving = None
        self.writes_rgsr = False
        while self.head < len(self.transactions) and self.begin(*self.transactions[self.head]):
            self.head += 1
            self.progress()
        self.resolve.drive(self.resolving)
        self.rgsr_write.drive(int(self.writes_rgsr))
        self.verdict.drive(not self.pauses["verdict"]())
        self.response.drive(not self.pauses["response"]())
        self.storage.drive()

    def begin(
        self, va: int, tags: int, size: int, row: int, kind: int, op: int, flags: int, branches: int
    ) -> bool:
        """Begin the transaction at the head in this cycle, if it may begin."""
        dut = self.dut
        if self.generating is not None or self.writes_rgsr:
            return False
        if flags & Flag.DRAIN and not self.is_drained():
            return False
        match kind:
            case Kind.ACCESS:
                return self.begin_access(va, tags, size, op, flags, branches)
            case Kind.GENERATE:
                if self.pauses["request"]():
                    return False
                self.generating = self.head
                self.request.offer(self.request.packing.unpack(tags))
            case Kind.RESOLVE:
                if self.resolving or self.pauses["resolve"]():
                    return False
                self.resolving = op, bool(flags & Flag.MISPREDICTED)
            case Kind.GCR:
                dut.generate__gcr.value = tags
            case Kind.RGSR:
                self.writes_rgsr = True
                dut.generate__rgsr_value.value = tags
            case _ if self.offered:
                return False  # the control inputs belong to the access on offer
            case Kind.REGIME:
                for name, width in REGIME.items():
                    getattr(dut, f"control__{name}").value = tags % (1 << width)
                    tags >>= width
            case Kind.STORAGE:
                dut.control__memory_base.value = va
                dut.control__memory_bytes.value = size
                dut.control__storage_base.value = tags
        return True

    def begin_access(
        self, va: int, tags: int, size: int, op: int, flags: int, branches: int
    ) -> bool:
        number = self.head
        if self.offered:
            return False
        if flags & Flag.IF_PASSED:
            if any(owner.number == number - 1 for owner in self.owners.values()):
                return False
            if self.results[number - 1]["outcome"] != Outcome.PASS.value:
                self.results[number]["outcome"] = Status.NOT_SENT
                return True
        # A resolve reaches what is offered in its cycle, and this one is of an older branch.
        if self.resolving and branches >> self.resolving[0] & 1:
            return False
        if not self.free_ids or self.pauses["access"]():
            return False
        id = self.free_ids.pop(self.rng.randrange(len(self.free_ids)))
        waits_for = {branch for branch in range(CONFIG.branches) if branches >> branch & 1}
        self.offered = self.owners[id] = Owner(number, waits_for)
        self.access.offer(
            {
                "id": id,
                "op": op,
                "va": va,
                "pa": va % (1 << CONFIG.pa_bits),
                "bytes": size,
                "memory": int(flags & (Flag.TAGGED | Flag.NO_TAG_ACCESS)),
                "exempt": int(bool(flags & Flag.EXEMPT)),
                "tco": int(bool(flags & Flag.TCO)),
                "el0": int(bool(flags & Flag.EL0)),
                "branches": branches,
                "tags": tags,
            }
        )
        return True

    # What the pipeline does in a cycle

    def observe(self) -> None:
        # The branches are those of the start of the cycle: what is resolved in it comes last.
        dut = self.dut
        idle = bool(dut.idle.value)
        if idle:
            inside = [owner for owner in self.owners.values() if owner.taken]
            self.expect(not inside, "idle with an access inside")
        self.expect(int(dut.tfsr.value) == self.tfsr, f"TFSR is not {self.tfsr:#x}")
        self.observer.observe()
        self.observe_verdict()
        access = self.access.observe()
        taken = access is not None
        # `idle` of this cycle does not know yet of an access that is taken in it.
        self.is_idle = idle and not taken
        if taken:
            self.progress()
            self.transfers += 1
            self.offered.taken = True
            self.observer.take(access["id"], self.points[self.offered.number])
            self.offered = None
        if self.request.observe() is not None:
            self.transfers += 1
        if self.generated is not None:
            # RGSR has its new value in the cycle after the response.
            rgsr = int(dut.generate__rgsr.value)
            self.answer(self.generating, rgsr, self.generated, Outcome.PASS.value, 0)
            self.points[self.generating].finish("certain")
            self.generating = self.generated = None
        response = self.response.observe()
        if response is not None:
            self.expect(self.generating is not None, "a tag that nobody asked for")
            self.generated = response["tag"]
        self.apply_resolve()

    def observe_verdict(self) -> None:
        verdict = self.verdict.peek()
        if verdict is None:
            return
        owner = self.owners.get(verdict["id"])
        self.expect(owner, f"a verdict that nobody waits for, or of a squashed access: {verdict}")
        self.expect(
            owner.taken and not owner.waits_for,
            f"a verdict before branches {owner.waits_for} are resolved",
        )
        if self.verdict.is_ready:
            point = self.points[owner.number]
            self.expect(
                verdict["outcome"] == point.outcome.value,
                f"outcome {verdict['outcome']} of an access that is {point.values}",
            )
            *_, branches = self.transactions[owner.number]
            point.finish("released" if branches else "certain")
            self.answer(owner.number, **{name: verdict[name] for name in RESULT.names})
            if verdict["outcome"] == Outcome.ASYNC.value:
                va, *_, flags, _ = self.transactions[owner.number]
                self.tfsr |= 1 << (0 if flags & Flag.EL0 else 2) + (va >> 55 & 1)
            self.forget(verdict["id"])

    def answer(self, number: int, far: int, tags: int, outcome: int, wnr: int) -> None:
        """Note the result of a transaction."""
        self.results[number] = far, tags, outcome, wnr
        self.answered[number] = self.cycle
        self.progress()

    def apply_resolve(self) -> None:
        if self.resolving is None:
            return
        self.transfers += 1
        branch, mispredicted = self.resolving
        for id, owner in list(self.owners.items()):
            if branch in owner.waits_for:
                owner.waits_for.remove(branch)
                if mispredicted:
                    self.points[owner.number].finish("squashed")
                    self.forget(id)

    def forget(self, id: int) -> None:
        """The access has its verdict, or is squashed: its id is free from the next cycle on."""
        del self.owners[id]
        self.free_ids.append(id)

    def is_drained(self) -> bool:
        return self.is_idle and self.offered is None and not self.owners

    def is_done(self) -> bool:
        begun = self.head == len(self.transactions)
        return begun and self.generating is None and self.is_drained()


def payload_of(member: wiring.Member) -> data.StructLayout:
    """Layout of the payload of a stream that is a member of a signature."""
    return member.signature.members["payload"].shape


def check_outcomes(bench: PipelineBench, stream: Stream, golden: list[dict]) -> None:
    outcomes = bench.program.outcomes(bench.results)
    rows = bench.program.transactions["row"]
    for row, operation in enumerate(stream):
        assert outcomes[row] == golden[row], (
            f"cycle {bench.answered[rows == row].max(initial=0)}, seed {bench.seed}: "
            f"{operation} gives {outcomes[row]}, not {golden[row]}"
        )


def check_storage(bench: PipelineBench, stream: Stream, model: Model) -> None:
    """Compare the tags of all pages in storage with the model's."""
    checked = 0
    for page in {operation.address for operation in stream.select(["map"])}:
        for address in range(page, page + PAGE, 16):
            golden = model.tag_at(address)
            if golden is not None:
                byte = bench.storage.read_byte(STORAGE_BASE + (address >> 5))
                stored = byte >> (address >> 2 & 4) & 0xF
                bench.expect(
                    stored == golden, f"storage has {stored} for {address:#x}, not {golden}"
                )
                checked += 1
    assert checked, "no tag is left to be compared"


async def run_stream(dut: HierarchyObject, drawn: Stream) -> None:
    """Run a stream, and compare all that comes of it with the model."""
    # In the end all tags go to their usual place.
    end = Operation("storage", line=len(drawn) + 1, address=0, bytes=1 << 40, base=STORAGE_BASE)
    stream = Stream(drawn.path, [*drawn, end])
    check(stream, held=CONFIG.held)
    model = Model()
    golden = list(model.run(stream))

    bench = PipelineBench(dut, stream)
    await bench.reset()
    await bench.run()
    cocotb.log.info(
        "%d operations, %d transfers in %d cycles", len(stream), bench.transfers, bench.cycle
    )
    check_outcomes(bench, stream, golden)
    check_storage(bench, stream, model)
    save_samples(Path("coverage.npz"), bench.points)
    assert bench.transfers >= argument("transactions"), "too few transactions"


@cocotb.test()
async def random_operations(dut: HierarchyObject) -> None:
    # About half of what is drawn becomes an access.
    count = 9 * argument("transactions") // 4
    await run_stream(dut, random_stream(argument("bench_seed"), count, held=CONFIG.held))


@cocotb.test()
async def directed_operations(dut: HierarchyObject) -> None:
    count = argument("transactions")
    await run_stream(dut, directed_stream(argument("bench_seed"), count, held=CONFIG.held))

# amaranth: UnusedElaboratable=no

"""The self-test of the FPGA build: it passes, and it fails when anything is wrong."""

from collections import Counter
from dataclasses import replace

import pytest
from amaranth.hdl import ResetInserter, Signal
from emte.fpga.program import Access, Expect, Map, Pause, Resolve, assemble, program
from emte.fpga.selftest import SelfTest, Sequencer
from emte.fpga.storage import Fault, TagStorage
from emte.rtl import DEFAULT, ECP5, SMALL, Barrier
from emte.rtl.axi import AXI4Signature, Burst, Response
from emte.rtl.layouts import Memory, Op, Outcome
from emte.sim import model
from emte.sim.harness import simulate
from emte.sim.ops import Operation, Regime, Stream
from emte.sim.ops import check as check_stream


def run(dut: SelfTest, *, fault: Fault = Fault.NONE, max_cycles: int = 20_000) -> tuple[bool, int]:
    """Run a self-test to its end; returns whether it passed, and its step."""
    result = []

    async def bench(ctx):
        ctx.set(dut.fault, fault)
        while ctx.get(dut.running):
            assert not ctx.get(dut.passed)
            assert not ctx.get(dut.failed)
            await ctx.tick()
        assert ctx.get(dut.passed) != ctx.get(dut.failed)
        result.append((bool(ctx.get(dut.passed)), ctx.get(dut.step)))

    simulate(dut, bench, max_cycles=max_cycles)
    return result[0]


# ---- The whole self-test


@pytest.mark.parametrize("barrier", Barrier)
def test_passes(barrier):
    config = replace(SMALL, barrier=barrier)
    assert run(SelfTest(config)) == (True, len(program(config)))


def test_passes_as_built():
    assert run(SelfTest(ECP5)) == (True, len(program(ECP5)))


def test_fits_default():
    assemble(program(DEFAULT), size=(1 << DEFAULT.id_bits) - 1, branches=DEFAULT.branches)


def test_flipped_bit_fails():
    passed, step = run(SelfTest(SMALL), fault=Fault.FLIP)
    assert not passed
    assert isinstance(program(SMALL)[step], Access)


def test_hanging_storage_fails():
    passed, _ = run(SelfTest(SMALL, timeout=1000), fault=Fault.HANG)
    assert not passed


def _first(steps, outcome, op):
    """The first step of this kind."""
    return next(
        number
        for number, step in enumerate(steps)
        if isinstance(step, Access)
        and step.op is op
        and step.expect is not None
        and step.expect.outcome is outcome
    )


@pytest.mark.parametrize(
    ("outcome", "op", "change"),
    [
        (Outcome.PASS, Op.LOAD, {"outcome": Outcome.TAG_CHECK_FAULT}),
        (Outcome.TAG_CHECK_FAULT, Op.LOAD, {"outcome": Outcome.PASS}),
        (Outcome.TAG_CHECK_FAULT, Op.STORE, {"wnr": 0}),
        (Outcome.TAG_CHECK_FAULT, Op.STORE, {"far": Map(SMALL).memory_base}),
        (Outcome.PASS, Op.LDG, {"tags": 0xF}),
        (Outcome.PASS, Op.LDGM, {"tags": 1 << 63}),
    ],
)
def test_wrong_expectation_fails(outcome, op, change):
    steps = program(SMALL)
    number = _first(steps, outcome, op)
    steps[number] = replace(steps[number], expect=replace(steps[number].expect, **change))
    assert run(SelfTest(SMALL, steps)) == (False, number)


def test_leaking_barrier_fails():
    """Without a barrier the verdict of a speculative access comes before its branch."""
    passed, step = run(SelfTest(replace(SMALL, barrier=Barrier.NONE), program(SMALL)))
    assert not passed
    assert program(SMALL)[step].branches


def test_restart():
    """A reset starts it again, in the middle and at the end; the storage keeps the old tags."""
    dut = SelfTest(SMALL)
    restart = Signal()

    async def begin_again(ctx):
        ctx.set(restart, 1)
        await ctx.tick()
        ctx.set(restart, 0)
        assert ctx.get(dut.running)
        assert ctx.get(dut.step) == 0

    async def bench(ctx):
        await ctx.tick().repeat(1000)
        assert ctx.get(dut.running)
        assert ctx.get(dut.step) > 20
        for _ in range(2):
            await begin_again(ctx)
            while ctx.get(dut.running):
                await ctx.tick()
            assert ctx.get(dut.passed)

    simulate(ResetInserter(restart)(dut), bench, max_cycles=20_000)


# ---- The program


def _as_stream(config, steps) -> tuple[list[Operation], list[dict | None]]:
    """The program as an operation stream, and the outcomes that it expects of its accesses."""
    where = Map(config)
    operations = [
        Operation("regime", regime=Regime(dczid_bs=6)),
        Operation(
            "storage",
            address=where.memory_base,
            bytes=where.memory_bytes,
            base=where.storage_base,
        ),
        Operation(
            "map",
            address=where.memory_base - 4096,
            bytes=where.memory_bytes + 4096,
            memory="tagged",
        ),
    ]
    expected: list[dict | None] = [None] * len(operations)
    names = {
        Op.LOAD: "load",
        Op.STORE: "store",
        Op.ATOMIC: "atomic",
        Op.LDG: "ldg",
        Op.STG: "stg",
        Op.LDGM: "ldgm",
        Op.STGM: "stgm",
    }
    open_branches: set[int] = set()
    for step, expect, _ in assemble(steps, size=63, branches=config.branches):
        match step:
            case Pause():
                continue
            case Resolve():
                open_branches.discard(step.branch)
                operation = Operation(
                    "resolve", id=step.branch, mispredicted=int(step.mispredicted)
                )
                operations.append(operation)
                expected.append(None)
                continue
        if step.op is Op.CLEAN_INVALIDATE:
            operations.append(Operation("clean_invalidate"))
            expected.append(None)
            continue
        for branch in sorted(set(step.branches) - open_branches):
            open_branches.add(branch)
            operations.append(Operation("branch", id=branch))
            expected.append(None)
        page = {"address": step.address & ~0xFFF, "bytes": 4096}
        tagged = where.memory_base - 4096 <= step.address < where.memory_base + where.memory_bytes
        untag = step.memory is Memory.UNTAGGED and tagged
        if untag:
            operations.append(Operation("map", **page, memory="untagged"))
            expected.append(None)
        name = names[step.op]
        if step.op is Op.STORE and step.bytes > 64:
            assert step.bytes == 256
            name = "dc_zva"
        operations.append(
            Operation(
                name,
                address=step.pointer << 56 | step.address,
                size=step.bytes if name in ("load", "store", "atomic") else 0,
                exempt=step.exempt,
                tco=step.tco,
                branches=tuple(sorted(step.branches)),
                tag=step.tags if name == "stg" else 0,
                tags=step.tags if name == "stgm" else 0,
                el=1,
            )
        )
        if expect is None:
            expected.append({"outcome": "squashed"})
        else:
            outcome: dict = {"outcome": expect.outcome.name.lower()}
            if expect.outcome is not Outcome.PASS:
                outcome |= {"far": hex(step.pointer << 56 | expect.far), "wnr": expect.wnr}
            elif name == "ldg":
                outcome["tag"] = expect.tags
            elif name == "ldgm":
                outcome["tags"] = hex(expect.tags)
            expected.append(outcome)
        if untag:
            operations.append(Operation("map", **page, memory="tagged"))
            expected.append(None)
    for line, operation in enumerate(operations, 1):
        operation.line = line
    return operations, expected


@pytest.mark.parametrize("config", [SMALL, ECP5, DEFAULT], ids=["small", "ecp5", "default"])
def test_program_agrees_with_the_model(config):
    operations, expected = _as_stream(config, program(config))
    check_stream(Stream("program", operations), held=2)
    for operation, outcome, want in zip(operations, model.run(operations), expected, strict=True):
        assert want is None or outcome == want, operation


def test_program_evicts_and_speculates():
    steps = program(SMALL)
    line_bytes = 32 * SMALL.line_bytes
    stored = {
        step.address // line_bytes
        for step in steps
        if isinstance(step, Access) and step.op is Op.STG
    }
    crowd = max(Counter(line % SMALL.sets for line in stored).values())
    assert crowd > SMALL.ways
    assert any(isinstance(step, Access) and step.expect is None for step in steps)
    assert any(
        isinstance(step, Access) and step.branches and step.expect is not None for step in steps
    )


_PASS = Expect()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Pause(1)] * 4, "the program has 4 steps, and 3 fit"),
        ([Access(Op.LOAD, 0)], "step 0: expect is missing"),
        (
            [Access(Op.LOAD, 0, branches=(1,), expect=_PASS), Resolve(1, mispredicted=True)],
            "step 0: a squashed access has no verdict",
        ),
        ([Access(Op.LOAD, 0, branches=(2,), expect=_PASS)], "step 0: there is no branch 2"),
        ([Access(Op.LOAD, 0, branches=(1,), expect=_PASS)], "branch 1 is never resolved"),
        ([Pause(1), Resolve(0)], "step 1: branch 0 is not open"),
        ([Pause(0)], "step 0: cycles must be from 1 to 255, not 0"),
        ([Pause(256)], "step 0: cycles must be from 1 to 255, not 256"),
    ],
)
def test_assemble_refuses(steps, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        assemble(steps, size=3, branches=2)


def test_assemble_waits_for_the_last_branch():
    steps = [
        Access(Op.LOAD, 0, branches=(0, 1), expect=_PASS),
        Access(Op.LOAD, 0, expect=_PASS),
        Resolve(0),
        Access(Op.LOAD, 0, branches=(1,)),
        Resolve(1, mispredicted=True),
    ]
    steps[0] = replace(steps[0], expect=None)
    assert [after for _, _, after in assemble(steps, size=8, branches=2)] == [4, 1, 2, 4, 4]


# ---- The sequencer, against a pipeline that is played by the test

_STEPS = [
    Access(Op.LOAD, 0x1000, 0x5, branches=(0,), expect=_PASS),
    Access(Op.STORE, 0x1010, 0x6, expect=Expect(Outcome.TAG_CHECK_FAULT, 0x1010, 1)),
    Access(Op.LOAD, 0x1020, branches=(1,)),
    Resolve(0),
    Resolve(1, mispredicted=True),
]
_FIRST = {"id": 0}
_SECOND = {"id": 1, "outcome": Outcome.TAG_CHECK_FAULT, "far": 6 << 56 | 0x1010, "wnr": 1}
_SQUASHED = {"id": 2}


def play(verdicts, *, early=(), late=(), idle=1, error=0) -> tuple[bool, int]:
    """Answer the accesses of ``_STEPS``: ``early`` before the resolves, ``late`` after the end."""
    dut = Sequencer(SMALL, _STEPS, timeout=600)
    result = []

    async def answer(ctx, payloads):
        for payload in payloads:
            ctx.set(dut.verdict.payload, payload)
            ctx.set(dut.verdict.valid, 1)
            ready = 0
            while not ready:
                _, _, ready = await ctx.tick().sample(dut.verdict.ready)
            ctx.set(dut.verdict.valid, 0)

    async def bench(ctx):
        ctx.set(dut.idle, idle)
        ctx.set(dut.error, error)
        ctx.set(dut.access.ready, 1)
        while ctx.get(dut.step) < 2 and not ctx.get(dut.failed):
            await ctx.tick()
        ctx.set(dut.access.ready, not early)
        await answer(ctx, early)
        ctx.set(dut.access.ready, 1)
        while ctx.get(dut.step) < len(_STEPS) and not ctx.get(dut.failed):
            await ctx.tick()
        await answer(ctx, verdicts)
        while not (ctx.get(dut.passed) | ctx.get(dut.failed)):
            await ctx.tick()
        await answer(ctx, late)
        await ctx.tick().repeat(3)
        assert ctx.get(dut.passed) != ctx.get(dut.failed)
        result.append((bool(ctx.get(dut.passed)), ctx.get(dut.step)))

    simulate(dut, bench, max_cycles=5000)
    return result[0]


def test_sequencer_passes():
    assert play([_FIRST, _SECOND]) == (True, len(_STEPS))
    assert play([_SECOND, _FIRST]) == (True, len(_STEPS))
    assert play([_FIRST], early=[_SECOND]) == (True, len(_STEPS))


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": Outcome.PASS},
        {"outcome": Outcome.EXTERNAL_ABORT},
        {"far": 0x1010},
        {"far": 6 << 56 | 0x1011},
        {"far": 1 << 63 | 6 << 56 | 0x1010},
        {"wnr": 0},
        {"tags": 1 << 40},
    ],
)
def test_sequencer_compares_every_field(change):
    assert play([_FIRST, _SECOND | change]) == (False, 1)


def test_sequencer_refuses_early_verdict():
    assert play([_SECOND], early=[_FIRST]) == (False, 0)


def test_sequencer_refuses_verdict_of_squashed():
    assert play([_FIRST, _SQUASHED, _SECOND]) == (False, 2)
    assert play([_FIRST, _SECOND], late=[_SQUASHED]) == (False, 2)


def test_sequencer_refuses_second_verdict():
    assert play([_FIRST, _FIRST, _SECOND]) == (False, 0)
    assert play([_FIRST, _SECOND], late=[_SECOND]) == (False, 1)


def test_sequencer_refuses_unknown_id():
    assert play([{"id": 40}]) == (False, 40)


def test_sequencer_times_out():
    assert play([_SECOND]) == (False, len(_STEPS))
    assert play([_FIRST, _SECOND], idle=0) == (False, len(_STEPS))


def test_sequencer_sees_error():
    assert not play([_FIRST, _SECOND], error=1)[0]


# ---- The storage

_SIGNATURE = AXI4Signature(address_width=32, data_width=64, id_width=2)


@pytest.mark.parametrize(
    ("base", "size", "message"),
    [
        (0, 24, "bytes must be a power of two of at least 16, not 24"),
        (0, 8, "bytes must be a power of two of at least 16, not 8"),
        (0x40, 128, "base must be a multiple of bytes, not 0x40"),
    ],
)
def test_storage_init_wrong(base, size, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        TagStorage(_SIGNATURE, base=base, bytes=size)


class _Port:
    """Bursts on the port of a storage."""

    def __init__(self, ctx, bus) -> None:
        self.ctx = ctx
        self.bus = bus

    async def _handshake(self, valid, ready) -> None:
        self.ctx.set(valid, 1)
        taken = 0
        while not taken:
            _, _, taken = await self.ctx.tick().sample(ready)
        self.ctx.set(valid, 0)

    def _address(self, channel, address, beats, burst, size) -> None:
        for name, value in (
            ("id", 2),
            ("addr", address),
            ("len", beats - 1),
            ("size", size),
            ("burst", burst),
        ):
            self.ctx.set(getattr(self.bus, channel + name), value)

    async def write(self, address, words, *, strobe=0xFF, burst=Burst.INCR, size=3) -> Response:
        ctx, bus = self.ctx, self.bus
        self._address("aw", address, len(words), burst, size)
        await self._handshake(bus.awvalid, bus.awready)
        ctx.set(bus.wstrb, strobe)
        for number, word in enumerate(words, 1):
            ctx.set(bus.wdata, word)
            ctx.set(bus.wlast, number == len(words))
            await self._handshake(bus.wvalid, bus.wready)
        ctx.set(bus.bready, 1)
        valid = 0
        while not valid:
            _, _, valid, name, response = await ctx.tick().sample(bus.bvalid, bus.bid, bus.bresp)
        ctx.set(bus.bready, 0)
        assert name == 2
        return response

    async def read(self, address, beats, *, burst=Burst.INCR, size=3, pause=0):
        ctx, bus = self.ctx, self.bus
        self._address("ar", address, beats, burst, size)
        await self._handshake(bus.arvalid, bus.arready)
        words, responses, last = [], set(), 0
        while not last:
            for _ in range(pause):
                await ctx.tick()
            ctx.set(bus.rready, 1)
            valid = 0
            while not valid:
                _, _, valid, word, response, name, last = await ctx.tick().sample(
                    bus.rvalid, bus.rdata, bus.rresp, bus.rid, bus.rlast
                )
            ctx.set(bus.rready, 0)
            assert name == 2
            words.append(word)
            responses.add(response)
        assert len(words) == beats
        return words, responses


def _storage(bench) -> None:
    dut = TagStorage(_SIGNATURE, base=0x1000, bytes=256)

    async def run_bench(ctx):
        await bench(ctx, dut, _Port(ctx, dut.bus))

    simulate(dut, run_bench, max_cycles=2000)


@pytest.mark.parametrize("pause", [0, 3])
def test_storage_bursts(pause):
    words = [0x0123_4567_89AB_CDEF + (number << 60) for number in range(8)]

    async def bench(ctx, dut, port):
        assert await port.write(0x1040, words) == Response.OKAY
        assert await port.read(0x1040, 8, pause=pause) == (words, {Response.OKAY})
        assert await port.read(0x1078, 2, pause=pause) == ([words[7], 0], {Response.OKAY})

    _storage(bench)


def test_storage_strobes():
    async def bench(ctx, dut, port):
        await port.write(0x10F8, [0x1111_1111_1111_1111])
        await port.write(0x10F8, [0x2222_2222_2222_2222], strobe=0b1000_0101)
        words, _ = await port.read(0x10F8, 1)
        assert words == [0x2211_1111_1122_1122]

    _storage(bench)


@pytest.mark.parametrize(
    ("address", "how", "response"),
    [
        (0x0FF8, {}, Response.DECERR),
        (0x1100, {}, Response.DECERR),
        (0x8000_1000, {}, Response.DECERR),
        (0x1000, {"burst": Burst.FIXED}, Response.SLVERR),
        (0x1000, {"burst": Burst.WRAP}, Response.SLVERR),
        (0x1000, {"size": 2}, Response.SLVERR),
        (0x1004, {}, Response.SLVERR),
    ],
)
def test_storage_errors(address, how, response):
    async def bench(ctx, dut, port):
        assert await port.write(address, [~0 & (1 << 64) - 1] * 2, **how) == response
        _, responses = await port.read(address, 2, **how)
        assert responses == {response}
        for row in range(0x1000, 0x1100, 8):
            assert await port.read(row, 1) == ([0], {Response.OKAY})

    _storage(bench)


def test_storage_faults():
    async def bench(ctx, dut, port):
        await port.write(0x1000, [6, 7])
        ctx.set(dut.fault, Fault.FLIP)
        words, _ = await port.read(0x1000, 2)
        assert words == [7, 6]
        ctx.set(dut.fault, Fault.HANG)
        ctx.set(dut.bus.arvalid, 1)
        for _ in range(20):
            await ctx.tick()
            assert not ctx.get(dut.bus.arready)

    _storage(bench)

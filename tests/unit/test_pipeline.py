# amaranth: UnusedElaboratable=no
from dataclasses import dataclass, field, replace

import pytest
from amaranth.hdl import Cat, ResetInserter, Signal, Value
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.config import SMALL, Barrier, TagConfig
from emte.rtl.layouts import (
    CheckMode,
    GenerateOp,
    Memory,
    Op,
    access_layout,
    control_signature,
    generate_signature,
    memory_signature,
    resolve_signature,
    tfsr_layout,
    verdict_layout,
)
from emte.rtl.pipeline import TagPipeline
from emte.sim.axi_memory import AxiMemory
from emte.sim.harness import simulate
from emte.sim.model import Model
from emte.sim.ops import Operation, Regime
from emte.sim.streams import random_pauses
from unit_support import integer, plain, watched

TAGGED = range(0x10_0000, 0x11_2000)
"""Memory with tags; the storage map has all of it but the last two pages."""
MAP = range(0x10_0000, 0x11_0000)
UNTAGGED = 0x80_0000
STORAGE = 0x1_0000_0080

CONFIGS = {
    "oblivious": SMALL,
    "delay": replace(SMALL, barrier=Barrier.DELAY),
    "none": replace(SMALL, barrier=Barrier.NONE),
    "1 line": TagConfig(sets=1, ways=1, line_bytes=16, held=2, branches=2, id_bits=2),
}


def test_init():
    dut = TagPipeline(SMALL)
    assert dut.config is SMALL
    members = dut.signature.members
    buses = {"memory": memory_signature, "generate": generate_signature}
    others = {name: member for name, member in members.items() if name not in buses}
    assert Signature(others) == Signature(
        {
            "access": In(stream.Signature(access_layout(SMALL))),
            "control": In(control_signature(SMALL)),
            "resolve": In(resolve_signature(SMALL)),
            "verdict": Out(stream.Signature(verdict_layout(SMALL))),
            "tfsr": Out(tfsr_layout()),
            "storage_error": Out(1),
            "secret_corrections": Out(16),
            "busy": Out(1),
            "idle": Out(1),
        }
    )
    for name, signature in buses.items():
        assert members[name].flow is Out
        assert set(members[name].signature.members) == set(signature(SMALL).members)


# Traffic, and what the model says of it


@dataclass
class Step:
    """An access, or the resolution of a branch."""

    resolve: tuple[int, int] | None = None
    fields: dict = field(default_factory=dict)
    control: dict = field(default_factory=dict)
    branches: frozenset = frozenset()
    outcome: dict = field(default_factory=dict)
    unresolved: set = field(default_factory=set)
    squashed: bool = False
    answered: bool = False
    sent: int = 0


def access_of(operation, regime):
    """How an operation within a page looks at the port."""
    zero, tags = 4 << regime.dczid_bs, 4 << regime.gmid_bs
    of_address = operation.address or 0
    op, size, alignment, value = {
        "load": (Op.LOAD, operation.size, 1, 0),
        "store": (Op.STORE, operation.size, 1, 0),
        "atomic": (Op.ATOMIC, operation.size, 1, 0),
        "dc_zva": (Op.STORE, zero, zero, 0),
        "ldg": (Op.LDG, 16, 16, 0),
        "stg": (Op.STG, 16, 1, operation.tag),
        "st2g": (Op.STG, 32, 1, operation.tag),
        "stgp": (Op.STG, 16, 1, of_address >> 56 & 0xF),
        "dc_gva": (Op.STG, zero, zero, of_address >> 56 & 0xF),
        "stzgm": (Op.STG, zero, zero, operation.tag),
        "ldgm": (Op.LDGM, tags, tags, 0),
        "stgm": (Op.STGM, tags, tags, operation.tags),
        "clean": (Op.CLEAN, 1, 1, 0),
        "invalidate": (Op.INVALIDATE, 1, 1, 0),
        "clean_invalidate": (Op.CLEAN_INVALIDATE, 1, 1, 0),
    }[operation.op]
    if operation.address is None:
        size = 0
    va = of_address - of_address % alignment
    pa = va % (1 << 52)
    return {
        "op": op,
        "va": va,
        "pa": pa,
        "bytes": size,
        "memory": Memory.TAGGED if pa in TAGGED else Memory.UNTAGGED,
        "exempt": operation.exempt,
        "tco": operation.tco,
        "el0": 1 - operation.el,
        "branches": sum(1 << branch for branch in operation.branches),
        "tags": value,
    }


def control_of(regime, *, zeroed=1):
    def bits(pair):
        return pair[0] | pair[1] << 1

    return {
        **{name: bits(getattr(regime, name)) for name in ("tbi", "mtx", "tcma", "ata", "tcso")},
        "tcf": [CheckMode[name.upper()] for name in regime.tcf],
        "memory_base": MAP.start,
        "memory_bytes": len(MAP),
        "storage_base": STORAGE,
        "storage_zeroed": zeroed,
    }


def new_model():
    model = Model()
    model.step(Operation("storage", address=MAP.start, bytes=len(MAP), base=STORAGE))
    model.step(Operation("map", address=TAGGED.start, bytes=len(TAGGED), memory="tagged"))
    return model


class Traffic:
    """Steps, made one after the other; the model performs each of them when it is made."""

    def __init__(self, config):
        self.config = config
        self.model = new_model()
        self.regime = Regime()
        self.steps = []
        self.opened = {}

    def set_regime(self, **fields):
        self.regime = Regime(**fields)
        self.model.step(Operation("regime", regime=self.regime))

    def access(self, op, address=None, *, branches=(), **fields):
        """Append an access; branches that are not open yet are opened."""
        for branch in branches:
            if branch not in self.opened:
                self.model.step(Operation("branch", id=branch))
                self.opened[branch] = []
        branches = tuple(sorted(branches))
        operation = Operation(op, address=address, branches=branches, **fields)
        step = Step(
            fields=access_of(operation, self.regime),
            control=control_of(self.regime),
            branches=frozenset(branches),
            outcome=self.model.step(operation),
            unresolved=set(branches),
        )
        for branch in branches:
            self.opened[branch].append(step)
        self.steps.append(step)
        return step

    def resolve(self, branch, mispredicted=0):
        self.model.step(Operation("resolve", id=branch, mispredicted=mispredicted))
        del self.opened[branch]
        self.steps.append(Step(resolve=(branch, mispredicted)))

    @property
    def held(self):
        """Accesses that hang on an open branch."""
        return list({id(s): s for steps in self.opened.values() for s in steps}.values())

    def are_held(self, address, size):
        """Does an unresolved access look at one of these granules?"""
        for step in self.held:
            start, stop = step.fields["pa"], step.fields["pa"] + step.fields["bytes"]
            if start - 16 < address + size and address < stop + 16:
                return True
        return False


def random_regime(rng):
    def pair(*choices):
        return rng.choice(choices), rng.choice(choices)

    return {
        "tbi": pair(0, 1, 1),
        "mtx": pair(0, 1),
        "tcma": pair(0, 0, 0, 1),
        "ata": pair(0, 1, 1, 1, 1),
        "tcso": pair(0, 0, 0, 1),
        "tcf": pair("sync", "sync", "none", "async", "asym"),
        "gmid_bs": rng.choice([2, 4, 6]),
        "dczid_bs": rng.choice([2, 4, 5, 7]),
    }


def random_address(rng, traffic, size):
    """In one of few lines, most often; with a pointer that translation accepts, and most often
    with the right tag."""
    pages = range(MAP.start, MAP.stop, 4096)
    page = rng.choice(
        [rng.choice(pages[:6])] * 20
        + [
            UNTAGGED,
            UNTAGGED,
            MAP.stop,
            STORAGE & -4096,
            (STORAGE & -4096) + 4096,
            (1 << 52) - 4096,
        ]
    )
    address = page + rng.choice([rng.randrange(0, 96), rng.randrange(4096)])
    address = min(address, page + 4096 - size)
    half = rng.getrandbits(1)
    regime = traffic.regime
    tag = traffic.model.tag_at(address)
    if tag is None:
        tag = 15 * half
    if rng.random() < 0.2:
        tag = rng.randrange(16)
    top = 15 * half
    if regime.tbi[half]:
        top = rng.randrange(16)
    elif not regime.mtx[half]:
        tag = 15 * half
    return top << 60 | tag << 56 | (0xF * half) << 52 | address


def random_step(rng, traffic, *, speculation):
    if rng.random() < 0.05:
        traffic.set_regime(**random_regime(rng))
    if traffic.opened and rng.random() < 0.3:
        traffic.resolve(rng.choice(sorted(traffic.opened)), int(rng.random() < 0.3))
        return
    branches = ()
    if speculation and len(traffic.held) < traffic.config.held and rng.random() < 0.5:
        names = range(traffic.config.branches)
        branches = rng.sample(names, rng.randint(1, min(2, len(names))))
    fields = {"el": rng.getrandbits(1), "branches": branches}
    op = rng.choice(["load"] * 6 + ["store"] * 4 + ["atomic", "atomic", "ldg", "ldg", "dc_zva"])
    size = rng.choice([1, 2, 4, 8, 8, 16, 32, 64])
    if not branches and rng.random() < 0.4:
        op = rng.choice(
            [
                "stg",
                "stg",
                "st2g",
                "stgp",
                "dc_gva",
                "ldgm",
                "stgm",
                "stzgm",
                "clean",
                "invalidate",
                "clean_invalidate",
            ]
        )
        size = 512
    address = random_address(rng, traffic, size)
    if op in ("ldgm", "stgm", "stzgm"):
        fields["el"] = 1
    if op in ("stg", "st2g", "stgp") and rng.random() < 0.9:
        address -= address % 16
    if op in ("load", "store", "atomic"):
        fields |= {"size": size, "exempt": int(rng.random() < 0.05)}
        fields["tco"] = int(rng.random() < 0.05)
    elif op in ("stg", "st2g", "stzgm"):
        fields["tag"] = rng.randrange(16)
    elif op == "stgm":
        fields["tags"] = rng.getrandbits(64)
    elif "clean" in op or op == "invalidate":
        fields = {}
        address = rng.choice([address, address, None])
    start = (address or 0) % (1 << 52)
    if op in ("stg", "st2g", "stgp", "dc_gva", "stgm", "stzgm") and traffic.are_held(
        start & -512, 1024
    ):
        return
    traffic.access(op, address, **fields)


def outcome_of(step, verdict):
    """A verdict in the model's form."""
    outcome = {"outcome": verdict["outcome"].name.lower()}
    faults = outcome["outcome"] not in ("pass", "async")
    if step.fields["op"] in (Op.CLEAN, Op.INVALIDATE, Op.CLEAN_INVALIDATE):
        assert outcome == {"outcome": "pass"}
        return {}
    if faults:
        outcome |= {"far": hex(verdict["far"]), "wnr": verdict["wnr"]}
    else:
        assert (verdict["far"], verdict["wnr"]) == (0, 0)
    if outcome["outcome"] == "async":
        half = step.fields["va"] >> 55 & 1
        outcome["tfsr"] = [1 - half, half]
    if outcome["outcome"] == "pass" and step.fields["op"] is Op.LDG:
        outcome["tag"] = verdict["tags"]
    elif outcome["outcome"] == "pass" and step.fields["op"] is Op.LDGM:
        outcome["tags"] = hex(verdict["tags"])
    else:
        assert verdict["tags"] == 0
    return outcome


class Bench:
    """A core at the pipeline's ports, and tag storage behind it."""

    def __init__(self, config=SMALL, *, zeroed=1, **options):
        self.config = config
        self.dut = TagPipeline(config)
        self.memory = AxiMemory(self.dut.memory, **options)
        self.zeroed = zeroed
        self.reset = Signal()
        self.access = access_layout(config)
        self.cycle_number = 0
        self.live = {}
        self.verdicts = []

    def run(self, scenario, *, max_cycles=20_000):
        async def bench(ctx):
            self.ctx = ctx
            self.control(control_of(Regime(), zeroed=self.zeroed))
            await scenario()

        design = ResetInserter(self.reset)(watched(self.dut))
        simulate(design, bench, background=[self.memory.bench], max_cycles=max_cycles)

    def control(self, fields):
        for name, value in fields.items():
            self.ctx.set(getattr(self.dut.control, name), value)

    async def play(self, steps, *, idle=lambda: False, stall=lambda: False, inspect=None):
        """Send steps as fast as the pipeline takes them, but for ``idle`` and ``stall``, which
        tell whether nothing is offered in a cycle, and whether verdicts are not taken. Returns
        when everything is answered. Each verdict is compared with its step's outcome."""
        dut, ctx = self.dut, self.ctx
        steps = list(steps)
        offered = None
        position = 0
        while position < len(steps) or offered is not None or self.live:
            following = steps[position] if position < len(steps) else None
            if offered is None and following is not None and following.resolve is None:
                free = [n for n in range(1 << self.config.id_bits) if n not in self.live]
                if free and not idle():
                    offered = following
                    position += 1
                    self.live[free[0]] = offered
                    self.control(offered.control | {"storage_zeroed": self.zeroed})
                    payload = integer(self.access, offered.fields | {"id": free[0]})
                    ctx.set(dut.access.payload.as_value(), payload)
                    following = steps[position] if position < len(steps) else None
            resolve = None
            if following is not None and following.resolve is not None and not idle():
                resolve = following.resolve
                position += 1
            ctx.set(dut.access.valid, offered is not None)
            ctx.set(dut.resolve.valid, resolve is not None)
            if resolve is not None:
                ctx.set(dut.resolve.branch, resolve[0])
                ctx.set(dut.resolve.mispredicted, resolve[1])
            take = not stall()
            ctx.set(dut.verdict.ready, take)
            if inspect is not None:
                inspect()
            _, _, ready, valid, verdict = await ctx.tick().sample(
                dut.access.ready, dut.verdict.valid, dut.verdict.payload
            )
            self.cycle_number += 1
            if valid:
                self._look_at(plain(verdict), take)
            else:
                assert verdict.as_bits() == 0, "the payload tells something while it is not valid"
            if offered is not None and ready:
                offered.sent = self.cycle_number - 1
                offered = None
            if resolve is not None:
                self._resolve(*resolve)
        ctx.set(dut.access.valid, 0)
        ctx.set(dut.resolve.valid, 0)
        ctx.set(dut.verdict.ready, 0)

    def _look_at(self, verdict, take):
        step = self.live[verdict["id"]]
        assert not step.unresolved, "a verdict before its branches are resolved"
        assert not step.squashed
        assert outcome_of(step, verdict) == step.outcome, (step, verdict)
        if take:
            assert not step.answered
            step.answered = True
            del self.live[verdict["id"]]
            self.verdicts.append((step, self.cycle_number - 1))

    def _resolve(self, branch, mispredicted):
        for id_, step in list(self.live.items()):
            if branch in step.unresolved:
                step.unresolved.remove(branch)
                if mispredicted:
                    step.squashed = True
                    del self.live[id_]

    async def wait_until_idle(self):
        while not self.ctx.get(self.dut.idle):
            await self.ctx.tick()

    def stored_tag(self, address):
        byte = STORAGE + (address - MAP.start >> 5)
        word = self.memory.words.get(byte & -8, 0)
        return word >> 8 * (byte & 7) >> (address >> 2 & 4) & 0xF


# Tests


def every_kind(traffic):
    """An access with each outcome."""
    traffic.access("stg", MAP.start + 8, tag=1)
    traffic.access("load", MAP.stop, size=8)
    traffic.access("load", MAP.start | 1 << 56, size=8)
    traffic.set_regime(mtx=(1, 1), tcf=("async", "sync"))
    traffic.access("stg", UNTAGGED, tag=1)
    traffic.access("store", UNTAGGED | 1 << 56, size=8)
    assert [step.outcome["outcome"] for step in traffic.steps] == [
        "alignment_fault",
        "external_abort",
        "tag_check_fault",
        "permission_fault",
        "async",
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_sim_random(name, rng, seed):
    """Every outcome is that of the model, and so are TFSR, and tag storage in the end."""
    config = CONFIGS[name]
    channels = ("aw", "w", "b", "ar", "r")
    bench = Bench(
        config, pauses={c: random_pauses(f"{seed} {c}", probability=0.1) for c in channels}
    )
    traffic = Traffic(config)
    every_kind(traffic)
    while len(traffic.steps) < 350:
        random_step(rng, traffic, speculation=name != "none")
    for branch in sorted(traffic.opened):
        traffic.resolve(branch)
    traffic.access("clean")
    accesses = [step for step in traffic.steps if step.resolve is None]

    async def scenario():
        mood = 0
        moods = iter(random_pauses(f"{seed} moods", probability=0.5))

        def sometimes():
            nonlocal mood
            if rng.random() < 0.02:
                mood = next(moods)
            return rng.random() < mood / 5

        await bench.play(traffic.steps, idle=sometimes, stall=sometimes)
        await bench.wait_until_idle()
        assert plain(bench.ctx.get(bench.dut.tfsr)) == {
            el: flags[0] | flags[1] << 1 for el, flags in traffic.model.tfsr.items()
        }

    bench.run(scenario)
    assert any(step.squashed for step in accesses) == (name != "none")
    assert all(step.answered != step.squashed for step in accesses)
    for address in range(MAP.start, MAP.stop, 16):
        assert bench.stored_tag(address) == traffic.model.tag_at(address)


def certain_loads(count, *, mismatch=lambda n: False):
    """Traffic of certain loads within one line, all of which hit if the first one has missed."""
    traffic = Traffic(SMALL)
    traffic.access("dc_gva", MAP.start | 5 << 56)
    warm = list(traffic.steps)
    traffic.steps.clear()
    for n in range(count):
        tag = 6 if mismatch(n) else 5
        traffic.access("load", MAP.start + 8 * (n % 8) | tag << 56, size=8)
    return warm, traffic.steps


@pytest.mark.parametrize("mismatch", [False, True], ids=["match", "mismatch"])
def test_timing_hit(mismatch):
    """A certain access that hits is answered 12 cycles after its transfer, whatever is found."""
    warm, loads = certain_loads(3, mismatch=lambda n: mismatch)
    bench = Bench()

    async def scenario():
        await bench.play(warm)
        for load in loads:
            await bench.wait_until_idle()
            await bench.play([load])
        for step, cycle in bench.verdicts[1:]:
            assert cycle - step.sent == 12

    bench.run(scenario)
    assert len(bench.verdicts) == 4


@pytest.mark.parametrize("ways", [1, 2, 4, 8])
def test_timing_miss(ways):
    """With little latency, a miss adds 33 cycles, one for each word of the line, way and MSHR."""
    latency = 5
    config = TagConfig(sets=2, ways=ways, held=4)
    bench = Bench(config, latency=latency)
    traffic = Traffic(config)
    for n in range(2):
        traffic.access("load", MAP.start + 2048 * n, size=8)

    async def scenario():
        for step in traffic.steps:
            await bench.wait_until_idle()
            await bench.play([step])
        step, cycle = bench.verdicts[1]
        assert cycle - step.sent == 12 + 33 + config.line_words + ways + config.mshrs

    bench.run(scenario)


def test_timing_throughput():
    """One verdict in each cycle on certain hits, with faults among them."""
    warm, loads = certain_loads(60, mismatch=lambda n: n % 7 == 3)
    bench = Bench()

    async def scenario():
        await bench.play(warm)
        await bench.play(loads)

    bench.run(scenario)
    cycles = [cycle for _, cycle in bench.verdicts[1:]]
    assert cycles == list(range(cycles[0], cycles[0] + 60))
    assert [step for step, _ in bench.verdicts[1:]] == loads


@pytest.mark.parametrize("latency", [40, 160])
def test_timing_hit_under_miss(latency):
    """While a line is fetched, hits on others are answered one per cycle, as if it were not."""
    warm, loads = certain_loads(30)
    bench = Bench(latency=latency)
    missing = Traffic(SMALL)
    missing.access("load", MAP.start + 2048, size=8)

    async def scenario():
        await bench.play(warm)
        await bench.play([*missing.steps, *loads])

    bench.run(scenario)
    answered = {id(step): cycle for step, cycle in bench.verdicts}
    cycles = [answered[id(step)] for step in loads]
    assert cycles == list(range(cycles[0], cycles[0] + 30))
    assert cycles[-1] < answered[id(missing.steps[0])]
    assert cycles[0] - loads[0].sent == 12


def test_timing_backpressure():
    """With no verdict taken the pipeline fills up, stops, and goes on without a loss."""
    warm, loads = certain_loads(30)
    bench = Bench()

    async def scenario():
        await bench.play(warm)
        start = bench.cycle_number
        await bench.play(loads, stall=lambda: bench.cycle_number < start + 40)
        sent = [step.sent for step, _ in bench.verdicts[1:]]
        assert not any(start + 20 <= cycle < start + 40 for cycle in sent)
        cycles = [cycle for _, cycle in bench.verdicts[1:]]
        assert cycles[0] == start + 40
        assert cycles[:8] == list(range(start + 40, start + 48))

    bench.run(scenario)
    assert len(bench.verdicts) == 31


def test_timing_release():
    """A speculative access that hit is answered eight cycles after its branch is resolved."""
    warm, _ = certain_loads(0)
    bench = Bench()
    traffic = Traffic(SMALL)
    traffic.model.step(Operation("dc_gva", address=MAP.start | 5 << 56))
    for tag in (5, 6):
        traffic.access("load", MAP.start | tag << 56, size=8, branches=(0,))
    waiting = list(traffic.steps)
    traffic.resolve(0)

    async def scenario():
        await bench.play(warm)
        resolved = None

        def idle():
            # The resolve is the only step left; it waits for 20 cycles.
            nonlocal resolved
            if len(bench.live) == 2 and resolved is None:
                resolved = bench.cycle_number + 20
            return resolved is not None and bench.cycle_number < resolved

        await bench.play(traffic.steps, idle=idle)
        cycles = [cycle for _, cycle in bench.verdicts[1:]]
        assert cycles == [resolved + 8, resolved + 9]

    bench.run(scenario)
    assert all(step.answered for step in waiting)


def test_sim_no_combinational_path(rng):
    """Whatever an input does within a cycle, no output moves before the edge."""
    bench = Bench(pauses={"r": random_pauses("r"), "aw": random_pauses("aw")})
    dut = bench.dut
    ports = {
        ".".join(map(str, path)): (member.flow, Value.cast(value))
        for path, member, value in dut.signature.flatten(dut)
    }
    inputs = {name: value for name, (flow, value) in ports.items() if flow is In}
    outputs = {name: value for name, (flow, value) in ports.items() if flow is Out}
    everything = Cat(outputs.values())
    assert {"access.valid", "resolve.valid", "verdict.ready", "memory.rdata"} <= set(inputs)
    assert {"access.ready", "verdict.payload", "memory.wdata", "idle"} <= set(outputs)
    inspected = set()
    moved = set()
    traffic = Traffic(SMALL)
    while len(traffic.steps) < 60:
        random_step(rng, traffic, speculation=True)
    for branch in sorted(traffic.opened):
        traffic.resolve(branch)

    def inspect(count=6):
        for name, signal in rng.sample(sorted(inputs.items()), count):
            before = bench.ctx.get(everything)
            value = bench.ctx.get(signal)
            bench.ctx.set(signal, rng.choice([~value, rng.getrandbits(len(signal))]))
            difference = bench.ctx.get(everything) ^ before
            for output, old in outputs.items():
                if difference % (1 << len(old)):
                    moved.add((name, output))
                difference >>= len(old)
            bench.ctx.set(signal, value)
            inspected.add(name)

    async def scenario():
        inspect(len(inputs))
        await bench.play(traffic.steps, inspect=inspect, stall=lambda: rng.random() < 0.3)
        await bench.wait_until_idle()
        inspect(len(inputs))
        # The generator: idle, at work, and with a response that waits.
        port = dut.generate
        bench.ctx.set(port.request.valid, 1)
        await bench.ctx.tick()
        bench.ctx.set(port.request.valid, 0)
        for _ in range(5):
            inspect(len(inputs))
            await bench.ctx.tick()

    bench.run(scenario)
    assert inspected == set(inputs)
    assert moved == set()


def test_sim_unchecked_accesses_touch_no_tags():
    """Neither memory nor the cache is asked about them."""
    bench = Bench()
    traffic = Traffic(SMALL)
    for n in range(6):
        address = MAP.start + 2048 * n | 3 << 56
        traffic.access("store", address, size=8, tco=1)
        traffic.access("load", address, size=8, exempt=1)
        traffic.access("load", UNTAGGED | 3 << 56, size=64)
    traffic.set_regime(ata=(0, 0))
    traffic.access("load", MAP.start | 3 << 56, size=8)
    traffic.access("ldg", MAP.start)
    traffic.access("stg", MAP.start, tag=7)
    traffic.set_regime(tcf=("none", "none"))
    traffic.access("load", MAP.start | 3 << 56, size=8)

    async def scenario():
        await bench.play(traffic.steps)

    bench.run(scenario)
    assert bench.memory.transactions == []
    assert {step.outcome["outcome"] for step, _ in bench.verdicts} == {"pass"}


def test_sim_storage_is_initialised_before_the_first_pass():
    """Accesses that are offered from reset on, of which two need no tags, and one is squashed."""
    bench = Bench(zeroed=0, latency=0)
    size = len(MAP) // 32
    bench.memory.words = dict.fromkeys(range(STORAGE, STORAGE + size, 8), (1 << 64) - 1)
    traffic = Traffic(SMALL)
    traffic.access("load", UNTAGGED, size=8)
    traffic.access("load", MAP.start, size=8, tco=1)
    traffic.access("load", MAP.stop - 16, size=16, branches=[0])
    traffic.resolve(0, mispredicted=True)
    traffic.access("load", MAP.stop - 16, size=16)
    traffic.access("ldg", MAP.start)

    def inspect():
        if set(bench.memory.words.values()) != {0}:
            assert bench.ctx.get(bench.dut.busy)
            assert not bench.ctx.get(bench.dut.verdict.valid)

    async def scenario():
        assert bench.ctx.get(bench.dut.busy)
        await bench.play(traffic.steps, inspect=inspect)

    bench.run(scenario)
    assert [step.outcome for step, _ in bench.verdicts] == [{"outcome": "pass"}] * 3 + [
        {"outcome": "pass", "tag": 0}
    ]


def test_sim_reset_in_the_middle_of_traffic():
    """Nothing of before is answered, and no tag of before is seen: what was only in the cache is
    lost, and what storage has counts."""
    bench = Bench(latency=3)
    before = Traffic(SMALL)
    pages = list(range(MAP.start, MAP.start + 4 * 2048, 2048))
    for address in pages:
        before.access("stg", address, tag=9)
    after = Traffic(SMALL)
    for address in pages:
        after.access("load", address, size=16)
        after.access("ldg", address)

    async def scenario():
        dut, ctx = bench.dut, bench.ctx
        await bench.play(before.steps)
        # A miss under way, a held access, and a verdict that nobody has taken.
        for n, fields in enumerate(
            [{"pa": pages[0], "va": pages[0]}, {"pa": pages[1], "va": pages[1], "branches": 1}]
        ):
            access = {"id": n, "op": Op.LOAD, "bytes": 8, "memory": Memory.TAGGED, **fields}
            ctx.set(dut.access.payload, access)
            ctx.set(dut.access.valid, 1)
            await ctx.tick()
        ctx.set(dut.access.valid, 0)
        for _ in range(12):
            await ctx.tick()
        ctx.set(bench.reset, 1)
        await ctx.tick()
        bench.memory.reset()
        ctx.set(bench.reset, 0)
        ctx.set(dut.verdict.ready, 1)
        for _ in range(30):
            _, _, valid = await ctx.tick().sample(dut.verdict.valid)
            assert not valid
        assert ctx.get(dut.idle)
        await bench.play(after.steps)

    bench.run(scenario)
    assert all(step.answered for step in after.steps)
    assert [step.outcome for step in after.steps] == [
        {"outcome": "pass"},
        {"outcome": "pass", "tag": 0},
    ] * 4


@pytest.mark.parametrize("name", CONFIGS)
def test_sim_refill_error(name):
    """An access whose tags storage cannot give is aborted, a held one when it is certain; what
    needs no tags passes; the next access fetches the line anew."""
    config = CONFIGS[name]
    bench = Bench(config)
    bench.memory.read_errors = range(STORAGE, STORAGE + 64)
    traffic = Traffic(config)
    address = MAP.start | 0x20
    for op, wnr in (("load", 0), ("store", 0), ("ldg", 0), ("stg", 1)):
        traffic.access(op, address, **{"stg": {"tag": 9}, "ldg": {}}.get(op, {"size": 16}))
        traffic.steps[-1].outcome = {"outcome": "external_abort", "far": hex(address), "wnr": wnr}
    traffic.access("load", address, size=16, branches=(0,) if name != "none" else ())
    traffic.steps[-1].outcome = {"outcome": "external_abort", "far": hex(address), "wnr": 0}
    if name != "none":
        traffic.resolve(0)
    traffic.access("load", address, size=16, tco=1)
    broken = list(traffic.steps)
    healed = Traffic(config)
    healed.access("load", address, size=16)
    healed.access("ldg", address)

    async def scenario():
        await bench.play(broken)
        bench.memory.read_errors = ()
        await bench.play(healed.steps)
        assert not bench.ctx.get(bench.dut.storage_error)

    bench.run(scenario)
    assert [step.outcome["outcome"] for step in healed.steps] == ["pass", "pass"]
    assert healed.steps[1].outcome["tag"] == 0


def test_sim_storage_error():
    """After a failed write-back no checked access and no tag load passes any more."""
    bench = Bench(pauses={"b": iter([200])})
    bench.memory.write_errors = range(STORAGE, STORAGE + 64)
    traffic = Traffic(SMALL)
    traffic.access("stg", MAP.start, tag=9)
    for n in (1, 2):
        traffic.access("load", MAP.start + 4096 * n, size=8)
    warm = list(traffic.steps)
    traffic.steps.clear()
    traffic.access("load", MAP.start + 8192, size=8)
    traffic.access("ldg", MAP.start + 8192)
    traffic.access("load", MAP.start + 8192, size=8, tco=1)
    for step in traffic.steps[:2]:
        step.outcome = {"outcome": "external_abort", "far": hex(MAP.start + 8192), "wnr": 0}

    async def scenario():
        await bench.play(warm)
        await bench.wait_until_idle()
        assert bench.ctx.get(bench.dut.storage_error)
        await bench.play(traffic.steps)

    bench.run(scenario)


def test_sim_generate():
    """The generator is wired: GCR, RGSR, and ATA of the core's control port."""
    bench = Bench()

    async def scenario():
        ctx, port = bench.ctx, bench.dut.generate

        async def ask(**fields):
            ctx.set(port.request.payload, fields)
            ctx.set(port.request.valid, 1)
            await ctx.tick()
            ctx.set(port.request.valid, 0)
            ctx.set(port.response.ready, 1)
            while not ctx.get(port.response.valid):
                assert not ctx.get(bench.dut.idle)
                await ctx.tick()
            tag = ctx.get(port.response.payload.tag)
            await ctx.tick()
            return tag

        await bench.wait_until_idle()
        ctx.set(port.rgsr_value, {"tag": 3, "seed": 0xACE1})
        ctx.set(port.rgsr_write, 1)
        await ctx.tick()
        ctx.set(port.rgsr_write, 0)
        ctx.set(port.gcr, {"exclude": 0x8001})
        assert await ask(op=GenerateOp.IRG, el0=1) == 5
        assert plain(ctx.get(port.rgsr)) == {"tag": 5, "seed": 0x2ACE}
        assert await ask(op=GenerateOp.ADDG, el0=1, tag=14, tag_offset=2) == 2
        bench.control(control_of(Regime(ata=(0, 1))))
        assert await ask(op=GenerateOp.ADDG, el0=1, tag=14, tag_offset=2) == 0
        assert await ask(op=GenerateOp.ADDG, el0=0, tag=14, tag_offset=2) == 2

    bench.run(scenario)

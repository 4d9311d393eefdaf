"""The driver of the ports alone, against outputs that the test makes up cycle by cycle."""

from collections import deque
from functools import partial

import pytest
from amaranth.hdl import Value
from emte.rtl import DEFAULT, SMALL, Barrier, Op, Outcome, TagConfig
from emte.rtl.layouts import access_layout, verdict_layout
from emte.sim.core import Program
from emte.sim.ops import STORAGE_BASE, Operation, Regime, Stream
from emte.sim.pysim import OUTPUTS, Driver
from emte.sim.transactions import PipelineError, Status

LATENCY = 5
LAST_ID = (1 << SMALL.id_bits) - 1
QUIET = dict.fromkeys(OUTPUTS, 0) | {"idle": 1}


def driver_of(*operations: Operation, config: TagConfig = SMALL, seed: int = 0) -> Driver:
    for line, operation in enumerate(operations, 1):
        operation.line = line
    program = Program.of(Stream("stream", list(operations)))
    return Driver(program, config, seed=seed, latency=LATENCY)


def dotted(outputs: dict[str, int]) -> dict[str, int]:
    """Double underscores stand for dots."""
    return {name.replace("__", "."): value for name, value in outputs.items()}


def cycle(driver: Driver, **outputs: int) -> dict[str, int]:
    """One cycle with these outputs; what was driven in it."""
    driven = dict(driver.drive())
    driver.observe(QUIET | dotted(outputs))
    return driven


def verdict(id: int, outcome: Outcome = Outcome.PASS, **fields: int) -> dict[str, int]:
    """Outputs that offer a verdict."""
    layout = verdict_layout(SMALL)
    packed = sum(value << layout[name].offset for name, value in fields.items())
    packed |= id << layout["id"].offset | outcome.value << layout["outcome"].offset
    return {"verdict__valid": 1, "verdict__payload": packed, "idle": 0}


def offered(driven: dict[str, int]) -> tuple[int, int]:
    """Id and address of the access on offer."""
    assert driven["access.valid"]
    layout = access_layout(SMALL)
    payload = driven["access.payload"]
    id = payload >> layout["id"].offset & LAST_ID
    return id, payload >> layout["va"].offset & (1 << 64) - 1


def load(address: int, *branches: int) -> Operation:
    return Operation("load", address=address, size=1, branches=branches)


def outcomes(driver: Driver) -> list[int]:
    return driver.completion().results["outcome"].tolist()


# ---- What is driven ------------------------------------------------------------------------------


def test_access_carries_all_fields():
    address = 0x9A << 56 | (1 << 52) - 16
    driver = driver_of(Operation("store", address=address, size=16, exempt=1, el=1))
    payload = cycle(driver)["access.payload"]
    fields = access_layout(SMALL).from_bits(payload)
    assert {name: Value.cast(fields[name]).value for name, _ in access_layout(SMALL)} == {
        "id": LAST_ID,
        "op": Op.STORE.value,
        "va": address,
        "pa": (1 << 52) - 16,
        "bytes": 16,
        "memory": 0,
        "exempt": 1,
        "tco": 0,
        "el0": 0,
        "branches": 0,
        "tags": 0,
    }


def test_access_is_offered_until_it_is_taken():
    driver = driver_of(load(0x10), load(0x20))
    first = cycle(driver)
    assert first["access.valid"]
    assert cycle(driver) | {"access.valid": 1} == first
    assert cycle(driver, access__ready=1)["access.payload"] == first["access.payload"]
    assert offered(cycle(driver, access__ready=1)) == (LAST_ID - 1, 0x20)
    assert not cycle(driver)["access.valid"]


def test_id_is_used_again_after_its_verdict_and_not_before():
    driver = driver_of(*(load(n) for n in range(LAST_ID + 2)))
    ids = [offered(cycle(driver, access__ready=1))[0] for _ in range(LAST_ID + 1)]
    assert sorted(ids) == list(range(LAST_ID + 1))
    assert not cycle(driver)["access.valid"]
    assert not cycle(driver, **verdict(7))["access.valid"]
    assert offered(cycle(driver)) == (7, LAST_ID + 1)


def test_resolve_may_come_with_the_access_that_it_is_for():
    driver = driver_of(
        Operation("branch", id=3), load(0, 3), Operation("resolve", id=3, mispredicted=1), load(1)
    )
    driven = cycle(driver)
    id, _ = offered(driven)
    assert (driven["resolve.valid"], driven["resolve.branch"]) == (1, 3)
    assert driven["resolve.mispredicted"]
    driven = cycle(driver, access__ready=1)
    assert offered(driven) == (id, 0)  # squashed, and offered all the same until it is taken
    assert not driven["resolve.valid"]
    assert offered(cycle(driver)) == (id, 1)
    assert outcomes(driver)[2] == Status.SQUASHED


def test_access_on_a_branch_of_a_name_that_is_resolved_now_waits():
    driver = driver_of(
        *(Operation("branch", id=3), load(0, 3), Operation("resolve", id=3)),
        *(Operation("branch", id=3), load(1, 3), Operation("resolve", id=3)),
    )
    assert cycle(driver, access__ready=1)["resolve.valid"]
    driven = cycle(driver)
    assert offered(driven)[1] == 1
    assert driven["resolve.valid"]


def test_one_resolve_in_a_cycle():
    driver = driver_of(
        *(Operation("branch", id=n) for n in range(2)),
        *(Operation("resolve", id=n) for n in range(2)),
    )
    assert [cycle(driver)["resolve.branch"] for _ in range(2)] == [0, 1]


def test_regime_waits_for_the_access_on_offer():
    driver = driver_of(load(0), Operation("regime", regime=Regime(tbi=(0, 0))), load(0))
    assert cycle(driver)["control.tbi"] == 3
    assert cycle(driver, access__ready=1)["control.tbi"] == 3
    driven = cycle(driver)
    assert (driven["control.tbi"], driven["access.valid"]) == (0, 1)


def test_second_part_of_tag_store_waits_for_the_verdict_of_the_first():
    for outcome in (Outcome.PASS, Outcome.EXTERNAL_ABORT):
        driver = driver_of(Operation("st2g", address=4096 - 16, tag=1))
        id, _ = offered(cycle(driver, access__ready=1))
        assert not cycle(driver)["access.valid"]
        assert not cycle(driver, **verdict(id, outcome))["access.valid"]
        driven = cycle(driver)
        assert driven["access.valid"] == (outcome is Outcome.PASS)
        assert (outcomes(driver)[3] == Status.NOT_SENT) == (outcome is not Outcome.PASS)


def test_storage_map_changes_only_when_idle_after_maintenance():
    driver = driver_of(load(0), Operation("storage", address=4096, bytes=8192, base=1 << 20))
    first, _ = offered(cycle(driver, access__ready=1))
    assert not cycle(driver, idle=0)["access.valid"]
    assert not cycle(driver, **verdict(first))["access.valid"]
    assert not cycle(driver, idle=0)["access.valid"]
    assert not cycle(driver, idle=1)["access.valid"]  # idle is known in the cycle after
    clean, _ = offered(cycle(driver, access__ready=1, idle=0))
    assert cycle(driver, **verdict(clean))["control.memory_bytes"] == 1 << 40
    assert cycle(driver, idle=1)["control.memory_bytes"] == 1 << 40
    driven = cycle(driver)
    assert driven["control.memory_base"] == 4096
    assert driven["control.memory_bytes"] == 8192
    assert driven["control.storage_base"] == 1 << 20
    assert driver.done


def test_tag_is_requested_and_rgsr_read_in_the_cycle_after_the_response():
    driver = driver_of(Operation("irg", address=0), load(0))
    driven = cycle(driver)
    assert driven["generate.request.valid"]
    assert not driven["access.valid"]
    assert cycle(driver, generate__request__ready=1)["generate.request.valid"]
    assert not cycle(driver)["generate.request.valid"]
    cycle(driver, generate__response__valid=1, generate__response__payload=9, generate__rgsr=1)
    assert not cycle(driver, generate__rgsr=0xABCD9)["access.valid"]
    assert cycle(driver)["access.valid"]
    assert driver.completion().results[2].tolist() == (0xABCD9, 9, 0, 0)


def test_rgsr_is_written_before_the_next_request():
    driver = driver_of(Operation("rgsr", tag=5, seed=0xACE1), Operation("irg", address=0))
    driven = cycle(driver)
    assert (driven["generate.rgsr_write"], driven["generate.rgsr_value"]) == (1, 0xACE15)
    assert not driven["generate.request.valid"]
    driven = cycle(driver)
    assert (driven["generate.rgsr_write"], driven["generate.request.valid"]) == (0, 1)


def test_nothing_pauses_with_seed_0():
    driver = driver_of(*(load(n) for n in range(100)))
    for _ in range(LAST_ID + 1):
        driven = cycle(driver, access__ready=1)
        assert driven["access.valid"]
        assert driven["verdict.ready"]
        assert driven["memory.arready"]
        assert driven["memory.awready"]
        assert driven["memory.wready"]


def test_all_ports_pause_with_other_seeds():
    names = ("verdict.ready", "memory.arready", "memory.awready", "memory.wready")
    seen: dict[str, set[int]] = {name: set() for name in ("access.valid", *names)}
    for seed in range(1, 20):
        driver = driver_of(*(load(n) for n in range(LAST_ID)), seed=seed)
        for _ in range(LAST_ID):
            driven = cycle(driver, access__ready=1)
            for name, values in seen.items():
                values.add(driven[name])
    assert all(values == {0, 1} for values in seen.values()), seen


# ---- Memory --------------------------------------------------------------------------------------

LINE = STORAGE_BASE + 0x40
BURST = {"memory__arsize": 3, "memory__arburst": 1, "memory__awsize": 3, "memory__awburst": 1}


def test_read_takes_its_latency_and_returns_zeros():
    driver = driver_of(load(0))
    cycle(driver, memory__arvalid=1, memory__araddr=LINE, memory__arlen=1, memory__arid=3, **BURST)
    for _ in range(LATENCY - 1):
        assert not cycle(driver)["memory.rvalid"]
    driven = cycle(driver)
    assert (driven["memory.rvalid"], driven["memory.rid"], driven["memory.rdata"]) == (1, 3, 0)
    assert cycle(driver, memory__rready=1)["memory.rlast"] == 0
    assert cycle(driver, memory__rready=1)["memory.rlast"] == 1
    assert not cycle(driver)["memory.rvalid"]


def test_write_is_seen_from_its_response_on():
    driver = driver_of(load(0))
    read = {"memory__arvalid": 1, "memory__araddr": LINE, **BURST}
    beat = {"memory__wdata": 0x1122_3344_5566_7788, "memory__wstrb": 0b1001, "memory__wlast": 1}
    words = []

    def step(**outputs: int) -> bool:
        """One cycle; is a response offered?"""
        driven = cycle(driver, memory__rready=1, **outputs)
        if driven["memory.rvalid"]:
            words.append(driven["memory.rdata"])
        if driven["memory.bvalid"]:
            assert driven["memory.bid"] == 2
        return bool(driven["memory.bvalid"])

    assert not step(memory__wvalid=1, **beat)  # the data may come before the address
    assert not step(memory__awvalid=1, memory__awaddr=LINE, memory__awid=2, **BURST)
    assert not step(**read)
    assert [step() for _ in range(LATENCY)] == [False] * (LATENCY - 2) + [True] * 2
    assert step(memory__bready=1, **read)
    assert not any(step() for _ in range(LATENCY))
    assert words == [0, 0x5500_0088]


def test_reads_of_different_ids_overtake_each_other(seed):
    """With pauses; and those of one id never do."""
    driver = driver_of(load(0), seed=seed + 1)
    addresses, beats, reads = (deque(range(100)) for _ in range(3))
    written, answers = 0, []
    while written < 100:
        outputs = {"memory__bready": 1, "memory__wstrb": 0xFF, "memory__wlast": 1, **BURST}
        if addresses:
            outputs |= {"memory__awvalid": 1, "memory__awaddr": LINE + 8 * addresses[0]}
        if beats:
            outputs |= {"memory__wvalid": 1, "memory__wdata": beats[0]}
        driven = cycle(driver, **outputs)
        if addresses and driven["memory.awready"]:
            addresses.popleft()
        if beats and driven["memory.wready"]:
            beats.popleft()
        written += driven["memory.bvalid"]
    while len(answers) < 100:
        outputs = {"memory__rready": 1, **BURST}
        if reads:
            outputs |= {"memory__arvalid": 1, "memory__araddr": LINE + 8 * reads[0]}
            outputs["memory__arid"] = reads[0] % 2
        driven = cycle(driver, **outputs)
        if reads and driven["memory.arready"]:
            reads.popleft()
        if driven["memory.rvalid"]:
            answers.append((driven["memory.rid"], driven["memory.rdata"]))
    for id in range(2):
        assert [word for of, word in answers if of == id] == list(range(id, 100, 2))
    assert [word for _, word in answers] != list(range(100))


# ---- Rules that a pipeline may break -------------------------------------------------------------


def expect_error(message: str):
    return pytest.raises(PipelineError, match=rf"^stream:\d+: {message} \(cycle \d+\)$")


def test_verdict_for_an_id_that_nobody_has():
    driver = driver_of(load(0))
    cycle(driver, access__ready=1)
    with expect_error("a verdict for id 5, which no access has"):
        cycle(driver, **verdict(5))


def test_second_verdict():
    driver = driver_of(load(0), load(1))
    id, _ = offered(cycle(driver, access__ready=1))
    cycle(driver, **verdict(id))
    driver = driver_of(load(0), load(1))
    cycle(driver, access__ready=1)
    cycle(driver, access__ready=1, **verdict(id))
    with expect_error(f"a verdict for id {id}, which no access has"):
        cycle(driver, **verdict(id))


def test_verdict_before_its_access_was_taken():
    driver = driver_of(load(0))
    id, _ = offered(cycle(driver))
    with expect_error("a verdict before its access was taken"):
        cycle(driver, **verdict(id))


def speculative(config: TagConfig = SMALL, **fields: int) -> tuple[Driver, int]:
    """A driver whose access is taken while its branch waits for another access."""
    driver = driver_of(
        *(Operation("branch", id=0), load(0, 0), load(1)),
        Operation("resolve", id=0, **fields),
        config=config,
    )
    id, _ = offered(cycle(driver, access__ready=1))
    return driver, id


def test_verdict_before_its_branches_are_resolved():
    driver, id = speculative()
    with expect_error("a verdict before its branches are resolved"):
        cycle(driver, **verdict(id))


def test_verdict_of_a_squashed_access():
    driver, id = speculative(mispredicted=1)
    cycle(driver, access__ready=1)
    with expect_error(f"a verdict for id {id}, which no access has"):
        cycle(driver, **verdict(id))


def test_without_barrier_a_squashed_access_has_a_verdict_too():
    config = TagConfig(sets=2, ways=2, held=4, barrier=Barrier.NONE)
    driver, id = speculative(config, mispredicted=1)
    other, _ = offered(cycle(driver, access__ready=1))
    cycle(driver, **verdict(other))
    cycle(driver, **verdict(id))
    cycle(driver)
    assert driver.done


def waiting(driver: Driver, id: int) -> None:
    """Run until a verdict is offered and not taken."""
    for _ in range(10_000):
        ready = driver.drive()["verdict.ready"]
        driver.observe(QUIET | ({"idle": 0} if ready else dotted(verdict(id, far=1))))
        if not ready:
            return
    raise AssertionError("verdict never pauses")


def paused() -> tuple[Driver, int]:
    driver = driver_of(load(0), seed=1)
    while not (driven := cycle(driver, access__ready=1))["access.valid"]:
        pass
    return driver, offered(driven)[0]


def test_verdict_that_is_withdrawn():
    driver, id = paused()
    waiting(driver, id)
    with expect_error("a verdict is withdrawn"):
        cycle(driver)


def test_verdict_that_changes():
    driver, id = paused()
    waiting(driver, id)
    with expect_error("a verdict changes before it is taken"):
        cycle(driver, **verdict(id, far=2))


def test_payload_that_is_not_0():
    driver = driver_of(load(0))
    with expect_error("the payload of verdict is not 0 while it is not valid"):
        cycle(driver, verdict__payload=1)


def test_tag_that_nobody_asked_for():
    driver = driver_of(load(0))
    with expect_error("a tag is given that nobody asked for"):
        cycle(driver, generate__response__valid=1)


def test_tfsr_without_verdict():
    driver = driver_of(load(0))
    id, _ = offered(cycle(driver, access__ready=1))
    cycle(driver, **verdict(id, Outcome.ASYNC))
    with expect_error("TFSR is not what the ASYNC verdicts make it"):
        cycle(driver, tfsr=2)


def test_tfsr_of_an_asynchronous_fault():
    driver = driver_of(load(1 << 55))
    id, _ = offered(cycle(driver, access__ready=1))
    cycle(driver, **verdict(id, Outcome.ASYNC))
    cycle(driver, tfsr=2)
    assert driver.done


def test_pipeline_that_hangs():
    driver = driver_of(load(0), load(1), config=DEFAULT)
    cycle(driver, access__ready=1)
    wait = partial(cycle, driver, idle=0)
    with expect_error("the pipeline hangs"):
        deque(iter(wait, None), maxlen=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 2}, "{}size is not that of the data bus"),
        ({"burst": 0}, "{}burst is not INCR"),
        ({"addr": LINE + 4}, "{}addr is not aligned to a beat"),
        ({"addr": STORAGE_BASE + 4088, "len": 1}, "the {} burst crosses 4096 bytes"),
        ({"addr": STORAGE_BASE - 8}, "the {} burst at 0xfffffffff8 leaves tag storage"),
        ({"addr": STORAGE_BASE + (1 << 35)}, "the {} burst at 0x10800000000 leaves tag storage"),
    ],
)
@pytest.mark.parametrize("channel", ["ar", "aw"])
def test_burst_that_breaks_a_rule(channel, fields, message):
    driver = driver_of(load(0))
    outputs = {"addr": LINE, "size": 3, "burst": 1, "valid": 1} | fields
    with expect_error(message.format(channel)):
        cycle(driver, **{f"memory__{channel}{name}": value for name, value in outputs.items()})


@pytest.mark.parametrize("lasts", [(1, 0), (0, 0)])
def test_last_beat_is_marked(lasts):
    driver = driver_of(load(0))
    cycle(driver, memory__awvalid=1, memory__awaddr=LINE, memory__awlen=1, **BURST)
    with expect_error("wlast does not mark the last beat"):
        for last in lasts:
            cycle(driver, memory__wvalid=1, memory__wlast=last)

"""The DRAM of both engines: they agree in every cycle, and do what AXI allows."""

import ctypes
import random
import subprocess
from collections import Counter, deque
from itertools import pairwise
from pathlib import Path

import pytest
from emte.rtl.axi import Burst
from emte.sim import verilated
from emte.sim.dram import Chance, Dram

LATENCY = 9
STORAGE = range(1 << 12, 1 << 14)
LINE_WORDS = 4
INPUTS = (
    *("arready", "awready", "wready"),
    *("rvalid", "rid", "rdata", "rlast"),
    *("bvalid", "bid"),
)
OUTPUTS = (
    *(a + name for a in ("ar", "aw") for name in ("valid", "id", "addr", "len", "size", "burst")),
    *("wvalid", "wdata", "wstrb", "wlast"),
    *("rready", "bready"),
)
TRAFFIC = ("read_bursts", "read_beats", "write_bursts", "write_beats")

Ports = dict[str, int]


def structure(*names: str) -> type[ctypes.Structure]:
    fields = [(name, ctypes.c_uint64) for name in names]
    return type("Structure", (ctypes.Structure,), {"_fields_": fields})


PortStructure = structure(*INPUTS, *OUTPUTS)
TrafficStructure = structure(*TRAFFIC)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("dram") / "dram.so"
    source = Path(__file__).with_name("dram_driver.cpp")
    include = Path(verilated.__file__).parent
    options = ("-std=c++20", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{include}")
    subprocess.run([*verilated.find_compiler(), *options, "-o", path, source], check=True)
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_uint64
    library.create.restype = pointer
    library.create.argtypes = [number] * 4
    library.drive.restype = ctypes.POINTER(PortStructure)
    library.drive.argtypes = [pointer, number]
    library.observe.restype = ctypes.c_bool
    library.observe.argtypes = [pointer, number]
    library.traffic.restype = ctypes.POINTER(TrafficStructure)
    library.traffic.argtypes = [pointer]
    library.destroy.argtypes = [pointer]
    return library


class Manager:
    """Reads and writes lines at random, with several ids, as fast as it may."""

    def __init__(self, rng: random.Random, count: int, ids: int) -> None:
        self.rng = rng
        self.left = count
        self.ids = ids
        self.outputs: Ports = dict.fromkeys(OUTPUTS, 0)
        self.beats: deque[tuple[int, int, int]] = deque()
        self.unfinished: list[tuple[str, int]] = []
        # Of each kind, in the order of their addresses: the ids; and those of what came back.
        self.asked: dict[str, list[int]] = {"r": [], "b": []}
        self.answered: dict[str, list[int]] = {"r": [], "b": []}

    @property
    def done(self) -> bool:
        return not self.left and not self.unfinished

    def drive(self) -> Ports:
        outputs = self.outputs
        for channel, answer in (("ar", "r"), ("aw", "b")):
            if not outputs[f"{channel}valid"] and self.left and self.rng.random() < 0.4:
                self.left -= 1
                line = self.rng.randrange(len(STORAGE) // (8 * LINE_WORDS))
                outputs |= {
                    f"{channel}valid": 1,
                    f"{channel}id": self.rng.randrange(self.ids),
                    f"{channel}addr": STORAGE.start + 8 * LINE_WORDS * line,
                    f"{channel}len": LINE_WORDS - 1,
                    f"{channel}size": 3,
                    f"{channel}burst": Burst.INCR.value,
                }
                self.unfinished.append((answer, outputs[f"{channel}id"]))
                if channel == "aw":
                    for beat in range(LINE_WORDS):
                        last = int(beat == LINE_WORDS - 1)
                        word = self.rng.getrandbits(64), self.rng.getrandbits(8), last
                        self.beats.append(word)
        outputs["wvalid"] = int(bool(self.beats))
        if self.beats:
            outputs["wdata"], outputs["wstrb"], outputs["wlast"] = self.beats[0]
        outputs["rready"] = int(self.rng.random() < 0.8)
        outputs["bready"] = int(self.rng.random() < 0.8)
        return outputs

    def observe(self, inputs: Ports) -> None:
        outputs = self.outputs
        for channel, answer in (("ar", "r"), ("aw", "b")):
            if outputs[f"{channel}valid"] and inputs[f"{channel}ready"]:
                outputs[f"{channel}valid"] = 0
                self.asked[answer].append(outputs[f"{channel}id"])
        if outputs["wvalid"] and inputs["wready"]:
            self.beats.popleft()
        if inputs["rvalid"] and outputs["rready"]:
            self.answered["r"].append(inputs["rid"])
            if inputs["rlast"]:
                self.unfinished.remove(("r", inputs["rid"]))
        if inputs["bvalid"] and outputs["bready"]:
            self.answered["b"].append(inputs["bid"])
            self.unfinished.remove(("b", inputs["bid"]))


def perform(library: ctypes.CDLL, seed: int, *, ids: int = 4, count: int = 600) -> Manager:
    """Run both memories behind one manager, and hold them against each other in every cycle."""
    manager = Manager(random.Random(seed), count, ids)
    chance = Chance(seed)
    dram = Dram(chance, LATENCY)
    dram.storage = STORAGE
    native = library.create(seed, LATENCY, STORAGE.start, STORAGE.stop)
    ports: Ports = dict.fromkeys((f"memory.{name}" for name in INPUTS), 0)
    withheld: Ports = {}
    for cycle in range(100_000):
        if manager.done:
            break
        chance.next_cycle(cycle)
        dram.drive(ports, cycle)
        inputs = {name: ports[f"memory.{name}"] for name in INPUTS}
        native_ports = library.drive(native, cycle).contents
        assert {name: getattr(native_ports, name) for name in INPUTS} == inputs, cycle
        assert withheld.items() <= inputs.items(), "what was offered is no longer there"
        outputs = manager.drive()
        withheld = {
            name: inputs[name]
            for name in INPUTS
            if name[0] in "rb" and inputs[f"{name[0]}valid"] and not outputs[f"{name[0]}ready"]
        }
        for name, value in outputs.items():
            setattr(native_ports, name, value)
        progress = library.observe(native, cycle)
        dotted = {f"memory.{name}": value for name, value in outputs.items()}
        assert dram.observe(dotted, ports, cycle) == progress
        manager.observe(inputs)
    assert manager.done, "the memory hangs"
    traffic = library.traffic(native).contents
    for name in TRAFFIC:
        assert getattr(traffic, name) == getattr(dram, name) > 0
    library.destroy(native)
    return manager


def interleaved(ids: list[int]) -> int:
    """How often a line is left before its last beat."""
    taken = Counter[int]()
    count = 0
    for id, following in pairwise(ids):
        taken[id] += 1
        count += taken[id] % LINE_WORDS != 0 and following != id
    return count


def test_full_speed_keeps_the_order(library):
    manager = perform(library, 0)
    assert manager.answered["b"] == manager.asked["b"]
    assert manager.answered["r"] == [id for id in manager.asked["r"] for _ in range(LINE_WORDS)]


def test_pauses_mix_what_has_different_ids(library, seed):
    manager = perform(library, seed)
    beats = manager.answered["r"]
    assert manager.answered["b"] != manager.asked["b"]
    assert sorted(manager.answered["b"]) == sorted(manager.asked["b"])
    assert interleaved(beats) > 10
    assert sorted(beats) == sorted(LINE_WORDS * manager.asked["r"])

# amaranth: UnusedElaboratable=no
import json
from contextlib import nullcontext

import ecp5_models
import pytest
from amaranth.back import rtlil
from amaranth.hdl import ClockSignal, Const, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, Signature
from emte.fpga.tools import run
from emte.rtl.config import Arrays, TagConfig
from emte.rtl.tag_array import _MAKERS, ContextArray, TagArray, directory_code
from emte.sim.harness import simulate

SHAPES = {
    "small": {"sets": 2, "ways": 2},
    "1 way": {"sets": 4, "ways": 1, "line_bytes": 16},
    "1 set": {"sets": 1, "ways": 4},
    "1 line": {"sets": 1, "ways": 1, "line_bytes": 128},
    "16 ways": {"sets": 2, "ways": 16, "line_bytes": 32},
    "preset": {"sets": 32, "ways": 4},  # 18 bits a row
    "9 bits a row": {"sets": 64, "ways": 4},
    "banks": {"sets": 128, "ways": 8},
    "wide entries": {"sets": 2, "ways": 2, "memory_bits": 48},
    "directory banks": {"sets": 2048, "ways": 1, "line_bytes": 16},
}
"""Every shape of block RAM."""


@pytest.fixture(params=Arrays, ids=lambda arrays: arrays.value)
def arrays(request):
    """Either form, with models in the place of block RAM."""
    with ecp5_models.patched() if request.param is Arrays.ECP5 else nullcontext():
        yield request.param


def test_init():
    config = TagConfig(sets=4, ways=8, line_bytes=32, memory_bits=32)
    dut = TagArray(config)
    assert dut.config is config
    assert directory_code(config).bits == 21
    width = directory_code(config).width
    assert width == 27
    plain = {
        "directory_set": In(2),
        "entries": Out(data.ArrayLayout(width, 8)),
        "directory_write": In(8),
        "directory_write_set": In(2),
        "directory_value": In(width),
        "index": In(7),
        "secret_codes": Out(128),
        "write_lanes": In(16),
        "write_index": In(7),
        "secret_write_codes": In(128),
    }
    assert dut.signature == Signature(plain)
    dut = TagArray(TagConfig(sets=4, ways=8, line_bytes=32, memory_bits=32, injection=True))
    flips = {"flip_directory": In(width), "flip_lanes": In(128)}
    assert dut.signature == Signature(plain | flips)


def test_init_contexts():
    config = TagConfig()
    dut = ContextArray(config, 71)
    assert (dut.config, dut.width) == (config, 71)
    assert dut.signature == Signature(
        {
            "write": In(1),
            "write_address": In(9),
            "write_data": In(71),
            "address": In(9),
            "data": Out(71),
        }
    )


class Memory:
    """What a memory of lanes shows, two cycles after the address: None where it is undefined."""

    def __init__(self, lanes, lane_bits, arrays):
        self.masks = [((1 << lane_bits) - 1) << lane_bits * lane for lane in range(lanes)]
        self.arrays = arrays
        self.rows = {}
        self.shown = [None, None]

    def step(self, address, write, write_address, value):
        """One cycle; returns what is shown in the next one."""
        found = self.rows.get(address, 0)
        if self.arrays is Arrays.ECP5 and write and address == write_address:
            found = None
        self.shown = [self.shown[1], found]
        mask = sum(mask for lane, mask in enumerate(self.masks) if write >> lane & 1)
        self.rows[write_address] = self.rows.get(write_address, 0) & ~mask | value & mask
        return self.shown[0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sim_random(shape, arrays, rng):
    """Reads and writes of both memories in every cycle, against dictionaries."""
    config = TagConfig(**shape, mshrs=1, arrays=arrays, injection=rng.random() < 0.5)
    dut = TagArray(config)
    width = directory_code(config).width
    directory = Memory(config.ways, width, arrays)
    tags = Memory(16, 8, arrays)
    # Few rows, so that reads and writes meet, with every bit of an address among them.
    sets = [0, config.sets - 1, *(rng.randrange(config.sets) for _ in range(3))]
    indexes = [rng.getrandbits(config.index_bits) for _ in range(3)]
    indexes += [indexes[0] ^ 1 << bit for bit in range(config.index_bits)]

    async def bench(ctx):
        for _ in range(300):
            set_, write_set = rng.choices(sets, k=2)
            ways = rng.choice([0, rng.getrandbits(config.ways)])
            entry = rng.getrandbits(width)
            index, write_index = rng.choices(indexes, k=2)
            lanes = rng.choice([0, 0xFFFF, 1 << rng.randrange(16), rng.getrandbits(16)])
            codes = rng.getrandbits(128)
            for port, value in (
                (dut.directory_set, set_),
                (dut.directory_write, ways),
                (dut.directory_write_set, write_set),
                (dut.directory_value, entry),
                (dut.index, index),
                (dut.write_lanes, lanes),
                (dut.write_index, write_index),
                (dut.secret_write_codes, codes),
            ):
                ctx.set(port, value)
            if config.injection:
                flip, flips = rng.getrandbits(width), rng.getrandbits(128)
                ctx.set(dut.flip_directory, flip)
                ctx.set(dut.flip_lanes, flips)
                entry, codes = entry ^ flip, codes ^ flips
            await ctx.tick()
            entries = sum(entry << width * way for way in range(config.ways))
            expected = directory.step(set_, ways, write_set, entries)
            if expected is not None:
                assert ctx.get(dut.entries).as_bits() == expected
            expected = tags.step(index, lanes, write_index, codes)
            if expected is not None:
                assert ctx.get(dut.secret_codes) == expected

    simulate(dut, bench)


@pytest.mark.parametrize("width", [1, 9, 36, 71, 72, 73])
def test_sim_contexts(width, arrays, rng):
    """Reads and writes in every cycle, against a dictionary."""
    dut = ContextArray(TagConfig(arrays=arrays), width)
    contexts = Memory(1, width, arrays)
    addresses = [0, 511, *(1 << bit for bit in range(9))]

    async def bench(ctx):
        for _ in range(300):
            address, write_address = rng.choices(addresses, k=2)
            write, value = rng.getrandbits(1), rng.getrandbits(width)
            ctx.set(dut.address, address)
            ctx.set(dut.write, write)
            ctx.set(dut.write_address, write_address)
            ctx.set(dut.write_data, value)
            await ctx.tick()
            expected = contexts.step(address, write, write_address, value)
            if expected is not None:
                assert ctx.get(dut.data) == expected

    simulate(dut, bench)


def test_timing_read(arrays):
    """Data is there two cycles after its address, for one cycle."""
    dut = TagArray(TagConfig(sets=2, ways=2, mshrs=2, arrays=arrays))

    async def bench(ctx):
        ctx.set(dut.write_lanes, 0xFFFF)
        ctx.set(dut.write_index, 5)
        ctx.set(dut.secret_write_codes, 0x77)
        await ctx.tick()
        ctx.set(dut.write_lanes, 0)
        ctx.set(dut.index, 5)
        await ctx.tick()
        ctx.set(dut.index, 4)
        seen = []
        for _ in range(4):
            seen.append(ctx.get(dut.secret_codes))
            await ctx.tick()
        assert seen == [0, 0x77, 0, 0]

    simulate(dut, bench)


def test_sim_neighbours_in_a_byte(arrays):
    """Each granule is written alone: the one that shares its byte of storage stays, as do all."""
    dut = TagArray(TagConfig(sets=32, ways=4, arrays=arrays))

    async def bench(ctx):
        expected = 0
        for lane in [*range(16), *reversed(range(16))]:
            code = 0x1B * (lane + 1) % 256
            others = 0xAAAA_5555_AAAA_5555_AAAA_5555_AAAA_5555 & ~(0xFF << 8 * lane)
            ctx.set(dut.write_lanes, 1 << lane)
            ctx.set(dut.secret_write_codes, code << 8 * lane | others)
            await ctx.tick()
            ctx.set(dut.write_lanes, 0)
            await ctx.tick().repeat(2)
            expected = expected & ~(0xFF << 8 * lane) | code << 8 * lane
            assert ctx.get(dut.secret_codes) == expected

    simulate(dut, bench)


@pytest.mark.parametrize(("arrays", "found"), [(Arrays.PORTABLE, 0), (Arrays.ECP5, (1 << 128) - 1)])
def test_sim_read_while_written(arrays, found):
    """The portable form gives what was there; the model of block RAM what never was."""
    dut = TagArray(TagConfig(arrays=arrays))

    async def bench(ctx):
        ctx.set(dut.write_lanes, 0xFFFF)
        ctx.set(dut.secret_write_codes, 0x77)
        await ctx.tick()
        ctx.set(dut.write_lanes, 0)
        await ctx.tick()
        assert ctx.get(dut.secret_codes) == found
        await ctx.tick()
        assert ctx.get(dut.secret_codes) == 0x77

    with ecp5_models.patched():
        simulate(dut, bench)


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ({"sets": 32, "ways": 4}, 8 + 4),
        ({"sets": 64, "ways": 4}, 16 + 4),
        ({"sets": 64, "ways": 8}, 32 + 8),
        ({"sets": 2, "ways": 2}, 4 + 2),
    ],
)
def test_blocks(shape, blocks):
    text = rtlil.convert(TagArray(TagConfig(**shape, mshrs=1, arrays=Arrays.ECP5)))
    assert text.count("cell \\DP16KD") == blocks
    assert "memory " not in text


def test_blocks_of_contexts():
    text = rtlil.convert(ContextArray(TagConfig(arrays=Arrays.ECP5), 72))
    assert text.count("cell \\DP16KD") == 2


class OneMemory(wiring.Component):
    """A memory with rows that fill a block RAM: instantiated, or as Yosys likes it best."""

    def __init__(self, rows, lanes, *, inferred):
        self.rows = rows
        self.inferred = inferred
        bits = (rows - 1).bit_length()
        super().__init__(
            {
                "write": In(lanes),
                "write_address": In(bits),
                "write_data": In(9 * lanes),
                "address": In(bits),
                "output": Out(9 * lanes),
            }
        )

    def elaborate(self, platform):
        m = Module()
        ports = {name: getattr(self, name) for name in self.signature.members}
        maker = _MAKERS[Arrays.PORTABLE if self.inferred else Arrays.ECP5]
        maker(m, "memory", depth=self.rows, lane_bits=9, **ports)
        return m


def pins_of_block(component, folder):
    """What Yosys connects to each pin of the one block RAM: ports, seen through flip-flops."""
    (folder / "top.il").write_text(rtlil.convert(component))
    # Nothing is added that tells what a read in the cycle of a write gives.
    unchecked = "hierarchy -top top; flatten; setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2"
    script = f"read_rtlil top.il; {unchecked}; synth_ecp5 -top top -json top.json"
    run("yosys", ["-p", script], folder=folder, log="log", say=lambda line: None)
    module = json.loads((folder / "top.json").read_text())["modules"]["top"]
    names = {
        bit: f"{name}[{number}]"
        for name, port in module["ports"].items()
        for number, bit in enumerate(port["bits"])
    }
    before, after = {}, {}
    for cell in module["cells"].values():
        if cell["type"] == "TRELLIS_FF":
            pins = cell["connections"]
            (old,), (new,) = pins.get("DI") or pins["M"], pins["Q"]
            before[new], after[old] = old, new
    (block,) = (cell for cell in module["cells"].values() if cell["type"] == "DP16KD")
    found = {}
    for pin, bits in block["connections"].items():
        through = after if pin.startswith("DO") else before
        for bit in bits:
            name = names.get(bit) or names.get(through.get(bit))
            if name is not None:
                found[pin] = name
    return found


@pytest.mark.parametrize(("rows", "lanes"), [(512, 4), (1024, 2), (2048, 1)])
def test_pins_are_those_that_yosys_infers(rows, lanes, tmp_path):
    """Halves of rows, enables and addresses: the open tools' own use of a block is tried."""
    expected, found = (
        pins_of_block(OneMemory(rows, lanes, inferred=inferred), tmp_path)
        for inferred in (True, False)
    )
    assert len(found) >= 2 * 9 * lanes + lanes + 2 * (rows - 1).bit_length()
    assert found == expected


BLOCK = {
    **{f"p_{name}": value for name, value in ecp5_models.PARAMETERS.items()},
    **{f"i_{pin}": Const(value) for pin, value in ecp5_models.TIED.items()},
    **{f"i_AD{port}{number}": Const(0) for port in "AB" for number in range(14)},
    **{f"i_DI{port}{number}": Const(0) for port in "AB" for number in range(18)},
    "p_DATA_WIDTH_A": 18,
    "p_DATA_WIDTH_B": 18,
    "i_WEA": Const(1),
    "i_CLKA": ClockSignal(),
    "i_CLKB": ClockSignal(),
}
"""A block RAM as its model knows it."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_WRITEMODE_A": "READBEFOREWRITE"}, "parameters must be"),
        ({"p_REGMODE_B": "NOREG"}, "parameters must be"),
        ({"p_DATA_WIDTH_B": 9}, "same width"),
        ({"p_DATA_WIDTH_A": 4, "p_DATA_WIDTH_B": 4}, "same width"),
        ({"i_CEB": Const(0)}, "CEB must be constantly 1"),
        ({"i_WEB": Signal()}, "WEB must be constantly 0"),
        ({"i_WEA": Signal()}, "WEA must be constantly 1"),
        ({"i_ADA3": Signal()}, "ADA3 must be constantly 0"),
        ({"i_ADB0": Signal()}, "ADB0 must be constantly 0"),
        ({"i_CLKB": ClockSignal("fast")}, "CLKB must be the clock"),
        ({"i_X": Const(0)}, "unknown pins: X"),
        ({"a_keep": 1}, "unknown arguments: a_keep"),
        ({"o_DOA0": Signal()}, "DOA0 shows what is written"),
    ],
)
def test_model_refuses(change, message):
    """What it does not model is refused, not guessed."""
    ecp5_models.instance("DP16KD", **BLOCK)
    with pytest.raises(ValueError, match=message):
        ecp5_models.instance("DP16KD", **BLOCK | change)
    with pytest.raises(ValueError, match="no model of MULT18X18D"):
        ecp5_models.instance("MULT18X18D")

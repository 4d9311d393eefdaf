# amaranth: UnusedElaboratable=no
import pytest
from amaranth.lib import data
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.config import SMALL, TagConfig
from emte.rtl.tag_array import TagArray, directory_entry_layout
from emte.sim.harness import simulate

CONFIGS = {
    "small": SMALL,
    "1 way": TagConfig(sets=4, ways=1, line_bytes=16),
    "1 set": TagConfig(sets=1, ways=4),
    "1 line": TagConfig(sets=1, ways=1, line_bytes=128),
    "16 ways": TagConfig(sets=2, ways=16, line_bytes=32),
}


def test_init():
    config = TagConfig(sets=4, ways=8, line_bytes=32, memory_bits=32)
    dut = TagArray(config)
    assert dut.config is config
    entry = directory_entry_layout(config)
    assert entry == data.StructLayout({"tag": 20, "valid": 1})
    assert dut.signature == Signature(
        {
            "directory_set": In(2),
            "directory": Out(data.ArrayLayout(entry, 8)),
            "directory_write": In(8),
            "directory_write_set": In(2),
            "directory_write_entry": In(entry),
            "state_set": In(2),
            "dirty": Out(8),
            "dirty_write": In(8),
            "dirty_value": In(1),
            "replacement": Out(7),
            "replacement_write": In(1),
            "replacement_value": In(7),
            "tags_way": In(3),
            "tags_set": In(2),
            "tags_word": In(2),
            "tags_read": In(1),
            "tags": Out(64),
            "tags_write": In(16),
            "tags_value": In(64),
        }
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_sim_random(config, rng):
    """Reads and writes of all memories at once, against dictionaries."""
    dut = TagArray(config)
    entry = directory_entry_layout(config)
    directory, dirty, trees, tags = {}, {}, {}, {}

    async def bench(ctx):
        shown_directory = shown_tags = None
        for _ in range(400):
            directory_set, write_set, state_set = (rng.randrange(config.sets) for _ in range(3))
            directory_write = rng.choice([0, 0, rng.getrandbits(config.ways)])
            new_entry = {"tag": rng.getrandbits(config.directory_tag_bits), "valid": 1}
            dirty_write = rng.choice([0, rng.getrandbits(config.ways)])
            dirty_value = rng.getrandbits(1)
            tree_write = rng.getrandbits(1)
            tree = rng.getrandbits(config.ways - 1) if config.ways > 1 else 0
            # Few rows, so that reads and writes meet.
            way, set_ = rng.randrange(config.ways) & 1, rng.randrange(config.sets) & 1
            word = rng.randrange(config.line_words) & 1
            tags_read = rng.getrandbits(1)
            tags_write = rng.choice([0, 0xFFFF, 1 << rng.randrange(16), rng.getrandbits(16)])
            value = rng.getrandbits(64)
            for port, driven in (
                (dut.directory_set, directory_set),
                (dut.directory_write, directory_write),
                (dut.directory_write_set, write_set),
                (dut.state_set, state_set),
                (dut.dirty_write, dirty_write),
                (dut.dirty_value, dirty_value),
                (dut.replacement_write, tree_write),
                (dut.replacement_value, tree),
                (dut.tags_way, way),
                (dut.tags_set, set_),
                (dut.tags_word, word),
                (dut.tags_read, tags_read),
                (dut.tags_write, tags_write),
                (dut.tags_value, value),
            ):
                ctx.set(port, driven)
            ctx.set(dut.directory_write_entry, new_entry)

            # These two are seen in the cycle of the address.
            assert ctx.get(dut.dirty) == dirty.get(state_set, 0)
            assert ctx.get(dut.replacement) == trees.get(state_set, 0)
            # Those appear in the next one, with what was there before the write.
            if shown_directory is not None:
                assert ctx.get(dut.directory).as_bits() == shown_directory
            if shown_tags is not None:
                assert ctx.get(dut.tags) == shown_tags
            shown_directory = sum(
                directory.get((directory_set, way), 0) << entry.size * way
                for way in range(config.ways)
            )
            if tags_read:
                shown_tags = tags.get((way, set_, word), 0)
            await ctx.tick()

            for number in range(config.ways):
                if directory_write >> number & 1:
                    directory[write_set, number] = entry.const(new_entry).as_bits()
            old = dirty.get(state_set, 0)
            dirty[state_set] = old | dirty_write if dirty_value else old & ~dirty_write
            if tree_write:
                trees[state_set] = tree
            mask = sum(0xF << 4 * n for n in range(16) if tags_write >> n & 1)
            row = way, set_, word
            tags[row] = tags.get(row, 0) & ~mask | value & mask

    simulate(dut, bench)


def test_timing_read():
    """A word appears in the cycle after its read, and stays until the next one."""
    dut = TagArray(SMALL)

    async def bench(ctx):
        for word in range(2):
            ctx.set(dut.tags_word, word)
            ctx.set(dut.tags_write, 0xFFFF)
            ctx.set(dut.tags_value, 0x1111_1111_1111_1111 * (word + 1))
            await ctx.tick()
        ctx.set(dut.tags_write, 0)
        for word in range(2):
            ctx.set(dut.tags_word, word)
            ctx.set(dut.tags_read, 1)
            await ctx.tick()
            ctx.set(dut.tags_read, 0)
            ctx.set(dut.tags_word, 1 - word)
            for _ in range(3):
                assert ctx.get(dut.tags) == 0x1111_1111_1111_1111 * (word + 1)
                await ctx.tick()

    simulate(dut, bench)


def test_sim_neighbours_in_a_byte():
    """Each granule is written alone: the other nibble of its byte stays."""
    dut = TagArray(SMALL)

    async def bench(ctx):
        ctx.set(dut.tags_read, 1)
        expected = 0
        for n in [*range(16), *reversed(range(16))]:
            tag = (3 * n + 1) % 16
            ctx.set(dut.tags_write, 1 << n)
            ctx.set(dut.tags_value, (tag << 4 * n) | (~(0xF << 4 * n) & 0xAAAA_5555_AAAA_5555))
            await ctx.tick()
            ctx.set(dut.tags_write, 0)
            await ctx.tick()
            expected = expected & ~(0xF << 4 * n) | tag << 4 * n
            assert ctx.get(dut.tags) == expected

    simulate(dut, bench)

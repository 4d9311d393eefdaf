"""The memories of the tag cache: the only file that knows block RAM."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from .config import TagConfig

__all__ = ["TagArray", "directory_entry_layout"]


def directory_entry_layout(config: TagConfig) -> data.StructLayout:
    """What the directory says of one way: which line is there, if any."""
    return data.StructLayout({"tag": config.directory_tag_bits, "valid": 1})


class TagArray(wiring.Component):
    """Directory, tags, dirty bits and replacement state of the tag cache.

    Directory and tags are synchronous memories: what is read in one cycle appears in the next, and
    stays until the next read. A read in the cycle of a write to the same row gives the old content.
    Dirty bits and replacement state are read in the same cycle.

    Members
    -------
    directory_set : ``In(config.set_bits)``
        Set whose directory entries appear in the next cycle. Read in every cycle.
    directory : ``Out(ArrayLayout(directory_entry_layout(config), config.ways))``
        Entries of the set that was read.
    directory_write : ``In(config.ways)``
        Ways whose entry is written.
    directory_write_set : ``In(config.set_bits)``
        The set whose entries are written.
    directory_write_entry : ``In(directory_entry_layout(config))``
        What is written to each of these ways.
    state_set : ``In(config.set_bits)``
        The set whose dirty bits and replacement state are read and written.
    dirty : ``Out(config.ways)``
        Ways that hold tags which storage does not have yet.
    dirty_write : ``In(config.ways)``
        Ways whose dirty bit becomes ``dirty_value``.
    dirty_value : ``In(1)``
        The new dirty bit.
    replacement : ``Out(config.ways - 1)``
        State of the pseudo-LRU tree.
    replacement_write : ``In(1)``
        The state becomes ``replacement_value``.
    replacement_value : ``In(config.ways - 1)``
        The new state.
    tags_way, tags_set, tags_word : ``In``
        Row of the tag memory that is read or written: one tag word.
    tags_read : ``In(1)``
        Read the row: its content appears at ``tags`` in the next cycle.
    tags : ``Out(64)``
        The tag word that was read. Secret.
    tags_write : ``In(16)``
        Granules of the row that are written.
    tags_value : ``In(64)``
        The new tags, at their granules. Secret.
    """

    directory_set: Signal
    directory: data.View
    directory_write: Signal
    directory_write_set: Signal
    directory_write_entry: data.View
    state_set: Signal
    dirty: Signal
    dirty_write: Signal
    dirty_value: Signal
    replacement: Signal
    replacement_write: Signal
    replacement_value: Signal
    tags_way: Signal
    tags_set: Signal
    tags_word: Signal
    tags_read: Signal
    tags: Signal
    tags_write: Signal
    tags_value: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        entry = directory_entry_layout(config)
        super().__init__(
            {
                "directory_set": In(config.set_bits),
                "directory": Out(data.ArrayLayout(entry, config.ways)),
                "directory_write": In(config.ways),
                "directory_write_set": In(config.set_bits),
                "directory_write_entry": In(entry),
                "state_set": In(config.set_bits),
                "dirty": Out(config.ways),
                "dirty_write": In(config.ways),
                "dirty_value": In(1),
                "replacement": Out(config.ways - 1),
                "replacement_write": In(1),
                "replacement_value": In(config.ways - 1),
                "tags_way": In(config.way_bits),
                "tags_set": In(config.set_bits),
                "tags_word": In(config.word_index_bits),
                "tags_read": In(1),
                "tags": Out(config.word_bits),
                "tags_write": In(config.word_granules),
                "tags_value": In(config.word_bits),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config

        # No read port is transparent: the cache never needs what is written in the same cycle,
        # and a bypass would cost a comparator in the fastest path.
        m.submodules.entries = entries = memory.Memory(
            shape=data.ArrayLayout(directory_entry_layout(config), config.ways),
            depth=config.sets,
            init=[],
        )
        entries_read = entries.read_port()
        entries_write = entries.write_port(granularity=1)
        m.d.comb += [
            entries_read.addr.eq(self.directory_set),
            entries_read.en.eq(1),
            self.directory.eq(entries_read.data),
            entries_write.addr.eq(self.directory_write_set),
            entries_write.en.eq(self.directory_write),
        ]
        for way in range(config.ways):
            m.d.comb += entries_write.data[way].eq(self.directory_write_entry)

        m.submodules.dirty_bits = dirty_bits = memory.Memory(
            shape=config.ways, depth=config.sets, init=[]
        )
        dirty_read = dirty_bits.read_port(domain="comb")
        dirty_write = dirty_bits.write_port(granularity=1)
        m.d.comb += [
            dirty_read.addr.eq(self.state_set),
            self.dirty.eq(dirty_read.data),
            dirty_write.addr.eq(self.state_set),
            dirty_write.en.eq(self.dirty_write),
            dirty_write.data.eq(self.dirty_value.replicate(config.ways)),
        ]

        if config.ways > 1:
            m.submodules.trees = trees = memory.Memory(
                shape=config.ways - 1, depth=config.sets, init=[]
            )
            trees_read = trees.read_port(domain="comb")
            trees_write = trees.write_port()
            m.d.comb += [
                trees_read.addr.eq(self.state_set),
                self.replacement.eq(trees_read.data),
                trees_write.addr.eq(self.state_set),
                trees_write.en.eq(self.replacement_write),
                trees_write.data.eq(self.replacement_value),
            ]

        # One row is one tag word, and a granule is written alone: two granules share a byte, and
        # neither store may touch the other's tag.
        m.submodules.secret_tags = secret_tags = memory.Memory(
            shape=config.word_bits,
            depth=config.sets * config.ways * config.line_words,
            init=[],
        )
        tags_read = secret_tags.read_port()
        tags_write = secret_tags.write_port(granularity=config.tag_bits)
        row = Cat(self.tags_word, self.tags_set, self.tags_way)
        m.d.comb += [
            tags_read.addr.eq(row),
            tags_read.en.eq(self.tags_read),
            self.tags.eq(tags_read.data),
            tags_write.addr.eq(row),
            tags_write.en.eq(self.tags_write),
            tags_write.data.eq(self.tags_value),
        ]
        return m

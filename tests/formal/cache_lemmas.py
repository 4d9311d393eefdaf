"""Where in the tag cache a tag is: what the proof of its spec needs to know of its registers.

The lemmas, and what the spec asserts at the ports, follow together from themselves one cycle
earlier. They say nothing beyond the unit as it is, and change with it.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from amaranth.hdl import Array, Assert, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data
from emte.rtl.config import TagConfig
from emte.rtl.layouts import ProbeKind, probe_layout
from emte.rtl.miss_unit import MissKind
from emte.rtl.tag_array import directory_entry_layout
from unit_spec import UnitSpec

__all__ = ["Known", "lemmas"]

# States of the controllers, in the order in which these name them first.
CACHE_STATES = (
    *("SWEEP", "LOOKUP", "INITIALISE", "INITIALISING", "WALK"),
    *("MISS", "REFILL", "REREAD", "VISIT", "CLEAN"),
)
MISS_STATES = ("IDLE", "EVICT", "READ", "ZERO", "WRITE", "REFILL", "DONE")


@dataclass(frozen=True)
class Known:
    """What the spec's monitor, and its model of tag storage, know of the followed granule.

    Attributes
    ----------
    line, index, place
        Its line, the tag word in that, and the line's place in tag storage.
    tag_of
        Its tag in a tag word.
    value
        The tag that was stored last, also by a probe that waits at the output.
    storage
        Its tag in tag storage.
    started
        The first cycle after reset is over.
    mapped, size, vouched
        The line is in the map, which has that many bytes; storage is zeroed before reset.
    lost
        A write to tag storage failed.
    addressed, written, write_word, write_ours, write_tag, write_strobe
        The write under way: its address and its last word are there; words that are; it is of the
        line; the followed tag in it, and its strobe.
    reading, read_word, read_ours
        The read under way.
    storing, drops
        The probe that waits at the output, if any, stores the tag, or drops the line.
    dropped, unfetched
        The line was dropped, or could not be fetched, and was not fetched since then.
    inside, following, ahead, followed, after_error
        Probes that are inside, and the one that is followed among them.
    """

    line: Value
    index: Value
    place: Value
    tag_of: Callable[[Value], Value]
    value: Value
    storage: Value
    started: Value
    mapped: Value
    size: Value
    vouched: Value
    lost: Value
    addressed: Value
    written: Value
    write_word: Value
    write_ours: Value
    write_tag: Value
    write_strobe: Value
    reading: Value
    read_word: Value
    read_ours: Value
    storing: Value
    drops: Value
    dropped: Value
    unfetched: Value
    inside: Value
    following: Value
    ahead: Value
    followed: Value
    after_error: Value


def lemmas(m: Module, spec: UnitSpec, config: TagConfig, known: Known) -> None:
    """Assert the lemmas."""
    for name, holds in _lemmas(m, spec, config, known):
        m.d.comb += Assert(holds, f"lemma: {name}")


def _lemmas(
    m: Module, spec: UnitSpec, config: TagConfig, known: Known
) -> Iterator[tuple[str, Value]]:
    unit = spec.unit
    memory = unit.memory
    ready = unit.ready
    k = known

    def see(path: str, shape=1) -> Signal:
        return spec.see(m, path, shape)

    cache_state, miss_state = see("fsm_state", 4), see("miss_unit.fsm_state", 3)

    def cache(*names: str) -> Value:
        return Cat(cache_state == CACHE_STATES.index(name) for name in names).any()

    def miss(*names: str) -> Value:
        return Cat(miss_state == MISS_STATES.index(name) for name in names).any()

    # The probe in stage 1.
    s1_valid, s1_done, s1_abort = see("s1_valid"), see("s1_done"), see("s1_abort")
    s1 = Signal(probe_layout(config))
    m.d.comb += s1.eq(see("s1", probe_layout(config)))
    s1_line = s1.word[config.word_index_bits :]
    s1_set = s1_line[: config.set_bits]
    s1_ours = s1_line == k.line
    access = s1.kind.as_value() <= ProbeKind.STORE.value
    clean_all = s1.kind == ProbeKind.CLEAN_ALL
    drop_all = s1.kind == ProbeKind.CLEAN_INVALIDATE_ALL
    all_lines = clean_all | drop_all
    cleans = clean_all | ((s1.kind == ProbeKind.CLEAN) & s1_ours)
    drops = drop_all | ((s1.kind == ProbeKind.CLEAN_INVALIDATE) & s1_ours)
    s2_valid = unit.tag_word.valid
    s2 = unit.tag_word.payload

    # The line in the array.
    line_set, line_tag = k.line[: config.set_bits], k.line[config.set_bits :]
    entry = data.ArrayLayout(directory_entry_layout(config), config.ways)
    entries = [see(f"array.entries[{n}]", entry) for n in range(config.sets)]
    entries_of = Array(Value.cast(row) for row in entries)
    dirty = Array(see(f"array.dirty_bits[{n}]", config.ways) for n in range(config.sets))
    rows = Array(
        see(f"array.secret_tags[{n}]", config.word_bits)
        for n in range(config.sets * config.ways * config.line_words)
    )
    directory = Signal(entry)
    m.d.comb += directory.eq(entries_of[line_set])
    in_way = Signal(config.ways)
    for way in range(config.ways):
        m.d.comb += in_way[way].eq(directory[way].valid & (directory[way].tag == line_tag))
    cached = in_way.any()
    is_dirty = dirty[line_set]
    fill_way, walk_way = see("fill_way", config.way_bits), see("walk_way", config.way_bits)
    walk_set = see("walk_set", config.set_bits)
    walk_here = walk_set == line_set

    # The line in the miss unit, and on its way to storage.
    kind = see("miss_unit.kind", MissKind)
    refill, clean, initialise = (
        kind == which for which in (MissKind.REFILL, MissKind.CLEAN, MissKind.INITIALISE)
    )
    count = see("miss_unit.count", range(config.line_words + 1))
    read_bad = see("miss_unit.read_failed")
    write_address = see("miss_unit.write_address", config.axi_address_bits)
    read_address = see("miss_unit.read_address", config.axi_address_bits)
    responding, zeros = see("miss_unit.responding"), see("miss_unit.write_zeros")
    unit_word = see("miss_unit.write_word", config.word_index_bits)
    buffer = Array(
        see(f"miss_unit.secret_line[{n}]", config.word_bits) for n in range(config.line_words)
    )
    ours = write_address == k.place
    evicting = miss("EVICT") & ours
    flying = responding & ours
    filling = cache("REFILL") & s1_ours
    array_output = see("array.tags", config.word_bits)
    seen = k.written | (k.write_word > k.index)  # the followed tag is on its way
    buffered = k.tag_of(buffer[k.index]) == k.value

    def way_row(way: Value) -> Value:
        """The followed tag's row of a way."""
        return k.tag_of(rows[Cat(k.index, line_set, way)])

    # The controllers keep in step.
    yield "states", (cache_state < len(CACHE_STATES)) & (miss_state < len(MISS_STATES))
    yield "refill", cache("REFILL") == (refill & miss("EVICT", "READ", "REFILL", "DONE"))
    yield "clean", cache("CLEAN") == (clean & miss("EVICT", "WRITE", "DONE"))
    yield "initialise", cache("INITIALISING") == (initialise & miss("ZERO", "WRITE", "DONE"))
    yield "idle", cache("REFILL", "CLEAN", "INITIALISING") | miss("IDLE")
    yield "kind", kind.as_value() < 3
    yield "no write yet", ~(miss("EVICT", "ZERO") | (miss("DONE") & ~refill)) | ~responding
    yield "nothing yet", ~cache("SWEEP", "INITIALISE") | ~responding
    yield "no zeros", ~(ready & (responding | miss("EVICT"))) | ~zeros
    yield "stage 1", ~cache("WALK", "MISS", "REFILL", "VISIT", "CLEAN") | (s1_valid & ~s1_done)
    yield "stage 1 before", ready | ~s1_valid
    yield "stage 2 before", ready | ~s2_valid
    yield "miss", ~cache("MISS", "REFILL") | access
    yield "walk", ~cache("WALK", "VISIT", "CLEAN") | ~access
    yield "reread", ~cache("REREAD") | s1_valid
    yield "array", ~cache("REFILL", "CLEAN") | ~s2_valid
    yield "abort", s1_done | ~s1_abort
    yield "done", ~(s1_valid & s1_done & access) | s1_abort

    # Handshakes at the memory port, as the model of storage sees them.
    yield "AW", memory.awvalid == (responding & ~k.addressed)
    yield "W", memory.wvalid == (responding & ~k.written)
    yield "no B", responding | ~(k.addressed | k.written | k.write_word.any())
    yield "words", ~responding | (unit_word == k.write_word)
    yield "whose", ~k.addressed | (k.write_ours == ours)
    yield "AR", memory.arvalid == miss("READ")
    yield "R", k.reading == miss("REFILL")
    yield "words read", Mux(miss("REFILL"), count == k.read_word, k.read_word == 0)
    line_shift = config.line_bytes.bit_length() - 1
    s1_place = (unit.storage_base + (s1_line << line_shift))[: config.axi_address_bits]
    yield "read from", ~cache("REFILL") | (read_address == s1_place)
    yield "written to", ~(responding | miss("EVICT")) | (write_address[:line_shift] == 0)
    yield "read", ~k.reading | (k.read_ours == s1_ours)
    yield "count", ~miss("READ") | (count == 0)
    yield "count evicted", ~miss("EVICT") | (count <= config.line_words)
    yield "count at end", ~(miss("DONE") & refill) | (count == config.line_words)

    # The directory's answer is what it says.
    looked_at = Signal(config.set_bits)
    changed = Signal(init=1)
    directory_set = see("array.directory_set", config.set_bits)
    m.d.sync += [
        looked_at.eq(directory_set),
        changed.eq(
            see("array.directory_write", config.ways).any()
            & (see("array.directory_write_set", config.set_bits) == directory_set)
        ),
    ]
    shown = see("array.entries_read__data", entry)
    yield "directory", changed | (Value.cast(shown) == entries_of[looked_at])
    fresh = ~changed & (looked_at == s1_set)
    yield "fresh", ~((cache("LOOKUP") & s1_valid) | cache("MISS")) | fresh
    yield "fresh walk", ~cache("VISIT") | (~changed & (looked_at == walk_set))

    # The line before the cache is ready.
    for number, row in enumerate(entries):
        ways = [row[way] for way in range(config.ways)]
        valid = Cat(way.valid for way in ways)
        yield f"swept {number}", ~cache("SWEEP") | (number >= walk_set) | ~valid.any()
        yield f"empty {number}", ~cache("INITIALISE", "INITIALISING") | ~valid.any()
        for other, way in itertools.combinations(ways, 2):
            differ = ~(way.valid & other.valid & (way.tag == other.tag))
            yield f"ways {number}", ~ready | differ
        missing = ~Cat(way.valid & (way.tag == s1_line[config.set_bits :]) for way in ways).any()
        of_set = cache("MISS", "REFILL") & (s1_set == number)
        yield f"missing {number}", ~of_set | missing
        yield f"filled {number}", ~(of_set & cache("REFILL")) | ~valid.bit_select(fill_way, 1)
    next_line = see("miss_unit.next_line", config.line_address_bits + 1)
    zeroing = cache("INITIALISING")
    last_line = next_line - 1
    last_place = (unit.storage_base + (last_line << line_shift))[: config.axi_address_bits]
    zeroed = zeroing & (k.line < next_line) & ~flying & ~k.lost
    yield "zeroed", ~zeroed | (k.storage == 0)
    yield "zeros", ~(zeroing & responding) | zeros
    yield "zeros seen", ~(zeroing & flying & seen) | (k.write_strobe & (k.write_tag == 0))
    yield "zeros to", ~(zeroing & responding) | ((next_line != 0) & (write_address == last_place))
    yield "zeros in map", ~zeroing | (next_line <= (k.size >> line_shift))
    yield "all zeros", ~(zeroing & miss("DONE")) | (next_line == (k.size >> line_shift))
    yield "vouched", ~cache("INITIALISE", "INITIALISING") | ~k.vouched
    yield "started", ~ready | k.started
    yield "before", ready | ~k.started | (k.value == k.storage)

    # The line in the cache.
    for way in range(config.ways):
        row = way_row(Const(way, config.way_bits))
        yield f"way {way}", ~(ready & in_way[way] & ~k.lost) | (row == k.value)
        yield (
            f"clean way {way}",
            ~(ready & in_way[way] & ~is_dirty[way] & ~k.lost)
            | ((k.storage == k.value) & ~flying & ~evicting),
        )

    # The line on its way to storage.
    yield (
        "in storage",
        ~(ready & ~cached & ~evicting & ~flying & ~k.lost) | (k.storage == k.value),
    )
    source = Mux(cache("CLEAN"), walk_way, fill_way)
    yield "evicted set", ~evicting | (Mux(cache("CLEAN"), walk_set, s1_set) == line_set)
    yield "evicted", ~(evicting & ~k.lost) | (way_row(source) == k.value)
    yield "copied", ~(evicting & ~k.lost & (count > k.index + 1)) | buffered
    yield (
        "read for the copy",
        ~(evicting & ~k.lost & (count == k.index + 1)) | (k.tag_of(array_output) == k.value),
    )
    yield "not cached", ~(ready & refill & (evicting | flying)) | ~cached
    yield "another line", ~(filling & ~miss("IDLE")) | ~(evicting | flying)
    yield "flying", ~(ready & flying & ~k.lost) | buffered
    yield (
        "seen",
        ~(ready & flying & seen & ~k.lost) | (k.write_strobe & (k.write_tag == k.value)),
    )
    cleaned = cache("CLEAN") & ours
    walk_ours = walk_here & in_way.bit_select(walk_way, 1)
    yield "cleaned", ~cleaned | walk_ours
    yield "cleaned line", ~(cache("CLEAN") & walk_ours) | ours
    yield (
        "in storage after cleaning",
        ~(cleaned & miss("WRITE", "DONE") & ~responding & ~k.lost) | (k.storage == k.value),
    )
    yield "kind of writes", ~responding | refill | miss("WRITE")

    # The line on its way from storage.
    yield (
        "fetched",
        ~(filling & miss("REFILL", "DONE") & ~read_bad & (count > k.index) & ~k.lost)
        | (way_row(fill_way) == k.storage),
    )
    yield "unfetched", ~(ready & k.unfetched) | ~cached
    yield "unfetched fill", ~(k.unfetched & filling & miss("REFILL", "DONE")) | read_bad
    yield "not to be fetched", ~(filling & read_bad) | (miss("REFILL", "DONE") & k.unfetched)
    yield "dropped", ~(ready & k.dropped) | ~cached
    yield "dropped fill", ~(k.dropped & filling) | ~miss("REFILL", "DONE")

    # Maintenance.
    here = Signal(config.ways)  # ways that have been visited
    m.d.comb += here.eq(Mux(line_set < walk_set, ~0, Mux(walk_here, (1 << walk_way) - 1, 0)))
    walking = cache("WALK", "VISIT", "CLEAN")
    yield "visited", ~(walking & all_lines) | ((in_way & here & is_dirty) == 0)
    yield "left", ~(walking & drop_all & (line_set < walk_set)) | ~cached
    yield "visits", ~(walking & ~all_lines & s1_ours) | walk_ours
    quiet = miss("IDLE") & ~responding
    maintained = s1_valid & s1_done & ~access
    access_answered = s2.probe.kind.as_value() <= ProbeKind.STORE.value
    yield "quiet", ~(walking & ~cache("CLEAN")) | quiet
    yield "quiet after", ~maintained | quiet
    yield "quiet answer", ~s2_valid | access_answered | ~responding
    good = maintained & ~s1_abort
    yield "no error", ~good | ~k.lost
    yield "cleaned at end", ~(good & (cleans | drops)) | (in_way & is_dirty == 0)
    yield "dropped at end", ~(good & drops) | ~cached
    yield "dropped at answer", ~(s2_valid & ~s2.abort & k.drops) | ~cached
    yield "dirty at answer", ~k.storing | (in_way & is_dirty).any()

    # Aborts, and order.
    yield "aborted", ~(s1_valid & s1_abort) | k.lost | (access & (~s1_ours | k.unfetched))
    yield "inside", k.inside == s1_valid + s2_valid
    yield "ahead", ~k.following | (k.ahead < k.inside)
    first = Mux(s2_valid, s2.probe.as_value() == k.followed, s1.as_value() == k.followed)
    yield "followed", ~k.following | Mux(k.ahead == 0, first, s1.as_value() == k.followed)
    yield "after error", ~(k.following & k.after_error) | k.lost

"""Formal spec of the tag cache: a tag is what was stored last, and no line is in two places.

One granule of memory is followed, any one, and one probe, any one. A monitor outside the unit knows
what a program stored there last, in the order in which probes come in.
"""

from dataclasses import replace
from unittest import mock

from amaranth.asserts import AnyConst, AnySeq
from amaranth.hdl import Array, Assert, Assume, Cat, Cover, Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import data
from cache_models import Followed, lane, models, with_lane
from emte.rtl import tag_cache
from emte.rtl.codes import corrected_granule, granule_code
from emte.rtl.config import TagConfig
from emte.rtl.layouts import ProbeKind, Refusal
from emte.rtl.tag_cache import TagCache
from unit_spec import TINY, UnitSpec
from variants import Wrapper

__all__ = ["CACHE", "TagCacheSpec"]

CACHE = replace(TINY, sets=1, memory_bits=11)
"""Four lines for one set of two ways."""


PATIENCE = 4
"""Cycles within which an MSHR is free again once its line is there and no probe waits."""


class TagCacheSpec(UnitSpec):
    """What a check or a load sees, or else storage has, is the last tag stored.

    The control of the cache, its pipeline and the waiting list are the true ones; around them are
    the models of ``cache_models.py``. The search begins with lines of any kind in the ways, and
    with the followed tag in any place: in the cache, clean or dirty, in storage, or on its way
    there. It begins with nothing in the pipeline and all MSHRs free. There is no reset, and storage
    answers without errors.

    Parameters
    ----------
    config : :class:`TagConfig`
        Geometry, of one set.
    fault : type[Wrapper] or None
        A fault around one of the models.

    Assumed of the door: a word comes in the cycle after its admission, a second one behind it; its
    detail a cycle later; nothing is admitted while ``pause`` is set, no tag store without a place
    in the store buffer. Assumed of the check: it gives back the tag of each code that it is shown.
    """

    def __init__(self, config: TagConfig, *, fault: type[Wrapper] | None = None) -> None:
        self.config = config
        self.fault = fault
        self.followed = Followed(config)
        super().__init__(TagCache(config))

    def elaborate(self, platform) -> Module:
        # Not that of UnitSpec: behind the models there is no port to storage.
        m = Module()
        units = models(self.followed)
        if self.fault is not None:
            name = self.fault.Unit.__name__
            units[name] = type(self.fault.__name__, (self.fault,), {"Unit": units[name]})

        with mock.patch.multiple(tag_cache, **units):
            m.submodules.unit = self.unit.elaborate(platform)
        self.specify(m)
        return m

    def specify(self, m: Module) -> None:
        unit = self.unit
        config = self.config
        f = self.followed
        m.d.comb += [
            Assume(~ResetSignal(), "there is no reset"),
            *(signal.eq(AnyConst(len(signal))) for signal in (f.line, f.index, f.granule)),
            unit.room.eq(AnySeq(1)),
        ]

        # The door.
        admits, second, comes, detailed = (Signal() for _ in range(4))
        opened, store_opened = Signal(), Signal()  # as of the cycle before
        stores = [Signal(name=f"stores_{n}") for n in range(3)]
        slots = [Signal(config.store_bits, name=f"slots_{n}") for n in range(2)]
        word = Signal(config.word_address_bits)
        detail = unit.detail
        ours = word == Cat(f.index, f.line)
        m.d.comb += [
            admits.eq(AnySeq(1) & opened & ~unit.again),
            stores[0].eq(admits & store_opened & AnySeq(1)),
            unit.store.eq(stores[0]),
            unit.secret_store_tags.eq(AnySeq(config.word_bits)),
            unit.word.eq(AnySeq(config.word_address_bits)),
            unit.word_valid.eq(comes),
            unit.again.eq(comes & ~second & ~stores[1] & AnySeq(1)),
            detail.as_value().eq(AnySeq(len(detail.as_value()))),
            Assume(
                ~stores[0] | (lane(unit.secret_store_tags, f.granule, 4) == unit.store_slot),
                "the place tells the tag",
            ),
            Assume(
                ~detailed | ((detail.kind == ProbeKind.STORE) == stores[2]),
                "a tag store comes with its tags",
            ),
            Assume(~stores[2] | (detail.store == slots[1]), "and tells their place"),
            # Nobody in the cache looks at tickets.
            Assume(~detailed | (detail.ticket.number[1] == ours), "a ticket tells the word"),
        ]
        m.d.sync += [
            opened.eq(~unit.pause),
            store_opened.eq(unit.store_ready),
            comes.eq(admits | unit.again),
            second.eq(unit.again),
            Cat(stores[1:]).eq(Cat(stores)),
            slots[0].eq(unit.store_slot),
            slots[1].eq(slots[0]),
            detailed.eq(comes),
            word.eq(unit.word),
        ]

        # What the check gives back.
        codes, corrected = Signal(8), Signal(4)
        m.d.comb += [
            codes.eq(lane(unit.secret_codes, f.granule, 8)),
            corrected.eq(corrected_granule(codes)),
        ]
        m.d.sync += [
            unit.secret_corrected.eq(with_lane(corrected, f.granule)),
            unit.secret_errors.eq(AnySeq(1)),
        ]

        # The last tag as probes come in, and what the marked one should find.
        at_first = Signal(4)
        last = Signal(4)
        value = Mux(f.started, last, at_first)
        storing = stores[2] & ours & detail.mask.bit_select(f.granule, 1)
        marks, marked, answered = Signal(), Signal(), Signal()
        expected = Signal(4)
        followed = Signal(len(detail.as_value()))
        m.d.comb += [
            at_first.eq(AnyConst(4)),
            marks.eq(detailed & detail.ticket.number[0]),
            Assume(~marks | ~marked, "one is marked"),
        ]
        m.d.sync += [last.eq(Mux(storing, detail.store, value)), marked.eq(marked | marks)]
        with m.If(marks):
            m.d.sync += [expected.eq(value), followed.eq(detail.as_value())]
        shown = unit.check_detail
        answer = unit.check_valid & shown.ticket.number[0]
        looks = (shown.kind == ProbeKind.CHECK) | (shown.kind == ProbeKind.LOAD)
        good = answer & looks & shown.ticket.number[1]
        m.d.sync += answered.eq(answered | answer)
        m.d.comb += [
            Assert(~answer | (marked & ~answered), "a probe is answered twice"),
            Assert(~answer | (shown.as_value() == followed), "a probe is changed"),
            Assert(
                ~unit.check_valid | (unit.check_refusal == Refusal.NONE),
                "tags are refused, and there was no error",
            ),
            Assert(
                ~good | (codes == granule_code(expected)), "a tag that is not the last one stored"
            ),
        ]
        self.placement(m, at_first, codes)

        # Each MSHR whose line has come is free soon after the last probe has left the list.
        rest = Signal(range(PATIENCE + 1))
        m.d.sync += rest.eq(Mux(unit.waiting_valid, 0, rest + (rest != PATIENCE)))
        m.d.comb += Assert(~f.kept_mshrs | (rest != PATIENCE), "an MSHR is not freed")

        stored, written_back, fetched, merged = (
            Signal(name=f"was_{name}") for name in ("stored", "written_back", "fetched", "merged")
        )
        m.d.sync += [
            stored.eq(stored | (storing & (detail.store != at_first))),
            written_back.eq(written_back | f.written_back),
            fetched.eq(fetched | (written_back & f.fetches)),
            merged.eq(merged | (f.fetching & storing & (detail.store != at_first))),
        ]
        m.d.comb += [
            Cover(good & stored & ~fetched, "a stored tag is loaded"),
            Cover(stored & f.written_back, "a stored tag is written back"),
            Cover(good & fetched, "a tag is loaded after its line was written back and fetched"),
            Cover(good & merged, "a tag is stored while its line is fetched, and loaded"),
            Cover(answer & (shown.kind == ProbeKind.CLEAN), "maintenance is done"),
            Cover(fetched & ~f.kept_mshrs & (rest == PATIENCE - 1), "an MSHR is free again"),
        ]

    def placement(self, m: Module, at_first: Value, codes: Value) -> None:
        """Where the last tag is, as tag stores take effect."""
        unit, config, f = self.unit, self.config, self.followed

        def after(stage: str, value: Value) -> Value:
            """The tag after what is in this stage."""
            detail = data.View(
                unit.detail.shape(), self.see(m, f"{stage}_detail", len(unit.detail.as_value()))
            )
            ours = detail.ticket.number[1] & detail.mask.bit_select(f.granule, 1)
            stores = self.see(m, f"{stage}_valid", 1) & (detail.kind == ProbeKind.STORE)
            following = Signal(4, name=f"after_{stage}")
            m.d.comb += following.eq(Mux(stores & ours, detail.store, value))
            return following

        answered = Signal(4)
        tag = after("c5", after("c6", Mux(f.started, answered, at_first)))
        next_tag = after("c4", tag)
        shown = unit.check_detail
        with m.If(
            unit.check_valid
            & (shown.kind == ProbeKind.STORE)
            & shown.ticket.number[1]
            & shown.mask.bit_select(f.granule, 1)
        ):
            m.d.sync += answered.eq(shown.store)
        with m.Elif(~f.started):
            m.d.sync += answered.eq(at_first)

        in_way = Cat(entry == Cat(f.line, 1) for entry in f.entries)
        state = self.see(m, "state[0]", 2 * config.ways - 1, free=True)
        dirty = (in_way & state[config.ways - 1 :]).any()
        there = Mux(f.pending, f.kept, f.storage)
        stays = in_way.any() & ~f.fetching
        in_cache = Cat(
            ~in_way[way] | (cell == granule_code(next_tag)) for way, cell in enumerate(f.next_cells)
        ).all()
        one_way = (in_way & (in_way - 1)) == 0
        differ = Cat(
            ~f.entries[way][-1] | (f.entries[way] != f.entries[other])
            for way in range(config.ways)
            for other in range(way)
        ).all()
        hits = self.see(m, "changed", config.ways)
        line = self.see(m, "c4_word", config.word_address_bits)[config.word_index_bits :]
        uses = self.see(m, "c4_used", 1) & (line == f.line)
        looks = (shown.kind == ProbeKind.CHECK) | (shown.kind == ProbeKind.LOAD)
        good = unit.check_valid & looks & shown.ticket.number[1]
        m.d.comb += [
            Assume(f.started | (differ & in_cache), "at first it is in the cache, if there"),
            Assume(
                f.started | dirty | (there == at_first), "and in storage, if not there and dirty"
            ),
            Assume(f.started | ~f.pending | ~in_way.any(), "or on its way to storage"),
            Cover(~f.started & dirty, "the line is dirty at first"),
            Assert(one_way, "the line is in two ways"),
            Assert(~uses | (stays & (hits == in_way)), "a hit where the line is not, or not yet"),
            Assert(~stays | in_cache, "the cache has another tag than the last one"),
            Assert((stays & dirty) | (there == tag), "the last tag is nowhere"),
            Assert(~f.loading | (stays & dirty), "a line is written back that is not dirty"),
            Assert(~(f.loading & f.copied) | (f.kept == tag), "another tag is written back"),
            Assert(~f.leaving | (there == tag), "a line leaves, and storage does not get its tag"),
            Assert(
                ~(f.fetching & f.came) | (~f.pending & (f.tag == tag)),
                "a refill overtakes the write-back of its line",
            ),
            Assert(
                ~(f.fetching & f.filled) | (Array(f.next_cells)[f.way] == granule_code(tag)),
                "a line is filled with other tags than those of storage",
            ),
            Assert(
                ~good | (codes == granule_code(Mux(f.started, answered, at_first))),
                "a tag that is not that of the last tag store before",
            ),
        ]

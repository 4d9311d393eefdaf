"""Formal spec of the tag cache: a tag is what was stored last, wherever it lies in the meantime.

One granule of memory is followed, any one. A monitor outside the unit knows what a program stored
there last, and a model of tag storage behind the memory port knows what storage has of it.
"""

from amaranth.asserts import AnyConst, AnySeq
from amaranth.hdl import Assert, Assume, Cover, Module, Mux, Signal, Value
from amaranth.lib import wiring
from cache_lemmas import Known, lemmas
from emte.rtl.axi import Burst
from emte.rtl.config import TagConfig
from emte.rtl.layouts import ProbeKind, probe_layout
from emte.rtl.tag_cache import TagCache
from unit_spec import UnitSpec

INSIDE = 2
"""Probes that the cache holds at a time."""


class TagCacheSpec(UnitSpec):
    """Loads and checks see the last tag store; storage has it after maintenance.

    Parameters
    ----------
    config : :class:`TagConfig`
        Geometry.
    lemmas : bool
        State what a proof for all time needs to know of the unit's registers.
    unit : :class:`amaranth.lib.wiring.Component`
        What is to be held to it, instead of the cache of that geometry.

    What the followed granule has when the cache becomes ready is what storage has then. That is
    zero within the map, unless ``storage_zeroed`` vouches for storage, or it told an error.

    Assumed of the core: the place of tag storage, a multiple of 128 bytes, stays; its size, another
    multiple, and ``storage_zeroed`` stay until the cache is ready. Assumed of the memory port: a
    write is answered after its address and its last word, a read after its address, in full. A
    write shows in storage when it is answered, or, if that is an error, may leave anything; words
    of a read that come with an error may be anything. The model answers one read and one write at
    a time; that there are never more is asserted.
    """

    def __init__(
        self,
        config: TagConfig,
        *,
        lemmas: bool = False,
        unit: wiring.Component | None = None,
    ) -> None:
        self.config = config
        self.lemmas = lemmas
        super().__init__(unit or TagCache(config))

    def specify(self, m: Module) -> None:
        unit = self.unit
        config = self.config
        memory = unit.memory
        last_word = config.line_words - 1

        word = Signal(config.word_address_bits)
        granule = Signal(4)
        base = Signal(config.axi_address_bits)
        size = Signal.like(unit.storage_bytes)
        vouched = Signal()
        m.d.comb += [
            word.eq(AnyConst(config.word_address_bits)),
            granule.eq(AnyConst(4)),
            base.eq(AnyConst(config.axi_address_bits)),
            size.eq(AnyConst(len(size))),
            vouched.eq(AnyConst(1)),
            Assume(unit.probe.payload.kind.as_value() < 7, "a kind that there is"),
            Assume(unit.storage_base == base, "tag storage stays where it is"),
            Assume(base[:7] == 0, "the place of tag storage is a multiple of 128 bytes"),
            Assume(size[:7] == 0, "and so is its size"),
            Assume(
                unit.ready | ((unit.storage_bytes == size) & (unit.storage_zeroed == vouched)),
                "its size, and whether it is zeroed, are told right after reset",
            ),
        ]
        index = word[: config.word_index_bits]
        line = word[config.word_index_bits :]
        place = Signal(config.axi_address_bits)  # of the line in tag storage
        m.d.comb += place.eq(base + (line << (config.line_bytes.bit_length() - 1)))

        def tag_of(word: Value) -> Value:
            """The followed granule's tag in a tag word."""
            return Value.cast(word).word_select(granule, config.tag_bits)

        # Tag storage: a write under way.
        storage = Signal(4)  # the followed granule's tag in it
        stored = Signal(4)
        started = Signal()
        addressed = Signal()
        written = Signal()  # with its last word
        write_ours = Signal()
        write_word = Signal(range(config.line_words))
        write_tag = Signal(4)
        write_strobe = Signal()
        next_storage = Signal(4)
        write_answered = memory.bvalid & memory.bready
        write_failed = write_answered & memory.bresp.as_value()[1]
        m.d.sync += [started.eq(1), stored.eq(next_storage)]
        m.d.comb += [
            # Anything, after reset.
            storage.eq(Mux(started, stored, AnySeq(4))),
            next_storage.eq(storage),
        ]
        with m.If(memory.awvalid & memory.awready):
            m.d.sync += [addressed.eq(1), write_ours.eq(memory.awaddr == place)]
        with m.If(memory.wvalid & memory.wready):
            m.d.sync += [written.eq(memory.wlast), write_word.eq(write_word + 1)]
            with m.If(write_word == index):
                m.d.sync += [
                    write_tag.eq(tag_of(memory.wdata)),
                    write_strobe.eq(memory.wstrb.bit_select(granule[1:], 1)),
                ]
        with m.If(write_answered):
            m.d.sync += [addressed.eq(0), written.eq(0), write_word.eq(0)]
            with m.If(write_ours & write_failed):
                m.d.comb += next_storage.eq(AnySeq(4))
            with m.Elif(write_ours & write_strobe):
                m.d.comb += next_storage.eq(write_tag)
        m.d.comb += [
            Assume(~memory.bvalid | (addressed & written), "a write is answered at its end"),
            Assert(~(memory.awvalid & addressed), "two writes at a time"),
            Assert(~(memory.wvalid & written), "more words than the write has"),
            Assert(~memory.wvalid | (memory.wlast == (write_word == last_word)), "WLAST"),
        ]

        # Tag storage: a read under way.
        reading = Signal()
        read_ours = Signal()
        read_word = Signal(range(config.line_words))
        read_answered = memory.rvalid & memory.rready
        read_failed = read_answered & memory.rresp.as_value()[1]
        with m.If(memory.arvalid & memory.arready):
            m.d.sync += [reading.eq(1), read_ours.eq(memory.araddr == place)]
        with m.If(read_answered):
            m.d.sync += [reading.eq(read_word != last_word), read_word.eq(read_word + 1)]
        with m.If(read_ours & (read_word == index) & ~memory.rresp.as_value()[1]):
            m.d.comb += Assume(
                ~memory.rvalid | (tag_of(memory.rdata) == storage), "storage gives what it has"
            )
        m.d.comb += [
            Assume(~memory.rvalid | reading, "words come for a read"),
            Assume(~memory.rvalid | (memory.rlast == (read_word == last_word)), "RLAST"),
            Assert(~(memory.arvalid & reading), "two reads at a time"),
        ]

        for prefix in ("aw", "ar"):
            field = {
                name: getattr(memory, prefix + name)
                for name in ("addr", "len", "size", "burst", "valid")
            }
            whole = (
                (field["addr"][: config.line_bytes.bit_length() - 1] == 0)
                & (field["len"] == last_word)
                & (field["size"] == 3)
                & (field["burst"] == Burst.INCR)
            )
            m.d.comb += Assert(~field["valid"] | whole, f"{prefix}: a burst is not a line's")

        # What the program knows.
        answer = unit.tag_word
        probe = answer.payload.probe
        good = answer.valid & ~answer.payload.abort
        ours = probe.word == word
        of_line = probe.word[config.word_index_bits :] == line
        store = probe.kind == ProbeKind.STORE
        load = (probe.kind == ProbeKind.CHECK) | (probe.kind == ProbeKind.LOAD)
        access = load | store
        cleaning = (probe.kind == ProbeKind.CLEAN_ALL) | ((probe.kind == ProbeKind.CLEAN) & of_line)
        dropping = (probe.kind == ProbeKind.CLEAN_INVALIDATE_ALL) | (
            (probe.kind == ProbeKind.CLEAN_INVALIDATE) & of_line
        )
        storing = good & store & ours & probe.mask.bit_select(granule, 1)
        expected = Signal(4)
        write_back = (memory.awvalid & (memory.awaddr == place)) | (addressed & write_ours)
        fetch = (memory.arvalid & (memory.araddr == place)) | (reading & read_ours)
        with m.If(~unit.ready):
            m.d.sync += expected.eq(next_storage)
        with m.Elif(storing & answer.ready):
            m.d.sync += expected.eq(tag_of(probe.secret_tags))

        lost = Signal()
        with m.If(write_failed):
            m.d.sync += lost.eq(1)
        mapped = line < size[config.line_bytes.bit_length() - 1 :]
        ready_before = Signal()
        m.d.sync += ready_before.eq(unit.ready)
        m.d.comb += [
            Assert(
                ~(unit.ready & ~ready_before & mapped) | vouched | lost | (storage == 0),
                "ready, and storage has a tag of before",
            ),
            Assert(unit.ready | ~unit.probe.ready, "a probe is taken before the cache is ready"),
            Cover(unit.ready & ~ready_before & mapped & ~vouched & ~lost, "storage is zeroed"),
        ]

        dropped = Signal()  # and not fetched again
        unfetched = Signal()  # it was tried, but storage answered with an error
        with m.If(good & dropping):
            m.d.sync += dropped.eq(1)
        with m.Elif(memory.arvalid & memory.arready & (memory.araddr == place)):
            m.d.sync += [dropped.eq(0), unfetched.eq(0)]
        with m.If(read_failed & read_ours):
            m.d.sync += unfetched.eq(1)
        m.d.comb += [
            Assert(
                ~(good & load & ours) | (tag_of(answer.payload.secret_word) == expected),
                "a tag that is not the last one stored",
            ),
            Assert(
                ~(good & (cleaning | dropping)) | (~write_back & (storage == expected)),
                "maintenance is done, and storage has not the last tag",
            ),
            Assert(
                ~(unit.ready & write_answered & write_ours & ~lost)
                | (write_strobe & (write_tag == expected)),
                "a tag is written back that is not the last one stored",
            ),
            Assert(~(fetch & write_back), "a line is fetched before storage has it"),
            Assert(~(good & access & of_line & dropped), "a line is kept that was dropped"),
            Assert(
                ~(good & access & of_line & unfetched),
                "a line is used that could not be fetched",
            ),
            Assert(
                ~(answer.valid & answer.payload.abort & (of_line | ~access))
                | lost
                | (access & unfetched),
                "an abort, and storage told no error",
            ),
            Assert(unit.storage_error == lost, "a failed write is not told"),
            Assert(~unit.idle | ~(addressed | written | reading), "idle, and storage is not"),
        ]

        # Order: one probe is followed, any one.
        taken = unit.probe.valid & unit.probe.ready
        given = answer.valid & answer.ready
        inside = Signal(range(INSIDE + 1))
        follow = Signal()
        followed_once = Signal()
        following = Signal()
        ahead = Signal(range(INSIDE + 1))
        followed = Signal(probe_layout(config))
        after_error = Signal()
        m.d.comb += follow.eq(taken & ~followed_once & AnySeq(1))
        m.d.sync += inside.eq(inside + taken - given)
        with m.If(follow):
            m.d.sync += [
                followed_once.eq(1),
                following.eq(1),
                ahead.eq(inside - given),
                followed.eq(unit.probe.payload),
                after_error.eq(unit.storage_error),
            ]
        with m.Elif(given & following):
            m.d.sync += [following.eq(ahead != 0), ahead.eq(ahead - 1)]
        turn = answer.valid & following & (ahead == 0)
        m.d.comb += [
            Assert(~answer.valid | (inside != 0), "an answer to nothing"),
            Assert(~unit.idle | (inside == 0), "idle, and a probe is not answered"),
            Assert(~turn | (probe == followed), "a probe is changed, lost, or overtaken"),
            Assert(
                ~(turn & load & after_error) | answer.payload.abort,
                "tags are given after a failed write",
            ),
        ]

        if self.lemmas:
            known = Known(
                line=line,
                index=index,
                place=place,
                tag_of=tag_of,
                value=Mux(storing, tag_of(probe.secret_tags), expected),
                storage=storage,
                started=started,
                mapped=mapped,
                size=size,
                vouched=vouched,
                lost=lost,
                addressed=addressed,
                written=written,
                write_word=write_word,
                write_ours=write_ours,
                write_tag=write_tag,
                write_strobe=write_strobe,
                reading=reading,
                read_word=read_word,
                read_ours=read_ours,
                storing=storing,
                drops=dropping,
                dropped=dropped,
                unfetched=unfetched,
                inside=inside,
                following=following,
                ahead=ahead,
                followed=followed.as_value(),
                after_error=after_error,
            )
            lemmas(m, self, config, known)

        stored_once = Signal()
        written_once = Signal()  # since then, but not for maintenance
        fetched_once = Signal()  # since then
        maintained = Signal()
        with m.If(unit.probe.valid & (unit.probe.payload.kind.as_value() > ProbeKind.STORE.value)):
            m.d.sync += maintained.eq(1)
        with m.If(storing & answer.ready & (tag_of(probe.secret_tags) != stored)):
            m.d.sync += stored_once.eq(1)
        with m.If(stored_once & write_answered & write_ours & ~write_failed):
            m.d.sync += written_once.eq(1)
        with m.If(written_once & read_answered & read_ours & ~read_failed):
            m.d.sync += fetched_once.eq(1)
        m.d.comb += [
            Cover(good & load & ours & stored_once & ~written_once, "a stored tag is loaded"),
            Cover(good & (cleaning | dropping) & stored_once, "a stored tag is in storage"),
            Cover(
                good & load & ours & fetched_once & ~maintained,
                "a stored tag is loaded after its line was replaced and fetched again",
            ),
            Cover(answer.valid & load & ours & unfetched, "a fetch failed"),
            Cover(turn & load & after_error, "a load after a failed write"),
        ]

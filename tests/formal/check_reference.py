"""How an access ends whose tag words have come: a reference.

Written from the rules of docs/semantics.md, chapters 5, 6 and 8, and from docs/decisions/0001;
nothing is shared with ``rtl/tag_check.py``. There, one finding is carried from word to word. Here,
the first mismatch and the first abort of an access are noted apart, with which of them came first,
and are weighed against each other when the access is over.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data
from emte.rtl.layouts import Outcome, ProbeKind
from unit_spec import first_of

__all__ = ["CheckReference"]

GRANULES = 16

_EVENT = data.StructLayout({"happened": 1, "far": 64, "wnr": 1})
"""Something that goes wrong with an access, and where and how it is reported."""


class CheckReference:
    """The access to which a tag word belongs, up to that word.

    Parameters
    ----------
    m : :class:`amaranth.hdl.Module`
        Where the reference is built.
    word
        The tag word.
    taken : Value
        It is one, and in the next cycle there is another.

    Attributes
    ----------
    documented : dict[str, Value]
        What the descriptions of the ports promise of the word, each by a name.
    before
        The first ``mismatch`` and the first ``abort`` in the words before this one, and whether an
        abort came first; of the same access, unless this word is its first.
    outcome, far, wnr, tags : Value
        How the access ends if this word is its last.
    """

    def __init__(self, m: Module, word: data.View, taken: Value) -> None:
        probe = word.probe
        tags = [Value.cast(word.secret_word).word_select(n, 4) for n in range(GRANULES)]
        checked = probe.kind == ProbeKind.CHECK
        key = probe.address[56:60]

        # Each granule by itself: its tag, and its address, which is where it begins unless it is
        # the first that is touched.
        failing = [checked & probe.mask[n] & (tags[n] != key) for n in range(GRANULES)]
        addresses = [
            Mux(
                probe.mask[:n].any(),
                Cat(Const(n * 16, 8), probe.address[8:]),
                probe.address,
            )
            for n in range(GRANULES)
        ]
        mismatch_here = Signal(_EVENT)
        abort_here = Signal(_EVENT)
        m.d.comb += [
            mismatch_here.happened.eq(reduce(or_, failing) & ~word.abort),
            mismatch_here.far.eq(first_of(*zip(failing, addresses, strict=True), default=0)),
            mismatch_here.wnr.eq(probe.write),
            abort_here.happened.eq(word.abort),
            abort_here.far.eq(probe.address),
            abort_here.wnr.eq(probe.kind == ProbeKind.STORE),
        ]

        # What was noted of the words before, and what is then to be noted.
        note = data.StructLayout({"mismatch": _EVENT, "abort": _EVENT, "abort_first": 1})
        self.before = before = Signal(note)
        now = Signal(note)
        begins = probe.first
        m.d.comb += [
            now.mismatch.eq(
                Mux(~begins & before.mismatch.happened, before.mismatch, mismatch_here)
            ),
            now.abort.eq(Mux(~begins & before.abort.happened, before.abort, abort_here)),
            now.abort_first.eq(
                Mux(begins, 0, before.abort_first)
                | (abort_here.happened & (begins | ~before.mismatch.happened))
            ),
        ]
        within = Signal()  # the word before is not the last of its access
        asynchronous = Signal()  # what that word said of mismatches
        with m.If(taken):
            m.d.sync += [
                before.eq(now),
                within.eq(~probe.last),
                asynchronous.eq(probe.asynchronous),
            ]

        # A synchronous mismatch ends the access where it is. An asynchronous one does not, so an
        # abort behind it still counts.
        aborted = now.abort.happened & (probe.asynchronous | now.abort_first)
        faulted = now.mismatch.happened & ~probe.asynchronous & ~aborted
        self.outcome = first_of(
            (aborted, Outcome.EXTERNAL_ABORT),
            (faulted, Outcome.TAG_CHECK_FAULT),
            (now.mismatch.happened, Outcome.ASYNC),
            default=Outcome.PASS,
        )
        self.far = first_of((aborted, now.abort.far), (faulted, now.mismatch.far), default=0)
        self.wnr = first_of((aborted, now.abort.wnr), (faulted, now.mismatch.wnr), default=0)
        loaded = Cat(Mux(probe.mask[n], tags[n], 0)[:4] for n in range(GRANULES))
        self.tags = first_of(
            (aborted | now.mismatch.happened | (probe.kind != ProbeKind.LOAD), 0),
            (~probe.single, loaded),
            *((probe.mask[n], tags[n]) for n in range(GRANULES)),
            default=0,
        )
        self.documented = {
            "the words of an access follow one another": probe.first == ~within,
            "a mismatch has the same effect at all words of an access": (
                ~within | (probe.asynchronous == asynchronous)
            ),
            "the address is that of the first byte that is touched": (
                ~checked
                | (
                    probe.address[4:8]
                    == first_of(*((probe.mask[n], n) for n in range(GRANULES)), default=0)
                )
            ),
            "LDG touches one granule": (
                (probe.kind != ProbeKind.LOAD)
                | ~probe.single
                | reduce(or_, (probe.mask == 1 << n for n in range(GRANULES)))
            ),
        }

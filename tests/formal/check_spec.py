"""Formal spec of the tag check: it equals a reference for every tag word, two cycles later."""

from functools import reduce
from operator import or_

from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Mux, Signal, Value
from emte.rtl.layouts import Outcome, ProbeKind, Refusal, detail_layout, finding_layout
from unit_spec import UnitSpec, first_of

__all__ = ["STEPS", "TagCheckSpec"]

STEPS = 2
"""Cycles of induction: what is shown follows from the inputs of the last two."""

GRANULES = range(16)

# Written from docs/units/codes.md: bit 4 + n of a code is the parity of the tag without bit n.
CODES = [
    tag | sum(((tag & ~(1 << n)).bit_count() & 1) << 4 + n for n in range(4)) for tag in range(16)
]


class TagCheckSpec(UnitSpec):
    """A result is what the reference says of the probe and the codes of two cycles before.

    The reference has a table of which codes are no more than one bit away from that of a tag.
    Assumed is what the decoder promises of a detail: the granules of the mask begin at ``start``
    and have no gap, and LDG touches one.
    """

    def specify(self, m: Module) -> None:
        unit = self.unit
        detail = Signal(detail_layout(unit.config))
        valid, refusal, lost = Signal(), Signal(Refusal), Signal()
        codes = Signal(len(unit.secret_codes))
        offered = (unit.valid, unit.detail, unit.refusal, unit.secret_lost, unit.secret_codes)
        for source, two_later in zip(offered, (valid, detail, refusal, lost, codes), strict=True):
            one_later = Signal.like(Value.cast(source))
            m.d.sync += [one_later.eq(source), Value.cast(two_later).eq(one_later)]

        # Contract.
        now = unit.detail
        mask = now.mask
        single = reduce(or_, (mask == 1 << n for n in GRANULES))
        looks = (now.kind == ProbeKind.CHECK) | (now.kind == ProbeKind.LOAD)
        m.d.comb += [
            Assume(
                ~looks | (now.start == first_of(*((mask[n], n) for n in GRANULES), default=0)),
                "the first granule is where the access begins",
            ),
            Assume(~looks | mask.any(), "an access touches a granule"),
            Assume((mask & (mask + (mask & -mask)))[:16] == 0, "granules without a gap"),
            Assume(~now.single | single, "LDG touches one granule"),
            Assume(Value.cast(now.outcome) < 7, "an outcome"),
            Assume(
                (now.kind == ProbeKind.NONE) | (now.outcome == Outcome.PASS),
                "only NONE has an outcome",
            ),
            Assume(Value.cast(unit.refusal) < 3, "a refusal"),
            Assume(
                (now.kind != ProbeKind.NONE) | (unit.refusal == Refusal.NONE),
                "NONE is not refused",
            ),
            Assume((now.kind != ProbeKind.LOAD) | ~now.ticket.second, "a load has one tag word"),
        ]

        # Each granule by itself.
        tags, damaged, failing = [], [], []
        for n in GRANULES:
            entry = Signal(5, name=f"entry_{n}")
            tag, known = entry[:4], entry[4]
            with m.Switch(codes.word_select(n, 8)):
                for value, code in enumerate(CODES):
                    with m.Case(code, *(code ^ 1 << bit for bit in range(8))):
                        m.d.comb += entry.eq(1 << 4 | value)
            tags.append(tag)
            damaged.append(detail.mask[n] & ~known)
            failing.append(detail.mask[n] & ~(known & (tag == detail.key)))
        any_damaged, any_failing = Cat(damaged).any(), Cat(failing).any()

        # The finding.
        check, load = detail.kind == ProbeKind.CHECK, detail.kind == ProbeKind.LOAD
        decided = detail.kind == ProbeKind.NONE
        told = (detail.outcome != Outcome.PASS) & (detail.outcome != Outcome.ASYNC)
        refused = ~decided & (refusal != Refusal.NONE)
        distrusted = ~refused & (check | load) & lost
        looked = (check | load) & ~refused & ~distrusted
        mismatch = looked & check & any_failing
        fault = looked & any_damaged | (mismatch & ~detail.asynchronous)
        outcome = first_of(
            (decided, Value.cast(detail.outcome)),
            (refused & (refusal == Refusal.ABORT), Outcome.EXTERNAL_ABORT),
            (refused | distrusted | (looked & any_damaged), Outcome.UNCORRECTABLE),
            (mismatch & detail.asynchronous, Outcome.ASYNC),
            (mismatch, Outcome.TAG_CHECK_FAULT),
            default=Outcome.PASS,
        )
        at_start = (decided & told) | refused | distrusted | (fault & load)
        lowest = first_of(*((failing[n], n) for n in GRANULES), default=0)
        first = first_of(*((detail.mask[n], n) for n in GRANULES), default=0)
        expected = {
            "outcome": outcome,
            "index": first_of((at_start, detail.start), (fault, lowest), default=0),
            "exact": ~detail.ticket.second & (at_start | (fault & (lowest == first))),
            "wnr": first_of(
                (decided, told & detail.write),
                (refused, detail.kind == ProbeKind.STORE),
                (distrusted | fault, check & detail.write),
                default=0,
            ),
        }
        ones = decided & detail.ones & (detail.outcome == Outcome.PASS)
        loaded = looked & load & ~any_damaged
        masked = Cat(Mux(detail.mask[n], Mux(ones, 0xF, tags[n]), 0)[:4] for n in GRANULES)
        one = reduce(or_, (masked.word_select(n, 4) for n in GRANULES))

        result = unit.result
        told_fault = (outcome != Outcome.PASS) & (outcome != Outcome.ASYNC)
        m.d.comb += Assert(
            unit.result_valid == valid, "a result that is none, or none where there is one"
        )
        with m.If(valid):
            m.d.comb += [
                Assert(result.ticket == detail.ticket, "the ticket"),
                # Behind a fault the tags of the finding mean nothing.
                Assert(
                    told_fault
                    | (result.secret_finding.tag == Mux((ones | loaded) & detail.single, one, 0)),
                    "the tag of LDG",
                ),
                Assert(
                    told_fault
                    | (result.secret_tags == Mux((ones | loaded) & ~detail.single, masked, 0)),
                    "the tags of LDGM",
                ),
            ]
            for name in finding_layout().members:
                if name != "tag":
                    m.d.comb += Assert(
                        Value.cast(result.secret_finding[name]) == expected[name],
                        f"the {name} of a result",
                    )

        found = result.secret_finding
        for known in Outcome:
            # These two are always decided without tags.
            without_tags = known in (Outcome.PERMISSION_FAULT, Outcome.ALIGNMENT_FAULT)
            m.d.comb += Cover(
                unit.result_valid & (decided == without_tags) & (found.outcome == known),
                f"{known.name} is the outcome",
            )
        m.d.comb += [
            Cover(valid & mismatch & (lowest == 15) & ~found.exact, "the last granule fails"),
            Cover(valid & check & found.exact & fault, "the first granule fails"),
            Cover(valid & detail.ticket.second & fault, "a second word fails"),
            Cover(valid & loaded & result.secret_tags[60:].all(), "tags are loaded"),
            Cover(
                valid
                & check
                & (outcome == Outcome.PASS)
                & (codes[:8] != CODES[9])
                & (detail.key == 9)
                & detail.mask[0],
                "a flipped bit is borne",
            ),
        ]

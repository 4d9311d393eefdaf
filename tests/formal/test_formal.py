"""Stream rules of every unit, and what the barrier promises; see docs/verification.md."""

from dataclasses import replace

import pytest
from amaranth.hdl import Assert, Cover, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from barrier_spec import SpeculationBarrierSpec
from emte.rtl import (
    AccessDecoder,
    AccessQueue,
    Barrier,
    MissUnit,
    SpeculationBarrier,
    TagCache,
    TagCheck,
    TagConfig,
    TagGenerator,
    TagPipeline,
)
from formal import Counterexample, FormalError, cover, decide, hold, lower, prove
from unit_spec import UnitSpec
from variants import FAULTS, VerdictWithdrawn

pytestmark = pytest.mark.formal

TINY = TagConfig(
    sets=2,
    ways=2,
    line_bytes=16,
    held=2,
    branches=2,
    id_bits=1,
    pa_bits=32,
    memory_bits=12,
    axi_address_bits=32,
    axi_id_bits=1,
)
"""Everything twice: two of each kind can meet, and the searches stay short."""

UNITS = [
    AccessQueue,
    SpeculationBarrier,
    AccessDecoder,
    TagCache,
    MissUnit,
    TagCheck,
    TagGenerator,
    TagPipeline,
]
DEPTH = 10
"""Cycles after reset in which the promise of the barrier is searched for a violation. A
speculative access is answered in the 5th at the earliest, an id has its second use by the 7th."""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.__name__)
def test_stream_rules_hold_for_all_time(unit):
    # Alone, the barrier meets outcomes of accesses that it never admitted: what it asserts of
    # them is held by its own spec below.
    only = "_rules." if unit is SpeculationBarrier else ""
    with lower(UnitSpec(unit(TINY))) as lowered:
        prove(lowered, only=only)
        cover(lowered, depth=30)


def test_broken_stream_rule_is_found():
    with (
        lower(UnitSpec(VerdictWithdrawn(TINY))) as lowered,
        pytest.raises(Counterexample, match=VerdictWithdrawn.violated),
    ):
        prove(lowered, only=VerdictWithdrawn.violated)


FORMS = pytest.mark.parametrize(
    "form", [Barrier.OBLIVIOUS, Barrier.DELAY], ids=lambda form: form.value
)


@FORMS
def test_barrier_keeps_its_promise_for_all_time(form):
    with lower(SpeculationBarrierSpec(replace(TINY, barrier=form), lemmas=True)) as lowered:
        assert max(cover(lowered, depth=DEPTH).values()) < DEPTH
        prove(lowered, seconds=200)


@FORMS
def test_barrier_keeps_every_field(form):
    with lower(SpeculationBarrierSpec(replace(TINY, barrier=form), whole=True)) as lowered:
        hold(lowered, depth=DEPTH, seconds=240)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_of_the_barrier_is_found(fault):
    with lower(SpeculationBarrierSpec(TINY, unit=fault(TINY))) as lowered:
        with pytest.raises(Counterexample, match=fault.violated) as caught:
            hold(lowered, depth=DEPTH, only=fault.violated)
        assert caught.value.waveform.stat().st_size > 0


def test_selecting_nothing_is_refused():
    with lower(UnitSpec(AccessQueue(TINY))) as lowered:
        with pytest.raises(FormalError, match="no assertion with 'misspelt'"):
            prove(lowered, only="misspelt")
        with pytest.raises(FormalError, match="no assertion with 'misspelt'"):
            hold(lowered, depth=1, only="misspelt")


def test_no_protection_breaks_the_promise():
    promise = "a verdict before the branches are resolved"
    with (
        lower(SpeculationBarrierSpec(replace(TINY, barrier=Barrier.NONE))) as lowered,
        pytest.raises(Counterexample, match=promise),
    ):
        hold(lowered, depth=DEPTH, only=promise)


class Counting(wiring.Component):
    """Counts to 5 and begins again."""

    step: In(1)

    def elaborate(self, platform) -> Module:
        m = Module()
        count = Signal(3)
        with m.If(self.step):
            m.d.sync += count.eq(Mux(count == 5, 0, count + 1))
        m.d.comb += [
            Assert(count < 6, "lemma 1: true"),
            Assert(count != 4, "false"),
            Cover(count == 5, "the last number"),
        ]
        return m


def test_lemmas_hide_no_fault():
    with lower(Counting()) as lowered:
        assert cover(lowered, depth=8) == {"spec.the last number": 5}
        true, false = (
            next(n for n, name in enumerate(lowered.asserts) if text in name)
            for text in ("true", "false")
        )
        source = lowered.file("assert.aig")
        assert decide(lowered, source, true, [], seconds=10)
        with pytest.raises(Counterexample, match=r"^spec\.false \(cycle 4\), see"):
            decide(lowered, source, false, [true], seconds=10)
        with pytest.raises(Counterexample, match=r"^spec\.false \(cycle 4\), see"):
            prove(lowered)


def test_register_that_is_not_there_is_refused():
    class Spec(UnitSpec):
        def specify(self, m):
            m.d.comb += Assert(self.see(m, "head_vald", 1), "nothing")

    message = r"there is no register unit\.head_vald of 1 bits"
    with pytest.raises(FormalError, match=message), lower(Spec(AccessQueue(TINY))):
        pass

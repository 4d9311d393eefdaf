"""The harness of the proofs; the properties themselves are tested in ``test_properties.py``."""

import pytest
from amaranth.hdl import Assert, Cat, Cover, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from emte.rtl import Door
from formal import Counterexample, FormalError, cover, decide, hold, induct, lower, prove
from unit_spec import TINY, UnitSpec

pytestmark = pytest.mark.formal


def test_selecting_nothing_is_refused():
    with lower(UnitSpec(Door(TINY))) as lowered:
        with pytest.raises(FormalError, match="no assertion with 'misspelt'"):
            prove(lowered, only="misspelt")
        with pytest.raises(FormalError, match="no assertion with 'misspelt'"):
            hold(lowered, depth=1, only="misspelt")
        with pytest.raises(FormalError, match="no assertion with 'misspelt'"):
            induct(lowered, steps=1, only="misspelt")


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


class Bits(wiring.Component):
    """Nothing but the bits of its input, of which each may be set and none should be."""

    i: In(12)

    def elaborate(self, platform) -> Module:
        m = Module()
        for number, bit in enumerate(self.i):
            m.d.comb += [Cover(bit, f"bit {number:02}"), Assert(~bit, f"no bit {number:02}")]
        return m


def test_each_of_many_properties_is_told():
    with lower(Bits()) as lowered:
        assert cover(lowered, depth=2) == {f"spec.bit {number:02}": 0 for number in range(12)}
        for name in lowered.asserts:
            with pytest.raises(Counterexample, match=rf"^{name} \(cycle 0\), see"):
                hold(lowered, depth=1, only=name)
        with pytest.raises(Counterexample, match=r"^spec\.no bit \d+ \(cycle 0\), see"):
            hold(lowered, depth=1)


class Delays(wiring.Component):
    """The same delay of two cycles twice."""

    i: In(1)

    def __init__(self, init: int) -> None:
        self.init = init
        super().__init__()

    def elaborate(self, platform) -> Module:
        m = Module()
        first = Signal(2)
        second = Signal(2, init=self.init)
        m.d.sync += [first.eq(Cat(self.i, first)), second.eq(Cat(self.i, second))]
        m.d.comb += Assert(first[1] == second[1], "the same delay")
        return m


def test_induction_over_cycles():
    with lower(Delays(0b00)) as lowered:
        induct(lowered, steps=2)
        with pytest.raises(FormalError, match=r"not follow from 1 cycles before: spec\.the same"):
            induct(lowered, steps=1)
    with (
        lower(Delays(0b01)) as lowered,
        pytest.raises(Counterexample, match=r"^spec\.the same delay \(cycle 1\), see"),
    ):
        induct(lowered, steps=2)


def test_register_that_is_not_there_is_refused():
    class Spec(UnitSpec):
        def specify(self, m):
            m.d.comb += Assert(self.see(m, "head_vald", 1), "nothing")

    message = r"there is no register unit\.head_vald of 1 bits"
    with pytest.raises(FormalError, match=message), lower(Spec(Door(TINY))):
        pass

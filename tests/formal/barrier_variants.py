"""Speculation barriers with a fault, which the proofs must refute."""

from functools import partial
from unittest import mock

from amaranth.hdl import Module, Signal
from amaranth.lib.wiring import connect, flipped
from emte.rtl import barrier
from emte.rtl.barrier import SpeculationBarrier
from emte.rtl.branch_table import BranchTable
from emte.rtl.config import TagConfig
from variants import Wrapper

__all__ = [
    "AnySecondPasses",
    "BranchForgotten",
    "EntryFreedEarly",
    "FlagLost",
    "OlderOvertaken",
    "PointerDamaged",
    "SquashMissed",
    "VerdictLost",
]


class BarrierVariant(Wrapper):
    Unit = SpeculationBarrier


class SquashMissed(BarrierVariant):
    """A mispredicted branch is taken for a well predicted one."""

    replaced = ("resolve",)

    def change(self, m: Module) -> None:
        m.d.comb += [
            self.unit.resolve.valid.eq(self.resolve.valid),
            self.unit.resolve.branch.eq(self.resolve.branch),
        ]


class BranchForgotten(BarrierVariant):
    """An access does not wait for branch 0."""

    replaced = ("access",)

    def change(self, m: Module) -> None:
        connect(m, flipped(self.access), self.unit.access)
        branches = self.access.payload.access.branches
        m.d.comb += self.unit.access.payload.access.branches.eq(branches & ~1)


class VerdictLost(BarrierVariant):
    """The first verdict after reset does not come out."""

    replaced = ("verdict",)

    def change(self, m: Module) -> None:
        inside, outside = self.unit.verdict, self.verdict
        lost = Signal()
        with m.If(lost):
            connect(m, inside, flipped(outside))
        with m.Elif(inside.valid):
            m.d.comb += inside.ready.eq(1)
            m.d.sync += lost.eq(1)


class PointerDamaged(BarrierVariant):
    """Bit 39 of a pointer is lost on the way into the pipeline."""

    def change(self, m: Module) -> None:
        m.d.comb += self.admitted.access.va[39].eq(0)


class FlagLost(BarrierVariant):
    """No verdict tells that the access was a write."""

    def change(self, m: Module) -> None:
        m.d.comb += self.verdict.payload.wnr.eq(0)


class AnySecondPasses(BarrierVariant):
    """What is found out about a second tag word is forgotten."""

    def change(self, m: Module) -> None:
        with m.If(self.result.ticket.second):
            m.d.comb += self.unit.result.secret_finding.outcome.eq(0)


class TableVariant(SpeculationBarrier):
    """A barrier around a table with a fault; :meth:`fault` overrides ports of either side."""

    def fault(self, outer: BranchTable, inner: BranchTable) -> list:
        raise NotImplementedError

    def elaborate(self, platform) -> Module:
        def make(config: TagConfig, *, parks: bool) -> Wrapper:
            class Table(Wrapper):
                Unit = partial(BranchTable, parks=parks)

                def change(table, m: Module) -> None:
                    m.d.comb += self.fault(table, table.unit)

            return Table(config)

        with mock.patch.object(barrier, "BranchTable", make):
            return super().elaborate(platform)


class OlderOvertaken(TableVariant):
    """The door does not wait for what became certain in the table."""

    def fault(self, outer: BranchTable, inner: BranchTable) -> list:
        return [outer.certain.eq(0)]


class EntryFreedEarly(TableVariant):
    """An entry of two tag words leaves with the first finding."""

    def fault(self, outer: BranchTable, inner: BranchTable) -> list:
        return [inner.two.eq(0)]

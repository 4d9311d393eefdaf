"""Formal spec of the memories: what is instantiated of an ECP5 equals what every tool infers."""

from dataclasses import replace
from typing import Any

import ecp5_models
from amaranth.hdl import Assert, Cover, Elaboratable, Module, Signal, Value
from amaranth.lib import wiring
from emte.rtl.config import Arrays
from emte.rtl.tag_array import TagArray
from unit_spec import UnitSpec

__all__ = ["BlockTagArray", "HalvesSwapped", "NeighbourWritten", "TagArraySpec"]


class BlockTagArray(TagArray):
    """The form of the ECP5, of models."""

    instance = staticmethod(ecp5_models.instance)

    def elaborate(self, platform) -> Module:
        with ecp5_models.patched(self.instance):
            return super().elaborate(platform)


class HalvesSwapped(BlockTagArray):
    """Fault: the upper half of a row is taken for the lower one."""

    @staticmethod
    def instance(kind: str, **arguments: Any) -> Elaboratable:
        other = {"o_DOA": "o_DOB", "o_DOB": "o_DOA"}
        swapped = {other.get(name[:5], name[:5]) + name[5:]: arguments[name] for name in arguments}
        return ecp5_models.instance(kind, **swapped)


class NeighbourWritten(BlockTagArray):
    """Fault: a byte is written with the one below it."""

    @staticmethod
    def instance(kind: str, **arguments: Any) -> Elaboratable:
        return ecp5_models.instance(kind, **arguments | {"i_ADA1": arguments["i_ADA0"]})


class TagArraySpec(UnitSpec):
    """Both forms show the same, unless they were read where they were written in that cycle.

    Then block RAM shows anything, and its model something that never was there.
    """

    def specify(self, m: Module) -> None:
        unit = self.unit
        m.submodules.portable = portable = TagArray(replace(unit.config, arrays=Arrays.PORTABLE))
        for path, member, value in unit.signature.flatten(unit):
            if member.flow == wiring.In:
                m.d.comb += getattr(portable, path[0]).eq(value)
        for name, collision in (
            (
                "entries",
                unit.directory_write.any() & (unit.directory_set == unit.directory_write_set),
            ),
            ("secret_codes", unit.write_lanes.any() & (unit.index == unit.write_index)),
        ):
            # At first, both show what the registers of the memories held before reset.
            undefined = [Signal(name=f"{name}_undefined_{n}", init=1) for n in (1, 2)]
            m.d.sync += [undefined[0].eq(collision), undefined[1].eq(undefined[0])]
            shown, expected = (Value.cast(getattr(form, name)) for form in (unit, portable))
            m.d.comb += [
                Assert(undefined[1] | (shown == expected), f"the {name}"),
                Cover(~undefined[1] & (shown[0] & shown[-1]), f"{name} with bits set"),
                Cover(undefined[1] & (shown != expected), f"{name} that are undefined"),
            ]

"""What the unit tests of the hardware share."""

from collections.abc import Iterator
from typing import Any

from amaranth.hdl import Module
from amaranth.lib import data, enum, stream, wiring
from emte.rtl.axi import AXI4Signature
from emte.sim.monitors import StreamMonitor, axi4_channels


def watched(dut: wiring.Component) -> Module:
    """A design with a monitor on each stream of ``dut`` and each channel of its AXI4 ports."""
    m = Module()
    m.submodules.dut = dut
    for name, interface in _interfaces(dut, ()):
        if isinstance(interface.signature, AXI4Signature):
            for channel, watched_channel in axi4_channels(m, interface).items():
                StreamMonitor.watch(m, watched_channel, f"{name}_{channel}_monitor")
        else:
            StreamMonitor.watch(m, interface, f"{name}_monitor")
    return m


def _interfaces(interface: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The streams and AXI4 ports within an interface."""
    for name, member in interface.signature.members.items():
        if not member.is_signature:
            continue
        inner = getattr(interface, name)
        if isinstance(member.signature, stream.Signature | AXI4Signature):
            yield "_".join((*path, name)), inner
        else:
            yield from _interfaces(inner, (*path, name))


def plain(value: Any) -> Any:
    """A payload as nested dictionaries of integers and enumerations, to be compared."""
    if isinstance(value, data.Const):
        return _plain(value.shape(), value.as_bits())
    return value


def _plain(shape: Any, bits: int) -> Any:
    if isinstance(shape, data.StructLayout):
        return {
            name: _plain(field.shape, bits >> field.offset & (1 << field.width) - 1)
            for name, field in shape
        }
    if isinstance(shape, data.ArrayLayout):
        return [
            _plain(field.shape, bits >> field.offset & (1 << field.width) - 1) for _, field in shape
        ]
    if isinstance(shape, enum.EnumType):
        return shape(bits)
    return bits


def integer(shape: Any, fields: Any) -> int:
    """The bits of a payload, which :func:`emte.sim.streams.put` takes faster than its fields."""
    return shape.const(fields).as_bits()

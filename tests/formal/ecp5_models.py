# amaranth: UnusedElaboratable=no
"""Behavioural models of the ECP5's primitives, for simulation and proofs of what instantiates them.

With :func:`patched` in force, ``rtl/tag_array.py`` builds these instead of instances, and so does
everything that it is a part of::

    with patched():
        simulate(TagCache(TagConfig(arrays=Arrays.ECP5)), bench)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from amaranth.hdl import Cat, ClockSignal, Const, Elaboratable, Module, Mux, Signal, Value
from amaranth.lib import memory

__all__ = ["DP16KD", "instance", "patched"]

SKIPPED = {36: 5, 18: 4, 9: 3}
"""Address pins below the number of a row, by the width of rows."""

PARAMETERS = {
    "REGMODE_A": "OUTREG",
    "REGMODE_B": "OUTREG",
    "WRITEMODE_A": "NORMAL",
    "WRITEMODE_B": "NORMAL",
    "RESETMODE": "SYNC",
    "CSDECODE_A": "0b000",
    "CSDECODE_B": "0b000",
    "GSR": "DISABLED",
}
"""What the model can do, beside the two widths."""

TIED = {"WEB": 0, "CEA": 1, "CEB": 1, "OCEA": 1, "OCEB": 1, "RSTA": 0, "RSTB": 0}
TIED |= {f"CS{port}{number}": 0 for port in "AB" for number in range(3)}
"""Pins that the model wants to be constant."""


class DP16KD(Elaboratable):
    """A block RAM with rows of 9, 18 or 36 bits, written at port A and read at port B.

    The address is registered, and so is the output: data is there two clock edges after its
    address. A write enables bytes of 9 bits each: by ``WEA`` if a row is one byte, else by the
    lowest pins of ``ADA``. Of a row of 36 bits, the lower half is at ``DIA`` and ``DOA`` and the
    upper one at ``DIB`` and ``DOB``; such a block has no ``WEA`` that counts.

    A read of the row that is written in the same cycle is undefined: the model gives what was there
    with every bit inverted. At configuration, all rows are 0.

    Raises
    ------
    ValueError
        It is used in a way that the model does not know.
    """

    def __init__(self, **arguments: Any) -> None:
        self.parameters = _take(arguments, "p_")
        self.inputs = _take(arguments, "i_")
        self.outputs = _take(arguments, "o_")
        if arguments:
            raise ValueError(f"unknown arguments: {', '.join(arguments)}")
        width = self.parameters.pop("DATA_WIDTH_A")
        if width not in SKIPPED or self.parameters.pop("DATA_WIDTH_B") != width:
            raise ValueError("rows must have the same width of 9, 18 or 36 at both ports")
        if self.parameters != PARAMETERS:
            raise ValueError(f"parameters must be {PARAMETERS}, not {self.parameters}")
        self.width: int = width
        for pin, value in TIED.items():
            self._expect(pin, value)
        for pin in ("CLKA", "CLKB"):
            clock = self.inputs.pop(pin)
            if not isinstance(clock, ClockSignal) or clock.domain != "sync":
                raise ValueError(f"{pin} must be the clock of the domain sync")
        skipped = SKIPPED[width]
        for number in range(skipped):
            self._expect(f"ADB{number}", 0)
        enables = width // 9 if width > 9 else 0
        for number in range(enables, skipped):
            self._expect(f"ADA{number}", 0)
        if width > 9:
            self._expect("WEA", 1)
            self.write = Cat(self.inputs.pop(f"ADA{number}") for number in range(enables))
        else:
            self.write = Value.cast(self.inputs.pop("WEA"))
        rows = [
            [Value.cast(self.inputs.pop(f"AD{port}{number}")) for number in range(skipped, 14)]
            for port in "AB"
        ]
        # Rows that cannot be named are left out: that makes simulations and proofs shorter.
        while rows[0] and all(isinstance(pins[-1], Const) and pins[-1].value == 0 for pins in rows):
            for pins in rows:
                pins.pop()
        self.write_row, self.row = map(Cat, rows)
        data = [self.inputs.pop(f"DI{port}{number}") for port in "AB" for number in range(18)]
        self.data = Cat(data)[:width]
        for pin in self.outputs:
            if width < 36 and pin.startswith("DOA"):
                raise ValueError(f"{pin} shows what is written")
        if self.inputs:
            raise ValueError(f"unknown pins: {', '.join(self.inputs)}")

    def _expect(self, pin: str, value: int) -> None:
        constant = Value.cast(self.inputs.pop(pin))
        if not isinstance(constant, Const) or constant.value != value:
            raise ValueError(f"{pin} must be constantly {value}")

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.secret_rows = rows = memory.Memory(
            shape=self.width, depth=1 << len(self.row), init=[]
        )
        read = rows.read_port()
        write = rows.write_port(granularity=9)
        undefined = Signal()
        secret_output = Signal(self.width)
        m.d.comb += [
            read.en.eq(1),
            read.addr.eq(self.row),
            write.en.eq(self.write),
            write.addr.eq(self.write_row),
            write.data.eq(self.data),
        ]
        m.d.sync += [
            undefined.eq((read.addr == write.addr) & write.en.any()),
            secret_output.eq(Mux(undefined, ~read.data, read.data)),
        ]
        if self.width == 36:
            halves = {"A": secret_output[:18], "B": secret_output[18:]}
        else:
            halves = {"A": Const(0, 18), "B": Cat(secret_output, Const(0, 18 - self.width))}
        pins = {
            f"DO{port}{number}": half[number]
            for port, half in halves.items()
            for number in range(18)
        }
        m.d.comb += [output.eq(pins[pin]) for pin, output in self.outputs.items()]
        return m


def instance(kind: str, /, **arguments: Any) -> Elaboratable:
    """The model that takes the place of an instance."""
    if kind != "DP16KD":
        raise ValueError(f"there is no model of {kind}")
    return DP16KD(**arguments)


@contextmanager
def patched(replacement: Callable[..., Elaboratable] = instance) -> Iterator[None]:
    """Models instead of instances, in whatever is elaborated within the context."""
    with mock.patch("emte.rtl.tag_array.Instance", replacement):
        yield


def _take(arguments: dict[str, Any], prefix: str) -> dict[str, Any]:
    names = [name for name in arguments if name.startswith(prefix)]
    return {name.removeprefix(prefix): arguments.pop(name) for name in names}

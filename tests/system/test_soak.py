"""The long random runs: a short one, and what they do with hardware that is wrong."""

import random
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import pytest
import soak
from amaranth.hdl import Cat, Module
from emte.rtl import TagCheck
from emte.rtl.codes import granule_syndrome
from emte.sim import cli, ops
from emte.sim.ops import Operation, Stream, StreamError
from emte.sim.traffic import random_stream
from hypothesis import given, settings
from hypothesis import strategies as st
from variants import Wrapper

CONFIGURATIONS = [("small", "oblivious"), ("ecp5", "delay")]


@pytest.mark.xdist_group("verilator")
def test_short_run(seed):
    command = [sys.executable, "-W", "error", soak.__file__, "--presets", "small"]
    command += ["--operations", "20000", "--seed", str(seed), "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"seed {seed}, 20,000 operations")
    assert done.stdout.endswith("\nNo difference.\n")


class Fragile(Wrapper):
    """Takes one flipped bit for a loss."""

    Unit = TagCheck

    def change(self, m: Module) -> None:
        codes = [self.unit.secret_codes.word_select(n, 8) for n in range(16)]
        flipped = [granule_syndrome(code).any() for code in codes]
        m.d.comb += self.unit.secret_lost.eq(Cat(flipped).any())


@pytest.mark.xdist_group("verilator")
@pytest.mark.parametrize("correcting", [True, False])
def test_upsets(correcting, seed, monkeypatch, capsys, tmp_path):
    """Flipped bits change no outcome."""
    if not correcting:
        monkeypatch.setattr("emte.rtl.pipeline.TagCheck", Fragile)
    monkeypatch.setattr(soak, "ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
    arguments = ["--presets", "small", "--barriers", "oblivious", "--upsets", "--jobs", "1"]
    arguments += ["--operations", "20000", "--seed", str(seed), "--out", str(tmp_path)]
    assert soak.main([*arguments, "--attempts", "3"]) == (0 if correcting else 1)
    printed = capsys.readouterr().out
    assert ("No difference." if correcting else "to see it: soak.attempt(") in printed


def test_upsets_need_the_fast_engine(capsys):
    with pytest.raises(SystemExit) as caught:
        soak.main(["--upsets", "--engine", "pysim"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("--upsets needs the engine verilator\n")


def test_cases_follow_from_the_seed():
    first = list(islice(soak.cases(1, CONFIGURATIONS), 100))
    assert first == list(islice(soak.cases(1, CONFIGURATIONS), 100))
    assert len({case.seed for case in [*first, *islice(soak.cases(2, CONFIGURATIONS), 100)]}) == 200
    assert [(case.preset, case.barrier) for case in first] == CONFIGURATIONS * 50
    assert {case.pauses == 0 for case in first} == {False, True}
    assert len({case.latency for case in first}) > 1
    assert {case.traffic for case in first} == {"random", "directed"}
    assert list(first[0].stream()) == list(first[0].stream())


# ---- What a failure needs ------------------------------------------------------------------------


@settings(max_examples=50)
@given(rng=st.randoms(use_true_random=False))
def test_any_selection_is_closed(rng):
    whole = list(random_stream(rng.randrange(1 << 32), 100))
    selection = [operation for operation in whole if rng.randrange(3)]
    part = Stream("selection", soak.closed(selection))
    assert [operation.line for operation in part] == list(range(1, len(part) + 1))
    try:
        ops.check(part)
    except StreamError as error:
        # What a branch squashed may now stay unresolved for longer.
        if not re.search("the unresolved access of line|would be unresolved", str(error)):
            raise


def test_closed_keeps_a_whole_stream(seed):
    whole = list(random_stream(seed, 300))
    assert soak.closed(whole) == whole


def test_shrink_leaves_what_is_needed(seed):
    rng = random.Random(seed)
    needed = [Operation("load", address=16 * n, size=1, branches=(5,)) for n in range(2)]
    operations = [
        Operation("branch", id=5),
        *(Operation("gmi", address=n, mask=0) for n in range(1000)),
        Operation("resolve", id=5),
    ]
    for operation in needed:
        operations.insert(rng.randrange(1, 1000), operation)

    def fails(stream: Stream) -> bool:
        addresses = {operation.address for operation in stream if operation.branches}
        return addresses == {0, 16}

    shortest = soak.shrink(Stream("long", operations), fails, 600)
    assert [operation.op for operation in shortest] == ["branch", "load", "load", "resolve"]
    ops.check(shortest)


def test_shrink_gives_up_in_time():
    calls = []
    operations = [Operation("gmi", address=n, mask=0) for n in range(1000)]
    stream = soak.shrink(Stream("long", operations), calls.append, 7)
    assert len(calls) == 7
    assert len(stream) == 1000


# ---- Hardware that is wrong ----------------------------------------------------------------------


class Lenient(Wrapper):
    """Compares nothing."""

    Unit = TagCheck

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.detail.mask.eq(0)


class Babbler(Wrapper):
    """Has findings of accesses that nobody sent."""

    Unit = TagCheck

    def change(self, m: Module) -> None:
        m.d.comb += [self.result_valid.eq(1), self.result.ticket.direct.eq(1)]


def shortened(seed: int, _: int, *, count: int, held: int) -> Stream:
    return random_stream(seed, count, held=held)


@pytest.mark.parametrize(
    ("mutant", "failure"),
    [
        (
            Lenient,
            r"random stream \d+:\d+: the hardware says {'outcome': 'pass'}, the golden model",
        ),
        (Babbler, r"the hardware broke a rule: random stream \d+:\d+: a finding does not come"),
    ],
)
def test_failure_is_found_and_shrunk(mutant, failure, monkeypatch, tmp_path, capsys):
    # Threads, since another process would not have the mutant.
    monkeypatch.setattr("emte.rtl.pipeline.TagCheck", mutant)
    monkeypatch.setattr(soak, "ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
    # The Amaranth simulator is slow, and a case may have 30,000 operations.
    monkeypatch.setattr(soak, "STREAMS", {"random": partial(shortened, count=100)})
    arguments = ["--engine", "pysim", "--presets", "small", "--jobs", "1", "--out", str(tmp_path)]
    assert soak.main([*arguments, "--operations", "1000000", "--attempts", "6"]) == 1
    printed = capsys.readouterr().out
    assert re.search(rf"^FAILED: {failure}", printed, re.MULTILINE)

    (path,) = tmp_path.iterdir()
    assert 1 <= len(ops.read(path)) < 100
    command = shlex.split(printed.partition("to see it: ")[2])
    assert command[:3] == ["emte", "run", str(path)]
    assert cli.main(command[1:]) == 1
    assert capsys.readouterr().err


def test_what_never_occurred_is_no_success(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(soak, "ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(soak, "STREAMS", {"idle": lambda *_, **__: Stream("idle", IDLE)})
    assert soak.main(["--engine", "pysim", "--operations", "1", "--jobs", "1"]) == 1
    assert "FAILED: never met: alignment_fault, async, " in capsys.readouterr().out


IDLE = [Operation("load", address=0, size=1, line=1)]


def test_a_broken_case_is_named(monkeypatch):
    case = next(soak.cases(1, CONFIGURATIONS))
    stream = Stream("open", [Operation("branch", id=0, line=1)])
    monkeypatch.setitem(soak.STREAMS, case.traffic, lambda *_, **__: stream)
    with pytest.raises(StreamError) as refusal:
        soak.perform(case)
    assert refusal.value.__notes__ == [f"in {case}"]

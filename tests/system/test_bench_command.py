"""The commands ``emte bench`` and ``emte generate``."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest
from emte.rtl import DEFAULT
from emte.sim import bench, cli, ops, workloads
from emte.sim.bench import Plan, Point, Source
from emte.sim.ops import Operation, StreamError
from emte.sim.transactions import EngineError

verilator = pytest.mark.xdist_group("verilator")

TRACE = f"{ops.__file__.removesuffix('ops.py')}traces/bug_uaf.npz"


def refused(capsys, *arguments: str) -> str:
    assert cli.main(["bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


@verilator
def test_small_run(tmp_path, capsys):
    figures, plots, page = tmp_path / "costs.json", tmp_path / "plots", tmp_path / "page.md"
    arguments = [
        *("bench", TRACE, "--pattern", "hits", "--pattern", "tag_storm"),
        *("--sweep", "latency=20,80", "--operations", "2000", "--length", "3000"),
        *("--jobs", "1", "--json", str(figures), "--plots", str(plots), "--page", str(page)),
    ]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    for title in ("DRAM traffic with tags", "Programs on the hardware", "Patterns on the hardware"):
        assert title in printed

    record = json.loads(figures.read_text())
    names = ["bug_uaf.npz", "hits", "tag_storm"]
    assert list(dict.fromkeys(row["source"] for row in record["traffic"])) == names
    assert [(row["source"], row["latency"]) for row in record["cycles"]] == [
        (name, latency) for name in names for latency in (20, 80)
    ]
    by_name = {(row["source"], row["latency"]): row for row in record["cycles"]}
    # The figures are those that the functions give.
    for name, source in zip(names, bench.sources([TRACE, *names[1:]]), strict=True):
        expected = bench.cycles_of(source, Point(latency=80), 2000)
        found = by_name[name, 80]
        assert found.pop("probes_per_cycle") == expected.probes_per_cycle
        assert bench.Cycles(**found) == expected
    # What is certain of them, whatever the hardware's latency.
    hits, storm = by_name["hits", 20], by_name["tag_storm", 20]
    assert hits["lookups"] == hits["accesses"] == 2000
    scrubs = hits["cycles"] // DEFAULT.scrub_period + 1
    assert 0 <= hits["cycles"] - 2000 <= 24 * scrubs
    assert hits["under_misses"] is None
    assert 0 < storm["under_misses"] < 1
    assert hits["free_cycles"] == 0
    waiting = hits["p50"] * (hits["accesses"] - 1)
    scrubs = waiting // DEFAULT.scrub_period + 1
    assert waiting <= hits["waiting_cycles"] <= waiting + 20 * scrubs
    assert storm["free_cycles"] > storm["plain_cycles"]
    assert storm["longest"] > hits["p50"] + 20

    text = page.read_text()
    assert "| bug_uaf.npz |" in text
    for name in re.findall(r"^!\[.*\]\((.*)\)$", text, re.MULTILINE):
        assert (tmp_path / name).exists()
    assert "plots/traffic_by_size.svg" in text


@verilator
def test_dask_cluster_gives_the_same():
    """In the same process, as a worker of its own takes seconds to begin."""
    distributed = pytest.importorskip("distributed")
    plan = Plan([Source("retag", "pattern")], [Point()], few=300, length=1000)
    with bench.executor(1, None) as pool:
        expected = bench.measure(plan, pool)
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
    ) as cluster:
        done = []
        with bench.executor(1, cluster.scheduler_address) as pool:
            results = bench.measure(plan, pool, lambda *steps: done.append(steps))
    assert (results.traffic, results.cycles) == (expected.traffic, expected.cycles)
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_no_cluster(monkeypatch, capsys):
    monkeypatch.setattr(bench, "_PATIENCE", 1)
    line = refused(capsys, "hits", "--scheduler", "tcp://127.0.0.1:1")
    assert line.startswith("emte: no Dask cluster at tcp://127.0.0.1:1: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.npz"], "emte: nowhere.npz: No such file or directory"),
        (["hitz"], "emte: hitz: a stream's name ends in .jsonl, .jsonl.gz or .npz"),
        (["--pattern", "hitz"], "emte bench: argument --pattern: invalid choice: 'hitz'"),
        (
            ["--sweep", "sets=4"],
            "emte: --sweep: parameters are size, ways, line, mshrs, latency, not 'sets'",
        ),
        (["--sweep", "size"], "emte bench: argument --sweep: must be an integer from 1 to "),
        (["--sweep", "size=8,x"], "emte bench: argument --sweep: must be an integer from 1 to "),
        (["--sweep", "size=3"], "emte: --sweep: the hardware can be built in none of these forms"),
        (["--jobs", "0"], "emte bench: argument --jobs: must be an integer from 1 to 1024"),
        (["--json", "no/where.json"], "emte: no/where.json: No such file or directory"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert refused(capsys, *arguments).startswith(message)


def test_bad_stream_is_found_before_anything_is_measured(tmp_path, capsys):
    path, out = tmp_path / "own.jsonl", tmp_path / "costs.json"
    path.write_text('{"op":"load","address":0,"size":8}\n{"op":"clean"}\n')
    line = refused(capsys, "sort", str(path), "--json", str(out))
    assert line == f"emte: {path}:2: the cache models know no stream with maintenance"
    assert not out.exists()


def test_process_that_dies():
    with pytest.raises(EngineError, match=r"^a process died while it measured"):
        with bench.executor(1, None) as pool:
            pool.submit(os._exit, 1).result()


@verilator
def test_stretch_without_a_verdict(tmp_path):
    path = tmp_path / "own.jsonl"
    squashed = [
        Operation("branch", id=0),
        *[Operation("load", address=8, size=8, branches=(0,))] * 8,
        Operation("resolve", id=0, mispredicted=1),
    ]
    ops.write(path, squashed * 20)
    with pytest.raises(StreamError, match=r"own\.jsonl: every access of the stretch is squashed$"):
        bench.cycles_of(Source(str(path), "file"), Point(), 100)


@pytest.mark.parametrize("module", ["numba", "matplotlib", "distributed"])
def test_missing_extra(module):
    options = {"numba": [], "matplotlib": ["--plots", "."], "distributed": ["--scheduler", "any"]}
    program = f"import sys; sys.modules['{module}'] = None; from emte.sim import cli"
    command = f"{program}; sys.exit(cli.main(['bench', 'hits', *{options[module]}]))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.stderr == f"emte: emte bench needs {module}: pip install 'emte[bench]'\n"
    assert (done.returncode, done.stdout) == (2, "")


def test_generate(tmp_path):
    path = tmp_path / "stream.jsonl"
    arguments = ["generate", "retag", str(path), "--operations", "500", "--seed", "7"]
    assert cli.main(arguments) == 0
    expected = workloads.generate("retag", operations=500, seed=7)
    found = ops.read(path)
    assert list(found) == list(expected)
    assert len(found) == 500


def test_generate_refuses(tmp_path, capsys):
    path = tmp_path / "stream.npz"
    assert cli.main(["generate", "whole_words", str(path), "--operations", "50"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "emte: whole_words:3: op: the columnar form has no stgm"
    assert not path.exists()

"""What ``emte bench`` measures, and the page that comes of it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emte.rtl import DEFAULT
from emte.sim import bench, bench_report, ops, workloads
from emte.sim.bench import FORMS, GRID, SWEEP, Cycles, Plan, Point, Results, Source, Traffic
from emte.sim.cache_models import TagPolicy
from emte.sim.ops import Operation, StreamError
from emte.sim.transactions import TIMING

ROOT = Path(__file__).parents[2]


# ---- Sources and configurations ------------------------------------------------------------------


def test_sources_by_name():
    assert bench.sources(["sort", "hits", "key_value", "own.npz"], seed=3) == [
        Source("sort", "recorded"),
        Source("hits", "pattern", 3),
        Source("key_value", "workload", 3),
        Source("own.npz", "file"),
    ]
    everything = bench.sources(["all", "own.npz", "sort"])
    assert len(everything) == 4 + len(workloads.WORKLOADS) + len(workloads.PATTERNS) + 1
    assert everything[-1].name == "own.npz"


def test_usual_point_is_the_default_preset():
    assert Point().config == DEFAULT
    assert Point().policy == TagPolicy(
        cache_bytes=DEFAULT.cache_bytes, ways=DEFAULT.ways, line_bytes=DEFAULT.line_bytes
    )


def test_point_becomes_geometry():
    config = Point(size=16, ways=2, line=32).config
    assert (config.cache_bytes, config.ways, config.line_bytes) == (16 << 10, 2, 32)
    assert (config.sets, config.mshrs) == (256, 2)


def test_one_parameter_at_a_time():
    found, left_out = bench.points({})
    assert found[0] == Point()
    for name in ("size", "ways", "line", "latency"):
        wanted = [Point(**{name: value}) for value in SWEEP[name]]
        assert [point for point in wanted if point not in found] == []
    assert len(found) + left_out == 1 + sum(
        getattr(Point(), name) != value for name, values in SWEEP.items() for value in values
    )


def test_all_combinations_of_what_is_given():
    found, left_out = bench.points({"size": (8, 16), "latency": (20, 40)})
    assert (len(found), left_out) == (4, 0)
    assert {(p.size, p.latency) for p in found} == {(8, 20), (8, 40), (16, 20), (16, 40)}


def test_what_cannot_be_built_is_counted():
    assert bench.points({"size": (32, 33), "line": (64, 48)}) == ([Point(size=32, line=64)], 3)
    full, left_out = bench.points({}, full=True)
    assert len(full) + left_out == np.prod([len(values) for values in SWEEP.values()])


def test_forms_differ_and_describe_themselves():
    assert len({form.name for form in FORMS}) == len(FORMS)
    assert len({(form.policy, form.every_page_tagged) for form in FORMS}) == len(FORMS)
    assert FORMS[0].policy == TagPolicy()
    by_name = {form.name: form.hardware for form in FORMS}
    assert by_name["gathering"] == "model only"
    lines = {f"lines of {n}": n for n in (16, 32, 128)} | {"flat cache": 64}
    for name, length in lines.items():
        expected = "as it is" if length == DEFAULT.line_bytes else "parameter"
        assert by_name[name] == expected


def test_grid_covers_the_sizes():
    assert {point.size for point in GRID} == {8, 16, 32, 64}
    for point in GRID:
        assert point.policy.sets >= 1


# ---- Stretches -----------------------------------------------------------------------------------


def test_stretch_comes_from_the_middle():
    stretch = bench._stretch(Source("gzip", "recorded"), 1000)
    whole = ops.read(ROOT / "sim" / "traces" / "gzip.npz")
    first = (len(whole) - 2000) // 2
    found = [op for op in stretch.trace.stream if op.op != "map"]
    expected = [whole[row] for row in range(first, first + 2000)]
    assert [(op.op, op.address) for op in found] == [(op.op, op.address) for op in expected]
    assert stretch.trace.stream[0].op == "map", "which memory is tagged is kept"
    accesses = int(stretch.trace.is_access.sum())
    assert len(stretch.measured) == accesses - accesses // 2
    assert stretch.measured[-1] == np.flatnonzero(stretch.trace.is_access)[-1]


def test_stream_with_branches_is_not_cut():
    stretch = bench._stretch(Source("speculative_hits", "pattern"), 500)
    assert len(stretch.trace.stream) >= 1000
    ops.check(stretch.trace.stream)


def test_examination(tmp_path):
    path = tmp_path / "own.jsonl"
    ops.write(path, [Operation("load", address=0, size=8)] * 99)
    with pytest.raises(StreamError, match=r"own\.jsonl: 100 accesses are needed, not 99$"):
        bench.examine(Source(str(path), "file"))
    ops.write(path, [Operation("load", address=0, size=8)] * 100)
    bench.examine(Source(str(path), "file"))
    ops.write(path, [Operation("clean")])
    with pytest.raises(StreamError, match=r"own\.jsonl:1: .* no stream with maintenance$"):
        bench.examine(Source(str(path), "file"))


# ---- Figures -------------------------------------------------------------------------------------


def test_traffic_of_a_pattern():
    rows = bench.traffic_of(Source("page_stride", "pattern"), 5000)
    assert [row.form for row in rows] == [form.name for form in FORMS]
    flat = rows[0]
    assert (flat.lookups, flat.misses, flat.hit_rate) == (4999, 4999, 0)
    assert flat.read_bytes == flat.data_bytes == 64 * 4999
    assert flat.ratio == 2
    assert flat.footprint == 64 * 4096
    assert flat.instructions == 3 * 4999


def test_traffic_of_a_program_covers_the_grid():
    rows = bench.traffic_of(Source("hash_join", "workload"), 3000)
    shapes = [(row.size, row.ways, row.line) for row in rows if row.form is None]
    assert shapes == [(point.size, point.ways, point.line) for point in GRID]
    flat = next(row for row in rows if row.form == "flat cache")
    assert replace(flat, form=None) in rows


def test_transfers_under_misses():
    def rate(*transferred, missed, latency=10):
        times = np.zeros(len(transferred), TIMING)
        times["transferred"] = transferred
        times["answered"] = times["transferred"] + 8
        times["answered"][missed] += 100
        return bench._under_misses(times, latency)

    assert rate(*range(40), missed=[5]) == 1
    assert rate(*range(0, 80, 2), missed=[5]) == 0.5
    assert rate(*range(6), *range(200, 240), missed=[5]) == 0
    assert rate(*range(20), *range(29, 60), missed=[5, 19]) == (1 + 0.1) / 2
    assert rate(*range(40), missed=[]) is None
    assert rate(*range(40), missed=[35]) is None, "too near the end to tell"


def test_ratio_needs_data():
    rows = bench.traffic_of(Source("block_tags", "pattern"), 500)
    assert rows[0].ratio is None
    assert rows[0].tag_bytes > 0


# ---- The page ------------------------------------------------------------------------------------


def made_up(plan: Plan) -> Results:
    """Results of the right shape, with figures that nobody measured."""
    traffic = []
    for source in plan.sources:
        shapes = [(form.name, form.policy) for form in FORMS]
        if source.kind != "pattern":
            shapes += [(None, point.policy) for point in GRID]
        for form, policy in shapes:
            size, ways, line = policy.cache_bytes >> 10, policy.ways, policy.line_bytes
            numbers = (1000, 4096, 640, form, size, ways, line, 500, 10, 640, 64, 0)
            traffic.append(Traffic(source.label, source.kind, *numbers))
    cycles = [
        Cycles(
            *(source.label, source.kind),
            *(point.size, point.ways, point.line, point.mshrs, point.latency),
            *(operations, operations, 0.9, 640, 2 * operations, 0.75, 9.5, 8.0, 60.0, 99),
            *(3000, 4000, 2000, 100),
        )
        for source, point, operations in plan.stretches()
    ]
    return Results(traffic, cycles)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(bench.sources(["all"]), bench.points({})[0])


def structure(page: str) -> list[str]:
    """Headings, heads of tables, and names of rows."""
    names = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    heads = re.findall(r"^#+ .*$|^\| [a-zK].*\n(?=\| ---)", page, re.MULTILINE)
    return heads + names


def test_page_of_results_is_as_the_command_writes_it(plan):
    """Figures apart: the committed page has the tables, rows and plots of today's command."""
    committed = (ROOT / "docs" / "results.md").read_text()
    plots = re.findall(r"^!\[.*\]\((.*)\)$", committed, re.MULTILINE)
    assert [Path(name).stem for name in plots] == list(bench_report._PLOTS)
    for name in plots:
        assert (ROOT / "docs" / name).read_text().startswith("<?xml")
    assert structure(committed) == structure(bench_report.page(made_up(plan), plan, plots))


def test_every_row_is_as_wide_as_its_table(plan):
    for table in bench_report.tables(made_up(plan), plan):
        assert {len(row) for row in table.rows} == {len(table.heads)}


def test_figures_get_where_they_belong(plan):
    by_title = {table.title: table for table in bench_report.tables(made_up(plan), plan)}
    sizes = by_title["DRAM traffic with tags, by size of the tag cache"]
    ratio = f"{1 + 704 / 4096:.3f}"
    assert list(sizes.rows[0]) == ["sort", "1", *[ratio] * 6]
    assert list(sizes.rows[-2][2:5]) == ["1.589", "1.356", "1.159"]
    assert list(sizes.rows[-1][2:5]) == ["1.356", "1.159", "-"]
    programs = by_title["Programs on the hardware"]
    assert list(programs.rows[0]) == [
        *("sort", "90.00 %", "0.50", "0.50", "0.75", "9.5", "8", "60", "99", "2.50 %", "50.0 %")
    ]
    sweep = by_title["Configurations of the hardware"]
    assert len(sweep.rows) == len(plan.points)


def test_sweep_without_the_usual_point():
    points, _ = bench.points({"size": (8,)})
    plan = Plan(bench.sources(["sort", "hits"]), points)
    titles = [table.title for table in bench_report.tables(made_up(plan), plan)]
    assert "Programs on the hardware" in titles
    assert "Patterns on the hardware" in titles
    assert "Configurations of the hardware" not in titles


def test_only_patterns(plan, tmp_path):
    few = Plan(bench.sources(["hits"]), plan.points)
    titles = [table.title for table in bench_report.tables(made_up(few), few)]
    assert titles == ["Patterns: tag traffic at 32 KiB", "Patterns on the hardware"]
    assert bench_report.plot(made_up(few), few, tmp_path) == []


def test_equal_figures_give_equal_plots(plan, tmp_path):
    results = made_up(plan)
    first, second = (bench_report.plot(results, plan, tmp_path / name) for name in "ab")
    assert [path.stem for path in first] == list(bench_report._PLOTS)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]

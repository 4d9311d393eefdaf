"""The functional coverage plan, its arithmetic and its reports, without a simulation."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import coverage_plan
import coverage_run
import numpy as np
import pytest
from coverage_plan import Contradiction, Coverage, Cross, Group, PlanError, read_plan
from coverage_points import OUTCOMES, Point, classify
from coverage_report import html_report, share, text_report
from emte.rtl.layouts import Outcome
from emte.sim.core import Program
from emte.sim.model import Model
from emte.sim.ops import STORAGE_BASE, Operation, Regime, Stream
from emte.sim.traffic import directed_stream, random_stream
from simulation import SimulationFailed

PLAN = """
[meal]
title = "Meals"

[meal.dimension.dish]
about = "what is eaten"
values = "soup cake steak"

[meal.dimension.tool]
about = "with what"
values = "spoon fork"

[meal.dimension.guest]
about = "by whom"
values = "cat dog"

[meal.triple]
"who eats what" = "dish tool guest"

[[meal.exclude]]
dish = "soup"
tool = "!spoon"
reason = "It runs through."

[[meal.exclude]]
tool = "spoon"
guest = "cat"
reason = "Cats have forks."
"""


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def meal(path) -> Group:
    return read_plan(path)["meal"]


@pytest.fixture(scope="module")
def plan() -> dict[str, Group]:
    return read_plan()


def rows(group: Group, *samples: str) -> np.ndarray:
    """Samples as words, one for each dimension."""
    coded = [group.encode(dict(zip(group.dimensions, s.split(), strict=True))) for s in samples]
    return np.array(coded, dtype=np.uint8).reshape(len(coded), len(group.dimensions))


ALL_MEALS = [
    *("soup spoon dog", "cake spoon dog", "cake fork cat", "cake fork dog"),
    *("steak spoon dog", "steak fork cat", "steak fork dog"),
]


# The plan as a language


def test_crosses_are_dimensions_pairs_and_named_triples(meal):
    assert [str(cross) for cross in meal.crosses] == [
        *("dish", "tool", "guest"),
        *("dish, tool", "dish, guest", "tool, guest"),
        "who eats what",
    ]
    assert [sum(1 for _ in meal.bins(cross)) for cross in meal.crosses] == [3, 2, 2, 6, 6, 4, 12]


def test_unreachable_bins_follow_from_several_exclusions(meal):
    unreachable = {str(cross): bins for cross, bins in meal.unreachable.items()}
    assert unreachable["dish"] == unreachable["tool"] == unreachable["guest"] == {}
    assert unreachable["dish, tool"] == {(0, 1): (0,)}
    # No exclusion speaks of soup and cats: a cat has no spoon, and soup needs one.
    assert unreachable["dish, guest"] == {(0, 0): (0, 1)}
    assert unreachable["tool, guest"] == {(0, 0): (1,)}
    possible = rows(meal, *ALL_MEALS)
    impossible = {p for p in np.ndindex(3, 2, 2) if list(p) not in possible.tolist()}
    assert unreachable["who eats what"].keys() == impossible


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('dish = "soup"', 'dish = "stew"', "dish has no values ['stew']"),
        ('dish = "soup"', 'plate = "soup"', "no dimension 'plate'"),
        ('dish = "soup"', 'dish = "!"', "dish has no values"),
        ('"dish tool guest"', '"dish tool"', "'dish tool' are not three dimensions"),
        ('"dish tool guest"', '"dish tool plate"', "are not three dimensions"),
        ("It runs through.", " ", "needs values and a reason"),
    ],
)
def test_wrong_plan_is_refused(path, old, new, message):
    assert PLAN.count(old) == 1
    path.write_text(PLAN.replace(old, new))
    with pytest.raises(PlanError, match=re.escape(message)):
        read_plan(path)


def test_sample_needs_every_dimension(meal):
    with pytest.raises(PlanError, match="are not"):
        meal.encode({"dish": "soup", "tool": "spoon"})


# Counting


def test_hits_are_counted_in_every_cross(meal):
    coverage = Coverage(meal, rows(meal, "soup spoon dog", "cake fork cat", "cake fork cat"))
    hits = {str(cross): counts.tolist() for cross, counts in coverage.hits.items()}
    assert hits["dish"] == [1, 2, 0]
    assert hits["tool, guest"] == [[0, 1], [2, 0]]
    assert coverage.hits[meal.triples[0]][1, 1, 0] == 2
    assert (Cross(("dish",)), ("steak",)) in coverage.missing()


def test_missing_bins_are_those_that_can_be_hit(meal):
    assert share([Coverage(meal, rows(meal, *ALL_MEALS))]) == (27, 27)
    without_soup = Coverage(meal, rows(meal, *ALL_MEALS[1:]))
    missing = {(str(cross), *values) for cross, values in without_soup.missing()}
    assert missing == {
        ("dish", "soup"),
        ("dish, tool", "soup", "spoon"),
        ("dish, guest", "soup", "dog"),
        ("who eats what", "soup", "spoon", "dog"),
    }
    assert share([without_soup]) == (23, 27)


def test_nothing_seen_is_nothing_hit(meal):
    assert share([Coverage(meal, rows(meal))]) == (0, 27)


def test_sample_that_cannot_be_is_an_error(meal):
    with pytest.raises(Contradiction, match=r"1 samples have .*fork.*It runs through.*guest dog"):
        Coverage(meal, rows(meal, "cake fork cat", "soup fork dog"))


# The plan of this project


def test_plan_has_about_5000_bins(plan):
    reachable = sum(Coverage(group, rows(group)).reachable() for group in plan.values())
    assert 5_000 <= reachable <= 6_500


def test_every_value_can_be_hit(plan):
    for group in plan.values():
        for cross in group.crosses[: len(group.dimensions)]:
            assert not group.unreachable[cross], cross


def test_every_exclusion_excludes_a_bin_or_half_of_one(plan):
    """Without it, some sample would be possible that is not so now."""
    for group in plan.values():
        names = group.dimensions.keys()
        for number, exclusion in enumerate(group.exclusions):
            others = [e for n, e in enumerate(group.exclusions) if n != number]
            assert exclusion.where.keys() <= names
            weaker = [
                other
                for other in others
                if other.where.keys() <= exclusion.where.keys()
                and all(exclusion.where[name] <= of for name, of in other.where.items())
            ]
            assert not weaker, f"{exclusion.reason} says no more than {weaker[0].reason}"


def test_every_fault_of_the_pipeline_has_a_rule(plan):
    assert OUTCOMES.keys() < set(plan["access"].dimensions["rule"])
    # The bench flips no bits, so nothing is uncorrectable.
    assert set(OUTCOMES.values()) == set(Outcome) - {Outcome.PASS, Outcome.UNCORRECTABLE}


# Classification


def classified(*operations: Operation) -> list[dict[str, str]]:
    stream = Stream("", list(operations))
    return [point.values for point in classify(stream, Program.of(stream)).values()]


TAGGED = Operation("map", address=0, bytes=1 << 20, memory="tagged")
KEPT_BACK = Operation("map", address=1 << 31, bytes=0x1000, memory="no_tag_access")
POINTER = 3 << 56 | 0x1000


@pytest.mark.parametrize(
    ("regime", "operation", "rule"),
    [
        (Regime(), Operation("load", address=POINTER, size=8), "match"),
        (Regime(), Operation("load", address=POINTER, size=32), "fault_later"),
        (Regime(), Operation("load", address=POINTER + 16, size=8), "fault_first"),
        (Regime(tcf=("async",) * 2), Operation("store", address=1 << 56, size=1), "async_first"),
        (Regime(tcf=("asym",) * 2), Operation("load", address=1 << 56, size=1), "fault_first"),
        (Regime(), Operation("load", address=1 << 56, size=1, exempt=1), "exempt"),
        (Regime(), Operation("load", address=1 << 56, size=1, tco=1), "tco"),
        (Regime(ata=(0, 0)), Operation("dc_zva", address=1 << 56, tco=1), "no_ata"),
        (Regime(tbi=(0, 0)), Operation("load", address=0, size=1), "no_tbi_no_mtx"),
        (Regime(tcma=(1, 1)), Operation("load", address=0x1000, size=1), "match_all"),
        (Regime(tcso=(1, 1)), Operation("load", address=1 << 56, size=1), "store_only"),
        (Regime(tcso=(1, 1)), Operation("atomic", address=1 << 56, size=1), "fault_first"),
        (Regime(tcf=("none",) * 2), Operation("load", address=1 << 56, size=1), "tcf_none"),
        (Regime(), Operation("load", address=1 << 56 | 1 << 30, size=1), "untagged"),
        (Regime(mtx=(1, 1)), Operation("load", address=1 << 30, size=1), "canonical_match"),
        (Regime(mtx=(1, 1)), Operation("load", address=1 << 56 | 1 << 30, size=1),
         "canonical_fault"),
        (Regime(mtx=(1, 1)), Operation("stg", address=1 << 30, tag=1), "canonical_store"),
        (Regime(), Operation("stg", address=1 << 30, tag=1), "untagged_store"),
        (Regime(), Operation("stg", address=8, tag=1), "alignment"),
        (Regime(), Operation("ldg", address=8), "tags_read"),
        (Regime(ata=(0, 0)), Operation("ldg", address=8), "tags_off"),
        (Regime(), Operation("load", address=1 << 31, size=1), "no_tag_access"),
        (Regime(tcf=("none",) * 2), Operation("store", address=1 << 31, size=1), "no_tag_access"),
        (Regime(), Operation("load", address=1 << 31, size=1, tco=1), "tco"),
        (Regime(mtx=(1, 1)), Operation("stg", address=1 << 31, tag=1), "no_tag_access"),
        (Regime(ata=(0, 0)), Operation("ldg", address=1 << 31), "tags_off"),
        (Regime(), Operation("load", address=STORAGE_BASE, size=1), "carve_out"),
        (Regime(), Operation("load", address=STORAGE_BASE - 1, size=1), "untagged"),
    ],
)  # fmt: skip
def test_rule_of_an_access(regime, operation, rule):
    stg = Operation("stg", address=POINTER, tag=3)
    *_, values = classified(TAGGED, KEPT_BACK, stg, Operation("regime", regime=regime), operation)
    assert values["rule"] == rule


@pytest.mark.parametrize("exempt", [0, 1])
@pytest.mark.parametrize("tco", [0, 1])
def test_exemption_of_an_access(exempt, tco):
    operation = Operation("load", address=0, size=1, exempt=exempt, tco=tco)
    (values,) = classified(operation)
    assert values["exemption"] == [["none", "form"], ["tco", "both"]][tco][exempt]


@pytest.mark.parametrize(
    ("address", "target"),
    [
        (None, "all"),
        (0x1000, "tagged"),
        (1 << 30, "untagged"),
        (1 << 31, "no_tag_access"),
        (1 << 21, "outside_map"),
    ],
)
def test_target_of_maintenance(address, target):
    maps = [
        Operation("storage", address=0, bytes=1 << 20, base=STORAGE_BASE),
        Operation("map", address=0, bytes=1 << 22, memory="tagged"),
        KEPT_BACK,
    ]
    *_, values = classified(*maps, Operation("clean", address=address))
    assert values["target"] == target


def test_parts_of_an_access_that_crosses_a_page():
    values = classified(TAGGED, Operation("load", address=0xFFD, size=8))
    assert [(v["part"], v["size"], v["alignment"]) for v in values] == [
        ("first", "odd", "byte"),
        ("second", "odd", "granule"),
    ]
    unmapped = Operation("map", address=0x1000, bytes=0x1000, memory="none")
    (alone,) = classified(TAGGED, unmapped, Operation("stz2g", address=0xFF0, tag=1))
    assert alone["part"] == "first"


def test_rules_agree_with_the_golden_model(seed):
    """The rule of an access that is not split ends in the model's outcome."""
    stream = directed_stream(seed, 3000)
    program = Program.of(stream)
    model = Model()
    golden = [model.step(operation) for operation in stream]
    compared = 0
    for number, point in classify(stream, program).items():
        if point.group == "access" and point.values["part"] == "whole":
            outcome = golden[program.transactions[number]["row"]]["outcome"]
            assert outcome == point.outcome.name.lower(), point.values
            compared += 1
    assert compared > 1500


OF_THE_RUN = {"lookup", "speculation", "effect", "wait"}
"""Dimensions that the stream alone does not decide."""


@pytest.fixture(scope="module")
def drawn(request) -> list[Point]:
    """The points of both kinds of traffic."""
    seed = request.config.getoption("seed")
    streams = [draw(seed, 8000, held=4) for draw in (directed_stream, random_stream)]
    return [point for s in streams for point in classify(s, Program.of(s)).values()]


def test_streams_have_every_value_of_the_plan_and_no_other(plan, drawn):
    """All but those that only a run decides: test_coverage_is_collected is about them."""
    for name, group in plan.items():
        seen = defaultdict(set)
        for point in drawn:
            if point.group == name:
                for dimension, value in point.values.items():
                    seen[dimension].add(value)
        assert seen == {d: set(of) for d, of in group.dimensions.items() if d not in OF_THE_RUN}


def test_streams_contradict_no_exclusion(plan, drawn):
    """Of those that the stream alone decides."""
    compared = 0
    for name, group in plan.items():
        placeholders = {d: of[0] for d, of in group.dimensions.items() if d in OF_THE_RUN}
        values = [{**placeholders, **point.values} for point in drawn if point.group == name]
        samples = np.array([group.encode(sample) for sample in values], dtype=np.uint8)
        for exclusion in group.exclusions:
            if not exclusion.where.keys() & OF_THE_RUN:
                assert not group.refuted(exclusion, samples).any(), exclusion.reason
                compared += 1
    assert compared > 80


# Reports and exit status


def test_text_report_lists_what_is_missing_and_why(meal):
    text = text_report([Coverage(meal, rows(meal, *ALL_MEALS[1:]))], "one dinner")
    assert text.startswith("85.1 %: 23 of 27 reachable bins are hit; 8 more are excluded\n")
    assert "missing: meal: who eats what: soup spoon dog\n" in text
    assert re.search(r"\d  It runs through\.\n +dish: soup and tool: fork\n", text)
    assert "one dinner" in text


def test_share_is_rounded_down(meal):
    many = [Coverage(meal, rows(meal, *ALL_MEALS))] * 200
    most = [*many, Coverage(meal, rows(meal, *ALL_MEALS[1:]))]
    assert text_report(most, "").startswith("99.9 %")


def test_html_report_shows_every_bin(meal):
    page = html_report([Coverage(meal, rows(meal, *ALL_MEALS[1:]))], "a <b>dinner</b>")
    assert "a &lt;b&gt;dinner&lt;/b&gt;" in page
    assert '<p class="share bad">85.1 %: 23 of 27 bins</p>' in page
    # Missing: soup with a spoon, soup with a dog, and both; in dimensions it is a bar.
    assert page.count('<td class="miss" title="never hit">') == 3
    assert 'title="It runs through. Cats have forks."' in page
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'<details id="{anchor}"' in page
    assert not re.search(r"(src|href)=\"(?!#)", page)


def write_runs(folder: Path, meal: Group, *runs: list[str]) -> list[Path]:
    paths = [folder / f"{number}.npz" for number in range(len(runs))]
    for path, run in zip(paths, runs, strict=True):
        np.savez(path, meal=rows(meal, *run))
    return paths


@pytest.mark.parametrize(("count", "status"), [(len(ALL_MEALS), 0), (len(ALL_MEALS) - 1, 1)])
def test_runs_are_merged_and_all_must_be_hit(
    tmp_path, path, meal, monkeypatch, capsys, count, status
):
    monkeypatch.setattr(coverage_run, "read_plan", lambda: read_plan(path))
    paths = write_runs(tmp_path, meal, ALL_MEALS[:3], ALL_MEALS[3:count])
    out = tmp_path / "out"
    assert coverage_run.report(paths, "two dinners", out) == status
    assert ("missing: " in capsys.readouterr().out) == bool(status)
    assert "two dinners" in (out / "index.html").read_text()
    assert "Cats have forks." in (out / "report.txt").read_text()


def test_contradiction_is_a_failure(tmp_path, path, meal, monkeypatch, capsys):
    monkeypatch.setattr(coverage_run, "read_plan", lambda: read_plan(path))
    paths = write_runs(tmp_path, meal, ALL_MEALS, ["soup fork dog"])
    assert coverage_run.report(paths, "", tmp_path / "out") == 1
    assert "It runs through." in capsys.readouterr().err


def test_failed_simulation_is_a_failure(tmp_path, monkeypatch, capsys):
    def pool(jobs, **options):
        raise SimulationFailed("seed 5 went wrong")

    monkeypatch.setattr(coverage_run, "build", lambda name, waves: tmp_path)
    monkeypatch.setattr(coverage_run, "ProcessPoolExecutor", pool)
    assert coverage_run.main(["--seeds", "1", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "seed 5 went wrong\n"


def test_plan_is_where_the_pages_say():
    assert coverage_plan.PLAN.name == "coverage_plan.toml"
    page = (Path(__file__).parents[2] / "docs" / "coverage.md").read_text()
    for group in read_plan().values():
        for name in group.dimensions:
            assert f"`{name}`" in page, f"{name} is not explained"

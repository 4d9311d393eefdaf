"""Every rule of docs/semantics.toml has a place in model and hardware, and a test that holds it."""

import ast
import copy
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from emte.sim import model

ROOT = Path(__file__).parents[2]
PAGE = runpy.run_path(str(ROOT / "docs" / "semantics.py"))
DATA = PAGE["load"]()
RULES = [rule for chapter in DATA["chapter"] for rule in chapter["rule"]]
CASES = runpy.run_path(str(ROOT / "tests" / "unit" / "test_semantics.py"))["CASES"]

OUTSIDE = r"(the core's|the system's|software's): .+"
NOT_IN_THE_MODEL = r"not in the model: .+"
FIELDS = {"id", "text", "outside", "model", "rtl", "cases", "tests"}


def exists_in_model(name: str) -> bool:
    try:
        return callable(attrgetter(name)(model))
    except AttributeError:
        return False


def names_within(tree: ast.AST) -> Iterator[str]:
    """What a class or a function defines: variables, attributes, functions, keys, FSM states."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(name, ast.Store()) | ast.FunctionDef(name):
                yield name
            case ast.Attribute(ast.Name("self"), name, ast.Store()):
                yield name
            case ast.Dict(keys):
                yield from (key.value for key in keys if isinstance(key, ast.Constant))
            case ast.Call(ast.Attribute(attr="State" | "state"), [ast.Constant(name)]):
                yield name


def exists_in_source(place: str, folder: str) -> bool:
    """Is ``module.definition`` or ``module.definition.name`` in a folder's source?"""
    module, definition, *rest = place.split(".")
    path = ROOT / folder / f"{module}.py"
    if not path.exists() or len(rest) > 1:
        return False
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == definition:
            return not rest or rest[0] in names_within(node)
    return False


def problems_of(rule: dict[str, Any], collected: set[str]) -> Iterator[str]:
    """What is wrong with a rule."""
    outside = rule.get("outside", "")
    missing = {name for name in ("model", "rtl") if not rule.get(name)}
    held_by = PAGE["held_by"](rule)
    if not held_by:
        missing.add("tests")
    if not rule["text"].endswith("."):
        yield "text is no sentence"
    if unknown := rule.keys() - FIELDS:
        yield f"unknown fields: {', '.join(sorted(unknown))}"
    if outside and not re.fullmatch(f"{OUTSIDE}|{NOT_IN_THE_MODEL}", outside):
        yield "outside: says neither whose it is nor why"
    allowed = [set()]
    if re.fullmatch(OUTSIDE, outside):
        allowed = [set(), {"model", "rtl", "tests"}]
    elif re.fullmatch(NOT_IN_THE_MODEL, outside):
        allowed = [{"model"}]
    if missing not in allowed:
        yield f"empty: {', '.join(sorted(missing)) or 'nothing, but outside says so'}"
    for place in rule.get("model", ()):
        if not exists_in_model(place):
            yield f"model: there is no {place}"
    for place in rule.get("rtl", ()):
        if place.startswith("core.") and re.fullmatch(OUTSIDE, outside):
            folder = "sim"
        else:
            folder = "rtl"
        if not exists_in_source(place, folder):
            yield f"rtl: there is no {place}"
    for name in held_by:
        if name not in collected:
            yield f"tests: there is no {name}"


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """Ids of the tests in all files that rules name, also without what stands in brackets."""
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    files = {name.partition("::")[0] for rule in RULES for name in PAGE["held_by"](rule)}
    process = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"),
            *sorted(name for name in files if (ROOT / name).exists()),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    ids = {line for line in process.stdout.splitlines() if "::" in line}
    return ids | {name.partition("[")[0] for name in ids}


@pytest.mark.xdist_group("traceability")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["id"])
def test_rule_is_kept_and_held(rule, collected):
    assert list(problems_of(rule, collected)) == []


def test_rules_are_numbered_in_order():
    numbers = [
        f"{chapter}.{number}"
        for chapter, each in enumerate(DATA["chapter"], 1)
        for number, _ in enumerate(each["rule"], 1)
    ]
    assert [rule["id"] for rule in RULES] == numbers


def test_every_case_is_of_a_rule():
    assert {case for rule in RULES for case in rule.get("cases", ())} == CASES.keys()


def test_traps_name_rules():
    numbers = {rule["id"] for rule in RULES}
    for trap in DATA["trap"]:
        assert trap["rules"]
        assert numbers.issuperset(trap["rules"])


def test_page_is_up_to_date():
    """``python docs/semantics.py`` makes it."""
    assert PAGE["PAGE"].read_text() == PAGE["render"](DATA)


GOOD = {
    "id": "1.1",
    "text": "A rule.",
    "model": ["Model._irg"],
    "rtl": ["access.AccessDecoder.half", "keeper.Keeper.SWEEP", "layouts.gcr_layout.rrnd"],
    "tests": ["tests/unit/test_x.py::test_x[1]", "tests/unit/test_x.py::test_x"],
}
COLLECTED = {"tests/unit/test_x.py::test_x[1]", "tests/unit/test_x.py::test_x"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"model": []}, "empty: model"),
        ({"rtl": []}, "empty: rtl"),
        ({"tests": []}, "empty: tests"),
        ({"tests": [], "outside": "the core's: its matter"}, "empty: tests"),
        ({"rtl": [], "outside": "not in the model: no time"}, "empty: rtl"),
        ({"outside": "not in the model: no time"}, "empty: nothing, but outside says so"),
        ({"model": [], "outside": "not in the model: no time"}, None),
        ({"model": [], "rtl": [], "tests": [], "outside": "the core's: its matter"}, None),
        ({"rtl": ["core._Core._access"], "outside": "the core's: its matter"}, None),
        ({"rtl": ["core._Core._access"]}, "rtl: there is no core._Core._access"),
        ({"outside": "the core's: "}, "outside: says neither whose it is nor why"),
        ({"outside": "nobody's: so"}, "outside: says neither whose it is nor why"),
        ({"text": "A rule"}, "text is no sentence"),
        ({"proof": ["x"]}, "unknown fields: proof"),
        ({"model": ["Model._nothing"]}, "model: there is no Model._nothing"),
        (
            {"rtl": ["access.AccessDecoder.nothing"]},
            "rtl: there is no access.AccessDecoder.nothing",
        ),
        ({"rtl": ["access.Nobody"]}, "rtl: there is no access.Nobody"),
        ({"rtl": ["nowhere.AccessDecoder"]}, "rtl: there is no nowhere.AccessDecoder"),
        (
            {"tests": ["tests/unit/test_x.py::test_x[2]"]},
            "tests: there is no tests/unit/test_x.py::test_x[2]",
        ),
        (
            {"cases": ["nothing"]},
            "tests: there is no tests/unit/test_semantics.py::test_case[nothing]",
        ),
    ],
)
def test_problem_is_found(change, problem):
    rule = copy.deepcopy(GOOD) | change
    problems = list(problems_of(rule, COLLECTED))
    assert problem in problems if problem else problems == []

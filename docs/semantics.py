"""Makes docs/semantics.md of docs/semantics.toml: ``python docs/semantics.py``."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".toml")
PAGE = Path(__file__).with_suffix(".md")
CASE = "tests/unit/test_semantics.py::test_case[{}]"

Rule = dict[str, Any]


def load() -> dict[str, Any]:
    """The chapters with their rules, and the traps."""
    return tomllib.loads(SOURCE.read_text())


def held_by(rule: Rule) -> list[str]:
    """Ids of all tests that hold a rule."""
    return [CASE.format(case) for case in rule.get("cases", ())] + rule.get("tests", [])


def _cell(names: Iterable[str], otherwise: str) -> str:
    """One name per line; ``otherwise`` stands where there is none."""
    return "<br>".join(f"`{name}`" for name in names) or otherwise


def _row(rule: Rule) -> str:
    owner, _, reason = rule.get("outside", "").partition(": ")
    text = rule["text"].replace("*", r"\*")
    if owner:
        text += f" *{owner[0].upper()}{owner[1:]}*: {reason}."
    cells = (
        rule["id"],
        text,
        _cell(rule.get("model", ()), owner),
        _cell(rule.get("rtl", ()), owner),
        _cell(held_by(rule), owner),
    )
    return "| " + " | ".join(cells) + " |\n"


def render(data: dict[str, Any]) -> str:
    """The page."""
    parts = ["# Semantics\n\n", data["preface"]]
    for number, chapter in enumerate(data["chapter"], 1):
        parts += [
            f"\n## {number}. {chapter['title']}\n\n",
            "| rule | what it says | model | hardware | held by |\n",
            "|---|---|---|---|---|\n",
            *map(_row, chapter["rule"]),
        ]
    parts += [
        "\n## Traps\n\nWhat is easily got wrong, and the rules that say how it is right.\n\n",
        "| trap | | rules |\n|---|---|---|\n",
    ]
    for number, trap in enumerate(data["trap"], 1):
        parts.append(f"| {number} | {trap['text']} | {', '.join(trap['rules'])} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(load()))

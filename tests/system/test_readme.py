"""What the README shows is what a reader gets."""

import re
from pathlib import Path

from emte.sim import cli

ROOT = Path(__file__).parents[2]


def test_shown_run_is_the_run(tmp_path, monkeypatch, capsys):
    """The command of the README, and each line that it prints there; the demo agrees with it."""
    readme = (ROOT / "README.md").read_text()
    command = re.search(
        r"^    \.venv/bin/emte (run .* --check --out outcomes\.jsonl)$", readme, re.M
    )
    shown = next(
        block for block in re.findall(r"```text\n(.*?)```", readme, re.S) if "pysim" in block
    )
    arguments = [
        str(ROOT / word) if word.startswith("sim/") else word for word in command[1].split()
    ]
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().err.replace(f"{ROOT}/", "")
    assert printed == shown
    cycles = re.search(r"cycles +(\S+ \S+ for each access)", shown)[1]
    assert len(re.findall(rf"cycles +{re.escape(cycles)}", readme)) == 2

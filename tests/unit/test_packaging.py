"""What is shipped, and that the repository is as its pages say."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tracked(*folders: str) -> set[str]:
    """Files that git tracks, as paths from the root."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--", *folders],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return {name for name in listing.stdout.split("\0") if name and (ROOT / name).exists()}


def test_wheel_holds_what_git_tracks(tmp_path):
    # Built from a copy, so that nothing that lies about in the work tree gets in.
    source = tmp_path / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("emte-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {f"emte/{name}" for name in tracked("rtl", "sim", "fpga")}


MODULES = sorted(path.stem for path in (ROOT / "rtl").glob("*.py") if path.stem[:2] != "__")


@pytest.mark.parametrize("module", MODULES)
def test_module_has_unit_test(module):
    assert f"tests/unit/test_{module}.py" in tracked("tests")


@pytest.mark.parametrize("module", MODULES)
def test_module_has_page(module):
    assert f"docs/units/{module}.md" in tracked("docs")


PAGES = sorted(name for name in tracked("README.md", "docs") if name.endswith(".md"))


def without_code(page: str) -> str:
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that the headings of a page get."""
    headings = re.findall(r"^#+ +(.+)$", without_code(str(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^()\s]+)\)", without_code(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page} links to {link}"


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text()
    return set(re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[1].split())


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    """Each ``make`` command, on a line of a code block or within a sentence."""
    for command in re.findall(r"(?:^|`)make ([^`\n]*)(?=`|$)", (ROOT / page).read_text(), re.M):
        words = command.partition("#")[0].split()
        targets = {word for word in words if "=" not in word and not word.startswith("-")}
        assert targets <= make_targets(), f"{page}: make {command}"


def test_readme_lists_every_make_target():
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\| `make ([\w-]+)", readme, re.MULTILINE)) == make_targets() - {"help"}

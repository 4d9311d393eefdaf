"""``python -m emte.rtl``; what the file says is tested with the pages that tell of it."""

import pytest
from emte.rtl.__main__ import main


def test_verilog_is_written(tmp_path, capsys):
    out = tmp_path / "new" / "small.v"
    assert main(["--preset", "small", "--barrier", "delay", "--out", str(out)]) == 0
    text = out.read_text()
    assert "module tag_pipeline(" in text
    assert "//   barrier = delay\n" in text
    assert capsys.readouterr().out == f"{out}: {len(text.splitlines())} lines, preset small\n"
    assert [path.name for path in out.parent.iterdir()] == ["small.v"]


@pytest.mark.parametrize("place", ["folder", "file/below.v"])
def test_place_that_cannot_be_written(place, tmp_path, capsys):
    """Exit code 2, one line that names the place, and nothing is left behind."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    out = tmp_path / place
    assert main(["--preset", "small", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"{out}: ")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_unknown_preset(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--preset", "huge"])
    assert caught.value.code == 2
    assert "invalid choice: 'huge'" in capsys.readouterr().err

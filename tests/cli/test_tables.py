from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli_calls import refuse, run
from PIL import Image

from chrono_features.cli import tables


def test_names_of_others_do_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"data": "d", "mode": "first", "group": "\x1b[2J\x07g", "tracker": "t\x9b1m", "videos": 1, "metrics": {}}
    about = {"data": {"d": {"kind": "csv", "total": None}}, "protocol": {"size": [256, 256]}}
    tables.print_tables({**about, "summary": [row | {"interval": (None, None)}]})
    printed = capsys.readouterr().out
    assert "\\x1b[2J\\x07g" in printed and "t\\x9b1m" in printed and not set("\x1b\x07\x9b") & set(printed)
    told = refuse("track", "\x1b[2Jm.mp4", "--queries", "grid:3")
    assert "\\x1b[2Jm.mp4" in told and "\x1b[2J" not in told


def test_groups_and_models_are_names_not_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("[/y]").mkdir(parents=True)  # a folder is a model's name
    (tmp_path / "images").mkdir()
    for t in range(3):
        Image.fromarray(np.full((32, 32, 3), 60 * t, np.uint8)).save(tmp_path / "images" / f"{t}.png")
    table = "video,track,t,x,y,visible,group\n" + "".join(f"images,0,{t},5,5,1,[/x] :smile: [red]\n" for t in range(3))
    (tmp_path / "points.csv").write_text(table)
    out, report = tmp_path / "r.json", tmp_path / "r.html"
    measure = ("eval", "--data", f"csv={tmp_path}", "--out", out, "--baseline", "static", "--report", report)
    printed = run(*measure, "--model", "[/y]", "--device", "cpu")
    assert "[/x] :smile: [red] (1)" in printed and "[/y]" in printed
    assert "[/x] :smile: [red]" in report.read_text()


def test_how_long_the_rest_would_take() -> None:
    record = {"data": "d", "video": "v0", "seconds": {"tracking": 40.0, "features": 20.0}}
    results = {"data": {"d": {"skipped": {"v1": "dark"}}}, "records": [record, {**record, "data": "other"}]}

    def left(total: int | None) -> str:
        return tables.whats_left(results, {"d": SimpleNamespace(total=lambda: total)})

    assert left(2) == left(None) == "d: v1 skipped, dark"
    for total, text in ((3, "1 would take about 60 s"), (4, "2 would take about 2.0 min"), (122, "about 2.0 h")):
        assert "1 video measured; the other" in left(total) and text in left(total)

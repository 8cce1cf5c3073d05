from pathlib import Path

import pytest
from cli_calls import refuse, run

from chrono_features import training


def test_train_passes_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(training, "train", lambda recipe, out, **options: calls.append((recipe, out, options)))
    options = ("--textures", tmp_path, "--steps", 5, "--seed", 3, "--no-resume", "--model", "chrono-tiny", "--compile")
    run("train", "adapters", "--out", tmp_path / "run", *options)
    assert calls[0][:2] == ("adapters", tmp_path / "run")
    assert {name: value for name, value in calls[0][2].items() if value is not None} == {
        "model": "chrono-tiny",
        "textures": tmp_path,
        "steps": 5,
        "seed": 3,
        "resume": False,
        "compile": True,
        "force": False,
    }
    sizes = ("--batch", 2, "--frames", 8, "--size", "64x96", "--grid", 8, "--tracks", 16, "--force")
    run("train", "tiny", "--out", tmp_path / "run", *sizes)
    wanted = {"batch": 2, "frames": 8, "size": (64, 96), "grid": (8, 8), "tracks": 16, "force": True}
    assert wanted.items() <= calls[1][2].items()
    assert "--size 0" in refuse("train", "tiny", "--out", tmp_path, "--size", "0")
    assert "--textures " in refuse("train", "tiny", "--out", tmp_path, "--textures", tmp_path / "nowhere")

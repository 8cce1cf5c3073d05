import os
from pathlib import Path

import pytest
from cli_calls import refuse

from chrono_features import ChronoBackbone
from chrono_features.cli.outputs import check_output


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "links in a circle"])
def test_outputs_in_the_place_of_something_else(clip: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(ChronoBackbone, "from_pretrained", None)  # not even the model is loaded
    here = clip.parent
    for name in ("t.npz", "f.safetensors", "r.json", "m"):
        if kind == "links in a circle":
            (here / name).symlink_to(here / name)
        else:
            os.mkfifo(here / ("pipe" + name if "link" in kind else name))
            if "link" in kind:
                (here / name).symlink_to(here / ("pipe" + name))
    (here / "x.ckpt").touch()
    assert "--out " in refuse("track", clip, "--out", here / "t.npz")
    assert "--out " in refuse("features", clip, "--out", here / "f.safetensors")
    assert "--out " in refuse("eval", "--data", "davis=x", "--out", here / "r.json", "--baseline", "static")
    assert "OUT=" in refuse("convert", here / "x.ckpt", here / "m")


def test_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(ValueError, match=r"out=.*is a folder"):
        check_output("out", tmp_path / "a.npz", [".npz"])
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="not writable"):
        check_output("out", tmp_path / "b.npz", [".npz"])

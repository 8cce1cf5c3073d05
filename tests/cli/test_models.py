from pathlib import Path

import pytest
from cli_calls import FILES, refuse, run

from chrono_features import ChronoBackbone
from chrono_features.checkpoints import read_folder
from chrono_features.cli import models


def test_info(model: ChronoBackbone) -> None:
    output = run("info", "chrono-tiny")
    assert f"{sum(p.numel() for p in model.parameters()):,}" in output
    assert f"{sum(p.numel() for p in model.adapters.parameters()):,}" in output
    assert "vit_tiny_patch16_224" in output and "[4, 6]" in output


def test_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    read = models.read_authors

    def spy(path: Path, num_heads: int | None, grid: tuple[int, int]) -> tuple:
        asked.append((path, num_heads, grid))
        return read(path, num_heads, grid)

    monkeypatch.setattr(models, "read_authors", spy)
    checkpoint, out = FILES / "authors_tiny.ckpt", tmp_path / "out"
    assert "CKPT=" in refuse("convert", tmp_path / "none.ckpt", out)
    assert "--grid 0" in refuse("convert", checkpoint, out, "--grid", "0")
    run("convert", checkpoint, out, "--num-heads", 2, "--grid", "8x12")
    assert asked == [(checkpoint, 2, (8, 12))]
    assert read_folder(out).config.grid == (8, 12)


def test_verify_prints_published_beside_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("adapter parameters", "16,241,280", "16,241,280"), ("DAVIS AJ", "0.1", "not measured")]
    monkeypatch.setattr(models.verification, "verify", lambda name, davis: rows)
    output = run("verify", "chrono-vits14")
    assert output.count("16,241,280") == 2 and "DAVIS AJ" in output
    assert "--davis " in refuse("verify", "chrono-vits14", "--davis", tmp_path / "nowhere")

"""Calls of the command line, and what they are called with."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chrono_features import ChronoConfig

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("av")

from chrono_features.cli.app import app  # noqa: E402

FILES = Path(__file__).parent / "files"
MEDIA = FILES / "media"
TINY = ChronoConfig(
    vit="vit_tiny_patch16_224",
    vit_kwargs={"embed_dim": 24, "depth": 2, "num_heads": 2},
    grid=(4, 6),
    adapter_channels=8,
    adapter_heads=2,
    norm="token",
)
SIZE = (48, 64)


def invoke(*arguments: object) -> Any:
    return typer_testing.CliRunner().invoke(app, [str(a) for a in arguments])


def run(*arguments: object, code: int = 0) -> str:
    """What the command prints, on both streams."""
    result = invoke(*arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def refuse(*arguments: object) -> str:
    """The one line that a wrong call prints."""
    lines = [line for line in run(*arguments, code=2).splitlines() if line.strip()]
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def tapvid(path: Path, names: tuple[str, ...] = ("goat", "camel", "dog"), **more: np.ndarray) -> Path:
    """Videos in TAP-Vid's layout: a texture that moves to the left, and four points of it."""
    videos, rng = {}, np.random.default_rng(0)
    for name in names:
        big = np.kron(rng.integers(0, 256, (6, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        frames = np.stack([big[: SIZE[0], 2 * t : SIZE[1] + 2 * t] for t in range(6)])
        points = rng.uniform(0.3, 0.7, (4, 1, 2)) - np.arange(6)[:, None] * (2 / SIZE[1], 0)
        videos[name] = {"video": frames, "points": points, "occluded": np.zeros((4, 6), bool), **more}
    path.write_bytes(pickle.dumps(videos))
    return path

"""Videos as TAP-Vid pickles them, for tests."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from chrono_features.data.clip import Clip
from chrono_features.data.readers import open_dataset

Image = pytest.importorskip("PIL.Image")

SHARD = "{:04}_of_0010.pkl"


def pictures(seed: int = 0, frames: int = 4, height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def jpegs(video: np.ndarray) -> list[bytes]:
    files = [io.BytesIO() for _ in video]
    for file, picture in zip(files, video, strict=True):
        Image.fromarray(picture).save(file, "JPEG")
    return [file.getvalue() for file in files]


def item(seed: int = 0, tracks: int = 3, frames: int = 4, **changes) -> dict:
    """A video as TAP-Vid pickles it. Every point of the first frame is visible."""
    rng = np.random.default_rng(seed)
    occluded = rng.random((tracks, frames)) < 0.3
    occluded[:, 0] = False
    points = rng.random((tracks, frames, 2)).astype(np.float32)
    return {"video": pictures(seed, frames), "points": points, "occluded": occluded} | changes


def write(path: Path, contents, protocol: int = 4) -> str:
    path.write_bytes(pickle.dumps(contents, protocol))
    return str(path)


def load_all(kind: str, path: str, size=(8, 10)) -> dict[str, Clip]:
    return {entry.name: entry.load() for entry in open_dataset(kind, path, size)}


def load_one(tmp_path: Path, size=(8, 10), **changes) -> Clip:
    return load_all("davis", write(tmp_path / "davis.pkl", {"goat": item(**changes)}), size)["goat"]


def lanczos(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)).transpose(2, 0, 1)

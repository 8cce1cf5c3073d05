"""Reading videos with ground truth in TAP-Vid's layout, one at a time."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIZE = 256  # TAP-Vid measures at 256 x 256


@dataclass(frozen=True)
class LabelledVideo:
    """A video and its tracks at 256 x 256."""

    name: str
    frames: Tensor  # (T, 3, 256, 256) uint8
    xy: NDArray[np.float64]  # (N, T, 2) pixels
    occluded: NDArray[np.bool_]  # (N, T)
    valid: NDArray[np.bool_]  # (N, T) whether the truth is known


def tapvid_videos(path: str | os.PathLike[str]) -> Iterator[LabelledVideo]:
    """Reads a pickle name -> {video, points (N, T, 2) in [0, 1], occluded (N, T), and maybe valid (N, T)}.

    `video` is a uint8 array (T, H, W, 3) or a list of JPEG bytes; it is resized with Lanczos as the protocol says.

    Raises:
        ValueError: The file holds something else, or code.
    """
    with open(path, "rb") as file:
        try:
            data = _NumpyOnly(file).load()
        except (EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{os.fspath(path)} is not loaded: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{os.fspath(path)} holds a {type(data).__name__}; expected a dict name -> video and tracks")
    for name, item in data.items():
        if missing := {"video", "points", "occluded"} - set(item):
            raise ValueError(f"{os.fspath(path)}, {name}: no {', '.join(sorted(missing))}")
        occluded = np.asarray(item["occluded"], bool)
        valid = np.asarray(item.get("valid", np.ones_like(occluded)), bool)
        frames = torch.from_numpy(np.stack([_resized(frame) for frame in item["video"]])).permute(0, 3, 1, 2)
        yield LabelledVideo(name, frames, np.asarray(item["points"], np.float64) * SIZE, occluded, valid)


def _resized(frame: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading videos needs Pillow: pip install chrono-features[eval]") from error
    image = Image.open(io.BytesIO(frame)).convert("RGB") if isinstance(frame, bytes) else Image.fromarray(frame)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


class _NumpyOnly(pickle.Unpickler):
    """Untrusted pickles run code; this one builds NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "_frombuffer", "ndarray", "dtype", "scalar"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants {module}.{name}; expected NumPy arrays only")

"""`Tracks`: what a tracker returns, and its file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import check_finite, check_path, check_tensor, shown
from .files import write_beside

INDICES = (int, np.integer, slice, list, np.ndarray, Tensor)


@dataclass(frozen=True, eq=False)
class Tracks:
    """Point tracks. Indexing (`tracks[0]`, `tracks[:, 3:5]`) goes over the leading dimensions of all fields alike.

    Attributes:
        xy: (B, N, T, 2) positions in pixels of the video, x and y, raster: the first pixel's centre is (0.5, 0.5).
        similarity: (B, N, T) maximum of the query's cosine similarity map in the frame, -1 to 1.
        visible: (B, N, T) bool, or None without a visibility head.
        logits: (B, N, T, 2) of *occluded* and *far from the truth*, or None without a visibility head.
        correlation: (B, N, T) of the pixels around the position with those around the query, -1 to 1, or None unless
            positions were refined with them.
        confidence: (B, N, T) probability of being seen and within 4 px (at 256 x 256) of the truth, or None unless it
            was asked for.
    """

    xy: Tensor
    similarity: Tensor
    visible: Tensor | None = None
    logits: Tensor | None = None
    correlation: Tensor | None = None
    confidence: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None and name not in ("xy", "similarity"):
                continue
            shape = "(B, N, T, 2)" if name in ("xy", "logits") else "(B, N, T)"
            if name == "visible":
                check_tensor(name, value, shape, (torch.bool,), "torch.bool", meta=True)
            else:
                check_tensor(name, value, shape, meta=True)
            points = tuple(self.xy.shape[:-1])
            expected = (*points, 2) if name in ("xy", "logits") else points
            if value.shape != expected:
                raise ValueError(f"{name} of shape {tuple(value.shape)}; expected {expected}, as xy is (B, N, T, 2)")

    def _map(self, function: Callable[[Tensor], Tensor]) -> Tracks:
        values: dict[str, Any] = {n: None if v is None else function(v) for n, v in vars(self).items()}
        return Tracks(**values)

    def __getitem__(self, index: Any) -> Tracks:
        used = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(i, INDICES) for i in used) or len(used) > self.similarity.ndim:
            expected = f"at most {self.similarity.ndim} integers, slices, lists or tensors, no ellipsis or None"
            raise IndexError(f"index {shown(index)}; expected {expected}")
        try:
            return self._map(lambda v: v[index])
        except (IndexError, TypeError, ValueError, RuntimeError) as error:
            raise IndexError(f"index {shown(index)}: {error}") from error

    def to(self, *args: Any, **kwargs: Any) -> Tracks:
        """`torch.Tensor.to` on every field; a floating dtype leaves `visible` a mask."""

        def moved(v: Tensor) -> Tensor:
            other = v.to(*args, **kwargs)
            return other.bool() if v.dtype == torch.bool else other

        return self._map(moved)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a NumPy `.npz` with one array per field that is not None. An existing file survives a failure.

        Raises:
            ValueError: A field holds NaN or infinity, which `load` refuses, or no values at all.
        """
        for name, value in vars(self).items():
            if value is not None and value.is_meta:
                raise ValueError(f"{name} is on the meta device; expected values, which load can read")
            if value is not None:
                check_finite(name, value)
        tensors = {name: v.detach().cpu() for name, v in vars(self).items() if v is not None}
        # NumPy knows no bfloat16; nothing is lost
        arrays = {name: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for name, v in tensors.items()}
        with write_beside(check_path("path", path)) as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tracks:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file does not hold tracks: other arrays, shapes or types, or values that are not finite.
        """
        path = check_path("path", path)
        known = {f.name for f in fields(cls)}
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ValueError(f"{path} is not a file; expected what Tracks.save wrote")
        try:
            with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as data:
                arrays = {name: torch.from_numpy(_whole(data[name])) for name in data.files}
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except Exception as error:  # a damaged file raises anything
            raise ValueError(f"{path} is not a whole .npz file: {error}") from error
        if not {"xy", "similarity"} <= arrays.keys() <= known:
            raise ValueError(f"{path} holds {sorted(arrays)}; expected arrays out of {sorted(known)}")
        try:
            for name, value in arrays.items():
                check_finite(name, value)
            return cls(**arrays)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _whole(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
        raise ValueError("booleans other than 0 and 1")  # which are miscounted where they are taken for a mask
    return array

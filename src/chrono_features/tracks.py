"""`Tracks`: what a tracker returns, and its file."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .files import write_beside


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

    def _map(self, function: Any) -> Tracks:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped: dict[str, Any] = {name: None if v is None else function(v) for name, v in values.items()}
        return Tracks(**mapped)

    def __getitem__(self, index: Any) -> Tracks:
        used = index if isinstance(index, tuple) else (index,)
        if any(i is Ellipsis or i is None for i in used) or len(used) > self.similarity.ndim:
            raise IndexError(f"index {index!r}; expected at most {self.similarity.ndim} indices, no ellipsis or None")
        return self._map(lambda v: v[index])

    def to(self, *args: Any, **kwargs: Any) -> Tracks:
        """`torch.Tensor.to` on every field; a floating dtype leaves `visible` a mask."""
        moved = self._map(lambda v: v.to(*args, **kwargs))
        return moved if moved.visible is None else replace(moved, visible=moved.visible.bool())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a NumPy `.npz` with one array per field that is not None. An existing file survives a failure."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        with write_beside(path) as file:
            np.savez_compressed(file, **{name: v.detach().cpu().numpy() for name, v in arrays.items()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tracks:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file does not hold tracks.
        """
        known = {f.name for f in fields(cls)}
        try:
            with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as data:
                arrays = {name: torch.from_numpy(data[name]) for name in data.files}
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise ValueError(f"{os.fspath(path)} is not a whole .npz file: {error}") from error
        if not {"xy", "similarity"} <= arrays.keys() <= known:
            raise ValueError(f"{os.fspath(path)} holds {sorted(arrays)}; expected arrays out of {sorted(known)}")
        return cls(**arrays)

"""From features to point tracks: `soft_argmax_track`, `Tracks`, `VisibilityHead` and `grid_queries`."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .files import write_beside
from .ops.matching import HALF, match


@dataclass(frozen=True, eq=False)
class Tracks:
    """Point tracks. Indexing (`tracks[0]`, `tracks[:, 3:5]`) goes over the leading dimensions of all fields alike.

    Attributes:
        xy: (B, N, T, 2) positions in pixels of the video, x and y, raster: the first pixel's centre is (0.5, 0.5).
        similarity: (B, N, T) maximum of the query's cosine similarity map in the frame, -1 to 1.
        visible: (B, N, T) bool, or None without a visibility head.
        logits: (B, N, T, 2) of *occluded* and *far from the truth*, or None without a visibility head.
    """

    xy: Tensor
    similarity: Tensor
    visible: Tensor | None = None
    logits: Tensor | None = None

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


class VisibilityHead(nn.Module):
    """A linear layer from a similarity map's mean, maximum and minimum to the logits *occluded* and *far*.

    A new head calls every point visible.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -2.0)

    def forward(
        self,
        statistics: Tensor,  # (..., 3) mean, maximum, minimum
    ) -> Tensor:
        """Returns the two logits, (..., 2)."""
        return self.linear(statistics.to(self.linear.weight.dtype))


def soft_argmax_track(
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor | None = None,  # (B, N, 3) (t, x, y)
    image_size: Sequence[float] | None = None,  # (H, W)
    *,
    query_features: Tensor | None = None,  # (B, N, C)
    temperature: float = 20.0,
    radius: float = 5.0,
    visibility_head: nn.Module | None = None,
    correlation_dtype: torch.dtype = torch.float32,
    memory_budget: int = 64 * 2**20,
) -> Tracks:
    """Tracks points through dense features of any backbone by soft-argmax (Chrono).

    A query's feature is sampled bilinearly in its frame and compared with every cell of every frame. Around the most
    similar cell, a softmax over the cells strictly nearer than `radius` gives the expected position. On its own frame
    a query is returned as it came. Differentiable in `features` and `query_features`. The full similarity volume is
    never held.

    Args:
        features: Features, normally of unit length along C.
        queries: Points to track: a whole frame index, and x, y in pixels of the video. Exactly one of this and
            `query_features` must be given.
        image_size: (height, width) in pixels that positions refer to.
        query_features: Features to look for, not normalised again; then no frame is a query's own.
        temperature: Factor on similarities before the softmax.
        radius: Radius of the disc around the best cell, in cells.
        visibility_head: Maps (..., 3) statistics of the similarity map to two logits, see `VisibilityHead`.
        correlation_dtype: `torch.bfloat16` reproduces the authors' evaluation; anything wider is at least float32 and
            at least the features' own precision.
        memory_budget: Bytes for one chunk of similarities.

    Returns:
        `Tracks`, positions in float32, or float64 for float64 features.

    Raises:
        ValueError: An argument has the wrong shape, type or range; the message names it.
    """
    _check_features(features)
    height, width = _check_image_size(image_size)
    for name, value in (("temperature", temperature), ("radius", radius), ("memory_budget", memory_budget)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value!r}; expected a finite number above 0")
    batch, frames, channels, rows, columns = features.shape
    scale = torch.tensor([width / columns, height / rows], dtype=torch.float64)
    query_frames = query_cells = None
    if queries is not None and query_features is None:
        queries = check_queries(queries, batch, frames, (height, width)).to(features.device)
        query_frames, query_cells = queries[..., 0].long(), queries[..., 1:] / scale.to(queries)
    elif query_features is None or queries is not None:
        given = "neither" if queries is None else "both"
        raise ValueError(f"queries and query_features: {given} given; expected exactly one")
    elif query_features.ndim != 3 or query_features.shape[::2] != (batch, channels):
        got = tuple(query_features.shape)
        raise ValueError(f"query_features of shape {got}; expected (B, N, C) with B={batch}, C={channels}")

    found = match(
        features, query_features, query_frames, query_cells, temperature, radius, correlation_dtype, memory_budget
    )
    xy = found.cells * scale.to(found.cells)
    if queries is not None and query_frames is not None:
        own_frame = torch.arange(frames, device=features.device) == query_frames[..., None]
        xy = torch.where(own_frame[..., None], queries[..., None, 1:].to(xy.dtype), xy)
    logits = visible = None
    if visibility_head is not None:
        # The paper's head does not train the features: what it sees is detached.
        logits = visibility_head(torch.stack([found.mean, found.maximum, found.minimum], dim=-1).detach())
        visible = (1 - torch.sigmoid(logits)).prod(dim=-1) >= 0.5  # neither occluded nor far
    return Tracks(xy, found.maximum, visible, logits)


def grid_queries(
    size: int | tuple[int, int],
    image_size: Sequence[float],
    t: int = 0,
) -> Tensor:
    """A regular grid of queries on frame `t`, at the centres of size x size (or rows x columns) equal tiles.

    Returns:
        (1, rows * columns, 3) float32 (t, x, y), row by row.

    Raises:
        ValueError: `size`, `image_size` or `t` is not positive.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if rows < 1 or columns < 1:
        raise ValueError(f"size={size!r}; expected a positive whole number, or two")
    if t < 0:
        raise ValueError(f"t={t!r}; expected a frame index, 0 or more")
    height, width = _check_image_size(image_size)
    ys = (torch.arange(rows) + 0.5) * (height / rows)
    xs = (torch.arange(columns) + 0.5) * (width / columns)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([torch.full_like(x, t), x, y], dim=-1).reshape(1, -1, 3)


def check_queries(
    queries: Tensor,  # (B, N, 3)
    batch: int,
    frames: int,
    image_size: tuple[float, float],
) -> Tensor:
    """Queries in float32 or float64.

    Raises:
        ValueError: Wrong shape, not finite, a time outside the clip or not whole, a position outside the frame.
    """
    if not isinstance(queries, Tensor) or queries.is_complex() or queries.dtype == torch.bool:
        kind = getattr(queries, "dtype", type(queries).__name__)
        raise ValueError(f"queries of type {kind}; expected a tensor of numbers (B, N, 3)")
    if queries.ndim == 3 and len(queries) == 1:
        queries = queries.expand(batch, -1, -1)  # one set for all videos, as `grid_queries` gives it
    if queries.ndim != 3 or queries.shape[0] != batch or queries.shape[-1] != 3:
        raise ValueError(f"queries of shape {tuple(queries.shape)}; expected (B, N, 3) as (t, x, y) with B={batch}")
    if not queries.is_floating_point() or queries.dtype in HALF:
        queries = queries.float()  # bfloat16 cannot count past 256
    if torch.compiler.is_compiling() or not queries.numel():
        return queries
    t, x, y = queries.unbind(-1)
    height, width = image_size
    for broken, expected in (
        (~queries.isfinite().all(-1), "finite numbers"),
        (t != t.round(), "a whole frame index t"),
        ((t < 0) | (t > frames - 1), f"a frame index t from 0 to {frames - 1}"),
        ((x < 0) | (x > width) | (y < 0) | (y > height), f"x from 0 to {width} and y from 0 to {height}"),
    ):
        if broken.any():
            b, n = broken.nonzero()[0].tolist()
            raise ValueError(f"queries[{b}, {n}] = {queries[b, n].tolist()}; expected (t, x, y) with {expected}")
    return queries


def _check_features(features: Tensor) -> None:
    if features.ndim != 5 or 0 in features.shape:
        raise ValueError(f"features of shape {tuple(features.shape)}; expected (B, T, C, h, w), none of them 0")
    if not features.is_floating_point():
        raise ValueError(f"features of type {features.dtype}; expected a floating type")


def _check_image_size(image_size: Sequence[float] | None) -> tuple[float, float]:
    try:
        height, width = image_size  # type: ignore[misc]
        valid = all(math.isfinite(v) and v > 0 for v in (height, width))
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"image_size={image_size!r}; expected two positive numbers (height, width)")
    return height, width

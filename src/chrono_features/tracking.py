"""Point tracks from features: `soft_argmax_track`, `grid_queries`, and `Tracks`, which both trackers and files hold."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checks import (
    LARGEST_WHOLE,
    check_features,
    check_finite,
    check_image_size,
    check_integer,
    check_matching,
    check_path,
    check_queries,
    check_tensor,
    is_integer,
    refusal,
    shown,
)
from .config import SoftArgmax
from .files import check_regular, write_beside
from .ops.matching import Match, match


def soft_argmax_track(
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor | None = None,  # (B, N, 3) (t, x, y)
    image_size: Sequence[float] | None = None,  # (H, W)
    *,
    query_features: Tensor | None = None,  # (B, N, C)
    temperature: float = 20.0,
    radius: float = 5.0,
    visibility_head: nn.Module | None = None,
    visible_threshold: float = 0.5,
    correlation_dtype: torch.dtype = torch.float32,
    memory_budget: int | None = None,
) -> Tracks:
    """Track points through dense features of any backbone by soft-argmax (Chrono, section 3).

    A query's feature is compared with every cell of every frame. Around the most similar cell, a softmax over the cells
    nearer than `radius` gives the expected position. Differentiable; the similarity volume is never held. Positions are
    means of cell centres: near the border of the image a point is placed further in, by up to half a cell.

    Args:
        features: Features, normally L2-normalised along C. Features in host memory may be tracked by queries on a
            GPU: they go there chunk by chunk.
        queries: An integer frame index, and x, y in pixels of the video, for each point. On the query frame the query
            itself is returned. Exactly one of this and `query_features` must be given.
        image_size: (height, width) in pixels that positions refer to.
        query_features: Features to look for, not normalised again; no frame is then a query frame.
        temperature: Factor on similarities before the softmax.
        radius: Radius of the disc around the best cell, in cells.
        visibility_head: Maps (..., 3) statistics of the similarity map to two logits, see `VisibilityHead`.
        visible_threshold: Minimum probability, by the head, of being neither occluded nor far.
        correlation_dtype: `torch.bfloat16` reproduces the authors' evaluation; others are float32 at least.
        memory_budget: Bytes for one chunk of similarities; None takes 48 MB on a CPU and 256 MB elsewhere.

    Returns:
        `Tracks`, positions in float32, or float64 for float64 features.

    Raises:
        ValueError: An argument has the wrong shape, type or range; the message names it.
    """
    check_features(features)
    image_size = check_image_size(image_size)
    check_matching(visibility_head, visible_threshold, correlation_dtype, memory_budget)
    batch, frames, channels = features.shape[:3]
    if (queries is None) == (query_features is None):
        raise ValueError(f"queries and query_features: {'neither' if queries is None else 'both'} given; expected one")
    if queries is not None:
        queries = check_queries(queries, batch, frames, image_size)
    else:
        _check_query_features(query_features, batch, channels)
    return find_tracks(
        features,
        queries,
        image_size,
        SoftArgmax(temperature, radius),
        query_features,
        visibility_head,
        visible_threshold,
        correlation_dtype,
        memory_budget,
    )


def find_tracks(
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor | None,  # (B, N, 3) (t, x, y)
    image_size: tuple[float, float],
    soft_argmax: SoftArgmax,
    query_features: Tensor | None,  # (B, N, C)
    visibility_head: nn.Module | None,
    visible_threshold: float,
    correlation_dtype: torch.dtype = torch.float32,
    memory_budget: int | None = None,
) -> Tracks:
    """`soft_argmax_track` for arguments that were checked; see there."""
    height, width = image_size
    frames, _, rows, columns = features.shape[1:]
    place = queries if queries is not None else query_features
    assert place is not None
    device = place.device if features.device.type == "cpu" else features.device
    place = place.to(device)
    cell = torch.tensor([width / columns, height / rows], dtype=torch.float64)
    if queries is not None:
        query_frames = place[..., 0].long()
        query_cells = place[..., 1:] / cell.to(place)
        found = match(features, None, query_frames, query_cells, soft_argmax, correlation_dtype, memory_budget)
    else:
        found = match(features, place, None, None, soft_argmax, correlation_dtype, memory_budget)
    _check_found(found, query_features, soft_argmax)
    xy = found.cells * cell.to(found.cells)
    if queries is not None:
        is_query_frame = torch.arange(frames, device=device) == query_frames[..., None]
        xy = torch.where(is_query_frame[..., None], place[..., None, 1:].to(xy.dtype), xy)
    if visibility_head is None:
        return Tracks(xy, found.maximum)
    # The paper's head does not train the features: what it sees is detached.
    logits = visibility_head(torch.stack([found.mean, found.maximum, found.minimum], dim=-1).detach())
    if not isinstance(logits, Tensor) or logits.shape != xy.shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"visibility_head returns {got}; expected {tuple(xy.shape)}, two logits a point and frame")
    visible = (1 - torch.sigmoid(logits)).prod(dim=-1) >= visible_threshold  # neither occluded nor far
    return Tracks(xy, found.maximum, visible, logits)


def _check_query_features(query_features: Any, batch: int, channels: int) -> None:
    expected = f"(B, N, C) with B={batch}, C={channels}"
    check_tensor("query_features", query_features, expected)
    if query_features.ndim != 3 or query_features.shape[::2] != (batch, channels):
        raise ValueError(f"query_features of shape {tuple(query_features.shape)}; expected {expected}")


def _check_found(found: Match, query_features: Tensor | None, soft_argmax: SoftArgmax) -> None:
    """ValueError unless all is finite. It is asked here, of few numbers: features would have to be read once more."""
    if torch.compiler.is_compiling():
        return
    similarities, positions = torch.stack([v.isfinite().all() for v in (found.mean, found.cells)]).tolist()
    if not similarities:
        known = query_features is None or query_features.isfinite().all()
        name = "features" if known else "query_features"
        raise ValueError(f"{name}: similarities are NaN or infinite; expected finite values, normally L2-normalised")
    if not positions:
        raise refusal(
            "temperature", soft_argmax.temperature, "one whose product with the similarities stays in correlation_dtype"
        )


def grid_queries(
    size: int | tuple[int, int],
    image_size: Sequence[float],
    t: int = 0,
) -> Tensor:
    """A regular grid of queries on frame `t`, at the centres of size x size (or rows x columns) equal tiles.

    Returns:
        (1, rows * columns, 3) float32 (t, x, y), row by row.

    Raises:
        ValueError: `size`, `image_size` or `t` is not as above; the message names it.
    """
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    whole = len(pair) == 2 and all(is_integer(n, 1, LARGEST_WHOLE) for n in pair)
    if not whole or pair[0] * pair[1] > LARGEST_WHOLE:
        raise refusal("size", size, f"a positive integer or two (rows, columns), for {LARGEST_WHOLE} points at most")
    rows, columns = pair
    t = check_integer("t", t, maximum=LARGEST_WHOLE)
    height, width = check_image_size(image_size)
    ys = (torch.arange(rows) + 0.5) * (height / rows)
    xs = (torch.arange(columns) + 0.5) * (width / columns)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([torch.full_like(x, t), x, y], dim=-1).reshape(1, -1, 3)


MIN_NPZ_LIMIT = 1 << 28  # bytes that any file of tracks may inflate to
MAX_NPZ_RATIO = 100  # of a larger one's bytes to the file's
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
            tensors = tuple(_as_index(i) for i in used)
            return self._map(lambda v: v[tensors])
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
        check_regular(path, "what Tracks.save wrote")
        try:
            _check_npz(path)
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: torch.from_numpy(_native(data[name])) for name in data.files}
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # a damaged file raises anything
            raise ValueError(f"{path} is a truncated or corrupt .npz file: {error}") from error
        if not {"xy", "similarity"} <= arrays.keys() <= known:
            raise ValueError(f"{path} holds {sorted(arrays)}; expected arrays out of {sorted(known)}")
        try:
            for name, value in arrays.items():
                check_finite(name, value)
            return cls(**arrays)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _as_index(index: Any) -> Any:
    """A list or array as a tensor: of lists, PyTorch takes some for tuples."""
    if not isinstance(index, (list, np.ndarray)):
        return index
    return torch.as_tensor(index) if len(index) else torch.zeros(0, dtype=torch.long)


def _check_npz(path: Path) -> None:
    """ValueError where it would inflate to what no tracks of its size hold."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise ValueError("it is not compressed as NumPy does")
    size = sum(member.file_size for member in members)
    limit = max(MIN_NPZ_LIMIT, MAX_NPZ_RATIO * path.stat().st_size)
    if size > limit:
        raise ValueError(f"it inflates to {size} bytes; expected at most {limit} of a file of this size")


def _native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array in this machine's byte order; torch knows no other."""
    if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
        raise ValueError("booleans other than 0 and 1")  # which are miscounted where they are taken for a mask
    return array.astype(array.dtype.newbyteorder("="), copy=False)

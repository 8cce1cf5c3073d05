"""Point tracks from features: `soft_argmax_track`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_features, check_image_size, check_matching, check_queries, check_tensor, refusal
from .config import SoftArgmax
from .ops.matching import Match, match
from .tracks import Tracks


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
    queries = None if queries is None else place
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
        return Tracks(xy, found.maximum, queries=queries)
    # The paper's head does not train the features: what it sees is detached.
    logits = visibility_head(torch.stack([found.mean, found.maximum, found.minimum], dim=-1).detach())
    if not isinstance(logits, Tensor) or logits.shape != xy.shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"visibility_head returns {got}; expected {tuple(xy.shape)}, two logits a point and frame")
    visible = (1 - torch.sigmoid(logits)).prod(dim=-1) >= visible_threshold  # neither occluded nor far
    return Tracks(xy, found.maximum, visible, logits, queries=queries)


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

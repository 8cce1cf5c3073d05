"""From features to point tracks: `soft_argmax_track`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_features, check_image_size, check_queries, check_soft_argmax, check_tensor, refusal
from .ops.matching import Match, default_budget, match
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
    """Tracks points through dense features of any backbone by soft-argmax (Chrono).

    A query's feature is sampled bilinearly in its frame and compared with every cell of every frame. Around the most
    similar cell, a softmax over the cells strictly nearer than `radius` gives the expected position. On its own frame
    a query is returned as it came. Differentiable in `features` and `query_features`. The full similarity volume is
    never held.

    Positions are means of cell centres: within half a cell of the border of the image a point is placed further in, by
    up to half a cell, and `visible` does not tell. `ChronoBackbone.track(..., refine="photometric")` reduces that.

    Args:
        features: Features, normally of unit length along C. Features in host memory may be tracked by queries on a
            GPU: they go there chunk by chunk.
        queries: Points to track: a whole frame index, and x, y in pixels of the video. Exactly one of this and
            `query_features` must be given.
        image_size: (height, width) in pixels that positions refer to.
        query_features: Features to look for, not normalised again; then no frame is a query's own.
        temperature: Factor on similarities before the softmax.
        radius: Radius of the disc around the best cell, in cells.
        visibility_head: Maps (..., 3) statistics of the similarity map to two logits, see `VisibilityHead`.
        visible_threshold: Minimum probability, by the head, of being neither occluded nor far for a point to count as
            visible (Chrono: 0.5).
        correlation_dtype: `torch.bfloat16` reproduces the authors' evaluation; anything wider is at least float32 and
            at least the features' own precision.
        memory_budget: Bytes for one chunk of similarities; None takes 48 MB on a CPU and 256 MB elsewhere.

    Returns:
        `Tracks`, positions in float32, or float64 for float64 features.

    Raises:
        ValueError: An argument has the wrong shape, type or range; the message names it.
    """
    check_features(features)
    height, width = check_image_size(image_size)
    temperature, radius = check_soft_argmax(
        temperature, radius, visibility_head, correlation_dtype, memory_budget, visible_threshold
    )
    place = queries if queries is not None else query_features
    device = place.device if features.device.type == "cpu" and isinstance(place, Tensor) else features.device
    memory_budget = default_budget(device) if memory_budget is None else memory_budget
    batch, frames, channels, rows, columns = features.shape
    scale = torch.tensor([width / columns, height / rows], dtype=torch.float64)
    query_frames = query_cells = None
    if queries is not None and query_features is None:
        queries = check_queries(queries, batch, frames, (height, width)).to(device)
        query_frames, query_cells = queries[..., 0].long(), queries[..., 1:] / scale.to(queries)
    elif query_features is None or queries is not None:
        raise ValueError(f"queries and query_features: {'neither' if queries is None else 'both'} given; expected one")
    else:
        _check_query_features(query_features, batch, channels)
        query_features = query_features.to(device)

    found = match(
        features, query_features, query_frames, query_cells, temperature, radius, correlation_dtype, memory_budget
    )
    _check_found(found, query_features, temperature)
    xy = found.cells * scale.to(found.cells)
    if queries is not None and query_frames is not None:
        own_frame = torch.arange(frames, device=device) == query_frames[..., None]
        xy = torch.where(own_frame[..., None], queries[..., None, 1:].to(xy.dtype), xy)
    logits = visible = None
    if visibility_head is not None:
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


def _check_found(found: Match, query_features: Tensor | None, temperature: float) -> None:
    """ValueError unless all is finite. It is asked here, of few numbers: features would have to be read once more."""
    if torch.compiler.is_compiling():
        return
    similarities, positions = torch.stack([v.isfinite().all() for v in (found.mean, found.cells)]).tolist()
    if not similarities:
        known = query_features is None or query_features.isfinite().all()
        name = "features" if known else "query_features"
        raise ValueError(f"{name}: similarities are NaN or infinite; expected finite values, normally L2-normalised")
    if not positions:
        raise refusal("temperature", temperature, "one whose product with the similarities stays in correlation_dtype")

"""TAP-Vid's protocol, in NumPy: which points are queried, and what a prediction scores. Measured at 256 x 256."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_choice

THRESHOLDS = (1, 2, 4, 8, 16)  # pixels at 256 x 256
MODES = ("first", "strided")
MASK_MODE = "masks"  # the mode of records of videos with masks
STRIDE = 5  # frames between queries of the mode *strided*


def sample_queries(
    xy: NDArray[Any],  # (N, T, 2)
    usable: NDArray[Any],  # (N, T) bool: visible, and known
    mode: str,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sample queries as TAP-Vid does.

    Args:
        xy: Tracks.
        usable: Where a track may be queried.
        mode: "first" takes every track's first usable frame; "strided" every fifth frame in which it is usable.

    Returns:
        Queries (M, 3) as (t, x, y), and the track of each, (M,). Tracks that are never usable have none.

    Raises:
        ValueError: Unknown mode.
    """
    check_choice("mode", mode, MODES)
    if mode == "first":
        tracks = np.flatnonzero(usable.any(axis=1))
        times = usable.argmax(axis=1)[tracks]
    else:
        strides, tracks = np.nonzero(usable[:, ::STRIDE].T)
        times = strides * STRIDE
    return np.concatenate([times[:, None], xy[tracks, times]], axis=1).astype(np.float64), tracks


def tapvid_metrics(
    query_frames: NDArray[Any],  # (N,)
    true_xy: NDArray[Any],  # (N, T, 2) at 256 x 256
    true_occluded: NDArray[Any],  # (N, T) bool
    xy: NDArray[Any],  # (N, T, 2) at 256 x 256
    occluded: NDArray[Any],  # (N, T) bool
    mode: str,
    valid: NDArray[Any] | None = None,  # (N, T) bool
) -> dict[str, float]:
    """Compute the metrics of one video (Doersch et al., TAP-Vid).

    Args:
        query_frames: The frame of each query.
        true_xy, true_occluded: Ground truth.
        xy, occluded: Prediction.
        mode: "first" scores the frames after a query's; "strided" all frames but the query's.
        valid: False where the truth is unknown; left out of every count.

    Returns:
        `occlusion_accuracy`; `pts_within_{1,2,4,8,16}`, the share of visible points nearer than that;
        `jaccard_{…}`; and `average_pts_within_thresh` (<delta_avg) and `average_jaccard` (AJ). NaN where nothing
        counts.

    Raises:
        ValueError: Unknown mode.
    """
    scored = scored_frames(query_frames, true_xy.shape[1], mode)
    if valid is not None:
        scored = scored & valid
    visible, predicted_visible = ~true_occluded & scored, ~occluded & scored
    squared = np.square(xy - true_xy).sum(-1)
    metrics = {"occlusion_accuracy": ratio((true_occluded == occluded) & scored, scored)}
    for threshold in THRESHOLDS:
        within = squared < threshold**2
        metrics[f"pts_within_{threshold}"] = ratio(within & visible, visible)
        true_positives = within & visible & predicted_visible
        false_positives = predicted_visible & ~(within & visible)
        union = visible.sum() + false_positives.sum()
        metrics[f"jaccard_{threshold}"] = float(true_positives.sum() / union) if union else float("nan")
    metrics["average_pts_within_thresh"] = float(np.mean([metrics[f"pts_within_{t}"] for t in THRESHOLDS]))
    metrics["average_jaccard"] = float(np.mean([metrics[f"jaccard_{t}"] for t in THRESHOLDS]))
    return metrics


def scored_frames(
    query_frames: NDArray[Any],  # (N,)
    num_frames: int,
    mode: str,
) -> NDArray[np.bool_]:
    """The frames that count for each query, (N, T): those after the query frame in "first", all but it in "strided"."""
    check_choice("mode", mode, MODES)
    times = np.arange(num_frames)
    own = query_frames[:, None]
    return times > own if mode == "first" else times != own


def track_deltas(
    true_xy: NDArray[Any],  # (N, T, 2) at 256 x 256
    xy: NDArray[Any],  # (N, T, 2) at 256 x 256
    counted: NDArray[Any],  # (N, T) bool: scored, visible and known
) -> NDArray[np.float64]:
    """<delta_avg of each track alone, (N,); NaN for a track of which nothing counts."""
    distance = np.sqrt(np.square(xy - true_xy).sum(-1))[..., None]
    hits = ((distance < THRESHOLDS).mean(-1) * counted).sum(1)
    return np.divide(hits, counted.sum(1), out=np.full(len(hits), np.nan), where=counted.any(1))


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> float:
    return float(part.sum() / whole.sum()) if whole.sum() else float("nan")

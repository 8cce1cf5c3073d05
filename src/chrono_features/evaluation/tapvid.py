"""TAP-Vid's metrics, in NumPy. Everything is measured at 256 x 256."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (1, 2, 4, 8, 16)  # pixels at 256 x 256


def tapvid_metrics(
    query_frames: NDArray[Any],  # (N,)
    true_xy: NDArray[Any],  # (N, T, 2) at 256 x 256
    true_occluded: NDArray[Any],  # (N, T) bool
    xy: NDArray[Any],  # (N, T, 2) at 256 x 256
    occluded: NDArray[Any],  # (N, T) bool
    mode: str,
    valid: NDArray[Any] | None = None,  # (N, T) bool
) -> dict[str, float]:
    """Metrics of one video (Doersch et al., TAP-Vid).

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
    frames = np.arange(true_xy.shape[1])
    if mode == "first":
        scored = frames > query_frames[:, None]
    elif mode == "strided":
        scored = frames != query_frames[:, None]
    else:
        raise ValueError(f"mode={mode!r}; expected 'first' or 'strided'")
    if valid is not None:
        scored = scored & valid
    visible, predicted_visible = ~true_occluded & scored, ~occluded & scored
    squared = np.square(xy - true_xy).sum(-1)
    metrics = {"occlusion_accuracy": _ratio((true_occluded == occluded) & scored, scored)}
    for threshold in THRESHOLDS:
        within = squared < threshold**2
        metrics[f"pts_within_{threshold}"] = _ratio(within & visible, visible)
        true_positives = within & visible & predicted_visible
        false_positives = predicted_visible & ~(within & visible)
        union = visible.sum() + false_positives.sum()
        metrics[f"jaccard_{threshold}"] = float(true_positives.sum() / union) if union else float("nan")
    metrics["average_pts_within_thresh"] = float(np.mean([metrics[f"pts_within_{t}"] for t in THRESHOLDS]))
    metrics["average_jaccard"] = float(np.mean([metrics[f"jaccard_{t}"] for t in THRESHOLDS]))
    return metrics


def first_queries(
    xy: NDArray[Any],  # (N, T, 2)
    usable: NDArray[Any],  # (N, T) bool: visible, and known
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Queries (M, 3) as (t, x, y) at the first usable frame, and which tracks have one, (N,) bool."""
    kept = np.asarray(usable.any(axis=1))
    frame = usable.argmax(axis=1)
    queries = np.concatenate([frame[:, None], xy[np.arange(len(xy)), frame]], axis=1)
    return queries[kept].astype(np.float32), kept


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> float:
    return float(part.sum() / whole.sum()) if whole.sum() else float("nan")

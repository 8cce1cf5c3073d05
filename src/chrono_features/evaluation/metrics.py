"""Metrics beside TAP-Vid's: visibility, joints, calibration, and how sure a mean over videos is. In NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .protocol import ratio


def balanced_accuracy(
    visible: NDArray[Any],  # (...) bool, truth
    called_visible: NDArray[Any],  # (...) bool
    counted: NDArray[Any] | None = None,  # (...) bool
) -> float:
    """Mean of the shares of visible and of hidden points that are called so; NaN where either kind is absent.

    Where almost nothing is occluded, plain accuracy rewards calling everything visible; this does not.
    """
    counted = np.ones(visible.shape, bool) if counted is None else counted
    shown, hidden = visible & counted, ~visible & counted
    return (ratio(called_visible & shown, shown) + ratio(~called_visible & hidden, hidden)) / 2


def average_precision(
    truth: NDArray[Any],  # (...) bool
    score: NDArray[Any],  # (...) higher: more likely true
    counted: NDArray[Any] | None = None,  # (...) bool
) -> float:
    """Area under the steps of the precision-recall curve, equal scores taken together; NaN without a true one."""
    counted = np.ones(truth.shape, bool) if counted is None else counted
    truth, score = truth[counted], score[counted].astype(np.float64)  # booleans, too
    if not truth.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    truth, score = truth[order], score[order]
    last = np.append(score[1:] != score[:-1], True)  # of each group of equal scores
    found = np.cumsum(truth)[last]
    precision, recall = found / (np.flatnonzero(last) + 1), found / found[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def pck(
    true_xy: NDArray[Any],  # (N, T, 2)
    xy: NDArray[Any],  # (N, T, 2)
    counted: NDArray[Any],  # (N, T) bool
    reference: NDArray[Any],  # (T,) pixels
    alpha: float = 0.2,
) -> float:
    """Percentage of correct keypoints, 0 to 1: joints strictly nearer than `alpha` times a reference length.

    Args:
        true_xy: Joints as marked.
        xy: Joints as found.
        counted: Which of them count.
        reference: Each frame's length: `joint_extent`, or the square root of the object's area as in BADJA.
        alpha: The share of it.
    """
    distance = np.sqrt(np.square(xy - true_xy).sum(-1))
    return ratio((distance < alpha * reference) & counted, counted)


def joint_extent(
    true_xy: NDArray[Any],  # (N, T, 2)
    known: NDArray[Any],  # (N, T) bool
) -> NDArray[np.float64]:
    """The longer side of the box around each frame's known joints, (T,); 0 without any."""
    low = np.where(known[..., None], true_xy, np.inf).min(0, initial=np.inf)
    high = np.where(known[..., None], true_xy, -np.inf).max(0, initial=-np.inf)
    return np.maximum(high - low, 0).max(-1)


def reliability(
    probability: NDArray[Any],  # (...) 0 to 1
    happened: NDArray[Any],  # (...) bool
    bins: int = 10,
) -> list[tuple[float, float, int]]:
    """Bins of equal width: the mean probability stated, the share that happened, and how many; empty ones left out."""
    place = np.clip((probability * bins).astype(int), 0, bins - 1).ravel()
    count = np.bincount(place, minlength=bins)
    stated = np.bincount(place, probability.ravel(), minlength=bins)
    seen = np.bincount(place, happened.ravel().astype(float), minlength=bins)
    return [(float(stated[b] / count[b]), float(seen[b] / count[b]), int(count[b])) for b in np.flatnonzero(count)]


def bootstrap_interval(
    values: Sequence[float],
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap of a mean over videos: how far it could be off with other videos of the same kind.

    Args:
        values: One number per video; NaN is left out.
        level: Share of resampled means between the two ends.
        samples: How often videos are drawn anew, with replacement.
        seed: Of the draws.

    Returns:
        The two ends; NaN for fewer than two videos, of which nothing can be said.
    """
    numbers = np.asarray(values, np.float64)
    numbers = numbers[~np.isnan(numbers)]
    if len(numbers) < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(len(numbers), size=(samples, len(numbers)))
    low, high = np.quantile(numbers[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""Metrics beside TAP-Vid's: visibility, joints, calibration, and confidence intervals of means over videos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..extras import require
from .protocol import ratio


def balanced_accuracy(
    visible: NDArray[Any],  # (...) bool, truth
    predicted_visible: NDArray[Any],  # (...) bool
    counted: NDArray[Any] | EllipsisType = ...,  # (...) bool, or all
) -> float:
    """Mean recall of visible and of occluded points; NaN where either kind is absent.

    Where almost nothing is occluded, plain accuracy rewards calling everything visible; this does not.
    """
    truth = visible[counted].ravel()
    if truth.all() or not truth.any():
        return math.nan
    metrics = require("sklearn.metrics", "eval")
    return float(metrics.balanced_accuracy_score(truth, predicted_visible[counted].ravel()))


def average_precision(
    truth: NDArray[Any],  # (...) bool
    score: NDArray[Any],  # (...) higher: more likely true
    counted: NDArray[Any] | EllipsisType = ...,  # (...) bool, or all
) -> float:
    """Area under the steps of the precision-recall curve, equal scores taken together; NaN without a true one."""
    truth = truth[counted].ravel()
    if not truth.any():
        return math.nan
    # A tracker that breaks down gives NaN: the lowest score there is.
    finite = np.nan_to_num(score[counted].ravel().astype(np.float64), nan=np.finfo(np.float64).min)
    return float(require("sklearn.metrics", "eval").average_precision_score(truth, finite))


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
    known = ~np.isnan(probability)
    if not known.any():
        return []
    stated = probability[known].clip(0, 1)
    statistic = partial(require("scipy.stats", "eval").binned_statistic, stated, bins=np.arange(bins + 1) / bins)
    means = statistic([stated, happened[known]], "mean").statistic
    counts = statistic(None, "count").statistic
    return [(float(p), float(h), int(count)) for p, h, count in zip(*means, counts, strict=True) if count]


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
        return math.nan, math.nan
    found = require("scipy.stats", "eval").bootstrap(
        (numbers,),
        np.mean,
        n_resamples=samples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)

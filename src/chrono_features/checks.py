"""What is asked of videos, features and queries before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .ops.dtypes import HALF

VALUE_RANGE = (-0.0501, 1.0501)  # resizing overshoots [0, 1] a little: 0.05, and rounding


def check_video(video: Tensor) -> None:
    """ValueError unless `video` is (B, T, 3, H, W), uint8 or floating 0 … 1."""
    if not isinstance(video, Tensor):
        raise ValueError(f"video of type {type(video).__name__}; expected a torch.Tensor (B, T, 3, H, W)")
    if video.ndim != 5 or video.shape[2] != 3 or 0 in video.shape:
        raise ValueError(f"video of shape {tuple(video.shape)}; expected (B, T, 3, H, W), none of them 0")
    if video.dtype != torch.uint8 and not video.is_floating_point():
        raise ValueError(f"video of type {video.dtype}; expected uint8 0 … 255 or floating 0 … 1")
    if video.is_floating_point() and not torch.compiler.is_compiling():
        low, high = torch.stack(torch.aminmax(video)).tolist()
        if low != low or high != high:
            raise ValueError("video holds NaN; expected values from 0 to 1")
        if low < VALUE_RANGE[0] or high > VALUE_RANGE[1]:
            raise ValueError(f"video with values from {low:.4g} to {high:.4g}; expected 0 … 1 (or uint8 0 … 255)")


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


def check_xy(xy: Tensor, queries: Tensor, frames: int) -> None:
    """ValueError unless positions are of these queries in so many frames."""
    if xy.shape != (*queries.shape[:2], frames, 2):
        raise ValueError(f"tracks.xy of shape {tuple(xy.shape)}; expected {(*queries.shape[:2], frames, 2)}")


def check_features(features: Tensor, video: Tensor | None = None) -> None:
    """ValueError unless `features` are floating (B, T, C, h, w), with the B and T of `video`."""
    if not isinstance(features, Tensor):
        raise ValueError(f"features of type {type(features).__name__}; expected a torch.Tensor (B, T, C, h, w)")
    if features.ndim != 5 or 0 in features.shape:
        raise ValueError(f"features of shape {tuple(features.shape)}; expected (B, T, C, h, w), none of them 0")
    if not features.is_floating_point():
        raise ValueError(f"features of type {features.dtype}; expected a floating type")
    if video is not None and features.shape[:2] != video.shape[:2]:
        expected = f"(B, T, C, h, w) with the video's B={video.shape[0]}, T={video.shape[1]}"
        raise ValueError(f"features of shape {tuple(features.shape)}; expected {expected}")


def check_image_size(image_size: Sequence[float] | None) -> tuple[float, float]:
    """`image_size` as (height, width); ValueError unless it is two positive numbers."""
    try:
        height, width = image_size  # type: ignore[misc]
        valid = all(math.isfinite(v) and v > 0 for v in (height, width))
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"image_size={image_size!r}; expected two positive numbers (height, width)")
    return height, width

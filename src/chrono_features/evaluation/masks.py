"""Features and tracks measured with masks of objects: DAVIS's J and F, and whether points stay in their masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.clip import MaskClip
from ..extras import require
from ..labels import propagate_labels
from .protocol import ratio

QUERY_MARGIN = 3 / 256  # of the frame's longer side: how far from the boundary of its mask a point is queried


def region_similarity(
    truth: NDArray[Any],  # (H, W) bool
    found: NDArray[Any],  # (H, W) bool
) -> float:
    """J of DAVIS, 0 to 1: what two masks share of what they cover together. Two empty masks score 1."""
    union = (truth | found).sum()
    return float((truth & found).sum() / union) if union else 1.0


def boundary_accuracy(
    truth: NDArray[Any],  # (H, W) bool
    found: NDArray[Any],  # (H, W) bool
    tolerance: float = 0.008,
) -> float:
    """F of DAVIS, 0 to 1: the harmonic mean of how much of either boundary lies near the other one.

    The boundary is where a pixel differs from the next one to the right, below, or below to the right; the frame's
    edge is none. Where only one mask has a boundary the score is 0, where neither has one it is 1, as in DAVIS's code.

    Args:
        truth: The mask as marked.
        found: The mask as found.
        tolerance: How near, as a share of the frame's diagonal; rounded up to integer pixels.
    """
    true_boundary, boundary = _boundary(truth), _boundary(found)
    if not (true_boundary.any() and boundary.any()):
        return float(true_boundary.any() == boundary.any())
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    precision = ratio(boundary & _dilated(true_boundary, radius), boundary)
    recall = ratio(true_boundary & _dilated(boundary, radius), true_boundary)
    return 2 * precision * recall / (precision + recall) if precision else 0.0  # one is 0 where the other is


def propagation_metrics(
    features: Tensor,  # (T, C, h, w)
    video: MaskClip,
    frames: Tensor | None = None,  # (T, 3, H, W)
    *,
    context: int = 7,
    neighbours: int = 5,
    radius: int | None = 12,
    temperature: float = 10.0,
) -> dict[str, float]:
    """Measure how well features carry the first frame's masks through a video: DAVIS's semi-supervised evaluation.

    Masks go through `propagate_labels`, background included. As in DINO's evaluation, labels are
    then scaled up bilinearly, each is stretched to 0 ... 1 over its frame, and the greatest wins. DINO's own masks are
    made small by taking the nearest pixel instead of by area, and are scaled to the video's size after the decision.

    As in DAVIS's, the first and the last frame are not scored, and objects that the first frame does not show count
    as background. DAVIS averages over the objects of all videos; a mean over these numbers weighs videos alike.

    Args:
        features: Of the video's frames.
        video: The masks, of which the first frame's are propagated.
        frames: The video's frames, whose raw colours then join the features.
        context, neighbours, radius, temperature: As in `propagate_labels`.

    Returns:
        `J`, `F` and their mean `J&F`, 0 to 1, averaged over frames and then objects; NaN where there is nothing to
        score.

    Raises:
        ValueError: The features are not of as many frames as the video.
    """
    masks = video.masks
    if len(features) != len(masks):
        raise ValueError(f"features of {len(features)} frames; expected the {len(masks)} of the video {video.name}")
    objects = _objects(masks[0])
    if not len(objects) or len(masks) < 3:
        return dict.fromkeys(("J", "F", "J&F"), math.nan)
    first = torch.from_numpy(masks[0] == np.array([0, *objects])[:, None, None])
    first[0] = ~first[1:].any(dim=0)
    (labels,) = propagate_labels(
        features[None],
        first[None],
        video=None if frames is None else frames[None],
        context=context,
        neighbours=neighbours,
        radius=radius,
        temperature=temperature,
    )
    scores = [_object_scores(truth, frame, objects) for truth, frame in zip(masks[1:-1], labels[1:-1], strict=True)]
    region, boundary = np.mean(scores, axis=(0, 1)).tolist()
    return {"J": region, "F": boundary, "J&F": (region + boundary) / 2}


def mask_queries(
    video: MaskClip,
    count: int = 100,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Sample points of the first frame's objects, each on the finest regular grid that fits its equal share of `count`.

    They keep away from the boundary of the object's mask, 3 pixels at 256 x 256, unless nothing of it is left then.

    Args:
        video: A video and the masks of its objects.
        count: The most points of all objects together.

    Returns:
        Queries (M, 3) as (t, x, y) in pixels of the masks, at the centres of pixels; and the object of each, (M,).
        Every object of the first frame has at least one.

    Raises:
        ValueError: `count` is less than the number of objects.
    """
    first = video.masks[0]
    objects = _objects(first)
    if count < max(1, len(objects)):
        raise ValueError(f"count={count!r}; expected at least 1 for each of {len(objects)} objects of {video.name}")
    margin = math.ceil(QUERY_MARGIN * max(first.shape))
    points = [np.empty((0, 2), np.int64)]  # (row, column)
    for number in objects:
        mask = first == number
        inner = mask & ~_dilated(~mask, margin)
        points.append(_grid(inner if inner.any() else mask, count // len(objects)))
    rows, columns = np.concatenate(points).T
    queries = np.stack([np.zeros(len(rows)), columns + 0.5, rows + 0.5], axis=1).astype(np.float32)
    return queries, first[rows, columns]


def mask_consistency(
    xy: NDArray[Any],  # (N, T, 2) pixels of the masks
    visible: NDArray[Any],  # (N, T) bool
    objects: NDArray[Any],  # (N,)
    masks: NDArray[Any],  # (T, H, W) 0 is background, k the k-th object
    query_frames: NDArray[Any] | int = 0,  # (N,), or one for all
) -> dict[str, float]:
    """Measure whether the points of one video stay in the masks of their objects, in the frames after their query.

    A point may be hidden though its object is not, so that even the best tracker has less than 1 of `mask_recall`.

    Args:
        xy: Positions found. A point is inside if the pixel it lies in is its object's.
        visible: Whether a point is called visible.
        objects: The object that each point belongs to.
        masks: The masks of every frame.
        query_frames: The frame of each query; it and those before it do not count.

    Returns:
        `mask_precision`: of a point's frames in which it is called visible, the share in which it is inside.
        `mask_recall`: of a point's frames in which its object is in the frame, the share in which it is called
        visible and is inside. Both over all points together, 0 to 1; NaN where nothing counts.
    """
    num_frames, height, width = masks.shape
    after = np.arange(num_frames) > np.reshape(query_frames, (-1, 1))
    in_frame = np.all((xy >= 0) & (xy < (width, height)), axis=-1)  # not so of what is not a number
    columns, rows = np.moveaxis(np.where(in_frame[..., None], xy, 0).astype(np.int64), -1, 0)
    inside = in_frame & (masks[np.arange(num_frames), rows, columns] == objects[:, None])
    called = visible & after
    present = np.stack([np.isin(objects, mask) for mask in masks], axis=1) & after
    return {"mask_precision": ratio(inside & called, called), "mask_recall": ratio(inside & called, present)}


def _object_scores(
    truth: NDArray[Any],  # (H, W)
    labels: Tensor,  # (K, h, w), background first
    objects: NDArray[np.int64],
) -> list[tuple[float, float]]:
    """J and F of each object in a frame."""
    large = F.interpolate(labels[None], truth.shape, mode="bilinear", align_corners=False)[0]
    low, high = (value[:, None, None] for value in torch.aminmax(large.flatten(1), dim=1))
    stretched = (large - low) / (high - low).clamp(min=torch.finfo(large.dtype).tiny)
    winner = stretched.argmax(dim=0).cpu().numpy()
    pairs = [(truth == number, winner == place) for place, number in enumerate(objects, start=1)]
    return [(region_similarity(*pair), boundary_accuracy(*pair)) for pair in pairs]


def _objects(mask: NDArray[Any]) -> NDArray[np.int64]:
    """The objects that a frame shows."""
    numbers = np.unique(mask)
    return numbers[numbers > 0]


def _boundary(
    mask: NDArray[Any],  # (H, W) bool
) -> NDArray[np.bool_]:
    beyond = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != beyond[:-1, 1:]) | (mask != beyond[1:, :-1]) | (mask != beyond[1:, 1:])


def _dilated(
    mask: NDArray[Any],  # (H, W) bool
    radius: int,
) -> NDArray[np.bool_]:
    """The pixels no farther than `radius` from one of the mask's."""
    offsets = np.arange(-radius, radius + 1) ** 2
    disc = (offsets[:, None] + offsets <= radius**2).astype(np.uint8)
    return require("cv2", "eval").dilate(mask.astype(np.uint8), disc).astype(bool)


def _grid(
    mask: NDArray[Any],  # (H, W) bool
    count: int,
) -> NDArray[np.int64]:  # (M, 2) rows and columns
    """The finest regular grid with at most `count` pixels in a mask; of one pixel at least."""
    pixels = np.argwhere(mask)
    for step in range(1, max(mask.shape) + 1):
        chosen = pixels[(pixels % step == step // 2).all(axis=1)]
        if len(chosen) <= count:
            break
    return chosen if len(chosen) else pixels[len(pixels) // 2][None]  # a mask between the lines of the grid

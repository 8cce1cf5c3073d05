"""From the first frame's labels to every frame's, by similar features: `propagate_labels`."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .dtypes import wide_dtype
from .ops.matching import default_budget
from .preprocess import cell_colours

MOST_LABELS = 2**16 - 1  # each takes a mask of its own
COLOUR = 0.95  # of the similarity, where colours join: of 0.8, 0.95 and 0.99 the best on synthetic clips


@torch.no_grad()
def propagate_labels(
    features: Tensor,  # (B, T, C, h, w)
    labels: Tensor,  # (B, K, H, W) floating or bool, or (B, H, W) integers
    *,
    video: Tensor | None = None,  # (B, T, 3, H, W)
    context: int = 7,
    neighbours: int = 5,
    radius: int | None = 12,
    temperature: float = 10.0,
) -> Tensor:  # (B, T, K, h, w)
    """Carries labels of the first frame (masks, parts, heatmaps) through a video, as DINO segments videos.

    Each cell of a frame is compared with the cells around it in the first frame and in the `context` frames before its
    own. The labels of the most similar `neighbours` of them all are averaged, weighted by a softmax over their
    similarities; of equally similar cells any may be taken. Frame by frame, labels so found serve the frames that
    follow. The defaults are those of DINO's evaluation (eval_video_segmentation.py). There are no gradients.

    Features that tell points apart, as `chrono-tiny`'s, differ much within an object. Without colours, many neighbours
    of nearly like weight suit them better: `neighbours=40, temperature=3.0`.

    Args:
        features: Features of any length along C: they are compared by cosine similarity.
        labels: Labels of the first frame at any resolution, resized to the features' grid by area. Either K channels
            of floating values or masks; or a map of labels 0, 1, ..., where 0 is usually the background: it stands for
            one mask for each label from 0 to the largest, and `.argmax(2)` of the result is such a map again.
        video: Where it is given, raw colours join the features: similarity is then for 0.05 that of the features and
            for 0.95 that of the cells' colours, which vary far less. Colours follow outlines closely, features
            tell apart what is of one colour.
        context: How many frames before its own a frame sees, beside the first.
        neighbours: How many cells a cell's label is averaged over.
        radius: Most rows, and most columns, that may lie between a cell and its neighbours; None for no limit.
        temperature: Factor on similarities before the softmax; 10 is what DINO writes as division by 0.1.

    Returns:
        Labels on the features' grid, in float32, or float64 for float64 features. Those of the first frame are the
        resized input, and no value is outside of the input's range. To the size of the video, scale them bilinearly.

    Raises:
        ValueError: An argument has the wrong shape, type or range; the message names it.
    """
    if video is not None:
        checks.check_video(video)
    checks.check_features(features, video)
    _check_labels(labels, len(features))
    farthest = max(features.shape[-2:])
    search = _Search(
        min(checks.check_integer("context", context), features.shape[1]),
        checks.check_integer("neighbours", neighbours, 1),
        farthest if radius is None else min(checks.check_integer("radius", radius), farthest),
        checks.check_number("temperature", temperature),
    )
    if video is not None:
        features = _with_colours(features, video)
    labels = _on_grid(labels, features)
    with torch.autocast(features.device.type, enabled=False):  # which would round similarities to half precision
        found = torch.stack([_propagate(*clip, search) for clip in zip(features, labels, strict=True)])
    if not found.isfinite().all():  # asked of the labels, which are fewer than the features
        raise ValueError("features hold NaN or infinity; expected finite numbers")
    return found


def _with_colours(
    features: Tensor,  # (B, T, C, h, w)
    video: Tensor,  # (B, T, 3, H, W)
) -> Tensor:  # (B, T, C + 4, h, w), L2-normalised
    wide = features.to(wide_dtype(features.dtype))  # colours differ by little
    colours = cell_colours(video.to(features.device), (features.shape[-2], features.shape[-1])).to(wide)
    return torch.cat([F.normalize(wide, dim=2) * (1 - COLOUR) ** 0.5, colours * COLOUR**0.5], dim=2)


def _on_grid(
    labels: Tensor,  # (B, K, H, W) floating or bool, or (B, H, W) integers
    features: Tensor,  # (B, T, C, h, w)
) -> Tensor:  # (B, K, h, w)
    labels = labels.to(features.device)
    if labels.ndim == 3:
        labels = labels.long()  # uint16 holds few operations
        labels = labels[:, None] == torch.arange(int(labels.max()) + 1, device=labels.device)[:, None, None]
    # Averages over whole cells: an object smaller than a cell keeps its share of it.
    return F.interpolate(labels.to(wide_dtype(features.dtype)), features.shape[-2:], mode="area")


class _Search(NamedTuple):
    """Where neighbours are looked for, and how they are weighted."""

    context: int
    neighbours: int
    radius: int
    temperature: float


class _Frame(NamedTuple):
    cells: Tensor  # (..., h, w, C) L2-normalised
    labels: Tensor  # (..., h, w, K)


def _propagate(
    features: Tensor,  # (T, C, h, w)
    labels: Tensor,  # (K, h, w)
    search: _Search,
) -> Tensor:  # (T, K, h, w)
    unit = (F.normalize(frame.to(labels), dim=0).movedim(0, -1).contiguous() for frame in features)
    first = _Frame(next(unit), labels.movedim(0, -1))
    recent: deque[_Frame] = deque(maxlen=search.context)
    found = [first.labels]
    for cells in unit:
        found.append(_look_up(cells, _Frame(*map(torch.stack, zip(first, *recent, strict=True))), search))
        recent.append(_Frame(cells, found[-1]))
    return torch.stack(found).movedim(-1, 1)


def _look_up(
    cells: Tensor,  # (h, w, C)
    seen: _Frame,  # n frames
    search: _Search,
) -> Tensor:  # (h, w, K)
    """Labels of a frame from those of the frames it sees, a few rows at a time: all similarities would be too many."""
    count, height, width = seen.cells.shape[:3]
    row, column = (torch.arange(n, device=cells.device) for n in (height, width))
    far_columns = (column[:, None] - column).abs() > search.radius
    row_bytes = width * count * height * width * cells.element_size()  # one row's similarities, if no cell is far
    step = max(1, default_budget(cells.device) // row_bytes)
    found = []
    for start in range(0, height, step):
        own, near = slice(start, start + step), slice(max(0, start - search.radius), start + step + search.radius)
        similarity = cells[own].flatten(0, 1) @ seen.cells[:, near].flatten(0, 2).T
        far_rows = (row[own, None] - row[near]).abs() > search.radius
        far = far_rows[:, None, None, :, None] | far_columns[:, None, None]  # (own rows, w, 1, near rows, w)
        similarity.view(-1, width, count, far_rows.shape[1], width).masked_fill_(far, -math.inf)
        best, index = similarity.topk(min(search.neighbours, similarity.shape[1]))
        weights = ((best - best[:, :1]) * search.temperature).softmax(dim=-1)
        found.append(torch.einsum("nk,nkl->nl", weights, seen.labels[:, near].flatten(0, 2)[index]))
    return torch.cat(found).unflatten(0, (height, width))


def _check_labels(labels: Tensor, batch: int) -> None:
    expected = f"(B, K, H, W) floating or bool, or (B, H, W) integers, with B={batch}"
    checks.check_tensor("labels", labels, expected, (torch.bool, *checks.FLOATING, *checks.WHOLE), expected)
    soft = labels.is_floating_point() or labels.dtype == torch.bool
    if labels.ndim != (4 if soft else 3) or len(labels) != batch or 0 in labels.shape:
        raise ValueError(f"labels of shape {tuple(labels.shape)} and type {labels.dtype}; expected {expected}")
    checks.check_finite("labels", labels)
    if not soft:
        low, high = torch.stack(torch.aminmax(labels.long())).tolist()
        if low < 0 or high > MOST_LABELS:
            raise ValueError(f"labels from {low} to {high}; expected integers from 0 to {MOST_LABELS}")

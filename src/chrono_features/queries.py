"""Points to track: on a regular grid, or in the objects of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import LARGEST_WHOLE, check_image_size, check_integer, is_integer, is_number, refusal

Roi = Sequence[float]  # (x0, y0, x1, y1) in pixels


def grid_queries(
    size: int | tuple[int, int],
    image_size: Sequence[float],
    t: int = 0,
    *,
    roi: Roi | None = None,
) -> Tensor:
    """A regular grid of queries on frame `t`, at the centres of size x size (or rows x columns) equal tiles.

    Args:
        size: Points along each side, or (rows, columns).
        image_size: (height, width) in pixels.
        t: The frame.
        roi: The part of the image that is divided, (x0, y0, x1, y1) in pixels; None is all of it.

    Returns:
        (1, rows * columns, 3) float32 (t, x, y), row by row.

    Raises:
        ValueError: An argument is not as above; the message names it.
    """
    rows, columns = _check_size(size)
    t = check_integer("t", t, maximum=LARGEST_WHOLE)
    height, width = check_image_size(image_size)
    x0, y0, x1, y1 = (0.0, 0.0, width, height) if roi is None else _check_roi(roi, height, width)
    ys = y0 + (torch.arange(rows) + 0.5) * ((y1 - y0) / rows)
    xs = x0 + (torch.arange(columns) + 0.5) * ((x1 - x0) / columns)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([torch.full_like(x, t), x, y], dim=-1).reshape(1, -1, 3)


def object_queries(
    mask: Any,  # (H, W)
    size: int | tuple[int, int] = 16,
    t: int = 0,
    *,
    roi: Roi | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries in every object of a mask: of a grid over its bounding box, the points that lie in it.

    An object between the points of its grid gets its pixel next to the middle.

    Args:
        mask: Integers, 0 for the background and another one for each object; NumPy or torch.
        size: Points along each side of a box, or (rows, columns).
        t: The frame.
        roi: What lies outside of (x0, y0, x1, y1), in pixels, is background; None is nothing.

    Returns:
        (1, N, 3) float32 (t, x, y), object by object; and (N,) the object of each.

    Raises:
        ValueError: An argument is not as above, or no object is left; the message names it.
    """
    rows, columns = _check_size(size)
    labels = torch.as_tensor(np.asarray(mask))
    if labels.ndim != 2 or 0 in labels.shape or labels.is_floating_point() or labels.is_complex():
        got = f"{str(labels.dtype)[6:]} of shape {tuple(labels.shape)}"
        raise ValueError(f"mask is {got}; expected (H, W) integers, 0 for the background")
    labels = labels.long()
    height, width = labels.shape
    if roi is not None:
        x0, y0, x1, y1 = _check_roi(roi, height, width)
        down, across = torch.arange(height) + 0.5, torch.arange(width) + 0.5
        inside = ((down >= y0) & (down <= y1))[:, None] & (across >= x0) & (across <= x1)
        labels = labels.where(inside, torch.zeros_like(labels))
    numbers = [number for number in labels.unique().tolist() if number != 0]
    if not numbers:
        where = "" if roi is None else f" inside roi={tuple(roi)}"
        raise ValueError(f"mask has no object{where}; expected values other than 0")
    queries, objects = [], []
    for number in numbers:
        y, x = (labels == number).nonzero().unbind(1)
        top, left, bottom, right = (int(v) for v in (y.min(), x.min(), y.max() + 1, x.max() + 1))
        tiles = (min(rows, bottom - top), min(columns, right - left))  # a pixel wide at least
        points = grid_queries(tiles, (height, width), t, roi=(left, top, right, bottom))[0]
        inside = labels[points[:, 2].long(), points[:, 1].long()] == number
        if not inside.any():
            places = torch.stack([x, y], dim=1) + 0.5
            nearest = (places - places.mean(0)).norm(dim=1).argmin()
            points = torch.cat([torch.full((1,), float(t)), places[nearest]])[None]
            inside = torch.ones(1, dtype=torch.bool)
        queries.append(points[inside])
        objects.append(torch.full((int(inside.sum()),), number))
    return torch.cat(queries)[None], torch.cat(objects)


def _check_size(size: Any) -> tuple[int, int]:
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    whole = len(pair) == 2 and all(is_integer(n, 1, LARGEST_WHOLE) for n in pair)
    if not whole or pair[0] * pair[1] > LARGEST_WHOLE:
        raise refusal("size", size, f"a positive integer or two (rows, columns), for {LARGEST_WHOLE} points at most")
    return pair[0], pair[1]


def _check_roi(roi: Any, height: float, width: float) -> tuple[float, float, float, float]:
    valid = isinstance(roi, (tuple, list)) and len(roi) == 4 and all(map(is_number, roi))
    if not valid or not (0 <= roi[0] < roi[2] <= width and 0 <= roi[1] < roi[3] <= height):
        expected = f"(x0, y0, x1, y1) with 0 <= x0 < x1 <= {width:g} and 0 <= y0 < y1 <= {height:g}"
        raise refusal("roi", roi, expected)
    return roi[0], roi[1], roi[2], roi[3]

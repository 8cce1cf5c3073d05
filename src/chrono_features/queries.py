"""Points to track: `grid_queries`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import LARGEST_WHOLE, check_image_size, check_integer, is_integer, refusal


def grid_queries(
    size: int | tuple[int, int],
    image_size: Sequence[float],
    t: int = 0,
) -> Tensor:
    """A regular grid of queries on frame `t`, at the centres of size x size (or rows x columns) equal tiles.

    Returns:
        (1, rows * columns, 3) float32 (t, x, y), row by row.

    Raises:
        ValueError: `size`, `image_size` or `t` is not as above; the message names it.
    """
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    whole = len(pair) == 2 and all(is_integer(n, 1, LARGEST_WHOLE) for n in pair)
    if not whole or pair[0] * pair[1] > LARGEST_WHOLE:
        raise refusal("size", size, f"a positive integer or two (rows, columns), for {LARGEST_WHOLE} points at most")
    rows, columns = pair
    t = check_integer("t", t, most=LARGEST_WHOLE)
    height, width = check_image_size(image_size)
    ys = (torch.arange(rows) + 0.5) * (height / rows)
    xs = (torch.arange(columns) + 0.5) * (width / columns)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([torch.full_like(x, t), x, y], dim=-1).reshape(1, -1, 3)

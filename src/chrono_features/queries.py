"""Points to track: `grid_queries`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_image_size


def grid_queries(
    size: int | tuple[int, int],
    image_size: Sequence[float],
    t: int = 0,
) -> Tensor:
    """A regular grid of queries on frame `t`, at the centres of size x size (or rows x columns) equal tiles.

    Returns:
        (1, rows * columns, 3) float32 (t, x, y), row by row.

    Raises:
        ValueError: `size`, `image_size` or `t` is not positive.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if rows < 1 or columns < 1:
        raise ValueError(f"size={size!r}; expected a positive whole number, or two")
    if t < 0:
        raise ValueError(f"t={t!r}; expected a frame index, 0 or more")
    height, width = check_image_size(image_size)
    ys = (torch.arange(rows) + 0.5) * (height / rows)
    xs = (torch.arange(columns) + 0.5) * (width / columns)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([torch.full_like(x, t), x, y], dim=-1).reshape(1, -1, 3)

"""Between this library's coordinates and those of trackers.

Here, as in TAP-Vid, TAPIR and LocoTrack, whole numbers lie on pixel edges: the first pixel's centre is (0.5, 0.5).
CoTracker puts them on pixel centres. Queries are (t, x, y) here and in CoTracker, (t, y, x) in TAPIR and LocoTrack.
"""

from __future__ import annotations

from torch import Tensor

HALF_A_PIXEL = 0.5


def to_cotracker(xy: Tensor) -> Tensor:  # (..., 2) pixels
    """The same positions as CoTracker counts them."""
    return xy - HALF_A_PIXEL


def from_cotracker(xy: Tensor) -> Tensor:  # (..., 2) pixels as CoTracker counts them
    """The same positions in raster pixels."""
    return xy + HALF_A_PIXEL


def tyx_from_txy(queries: Tensor) -> Tensor:  # (..., 3)
    """Queries (t, x, y) as (t, y, x)."""
    return queries[..., [0, 2, 1]]


def txy_from_tyx(queries: Tensor) -> Tensor:  # (..., 3)
    """Queries (t, y, x) as (t, x, y)."""
    return queries[..., [0, 2, 1]]

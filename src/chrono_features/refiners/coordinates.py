"""Queries, positions and whole tracks, from this library's form to that of other trackers and back.

| | here | CoTracker | TAPIR, LocoTrack |
|---|---|---|---|
| centre of the first pixel | (0.5, 0.5) | (0, 0) | (0.5, 0.5) |
| queries | (B, N, 3) t, x, y | (B, N, 3) t, x, y | (B, N, 3) t, y, x |
| tracks | (B, N, T, 2) x, y | (B, T, N, 2) x, y | (B, N, T, 2) x, y |
| visible | (B, N, T) | (B, T, N) | (B, N, T), or two logits |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..tracks import Tracks

HALF_A_PIXEL = 0.5


def to_cotracker(points: Tracks | Tensor) -> Any:
    """Converts queries, positions or tracks to CoTracker's form. The time of a query stays as it is.

    Args:
        points: Queries (..., 3) as (t, x, y), positions (..., 2), or `Tracks` of (B, N, T).

    Returns:
        Queries and positions: a tensor of the same shape. `Tracks`: positions (B, T, N, 2) and visibility (B, T, N), as
        CoTracker's predictors return them; visibility is None where the tracks have none.

    Raises:
        ValueError: `points` is none of these.
    """
    if not isinstance(points, Tracks):
        return _shifted(_checked(points), -HALF_A_PIXEL)
    xy = _checked_tracks(points.xy)
    return _shifted(xy, -HALF_A_PIXEL).transpose(1, 2), None if points.visible is None else points.visible.mT


def from_cotracker(points: tuple[Tensor, Tensor] | Tensor) -> Any:
    """Converts queries, positions or what CoTracker's predictors return to this library's form.

    Args:
        points: Queries (..., 3) as (t, x, y), positions (..., 2), or the pair of tracks (B, T, N, 2) and bool
            visibility (B, T, N).

    Returns:
        Queries and positions: a tensor of the same shape. The pair: `Tracks` with a similarity of 1, as it has none.

    Raises:
        ValueError: `points` is none of these.
    """
    if not _is_output(points):
        return _shifted(_checked(points), HALF_A_PIXEL)
    tracks, visible = _pair(points)
    return _tracks(_shifted(tracks, HALF_A_PIXEL).transpose(1, 2), None if visible is None else visible.mT)


def to_tapir(points: Tracks | Tensor) -> Any:
    """Converts queries, positions or tracks to the form of TAPIR and LocoTrack.

    Args:
        points: Queries (..., 3) as (t, x, y), positions (..., 2), or `Tracks` of (B, N, T).

    Returns:
        Queries: a tensor (..., 3) of (t, y, x). Positions: as they are. `Tracks`: the pair of positions (B, N, T, 2)
        and visibility (B, N, T), which is None where the tracks have none.

    Raises:
        ValueError: `points` is none of these.
    """
    if isinstance(points, Tracks):
        return _checked_tracks(points.xy), points.visible
    points = _checked(points)
    return tyx_from_txy(points) if points.shape[-1] == 3 else points


def from_tapir(points: Mapping[str, Tensor] | tuple[Tensor, Tensor] | Tensor) -> Any:
    """Converts queries, positions or what TAPIR and LocoTrack return to this library's form.

    Args:
        points: Queries (..., 3) as (t, y, x), positions (..., 2), the trackers' outputs `tracks` (B, N, T, 2),
            `occlusion` and `expected_dist` (logits, both (B, N, T); or `occlusion` alone, bool), or the pair of tracks
            and bool visibility.

    Returns:
        Queries: a tensor (..., 3) of (t, x, y). Positions: as they are. Outputs and pair: `Tracks` with a similarity
        of 1, as they have none. Points are visible where the trackers' own rule says so, which is this library's too.

    Raises:
        ValueError: `points` is none of these.
    """
    if isinstance(points, Mapping):
        return _tracks_from_outputs(points)
    if _is_output(points):
        return _tracks(*_pair(points))
    points = _checked(points)
    return txy_from_tyx(points) if points.shape[-1] == 3 else points


to_locotrack, from_locotrack = to_tapir, from_tapir  # LocoTrack is TAPIR's in this


def tyx_from_txy(queries: Tensor) -> Tensor:  # (..., 3)
    """Queries (t, x, y) as (t, y, x)."""
    return queries[..., [0, 2, 1]]


txy_from_tyx = tyx_from_txy  # y and x trade places either way


def _tracks_from_outputs(outputs: Mapping[str, Tensor]) -> Tracks:
    if missing := [key for key in ("tracks", "occlusion") if key not in outputs]:
        raise ValueError(f"outputs with the keys {list(outputs)}; expected {' and '.join(missing)} too")
    xy = _checked_tracks(outputs["tracks"])
    occlusion = _of_points("occlusion", outputs["occlusion"], xy, logits=True)
    if occlusion.dtype == torch.bool:
        return _tracks(xy, ~occlusion)
    if "expected_dist" not in outputs:
        raise ValueError("outputs without expected_dist; expected it beside the logits of occlusion")
    distance = _of_points("expected_dist", outputs["expected_dist"], xy, logits=True)
    logits = torch.stack([occlusion, distance], dim=-1)
    return _tracks(xy, (1 - torch.sigmoid(logits)).prod(dim=-1) >= 0.5, logits)


def _of_points(name: str, values: Any, xy: Tensor, logits: bool = False) -> Tensor:
    """A value of each point and frame: bool, or logits too."""
    values = _tensor(values)
    typed = isinstance(values, Tensor) and (values.dtype == torch.bool or (logits and values.is_floating_point()))
    if not typed or values.shape != xy.shape[:-1]:
        got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        each = tuple(xy.shape[:-1])
        expected = (
            f"bool or floating {each}" if logits else f"torch.bool {each}: compare probabilities with a threshold"
        )
        raise ValueError(f"{name} of {got} for tracks of shape {tuple(xy.shape)}; expected {expected}")
    return values


def _is_output(points: Any) -> bool:
    return isinstance(points, (tuple, list)) and len(points) > 0 and isinstance(points[0], (Tensor, np.ndarray))


def _pair(output: Any) -> tuple[Tensor, Tensor | None]:
    if len(output) != 2:
        raise ValueError(f"an output of {len(output)} values; expected two, tracks and visibility")
    xy = _checked_tracks(output[0])
    return xy, None if output[1] is None else _of_points("visibility", output[1], xy)


def _tracks(
    xy: Tensor,  # (B, N, T, 2)
    visible: Tensor | None,  # (B, N, T) bool
    logits: Tensor | None = None,  # (B, N, T, 2)
) -> Tracks:
    return Tracks(xy, torch.ones_like(xy[..., 0]), visible, logits)


def _tensor(values: Any) -> Any:
    return torch.from_numpy(values) if isinstance(values, np.ndarray) else values


def _shifted(points: Tensor, by: float) -> Tensor:  # (..., 2) or (..., 3)
    """Moves x and y, the last two; t, before them, is a frame."""
    return points + points.new_tensor([0, by, by][-points.shape[-1] :])


def _checked(points: Any) -> Tensor:
    """Queries or positions, in float32 at least: half precision cannot count pixels past 256."""
    try:
        points = torch.as_tensor(points)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"points of type {type(points).__name__}; expected a tensor or Tracks ({error})") from error
    if points.ndim == 0 or points.shape[-1] not in (2, 3):
        raise ValueError(f"points of shape {tuple(points.shape)}; expected positions (..., 2) or queries (..., 3)")
    return points.to(torch.promote_types(points.dtype, torch.float32))


def _checked_tracks(tracks: Any) -> Tensor:
    tracks = _tensor(tracks)
    if not isinstance(tracks, Tensor) or tracks.ndim != 4 or tracks.shape[-1] != 2:
        got = tuple(tracks.shape) if isinstance(tracks, Tensor) else type(tracks).__name__
        raise ValueError(f"tracks of shape {got}; expected four dimensions, the last of them x and y")
    return _checked(tracks)

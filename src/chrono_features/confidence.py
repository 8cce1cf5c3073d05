"""How sure a track is: a calibrated probability per point and frame of being seen, and within 4 px of the truth.

It is a logistic model of a few signals, whose weights are part of a model's configuration. Where the video was used to
refine positions, how well the pixels agree is one of the signals, with weights of their own for all of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .checks import (
    check_features,
    check_finite,
    check_image_size,
    check_probability,
    check_queries,
    check_tensor,
    check_tracks,
    is_number,
    refusal,
)
from .config import ChronoConfig, SoftArgmax
from .dtypes import wide_dtype
from .ops.matching import default_budget, match, sample_features
from .tracks import Tracks

SIGNALS = ("similarity", "margin", "entropy", "cycle error")  # and "correlation" for refined tracks
NEAR = 4.0  # pixels at 256 x 256
LARGEST_CYCLE_ERROR = 32.0  # pixels at 256 x 256; from there on all are alike


def confidence_weights(config: ChronoConfig, refined: bool) -> tuple[float, ...]:
    """The weights that a configuration holds, for plain or for refined tracks.

    Raises:
        ValueError: It holds none.
    """
    name = "refined_confidence" if refined else "confidence"
    weights = getattr(config, name)
    if weights is None:
        raise ValueError(
            f"confidence=True for a model whose {name} is None; expected a calibrated one, see "
            "chrono_features.evaluation.fit_confidence"
        )
    return weights


def with_confidence(
    tracks: Tracks,
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor,  # (B, N, 3) (t, x, y)
    image_size: Sequence[float],
    weights: Sequence[float],
    visible_threshold: float = 0.5,
    *,
    temperature: float = 20.0,
    radius: float = 5.0,
) -> Tracks:
    """Add the confidence of each position, and call visible what reaches a threshold.

    Args:
        tracks: Tracks of `queries`, refined or not.
        features: The features that were tracked.
        queries: The points that were tracked.
        image_size: (height, width) in pixels that positions refer to.
        weights: Of `probability`, fitted to tracks of this kind.
        visible_threshold: Minimum confidence for a point to count as visible.
        temperature, radius: Of soft-argmax.

    Returns:
        `tracks` with `confidence`, and with another `visible`.

    Raises:
        ValueError: An argument has the wrong shape, type or range.
    """
    check_probability("visible_threshold", visible_threshold)
    queries, image_size = _checked(features, queries, tracks, image_size)
    soft_argmax = SoftArgmax(temperature, radius)
    return add_confidence(tracks, features, queries, image_size, weights, visible_threshold, soft_argmax)


@torch.no_grad()
def add_confidence(
    tracks: Tracks,
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor,  # (B, N, 3) (t, x, y)
    image_size: tuple[float, float],
    weights: Sequence[float],
    visible_threshold: float,
    soft_argmax: SoftArgmax,
) -> Tracks:
    """`with_confidence` for arguments that were checked; see there."""
    confidence = probability(_track_signals(features, queries, tracks, image_size, soft_argmax), weights)
    return replace(tracks, confidence=confidence, visible=confidence >= visible_threshold)


@torch.no_grad()
def track_signals(
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor,  # (B, N, 3) (t, x, y)
    tracks: Tracks,
    image_size: Sequence[float],
    *,
    temperature: float = 20.0,
    radius: float = 5.0,
) -> Tensor:
    """What tells a good position from a bad one.

    Args:
        features: The features that were tracked.
        queries: The points that were tracked.
        tracks: Where they were found.
        image_size: (height, width) in pixels that positions refer to.
        temperature, radius: Of soft-argmax.

    Returns:
        (B, N, T, 4) float32, or 5 for refined tracks: the similarity of query and position; by how much it exceeds the
        highest one that is `radius` cells or more away; the entropy of the softmax over all cells, 0 (one cell) to 1
        (all alike); the cycle error, the distance in pixels at 256 x 256 between the query and where the feature at
        the position is found in the query's frame, as log(1 + distance / 4); and the correlation of the pixels, where
        tracks were refined.

    Raises:
        ValueError: An argument has the wrong shape, type or range.
    """
    queries, image_size = _checked(features, queries, tracks, image_size)
    return _track_signals(features, queries, tracks, image_size, SoftArgmax(temperature, radius))


def _checked(
    features: Tensor, queries: Tensor, tracks: Tracks, image_size: Sequence[float]
) -> tuple[Tensor, tuple[float, float]]:
    """Queries and image size; ValueError where these do not belong together."""
    check_features(features)
    check_finite("features", features)
    size = check_image_size(image_size)
    batch, frames = features.shape[:2]
    queries = check_queries(queries, batch, frames, size)
    check_tracks(tracks, queries, frames)
    return queries, size


def _track_signals(
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor,  # (B, N, 3) (t, x, y)
    tracks: Tracks,
    image_size: tuple[float, float],
    soft_argmax: SoftArgmax,
) -> Tensor:  # (B, N, T, 4 or 5)
    rows, columns = features.shape[-2:]
    device = tracks.xy.device
    queries = queries.to(device)
    cell = torch.tensor([image_size[1] / columns, image_size[0] / rows], device=device)
    signals = []
    with torch.autocast(device.type, enabled=False):  # which would round similarities to half precision
        for b in range(len(features)):
            places = tracks.xy[b].to(cell) / cell
            own_frames = queries[b, :, 0].long()
            own = queries[b, :, 1:].to(cell)
            maps = _map_signals(features[b], own_frames, own / cell, places, soft_argmax)
            cycle = _cycle_error(features[b], own_frames, own, places, image_size, soft_argmax)
            pixels = [] if tracks.correlation is None else [tracks.correlation[b, ..., None].to(maps)]
            signals.append(torch.cat([maps, cycle[..., None], *pixels], dim=-1).float())
    found = torch.stack(signals)
    if not found.isfinite().all():
        raise ValueError("features: similarities are too large; expected features that are L2-normalised")
    return found


class FrameConfidence:
    """The same for frames as they come. Features of the points' query frames are kept while their points are.

    Args:
        weights: Of `probability`.
        image_size: (height, width) in pixels that positions refer to.
        soft_argmax: How positions are read from similarity maps.
    """

    def __init__(self, weights: Sequence[float], image_size: tuple[float, float], soft_argmax: SoftArgmax) -> None:
        self._weights = weights
        self._image_size = image_size
        self._soft_argmax = soft_argmax
        self.query_frames: dict[int, Tensor] = {}  # (C, h, w)

    def copy(self) -> FrameConfidence:
        other = copy.copy(self)
        other.query_frames = self.query_frames.copy()
        return other

    def judge(
        self,
        features: Tensor,  # (C, h, w)
        own_features: Tensor,  # (N, C)
        own_frames: Tensor,  # (N,)
        own: Tensor,  # (N, 2) pixels
        xy: Tensor,  # (N, 2) pixels
        correlation: Tensor | None,  # (N,)
    ) -> Tensor:  # (N,)
        used = own_frames.unique().tolist()
        self.query_frames = {t: self.query_frames[t] for t in used}
        height, width = self._image_size
        rows, columns = features.shape[-2:]
        places = xy / torch.tensor([width / columns, height / rows], device=xy.device)
        maps = map_signals(features, own_features, places, self._soft_argmax)
        first = torch.zeros_like(own_frames)
        sought = sample_features(features[None], first, places, wide_dtype(features.dtype))
        cycle = torch.empty_like(maps[:, :1])
        for t, there in self.query_frames.items():
            n = (own_frames == t).nonzero()[:, 0]
            cycle[n, 0] = cycle_error(there, sought[n], own[n], self._image_size, self._soft_argmax).to(cycle)
        pixels = [] if correlation is None else [correlation[:, None].to(maps)]
        return probability(torch.cat([maps, cycle, *pixels], dim=-1).float(), self._weights)


def probability(
    signals: Tensor,  # (..., S)
    weights: Sequence[float],
) -> Tensor:  # (...)
    """The logistic model of a confidence: `weights` are a bias and one for each of `SIGNALS`.

    Raises:
        ValueError: An argument has the wrong shape or type.
    """
    check_tensor("signals", signals, "(..., S)")
    check_finite("signals", signals)
    count = signals.shape[-1] if signals.ndim else 0
    numbers = isinstance(weights, Sequence) and len(weights) == count + 1 and all(map(is_number, weights))
    if not count or not numbers:
        raise refusal("weights", weights, f"a bias and one number for each of the {count} signals")
    bias, *slopes = weights
    return torch.sigmoid((signals * signals.new_tensor(slopes)).sum(-1) + bias)


def fit(
    signals: Tensor,  # (M, S)
    good: Tensor,  # (M,) bool: seen, and within 4 px at 256 x 256
) -> tuple[float, ...]:
    """The weights of `probability` that make what happened most likely (logistic regression, Newton's method).

    Raises:
        ValueError: `good` is the same everywhere, so that nothing can be told apart, or an argument has the wrong shape
            or type.
    """
    check_tensor("signals", signals, "(M, S)")
    if signals.ndim != 2 or 0 in signals.shape:
        raise ValueError(f"signals of shape {tuple(signals.shape)}; expected (M, S), none of them 0")
    check_finite("signals", signals)
    check_tensor("good", good, f"({len(signals)},)", (torch.bool,), "torch.bool")
    if good.shape != signals.shape[:1]:
        raise ValueError(f"good of shape {tuple(good.shape)}; expected ({len(signals)},), one for each of the signals")
    if good.all() or not good.any():
        raise ValueError(f"good is {bool(good.all())} for all {len(good)} points; expected some of either kind")
    inputs = torch.cat([torch.ones_like(signals[:, :1]), signals], dim=1).double()
    weights = inputs.new_zeros(inputs.shape[1])
    ridge = 1e-6 * len(inputs) * torch.eye(len(weights)).to(inputs)  # keeps separable data finite
    for _ in range(50):
        p = torch.sigmoid(inputs @ weights)
        gradient = inputs.T @ (p - good.to(p)) + ridge @ weights
        curvature = (inputs * (p * (1 - p))[:, None]).T @ inputs + ridge
        step = torch.linalg.solve(curvature, gradient)
        weights = weights - step
        if step.abs().max() < 1e-8:
            break
    return tuple(round(w, 4) for w in weights.tolist())


def _map_signals(
    features: Tensor,  # (T, C, h, w)
    own_frames: Tensor,  # (N,)
    own: Tensor,  # (N, 2) cells
    places: Tensor,  # (N, T, 2) cells
    soft_argmax: SoftArgmax,
) -> Tensor:  # (N, T, 3)
    rows, columns = features.shape[-2:]
    dtype = wide_dtype(features.dtype)
    own_features = sample_features(features, own_frames, own, dtype)
    signals = places.new_empty(*places.shape[:2], 3)
    step = max(1, default_budget(own.device) // (4 * rows * columns * dtype.itemsize))
    for t, frame in enumerate(features):
        frame = frame.to(own.device)  # features may be in main memory
        for n in torch.arange(len(places), device=own.device).split(step):
            signals[n, t] = map_signals(frame, own_features[n], places[n, t], soft_argmax).to(signals)
    return signals


def map_signals(
    frame: Tensor,  # (C, h, w)
    own_features: Tensor,  # (N, C)
    places: Tensor,  # (N, 2) cells
    soft_argmax: SoftArgmax,
) -> Tensor:  # (N, 3)
    """Similarity, margin and entropy of positions in a frame."""
    rows, columns = frame.shape[-2:]
    farthest = min(soft_argmax.radius, 2 * math.hypot(rows, columns))
    x = torch.arange(columns).to(places) + 0.5
    y = torch.arange(rows).to(places) + 0.5
    maps = own_features @ frame.to(own_features).flatten(1)
    first = torch.zeros_like(places[:, 0], dtype=torch.long)
    similarity = (own_features * sample_features(frame[None], first, places, own_features.dtype)).sum(-1)
    far = ((x - places[:, :1]) ** 2)[:, None] + ((y - places[:, 1:]) ** 2)[..., None] >= farthest**2
    rival = maps.masked_fill(~far.flatten(1), -math.inf).amax(-1)
    rival = rival.where(rival > -math.inf, similarity)  # the disc covers everything: no rival, no margin
    spread = torch.softmax(soft_argmax.temperature * (maps - maps.amax(-1, keepdim=True)), dim=-1)
    entropy = torch.special.entr(spread).sum(-1) / math.log(max(2, rows * columns))
    return torch.stack([similarity, similarity - rival, entropy], dim=-1)


def cycle_error(
    there: Tensor,  # (C, h, w), the queries' frame
    sought: Tensor,  # (N, C), features at found positions
    own: Tensor,  # (N, 2) pixels, where the queries are
    image_size: tuple[float, float],
    soft_argmax: SoftArgmax,
) -> Tensor:  # (N,) log(1 + distance / 4)
    """How far from its query a found position is found again in the query's frame."""
    height, width = image_size
    rows, columns = there.shape[-2:]
    cell = own.new_tensor([width / columns, height / rows])
    to_256 = own.new_tensor([256 / width, 256 / height])
    back = match(there[None, None], sought[None], None, None, soft_argmax).cells[0, :, 0]
    off = (back.to(own) * cell - own) * to_256
    return torch.log1p(off.norm(dim=-1).clamp(max=LARGEST_CYCLE_ERROR) / NEAR)


def _cycle_error(
    features: Tensor,  # (T, C, h, w)
    own_frames: Tensor,  # (N,)
    own: Tensor,  # (N, 2) pixels
    places: Tensor,  # (N, T, 2) cells
    image_size: tuple[float, float],
    soft_argmax: SoftArgmax,
) -> Tensor:  # (N, T)
    """Every found position, sought in the frame of its query."""
    frames, channels = features.shape[:2]
    step = max(1, default_budget(own.device) // (4 * frames * channels * 4))
    error = own.new_empty(places.shape[:2])
    for t in own_frames.unique().tolist():
        for n in (own_frames == t).nonzero()[:, 0].split(step):
            time = torch.arange(frames, device=own.device).repeat(len(n))
            sought = sample_features(features, time, places[n].flatten(0, 1), wide_dtype(features.dtype))
            found = cycle_error(features[t], sought, own[n].repeat_interleave(frames, 0), image_size, soft_argmax)
            error[n] = found.unflatten(0, (len(n), frames))
    return error

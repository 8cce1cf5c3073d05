"""What a tracker scores on one video: records in plain JSON values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..confidence import NEAR
from ..data.clip import Clip, MaskClip
from ..tracks import Tracks
from . import masks, metrics, protocol
from .records import Record, json_safe
from .trackers import Tracker

MASK_POINTS = 100  # queried in the masks of a video
KEPT_TRACKS = 3  # the worst ones of a video, for the report to show
JOINTS = "articulated/"  # groups whose points are joints
Result = TypeVar("Result")


class FeatureCache:
    """A video on its device and the features computed last, for trackers that share them."""

    def __init__(self, frames: Tensor, device: torch.device | str) -> None:
        self.video = frames[None].to(device)
        self._of: Callable[[Tensor], Tensor] | None = None
        self._held: tuple[Tensor | None, float] = None, 0.0
        self._propagation: dict[str, float] | None = None

    def features(self, tracker: Tracker) -> tuple[Tensor | None, float]:
        """A tracker's features, None where it has none, and the seconds that they took."""
        if tracker.features is not None and tracker.features != self._of:
            self._held = None, 0.0  # let go before the next are computed
            self._propagation = None
            self._held = timed(partial(tracker.features, self.video), self.video.device)
            self._of = tracker.features
        return (None, 0.0) if tracker.features is None else self._held

    def propagation(self, tracker: Tracker, video: MaskClip) -> dict[str, float]:
        """What label propagation with a tracker's features scores; nothing where it has none."""
        features, _ = self.features(tracker)
        if features is None:
            return {}
        if self._propagation is None:
            with_colours = masks.propagation_metrics(features[0], video, self.video[0])["J&F"]
            self._propagation = {**masks.propagation_metrics(features[0], video), "J&F, colours": with_colours}
        return self._propagation


def track_records(
    tracker: Tracker,
    video: Clip,
    modes: Sequence[str],
    cache: FeatureCache,
) -> Iterator[Record]:
    """A record for each mode of query sampling. The time for features stands in each."""
    features, feature_seconds = cache.features(tracker)
    for mode in modes:
        drawn, of_track, truth = drawn_queries(video, mode)
        queries = torch.from_numpy(drawn).float()[None].to(cache.video.device)
        tracks, seconds = timed(partial(tracker.track, cache.video, queries, features), cache.video.device)
        tracks = tracks[0].to("cpu")
        scores, deltas, bins = _score(drawn[:, 0], truth, tracks, mode)
        yield {
            "mode": mode,
            "points": len(drawn),
            "seconds": {"features": feature_seconds, "tracking": seconds},
            "metrics": json_safe(scores),
            "track_delta": json_safe(deltas.round(4).tolist()),
            "worst": _worst(deltas, drawn, of_track, tracks),
            **({"reliability": bins} if bins else {}),
        }


def drawn_queries(video: Clip, mode: str) -> tuple[NDArray[np.float64], NDArray[np.int64], Clip]:
    """Queries (M, 3) inside the frame, the track of each, and the video with these tracks: one for each query."""
    drawn, of_track = protocol.sample_queries(video.xy.numpy(), (video.visible & video.valid).numpy(), mode)
    drawn[:, 1:] = drawn[:, 1:].clip(0, video.frames.shape[:1:-1])
    truth = replace(video, xy=video.xy[of_track], visible=video.visible[of_track], valid=video.valid[of_track])
    return drawn, of_track, truth


def mask_record(
    tracker: Tracker,
    video: MaskClip,
    cache: FeatureCache,
) -> Record:
    """The record of label propagation (with features) and of points that should stay in their masks."""
    features, feature_seconds = cache.features(tracker)
    queries, objects = masks.mask_queries(video, max(MASK_POINTS, int(video.masks.max())))
    drawn = torch.from_numpy(queries)[None].to(cache.video.device)
    tracks, seconds = timed(partial(tracker.track, cache.video, drawn, features), cache.video.device)
    tracks = tracks[0].to("cpu")
    consistency = masks.mask_consistency(tracks.xy.numpy(), predicted_visible(tracks), objects, video.masks)
    return {
        "mode": protocol.MASK_MODE,
        "points": len(queries),
        "seconds": {"features": feature_seconds, "tracking": seconds},
        "metrics": json_safe({**cache.propagation(tracker, video), **consistency}),
    }


def timed(run: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What `run` returns, and the seconds it took, the device's work awaited."""
    start = time.perf_counter()
    result = run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return result, time.perf_counter() - start


def predicted_visible(tracks: Tracks) -> NDArray[np.bool_]:
    """(N, T) bool; all True for a tracker that does not predict visibility."""
    return np.ones(tracks.xy.shape[:-1], bool) if tracks.visible is None else tracks.visible.numpy()


def _score(
    query_frames: NDArray[Any],  # (M,)
    truth: Clip,
    tracks: Tracks,
    mode: str,
) -> tuple[dict[str, float], NDArray[np.float64], list[tuple[float, float, int]]]:
    """All metrics, <delta_avg of each track, and the bins of a reliability plot."""
    to_256 = 256 / np.array(truth.frames.shape[:1:-1])
    true_xy = truth.xy.numpy() * to_256
    true_visible = truth.visible.numpy()
    valid = truth.valid.numpy()
    xy = tracks.xy.double().numpy() * to_256
    visible = predicted_visible(tracks)
    found = protocol.tapvid_metrics(query_frames, true_xy, ~true_visible, xy, ~visible, mode, valid)
    scored = protocol.scored_frames(query_frames, xy.shape[1], mode) & valid
    seen = scored & true_visible
    near = np.square(xy - true_xy).sum(-1) < NEAR**2
    certainty = visible if tracks.logits is None else (1 - tracks.logits.double().sigmoid()).prod(-1).numpy()
    found["balanced_accuracy"] = metrics.balanced_accuracy(true_visible, visible, scored)
    found["average_precision"] = metrics.average_precision(true_visible, certainty, scored)
    if truth.group.startswith(JOINTS):
        extent = metrics.joint_extent(true_xy, true_visible & valid)
        found["pck_0.2"] = metrics.pck(true_xy, xy, seen & (extent > 0), extent)  # a joint on its own has no scale
    bins = []
    if tracks.confidence is not None:
        confidence = tracks.confidence.double().numpy()
        found["confidence_average_precision"] = metrics.average_precision(near & seen, confidence, scored)
        bins = metrics.reliability(confidence[scored], (near & seen)[scored])
    return found, protocol.track_deltas(true_xy, xy, seen), bins


def _worst(
    deltas: NDArray[np.float64],  # (M,)
    queries: NDArray[np.float64],  # (M, 3)
    of_track: NDArray[np.int64],  # (M,)
    tracks: Tracks,
) -> list[dict[str, Any]]:
    """The tracks with the lowest <delta_avg, for the report to show."""
    order = np.argsort(deltas)[: min(KEPT_TRACKS, int((~np.isnan(deltas)).sum()))]
    return [
        {
            "track": int(of_track[i]),
            "delta": round(float(deltas[i]), 4),
            "query": queries[i].round(2).tolist(),
            "xy": json_safe(tracks.xy[i].double().numpy().round(1).tolist()),
            "visible": predicted_visible(tracks)[i].astype(int).tolist(),
        }
        for i in order
    ]

"""What a contender scores on one video: records in plain JSON values."""

from __future__ import annotations

import math
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
from ..tracks import Tracks
from .contenders import Contender
from .data import LabelledVideo, MaskedVideo
from .masks import mask_consistency, mask_queries, propagation_metrics
from .metrics import average_precision, balanced_accuracy, joint_extent, pck, reliability
from .tapvid import sample_queries, scored_frames, tapvid_metrics, track_deltas

MASK_MODE = "masks"
MASK_POINTS = 100  # queried in the masks of a video
KEPT_TRACKS = 3  # the worst ones of a video, for the report to show
JOINTS = "articulated/"  # groups whose points are joints
Record = dict[str, Any]
Result = TypeVar("Result")


def track_records(
    contender: Contender,
    video: LabelledVideo,
    modes: Sequence[str],
    device: torch.device | str,
) -> Iterator[Record]:
    """A record for each mode of query sampling. Features are computed once and their time stands in each record."""
    clip = video.frames[None].to(device)
    features, feature_seconds = _features(contender, clip)
    to_256 = 256 / np.array(video.frames.shape[:1:-1])
    for mode in modes:
        drawn, of_track = drawn_queries(video, mode)
        queries = torch.from_numpy(drawn).float()[None].to(device)
        tracks, seconds = timed(partial(contender.track, clip, queries, features), clip.device)
        occluded, valid = video.occluded[of_track], video.valid[of_track]
        truth = replace(video, xy=video.xy[of_track], occluded=occluded, valid=valid)
        metrics, deltas, bins = _score(drawn[:, 0], truth, tracks[0].to("cpu"), mode, to_256)
        yield {
            "mode": mode,
            "points": len(drawn),
            "seconds": {"features": feature_seconds, "tracking": seconds},
            "metrics": plain(metrics),
            "track_delta": plain(deltas.round(4).tolist()),
            "worst": _worst(deltas, drawn, of_track, tracks[0].to("cpu")),
            **({"reliability": bins} if bins else {}),
        }


def drawn_queries(video: LabelledVideo, mode: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Queries (M, 3) inside the frame, and the track of each."""
    drawn, of_track = sample_queries(video.xy, ~video.occluded & video.valid, mode)
    drawn[:, 1:] = drawn[:, 1:].clip(0, video.frames.shape[:1:-1])
    return drawn, of_track


def mask_record(
    contender: Contender,
    video: MaskedVideo,
    device: torch.device | str,
) -> Record:
    """The record of label propagation (with features) and of points that should stay in their masks."""
    clip = video.frames[None].to(device)
    features, feature_seconds = _features(contender, clip)
    queries, objects = mask_queries(video, MASK_POINTS)
    drawn = torch.from_numpy(queries)[None].to(device)
    tracks, seconds = timed(lambda: contender.track(clip, drawn, features)[0].to("cpu"), clip.device)
    metrics = mask_consistency(tracks.xy.numpy(), called_visible(tracks), objects, video.masks)
    if features is not None:
        metrics = {**propagation_metrics(features[0], video), **metrics}
    return {
        "mode": MASK_MODE,
        "points": len(queries),
        "seconds": {"features": feature_seconds, "tracking": seconds},
        "metrics": plain(metrics),
    }


def timed(run: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What `run` returns, and the seconds it took, the device's work awaited."""
    start = time.perf_counter()
    result = run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return result, time.perf_counter() - start


def called_visible(tracks: Tracks) -> NDArray[np.bool_]:
    """A tracker that says nothing of visibility calls every point visible."""
    return np.ones(tracks.xy.shape[:-1], bool) if tracks.visible is None else tracks.visible.numpy()


def plain(value: Any) -> Any:
    """Numbers as JSON has them: what is not finite becomes None."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _features(contender: Contender, clip: Tensor) -> tuple[Tensor | None, float]:
    compute = contender.features
    return (None, 0.0) if compute is None else timed(lambda: compute(clip), clip.device)


def _score(
    query_frames: NDArray[Any],  # (M,)
    truth: LabelledVideo,
    tracks: Tracks,
    mode: str,
    to_256: NDArray[Any],  # (2,)
) -> tuple[dict[str, float], NDArray[np.float64], list[tuple[float, float, int]]]:
    """All metrics, <delta_avg of each track, and the bins of a reliability plot."""
    true_xy, xy, visible = truth.xy * to_256, tracks.xy.double().numpy() * to_256, called_visible(tracks)
    metrics = tapvid_metrics(query_frames, true_xy, truth.occluded, xy, ~visible, mode, truth.valid)
    scored = scored_frames(query_frames, xy.shape[1], mode) & truth.valid
    seen = scored & ~truth.occluded
    near = np.square(xy - true_xy).sum(-1) < NEAR**2
    certainty = visible if tracks.logits is None else (1 - tracks.logits.double().sigmoid()).prod(-1).numpy()
    metrics["balanced_accuracy"] = balanced_accuracy(~truth.occluded, visible, scored)
    metrics["average_precision"] = average_precision(~truth.occluded, certainty, scored)
    if truth.group.startswith(JOINTS):
        metrics["pck_0.2"] = pck(true_xy, xy, seen, joint_extent(true_xy, ~truth.occluded & truth.valid))
    bins = []
    if tracks.confidence is not None:
        confidence = tracks.confidence.double().numpy()
        metrics["confidence_average_precision"] = average_precision(near & seen, confidence, scored)
        bins = reliability(confidence[scored], (near & seen)[scored])
    return metrics, track_deltas(true_xy, xy, seen), bins


def _worst(
    deltas: NDArray[np.float64],  # (M,)
    queries: NDArray[np.float64],  # (M, 3)
    of_track: NDArray[np.int64],  # (M,)
    tracks: Tracks,
) -> list[Record]:
    order = np.argsort(deltas)[: min(KEPT_TRACKS, int((~np.isnan(deltas)).sum()))]
    return [
        {
            "track": int(of_track[i]),
            "delta": round(float(deltas[i]), 4),
            "query": queries[i].round(2).tolist(),
            "xy": plain(tracks.xy[i].double().numpy().round(1).tolist()),
            "visible": called_visible(tracks)[i].astype(int).tolist(),
        }
        for i in order
    ]

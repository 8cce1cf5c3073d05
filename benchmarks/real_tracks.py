"""Accuracy on real videos with point tracks: `python -m benchmarks.real_tracks PATH --model chrono-tiny`.

PATH is a pickle in TAP-Vid's layout: name -> {video: JPEG bytes per frame, points (N, T, 2) in [0, 1], occluded
(N, T), valid (N, T)}. Protocol *first*: each track is queried at its first visible frame and scored on later ones,
everything at 256 x 256 (Lanczos). Groups are shown apart; the mean alone says little. This is not TAP-Vid.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import chrono_features
from chrono_features import ChronoBackbone, Tracks, soft_argmax_track
from chrono_features.evaluation.readers import SIZE, tapvid_videos
from chrono_features.evaluation.tapvid import THRESHOLDS, first_queries, tapvid_metrics

GROUPS = ("planar", "kitchen", "badja")
Tracker = Callable[[Tensor, Tensor], Tracks]


def evaluate(track: Tracker, path: Path) -> dict[str, dict[str, float]]:
    """Metrics of every video, and the seconds it took."""
    results = {}
    for video in tapvid_videos(path):
        queries, kept = first_queries(video.xy, ~video.occluded & video.valid)
        queries[:, 1:] = queries[:, 1:].clip(0, SIZE)
        start = time.perf_counter()
        tracks = track(video.frames[None], torch.from_numpy(queries)[None])[0]
        seconds = time.perf_counter() - start
        occluded = np.zeros(tracks.xy.shape[:2], bool) if tracks.visible is None else ~tracks.visible.numpy()
        truth, prediction = (video.xy[kept], video.occluded[kept]), (tracks.xy.double().numpy(), occluded)
        results[video.name] = tapvid_metrics(queries[:, 0], *truth, *prediction, mode="first", valid=video.valid[kept])
        results[video.name] |= {"seconds_per_frame": seconds / len(video.frames), "frames": len(video.frames)}
    return results


def model_tracker(name: str, adapters: bool = True) -> Tracker:
    """A model's own tracks, or those of its features with the adapters switched off."""
    model = ChronoBackbone.from_pretrained(name)
    return model.track if adapters else _without_adapters(model)


def untrained_tracker(name: str) -> Tracker:
    """The same network before training."""
    torch.manual_seed(0)
    return ChronoBackbone(ChronoBackbone.from_pretrained(name).config).track


def _without_adapters(model: ChronoBackbone) -> Tracker:
    @torch.no_grad()
    def track(video: Tensor, queries: Tensor) -> Tracks:
        c = model.config
        options = {"temperature": c.temperature, "radius": c.radius, "visibility_head": model.visibility_head}
        return soft_argmax_track(model.vit_features(video), queries, (SIZE, SIZE), **options)

    return track


def static(video: Tensor, queries: Tensor) -> Tracks:
    """A point that never moves."""
    xy = queries[:, :, None, 1:].expand(-1, -1, video.shape[1], -1)
    return Tracks(xy, torch.ones(xy.shape[:-1]))


def raw_patches(video: Tensor, queries: Tensor, patch: int = 9, stride: int = 4) -> Tracks:
    """Raw-pixel patches around every pixel, averaged over cells, mean removed, unit length; the same soft-argmax.

    Of the two forms that were tried, the better one: one patch of 12 x 12 a cell scores 0.189 in place of 0.200.
    """
    pixels = F.pad(video[0].float() / 255, (patch // 2,) * 4, mode="replicate")
    patches = F.avg_pool2d(F.unfold(pixels, patch).unflatten(-1, (SIZE, SIZE)), stride)
    features = F.normalize(patches - patches.mean(dim=1, keepdim=True), dim=1)[None]
    return soft_argmax_track(features, queries, (SIZE, SIZE), radius=3.0)


def lucas_kanade(video: Tensor, queries: Tensor) -> Tracks:
    """OpenCV's pyramidal Lucas-Kanade from frame to frame, forwards from the query.

    A point is occluded for good once its status is 0 or following it back misses by more than 1.5 px.
    """
    import cv2

    options = {"winSize": (21, 21), "maxLevel": 4}
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video[0].permute(0, 2, 3, 1).contiguous().numpy()]
    query_frames = queries[0, :, 0].long().numpy()
    xy = queries[0, :, None, 1:].repeat(1, len(greys), 1).numpy()
    visible = np.ones(xy.shape[:2], bool)
    for t in range(1, len(greys)):
        started = query_frames < t
        if not started.any():
            continue
        before = np.ascontiguousarray(xy[started, t - 1] - 0.5)[:, None]  # OpenCV counts from pixel centres
        after, status, _ = cv2.calcOpticalFlowPyrLK(greys[t - 1], greys[t], before, None, **options)
        back, _, _ = cv2.calcOpticalFlowPyrLK(greys[t], greys[t - 1], after, None, **options)
        sure = (status[:, 0] == 1) & (np.linalg.norm(back - before, axis=-1)[:, 0] <= 1.5)
        xy[started, t] = after[:, 0] + 0.5
        visible[started, t] = visible[started, t - 1] & sure
    found = torch.from_numpy(xy)[None]
    return Tracks(found, torch.ones(found.shape[:-1]), torch.from_numpy(visible)[None])


BASELINES: dict[str, Tracker] = {"static": static, "raw-patches": raw_patches, "lucas-kanade": lucas_kanade}


def group_means(results: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    rows = {group: [v for name, v in results.items() if name.startswith(group)] for group in GROUPS}
    rows["mean of all"] = list(results.values())
    return {
        group: {k: float(np.nanmean([v[k] for v in items])) for k in items[0]} for group, items in rows.items() if items
    }


def table(name: str, results: dict[str, dict[str, float]]) -> str:
    columns = [
        "average_pts_within_thresh",
        "average_jaccard",
        "occlusion_accuracy",
        *(f"pts_within_{t}" for t in THRESHOLDS),
    ]
    titles = ["<delta_avg", "AJ", "OA", *(f"<{t} px" for t in THRESHOLDS)]
    lines = [f"| {name} | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for group, metrics in group_means(results).items():
        lines.append(f"| {group} | " + " | ".join(f"{metrics[c]:.3f}" for c in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--no-adapters", action="append", default=[], metavar="MODEL")
    parser.add_argument("--untrained", action="append", default=[], metavar="MODEL")
    parser.add_argument("--baseline", action="append", default=[], choices=sorted(BASELINES))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    trackers: dict[str, Tracker] = {name: BASELINES[name] for name in args.baseline}
    trackers |= {f"{name}, untrained": untrained_tracker(name) for name in args.untrained}
    trackers |= {f"{name}, adapters off": model_tracker(name, adapters=False) for name in args.no_adapters}
    trackers |= {name: model_tracker(name) for name in args.model}
    everything = {}
    for name, tracker in trackers.items():
        everything[name] = evaluate(tracker, args.path)
        seconds = np.mean([video["seconds_per_frame"] for video in everything[name].values()])
        print(table(name, everything[name]), f"\n\n{seconds:.3f} s a frame\n", flush=True)
    if args.out:
        about = {
            "protocol": "first, 256x256, float32",
            "device": f"cpu, {torch.get_num_threads()} threads",
            "versions": {"chrono_features": chrono_features.__version__, "torch": torch.__version__},
            "date": datetime.date.today().isoformat(),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**about, "results": everything}, indent=1) + "\n")


if __name__ == "__main__":
    main()

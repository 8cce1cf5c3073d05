"""What `PointTracker` costs beside the features alone, how much it remembers, and how near it is to `model.track`.

`python -m benchmarks.speed.point_tracker --videos CLIP ...`: whole-clip tracks against frames as they come, on these
videos, with points that are added at ten frames and dropped again; then time and memory on random frames.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from chrono_features import ChronoBackbone, grid_queries
from chrono_features.point_tracker import PointTracker
from chrono_features.video import read_video

from .. import harness

SIDE = 256
POINTS = 64
FRAMES = 24
KINDS = {"delayed": {"window": (1, 1)}, "causal": {"window": (2, 0)}, "one frame": {"window": (0, 0)}}


def differences(path: str, dtype: torch.dtype) -> list[harness.Row]:
    """Distances in pixels between live and whole-clip tracks of one video."""
    video = read_video(path, end=FRAMES).frames[None]
    video = video if dtype == torch.float32 else video.to(dtype) / 255
    size = (video.shape[-2], video.shape[-1])
    starts = range(0, 20, 2)
    queries = torch.cat([grid_queries(3, size, t)[0] for t in starts]).to(dtype)
    dropped = {t + 3: [9 * i, 9 * i + 1] for i, t in enumerate(starts)}
    rows = []
    for kind, options in KINDS.items():
        model = ChronoBackbone.from_pretrained("chrono-tiny", grid=(24, 24), **options).to(dtype)
        tracks = model.track(video, queries[None])
        tracker = model.point_tracker(image_size=size)
        distances = []
        for found in _live(tracker, video[0], queries, dropped):
            distances.append((found.xy - tracks.xy[0, found.ids, found.index]).norm(dim=-1))
        distance = torch.cat(distances)
        limit = 0.01 if dtype == torch.float32 else 1e-4
        row = {"video": os.path.basename(path), "kind": kind, "delay": tracker.delay, "type": str(dtype)[6:]}
        rows.append(row | {"positions": len(distance), f"beyond {limit} px": int((distance > limit).sum())})
        rows[-1] |= {"median px": distance.median().item(), "max px": distance.max().item()}
    return rows


def _live(tracker: PointTracker, frames: Tensor, queries: Tensor, dropped: dict[int, list[int]]):
    for t, frame in enumerate(frames):
        tracker.add(queries[queries[:, 0] == t][:, 1:])
        if t in dropped:
            tracker.drop(dropped[t])
        found = tracker(frame)
        if found is not None:
            yield found
    yield from tracker.flush()


def times(repeats: int) -> list[harness.Row]:
    model = ChronoBackbone.from_pretrained("chrono-tiny", window=(0, 0))
    frames = torch.randint(0, 256, (8, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    queries = grid_queries(8, (SIDE, SIDE))
    options = {"positions": {}, "and confidence": {"confidence": True}, "refined": {"refine": "photometric"}}

    def features() -> None:
        stream = model.stream()
        for frame in frames:
            stream(frame[None, None])

    def live(**kwargs: object) -> None:
        tracker = model.point_tracker(queries, image_size=(SIDE, SIDE), **kwargs)
        for frame in frames:
            tracker(frame)

    runs = {"features": features} | {name: lambda k=kwargs: live(**k) for name, kwargs in options.items()}
    measured = harness.side_by_side(runs, "cpu", repeats)
    base = measured["features"]
    return [t.row(name, len(frames)) | {"over features": t.over(base)} for name, t in measured.items()]


def memory() -> list[harness.Row]:
    """Resident memory while 10,000 frames pass."""
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "class_token": False}
    kwargs |= {"global_pool": "", "pos_embed": "none"}
    config = {"vit": "vit_tiny_patch16_224", "vit_kwargs": kwargs, "stem": "conv", "grid": (8, 8), "norm": "token"}
    model = ChronoBackbone({**config, "window": (2, 2), "confidence": (0.0, 1, 1, 1, 1), "adapter_channels": 8,
                            "refined_confidence": (0.0, 1, 1, 1, 1, 1), "adapter_heads": 2})  # fmt: skip
    tracker = model.point_tracker(image_size=(64, 64), refine="photometric", confidence=True)
    frame = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = []
    for t in range(1, 10_001):
        ids = tracker.add(torch.tensor([[20.0, 30.0]]))
        tracker(frame)
        if t > 8:
            tracker.drop(ids - 8)
        if t in (1000, 2500, 5000, 10_000):
            held = sum(value.numel() for value in tracker.state_dict().values())
            rows.append({"frames": t, "numbers held": held, "resident MB": harness._resident("VmRSS") / 1e6})
    return rows


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--videos", nargs="*", default=[])
    args = parser.parse_args()
    tables = {"memory": memory(), f"time, {POINTS} points": times(args.repeats)}
    for dtype in (torch.float64, torch.float32):
        tables[f"against whole clips, {str(dtype)[6:]}"] = [
            row for path in args.videos for row in differences(path, dtype)
        ]
    harness.report("point_tracker", "cpu", tables, args.out)


if __name__ == "__main__":
    main()

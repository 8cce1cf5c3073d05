"""What `chrono-tiny` costs beside the smallest ViT of timm, and what its clips cost.

`python -m benchmarks.speed.tiny`."""

from __future__ import annotations

import timm
import torch

from chrono_features import ChronoBackbone, grid_queries
from chrono_features.data.synthetic import make_clip

from .. import harness

FRAMES = 48
IMAGE = (256, 256)
PLAIN_VIT = "vit_tiny_patch16_224"


@torch.no_grad()
def measure(device: str, repeats: int, frames: int = FRAMES) -> dict[str, list[harness.Row]]:
    model = ChronoBackbone.from_pretrained("chrono-tiny").to(device)
    plain = timm.create_model(PLAIN_VIT, img_size=IMAGE[0], num_classes=0).to(device).eval()
    video = make_clip(1, frames=frames, size=IMAGE, device=device).frames[None]
    queries = grid_queries(16, IMAGE).to(device)
    runs = {
        "chrono-tiny, features": lambda: model(video),
        f"timm {PLAIN_VIT}, all frames in one batch": lambda: plain(video[0]),
        "chrono-tiny, 256 tracks": lambda: model.track(video, queries),
        "chrono-tiny, 256 tracks refined, confidence": lambda: model.track(
            video, queries, refine="photometric", confidence=True
        ),
    }
    times = harness.side_by_side(runs, device, repeats)
    features = times["chrono-tiny, features"]
    rows = [
        {
            **time.row(name, per=frames),
            "frames/s": frames / time.median,
            "s a clip": time.median,
            "to features": time.over(features),
            "peak MB": harness.peak_bytes(runs[name], device)[0] / 1e6,
        }
        for name, time in times.items()
    ]
    return {f"{frames} frames at 256 x 256, float32": rows, "Synthetic clips, 24 frames": _clips(device, repeats)}


def _clips(device: str, repeats: int) -> list[harness.Row]:
    def clips(side: int, scene: str) -> object:
        return [make_clip(seed, frames=24, size=(side, side), scene=scene, device=device) for seed in range(4)]

    runs = {
        f"{scene}, {side} x {side}": lambda side=side, scene=scene: clips(side, scene)
        for side in (128, 256)
        for scene in ("layers", "raycast")
    }
    times = harness.side_by_side(runs, device, repeats)
    return [{**time.row(name, per=96), "frames/s": 96 / time.median} for name, time in times.items()]


def main() -> None:
    args = harness.parser(__doc__).parse_args()
    harness.report("tiny", args.device, measure(args.device, args.repeats), args.out)


if __name__ == "__main__":
    main()

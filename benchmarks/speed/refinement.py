"""What refinement and confidence cost beside the features: `python -m benchmarks.speed.refinement`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from chrono_features import ChronoBackbone, Tracks, grid_queries
from chrono_features.data.synthetic import make_clip
from chrono_features.refine import refine_photometric

from .. import harness


def without_memory(model: ChronoBackbone, video: torch.Tensor, features: torch.Tensor, queries: torch.Tensor) -> Tracks:
    tracks = model.track(video, queries, features=features)
    disc = {"temperature": model.config.temperature, "radius": model.config.radius}
    return refine_photometric(video, features, queries, tracks, query_memory=False, **disc)


@torch.no_grad()
def measure(device: str, repeats: int, sides: Sequence[int], frames: int = 48) -> dict[str, list[harness.Row]]:
    model = ChronoBackbone.from_pretrained("chrono-tiny").to(device)
    video = make_clip(1, frames=frames, size=(256, 256), device=device).frames[None]
    features, tables = model(video), {}
    for side in sides:
        queries = grid_queries(side, (256, 256)).to(device)

        def track(queries: torch.Tensor = queries, **options: object) -> object:
            return model.track(video, queries, features=features, **options)

        runs = {
            "features": lambda: model(video),
            "soft-argmax": track,
            "soft-argmax, confidence": lambda track=track: track(confidence=True),
            "soft-argmax, refined without query memory": partial(without_memory, model, video, features, queries),
            "soft-argmax, refined": lambda track=track: track(refine="photometric"),
            "soft-argmax, refined, confidence": lambda track=track: track(refine="photometric", confidence=True),
        }
        times = harness.side_by_side(runs, device, repeats)
        title = f"chrono-tiny, {frames} frames at 256 x 256, {side * side} points, float32"
        rows = [{**t.row(name, per=frames), "over features": t.over(times["features"])} for name, t in times.items()]
        tables[title] = rows
    return tables


def main() -> None:
    args = harness.parser(__doc__).parse_args()
    harness.report("refinement", args.device, measure(args.device, args.repeats, [8, 16]), args.out)


if __name__ == "__main__":
    main()

"""Labels carried with few neighbours of unlike weight, as DINO's evaluation has it, or many of like weight.

`python -m benchmarks.accuracy.label_propagation --masks DAVIS`: J&F, in percent, of raw colours, of a model's
features and of both, on a
folder in DAVIS's layout.
"""

from __future__ import annotations

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch
from rich.progress import track as progress

from chrono_features import ChronoBackbone
from chrono_features.data.clip import MaskClip
from chrono_features.data.readers import open_dataset
from chrono_features.evaluation.baselines import ColourFeatures
from chrono_features.evaluation.masks import propagation_metrics

from .. import harness

SETTINGS: dict[str, dict[str, Any]] = {
    "5 neighbours, temperature 10 (DINO)": {"neighbours": 5, "temperature": 10.0},
    "40 neighbours, temperature 3": {"neighbours": 40, "temperature": 3.0},
}
Scores = dict[tuple[str, str], float]  # J&F by features and settings


@torch.no_grad()
def scores(index: int, masks: str, name: str, grid: int, device: str) -> Scores:
    """Of one video."""
    torch.set_num_threads(1)
    video = list(open_dataset("masks", masks))[index].load()
    assert isinstance(video, MaskClip)
    frames = video.frames[None].to(device)
    model = ChronoBackbone.from_pretrained(name, grid=(grid, grid)).to(device)
    own = model(frames)
    cells = (own.shape[-2], own.shape[-1])
    features = {
        "colour": ColourFeatures(grid=cells)(frames),
        f"{name}, without adapters": model.vit_features(frames),
        name: own,
    }
    found = Scores()
    for title, options in SETTINGS.items():
        for who, of in features.items():
            found[who, title] = 100 * propagation_metrics(of[0], video, **options)["J&F"]
        joined = propagation_metrics(own[0], video, frames[0], **options)
        found[f"{name}, with colours", title] = 100 * joined["J&F"]
    return found


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--masks", required=True)
    parser.add_argument("--model", default="chrono-tiny")
    parser.add_argument("--grid", type=int, default=32, help="Tokens of the model along a side.")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    count = len(list(open_dataset("masks", args.masks)))
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        one = partial(scores, masks=args.masks, name=args.model, grid=args.grid, device=args.device)
        done = pool.map(one, range(count))
        videos = list(progress(done, "videos", total=count))
    rows: list[harness.Row] = [
        {"what": who, **{title: f"{statistics.fmean(v[who, title] for v in videos):.1f}" for title in SETTINGS}}
        for who in dict.fromkeys(who for who, _ in videos[0])
    ]
    harness.report(
        "label_propagation", args.device, {f"J&F, {count} videos, {args.grid} x {args.grid} tokens": rows}, args.out
    )


if __name__ == "__main__":
    main()

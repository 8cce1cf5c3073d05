"""Whether a model finds a point by where it is: `python -m benchmarks.accuracy.place_bias --photographs FOLDER`.

Two views of 256 x 256 pixels of a photograph, one further to the right by some pixels, each a clip of its own: features
that know nothing of position match equally well at every shift. Every point is seen in both views.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track as progress
from torch import Tensor

from chrono_features import ChronoBackbone, soft_argmax_track
from chrono_features.data.reading import photographs
from chrono_features.evaluation.protocol import THRESHOLDS

from .. import harness

SHIFTS = 0, 13, 26, 51, 77, 102, 128, 154  # pixels
SIDE, BORDER, POINTS = 256, 8, 100


def pictures(folder: Path, count: int) -> Iterator[Tensor]:  # (3, SIDE, SIDE + the largest shift or more) uint8
    from PIL import Image

    paths = photographs(folder)
    for path in paths[:: max(1, len(paths) // count)][:count]:
        with Image.open(path) as file:
            picture = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1).float()
        scale = 1.8 * SIDE / min(picture.shape[1:])
        picture = F.interpolate(picture[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
        yield picture[:, (picture.shape[1] - SIDE) // 2 :][:, :SIDE].round().byte()


@torch.no_grad()
def scores(model: ChronoBackbone, picture: Tensor) -> dict[str, list[float]]:
    """<delta_avg in percent at each shift, with the without adapters and on."""
    found: dict[str, list[float]] = {}
    for name, features in (("without adapters", model.vit_features), ("as it is", model)):
        views = [features(picture[None, None, :, :, shift : shift + SIDE].to(model.device)) for shift in SHIFTS]
        for shift, view in zip(SHIFTS, views, strict=True):
            draw = torch.rand(POINTS, 2, generator=torch.Generator().manual_seed(0))
            start = torch.tensor([shift + BORDER, BORDER])
            xy = start + draw * (SIDE - BORDER - start)
            queries = F.pad(xy, (1, 0))[None].to(model.device)
            clip, disc = torch.cat([views[0], view], dim=1), (model.config.temperature, model.config.radius)
            tracks = soft_argmax_track(clip, queries, (SIDE, SIDE), temperature=disc[0], radius=disc[1])
            error = (tracks.xy[0, :, 1].cpu() - xy + torch.tensor([shift, 0])).norm(dim=1)
            within = statistics.fmean(float((error < threshold).float().mean()) for threshold in THRESHOLDS)
            found.setdefault(name, []).append(100 * within)
    return found


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20, help="How many of them, spread over the folder.")
    parser.add_argument("--model", default="chrono-tiny")
    args = parser.parse_args()
    model = ChronoBackbone.from_pretrained(args.model).to(args.device)
    done = [scores(model, p) for p in progress(list(pictures(args.photographs, args.count)), "photographs")]
    rows: list[harness.Row] = []
    for name in done[0]:
        means = [statistics.fmean(column) for column in zip(*(one[name] for one in done), strict=True)]
        rows.append({"shift, px": name, **{str(s): f"{mean:.1f}" for s, mean in zip(SHIFTS, means, strict=True)}})
    harness.report("place_bias", args.device, {f"{args.model}, {len(done)} photographs": rows}, args.out)


if __name__ == "__main__":
    main()

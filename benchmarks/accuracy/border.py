"""How far soft-argmax positions are pulled inwards near the border of the image.

`python -m benchmarks.accuracy.border`.

Held-out synthetic clips with procedural textures, 8 frames of 256 x 256 pixels, points seen in their frame. `own frame`
adds the error that soft-argmax makes in the query frame, where the truth is known, to every position.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from rich.progress import track as progress
from torch import Tensor

from chrono_features import ChronoBackbone, soft_argmax_track
from chrono_features.data.synthetic import VALIDATION_SEED, make_clip
from chrono_features.evaluation.protocol import THRESHOLDS
from chrono_features.ops.matching import sample_features

from .. import harness

SIDE, FRAMES, POINTS = 256, 8, 1500
BOUNDS = 0.0, 0.5, 1.0, 2.0, 5.0, 1000.0  # cells from the border


@torch.inference_mode()
def measure(
    model: ChronoBackbone, seed: int
) -> dict[str, Tensor]:  # (M, 4): distance, outward and whole error, visible
    """Every seen point out of its query frame, by way of finding it; the first three in pixels."""
    clip = make_clip(seed, frames=FRAMES, size=(SIDE, SIDE), points=POINTS, frame_step=1.0)
    seen = clip.visible.any(dim=1)
    truth, visible = clip.xy[seen], clip.visible[seen]
    own = visible.int().argmax(dim=1)  # first frame in which it is seen
    index = torch.arange(len(truth))
    start = truth[index, own]
    queries = torch.cat([own[:, None].float(), start], dim=1)[None].to(model.device)
    video = clip.frames[None].to(model.device)
    features = model(video)
    cells = queries[0, :, 1:] * features.shape[-1] / SIDE
    wanted = sample_features(features[0], queries[0, :, 0].long(), cells, torch.float32)[None]
    settings = {"temperature": model.config.temperature, "radius": model.config.radius}
    everywhere = soft_argmax_track(features, image_size=(SIDE, SIDE), query_features=wanted, **settings).xy[0].cpu()
    raw = model.track(video, queries, features=features)[0].to("cpu")
    refined = model.track(video, queries, features=features, refine="photometric")[0].to("cpu")
    moved = everywhere + (start - everywhere[index, own])[:, None]
    scored = visible & (torch.arange(FRAMES) != own[:, None])
    found = {"raw": (raw.xy, raw.visible), "own frame": (moved, raw.visible), "refined": (refined.xy, refined.visible)}
    return {name: _errors(xy, truth, said)[scored] for name, (xy, said) in found.items()}


def _errors(xy: Tensor, truth: Tensor, said: Tensor) -> Tensor:
    walls = torch.cat([truth, SIDE - truth], dim=-1)  # distances to the left, top, right and bottom
    nearest, wall = walls.min(dim=-1)
    outwards = torch.cat([truth - xy, xy - truth], dim=-1).gather(-1, wall[..., None])[..., 0]
    return torch.stack([nearest, outwards, (xy - truth).norm(dim=-1), said.float()], dim=-1)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--model", default="chrono-tiny")
    args = parser.parse_args()
    model = ChronoBackbone.from_pretrained(args.model).to(args.device).eval()
    clips = [measure(model, VALIDATION_SEED + i) for i in progress(range(args.clips), "clips")]
    cell = SIDE / model.feature_shape(model.config.grid)[2]
    rows: list[harness.Row] = []
    for near, far in pairwise(BOUNDS):
        row: harness.Row = {"cells from the border": f"{near:g} … {far:g}" if far < BOUNDS[-1] else f"over {near:g}"}
        for name in clips[0]:
            all_clips = torch.cat([clip[name] for clip in clips])
            part = all_clips[(all_clips[:, 0] >= near * cell) & (all_clips[:, 0] < far * cell)]
            within = torch.stack([(part[:, 2] < t).float() for t in THRESHOLDS]).mean()
            row["points"] = len(part)
            row[f"{name}: inwards, cells"] = -float(part[:, 1].median()) / cell
            row[f"{name}: error, cells"] = float(part[:, 2].median()) / cell
            row[f"{name}: <delta_avg"] = 100 * float(within)
            row[f"{name}: called visible, %"] = 100 * float(part[:, 3].mean())
        rows.append(row)
    title = f"{args.model}, {args.clips} held-out synthetic clips, medians; a cell is {cell:g} pixels"
    harness.report("border", args.device, {title: rows}, args.out)


if __name__ == "__main__":
    main()

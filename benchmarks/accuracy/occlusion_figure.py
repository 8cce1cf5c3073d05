"""The README's picture: `python -m benchmarks.accuracy.occlusion_figure`, on the clip that comes with the package.

One query's similarity map in several frames: without adapters above, on below. Each row circles what its features find;
both rows share one scale.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from chrono_features import ChronoBackbone, soft_argmax_track
from chrono_features.video import read_video
from chrono_features.viz import Canvas, label_strip, mark_radius, similarity_overlay

LIMITS = (0.2, 1.0)  # similarities of the darkest and the brightest colour


def similarity_maps(features: Tensor, query: Tensor, size: tuple[int, int]) -> Tensor:  # (1, T, C, h, w) -> (T, h, w)
    t, x, y = query.tolist()
    where = features.new_tensor([2 * x / size[1] - 1, 2 * y / size[0] - 1]).view(1, 1, 1, 2)
    sampled = F.grid_sample(features[:, int(t)], where, align_corners=False, padding_mode="border")
    return (features[0] * sampled[0, None]).sum(dim=1)


def similarity_figure(
    frames: Tensor,  # (K, 3, H, W) uint8
    rows: Mapping[str, Tensor | None],  # label -> (K, h, w), or None for the plain frames
    points: Mapping[str, Tensor],  # label -> (K, 2) pixels to circle; NaN leaves a frame without
    titles: Sequence[str],  # of the frames
) -> np.ndarray:
    """Similarity maps of one query in several frames, a labelled row for each kind of features."""
    count, _, height, width = frames.shape
    strip, gap = max(16, height // 10), max(2, width // 100)
    lines = [_join([label_strip(title, width, strip) for title in titles], gap)]
    for label, maps in rows.items():
        lines.append(label_strip(label, count * width + (count - 1) * gap, strip))
        pictures = [frame.permute(1, 2, 0).numpy() for frame in frames]
        if maps is not None:
            pictures = [similarity_overlay(frame, one, LIMITS) for frame, one in zip(frames, maps, strict=True)]
        circled = [_circle(picture, xy) for picture, xy in zip(pictures, points[label].tolist(), strict=True)]
        lines.append(_join(circled, gap))
    return np.vstack(lines)


def _circle(picture: np.ndarray, xy: Sequence[float]) -> np.ndarray:
    if not np.isfinite(xy).all():
        return picture
    canvas, radius = Canvas(picture), 2.5 * mark_radius(*picture.shape[:2])
    canvas.ring(xy, radius * 1.2, (0, 0, 0))
    canvas.ring(xy, radius, (255, 255, 255))
    return canvas.picture()


def _join(pictures: Sequence[np.ndarray], gap: int) -> np.ndarray:
    white = np.full((len(pictures[0]), gap, 3), 255, np.uint8)
    return np.hstack([part for picture in pictures for part in (picture, white)][:-1])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bundled = resources.files("chrono_features") / "assets" / "bunny.mp4"
    parser.add_argument("--video", type=Path, default=Path(str(bundled)))
    parser.add_argument("--model", default="chrono-tiny")
    parser.add_argument("--query", type=float, nargs=3, default=(0, 247, 79), metavar=("T", "X", "Y"))
    parser.add_argument("--frames", type=int, nargs="+", default=(0, 24, 28, 31, 40))
    parser.add_argument("--out", type=Path, default=Path("docs/images/occlusion.png"))
    args = parser.parse_args()

    video = read_video(args.video).frames
    size, query, frames = (video.shape[-2], video.shape[-1]), torch.tensor(args.query), list(args.frames)
    model = ChronoBackbone.from_pretrained(args.model)
    rows: dict[str, Tensor | None] = {"video": None}
    points = {"video": torch.full((len(frames), 2), torch.nan)}
    points["video"][0] = query[1:]
    kinds = {"without adapters": model.vit_features, "adapters on": model}
    for label, compute in kinds.items():
        features = compute(video[None])
        tracks = soft_argmax_track(
            features, query[None, None], size, temperature=model.config.temperature, radius=model.config.radius
        )
        rows[label] = similarity_maps(features, query, size)[frames]
        points[label] = tracks.xy[0, 0, frames]
    titles = [f"frame {frame}" for frame in frames]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(similarity_figure(video[frames], rows, points, titles)).save(args.out)


if __name__ == "__main__":
    main()

"""Running the authors' weights: published numbers beside measured ones."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ..backbone import ChronoBackbone
from .readers import SIZE, tapvid_videos
from .tapvid import first_queries, tapvid_metrics

ADAPTER_PARAMETERS = {"chrono-vits14": 16_241_280, "chrono-vitb14": 25_986_048}
DAVIS_FIRST = {"chrono-vits14": 63.0, "chrono-vitb14": 65.6}  # <delta_avg as published, without a refiner


def compare(
    name: str, model: ChronoBackbone, davis: str | os.PathLike[str] | None = None
) -> list[tuple[str, str, str]]:
    """Rows of (what, published, measured) for a model whose every key has been checked by loading it."""
    count = sum(p.numel() for p in model.adapters.parameters())
    rows = [("adapter parameters", f"{ADAPTER_PARAMETERS[name]:,}", f"{count:,}")]
    video = torch.rand(1, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        lengths = model(video, grid=(16, 16)).norm(dim=2)
    rows.append(("length of features", "1", f"{lengths.min():.4f} to {lengths.max():.4f}"))
    what, published = "TAP-Vid-DAVIS, first, <delta_avg", f"{DAVIS_FIRST[name]:.1f}"
    rows.append((what, published, "not measured: no --davis" if davis is None else f"{davis_first(model, davis):.1f}"))
    return rows


def davis_first(model: ChronoBackbone, path: str | os.PathLike[str]) -> float:
    """<delta_avg in percent on TAP-Vid-DAVIS, protocol *first*: the mean over videos."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    scores = []
    for video in _progress(tapvid_videos(path)):
        queries, kept = first_queries(video.xy, ~video.occluded)
        queries[:, 1:] = queries[:, 1:].clip(0, SIZE)
        tracks = model.track(video.frames[None].to(device), torch.from_numpy(queries)[None])[0].to("cpu")
        assert tracks.visible is not None
        truth = video.xy[kept], video.occluded[kept]
        metrics = tapvid_metrics(queries[:, 0], *truth, tracks.xy.double().numpy(), ~tracks.visible.numpy(), "first")
        scores.append(metrics["average_pts_within_thresh"])
    return 100 * float(np.mean(scores))


def _progress(items: Iterable[Any]) -> Iterable[Any]:
    from rich.progress import track

    return track(items, description="TAP-Vid-DAVIS: 30 videos", total=None)

"""Running the authors' weights: published numbers beside measured ones."""

from __future__ import annotations

import os

import torch

from ..authors import AUTHORS_FILES
from ..backbone import ChronoBackbone
from ..checks import check_choice
from ..data.clip import Clip
from ..data.readers import open_dataset
from .protocol import MODES
from .records import Record
from .scores import FeatureCache, track_records
from .summary import grouped, mean_metric, published_delta
from .trackers import from_model

ADAPTER_PARAMETERS = {"chrono-vits14": 16_241_280, "chrono-vitb14": 25_986_048}


def verify(
    name: str,
    davis: str | os.PathLike[str] | None = None,
) -> list[tuple[str, str, str]]:
    """Fetch the authors' weights, check every key by loading them, and run them.

    Args:
        name: "chrono-vits14" or "chrono-vitb14".
        davis: Path to `tapvid_davis.pkl`, to measure on it.

    Returns:
        Rows of (what, published, measured).

    Raises:
        ValueError: `name` is not one of the authors' models.
        OSError: The weights cannot be fetched.
    """
    check_choice("name", name, tuple(AUTHORS_FILES))
    return compare(name, ChronoBackbone.from_pretrained(name), davis)


def compare(
    name: str,
    model: ChronoBackbone,
    davis: str | os.PathLike[str] | None = None,
) -> list[tuple[str, str, str]]:
    """Rows of (what, published, measured) for a model whose every key has been checked by loading it."""
    count = sum(p.numel() for p in model.adapters.parameters())
    rows = [("adapter parameters", f"{ADAPTER_PARAMETERS[name]:,}", f"{count:,}")]
    video = torch.rand(1, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        lengths = model(video, grid=(16, 16)).norm(dim=2)
    rows.append(("length of features", "1", f"{lengths.min():.4f} to {lengths.max():.4f}"))
    measured = {} if davis is None else davis_deltas(model, davis)
    for mode in MODES:
        value = f"{measured[mode]:.1f}" if mode in measured else "not measured: no --davis"
        rows.append((f"TAP-Vid-DAVIS, {mode}, <delta_avg", f"{published_delta(name, 'davis', mode):.1f}", value))
    return rows


def davis_deltas(model: ChronoBackbone, path: str | os.PathLike[str]) -> dict[str, float]:
    """<delta_avg in percent on TAP-Vid-DAVIS by mode, in the authors' settings: the mean over videos."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tracker = from_model("model", model.to(device), paper=True)
    records: list[Record] = []
    for entry in open_dataset("davis", os.fspath(path)):
        clip = entry.load()
        assert isinstance(clip, Clip)
        records += track_records(tracker, clip, MODES, FeatureCache(clip.frames, device))
    by_mode = grouped(records, "mode")
    return {mode: 100 * mean_metric(own, "average_pts_within_thresh") for mode, own in by_mode.items()}

"""Fits the confidence of a model's tracks, on synthetic clips and on warps of photographs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from ..backbone import ChronoBackbone
from ..confidence import NEAR, fit, track_signals
from ..data.clip import Clip, Dataset, Entry, Unusable
from ..data.photo_warps import PhotoWarps
from ..data.synthetic_clips import SyntheticClips
from ..refine import Refine
from .protocol import scored_frames
from .scores import drawn_queries

FIRST_CLIP = 99_000  # held-out clips from here on are for fitting, those before for evaluation


def fit_confidence(
    model: ChronoBackbone,
    photographs: str | os.PathLike[str],
    on_video: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Fit the confidence of a model's tracks: set its `config.confidence` and `config.refined_confidence`.

    Args:
        model: The model; where it is, clips are tracked.
        photographs: A folder of photographs: textures of synthetic clips, and what is warped. Others than those that
            the model will be judged on.
        on_video: Told how many clips are done, of how many.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No photographs are in it, or tracks are all good or all bad.
    """
    data: list[Dataset] = [SyntheticClips(photographs, first=FIRST_CLIP, part=None), PhotoWarps(photographs)]
    total = sum(d.total() or 0 for d in data)
    signals: dict[Refine, list[Tensor]] = {None: [], "photometric": []}
    good: dict[Refine, list[Tensor]] = {None: [], "photometric": []}
    for done, video in enumerate(_usable(chain(*data)), 1):
        clip = video.frames[None].to(model.device)
        with torch.no_grad():
            features = model(clip)
        drawn, _, truth = drawn_queries(video, "first")
        queries = torch.from_numpy(drawn).float()[None].to(model.device)
        known = torch.from_numpy(scored_frames(drawn[:, 0], len(video.frames), "first")) & truth.valid
        to_256 = 256 / torch.tensor(video.frames.shape[:1:-1]).double()
        for refine in signals:
            tracks = model.track(clip, queries, features=features, refine=refine)
            (found,) = track_signals(features, queries, tracks, clip.shape[-2:], **vars(model.config.soft_argmax))
            signals[refine].append(found.cpu()[known])
            off = (tracks.xy[0].double().cpu() - truth.xy) * to_256
            near = off.square().sum(-1) < NEAR**2
            good[refine].append((near & truth.visible)[known])
        on_video(done, total)
    weights = {refine: fit(torch.cat(signals[refine]), torch.cat(good[refine])) for refine in signals}
    model.config = model.config.replace(confidence=weights[None], refined_confidence=weights["photometric"])


def calibrate(
    model: ChronoBackbone,
    photographs: str | os.PathLike[str],
    on_video: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """The former name of `fit_confidence`."""
    warnings.warn("calibrate is now called fit_confidence", DeprecationWarning, stacklevel=2)
    fit_confidence(model, photographs, on_video)


def _usable(entries: Iterable[Entry]) -> Iterator[Clip]:
    for entry in entries:
        try:
            video = entry.load()
        except Unusable:
            continue
        assert isinstance(video, Clip)
        yield video

"""What can be measured: models by name, baselines by name, and any callable that tracks points."""

from __future__ import annotations

import hashlib
import importlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ..backbone import ChronoBackbone
from ..confidence import confidence_weights
from ..extras import require
from ..refine import Refine
from ..tracking import soft_argmax_track
from ..tracks import Tracks
from .baselines import ColourFeatures, PatchFeatures, TimmFeatures, lucas_kanade, static

# video (B, T, 3, H, W) uint8, queries (B, N, 3) -> tracks of B clips
TrackFunction = Callable[[Tensor, Tensor], Tracks]
PAPER_SIDE = 896  # pixels: the authors' network sees 64 x 64 patches of 14
PIXEL_FEATURES = {"patch": PatchFeatures, "colour": ColourFeatures}
BASELINES = ("static", "lucas-kanade", "patch", "colour", "timm:NAME", "timm:NAME@BLOCK", "MODULE:FUNCTION")


@dataclass(frozen=True)
class Tracker:
    """Something that tracks points, and maybe has features.

    Attributes:
        name: What it is called in tables.
        about: What it is, in plain JSON values: results of the same name belong together only where this is the same.
        track: Tracks the points of a clip; the third argument is what `features` gave for it, or None.
        features: Features (B, T, C, h, w) of a clip; None for trackers that have none of their own.
    """

    name: str
    track: Callable[[Tensor, Tensor, Tensor | None], Tracks]
    features: Callable[[Tensor], Tensor] | None = None
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFeatures:
    """Features by a model. Two of them are equal if they give the same, so that it is computed once."""

    model: ChronoBackbone
    adapters: bool
    grid: tuple[int, int] | None
    max_frames_in_memory: int | None

    @torch.no_grad()
    def __call__(
        self,
        video: Tensor,  # (B, T, 3, H, W)
    ) -> Tensor:
        if not self.adapters:  # frame by frame, so that parts of a clip are the same
            parts = video.split(self.max_frames_in_memory or video.shape[1], dim=1)
            return torch.cat([self.model.vit_features(part, self.grid) for part in parts], dim=1)
        return self.model(video, self.grid, max_frames_in_memory=self.max_frames_in_memory)


def from_model(
    name: str,
    model: ChronoBackbone,
    *,
    adapters: bool = True,
    paper: bool = False,
    max_frames_in_memory: int | None = None,
    refine: Refine = None,
    confidence: bool = False,
    temperature: float | None = None,
    radius: float | None = None,
    visible_threshold: float | None = None,
    correlation_dtype: torch.dtype | None = None,
) -> Tracker:
    """Make a tracker of a model and its own `track`.

    Args:
        name: What it is called in tables.
        model: The model, on its device.
        adapters: Whether its adapters are on.
        paper: The authors' settings: similarities in bfloat16, frames of 896 x 896 pixels.
        max_frames_in_memory: As in `ChronoBackbone.forward`.
        refine, confidence, temperature, radius, visible_threshold: As in `ChronoBackbone.track`.
        correlation_dtype: As there; None takes bfloat16 with `paper`, and float32 otherwise.

    Raises:
        ValueError: The authors' settings do not fit the model, or its confidence was not fitted.
    """
    if confidence:
        confidence_weights(model.config, refine is not None)  # raises where there are none
    features = ModelFeatures(model, adapters, _paper_grid(name, model) if paper else None, max_frames_in_memory)
    given = {
        "refine": refine,
        "confidence": confidence if confidence or refine else None,  # as results of earlier versions have it
        "temperature": temperature,
        "radius": radius,
        "visible_threshold": visible_threshold,
        "correlation_dtype": correlation_dtype or (torch.bfloat16 if paper else None),
    }
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}

    def track(video: Tensor, queries: Tensor, found: Tensor | None) -> Tracks:
        return model.track(video, queries, features=features(video) if found is None else found, **options)

    settings = {key: str(value) if isinstance(value, torch.dtype) else value for key, value in options.items()}
    about = {"weights": weights_hash(model), "config": model.config.to_dict(), "adapters": adapters, **settings}
    return Tracker(name, track, features, about)


def from_tracker(name: str, tracker: TrackFunction, **about: Any) -> Tracker:
    """Make a tracker of any callable (video (1, T, 3, H, W) uint8, queries (1, N, 3)) -> `Tracks`."""

    @torch.no_grad()
    def track(video: Tensor, queries: Tensor, _: Tensor | None) -> Tracks:
        tracks = tracker(video, queries)
        if not isinstance(tracks, Tracks):
            raise ValueError(f"{name} returned a {type(tracks).__name__}; expected chrono_features.Tracks")
        each = (*queries.shape[:2], video.shape[1])
        for field_name, expected in (("xy", (*each, 2)), ("visible", each), ("confidence", each)):
            value = getattr(tracks, field_name)
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(f"{name} returned {field_name} of shape {tuple(value.shape)}; expected {expected}")
        return tracks

    return Tracker(name, track, None, about)


def baseline(name: str, grid: tuple[int, int] = (64, 64), device: torch.device | str = "cpu") -> Tracker:
    """Make a baseline by name.

    Args:
        name: "static"; "lucas-kanade"; "patch" or "colour" (raw pixels as features); "timm:NAME" or
            "timm:NAME@BLOCK"; or "MODULE:FUNCTION", a tracker of your own.
        grid: Of the features of "patch", "colour" and timm's models.
        device: Where they run.

    Raises:
        ValueError: There is no such baseline.
        ImportError: The module of a tracker of your own lacks something.
    """
    if name == "static":
        return from_tracker(name, static)
    if name == "lucas-kanade":
        return from_tracker(name, lucas_kanade, opencv=require("cv2", "eval").__version__)
    if name in PIXEL_FEATURES:
        return _from_features(name, PIXEL_FEATURES[name](grid=grid))
    if form := re.fullmatch(r"timm:([^@]+)(?:@(\d+))?", name):
        features = TimmFeatures(form[1], None if form[2] is None else int(form[2]), grid).to(device)
        about = {"weights": weights_hash(features), "block": features.block, "stride": features.stride}
        return _from_features(name, features, **about)
    if form := re.fullmatch(r"([\w.]+):([\w.]+)", name):
        return from_tracker(name, _imported(form[1], form[2]))
    raise ValueError(f"baseline={name!r}; expected one of {', '.join(BASELINES)}")


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, names and types included."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().flatten().contiguous()  # a single number has no dimension to view as bytes
        digest.update(flat.view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def _paper_grid(name: str, model: ChronoBackbone) -> tuple[int, int]:
    """The grid that frames of 896 x 896 pixels give."""
    if any(PAPER_SIDE % side for side in model.patch_size):
        raise ValueError(f"paper=True for {name}, whose patches are {model.patch_size}; expected divisors of 896")
    return PAPER_SIDE // model.patch_size[0], PAPER_SIDE // model.patch_size[1]


def _from_features(name: str, features: Any, **about: Any) -> Tracker:
    """Soft-argmax on features, with their own radius and temperature."""
    options = {"radius": features.radius, "temperature": features.temperature}

    @torch.no_grad()
    def track(video: Tensor, queries: Tensor, found: Tensor | None) -> Tracks:
        found = features(video) if found is None else found
        return soft_argmax_track(found, queries, video.shape[-2:], **options)

    return Tracker(name, track, features, {"grid": list(features.grid), **options, **about})


def _imported(module: str, function: str) -> TrackFunction:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something
        raise ValueError(f"baseline={module}:{function}: no module {error.name}; expected one on PYTHONPATH") from error
    try:
        found = attrgetter(function)(found)
    except AttributeError as error:
        raise ValueError(f"baseline={module}:{function}; {module} has no {function}") from error
    if not callable(found):
        raise ValueError(f"baseline={module}:{function} is a {type(found).__name__}; expected a function")
    return partial(found)


def __getattr__(name: str) -> Any:
    if name == "Contender":
        warnings.warn("Contender is now called Tracker", DeprecationWarning, stacklevel=2)
        return Tracker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Takes a tracker's backbone out and puts this library's features in its place, and back."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import ChronoBackbone
from ..checks import check_choice, check_video
from ..dtypes import l2_normalise

MODULES = {  # class of the tracker -> module here
    "LocoTrack": "grids",
    "TAPIR": "grids",
    "CoTracker2": "cotracker",
    "CoTrackerThreeOffline": "cotracker",
    "CoTrackerThreeOnline": "cotracker",
}
FREEZE = (None, "backbone", "all but heads")


@dataclass(frozen=True)
class _Swap:
    """What it takes to undo one. It is no module: the tracker's parameters do not include those of its old backbone."""

    original: dict[str, nn.Module | None]
    needs_gradient: list[tuple[nn.Parameter, bool]]


def swap_backbone(tracker: nn.Module, chrono: ChronoBackbone, *, freeze: str | None = "backbone") -> nn.Module:
    """Replaces a tracker's backbone, in place. The tracker is called as before.

    What the tracker needs beside features (projections, resizing, layouts) becomes part of it as a module with
    parameters of its own: see `trainable_report` for what must be trained.

    Args:
        tracker: A LocoTrack, TAPIR, BootsTAPIR, CoTracker2 or CoTracker3 (offline or online).
        chrono: The backbone; it becomes a part of the tracker.
        freeze: "backbone" trains projections and tracker, "all but heads" the projections alone, None all that the
            tracker and `chrono` train (but for the visibility head, which features do without).

    Returns:
        The tracker.

    Raises:
        ValueError: Another class, a tracker that is swapped already or computes in another type than `chrono`, or an
            argument is not as above.
    """
    module = _module_for(tracker)
    check_choice("freeze", freeze, FREEZE)
    if not isinstance(chrono, ChronoBackbone):
        raise ValueError(f"chrono of type {type(chrono).__name__}; expected a ChronoBackbone")
    if hasattr(tracker, "chrono_swap"):
        raise ValueError(f"{type(tracker).__name__} has been swapped already; expected unswap_backbone(tracker) before")
    _check_dtype(tracker, chrono)
    parameters = [*tracker.parameters(), *chrono.parameters()]
    swap = _Swap({name: getattr(tracker, name) for name in module.BACKBONE}, [(p, p.requires_grad) for p in parameters])
    module.attach(tracker, chrono.to(next(tracker.parameters()).device))
    tracker.chrono_swap = swap  # type: ignore[assignment]
    if freeze == "backbone":
        chrono.requires_grad_(False)
    elif freeze == "all but heads":
        tracker.requires_grad_(False)
        getattr(tracker, module.BACKBONE[0]).provider.heads.requires_grad_(True)
    return tracker


def unswap_backbone(tracker: nn.Module) -> nn.Module:
    """Puts a tracker's own backbone back, in place: it computes what it computed before.

    Returns:
        The tracker.

    Raises:
        ValueError: It was not swapped.
    """
    module, swap = _module_for(tracker), _swap_of(tracker)
    like = next(tracker.parameters())
    module.detach(tracker)
    for name, original in swap.original.items():
        setattr(tracker, name, None if original is None else original.to(like).train(tracker.training))
    for parameter, needs_gradient in swap.needs_gradient:
        parameter.requires_grad_(needs_gradient)
    del tracker.chrono_swap
    return tracker


def trainable_report(tracker: nn.Module) -> None:
    """Prints the parts of a swapped tracker: their parameters, how many of them train, and what must be retrained.

    Raises:
        ValueError: It was not swapped.
    """
    module = _module_for(tracker)
    _swap_of(tracker)  # refuses one that was not swapped
    provider = getattr(tracker, module.BACKBONE[0]).provider
    parts: dict[str, tuple[nn.Module, str]] = {
        "chrono": (provider.chrono, "as loaded"),
        "projection heads": (provider.heads, "new: must be trained"),
    }
    for name, child in tracker.named_children():
        if name not in module.BACKBONE:
            needed = "must be retrained: it has never seen these features" if name in module.RETRAIN else "as loaded"
            parts[name] = child, needed
    print(f"{'part':<32}{'parameters':>14}{'training':>14}  state")
    for name, (part, state) in parts.items():
        counts = [(p.numel(), p.requires_grad) for p in part.parameters()]
        total, training = sum(n for n, _ in counts), sum(n for n, trains in counts if trains)
        print(f"{name:<32}{total:>14,}{training:>14,}  {state}")


class TrackerFeatures(nn.Module):
    """A tracker's own features in this library's layout; see `features_from`."""

    def __init__(self, tracker: nn.Module) -> None:
        super().__init__()
        self.tracker, self.module = tracker, _module_for(tracker)

    @torch.no_grad()
    def forward(
        self,
        video: Tensor,  # (B, T, 3, H, W) uint8 0 … 255 or floating 0 … 1
    ) -> Tensor:  # (B, T, C, h, w), L2-normalised along C
        check_video(video)
        video = video / 255 if video.dtype == torch.uint8 else video
        return l2_normalise(self.module.own_features(self.tracker, video.movedim(2, -1) * 2 - 1).movedim(-1, 2))


def features_from(tracker: nn.Module) -> TrackerFeatures:
    """A tracker's own features, without the tracker: a ResNet's, or a TSM-ResNet's where it has one.

    Args:
        tracker: As in `swap_backbone`, not swapped.

    Returns:
        A module from videos (B, T, 3, H, W) to features (B, T, C, h, w) L2-normalised, at stride 8 (LocoTrack, TAPIR)
        or 4 (CoTracker), for `soft_argmax_track`.

    Raises:
        ValueError: The tracker is of another class, or has been swapped.
    """
    if hasattr(tracker, "chrono_swap"):
        raise ValueError(f"{type(tracker).__name__} has been swapped; expected one with its own backbone")
    return TrackerFeatures(tracker)


def _module_for(tracker: Any) -> ModuleType:
    names = [c.__name__ for c in type(tracker).__mro__]
    if "CoTrackerPredictor" in names or "CoTrackerOnlinePredictor" in names:
        raise ValueError(f"tracker of type {names[0]}; expected the tracker inside of it: predictor.model")
    for name in names:
        if name in MODULES:
            return importlib.import_module(f".{MODULES[name]}", __package__)
    raise ValueError(
        f"tracker of type {names[0]}; expected one of {', '.join(MODULES)}. In other trackers put a FeatureProvider in "
        f"the place of their own network"
    )


def _swap_of(tracker: nn.Module) -> _Swap:
    if not hasattr(tracker, "chrono_swap"):
        raise ValueError(f"{type(tracker).__name__} was not swapped; expected one that swap_backbone was called with")
    return tracker.chrono_swap  # type: ignore[return-value]


def _check_dtype(tracker: nn.Module, chrono: ChronoBackbone) -> None:
    types = {p.dtype for p in tracker.parameters() if p.is_floating_point()}
    if types != {chrono.dtype}:
        found = ", ".join(sorted(map(str, types)))
        raise ValueError(
            f"tracker in {found}, chrono in {chrono.dtype}; expected one type: call tracker.float() and run it under "
            f"torch.autocast, or chrono.to(...) the tracker's"
        )

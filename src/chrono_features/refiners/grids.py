"""What LocoTrack and TAPIR share: feature grids of a clip at every resolution that they refine at."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .provider import FeatureProvider, frames_from_symmetric

BACKBONE = ("resnet_torch", "extra_convs")
MULTIPLE = 8  # of the sides of a resolution, as the trackers themselves ask


class FeatureGrids(nn.Module):
    """In the place of a tracker's ResNet.

    Args:
        provider: Features of all levels, (B, T, h, w, C) each, finest first.
    """

    def __init__(self, provider: FeatureProvider) -> None:
        super().__init__()
        self.provider = provider

    def forward(
        self,
        video: Tensor,  # (B, T, H, W, 3) in [-1, 1]
        resolutions: Sequence[tuple[int, int]],
    ) -> list[tuple[Tensor, ...]]:  # a level each, finest first: (B, T, h, w, C) for every resolution
        frames = frames_from_symmetric(video.movedim(-1, 2))
        sizes = [(int(height), int(width)) for height, width in resolutions]
        for height, width in sizes:
            if height % MULTIPLE or width % MULTIPLE:
                raise ValueError(f"resolution {height} x {width}; expected multiples of {MULTIPLE}")
        found = {size: self.provider(_resized(frames, size)) for size in dict.fromkeys(sizes)}
        return list(zip(*(found[size] for size in sizes), strict=True))


def detach(tracker: Any) -> None:
    """Gives a tracker the method of its class back."""
    del tracker.get_feature_grids


def resolutions(module: Any, tracker: Any, video: Tensor, given: Any) -> list[tuple[int, int]]:
    """Those asked for, or the tracker's own choice."""
    sizes = module.utils.generate_default_resolutions(video.shape[2:4], tracker.initial_resolution)
    return [tuple(size) for size in (sizes if given is None else given)]


def defining_module(tracker: nn.Module, name: str) -> Any:
    """The module that holds the tracker's class of that name, with what is defined beside it."""
    return sys.modules[next(c for c in type(tracker).__mro__ if c.__name__ == name).__module__]


def _resized(frames: Tensor, size: tuple[int, int]) -> Tensor:  # (B, T, 3, H, W)
    if tuple(frames.shape[-2:]) == size:
        return frames
    resized = F.interpolate(frames.flatten(0, 1), size, mode="bilinear", align_corners=False)
    return resized.unflatten(0, frames.shape[:2])

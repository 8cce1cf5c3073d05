"""What LocoTrack and TAPIR share: feature grids of a clip at every resolution that they refine at."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .provider import FeatureProvider, frames_from_symmetric

MULTIPLE = 8  # of the sides of a resolution, as the trackers themselves ask


class FeatureGrids(nn.Module):
    """In the place of a tracker's ResNet.

    Args:
        provider: Features of all levels but in the order finest first.
    """

    def __init__(self, provider: FeatureProvider) -> None:
        super().__init__()
        self.provider = provider

    def forward(
        self,
        video: Tensor,  # (B, T, H, W, 3) in [-1, 1]
        resolutions: Sequence[tuple[int, int]],
    ) -> list[list[Tensor]]:  # a level each, finest first: (B, T, h, w, C) for every resolution
        frames = frames_from_symmetric(video.movedim(-1, 2))
        found: dict[tuple[int, int], list[Tensor]] = {}
        sizes = [(int(height), int(width)) for height, width in resolutions]
        for size in sizes:
            if size[0] % MULTIPLE or size[1] % MULTIPLE:
                raise ValueError(f"resolution {size[0]} x {size[1]}; expected multiples of {MULTIPLE}")
            if size not in found:
                found[size] = self.provider(_resized(frames, size))
        return [list(level) for level in zip(*(found[size] for size in sizes), strict=True)]


def defining_module(tracker: nn.Module, name: str) -> Any:
    """The module that holds the tracker's class of that name, with what is defined beside it."""
    return sys.modules[next(c for c in type(tracker).__mro__ if c.__name__ == name).__module__]


def _resized(frames: Tensor, size: tuple[int, int]) -> Tensor:  # (B, T, 3, H, W)
    if tuple(frames.shape[-2:]) == size:
        return frames
    resized = F.interpolate(frames.flatten(0, 1), size, mode="bilinear", align_corners=False)
    return resized.unflatten(0, frames.shape[:2])

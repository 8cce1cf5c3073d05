"""LocoTrack and TAPIR, BootsTAPIR (PyTorch): grids of L2-normalised features at every resolution that they refine at.

The coarsest features have stride 8, and each finer level half of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import ChronoBackbone
from .provider import FeatureProvider

BACKBONE = ("resnet_torch", "extra_convs")
RETRAIN = ("torch_pips_mixer", "torch_cost_volume_track_mods", "cmdtop", "cost_conv", "occ_linear")
CHANNELS = {  # of each level, finest first; the last two must add up to 384: the mixer's residual is as wide
    "LocoTrack": (64, 128, 256),
    "TAPIR": (128, 256),
}
COARSEST_STRIDE = 8
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
        frames = ((video.movedim(-1, 2) + 1) / 2).clamp(0, 1)
        found = {}
        for height, width in dict.fromkeys(resolutions):
            if height % MULTIPLE or width % MULTIPLE:
                raise ValueError(f"resolution {height} x {width}; expected multiples of {MULTIPLE}")
            resized = F.interpolate(frames.flatten(0, 1), (height, width), mode="bilinear", align_corners=False)
            found[height, width] = self.provider(resized.unflatten(0, frames.shape[:2]))
        return list(zip(*(found[size] for size in resolutions), strict=True))


def attach(tracker: Any, chrono: ChronoBackbone) -> None:
    widths = CHANNELS[_kind(tracker).__name__]
    finest = COARSEST_STRIDE // 2 ** (len(widths) - 1)
    provider = FeatureProvider(chrono, finest, widths, "BTHWC", normalised=True, levels=len(widths))
    tracker.resnet_torch = FeatureGrids(provider)
    tracker.extra_convs = None
    tracker.get_feature_grids = partial(_feature_grids, tracker)  # pickled and copied with its tracker


def detach(tracker: Any) -> None:
    del tracker.get_feature_grids


def own_features(tracker: Any, video: Tensor) -> Any:  # (B, T, H, W, 3) in [-1, 1] -> (B, T, h, w, 256)
    return tracker.get_feature_grids(video, False, [tuple(video.shape[2:4])]).lowres[-1]


def _feature_grids(
    self: Any, video: Tensor, is_training: bool | None = False, refinement_resolutions: Any = None
) -> Any:  # the tracker's own FeatureGrids
    kind = _kind(self)
    module = sys.modules[kind.__module__]  # with what is defined beside the tracker's class
    if refinement_resolutions is None:
        refinement_resolutions = module.utils.generate_default_resolutions(video.shape[2:4], self.initial_resolution)
    own = [self.initial_resolution] if kind.__name__ == "TAPIR" else []  # for its cost volume
    sizes = tuple((int(height), int(width)) for height, width in [*own, *refinement_resolutions])
    finest_first = self.resnet_torch(video, sizes)
    return module.FeatureGrids(*reversed(finest_first), sizes)


def _kind(tracker: Any) -> type:
    """The tracker's class as its authors define it."""
    return next(c for c in type(tracker).__mro__ if c.__name__ in CHANNELS)

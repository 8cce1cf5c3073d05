"""LocoTrack (PyTorch): features at strides 8, 4 and 2 with 256, 128 and 64 channels, L2-normalised."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..backbone import ChronoBackbone
from .grids import BACKBONE, FeatureGrids, defining_module, detach, resolutions
from .provider import FeatureProvider

__all__ = ["BACKBONE", "RETRAIN", "attach", "detach", "own_features"]

RETRAIN = ("torch_pips_mixer", "cmdtop", "cost_conv", "occ_linear")
CHANNELS = (64, 128, 256)  # the last two must add up to 384: the mixer's residual is as wide


def attach(tracker: Any, chrono: ChronoBackbone) -> None:
    tracker.resnet_torch = FeatureGrids(FeatureProvider(chrono, 2, CHANNELS, "BTHWC", normalised=True, levels=3))
    tracker.extra_convs = None
    tracker.get_feature_grids = partial(_feature_grids, tracker)  # pickled and copied with its tracker


def _feature_grids(
    self: Any, video: Any, is_training: bool | None = False, refinement_resolutions: Any = None
) -> Any:  # the tracker's own FeatureGrids
    module = defining_module(self, "LocoTrack")
    sizes = resolutions(module, self, video, refinement_resolutions)
    highest, hires, lowres = self.resnet_torch(video, sizes)
    return module.FeatureGrids(lowres, hires, highest, tuple(sizes))


def own_features(tracker: Any, video: Any) -> Any:  # (B, T, H, W, 3) in [-1, 1] -> (B, T, h, w, 256)
    return tracker.get_feature_grids(video, False, [tuple(video.shape[2:4])]).lowres[0]

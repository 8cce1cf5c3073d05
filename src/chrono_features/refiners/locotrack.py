"""LocoTrack (PyTorch): features at strides 8, 4 and 2 with 256, 128 and 64 channels, of unit length."""

from __future__ import annotations

from types import MethodType
from typing import Any

from ..backbone import ChronoBackbone
from .grids import FeatureGrids, defining_module
from .provider import FeatureProvider

BACKBONE = ("resnet_torch",)
RETRAIN = ("torch_pips_mixer", "cmdtop", "cost_conv", "occ_linear")
CHANNELS = (64, 128, 256)  # the last two must add up to 384: the mixer's residual is as wide


def attach(tracker: Any, chrono: ChronoBackbone) -> None:
    tracker.resnet_torch = FeatureGrids(FeatureProvider(chrono, 2, CHANNELS, "BTHWC", normalised=True, levels=3))
    tracker.get_feature_grids = MethodType(_feature_grids, tracker)


def detach(tracker: Any) -> None:
    del tracker.get_feature_grids


def _feature_grids(
    self: Any, video: Any, is_training: bool | None = False, refinement_resolutions: Any = None
) -> Any:  # the tracker's own FeatureGrids
    module = defining_module(self, "LocoTrack")
    if refinement_resolutions is None:
        refinement_resolutions = module.utils.generate_default_resolutions(video.shape[2:4], self.initial_resolution)
    highest, hires, lowres = self.resnet_torch(video, refinement_resolutions)
    sizes = tuple(tuple(size) for size in refinement_resolutions)
    return module.FeatureGrids(tuple(lowres), tuple(hires), tuple(highest), sizes)


def own_features(tracker: Any, video: Any) -> Any:  # (B, T, H, W, 3) in [-1, 1] -> (B, T, h, w, 256)
    return tracker.get_feature_grids(video, False, [tuple(video.shape[2:4])]).lowres[0]

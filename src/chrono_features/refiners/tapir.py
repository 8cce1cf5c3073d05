"""TAPIR and BootsTAPIR (PyTorch): features at strides 8 and 4 with 256 and 128 channels, of unit length."""

from __future__ import annotations

from types import MethodType
from typing import Any

from ..backbone import ChronoBackbone
from .grids import FeatureGrids, defining_module
from .provider import FeatureProvider

BACKBONE = ("resnet_torch", "extra_convs")
RETRAIN = ("torch_pips_mixer", "torch_cost_volume_track_mods")
CHANNELS = (128, 256)


def attach(tracker: Any, chrono: ChronoBackbone) -> None:
    tracker.resnet_torch = FeatureGrids(FeatureProvider(chrono, 4, CHANNELS, "BTHWC", normalised=True, levels=2))
    tracker.extra_convs = None
    tracker.get_feature_grids = MethodType(_feature_grids, tracker)


def detach(tracker: Any) -> None:
    del tracker.get_feature_grids


def _feature_grids(
    self: Any, video: Any, is_training: bool = False, refinement_resolutions: Any = None
) -> Any:  # the tracker's own FeatureGrids
    module = defining_module(self, "TAPIR")
    if refinement_resolutions is None:
        refinement_resolutions = module.utils.generate_default_resolutions(video.shape[2:4], self.initial_resolution)
    resolutions = [self.initial_resolution, *refinement_resolutions]  # the first is for its cost volume
    hires, lowres = self.resnet_torch(video, resolutions)
    return module.FeatureGrids(tuple(lowres), tuple(hires), tuple(tuple(size) for size in resolutions))


def own_features(tracker: Any, video: Any) -> Any:  # (B, T, H, W, 3) in [-1, 1] -> (B, T, h, w, 256)
    return tracker.get_feature_grids(video, False, [tuple(video.shape[2:4])]).lowres[-1]

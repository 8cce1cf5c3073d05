"""TAPIR and BootsTAPIR (PyTorch): features at strides 8 and 4 with 256 and 128 channels, L2-normalised."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..backbone import ChronoBackbone
from .grids import BACKBONE, FeatureGrids, defining_module, detach, resolutions
from .provider import FeatureProvider

__all__ = ["BACKBONE", "RETRAIN", "attach", "detach", "own_features"]

RETRAIN = ("torch_pips_mixer", "torch_cost_volume_track_mods")
CHANNELS = (128, 256)


def attach(tracker: Any, chrono: ChronoBackbone) -> None:
    tracker.resnet_torch = FeatureGrids(FeatureProvider(chrono, 4, CHANNELS, "BTHWC", normalised=True, levels=2))
    tracker.extra_convs = None
    tracker.get_feature_grids = partial(_feature_grids, tracker)  # pickled and copied with its tracker


def _feature_grids(
    self: Any, video: Any, is_training: bool = False, refinement_resolutions: Any = None
) -> Any:  # the tracker's own FeatureGrids
    module = defining_module(self, "TAPIR")
    sizes = [tuple(self.initial_resolution), *resolutions(module, self, video, refinement_resolutions)]
    hires, lowres = self.resnet_torch(video, sizes)  # the first size is for its cost volume
    return module.FeatureGrids(lowres, hires, tuple(sizes))


def own_features(tracker: Any, video: Any) -> Any:  # (B, T, H, W, 3) in [-1, 1] -> (B, T, h, w, 256)
    return tracker.get_feature_grids(video, False, [tuple(video.shape[2:4])]).lowres[-1]

"""Photographs and warps of them, for tests."""

from __future__ import annotations

import numpy as np
import torch

from chrono_features.data.camera_motion import homographies
from chrono_features.data.photo_warps import PLANS

SIZE = (60, 72)  # (height, width)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def waves(height: int, width: int) -> np.ndarray:
    """Colours that tell positions: steep, and alike nowhere near."""
    y, x = np.mgrid[:height, :width] + 0.5
    phases = x / 11, y / 11, (x + y) / 17
    return (127.5 + 120 * np.sin(np.stack(phases, axis=-1))).astype(np.uint8)


def plan_and_homography(group: str, seed: int, photograph=(256, 320), size=(128, 128)):
    draws = generator(seed)
    plan = PLANS[group](draws)
    return plan, homographies(draws, plan.camera, photograph, size)

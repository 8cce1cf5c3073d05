"""From the frames of a video to what a ViT takes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ChronoConfig
from .dtypes import wide_dtype

PIXELS = ChronoConfig("none, raw pixels", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PREPARED_TOGETHER = 16  # frames: a wide copy of a whole high-resolution clip would not fit


def prepare_frames(
    frames: Tensor,  # (N, 3, H, W)
    config: ChronoConfig,
    patch_size: tuple[int, int],
    grid: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Frames resized to patch size x grid and normalised, (N, 3, h, w), as `config` says."""
    sizes = [config.input_size, (patch_size[0] * grid[0], patch_size[1] * grid[1])]
    mean, std = (torch.tensor(v, device=frames.device).view(1, 3, 1, 1) for v in (config.mean, config.std))
    prepared = []
    for chunk in frames.split(PREPARED_TOGETHER):
        chunk = chunk.to(wide_dtype(chunk.dtype, dtype))
        if frames.dtype == torch.uint8:
            chunk = chunk / 255
        for size in sizes:
            if size is not None and size != tuple(chunk.shape[-2:]):
                chunk = F.interpolate(chunk, size, mode="bilinear", align_corners=False, antialias=config.antialias)
        prepared.append(((chunk - mean) / std).to(dtype))
    return torch.cat(prepared)


def cell_colours(
    video: Tensor,  # (B, T, 3, H, W)
    grid: tuple[int, int],
) -> Tensor:
    """Raw colours as features, (B, T, 4, h, w): the colour of each cell, and 1, L2-normalised."""
    cells = prepare_frames(video.flatten(0, 1), PIXELS, (1, 1), grid, torch.float32)
    return F.normalize(F.pad(cells, (0, 0, 0, 0, 0, 1), value=1.0), dim=1).unflatten(0, video.shape[:2])

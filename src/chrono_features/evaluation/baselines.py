"""Trackers to compare with: a point that stays, optical flow, raw patches, and the features of any timm model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config import ChronoConfig, check_grid
from ..extras import require
from ..preprocess import PIXELS, cell_colours, prepare_frames
from ..tracks import Tracks

LK_OPTIONS: dict[str, Any] = {"winSize": (21, 21), "maxLevel": 4}
LK_CYCLE_ERROR = 1.5  # pixels
FRAMES_TOGETHER = 8
FINEST_WANTED = 8  # stride of the stage of a convolutional network that is taken unless another is named


def static(
    video: Tensor,  # (B, T, 3, H, W)
    queries: Tensor,  # (B, N, 3)
) -> Tracks:
    """A point that never moves."""
    xy = queries[:, :, None, 1:].expand(-1, -1, video.shape[1], -1)
    return Tracks(xy, torch.ones_like(xy[..., 0]))


def lucas_kanade(
    video: Tensor,  # (B, T, 3, H, W) uint8
    queries: Tensor,  # (B, N, 3)
) -> Tracks:
    """OpenCV's pyramidal Lucas-Kanade from frame to frame, forwards and backwards from the query.

    A point is occluded for good once its status is 0 or following it back misses by more than 1.5 px; it is tracked on.

    Raises:
        ImportError: OpenCV is missing.
    """
    cv2 = require("cv2", "eval")
    xy = queries[:, :, None, 1:].repeat(1, 1, video.shape[1], 1).float().cpu().numpy()
    visible = np.ones(xy.shape[:3], bool)
    for b, clip in enumerate(video.cpu().permute(0, 1, 3, 4, 2).contiguous().numpy()):
        greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
        own_frames = queries[b, :, 0].long().cpu().numpy()
        for step in (1, -1):
            for before, after in pairwise(range(len(greys))[::step]):
                started = (after - own_frames) * step > 0
                if started.any():
                    xy[b, started, after], sure = _flow(greys[before], greys[after], xy[b, started, before])
                    visible[b, started, after] = visible[b, started, before] & sure
    return Tracks(torch.from_numpy(xy), torch.ones(visible.shape), torch.from_numpy(visible)).to(queries.device)


def _flow(
    before: NDArray[np.uint8],  # (H, W)
    after: NDArray[np.uint8],  # (H, W)
    xy: NDArray[np.float32],  # (N, 2)
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where points go, and whether they come back."""
    flow = require("cv2", "eval").calcOpticalFlowPyrLK
    start = np.ascontiguousarray(xy - 0.5)[:, None]  # OpenCV counts from pixel centres
    end, status, _ = flow(before, after, start, None, **LK_OPTIONS)
    back, _, _ = flow(after, before, end, None, **LK_OPTIONS)
    sure = (status[:, 0] == 1) & (np.linalg.norm(back - start, axis=-1)[:, 0] <= LK_CYCLE_ERROR)
    return end[:, 0] + 0.5, sure


class PatchFeatures(nn.Module):
    """Raw pixels as features: the patch around every pixel, averaged over the cells, mean removed, unit length.

    Of the two forms that were tried on real videos, the better one: one patch of 12 x 12 a cell does worse.
    """

    radius, temperature = 3.0, 20.0

    def __init__(self, patch: int = 9, grid: tuple[int, int] = (64, 64)) -> None:
        super().__init__()
        self.patch, self.grid = patch, check_grid(grid)

    @torch.no_grad()
    def forward(
        self,
        video: Tensor,  # (B, T, 3, H, W)
    ) -> Tensor:
        """Features (B, T, C, h, w); frames are taken at four pixels a cell."""
        return torch.stack([torch.cat([self._frame(frame) for frame in clip]) for clip in video])

    def _frame(self, frame: Tensor) -> Tensor:
        pixels = prepare_frames(frame[None], PIXELS, (4, 4), self.grid, torch.float32)
        patches = F.unfold(F.pad(pixels, (self.patch // 2,) * 4, mode="replicate"), self.patch)
        cells = F.avg_pool2d(patches.unflatten(-1, pixels.shape[-2:]), 4)
        return F.normalize(cells - cells.mean(dim=1, keepdim=True), dim=1)


class ColourFeatures(nn.Module):
    """Raw colours as features: the mean colour of each cell, and 1, L2-normalised."""

    radius, temperature = 3.0, 20.0

    def __init__(self, grid: tuple[int, int] = (64, 64)) -> None:
        super().__init__()
        self.grid = check_grid(grid)

    @torch.no_grad()
    def forward(
        self,
        video: Tensor,  # (B, T, 3, H, W)
    ) -> Tensor:
        """Features (B, T, 4, h, w)."""
        return cell_colours(video, self.grid)


class TimmFeatures(nn.Module):
    """Features of single frames by any timm model, after any of its blocks or stages.

    Frames are resized so that the features have the wanted grid: 64 x 64 for a patch of 14 takes 896 x 896.

    Args:
        name: A model of timm's, "vit_small_patch14_dinov2.lvd142m", "resnet18", ...
        block: Which block (ViT) or stage (convolutional network), from 0; None takes a ViT's last one, with its final
            norm, and the last stage of stride 8 or less otherwise.
        grid: Rows and columns of the features.
        pretrained: Whether timm fetches the pretrained weights.

    Raises:
        ValueError: There is no such model or block, or the model does not give maps.
        OSError: The weights cannot be fetched.
    """

    radius, temperature = 5.0, 20.0

    def __init__(
        self, name: str, block: int | None = None, grid: tuple[int, int] = (64, 64), pretrained: bool = True
    ) -> None:
        super().__init__()
        if not timm.is_model(name.split(".")[0]):
            raise ValueError(f"timm:{name}: timm has no such model; timm.list_models('*…*') shows what it has")
        try:
            model: Any = timm.create_model(name, pretrained=pretrained).eval().requires_grad_(False)
        except (RuntimeError, OSError) as error:
            raise OSError(f"timm:{name}: its weights are not there and cannot be fetched ({error})") from error
        strides = [info["reduction"] for info in getattr(model, "feature_info", [])]
        if not strides or not hasattr(model, "forward_intermediates"):
            raise ValueError(f"timm:{name} ({type(model).__name__}) gives no feature maps; expected one that does")
        if block is None:
            block = max((i for i, stride in enumerate(strides) if stride <= FINEST_WANTED), default=len(strides) - 1)
        if not 0 <= block < len(strides):
            raise ValueError(f"timm:{name}@{block}: expected a block from 0 to {len(strides) - 1}")
        self.model, self.block, self.grid = model, block, check_grid(grid)
        self.is_last = block == len(strides) - 1
        self.stride = strides[block]
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=tuple(self.stride * side for side in self.grid))
        self.config = ChronoConfig(vit=name, mean=model.pretrained_cfg["mean"], std=model.pretrained_cfg["std"])

    @torch.no_grad()
    def forward(
        self,
        video: Tensor,  # (B, T, 3, H, W)
    ) -> Tensor:
        """Features (B, T, C, h, w) L2-normalised."""
        chunks = video.flatten(0, 1).split(FRAMES_TOGETHER)
        return torch.cat([self._frames(chunk) for chunk in chunks]).unflatten(0, video.shape[:2])

    def _frames(self, frames: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        pixels = prepare_frames(frames, self.config, (self.stride, self.stride), self.grid, dtype)
        (features,) = self.model.forward_intermediates(
            pixels, indices=[self.block], norm=self.is_last, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return F.normalize(features, dim=1)

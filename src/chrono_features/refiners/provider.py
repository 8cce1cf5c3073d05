"""Features of a clip at the strides, widths and layout that a tracker wants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..backbone import ChronoBackbone
from ..checks import check_video
from ..dtypes import l2_normalise

FINEST_STRIDE = 4  # pixels: finer features are interpolated, as a finer token grid costs four times as much
LAYOUTS = {"BCHW": "(b t) c h w", "BTCHW": "b t c h w", "BTHWC": "b t h w c"}


class FeatureProvider(nn.Module):
    """A backbone and a head for each level of features: 1 x 1 convolutions, to the channels that a tracker expects.

    The whole clip passes the backbone at once, so that frames see each other. Heads take features whose channels are
    about 1, not L2-normalised, and so they return them unless `normalised`. The backbone's visibility head, which
    features do without, is frozen: DistributedDataParallel asks for a gradient of all that trains.

    Args:
        chrono: The backbone.
        stride: Pixels between the features of the finest level.
        channels: Of a level, or of each of them, finest first.
        layout: "BCHW", (B * T, C, h, w), as networks for single images have it; "BTCHW" or "BTHWC".
        normalised: Whether features are L2-normalised along the channels.
        levels: How many; each has twice the stride of the one before.

    Raises:
        ValueError: An argument is not as above.
    """

    def __init__(
        self,
        chrono: ChronoBackbone,
        stride: int = 4,
        channels: int | Sequence[int] = 128,
        layout: str = "BCHW",
        normalised: bool = False,
        levels: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(chrono, ChronoBackbone):
            raise ValueError(f"chrono of type {type(chrono).__name__}; expected a ChronoBackbone")
        if stride < 1 or levels < 1:
            raise ValueError(f"stride={stride!r}, levels={levels!r}; expected positive integers")
        widths = [channels] * levels if isinstance(channels, int) else list(channels)
        if len(widths) != levels or any(width < 1 for width in widths):
            raise ValueError(f"channels={channels!r}; expected a positive integer, or {levels} of them")
        if layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}; expected one of {', '.join(LAYOUTS)}")
        chrono.visibility_head.requires_grad_(False)
        self.chrono, self.layout, self.normalised = chrono, layout, normalised
        self.strides = [stride * 2**level for level in range(levels)]
        self.finest = max(stride, FINEST_STRIDE)
        self.heads = nn.ModuleList(
            nn.Conv2d(chrono.feature_info[self._source(s)]["num_chs"], width, 1)
            for s, width in zip(self.strides, widths, strict=True)
        )
        self.heads.to(chrono.device, chrono.dtype)

    def forward(
        self,
        video: Tensor,  # (B, T, 3, H, W)
    ) -> Tensor | list[Tensor]:
        """Computes features.

        Args:
            video: uint8 0 … 255 or floating 0 … 1.

        Returns:
            Features at H / stride x W / stride in the layout asked for; with several levels a list, finest first.

        Raises:
            ValueError: The video is not as above, or its sides are no multiples of the strides.
        """
        check_video(video)
        height, width = video.shape[-2:]
        coarsest = self.strides[-1]
        if height % coarsest or width % coarsest:
            raise ValueError(f"video of {height} x {width} pixels; expected multiples of {coarsest}, the widest stride")
        pyramid = self.chrono.forward_pyramid(video, self.grid((height, width)))
        levels = []
        for head, stride in zip(self.heads, self.strides, strict=True):
            size = height // stride, width // stride
            maps = pyramid[self._source(stride)].flatten(0, 1)
            maps = maps * maps.shape[1] ** 0.5  # L2-normalised so far; trackers' own features are about 1 a channel
            maps = head(_resized(maps, size)).unflatten(0, video.shape[:2])
            maps = l2_normalise(maps) if self.normalised else maps
            levels.append(rearrange(maps, f"b t c h w -> {LAYOUTS[self.layout]}"))
        return levels if len(levels) > 1 else levels[0]

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The token grid for frames of (height, width): features come at the finest stride, but no finer than 4."""
        tokens = self.finest * self.chrono.feature_shape((1, 1))[1]  # pixels of a token: a neck doubles the grid
        return tuple(max(1, math.ceil(side / tokens)) for side in image_size)  # type: ignore[return-value]

    def _source(self, stride: int) -> int:
        """The level of the backbone's pyramid for a stride: its coarsest that is no coarser."""
        info = self.chrono.feature_info
        ratios = [level["reduction"] / info[0]["reduction"] for level in info]
        return max(i for i, ratio in enumerate(ratios) if self.finest * ratio <= max(stride, self.finest))


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:  # (N, C, h, w) -> (N, C, *size)
    if tuple(maps.shape[-2:]) == size:
        return maps
    smaller = maps.shape[-1] > size[1]
    return F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=smaller)

"""The layers beside the ViT and its adapters: a convolutional stem, an upsampling neck, the visibility head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_tensor

FINE_CHANNELS = 64
FINE_STRIDE = 4


class FineFeatures(nn.Sequential):
    """Three 3x3 convolutions from a frame (N, 3, H, W) to stride 4, (N, 64, H / 4, W / 4)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, FINE_CHANNELS // 2, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(FINE_CHANNELS // 2, FINE_CHANNELS, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(FINE_CHANNELS, FINE_CHANNELS, 3, padding=1),
            nn.GELU(),
        )


class ConvStem(nn.Module):
    """Convolutions to stride 4 and on to the token stride; a depthwise convolution is the only position code.

    Args:
        dim: Width of the tokens.
        patch_size: Token stride in pixels, a multiple of 4.

    Raises:
        ValueError: `patch_size` is not a multiple of 4.
    """

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        if patch_size % FINE_STRIDE:
            raise ValueError(f"stem='conv' with patch size {patch_size}; expected a multiple of {FINE_STRIDE}")
        stride = patch_size // FINE_STRIDE
        self.fine = FineFeatures()
        self.down = nn.Conv2d(FINE_CHANNELS, dim, 2 * stride - 1, stride=stride, padding=stride - 1)
        self.position = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)

    def forward(
        self,
        frames: Tensor,  # (N, 3, H, W)
    ) -> tuple[Tensor, Tensor]:
        """Returns tokens (N, C, h, w) and the stride-4 features (N, 64, H / 4, W / 4)."""
        fine = self.fine(frames)
        tokens = self.down(fine)
        return tokens + self.position(tokens), fine


class UpsampleNeck(nn.Module):
    """Pixel shuffle doubles the grid; two 3x3 convolutions join it with convolutional features of the frame.

    Args:
        dim: Width of the tokens.
        out_channels: Channels of the features.
    """

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, 4 * out_channels, 1)
        self.join = nn.Conv2d(out_channels + FINE_CHANNELS, out_channels, 3, padding=1)
        self.out = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(
        self,
        tokens: Tensor,  # (N, C, h, w)
        fine: Tensor,  # (N, 64, about 4 / patch size of the frame)
    ) -> Tensor:
        """Returns (N, out_channels, 2 h, 2 w)."""
        doubled = F.pixel_shuffle(self.expand(tokens), 2)
        if fine.shape[-2:] != doubled.shape[-2:]:  # patch sizes other than 8
            fine = F.interpolate(fine, doubled.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(F.gelu(self.join(torch.cat([doubled, fine], dim=1))))


class VisibilityHead(nn.Module):
    """A linear layer from a similarity map's mean, maximum and minimum to the logits *occluded* and *far*.

    A new head calls every point visible.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -2.0)

    def forward(
        self,
        statistics: Tensor,  # (..., 3) mean, maximum, minimum
    ) -> Tensor:
        """Returns the two logits, (..., 2).

        Raises:
            ValueError: `statistics` are not as above.
        """
        check_tensor("statistics", statistics, "(..., 3)")
        if statistics.shape[-1:] != (3,):
            raise ValueError(f"statistics of shape {tuple(statistics.shape)}; expected (..., 3)")
        return self.linear(statistics.to(self.linear.weight.dtype))

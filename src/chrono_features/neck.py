"""Features at twice the token grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stem import FINE_CHANNELS


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

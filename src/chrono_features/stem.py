"""A convolutional way into the ViT, for small models trained from scratch."""

from __future__ import annotations

from torch import Tensor, nn

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

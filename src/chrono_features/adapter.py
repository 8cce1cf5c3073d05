"""The temporal adapter: a small residual branch between two ViT blocks in which frames see each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops.window_attention import window_attention


class TemporalAdapter(nn.Module):
    """x + up(mix_time(down(norm(x)))), on patch tokens only (Chrono).

    The last convolution starts at zero, so a new adapter is the identity.

    Args:
        dim: Channels of the token stream.
        channels: Channels inside the adapter.
        heads: Attention heads (mixer "attention").
        stride: Spatial stride between the convolutions, at which time is mixed.
        window: Frames (before, after) that a frame sees.
        mixer: "attention", "conv1d" or "conv3d".
        norm: "clip" (one mean and variance for a whole clip) or "token" (LayerNorm).
    """

    def __init__(
        self,
        dim: int,
        channels: int = 128,
        heads: int = 4,
        stride: int = 4,
        window: tuple[int, int] = (6, 6),
        mixer: str = "attention",
        norm: str = "clip",
    ) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(dim, eps=1e-5) if norm == "token" else ClipNorm(dim)
        self.conv_in = nn.Conv2d(dim, channels, 3, padding=1)
        self.pool = nn.Conv2d(channels, channels, stride, stride=stride)
        self.mixer = _MIXERS[mixer](channels, heads, window)
        self.unpool = nn.ConvTranspose2d(channels, channels, stride, stride=stride)
        self.conv_out = nn.Conv2d(channels, dim, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        x: Tensor,  # (B, T, h, w, C)
    ) -> Tensor:
        """Returns (B, T, h, w, C), the tokens with the temporal update added."""
        batch, frames, height, width, _ = x.shape
        # Tokens are channels-last already: this permutation is a view that convolutions take as channels_last.
        y = self.norm(x).flatten(0, 1).permute(0, 3, 1, 2)
        y = F.relu(self.conv_in(y))
        y = F.pad(y, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        y = F.relu(self.pool(y))
        y = y.permute(0, 2, 3, 1).unflatten(0, (batch, frames))
        y = self.mixer(y).flatten(0, 1).permute(0, 3, 1, 2)
        y = F.relu(self.unpool(y))[..., :height, :width]
        y = self.conv_out(y).permute(0, 2, 3, 1).unflatten(0, (batch, frames))
        return x + y


class ClipNorm(nn.Module):
    """GroupNorm with one group over channels, frames and positions of a clip, for channels-last tokens."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(
        self,
        x: Tensor,  # (B, T, h, w, C)
    ) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        variance, mean = torch.var_mean(wide, dim=(1, 2, 3, 4), keepdim=True, correction=0)
        return ((wide - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(x.dtype)


class AttentionMixer(nn.Module):
    """Pre-norm multi-head attention over time at every position, without position encoding."""

    def __init__(self, channels: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(
        self,
        x: Tensor,  # (B, T, h, w, C)
    ) -> Tensor:
        batch, frames, height, width, channels = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, frames, height * width, 3, self.heads, channels // self.heads)
        qkv = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # (3, B * positions, heads, T, d)
        out = window_attention(qkv[0], qkv[1], qkv[2], self.window)
        out = out.transpose(1, 2).flatten(2).unflatten(0, (batch, height * width)).transpose(1, 2)
        return x + self.proj(out.reshape(x.shape))


class ConvMixer(nn.Module):
    """A convolution over time, and over `spatial` x `spatial` positions, in the place of the attention."""

    def __init__(self, channels: int, window: tuple[int, int], spatial: int) -> None:
        super().__init__()
        before, after = window
        self.pad = (spatial // 2,) * 4 + (before, after)
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.conv = nn.Conv3d(channels, channels, (before + 1 + after, spatial, spatial))

    def forward(
        self,
        x: Tensor,  # (B, T, h, w, C)
    ) -> Tensor:
        y = F.pad(self.norm(x).permute(0, 4, 1, 2, 3), self.pad)
        return x + self.conv(y).permute(0, 2, 3, 4, 1)


_MIXERS = {
    "attention": AttentionMixer,
    "conv1d": lambda channels, heads, window: ConvMixer(channels, window, spatial=1),
    "conv3d": lambda channels, heads, window: ConvMixer(channels, window, spatial=3),
}

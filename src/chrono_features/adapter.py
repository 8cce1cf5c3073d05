"""The temporal adapter: a small residual branch between two ViT blocks in which frames see each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_tensor, refusal
from .config import check_field
from .ops.clip_norm import Moments, normed_conv2d
from .ops.temporal_attention import EPS, choose_backend, temporal_attention


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

    Raises:
        ValueError: An argument is not as above.
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
        window = tuple(window) if isinstance(window, list) else window
        check_field("adapter_channels", dim, "dim")
        check_field("adapter_channels", channels, "channels")
        check_field("adapter_heads", heads, "heads")
        check_field("adapter_stride", stride, "stride")
        check_field("window", window)
        check_field("mixer", mixer)
        check_field("norm", norm)
        if channels % heads:
            raise refusal("heads", heads, f"a divisor of channels={channels}")
        self.stride = stride
        self.norm = nn.LayerNorm(dim, eps=EPS) if norm == "token" else ClipNorm(dim)
        self.conv_in = nn.Conv2d(dim, channels, 3, padding=1)
        self.pool = nn.Conv2d(channels, channels, stride, stride=stride)
        self.mixer = _MIXERS[mixer](channels, heads, window)
        self.unpool = nn.ConvTranspose2d(channels, channels, stride, stride=stride)
        self.conv_out = nn.Conv2d(channels, dim, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)
        for conv in (self.conv_in, self.pool, self.unpool, self.conv_out):  # as tokens are, or each call lays them out
            conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def norm_of_clip(self) -> bool:
        """Whether the norm takes its mean and variance over a whole clip."""
        return isinstance(self.norm, ClipNorm)

    def forward(
        self,
        x: Tensor,  # (B, T, h, w, C)
    ) -> Tensor:
        """Returns (B, T, h, w, C), the tokens with the temporal update added.

        Raises:
            ValueError: `x` is not as above.
        """
        dim = self.conv_in.in_channels
        check_tensor("x", x, f"(B, T, h, w, {dim})")
        if x.ndim != 5 or x.shape[-1] != dim or 0 in x.shape:
            raise ValueError(f"x of shape {tuple(x.shape)}; expected (B, T, h, w, {dim}), none of them 0")
        if x.dtype != self.conv_in.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"x of type {x.dtype}; expected {self.conv_in.weight.dtype}, as the adapter's weights are")
        return self.up(self.mixer(self.down(x)), x)

    def down(
        self,
        x: Tensor,  # (B, T, h, w, C)
        moments: Moments | None = None,
    ) -> Tensor:
        """Norm and strided convolutions, to (B, T, h / stride, w / stride, channels).

        Args:
            x: Tokens.
            moments: Mean and variance for the norm of a clip, (B,), where `x` is only a part of it.
        """
        # Tokens are channels-last already: these permutations are views that convolutions take as channels_last.
        norm, conv = self.norm, self.conv_in
        if isinstance(norm, ClipNorm):
            y = normed_conv2d(x, norm.weight, norm.bias, conv.weight, conv.bias, moments)
        else:
            y = conv(norm(x).flatten(0, 1).permute(0, 3, 1, 2))
        y = F.relu(y, inplace=True)
        margin = (0, -y.shape[-1] % self.stride, 0, -y.shape[-2] % self.stride)
        y = self.pool(F.pad(y, margin, mode="replicate") if any(margin) else y)
        return F.relu(y, inplace=True).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])

    def up(
        self,
        y: Tensor,  # (B, T, h / stride, w / stride, channels)
        x: Tensor,  # (B, T, h, w, C)
    ) -> Tensor:
        """Returns x plus what the transposed and the last convolution make of y, (B, T, h, w, C)."""
        y = self.unpool(y.flatten(0, 1).permute(0, 3, 1, 2))
        y = self.conv_out(F.relu(y, inplace=True)[..., : x.shape[2], : x.shape[3]])
        y = y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
        return y.add_(x) if y.dtype == x.dtype else y + x  # they differ under autocast


class ClipNorm(nn.Module):
    """Parameters of a GroupNorm with one group over channels, frames and positions of a clip; see `ops.clip_norm`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))


class AttentionMixer(nn.Module):
    """Pre-norm multi-head attention over time at every position, without position encoding."""

    def __init__(self, channels: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.window, self.backend = heads, window, "auto"
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(
        self,
        x: Tensor,  # (B, T, h, w, C)
    ) -> Tensor:
        parameters = (self.norm.weight, self.norm.bias, self.qkv.weight, self.proj.weight, self.proj.bias)
        return temporal_attention(x.flatten(2, 3), *parameters, self.heads, self.window, self.backend).view(x.shape)

    def backend_info(self) -> str:
        """What the attention runs on, and why."""
        weight = self.qkv.weight
        return ": ".join(choose_backend(self.backend, weight.device, weight.dtype, weight.shape[1], self.heads))


class ConvMixer(nn.Module):
    """A convolution over time, and over `spatial` x `spatial` positions, instead of the attention."""

    def __init__(self, channels: int, window: tuple[int, int], spatial: int) -> None:
        super().__init__()
        before, after = window
        self.pad = (spatial // 2,) * 4 + (before, after)
        self.norm = nn.LayerNorm(channels, eps=EPS)
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

"""GroupNorm with one group over a whole clip, folded into the 3x3 convolution that follows it.

`conv(gamma * (x - mean) * rstd + beta)` equals `conv'(x) + shift`: gamma and rstd go into the kernel, and what mean and
beta add is a constant map but for the zero padding, which leaves out taps at the borders. So the normalised clip,
the largest tensor of an adapter, is never written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .dtypes import wide_dtype

EPS = 1e-5


class Moments(NamedTuple):
    """Mean and variance, of frames (B, T) or of whole clips (B,), in float32 or float64."""

    mean: Tensor
    variance: Tensor


def frame_moments(
    x: Tensor,  # (B, T, h, w, C)
) -> Moments:
    """The moments of every frame over positions and channels, (B, T).

    A mean and then the deviations from it, as two plain reductions in float32 that write no float32 copy of `x`:
    `var_mean` runs seven times slower on CPUs, and CUDA's `group_norm` gives one thread block to the whole clip.
    """
    dtype = wide_dtype(x.dtype)
    mean = x.mean(dim=(2, 3, 4), keepdim=True, dtype=dtype)
    centre = mean.to(x.dtype)
    deviation = torch.linalg.vector_norm(x - centre, dim=-1, dtype=dtype)
    variance = deviation.square().mean(dim=(2, 3)) / x.shape[-1] - (mean - centre).square().flatten(1)
    return Moments(mean.flatten(1), variance)


def clip_moments(frames: Moments) -> Moments:
    """The moments of clips, (B,), from those of their frames."""
    mean = frames.mean.mean(dim=1)
    between = (frames.mean - mean[:, None]).square().mean(dim=1)
    return Moments(mean, frames.variance.mean(dim=1) + between)


def normed_conv2d(
    x: Tensor,  # (B, T, h, w, C)
    moments: Moments,  # (B,)
    gamma: Tensor,  # (C,)
    beta: Tensor,  # (C,)
    weight: Tensor,  # (out, C, 3, 3)
    bias: Tensor | None,  # (out,)
) -> Tensor:  # (B * T, out, h, w)
    """A zero-padded 3x3 convolution of the clip normalised by `moments`, `gamma` and `beta`."""
    height, width = x.shape[2:4]
    scale = (moments.variance + EPS).rsqrt()
    scaled = weight * gamma[:, None, None]
    offsets = (moments.mean * scale)[:, None, None, None]
    taps = (weight * beta[:, None, None]).sum(dim=1) - offsets * scaled.sum(dim=1)  # (B, out, 3, 3)
    taps = _padded_sums(_padded_sums(taps, width).transpose(-2, -1), height)  # (B, out, w, h)
    taps = taps if bias is None else taps + bias[:, None, None]
    shift = taps.permute(0, 3, 2, 1)  # laid out like channels-last maps
    convolved = []
    for clip, clip_scale, clip_shift in zip(x, scale, shift, strict=True):
        kernel = (scaled * clip_scale).to(weight.dtype)
        y = F.conv2d(clip.permute(0, 3, 1, 2), kernel, padding=1)
        convolved.append(y.add_(clip_shift.permute(2, 0, 1).to(y.dtype)))
    return convolved[0] if len(convolved) == 1 else torch.cat(convolved)


def _padded_sums(
    taps: Tensor,  # (..., 3)
    size: int,
) -> Tensor:  # (..., size)
    """What a kernel of three taps makes of a line of `size` ones, padded with zeros."""
    cell = torch.arange(size, device=taps.device)
    before, here, after = taps[..., None].unbind(-2)
    return here + before * (cell > 0) + after * (cell < size - 1)

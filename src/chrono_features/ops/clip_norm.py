"""GroupNorm with one group over a whole clip, folded into the 3x3 convolution that follows it.

`conv(gamma * (x - mean) * rstd + beta)` equals `conv'(x - mean) + shift`: gamma and rstd go into the kernel, and what
beta adds is a constant map but for the zero padding, which leaves out taps at the borders. Only `x - mean` is written,
which the variance needs anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .dtypes import HALF, wide_dtype

EPS = 1e-5


class Moments(NamedTuple):
    """Mean and variance, of frames (B, T) or of whole clips (B,), in float32 or float64."""

    mean: Tensor
    variance: Tensor


def frame_moments(
    x: Tensor,  # (B, T, h, w, C)
) -> Moments:
    """The moments of every frame over positions and channels, (B, T)."""
    _, moments, _ = _centred(x.flatten(0, 1)[:, None])
    return Moments(*(m.unflatten(0, x.shape[:2]) for m in moments))


def clip_moments(frames: Moments) -> Moments:
    """The moments of clips, (B,), from those of their frames."""
    mean = frames.mean.mean(dim=1)
    between = (frames.mean - mean[:, None]).square().mean(dim=1)
    return Moments(mean, frames.variance.mean(dim=1) + between)


def normed_conv2d(
    x: Tensor,  # (B, T, h, w, C)
    gamma: Tensor,  # (C,)
    beta: Tensor,  # (C,)
    weight: Tensor,  # (out, C, 3, 3)
    bias: Tensor | None,  # (out,)
    moments: Moments | None = None,  # (B,)
) -> Tensor:  # (B * T, out, h, w)
    """A zero-padded 3x3 convolution of the normalised clip; `moments` are given where `x` is only a part of it."""
    height, width = x.shape[2:4]
    centred, (mean, variance), centre = _centred(x, moments)
    scale = (variance + EPS).rsqrt()
    channels_last = weight.permute(0, 2, 3, 1)
    taps = (channels_last @ beta).expand(len(x), -1, -1, -1)  # (B, out, 3, 3)
    if x.dtype in HALF:  # its rounding left a rest of the mean
        taps = taps - ((mean - centre) * scale)[:, None, None, None] * (channels_last @ gamma)
    taps = _padded_sums(_padded_sums(taps, width).transpose(-2, -1), height)  # (B, out, w, h)
    taps = taps if bias is None else taps + bias[:, None, None]
    shift = taps.permute(0, 3, 2, 1)  # laid out like channels-last maps
    convolved = []
    for clip, clip_scale, clip_shift in zip(centred, scale, shift, strict=True):
        kernel = (weight * (gamma * clip_scale)[:, None, None]).to(weight.dtype)
        y = F.conv2d(clip.permute(0, 3, 1, 2), kernel, padding=1)
        convolved.append(y.add_(clip_shift.permute(2, 0, 1).to(y.dtype)))
    return convolved[0] if len(convolved) == 1 else torch.cat(convolved)


def _centred(
    x: Tensor,  # (B, T, h, w, C)
    moments: Moments | None = None,  # (B,)
) -> tuple[Tensor, Moments, Tensor]:
    """x minus its mean over each clip in the type of x, the moments, and the mean in that type.

    Plain reductions in float32 that write no float32 copy of half precision: `var_mean` runs seven times slower on
    CPUs, and CUDA's `group_norm` gives one thread block to the whole clip.
    """
    dtype = wide_dtype(x.dtype)
    mean = x.mean(dim=(2, 3, 4), dtype=dtype).mean(dim=1) if moments is None else moments.mean
    centre = mean.to(x.dtype)
    centred = x - centre[:, None, None, None, None]
    if moments is None:
        squares = torch.linalg.vector_norm(centred, dim=-1, dtype=dtype).square()
        moments = Moments(mean, squares.mean(dim=(1, 2, 3)) / x.shape[-1] - (mean - centre).square())
    return centred, moments, centre


def _padded_sums(
    taps: Tensor,  # (..., 3)
    size: int,
) -> Tensor:  # (..., size)
    """What a kernel of three taps makes of a line of `size` ones, padded with zeros."""
    cell = torch.arange(size, device=taps.device)
    before, here, after = taps[..., None].unbind(-2)
    return here + before * (cell > 0) + after * (cell < size - 1)

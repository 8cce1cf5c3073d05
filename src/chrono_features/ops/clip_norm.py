"""GroupNorm with one group over a whole clip, folded into the 3x3 convolution that follows it.

`conv(gamma * (x - mean) * rstd + beta)` equals `conv'(x - mean) + shift`: gamma and rstd go into the kernel, and what
beta adds is a constant map but for the zero padding, which leaves out taps at the borders. Only `x - mean` is written,
which the variance needs anyway.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..dtypes import HALF_PRECISION, wide_dtype

EPS = 1e-5


class Moments(NamedTuple):
    """Mean and variance, of frames (B, T) or of whole clips (B,), in float32 or float64."""

    mean: Tensor
    variance: Tensor


def frame_moments(
    x: Tensor,  # (B, T, h, w, C)
) -> Moments:
    """The moments of every frame over positions and channels, (B, T), no gradients."""
    _, variance, mean, _ = _Centre.apply(x.flatten(0, 1)[:, None])
    return Moments(mean.unflatten(0, x.shape[:2]), variance.detach().unflatten(0, x.shape[:2]))


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
    if moments is None:
        centred, variance, _, rest = _Centre.apply(x)
    else:
        (centred, rest), variance = _subtract(x, moments.mean), moments.variance
    scale = (variance + EPS).rsqrt()
    channels_last = weight.permute(0, 2, 3, 1)
    taps = (channels_last @ beta).expand(len(x), -1, -1, -1)  # (B, out, 3, 3)
    if x.dtype in HALF_PRECISION:  # which left a rest of the mean
        taps = taps - (rest * scale)[:, None, None, None] * (channels_last @ gamma)
    taps = _padded_sums(_padded_sums(taps, width).transpose(-2, -1), height)  # (B, out, w, h)
    taps = taps if bias is None else taps + bias[:, None, None]
    shift = taps.permute(0, 3, 2, 1)  # laid out like channels-last maps
    convolved = []
    for clip, clip_scale, clip_shift in zip(centred, scale, shift, strict=True):
        kernel = (weight * (gamma.to(scale.dtype) * clip_scale)[:, None, None]).to(weight.dtype)
        y = F.conv2d(clip.permute(0, 3, 1, 2), kernel, padding=1)
        convolved.append(y.add_(clip_shift.permute(2, 0, 1).to(y.dtype)))
    return convolved[0] if len(convolved) == 1 else torch.cat(convolved)


class _Centre(torch.autograd.Function):
    """x minus its mean over each clip, the variance, the mean, and what rounding left of it, as of `_subtract`.

    Plain reductions in float32 that write no float32 copy of half precision: `var_mean` runs seven times slower on
    CPUs, and CUDA's `group_norm` gives one thread block to the whole clip. The backward pass is written out, as
    autograd would hold several tensors of the size of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        dtype = wide_dtype(x.dtype)
        mean = x.mean(dim=(2, 3, 4), dtype=dtype).mean(dim=1)
        centred, rest = _subtract(x, mean)
        squares = torch.linalg.vector_norm(centred, dim=-1, dtype=dtype).square()
        variance = squares.mean(dim=(1, 2, 3)) / x.shape[-1] - rest.square()
        ctx.save_for_backward(centred, rest)
        ctx.mark_non_differentiable(mean, rest)
        return centred, variance, mean, rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_variance: Tensor, *_: Tensor) -> Tensor:  # type: ignore[override]
        centred, rest = ctx.saved_tensors
        count = centred[0].numel()
        slope = grad_variance * (2 / count)  # too small for half precision
        level = grad.sum(dim=(1, 2, 3, 4), dtype=rest.dtype) / count + slope * rest
        slope, level = (v[:, None, None, None, None] for v in (slope, level))
        return torch.addcmul(grad.to(rest.dtype), centred.to(rest.dtype), slope).sub_(level).to(grad.dtype)


def _subtract(
    x: Tensor,  # (B, T, h, w, C)
    mean: Tensor,  # (B,)
) -> tuple[Tensor, Tensor]:
    """x minus the mean rounded to its type, and what the rounding left of the mean."""
    centre = mean.to(x.dtype)
    return x - centre[:, None, None, None, None], mean - centre


def _padded_sums(
    taps: Tensor,  # (..., 3)
    size: int,
) -> Tensor:  # (..., size)
    """What a kernel of three taps makes of a line of `size` ones, padded with zeros."""
    cell = torch.arange(size, device=taps.device)
    before, here, after = taps[..., None].unbind(-2)
    return here + before * (cell > 0) + after * (cell < size - 1)

"""What light, lens, sensor and codec do to a picture. None of it moves a point."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from .draws import chance, integer, log_uniform, uniform, uniforms
from .motion import wander
from .variety import Variety

BLOCK = 8  # side of a codec's blocks
BLUR_TAPS = 9
GRAIN = 0.08, 0.35  # least and greatest deviation, in units of full brightness
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # JFIF


def add_photometrics(
    generator: Generator,
    video: Tensor,  # [T, 3, H, W] in [0, 1]
    times: Tensor,  # [T]
    variety: Variety,
) -> Tensor:
    """Wandering shadows, blur, exposure that drifts, a colour cast, a gamma, sensor noise and compression."""
    if chance(generator, variety.shadow):
        video = video * _shading(generator, times, video)
    if chance(generator, variety.blur):
        video = blur(video, _blur_kernels(generator, times).to(video))
    gain = uniform(generator, 0.8, 1.25) * (1 + wander(generator, times, log_uniform(generator, 0.001, 0.02), 0.2, 1))
    gain = (gain * uniforms(generator, 0.93, 1.07, 3)).float().to(video.device)[..., None, None]
    video = (video * gain).clamp(0, 1) ** uniform(generator, 0.8, 1.25)
    if chance(generator, 0.6):
        video = video.add(_noise(generator, video), alpha=log_uniform(generator, 0.002, 0.03))
    if variety.grain and chance(generator, variety.grain):  # no draw where there is none: other clips stay as they were
        video = video.add(_noise(generator, video), alpha=log_uniform(generator, *GRAIN))
    if chance(generator, variety.codec):
        video = compress(video.clamp(0, 1), log_uniform(generator, 0.01, 0.08))
    return video.clamp(0, 1)


def _noise(generator: Generator, video: Tensor) -> Tensor:  # [T, 3, H, W]
    """Normal noise: every frame another part of one drawn field, since drawing for each would outlast rendering."""
    frames, channels, height, width = video.shape
    field = torch.randn(channels, 2 * height, 2 * width, generator=generator).to(video.device)
    rows, columns = (
        torch.randint(side + 1, (frames, 1), generator=generator) + torch.arange(side) for side in (height, width)
    )
    rows, columns = rows.to(video.device), columns.to(video.device)
    return field[:, rows[:, :, None], columns[:, None]].transpose(0, 1)


def _shading(generator: Generator, times: Tensor, video: Tensor) -> Tensor:  # [T, 1, H, W]
    """Up to three soft spots, darker or lighter, that wander."""
    height, width = video.shape[-2:]
    x = (torch.arange(width, device=video.device) + 0.5) / max(height, width)
    y = (torch.arange(height, device=video.device) + 0.5) / max(height, width)
    shading = torch.ones(len(times), 1, height, width, device=video.device)
    for _ in range(integer(generator, 1, 3)):
        centre = uniforms(generator, 0, 1, 2) + wander(generator, times, log_uniform(generator, 0.003, 0.05), 0.5, 2)
        centre = centre.float().to(video.device)
        radius, softness = log_uniform(generator, 0.08, 0.4), log_uniform(generator, 0.02, 0.3)
        change = uniform(generator, -0.6, -0.2) if chance(generator, 0.7) else uniform(generator, 0.2, 0.6)
        squeeze = log_uniform(generator, 0.4, 2.5)
        dx, dy = x - centre[:, :1], squeeze * (y - centre[:, 1:])
        distance = (dx[:, None, None, :] ** 2 + dy[:, None, :, None] ** 2).sqrt()
        shading = shading * (1 + change * torch.sigmoid((radius - distance) / (softness * radius)))
    return shading


def _blur_kernels(generator: Generator, times: Tensor) -> Tensor:  # [T, 9, 9]
    """For each frame a line (motion) or a Gaussian (defocus), whose width wanders."""
    widest = log_uniform(generator, 0.5, 4.0)
    width = widest * (0.5 + wander(generator, times, log_uniform(generator, 0.01, 0.3), 0.5, 1)[:, 0])
    middle = BLUR_TAPS // 2
    along = torch.arange(BLUR_TAPS, dtype=torch.float64) - middle
    y, x = torch.meshgrid(along, along, indexing="ij")
    if chance(generator, 0.5):
        angle = uniform(generator, 0, math.pi)
        u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
        reach = width[:, None, None].clamp_min(0.3)
        kernels = torch.sigmoid((reach - u.abs()) * 4) * torch.exp(-((v / 0.5) ** 2) / 2)
    else:
        sigma = (width[:, None, None] / 2).clamp_min(0.25)
        kernels = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def blur(
    video: Tensor,  # [T, 3, H, W]
    kernels: Tensor,  # [T, K, K]
) -> Tensor:
    """Each frame convolved with a kernel of its own; the border is repeated."""
    margin = kernels.shape[-1] // 2
    padded = F.pad(video, (margin,) * 4, mode="replicate").transpose(0, 1)  # [3, T, H, W]
    return F.conv2d(padded, kernels[:, None], groups=len(kernels)).transpose(0, 1)


def compress(
    video: Tensor,  # [T, 3, H, W] in [0, 1]
    step: float,
) -> Tensor:
    """Rounds the cosine transform of 8 x 8 blocks, high frequencies and colour more coarsely, as codecs do.

    Args:
        video: Frames.
        step: Rounding of the lowest frequencies of brightness, in units of full brightness.
    """
    height, width = video.shape[-2:]
    to_ycc = video.new_tensor(_TO_YCC)
    padded = F.pad(video, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    blocks = padded.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)  # [T, 3, h, w, 8, 8]
    cosine = _cosines().to(video)
    frequencies = torch.einsum("dc,ua,vb,tchwab->tdhwuv", to_ycc, cosine, cosine, blocks)
    order = torch.arange(BLOCK, device=video.device)
    steps = step * (1 + (order[:, None] + order)) * video.new_tensor([1.0, 2.0, 2.0])[:, None, None, None, None]
    rounded = (frequencies / steps).round() * steps
    blocks = torch.einsum("cd,ua,vb,tdhwuv->tchwab", torch.linalg.inv(to_ycc), cosine, cosine, rounded)
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(padded.shape)[..., :height, :width].clamp(0, 1)


def _cosines() -> Tensor:  # [8 frequencies, 8 samples], orthonormal
    samples = torch.arange(BLOCK) + 0.5
    cosines = torch.cos(math.pi * torch.arange(BLOCK)[:, None] * samples / BLOCK) * math.sqrt(2 / BLOCK)
    cosines[0] /= math.sqrt(2)
    return cosines

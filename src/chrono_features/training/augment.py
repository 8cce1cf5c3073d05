"""Colour augmentation, drawn on the CPU so that a seed means the same on every device."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

_LUMA = (0.299, 0.587, 0.114)


def augment_colour(
    video: Tensor,  # (T, 3, H, W) in [0, 1]
    generator: Generator,
    jitter: float = 0.8,
    grey: float = 0.2,
    strength: float = 0.4,
) -> Tensor:
    """Changes brightness, contrast, saturation and hue with probability `jitter`, drops colour with `grey`.

    All frames of a clip change alike (Chrono).

    Returns:
        (T, 3, H, W) in [0, 1].
    """
    draws = torch.rand(6, generator=generator).tolist()
    luma = video.new_tensor(_LUMA)
    if draws[0] < jitter:
        brightness, contrast, saturation = (1 + strength * (2 * d - 1) for d in draws[1:4])
        grey_frames = _grey(video, luma)
        mean = grey_frames.mean()
        video = (grey_frames + saturation * (video - grey_frames)) * brightness
        video = mean + contrast * (video - mean)
        video = torch.einsum("ij,tjhw->tihw", _hue_rotation(0.25 * strength * (2 * draws[4] - 1), video), video)
    if draws[5] < grey:
        video = _grey(video, luma).expand_as(video)
    return video.clamp(0, 1)


def _grey(video: Tensor, luma: Tensor) -> Tensor:
    return torch.einsum("i,tihw->thw", luma, video)[:, None]


def _hue_rotation(turns: float, like: Tensor) -> Tensor:
    """A rotation of colours about the grey axis (Rodrigues' formula)."""
    angle = torch.tensor(2 * torch.pi * turns)
    axis = torch.full((3,), 3**-0.5)
    cross = torch.linalg.cross(axis.expand(3, 3), torch.eye(3), dim=-1).T
    matrix = angle.cos() * torch.eye(3) + angle.sin() * cross + (1 - angle.cos()) * torch.outer(axis, axis)
    return matrix.to(like)

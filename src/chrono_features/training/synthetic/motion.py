"""Smooth random motion: low-frequency sinusoids, with a chosen speed and a chosen reach."""

import math

import torch
from torch import Generator, Tensor

from .draws import direction, log_uniform, uniforms

SHORTEST_PERIOD = 8.0  # frames: nothing shakes faster than this
LONGEST_PERIOD = 60.0


def wander(
    generator: Generator,
    times: Tensor,  # [T] in frames
    speed: float,
    reach: float,
    dims: int = 3,
) -> Tensor:  # [T, dims]
    """Moves by about `speed` per frame and stays within about `reach` of the start of its swing."""
    path = torch.zeros(len(times), dims, dtype=torch.float64)
    for share in (0.7, 0.3):
        period = log_uniform(generator, SHORTEST_PERIOD * 1.5, LONGEST_PERIOD)
        amplitude = share * 1.4 * speed * period / (2 * math.pi)  # 1.4: a sine's mean speed is below its peak
        if amplitude > share * reach:
            period = max(SHORTEST_PERIOD, period * share * reach / amplitude)
            amplitude = share * reach
        phases = uniforms(generator, 0, 2 * math.pi, dims)
        angles = 2 * math.pi * times[:, None] / period + phases
        path += amplitude * direction(generator, dims) * torch.sin(angles)
    return path


def rotations(vectors: Tensor) -> Tensor:  # [..., 3] -> [..., 3, 3]
    """Rotation matrices of axis-angle vectors."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))
    angle = vectors.norm(dim=-1).clamp_min(1e-9)[..., None, None]
    half_sine = (angle / 2).sin() / (angle / 2)
    return torch.eye(3).to(skew) + angle.sin() / angle * skew + half_sine**2 / 2 * (skew @ skew)

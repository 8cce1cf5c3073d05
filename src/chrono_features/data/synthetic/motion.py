"""Smooth random motion: low-frequency sinusoids, with a chosen speed and a chosen reach."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from .draws import chance, direction, integer, log_uniform, uniform, uniforms
from .variety import Variety

SHORTEST_PERIOD = 8.0  # frames: of `wander`; only `shake` is faster
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


def shake(
    generator: Generator,
    times: Tensor,  # [T] in frames
    reach: float,
    dims: int,
) -> Tensor:  # [T, dims]
    """Jitter: sinusoids of a few frames, within `reach`."""
    path = torch.zeros(len(times), dims, dtype=torch.float64)
    for _ in range(3):
        period = uniform(generator, 2.2, 7.0)
        phases = uniforms(generator, 0, 2 * math.pi, dims)
        path += reach / 3 * direction(generator, dims) * torch.sin(2 * math.pi * times[:, None] / period + phases)
    return path


def camera_view(
    generator: Generator,
    times: Tensor,  # [T] in frames
    variety: Variety,
) -> tuple[Tensor, Tensor, Tensor]:  # [T] roll in radians, [T] log of the zoom, [T, 2] shift in longer sides
    """How the picture turns, grows, shakes and jumps about its middle."""
    still = torch.zeros(len(times), dtype=torch.float64)
    roll, zoom, shift = still, still, still[:, None].expand(-1, 2)
    if chance(generator, variety.roll):
        roll = wander(generator, times, log_uniform(generator, 0.01, 0.2), math.pi, 1)[:, 0]
    if chance(generator, variety.zoom):
        zoom = wander(generator, times, log_uniform(generator, 0.005, 0.08), 0.8, 1)[:, 0]
    if chance(generator, variety.shake):
        shift = shake(generator, times, log_uniform(generator, 0.003, 0.04), 2)
        roll = roll + shake(generator, times, log_uniform(generator, 0.003, 0.05), 1)[:, 0]
    if variety.jump and chance(generator, variety.jump) and len(times) > 1:  # no draw where there is none
        later = (times >= times[integer(generator, 1, len(times) - 1)]).double()
        shift = shift + later[:, None] * uniform(generator, 0.15, 0.5) * direction(generator, 2)
        roll = roll + later * uniform(generator, -0.8, 0.8)
        zoom = zoom + later * uniform(generator, -0.4, 0.4)
    return roll, zoom, shift


def rotations(vectors: Tensor) -> Tensor:  # [..., 3] -> [..., 3, 3]
    """Rotation matrices of axis-angle vectors."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))
    angle = vectors.norm(dim=-1).clamp_min(1e-9)[..., None, None]
    half_sine = (angle / 2).sin() / (angle / 2)
    return torch.eye(3).to(skew) + angle.sin() / angle * skew + half_sine**2 / 2 * (skew @ skew)

"""Outlines of layers: functions of a position that are positive inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from .draws import chance, integer, uniform, uniforms


class Shape(Protocol):
    def level(self, x: Tensor, y: Tensor) -> Tensor:  # all of one shape
        """Positive inside."""


@dataclass(frozen=True)
class Blob:
    """Star-convex: the radius is a short Fourier series of the angle."""

    radius: float
    cosines: tuple[float, ...]  # of 1, 2, 3 ... times the angle, relative to the radius
    sines: tuple[float, ...]

    def level(self, x: Tensor, y: Tensor) -> Tensor:
        distance = (x * x + y * y).sqrt().clamp_min(1e-9)
        cos, sin = x / distance, y / distance
        cos_k, sin_k, border = cos, sin, torch.ones_like(x)
        for a, b in zip(self.cosines, self.sines, strict=True):
            border = border + a * cos_k + b * sin_k
            cos_k, sin_k = cos_k * cos - sin_k * sin, sin_k * cos + cos_k * sin
        return self.radius * border - distance


@dataclass(frozen=True)
class Polygon:
    """Convex: the side with angle `angles[i]` is `distances[i]` away from the middle."""

    angles: tuple[float, ...]
    distances: tuple[float, ...]

    def level(self, x: Tensor, y: Tensor) -> Tensor:
        inside = torch.full_like(x, math.inf)
        for angle, distance in zip(self.angles, self.distances, strict=True):
            inside = torch.minimum(inside, distance - math.cos(angle) * x - math.sin(angle) * y)
        return inside


@dataclass(frozen=True)
class Capsule:
    """Everything nearer than `radius` to the line from the middle to (length, 0)."""

    length: float
    radius: float

    def level(self, x: Tensor, y: Tensor) -> Tensor:
        beyond = x - x.clamp(0, self.length)
        return self.radius**2 - beyond * beyond - y * y


@dataclass(frozen=True)
class Patches:
    """Thresholded noise, a sum of plane waves, within a disc: several pieces, often with holes."""

    radius: float
    waves: tuple[tuple[float, float, float], ...]  # x and y frequency, phase
    threshold: float

    def level(self, x: Tensor, y: Tensor) -> Tensor:
        noise = torch.full_like(x, -self.threshold)
        for along_x, along_y, phase in self.waves:
            noise = noise + torch.sin(along_x * x + along_y * y + phase)
        return torch.minimum(noise, 1 - (x * x + y * y) / self.radius**2)


def random_shape(generator: Generator, radius: float) -> Shape:
    if chance(generator, 0.25):
        sides = integer(generator, 3, 7)
        angles = (torch.arange(sides) + uniforms(generator, -0.12, 0.12, sides)) * 2 * math.pi / sides
        turned = angles + uniform(generator, 0, 2 * math.pi)
        return Polygon(tuple(turned.tolist()), tuple((radius * uniforms(generator, 0.5, 1.1, sides)).tolist()))
    if chance(generator, 0.2):
        angles = uniforms(generator, 0, 2 * math.pi, 4)
        frequency = uniforms(generator, 2.5, 5.0, 4) / radius
        waves = torch.stack((frequency * angles.cos(), frequency * angles.sin(), uniforms(generator, 0, 6.3, 4)), dim=1)
        return Patches(1.5 * radius, tuple(map(tuple, waves.tolist())), uniform(generator, -0.8, 0.3))
    strength = uniform(generator, 0.1, 0.45) / torch.arange(1, 7) ** 0.8
    cosines, sines = (torch.randn(6, generator=generator, dtype=torch.float64) * 0.5 * strength for _ in range(2))
    return Blob(radius, tuple(cosines.tolist()), tuple(sines.tolist()))

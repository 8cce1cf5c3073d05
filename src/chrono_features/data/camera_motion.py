"""A hand-held camera in front of a plane, and the homographies between its frames and a photograph on the plane."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .synthetic.draws import chance, uniform, uniforms
from .synthetic.motion import wander


@dataclass(frozen=True)
class Camera:
    """What a camera sees of a plane; 1 is the longer side of the frame."""

    shift: Tensor  # [T, 2] the middle of its view
    turn: Tensor  # [T] radians
    zoom: Tensor  # [T] logarithm of the size of its view
    tilt: Tensor  # [T, 2] by how much the plane recedes along x and y


def hover(generator: Generator, times: Tensor, amount: float = 1.0) -> Camera:
    """A hand-held camera."""
    return Camera(
        shift=wander(generator, times, 0.03 * amount, 0.3 * amount, 2),
        turn=wander(generator, times, 0.02 * amount, 0.3 * amount, 1)[:, 0],
        zoom=wander(generator, times, 0.02 * amount, 0.2 * amount, 1)[:, 0],
        tilt=wander(generator, times, 0.02 * amount, 0.2 * amount, 2),
    )


def progress(generator: Generator, times: Tensor) -> Tensor:  # [T]
    """From 0 to 1, at a changing speed but never back."""
    done = times / times[-1]
    return done + uniform(generator, -0.8, 0.8) * (2 * math.pi * done).sin() / (2 * math.pi)


def either_sign(generator: Generator, low: float, high: float) -> float:
    size = uniform(generator, low, high)
    return size if chance(generator, 0.5) else -size


def homographies(
    generator: Generator, camera: Camera, photograph: tuple[int, int], size: tuple[int, int]
) -> Tensor:  # [T, 3, 3] pixels of the photograph to pixels of the frame
    """Puts the camera's path on a photograph, somewhere, as large as fits or up to a tenth smaller."""
    height, width = size
    longer = max(size)
    to_plane = _from_frame(camera) @ torch.tensor(
        [[1 / longer, 0, -width / 2 / longer], [0, 1 / longer, -height / 2 / longer], [0, 0, 1]], dtype=torch.float64
    )
    corners = torch.tensor([[0, 0], [width, 0], [0, height], [width, height]], dtype=torch.float64)
    seen = project(to_plane, corners).flatten(0, 1)
    low, high = seen.amin(0), seen.amax(0)
    room = torch.tensor(photograph[::-1], dtype=torch.float64)
    scale = (room / (high - low)).amin() * uniform(generator, 0.9, 1.0)
    place = uniforms(generator, 0, 1, 2) * (room - scale * (high - low)) - scale * low
    onto_photograph = torch.diag(torch.stack((scale, scale, torch.ones_like(scale))))
    onto_photograph[:2, 2] = place
    return torch.linalg.inv(onto_photograph @ to_plane)


def _from_frame(camera: Camera) -> Tensor:  # [T, 3, 3]
    """Homographies of the frame, its origin in its middle, to the plane."""
    size, cos, sin = camera.zoom.exp(), camera.turn.cos(), camera.turn.sin()
    turned = size[:, None, None] * torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))
    place, tilted = (torch.eye(3, dtype=torch.float64).repeat(len(camera.turn), 1, 1) for _ in range(2))
    place[:, :2, :2] = turned
    place[:, :2, 2] = camera.shift
    tilted[:, 2, :2] = camera.tilt
    return place @ tilted


def project(homography: Tensor, points: Tensor) -> Tensor:  # [T, 3, 3], [N, 2] -> [N, T, 2]
    """Where points are taken by every homography."""
    homogeneous = torch.cat((points, torch.ones_like(points[:, :1])), dim=1)
    x, y, w = (homography @ homogeneous.T).unbind(1)  # [T, N] each
    return torch.stack((x / w, y / w), dim=-1).transpose(0, 1)

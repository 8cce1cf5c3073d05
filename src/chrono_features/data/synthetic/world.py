"""A textured room, boxes, boards and ellipsoids in rigid motion under a moving camera, and what its rays hit.

Every solid is a unit cube or a unit sphere seen through an affine map, so that one intersection, one normal and one
texture lookup serve all of them. Rays leave the camera with depth 1, so a ray's parameter at a hit is the hit's depth.

Geometry and tracks are float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

NEAR = 0.05  # nothing nearer than this is seen
ROOM = 0  # index of the room among the solids


@dataclass(frozen=True)
class World:
    """Solids and camera over T frames. Solid 0 is the room, which is seen from inside."""

    rotation: Tensor  # [S, T, 3, 3] solid to world
    position: Tensor  # [S, T, 3]
    radii: Tensor  # [S, 3] half extents
    is_round: Tensor  # [S] bool: an ellipsoid, not a box
    is_moving: Tensor  # [S] bool
    camera_rotation: Tensor  # [T, 3, 3] camera to world
    camera_position: Tensor  # [T, 3]
    focal: Tensor  # [T] pixels
    group: tuple[int, ...]  # solids of one group have the same texture
    size: tuple[int, int]  # height, width

    def frames(self, index: Tensor) -> World:  # index [F]
        return replace(
            self,
            rotation=self.rotation[:, index],
            position=self.position[:, index],
            camera_rotation=self.camera_rotation[index],
            camera_position=self.camera_position[index],
            focal=self.focal[index],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> World:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {
            name: v.to(device, dtype if v.is_floating_point() else v.dtype) for name, v in tensors.items()
        }
        return replace(self, **moved)

    @property
    def to_unit(self) -> Tensor:  # [S, T, 3, 3] world to unit cube or sphere, without the shift
        return self.rotation.transpose(-1, -2) / self.radii[:, None, :, None]


def camera_rays(world: World, xy: Tensor) -> Tensor:  # [T, 2, P] pixels -> [T, 3, P] world directions of depth 1
    height, width = world.size
    centre = xy.new_tensor([[width / 2], [height / 2]])
    plane = (xy - centre) / world.focal[:, None, None]
    return world.camera_rotation @ torch.cat((plane, torch.ones_like(plane[:, :1])), dim=1)


def trace(
    world: World,
    origin: Tensor,  # [T, 3]
    rays: Tensor,  # [T, 3, P]
    with_room: bool = True,
) -> tuple[Tensor, Tensor]:  # [T, P] ray parameter of the first hit (inf: none), [T, P] solid hit
    nearest = torch.full_like(rays[:, 0], math.inf)
    solid = torch.zeros_like(nearest, dtype=torch.long)
    to_unit, is_round = world.to_unit, world.is_round.tolist()
    starts = to_unit @ (origin - world.position)[..., None]  # [S, T, 3, 1]
    for s in range(0 if with_room else 1, len(is_round)):
        start, ray = starts[s], to_unit[s] @ rays
        hit = _hit_sphere(start, ray) if is_round[s] else _hit_cube(start, ray, inside=s == ROOM)
        closer = hit < nearest
        nearest = torch.where(closer, hit, nearest)
        solid.masked_fill_(closer, s)
    return nearest, solid


def project(world: World, solid: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:  # [N], [N, 3] -> [N, T, 2], [N, T]
    """Where surface points, in unit-cube coordinates of their solids, are seen in every frame, and at what depth."""
    local = unit * world.radii[solid]
    points = (world.rotation[solid] @ local[:, None, :, None])[..., 0] + world.position[solid]
    seen = (world.camera_rotation.transpose(-1, -2) @ (points - world.camera_position)[..., None])[..., 0]
    depth = seen[..., 2]
    height, width = world.size
    plane = seen[..., :2] / depth.clamp_min(NEAR)[..., None]
    return plane * world.focal[:, None] + plane.new_tensor([width / 2, height / 2]), depth


def surface_points(
    world: World,
    xy: Tensor,  # [T, P, 2]
) -> tuple[Tensor, Tensor, Tensor]:  # [T, P] solid, [T, P, 3] unit coordinates on it, [T, P] depth
    """What the camera sees at exact positions."""
    rays = camera_rays(world, xy.transpose(1, 2))
    depth, solid = trace(world, world.camera_position, rays)
    points = world.camera_position[:, :, None] + depth[:, None] * rays
    frame = torch.arange(len(xy))[:, None]
    shifted = points.transpose(1, 2) - world.position[solid, frame]
    return solid, (world.to_unit[solid, frame] @ shifted[..., None])[..., 0], depth


def sees(
    world: World,
    solid: Tensor,  # [N]
    xy: Tensor,  # [N, T, 2]
    depth: Tensor,  # [N, T]
) -> Tensor:  # [N, T] bool
    """Whether the ray through the exact position ends on the point itself, inside the frame."""
    height, width = world.size
    rays = camera_rays(world, xy.permute(1, 2, 0))
    hit_depth, hit = trace(world, world.camera_position, rays)
    inside = (xy >= 0).all(-1) & (xy[..., 0] < width) & (xy[..., 1] < height)
    return inside & (solid[:, None] == hit.T) & ((hit_depth.T - depth).abs() < 1e-5 * depth)


def _hit_cube(start: Tensor, ray: Tensor, inside: bool) -> Tensor:  # [T, 3, 1], [T, 3, P] -> [T, P]
    inverse = 1 / (ray + 1e-20)  # never zero, and otherwise unchanged
    middle, half = -start * inverse, inverse.abs()
    leave = (middle + half).amin(dim=1)
    if inside:
        return leave
    enter = (middle - half).amax(dim=1)
    return torch.where((enter <= leave) & (enter > NEAR), enter, math.inf)


def _hit_sphere(start: Tensor, ray: Tensor) -> Tensor:  # [T, 3, 1], [T, 3, P] -> [T, P]
    a = (ray * ray).sum(dim=1)
    b = (ray * start).sum(dim=1)
    c = (start * start).sum(dim=1) - 1
    root = (b * b - a * c).sqrt()  # NaN where missed
    hit = -(b + root) / a
    return torch.where(hit > NEAR, hit, math.inf)

"""Random worlds: what stands in the room, how it moves, and how the camera does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .draws import chance, direction, integer, log_uniform, uniform, uniforms
from .motion import camera_view, rotations, wander
from .variety import USUAL, Variety
from .world import World


@dataclass(frozen=True)
class _Solid:
    rotation: Tensor  # [T, 3, 3]
    position: Tensor  # [T, 3]
    radii: Tensor  # [3]
    is_round: bool
    is_moving: bool
    group: int = 0


def random_world(generator: Generator, times: Tensor, size: tuple[int, int], variety: Variety = USUAL) -> World:
    frames = len(times)
    view = 2 * math.tan(uniform(generator, 0.35, 0.75))  # width of the longer side of the frame at depth 1
    room = torch.stack([uniforms(generator, low, high) for low, high in ((4.0, 8.0), (2.5, 5.0), (6.0, 10.0))])
    camera_rotation, camera_position = _random_camera(generator, times, view, room)
    roll, zoom, shift = camera_view(generator, times, variety)
    tilt = torch.stack((-shift[:, 1] * view, shift[:, 0] * view, roll), dim=-1)
    camera_rotation = camera_rotation @ rotations(tilt)
    upright = torch.eye(3, dtype=torch.float64).expand(frames, 3, 3)
    solids = [_Solid(upright, torch.zeros(frames, 3, dtype=torch.float64), room, False, False)]

    def place(depth: float, moving: bool) -> tuple[Tensor, Tensor]:  # rotation, position of something seen
        seen_at = integer(generator, 0, frames - 1)
        screen = torch.cat((uniforms(generator, -0.45, 0.45, 2) * view, torch.ones(1, dtype=torch.float64)))
        middle = camera_position[seen_at] + camera_rotation[seen_at] @ (screen * depth)
        turn = rotations(direction(generator) * uniform(generator, 0, math.pi)).expand(frames, 3, 3)
        path = middle.expand(frames, 3)
        if moving:
            speed = log_uniform(generator, 0.005, 0.075) * view * depth
            swing = wander(generator, times, speed, reach=0.5 * view * depth)
            swing[:, 2] *= 0.6
            path = path + swing - swing[seen_at]
            turn = rotations(wander(generator, times, log_uniform(generator, 0.008, 0.15), reach=2.5)) @ turn
        return turn, path

    with_creature = chance(generator, variety.creature)
    for _ in range(integer(generator, 3, 5) if with_creature else integer(generator, 4, 9)):
        moving, depth = chance(generator, 0.8), log_uniform(generator, 1.6, 5.5)
        turn, path = place(depth, moving)
        radii = _random_radii(generator, view * depth * log_uniform(generator, 0.07, 0.28))
        is_round = chance(generator, 0.4) and bool(radii.min() > 0.25 * radii.max())
        solids.append(_Solid(turn, path, radii, is_round, moving, group=len(solids)))
    if with_creature:
        depth = log_uniform(generator, 1.6, 4.0)
        body = view * depth * log_uniform(generator, 0.07, 0.16)
        solids += _creature(generator, times, *place(depth, moving=True), size=body, group=len(solids))

    return World(
        rotation=torch.stack([solid.rotation for solid in solids]),
        position=torch.stack([solid.position for solid in solids]),
        radii=torch.stack([solid.radii for solid in solids]),
        is_round=torch.tensor([solid.is_round for solid in solids]),
        is_moving=torch.tensor([solid.is_moving for solid in solids]),
        camera_rotation=camera_rotation,
        camera_position=camera_position,
        focal=max(size) / view * zoom.exp(),
        group=tuple(solid.group for solid in solids),
        size=size,
    )


def _creature(generator: Generator, times: Tensor, turn: Tensor, path: Tensor, size: float, group: int) -> list[_Solid]:
    """An ellipsoid with jointed limbs of thin ellipsoids."""

    def ellipsoid(rotation: Tensor, position: Tensor, length: float, thickness: float) -> _Solid:
        radii = torch.tensor([length, thickness, thickness], dtype=torch.float64)
        return _Solid(rotation, position, radii, True, True, group)

    parts = [ellipsoid(turn, path, size, size * uniform(generator, 0.35, 0.8))]
    for _ in range(integer(generator, 2, 3)):
        length = size * uniform(generator, 0.4, 0.9)  # half of it
        thickness = length * log_uniform(generator, 0.08, 0.35)
        rotation = turn @ rotations(direction(generator) * uniform(generator, 0, math.pi))
        joint = path + turn[..., 0] * size * uniform(generator, -0.9, 0.9)
        for _ in range(integer(generator, 1, 3)):
            swing = wander(generator, times, log_uniform(generator, 0.02, 0.3), reach=uniform(generator, 0.3, 1.3))
            rotation = rotation @ rotations(swing)
            along = 0.9 * length * rotation[..., 0]
            parts.append(ellipsoid(rotation, joint + along, length, thickness))
            joint = joint + 2 * along
            length, thickness = 0.9 * length, 0.85 * thickness
            rotation = rotation @ rotations(direction(generator) * uniform(generator, 0, 1))
    return parts


def _random_radii(generator: Generator, radius: float) -> Tensor:  # [3]
    radii = radius * uniforms(generator, 0.5, 1.4, 3)
    if chance(generator, 0.3):  # a board
        radii[2] = 0.03 * radius
        radii[:2] *= 1.3
    return radii


def _random_camera(generator: Generator, times: Tensor, view: float, room: Tensor) -> tuple[Tensor, Tensor]:
    """A camera near the back of the room that looks along z.  # [T, 3, 3], [T, 3]"""
    start = torch.stack(
        (uniforms(generator, -0.3, 0.3), uniforms(generator, -0.3, 0.3), uniforms(generator, -0.7, -0.4))
    )
    aim = torch.stack(
        (uniforms(generator, -0.3, 0.3), uniforms(generator, -0.6, 0.6), uniforms(generator, -0.15, 0.15))
    )
    path = torch.zeros(len(times), 3, dtype=torch.float64)
    turn = torch.zeros(len(times), 3, dtype=torch.float64)
    if chance(generator, 0.8):
        turn = wander(generator, times, log_uniform(generator, 0.001, 0.05) * view, reach=0.5)
        turn = turn * torch.tensor([0.6, 1.0, 0.3], dtype=torch.float64)
    if chance(generator, 0.8):
        path = wander(generator, times, log_uniform(generator, 0.005, 0.2), reach=0.25 * float(room.min()))
    return rotations(turn + aim), path + start * room

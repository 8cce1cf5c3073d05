"""Ray-cast scenes: a textured room, boxes, boards and ellipsoids in rigid motion under a moving camera.

Every solid is a unit cube or a unit sphere seen through an affine map, so that one intersection, one normal and one
texture lookup serve all of them. Rays leave the camera with depth 1, so a ray's parameter at a hit is the hit's depth.

Geometry and tracks are float64 on the CPU. Only the picture is made on the device asked for, in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from .draws import chance, direction, integer, log_uniform, uniform, uniforms
from .materials import Materials, lookup, make_materials
from .motion import camera_view, rotations, wander
from .picture import render_frames
from .textures import TextureSource
from .variety import USUAL, Variety

NEAR = 0.05  # nothing nearer than this is seen
ROOM = 0  # index of the room among the solids
CUBE_FACES = 6


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


# --- geometry -------------------------------------------------------------------------------------------------------


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


def _length(vectors: Tensor) -> Tensor:  # [T, 3, P] -> [T, P]; much faster than norm(dim=1)
    x, y, z = vectors.unbind(1)
    return (x * x + y * y + z * z).sqrt()


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


# --- picture --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Light:
    position: Tensor  # [T, 3]
    ambient: float
    strength: float
    casts_shadows: bool
    gloss: float = 0.0  # of highlights (Blinn)
    shininess: float = 20.0


def shade(
    world: World,
    materials: Materials,
    light: Light,
    xy: Tensor,  # [T, 2, P]
) -> tuple[Tensor, Tensor]:  # [T, 3, P] colour, [T, P] face seen
    """Colour of the rays through any positions of the frames."""
    frames, _, count = xy.shape
    rays = camera_rays(world, xy)
    depth, solid = trace(world, world.camera_position, rays)
    points = world.camera_position[..., None] + depth[:, None] * rays

    to_unit = world.to_unit  # gather, for every ray, the affine map of the solid it hit
    shift = -(to_unit @ world.position[..., None])
    table = torch.cat((to_unit, shift), dim=-1).flatten(2).flatten(0, 1)  # [S * T, 12]
    row = solid * frames + torch.arange(frames, device=solid.device)[:, None]
    m = table.index_select(0, row.view(-1)).view(frames, count, 12).permute(2, 0, 1)
    px, py, pz = points.unbind(1)
    q = torch.stack([m[i] * px + m[i + 1] * py + m[i + 2] * pz + m[i + 3] for i in (0, 4, 8)])  # [3, T, P]

    size = q.abs()
    major, axis = size.max(dim=0)
    on_x, on_z = axis == 0, axis == 2
    along = torch.where(on_x, q[0], torch.where(on_z, q[2], q[1]))
    face = solid * CUBE_FACES + axis * 2 + (along > 0)
    flat = face.view(-1)
    uv = torch.stack((torch.where(on_x, q[1], q[0]), torch.where(on_z, q[1], q[2]))) / major
    uv = uv.view(2, -1) * materials.scale[:, flat] + materials.shift[:, flat]

    n = torch.where(world.is_round[solid], q, q.sign() * F.one_hot(axis, 3).permute(2, 0, 1))
    normal = torch.stack([m[i] * n[0] + m[i + 4] * n[1] + m[i + 8] * n[2] for i in (0, 1, 2)], dim=1)
    normal = normal / _length(normal)[:, None]
    facing = (normal * rays).sum(1).abs() / _length(rays)
    footprint = depth / world.focal[:, None] * materials.density[flat].view_as(depth) / facing.clamp_min(0.05).sqrt()

    to_light = light.position[..., None] - points
    lambert = (normal * to_light).sum(1) / _length(to_light)
    lambert = torch.where(solid == ROOM, lambert.abs(), lambert.clamp_min(0))
    if light.casts_shadows:
        blocked, _ = trace(world, light.position, -to_light, with_room=False)
        lambert = torch.where(blocked < 0.998, 0.0, lambert)
    brightness = light.ambient + light.strength * lambert
    halfway = to_light / _length(to_light)[:, None] - rays / _length(rays)[:, None]
    facing_half = (normal * halfway).sum(1).clamp_min(0) / _length(halfway).clamp_min(1e-6)
    highlight = light.gloss * torch.where(lambert > 0, facing_half**light.shininess, 0.0)

    colour = lookup(materials, flat, uv, footprint.view(-1)).view(frames, count, 3).permute(0, 2, 1)
    return colour * brightness[:, None] + highlight[:, None], face


def render(world: World, materials: Materials, light: Light, device: torch.device | str) -> Tensor:  # [T, 3, H, W]
    world, materials = world.to(device, torch.float32), materials.to(device)
    places = light.position.to(device, torch.float32)

    def shade_frames(index: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
        return shade(world.frames(index), materials, replace(light, position=places[index]), xy)

    return render_frames(shade_frames, len(places), world.size, device)


# --- random scenes --------------------------------------------------------------------------------------------------


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


def random_materials(generator: Generator, source: TextureSource, world: World) -> Materials:
    """Every group of solids one texture, the room three (one for each pair of walls)."""
    textures: list[Tensor] = []
    choice, scale, shift, density = [], [], [], []
    for s, radius in enumerate(world.radii):
        same_as_before = s > 0 and world.group[s] == world.group[s - 1]
        for axis in range(3):
            if s == ROOM or (axis == 0 and not same_as_before):
                textures.append(source.draw())
                longest = float(radius.max())
                repeats = log_uniform(generator, 1.0, 4.0) if s == ROOM else log_uniform(generator, 0.4, 2.0)
                per_length = repeats / (2 * longest)
            across = radius[[1, 2]] if axis == 0 else radius[[0, 2]] if axis == 1 else radius[[0, 1]]
            for _ in range(2):
                choice.append(len(textures) - 1)
                scale.append(across * per_length)
                shift.append(uniforms(generator, 0, 2, 2))
                density.append(per_length)
    return make_materials(
        textures,
        torch.tensor(choice),
        torch.stack(scale).T.float(),
        torch.stack(shift).T.float(),
        torch.tensor(density),
    )


def random_light(generator: Generator, times: Tensor, room: Tensor) -> Light:
    place = uniforms(generator, -0.9, 0.9, 3) * room
    place[1] = -uniform(generator, 0.5, 0.95) * room[1]  # y points down
    path = place + wander(generator, times, log_uniform(generator, 0.001, 0.1), reach=1.0)
    ambient = uniform(generator, 0.35, 0.85)
    casts_shadows, gloss = chance(generator, 0.4), uniform(generator, -0.6, 0.6)
    return Light(
        path,
        ambient,
        uniform(generator, 1.1, 1.4) - ambient,
        casts_shadows,
        gloss=max(gloss, 0.0),
        shininess=log_uniform(generator, 5, 100),
    )

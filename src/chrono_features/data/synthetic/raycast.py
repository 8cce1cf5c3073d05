"""The picture of a world: every pixel's ray is traced, textured, lit and shadowed.

It is made in float32 on the device asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from .draws import chance, log_uniform, uniform, uniforms
from .materials import Materials, lookup, make_materials
from .motion import wander
from .picture import render_frames
from .textures import TextureSource
from .world import ROOM, World, camera_rays, trace

CUBE_FACES = 6


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


def _length(vectors: Tensor) -> Tensor:  # [T, 3, P] -> [T, P]; much faster than norm(dim=1)
    x, y, z = vectors.unbind(1)
    return (x * x + y * y + z * z).sqrt()

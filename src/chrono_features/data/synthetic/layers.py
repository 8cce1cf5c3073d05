"""Layered scenes: cut-out pictures that move and bend over a background, nearer ones in front of farther ones.

A layer's own coordinates have their origin in its middle; 1 is the longer side of the frame. Its points are first bent,
then taken to the frame by a homography. The homography is inverted exactly and the bending by iteration, so tracks
(forward) and picture (backward) agree to rounding. Tracks are float64 on the CPU; only the picture is made on the
device asked for, in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from .draws import chance, direction, integer, log_uniform, uniform, uniforms
from .materials import Materials, lookup, make_materials
from .motion import camera_view, wander
from .picture import render_frames
from .shapes import Capsule, Shape, random_shape
from .textures import TextureSource
from .variety import USUAL, Variety

BACKGROUND = 0  # index of the backmost layer; layer k is behind layer k + 1
WAVES = 2
STEEPEST_WAVE = 0.15  # slope: WAVES of them stay far below 1, so that bending never folds and the iteration converges
ITERATIONS = 20  # 0.3 ** 20 is far below a thousandth of a pixel
HORIZON = 1e-2  # homogeneous coordinate below which a layer is not seen


@dataclass(frozen=True)
class Layers:
    """K layers over T frames, each bent by W waves."""

    homography: Tensor  # [K, T, 3, 3] layer to frame
    wave_vector: Tensor  # [K, W, 2] radians per unit
    wave_push: Tensor  # [K, W, 2]
    wave_phase: Tensor  # [K, W, T]
    is_moving: Tensor  # [K] bool: by itself, not only with the camera
    bent: tuple[int, ...]  # layers whose waves are not zero
    group: tuple[int, ...]  # layers of one group have the same texture and light
    shapes: tuple[Shape | None, ...]  # None: covers everything
    size: tuple[int, int]  # height, width

    def frames(self, index: Tensor) -> Layers:  # index [F]
        return replace(self, homography=self.homography[:, index], wave_phase=self.wave_phase[:, :, index])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Layers:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {
            name: v.to(device, dtype if v.is_floating_point() else v.dtype) for name, v in tensors.items()
        }
        return replace(self, **moved)


# --- geometry -------------------------------------------------------------------------------------------------------


def bend(layers: Layers, layer: int | Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:  # [T, P] each
    """What the waves add to points of one layer, or of one layer each, [P]."""
    along_x, along_y = layers.wave_vector[layer].movedim(-2, 0).unbind(-1)  # [W] or [W, P] each
    push_x, push_y = layers.wave_push[layer].movedim(-2, 0).unbind(-1)
    phase = layers.wave_phase[layer].movedim(-2, 0)  # [W, T] or [W, P, T]
    if isinstance(layer, Tensor):
        along_x, along_y, push_x, push_y = (v[:, None] for v in (along_x, along_y, push_x, push_y))
        phase = phase.transpose(1, 2)
    else:
        along_x, along_y, push_x, push_y = (v[:, None, None] for v in (along_x, along_y, push_x, push_y))
        phase = phase[..., None]
    wave = torch.sin(along_x * x + along_y * y + phase)  # [W, T, P]
    return (push_x * wave).sum(0), (push_y * wave).sum(0)


def topmost(layers: Layers, xy: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [T, 2, P] pixels
    """The layer seen at any positions of the frames.

    Args:
        layers: The layers.
        xy: [T, 2, P] pixels.

    Returns:
        [T, P] layer, and [T, P] x and [T, P] y in its coordinates.
    """
    height, width = layers.size
    centred = (xy - xy.new_tensor([[width / 2], [height / 2]])) / max(height, width)
    homogeneous = torch.cat((centred, torch.ones_like(centred[:, :1])), dim=1)
    top = torch.zeros_like(xy[:, 0], dtype=torch.long)
    top_x, top_y = torch.zeros_like(xy[:, 0]), torch.zeros_like(xy[:, 0])
    for k, (shape, to_layer) in enumerate(zip(layers.shapes, torch.linalg.inv(layers.homography), strict=True)):
        x, y, w = (to_layer @ homogeneous).unbind(1)
        ahead = w > HORIZON
        x, y = x / w, y / w
        if k in layers.bent:
            push_x, push_y = bend(layers, k, x, y)
            x, y = x + push_x, y + push_y
        covers = ahead if shape is None else ahead & (shape.level(x, y) > 0)
        top_x, top_y = torch.where(covers, x, top_x), torch.where(covers, y, top_y)
        top.masked_fill_(covers, k)
    return top, top_x, top_y


def from_layer(layers: Layers, layer: Tensor, points: Tensor) -> Tensor:  # [N], [N, 2] -> [N, T, 2] pixels
    """Where points of the layers are in every frame."""
    height, width = layers.size
    target_x, target_y = points.T[:, None].expand(2, layers.homography.shape[1], -1)
    x, y = target_x, target_y
    for _ in range(ITERATIONS if layers.bent else 0):
        push_x, push_y = bend(layers, layer, x, y)
        x, y = target_x - push_x, target_y - push_y
    seen = (layers.homography[layer] @ torch.stack((x, y, torch.ones_like(x)), dim=-1).movedim(1, 0)[..., None])[..., 0]
    centred = seen[..., :2] / seen[..., 2:].clamp_min(HORIZON)
    return centred * max(height, width) + points.new_tensor([width / 2, height / 2])


def sees(layers: Layers, layer: Tensor, xy: Tensor) -> Tensor:  # [N], [N, T, 2] -> [N, T] bool
    """Whether a point of a layer at an exact position is inside the frame and under no nearer layer."""
    height, width = layers.size
    top, _, _ = topmost(layers, xy.permute(1, 2, 0))
    inside = (xy >= 0).all(-1) & (xy[..., 0] < width) & (xy[..., 1] < height)
    return inside & (layer[:, None] == top.T)


# --- picture --------------------------------------------------------------------------------------------------------


def render(layers: Layers, materials: Materials, gain: Tensor, device: torch.device | str) -> Tensor:  # [T, 3, H, W]
    """Paints the layers; `gain` [K, T] is their brightness."""
    shrink = torch.linalg.inv(layers.homography)[..., :2, :2].det().abs().sqrt() / max(layers.size)
    footprint = (shrink * materials.density[:, None]).to(device, torch.float32)  # [K, T] texels per pixel
    layers, materials, gain = layers.to(device, torch.float32), materials.to(device), gain.to(device, torch.float32)

    def shade(index: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
        layer, x, y = topmost(layers.frames(index), xy)
        flat = layer.view(-1)
        uv = torch.stack((x, y)).view(2, -1) * materials.scale[:, flat] + materials.shift[:, flat]
        size = footprint[layer, index[:, None]]
        colour = lookup(materials, flat, uv, size.view(-1)).view(*layer.shape, 3).permute(0, 2, 1)
        return colour * gain[layer, index[:, None]][:, None], layer

    return render_frames(shade, layers.homography.shape[1], layers.size, device)


# --- random scenes --------------------------------------------------------------------------------------------------


def random_layers(generator: Generator, times: Tensor, size: tuple[int, int], variety: Variety = USUAL) -> Layers:
    camera = _camera(generator, times, variety)
    parts = [_Part(camera, None, False)]
    with_creature = chance(generator, variety.creature)
    for _ in range(integer(generator, 2, 4) if with_creature else integer(generator, 3, 7)):
        moving = chance(generator, 0.85)
        own = _still(times)
        if moving:
            own = _drift(generator, times, speed=log_uniform(generator, 0.007, 0.08), reach=0.5)
            if chance(generator, variety.roll):
                own = own @ turned(wander(generator, times, log_uniform(generator, 0.01, 0.15), math.pi, 1)[:, 0])
        shape = random_shape(generator, log_uniform(generator, 0.1, 0.35))
        parts.append(_Part(_placed(generator, own, camera, size), shape, moving, group=len(parts)))
    if with_creature:
        own = _drift(generator, times, speed=log_uniform(generator, 0.007, 0.06), reach=0.4)
        place = integer(generator, 1, len(parts))
        parts[place:place] = _creature(generator, times, _placed(generator, own, camera, size), group=len(parts))

    count = len(parts)
    length = torch.stack([uniforms(generator, 0.5, 2.0, WAVES, 1) * 2 * math.pi for _ in range(count)])
    steepness = torch.tensor(
        [[[log_uniform(generator, 0.01, STEEPEST_WAVE)] for _ in range(WAVES)] for _ in range(count)]
    )
    vector, push = (
        torch.stack([torch.stack([direction(generator, 2) for _ in range(WAVES)]) for _ in range(count)])
        for _ in range(2)
    )
    period = uniforms(generator, 15, 60, count, WAVES, 1)
    is_moving = torch.tensor([part.moving for part in parts])
    return Layers(
        homography=torch.stack([part.homography for part in parts]),
        wave_vector=vector * length,
        wave_push=push * steepness / length * is_moving[:, None, None],
        wave_phase=uniforms(generator, 0, 2 * math.pi, count, WAVES, 1) + 2 * math.pi * times / period,
        is_moving=is_moving,
        bent=tuple(is_moving.nonzero().flatten().tolist()),
        group=tuple(part.group for part in parts),
        shapes=tuple(part.shape for part in parts),
        size=size,
    )


@dataclass(frozen=True)
class _Part:
    homography: Tensor  # [T, 3, 3] layer to frame
    shape: Shape | None
    moving: bool
    group: int = 0


def _camera(generator: Generator, times: Tensor, variety: Variety) -> Tensor:  # [T, 3, 3]
    roll, zoom, shift = camera_view(generator, times, variety)
    view = zoom.exp()[:, None, None] * turned(roll)
    view[:, 2, 2] = 1
    view[:, :2, 2] = shift
    return view @ _drift(generator, times, speed=log_uniform(generator, 0.002, 0.04), reach=0.3)


def _placed(generator: Generator, own: Tensor, camera: Tensor, size: tuple[int, int]) -> Tensor:  # [T, 3, 3]
    """A motion seen by the camera, somewhere in the picture in some frame."""
    seen_at = integer(generator, 0, len(own) - 1)
    wanted = uniforms(generator, -0.45, 0.45, 2) * torch.tensor(size[::-1]) / max(size)
    target = torch.linalg.inv(camera[seen_at]) @ torch.cat((wanted, wanted.new_ones(1)))
    return camera @ _shifted(target[:2] / target[2] - own[seen_at, :2, 2] / own[seen_at, 2, 2]) @ own


def _creature(generator: Generator, times: Tensor, root: Tensor, group: int) -> list[_Part]:
    """A body with jointed limbs, half of which are behind it."""
    size = log_uniform(generator, 0.06, 0.16)
    body = _Part(root @ _shifted((-size, 0.0)), Capsule(2 * size, size * uniform(generator, 0.35, 0.9)), True, group)
    front: list[_Part] = []
    behind: list[_Part] = []
    for limb in range(integer(generator, 2, 4)):
        joint = root @ _shifted((size * uniform(generator, -1, 1), 0.0))
        length = size * uniform(generator, 0.7, 1.6)
        radius = length * log_uniform(generator, 0.06, 0.3)
        rest = uniform(generator, -math.pi, math.pi)
        for _ in range(integer(generator, 1, 3)):
            swing = wander(generator, times, log_uniform(generator, 0.02, 0.3), uniform(generator, 0.3, 1.3), 1)[:, 0]
            joint = joint @ turned(rest + swing)
            (front if limb % 2 else behind).append(_Part(joint, Capsule(length, radius), True, group))
            joint = joint @ _shifted((length, 0.0))
            length, radius, rest = 0.9 * length, 0.85 * radius, uniform(generator, -1, 1)
    return [*behind, body, *front]


def _still(times: Tensor) -> Tensor:  # [T, 3, 3]
    return torch.eye(3, dtype=torch.float64).expand(len(times), 3, 3)


def _shifted(by) -> Tensor:  # [3, 3]
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 2], matrix[1, 2] = by
    return matrix


def turned(angle: Tensor) -> Tensor:  # [T] radians -> [T, 3, 3]
    """Rotations of the plane."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = (cos, -sin, zero), (sin, cos, zero), (zero, zero, zero + 1)
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _drift(generator: Generator, times: Tensor, speed: float, reach: float) -> Tensor:  # [T, 3, 3]
    """A homography that moves smoothly: shift, turn, scale, shear and a little perspective."""
    shift = wander(generator, times, speed, reach, 2)
    turn, size = (wander(generator, times, log_uniform(generator, 0.1, 1.0) * speed, reach, 1)[:, 0] for _ in range(2))
    shear = wander(generator, times, 0.3 * speed, 0.3 * reach, 2)
    tilt = wander(generator, times, 0.5 * speed, 0.5 * reach, 2)
    cos, sin, scale = turn.cos(), turn.sin(), size.exp()
    rotated = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))
    sheared = torch.stack((1 + shear[:, 0], shear[:, 1], torch.zeros_like(cos), 1 - shear[:, 0]), dim=-1)
    top = torch.cat((scale[:, None, None] * rotated @ sheared.unflatten(-1, (2, 2)), shift[..., None]), dim=-1)
    bottom = torch.cat((tilt, torch.ones_like(tilt[:, :1])), dim=-1)
    return torch.cat((top, bottom[:, None]), dim=1)


def random_materials(generator: Generator, source: TextureSource, layers: Layers) -> Materials:
    """Every group of layers one texture, every layer another part of it."""
    count, groups = len(layers.shapes), max(layers.group) + 1
    choice = torch.tensor(layers.group)
    repeats = torch.tensor(
        [log_uniform(generator, 0.5, 1.2)] + [log_uniform(generator, 0.6, 3.0) for _ in range(1, groups)]
    )[choice]
    return make_materials(
        [source.draw() for _ in range(groups)],
        choice,
        repeats.expand(2, count),
        uniforms(generator, 0, 2, 2, count).float(),
        repeats,
    )


def random_gain(generator: Generator, times: Tensor, group: tuple[int, ...]) -> Tensor:  # [K, T]
    """A brightness for every group of layers that changes slowly."""
    groups = max(group) + 1
    base = uniforms(generator, 0.7, 1.15, groups, 1)
    swings = [wander(generator, times, log_uniform(generator, 0.001, 0.02), 0.15, 1)[:, 0] for _ in range(groups)]
    return (base * (1 + torch.stack(swings)))[list(group)]

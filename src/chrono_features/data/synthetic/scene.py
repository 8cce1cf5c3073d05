"""Endless synthetic clips with exact point tracks: the public entry and what both kinds of scene share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ...checks import FLOATING, check_choice, check_integer, check_number, check_tensor, is_integer, refusal
from ..clip import Clip
from . import layers, raycast
from .covers import Covers, hidden, paste, random_covers
from .draws import branch, chance, integer, log_uniform
from .photometric import add_photometrics
from .random_worlds import random_world
from .textures import TextureSource
from .variety import USUAL, Variety
from .world import ROOM, project, sees, surface_points

SCENES = ("mixed", "raycast", "layers")
# Clips from here on are never trained on: a generator keeps the low 32 bits of its seed, and in these every run of
# training starts at a multiple of 2**26.
VALIDATION_SEED = 2**32 - 2**20
MIN_SIDE = 8  # pixels along a side
EDGE = 0.025  # of the longer side: points nearer than this to an outline are near an edge


def make_clip(
    seed: int,
    *,
    frames: int = 8,
    size: tuple[int, int] = (128, 128),
    points: int = 64,
    scene: str = "mixed",
    textures: Tensor | None = None,  # [K, 3, S, S] uint8 or float in [0, 1]
    device: torch.device | str = "cpu",
    frame_step: float | None = None,
    anchor: int | None = None,
    photometric: bool = True,
    variety: Variety = USUAL,
) -> Clip:
    """Make the clip that belongs to a seed; the same arguments give the same clip on every machine.

    Args:
        seed: Any integer from 0.
        frames: Length T of the clip.
        size: Height and width in pixels.
        points: Number N of tracks, half of them on moving things where there are enough; see also `Variety.edges`.
        scene: "raycast", "layers", or "mixed", which picks one of the two by the seed.
        textures: Photographs as `load_textures` gives them; without them the textures are procedural.
        device: Where the picture is made and all results are put.
        frame_step: Time from frame to frame: 2 shows the motion of 1 at twice the speed. None draws it per clip.
        anchor: The frame in which all points are visible; None draws one for every point.
        photometric: Whether light, lens, sensor and codec change the picture.
        variety: How often clips have what.

    Returns:
        The clip.

    Raises:
        ValueError: An argument is not as above; the message names it.
    """
    _check(seed, frames, size, points, scene, textures, frame_step, anchor)
    frames, points = int(frames), int(points)  # maybe NumPy's
    size = (int(size[0]), int(size[1]))
    generator = torch.Generator().manual_seed(int(seed))
    flipped = SCENES[integer(generator, 1, 2)]  # always drawn, so that a mixed clip equals the one of its kind
    kind = flipped if scene == "mixed" else scene
    drawn_step = log_uniform(generator, 0.6, 2.4)
    times = torch.arange(frames, dtype=torch.float64) * (drawn_step if frame_step is None else frame_step)
    for_covers, for_picture, for_scene = branch(generator), branch(generator), branch(generator)
    covers = random_covers(for_covers, TextureSource(for_covers, textures, 0.0, 1), times, size, variety, anchor)
    shot = _Shot(for_scene, times, size, points, textures, device, anchor, variety, covers)
    video, tracks, visible, moving = {"raycast": _raycast, "layers": _layers}[kind](shot)
    visible &= ~hidden(covers, torch.arange(frames), tracks.transpose(0, 1)).T
    video = paste(covers, video)
    if photometric:
        video = add_photometrics(for_picture, video, times, variety)
    visible = visible.to(device)
    return Clip(video.clamp(0, 1), tracks.float().to(device), visible, torch.ones_like(visible), moving.to(device))


def _check(
    seed: Any,
    frames: Any,
    size: Any,
    points: Any,
    scene: Any,
    textures: Any,
    frame_step: Any,
    anchor: Any,
) -> None:
    check_integer("seed", seed, 0, 2**63 - 1)
    check_integer("frames", frames, 1)
    check_integer("points", points, 1)
    check_choice("scene", scene, SCENES)
    pair = isinstance(size, (tuple, list)) and len(size) == 2
    if not (pair and all(is_integer(side, MIN_SIDE) for side in size)):
        raise refusal("size", size, f"(height, width), two integers of at least {MIN_SIDE}")
    if frame_step is not None:
        check_number("frame_step", frame_step, "a finite number above 0, or None")
    if anchor is not None and not is_integer(anchor, 0, frames - 1):
        raise refusal("anchor", anchor, f"a frame from 0 to {frames - 1}, or None")
    if textures is not None:
        check_tensor("textures", textures, "(K, 3, S, S)", (torch.uint8, *FLOATING), "uint8 0 … 255 or floating 0 … 1")
        shape = tuple(textures.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or 0 in shape:
            raise ValueError(f"textures of shape {shape}; expected (K, 3, S, S), none of them 0")


@dataclass(frozen=True)
class _Shot:
    """What both kinds of scene are made from."""

    generator: Generator
    times: Tensor
    size: tuple[int, int]
    points: int
    textures: Tensor | None
    device: torch.device | str
    anchor: int | None
    variety: Variety
    covers: Covers

    def source(self) -> TextureSource:
        return TextureSource(self.generator, self.textures, self.variety.plain)

    def candidates(self) -> tuple[Tensor, Tensor, Tensor]:  # [F, P, 2] positions, [F] their frames, [F * P] bool
        """Random positions to start tracks from, several times more than needed, and which of them are not covered."""
        frame = torch.arange(len(self.times)) if self.anchor is None else torch.tensor([self.anchor])
        count = -(-8 * self.points // len(frame))
        while True:  # covers leave a good part of the frames free
            xy = torch.rand(len(frame), count, 2, generator=self.generator, dtype=torch.float64)
            xy = xy * torch.tensor(self.size[::-1], dtype=torch.float64)
            free = ~hidden(self.covers, frame, xy).flatten()
            if free.sum() >= self.points:
                return xy, frame, free

    def near(
        self,
        frame: Tensor,  # [F]
        xy: Tensor,  # [F, P, 2] pixels
        seen: Tensor,  # [F, P] what the scene shows there
        look: Callable[[Tensor], Tensor],  # gives that for any positions
    ) -> Tensor | None:  # [F * P] bool
        """Which positions are near edges; None where the clip does not ask for it."""
        if not (self.variety.edges and chance(self.generator, self.variety.edges)):  # no draw where there are none
            return None

        def look_again(positions: Tensor) -> Tensor:
            return torch.where(hidden(self.covers, frame, positions), -1, look(positions))

        return near_edges(xy, seen, look_again, EDGE * max(self.size)).flatten()

    def choose(self, moving: Tensor, near: Tensor | None, free: Tensor) -> Tensor:  # [F * P] each -> [points] indices
        index = free.nonzero().flatten()
        return index[choose(self.generator, moving[index], self.points, None if near is None else near[index])]


def _raycast(shot: _Shot) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # video, tracks, visible, moving
    generator, times = shot.generator, shot.times
    world = random_world(generator, times, shot.size, shot.variety)
    materials = raycast.random_materials(generator, shot.source(), world)
    light = raycast.random_light(generator, times, world.radii[ROOM])

    xy, frame, free = shot.candidates()
    view = world.frames(frame)
    solid, unit, _ = surface_points(view, xy)
    near = shot.near(frame, xy, solid, lambda positions: surface_points(view, positions)[0])
    solid, unit = solid.flatten(), unit.flatten(0, 1)
    chosen = shot.choose(world.is_moving[solid], near, free)
    solid, unit = solid[chosen], unit[chosen]
    tracks, depth = project(world, solid, unit)
    visible = sees(world, solid, tracks, depth)
    return raycast.render(world, materials, light, shot.device), tracks, visible, world.is_moving[solid]


def _layers(shot: _Shot) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # video, tracks, visible, moving
    generator, times = shot.generator, shot.times
    stack = layers.random_layers(generator, times, shot.size, shot.variety)
    materials = layers.random_materials(generator, shot.source(), stack)
    gain = layers.random_gain(generator, times, stack.group)

    xy, frame, free = shot.candidates()
    view = stack.frames(frame)
    layer, x, y = layers.topmost(view, xy.transpose(1, 2))
    near = shot.near(frame, xy, layer, lambda positions: layers.topmost(view, positions.transpose(1, 2))[0])
    layer, place = layer.flatten(), torch.stack((x, y), dim=-1).flatten(0, 1)
    chosen = shot.choose(stack.is_moving[layer], near, free)
    layer, place = layer[chosen], place[chosen]
    tracks = layers.from_layer(stack, layer, place)
    visible = layers.sees(stack, layer, tracks)
    return layers.render(stack, materials, gain, shot.device), tracks, visible, stack.is_moving[layer]


def near_edges(
    xy: Tensor,  # [F, P, 2] pixels
    seen: Tensor,  # [F, P] what is there
    look: Callable[[Tensor], Tensor],  # gives that for any positions
    distance: float,
) -> Tensor:  # [F, P] bool
    """Whether something else is at that distance along one of the two diagonals."""
    sides = itertools.product((1, -1), repeat=2)
    return torch.stack([look(xy + distance / 2**0.5 * xy.new_tensor(side)) != seen for side in sides]).any(dim=0)


def choose(
    generator: Generator,
    moving: Tensor,  # [M] bool
    points: int,
    near: Tensor | None = None,  # [M] bool
) -> Tensor:  # [points] indices
    """Half of the points moving, and half of the moving and of the others near, as far as there are enough of them."""
    order = torch.randperm(len(moving), generator=generator)
    movers, rest = order[moving[order]], order[~moving[order]]
    if near is not None:
        movers, rest = _in_turn(movers, near), _in_turn(rest, near)
    half = max(min(points // 2, len(movers)), points - len(rest))
    chosen = torch.cat((movers[:half], rest[: points - half]))
    return chosen[torch.randperm(points, generator=generator)]


def _in_turn(order: Tensor, near: Tensor) -> Tensor:  # [K] indices
    """One that is near and one that is not by turns, while there are both."""
    is_near = near[order]
    place = torch.where(is_near, is_near.cumsum(0), (~is_near).cumsum(0))
    return order[place.argsort(stable=True)]

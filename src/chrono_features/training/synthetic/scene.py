"""Endless synthetic clips with exact point tracks: the public entry and what both kinds of scene share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from . import layers, raycast
from .draws import chance, integer, log_uniform, uniform, uniforms
from .motion import wander
from .textures import TextureSource

SCENES = ("mixed", "raycast", "layers")


@dataclass(frozen=True)
class Clip:
    """A video and the tracks of some of its points, in raster pixels: the first pixel's centre is (0.5, 0.5)."""

    video: Tensor  # [T, 3, H, W] float32 in [0, 1]
    tracks: Tensor  # [N, T, 2] float32 (x, y)
    visible: Tensor  # [N, T] bool: False when occluded or outside the frame
    moving: Tensor  # [N] bool: on a thing that moves by itself, not on the room or the backmost layer


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
) -> Clip:
    """Makes the clip that belongs to a seed; the same arguments give the same clip on every machine.

    Args:
        seed: Any whole number from 0.
        frames: Length T of the clip.
        size: Height and width in pixels.
        points: Number N of tracks, half of them on moving things where there are enough.
        scene: "raycast", "layers", or "mixed", which picks one of the two by the seed.
        textures: Photographs as `load_textures` gives them; without them the textures are procedural.
        device: Where the picture is made and all results are put.
        frame_step: Time from frame to frame: 2 shows the motion of 1 at twice the speed. None draws it per clip.
        anchor: The frame in which all points are visible; None draws one for every point.
        photometric: Whether to add exposure drift, colour cast, blur and noise.

    Returns:
        The clip.
    """
    _check(seed, frames, size, points, scene, textures, frame_step, anchor)
    size = (int(size[0]), int(size[1]))
    generator = torch.Generator().manual_seed(seed)
    flipped = SCENES[integer(generator, 1, 2)]  # always drawn, so that a mixed clip equals the one of its kind
    kind = flipped if scene == "mixed" else scene
    drawn_step = log_uniform(generator, 0.6, 2.4)
    times = torch.arange(frames, dtype=torch.float64) * (drawn_step if frame_step is None else frame_step)
    make = {"raycast": _raycast, "layers": _layers}[kind]
    video, tracks, visible, moving = make(generator, times, size, points, textures, device, anchor)
    if photometric:
        video = add_photometrics(generator, video, times)
    return Clip(video.clamp(0, 1), tracks.float().to(device), visible.to(device), moving.to(device))


def _check(seed, frames, size, points, scene, textures, frame_step, anchor) -> None:
    def fail(name: str, received: object, expected: str) -> None:
        raise ValueError(f"{name}: received {received!r}, expected {expected}")

    def whole(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    if not whole(seed) or not 0 <= seed < 2**63:
        fail("seed", seed, "a whole number from 0 to 2**63 - 1")
    if not whole(frames) or frames < 1:
        fail("frames", frames, "a whole number of at least 1")
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(whole(side) and side >= 8 for side in size):
        fail("size", size, "(height, width), both whole numbers of at least 8")
    if not whole(points) or points < 1:
        fail("points", points, "a whole number of at least 1")
    if scene not in SCENES:
        fail("scene", scene, f"one of {', '.join(SCENES)}")
    if frame_step is not None and not 0 < frame_step < float("inf"):
        fail("frame_step", frame_step, "a positive number or None")
    if anchor is not None and not (whole(anchor) and 0 <= anchor < frames):
        fail("anchor", anchor, f"a frame from 0 to {frames - 1} or None")
    if textures is not None:
        shape = tuple(textures.shape) if isinstance(textures, Tensor) else type(textures).__name__
        if not isinstance(textures, Tensor) or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or 0 in shape:
            fail("textures", shape, "a tensor of shape (K, 3, S, S) or None")
        if textures.dtype != torch.uint8 and not textures.is_floating_point():
            fail("textures", textures.dtype, "uint8, or floating point in [0, 1]")


def _raycast(generator, times, size, points, textures, device, anchor):  # -> video, tracks, visible, moving
    world = raycast.random_world(generator, times, size)
    materials = raycast.random_materials(generator, TextureSource(generator, textures), world.radii)
    light = raycast.random_light(generator, times, world.radii[raycast.ROOM])

    xy, frame = candidates(generator, len(times), size, points, anchor)
    solid, unit, _ = raycast.surface_points(world.frames(frame), xy)
    solid, unit = solid.flatten(), unit.flatten(0, 1)
    chosen = choose(generator, world.is_moving[solid], points)
    solid, unit = solid[chosen], unit[chosen]
    tracks, depth = raycast.project(world, solid, unit)
    visible = raycast.sees(world, solid, tracks, depth)
    return raycast.render(world, materials, light, device), tracks, visible, world.is_moving[solid]


def _layers(generator, times, size, points, textures, device, anchor):  # -> video, tracks, visible, moving
    stack = layers.random_layers(generator, times, size)
    materials = layers.random_materials(generator, TextureSource(generator, textures), stack)
    gain = layers.random_gain(generator, times, len(stack.shapes))

    xy, frame = candidates(generator, len(times), size, points, anchor)
    layer, x, y = layers.topmost(stack.frames(frame), xy.transpose(1, 2))
    layer, place = layer.flatten(), torch.stack((x, y), dim=-1).flatten(0, 1)
    chosen = choose(generator, stack.is_moving[layer], points)
    layer, place = layer[chosen], place[chosen]
    tracks = layers.from_layer(stack, layer, place)
    visible = layers.sees(stack, layer, tracks)
    return layers.render(stack, materials, gain, device), tracks, visible, stack.is_moving[layer]


def candidates(
    generator: Generator, frames: int, size: tuple[int, int], points: int, anchor: int | None
) -> tuple[Tensor, Tensor]:  # [F, P, 2] positions, [F] frames they are in
    """Random positions to start tracks from, several times more than needed."""
    frame = torch.arange(frames) if anchor is None else torch.tensor([anchor])
    height, width = size
    count = -(-8 * points // len(frame))
    xy = torch.rand(len(frame), count, 2, generator=generator, dtype=torch.float64)
    return xy * torch.tensor([width, height], dtype=torch.float64), frame


def choose(generator: Generator, moving: Tensor, points: int) -> Tensor:  # [M] bool -> [points] indices
    """Half of the points moving, as far as there are enough of either kind."""
    order = torch.randperm(len(moving), generator=generator)
    movers, rest = order[moving[order]], order[~moving[order]]
    half = max(min(points // 2, len(movers)), points - len(rest))
    chosen = torch.cat((movers[:half], rest[: points - half]))
    return chosen[torch.randperm(points, generator=generator)]


def add_photometrics(generator: Generator, video: Tensor, times: Tensor) -> Tensor:  # [T, 3, H, W]
    """Exposure that drifts, a colour cast, a gamma; at times blur and sensor noise."""
    gain = uniform(generator, 0.8, 1.25) * (1 + wander(generator, times, log_uniform(generator, 0.001, 0.02), 0.2, 1))
    cast = uniforms(generator, 0.93, 1.07, 3)
    gain = (gain * cast).float().to(video.device)[..., None, None]
    gamma = uniform(generator, 0.8, 1.25)
    video = (video * gain).clamp(0, 1) ** gamma
    if chance(generator, 0.35):
        side = uniform(generator, 0.05, 0.22)
        taps = video.new_tensor([side, 1 - 2 * side, side])
        video = _blur(video, taps)
    if chance(generator, 0.6):
        noise = torch.randn(video.shape, generator=generator).to(video.device)
        video = video.add(noise, alpha=log_uniform(generator, 0.002, 0.03))
    return video.clamp(0, 1)


def _blur(video: Tensor, taps: Tensor) -> Tensor:
    """Three taps along x, then along y."""
    padded = F.pad(video, (1, 1, 1, 1), mode="replicate")
    rows = taps[0] * padded[..., :-2] + taps[1] * padded[..., 1:-1] + taps[2] * padded[..., 2:]
    return taps[0] * rows[..., :-2, :] + taps[1] * rows[..., 1:-1, :] + taps[2] * rows[..., 2:, :]

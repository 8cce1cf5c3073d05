"""Exact warps of real photographs: the test that separates features from frame-to-frame optical flow.

A camera moves over a photograph as over a poster on a wall. Its path is random, drawn first and then made as large as
the photograph allows without ever looking past its edge, so that no picture holds mirrored content: no point has a
double. A homography takes photograph to frame; the picture is made with its inverse, the tracks with itself.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..extras import require
from .camera_motion import Camera, either_sign, homographies, hover, progress, project
from .clip import SIZE, Clip, Entry, Unusable
from .reading import as_rgb, decoded, names_and_bytes, photographs
from .synthetic.draws import chance, integer, log_uniform, uniform, uniforms
from .synthetic.motion import wander

FRAMES = 24
POINTS = 64
SMALLEST = 192  # pixels along the shorter side of a photograph
LARGEST = 768  # larger ones are made smaller: at the closest, a third is seen in 256 pixels
SAMPLES = 3  # along each side of a pixel
NOISE = 1.5 / 255  # standard deviation of what a sensor adds
TIMES = torch.arange(FRAMES, dtype=torch.float64)


class PhotoWarps:
    """Six clips of every photograph below a folder, each hard in another way.

    - `warps/rotation`: turns by 90 to 180 degrees.
    - `warps/scale`: zooms in or out by a factor of 2 to 3.
    - `warps/homography`: tilts from one side to the other.
    - `warps/exposure`: gain, gamma and colours drift and jump.
    - `gaps/blackout`: one or two runs of 3 to 8 black frames. Only what follows the first is scored: finding again.
    - `gaps/join`: the first frame, then the clip from a later frame on.

    Points are uniform over the first frame, kept where they are seen in at least half of the frames that are not black:
    a zoom would leave few otherwise. A photograph that is too small or cannot be read is `Unusable`.

    Args:
        path: A folder; photographs are the images anywhere below it (`images.FORMATS`), hidden files left out.
        size: (height, width) of the frames; None is the same as the default.

    Raises:
        FileNotFoundError: `path` is no folder.
        ValueError: No photographs are below it.
    """

    kind = "warps"

    def __init__(self, path: str | os.PathLike[str], size: tuple[int, int] | None = SIZE) -> None:
        self.path, self.size = os.fspath(path), size or SIZE
        self.photographs = photographs(path)

    def __iter__(self) -> Iterator[Entry]:
        names = [photograph.stem for photograph in self.photographs]
        if len(set(names)) < len(names):
            names = [photograph.relative_to(self.path).as_posix() for photograph in self.photographs]
        for name, photograph in zip(names, self.photographs, strict=True):
            for group in PLANS:
                full = f"{group}/{name}"
                yield Entry(full, group, partial(make_video, full, group, photograph, self.size))

    def total(self) -> int:
        return len(PLANS) * len(self.photographs)

    def fingerprint(self) -> dict[str, int | str]:
        return {
            "photographs": len(self.photographs),
            "names_and_bytes": names_and_bytes(self.path, self.photographs),
            "frames": FRAMES,
            "points": POINTS,
            "height": self.size[0],
            "width": self.size[1],
        }


# --- what happens in a clip -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A camera's path, and what happens to its picture."""

    camera: Camera
    gain: Tensor = field(default_factory=lambda: torch.ones(FRAMES, 3))  # [T, 3]
    gamma: Tensor = field(default_factory=lambda: torch.ones(FRAMES))  # [T]
    black: Tensor = field(default_factory=lambda: torch.zeros(FRAMES, dtype=torch.bool))  # [T]
    scored: Tensor = field(default_factory=lambda: torch.ones(FRAMES, dtype=torch.bool))  # [T]


def _rotation(generator: Generator) -> Plan:
    turn = either_sign(generator, math.pi / 2, math.pi) * progress(generator, TIMES)
    return Plan(replace(hover(generator, TIMES, amount=0.4), turn=turn))


def _scale(generator: Generator) -> Plan:
    zoom = either_sign(generator, math.log(2), math.log(3)) * progress(generator, TIMES)
    return Plan(replace(hover(generator, TIMES, amount=0.6), zoom=zoom))


def _homography(generator: Generator) -> Plan:
    angle, strength = uniform(generator, 0, 2 * math.pi), uniform(generator, 0.4, 0.5)
    side_to_side = (strength * (1 - 2 * progress(generator, TIMES)))[:, None]
    tilt = side_to_side * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    return Plan(replace(hover(generator, TIMES), tilt=tilt))


def _exposure(generator: Generator) -> Plan:
    """Bright and dark stretches in turn, in which the light drifts; bright at first, so that queries can be seen."""
    gain, gamma = torch.empty(FRAMES, 3, dtype=torch.float64), torch.empty(FRAMES, dtype=torch.float64)
    start, bright = 0, True
    while start < FRAMES:
        end = start + integer(generator, 4, 8)
        level = log_uniform(generator, 0.9, 1.3) if bright else log_uniform(generator, 0.3, 0.5)
        gain[start:end] = level * uniforms(generator, 0.75, 1.25, 3)
        gamma[start:end] = log_uniform(generator, 0.7, 1.0) if bright else log_uniform(generator, 1.0, 1.5)
        start, bright = end, not bright
    drift = wander(generator, TIMES, 0.03, 0.2, 4).exp()
    return Plan(hover(generator, TIMES), gain=(gain * drift[:, :3]).float(), gamma=(gamma * drift[:, 3]).float())


def _blackout(generator: Generator) -> Plan:
    black, scored = (torch.zeros(FRAMES, dtype=torch.bool) for _ in range(2))
    start = integer(generator, 2, 5)
    end = start + integer(generator, 3, 8)
    black[start:end] = True
    scored[0], scored[end:] = True, True
    if chance(generator, 0.5):
        start = end + integer(generator, 2, 4)
        black[start : start + integer(generator, 3, min(8, FRAMES - 2 - start))] = True
    return Plan(hover(generator, TIMES, amount=1.6), black=black, scored=scored)


def _join(generator: Generator) -> Plan:
    """The camera travels only while frames are dropped; before and after, it hovers."""
    later = integer(generator, 12, 36)
    camera = hover(generator, torch.cat((TIMES[:1], later + TIMES[:-1])))
    arrived = (TIMES > 0).double()
    angle, distance = uniform(generator, 0, 2 * math.pi), uniform(generator, 0.3, 0.45)
    way = distance * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    return Plan(
        replace(
            camera,
            shift=camera.shift + arrived[:, None] * way,
            turn=camera.turn + arrived * either_sign(generator, 0.2, 0.8),
            zoom=camera.zoom + arrived * either_sign(generator, 0.1, 0.4),
        )
    )


PLANS: dict[str, Callable[[Generator], Plan]] = {
    "warps/rotation": _rotation,
    "warps/scale": _scale,
    "warps/homography": _homography,
    "warps/exposure": _exposure,
    "gaps/blackout": _blackout,
    "gaps/join": _join,
}


# --- picture --------------------------------------------------------------------------------------------------------


def make_video(name: str, group: str, path: Path, size: tuple[int, int]) -> Clip:
    """The clip of a name: the same one on every run, whatever was made before."""
    photograph = _read(path)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    plan = PLANS[group](generator)
    height, width = photograph.shape[-2:]
    homography = homographies(generator, plan.camera, (height, width), size)
    xy, visible = draw_tracks(generator, homography, plan.black, size)
    video = render(photograph, homography, size) ** plan.gamma[:, None, None, None] * plan.gain[..., None, None]
    video = video.add(torch.randn(video.shape, generator=generator), alpha=NOISE).clamp(0, 1)
    video[plan.black] = 0
    return Clip(
        frames=(255 * video).round().byte(),
        xy=xy,
        visible=visible,
        valid=plan.scored.expand(visible.shape).clone(),
        name=name,
        group=group,
    )


def draw_tracks(
    generator: Generator, homography: Tensor, black: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:  # [N, T, 2] pixels, [N, T] bool visible
    """Tracks of points that are uniform over the first frame."""
    frame = torch.tensor(size[::-1], dtype=torch.float64)
    start = frame * uniforms(generator, 0, 1, 8 * POINTS, 2)
    xy = project(homography, project(torch.linalg.inv(homography[:1]), start)[:, 0])
    visible = ((xy >= 0) & (xy < frame)).all(-1) & ~black
    kept = visible.sum(1) >= 0.5 * (~black).sum()
    return xy[kept][:POINTS], visible[kept][:POINTS]


def render(photograph: Tensor, homography: Tensor, size: tuple[int, int]) -> Tensor:  # [3, h, w] -> [T, 3, H, W]
    """The photograph seen through every homography."""
    y, x = (torch.arange(SAMPLES * side, dtype=torch.float64).add(0.5).div(SAMPLES) for side in size)
    samples = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # [S * H, S * W, 2]
    backward = torch.linalg.inv(homography)
    return torch.cat([_view(photograph, project(b[None], samples.flatten(0, 1)).view_as(samples)) for b in backward])


def _view(photograph: Tensor, where: Tensor) -> Tensor:  # [3, h, w], [S * H, S * W, 2] pixels in it -> [1, 3, H, W]
    """Averages bilinear samples of the photograph, first made so small that no texel lies between two of them."""
    height, width = photograph.shape[-2:]
    step = max(where.diff(dim=axis).norm(dim=-1).max().item() for axis in (0, 1))
    texture = photograph[None]
    if step > 1:
        smaller = (round(height / step), round(width / step))
        texture = F.interpolate(texture, smaller, mode="bilinear", antialias=True)
    relative = (2 * where / where.new_tensor([width, height]) - 1).float()
    colour = F.grid_sample(texture, relative[None], padding_mode="border", align_corners=False)
    return F.avg_pool2d(colour, SAMPLES)


def _read(path: Path) -> Tensor:  # [3, h, w] float32 in [0, 1]
    image = require("PIL.Image", "eval")
    picture = as_rgb(decoded(path, str(path)), str(path))
    shorter = min(picture.size)
    if shorter < SMALLEST:
        width, height = picture.size
        raise Unusable(f"{path} has {width} x {height} pixels; expected at least {SMALLEST} along the shorter side")
    if shorter > LARGEST:
        width, height = (round(side * LARGEST / shorter) for side in picture.size)
        picture = picture.resize((width, height), image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

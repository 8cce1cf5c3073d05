"""What comes between the camera and the scene: pictures pasted for a while, and frames that show something else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from .draws import chance, integer, log_uniform, uniform, uniforms
from .motion import wander
from .shapes import Shape, random_shape
from .textures import TextureSource
from .variety import Variety

MOST_COVERED = 0.6  # share of the frames; a clip with more of it goes without
PROBES = 64  # positions a frame at which that is looked up


@dataclass(frozen=True)
class Covers:
    """C pictures with outlines, over T frames."""

    shapes: tuple[Shape, ...]
    pictures: tuple[Tensor, ...]  # [3, S, S] each
    centre: Tensor  # [C, T, 2] pixels
    present: Tensor  # [C, T] bool
    blank: Tensor  # [T] bool: the frame shows `instead`
    instead: Tensor  # [3, S, S]
    size: tuple[int, int]


def hidden(
    covers: Covers,
    frame: Tensor,  # [F]
    xy: Tensor,  # [F, P, 2] pixels
) -> Tensor:  # [F, P] bool
    """Whether positions in frames are covered."""
    covered = covers.blank[frame, None].expand(xy.shape[:2]).clone()
    for shape, centre, present in zip(covers.shapes, covers.centre, covers.present, strict=True):
        there = present[frame]
        x, y = ((xy[there] - centre[frame[there], None]) / max(covers.size)).unbind(-1)
        covered[there] |= shape.level(x, y) > 0
    return covered


def paste(covers: Covers, video: Tensor) -> Tensor:  # [T, 3, H, W]
    """The video with its covers."""
    height, width = covers.size
    rows, columns = (torch.arange(side, dtype=torch.float64) + 0.5 for side in (height, width))  # as in `hidden`
    rows, columns, video = rows.to(video.device), columns.to(video.device), video.clone()
    for shape, picture, centre, present in zip(
        covers.shapes, covers.pictures, covers.centre, covers.present, strict=True
    ):
        at = centre[present].to(video.device)
        if not len(at):
            continue
        x = ((columns - at[:, :1]) / max(covers.size))[:, None].expand(-1, height, width)
        y = ((rows - at[:, 1:]) / max(covers.size))[:, :, None].expand(-1, height, width)
        grid = 2 * torch.stack((x, y), dim=-1).float()
        pictures = picture.to(video).expand(len(at), -1, -1, -1)
        colour = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
        there = present.to(video.device)
        video[there] = torch.where((shape.level(x, y) > 0)[:, None], colour, video[there])
    if covers.blank.any():
        video[covers.blank.to(video.device)] = F.interpolate(covers.instead[None].to(video), covers.size, mode="area")
    return video


def random_covers(
    generator: Generator,
    source: TextureSource,
    times: Tensor,  # [T]
    size: tuple[int, int],
    variety: Variety,
    anchor: int | None,
) -> Covers:
    """At most three covers, each there for up to half of the frames, and one gap of up to a third of them.

    The frame `anchor` is never blank.
    """
    frames = len(times)
    count = integer(generator, 1, 3) if chance(generator, variety.covers) else 0
    shapes, pictures = [], []
    centre = torch.zeros(count, frames, 2, dtype=torch.float64)
    present = torch.zeros(count, frames, dtype=torch.bool)
    extent = torch.tensor(size[::-1], dtype=torch.float64)
    for c in range(count):
        shapes.append(random_shape(generator, log_uniform(generator, 0.06, 0.3)))
        pictures.append(source.draw())
        start = uniforms(generator, 0.0, 1.0, 2) * extent
        centre[c] = start + max(size) * wander(generator, times, log_uniform(generator, 0.001, 0.03), 0.3, 2)
        length = integer(generator, 1, max(1, frames // 2))
        first = integer(generator, 0, frames - length)
        present[c, first : first + length] = True
    blank = torch.zeros(frames, dtype=torch.bool)
    instead = torch.full((3, 8, 8), uniform(generator, 0, 1))
    if chance(generator, variety.blackout) and frames > 2:
        length = integer(generator, 1, frames // 3)
        first = integer(generator, 1, frames - 1 - length)
        blank[first : first + length] = True
        if anchor is not None:
            blank[anchor] = False
        if chance(generator, 0.5):
            instead = source.draw()
    covers = Covers(tuple(shapes), tuple(pictures), centre, present, blank, instead, size)
    where = torch.arange(frames) if anchor is None else torch.tensor([anchor])
    probes = torch.rand(len(where), PROBES, 2, generator=generator, dtype=torch.float64) * extent
    if hidden(covers, where, probes).double().mean() > MOST_COVERED:
        covers = replace(covers, present=torch.zeros_like(present))
    return covers

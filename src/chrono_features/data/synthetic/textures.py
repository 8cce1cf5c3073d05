"""Textures: photographs from a folder, and procedural ones for those who have none."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...extras import require
from ...video.images import IMAGE_SUFFIXES, open_image, photographs_below, to_rgb
from .draws import chance, integer, log_uniform, uniform, uniforms

PHOTO_SIZE = 256
HELD_BACK = 5  # every fifth photograph is kept for validation


def load_textures(folder: str | Path, part: str | None = None) -> Tensor:  # [K, 3, 256, 256] uint8
    """Reads photographs below `folder` as square crops: one of a square picture, two of an oblong one.

    Args:
        folder: Where they are, at any depth.
        part: "validation" is every fifth of them by name, "training" the others, None all.

    Raises:
        ValueError: The folder or photographs are missing, there are too few to keep some for validation, or one is
            damaged.
        ImportError: Pillow is missing.
    """
    if part not in (None, "training", "validation"):
        raise ValueError(f"part={part!r}; expected None, 'training' or 'validation'")
    image = require("PIL.Image", "train")
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"folder: {folder} is not a directory; expected one with photographs ({', '.join(IMAGE_SUFFIXES)})"
        )
    paths = photographs_below(folder)
    if not paths:
        raise ValueError(
            f"folder: no photographs found in {folder}; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
        )
    if part is not None:
        if len(paths) < HELD_BACK:
            raise ValueError(
                f"folder: {len(paths)} photographs in {folder}; expected at least {HELD_BACK}: "
                f"every {HELD_BACK}th is kept for validation"
            )
        paths = [path for i, path in enumerate(paths) if (i % HELD_BACK == HELD_BACK - 1) == (part == "validation")]
    crops = []
    for path in paths:
        photo = to_rgb(open_image(path, str(path)), str(path))
        for box in _square_boxes(*photo.size):
            crop = photo.resize((PHOTO_SIZE, PHOTO_SIZE), image.Resampling.LANCZOS, box=box)
            crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
    return torch.stack(crops)


def _square_boxes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    side = min(width, height)
    first, last = (0, 0, side, side), (width - side, height - side, width, height)
    return [first] if max(width, height) < 1.3 * side else [first, last]


def procedural_textures(count: int, size: int = 256, generator: Generator | None = None) -> Tensor:
    """Colourful patterns with detail at many scales: noise, checkers, stripes, blobs, cells, bricks and dots.

    Args:
        count: How many.
        size: Their side in pixels.
        generator: A CPU generator; without one, a new one seeded with 0.

    Returns:
        Tensor [count, 3, size, size], float32 in [0, 1].
    """
    if count < 1:
        raise ValueError(f"count: received {count}, expected at least 1")
    if size < 8:
        raise ValueError(f"size: received {size}, expected at least 8")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    return torch.stack([_pattern(generator, size) for _ in range(count)])


def _pattern(generator: Generator, size: int) -> Tensor:  # [3, size, size]
    makers = (_noise, _noise, _checker, _stripes, _blobs, _cells, _bricks, _dots)
    mask = makers[integer(generator, 0, len(makers) - 1)](generator, size)
    dark, light = (_noise_colours(generator, size) for _ in range(2))
    light = light + uniforms(generator, -0.3, 0.3, 3, 1, 1).float()
    pattern = torch.lerp(dark, light, mask)
    pattern = pattern + uniform(generator, 0.08, 0.35) * (fractal_noise(generator, size, 8, size // 2) - 0.5)
    return pattern.clamp(0, 1)


def _noise_colours(generator: Generator, size: int) -> Tensor:  # [3, size, size]
    base = uniforms(generator, 0.2, 0.8, 3, 1, 1).float()
    return base + uniform(generator, 0.1, 0.7) * (fractal_noise(generator, size, 2, size // 4, channels=3) - 0.5)


def fractal_noise(generator: Generator, size: int, coarsest: int, finest: int, channels: int = 1) -> Tensor:
    """Noise summed over octaves of `coarsest` to `finest` cells a side.  # [channels, size, size] in [0, 1]"""
    cells = max(coarsest, 2)
    weight, persistence = 1.0, uniform(generator, 0.5, 0.9)
    total = torch.rand(1, channels, cells, cells, generator=generator)
    while cells * 2 <= finest:
        cells, weight = cells * 2, weight * persistence
        total = F.interpolate(total, scale_factor=2, mode="bilinear", align_corners=False)
        total += weight * torch.rand(1, channels, cells, cells, generator=generator)
    low, high = total.amin(), total.amax()
    total = (total - low) / (high - low).clamp_min(1e-6)
    return F.interpolate(total, (size, size), mode="bilinear", align_corners=False)[0]


def _grid(generator: Generator, size: int) -> tuple[Tensor, Tensor]:  # 2 x [size, size]
    """Coordinates in [0, 1], turned by a random angle and bent a little."""
    x, y = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="xy")
    angle = uniform(generator, 0, math.pi)
    bend = uniform(generator, 0, 0.04) * torch.sin(2 * math.pi * (y * uniform(generator, 0.5, 3)))
    return math.cos(angle) * x + math.sin(angle) * y + bend, math.cos(angle) * y - math.sin(angle) * x


def _noise(generator: Generator, size: int) -> Tensor:
    return fractal_noise(generator, size, 2 ** integer(generator, 1, 4), size // 2)


def _checker(generator: Generator, size: int) -> Tensor:
    x, y = _grid(generator, size)
    cells = log_uniform(generator, 4, 24)
    return ((x * cells).floor() + (y * cells * uniform(generator, 0.5, 1.5)).floor()).remainder(2)[None]


def _stripes(generator: Generator, size: int) -> Tensor:
    x, _ = _grid(generator, size)
    wave = torch.sin(2 * math.pi * x * log_uniform(generator, 3, 30) + uniform(generator, 0, 6))
    return (wave * log_uniform(generator, 0.5, 8)).sigmoid()[None]


def _blobs(generator: Generator, size: int) -> Tensor:
    cells = 2 ** integer(generator, 2, 5)
    return ((fractal_noise(generator, size, cells, cells * 2) - 0.5) * 30).sigmoid()


def _cells(generator: Generator, size: int) -> Tensor:
    """Voronoi cells, each with its own shade, under a distance shading."""
    x, y = _grid(generator, size // 2)
    count = integer(generator, 10, 40)
    pixels = torch.stack((x, y), dim=-1).reshape(-1, 2)
    seeds = pixels[torch.randint(len(pixels), (count,), generator=generator)]
    distance, nearest = torch.cdist(pixels, seeds).min(dim=1)
    shade = torch.rand(count, generator=generator)[nearest] * (1 - distance / distance.max().clamp_min(1e-6))
    return F.interpolate(shade.view(1, 1, size // 2, size // 2), (size, size), mode="bilinear")[0]


def _bricks(generator: Generator, size: int) -> Tensor:
    x, y = _grid(generator, size)
    rows, joint = log_uniform(generator, 5, 16), uniform(generator, 0.06, 0.2)
    y = y * rows
    x = x * rows / 2 + 0.5 * y.floor().remainder(2)
    brick = (x.floor() + 37 * y.floor()).long().remainder(101)
    shade = torch.rand(101, generator=generator)[brick]
    return (((x.remainder(1) > joint / 2) & (y.remainder(1) > joint)) * (0.4 + 0.6 * shade))[None]


def _dots(generator: Generator, size: int) -> Tensor:
    x, y = _grid(generator, size)
    cells = log_uniform(generator, 4, 20)
    distance = ((x * cells).remainder(1) - 0.5) ** 2 + ((y * cells).remainder(1) - 0.5) ** 2
    return ((uniform(generator, 0.2, 0.45) ** 2 - distance) * 40).sigmoid()[None]


class TextureSource:
    """Hands out random textures for one clip: mostly photographs where there are some, otherwise procedural.

    Args:
        generator: Draws them.
        photos: [K, 3, S, S], or None.
        plain: Probability that a texture is weak or one small tile repeated.
        procedural_count: Procedural textures to choose from where there are no photographs.
    """

    def __init__(self, generator: Generator, photos: Tensor | None, plain: float = 0.25, procedural_count: int = 4):
        self.generator, self.photos, self.plain = generator, photos, plain
        self.procedural_count = procedural_count if photos is None else 1

    @cached_property
    def procedural(self) -> Tensor:  # [P, 3, S, S], made when the first is drawn
        made = procedural_textures(self.procedural_count, PHOTO_SIZE, self.generator)
        return made if self.photos is None else made.to(self.photos.device)

    def draw(self) -> Tensor:  # [3, S, S] float32 in [0, 1], on the CPU or where the photographs are
        if self.photos is None or chance(self.generator, 0.15):
            texture = self.procedural[integer(self.generator, 0, len(self.procedural) - 1)]
        else:
            texture = self.photos[integer(self.generator, 0, len(self.photos) - 1)]
            texture = texture.float() / 255 if texture.dtype == torch.uint8 else texture.float()
        plain, repeated = chance(self.generator, self.plain), chance(self.generator, 0.4)
        texture = self._turn(texture)
        if plain and repeated:
            texture = self._repeat(texture)
        return self._recolour(texture, weak=plain and not repeated)

    def _turn(self, texture: Tensor) -> Tensor:
        texture = torch.rot90(texture, integer(self.generator, 0, 3), (1, 2))
        return texture.flip(2) if chance(self.generator, 0.5) else texture

    def _repeat(self, texture: Tensor) -> Tensor:
        side = texture.shape[-1]
        tile = max(1, side // 2 ** integer(self.generator, 2, 4))
        row, column = (integer(self.generator, 0, side - tile) for _ in range(2))
        times = -(-side // tile)
        return texture[:, row : row + tile, column : column + tile].repeat(1, times, times)[:, :side, :side]

    def _recolour(self, texture: Tensor, weak: bool) -> Tensor:
        """Another contrast, another tint, at times other colours."""
        contrast = uniform(self.generator, 0.25, 0.6) if weak else uniform(self.generator, 0.7, 1.3)
        tint = uniforms(self.generator, 0.7, 1.15, 3, 1, 1).to(texture)
        if chance(self.generator, 0.25):
            texture = texture[torch.randperm(3, generator=self.generator).to(texture.device)]
        mean = texture.mean()
        return ((mean + contrast * (texture - mean)) * tint).clamp(0, 1)

"""Textures on faces, looked up at the level of detail that a pixel calls for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Materials:
    """A texture for each of F faces, as one table of texels with all mip levels."""

    texels: Tensor  # [R, 3]
    first_row: Tensor  # [F, L] where each level of a face's texture starts
    sides: Tensor  # [L] texels along the side of a level
    scale: Tensor  # [2, F] texture coordinates per unit on the face: a texture spans 1 and is then mirrored
    shift: Tensor  # [2, F]
    density: Tensor  # [F] finest texels per unit of length

    def to(self, device) -> Materials:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


def make_materials(
    textures: list[Tensor],  # [3, S, S] each
    choice: Tensor,  # [F] which texture a face has
    scale: Tensor,  # [2, F] as in Materials
    shift: Tensor,  # [2, F]
    repeats: Tensor,  # [F] how often the texture repeats per unit of length
) -> Materials:
    """Stacks the textures with their mip levels, 2 x 2 means down to a side of 8 or less."""
    side = 2 ** int(math.log2(min(texture.shape[-1] for texture in textures)))
    level = torch.stack([_resized(texture, side) for texture in textures]).permute(0, 2, 3, 1)
    rows, starts, sides, start = [], [], [], 0
    while True:
        rows.append(level.reshape(-1, 3))
        starts.append(start + choice * side * side)
        sides.append(side)
        start += len(rows[-1])
        if side <= 8:
            break
        side //= 2
        level = level[:, ::2] + level[:, 1::2]
        level = (level[:, :, ::2] + level[:, :, 1::2]) / 4
    return Materials(torch.cat(rows), torch.stack(starts, 1), torch.tensor(sides), scale, shift, repeats * sides[0])


def _resized(texture: Tensor, side: int) -> Tensor:  # [3, S, S] -> [3, side, side]
    return texture if texture.shape[-1] == side else F.interpolate(texture[None], (side, side), mode="area")[0]


def lookup(materials: Materials, face: Tensor, uv: Tensor, footprint: Tensor) -> Tensor:
    """Bilinear colour at the mip level that fits the footprint (pixel size in finest texels).

    Args:
        materials: The table.
        face: [M] rows of the per-face tables.
        uv: [2, M] texture coordinates.
        footprint: [M].

    Returns:
        Tensor [M, 3].
    """
    last = len(materials.sides) - 1
    level = (footprint.clamp_min(1).log2() + 0.3).long().clamp_max(last)  # rounds at 0.7: rather sharp than soft
    side = materials.sides[level]
    first = materials.first_row.view(-1)[face * (last + 1) + level]
    limit = side - 1
    uv = (uv.remainder(2) - 1).abs() * side - 0.5
    low = uv.floor()
    weight = uv - low
    low = low.long()
    x0, y0 = torch.minimum(low.clamp_min(0), limit)
    x1, y1 = torch.minimum(low + 1, limit)
    row0, row1 = first + y0 * side, first + y1 * side
    corners = [materials.texels.index_select(0, row) for row in (row0 + x0, row0 + x1, row1 + x0, row1 + x1)]
    weight_x, weight_y = weight[0, :, None], weight[1, :, None]
    return torch.lerp(
        torch.lerp(corners[0], corners[1], weight_x), torch.lerp(corners[2], corners[3], weight_x), weight_y
    )

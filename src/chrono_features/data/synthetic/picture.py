"""From a function that shades single positions to antialiased frames."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RAYS_PER_CHUNK = 1 << 16  # on the CPU: what stays in the cache
EDGE_OFFSETS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))

# frames [F], positions in them [F, 2, P] -> colour [F, 3, P] and the face seen [F, P]
Shade = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def render_frames(shade: Shade, frames: int, size: tuple[int, int], device: torch.device | str) -> Tensor:
    """One sample a pixel, four where neighbouring pixels see different faces.  # [T, 3, H, W]"""
    height, width = size
    rows, columns = torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack((x, y)).view(2, -1)
    chunk = max(1, RAYS_PER_CHUNK // (height * width)) if torch.device(device).type == "cpu" else frames
    return torch.cat(
        [_render(shade, index, pixels, size) for index in torch.arange(frames, device=device).split(chunk)]
    )


def _render(shade: Shade, index: Tensor, pixels: Tensor, size: tuple[int, int]) -> Tensor:  # [F, 3, H, W]
    colour, face = shade(index, pixels.expand(len(index), -1, -1))
    edges = _edge_pixels(face.view(-1, *size))
    if edges.shape[1]:
        centres = pixels[:, edges].transpose(0, 1)  # [F, 2, K]
        offsets = pixels.new_tensor(EDGE_OFFSETS).T[None, :, :, None]
        samples, _ = shade(index, (centres[:, :, None] + offsets).flatten(2))
        smooth = samples.unflatten(2, (len(EDGE_OFFSETS), -1)).mean(dim=2)
        colour = colour.contiguous().scatter(2, edges[:, None].expand(-1, 3, -1), smooth)
    return colour.reshape(-1, 3, *size)


def _edge_pixels(face: Tensor) -> Tensor:  # [F, H, W] -> [F, K] flat pixel indices; frames with fewer are filled up
    edge = torch.zeros_like(face, dtype=torch.bool)
    across, down = face[:, :, 1:] != face[:, :, :-1], face[:, 1:] != face[:, :-1]
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    edge = edge.flatten(1)
    most = int(edge.sum(dim=1).max())
    return edge.float().topk(most, dim=1).indices

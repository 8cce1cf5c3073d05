"""Training batches: synthetic clips, their colours changed, and queries on them. A step's number decides its batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .augment import augment_colour
from .recipes import Stage
from .synthetic import make_clip

# Clips from here on are never trained on: a generator keeps the low 32 bits of its seed, and in these every run of
# training starts at a multiple of 2**26.
VALIDATION_SEED = 2**32 - 2**20
_STRIDE = 2**20  # steps that fit between two seeds of `train`


@dataclass(frozen=True)
class Batch:
    video: Tensor  # (B, T, 3, H, W)
    queries: Tensor  # (B, N, 3) (t, x, y)
    tracks: Tensor  # (B, N, T, 2) pixels
    visible: Tensor  # (B, N, T) bool

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(v.to(device, non_blocking=True) for v in vars(self).values()))


class SyntheticBatches(Dataset[Batch]):
    """Item `step` is the batch of that training step on this process.

    Args:
        stage: Sizes and kinds of clips.
        textures: (K, 3, S, S) photographs, or None for procedural textures alone.
        seed: Another seed gives other clips.
        rank, world: This process among all: each sees clips of its own.
        device: Where clips are made.
        augment: Whether colours are changed.
    """

    def __init__(
        self,
        stage: Stage,
        textures: Tensor | None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        augment: bool = True,
    ) -> None:
        self.stage, self.textures, self.device, self.augment = stage, textures, device, augment
        self.first = seed * _STRIDE * 64 * world + rank * stage.batch
        self.per_step = stage.batch * world

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> Batch:
        clips = [self._clip(self.first + step * self.per_step + i) for i in range(self.stage.batch)]
        return Batch(*(torch.stack(parts) for parts in zip(*clips, strict=True)))

    def _clip(self, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        stage = self.stage
        generator = torch.Generator().manual_seed(seed)
        gap = int(torch.randint(stage.gap[0], stage.gap[1] + 1, (), generator=generator))
        clip = make_clip(
            seed,
            frames=stage.frames,
            size=stage.size,
            points=stage.queries,
            scene=stage.scene,
            textures=self.textures,
            device=self.device,
            frame_step=float(gap),
        )
        video = augment_colour(clip.video, generator) if self.augment else clip.video
        return video, draw_queries(clip.tracks, clip.visible, generator), clip.tracks, clip.visible


def draw_queries(
    tracks: Tensor,  # (N, T, 2)
    visible: Tensor,  # (N, T)
    generator: torch.Generator,
) -> Tensor:
    """One query a track, (N, 3): a random one of the frames in which it is visible."""
    order = torch.rand(visible.shape, generator=generator).to(visible.device)
    frame = torch.where(visible, order, -1.0).argmax(dim=1)
    position = tracks.gather(1, frame[:, None, None].expand(-1, 1, 2))[:, 0]
    return torch.cat([frame[:, None].to(position), position], dim=-1)

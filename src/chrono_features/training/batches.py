"""Training batches: synthetic clips, their colours changed, and queries on them. A step's number decides its batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.synthetic import make_clip
from .augment import augment_colour
from .recipes import Stage

# Clips from here on are never trained on: a generator keeps the low 32 bits of its seed, and in these every run of
# training starts at a multiple of 2**26.
VALIDATION_SEED = 2**32 - 2**20
_STRIDE = 2**20  # steps that fit between two seeds of `train`


@dataclass(frozen=True)
class Batch:
    video: Tensor  # (B, T, 3, H, W) uint8
    queries: Tensor  # (B, N, 3) (t, x, y)
    tracks: Tensor  # (B, N, T, 2) pixels
    visible: Tensor  # (B, N, T) bool

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(v.to(device, non_blocking=True) for v in vars(self).values()))

    def pin_memory(self) -> Batch:
        return Batch(*(v.pin_memory() for v in vars(self).values()))


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
        self.stage, self.device, self.augment = stage, device, augment
        self.textures = textures  # moved when the first clip is made: by then this may be in a process of its own
        self.first = seed * _STRIDE * 64 * world + rank * stage.batch
        self.per_step = stage.batch * world

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> Batch:
        first = self.first + step * self.per_step
        least, most = self.stage.frames
        draw = torch.Generator().manual_seed(step)  # the same on every process
        frames = int(torch.randint(least, most + 1, (), generator=draw))
        clips = [self._clip(first + i, frames) for i in range(self.stage.batch)]
        return Batch(*(torch.stack(parts) for parts in zip(*clips, strict=True)))

    def _clip(self, seed: int, frames: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        stage = self.stage
        if self.textures is not None:
            self.textures = self.textures.to(self.device)
        generator = torch.Generator().manual_seed(seed)
        slow, fast = stage.gap
        gap = slow * (fast / slow) ** float(torch.rand((), generator=generator))
        clip = make_clip(
            seed,
            frames=frames,
            size=stage.size,
            points=stage.tracks,
            scene=stage.scene,
            textures=self.textures,
            device=self.device,
            frame_step=gap,
            variety=stage.variety,
        )
        video = augment_colour(clip.video, generator) if self.augment else clip.video
        video = (video * 255).round().byte()
        queries = draw_queries(clip.tracks, clip.visible, generator, stage.views)
        return video, queries, clip.tracks.repeat(stage.views, 1, 1), clip.visible.repeat(stage.views, 1)


def draw_queries(
    tracks: Tensor,  # (N, T, 2)
    visible: Tensor,  # (N, T)
    generator: torch.Generator,
    views: int = 1,
) -> Tensor:
    """Queries in random frames in which the tracks are visible.

    Args:
        tracks, visible: As above; every track is visible in some frame.
        generator: Draws the frames.
        views: Queries a track, in different frames as far as there are enough: with two of them a pair of frames is
            matched in both directions.

    Returns:
        (views * N, 3): one for each track, then another for each, ...
    """
    order = torch.rand(visible.shape, generator=generator).to(visible.device)
    ranked = torch.where(visible, order, -1.0).argsort(dim=1, descending=True)
    seen = visible.sum(dim=1).clamp(min=1)
    frames = [ranked.gather(1, (view % seen)[:, None])[:, 0] for view in range(views)]
    rows = torch.arange(len(tracks), device=tracks.device)
    return torch.cat([torch.cat([f[:, None].to(tracks), tracks[rows, f]], dim=1) for f in frames])

"""Training batches: synthetic clips, their colours changed, and queries on them. A step's number decides its batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.synthetic import load_textures, make_clip
from .augment import augment_colour
from .recipes import Recipe, Stage

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
        shortest, longest = self.stage.frames
        draw = torch.Generator().manual_seed(step)  # the same on every process
        frames = int(torch.randint(shortest, longest + 1, (), generator=draw))
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
        video = augment_colour(clip.frames, generator) if self.augment else clip.frames
        video = (video * 255).round().byte()
        queries = draw_queries(clip.xy, clip.visible, generator, stage.views)
        return video, queries, clip.xy.repeat(stage.views, 1, 1), clip.visible.repeat(stage.views, 1)


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


class Photographs:
    """Textures for training, and those that are kept for validation."""

    def __init__(self, folder: Path) -> None:
        self.training, self.validation = (load_textures(folder, part) for part in ("training", "validation"))


def clips_of(
    plan: Recipe,
    index: int,
    seed: int,
    photographs: Photographs | None,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> SyntheticBatches:
    """The clips of a stage, or, after the last, those for the visibility head; made on a GPU where there is one."""
    stages = [*plan.stages, plan.visibility]
    stage = stages[index]
    assert stage is not None
    where = device if device.type == "cuda" else "cpu"
    textures = None if photographs is None else photographs.training
    return SyntheticBatches(stage, textures, seed * len(stages) + index, rank, world, where)


def loader(batches: Dataset[Batch], workers: int, device: str) -> DataLoader[Batch]:
    """Batches on the host, made by some processes ahead of time."""
    on_gpu = device == "cuda"
    return DataLoader(
        batches,
        batch_size=None,
        collate_fn=_on_host,
        num_workers=workers,
        multiprocessing_context="spawn" if on_gpu and workers else None,  # CUDA does not survive a fork
        pin_memory=on_gpu,
    )


def _on_host(batch: Any) -> Any:
    return Batch(*(v.cpu() for v in vars(batch).values()))  # from process to process; `to` would not wait for the GPU

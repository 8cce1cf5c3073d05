"""What is trained and how: a recipe is a model and the stages it passes."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ChronoConfig


@dataclass(frozen=True)
class Stage:
    """A part of a training run with an optimiser and a schedule of its own.

    Attributes:
        steps: Optimiser steps.
        frames: Frames a clip.
        gap: Least and greatest time between frames: 2 doubles the speed of everything.
        size: (height, width) of the frames.
        grid: Token grid.
        batch: Clips a step and process.
        queries: Tracks a clip.
        learning_rate: Peak of the one-cycle schedule.
        adapters: Whether the temporal adapters are switched on.
        scene: Kind of synthetic scene, see `make_clip`.
        warm_up: Share of the steps in which the learning rate rises.
        cross_entropy: Weight of the full-grid cross-entropy.
        huber: Weight of the Huber loss on positions at 256 x 256.
        visibility: Weight of the two visibility losses.
        visibility_only: Whether the visibility head alone learns: its few weights want a far greater learning rate.
        weight_decay, clip_gradient: Of AdamW, and the norm that gradients are clipped to.
    """

    name: str
    steps: int
    frames: int
    gap: tuple[int, int]
    size: tuple[int, int]
    grid: tuple[int, int]
    batch: int
    queries: int
    learning_rate: float
    adapters: bool = True
    scene: str = "mixed"
    warm_up: float = 0.03
    cross_entropy: float = 1.0
    huber: float = 0.02
    visibility: float = 0.2
    visibility_only: bool = False
    weight_decay: float = 1e-4
    clip_gradient: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A model and its stages. `config` is None where the model to start from is named by the user."""

    name: str
    stages: tuple[Stage, ...]
    config: ChronoConfig | None = None


TINY = Recipe(
    name="tiny",
    config=ChronoConfig(
        vit="vit_tiny_patch16_224",
        vit_kwargs={
            "img_size": 256,
            "patch_size": 8,
            "embed_dim": 144,
            "depth": 4,
            "num_heads": 3,
            "class_token": False,
            "global_pool": "",
            "pos_embed": "none",
        },
        grid=(32, 32),
        stem="conv",
        neck="x2",
        out_channels=96,
        norm="token",
        adapter_channels=64,
        freeze_vit=False,
        radius=3.0,
    ),
    stages=(
        # Single frames first: matching has to exist before time can help it.
        Stage(
            name="frames",
            steps=3200,
            frames=3,
            gap=(1, 4),
            size=(128, 128),
            grid=(16, 16),
            batch=4,
            queries=64,
            learning_rate=8e-4,
            adapters=False,
        ),
        Stage(
            name="clips",
            steps=1100,
            frames=8,
            gap=(1, 3),
            size=(192, 192),
            grid=(24, 24),
            batch=1,
            queries=128,
            learning_rate=4e-4,
        ),
        Stage(
            name="visibility",
            steps=300,
            frames=12,
            gap=(1, 3),
            size=(192, 192),
            grid=(24, 24),
            batch=1,
            queries=256,
            learning_rate=0.3,
            cross_entropy=0.0,
            huber=0.0,
            visibility=1.0,
            visibility_only=True,
            weight_decay=0.0,
            clip_gradient=10.0,
        ),
    ),
)

# The paper's training, on synthetic clips in the place of Kubric's: new adapters on a frozen, pretrained ViT.
ADAPTERS = Recipe(
    name="adapters",
    stages=(
        Stage(
            name="clips",
            steps=100_000,
            frames=24,
            gap=(1, 2),
            size=(256, 256),
            grid=(64, 64),
            batch=1,
            queries=256,
            learning_rate=1e-4,
            warm_up=0.003,
            cross_entropy=0.0,
            huber=0.05,
            visibility=1.0,
        ),
    ),
)

RECIPES = {recipe.name: recipe for recipe in (TINY, ADAPTERS)}

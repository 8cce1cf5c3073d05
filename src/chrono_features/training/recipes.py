"""What is trained and how: a recipe is a model and the stages it passes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..checks import check_integer, is_integer, refusal
from ..config import ChronoConfig
from ..data.synthetic import Variety


@dataclass(frozen=True)
class Stage:
    """A part of a training run with an optimiser and a schedule of its own.

    Attributes:
        steps: Optimiser steps.
        frames: Min and max number of frames a clip; each step draws one.
        gap: Min and max time between frames: 2 doubles the speed of everything.
        size: (height, width) of the frames.
        grid: Token grid.
        batch: Clips a step and process.
        tracks: Tracks a clip.
        learning_rate: Peak of the one-cycle schedule.
        views: Queries a track, in different frames: with two of them, pairs are matched in both directions.
        adapters: Whether the temporal adapters are switched on.
        frames_after: Numbers of future frames in the adapters' window, one of which is drawn at every step, so that
            one model serves whole clips, short delays and none; empty leaves the configuration's window.
        scene: Kind of synthetic scene, see `make_clip`.
        variety: How varied the scenes are.
        warm_up: Share of the steps in which the learning rate rises.
        cross_entropy: Weight of the full-grid cross-entropy, at the first and at the last step.
        huber: Weight of the Huber loss on positions at 256 x 256.
        visibility: Weight of the two visibility losses.
        balanced: Whether hidden and visible points weigh the same in them.
        weight_decay, clip_gradient: Of AdamW, and the norm that gradients are clipped to.

    Raises:
        ValueError: A pair is none.
    """

    name: str
    steps: int
    frames: tuple[int, int]
    gap: tuple[float, float]
    size: tuple[int, int]
    grid: tuple[int, int]
    batch: int
    tracks: int
    learning_rate: float
    views: int = 1
    adapters: bool = True
    frames_after: tuple[int, ...] = ()
    scene: str = "mixed"
    variety: Variety = field(default_factory=Variety)
    warm_up: float = 0.03
    cross_entropy: tuple[float, float] = (1.0, 1.0)
    huber: float = 0.02
    visibility: float = 0.2
    balanced: bool = False
    weight_decay: float = 1e-4
    clip_gradient: float = 1.0

    def __post_init__(self) -> None:
        for name in ("frames", "gap", "size", "grid", "cross_entropy"):
            if not (isinstance(getattr(self, name), tuple) and len(getattr(self, name)) == 2):
                raise ValueError(f"{name}={getattr(self, name)!r}; expected two numbers")


@dataclass(frozen=True)
class Recipe:
    """A model and its stages.

    Attributes:
        stages: In their order.
        config: The model; None where the one to start from is named by the user.
        visibility: Clips, as many as it has steps, that the visibility head is fitted to in the end; None leaves the
            head as the stages trained it.
    """

    name: str
    stages: tuple[Stage, ...]
    config: ChronoConfig | None = None
    visibility: Stage | None = None

    def override(
        self,
        *,
        steps: int | None = None,
        batch: int | None = None,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        grid: tuple[int, int] | None = None,
        tracks: int | None = None,
    ) -> Recipe:
        """The same with other sizes in all stages; None leaves one, and `frames` is the length of all clips.

        Raises:
            ValueError: A number is out of range.
        """
        for name, value in (("steps", steps), ("batch", batch), ("tracks", tracks)):
            if value is not None:
                check_integer(name, value, 1)
        if frames is not None and not is_integer(frames, 2):
            raise refusal("frames", frames, "an integer, 2 or more")
        for name, pair in (("size", size), ("grid", grid)):
            if pair is not None and not _is_integer_pair(pair):
                raise refusal(name, pair, "two positive integers (height, width)")
        clip_length = None if frames is None else (frames, frames)
        sizes = {"steps": steps, "batch": batch, "frames": clip_length, "size": size, "grid": grid, "tracks": tracks}
        changes: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
        stages = tuple(replace(stage, **changes) for stage in self.stages)
        return replace(self, stages=stages, visibility=self.visibility and replace(self.visibility, **changes))


def _is_integer_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(is_integer(v, 1) for v in value)


TINY = Recipe(
    name="tiny",
    config=ChronoConfig(
        vit="vit_tiny_patch16_224",
        vit_kwargs={
            "img_size": 256,
            "patch_size": 8,
            "embed_dim": 192,
            "depth": 6,
            "num_heads": 3,
            "class_token": False,
            "global_pool": "",
            "pos_embed": "none",
        },
        grid=(40, 40),  # finer than in training, which held-out clips like better
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
            steps=700,
            frames=(16, 16),
            gap=(0.7, 8),
            size=(128, 128),
            grid=(16, 16),
            batch=24,
            tracks=128,
            views=2,
            learning_rate=1e-3,
            adapters=False,
            variety=Variety(blackout=0.0),
            balanced=True,
        ),
        Stage(
            name="clips",
            steps=900,
            frames=(8, 24),
            gap=(0.7, 4),
            size=(256, 256),
            grid=(32, 32),
            batch=24,
            tracks=128,
            views=2,
            learning_rate=5e-4,
            frames_after=(0, 1, 3, 6),
            variety=Variety(covers=0.7, blackout=0.25),
            cross_entropy=(1.0, 0.5),
            huber=0.04,
            balanced=True,
        ),
    ),
    visibility=Stage(
        name="visibility",
        steps=120,
        frames=(8, 24),
        gap=(0.7, 3),
        size=(256, 256),
        grid=(40, 40),
        batch=1,
        tracks=256,
        learning_rate=0.0,
    ),
)

# The paper's training, on synthetic clips instead of Kubric's: new adapters on a frozen, pretrained ViT.
ADAPTERS = Recipe(
    name="adapters",
    stages=(
        Stage(
            name="clips",
            steps=100_000,
            frames=(24, 24),
            gap=(1, 2),
            size=(256, 256),
            grid=(64, 64),
            batch=1,
            tracks=256,
            learning_rate=1e-4,
            warm_up=0.003,
            cross_entropy=(0.0, 0.0),
            huber=0.05,
            visibility=1.0,
        ),
    ),
)

RECIPES = {recipe.name: recipe for recipe in (TINY, ADAPTERS)}

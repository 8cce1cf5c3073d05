"""The checkpoint from which a stopped run resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from ..files import write_beside
from ..weights import load_plain
from .batches import Photographs
from .recipes import Recipe

CHECKPOINT = "checkpoint.pt"


class Checkpoint(TypedDict):
    """What `checkpoint.pt` holds."""

    run: str  # identity of the run
    stage: int  # index in the recipe
    step: int  # steps of the stage that are done
    model: dict[str, Tensor]  # of the trainee
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    average: dict[str, Tensor]
    best: tuple[float, dict[str, Tensor]]


def run_identity(
    recipe: Recipe,
    seed: int,
    model: str | None,
    photographs: Photographs | None,
    processes: int,
    precision: str,
) -> str:
    """What has to be the same for a run to resume from a checkpoint."""
    return json.dumps(
        {
            "stages": [dataclasses.asdict(stage) for stage in (*recipe.stages, recipe.visibility) if stage],
            "config": None if recipe.config is None else recipe.config.to_dict(),
            "seed": seed,
            "model": model,
            "photographs": 0 if photographs is None else len(photographs.training),
            "processes": processes,
            "precision": precision,
        }
    )


def save_checkpoint(out: Path, checkpoint: Checkpoint) -> None:
    with write_beside(out / CHECKPOINT) as file:
        torch.save(checkpoint, file)


def load_checkpoint(out: Path, identity: str) -> Checkpoint | None:
    """The checkpoint of a run, or None where there is none yet; ValueError if it is of another run."""
    path = out / CHECKPOINT
    if not path.exists():
        return None
    saved = load_plain(path)
    if not isinstance(saved, dict) or saved.get("run") != identity:
        raise ValueError(
            f"{path} belongs to another recipe, model, seed or version; expected an empty folder or resume=False"
        )
    return cast(Checkpoint, saved)

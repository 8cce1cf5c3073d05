"""How good a model in training is, on clips and photographs that are never trained on."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..data.synthetic import VALIDATION_SEED
from .batches import Photographs, SyntheticBatches
from .recipes import Stage
from .trainee import Trainee

VALIDATION_CLIPS = 32


@torch.no_grad()
def validate(
    accelerator: Any,
    trainee: Trainee,
    stage: Stage,
    photographs: Photographs | None,
) -> dict[str, float]:
    """Returns the share of points within 1 … 16 px at 256 x 256, and the visibility loss, over all processes."""
    stage = dataclasses.replace(stage, steps=-(-VALIDATION_CLIPS // stage.batch))
    textures = None if photographs is None else photographs.validation
    device = accelerator.device if accelerator.device.type == "cuda" else "cpu"
    batches = SyntheticBatches(stage, textures, device=device, augment=False)
    batches.first = VALIDATION_SEED
    trainee.eval()
    trainee.look_ahead(None)
    sums = torch.zeros(2, device=accelerator.device)
    for i in range(accelerator.process_index, len(batches), accelerator.num_processes):
        losses = trainee(batches[i].to(accelerator.device), stage)
        sums += torch.stack([losses["delta"], losses["visibility"]])
    delta, visibility = (accelerator.reduce(sums, "sum") / len(batches)).tolist()
    return {"validation_delta": delta, "validation_visibility": visibility}

"""One stage of a recipe: optimiser, schedule, steps, and when to log, validate and save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Subset

from ..progress import progress
from .averages import AveragedWeights
from .batches import Batch, Photographs, clips_of, loader
from .logs import RunLog
from .recipes import Recipe
from .resume import Checkpoint, save_checkpoint
from .trainee import Trainee
from .validation import validate

LOG_EVERY = 25  # steps
CHECKPOINT_EVERY = 100
VALIDATE_EVERY = 500


@dataclass(frozen=True)
class Run:
    """What the stages of a run share."""

    accelerator: Any
    recipe: Recipe
    trainee: Trainee
    photographs: Photographs | None
    out: Path
    seed: int
    workers: int
    identity: str
    log: RunLog


class StageRun:
    """The stage at `index` of the recipe of a run."""

    def __init__(self, run: Run, index: int) -> None:
        self.run = run
        self.index = index
        self.stage = run.recipe.stages[index]
        self.accelerator = run.accelerator
        self.trainee = run.trainee
        self.accelerator.free_memory()  # or a stage would unscale the gradients of the one before
        self.trainee.train_for(self.stage)
        trained = {name: p for name, p in self.trainee.named_parameters() if p.requires_grad}
        rate = self.stage.learning_rate
        optimizer = torch.optim.AdamW(trained.values(), rate, weight_decay=self.stage.weight_decay, fused=True)
        self.scheduler = OneCycleLR(
            optimizer, rate, self.stage.steps, pct_start=self.stage.warm_up, cycle_momentum=False
        )
        self.model, self.optimizer = self.accelerator.prepare(self.trainee, optimizer)
        self.weights = AveragedWeights(trained)

    def train(self, saved: Checkpoint | None) -> None:
        """Does the steps of the stage, all of them or those after a checkpoint."""
        first = 0 if saved is None else self._resume(saved)
        steps = self.stage.steps
        on_cpu = self.accelerator.device.type == "cpu"
        is_main = self.accelerator.is_main_process
        summary = ""
        with progress(self.stage.name, enabled=is_main, line_per_step=True) as update:
            update(first, steps)
            for step, batch in enumerate(self._batches(first), start=first + 1):
                losses = self._step(step, batch)
                self.weights.update(step)
                if step % LOG_EVERY == 0 or on_cpu:  # reading a number waits for the GPU
                    metrics = {name: float(value) for name, value in losses.items()}
                    summary = f"total {metrics['total']:.3f}  delta {metrics['delta']:.3f}"
                if step % LOG_EVERY == 0:
                    self.run.log.write(self.index, step, metrics)
                update(step, steps, summary)
                if step % VALIDATE_EVERY == 0 or step == steps:
                    self._validate(step)
                if is_main and (step % CHECKPOINT_EVERY == 0 or step == steps):
                    save_checkpoint(self.run.out, self._checkpoint(step))

    def save_model(self) -> None:
        """Saves the best averaged model, with the temperature that it has learned; the next stage starts from it."""
        if not self.weights.best[1]:
            raise ValueError(f"stage {self.stage.name} diverged: it never had a finite validation score")
        self.weights.use_best()
        self.trainee.look_ahead(None)
        backbone = self.trainee.backbone
        temperature = float(self.trainee.log_temperature.detach().exp())
        backbone.config = backbone.config.replace(temperature=round(temperature, 3))
        if self.accelerator.is_main_process:
            backbone.save_pretrained(self.run.out / self.stage.name)

    def _resume(self, saved: Checkpoint) -> int:
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self.weights.load(saved["average"], saved["best"])
        return saved["step"]

    def _batches(self, first: int) -> DataLoader[Batch]:
        accelerator = self.accelerator
        batches = clips_of(
            self.run.recipe,
            self.index,
            self.run.seed,
            self.run.photographs,
            accelerator.device,
            accelerator.process_index,
            accelerator.num_processes,
        )
        return loader(Subset(batches, range(first, self.stage.steps)), self.run.workers, accelerator.device.type)

    def _step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        self.model.train()
        if self.stage.frames_after:
            draw = torch.Generator().manual_seed(step + 2**31)  # not the draw of the clips' length
            choice = int(torch.randint(len(self.stage.frames_after), (), generator=draw))
            self.trainee.look_ahead(self.stage.frames_after[choice])
        progress_of_stage = (step - 1) / max(self.stage.steps - 1, 1)
        losses = self.model(batch.to(self.accelerator.device), self.stage, progress_of_stage)
        self.accelerator.backward(losses["total"])
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.stage.clip_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return {name: value.detach() for name, value in losses.items()}

    def _validate(self, step: int) -> None:
        """Measures the averaged weights, and keeps the best."""
        with self.weights.in_use():
            scores = validate(self.accelerator, self.trainee, self.stage, self.run.photographs)
        self.run.log.write(self.index, step, scores)
        self.weights.score(scores["validation_delta"])

    def _checkpoint(self, step: int) -> Checkpoint:
        return {
            "run": self.run.identity,
            "stage": self.index,
            "step": step,
            "model": self.trainee.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": self.weights.average,
            "best": self.weights.best,
        }

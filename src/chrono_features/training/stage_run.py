"""One stage of a recipe: optimiser, schedule, averaged weights, validation, log and checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..data.synthetic import VALIDATION_SEED
from ..files import naming, open_regular, write_beside
from ..progress import progress
from .batches import Batch, Photographs, SyntheticBatches, clips_of, loader
from .recipes import Recipe
from .trainee import Trainee

LOG_EVERY = 25  # steps
CHECKPOINT_EVERY = 100
VALIDATE_EVERY = 500
VALIDATION_CLIPS = 32
AVERAGE_DECAY = 0.998  # of the moving average of the weights


class StageRun:
    """One stage of one recipe: optimiser, schedule, log and checkpoints."""

    def __init__(
        self,
        accelerator: Any,
        trainee: Trainee,
        plan: Recipe,
        index: int,
        seed: int,
        photographs: Photographs | None,
        out: Path,
        identity: str,
    ) -> None:
        self.accelerator = accelerator
        self.trainee = trainee
        self.plan = plan
        self.index = index
        self.seed = seed
        self.photographs = photographs
        self.out = out
        self.identity = identity
        self.stage = plan.stages[index]
        self.steps_before = sum(stage.steps for stage in plan.stages[:index])
        accelerator.free_memory()  # or a stage would unscale the gradients of the one before
        trainee.train_for(self.stage)
        parameters = [p for p in trainee.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, self.stage.learning_rate, weight_decay=self.stage.weight_decay, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.stage.learning_rate, self.stage.steps, pct_start=self.stage.warm_up, cycle_momentum=False
        )
        self.model, self.optimizer = accelerator.prepare(trainee, optimizer)
        self.trained = {name: p for name, p in trainee.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.best: tuple[float, dict[str, Tensor]] = (-math.inf, {})

    def train(self, saved: dict[str, Any] | None, workers: int) -> None:
        first = 0
        if saved:
            first, self.best = saved["step"], saved["best"]
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scheduler.load_state_dict(saved["scheduler"])
            self.average = {name: saved["average"][name].to(p.device) for name, p in self.trained.items()}
        batches = self._batches(first, workers)
        on_cpu = self.accelerator.device.type == "cpu"
        summary = ""
        is_main = self.accelerator.is_main_process
        with progress(self.stage.name, enabled=is_main, line_per_step=True) as update:
            update(first, self.stage.steps)
            for step, batch in enumerate(batches, start=first + 1):
                losses = self._step(step, batch)
                self._update_average(step)
                if step % LOG_EVERY == 0 or on_cpu:  # reading a number waits for the GPU
                    metrics = {name: float(value) for name, value in losses.items()}
                    summary = "  ".join(f"{name} {metrics[name]:.3f}" for name in ("total", "delta"))
                if step % LOG_EVERY == 0:
                    self._log(step, metrics)
                update(step, self.stage.steps, summary)
                if step % VALIDATE_EVERY == 0 or step == self.stage.steps:
                    self._validate(step)
                if step % CHECKPOINT_EVERY == 0 or step == self.stage.steps:
                    self._save_checkpoint(step)

    def save_model(self) -> None:
        """Saves the best averaged model, with the temperature that it has learned; the next stage starts from it."""
        if not self.best[1]:
            raise ValueError(f"stage {self.stage.name} diverged: it never had a finite validation score")
        for name, parameter in self.trained.items():
            parameter.data.copy_(self.best[1][name])
        self.trainee.look_ahead(None)
        backbone = self.trainee.backbone
        backbone.config = backbone.config.replace(
            temperature=round(float(self.trainee.log_temperature.detach().exp()), 3)
        )
        if self.accelerator.is_main_process:
            backbone.save_pretrained(self.out / self.stage.name)

    def _batches(self, first: int, workers: int) -> DataLoader[Batch]:
        a = self.accelerator
        ranks = a.process_index, a.num_processes
        data = clips_of(self.plan, self.index, self.seed, self.photographs, a.device, *ranks)
        return loader(Subset(data, range(first, self.stage.steps)), workers, a.device.type)

    def _step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        self.model.train()
        if self.stage.frames_after:
            draw = torch.Generator().manual_seed(step + 2**31)  # not the draw of the clips' length
            choice = int(torch.randint(len(self.stage.frames_after), (), generator=draw))
            self.trainee.look_ahead(self.stage.frames_after[choice])
        losses = self.model(batch.to(self.accelerator.device), self.stage, (step - 1) / max(self.stage.steps - 1, 1))
        self.accelerator.backward(losses["total"])
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.stage.clip_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        decay = min(AVERAGE_DECAY, (1 + step) / (10 + step))  # a short average at first: it forgets the start soon
        torch._foreach_lerp_(list(self.average.values()), list(self.trained.values()), 1 - decay)

    def _swap_average(self) -> None:
        """Exchanges the weights and their average."""
        for name, parameter in self.trained.items():
            parameter.data, self.average[name] = self.average[name], parameter.data

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        """Measures the averaged weights on clips and photographs that are never trained on, and keeps the best.

        Better is a greater share of points within 1 … 16 px at 256 x 256.
        """
        stage = dataclasses.replace(self.stage, steps=-(-VALIDATION_CLIPS // self.stage.batch))
        textures = None if self.photographs is None else self.photographs.validation
        device = self.accelerator.device if self.accelerator.device.type == "cuda" else "cpu"
        data = SyntheticBatches(stage, textures, device=device, augment=False)
        data.first = VALIDATION_SEED
        self._swap_average()
        self.trainee.eval()
        self.trainee.look_ahead(None)
        mine = range(self.accelerator.process_index, len(data), self.accelerator.num_processes)
        sums = torch.zeros(2, device=self.accelerator.device)
        for i in mine:
            losses = self.trainee(data[i].to(self.accelerator.device), stage)
            sums += torch.stack([losses["delta"], losses["visibility"]])
        delta, visibility = (self.accelerator.reduce(sums, "sum") / len(data)).tolist()
        self._log(step, {"validation_delta": delta, "validation_visibility": visibility})
        if delta > self.best[0]:
            self.best = delta, {name: p.detach().clone() for name, p in self.trained.items()}
        self._swap_average()

    def _log(self, step: int, values: dict[str, float]) -> None:
        self.accelerator.log({f"{self.stage.name}/{k}": v for k, v in values.items()}, step=self.steps_before + step)
        if self.accelerator.is_main_process:
            line = {"stage": self.stage.name, "step": step, **{k: round(v, 5) for k, v in values.items()}}
            log = self.out / "log.jsonl"
            descriptor = open_regular(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # a link may lead to any file
            with naming(log), os.fdopen(descriptor, "a") as file:
                file.write(json.dumps(line) + "\n")

    def _save_checkpoint(self, step: int) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "run": self.identity,
            "stage": self.index,
            "step": step,
            "model": self.trainee.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": self.average,
            "best": self.best,
        }
        with write_beside(self.out / "checkpoint.pt") as file:
            torch.save(state, file)

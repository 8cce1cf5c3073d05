"""The training loop: one command for one CPU, one GPU or many (through accelerate), which resumes where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..backbone import ChronoBackbone
from ..checkpoints import DINOV2_VITS
from ..checks import check_integer
from ..extras import require
from ..files import write_beside
from ..progress import Update, progress
from ..weights import load_plain
from .batches import Batch, Photographs, SyntheticBatches, clips_of
from .memory import check_memory
from .recipes import RECIPES, Recipe, Stage
from .stage_run import StageRun
from .trainee import Trainee
from .visibility import fit_visibility


def train(
    recipe: Recipe | str,
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    textures: str | os.PathLike[str] | None = None,
    seed: int = 0,
    steps: int | None = None,
    batch: int | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    grid: tuple[int, int] | None = None,
    tracks: int | None = None,
    resume: bool = True,
    mixed_precision: str | None = None,
    workers: int | None = None,
    compile: bool = False,
    force: bool = False,
) -> ChronoBackbone:
    """Train a model on synthetic clips and save it in `out`, with a log and a checkpoint to resume from.

    Args:
        recipe: A `Recipe` or the name of one in `RECIPES`.
        out: Folder for `checkpoint.pt`, logs (`log.jsonl`, and `tensorboard/`) and, at the end of each stage, its
            model: of the moving averages of the weights, the one that was best on clips kept for validation.
        model: What `from_pretrained` takes; needed by recipes without a configuration of their own.
        textures: Folder of at least five photographs, every fifth of which is kept for validation; without it all
            textures are procedural.
        seed: Of weights and clips.
        steps, batch, frames, size, grid, tracks: Override those of every stage, see `Stage`; `frames` is one number.
        resume: Whether to resume from `out`'s checkpoint where there is one.
        mixed_precision: "no", "bf16" or "fp16"; None takes bf16 on CUDA and none elsewhere.
        workers: Processes that make clips while the model trains, on the GPU where there is one. None takes one on a
            CPU and, with GPUs, one for each processor but two, shared among the GPUs. With a GPU they start anew, so a
            script that calls this needs `if __name__ == "__main__":`.
        compile: Whether `torch.compile` compiles the blocks of the ViT.
        force: Whether to train even if the run is estimated to need more memory than there is.

    Returns:
        The trained model, in eval mode.

    Raises:
        ValueError: Unknown recipe, a missing model, an argument out of range, a checkpoint of another run, or a run
            that does not fit into memory.
        ImportError: The train extra is missing.
    """
    sizes = {"steps": steps, "batch": batch, "frames": frames, "size": size, "grid": grid, "tracks": tracks}
    plan = _resolve(recipe, model).override(**sizes)
    if workers is not None:
        check_integer("workers", workers)
    accelerator = _accelerator(Path(out), mixed_precision)
    run = _Run(accelerator, plan, Path(out), model, textures, seed, workers, resume, force)
    if compile:
        run.trainee.compile_blocks()
    return run.train()


def _accelerator(out: Path, mixed_precision: str | None) -> Any:
    for module in ("tensorboard", "rich.progress"):
        require(module, "train")
    if mixed_precision is None:
        mixed_precision = "bf16" if torch.cuda.is_available() else "no"
    # Accelerate would take several processes without a GPU for so many runs of one.
    several_on_cpu = not torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = require("accelerate", "train").Accelerator(
        mixed_precision=mixed_precision,
        cpu=several_on_cpu,
        log_with="tensorboard",
        project_dir=out,
    )
    if accelerator.device.type == "cpu":
        torch.set_flush_denormal(True)  # zero-initialised layers make denormals, which slow Adam tenfold
    return accelerator


class _Run:
    """A recipe's stages one after the other, from the start or from a checkpoint."""

    def __init__(
        self,
        accelerator: Any,
        plan: Recipe,
        out: Path,
        model: str | None,
        textures: str | os.PathLike[str] | None,
        seed: int,
        workers: int | None,
        resume: bool,
        force: bool,
    ) -> None:
        self.accelerator = accelerator
        self.plan = plan
        self.out = out
        self.seed = seed
        if workers is None:
            workers = _free_processors() if accelerator.device.type == "cuda" else 1
        self.workers = workers
        self.photographs = None if textures is None else Photographs(Path(textures))
        setting = {"processes": accelerator.num_processes, "precision": accelerator.mixed_precision}
        self.identity = _identity(plan, seed, model, self.photographs, setting)
        self.saved = _load_checkpoint(out / "checkpoint.pt", self.identity) if resume else None
        torch.manual_seed(seed)
        self.trainee = Trainee(_start(model) if plan.config is None else ChronoBackbone(plan.config))
        if self.saved:
            self.trainee.load_state_dict(self.saved["model"])
        self.first_stage = self.saved["stage"] if self.saved else 0
        with accelerator.autocast():
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
            self.trainee.to(accelerator.device)
            check_memory(self.trainee, plan.stages[self.first_stage :], accelerator.device, processes, force)

    def train(self) -> ChronoBackbone:
        self._open_logs()
        with _tf32(self.accelerator.mixed_precision != "no"):
            for index in range(self.first_stage, len(self.plan.stages)):
                run = StageRun(
                    self.accelerator,
                    self.trainee,
                    self.plan,
                    index,
                    self.seed,
                    self.photographs,
                    self.out,
                    self.identity,
                )
                run.train(self.saved if index == self.first_stage else None, self.workers)
                run.save_model()
        if self.plan.visibility is not None:
            self._fit_visibility(self.plan.visibility)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return self.trainee.backbone.eval()

    def _open_logs(self) -> None:
        """Starts new logs, or takes from old ones what was done after the checkpoint and will be done again."""
        self.out.mkdir(parents=True, exist_ok=True)
        log = self.out / "log.jsonl"
        done = 0
        if self.saved:
            done = sum(stage.steps for stage in self.plan.stages[: self.first_stage]) + self.saved["step"]
        if self.accelerator.is_main_process:
            if self.saved is None:
                log.unlink(missing_ok=True)
                shutil.rmtree(self.out / "tensorboard", ignore_errors=True)
            elif log.is_file():
                names = [stage.name for stage in self.plan.stages]
                _trim_log(log, names, self.first_stage, self.saved["step"])
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": done + 1}})

    def _fit_visibility(self, stage: Stage) -> None:
        """Alike on every process: all see the same clips."""
        clips = clips_of(self.plan, len(self.plan.stages), self.seed, self.photographs, self.accelerator.device)
        is_main = self.accelerator.is_main_process
        with progress(stage.name, enabled=is_main, line_per_step=True) as update:
            fit_visibility(self.trainee.backbone.eval(), _counted(clips, update), stage)
        if is_main:
            self.trainee.backbone.save_pretrained(self.out / stage.name)


def _trim_log(log: Path, names: list[str], stage: int, step: int) -> None:
    """Keeps the lines up to a step of a stage."""
    kept = []
    for line in log.read_text().splitlines(keepends=True):
        try:
            about = json.loads(line)
            place = (names.index(about["stage"]), about["step"])
        except (ValueError, KeyError, TypeError):  # a process was killed while it wrote
            continue
        if place <= (stage, step):
            kept.append(line)
    with write_beside(log) as file:
        file.write("".join(kept).encode())


def _start(model: str | None) -> ChronoBackbone:
    assert model is not None
    overrides: dict[str, Any] = {"adapter_blocks": "all"} if model in DINOV2_VITS else {}
    backbone = ChronoBackbone.from_pretrained(model, **overrides)
    if not backbone.adapters:
        raise ValueError(
            f"model={model!r} has no adapters to train; expected one with adapter_blocks other than 'none'"
        )
    return backbone


def _resolve(recipe: Recipe | str, model: str | None) -> Recipe:
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"recipe={recipe!r}; expected one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if (model is None) == (recipe.config is None):
        expected = "the name of the model to start from" if model is None else f"None: {recipe.name} has its own model"
        raise ValueError(f"model={model!r}; expected {expected}")
    return recipe


def _load_checkpoint(path: Path, identity: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    saved = load_plain(path)
    if not isinstance(saved, dict) or saved.get("run") != identity:
        raise ValueError(
            f"{path} belongs to another recipe, model, seed or version; expected an empty folder or resume=False"
        )
    return saved


def _identity(
    plan: Recipe, seed: int, model: str | None, photographs: Photographs | None, setting: dict[str, Any]
) -> str:
    """What has to be the same for a checkpoint to be gone on from."""
    return json.dumps(
        {
            "stages": [dataclasses.asdict(s) for s in (*plan.stages, plan.visibility) if s],
            "config": None if plan.config is None else plan.config.to_dict(),
            "seed": seed,
            "model": model,
            "photographs": 0 if photographs is None else len(photographs.training),
            **setting,
        }
    )


def _free_processors() -> int:
    """For one training process: all that this machine lets it have but two, shared among its training processes."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, (usable - 2) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextlib.contextmanager
def _tf32(enabled: bool) -> Iterator[None]:
    """TF32 for what lower precision leaves in float32: correlations."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = enabled or before
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _counted(clips: SyntheticBatches, update: Update) -> Iterator[Batch]:
    for i in range(len(clips)):
        yield clips[i]
        update(i + 1, len(clips))

"""The training loop: one command for one CPU, one GPU or many (through accelerate), which resumes where it stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..backbone import ChronoBackbone
from ..checkpoints import DINOV2_VITS
from ..checks import check_choice, check_flag, check_integer, check_path, refusal
from ..progress import Update, progress
from .batches import Batch, Photographs, SyntheticBatches, clips_of
from .devices import default_workers, make_accelerator, tf32
from .fit_visibility import fit_visibility
from .logs import RunLog
from .memory import check_memory
from .recipes import RECIPES, Recipe, Stage
from .resume import Checkpoint, load_checkpoint, run_identity
from .stage_run import Run, StageRun
from .trainee import Trainee

PRECISIONS = (None, "no", "bf16", "fp16")


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
    recipe = _resolve(recipe, model)
    recipe = recipe.override(steps=steps, batch=batch, frames=frames, size=size, grid=grid, tracks=tracks)
    folder = check_path("out", out)
    photographs = None if textures is None else check_path("textures", textures)
    _check_options(seed, mixed_precision, workers, resume, compile, force)
    accelerator = make_accelerator(folder, mixed_precision)
    run, saved = _prepare(accelerator, recipe, folder, model, photographs, seed, workers, resume, force)
    if compile:
        run.trainee.compile_blocks()
    return _train_stages(run, saved)


def _resolve(recipe: Recipe | str, model: str | None) -> Recipe:
    if isinstance(recipe, str) and recipe in RECIPES:
        recipe = RECIPES[recipe]
    if not isinstance(recipe, Recipe):
        raise refusal("recipe", recipe, f"one of {', '.join(RECIPES)}, or a Recipe")
    if (model is None) == (recipe.config is None):
        expected = "the name of the model to start from" if model is None else f"None: {recipe.name} has its own model"
        raise refusal("model", model, expected)
    return recipe


def _check_options(
    seed: int,
    mixed_precision: str | None,
    workers: int | None,
    resume: bool,
    compile: bool,
    force: bool,
) -> None:
    check_integer("seed", seed)
    check_choice("mixed_precision", mixed_precision, PRECISIONS)
    if workers is not None:
        check_integer("workers", workers)
    check_flag("resume", resume)
    check_flag("compile", compile)
    check_flag("force", force)


def _prepare(
    accelerator: Any,
    recipe: Recipe,
    out: Path,
    model: str | None,
    textures: Path | None,
    seed: int,
    workers: int | None,
    resume: bool,
    force: bool,
) -> tuple[Run, Checkpoint | None]:
    """A run, new or as its checkpoint left it; nothing is written before everything is known to fit together."""
    photographs = None if textures is None else Photographs(textures)
    precision = accelerator.mixed_precision
    identity = run_identity(recipe, seed, model, photographs, accelerator.num_processes, precision)
    saved = load_checkpoint(out, identity) if resume else None
    torch.manual_seed(seed)
    trainee = Trainee(_start(model) if recipe.config is None else ChronoBackbone(recipe.config))
    if saved:
        trainee.load_state_dict(saved["model"])
    trainee.to(accelerator.device)
    stages = recipe.stages[saved["stage"] if saved else 0 :]
    with accelerator.autocast():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        check_memory(trainee, stages, accelerator.device, processes, force)
    log = RunLog(accelerator, out, recipe.stages, (saved["stage"], saved["step"]) if saved else None)
    if workers is None:
        workers = default_workers(accelerator.device)
    return Run(accelerator, recipe, trainee, photographs, out, seed, workers, identity, log), saved


def _start(model: str | None) -> ChronoBackbone:
    assert model is not None
    overrides: dict[str, Any] = {"adapter_blocks": "all"} if model in DINOV2_VITS else {}
    backbone = ChronoBackbone.from_pretrained(model, **overrides)
    if not backbone.adapters:
        raise ValueError(
            f"model={model!r} has no adapters to train; expected one with adapter_blocks other than 'none'"
        )
    return backbone


def _train_stages(run: Run, saved: Checkpoint | None) -> ChronoBackbone:
    first = saved["stage"] if saved else 0
    with tf32(run.accelerator.mixed_precision != "no"):
        for index in range(first, len(run.recipe.stages)):
            stage_run = StageRun(run, index)
            stage_run.train(saved if index == first else None)
            stage_run.save_model()
    if run.recipe.visibility is not None:
        _fit_visibility(run, run.recipe.visibility)
    run.log.close()
    return run.trainee.backbone.eval()


def _fit_visibility(run: Run, stage: Stage) -> None:
    """Alike on every process: all see the same clips."""
    clips = clips_of(run.recipe, len(run.recipe.stages), run.seed, run.photographs, run.accelerator.device)
    is_main = run.accelerator.is_main_process
    with progress(stage.name, enabled=is_main, line_per_step=True) as update:
        fit_visibility(run.trainee.backbone.eval(), _counted(clips, update), stage)
    if is_main:
        run.trainee.backbone.save_pretrained(run.out / stage.name)


def _counted(clips: SyntheticBatches, update: Update) -> Iterator[Batch]:
    for i in range(len(clips)):
        yield clips[i]
        update(i + 1, len(clips))

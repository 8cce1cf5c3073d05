"""The command `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import training
from .messages import done, track_with
from .options import PathOption, parse_size

app = typer.Typer()


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="What to train: tiny, or adapters.")],
    out: Annotated[Path, PathOption(help="Folder for checkpoints, the log and the model.")],
    model: Annotated[str | None, typer.Option(help="Model to start from (recipe adapters).")] = None,
    textures: Annotated[Path | None, PathOption(help="Folder of photographs for the synthetic scenes.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of every stage, instead of the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Clips a step, likewise.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames a clip, likewise.")] = None,
    size: Annotated[str | None, typer.Option(help="Pixels of a frame, 128 or 96x128, likewise.")] = None,
    grid: Annotated[str | None, typer.Option(help="Tokens a frame, 16 or 12x16, likewise.")] = None,
    tracks: Annotated[int | None, typer.Option(help="Tracks a clip, likewise.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the clips.")] = 0,
    resume: Annotated[bool, typer.Option(help="Resume from the last checkpoint in --out.")] = True,
    mixed_precision: Annotated[str | None, typer.Option(help="no, fp16 or bf16, as in accelerate.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that make clips.", show_default="1; with a GPU all processors but two"),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the model.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train even if memory seems too small.")] = False,
) -> None:
    """Train on synthetic clips.

    Accelerate chooses the devices; `accelerate launch -m chrono_features train ...` uses several.
    """
    if textures is not None and not textures.is_dir():
        raise FileNotFoundError(f"textures={textures}: no such folder; expected one with photographs")
    training.train(
        recipe,
        out,
        model=model,
        textures=textures,
        seed=seed,
        steps=steps,
        batch=batch,
        frames=frames,
        size=None if size is None else parse_size("size", size),
        grid=None if grid is None else parse_size("grid", grid),
        tracks=tracks,
        resume=resume,
        mixed_precision=mixed_precision,
        workers=workers,
        compile=compile,
        force=force,
    )
    plan = training.RECIPES[recipe]
    last = out / (plan.visibility or plan.stages[-1]).name
    done(last, f"the trained model; {out} holds its log and a checkpoint too", track_with(last))

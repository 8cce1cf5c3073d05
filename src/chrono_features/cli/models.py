"""Commands for models: `convert`, `info` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from ..authors import read_authors
from ..backbone import ChronoBackbone
from ..building import build
from ..checkpoints import Checkpoint
from ..evaluation import verification
from ..progress import progress
from .messages import done, next_step, track_with
from .options import ModelArgument, PathArgument, PathOption, load_model, parse_size
from .outputs import check_folder

app = typer.Typer()


@app.command()
def convert(
    checkpoint: Annotated[Path, PathArgument(metavar="CKPT", help="A checkpoint of the paper's authors.")],
    out: Annotated[Path, PathArgument(metavar="OUT", help="Folder for config.json and model.safetensors.")],
    num_heads: Annotated[
        int | None, typer.Option(help="Attention heads of the ViT, where width / 64 is no integer.")
    ] = None,
    grid: Annotated[str, typer.Option(help="Tokens per frame: 64, or rows x columns as 48x64.")] = "64",
) -> None:
    """Convert an authors' checkpoint to a folder that `--model` takes."""
    size = parse_size("grid", grid)
    check_folder("out", out)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"checkpoint={checkpoint}: no such file; expected a checkpoint")
    with progress(f"converting {checkpoint.name}", counted=False):
        found = Checkpoint(*read_authors(checkpoint, num_heads, size), source=str(checkpoint))
        build(ChronoBackbone, found).save_pretrained(out)
    done(out, "config.json and model.safetensors", track_with(out))


@app.command()
def info(model: ModelArgument) -> None:
    """Print what a model is made of."""
    network = load_model(model, torch.device("cpu"))
    table = Table("", "", show_header=False, box=None)
    for name, part in network.named_children():
        if parameters := _parameters(part):
            table.add_row(f"parameters: {name}", f"{parameters:,}")
    table.add_row("parameters: all", f"{_parameters(network):,}")
    for key, value in network.config.to_dict().items():
        table.add_row(key, str(value))
    _print(table)
    next_step(track_with(model))


@app.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="NAME", help="chrono-vits14 or chrono-vitb14.")],
    davis: Annotated[Path | None, PathOption(help="TAP-Vid-DAVIS, where you have it.")] = None,
) -> None:
    """Fetch the authors' weights, check every key, and print published beside measured numbers."""
    if davis is not None and not davis.exists():
        raise FileNotFoundError(f"davis={davis}: no such file; expected TAP-Vid-DAVIS")
    with progress(f"verifying {name}", counted=False):
        rows = verification.verify(name, davis=davis)
    table = Table(name, "published", "measured")
    for row in rows:
        table.add_row(*row)
    _print(table)
    next_step(track_with(name))


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _print(table: Table) -> None:
    Console(soft_wrap=True, markup=False, emoji=False).print(table)

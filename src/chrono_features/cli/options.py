"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer

from ..backbone import ChronoBackbone
from ..progress import progress

MAX_SIDE = 4096  # tokens or pixels


def path_from(text: str) -> Path:
    """A path that was typed. `Path("")` is the current folder, which nobody means by an empty text."""
    if not str(text):
        raise typer.BadParameter("an empty path; expected the name of a file or folder")
    return Path(text)


PathArgument = partial(typer.Argument, parser=path_from)
PathOption = partial(typer.Option, parser=path_from, metavar="PATH")

MODEL_HELP = "A known name, a folder, a hub id or an authors' .ckpt."
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Device = Annotated[str, typer.Option(help="auto (cuda, then mps, then cpu), or a torch device.")]
VideoPath = Annotated[Path, PathArgument(metavar="VIDEO", help="A video file, or a folder of images.")]
MaxFramesInMemory = Annotated[
    int | None,
    typer.Option(min=1, help="Frames in the network at a time, for long videos; the others wait in main memory."),
]


@dataclass(frozen=True)
class Selection:
    """The frames of a video to use: arguments of `read_video`."""

    start: Annotated[int, typer.Option(help="First frame of the file to use.")] = 0
    end: Annotated[int | None, typer.Option(help="Frame of the file to stop before.")] = None
    every: Annotated[int, typer.Option(help="Use every n-th frame.")] = 1
    max_frames: Annotated[int | None, typer.Option(help="Use at most this many frames.")] = None
    stream: Annotated[
        int | None, typer.Option(help="Index of the video stream in the file.", show_default="FFmpeg's best")
    ] = None
    fps: Annotated[float | None, typer.Option(help="Frames per second of a folder of images.", show_default="24")] = (
        None
    )
    errors: Annotated[
        str,
        typer.Option("--on-damage", help="Where the video is damaged: raise an error, or warn and use what decodes."),
    ] = "raise"


def with_selection(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of its argument `selection` as options: Typer knows no groups of options."""
    parts = {name: inspect.signature(of).parameters for name, of in (("own", command), ("selection", Selection))}
    hints = get_type_hints(command, include_extras=True) | get_type_hints(Selection, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in parts["own"].values():
        parameters += parts["selection"].values() if parameter.name == "selection" else [parameter]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [p.replace(kind=keyword, annotation=hints[p.name]) for p in parameters]

    @wraps(command)
    def flat(**given: Any) -> None:
        selection = Selection(**{name: given.pop(name) for name in parts["selection"]})
        command(selection=selection, **given)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in parameters}
    return flat


def load_model(name: str, device: torch.device) -> ChronoBackbone:
    """Load what `--model` names."""
    with progress(f"loading {name}", counted=False):
        return ChronoBackbone.from_pretrained(name).to(device).eval()


def pick_device(name: str) -> torch.device:
    """Find a device by name; "auto" is cuda, then mps, then cpu.

    Raises:
        ValueError: There is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which the device "meta" cannot
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # by the kind of device
        raise ValueError(f"device={name!r} is not available; expected auto, cpu, cuda, cuda:N or mps") from error
    return device


def parse_size(name: str, text: str) -> tuple[int, int]:
    """Read "64" or "48x64" as (rows, columns).

    Raises:
        ValueError: It is neither; the message names the option.
    """
    form = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text)
    rows, columns = (int(form[1]), int(form[2] or form[1])) if form else (0, 0)
    if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
        expected = f"a positive integer up to {MAX_SIDE}, or two as ROWSxCOLUMNS"
        raise ValueError(f"{name}={text!r}; expected {expected}")
    return rows, columns

"""The command line. What computes, decodes or draws is imported by the command that needs it: `--help` stays quick."""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from ..extras import MissingExtra

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..backbone import ChronoBackbone
    from ..tracking import Tracks
    from ..video.reading import Video

Item = TypeVar("Item")
LONGEST_GRID = 1024  # points a side
LONGEST_SIDE = 4096  # tokens or pixels
READING = {"end": "--end", "stream": "--stream", "errors": "--on-damage"}  # what warnings of reading may name


class Commands(TyperGroup):
    """Turns what a user can put right (wrong arguments, files, missing extras) into one line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # names may hold what no encoding has, and are printed at the end
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, MissingExtra) as error:  # any other import that fails is a defect
            if ctx.params.get("traceback"):
                raise
            from ..checks import printable

            told = printable(" ".join(str(error).split()))
            if command := self.get_command(ctx, ctx.invoked_subcommand or ""):
                told = _as_options(told, _options_of(command))
            Console(stderr=True).print(Text(told, "red"), soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Dense, temporally-aware video features and point tracks.",
)

VideoPath = Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file, or a folder of images.")]
Model = Annotated[str, typer.Option(help="A known name, a folder, a hub id or an authors' .ckpt.")]
Device = Annotated[str, typer.Option(help="auto (cuda, then mps, then cpu), or a torch device.")]
Start = Annotated[int, typer.Option(help="First frame of the file to use.")]
End = Annotated[int | None, typer.Option(help="Frame of the file to stop before.")]
Every = Annotated[int, typer.Option(help="Use every n-th frame.")]
MaxFrames = Annotated[int | None, typer.Option(help="Use at most this many frames.")]
Stream = Annotated[int | None, typer.Option(help="Index of the video stream in the file.  [default: FFmpeg's best]")]
Fps = Annotated[float | None, typer.Option(help="Frames per second of a folder of images.  [default: 24]")]
OnDamage = Annotated[
    str, typer.Option(help="Where the video is damaged: raise an error, or warn and use what decodes.")
]
InMemory = Annotated[
    int | None,
    typer.Option(min=1, help="Frames in the network at a time, for long videos; the rest waits in main memory."),
]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error was raised.")] = False,
) -> None:
    if version:
        from .. import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def track(
    video: VideoPath,
    queries: Annotated[
        str,
        typer.Option(
            help="Points to track: grid:16 (16 x 16 points on frame 0), grid:16@5 (on frame 5), a .csv file with the "
            'header t,x,y, or "t,x,y;t,x,y". t counts the frames used, x and y are pixels.'
        ),
    ] = "grid:16",
    out: Annotated[
        Path | None,
        typer.Option(help="Tracks as .npz.  [default: tracks.npz or, if taken, tracks-2.npz …; none with --render]"),
    ] = None,
    render: Annotated[Path | None, typer.Option(help="Video with the tracks drawn over it.")] = None,
    model: Model = "chrono-tiny",
    device: Device = "auto",
    start: Start = 0,
    end: End = None,
    every: Every = 1,
    max_frames: MaxFrames = None,
    stream: Stream = None,
    fps: Fps = None,
    on_damage: OnDamage = "raise",
    max_frames_in_memory: InMemory = None,
    refine: Annotated[bool, typer.Option("--refine", help="Align positions with the pixels.")] = False,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Call visible what is at least so likely within 4 px (of 256).")
    ] = None,
) -> None:
    """Track points through a video."""
    selection = _selection(start, end, every, max_frames, stream, fps, on_damage)
    improve: dict[str, Any] = {"refine": "photometric"} if refine else {}
    if min_confidence is not None:
        improve["confidence"] = True
    named = out is not None or render is not None
    out = out if named else Path("tracks.npz")
    options = max_frames_in_memory, improve, min_confidence
    _track(video, queries, out, render, model, device, named, *options, **selection)


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write the overlay.  [default: chrono_demo.mp4 or, if taken, chrono_demo-2.mp4 …]"),
    ] = None,
    model: Model = "chrono-tiny",
    device: Device = "auto",
) -> None:
    """Run `track` on the clip that comes with the package and draw the result."""
    with resources.as_file(resources.files("chrono_features") / "assets" / "bunny.mp4") as clip:
        improve = {"refine": "photometric"}
        _track(clip, "grid:16", None, out or Path("chrono_demo.mp4"), model, device, out is not None, improve=improve)


@app.command()
def features(
    video: VideoPath,
    out: Annotated[Path, typer.Option(help="Features as .safetensors: one tensor `features`, (T, C, h, w).")],
    model: Model = "chrono-tiny",
    device: Device = "auto",
    start: Start = 0,
    end: End = None,
    every: Every = 1,
    max_frames: MaxFrames = None,
    stream: Stream = None,
    fps: Fps = None,
    on_damage: OnDamage = "raise",
    max_frames_in_memory: InMemory = None,
) -> None:
    """Compute the features of a video."""
    from safetensors.torch import save

    from ..files import write_beside

    check_output("out", out, [".safetensors"], video)
    place = pick_device(device)
    clip = _read(video, model, **_selection(start, end, every, max_frames, stream, fps, on_damage))
    result = _features(_load(model, place), clip, place, in_memory=max_frames_in_memory)
    about = {
        "model": model,
        "fps": f"{clip.fps:g}",
        "start": str(start),
        "every": str(every),
        "height": str(clip.size[0]),
        "width": str(clip.size[1]),
    }
    with write_beside(out) as file:
        file.write(save({"features": result.contiguous()}, about))
    frames, channels, rows, columns = result.shape
    reader = f"safetensors.torch.load_file({str(out)!r})['features']"
    _done(out, f"{_count(frames, 'frame')}, {channels} channels, grid {rows} x {columns}", f"read them by {reader}")


@app.command()
def pca(
    video: VideoPath,
    out: Annotated[Path, typer.Option(help="Where to write the video.")],
    beside_vit: Annotated[
        bool, typer.Option("--beside-vit", help="Show the same network with its adapters off on the left.")
    ] = False,
    model: Model = "chrono-tiny",
    device: Device = "auto",
    start: Start = 0,
    end: End = None,
    every: Every = 1,
    max_frames: MaxFrames = None,
    stream: Stream = None,
    fps: Fps = None,
    on_damage: OnDamage = "raise",
) -> None:
    """Show features as colours: their first three principal components over the whole clip."""
    from ..video.reading import VIDEO_FORMATS, write_video
    from ..viz import pca_frames, side_by_side

    check_output("out", out, VIDEO_FORMATS, video)
    place = pick_device(device)
    clip = _read(video, model, **_selection(start, end, every, max_frames, stream, fps, on_damage))
    network = _load(model, place)
    pictures = pca_frames(_features(network, clip, place), clip.size)
    if beside_vit:
        alone = pca_frames(_features(network, clip, place, adapters=False), clip.size)
        pictures = side_by_side({"ViT alone": alone, "with temporal adapters": pictures})
    write_video(out, _counted("drawing", pictures, len(clip.frames)), clip.fps)
    _done(out, _count(len(clip.frames), "frame"), "watch it: like colours are like features")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint of the paper's authors.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for config.json and model.safetensors.")],
    num_heads: Annotated[
        int | None, typer.Option(help="Attention heads of the ViT, where width / 64 is not whole.")
    ] = None,
    grid: Annotated[str, typer.Option(help="Tokens per frame: 64, or rows x columns as 48x64.")] = "64",
) -> None:
    """Convert an authors' checkpoint to a folder that `--model` takes."""
    size = parse_grid(grid)
    check_output("OUT", out, None)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"CKPT={checkpoint}: no such file; expected a checkpoint")
    from ..authors import read_authors
    from ..backbone import ChronoBackbone
    from ..checkpoints import Checkpoint

    with _progress(f"converting {checkpoint.name}"):
        found = Checkpoint(*read_authors(checkpoint, num_heads, size), source=str(checkpoint))
        ChronoBackbone.from_checkpoint(found).save_pretrained(out)
    _done(out, "config.json and model.safetensors", _track_with(out))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="What to train: tiny, or adapters.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, the log and the model.")],
    model: Annotated[str | None, typer.Option(help="Model to start from (recipe adapters).")] = None,
    textures: Annotated[Path | None, typer.Option(help="Folder of photographs for the synthetic scenes.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of every stage, in place of the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Clips a step, likewise.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames a clip, likewise.")] = None,
    size: Annotated[str | None, typer.Option(help="Pixels of a frame, 128 or 96x128, likewise.")] = None,
    grid: Annotated[str | None, typer.Option(help="Tokens a frame, 16 or 12x16, likewise.")] = None,
    tracks: Annotated[int | None, typer.Option(help="Tracks a clip, likewise.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the clips.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in --out.")] = True,
    mixed_precision: Annotated[str | None, typer.Option(help="no, fp16 or bf16, as accelerate knows them.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that make clips; default 1, with a GPU all processors but two.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the model.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train even if memory seems too small.")] = False,
) -> None:
    """Train on synthetic clips.

    Accelerate chooses the devices; `accelerate launch -m chrono_features train ...` uses several.
    """
    if textures is not None and not textures.is_dir():
        raise FileNotFoundError(f"textures={textures}: no such folder; expected one with photographs")
    changes: dict[str, Any] = {
        "batch": batch,
        "frames": frames,
        "size": None if size is None else parse_grid(size, "size"),
        "grid": None if grid is None else parse_grid(grid),
        "tracks": tracks,
        "force": force or None,
    }
    from .. import training

    training.train(
        recipe,
        out,
        model=model,
        textures=textures,
        steps=steps,
        seed=seed,
        resume=resume,
        mixed_precision=mixed_precision,
        workers=workers,
        compile=compile,
        **{name: value for name, value in changes.items() if value is not None},
    )
    plan = training.RECIPES[recipe]
    last = out / (plan.visibility or plan.stages[-1]).name
    _done(last, f"the trained model; {out} holds its log and a checkpoint too", _track_with(last))


@app.command("eval")
def evaluate(
    data: Annotated[
        list[str],
        typer.Option(
            help="KIND=PATH, once for each data set. Kinds: davis, rgb-stacking, kinetics, robotap (TAP-Vid's files), "
            "real_tracks, csv (videos and points.csv), masks (DAVIS's folders), warps (photographs), synthetic."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Results as .json; what it holds already is not measured again.")],
    model: Annotated[list[str], typer.Option(help="A model to measure; may be given several times.")] = [],  # noqa: B006
    baseline: Annotated[
        list[str],
        typer.Option(
            help="static, lucas-kanade, patch, colour, timm:NAME, timm:NAME@BLOCK, or MODULE:FUNCTION: a function of "
            "(video, queries) that returns Tracks."
        ),
    ] = [],  # noqa: B006
    mode: Annotated[list[str], typer.Option(help="TAP-Vid's query sampling: first, strided, or both.")] = ["first"],  # noqa: B006
    refine: Annotated[
        bool, typer.Option("--refine", help="Also measure each model with photometric refinement.")
    ] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Also measure each model with visibility from its confidence.")
    ] = False,
    without_adapters: Annotated[
        bool, typer.Option("--without-adapters", help="Also measure each model with its adapters off.")
    ] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="The authors' settings: 896 x 896, similarities in bfloat16.")
    ] = False,
    grid: Annotated[
        str | None, typer.Option(help="Tokens per frame, 32 or 32x48.  [default: the model's, or 64]")
    ] = None,
    size: Annotated[
        str, typer.Option(help="Frames are resized to this; anything but 256 is another protocol.")
    ] = "256",
    limit: Annotated[int | None, typer.Option(min=1, help="Measure only the first videos of each data set.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Report as one .html file, with clips of the worst tracks.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16: the models' weights.")] = "float32",
    device: Device = "auto",
    devices: Annotated[int | None, typer.Option(help="Share the videos among so many GPUs (or processes).")] = None,
    max_frames_in_memory: InMemory = None,
) -> None:
    """Measure models and baselines side by side on videos with tracks or masks."""
    check_output("out", out, [".json"])
    if report is not None:
        check_output("report", report, [".html"])
    from . import evaluation as command

    command.main(
        data,
        out,
        models=model,
        baselines=baseline,
        modes=mode,
        refine=refine,
        confidence=confidence,
        without_adapters=without_adapters,
        paper=paper,
        grid=None if grid is None else parse_grid(grid),
        size=parse_grid(size, "size"),
        limit=limit,
        report=report,
        dtype=dtype,
        place=pick_device(device),
        devices=devices,
        max_frames_in_memory=max_frames_in_memory,
        progress=_bar,
    )


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A known name, a folder, a hub id or an authors' .ckpt.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the model with its confidence.")],
    photographs: Annotated[Path, typer.Option(help="Folder of photographs, to make clips from.")],
    device: Device = "auto",
) -> None:
    """Fit the confidence of a model's tracks, and save the model with it."""
    check_output("OUT", out, None)
    place = pick_device(device)
    from ..evaluation import fit_confidence as calibration

    network = _load(model, place)
    with _bar("tracking clips") as update:
        calibration.fit_confidence(network, photographs, update)
    network.to("cpu").save_pretrained(out)
    fitted = f"confidence {network.config.confidence}, refined {network.config.refined_confidence}"
    _done(out, fitted, f"{_track_with(out)} --min-confidence 0.5")


@app.command()
def info(model: Annotated[str, typer.Argument(help="A known name, a folder, a hub id or an authors' .ckpt.")]) -> None:
    """Print what a model is made of."""
    network = _load(model, pick_device("cpu"))
    table = Table("", "", show_header=False, box=None)
    for part, weights in _weights_by_part(network).items():
        table.add_row(f"parameters: {part}", f"{weights:,}")
    for key, value in network.config.to_dict().items():
        table.add_row(key, str(value))
    Console(soft_wrap=True, markup=False, emoji=False).print(table)
    _next(_track_with(model))


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="chrono-vits14 or chrono-vitb14.")],
    davis: Annotated[Path | None, typer.Option(help="TAP-Vid-DAVIS, where you have it.")] = None,
) -> None:
    """Fetch the authors' weights, check every key, and print published beside measured numbers."""
    if davis is not None and not davis.exists():
        raise FileNotFoundError(f"davis={davis}: no such file; expected TAP-Vid-DAVIS")
    from ..evaluation import verification

    with _progress(f"verifying {name}"):
        rows = verification.verify(name, davis=davis)
    table = Table(name, "published", "measured")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    Console(soft_wrap=True, markup=False, emoji=False).print(table)
    _next(_track_with(name))


def parse_queries(text: str) -> Callable[[tuple[int, int]], Tensor]:
    """What `--queries` means: a function from the frame's (height, width) to queries (1, N, 3).

    Raises:
        FileNotFoundError: There is no such .csv file.
        ValueError: The text is not one of the forms of `--queries`; a bad row of a file is named by its line.
    """
    import torch

    from ..tracking import grid_queries

    if text.startswith("grid"):
        form = re.fullmatch(r"grid:(\d{1,9})(?:@(\d{1,9}))?", text)
        if form is None or not 1 <= int(form[1]) <= LONGEST_GRID:
            expected = f"grid:N or grid:N@FRAME, N being the points a side, up to {LONGEST_GRID}"
            raise ValueError(f"queries={text!r}; expected {expected}")
        return partial(grid_queries, int(form[1]), t=int(form[2] or 0))
    if text.lower().endswith(".csv"):
        points = _read_points(Path(text))
    else:
        parts = text.strip(" ;").split(";")
        points = [_point(part.split(","), f"queries={text!r}, point {i}") for i, part in enumerate(parts, 1)]
    queries = torch.tensor(points, dtype=torch.float64).reshape(1, -1, 3)
    return lambda size: queries


def parse_grid(text: str, name: str = "grid") -> tuple[int, int]:
    """ "64" or "48x64" as (rows, columns)."""
    form = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text)
    rows, columns = (int(form[1]), int(form[2] or form[1])) if form else (0, 0)
    if not (1 <= rows <= LONGEST_SIDE and 1 <= columns <= LONGEST_SIDE):
        expected = f"a positive integer up to {LONGEST_SIDE}, or two as ROWSxCOLUMNS"
        raise ValueError(f"{name}={text!r}; expected {expected}")
    return rows, columns


def pick_device(name: str) -> torch.device:
    """A device by name; "auto" is cuda, then mps, then cpu.

    Raises:
        ValueError: There is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which the device "meta" cannot
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # by the kind of device
        raise ValueError(f"device={name!r} is not available; expected auto, cpu, cuda, cuda:N or mps") from error
    return device


def check_output(name: str, path: Path, suffixes: Iterable[str] | None, source: Path | None = None) -> None:
    """Makes sure, before any work, that a result can be written to `path`.

    Args:
        name: The argument's name, for messages.
        path: File to write; or folder, where `suffixes` is None.
        suffixes: Endings it may have.
        source: A file that must not be overwritten.

    Raises:
        FileNotFoundError: The parent folder is missing.
        PermissionError: It is not writable.
        FileExistsError: Something that is no file, or no folder, is in its place.
        ValueError: The suffix is another one, `path` is a folder or it is `source`.
    """
    from ..files import folder_target, regular_target

    if suffixes is not None and path.suffix.lower() not in suffixes:
        raise ValueError(f"{name}={path}; expected a name that ends in {', '.join(suffixes)}")
    if suffixes is not None and path.is_dir():
        raise ValueError(f"{name}={path} is a folder; expected a file")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise ValueError(f"{name}={path} is the video itself; expected another name")
    target = path.absolute()
    if not (target.is_dir() or target.parent.is_dir()):
        raise FileNotFoundError(f"{name}={path}: the folder {target.parent} does not exist")
    try:
        target = folder_target(path) if suffixes is None else regular_target(path)
    except OSError as error:
        raise type(error)(f"{name}={path}: {error}") from error
    folder = target if target.is_dir() else target.parent
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{name}={path}: the folder {folder} is not writable")


def _track(
    video: Path,
    queries: str,
    out: Path | None,
    render: Path | None,
    model: str,
    device: str,
    named: bool,  # whether the user named the files: else nothing that is there is replaced
    in_memory: int | None = None,
    improve: dict[str, Any] | None = None,
    min_confidence: float | None = None,
    **selection: Any,
) -> None:
    from ..checks import check_queries
    from ..video.reading import VIDEO_FORMATS, write_video
    from ..viz import draw_tracks

    final = (lambda path: path) if named else _free
    if out is not None:
        check_output("out", final(out), [".npz"], video)
    if render is not None:
        check_output("render", final(render), VIDEO_FORMATS, video)
    points_of = parse_queries(queries)
    place = pick_device(device)
    clip = _read(video, model, **selection)
    points = check_queries(points_of(clip.size), 1, len(clip.frames), clip.size)
    network = _load(model, place)
    with _progress(f"tracking {_count(points.shape[1], 'point')} through {_count(len(clip.frames), 'frame')}"):
        frames = clip.frames[None] if in_memory else clip.frames[None].to(place)
        options = {**_chunked(in_memory), **(improve or {})}
        tracks: Tracks = network.track(frames, points.float().to(place), **options)[0].to("cpu")
    if min_confidence is not None and tracks.confidence is not None:
        tracks = replace(tracks, visible=tracks.confidence >= min_confidence)
    if out is not None:
        out = final(out)  # once more: another run may have been faster
        tracks.save(out)
        reader = f"chrono_features.Tracks.load({str(out)!r})"
        _done(out, f"{_count(points.shape[1], 'point')}, {_count(len(clip.frames), 'frame')}", f"read them by {reader}")
    if render is not None:
        drawn = _counted("drawing", draw_tracks(clip.frames, tracks), len(clip.frames))
        render = final(render)
        write_video(render, drawn, clip.fps)
        _done(
            render,
            f"{_count(points.shape[1], 'point')}, {_count(len(clip.frames), 'frame')}",
            "watch it: a ring is a hidden point",
        )


def _chunked(in_memory: int | None) -> dict[str, Any]:
    """Options of a model for a video that goes through it in chunks."""
    return {"max_frames_in_memory": in_memory, "offload": "cpu"} if in_memory else {}


def _features(
    network: ChronoBackbone, clip: Video, device: torch.device, adapters: bool = True, in_memory: int | None = None
) -> Tensor:
    import torch

    compute = partial(network, **_chunked(in_memory)) if adapters else network.vit_features
    what = f"computing features of {_count(len(clip.frames), 'frame')}{'' if adapters else ' by the ViT alone'}"
    with _progress(what), torch.inference_mode():
        return compute(clip.frames[None] if in_memory else clip.frames[None].to(device))[0].cpu()


def _load(name: str, device: torch.device) -> ChronoBackbone:
    from ..backbone import ChronoBackbone

    with _progress(f"loading {name}"):
        return ChronoBackbone.from_pretrained(name).to(device).eval()


def _selection(
    start: int,
    end: int | None,
    every: int,
    max_frames: int | None,
    stream: int | None,
    fps: float | None,
    on_damage: str,
) -> dict[str, Any]:
    """Arguments of `read_video`."""
    return {
        "start": start,
        "end": end,
        "every": every,
        "max_frames": max_frames,
        "stream": stream,
        "fps": fps,
        "errors": on_damage,
    }


def _read(path: Path, model: str, **selection: Any) -> Video:
    """The frames to work on, once it is clear that `model` can be loaded."""
    from ..checkpoints import check_name
    from ..video.reading import read_video

    check_name(model)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with _progress(f"reading {path.name}", TextColumn("{task.completed} frames")) as update:
                return read_video(path, **selection, on_frame=update)
        finally:
            for warning in told:
                text = _as_options(str(warning.message), READING)
                Console(stderr=True).print(Text(f"warning: {text}", "yellow"), soft_wrap=True)


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


def _options_of(command: Any) -> dict[str, str]:
    """The option of a command for each argument that a message may name."""
    options = {p.name: max(p.opts, key=len) for p in command.params if p.opts[0].startswith("-")}
    return options | {of: options[to] for of, to in (("errors", "on_damage"), ("name", "model")) if to in options}


def _as_options(message: str, options: Mapping[str, str]) -> str:
    """A message with its arguments, as end=6, in the command line's own words: --end 6; a flag has no value."""
    arguments = rf"(?<![\w./-])({'|'.join(options)})=(?:True |'([^']*)')?"  # not in the name of a file
    return re.sub(arguments, lambda match: f"{options[match[1]]} {match[2] or ''}", message)


def _read_points(path: Path) -> list[list[float]]:
    if not path.is_file():
        raise FileNotFoundError(f"queries={path}: no such file; expected a .csv file with the header t,x,y")
    points = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        try:
            header = [cell.strip() for cell in next(rows, [])]
            if header != ["t", "x", "y"]:
                raise ValueError(f"{path}, line 1: {','.join(header)!r}; expected the header t,x,y")
            for row in rows:
                if any(cell.strip() for cell in row):
                    points.append(_point(row, f"{path}, line {rows.line_num}"))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}; expected a text file in UTF-8") from error
    return points


def _point(cells: list[str], where: str) -> list[float]:
    try:
        t, x, y = map(float, cells)
        valid = math.isfinite(t + x + y)
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"{where}: {','.join(cells)!r}; expected three numbers t,x,y")
    return [t, x, y]


def _weights_by_part(network: Any) -> dict[str, int]:
    def count(module: Any) -> int:
        return sum(p.numel() for p in module.parameters())

    parts = {name: count(module) for name, module in network.named_children()}
    return {**{name: weights for name, weights in parts.items() if weights}, "all": count(network)}


@contextmanager
def _progress(what: str, *columns: ProgressColumn, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A line on stderr: a spinner, what is done, `columns`, the time. Yields a function that sets the count."""
    text = TextColumn("{task.description}", markup=False)
    with Progress(SpinnerColumn(), text, *columns, TimeElapsedColumn(), console=Console(stderr=True)) as lines:
        task = lines.add_task(what, total=total)
        yield lambda done: lines.update(task, completed=done)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar that learns on the way how much there is to do."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as lines:
        task = lines.add_task(what, total=None)
        yield lambda done, total: lines.update(task, completed=done, total=total)


def _counted(what: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    with _progress(what, BarColumn(), MofNCompleteColumn(), total=total) as update:
        for done, item in enumerate(items, 1):
            yield item
            update(done)


def _free(path: Path) -> Path:
    """`path`, or where something is there already the first of NAME-2, NAME-3, … that is free."""
    names = itertools.chain([path], (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))


def _track_with(model: str | Path) -> str:
    return f"chrono-features track VIDEO --model {shlex.quote(str(model))}"


def _done(path: Path, what: str, then: str) -> None:
    """What was written, where, and what to do with it."""
    print(f"wrote {path.absolute()}: {what}")
    _next(then)


def _next(then: str) -> None:
    print(f"next: {then}")

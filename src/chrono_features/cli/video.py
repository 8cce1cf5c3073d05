"""Commands for one video: `track`, `demo`, `features` and `pca`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from safetensors.torch import save
from torch import Tensor

from ..backbone import ChronoBackbone
from ..checkpoints import check_name
from ..files import write_beside
from ..progress import progress
from ..tracks import Tracks
from ..video import VIDEO_FORMATS, Video, read_video, write_video
from ..viz import draw_tracks, pca_frames, side_by_side
from .messages import complain, count, done
from .options import (
    Device,
    MaxFramesInMemory,
    Model,
    PathOption,
    Selection,
    VideoPath,
    load_model,
    pick_device,
    with_selection,
)
from .outputs import check_output, free_name
from .queries import Queries, parse_queries

Item = TypeVar("Item")
READ_BY = {
    ".npz": "read them by chrono_features.Tracks.load({})",
    ".csv": "read them by pandas.read_csv({})",
    ".json": "read them by json.load(open({}))",
}
READING = {"end": "--end", "stream": "--stream", "errors": "--on-damage"}  # what warnings of reading may name

app = typer.Typer()


@app.command()
@with_selection
def track(
    video: VideoPath,
    *,
    queries: Annotated[
        str,
        typer.Option(
            help="Points to track: grid:16 (16 x 16 points on frame 0), grid:9x16@5 (rows x columns, on frame 5), "
            'grid:16@last, a .csv file with the columns t,x,y (others are kept), or "t,x,y;t,x,y". '
            "t counts the frames used, x and y are pixels."
        ),
    ] = "grid:16",
    roi: Annotated[
        str | None, typer.Option(help="Part of the frame for a grid: x0,y0,x1,y1 in pixels.", metavar="X0,Y0,X1,Y1")
    ] = None,
    mask: Annotated[
        Path | None, PathOption(help="Image of objects on black: a grid in each of them, which the tracks name.")
    ] = None,
    out: Annotated[
        Path | None,
        PathOption(
            help="Tracks as .npz, .csv or .json.",
            show_default="tracks.npz or, if taken, tracks-2.npz …; none with --render",
        ),
    ] = None,
    render: Annotated[Path | None, PathOption(help="Video with the tracks drawn over it.")] = None,
    model: Model = "chrono-tiny",
    device: Device = "auto",
    selection: Selection,
    max_frames_in_memory: MaxFramesInMemory = None,
    refine: Annotated[bool, typer.Option("--refine", help="Refine positions on the pixels.")] = False,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Minimum confidence for a point to count as visible.")
    ] = None,
) -> None:
    """Track points through a video."""
    named = out is not None or render is not None
    options = {
        **_chunked(max_frames_in_memory),
        "refine": "photometric" if refine else None,
        "confidence": min_confidence is not None,
    }
    _track(
        video,
        parse_queries(queries, roi, mask),
        out if named else Path("tracks.npz"),
        render,
        model,
        device,
        named=named,
        selection=selection,
        options=options,
        min_confidence=min_confidence,
    )


@app.command()
def demo(
    out: Annotated[
        Path | None,
        PathOption(
            help="Where to write the overlay.", show_default="chrono_demo.mp4 or, if taken, chrono_demo-2.mp4 …"
        ),
    ] = None,
    model: Model = "chrono-tiny",
    device: Device = "auto",
) -> None:
    """Run `track` on the bundled demo clip and draw the result."""
    with resources.as_file(resources.files("chrono_features") / "assets" / "bunny.mp4") as clip:
        _track(
            clip,
            parse_queries("grid:16"),
            None,
            out or Path("chrono_demo.mp4"),
            model,
            device,
            named=out is not None,
            selection=Selection(),
            options={"refine": "photometric"},
        )


@app.command()
@with_selection
def features(
    video: VideoPath,
    *,
    out: Annotated[Path, PathOption(help="Features as .safetensors: one tensor `features`, (T, C, h, w).")],
    model: Model = "chrono-tiny",
    device: Device = "auto",
    selection: Selection,
    max_frames_in_memory: MaxFramesInMemory = None,
) -> None:
    """Compute the features of a video."""
    check_output("out", out, [".safetensors"], video)
    place = pick_device(device)
    clip = _read(video, model, selection)
    result = _features(load_model(model, place), clip, place, max_frames_in_memory=max_frames_in_memory)
    height, width = clip.size
    about = {
        "model": model,
        "fps": f"{clip.fps:g}",
        "start": str(selection.start),
        "every": str(selection.every),
        "height": str(height),
        "width": str(width),
    }
    with write_beside(out) as file:
        file.write(save({"features": result.contiguous()}, about))
    frames, channels, rows, columns = result.shape
    reader = f"safetensors.torch.load_file({str(out)!r})['features']"
    done(out, f"{count(frames, 'frame')}, {channels} channels, grid {rows} x {columns}", f"read them by {reader}")


@app.command()
@with_selection
def pca(
    video: VideoPath,
    *,
    out: Annotated[Path, PathOption(help="Where to write the video.")],
    beside_vit: Annotated[
        bool, typer.Option("--beside-vit", help="Show the same network without adapters on the left.")
    ] = False,
    model: Model = "chrono-tiny",
    device: Device = "auto",
    selection: Selection,
) -> None:
    """Show features as colours: their first three principal components over the whole clip."""
    check_output("out", out, VIDEO_FORMATS, video)
    place = pick_device(device)
    clip = _read(video, model, selection)
    network = load_model(model, place)
    frames = pca_frames(_features(network, clip, place), clip.size)
    if beside_vit:
        alone = pca_frames(_features(network, clip, place, adapters=False), clip.size)
        frames = side_by_side({"ViT alone": alone, "with temporal adapters": frames})
    write_video(out, _drawing(frames, len(clip.frames)), clip.fps)
    done(out, count(len(clip.frames), "frame"), "watch it: like colours are like features")


def _track(
    video: Path,
    queries: Queries,
    out: Path | None,
    render: Path | None,
    model: str,
    device: str,
    *,
    named: bool,  # whether the user named the files: else nothing that is there is replaced
    selection: Selection,
    options: dict[str, Any],
    min_confidence: float | None = None,
) -> None:
    final = (lambda path: path) if named else free_name
    if out is not None:
        check_output("out", final(out), READ_BY, video)
    if render is not None:
        check_output("render", final(render), VIDEO_FORMATS, video)
    place = pick_device(device)
    clip = _read(video, model, selection)
    points = queries(len(clip.frames), clip.size)
    tracks = _tracks(load_model(model, place), clip, points.queries, place, options)
    facts = {"fps": float(clip.fps), "start": selection.start, "every": selection.every}
    tracks = replace(tracks, columns=points.columns, info={**tracks.info, "model": model, **facts})
    if min_confidence is not None and tracks.confidence is not None:
        tracks = replace(tracks, visible=tracks.confidence >= min_confidence)
    what = f"{count(points.queries.shape[1], 'point')}, {count(len(clip.frames), 'frame')}"
    if out is not None:
        out = final(out)  # once more: another run may have been faster
        tracks.save(out)
        done(out, what, READ_BY[out.suffix.lower()].format(repr(str(out))))
    if render is not None:
        drawn = _drawing(draw_tracks(clip.frames, tracks), len(clip.frames))
        render = final(render)
        write_video(render, drawn, clip.fps)
        done(render, what, "watch it: a ring is an occluded point")


def _tracks(
    network: ChronoBackbone,
    clip: Video,
    points: Tensor,  # (1, N, 3)
    device: torch.device,
    options: dict[str, Any],
) -> Tracks:
    what = f"tracking {count(points.shape[1], 'point')} through {count(len(clip.frames), 'frame')}"
    with progress(what, counted=False):
        frames = clip.frames[None] if "max_frames_in_memory" in options else clip.frames[None].to(device)
        return network.track(frames, points.float().to(device), **options)[0].to("cpu")


def _features(
    network: ChronoBackbone,
    clip: Video,
    device: torch.device,
    *,
    adapters: bool = True,
    max_frames_in_memory: int | None = None,
) -> Tensor:  # (T, C, h, w)
    compute = partial(network, **_chunked(max_frames_in_memory)) if adapters else network.vit_features
    what = f"computing features of {count(len(clip.frames), 'frame')}{'' if adapters else ' without adapters'}"
    with progress(what, counted=False), torch.inference_mode():
        frames = clip.frames[None] if max_frames_in_memory else clip.frames[None].to(device)
        return compute(frames)[0].cpu()


def _chunked(max_frames: int | None) -> dict[str, Any]:
    """Options of a model for a video that goes through it in chunks."""
    return {"max_frames_in_memory": max_frames, "offload": "cpu"} if max_frames else {}


def _read(path: Path, model: str, selection: Selection) -> Video:
    """The frames to work on, once it is clear that `model` can be loaded."""
    check_name(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with progress(f"reading {path.name}") as update:
                return read_video(path, **asdict(selection), on_frame=update)
        finally:
            for warning in told:
                complain(f"warning: {warning.message}", "yellow", READING)


def _drawing(frames: Iterable[Item], total: int) -> Iterator[Item]:
    with progress("drawing") as update:
        for number, frame in enumerate(frames, 1):
            yield frame
            update(number, total)

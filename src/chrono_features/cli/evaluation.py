"""Commands that measure: `eval` and `fit-confidence`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..backbone import ChronoBackbone
from ..checkpoints import check_name
from ..checks import check_choice, printable
from ..data.clip import SIZE, Clip, Dataset, Entry
from ..data.readers import KINDS, open_dataset
from ..evaluation.fit_confidence import fit_confidence as fit
from ..evaluation.protocol import MODES
from ..evaluation.report import write_report
from ..evaluation.run import evaluate as measure
from ..evaluation.trackers import Tracker, baseline, from_model
from ..extras import require
from ..progress import progress
from .messages import count, done, track_with
from .options import (
    Device,
    MaxFramesInMemory,
    ModelArgument,
    PathArgument,
    PathOption,
    load_model,
    parse_size,
    pick_device,
)
from .outputs import check_folder, check_output
from .processes import relaunched, share
from .tables import print_tables, whats_left

DTYPES = ("float32", "bfloat16", "float16")

Data = Annotated[
    list[str],
    typer.Option(
        help="KIND=PATH, once for each data set. Kinds: davis, rgb-stacking, kinetics, robotap (TAP-Vid's files), "
        "real_tracks, csv (videos and points.csv), masks (DAVIS's folders), warps (photographs), synthetic."
    ),
]
Results = Annotated[Path, PathOption(help="Results as .json; what it holds already is not measured again.")]
Models = Annotated[list[str], typer.Option(help="A model to measure; may be given several times.")]
Baselines = Annotated[
    list[str],
    typer.Option(
        help="static, lucas-kanade, patch, colour, timm:NAME, timm:NAME@BLOCK, or MODULE:FUNCTION: a function of "
        "(video, queries) that returns Tracks."
    ),
]
Modes = Annotated[list[str], typer.Option(help="TAP-Vid's query sampling: first, strided, or both.")]
Refine = Annotated[bool, typer.Option("--refine", help="Also measure each model with photometric refinement.")]
Confidence = Annotated[
    bool, typer.Option("--confidence", help="Also measure each model with visibility from its confidence.")
]
WithoutAdapters = Annotated[bool, typer.Option("--without-adapters", help="Also measure each model without adapters.")]
Paper = Annotated[bool, typer.Option("--paper", help="The authors' settings: 896 x 896, similarities in bfloat16.")]
Grid = Annotated[str | None, typer.Option(help="Tokens per frame, 32 or 32x48.", show_default="the model's, or 64")]
Size = Annotated[str, typer.Option(help="Frames are resized to this; anything but 256 is another protocol.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Measure only the first videos of each data set.")]
Report = Annotated[Path | None, PathOption(help="Report as one .html file, with clips of the worst tracks.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16: the models' weights.")]
Devices = Annotated[int | None, typer.Option(help="Share the videos among this many GPUs (or processes).")]

app = typer.Typer()


@app.command("eval")
def evaluate(
    data: Data,
    out: Results,
    model: Models = [],  # noqa: B006
    baseline: Baselines = [],  # noqa: B006
    mode: Modes = ["first"],  # noqa: B006
    refine: Refine = False,
    confidence: Confidence = False,
    without_adapters: WithoutAdapters = False,
    paper: Paper = False,
    grid: Grid = None,
    size: Size = "256",
    limit: Limit = None,
    report: Report = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    devices: Devices = None,
    max_frames_in_memory: MaxFramesInMemory = None,
) -> None:
    """Measure models and baselines side by side on videos with tracks or masks."""
    check_output("out", out, [".json"])
    _check_report(report)
    tokens = None if grid is None else parse_size("grid", grid)
    frame_size = parse_size("size", size)
    place = pick_device(device)
    check_choice("dtype", dtype, DTYPES)
    _check_asked(model, baseline, mode)
    datasets = open_all(data, frame_size)
    if (code := relaunched(devices, sys.argv[1:])) is not None:
        raise typer.Exit(code)
    mine = share()
    place = mine.place(place)
    trackers = open_trackers(
        model,
        baseline,
        place,
        grid=tokens,
        refine=refine,
        confidence=confidence,
        without_adapters=without_adapters,
        dtype=getattr(torch, dtype),
        paper=paper,
        max_frames_in_memory=max_frames_in_memory,
    )
    with progress("evaluating") as update:
        results = measure(
            trackers,
            datasets,
            out,
            modes=mode,
            limit=limit,
            device=place,
            size=frame_size,
            settings={"paper": paper, "dtype": dtype},
            **mine._asdict(),
            on_video=_total_of(datasets, limit, update),
        )
    if mine.process == 0:
        _tell(results, datasets, out, report)


@app.command("fit-confidence")
def fit_confidence(
    model: ModelArgument,
    out: Annotated[Path, PathArgument(metavar="OUT", help="Folder for the model with its confidence.")],
    photographs: Annotated[Path, PathOption(help="Folder of photographs, to make clips from.")],
    device: Device = "auto",
) -> None:
    """Fit the confidence of a model's tracks, and save the model with it."""
    check_folder("out", out)
    place = pick_device(device)
    network = load_model(model, place)
    with progress("tracking clips") as update:
        fit(network, photographs, update)
    network.to("cpu").save_pretrained(out)
    fitted = f"confidence {network.config.confidence}, refined {network.config.refined_confidence}"
    done(out, fitted, f"{track_with(out)} --min-confidence 0.5")


def open_all(specs: Sequence[str], size: tuple[int, int] | None = SIZE) -> dict[str, Dataset]:
    """Open data sets by kind, from "KIND=PATH"; "synthetic" needs no path.

    Raises:
        ValueError: An entry is not of this form, or a kind comes twice.
        FileNotFoundError: There is no such file or folder.
    """
    data: dict[str, Dataset] = {}
    for spec in specs:
        kind, _, path = spec.partition("=")
        if kind not in KINDS or (not path and kind != "synthetic"):
            raise ValueError(f"data={spec!r}; expected KIND=PATH, KIND being one of {', '.join(KINDS)}")
        if kind in data:
            raise ValueError(f"data={spec!r}: a second {kind}; expected each kind once")
        data[kind] = open_dataset(kind, path, size)
    return data


def open_trackers(
    models: Sequence[str],
    baselines: Sequence[str],
    device: torch.device | str = "cpu",
    *,
    grid: tuple[int, int] | None = None,
    refine: bool = False,
    confidence: bool = False,
    without_adapters: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> list[Tracker]:
    """Baselines, then each model: without adapters, as it is, with its confidence, refined, as far as wanted.

    Refined tracks come with their confidence where the model has one for them. `settings` go to `from_model`.
    """
    for name in models:
        check_name(name)
    found = [baseline(name, grid or (64, 64), device) for name in baselines]
    overrides: dict[str, Any] = {} if grid is None else {"grid": grid}
    for name in models:
        model = ChronoBackbone.from_pretrained(name, **overrides).to(device, dtype).eval()
        if without_adapters:
            found.append(from_model(f"{name}, without adapters", model, adapters=False, **settings))
        found.append(from_model(name, model, **settings))
        if confidence:
            found.append(from_model(f"{name}, confidence", model, confidence=True, **settings))
        if refine:
            sure = model.config.refined_confidence is not None
            found.append(from_model(f"{name}, refined", model, refine="photometric", confidence=sure, **settings))
    return found


def _check_asked(models: Sequence[str], baselines: Sequence[str], modes: Sequence[str]) -> None:
    for mode in modes:
        check_choice("mode", mode, MODES)
    if not models and not baselines:
        raise ValueError("no --model and no --baseline; expected at least one of them")


def _total_of(
    data: Mapping[str, Dataset],
    limit: int | None,
    update: Callable[[int, int | None], object],
) -> Callable[[str, int, int | None], None]:
    """What `measure` calls after each video of a data set; it tells `update` the sum over all of them."""
    totals = [dataset.total() for dataset in data.values()]
    expected = None if None in totals else sum(min(total, limit or total) for total in totals if total is not None)
    videos: dict[str, int] = {}

    def on_video(name: str, number: int, total: int | None) -> None:
        videos[name] = number
        update(sum(videos.values()), expected)

    return on_video


def _check_report(report: Path | None) -> None:
    """Makes sure, before any work, that a report can be written."""
    if report is None:
        return
    check_output("report", report, [".html"])
    for module in ("jinja2", "matplotlib"):
        require(module, "eval")


def _tell(results: Mapping[str, Any], data: Mapping[str, Dataset], out: Path, report: Path | None) -> None:
    print_tables(results)
    if rest := whats_left(results, data):
        print(printable(rest))
    if report is not None:
        with progress("drawing the report", counted=False):
            write_report(report, _at_hand(results, data), _loader(data))
        print(f"wrote {report.absolute()}: the report")
    again = (
        "open the report" if report is not None else "call this again with --report report.html for charts and clips"
    )
    done(out, count(len(results["records"]), "record"), again)


def _at_hand(results: Mapping[str, Any], data: Mapping[str, Dataset]) -> dict[str, Any]:
    """Results whose clips can be drawn: without the worst tracks of data sets of earlier runs."""
    records = [record if record["data"] in data else {**record, "worst": []} for record in results["records"]]
    return {**results, "records": records}


def _loader(data: Mapping[str, Dataset]) -> Callable[[str, str], Clip]:
    entries: dict[tuple[str, str], Entry] = {}

    def load(name: str, video: str) -> Clip:
        if (name, video) not in entries:  # all of a data set in one pass: files are large
            entries.update({(name, entry.name): entry for entry in data[name]})
        found = entries[name, video].load()
        assert isinstance(found, Clip)
        return found

    return load

"""The command `eval`: what its arguments mean, several processes, and tables on the screen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from ..backbone import ChronoBackbone
from ..checkpoints import check_name
from ..checks import printable
from ..data.clip import SIZE, Dataset, Entry, LabelledVideo
from ..data.readers import KINDS, open_dataset
from ..evaluation.protocol import check_mode
from ..evaluation.report import write_report
from ..evaluation.run import evaluate
from ..evaluation.tables import result_tables
from ..evaluation.trackers import Tracker, baseline, from_model
from ..extras import require

DTYPES = ("float32", "bfloat16", "float16")


def open_all(specs: Sequence[str], size: tuple[int, int] | None = SIZE) -> dict[str, Dataset]:
    """Data sets by kind, from "KIND=PATH"; "synthetic" needs no path.

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
    paper: bool = False,
    dtype: torch.dtype = torch.float32,
    max_frames_in_memory: int | None = None,
) -> list[Tracker]:
    """Baselines, then each model: with its adapters off, as it is, with its confidence, refined, as far as wanted.

    Refined tracks come with their confidence where the model is calibrated for it.
    """
    for name in models:
        check_name(name)
    found = [baseline(name, grid or (64, 64), device) for name in baselines]
    for name in models:
        overrides: dict[str, Any] = {} if grid is None else {"grid": grid}
        model = ChronoBackbone.from_pretrained(name, **overrides).to(device, dtype).eval()
        options: dict[str, Any] = {"paper": paper, "max_frames_in_memory": max_frames_in_memory}
        if without_adapters:
            found.append(from_model(f"{name}, adapters off", model, adapters=False, **options))
        found.append(from_model(name, model, **options))
        if confidence:
            found.append(from_model(f"{name}, confidence", model, confidence=True, **options))
        if refine:
            sure = model.config.refined_confidence is not None
            found.append(from_model(f"{name}, refined", model, refine="photometric", confidence=sure, **options))
    return found


def relaunched(devices: int | None, arguments: Sequence[str]) -> int | None:
    """Starts the same command once per device, and returns its exit code; None in those processes.

    Raises:
        ImportError: accelerate is missing.
        ValueError: `devices` is not a positive number.
    """
    if devices is None or devices == 1 or "WORLD_SIZE" in os.environ:
        return None
    if devices < 1:
        raise ValueError(f"devices={devices}; expected a positive whole number")
    require("accelerate", "eval")
    # Accelerate's own launcher starts one process where there are no GPUs, and heeds a configuration of the user's.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    return subprocess.run([*launch, "-m", "chrono_features", *arguments]).returncode


def main(
    specs: Sequence[str],
    out: Path,
    *,
    models: Sequence[str],
    baselines: Sequence[str],
    modes: Sequence[str],
    refine: bool,
    confidence: bool,
    without_adapters: bool,
    paper: bool,
    grid: tuple[int, int] | None,
    size: tuple[int, int],
    limit: int | None,
    report: Path | None,
    dtype: str,
    place: torch.device,
    devices: int | None,
    max_frames_in_memory: int | None,
    progress: Callable[[str], AbstractContextManager[Callable[[int, int | None], object]]],
) -> None:
    """Evaluates with a progress bar, in one process or several, prints tables, and writes the report."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; expected one of {', '.join(DTYPES)}")
    for mode in modes:
        check_mode(mode)
    if not models and not baselines:
        raise ValueError("no --model and no --baseline; expected at least one of them")
    data = open_all(specs, size)
    if (code := relaunched(devices, sys.argv[1:])) is not None:
        sys.exit(code)
    process, processes, wait = _share()
    if processes > 1 and place.type == "cuda":
        place = torch.device("cuda", process % torch.cuda.device_count())
    measured = open_trackers(
        models,
        baselines,
        place,
        grid=grid,
        refine=refine,
        confidence=confidence,
        without_adapters=without_adapters,
        paper=paper,
        dtype=getattr(torch, dtype),
        max_frames_in_memory=max_frames_in_memory,
    )
    done: dict[str, int] = {}
    with progress("evaluating") as update:

        def on_video(name: str, count: int, total: int | None) -> None:
            done[name] = count
            update(sum(done.values()), _expected(data, limit))

        results = evaluate(
            measured,
            data,
            out,
            modes=modes,
            limit=limit,
            device=place,
            size=size,
            settings={"paper": paper, "dtype": dtype},
            process=process,
            processes=processes,
            wait=wait,
            on_video=on_video,
        )
    if process:
        return
    print_tables(results)
    if rest := whats_left(results, data):
        print(printable(rest))
    if report is not None:
        with progress("drawing the report"):
            write_report(report, _at_hand(results, data), _loader(data))
        print(f"wrote {report.absolute()}: the report")
    print(f"wrote {out.absolute()}: {len(results['records'])} records")
    again = (
        "open the report" if report is not None else "call this again with --report report.html for charts and clips"
    )
    print(f"next: {again}")


def print_tables(results: Mapping[str, Any]) -> None:
    """The tables of results, groups set apart by lines."""
    # Groups and models are named by others: "[/x]" is a name, not markup, nor do control sequences reach the terminal.
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False)
    for data, mode, titles, rows in result_tables(results):
        table = Table(*titles, title=printable(f"{data}, {mode}"), box=box.SIMPLE_HEAD, title_justify="left")
        for row, after in zip(rows, [*rows[1:], [""]], strict=True):
            table.add_row(*map(printable, row), end_section=bool(after[0]))
        console.print(table)


def _share() -> tuple[int, int, Callable[[], object]]:
    """This process's number, how many there are, and how to wait for the others."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, lambda: None
    # On the CPU, for GPUs too: nothing is exchanged, and who is done waits for as long as the others take.
    state = require("accelerate", "eval").PartialState(cpu=True, timeout=timedelta(days=7))
    return state.process_index, state.num_processes, state.wait_for_everyone


def _expected(data: Mapping[str, Dataset], limit: int | None) -> int | None:
    totals = [dataset.total() for dataset in data.values()]
    if None in totals:
        return None
    return sum(min(total, limit or total) for total in totals if total is not None)


def whats_left(results: Mapping[str, Any], data: Mapping[str, Dataset]) -> str:
    """What was skipped and why, and how long the videos beyond the limit would take."""
    lines = []
    for name, about in results["data"].items():
        lines += [f"{name}: {video} skipped, {reason}" for video, reason in about["skipped"].items()]
    for name, dataset in data.items():
        records = [record for record in results["records"] if record["data"] == name]
        measured = len({record["video"] for record in records})
        left = (dataset.total() or 0) - measured - len(results["data"][name]["skipped"])
        if measured and left > 0:
            time = _duration(left * _spent(records) / measured)
            lines.append(f"{name}: {measured} videos measured; the other {left} would take about {time} on this device")
    return "\n".join(lines)


def _spent(records: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of computing. The time for a video's features stands in every record that they serve."""
    features = {(record["video"], record["seconds"]["features"]) for record in records}
    return sum(record["seconds"]["tracking"] for record in records) + sum(seconds for _, seconds in features)


def _duration(seconds: float) -> str:
    for name, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.0f} s"


def _at_hand(results: Mapping[str, Any], data: Mapping[str, Dataset]) -> dict[str, Any]:
    """Results whose clips can be drawn: without the worst tracks of data sets of earlier runs."""
    records = [record if record["data"] in data else {**record, "worst": []} for record in results["records"]]
    return {**results, "records": records}


def _loader(data: Mapping[str, Dataset]) -> Callable[[str, str], LabelledVideo]:
    entries: dict[tuple[str, str], Entry] = {}

    def load(name: str, video: str) -> LabelledVideo:
        if (name, video) not in entries:  # all of a data set in one pass: files are large
            entries.update({(name, entry.name): entry for entry in data[name]})
        found = entries[name, video].load()
        assert isinstance(found, LabelledVideo)
        return found

    return load

"""Commands that write files, run in processes that die at a chosen moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import file_kinds
import torch
from safetensors.torch import load_file
from tiny_models import TINY, tiny

from chrono_features import ChronoConfig, Tracks

CHANGES = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "link", "symlink")  # of os
PROCESSES = multiprocessing.get_context("forkserver")  # a fork of this process would inherit its threads' locks
PROCESSES.set_forkserver_preload(
    ["chrono_features.cli.video", "chrono_features.cli.training", "chrono_features.cli.evaluation"]
)


class Command(NamedTuple):
    """What writes, what it writes over, and what is read of that: equal for equal numbers."""

    prepare: Callable[[], object]
    earlier: Callable[[], object]
    run: Callable[[], object]
    read: Callable[[], Any]


def cli(*arguments: str) -> None:
    from chrono_features.cli.app import app

    app(list(arguments), standalone_mode=False)


def prepare_video() -> None:
    file_kinds.make_video(Path(), ".mp4")
    file_kinds.make_model(Path())


def track(points: str) -> None:
    cli("track", "clip.mp4", "--model", "model", "--queries", points, "--out", "out.npz", "--device", "cpu")


def features(*options: str) -> None:
    cli("features", "clip.mp4", "--model", "model", "--out", "out.safetensors", "--device", "cpu", *options)


def evaluate(*options: str) -> None:
    cli("eval", "--data", "csv=table", "--out", "out.json", *options)


def results() -> Any:
    held = json.loads(Path("out.json").read_text())
    return [
        {key: record[key] for key in ("video", "mode", "tracker", "metrics") if key in record}
        for record in held["records"]
    ]


def train() -> None:
    from chrono_features.training import Recipe, Stage, stage_run, validation
    from chrono_features.training import train as run

    stage_run.CHECKPOINT_EVERY = stage_run.VALIDATE_EVERY = 2
    validation.VALIDATION_CLIPS = stage_run.LOG_EVERY = 1
    config = ChronoConfig.from_dict({**TINY, "freeze_vit": False})
    sizes = {"frames": (2, 3), "gap": (1, 2), "size": (16, 16), "grid": (4, 4), "batch": 1, "tracks": 4}
    stages = [Stage(name=name, steps=3, learning_rate=1e-3, **sizes) for name in ("one", "two")]
    run(Recipe("small", tuple(stages), config), "out", workers=0, mixed_precision="no")


def weights(path: str) -> Any:
    return {name: value.tolist() for name, value in load_file(path).items()}


def model_of(folder: str) -> Any:
    from chrono_features import ChronoBackbone

    model = ChronoBackbone.from_pretrained(folder)
    return model.config.to_dict(), {name: value.tolist() for name, value in model.state_dict().items()}


def convert(grid: str) -> None:
    cli("convert", "authors.ckpt", "out", "--num-heads", "2", "--grid", grid)


def tracks_of(path: str) -> Any:
    tracks = Tracks.load(path)
    return tracks.xy.tolist(), tracks.similarity.tolist()


COMMANDS = {
    "track": Command(prepare_video, lambda: track("grid:2"), lambda: track("grid:3"), lambda: tracks_of("out.npz")),
    "features": Command(prepare_video, lambda: features("--end", "2"), features, lambda: weights("out.safetensors")),
    "eval": Command(
        lambda: file_kinds.make_table(Path()),
        lambda: evaluate("--baseline", "static"),
        lambda: evaluate("--baseline", "static", "--baseline", "colour", "--report", "out.html"),
        results,
    ),
    "train": Command(lambda: None, lambda: None, train, lambda: model_of("out/two")),
    "save_pretrained": Command(
        lambda: None,
        lambda: tiny(radius=1.0).save_pretrained("out"),
        lambda: tiny(radius=2.0, neck="x2").save_pretrained("out"),
        lambda: model_of("out"),
    ),
    "convert": Command(
        lambda: file_kinds.make_checkpoint(Path()),
        lambda: convert("4"),
        lambda: convert("5x6"),
        lambda: model_of("out"),
    ),
}


def act(name: str, parts: tuple[str, ...], folder: str, kill_at: int, after: bool, told: Any) -> None:
    """Parts of a command, in a process of its own; it dies at its `kill_at`-th change of the folder's entries."""
    torch.set_num_threads(1)
    os.chdir(folder)
    count, result = 0, None

    def mortal(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            paths = [os.fspath(a) for a in args if isinstance(a, (str, os.PathLike))]
            if not any(path.startswith(folder) or not os.path.isabs(path) for path in paths):
                return change(*args, **kwargs)  # libraries' own
            count = number = count + 1
            if number == kill_at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return change(*args, **kwargs)
            finally:
                if number == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        return changed

    for change in CHANGES:
        setattr(os, change, mortal(getattr(os, change)))
    for part in parts:
        result = getattr(COMMANDS[name], part)()
    told.send((count, result))


def in_process(
    name: str, *parts: str, folder: Path, kill_at: int = 0, after: bool = False, seconds: float | None = None
) -> tuple[int, Any] | None:
    """How many changes it made, and what the last part returned; None where it was killed, maybe after some seconds."""
    here, there = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=act, args=(name, parts, str(folder), kill_at, after, there))
    process.start()
    there.close()
    if seconds is not None:
        process.join(seconds)
        process.kill()
    try:
        told = here.recv()
    except EOFError:
        told = None
    process.join()
    if told is None and process.exitcode != -signal.SIGKILL:
        raise AssertionError(f"{name}: {', '.join(parts)} ended with {process.exitcode}")
    return told

"""What clips are made of, and what time does, at small scale.

`python -m benchmarks.accuracy.ablation --table time ...`.

*scenes*: the recipe's first stage, much shortened, from nothing, on clips with more and more in them. *time*: a model
goes on with all its weights and with fresh adapters of different kinds, on slow clips with long occlusions and strong
noise, which is another in every frame; scored at several strengths of it. *twin*: a model goes on with all its weights,
as it is and with a window of one frame, on fast clips with long occlusions. *mixes*: a model goes on with all its
weights on clips that hold more than the recipe's, each row on one thing more than the first.
All of one table train for as many steps (those of *time* and *twin* on the same clips), and are scored on held-out
clips; *scenes* and *mixes* also on the data of `--data`, to see what carries over.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch

from chrono_features import ChronoBackbone
from chrono_features.cli.evaluation import open_all
from chrono_features.data.clip import Clip, Dataset, Entry, Unusable
from chrono_features.data.synthetic import Variety, load_textures, make_clip
from chrono_features.data.synthetic.variety import NOTHING
from chrono_features.data.synthetic_clips import FIRST_SEED, SyntheticClips
from chrono_features.evaluation.scores import FeatureCache, track_records
from chrono_features.evaluation.trackers import Tracker, from_model
from chrono_features.files import write_beside
from chrono_features.training import Recipe, Stage, train
from chrono_features.training.recipes import TINY

from .. import harness

SIZE, GRID = (128, 128), (16, 16)
TWIN = Stage(
    name="clips",
    steps=300,
    frames=(16, 16),
    gap=(0.7, 3),
    size=SIZE,
    grid=GRID,
    batch=2,
    tracks=96,
    learning_rate=3e-4,
    views=2,
    cross_entropy=(1.0, 0.5),
    variety=Variety(covers=1.0, blackout=0.5),
)
SLOW = Variety(covers=1.0, blackout=0.0, roll=0.2, zoom=0.2)
TIME = dataclasses.replace(
    TWIN,
    steps=600,
    gap=(0.1, 0.5),
    size=(96, 96),
    grid=(12, 12),
    learning_rate=1e-3,
    variety=dataclasses.replace(SLOW, grain=1.0),
)
NOISE = 0.0, 0.1, 0.2, 0.3  # deviation in the clips that *time* is scored on, in units of full brightness
SCENES = dataclasses.replace(TINY.stages[0], steps=500, batch=4, frames=(3, 3))
SMALL = TINY.config.replace(vit_kwargs={**TINY.config.vit_kwargs, "embed_dim": 144, "depth": 4})
KINDS_OF_TIME: dict[str, dict[str, Any]] = {
    "no time, window (0, 0)": {"window": (0, 0)},
    "attention, all blocks": {},
    "attention, causal, window (6, 0)": {"window": (6, 0)},
    "attention, frames after, window (0, 6)": {"window": (0, 6)},
    "conv1d, all blocks": {"mixer": "conv1d"},
    "conv3d, all blocks": {"mixer": "conv3d"},
    "attention, early blocks": {"adapter_blocks": "early"},
    "attention, late blocks": {"adapter_blocks": "late"},
    "attention, all blocks, stride 4": {"adapter_stride": 4},
    "no time, window (0, 0), stride 4": {"adapter_stride": 4, "window": (0, 0)},
}
KINDS_OF_TWIN: dict[str, dict[str, Any]] = {"window as it was": {}, "no time, window (0, 0)": {"window": (0, 0)}}
TURNS = {"roll": 0.5, "zoom": 0.35, "shake": 0.3}
NO_PHOTOGRAPHS = "procedural textures, layers and solids"
KINDS_OF_SCENES = {
    NO_PHOTOGRAPHS: NOTHING,
    "+ photographs": NOTHING,
    "+ roll, zoom, shake": dataclasses.replace(NOTHING, **TURNS),
    "+ creatures": dataclasses.replace(NOTHING, **TURNS, creature=0.5),
    "+ covers": dataclasses.replace(NOTHING, **TURNS, creature=0.5, covers=0.5),
    "+ blur, shadows, codec, plain textures": Variety(blackout=0.0),
}
MIX = TINY.stages[-1].variety
KINDS_OF_MIXES = {
    "as in the recipe": MIX,
    "jumps in half of the clips": dataclasses.replace(MIX, jump=0.5),
    "half of the points near edges": dataclasses.replace(MIX, edges=1.0),
    "covers and a gap in every clip": dataclasses.replace(MIX, covers=1.0, blackout=1.0),
}
KINDS = {"time": KINDS_OF_TIME, "twin": KINDS_OF_TWIN, "scenes": KINDS_OF_SCENES, "mixes": KINDS_OF_MIXES}
STAGES = {"time": TIME, "twin": TWIN, "scenes": SCENES, "mixes": dataclasses.replace(TWIN, steps=200)}
WITH_DATA = "scenes", "mixes"


def job(table: str, name: str, seed: int, steps: int | None, textures: Path, data: list[str], start: str) -> dict:
    """Trains one variant with one seed and scores it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        model = trained(table, name, seed, steps, textures, start, Path(scratch))
    if table == "time":
        return {"seed": seed, **score(model, Noisy(textures), TIME.grid)}
    scores = {"seed": seed, **score(model, SyntheticClips(textures, SIZE, first=100), GRID)}
    for other in open_tracks(data):
        scores |= score(model, other, (32, 32), adapters=table != "scenes")
    return scores


def trained(
    table: str, name: str, seed: int, steps: int | None, textures: Path, start: str, folder: Path
) -> ChronoBackbone:
    photographs = None if name == NO_PHOTOGRAPHS else textures
    kind, stage = KINDS[table][name], _steps(STAGES[table], steps)
    if isinstance(kind, Variety):
        stage = dataclasses.replace(stage, variety=kind)
    recipe, begin = Recipe(table, (stage,), SMALL if table == "scenes" else None), None
    if table != "scenes":
        if table == "time":
            model = fresh_adapters(start, {"adapter_stride": 1, **kind}, seed)
        else:
            model = ChronoBackbone.from_pretrained(start, freeze_vit=False, **({} if table == "mixes" else kind))
        model.save_pretrained(folder / "start")
        begin = str(folder / "start")
    with contextlib.redirect_stdout(io.StringIO()):
        return train(
            recipe, folder / "run", model=begin, textures=photographs, seed=seed, workers=0, mixed_precision="bf16"
        )


def fresh_adapters(start: str, changes: dict[str, Any], seed: int) -> ChronoBackbone:
    """A model as `start`, but for new adapters."""
    trained = ChronoBackbone.from_pretrained(start)
    torch.manual_seed(seed)
    changes = {"freeze_vit": False, "confidence": None, "refined_confidence": None, **changes}
    model = ChronoBackbone(trained.config.replace(**changes))
    weights = {k: v.float() for k, v in trained.state_dict().items() if not k.startswith("adapters.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(key.startswith("adapters.") for key in missing)
    return model


class Noisy:
    """Held-out clips, slow and much covered, each with every strength of noise."""

    def __init__(self, textures: Path) -> None:
        self.textures = load_textures(textures, "validation")

    def __iter__(self) -> Iterator[Entry]:
        for noise, index in itertools.product(NOISE, range(24)):
            yield Entry(f"{noise}/{index}", f"noise {noise}", partial(self._load, noise, index))

    def _load(self, noise: float, index: int) -> Clip:
        clip = make_clip(
            FIRST_SEED + 4000 + index,
            frames=16,
            size=TIME.size,
            points=96,
            scene=("raycast", "layers")[index % 2],
            textures=self.textures,
            frame_step=0.3,
            variety=SLOW,
        )
        grain = torch.randn(clip.frames.shape, generator=torch.Generator().manual_seed(index))
        frames = (255 * (clip.frames + noise * grain).clamp(0, 1)).round().byte()
        names = {"name": f"{noise}/{index}", "group": f"noise {noise}"}
        return dataclasses.replace(clip, frames=frames, xy=clip.xy.double(), **names)


def score(model: ChronoBackbone, data: Dataset, grid: tuple[int, int], adapters: bool = True) -> dict[str, float]:
    """Mean <delta_avg in percent for each group of clips."""
    model.config = model.config.replace(grid=grid)
    tracker = from_model("model", model, adapters=adapters)
    return scored([tracker], data, str(model.device))["model"]["average_pts_within_thresh"]


def scored(trackers: list[Tracker], data: Dataset, device: str) -> dict[str, dict[str, dict[str, float]]]:
    """Means in percent, *first*, of each tracker, for each metric and each group of clips."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {c.name: {} for c in trackers}
    for entry in data:
        try:
            video = entry.load()
        except Unusable:
            continue
        cache = FeatureCache(video.frames, device)
        for tracker in trackers:
            (record,) = track_records(tracker, video, ["first"], cache)
            for metric, value in record["metrics"].items():
                if value is not None:  # as where nothing is hidden
                    values[tracker.name].setdefault(metric, {}).setdefault(entry.group, []).append(100 * value)
    return {
        name: {metric: {group: statistics.fmean(v) for group, v in groups.items()} for metric, groups in of.items()}
        for name, of in values.items()
    }


def open_tracks(specs: list[str]) -> list[Dataset]:
    """Data with tracks, from "KIND=PATH".

    Raises:
        ValueError, FileNotFoundError: As `open_all`; or masks are named, which have none.
    """
    if any(spec.startswith("masks=") for spec in specs):
        raise ValueError(f"data={specs!r}; expected data with tracks, no masks")
    return list(open_all(specs).values())


def rows(done: dict[str, list[dict]]) -> list[harness.Row]:
    """Mean over seeds, and the least and greatest where there are several."""
    found = []
    for name, runs in done.items():
        row: harness.Row = {"what": name, "seeds": len(runs)}
        for group in (key for key in runs[0] if key != "seed"):
            values = [run[group] for run in runs]
            spread = f" ({min(values):.1f} … {max(values):.1f})" if len(values) > 1 else ""
            row[group] = f"{statistics.fmean(values):.1f}{spread}"
        found.append(row)
    return found


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--table", choices=tuple(KINDS), required=True)
    parser.add_argument("--textures", type=Path, required=True, help="Photographs; every fifth is held out.")
    parser.add_argument(
        "--data", nargs="*", default=[], metavar="KIND=PATH", help="Other data to score scenes and mixes on."
    )
    parser.add_argument("--start", default="chrono-tiny", help="Where variants start from, but those of scenes.")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="In place of the table's.")
    parser.add_argument("--only", nargs="*", help="Some of the variants.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("ablation.json"), help="What is done, to go on from.")
    args = parser.parse_args()
    kinds = KINDS[args.table]
    if args.data and args.table not in WITH_DATA:
        parser.error(f"--data with --table {args.table}; expected one of {', '.join(WITH_DATA)}")
    if unknown := set(args.only or ()) - set(kinds):
        parser.error(f"--only {sorted(unknown)}; expected some of {list(kinds)}")
    check(parser, args)
    args.work.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "table": args.table,
        "stage": str(_steps(STAGES[args.table], args.steps)),
        "start": args.start,
        "textures": str(args.textures),
        "data": args.data,
        "kinds": str(kinds),
    }
    work = json.loads(args.work.read_text()) if args.work.exists() else {"of": facts, "done": {}}
    if work["of"] != facts:
        raise ValueError(f"{args.work} holds runs of {work['of']}; expected {facts}")
    done: dict[str, list[dict]] = work["done"]
    jobs = [(name, seed) for seed in range(args.seeds) for name in args.only or kinds]
    jobs = [(name, seed) for name, seed in jobs if seed not in {run["seed"] for run in done.get(name, [])}]
    failed = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=context, max_tasks_per_child=1) as pool:
        running = {
            pool.submit(job, args.table, *which, args.steps, args.textures, args.data, args.start): which
            for which in jobs
        }
        for finished in as_completed(running):
            name, seed = running[finished]
            if error := finished.exception():
                failed.append(f"{name}, seed {seed}: {type(error).__name__}: {error}")
                print(failed[-1], flush=True)
                continue
            done.setdefault(name, []).append(finished.result())
            print(name, seed, finished.result(), flush=True)
            with write_beside(args.work) as file:
                file.write(json.dumps(work).encode())
    if done:  # with what earlier calls have done
        tables = {args.table: rows({name: done[name] for name in kinds if name in done})}
        harness.report(f"ablation_{args.table}", args.device, tables, args.out)
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses now what would be found wrong after the first training."""
    where = "cuda" if torch.cuda.is_available() else "cpu"
    if args.device != where:
        parser.error(f"--device {args.device}; expected {where}, where accelerate trains")
    for name in ("seeds", "processes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}; expected 1 or more")
    load_textures(args.textures, "validation")
    open_tracks(args.data)
    torch.set_num_threads(1)  # as every training has, for the report to say


def _steps(stage: Stage, steps: int | None) -> Stage:
    return stage if steps is None else dataclasses.replace(stage, steps=steps)


if __name__ == "__main__":
    main()

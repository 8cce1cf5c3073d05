"""How much of what chrono-tiny scores is luck: its recipe with several seeds.

`python -m benchmarks.accuracy.recipe_seeds ...`.

`--recipe short` is shortened so much that one seed takes three quarters of an hour on one CPU core, and held-out clips
are scored at 128 x 128. The others are for a GPU: the recipe as it was `released`, what should be trained `next`, so
that other frames help (docs/models.md, *What time adds*), and its `twin` without time. What is done already is not done
again. Points are called visible by the visibility head, also where they are refined.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from rich.progress import track as progress

from chrono_features import ChronoBackbone
from chrono_features.data.clip import Dataset
from chrono_features.data.synthetic_clips import SyntheticClips
from chrono_features.evaluation.trackers import baseline, from_model
from chrono_features.files import write_beside
from chrono_features.training import train
from chrono_features.training.recipes import TINY

from .. import harness
from .ablation import GRID, SCENES, SIZE, TIME, Noisy, check, open_tracks, rows, scored

FRAMES, CLIPS = TINY.stages
COVERED = "synthetic/occluded"
SHORT = dataclasses.replace(
    TINY,
    stages=(
        dataclasses.replace(FRAMES, batch=SCENES.batch, frames=SCENES.frames),
        dataclasses.replace(CLIPS, steps=350, batch=2, frames=(8, 16), size=SIZE, grid=GRID),
    ),
    visibility=dataclasses.replace(TINY.visibility, steps=40, size=SIZE, grid=GRID),
)
NEXT_CLIPS = dataclasses.replace(
    CLIPS, gap=(0.1, CLIPS.gap[1]), variety=dataclasses.replace(CLIPS.variety, grain=0.3, jump=0.25)
)
NEXT = dataclasses.replace(TINY, config=TINY.config.replace(adapter_stride=1), stages=(FRAMES, NEXT_CLIPS))
TWIN = dataclasses.replace(
    NEXT,
    config=NEXT.config.replace(window=(0, 0)),
    stages=(FRAMES, dataclasses.replace(NEXT_CLIPS, frames_after=())),
)
RECIPES = {"short": SHORT, "released": TINY, "next": NEXT, "twin": TWIN}
Scores = dict[str, dict[str, float]]  # of each way to use a model, for each group of clips


def scores(seed: int, recipe: str, textures: Path, data: list[str], work: Path) -> Scores:
    """Trains with one seed and scores what came of it, unless that is done."""
    file, run = work / f"seed-{seed}.json", work / f"seed-{seed}"
    if file.exists():
        return json.loads(file.read_text())
    torch.set_num_threads(1)
    if not (run / "visibility").exists():
        workers = 0 if recipe == "short" else None
        train(RECIPES[recipe], run, textures=textures, seed=seed, workers=workers, mixed_precision="bf16")
    model = ChronoBackbone.from_pretrained(run / "visibility").to("cuda" if torch.cuda.is_available() else "cpu")
    grid = model.config.grid
    sets: list[tuple[Dataset, tuple[int, int]]] = [(SyntheticClips(textures), grid), (Noisy(textures), TIME.grid)]
    if recipe == "short":  # at the 8 pixels a token that it was trained with
        sets, grid = [(SyntheticClips(textures, SIZE), GRID)], CLIPS.grid
    found: Scores = {}
    for dataset, cells in [*sets, *((other, grid) for other in open_tracks(data))]:
        model.config = model.config.replace(grid=cells)
        for name, groups in by_use(model, dataset).items():
            found.setdefault(name, {}).update(groups)
    with write_beside(file) as out:
        out.write(json.dumps(found).encode())
    return found


def by_use(model: ChronoBackbone, data: Dataset) -> Scores:
    """Mean <delta_avg in percent for each group, and balanced accuracy where much is covered."""
    trackers = [
        from_model("without adapters", model, adapters=False),
        from_model("soft-argmax", model),
        from_model("refined", model, refine="photometric"),
        baseline("lucas-kanade"),
    ]
    found = {}
    for name, metrics in scored(trackers, data, str(model.device)).items():
        found[name] = metrics["average_pts_within_thresh"]
        if COVERED in found[name]:
            found[name][f"balanced accuracy, {COVERED}"] = metrics["balanced_accuracy"][COVERED]
    return found


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="short")
    parser.add_argument("--textures", type=Path, required=True, help="Photographs; every fifth is held out.")
    parser.add_argument("--data", nargs="*", default=[], metavar="KIND=PATH", help="Other data to score on.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("seeds"), help="Folder of the runs, to go on from.")
    args = parser.parse_args()
    check(parser, args)
    facts = {"recipe": str(RECIPES[args.recipe]), "textures": str(args.textures), "data": args.data}
    of = args.work / "of.json"
    if of.exists() and json.loads(of.read_text()) != facts:
        raise ValueError(f"{args.work} holds runs of {of.read_text()}; expected {facts}")
    args.work.mkdir(parents=True, exist_ok=True)
    with write_beside(of) as file:
        file.write(json.dumps(facts).encode())
    one = partial(scores, recipe=args.recipe, textures=args.textures, data=args.data, work=args.work)
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = list(progress(pool.map(one, range(args.seeds)), "seeds", total=args.seeds))
    ways = {way: [{"seed": seed, **run[way]} for seed, run in enumerate(runs)] for way in runs[0]}
    name = "recipe_seeds" if args.recipe == "short" else f"recipe_seeds_{args.recipe}"
    harness.report(name, args.device, {f"{args.recipe} recipe, {args.seeds} seeds": rows(ways)}, args.out)


if __name__ == "__main__":
    main()

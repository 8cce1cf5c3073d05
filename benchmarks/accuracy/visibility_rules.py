"""What the parts of refinement are worth, and the rules for *visible* that were to choose from.

`python -m benchmarks.accuracy.visibility_rules --data warps=photographs/ "held-out
clips:synthetic=photographs/:16"`: a column for every
data set, as `chrono-features eval` takes them; a name of one's own may stand before a colon, and the number of videos,
if not all, behind another. Mode *first*, 256 x 256.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.progress import track as progress
from torch import Tensor

from chrono_features import ChronoBackbone, Tracks, refine
from chrono_features.data.clip import Clip
from chrono_features.data.readers import open_dataset
from chrono_features.evaluation.scores import FeatureCache, track_records
from chrono_features.evaluation.trackers import Tracker, from_model

from .. import harness

NEVER = 2.0  # no correlation is as high
PARTS = {
    "soft-argmax": None,
    "shift only, from the estimate": {"AFFINE_STEPS": 0, "CARRIED": NEVER},
    "affine, from the estimate": {"CARRIED": NEVER},
    "affine, also from where the frame before leads to (**kept**)": {},
}
VISIBLE_THRESHOLDS = 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6
METRICS = {
    "average_jaccard": "Average Jaccard by rule for *visible*",
    "occlusion_accuracy": "Accuracy of *visible* by rule",
    "balanced_accuracy": "Balanced accuracy of *visible* by rule",
}
Scores = dict[tuple[str, str], float]  # by table and row


@dataclass(frozen=True)
class Column:
    """Videos of one kind, some at most."""

    title: str
    kind: str
    path: str
    most: int | None

    @staticmethod
    def read(text: str) -> Column:
        before, _, behind = text.partition("=")
        title, _, kind = before.rpartition(":")
        path, _, most = behind.rpartition(":") if behind.rpartition(":")[2].isdigit() else (behind, "", "")
        return Column(title or kind, kind, path, int(most) if most else None)

    def videos(self) -> Iterator[Clip]:
        entries = list(itertools.islice(open_dataset(self.kind, self.path), self.most))
        for entry in progress(entries, self.title):
            video = entry.load()
            assert isinstance(video, Clip)
            yield video


class Rules:
    """Trackers that differ in what they call visible, of tracks that are found once a clip."""

    def __init__(self, model: ChronoBackbone, refined: str | None) -> None:
        self.model, self.base = model, from_model("rules", model, refine=refined, confidence=True)
        self._features: Tensor | None = None
        self._tracks: Tracks | None = None

    def trackers(self) -> Iterator[Tracker]:
        for least in VISIBLE_THRESHOLDS:
            yield self._tracker(f"visibility head ≥ {least}", partial(self._by_head, least=least))
        for least in VISIBLE_THRESHOLDS:
            yield self._tracker(f"confidence ≥ {least}", lambda tracks, least=least: tracks.confidence >= least)

    def _tracker(self, name: str, visible: Callable[[Tracks], Tensor]) -> Tracker:
        def track(video: Tensor, queries: Tensor, features: Tensor | None) -> Tracks:
            if self._tracks is None or self._features is not features:
                self._features, self._tracks = features, self.base.track(video, queries, features)
            return replace(self._tracks, visible=visible(self._tracks))

        return Tracker(name, track, self.base.features)

    def _by_head(self, tracks: Tracks, least: float) -> Tensor:
        """As `track` has it: a refined point that fits its patch is visible, too."""
        seen = (1 - torch.sigmoid(tracks.logits)).prod(-1) >= least
        return (
            seen
            if tracks.correlation is None
            else seen | (tracks.correlation >= refine.RefineOptions().sure_correlation)
        )


@contextlib.contextmanager
def refining_with(constants: dict[str, float]) -> Iterator[None]:
    before = {name: getattr(refine, name) for name in constants}
    try:
        vars(refine).update(constants)
        yield
    finally:
        vars(refine).update(before)


def scores(model: ChronoBackbone, video: Clip) -> Scores:
    """In percent: <delta_avg of every part; average Jaccard, accuracy and balanced accuracy of every rule."""
    cache = FeatureCache(video.frames, str(model.device))
    found: dict[tuple[str, str], float | None] = {}

    def measured(tracker: Tracker) -> dict[str, float | None]:
        (record,) = track_records(tracker, video, ["first"], cache)
        return record["metrics"]

    for name, constants in PARTS.items():
        refined = None if constants is None else "photometric"
        with refining_with(constants or {}):
            found["part", name] = measured(from_model(name, model, refine=refined))["average_pts_within_thresh"]
    for tracks, refined in (("plain", None), ("refined", "photometric")):
        for tracker in Rules(model, refined).trackers():
            metrics = measured(tracker)
            for metric in METRICS:
                found[metric, f"{tracks}, {tracker.name}"] = metrics[metric]
    return {key: 100 * value for key, value in found.items() if value is not None}


def measure(model: ChronoBackbone, columns: list[Column]) -> dict[str, list[harness.Row]]:
    of = {column.title: [scores(model, video) for video in column.videos()] for column in columns}
    titles = {"part": "<δavg by the parts of refinement", **METRICS}
    keys = dict.fromkeys(key for videos in of.values() for video in videos for key in video)
    tables: dict[str, list[harness.Row]] = {title: [] for title in titles.values()}
    for kind, name in keys:
        row: harness.Row = {"what": name}
        for title, videos in of.items():
            known = [video[kind, name] for video in videos if (kind, name) in video]
            row[title] = f"{statistics.fmean(known):.1f}" if known else "-"
        tables[titles[kind]].append(row)
    return tables


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--data", nargs="+", type=Column.read, required=True)
    parser.add_argument("--model", default="chrono-tiny")
    args = parser.parse_args()
    model = ChronoBackbone.from_pretrained(args.model).to(args.device)
    harness.report("visibility_rules", args.device, measure(model, args.data), args.out)


if __name__ == "__main__":
    main()

"""Results as one HTML file that opens anywhere: no script, and nothing that it would have to fetch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from ..data.clip import Clip
from ..extras import require
from ..files import write_beside
from .charts import COLOURS, SYMBOLS, Series, line_chart, percent, reliability_chart
from .records import SECTIONS, Record
from .summary import ALL, mean_metric, number
from .tables import TITLES
from .worst_tracks import FOUND, MAX_PER_VIDEO, TRUTH, worst_clips

MAX_UNFOLDED = 40  # videos whose bars are shown at once; more of them are folded away
SPEED_TITLES = ("frames", "points", "features, s/frame", "tracking, s/frame", "points/s, tracking", "points/s, both")


class Card(NamedTuple):
    """Facts about a run, a data set or a tracker; long ones are folded away."""

    title: str
    facts: dict[str, str]
    folded: list[tuple[str, dict[str, str], bool]]  # summary, facts, whether they are open at first


class Table(NamedTuple):
    """Rows in groups, each under its name."""

    name: str
    titles: Sequence[str]
    groups: list[tuple[str, list[list[str]]]]  # rows begin with a tracker's name


def write_report(
    path: str | os.PathLike[str],
    results: Mapping[str, Any],
    videos: Callable[[str, str], Clip],
    clips: int = 6,
) -> None:
    """Write results as one HTML file: tables, charts, clips of the worst tracks. An existing file survives a failure.

    Every metric is taken for a share, 0 to 1, of which more is better.

    Args:
        path: The file.
        results: As in results.json.
        videos: Loads a video by the names of its data set and its own; called once for each video that a clip shows.
        clips: Worst tracks to show of each tracker, at most two of one video; 0 shows none and needs no video.

    Raises:
        FileNotFoundError: The parent folder is missing.
        ImportError: The `eval` extra is not installed.
        ValueError: `clips` is not an integer, `results` lacks something, or a track does not fit its video.
    """
    if not isinstance(clips, int) or isinstance(clips, bool) or clips < 0:
        raise ValueError(f"clips={clips!r}; expected an integer, 0 or more")
    if missing := sorted({*SECTIONS, "records"} - set(results)):
        raise ValueError(f"results has no {', '.join(missing)}; expected what results.json holds")
    with write_beside(path) as file:  # opened first, so that a missing folder shows before the clips are drawn
        page = _template().render(_contents(results, videos, clips))
        file.write(page.encode(errors="replace"))  # a file's name may hold bytes that are no text


def _template() -> Any:
    jinja2 = require("jinja2", "eval")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(resources.files(__package__).joinpath("report.html.j2").read_text("utf-8"))


def _contents(
    results: Mapping[str, Any],
    videos: Callable[[str, str], Clip],
    clips: int,
) -> dict[str, Any]:
    """What the template shows."""
    records, bins = results["records"], results.get("reliability") or {}
    # A tracker's place in this list is its colour in every chart.
    trackers = list(dict.fromkeys([*results["trackers"], *(r["tracker"] for r in records)]))
    runs = _runs(records)
    return {
        "styles": {name: (SYMBOLS[i % len(SYMBOLS)], f"s{i % len(COLOURS)}") for i, name in enumerate(trackers)},
        "colours": COLOURS,
        "cards": _cards(results),
        "tables": [_metric_table(name, run, trackers) for name, run in runs],
        "curves": _curves(runs, trackers, results["protocol"]["thresholds"]),
        "bars": [_bars(name, run, trackers) for name, run in runs],
        "reliability": [(t, reliability_chart(t, i, bins[t])) for i, t in enumerate(trackers) if bins.get(t)],
        "throughput": Table("", SPEED_TITLES, [(name, _speeds(run, trackers)) for name, run in runs]),
        "worst": worst_clips(records, trackers, videos, clips),
        "max_per_video": MAX_PER_VIDEO,
        "max_unfolded": MAX_UNFOLDED,
        "marks": {"found": f"rgb{FOUND}", "truth": f"rgb{TRUTH}"},
        "percent": percent,
    }


# What was measured on what


def _cards(results: Mapping[str, Any]) -> list[Card]:
    cards = [Card("About", _facts(results["about"]), []), Card("Protocol", _facts(results["protocol"]), [])]
    cards += [_data_card(name, about, results["records"]) for name, about in results["data"].items()]
    cards += [_tracker_card(name, about) for name, about in results["trackers"].items()]
    return cards


def _data_card(name: str, about: Mapping[str, Any], records: Sequence[Record]) -> Card:
    skipped, fingerprint = about.get("skipped") or {}, about.get("fingerprint") or {}
    measured = len({r["video"] for r in records if r["data"] == name})
    facts = {key: value for key, value in about.items() if key not in ("fingerprint", "skipped")}
    folded = [("Why skipped", _facts(skipped), True), ("Fingerprint", _facts(fingerprint), False)]
    shown = _facts({**facts, "measured": measured, "skipped": len(skipped)})
    return Card(name, shown, [one for one in folded if one[1]])


def _tracker_card(name: str, about: Mapping[str, Any]) -> Card:
    """What a tracker is; a configuration is long, and folded away."""
    folded = [(key, _facts(value), False) for key, value in about.items() if isinstance(value, Mapping)]
    return Card(name, _facts({k: v for k, v in about.items() if not isinstance(v, Mapping)}), folded)


def _facts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: _readable(value) for key, value in values.items()}


def _readable(value: Any) -> str:
    """A value of JSON as one reads it."""
    if isinstance(value, Mapping):
        value = [f"{key} {_readable(inner)}" for key, inner in value.items()]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_readable, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# Metrics


def _metric_table(name: str, run: Sequence[Record], trackers: Sequence[str]) -> Table:
    columns = _columns(run)
    groups = [*_grouped(run, "group").items(), (ALL, run)]
    rows = [(group, _metric_rows(members, trackers, columns)) for group, members in groups]
    return Table(name, ["videos", *map(_label, columns)], rows)


def _metric_rows(members: Sequence[Record], trackers: Sequence[str], columns: Sequence[str]) -> list[list[str]]:
    """One row per tracker: its name, its number of videos, its means."""
    rows = []
    for name, _, values in _series(members, trackers, columns):
        count = sum(r["tracker"] == name for r in members)
        rows.append([name, str(count), *map(percent, values)])
    return rows


def _curves(
    runs: Sequence[tuple[str, list[Record]]],
    trackers: Sequence[str],
    thresholds: Sequence[float],
) -> list[tuple[str, list[tuple[str, str]]]]:
    """A chart for each group of each run in which points within thresholds were counted."""
    metrics = [f"pts_within_{t}" for t in thresholds]
    return [
        (
            name,
            [
                (group, line_chart(_series(members, trackers, metrics), thresholds, "px"))
                for group, members in _grouped(run, "group").items()
            ],
        )
        for name, run in runs
        if set(metrics) & set(_columns(run))
    ]


def _bars(
    name: str, run: Sequence[Record], trackers: Sequence[str]
) -> list[tuple[str, list[tuple[str, list[Series]]]]]:
    """For each group the main metric of each of its videos."""
    main = _columns(run)[:1]
    return [
        (
            f"{name}, {group}: {', '.join(map(_label, main))} of each video",
            [(video, _series(own, trackers, main)) for video, own in _grouped(members, "video").items()],
        )
        for group, members in _grouped(run, "group").items()
    ]


def _speeds(run: Sequence[Record], trackers: Sequence[str]) -> list[list[str]]:
    by_tracker = _grouped(run, "tracker")
    return [[name, *_speed(by_tracker[name])] for name in trackers if name in by_tracker]


def _speed(own: Sequence[Record]) -> list[str]:
    """A row of the throughput table, from sums over all videos."""
    frames = sum(r["frames"] for r in own)
    points = sum(r["points"] for r in own)
    features = sum(number(r["seconds"].get("features")) for r in own)
    tracking = sum(number(r["seconds"].get("tracking")) for r in own)
    ratios = ((features, frames), (tracking, frames), (points, tracking), (points, features + tracking))
    return [str(frames), str(points), *(_short(a / b) if b else "–" for a, b in ratios)]


def _short(number: float) -> str:
    """Three digits; all of them before the point."""
    if math.isnan(number):
        return "–"
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


# Records


def _grouped(records: Sequence[Record], key: str) -> dict[str, list[Record]]:
    """Records by the value of a key, in the order of their first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record[key], []).append(record)
    return groups


def _runs(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Records of each data set and mode, under a title."""
    return [
        (f"{data}, mode {mode}", run)
        for data, of_data in _grouped(records, "data").items()
        for mode, run in _grouped(of_data, "mode").items()
    ]


def _columns(run: Sequence[Record]) -> list[str]:
    """Metrics that were measured, the most telling one first."""
    measured = dict.fromkeys(metric for r in run for metric in r["metrics"])
    return [m for m in TITLES if m in measured] + [m for m in measured if m not in TITLES]


def _label(metric: str) -> str:
    if metric.startswith("jaccard_"):
        return f"Jac. {metric.removeprefix('jaccard_')} px"
    return TITLES.get(metric, metric.replace("_", " "))


def _series(records: Sequence[Record], trackers: Sequence[str], metrics: Sequence[str]) -> list[Series]:
    """Means over videos of every tracker that has records, one number per metric."""
    by_tracker = _grouped(records, "tracker")
    return [
        Series(name, style, [mean_metric(by_tracker[name], metric) for metric in metrics])
        for style, name in enumerate(trackers)
        if name in by_tracker
    ]

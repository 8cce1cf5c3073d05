"""Results as one HTML file that opens anywhere: no script, and nothing that it would have to fetch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from .. import extras, files
from ..checks import check_integer
from ..data.clip import Clip
from . import charts, worst_tracks
from .charts import Series, percent
from .records import SECTIONS, Record
from .summary import ALL, TITLES, grouped, mean_metric, number

MAX_UNFOLDED = 40  # videos whose bars are shown at once; more of them are folded away
SPEED_TITLES = ("frames", "points", "features, s/frame", "tracking, s/frame", "points/s, tracking", "points/s, both")


class Card(NamedTuple):
    """Facts about a run, a data set or a tracker; long ones are folded away."""

    title: str
    facts: Mapping[str, Any]
    folded: Sequence[tuple[str, Mapping[str, Any], bool]] = ()  # summary, facts, whether they are open at first


class Table(NamedTuple):
    """Rows in groups, each under its name."""

    name: str
    titles: Sequence[str]
    groups: dict[str, list[list[str]]]  # rows begin with a tracker's name


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
    check_integer("clips", clips)
    if missing := sorted({*SECTIONS, "records"} - set(results)):
        raise ValueError(f"results has no {', '.join(missing)}; expected what results.json holds")
    with files.write_beside(path) as file:  # opened first, so that a missing folder shows before the clips are drawn
        page = _template().render(_contents(results, videos, clips))
        file.write(page.encode(errors="replace"))  # a file's name may hold bytes that are no text


def _template() -> Any:
    jinja2 = extras.require("jinja2", "eval")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": percent, "readable": _readable}
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
    styles = {
        name: (charts.SYMBOLS[i % len(charts.SYMBOLS)], f"s{i % len(charts.COLOURS)}")
        for i, name in enumerate(trackers)
    }
    runs = {f"{data}, mode {mode}": run for (data, mode), run in grouped(records, "data", "mode").items()}
    curves = {name: _curves(run, trackers, results["protocol"]["thresholds"]) for name, run in runs.items()}
    return {
        "styles": styles,
        "colours": charts.COLOURS,
        "cards": _cards(results),
        "tables": [_metric_table(name, run, trackers) for name, run in runs.items()],
        "curves": {name: by_group for name, by_group in curves.items() if by_group},
        "bars": [_bars(name, run, trackers) for name, run in runs.items()],
        "reliability": {t: charts.reliability_chart(t, i, bins[t]) for i, t in enumerate(trackers) if bins.get(t)},
        "throughput": Table("", SPEED_TITLES, {name: _speeds(run, trackers) for name, run in runs.items()}),
        "worst": worst_tracks.worst_clips(records, trackers, videos, clips),
        "max_per_video": worst_tracks.MAX_PER_VIDEO,
        "max_unfolded": MAX_UNFOLDED,
        "marks": {"found": f"rgb{worst_tracks.FOUND}", "truth": f"rgb{worst_tracks.TRUTH}"},
    }


# What was measured on what


def _cards(results: Mapping[str, Any]) -> list[Card]:
    cards = [Card("About", results["about"]), Card("Protocol", results["protocol"])]
    videos = {(record["data"], record["video"]) for record in results["records"]}
    for name, about in results["data"].items():
        skipped, fingerprint = about.get("skipped") or {}, about.get("fingerprint") or {}
        facts = {key: value for key, value in about.items() if key not in ("fingerprint", "skipped")}
        facts |= {"measured": sum(data == name for data, _ in videos), "skipped": len(skipped)}
        folded = [("Why skipped", skipped, True), ("Fingerprint", fingerprint, False)]
        cards.append(Card(name, facts, [one for one in folded if one[1]]))
    for name, about in results["trackers"].items():  # a configuration is long, and folded away
        folded = [(key, value, False) for key, value in about.items() if isinstance(value, Mapping)]
        cards.append(Card(name, {k: v for k, v in about.items() if not isinstance(v, Mapping)}, folded))
    return cards


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
    """For each group and tracker the number of videos, and means over them."""
    columns = _columns(run)
    groups = {**grouped(run, "group"), ALL: run}
    rows = {
        group: [
            [one.name, str(sum(r["tracker"] == one.name for r in members)), *map(percent, one.values)]
            for one in _series(members, trackers, columns)
        ]
        for group, members in groups.items()
    }
    return Table(name, ["videos", *map(_label, columns)], rows)


def _curves(run: Sequence[Record], trackers: Sequence[str], thresholds: Sequence[float]) -> dict[str, str]:
    """A chart for each group, if points within thresholds were counted."""
    metrics = [f"pts_within_{t}" for t in thresholds]
    if not set(metrics) & set(_columns(run)):
        return {}
    return {
        group: charts.line_chart(_series(members, trackers, metrics), thresholds, "px")
        for group, members in grouped(run, "group").items()
    }


def _bars(name: str, run: Sequence[Record], trackers: Sequence[str]) -> dict[str, dict[str, list[Series]]]:
    """For each group, under a title, the main metric of each of its videos."""
    main = _columns(run)[:1]
    return {
        f"{name}, {group}: {', '.join(map(_label, main))} of each video": {
            video: _series(own, trackers, main) for video, own in grouped(members, "video").items()
        }
        for group, members in grouped(run, "group").items()
    }


def _speeds(run: Sequence[Record], trackers: Sequence[str]) -> list[list[str]]:
    """A tracker's row of the throughput table, from sums over all videos."""
    rows = []
    for name, own in sorted(grouped(run, "tracker").items(), key=lambda item: trackers.index(item[0])):
        frames = sum(r["frames"] for r in own)
        points = sum(r["points"] for r in own)
        features = sum(number(r["seconds"].get("features")) for r in own)
        tracking = sum(number(r["seconds"].get("tracking")) for r in own)
        ratios = ((features, frames), (tracking, frames), (points, tracking), (points, features + tracking))
        rows.append([name, str(frames), str(points), *(_short(a / b) if b else "–" for a, b in ratios)])
    return rows


def _short(number: float) -> str:
    """Three digits; all of them before the point."""
    if math.isnan(number):
        return "–"
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


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
    by_tracker = grouped(records, "tracker")
    return [
        Series(name, style, [mean_metric(by_tracker[name], metric) for metric in metrics])
        for style, name in enumerate(trackers)
        if name in by_tracker
    ]

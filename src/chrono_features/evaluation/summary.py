"""From records of videos to what is printed and reported: means by group, how sure they are, throughput, tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from .metrics import bootstrap_interval
from .protocol import MASK_MODE
from .records import Record, json_safe

ALL = "mean of all videos"
MAIN = {MASK_MODE: "J&F"}  # the metric whose interval is given, by mode; <delta_avg in the others
TITLES = {
    "average_pts_within_thresh": "<δavg",
    "average_jaccard": "AJ",
    "occlusion_accuracy": "OA",
    **{f"pts_within_{t}": f"<{t} px" for t in (1, 2, 4, 8, 16)},
    "pck_0.2": "PCK",
    "balanced_accuracy": "bal. acc.",
    "average_precision": "AP",
    "J&F": "J&F",
    "J": "J",
    "F": "F",
    "J&F, colours": "J&F, with colours",
    "mask_precision": "in mask",
    "mask_recall": "recall",
}
# <delta_avg in percent, without a refiner: Kim, Cho et al., CVPR 2025
_PUBLISHED_FOR = (
    ("davis", "strided"),
    ("davis", "first"),
    ("kinetics", "strided"),
    ("kinetics", "first"),
    ("rgb-stacking", "strided"),
)
_PUBLISHED: Mapping[str, tuple[float | None, ...]] = {
    "chrono-vitb14": (70.1, 65.6, 68.5, 61.6, 86.0),
    "chrono-vits14": (68.0, 63.0, 66.8, 59.5, 84.3),
    "dinov2-vitb14": (54.4, 50.3, 46.6, 41.9, 46.6),
    "dinov2-vits14": (50.4, 46.3, 44.5, 39.8, None),
    "timm:resnet18": (53.3, 49.8, 56.3, 50.3, 73.9),
}


def summarise(records: Sequence[Record], trackers: Sequence[str]) -> list[dict[str, Any]]:
    """Compute one row per data set, mode, group and tracker, and one over all groups; means over videos, NaN as None.

    Args:
        records: Of videos.
        trackers: In the order in which they are shown.

    Returns:
        Rows with "data", "mode", "group", "tracker", "videos", "metrics" (means), "interval" (of <delta_avg, or of J&F:
        95 %, bootstrap over videos) and "points_per_second", of tracking alone and with features.
    """
    of_all = [{**record, "group": ALL} for record in records]
    names = ("data", "mode", "group", "tracker")
    groups = grouped([*records, *of_all], *names)
    order = sorted(groups, key=lambda key: (*key[:2], key[2] == ALL, key[2], trackers.index(key[3])))
    return [dict(zip(names, key, strict=True)) | _row(groups[key]) for key in order]


def grouped(records: Iterable[Record], *names: str) -> dict[Any, list[Record]]:
    """Records by their value of a name, or by the tuple of several, in the order of their first appearance."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(itemgetter(*names)(record), []).append(record)
    return groups


def pooled_reliability(records: Iterable[Record]) -> dict[str, list[list[float]]]:
    """The bins of a reliability plot of each tracker that has a confidence, over all its records."""
    pools: dict[str, dict[int, list[float]]] = {}
    for record in records:
        for stated, seen, count in record.get("reliability", []):
            pool = pools.setdefault(record["tracker"], {}).setdefault(min(9, int(stated * 10)), [0.0, 0.0, 0])
            pool[0], pool[1], pool[2] = pool[0] + stated * count, pool[1] + seen * count, pool[2] + count
    return {
        tracker: [[stated / count, seen / count, count] for _, (stated, seen, count) in sorted(bins.items())]
        for tracker, bins in pools.items()
    }


def mean_metric(records: Iterable[Record], name: str) -> float:
    """The mean of a metric over the videos in which it is a number; NaN where there is none."""
    values = (number(record["metrics"].get(name)) for record in records)
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def number(value: float | None) -> float:
    """JSON has no NaN: it is null there."""
    return math.nan if value is None else float(value)


class ResultTable(NamedTuple):
    """All groups and trackers on a data set in a mode."""

    data: str
    mode: str
    titles: list[str]
    rows: list[list[str]]  # a group's name stands in its first row only


def result_tables(results: Mapping[str, Any]) -> Iterator[ResultTable]:
    """A table per data set and mode: groups, the trackers of each side by side, in percent, and published values."""
    for (data, mode), rows in grouped(results["summary"], "data", "mode").items():
        known = {row["tracker"]: _beside(results, row) for row in rows}
        metrics = [name for name in TITLES if any(row["metrics"].get(name) is not None for row in rows)]
        beside = ["published"] if any(known.values()) else []
        titles = ["group (videos)", "tracker", *(TITLES[name] for name in metrics), "95 %", *beside]
        pairs = zip([{}, *rows], rows, strict=False)  # every row with the one before it
        yield ResultTable(data, mode, titles, [_cells(row, before, metrics, known) for before, row in pairs])


def published_delta(tracker: str, kind: str, mode: str) -> float | None:
    """<delta_avg that is published for a model on a kind of data set; None where we know of none."""
    return dict(zip(_PUBLISHED_FOR, _PUBLISHED.get(tracker, ()), strict=False)).get((kind, mode))


def _row(records: Sequence[Record]) -> dict[str, Any]:
    names = dict.fromkeys(name for record in records for name in record["metrics"])
    main = MAIN.get(records[0]["mode"], "average_pts_within_thresh")
    values = [number(record["metrics"].get(main)) for record in records]
    points = sum(record["points"] for record in records)
    tracking = sum(record["seconds"]["tracking"] for record in records)
    features = sum(record["seconds"]["features"] for record in records)
    return {
        "videos": len(records),
        "metrics": {name: json_safe(mean_metric(records, name)) for name in names},
        "interval": [json_safe(end) for end in bootstrap_interval(values)],
        "points_per_second": {
            "tracking": points / tracking if tracking else None,
            "with features": points / (tracking + features) if tracking + features else None,
        },
    }


def _beside(results: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """What is published for a tracker, where it was measured at the same size on all videos."""
    about = results["data"][row["data"]]
    is_whole = about["total"] == max(r["videos"] for r in results["summary"] if r["data"] == row["data"])
    same = results["protocol"]["size"] == [256, 256] and is_whole
    return published_delta(row["tracker"], about["kind"], row["mode"]) if same else None


def _cells(
    row: Mapping[str, Any], before: Mapping[str, Any], metrics: list[str], known: Mapping[str, float | None]
) -> list[str]:
    is_new = before.get("group") != row["group"]
    low, high = row["interval"]
    interval = "" if low is None else f"{_percent(low)} … {_percent(high)}"
    value = known[row["tracker"]] if row["group"] == ALL else None
    beside = [] if not any(known.values()) else ["" if value is None else f"{value:.1f}"]
    name = f"{row['group']} ({row['videos']})" if is_new else ""
    return [name, row["tracker"], *(_percent(row["metrics"].get(m)) for m in metrics), interval, *beside]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"

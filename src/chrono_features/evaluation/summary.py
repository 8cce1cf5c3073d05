"""From records of videos to what is printed and reported: means by group, how sure they are, throughput."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .metrics import bootstrap_interval
from .protocol import MASK_MODE
from .records import Record, json_safe

ALL = "mean of all videos"
MAIN = {MASK_MODE: "J&F"}  # the metric whose interval is given, by mode; <delta_avg in the others


def summarise(records: Sequence[Record], trackers: Sequence[str]) -> list[dict[str, Any]]:
    """Compute one row per data set, mode, group and tracker, and one over all groups; means over videos, NaN as None.

    Args:
        records: Of videos.
        trackers: In the order in which they are shown.

    Returns:
        Rows with "data", "mode", "group", "tracker", "videos", "metrics" (means), "interval" (of <delta_avg, or of J&F:
        95 %, bootstrap over videos) and "points_per_second", of tracking alone and with features.
    """
    grouped: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        for group in (record["group"], ALL):
            grouped.setdefault((record["data"], record["mode"], group, record["tracker"]), []).append(record)
    order = sorted(grouped, key=lambda key: (*key[:2], key[2] == ALL, key[2], trackers.index(key[3])))
    return [dict(zip(("data", "mode", "group", "tracker"), key, strict=True)) | _row(grouped[key]) for key in order]


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

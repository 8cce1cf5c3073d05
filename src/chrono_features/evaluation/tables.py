"""Results as tables of text, for the screen and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .published import published_delta
from .summary import ALL

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


class ResultTable(NamedTuple):
    """All groups and trackers on a data set in a mode."""

    data: str
    mode: str
    titles: list[str]
    rows: list[list[str]]  # a group's name stands in its first row only


def result_tables(results: Mapping[str, Any]) -> Iterator[ResultTable]:
    """A table per data set and mode: groups, the trackers of each side by side, in percent, and published values."""
    summary = results["summary"]
    for data, mode in dict.fromkeys((row["data"], row["mode"]) for row in summary):
        rows = [row for row in summary if (row["data"], row["mode"]) == (data, mode)]
        known = {row["tracker"]: _beside(results, row) for row in rows}
        metrics = [name for name in TITLES if any(row["metrics"].get(name) is not None for row in rows)]
        beside = ["published"] if any(known.values()) else []
        titles = ["group (videos)", "tracker", *(TITLES[name] for name in metrics), "95 %", *beside]
        yield ResultTable(data, mode, titles, [_cells(row, before, metrics, known) for before, row in _pairs(rows)])


def _beside(results: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """What is published for a tracker, where it was measured at the same size on all videos."""
    about = results["data"][row["data"]]
    is_whole = about["total"] == max(r["videos"] for r in results["summary"] if r["data"] == row["data"])
    same = results["protocol"]["size"] == [256, 256] and is_whole
    return published_delta(row["tracker"], about["kind"], row["mode"]) if same else None


def _pairs(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every row with the one before it."""
    return zip([{}, *rows], rows, strict=False)


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

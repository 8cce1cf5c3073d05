"""Results of `eval` on the screen: tables, and what was not measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..checks import printable
from ..data.clip import Dataset
from ..evaluation.summary import result_tables
from .messages import count


def print_tables(results: Mapping[str, Any]) -> None:
    """Print the tables of results, groups set apart by lines."""
    # Groups and models are named by others: "[/x]" is a name, not markup, nor do control sequences reach the terminal.
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False)
    for data, mode, titles, rows in result_tables(results):
        table = Table(*titles, title=printable(f"{data}, {mode}"), box=box.SIMPLE_HEAD, title_justify="left")
        for row, after in zip(rows, [*rows[1:], [""]], strict=True):
            table.add_row(*map(printable, row), end_section=bool(after[0]))
        console.print(table)


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
            what = f"{count(measured, 'video')} measured; the other {left} would take about {time} on this device"
            lines.append(f"{name}: {what}")
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

"""What files of results and their parts may hold: anyone may have written or damaged them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from ..config import distinct

Record = dict[str, Any]  # what one tracker scored on one video in one mode
KEY = ("data", "video", "mode", "tracker")
SECTIONS = ("about", "protocol", "data", "trackers")
MAX_DEPTH = 64  # of lists and objects; results have 6, and what writes and shows them goes into each


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for whatever is wrong with it."""
    try:
        value = json.loads(text, object_pairs_hook=distinct)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [v for c in level if isinstance(c, (list, dict)) for v in (c.values() if isinstance(c, dict) else c)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def json_safe(value: Any) -> Any:
    """A value as JSON has it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: json_safe(v) for key, v in value.items()}
    if isinstance(value, list):
        return [json_safe(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_results(results: Any) -> None:
    """ValueError unless it is what a file of results holds."""
    check_header(results)
    _expect(set(SECTIONS) <= results.keys(), "the contents", f"{', '.join(SECTIONS)} and records")
    _expect(_are(results.get("records"), dict), "records", "a list of records")
    for record in results["records"]:
        check_record(record)


def check_header(header: Any) -> None:
    """ValueError unless it says what was measured with what."""
    _expect(isinstance(header, dict), "the contents", "an object")
    for section in SECTIONS:
        _expect(isinstance(header.get(section, {}), dict), section, "an object")
    for name, about in header.get("data", {}).items():
        _expect(isinstance(about, dict), f"data {name!r}", "an object")
        _expect(all(isinstance(about.get(key, ""), str) for key in ("kind", "path")), f"data {name!r}", "texts")
        _expect(isinstance(about.get("fingerprint", {}), dict), f"fingerprint of {name!r}", "an object")
        skipped = about.get("skipped", {})
        _expect(isinstance(skipped, dict) and _are(list(skipped.values()), str), f"skipped of {name!r}", "reasons")
        _expect(about.get("total") is None or _is_count(about["total"]), f"total of {name!r}", "a number of videos")
    _expect(all(isinstance(about, dict) for about in header.get("trackers", {}).values()), "trackers", "objects")


def check_record(record: Any) -> None:
    """ValueError unless it is a record that can be summarised."""
    _expect(isinstance(record, dict), "a record", "an object")
    for key in (*KEY, "group"):
        _expect(isinstance(record.get(key), str), f"{key} of a record", "a text")
    for key in ("points", "frames"):
        _expect(_is_count(record.get(key)), f"{key} of a record", f"a number of {key}")
    seconds = record.get("seconds")
    _expect(isinstance(seconds, dict) and seconds.keys() >= {"features", "tracking"}, "seconds", "two durations")
    _expect(all(_is_number(value) and value >= 0 for value in seconds.values()), "seconds", "two durations")
    metrics = record.get("metrics")
    _expect(isinstance(metrics, dict) and bool(metrics), "metrics of a record", "an object that is not empty")
    _expect(all(value is None or _is_number(value) for value in metrics.values()), "metrics", "numbers or null")
    deltas = record.get("track_delta", [])
    _expect(isinstance(deltas, list) and all(v is None or _is_number(v) for v in deltas), "track_delta", "numbers")
    bins = record.get("reliability", [])
    _expect(_are(bins, list) and all(len(b) == 3 and all(map(_is_share, b[:2])) for b in bins), "reliability", "bins")
    _expect(all(_is_count(b[2]) for b in bins), "reliability", "bins")
    _expect(_are(record.get("worst", []), dict), "worst of a record", "a list of tracks")
    for track in record.get("worst", []):
        _check_track(track)


def check_skip(skip: Any) -> None:
    """ValueError unless it is a video that was skipped, and why."""
    _expect(_are(skip, str) and len(skip) == 3, "skip", "a data set, a video and a reason")


def _check_track(track: dict[str, Any]) -> None:
    xy, visible, query = track.get("xy", 0), track.get("visible"), track.get("query")
    _expect(_is_count(track.get("track")), "track of a worst track", "an index")
    _expect(_is_number(track.get("delta")), "delta of a worst track", "a number")
    _expect(isinstance(query, list) and len(query) == 3 and all(map(_is_number, query)), "query of a track", "t, x, y")
    _expect(_are(xy, list) and all(len(p) == 2 and _all(p, _is_coordinate) for p in xy), "xy of a track", "positions")
    valid = isinstance(visible, list) and len(visible) == len(xy) and _all(visible, lambda v: v in (0, 1))
    _expect(valid, "visible of a track", "0 or 1 for each position")


def part_lines(data: bytes) -> Iterator[tuple[int, Any]]:
    """The number and value of each line of a part; a line that was broken off, where a run ended, is left out.

    Raises:
        ValueError: A line is damaged.
    """
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, parsed(line)
        except ValueError as error:
            if any(rest.strip() for rest in lines[number:]) and not lines[number].startswith(b'{"header"'):
                raise ValueError(f"line {number} is damaged ({error})") from error


def _expect(condition: bool, what: str, expected: str) -> None:
    if not condition:
        raise ValueError(f"{what} is something else; expected {expected}")


def _all(values: list[Any], test: Callable[[Any], bool]) -> bool:
    return all(test(value) for value in values)


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300  # nor NaN


def _is_coordinate(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53

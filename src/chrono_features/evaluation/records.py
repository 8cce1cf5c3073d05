"""What files of results and their parts may hold: anyone may have written or damaged them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..checks import is_integer
from ..config import distinct

Record = dict[str, Any]  # what one tracker scored on one video in one mode
Test = Callable[[Any], bool]
Fields = Mapping[str, tuple[Any, ...]]  # by name: a test of the value, what is expected, and a default if it may lack
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
    _expect(isinstance(results.get("records"), list), "records", "a list of records")
    for record in results["records"]:
        check_record(record)


def check_header(header: Any) -> None:
    """ValueError unless it says what was measured with what."""
    _check(header, _HEADER, "the contents")
    for name, about in header.get("data", {}).items():
        _check(about, _DATA, f"data {name!r}")


def check_record(record: Any) -> None:
    """ValueError unless it is a record that can be summarised."""
    _check(record, _RECORD, "a record")
    for track in record.get("worst", []):
        _check(track, _TRACK, "a worst track")
        _expect(len(track["visible"]) == len(track["xy"]), "visible of a worst track", "one for each position")


def part_lines(data: bytes) -> Iterator[tuple[int, Any]]:
    """The lines of a part, by number: {"header": ...}, {"skip": [data, video, reason]}, or a record.

    A run that was killed leaves its last line broken off; the next run starts with its header on a line of its own.

    Raises:
        ValueError: A line is damaged, or holds something else.
    """
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = parsed(line)
        except ValueError as error:
            if any(rest.strip() for rest in lines[number:]) and not lines[number].startswith(b'{"header"'):
                raise ValueError(f"line {number} is damaged ({error})") from error
            continue
        try:
            _check_line(value)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        yield number, value


def _check_line(value: Any) -> None:
    if isinstance(value, dict) and "header" in value:
        check_header(value["header"])
    elif isinstance(value, dict) and "skip" in value:
        _expect(_list_of(_is_text, 3)(value["skip"]), "skip", "a data set, a video and a reason")
    else:
        check_record(value)


def _check(value: Any, fields: Fields, what: str) -> None:
    _expect(isinstance(value, dict), what, "an object")
    for key, (test, expected, *default) in fields.items():
        _expect(test(value.get(key, *default)), f"{key} of {what}", expected)


def _expect(condition: bool, what: str, expected: str) -> None:
    if not condition:
        raise ValueError(f"{what} is something else; expected {expected}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300  # nor NaN


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_count(value: Any) -> bool:
    return is_integer(value, 0, 2**53 - 1)


def _is_bin(value: Any) -> bool:
    return _list_of(_is_number, 3)(value) and 0 <= value[0] <= 1 and 0 <= value[1] <= 1 and _is_count(value[2])


def _list_of(test: Test, length: int | None = None) -> Test:
    return lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(test, value))


def _object_of(test: Test) -> Test:
    return lambda value: isinstance(value, dict) and all(map(test, value.values()))


_DURATIONS = {"features", "tracking"}

# The fields of each kind of object
_HEADER: Fields = {
    "about": (_is_object, "an object", {}),
    "protocol": (_is_object, "an object", {}),
    "data": (_is_object, "an object", {}),
    "trackers": (_object_of(_is_object), "objects", {}),
}
_DATA: Fields = {
    "kind": (_is_text, "a text", ""),
    "path": (_is_text, "a text", ""),
    "fingerprint": (_is_object, "an object", {}),
    "skipped": (_object_of(_is_text), "reasons", {}),
    "total": (lambda total: total is None or _is_count(total), "a number of videos"),
}
_RECORD: Fields = {
    **dict.fromkeys((*KEY, "group"), (_is_text, "a text")),
    "points": (_is_count, "a number of points"),
    "frames": (_is_count, "a number of frames"),
    "seconds": (lambda s: _object_of(_is_number)(s) and s.keys() >= _DURATIONS and min(s.values()) >= 0, "durations"),
    "metrics": (lambda m: _object_of(_is_number_or_null)(m) and len(m) > 0, "numbers or null, one at least"),
    "track_delta": (_list_of(_is_number_or_null), "numbers or null", []),
    "reliability": (_list_of(_is_bin), "bins", []),
    "worst": (_list_of(_is_object), "a list of tracks", []),
}
_TRACK: Fields = {
    "track": (_is_count, "an index"),
    "delta": (_is_number, "a number"),
    "query": (_list_of(_is_number, 3), "t, x, y"),
    "xy": (_list_of(_list_of(_is_number_or_null, 2)), "positions"),
    "visible": (_list_of(lambda v: v in (0, 1)), "0 or 1 for each position"),
}

"""Videos beside a table of points."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..extras import require
from ..files import check_regular
from ..video.decoding import open_video, video_stream
from ..video.images import frame_files
from .clip import Clip, Entry
from .reading import Size, extent, files_of, labelled, read_frames, stacked


class _Row(NamedTuple):
    line: int
    track: str
    t: int
    xy: tuple[float, float]
    visible: bool


class PointsCsv:
    """Videos, or folders of images, beside a `points.csv` of video,track,t,x,y,visible and maybe group.

    Positions are in pixels of the video, its upper left corner is (0, 0); they may be left empty where `visible` is 0.
    What happens to a track in frames without a row is not known.
    """

    kind = "csv"
    columns = ("video", "track", "t", "x", "y", "visible")

    def __init__(self, path: str, size: Size | None) -> None:
        self.path, self.size = path, size
        self._table = Path(path, "points.csv")
        check_regular(self._table, f"a table of {', '.join(self.columns)}")
        self._groups: dict[str, str] = {}
        self._rows: dict[str, list[_Row]] = {}
        try:
            self._read()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._table}: not a table in UTF-8 ({error})") from error
        except csv.Error as error:
            raise ValueError(f"{self._table}: not a readable table ({error})") from error
        if not self._rows:
            raise ValueError(f"{self._table} holds no points; expected at least one")

    def __iter__(self) -> Iterator[Entry]:
        for name, group in self._groups.items():
            yield Entry(name, group, partial(self._load, name, group))

    def total(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> dict[str, int | str]:
        """Refuses frames that a video does not have, too: it is taken before anything is measured."""
        for name, rows in self._rows.items():
            frames = _counted(Path(self.path, name))
            if frames is not None and (late := next((row for row in rows if row.t >= frames), None)):
                raise self._beyond(late, name, frames)
        return extent([self._table, *(file for name in self._rows for file in files_of(Path(self.path, name)))])

    def _read(self) -> None:
        lines: dict[tuple[str, str, int], int] = {}
        with open(self._table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := [column for column in self.columns if column not in (reader.fieldnames or ())]:
                expected = ",".join(self.columns)
                raise ValueError(f"{self._table}, line 1: no column {', '.join(missing)}; expected {expected}")
            for fields in reader:
                where = f"{self._table}, line {reader.line_num}"
                if None in fields or None in fields.values():
                    raise ValueError(f"{where}: too few or too many fields; expected as many as line 1 has")
                name, group = fields["video"], fields.get("group") or self.kind
                if not name or not Path(self.path, name).exists():
                    raise ValueError(f"{where}: video={name!r}; expected a video or a folder beside the table")
                if self._groups.setdefault(name, group) != group:
                    raise ValueError(f"{where}: group={group!r}; expected {self._groups[name]!r} as above for {name}")
                row = _row(where, reader.line_num, fields)
                first = lines.setdefault((name, row.track, row.t), row.line)
                if first != row.line:
                    raise ValueError(f"{where}: track {row.track} at t={row.t} again; expected only line {first}")
                self._rows.setdefault(name, []).append(row)

    def _beyond(self, row: _Row, name: str, frames: int) -> ValueError:
        where = f"{self._table}, line {row.line}"
        return ValueError(f"{where}: t={row.t}; expected less than {frames}, the frames of {name}")

    def _load(self, name: str, group: str) -> Clip:
        rows = self._rows[name]
        frames, (height, width) = stacked(read_frames(Path(self.path, name)), self.size)
        numbers = {track: n for n, track in enumerate(dict.fromkeys(row.track for row in rows))}
        shape = len(numbers), len(frames)
        points, occluded, valid = np.full((*shape, 2), np.nan), np.ones(shape, bool), np.zeros(shape, bool)
        for row in rows:
            if row.t >= len(frames):
                raise self._beyond(row, name, len(frames))
            at = numbers[row.track], row.t
            points[at], occluded[at], valid[at] = row.xy, not row.visible, True
        return labelled(name, group, frames, points / (width, height), occluded, valid)


def _counted(path: Path) -> int | None:
    """The frames of a video by its packets, which are not decoded; None where it cannot be read."""
    require("PIL.Image" if path.is_dir() else "av", "eval")
    try:
        if path.is_dir():
            return len(frame_files(path))
        with open_video(path) as container:
            return sum(packet.size > 0 for packet in container.demux(video_stream(container, path, None)))
    except (ValueError, OSError):  # which is told when its turn comes, and stops only this video
        return None


def _row(where: str, line: int, fields: dict[str, str]) -> _Row:
    def value(column: str, convert: Callable[[str], Any], expected: str) -> Any:
        try:
            return convert(fields[column].strip())
        except (KeyError, ValueError, OverflowError):
            raise ValueError(f"{where}: {column}={fields[column]!r}; expected {expected}") from None

    t = value("t", int, "an integer")
    if not 0 <= t < 2**31:
        raise ValueError(f"{where}: t={fields['t']}; expected 0 or more")
    visible = value("visible", {"0": False, "1": True}.__getitem__, "0 or 1")

    def position(text: str) -> float:
        number = float(text) if visible or text else math.nan
        if visible and not math.isfinite(number):
            raise ValueError
        return number

    x, y = (value(column, position, "a number of pixels") for column in ("x", "y"))
    return _Row(line, fields["track"], t, (x, y), visible)

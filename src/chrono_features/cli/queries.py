"""The options `--queries`, `--roi` and `--mask`: a grid, points as text, or a .csv file."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import check_regular
from ..queries import grid_queries, object_queries
from ..video.images import open_image

MAX_GRID_SIDE = 1024  # points
MAX_OBJECTS = 255
DELIMITERS = ",;\t"
GRID = "grid:N, grid:ROWSxCOLUMNS, or either with @FRAME or @last"

Point = tuple[float, float, float]  # (t, x, y)


@dataclass(frozen=True)
class Points:
    """What is tracked, and what else is known of each point: names, objects, further columns of a file."""

    queries: Tensor  # (1, N, 3)
    columns: dict[str, list[str]] | dict[str, list[int]] = field(default_factory=dict)


Queries = Callable[[int, tuple[int, int]], Points]  # of a video's frames and (height, width)


def parse_queries(text: str, roi: str | None = None, mask: Path | None = None) -> Queries:
    """Read what `--queries`, `--roi` and `--mask` say, before the video is known.

    Returns:
        A function that makes the points for a video's frames and (height, width). It raises ValueError for a query
        outside the video, named by what the user wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The text is not one of the forms of `--queries`; a bad row of a file is named by its line.
    """
    if text.startswith("grid"):
        return _parse_grid(text, None if roi is None else _parse_roi(roi), None if mask is None else _read_mask(mask))
    if roi is not None or mask is not None:
        name, value = ("mask", mask) if roi is None else ("roi", roi)
        raise ValueError(f"{name}={value} with queries={text!r}; expected a grid with it, such as grid:16")
    if text.lower().endswith(".csv"):
        points, columns = read_points(Path(text))
    else:
        parts = text.strip(" ;").split(";")
        places = [f"queries={text!r}, point {i + 1}" for i in range(len(parts))]
        points = {place: _point(part.split(","), place) for place, part in zip(places, parts, strict=True)}
        columns = {}

    def queries(frames: int, image_size: tuple[int, int]) -> Points:
        for place, point in points.items():
            _check_point(point, place, frames, image_size)
        return Points(torch.tensor(list(points.values()), dtype=torch.float64).reshape(1, -1, 3), columns)

    return queries


def read_points(path: Path) -> tuple[dict[str, Point], dict[str, list[str]]]:
    """Read a .csv file with the columns t, x and y, in any order, separated by commas, semicolons or tabs.

    Returns:
        Its points, by where they stand, for messages; and its further columns.
    """
    try:
        check_regular(path, "a .csv file with the columns t, x and y")
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"queries={error}") from error
    points: dict[str, Point] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            first = file.readline()
            delimiter = max(DELIMITERS, key=first.count)
            header = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
            if not {"t", "x", "y"} <= set(header) or len(set(header)) < len(header):
                expected = "a header with the columns t, x and y, each name once"
                raise ValueError(f"queries={path}, line 1: {first.strip()!r}; expected {expected}")
            further: dict[str, list[str]] = {name: [] for name in header if name not in ("t", "x", "y") and name}
            rows = csv.reader(file, delimiter=delimiter)
            for row in rows:
                if not any(cell.strip() for cell in row):
                    continue
                place = f"queries={path}, line {rows.line_num + 1}"
                if len(row) != len(header):
                    raise ValueError(f"{place}: {delimiter.join(row)!r}; expected {len(header)} cells as in line 1")
                cells = dict(zip(header, row, strict=True))
                points[place] = _point([cells[name] for name in ("t", "x", "y")], place)
                for name, values in further.items():
                    values.append(cells[name].strip())
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"queries={path}: {error}; expected a text file in UTF-8") from error
    return points, further


def _parse_grid(text: str, roi: tuple[float, ...] | None, mask: tuple[Path, np.ndarray] | None) -> Queries:
    form = re.fullmatch(r"grid:(\d{1,9})(?:x(\d{1,9}))?(?:@(\d{1,9}|last))?", text)
    sides = [int(side) for side in form.groups()[:2] if side] if form else []
    if form is None or not all(1 <= side <= MAX_GRID_SIDE for side in sides):
        raise ValueError(f"queries={text!r}; expected {GRID}, with up to {MAX_GRID_SIDE} points a side")
    size = (sides[0], sides[-1])
    frame = form[3] or "0"

    def queries(frames: int, image_size: tuple[int, int]) -> Points:
        t = frames - 1 if frame == "last" else int(frame)
        if t >= frames:
            raise ValueError(f"queries={text!r}: t={t}; expected a frame index from 0 to {frames - 1}")
        if mask is None:
            return Points(grid_queries(size, image_size, t, roi=roi))
        path, labels = mask
        if labels.shape != image_size:
            height, width = image_size
            got = f"{labels.shape[1]} x {labels.shape[0]}"
            raise ValueError(f"mask={path} is {got}; expected the size of the video, {width} x {height}")
        points, objects = object_queries(labels, size, t, roi=roi)
        return Points(points, {"object": objects.tolist()})

    return queries


def _parse_roi(text: str) -> tuple[float, ...]:
    try:
        x0, y0, x1, y1 = map(float, text.split(","))
        valid = math.isfinite(x0 + y0 + x1 + y1) and 0 <= x0 < x1 and 0 <= y0 < y1
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"roi={text!r}; expected x0,y0,x1,y1 in pixels with x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def _read_mask(path: Path) -> tuple[Path, np.ndarray]:
    """A mask's objects, (H, W): values of grey and palette images, colours of others; 0 is black."""
    try:
        check_regular(path, "an image of a mask")
        image = open_image(path, str(path))
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"mask={error}") from error
    indexed = image.mode in ("P", "L", "1", "I;16", "I")
    values = np.asarray(image if indexed else image.convert("RGB")).astype(np.int64)
    if not indexed:  # colours, numbered from 1 on; black, if there is any, is the first of them
        colours, values = np.unique(values @ (1 << 16, 1 << 8, 1), return_inverse=True)
        values = values.reshape(image.size[::-1]) + (colours[0] != 0)
    count = len(np.unique(values[values > 0]))
    if not 1 <= count <= MAX_OBJECTS:
        expected = f"1 to {MAX_OBJECTS} objects, each a grey value, an index or a colour of its own, on black"
        raise ValueError(f"mask={path} holds {count} objects; expected {expected}")
    return path, values


def _point(cells: list[str], place: str) -> Point:
    try:
        t, x, y = map(float, cells)
        valid = math.isfinite(t + x + y)
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"{place}: {','.join(cells)!r}; expected three numbers t,x,y")
    return t, x, y


def _check_point(point: Point, place: str, frames: int, image_size: tuple[int, int]) -> None:
    t, x, y = point
    height, width = image_size
    if t != round(t) or not 0 <= t < frames:
        raise ValueError(f"{place}: t={t:g}; expected a frame index from 0 to {frames - 1}")
    if not 0 <= x <= width:
        raise ValueError(f"{place}: x={x:g}; expected 0 to {width}, the width of the video")
    if not 0 <= y <= height:
        raise ValueError(f"{place}: y={y:g}; expected 0 to {height}, the height of the video")

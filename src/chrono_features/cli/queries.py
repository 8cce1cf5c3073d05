"""The option `--queries`: a grid, points as text, or a .csv file."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..files import check_regular
from ..tracking import grid_queries

MAX_GRID_SIDE = 1024  # points

Point = tuple[float, float, float]  # (t, x, y)
Queries = Callable[[int, tuple[int, int]], Tensor]  # of a video's frames and (height, width), as (1, N, 3)


def parse_queries(text: str) -> Queries:
    """Read what `--queries` says, before the video is known.

    Returns:
        A function that makes queries for a video's frames and (height, width). It raises ValueError for a query outside
        the video, named by what the user wrote.

    Raises:
        FileNotFoundError: There is no such .csv file.
        ValueError: The text is not one of the forms of `--queries`; a bad row of a file is named by its line.
    """
    if text.startswith("grid"):
        return _parse_grid(text)
    if text.lower().endswith(".csv"):
        points = read_points(Path(text))
    else:
        parts = text.strip(" ;").split(";")
        places = [f"queries={text!r}, point {i + 1}" for i in range(len(parts))]
        points = {place: _point(part.split(","), place) for place, part in zip(places, parts, strict=True)}

    def queries(frames: int, image_size: tuple[int, int]) -> Tensor:
        for place, point in points.items():
            _check_point(point, place, frames, image_size)
        return torch.tensor(list(points.values()), dtype=torch.float64).reshape(1, -1, 3)

    return queries


def read_points(path: Path) -> dict[str, Point]:
    """Read a .csv file with the header t,x,y: its points, by where they stand, for messages."""
    try:
        check_regular(path, "a .csv file with the header t,x,y")
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"queries={error}") from error
    points = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        try:
            header = [cell.strip() for cell in next(rows, [])]
            if header != ["t", "x", "y"]:
                raise ValueError(f"queries={path}, line 1: {','.join(header)!r}; expected the header t,x,y")
            for row in rows:
                if any(cell.strip() for cell in row):
                    place = f"queries={path}, line {rows.line_num}"
                    points[place] = _point(row, place)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"queries={path}: {error}; expected a text file in UTF-8") from error
    return points


def _parse_grid(text: str) -> Queries:
    form = re.fullmatch(r"grid:(\d{1,9})(?:@(\d{1,9}))?", text)
    if form is None or not 1 <= int(form[1]) <= MAX_GRID_SIDE:
        expected = f"grid:N or grid:N@FRAME, with N points a side, up to {MAX_GRID_SIDE}"
        raise ValueError(f"queries={text!r}; expected {expected}")
    t = int(form[2] or 0)

    def queries(frames: int, image_size: tuple[int, int]) -> Tensor:
        if t >= frames:
            raise ValueError(f"queries={text!r}: t={t}; expected a frame index from 0 to {frames - 1}")
        return grid_queries(int(form[1]), image_size, t=t)

    return queries


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

"""Files of tracks: NumPy's `.npz`, and `.csv` and `.json` for other programs."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .config import distinct
from .files import check_regular, write_beside

Array = np.ndarray[Any, Any]
Columns = Mapping[str, Sequence[Any]]  # of the N points

MIN_NPZ_LIMIT = 1 << 28  # bytes that any file of tracks may inflate to
MAX_NPZ_RATIO = 100  # of a larger one's bytes to the file's
ABOUT = "about"  # the array of an .npz that holds columns and info as JSON
DECIMALS = 4  # of positions and probabilities in text


def write_npz(path: Path, arrays: Mapping[str, Array], columns: Columns, info: Mapping[str, Any]) -> None:
    about = {name: dict(value) for name, value in (("columns", columns), ("info", info)) if value}
    extra = {ABOUT: np.array(json.dumps(about))} if about else {}
    with write_beside(path) as file:
        np.savez_compressed(file, **arrays, **extra)  # type: ignore[arg-type]


def read_npz(path: Path, known: Collection[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays by name, and `columns` and `info` where it has them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, holds other arrays, or would inflate to what no tracks of its size hold.
    """
    check_regular(path, "what Tracks.save wrote")
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: _native(data[name]) for name in data.files if name != ABOUT}
            about = _about(data[ABOUT] if ABOUT in data.files else None)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged file raises anything
        raise ValueError(f"{path} is a truncated or corrupt .npz file: {error}") from error
    if not {"xy", "similarity"} <= arrays.keys() <= set(known):
        raise ValueError(f"{path} holds {sorted(arrays)}; expected arrays out of {sorted(known)}")
    return arrays, about


def long_form(arrays: Mapping[str, Array], columns: Columns) -> dict[str, Array]:
    """Columns of a table with a row for each point and frame; `arrays` are (B, N, T, ...)."""
    batch, count, frames = arrays["similarity"].shape
    video, point, t = np.meshgrid(np.arange(batch), np.arange(count), np.arange(frames), indexing="ij")
    table = {"video": video} if batch > 1 else {}
    table["point"] = point
    table |= {name: np.asarray(values, dtype=object)[point] for name, values in columns.items()}
    table |= {"t": t, "x": arrays["xy"][..., 0], "y": arrays["xy"][..., 1]}
    table |= {n: arrays[n] for n in ("similarity", "visible", "correlation", "confidence") if n in arrays}
    return {name: values.ravel() for name, values in table.items()}


def write_csv(path: Path, table: Mapping[str, Array]) -> None:
    def cells(values: Array) -> list[Any]:
        if values.dtype.kind == "f":
            return [f"{value:.{DECIMALS}f}" for value in values.tolist()]
        return values.astype(int).tolist() if values.dtype.kind == "b" else values.tolist()

    with write_beside(path) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(table)
        writer.writerows(zip(*map(cells, table.values()), strict=True))
        text.flush()
        text.detach()


def write_json(path: Path, arrays: Mapping[str, Array], columns: Columns, info: Mapping[str, Any]) -> None:
    """{"info": …, "points": [{"video", "point", …, "query", "xy", "visible", …}]}, a list of frames in each."""
    batch, count, _ = arrays["similarity"].shape
    points = []
    for b in range(batch):
        for n in range(count):
            one = {"video": b} if batch > 1 else {}
            one |= {"point": n, **{name: values[n] for name, values in columns.items()}}
            if "queries" in arrays:
                one["query"] = arrays["queries"][b, n].tolist()
            for name in ("xy", "similarity", "visible", "correlation", "confidence"):
                if name in arrays:
                    values = arrays[name][b, n]
                    one[name] = (values if values.dtype == bool else values.astype(float).round(DECIMALS)).tolist()
            points.append(one)
    with write_beside(path) as file:
        file.write(json.dumps({"info": dict(info), "points": points}).encode())


def _check_sizes(path: Path) -> None:
    """ValueError where it would inflate to what no tracks of its size hold."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise ValueError("it is not compressed as NumPy does")
    size = sum(member.file_size for member in members)
    limit = max(MIN_NPZ_LIMIT, MAX_NPZ_RATIO * path.stat().st_size)
    if size > limit:
        raise ValueError(f"it inflates to {size} bytes; expected at most {limit} of a file of this size")


def _native(array: Array) -> Array:
    """An array in this machine's byte order; torch knows no other."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an array of type {array.dtype}; expected numbers")
    if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
        raise ValueError("booleans other than 0 and 1")  # which are miscounted where they are taken for a mask
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _about(array: Array | None) -> dict[str, Any]:
    """`columns` and `info`; ValueError unless they are what `write_npz` writes."""
    if array is None:
        return {}
    if array.ndim or array.dtype.kind != "U":
        raise ValueError(f"about is {array.dtype} of shape {array.shape}; expected a text")
    about = json.loads(str(array), object_pairs_hook=distinct)
    valid = isinstance(about, dict) and about.keys() <= {"columns", "info"}
    if not valid or not all(isinstance(value, dict) for value in about.values()):
        raise ValueError("about holds something other than columns and info")
    if not all(isinstance(values, list) for values in about.get("columns", {}).values()):
        raise ValueError("columns holds something other than lists")
    return about

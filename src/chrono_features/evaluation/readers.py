"""Reading data sets from files: TAP-Vid's pickles, masks in DAVIS's layout, and videos beside a table of points."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..video import IMAGE_SUFFIXES, iter_frames, video_extra
from .data import SIZE, Dataset, Entry, LabelledVideo, MaskedVideo, Unusable
from .heldout import HeldOut
from .unpickling import load_arrays
from .warps import Warps

Size = tuple[int, int]  # (height, width)
TOLERANCE = 1e-3  # of the frame's size: how far outside of it a visible point may lie, for rounding
VOID = 255  # DAVIS-2017's mark for pixels that count as nothing


class Kind(NamedTuple):
    """A kind of data set."""

    open: Callable[[str, Size | None], Dataset]
    description: str


def open_dataset(kind: str, path: str, size: Size | None = SIZE) -> Dataset:
    """Opens a data set without reading its videos.

    Args:
        kind: One of `KINDS`.
        path: Where it lies.
        size: (height, width) to which frames are resized with Lanczos, as TAP-Vid does; None keeps them.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: Arguments or files are not as described.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; expected one of {', '.join(KINDS)}")
    if size is not None and not (len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
        raise ValueError(f"size={size!r}; expected (height, width), whole numbers above 0, or None")
    return KINDS[kind].open(os.fspath(path), size)


@dataclass
class PickledVideos:
    """Videos in TAP-Vid's layout, from one pickle or from several, of which one is in memory at a time.

    Attributes:
        kind: As in `KINDS`.
        path: A pickle, or a folder of them.
        size: What frames are resized to.
        holds: What a pickle may be: a dict name -> video, or a list.
        shards: Which files of a folder are meant; empty where the data set is one file.
        keys: What every video has.
        slack: Pixels by which visible points may lie outside of the frame.
        group_of: A video's group by its name; the kind where nothing is given.
    """

    kind: str
    path: str
    size: Size | None
    holds: tuple[type[dict] | type[list], ...] = (dict,)
    shards: str = ""
    keys: tuple[str, ...] = ("video", "points", "occluded")
    slack: float = 0.0
    group_of: Callable[[str], str] | None = None

    def __post_init__(self) -> None:
        self._files = _pickles(Path(self.path), self.shards)
        self._counts: dict[Path, int] = {}
        self._held: tuple[Path, Any] | None = None

    def __iter__(self) -> Iterator[Entry]:
        for file in self._files:
            for name, key in self._names(file):
                group = self.group_of(name) if self.group_of else self.kind
                yield Entry(name, group, partial(self._load, name, group, file, key))
        self._held = None  # nor is the last one kept

    def total(self) -> int | None:
        if not self._counts:
            return None
        return round(sum(self._counts.values()) / len(self._counts) * len(self._files))

    def fingerprint(self) -> dict[str, int | str]:
        return _hash(Path(self.path)) if Path(self.path).is_file() else _extent(self._files)

    def _names(self, file: Path) -> list[tuple[str, Any]]:
        """Every video's name and its key in the file."""
        contents = self._contents(file)
        if isinstance(contents, dict):
            names = [(str(key), key) for key in contents]
        else:
            names = [(f"{index:04}", index) for index in range(len(contents))]
        return [(f"{file.stem}/{name}", key) for name, key in names] if self.shards else names

    def _contents(self, file: Path) -> Any:
        if self._held is None or self._held[0] != file:
            self._held = None  # let go before the next is read: two may not fit in memory
            contents = load_arrays(file)
            if not isinstance(contents, self.holds):
                expected = " or ".join(t.__name__ for t in self.holds)
                raise ValueError(f"{file} holds {_described(contents)}; expected a {expected} of videos")
            if not contents:
                raise ValueError(f"{file} holds no videos; expected at least one")
            self._counts[file] = len(contents)
            self._held = file, contents
        return self._held[1]

    def _load(self, name: str, group: str, file: Path, key: Any) -> LabelledVideo:
        item, where = self._contents(file)[key], f"{file}, video {key}"
        if not isinstance(item, dict):
            raise ValueError(f"{where} is {_described(item)}; expected a dict of {', '.join(self.keys)}")
        if missing := [k for k in self.keys if k not in item]:
            raise ValueError(f"{where}: no {', '.join(missing)}; expected {', '.join(self.keys)}")
        video = item["video"]
        if not (isinstance(video, (list, tuple)) or (isinstance(video, np.ndarray) and video.ndim)):
            raise ValueError(f"{where}: video is {_described(video)}; expected an array or a list of frames")
        points = _array(where, item, "points", "iuf", (None, len(video), 2))
        occluded = _array(where, item, "occluded", "biu", points.shape[:2])
        known = item if "valid" in item else {"valid": np.ones_like(occluded, bool)}
        valid = _array(where, known, "valid", "biu", points.shape[:2])
        frames, native = _frames(_pictures(where, video), self.size)
        tolerance = TOLERANCE + self.slack / np.array(native[::-1])
        return _labelled(name, group, frames, points, occluded.astype(bool), valid.astype(bool), tolerance)


class MaskFolder:
    """Videos with masks in DAVIS's layout, at their own size: JPEGImages/480p/NAME/*.jpg, Annotations/480p/NAME/*.png.

    The folder of the resolution may have another name, or be left out; where there are several, 480p is read. Values
    of a video's masks, in order, become the objects 1, 2, ... A value of 255 beside others is DAVIS-2017's void and
    becomes background, as its own evaluation does; on its own it is the one object, as in DAVIS-2016.
    """

    kind = "masks"

    def __init__(self, path: str, size: Size | None = None) -> None:
        self.path = path
        images = Path(path, "JPEGImages")
        self._images = _sequences(images)
        self._masks = Path(path, "Annotations", self._images.relative_to(images))
        for folder in (self._images, self._masks):
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: no such folder; expected JPEGImages and Annotations as in DAVIS")
        self._names = sorted(p.name for p in self._images.iterdir() if p.is_dir() and _images_of(p))
        if not self._names:
            raise ValueError(f"{self._images}: no folders of images; expected one for each video")

    def __iter__(self) -> Iterator[Entry]:
        for name in self._names:
            yield Entry(name, self.kind, partial(self._load, name))

    def total(self) -> int:
        return len(self._names)

    def fingerprint(self) -> dict[str, int | str]:
        return _extent([f for name in self._names for root in (self._images, self._masks) for f in _files(root / name)])

    def _load(self, name: str) -> MaskedVideo:
        paths = [self._masks / name / f"{image.stem}.png" for image in _images_of(self._images / name)]
        if missing := [path for path in paths if not path.is_file()]:
            raise Unusable(f"{len(missing)} of {len(paths)} frames have no mask; the first is {missing[0]}")
        frames, size = _frames(_read_frames(self._images / name), None)
        masks = [_mask(path) for path in paths]
        if unlike := {mask.shape for mask in masks} - {size}:
            raise Unusable(f"a mask is (H, W)={unlike.pop()}; expected the frames' {size}")
        values = sorted({value for mask in masks for value in np.unique(mask).tolist()} - {0})
        if not values:
            raise Unusable("no mask shows an object; expected at least one")
        if len(values) > 1 and values[-1] == VOID:
            values.pop()
        number = np.zeros(256, np.int64)
        number[values] = range(1, len(values) + 1)
        return MaskedVideo(name, self.kind, frames, number[np.stack(masks)])


class _Row(NamedTuple):
    line: int
    track: str
    t: int
    xy: tuple[float, float]
    visible: bool


class PointsTable:
    """Videos, or folders of images, beside a `points.csv` of video,track,t,x,y,visible and maybe group.

    Positions are in pixels of the video, its upper left corner is (0, 0); they may be left empty where `visible` is 0.
    What happens to a track in frames without a row is not known.
    """

    kind = "csv"
    columns = ("video", "track", "t", "x", "y", "visible")

    def __init__(self, path: str, size: Size | None) -> None:
        self.path, self.size = path, size
        self._table = Path(path, "points.csv")
        if not self._table.is_file():
            raise FileNotFoundError(f"{self._table}: no such file; expected a table of {', '.join(self.columns)}")
        self._groups: dict[str, str] = {}
        self._rows: dict[str, list[_Row]] = {}
        try:
            self._read()
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{self._table}: not a table in UTF-8 ({error})") from error
        if not self._rows:
            raise ValueError(f"{self._table} holds no points; expected at least one")

    def __iter__(self) -> Iterator[Entry]:
        for name, group in self._groups.items():
            yield Entry(name, group, partial(self._load, name, group))

    def total(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> dict[str, int | str]:
        return _extent([self._table, *(file for name in self._rows for file in _files(Path(self.path, name)))])

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

    def _load(self, name: str, group: str) -> LabelledVideo:
        rows = self._rows[name]
        frames, (height, width) = _frames(_read_frames(Path(self.path, name)), self.size)
        numbers = {track: n for n, track in enumerate(dict.fromkeys(row.track for row in rows))}
        shape = len(numbers), len(frames)
        points, occluded, valid = np.full((*shape, 2), np.nan), np.ones(shape, bool), np.zeros(shape, bool)
        for row in rows:
            if row.t >= len(frames):
                where = f"{self._table}, line {row.line}"
                raise ValueError(f"{where}: t={row.t}; expected less than {len(frames)}, the frames of {name}")
            at = numbers[row.track], row.t
            points[at], occluded[at], valid[at] = row.xy, not row.visible, True
        return _labelled(name, group, frames, points / (width, height), occluded, valid)


def _row(where: str, line: int, fields: dict[str, str]) -> _Row:
    def value(column: str, convert: Callable[[str], Any], expected: str) -> Any:
        try:
            return convert(fields[column].strip())
        except (KeyError, ValueError):
            raise ValueError(f"{where}: {column}={fields[column]!r}; expected {expected}") from None

    t = value("t", int, "a whole number")
    if t < 0:
        raise ValueError(f"{where}: t={t}; expected 0 or more")
    visible = value("visible", {"0": False, "1": True}.__getitem__, "0 or 1")

    def position(text: str) -> float:
        number = float(text) if visible or text else math.nan
        if visible and not math.isfinite(number):
            raise ValueError
        return number

    x, y = (value(column, position, "a number of pixels") for column in ("x", "y"))
    return _Row(line, fields["track"], t, (x, y), visible)


def _labelled(
    name: str,
    group: str,
    frames: Tensor,
    points: NDArray[Any],  # (N, T, 2) of the frame's size
    occluded: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    tolerance: float | NDArray[np.float64] = TOLERANCE,
) -> LabelledVideo:
    """Tracks in pixels of `frames`, once they are known to be good for measuring."""
    visible = ~occluded & valid
    if not visible.any():
        raise Unusable("no point is visible anywhere; expected at least one")
    points = points.astype(np.float64)
    inside = ((points >= -tolerance) & (points <= 1 + tolerance)).all(-1)  # NaN is not inside
    if (outside := visible & ~inside).any():
        track, t = np.argwhere(outside)[0]
        x, y = points[track, t]
        raise Unusable(
            f"{outside.sum()} visible points lie outside of the frame, the first of them is track {track} in frame {t} "
            f"at ({x:.6g}, {y:.6g}); expected 0 to 1 of its width and height"
        )
    points[visible] = points[visible].clip(0, 1)
    points[~np.isfinite(points)] = 0
    height, width = frames.shape[-2:]
    return LabelledVideo(name, group, frames, points * (width, height), occluded, valid)


def _frames(pictures: Iterable[NDArray[np.uint8]], size: Size | None) -> tuple[Tensor, Size]:
    """The frames at `size`, (T, 3, H, W), and the (height, width) that they had."""
    pil = _extra("PIL.Image")
    # A bytearray grows in place: the clip is held once, and one frame of full size beside it.
    data, shapes = bytearray(), []
    for picture in pictures:
        shapes.append(picture.shape[:2])
        if shapes[-1] != shapes[0]:
            raise Unusable(f"frame {len(shapes) - 1} is (H, W)={shapes[-1]}; expected {shapes[0]} like those before it")
        if size is not None:
            picture = np.asarray(pil.fromarray(picture).resize(size[::-1], pil.Resampling.LANCZOS))
        data += picture.transpose(2, 0, 1).tobytes()
    if len(shapes) < 2:
        raise Unusable(f"{len(shapes)} frames; expected at least 2")
    return torch.frombuffer(data, dtype=torch.uint8).view(len(shapes), 3, *(size or shapes[0])), shapes[0]


def _pictures(where: str, video: Sequence[Any] | NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3) of a pickled video, decoded one by one."""
    for t, frame in enumerate(video):
        if isinstance(frame, bytes):
            yield np.asarray(_picture(io.BytesIO(frame), f"frame {t}").convert("RGB"))
        elif isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape[2:] == (3,) and frame.size:
            yield frame
        else:
            raise ValueError(f"{where}: frame {t} is {_described(frame)}; expected JPEG bytes or uint8 (H, W, 3)")


def _read_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3) of a video file or of a folder of images."""
    _extra("av" if path.is_file() else "PIL.Image")
    try:
        for frame in iter_frames(path):
            yield frame.permute(1, 2, 0).numpy()
    except ValueError as error:
        raise Unusable(str(error)) from error


def _mask(path: Path) -> NDArray[np.uint8]:
    """(H, W) of a picture with a palette, or in grey."""
    image = _picture(path, str(path))
    if image.mode in ("P", "L"):
        return np.asarray(image)
    channels = np.asarray(image.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise Unusable(f"{path} is in colour ({image.mode}); expected a palette, or grey")
    return channels[..., 0]


def _picture(source: io.BytesIO | Path, what: str) -> Any:
    pil = _extra("PIL.Image")
    try:
        image = pil.open(source)
        image.load()
    except (OSError, SyntaxError, pil.DecompressionBombError) as error:
        raise Unusable(f"{what} does not decode ({error})") from error
    return image


def _array(where: str, item: dict[str, Any], key: str, kinds: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """`item[key]`, an array of one of these kinds of dtype and of this shape, where None is any length."""
    array = item[key]
    if (
        not isinstance(array, np.ndarray)
        or array.dtype.kind not in kinds
        or len(array.shape) != len(shape)
        or any(wanted not in (None, got) for got, wanted in zip(array.shape, shape, strict=True))
    ):
        dtype = "numbers" if "f" in kinds else "bool"
        wanted = ", ".join("N" if n is None else str(n) for n in shape)
        raise ValueError(f"{where}: {key} is {_described(array)}; expected {dtype} of shape ({wanted})")
    return np.asarray(array)


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _pickles(path: Path, shards: str) -> list[Path]:
    """The files of a data set, in order."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a pickle{shards and f' or a folder of {shards}'}")
    if path.is_file():
        return [path]
    if not shards:
        raise ValueError(f"{path} is a folder; expected the pickle in it")
    if not (files := sorted(path.glob(shards))):
        raise ValueError(f"{path}: no file is named {shards}; expected at least one")
    return files


def _sequences(folder: Path) -> Path:
    """Where the folders of videos lie: in `folder`, or in that of a resolution."""
    below = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    resolutions = sorted(p.name for p in below if any(inner.is_dir() for inner in p.iterdir()))
    if len(resolutions) > 1 and "480p" not in resolutions:
        raise ValueError(f"{folder}: resolutions {', '.join(resolutions)}; expected 480p, or only one")
    return folder / ("480p" if "480p" in resolutions else "".join(resolutions))


def _images_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.glob("*") if p.is_file())


def _extent(files: Sequence[Path]) -> dict[str, int | str]:
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def _hash(path: Path) -> dict[str, int | str]:
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return {"bytes": path.stat().st_size, "sha256": sha256.hexdigest()}


def _extra(module: str) -> Any:
    try:
        return video_extra(module)
    except ImportError as error:
        name = module.split(".")[0]
        raise ImportError(f"{name} is missing; data sets need it: pip install chrono-features[eval]") from error


def _real_group(name: str) -> str:
    for prefix, kind in {"planar": "precision", "kitchen": "precision", "badja": "articulated"}.items():
        if name.startswith(prefix):
            return f"{kind}/{prefix}"
    return f"other/{name.split('_')[0]}"


KINDS = {
    "davis": Kind(partial(PickledVideos, "davis"), "TAP-Vid-DAVIS, one pickle"),
    "rgb-stacking": Kind(partial(PickledVideos, "rgb-stacking", holds=(list,)), "TAP-Vid-RGB-Stacking, one pickle"),
    "kinetics": Kind(
        # Whoever follows TAP-Vid's script has points half a pixel to the upper left, and so some outside of the frame.
        partial(PickledVideos, "kinetics", holds=(list, dict), shards="*_of_0010.pkl", slack=0.5),
        "TAP-Vid-Kinetics, a folder of *_of_0010.pkl or one of them",
    ),
    "robotap": Kind(partial(PickledVideos, "robotap", shards="*.pkl"), "RoboTAP, a folder of pickles or one of them"),
    "real_tracks": Kind(
        partial(PickledVideos, "real_tracks", keys=("video", "points", "occluded", "valid"), group_of=_real_group),
        "real videos whose points are not known in every frame, one pickle",
    ),
    "masks": Kind(MaskFolder, "masks in DAVIS's layout: JPEGImages/480p/NAME/*.jpg, Annotations/480p/NAME/*.png"),
    "warps": Kind(Warps, "exact warps of the photographs below a folder"),
    "synthetic": Kind(HeldOut, "held-out synthetic clips; a folder of photographs for textures, or no path"),
    "csv": Kind(PointsTable, "a folder of videos beside points.csv: video,track,t,x,y,visible and maybe group"),
}

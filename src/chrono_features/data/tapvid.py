"""Videos in TAP-Vid's pickles."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import check_regular
from ..video.images import natural, not_hidden
from .clip import Clip, Entry
from .reading import TOLERANCE, Size, as_rgb, decoded, extent, labelled, stacked
from .unpickling import load_arrays

MIN_LIMIT = 1 << 27  # bytes of a video's frames that any file may make
MAX_RATIO = 200  # of a larger video's bytes to the stored ones: JPEG of flat frames comes near


@dataclass
class TapVid:
    """Videos in TAP-Vid's layout, from one pickle or from several, of which one is in memory at a time.

    Attributes:
        kind: As in `readers.KINDS`.
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
        return _hash(Path(self.path)) if Path(self.path).is_file() else extent(self._files)

    def _names(self, file: Path) -> list[tuple[str, Any]]:
        """Every video's name and its key in the file."""
        contents = self._contents(file)
        if isinstance(contents, dict):
            names = [(_name(file, key), key) for key in contents]
            if len(dict(names)) < len(names):
                twice = next(name for name, key in names if isinstance(key, int) and name in contents)
                raise ValueError(f"{file}: keys {twice!r} and {twice}; expected one video of that name")
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

    def _load(self, name: str, group: str, file: Path, key: Any) -> Clip:
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
        frames, native = stacked(_pictures(where, video, self.size), self.size)
        tolerance = TOLERANCE + self.slack / np.array(native[::-1])
        return labelled(name, group, frames, points, occluded.astype(bool), valid.astype(bool), tolerance)


def _name(file: Path, key: str | int) -> str:
    """A video's name; ValueError unless results can hold it."""
    if isinstance(key, int) and key.bit_length() > 64:  # Python writes no integer of thousands of digits
        raise ValueError(f"{file}: an integer key of {key.bit_length()} bits; expected text or at most 64")
    name = str(key)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{file}: key {key!r}; expected text that UTF-8 can hold") from error
    return name


def _pictures(
    where: str,
    video: Sequence[Any] | NDArray[Any],
    size: Size | None,
) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3) of a pickled video, decoded one by one.

    Raises:
        ValueError: A frame is none, or all of them, resized to `size`, are out of proportion to what the file holds.
    """
    stored = _stored_bytes(video)
    limit = max(MIN_LIMIT, MAX_RATIO * stored)
    for t, frame in enumerate(video):
        if isinstance(frame, bytes):
            image = decoded(io.BytesIO(frame), f"frame {t}", max_pixels=limit // 3)
            picture = np.asarray(as_rgb(image, f"frame {t}"))
        elif isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape[2:] == (3,) and frame.size:
            picture = frame
        else:
            raise ValueError(f"{where}: frame {t} is {_described(frame)}; expected JPEG bytes or uint8 (H, W, 3)")
        height, width = size or picture.shape[:2]
        if 3 * height * width * len(video) > limit:  # `stacked` lets no later frame be larger
            raise ValueError(
                f"{where}: {len(video)} frames take more than {limit} bytes, of {stored} stored ones; "
                f"expected at most {MAX_RATIO} times as many"
            )
        yield picture


def _stored_bytes(video: Sequence[Any] | NDArray[Any]) -> int:
    """The bytes that the file holds of a video. A pickle may list one frame many times, which is stored once."""
    if isinstance(video, np.ndarray):
        return video.nbytes
    frames = {id(frame): frame for frame in video}.values()
    return sum(f.nbytes if isinstance(f, np.ndarray) else len(f) for f in frames if isinstance(f, (bytes, np.ndarray)))


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
    if not path.is_dir() or not shards:
        check_regular(path, f"a pickle{shards and f' or a folder of {shards}'}")
        return [path]
    if not (files := sorted(not_hidden(path.glob(shards)), key=natural)):
        raise ValueError(f"{path}: no file is named {shards}; expected at least one")
    return files


def _hash(path: Path) -> dict[str, int | str]:
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return {"bytes": path.stat().st_size, "sha256": sha256.hexdigest()}

"""What readers of files share: pictures, frames at one size, and tracks that are good for measuring."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..extras import require
from ..video.images import IMAGE_SUFFIXES, not_hidden, open_image, photographs_below, to_rgb
from ..video.reading import iter_frames
from .clip import Clip, Unusable

Size = tuple[int, int]  # (height, width)
TOLERANCE = 1e-3  # of the frame's size: how far outside of it a visible point may lie, for rounding


def labelled(
    name: str,
    group: str,
    frames: Tensor,
    points: NDArray[Any],  # (N, T, 2) of the frame's size
    occluded: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    tolerance: float | NDArray[np.float64] = TOLERANCE,
) -> Clip:
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
    xy = torch.from_numpy(points * (width, height))
    return Clip(frames, xy, torch.from_numpy(~occluded), torch.from_numpy(valid), name=name, group=group)


def stacked(pictures: Iterable[NDArray[np.uint8]], size: Size | None) -> tuple[Tensor, Size]:
    """The frames at `size`, (T, 3, H, W), and the (height, width) that they had."""
    pil = require("PIL.Image", "eval")
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


def read_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3) of a video file or of a folder of images."""
    require("av" if path.is_file() else "PIL.Image", "eval")
    try:
        for frame in iter_frames(path):
            yield frame.permute(1, 2, 0).numpy()
    except ValueError as error:
        raise Unusable(str(error)) from error


def decoded(
    source: io.BytesIO | Path,
    what: str,
    *,
    every_bit: bool = False,
    max_pixels: int | None = None,
) -> Any:
    """`images.open_image` for data sets; `what` names the image where it does not decode."""
    require("PIL.Image", "eval")
    try:
        return open_image(source, what, every_bit=every_bit, max_pixels=max_pixels)
    except ValueError as error:
        raise Unusable(str(error)) from error


def as_rgb(image: Any, what: str) -> Any:
    """`images.to_rgb` for data sets; `what` names the image where it has no such form."""
    try:
        return to_rgb(image, what)
    except ValueError as error:
        raise Unusable(str(error)) from error


def files_of(path: Path) -> list[Path]:
    """A video's files: itself, or those in its folder."""
    return [path] if path.is_file() else sorted(p for p in not_hidden(path.glob("*")) if p.is_file())


def extent(files: Sequence[Path]) -> dict[str, int | str]:
    """A fingerprint of files that are not read for it."""
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def names_and_bytes(folder: str, files: list[Path]) -> str:
    """A checksum of files' names and sizes; not of their content, for they may be many."""
    about = [(file.relative_to(folder).as_posix(), file.stat().st_size) for file in files]
    return f"{zlib.crc32(repr(about).encode()):08x}"


def photographs(folder: str | os.PathLike[str]) -> list[Path]:
    """The photographs below a folder, sorted.

    Raises:
        FileNotFoundError: It is no folder.
        ValueError: It holds none.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"path: {os.fspath(folder)} is no folder; expected one with photographs")
    found = photographs_below(Path(folder))
    if not found:
        raise ValueError(f"path: no photographs below {os.fspath(folder)}; expected {', '.join(IMAGE_SUFFIXES)} files")
    return found

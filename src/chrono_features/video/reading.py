"""Frames from video files, by PyAV, and from folders of images, by Pillow. Both come with the `video` extra."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..checks import check_choice, check_integer, check_number
from .damage import DEFAULT_FPS, Damage, counted, rate_of
from .decoding import decode, existing, open_video, video_stream
from .images import IMAGE_SUFFIXES, frame_files, holds_images, read_frame

Errors = Literal["raise", "warn"]  # of what is damaged in a file


@dataclass(frozen=True)
class Video:
    """Frames read from a file. Frame i of these is frame `start + i * every` of the file.

    Attributes:
        frames: (T, 3, H, W) uint8.
        fps: Frames per second of `frames`: the file's rate over `every`.
        start: The file's frame that comes first.
        every: Step in frames of the file.
        doubtful: Indices of the frames that are damaged, or predicted from damaged ones; only with `errors="warn"`.
    """

    frames: Tensor
    fps: float
    start: int = 0
    every: int = 1
    doubtful: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.frames.shape[-2], self.frames.shape[-1]


def read_video(
    path: str | os.PathLike[str],
    *,
    start: int = 0,
    end: int | None = None,
    every: int = 1,
    max_frames: int | None = None,
    stream: int | None = None,
    fps: float | None = None,
    errors: Errors = "raise",
    on_frame: Callable[[int], object] | None = None,
) -> Video:
    """Reads frames `start, start + every, ...` before `end`, at most `max_frames`, like a slice.

    Rotation and mirroring that the file asks for are applied. Coordinates are in stored pixels: where these are not
    square, a warning says so. Frames that are not asked for are decoded, because only that counts them reliably, and
    dropped at once.

    Args:
        path: A video, or a folder of images of one size (JPEG, PNG, BMP, TIFF, WebP), taken in the natural order of
            their names: 2.png before 10.png. Hidden files are left out. A video is a file, never a URL.
        start: First frame.
        end: Frame to stop before; None reads to the end.
        every: Step.
        max_frames: Most frames to return.
        stream: Index in the file of the video stream to read, as ffprobe shows it; None takes the one that FFmpeg
            finds best.
        fps: Frames per second of a folder of images, 24 if None.
        errors: "raise" stops at the first frame that is damaged or missing. "warn" returns all that decodes, says in a
            warning which frames are doubtful, and lists them in `doubtful`.
        on_frame: Called after every frame with the number of frames so far.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The `video` extra is not installed.
        ValueError: A number is out of range, no frame lies in the range, or the file is not a readable video, holds no
            images, or is damaged within the range.
    """
    chosen = _chosen(path, start, end, every, max_frames, stream, errors)
    rate = frame_rate(path, stream=stream, fps=fps) / every
    # A bytearray grows in place: the clip is held once, not as a list of frames and again as their stack.
    data, shape, doubtful = bytearray(), torch.Size(), []
    for count, (frame, doubt) in enumerate(chosen, 1):
        shape = frame.shape
        data += frame.numpy().data
        if doubt:
            doubtful.append(count - 1)
        if on_frame is not None:
            on_frame(count)
    frames = torch.frombuffer(data, dtype=torch.uint8).view(-1, *shape)
    return Video(frames, rate, start, every, tuple(doubtful))


def iter_frames(
    path: str | os.PathLike[str],
    *,
    start: int = 0,
    end: int | None = None,
    every: int = 1,
    max_frames: int | None = None,
    stream: int | None = None,
    errors: Errors = "raise",
) -> Iterator[Tensor]:
    """The frames that `read_video` would return, one by one, each (3, H, W) uint8. Raises what `read_video` raises."""
    return (frame for frame, _ in _chosen(path, start, end, every, max_frames, stream, errors))


def frame_rate(path: str | os.PathLike[str], *, stream: int | None = None, fps: float | None = None) -> float:
    """Frames per second that the file states; of a folder of images `fps`, or 24.

    Raises:
        ValueError: `fps` is not above 0, or given for a file.
    """
    if fps is not None:
        check_number("fps", fps, "a number above 0")
    path = existing(path)
    if holds_images(path):
        return float(fps or DEFAULT_FPS)
    if fps is not None:
        raise ValueError(f"fps={fps!r}; expected no rate for {path}: only a folder of images has none of its own")
    with open_video(path) as container:
        return rate_of(video_stream(container, path, stream))


def _chosen(
    path: str | os.PathLike[str],
    start: int,
    end: int | None,
    every: int,
    max_frames: int | None,
    stream: int | None,
    errors: Errors,
) -> Iterator[tuple[Tensor, bool]]:
    """Checks what was asked for, and gives the frames, each with whether it is doubtful."""
    check_integer("start", start, 0)
    check_integer("every", every, 1)
    for name, value, minimum in (("end", end, start + 1), ("max_frames", max_frames, 1), ("stream", stream, 0)):
        if value is not None:
            check_integer(name, value, minimum)
    check_choice("errors", errors, get_args(Errors))
    path = existing(path)
    if holds_images(path) and stream is not None:
        raise ValueError(f"stream={stream}; expected None for {path}: images have no streams")
    stop = sys.maxsize if end is None else end
    if max_frames is not None:
        stop = min(stop, start + (max_frames - 1) * every + 1)
    return _select(path, range(start, stop, every), stream, errors)


def _select(path: Path, wanted: range, stream: int | None, errors: Errors) -> Iterator[tuple[Tensor, bool]]:
    """Keeps frames by index, converts only those, and insists on one size and on at least one frame."""
    shape, seen = None, 0
    frames = _images(path) if holds_images(path) else _decoded(path, stream, errors)
    for seen, (convert, doubt) in enumerate(itertools.islice(frames, min(wanted.stop, sys.maxsize)), 1):
        index = seen - 1
        if index not in wanted:
            continue
        frame = torch.from_numpy(convert()).permute(2, 0, 1).contiguous()
        del convert
        if shape not in (None, frame.shape):
            got, expected = tuple(frame.shape), tuple(shape)
            raise ValueError(f"{path}: frame {index} is (3, H, W)={got}; expected {expected} like those before it")
        shape = frame.shape
        yield frame, doubt
    if shape is None:
        raise ValueError(f"start={wanted.start}; expected a frame of {path}, which has {counted(seen)}")


def _images(folder: Path) -> Iterator[tuple[Callable[[], np.ndarray], bool]]:
    files = frame_files(folder)
    if not files:
        raise ValueError(f"{folder}: a folder without images; expected {', '.join(IMAGE_SUFFIXES)}")
    for file in files:
        yield partial(read_frame, file), False


def _decoded(path: Path, stream: int | None, errors: Errors) -> Iterator[tuple[Callable[[], np.ndarray], bool]]:
    """For every frame, a function that converts it to (H, W, 3) RGB, and whether it is doubtful.

    Frames before a fault come out first, so that whoever stops there never meets it.
    """
    damage, given = Damage(path), 0
    # Threads that decode frames in parallel lose count of which packet was at fault: at the first one, the file is
    # decoded again without them.
    passes = ["AUTO", "SLICE"] if errors == "raise" else ["SLICE"]
    for threads in passes:
        for decoded in decode(path, stream, threads, tell=threads == passes[0]):
            if decoded.fault and threads == "AUTO":
                break
            if decoded.fault and errors == "raise":
                raise ValueError(damage.refusal(decoded.number, decoded.fault))
            damage.warn(decoded.number, decoded.frame is None, decoded.fault, decoded.doubtful)
            if decoded.frame is not None and decoded.number >= given:
                given += 1
                yield decoded.to_rgb, decoded.doubtful
            del decoded
        else:
            break
    if not given:
        raise ValueError(f"{path}: no frame could be decoded; is the file damaged?")

"""Video files in, video files out, with PyAV; folders of images with Pillow. Both come with the `video` extra."""

from __future__ import annotations

import itertools
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .extras import MissingExtra, how_to_install, require
from .files import write_beside

DEFAULT_FPS = 24.0  # of a folder of images, and of the rare file that tells no rate
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
VIDEO_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}


@dataclass(frozen=True)
class Video:
    """Frames read from a file. Frame i of these is frame `start + i * every` of the file.

    Attributes:
        frames: (T, 3, H, W) uint8.
        fps: Frames per second of `frames`: the file's rate over `every`.
        start: The file's frame that comes first.
        every: Step in frames of the file.
    """

    frames: Tensor
    fps: float
    start: int = 0
    every: int = 1

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
    on_frame: Callable[[int], object] | None = None,
) -> Video:
    """Reads frames `start, start + every, ...` before `end`, at most `max_frames`, like a slice.

    The container's rotation and mirroring are applied. Pixels are taken to be square. Frames that are not asked for are
    decoded, because only that counts them reliably, and dropped at once.

    Args:
        path: A video, or a folder of .jpg and .png images of one size, taken in the order of their names.
        start: First frame.
        end: Frame to stop before; None reads to the end.
        every: Step.
        max_frames: Most frames to return.
        on_frame: Called after every frame with the number of frames so far.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The `video` extra is not installed.
        ValueError: A number is out of range, no frame lies in the range, or the file is not a readable video, holds no
            pictures, or breaks off within the range.
    """
    chosen = iter_frames(path, start=start, end=end, every=every, max_frames=max_frames)
    fps = frame_rate(path) / every
    # A bytearray grows in place: the clip is held once, not as a list of frames and again as their stack.
    data, shape = bytearray(), torch.Size()
    for count, frame in enumerate(chosen, 1):
        shape = frame.shape
        data += frame.numpy().data
        if on_frame is not None:
            on_frame(count)
    return Video(torch.frombuffer(data, dtype=torch.uint8).view(-1, *shape), fps, start, every)


def iter_frames(
    path: str | os.PathLike[str],
    *,
    start: int = 0,
    end: int | None = None,
    every: int = 1,
    max_frames: int | None = None,
) -> Iterator[Tensor]:
    """The frames that `read_video` would return, one by one, each (3, H, W) uint8. Raises what `read_video` raises."""
    _check_whole("start", start, 0)
    _check_whole("every", every, 1)
    if end is not None:
        _check_whole("end", end, start + 1)
    if max_frames is not None:
        _check_whole("max_frames", max_frames, 1)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a video or a folder of images")
    if max_frames is not None:
        stop = start + (max_frames - 1) * every + 1
        end = stop if end is None else min(end, stop)
    return _select(path, start, end, every)


def frame_rate(path: str | os.PathLike[str]) -> float:
    """Frames per second that the file states; `DEFAULT_FPS` for a folder of images."""
    path = Path(path)
    if path.is_dir():
        return DEFAULT_FPS
    with _open(path) as container:
        stream = _video_stream(container, path)
        return float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray | Tensor],
    fps: float,
) -> None:
    """Writes H.264 in yuv420p, which every player knows. An existing file survives a failure.

    Odd sizes are padded to even ones by repeating the last row and column.

    Args:
        path: Ends in .mp4, .mov or .mkv.
        frames: Each a uint8 array (H, W, 3) or tensor (3, H, W), all of one size.
        fps: Frames per second.

    Raises:
        FileNotFoundError: The parent folder is missing.
        ImportError: The `video` extra is not installed.
        ValueError: The suffix, the rate or a frame is not as described, or there are no frames.
    """
    path = Path(path)
    if path.suffix.lower() not in VIDEO_FORMATS:
        raise ValueError(f"path={str(path)!r}; expected a name that ends in {', '.join(VIDEO_FORMATS)}")
    if not (isinstance(fps, (int, float)) and math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps={fps!r}; expected a number above 0")
    av = require("av", "video")
    if "libx264" not in av.codecs_available:
        raise MissingExtra(f"this PyAV was built without libx264; expected a wheel of {how_to_install('video')}")
    arrays = map(_to_array, itertools.count(), frames)
    with write_beside(path) as file, av.open(file, "w", format=VIDEO_FORMATS[path.suffix.lower()]) as container:
        first = next(arrays, None)
        if first is None:
            raise ValueError("frames holds no frame; expected at least one")
        height, width = first.shape[:2]
        # Untagged video is guessed to be BT.601 or BT.709 by its size: say which it is.
        stream = container.add_stream("libx264", Fraction(fps).limit_denominator(1001), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.color_range = context.colorspace = context.color_primaries = context.color_trc = 1  # limited, BT.709
        for i, array in enumerate(itertools.chain([first], arrays)):
            if array.shape != first.shape:
                raise ValueError(f"frames[{i}] of shape {array.shape}; expected the first one's {first.shape}")
            array = np.pad(array, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(array, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())


def _check_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}; expected a whole number, {least} or more")


def _select(path: Path, start: int, end: int | None, every: int) -> Iterator[Tensor]:
    """Keeps frames by index, converts only those, and insists on one size and on at least one frame."""
    shape, seen = None, 0
    for seen, convert in enumerate(itertools.islice(_images(path) if path.is_dir() else _decode(path), end), 1):
        index = seen - 1
        if index < start or (index - start) % every:
            continue
        frame = torch.from_numpy(convert()).permute(2, 0, 1).contiguous()
        if shape not in (None, frame.shape):
            got, expected = tuple(frame.shape), tuple(shape)
            raise ValueError(f"{path}: frame {index} is (3, H, W)={got}; expected {expected} like those before it")
        shape = frame.shape
        yield frame
    if shape is None:
        raise ValueError(f"start={start}; expected a frame of {path}, which has {seen} frames")


def _images(folder: Path) -> Iterator[Callable[[], np.ndarray]]:
    names = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not names:
        raise ValueError(f"{folder}: a folder without images; expected {', '.join(IMAGE_SUFFIXES)}")
    for name in names:
        yield partial(_read_image, name)


def _read_image(path: Path) -> np.ndarray:
    pil, ops = require("PIL.Image", "video"), require("PIL.ImageOps", "video")
    try:
        with pil.open(path) as image:
            return np.array(ops.exif_transpose(image).convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def _decode(path: Path) -> Iterator[Callable[[], np.ndarray]]:
    """For every frame, in order of presentation, a function that converts it to (H, W, 3) RGB.

    Frames before a defect come out first, so that whoever stops there never meets it.
    """
    av = require("av", "video")
    count, end, defect = 0, 0, ""
    with _open(path) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "AUTO"
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    defect = "incomplete data"
                    break
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    if count:
                        raise
                    continue  # a recording that starts amid a group of pictures: decoding begins with the next one
                end = max(end, (packet.pts or 0) + (packet.duration or 0))
                for frame in frames:
                    count += 1
                    yield partial(_to_rgb, frame)
        except av.error.FFmpegError as error:
            defect = error.strerror or str(error)
        if defect:
            for frame in _flush(stream):
                count += 1
                yield partial(_to_rgb, frame)
        missing = _declared_duration(stream) - float(end * stream.time_base)
        if not defect and missing > 2 / float(stream.average_rate or DEFAULT_FPS):
            defect = f"it ends {missing:.2f} s before the duration that it states"
    if not count:
        raise ValueError(f"{path}: no frame could be decoded{f' ({defect})' if defect else ''}; is the file damaged?")
    if defect:
        raise ValueError(
            f"{path}: truncated or damaged after {count} frames ({defect}); "
            f"expected a whole file, or end={count} to use what is there"
        )


def _open(path: Path) -> Any:
    av = require("av", "video")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a video")
    try:
        return av.open(str(path))
    except av.error.FFmpegError as error:
        raise ValueError(f"{path}: not a readable video, or truncated ({error.strerror})") from error


def _video_stream(container: Any, path: Path) -> Any:
    cover_art = require("av.stream", "video").Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover_art]
    if not streams:
        others = sorted({s.type for s in container.streams if s.type != "video"}) or ["nothing"]
        raise ValueError(f"{path}: no video stream; it holds only {', '.join(others)}")
    return streams[0]


def _declared_duration(stream: Any) -> float:
    """When the last frame ends according to the file's header, in seconds; 0 where the header does not say."""
    if stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    if tag := stream.metadata.get("DURATION"):  # Matroska: "00:00:02.400000000"
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    return 0.0


def _flush(stream: Any) -> list[Any]:
    """Frames that the decoder still holds back when its input breaks off."""
    try:
        return stream.codec_context.decode(None)
    except require("av", "video").error.FFmpegError:
        return []


def _to_rgb(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8, upright: turned and mirrored by quarters as the frame's display matrix says."""
    rgb = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return rgb
    # x' = a x + c y, y' = b x + d y, up to a shift that keeps the picture on the canvas.
    a, b, _, c, d = struct.unpack("5i", bytes(matrix)[:20])
    if abs(b) > abs(a):
        rgb, a, d = rgb.swapaxes(0, 1), c, b
    return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _to_array(index: int, frame: np.ndarray | Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of whatever `write_video` takes."""
    layout = "tensor (3, H, W)" if isinstance(frame, Tensor) else "array (H, W, 3)"
    array = frame.detach().cpu().numpy() if isinstance(frame, Tensor) else np.asarray(frame)
    channels = 0 if isinstance(frame, Tensor) else 2
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[channels] != 3 or not array.size:
        raise ValueError(f"frames[{index}] is {array.dtype} of shape {array.shape}; expected a uint8 {layout}")
    return np.moveaxis(array, channels, 2)

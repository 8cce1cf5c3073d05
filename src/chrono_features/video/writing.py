"""Frames to video files, H.264 by PyAV."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from ..checks import check_number
from ..extras import MissingExtra, how_to_install, require
from ..files import write_beside

VIDEO_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}


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
    with write_beside(path) as file:
        encode_video(file, frames, fps, VIDEO_FORMATS[path.suffix.lower()])


def encode_video(
    file: BinaryIO,
    frames: Iterable[np.ndarray | Tensor],
    fps: float,
    container_format: str = "mp4",
) -> None:
    """`write_video` into an open file."""
    check_number("fps", fps, "a number above 0")
    av = require("av", "video")
    if "libx264" not in av.codecs_available:
        raise MissingExtra(f"this PyAV was built without libx264; expected a wheel of {how_to_install('video')}")
    arrays = map(_to_array, itertools.count(), frames)
    with av.open(file, "w", format=container_format) as container:
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


def _to_array(index: int, frame: np.ndarray | Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of whatever `write_video` takes."""
    layout = "tensor (3, H, W)" if isinstance(frame, Tensor) else "array (H, W, 3)"
    array = frame.detach().cpu().numpy() if isinstance(frame, Tensor) else np.asarray(frame)
    channels = 0 if isinstance(frame, Tensor) else 2
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[channels] != 3 or not array.size:
        raise ValueError(f"frames[{index}] is {array.dtype} of shape {array.shape}; expected a uint8 {layout}")
    return np.moveaxis(array, channels, 2)

"""The cropping that a container asks for: FFmpeg reads it, PyAV does not pass it on, so it is read here."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

Part = tuple[bytes, int, int]  # kind, start and end of the content in the file
PIXEL_CROP = (b"\x54\xcc", b"\x54\xdd", b"\x54\xbb", b"\x54\xaa")  # of Matroska: left, right, top, bottom


class Crop(NamedTuple):
    """Pixels to cut off at each side of a frame as it is stored."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


def container_crop(container: Any, stream: Any, path: Path) -> Crop:
    """`clap` of MP4 and MOV, PixelCrop of Matroska and WebM; none where it leaves nothing."""
    names = container.format.name.split(",")
    width, height = stream.codec_context.width, stream.codec_context.height
    crop = Crop()
    # Cut off, or a fraction that is none: as if it were not there.
    with open(path, "rb") as file, suppress(struct.error, ZeroDivisionError):
        end = file.seek(0, 2)
        if "mp4" in names:
            crop = _clean_aperture(file, end, stream.id)
        elif "matroska" in names:
            crop = _pixel_crop(file, end, container.streams.video.index(stream))
    fits = min(crop) >= 0 and crop.left + crop.right < width and crop.top + crop.bottom < height
    return crop if fits else Crop()


def _clean_aperture(file: BinaryIO, end: int, track: int) -> Crop:
    for _, start, stop in _inside(_boxes, file, 0, end, b"moov", b"trak"):
        for _, header, _ in _inside(_boxes, file, start, stop, b"tkhd"):
            version = _read(file, header, ">B")[0]
            if _read(file, header + (20 if version else 12), ">I")[0] != track:
                break
            for _, table, table_end in _inside(_boxes, file, start, stop, b"mdia", b"minf", b"stbl", b"stsd"):
                for _, entry, entry_end in _boxes(file, table + 8, table_end):
                    size = _read(file, entry + 24, ">2H")
                    for _, clap, _ in _inside(_boxes, file, entry + 78, entry_end, b"clap"):
                        return _from_fractions(size, _read(file, clap, ">II II iI iI"))
                    break  # other entries are for parts that FFmpeg does not decode
            return Crop()
    return Crop()


def _from_fractions(size: tuple[int, ...], values: tuple[int, ...]) -> Crop:
    """The aperture's width, height and how far its centre lies right of and below the frame's, each a fraction."""
    width, height, right, down = (Fraction(*values[i : i + 2]) for i in range(0, 8, 2))
    left, top = (size[0] - width) / 2 + right, (size[1] - height) / 2 + down
    return Crop(int(left), size[0] - int(left + width), int(top), size[1] - int(top + height))


def _pixel_crop(file: BinaryIO, end: int, number: int) -> Crop:
    """Of the video track with this number among the video tracks."""
    segment, tracks, entry = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae"
    for _, start, stop in _inside(_elements, file, 0, end, segment, tracks, entry):
        kind = [_integer(file, *where) for _, *where in _inside(_elements, file, start, stop, b"\x83")]
        if kind != [1]:  # not a video
            continue
        if number:
            number -= 1
            continue
        sides = {
            name: _integer(file, *where)
            for _, *video in _inside(_elements, file, start, stop, b"\xe0")
            for name, *where in _elements(file, *video)
            if name in PIXEL_CROP
        }
        return Crop(*(sides.get(name, 0) for name in PIXEL_CROP))
    return Crop()


def _inside(parts: Any, file: BinaryIO, start: int, end: int, *kinds: bytes) -> Iterator[Part]:
    """The parts at the end of a path of kinds."""
    for kind, inner, inner_end in parts(file, start, end):
        if kind == kinds[0]:
            if len(kinds) == 1:
                yield kind, inner, inner_end
            else:
                yield from _inside(parts, file, inner, inner_end, *kinds[1:])


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[Part]:
    """The boxes of MP4."""
    while start + 8 <= end:
        size, kind = _read(file, start, ">I4s")
        header = 8
        if size == 1:
            header, size = 16, _read(file, start + 8, ">Q")[0]
        stop = end if size == 0 else min(start + size, end)
        if stop < start + header:
            return
        yield kind, start + header, stop
        start = stop


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[Part]:
    """The elements of EBML: name and size are of 1 to 8 bytes, as the zeros before the first one bit say."""
    while start < end:
        first = _read(file, start, ">B")[0]
        length = 9 - first.bit_length()
        name = _read(file, start, f">{length}s")[0]
        size_at = start + length
        length = 9 - _read(file, size_at, ">B")[0].bit_length()
        inner = size_at + length
        most = (1 << 7 * length) - 1  # this size means that it is not known
        size = _integer(file, size_at, inner) & most
        stop = end if size == most else min(inner + size, end)
        yield name, inner, stop
        start = stop


def _integer(file: BinaryIO, start: int, end: int) -> int:
    return int.from_bytes(_read(file, start, f">{min(end - start, 8)}s")[0], "big")


def _read(file: BinaryIO, at: int, layout: str) -> tuple[Any, ...]:
    file.seek(at)
    return struct.unpack(layout, file.read(struct.calcsize(layout)))

"""Image files: which formats are read, in which order, and how their values become 8-bit RGB. Needs Pillow."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import require

# The formats that are opened, by Pillow's names. Pillow alone would open any: PostScript, for one, starts Ghostscript.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
READABLE = ", ".join(FORMATS)
# Images of other formats, and arrays, are named where they lie among frames: without them, the video would be another.
OTHER_SUFFIXES = (
    ".apng", ".arw", ".avif", ".avifs", ".bw", ".cin", ".cr2", ".cr3", ".crw", ".cur", ".dcm", ".dcx", ".dds", ".dib",
    ".dng", ".dpx", ".emf", ".eps", ".exr", ".fit", ".fits", ".gif", ".hdr", ".heic", ".heics", ".heif", ".heifs",
    ".hif", ".icb", ".icns", ".ico", ".im", ".j2c", ".j2k", ".jfi", ".jif", ".jng", ".jp2", ".jpc", ".jpf", ".jps",
    ".jpx", ".jxl", ".jxr", ".ktx", ".ktx2", ".mng", ".mpo", ".msp", ".nef", ".npy", ".npz", ".nrw", ".orf", ".pam",
    ".pbm", ".pcx", ".pef", ".pfm", ".pgm", ".pgx", ".pnm", ".ppm", ".ps", ".psb", ".psd", ".qoi", ".raf", ".ras",
    ".raw", ".rgb", ".rgba", ".rgbe", ".rw2", ".sgi", ".sr2", ".srw", ".sun", ".svg", ".svgz", ".tga", ".vda", ".vst",
    ".wdp", ".wmf", ".xbm", ".xcf", ".xpm",
)  # fmt: skip


def natural(path: Path) -> tuple[Any, ...]:
    """Sorts names as people count: 2.png before 10.png."""
    parts = re.split("([0-9]+)", path.stem)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), path.name


def not_hidden(paths: Iterable[Path]) -> list[Path]:
    """Without what systems leave beside files: ._0.png, .DS_Store, .ipynb_checkpoints."""
    return [path for path in paths if not path.name.startswith(".")]


def holds_images(path: Path) -> bool:
    """Whether frames are read as images: a folder, and TIFF, of which FFmpeg reads one image and few colours."""
    return path.is_dir() or path.suffix.lower() in FORMATS["TIFF"]


def frame_files(folder: Path) -> list[Path]:
    """The images in a folder of frames, in natural order; maybe none. Of a file, itself.

    A file counts as an image by its suffix: those of `FORMATS` are read, those of `OTHER_SUFFIXES` are refused, and
    all others (.txt, .json, .csv, ...) are passed over, as are hidden files.

    Raises:
        ValueError: There are also images of a format that is not read.
    """
    if folder.is_file():
        return [folder]
    files = [path for path in not_hidden(folder.iterdir()) if not path.is_dir()]
    if others := sorted((path for path in files if path.suffix.lower() in OTHER_SUFFIXES), key=natural):
        raise ValueError(
            f"{others[0]}: images of this format are not read ({len(others)} in this folder); expected {READABLE}"
        )
    return sorted((path for path in files if path.suffix.lower() in IMAGE_SUFFIXES), key=natural)


def photographs_below(folder: Path) -> list[Path]:
    """The images anywhere below a folder, sorted by their paths."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_frame(path: Path) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB, upright by its EXIF orientation.

    Raises:
        ValueError: It is damaged or of a kind that is not read.
    """
    ops = require("PIL.ImageOps", "video")
    image = open_image(path, str(path))
    with _named(str(path)):
        ops.exif_transpose(image, in_place=True)
    return np.array(to_rgb(image, str(path)))


def open_image(
    source: Path | io.BytesIO,
    name: str,
    *,
    every_bit: bool = False,
    max_pixels: int | None = None,
) -> Any:
    """A decoded image of Pillow's, as it is stored.

    Args:
        source: Where it is.
        name: What errors call it.
        every_bit: Refuse colours of 16 bits a channel, of which Pillow keeps the higher 8.
        max_pixels: Refuse larger images before they are decoded; None leaves it at Pillow's limit.

    Raises:
        ValueError: It is damaged, larger than Pillow's limit, holds several images, or is of another format.
    """
    pil = require("PIL.Image", "video")
    with _named(name), pil.open(source, formats=list(FORMATS)) as image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise ValueError(f"it is {image.width} x {image.height}, more than {max_pixels} pixels")
        # In an MPO, as phones write it, the others are a preview or a depth map.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"it holds {image.n_frames} images, a frame is one")
        if every_bit and not image.mode.startswith("I") and ";16" in str(image.tile):
            raise ValueError("it has colours or alpha beside 16-bit values; grey alone keeps them")
        image.load()
    return image


def to_rgb(image: Any, name: str) -> Any:
    """An image of Pillow's in its mode RGB; wider integers are scaled by the range of their type, alpha is dropped.

    Raises:
        ValueError: The range of its values is not known, or its colours are not known to Pillow.
    """
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion clips these at 255
        largest = _largest(image)
        if largest is None:
            kind = "floating-point" if image.mode == "F" else "32-bit"
            raise ValueError(
                f"{name}: {kind} values (mode {image.mode}), of which the range is not known; "
                "expected 8 or 16 bits a channel"
            )
        values = np.rint(np.asarray(image).astype(np.float64) * (255 / largest)).astype(np.uint8)
        if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # white is zero; Pillow inverts 8 bits only
            values = 255 - values
        image = require("PIL.Image", "video").fromarray(values)
    elif image.format == "TIFF" and 2 in image.tag_v2.get(339, ()):  # SampleFormat; Pillow takes -1 for 255
        raise ValueError(f"{name}: signed values; expected unsigned ones, of 8 or 16 bits a channel")
    image.info.pop("transparency", None)  # of a palette, about which Pillow would warn
    with _named(name):
        return image.convert("RGB")


def _largest(image: Any) -> int | None:
    """What stands for white in an image of wide integers; None where nothing says it."""
    if image.mode.startswith("I;16"):
        bits = image.tag_v2.get(258, (16,))[0] if image.format == "TIFF" else 16  # BitsPerSample: 12 of some cameras
        return int(2**bits - 1)
    return 65535 if image.mode == "I" and image.format == "PNG" else None  # as Pillow before 11 opens 16-bit PNG


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns what Pillow's parsers raise on damaged files, from struct.error to RecursionError, into one error."""
    try:
        yield
    except Exception as error:
        what = str(error) if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: not a readable image ({what}); expected {READABLE}") from error

"""Cropping by the container, against slices of what PyAV decodes."""

import struct
from pathlib import Path

import numpy as np
import pytest

from chrono_features.video import read_video

av = pytest.importorskip("av")

MEDIA = Path(__file__).parents[1] / "files" / "media"
SIDES = {"left": b"\x54\xcc", "right": b"\x54\xdd", "top": b"\x54\xbb", "bottom": b"\x54\xaa"}


def stored(path: Path) -> np.ndarray:  # (T, 96, 160, 3)
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def read(path: Path) -> np.ndarray:
    return read_video(path).frames.permute(0, 2, 3, 1).numpy()


def with_clap(path: Path, *values: int) -> Path:
    """`values`: the aperture's width, height, and how far its centre lies right and below, each a fraction."""
    data = bytearray((MEDIA / "clap.mp4").read_bytes())
    at = data.index(b"clap") + 4
    data[at : at + 32] = struct.pack(">II II iI iI", *values)
    path.write_bytes(data)
    return path


def with_pixel_crop(path: Path, **sides: int) -> Path:
    data = bytearray((MEDIA / "crop.mkv").read_bytes())
    for side, value in sides.items():
        at = data.index(SIDES[side] + b"\x81")
        data[at + 3] = value
    path.write_bytes(data)
    return path


@pytest.mark.filterwarnings("ignore:.*pixels are not square")
def test_containers_are_cropped() -> None:
    assert np.array_equal(read(MEDIA / "clap.mp4"), stored(MEDIA / "clap.mp4")[:, 16:80, 16:144])
    assert np.array_equal(read(MEDIA / "crop.mkv"), stored(MEDIA / "crop.mkv")[:, 8:, 16:128])


@pytest.mark.parametrize(
    ("values", "rows", "columns"),
    [
        ((160, 1, 96, 1, 0, 1, 0, 1), (0, 96), (0, 160)),
        ((100, 1, 50, 1, 0, 1, 0, 1), (23, 73), (30, 130)),
        ((100, 1, 50, 1, 10, 1, -5, 1), (18, 68), (40, 140)),
        ((200, 2, 150, 3, -60, 2, 69, 3), (46, 96), (0, 100)),
        ((1, 1, 1, 1, 159, 2, -95, 2), (0, 1), (159, 160)),
        # what leaves nothing, reaches outside, or is no number is as if it were not there
        ((0, 1, 50, 1, 0, 1, 0, 1), (0, 96), (0, 160)),
        ((100, 0, 50, 1, 0, 1, 0, 1), (0, 96), (0, 160)),
        ((100, 1, 50, 1, 31, 1, 0, 1), (0, 96), (0, 160)),
        ((2**32 - 1, 1, 50, 1, 0, 1, 0, 1), (0, 96), (0, 160)),
    ],
)
def test_clean_aperture(tmp_path: Path, values: tuple, rows: tuple, columns: tuple) -> None:
    path = with_clap(tmp_path / "a.mp4", *values)
    assert np.array_equal(read(path), stored(path)[:, slice(*rows), slice(*columns)])


@pytest.mark.filterwarnings("ignore:.*pixels are not square")
@pytest.mark.parametrize(
    ("sides", "rows", "columns"),
    [
        ({"left": 1, "right": 2, "top": 3}, (3, 96), (1, 158)),
        ({"left": 0, "right": 0, "top": 95}, (95, 96), (0, 160)),
    ],
)
def test_pixel_crop(tmp_path: Path, sides: dict, rows: tuple, columns: tuple) -> None:
    path = with_pixel_crop(tmp_path / "a.mkv", **sides)
    assert np.array_equal(read(path), stored(path)[:, slice(*rows), slice(*columns)])


def test_crop_comes_before_the_turn(tmp_path: Path) -> None:
    path = with_clap(tmp_path / "a.mp4", 100, 1, 50, 1, 10, 1, -5, 1)
    data, one = bytearray(path.read_bytes()), 1 << 16
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert np.array_equal(read(path), np.rot90(stored(path)[:, 18:68, 40:140], -1, (1, 2)))


def test_crop_is_that_of_the_track_that_is_read(tmp_path: Path) -> None:
    path = with_clap(tmp_path / "a.mp4", 100, 1, 50, 1, 0, 1, 0, 1)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 12
    assert struct.unpack_from(">I", data, at) == (1,)
    struct.pack_into(">I", data, at, 7)
    path.write_bytes(data)
    assert read(path).shape[1:3] == (50, 100)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["clap.mp4", "crop.mkv"])
def test_damaged_headers_end_in_frames_or_one_error(tmp_path: Path, name: str) -> None:
    rng, whole = np.random.default_rng(0), (MEDIA / name).read_bytes()
    path = tmp_path / name
    head = (whole.index(b"moov"), len(whole)) if name == "clap.mp4" else (0, 900)
    for _ in range(80):
        data = bytearray(whole)
        for at in rng.integers(*head, 4):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert read_video(path, errors="warn").frames.shape[1] == 3
        except ValueError as error:
            assert name in str(error)

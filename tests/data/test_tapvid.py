"""Pickles that are small, and describe videos that are not. What readers make of good ones is in test_readers.py."""

import io
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from chrono_features.data.readers import open_dataset


def image(side=16, kind="JPEG"):
    Image.new("RGB", (side, side)).save(file := io.BytesIO(), kind)
    return file.getvalue()


def listed(frame: bytes, times: int) -> bytes:
    """A pickle's list that names one memoised frame many times, in 2 bytes each."""
    return b"(" + frame + b"q\x64" + b"h\x64" * (times - 1) + b"l"


def raw(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def first_video(kind, path, contents, size):
    path.write_bytes(contents)
    return next(iter(open_dataset(kind, str(path), size))).load()


def of_video(video: bytes, frames: int, in_list: bool) -> bytes:
    """A pickle of one video, in which the pickled `video` stands as it is."""
    item = {"points": np.zeros((1, frames, 2), np.uint8), "occluded": np.zeros((1, frames), np.uint8)}
    rest = pickle.dumps(item, 2)[2:-1]
    item = rest + b"X\x05\0\0\0video" + video + b"s"
    return b"\x80\x02" + (b"]" + item + b"a." if in_list else b"}X\x03\0\0\0cat" + item + b"s.")


ARRAY = pickle.dumps(np.zeros((16, 16, 3), np.uint8), 2)[2:-1]


@pytest.mark.parametrize("frame", [raw(image()), ARRAY], ids=["JPEG", "array"])
@pytest.mark.parametrize("size", [(256, 256), None], ids=["resized", "as stored"])
@pytest.mark.parametrize("kind", ["davis", "kinetics", "rgb-stacking", "robotap"])
def test_a_frame_that_is_listed_again_and_again(tmp_path, kind, size, frame):
    contents = of_video(listed(frame, 300_000), 300_000, kind in ("kinetics", "rgb-stacking"))
    assert len(contents) < 1_600_000
    with pytest.raises(ValueError, match=r"a\.pkl, video (cat|0): 300000 frames take more than 134217728 bytes"):
        first_video(kind, tmp_path / "a.pkl", contents, size)


def test_a_frame_may_come_twice(tmp_path):
    frame = np.zeros((16, 16, 3), np.uint8)
    item = {"video": [frame, frame], "points": np.zeros((1, 2, 2)), "occluded": np.zeros((1, 2), bool)}
    assert len(first_video("davis", tmp_path / "a.pkl", pickle.dumps({"cat": item}), None).frames) == 2


def test_specks_that_grow_to_full_size(tmp_path):
    video = pickle.dumps(np.zeros((10_000, 1, 1, 3), np.uint8), 2)[2:-1]
    with pytest.raises(
        ValueError, match=r"a\.pkl, video cat: 10000 frames take more than 134217728 bytes, of 30000 stored"
    ):
        first_video("davis", tmp_path / "a.pkl", of_video(video, 10_000, False), (256, 256))


def test_a_small_file_of_one_huge_image(tmp_path):
    contents = of_video(listed(raw(image(8000, "PNG")), 2), 2, False)
    with pytest.raises(ValueError, match="frame 0: not a readable image .it is 8000 x 8000, more than"):
        first_video("davis", tmp_path / "a.pkl", contents, (256, 256))

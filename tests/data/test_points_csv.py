import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from pickled_videos import item, lanczos, load_all, pictures, write

from chrono_features.data.clip import Unusable
from chrono_features.data.readers import open_dataset
from chrono_features.extras import how_to_install
from chrono_features.video import write_video

Image = pytest.importorskip("PIL.Image")

HEADER = ("video", "track", "t", "x", "y", "visible")


def table(folder: Path, rows: list[tuple], header: tuple = HEADER) -> str:
    with open(folder / "points.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(folder)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images, beside which a table is to be written."""
    (tmp_path / "images").mkdir()
    for t, picture in enumerate(pictures(0, 3)):
        Image.fromarray(picture).save(tmp_path / "images" / f"{t}.png")
    return tmp_path


def test_table(images: Path) -> None:
    rows = [
        ("images", "b", 2, 5, 3, 1),
        ("images", "a", 0, 20, 12, 1),
        ("images", "b", 0, "", "", 0),
        ("images", "b", 1, 7.5, -2, 0),
    ]
    dataset = open_dataset("csv", table(images, rows), (24, 30))
    assert dataset.total() == 1
    (entry,) = dataset
    assert (entry.name, entry.group) == ("images", "csv")
    video = entry.load()
    for frame, picture in zip(video.frames.numpy(), pictures(0, 3), strict=True):
        np.testing.assert_array_equal(frame, lanczos(picture, 24, 30))
    b, a = [[0, 0], [11.25, -4], [7.5, 6]], [[30, 24], [0, 0], [0, 0]]
    np.testing.assert_allclose(video.xy, [b, a], rtol=1e-15)
    np.testing.assert_array_equal(video.valid, [[True, True, True], [True, False, False]])
    np.testing.assert_array_equal(video.visible[video.valid], [False, False, True, True])
    sizes = [file.stat().st_size for file in images.rglob("*") if file.is_file()]
    assert dataset.fingerprint() == {"files": 4, "bytes": sum(sizes)} and len(sizes) == 4


def test_table_of_a_video_file(images: Path) -> None:
    pytest.importorskip("av")
    write_video(images / "clip.mp4", [np.full((48, 64, 3), 50 * t, np.uint8) for t in range(5)], 25)
    rows = [("clip.mp4", 0, 1, 32, 12, 1, "indoors"), ("images", 0, 1, 1, 1, 1, "")]
    clip, folder = open_dataset("csv", table(images, rows, (*HEADER, "group")), (24, 16))
    assert (clip.name, clip.group, folder.group) == ("clip.mp4", "indoors", "csv")
    video = clip.load()
    assert video.group == "indoors" and video.frames.shape == (5, 3, 24, 16)
    assert np.abs(video.frames.float().mean((1, 2, 3)).numpy() - 50 * np.arange(5)).max() < 4
    assert video.xy[0, 1].tolist() == [8, 6]


def test_columns_in_any_order_and_a_byte_order_mark(images: Path) -> None:
    (images / "points.csv").write_text("\ufeffy,x,visible,t,track,note,video\n3,5,1,2,0,!,images\n", "utf-8")
    (entry,) = open_dataset("csv", str(images), None)
    np.testing.assert_allclose(entry.load().xy[0, 2], [5, 3], rtol=1e-15)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("images", 0, 1, "left", 2, 1), "x='left'; expected a number of pixels"),
        (("images", 0, 1, 1, "", 1), "y=''; expected a number of pixels"),
        (("images", 0, 1, 1, "nan", 1), "y='nan'; expected a number of pixels"),
        (("images", 0, 1.5, 1, 2, 1), "t='1.5'; expected an integer"),
        (("images", 0, -1, 1, 2, 1), "t=-1; expected 0 or more"),
        (("images", 0, 1, 1, 2, "yes"), "visible='yes'; expected 0 or 1"),
        (("images", 0, 1, 1, 2), "too few or too many fields"),
        (("images", 0, 1, 1, 2, 1, 1, 1), "too few or too many fields"),
        (("", 0, 1, 1, 2, 1), "video=''; expected a video or a folder"),
        (("gone.mp4", 0, 1, 1, 2, 1), "video='gone.mp4'; expected a video or a folder"),
        (("images", 0, 0, 1, 2, 1), "track 0 at t=0 again; expected only line 2"),
    ],
)
def test_errors_in_a_table_name_the_line(images: Path, row: tuple, message: str) -> None:
    path = table(images, [("images", 0, 0, 1, 2, 1), row])
    with pytest.raises(ValueError, match=rf"points\.csv, line 3: {message}"):
        open_dataset("csv", path)


def test_bad_tables(images: Path) -> None:
    with pytest.raises(ValueError, match=r"points\.csv, line 1: no column visible; expected video,track"):
        open_dataset("csv", table(images, [], HEADER[:-1]))
    with pytest.raises(ValueError, match=r"points\.csv holds no points"):
        open_dataset("csv", table(images, []))
    rows = [("images", 0, 0, 1, 2, 1, "a"), ("images", 0, 1, 1, 2, 1, "b")]
    with pytest.raises(ValueError, match="line 3: group='b'; expected 'a' as above for images"):
        open_dataset("csv", table(images, rows, (*HEADER, "group")))
    (images / "points.csv").write_bytes(b"video,track,t,x,y,visible\n\xff\xfe,0,0,1,2,1\n")
    with pytest.raises(ValueError, match=r"points\.csv: not a table in UTF-8"):
        open_dataset("csv", str(images))
    (images / "points.csv").write_text("")
    with pytest.raises(ValueError, match=r"points\.csv is empty; expected a table of video, track"):
        open_dataset("csv", str(images))
    path = table(images, [("images", 0, 0, 1, 2, 1), ("images", 0, 3, 1, 2, 1)])
    (entry,) = open_dataset("csv", path)
    with pytest.raises(ValueError, match=r"points\.csv, line 3: t=3; expected less than 3, the frames of images"):
        entry.load()


def test_videos_of_a_table_that_cannot_be_used(images: Path) -> None:
    (entry,) = open_dataset("csv", table(images, [("images", 0, 0, 20.1, 3, 1)]))
    with pytest.raises(Unusable, match=r"1 visible points .* track 0 in frame 0 at \(1\.005, 0\.25\)"):
        entry.load()
    (entry,) = open_dataset("csv", table(images, [("images", 0, 0, "", "", 0)]))
    with pytest.raises(Unusable, match="no point is visible"):
        entry.load()
    (images / "images" / "1.png").write_bytes(b"nothing")
    with pytest.raises(Unusable, match=r"1\.png: not a readable image"):
        entry.load()


def test_missing_extras_are_named(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "clip.mp4").write_bytes(b"")
    path = table(images, [("clip.mp4", 0, 0, 1, 1, 1)])
    monkeypatch.setitem(sys.modules, "av", None)
    (entry,) = open_dataset("csv", path)
    with pytest.raises(ImportError, match=re.escape(f"av is missing; expected {how_to_install('eval')}")):
        entry.load()
    path = write(images / "davis.pkl", {"goat": item()})
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=re.escape(f"PIL is missing; expected {how_to_install('eval')}")):
        load_all("davis", path)

from pathlib import Path

import numpy as np
import pytest
from pickled_videos import item, jpegs, load_one, pictures, write

from chrono_features.data.clip import SIZE, Unusable
from chrono_features.data.readers import open_dataset

Image = pytest.importorskip("PIL.Image")


def test_size(tmp_path: Path) -> None:
    assert load_one(tmp_path, size=SIZE).frames.shape == (4, 3, 256, 256)
    native = load_one(tmp_path, size=None)
    np.testing.assert_array_equal(native.frames.numpy(), pictures().transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(native.xy, item()["points"].astype(np.float64) * [20, 12])


def test_what_is_not_seen_may_hold_anything(tmp_path: Path) -> None:
    points, occluded, valid = item()["points"], np.zeros((3, 4), bool), np.ones((3, 4), bool)
    points[0, 1], points[1, 2], points[2, 3] = [np.nan, 7], [-np.inf, 0.5], [5, -5]
    occluded[0, 1] = occluded[2, 3] = True
    valid[1, 2] = False
    video = load_one(tmp_path, points=points, occluded=occluded, valid=valid)
    assert video.xy[0, 1].tolist() == [0, 56]
    assert video.xy[1, 2].tolist() == [0, 4]
    assert video.xy[2, 3].tolist() == [50, -40]


def test_visible_points_outside(tmp_path: Path) -> None:
    points, occluded = item()["points"], np.zeros((3, 4), bool)
    points[1, 2], points[2, 0] = [1 + 9e-4, 0.5], [0.5, -9e-4]
    video = load_one(tmp_path, points=points, occluded=occluded)
    assert video.xy[1, 2].tolist() == [10, 4] and video.xy[2, 0].tolist() == [5, 0]
    for wrong in (1.0015, -0.0015, np.nan, np.inf):
        points[1, 2, 0] = points[2, 0, 1] = wrong
        with pytest.raises(
            Unusable, match=r"2 visible points .* track 1 in frame 2 at \((1.0015|-0.0015|nan|inf), 0.5\)"
        ):
            load_one(tmp_path, points=points, occluded=occluded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"occluded": np.ones((3, 4), bool)}, "no point is visible"),
        ({"occluded": np.eye(3, 4) > 0, "valid": np.eye(3, 4) > 0}, "no point is visible"),
        ({"points": np.zeros((0, 4, 2)), "occluded": np.zeros((0, 4), bool)}, "no point is visible"),
        ({"frames": 1}, "1 frames; expected at least 2"),
        (
            {"frames": 2, "video": [*jpegs(pictures())[:1], b"\xff\xd8\xff\xe0 nothing"]},
            "frame 1: not a readable image",
        ),
        ({"frames": 2, "video": [jpegs(pictures())[0], jpegs(pictures())[1][:-100]]}, "frame 1: not a readable image"),
        (
            {"frames": 2, "video": [pictures()[0], pictures(height=16)[0]]},
            r"frame 1 is \(H, W\)=\(16, 20\).*\(12, 20\)",
        ),
    ],
)
def test_what_cannot_be_measured_stops_only_its_video(tmp_path: Path, changes: dict, message: str) -> None:
    path = write(tmp_path / "davis.pkl", {"bad": item(**changes), "good": item()})
    bad, good = open_dataset("davis", path, (8, 10))
    with pytest.raises(Unusable, match=message):
        bad.load()
    assert good.load().name == "good"

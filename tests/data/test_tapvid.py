import io
import pickle
import struct
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from pickled_videos import SHARD, item, jpegs, lanczos, load_all, load_one, pictures, write

from chrono_features.data import tapvid as pickled
from chrono_features.data.clip import Unusable
from chrono_features.data.readers import open_dataset
from chrono_features.data.unpickling import load_arrays

Image = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize("protocol", range(6))
def test_davis_exactly(tmp_path: Path, protocol: int) -> None:
    contents = {"goat": item(0), "camel": item(1, frames=6)}
    path = write(tmp_path / "davis.pkl", contents, protocol)
    entries = list(open_dataset("davis", path, (8, 10)))
    assert [(entry.name, entry.group) for entry in entries] == [("goat", "davis"), ("camel", "davis")]
    for entry, expected in zip(entries, contents.values(), strict=True):
        video = entry.load()
        assert (video.name, video.group) == (entry.name, "davis")
        for frame, picture in zip(video.frames.numpy(), expected["video"], strict=True):
            np.testing.assert_array_equal(frame, lanczos(picture, 8, 10))
        assert video.xy.dtype == torch.float64
        np.testing.assert_array_equal(video.xy, expected["points"].astype(np.float64) * [10, 8])
        np.testing.assert_array_equal(video.visible, ~expected["occluded"])
        assert video.visible.dtype == video.valid.dtype == torch.bool and video.valid.all()


def test_rgb_stacking_has_indices_for_names(tmp_path: Path) -> None:
    path = write(tmp_path / "rgb.pkl", [item(0), item(1)])
    videos = load_all("rgb-stacking", path)
    assert list(videos) == ["0000", "0001"]
    assert {video.group for video in videos.values()} == {"rgb-stacking"}
    np.testing.assert_array_equal(videos["0001"].frames[2].numpy(), lanczos(pictures(1)[2], 8, 10))


def test_kinetics(tmp_path: Path) -> None:
    """Shards are lists or dicts; videos arrays of pixels, lists of JPEGs, or arrays of them as of TAP-Vid's script."""
    files = jpegs(pictures(1))
    write(tmp_path / SHARD.format(1), {"b": item(3), "a": item(4)})
    write(tmp_path / SHARD.format(0), [item(0), item(1, video=files), item(1, video=np.array(files))])
    write(tmp_path / "other.pkl", [item(0)])
    expected = [f"0000_of_0010/{index:04}" for index in range(3)] + ["0001_of_0010/b", "0001_of_0010/a"]
    videos = load_all("kinetics", str(tmp_path))
    assert list(videos) == expected == [entry.name for entry in open_dataset("kinetics", str(tmp_path))]
    assert {video.group for video in videos.values()} == {"kinetics"}
    decoded = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    for name in expected[1:3]:
        for frame, picture in zip(videos[name].frames.numpy(), decoded, strict=True):
            np.testing.assert_array_equal(frame, lanczos(picture, 8, 10))
    np.testing.assert_array_equal(videos["0001_of_0010/a"].frames[3].numpy(), lanczos(pictures(4)[3], 8, 10))
    assert list(load_all("kinetics", str(tmp_path / SHARD.format(1)))) == expected[3:]


def test_points_of_kinetics_may_lie_half_a_pixel_outside(tmp_path: Path) -> None:
    points = item()["points"]
    points[0, 0] = -0.5 / 20, -0.5 / 12
    path = write(tmp_path / SHARD.format(0), [item(points=points)])
    assert load_all("kinetics", path)["0000_of_0010/0000"].xy[0, 0].tolist() == [0, 0]
    points[0, 0, 0] = -0.6 / 20
    path = write(tmp_path / SHARD.format(0), [item(points=points)])
    with pytest.raises(Unusable, match="track 0 in frame 0"):
        load_all("kinetics", path)


def test_robotap(tmp_path: Path) -> None:
    write(tmp_path / "robotap_split1.pkl", {"x": item(1)})
    write(tmp_path / "robotap_split0.pkl", {"x": item(2), "y": item(3)})
    videos = load_all("robotap", str(tmp_path))
    assert list(videos) == ["robotap_split0/x", "robotap_split0/y", "robotap_split1/x"]
    assert {video.group for video in videos.values()} == {"robotap"}
    np.testing.assert_array_equal(videos["robotap_split1/x"].frames[0].numpy(), lanczos(pictures(1)[0], 8, 10))
    assert list(load_all("robotap", str(tmp_path / "robotap_split1.pkl"))) == ["robotap_split1/x"]


def test_real_tracks(tmp_path: Path) -> None:
    valid = np.ones((3, 4), bool)
    valid[1, 2] = False
    names = ["planar_V25_2", "kitchen_000", "badja_dog", "street_1_2"]
    contents = {name: item(0, video=jpegs(pictures()), valid=valid) for name in names}
    path = write(tmp_path / "real.pkl", contents)
    entries = list(open_dataset("real_tracks", path, (8, 10)))
    assert [entry.name for entry in entries] == names
    groups = ["precision/planar", "precision/kitchen", "articulated/badja", "other/street"]
    assert [entry.group for entry in entries] == groups == [entry.load().group for entry in entries]
    np.testing.assert_array_equal(entries[2].load().valid, valid)
    path = write(tmp_path / "real.pkl", {"badja_dog": item()})
    with pytest.raises(ValueError, match=r"real\.pkl, video badja_dog: no valid; expected .*valid"):
        load_all("real_tracks", path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": np.zeros((3, 5, 2))}, r"points is float64 of shape \(3, 5, 2\); expected numbers .*\(N, 4, 2\)"),
        ({"points": np.zeros((3, 4, 3))}, r"points is float64 of shape \(3, 4, 3\); expected .*\(N, 4, 2\)"),
        ({"points": np.zeros((3, 4))}, r"points is float64 of shape \(3, 4\)"),
        ({"points": np.array(3.0)}, r"points is float64 of shape \(\)"),
        ({"points": [[[0.5, 0.5]] * 4]}, "points is a list; expected numbers"),
        ({"points": np.full((3, 4, 2), "a")}, "points is <U1"),
        ({"occluded": np.zeros((3, 3), bool)}, r"occluded is bool of shape \(3, 3\); expected bool of shape \(3, 4\)"),
        ({"occluded": np.zeros((2, 4), bool)}, r"occluded is bool of shape \(2, 4\); expected bool of shape \(3, 4\)"),
        ({"occluded": np.zeros((3, 4))}, "occluded is float64"),
        ({"valid": np.ones((4, 3), bool)}, r"valid is bool of shape \(4, 3\); expected bool of shape \(3, 4\)"),
        ({"valid": None}, "valid is a NoneType"),
        (
            {"video": pictures(frames=5)},
            r"points is float32 of shape \(3, 4, 2\); expected numbers of shape \(N, 5, 2\)",
        ),
        (
            {"video": pictures().astype(np.float32)},
            r"frame 0 is float32 of shape \(12, 20, 3\); expected JPEG bytes or",
        ),
        ({"video": pictures()[..., 0]}, r"frame 0 is uint8 of shape \(12, 20\)"),
        ({"video": pictures()[..., :2]}, r"frame 0 is uint8 of shape \(12, 20, 2\)"),
        ({"video": pictures()[:, :0]}, r"frame 0 is uint8 of shape \(0, 20, 3\)"),
        ({"video": ["a.jpg"] * 4}, "frame 0 is a str"),
        ({"video": b"\xff\xd8"}, "video is a bytes"),
        ({"video": np.array(1)}, r"video is int64 of shape \(\)"),
    ],
)
def test_wrong_shapes_and_kinds_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"davis\.pkl, video goat: {message}") as caught:
        load_one(tmp_path, **changes)
    assert not isinstance(caught.value, Unusable)


@pytest.mark.parametrize("key", ["video", "points", "occluded"])
def test_missing_keys(tmp_path: Path, key: str) -> None:
    whole = item()
    del whole[key]
    path = write(tmp_path / "davis.pkl", {"goat": whole})
    with pytest.raises(ValueError, match=rf"davis\.pkl, video goat: no {key}; expected video, points, occluded"):
        load_all("davis", path)


@pytest.mark.parametrize(
    ("kind", "contents", "message"),
    [
        ("davis", [item()], "holds a list; expected a dict"),
        ("davis", np.zeros(3), r"holds float64 of shape \(3,\); expected a dict of videos"),
        ("davis", {}, "holds no videos"),
        ("davis", {"goat": [1]}, "video goat is a list; expected a dict of video, points, occluded"),
        ("rgb-stacking", {"0": item()}, "holds a dict; expected a list"),
        ("rgb-stacking", [], "holds no videos"),
        ("kinetics", (item(),), "holds a tuple; expected a list or dict"),
        ("kinetics", [None], "video 0 is a NoneType; expected a dict"),
        ("robotap", [item()], "holds a list; expected a dict"),
    ],
)
def test_wrong_containers(tmp_path: Path, kind: str, contents, message: str) -> None:
    path = write(tmp_path / "file.pkl", contents)
    with pytest.raises(ValueError, match=rf"file\.pkl,? {message}"):
        load_all(kind, path)


class Counted:
    """Counts the pictures that Pillow opens or makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("open", "fromarray"):
            monkeypatch.setattr(Image, name, self.counting(getattr(Image, name)))

    def counting(self, function):
        def counted(*args, **kwargs):
            self.count += 1
            return function(*args, **kwargs)

        return counted


def test_skipped_videos_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(3):
        write(tmp_path / SHARD.format(shard), [item(video=jpegs(pictures())) for _ in range(5)])
    counted = Counted(monkeypatch)
    entries = list(open_dataset("kinetics", str(tmp_path), None))
    assert counted.count == 0
    entries[7].load()
    assert counted.count == 4
    assert [entry.name for entry in entries[::-1] if entry.load().name == entry.name] == [e.name for e in entries[::-1]]


def test_one_shard_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(3):
        write(tmp_path / SHARD.format(shard), [item(10 * shard), item(10 * shard + 1)])
    opened: list[str] = []
    alive: list[weakref.ref] = []

    def load(path: Path):
        assert not any(reference() is not None for reference in alive), "the shard before is still in memory"
        contents = load_arrays(path)
        opened.append(path.name)
        alive.extend(weakref.ref(video["video"]) for video in contents)
        return contents

    monkeypatch.setattr(pickled, "load_arrays", load)
    dataset = open_dataset("kinetics", str(tmp_path), (8, 10))
    entries = iter(dataset)
    assert opened == []
    for count, shard in enumerate((0, 0, 1, 1, 2, 2)):
        video = next(entries).load()
        assert len(opened) == shard + 1, count
        np.testing.assert_array_equal(video.frames[1].numpy(), lanczos(pictures(10 * shard + count % 2)[1], 8, 10))
    assert list(entries) == [] and not any(reference() is not None for reference in alive)
    # Once more, out of order: one of each shard.
    again = list(dataset)
    loaded = [again[index].load().name for index in (5, 0, 2)]
    assert loaded == ["0002_of_0010/0001", "0000_of_0010/0000", "0001_of_0010/0000"]


def test_total(tmp_path: Path) -> None:
    for shard, count in enumerate((4, 2, 3)):
        write(tmp_path / SHARD.format(shard), [item()] * count)
    dataset = open_dataset("kinetics", str(tmp_path))
    totals = [dataset.total()] + [dataset.total() for _ in dataset]
    assert totals == [None, *[12] * 4, *[9] * 5]
    dataset = open_dataset("davis", write(tmp_path / "davis.pkl", {"a": item(), "b": item()}))
    assert [dataset.total()] + [dataset.total() for _ in dataset] == [None, 2, 2]


def test_fingerprint(tmp_path: Path) -> None:
    import hashlib

    path = Path(write(tmp_path / SHARD.format(0), [item(frames=600)]))
    data = path.read_bytes()
    assert len(data) > 1 << 18
    hashed = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert open_dataset("kinetics", str(path)).fingerprint() == hashed
    write(tmp_path / "left_out.pkl", [1])
    more = Path(write(tmp_path / SHARD.format(1), [item()])).stat().st_size
    assert open_dataset("kinetics", str(tmp_path)).fingerprint() == {"files": 2, "bytes": len(data) + more}


# Small pickles of large videos


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


@pytest.mark.slow
def test_a_small_file_of_one_huge_image(tmp_path):
    contents = of_video(listed(raw(image(8000, "PNG")), 2), 2, False)
    with pytest.raises(ValueError, match="frame 0: not a readable image .it is 8000 x 8000, more than"):
        first_video("davis", tmp_path / "a.pkl", contents, (256, 256))

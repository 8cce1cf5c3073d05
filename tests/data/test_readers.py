import csv
import io
import os
import pickle
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from chrono_features.data import tapvid as pickled
from chrono_features.data.clip import SIZE, LabelledVideo, MaskClip, Unusable
from chrono_features.data.readers import open_dataset
from chrono_features.data.unpickling import load_arrays
from chrono_features.extras import how_to_install
from chrono_features.video import write_video

Image = pytest.importorskip("PIL.Image")

SHARD = "{:04}_of_0010.pkl"


def pictures(seed: int = 0, frames: int = 4, height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def jpegs(video: np.ndarray) -> list[bytes]:
    files = [io.BytesIO() for _ in video]
    for file, picture in zip(files, video, strict=True):
        Image.fromarray(picture).save(file, "JPEG")
    return [file.getvalue() for file in files]


def item(seed: int = 0, tracks: int = 3, frames: int = 4, **changes) -> dict:
    """A video as TAP-Vid pickles it. Every point of the first frame is visible."""
    rng = np.random.default_rng(seed)
    occluded = rng.random((tracks, frames)) < 0.3
    occluded[:, 0] = False
    points = rng.random((tracks, frames, 2)).astype(np.float32)
    return {"video": pictures(seed, frames), "points": points, "occluded": occluded} | changes


def write(path: Path, contents, protocol: int = 4) -> str:
    path.write_bytes(pickle.dumps(contents, protocol))
    return str(path)


def load_all(kind: str, path: str, size=(8, 10)) -> dict[str, LabelledVideo]:
    return {entry.name: entry.load() for entry in open_dataset(kind, path, size)}


def load_one(tmp_path: Path, size=(8, 10), **changes) -> LabelledVideo:
    return load_all("davis", write(tmp_path / "davis.pkl", {"goat": item(**changes)}), size)["goat"]


def lanczos(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)).transpose(2, 0, 1)


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
        assert video.xy.dtype == np.float64
        np.testing.assert_array_equal(video.xy, expected["points"].astype(np.float64) * [10, 8])
        np.testing.assert_array_equal(video.occluded, expected["occluded"])
        assert video.occluded.dtype == video.valid.dtype == bool and video.valid.all()


def test_size(tmp_path: Path) -> None:
    assert load_one(tmp_path, size=SIZE).frames.shape == (4, 3, 256, 256)
    native = load_one(tmp_path, size=None)
    np.testing.assert_array_equal(native.frames.numpy(), pictures().transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(native.xy, item()["points"].astype(np.float64) * [20, 12])


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


@pytest.mark.parametrize("kind", ["davis", "rgb-stacking", "kinetics", "robotap", "real_tracks", "masks", "csv"])
def test_nothing_there(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.*expected"):
        open_dataset(kind, str(tmp_path / "nowhere"))
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{tmp_path.name}.*expected"):
        open_dataset(kind, str(tmp_path))


@pytest.mark.parametrize("size", [(256,), (0, 4), (4.5, 4), (1, 2, 3)])
def test_bad_sizes(tmp_path: Path, size: tuple) -> None:
    path = write(tmp_path / "davis.pkl", {"goat": item()})
    with pytest.raises(ValueError, match=r"size=.*expected \(height, width\)"):
        open_dataset("davis", path, size)


def test_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind='davos'; expected one of 'davis', 'rgb-stacking'"):
        open_dataset("davos", str(tmp_path))


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


# Pickles


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def called(module: str, name: str, *arguments) -> bytes:
    """A pickle that calls what it names, as old or hostile writers would."""
    text = (pickle.dumps(part, 3)[2:-1] for part in (module, name))
    return b"\x80\x04" + b"".join(text) + b"\x93" + pickle.dumps(arguments, 3)[2:-1] + b"R."


HOSTILE = {
    "os.system": lambda touch: pickle.dumps({"goat": item() | {"more": Calls(os.system, touch)}}),
    "posix.system": lambda touch: pickle.dumps(Calls(os.system, touch), 0),
    "builtins.eval": lambda touch: pickle.dumps([Calls(eval, f"__import__('os').system({touch!r})")]),
    "builtins.getattr": lambda touch: pickle.dumps(Calls(getattr, "", "join")),
    "subprocess.Popen": lambda touch: pickle.dumps(Calls(subprocess.Popen, touch)),
    "numpy.load": lambda touch: called("numpy", "load", touch),
    "numpy.core.os.system": lambda touch: called("numpy", "core.os.system", touch),
    "numpy._core.multiarray.os.system": lambda touch: called("numpy._core.multiarray", "os.system", touch),
    "numpy.os.system": lambda touch: called("numpy.os", "system", touch),
    "numpy.testing._private.utils.runstring": lambda touch: called("numpy.testing._private.utils", "runstring", touch),
    "numpy.memmap": lambda touch: called("numpy", "memmap", touch, "uint8", "w+", 0, (8,)),
    "numpy.ndarray.tofile": lambda touch: called("numpy", "ndarray.tofile", touch),
    "_codecs.decode": lambda touch: called("_codecs", "decode", b"x", "zip"),
    "the codec 'zip'": lambda touch: called("_codecs", "encode", b"x", "zip"),
    "copyreg._reconstructor": lambda touch: called("copyreg", "_reconstructor", 1, 2, 3),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_code_is_refused_by_name_and_does_not_run(tmp_path: Path, name: str) -> None:
    touched = tmp_path / "touched"
    path = tmp_path / "davis.pkl"
    path.write_bytes(HOSTILE[name](f"touch {touched}" if "memmap" not in name else str(touched)))
    what = "(os|posix|nt).system" if name in ("os.system", "posix.system") else name.replace(".", r"\.")
    with pytest.raises(ValueError, match=rf"davis\.pkl: refused, it wants {what}; expected only arrays"):
        load_all("davis", str(path))
    assert not touched.exists()


def test_the_hostile_pickles_would_run(tmp_path: Path) -> None:
    """What the test above is worth."""
    for name in ("os.system", "builtins.eval"):
        touched = tmp_path / name
        pickle.loads(HOSTILE[name](f"touch {touched}"))
        assert touched.exists()


class State:
    """Pickled as a NumPy object in a state of one's own making."""

    def __init__(self, function, arguments, state) -> None:
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def forged(code: str, shape: tuple, data, flags: int = 0) -> State:
    reconstruct = np.zeros(1).__reduce__()[0]
    dtype = State(np.dtype, (code, False, True), (3, "|", None, None, None, -1, -1, flags))
    return State(reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


@pytest.mark.parametrize(
    ("forgery", "message"),
    [
        (np.array([b"a", None], object), "an array of dtype object"),
        (np.zeros(2, "V8"), "an array of dtype"),
        (np.zeros(2, [("a", "f4")]), "an array of dtype"),
        (forged("O8", (2,), b"A" * 16), "an array of dtype object"),  # NumPy itself takes these for pointers
        (forged("O8", (2,), ["a", "b"], 63), "an array of dtype object"),
        (np.zeros(2).view(np.recarray), r"numpy.*recarray"),
        (np.ma.array([1]), r"numpy\.ma"),
        (np.float32, r"numpy\.float32"),
        (forged("f8", (3,), b"A" * 16), "not a readable pickle"),
        (forged("f8", (-2, -1), b"A" * 16), "not a readable pickle"),
        (forged("f8", (2,), "A" * 16), "not a readable pickle"),
    ],
)
def test_arrays_that_are_none(tmp_path: Path, forgery, message: str) -> None:
    path = write(tmp_path / "davis.pkl", {"goat": item(points=forgery)})
    with pytest.raises(ValueError, match=rf"davis\.pkl: .*{message}"):
        load_all("davis", path)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_values_survive(tmp_path: Path, protocol: int) -> None:
    contents = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 2, 0),
        np.arange(8)[::2],
        np.arange(3, dtype=">f4"),
        np.zeros((0, 2)),
        np.array(3.5),
        np.array([b"ab", b"c"]),
        np.array(["ä", "bc"]),
        np.array([True, False]),
        np.float32(1.5),
        np.int64(7),
        np.str_("x"),
        b"\xff\x00",
        "text",
        None,
        (1, 2.5, {"a": [True]}),
    ]
    data = pickle.dumps(contents, protocol)
    (tmp_path / "a.pkl").write_bytes(data)
    for got, expected in zip(load_arrays(tmp_path / "a.pkl"), pickle.loads(data), strict=True):
        if isinstance(expected, (np.ndarray, np.generic)):
            assert got.dtype == expected.dtype and got.shape == expected.shape
            np.testing.assert_array_equal(got, expected)
        else:
            assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_arrays_of_older_and_newer_numpy(tmp_path: Path, core: str) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = pickle.dumps([array, array[0, 1]], 3).replace(b"numpy._core.", f"numpy.{core}.".encode())
    assert f"numpy.{core}.multiarray".encode() in data
    (tmp_path / "a.pkl").write_bytes(data.replace(b"numpy.core.", f"numpy.{core}.".encode()))
    whole, scalar = load_arrays(tmp_path / "a.pkl")
    np.testing.assert_array_equal(whole, array)
    assert scalar == 1
    (tmp_path / "a.pkl").write_bytes(
        called(f"numpy.{core}.numeric", "_frombuffer", array.T.tobytes(), array.dtype, (3, 2), "F")
    )
    np.testing.assert_array_equal(load_arrays(tmp_path / "a.pkl"), array.T.ravel().reshape((3, 2), order="F"))


@pytest.mark.parametrize("protocol", range(6))
def test_truncated(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / SHARD.format(0)
    small = item(tracks=1, frames=2, video=[b"a", b"b"], rate=np.float32(25))
    data = pickle.dumps([small], protocol)
    for length in range(max(protocol, 1), len(data), 5):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"0000_of_0010\.pkl: truncated"):
            load_arrays(path)
    with pytest.raises(ValueError, match=r"0000_of_0010\.pkl: truncated"):
        next(iter(open_dataset("kinetics", str(path))))


def test_no_pickle_at_all(tmp_path: Path) -> None:
    (tmp_path / "davis.pkl").write_text("this is not a pickle")
    with pytest.raises(ValueError, match=r"davis\.pkl: not a readable pickle"):
        load_all("davis", str(tmp_path / "davis.pkl"))


# Masks


def davis(root: Path, masks: np.ndarray, name: str = "goat", level: str = "480p", mode: str = "P") -> str:
    """A folder as DAVIS has it: frames in JPEG, masks in PNG."""
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / level / name).mkdir(parents=True, exist_ok=True)
    for t, (file, mask) in enumerate(zip(jpegs(pictures(0, len(masks), *masks.shape[1:])), masks, strict=True)):
        (root / "JPEGImages" / level / name / f"{t:05}.jpg").write_bytes(file)
        image = Image.fromarray(mask)
        if mode == "P":
            image.putpalette([value * 37 % 256 for value in range(3 * 256)])
        else:
            image = image.convert(mode)
        image.save(root / "Annotations" / level / name / f"{t:05}.png")
    return str(root)


def labels(frames: int = 3) -> np.ndarray:
    """0, 2 and 5, of which 5 is missing from the first frame."""
    masks = np.random.default_rng(0).choice(np.array([0, 2, 5], np.uint8), (frames, 12, 20))
    masks[0][masks[0] == 5] = 0
    return masks


@pytest.mark.parametrize("level", ["480p", "Full-Resolution", ""])
def test_masks(tmp_path: Path, level: str) -> None:
    path = davis(tmp_path, labels(), level=level)
    davis(tmp_path, labels()[::-1], "camel", level)
    dataset = open_dataset("masks", path, (8, 10))
    assert dataset.total() == 2
    camel, goat = dataset
    assert (camel.name, goat.name, goat.group) == ("camel", "goat", "masks")
    video = goat.load()
    assert isinstance(video, MaskClip) and (video.name, video.group) == ("goat", "masks")
    for frame, file in zip(video.frames.numpy(), jpegs(pictures(0, 3)), strict=True):
        np.testing.assert_array_equal(frame.transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(file))))
    expected = (labels() == 2) + 2 * (labels() == 5)
    assert video.masks.dtype == np.int64
    np.testing.assert_array_equal(video.masks, expected)
    np.testing.assert_array_equal(camel.load().masks, expected[::-1])
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert dataset.fingerprint() == {"files": 12, "bytes": sum(file.stat().st_size for file in files)}


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGB", "RGBA"])
def test_masks_of_black_and_white(tmp_path: Path, mode: str) -> None:
    masks = np.where(labels() > 0, 255, 0).astype(np.uint8)
    (entry,) = open_dataset("masks", davis(tmp_path, masks, mode=mode))
    np.testing.assert_array_equal(entry.load().masks, labels() > 0)


def test_void_becomes_background(tmp_path: Path) -> None:
    masks = labels()
    masks[1, :3] = 255
    (entry,) = open_dataset("masks", davis(tmp_path, masks))
    np.testing.assert_array_equal(entry.load().masks, (masks == 2) + 2 * (masks == 5))


def test_of_several_resolutions_480p_is_read(tmp_path: Path) -> None:
    davis(tmp_path, labels().repeat(2, 1).repeat(2, 2), level="Full-Resolution")
    (entry,) = open_dataset("masks", davis(tmp_path, labels()))
    assert entry.load().frames.shape == (3, 3, 12, 20)
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / folder / "480p").rename(tmp_path / folder / "240p")
    with pytest.raises(ValueError, match="resolutions 240p, Full-Resolution; expected 480p, or only one"):
        open_dataset("masks", str(tmp_path))


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    (entry,) = open_dataset("masks", davis(tmp_path, labels()))
    masks, frames = (tmp_path / folder / "480p" / "goat" for folder in ("Annotations", "JPEGImages"))

    def refused(message: str) -> None:
        with pytest.raises(Unusable, match=message):
            entry.load()

    (masks / "00001.png").rename(masks / "aside")
    refused(r"1 of 3 frames have no mask; the first is .*goat.00001\.png")
    Image.fromarray(labels()[0].T).save(masks / "00001.png")
    refused(r"a mask is \(H, W\)=\(20, 12\); expected the frames' \(12, 20\)")
    Image.fromarray(pictures()[0]).save(masks / "00001.png")
    refused(r"00001\.png is in colour \(RGB\)")
    (masks / "00001.png").write_bytes(b"nothing")
    refused(r"00001\.png: not a readable image")
    for t in range(3):
        Image.fromarray(np.zeros((12, 20), np.uint8)).save(masks / f"{t:05}.png")
    refused("no mask shows an object")
    (frames / "00001.jpg").write_bytes(b"nothing")
    refused(r"00001\.jpg: not a readable image")
    for t in (1, 2):
        (frames / f"{t:05}.jpg").unlink()
    refused("1 frames; expected at least 2")
    for file in masks.iterdir():
        file.unlink()
    masks.rmdir()
    refused("1 of 1 frames have no mask")
    masks.parent.rmdir()
    with pytest.raises(FileNotFoundError, match=r"Annotations.480p: no such folder"):
        open_dataset("masks", str(tmp_path))
    (frames / "00000.jpg").unlink()
    masks.parent.mkdir()
    with pytest.raises(ValueError, match="no folders of images"):
        open_dataset("masks", str(tmp_path))


# Tables

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
    np.testing.assert_array_equal(video.occluded[video.valid], [True, True, False, False])
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


@pytest.mark.parametrize("first", [0, 1])
def test_void_of_8_bit_masks_beside_masks_of_16(tmp_path: Path, first: int) -> None:
    """In 8 bits 255 is void, in 16 an object; each mask goes by its own type."""
    narrow = np.zeros((16, 16), np.uint8)
    narrow[2:6, 2:6], narrow[8:12, 2:6], narrow[0] = 1, 2, 255
    wide = np.zeros((16, 16), np.uint16)
    wide[2:6, 2:6], wide[8:12, 2:6] = 1, 2
    masks = [narrow, wide] if first == 0 else [wide, narrow]
    images, annotations = tmp_path / "JPEGImages/480p/a", tmp_path / "Annotations/480p/a"
    for folder in (images, annotations):
        folder.mkdir(parents=True)
    for i, mask in enumerate(masks):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(images / f"{i}.jpg")
        Image.fromarray(mask).save(annotations / f"{i}.png")
    (entry,) = open_dataset("masks", str(tmp_path))
    np.testing.assert_array_equal(entry.load().masks, np.stack([wide, wide]))

import copy
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chrono_features import Tracks
from chrono_features.data.clip import Clip, Entry, MaskClip, Unusable
from chrono_features.evaluation.masks import mask_consistency, mask_queries, propagation_metrics
from chrono_features.evaluation.metrics import bootstrap_interval
from chrono_features.evaluation.protocol import MODES, THRESHOLDS
from chrono_features.evaluation.records import json_safe
from chrono_features.evaluation.run import evaluate
from chrono_features.evaluation.scores import FeatureCache, track_records
from chrono_features.evaluation.store import Store
from chrono_features.evaluation.summary import ALL, pooled_reliability, summarise
from chrono_features.evaluation.trackers import Tracker, from_tracker

FRAMES, TRACKS = 6, 4


def labelled(name: str = "v", group: str = "g", seed: int = 0, size: tuple[int, int] = (32, 32)) -> Clip:
    """Random tracks that no two share a place of; some points are hidden, some unknown, none of the first frame."""
    rng = np.random.default_rng(seed)
    frames = torch.from_numpy(rng.integers(0, 256, (FRAMES, 3, *size), np.uint8))
    xy = rng.uniform(0.2, 0.8, (TRACKS, FRAMES, 2)) * size[::-1]
    occluded, valid = rng.random((2, TRACKS, FRAMES)) < [[[0.3]], [[0.8]]]
    occluded[:, 0], valid[:, 0] = False, True
    visible = ~torch.from_numpy(occluded)
    return Clip(frames, torch.from_numpy(xy), visible, torch.from_numpy(valid), name=name, group=group)


def masked(name: str = "m") -> MaskClip:
    """A square and a bar that move to the right by a pixel a frame."""
    masks = np.zeros((4, 24, 32), np.int64)
    for t, mask in enumerate(masks):
        mask[4:12, 2 + t : 12 + t], mask[16:22, 4 + t : 26 + t] = 1, 2
    return MaskClip(name, "masks", torch.from_numpy(masks * 100).byte()[:, None].repeat(1, 3, 1, 1), masks)


@dataclass
class Videos:
    """A data set that counts what is loaded. What is not a video is raised instead."""

    items: dict[str, Any]
    kind: str = "csv"
    path: str = "somewhere"
    print: str = "p"
    loaded: list[str] = field(default_factory=list)

    def __iter__(self):
        for name, item in self.items.items():
            yield Entry(name, getattr(item, "group", "g"), lambda name=name: self.load(name))

    def load(self, name):
        self.loaded.append(name)
        if isinstance(self.items[name], BaseException):
            raise self.items[name]
        return self.items[name]

    def total(self):
        return len(self.items)

    def fingerprint(self):
        return {"sha256": self.print}


def five(**changes: Any) -> Videos:
    videos = [labelled(f"v{i}", f"group {i % 2}", i) for i in range(5)]
    return Videos({v.name: v for v in videos} | changes)


@dataclass
class Counting:
    """Tracks points at random, the same ones alike, and remembers how often; `stop` is raised at its n-th call."""

    name: str = "random"
    stop: BaseException | None = None
    after: int = 2
    calls: int = 0

    def __call__(self, video: torch.Tensor, queries: torch.Tensor) -> Tracks:
        if self.stop is not None and self.calls == self.after:
            raise self.stop
        self.calls += 1
        xy = queries[:, :, None, 1:] + torch.randn(video.shape[1], 2, generator=torch.Generator().manual_seed(0))
        return Tracks(xy, xy[..., 0], xy[..., 0] > 16)

    @property
    def tracker(self) -> Tracker:
        return from_tracker(self.name, self)


def oracle(*videos: Clip, shift: float = 0.0, **more: Any) -> Tracker:
    """Returns the truth; `shift` moves it to the right, in pixels at 256 x 256."""

    def track(clip: torch.Tensor, queries: torch.Tensor) -> Tracks:
        (video,) = [v for v in videos if torch.equal(v.frames, clip[0])]
        own = torch.stack(
            [(video.xy[:, int(t)] - torch.tensor([x, y])).abs().sum(-1).argmin() for t, x, y in queries[0].tolist()]
        )
        xy = (video.xy[own] + torch.tensor([shift * clip.shape[-1] / 256, 0])).float()
        return Tracks(xy[None], torch.ones_like(xy[None, ..., 0]), video.visible[own][None], **more)

    return from_tracker("oracle", track)


def strict(path: Path) -> dict[str, Any]:
    def refuse(word):
        raise AssertionError(word)

    return json.loads(path.read_text(), parse_constant=refuse)


def untimed(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what differs from run to run."""
    results = copy.deepcopy(results)
    results["about"].pop("date")
    for record in results["records"]:
        assert record.pop("seconds").keys() == {"features", "tracking"}
    for row in results["summary"]:
        row.pop("points_per_second")
    return results


def leftovers(out: Path) -> list[str]:
    return sorted(p.name for p in out.parent.iterdir() if p != out)


def keys(results: dict[str, Any]) -> set[tuple[str, ...]]:
    return {tuple(r[k] for k in ("data", "video", "mode", "tracker")) for r in results["records"]}


# Interrupted runs


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Any]:
    """Results of a run that nothing interrupted, of both modes."""
    (tmp_path / "whole").mkdir()
    return evaluate([Counting().tracker], {"d": five()}, tmp_path / "whole" / "r.json", modes=MODES)


@pytest.mark.parametrize("name", ["r.json", "r[1].json"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, whole, stop, name) -> None:
    out = tmp_path / "run" / name
    out.parent.mkdir()
    first, rest = five(), five()
    with pytest.raises(type(stop)):
        evaluate([Counting(stop=stop, after=5).tracker], {"d": first}, out, modes=MODES)
    assert not out.exists() and len(leftovers(out)) == 1
    tracker = Counting()
    results = evaluate([tracker.tracker], {"d": rest}, out, modes=MODES)
    assert first.loaded == ["v0", "v1", "v2"] and rest.loaded == ["v2", "v3", "v4"]  # v2 lacked its second mode
    assert tracker.calls == 5
    assert untimed(results) == untimed(whole) == untimed(strict(out))
    assert leftovers(out) == []


@pytest.mark.parametrize("cut", [1, 30])
def test_a_line_that_was_broken_off_is_measured_again(tmp_path, whole, cut) -> None:
    out = tmp_path / "run" / "r.json"
    out.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        evaluate([Counting(stop=KeyboardInterrupt(), after=5).tracker], {"d": five()}, out, modes=MODES)
    (part,) = out.parent.iterdir()
    part.write_bytes(part.read_bytes()[: -cut - 1])  # the line's end, and `cut` characters of it
    for after in (2, 99):  # the part grows on behind the broken line, and is read once more
        tracker = Counting(stop=KeyboardInterrupt(), after=after)
        if after == 2:
            with pytest.raises(KeyboardInterrupt):
                evaluate([tracker.tracker], {"d": five()}, out, modes=MODES)
        else:
            results = evaluate([tracker.tracker], {"d": five()}, out, modes=MODES)
    assert tracker.calls == 10 - 4 - 2
    assert untimed(results) == untimed(whole)


def test_what_follows_a_broken_line_is_read(tmp_path) -> None:
    """A run that adds a tracker after such a line, and is interrupted itself: its tracker is known to the next one."""
    out = tmp_path / "r.json"
    for cut, names in ((2, "a"), (0, "ab")):
        with pytest.raises(KeyboardInterrupt):
            evaluate([Counting(n, KeyboardInterrupt()).tracker for n in names], {"d": five()}, out)
        (part,) = tmp_path.iterdir()
        part.write_bytes(part.read_bytes()[: -cut or None])
    results = evaluate([Counting("a").tracker], {"d": five()}, out)
    assert list(results["trackers"]) == ["a", "b"] and {r["tracker"] for r in results["summary"]} == {"a", "b"}


KILLED = """
import sys
from pathlib import Path
from chrono_features.evaluation.run import evaluate
sys.path.insert(0, sys.argv[1])
from test_run import Counting, five

class Telling(Counting):
    def __call__(self, video, queries):
        if self.calls == 2:
            print("third", flush=True)
            sys.stdin.read()  # until it is killed
        return super().__call__(video, queries)

evaluate([Telling().tracker], {"d": five()}, Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_a_killed_process_loses_only_the_video_at_hand(tmp_path) -> None:
    out = tmp_path / "r.json"
    arguments = [sys.executable, "-c", KILLED, os.path.dirname(__file__), os.fspath(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, env=environment, **pipes) as process:
        assert process.stdout.readline() == "third\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL and not out.exists()
    data, tracker = five(), Counting()
    results = evaluate([tracker.tracker], {"d": data}, out)
    assert data.loaded == ["v2", "v3", "v4"] and tracker.calls == 3
    fresh = evaluate([Counting().tracker], {"d": five()}, tmp_path / "fresh.json")
    assert untimed(results) == untimed(fresh)


def test_a_broken_file_stops_the_run_and_keeps_what_was_measured(tmp_path) -> None:
    out = tmp_path / "r.json"
    with pytest.raises(ValueError, match="torn pickle"):
        evaluate([Counting().tracker], {"d": five(v3=ValueError("torn pickle"))}, out)
    again = five()
    assert len(evaluate([Counting().tracker], {"d": again}, out)["records"]) == 5
    assert again.loaded == ["v3", "v4"]


def test_a_video_that_cannot_be_measured_is_reported_and_not_read_again(tmp_path) -> None:
    out, data = tmp_path / "r.json", five(v1=Unusable("too dark"))
    results = evaluate([Counting().tracker], {"d": data}, out)
    assert results["data"]["d"]["skipped"] == {"v1": "too dark"} and results["data"]["d"]["total"] == 5
    assert [r["video"] for r in results["records"]] == ["v0", "v2", "v3", "v4"]
    assert data.loaded == ["v0", "v1", "v2", "v3", "v4"]
    again = evaluate([Counting().tracker, Counting("other").tracker], {"d": data}, out)
    assert data.loaded[5:] == ["v0", "v2", "v3", "v4"]
    assert again["data"]["d"]["skipped"] == {"v1": "too dark"}


def test_an_interrupted_run_remembers_what_it_skipped(tmp_path) -> None:
    out, data = tmp_path / "r.json", five(v1=Unusable("too dark"))
    with pytest.raises(KeyboardInterrupt):
        evaluate([Counting(stop=KeyboardInterrupt()).tracker], {"d": data}, out)
    assert data.loaded == ["v0", "v1", "v2", "v3"]
    results = evaluate([Counting().tracker], {"d": data}, out)
    assert data.loaded[4:] == ["v3", "v4"] and results["data"]["d"]["skipped"] == {"v1": "too dark"}


# Runs that add to others


def test_only_what_is_missing_is_measured(tmp_path) -> None:
    out, data, a, b = tmp_path / "r.json", five(), Counting("a"), Counting("b")
    small = evaluate([a.tracker], {"d": data}, out, limit=2)
    assert keys(small) == {("d", v, "first", "a") for v in ("v0", "v1")} and small["data"]["d"]["total"] == 5
    kept = {r["video"]: r for r in small["records"]}

    larger = evaluate([a.tracker], {"d": data}, out, limit=4)
    assert a.calls == 4 and data.loaded == ["v0", "v1", "v2", "v3"]
    assert all(kept[r["video"]] == r for r in larger["records"] if r["video"] in kept)  # seconds, too

    results = evaluate([b.tracker], {"d": data}, out, limit=1)
    assert (a.calls, b.calls) == (4, 1) and data.loaded[4:] == ["v0"]
    assert list(results["trackers"]) == ["a", "b"] and len(results["records"]) == 5

    results = evaluate([b.tracker, a.tracker], {"d": data}, out, modes=MODES, limit=1)
    assert (a.calls, b.calls) == (5, 2)
    assert keys(results) == {("d", "v0", m, t) for m in MODES for t in "ab"} | {
        ("d", f"v{i}", "first", "a") for i in (1, 2, 3)
    }

    loaded = len(data.loaded)
    again = evaluate([a.tracker, b.tracker], {"d": data}, out, modes=MODES, limit=1)
    assert len(data.loaded) == loaded and again["records"] == results["records"] == strict(out)["records"]

    other = Videos({"w": labelled("w")}, kind="davis")
    both = evaluate([a.tracker], {"e": other}, out)
    assert list(both["data"]) == ["d", "e"] and both["data"]["d"] == again["data"]["d"]
    assert keys(both) == keys(again) | {("e", "w", "first", "a")}


def test_two_processes_give_what_one_gives(tmp_path, whole) -> None:
    out, halves, waited = tmp_path / "two.json", (five(), five()), []
    for process in (1, 0):
        results = evaluate(
            [Counting().tracker],
            {"d": halves[process]},
            out,
            modes=MODES,
            process=process,
            processes=2,
            wait=lambda: waited.append(out.exists()),
        )
        assert bool(results) == (process == 0) == out.exists()
    assert waited == [False, False]
    assert halves[0].loaded == ["v0", "v2", "v4"] and halves[1].loaded == ["v1", "v3"]
    assert untimed(results) == untimed(whole) == untimed(strict(out))
    assert not list(tmp_path.glob(".two*"))


def test_progress(tmp_path) -> None:
    told = []
    data = {"d": five(v1=Unusable("")), "e": five()}
    tell = {"limit": 2, "on_video": lambda *values: told.append(values)}
    evaluate([Counting().tracker], data, tmp_path / "r.json", **tell)
    assert told == [("d", 1, 5), ("d", 2, 5), ("e", 1, 5), ("e", 2, 5)]


# Refusals


@pytest.mark.parametrize("module", ["cv2", "scipy.stats", "sklearn.metrics"])
def test_what_metrics_need_is_asked_for_before_any_work(tmp_path, monkeypatch, module) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    data, tracker = five(), Counting()
    with pytest.raises(ImportError, match=f"{module.partition('.')[0]} is .*extra eval"):
        evaluate([tracker.tracker], {"d": data}, tmp_path / "r.json")
    assert not tracker.calls and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (128, 128)}, r"protocol size \[256, 256\], and this is \[128, 128\]"),
        ({"settings": {"dtype": "float16"}}, "protocol dtype float32, and this is float16"),
        ({"settings": {}}, "protocol dtype float32, and this is None"),
        ({"device": "meta"}, r"about device cpu.*this is meta"),
        ({"data": {"d": Videos({"v0": labelled("v0")}, print="q")}}, "data d .*'p'.*'q'"),
        ({"data": {"d": Videos({"v0": labelled("v0")}, kind="davis")}}, "data d .*csv.*davis"),
        ({"weights": "2"}, "trackers random .*'1'.*'2'"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_what_was_measured_on_something_else_is_refused(tmp_path, monkeypatch, change, message, finished) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a GPU")
    out = tmp_path / "r.json"

    def measure(size=(256, 256), device="cpu", settings=None, data=None, weights="1", stop=None):
        data = {"d": five()} if data is None else data
        tracker = from_tracker("random", Counting(stop=stop), weights=weights)
        settings = {"dtype": "float32"} if settings is None else settings
        return evaluate([tracker], data, out, size=size, device=device, settings=settings)

    if finished:
        measure()
    else:
        with pytest.raises(KeyboardInterrupt):
            measure(stop=KeyboardInterrupt())
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        measure(**change)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    measure()


def test_other_versions_are_refused_and_other_paths_are_not(tmp_path, monkeypatch) -> None:
    out = tmp_path / "r.json"
    evaluate([Counting().tracker], {"d": five()}, out)
    moved = five()
    moved.path = "elsewhere"
    assert evaluate([Counting().tracker], {"d": moved}, out)["data"]["d"]["path"] == "elsewhere"
    monkeypatch.setattr("chrono_features.evaluation.run.metadata.version", lambda package: "0.0")
    with pytest.raises(ValueError, match="about versions .*'torch': '0.0'"):
        evaluate([Counting().tracker], {"d": five()}, out)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\x00", b"[]", b"{}", b'{"a": 1}', b'{"records": [], "data": {}}', b'{"records": 1, "data": 2}'],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, content) -> None:
    out, data = tmp_path / "r.json", five()
    out.write_bytes(content)
    with pytest.raises(ValueError, match=r"r\.json"):
        evaluate([Counting().tracker], {"d": data}, out)
    assert out.read_bytes() == content and leftovers(out) == data.loaded == []


def test_a_missing_folder_is_refused_before_any_work(tmp_path) -> None:
    data = five()
    with pytest.raises(FileNotFoundError, match=r"out=.*r\.json: the folder .*nowhere does not exist"):
        evaluate([Counting().tracker], {"d": data}, tmp_path / "nowhere" / "r.json")
    assert data.loaded == [] and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trackers": []}, r"trackers=\[\]; expected at least one"),
        ({"trackers": [Counting().tracker] * 2}, r"trackers=\['random', 'random'\]"),
        ({"data": {}}, "data is empty"),
        ({"modes": []}, r"modes=\[\]; expected some of first, strided"),
        ({"modes": ["first", "last"]}, r"modes=\['first', 'last'\]"),
        ({"limit": 0}, "limit=0; expected a positive"),
    ],
)
def test_wrong_arguments(tmp_path, change, message) -> None:
    data = five()
    arguments = {"trackers": [Counting().tracker], "data": {"d": data}, "out": tmp_path / "r.json", **change}
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments)
    assert data.loaded == [] and not any(tmp_path.iterdir())


def test_a_failed_write_leaves_file_and_parts(tmp_path, monkeypatch) -> None:
    out = tmp_path / "r.json"
    evaluate([Counting("a").tracker], {"d": five()}, out)
    before = out.read_bytes()

    def broken(self):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "results", broken)
        with pytest.raises(OSError, match="disk full"):
            evaluate([Counting("b").tracker], {"d": five()}, out)
    assert out.read_bytes() == before
    tracker = Counting("b")
    assert len(evaluate([tracker.tracker], {"d": five()}, out)["records"]) == 10
    assert tracker.calls == 0


# Scores


def one(tracker: Tracker, video: Clip, mode: str = "first") -> dict[str, Any]:
    (record,) = track_records(tracker, video, [mode], FeatureCache(video.frames, "cpu"))
    return record


@pytest.mark.parametrize("mode", MODES)
def test_a_perfect_tracker_scores_one_in_everything(mode) -> None:
    video = labelled(group="articulated/dogs")
    video.visible[1:, 3] = False  # a frame with a single joint
    metrics = one(oracle(video), video, mode)["metrics"]
    assert metrics.keys() > {"pck_0.2", "balanced_accuracy", "average_precision", "average_jaccard"}
    assert set(metrics.values()) == {1.0}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(64, 128), (128, 64), (256, 256)])
def test_distances_are_measured_at_256(mode, size) -> None:
    video = labelled(size=size)
    metrics = one(oracle(video, shift=3), video, mode)["metrics"]
    assert [metrics[f"pts_within_{t}"] for t in THRESHOLDS] == [0, 0, 1, 1, 1]
    assert one(oracle(video, shift=1.9), video, mode)["metrics"]["pts_within_2"] == 1


def test_what_a_record_holds(tmp_path) -> None:
    video = labelled("v", "g")
    results = evaluate([oracle(video)], {"d": Videos({"v": video})}, tmp_path / "r.json", modes=["strided"])
    (record,) = results["records"]
    assert {k: record[k] for k in ("data", "group", "video", "tracker", "mode", "frames")} == {
        "data": "d",
        "group": "g",
        "video": "v",
        "tracker": "oracle",
        "mode": "strided",
        "frames": FRAMES,
    }
    usable = video.visible & video.valid
    assert record["points"] == len(record["track_delta"]) == usable[:, ::5].sum()
    assert record["seconds"]["tracking"] > 0 == record["seconds"]["features"] and "reliability" not in record


def test_pck_is_of_joints_only() -> None:
    """The reference is the longer side of the box around the joints: a fifth of it, strictly."""
    xy = torch.zeros(2, 2, 2).double()
    xy[1] = torch.tensor([100, 50])  # far apart; the box is 100 x 50
    xy += 100
    frames, seen = torch.zeros(2, 3, 256, 256, dtype=torch.uint8), torch.ones(2, 2, dtype=torch.bool)

    def metrics(group: str, shift: float) -> dict[str, float]:
        video = Clip(frames, xy, seen, seen, name="v", group=group)
        return one(oracle(video, shift=shift), video)["metrics"]

    assert "pck_0.2" not in metrics("planar/articulated", 0)
    assert [metrics("articulated/dogs", shift)["pck_0.2"] for shift in (0, 19.5, 20.5)] == [1, 1, 0]


def test_features_are_computed_once_for_both_modes(tmp_path) -> None:
    seen, given = [], []

    def features(clip):
        seen.append(clip.shape)
        return torch.full((1, FRAMES, 1, 1, 1), float(len(seen)))

    def track(clip, queries, found):
        given.append(None if found is None else found.flatten()[0].item())
        return Counting()(clip, queries)

    results = evaluate([Tracker("c", track, features)], {"d": five()}, tmp_path / "r.json", modes=MODES, limit=2)
    assert seen == [(1, FRAMES, 3, 32, 32)] * 2 and given == [1, 1, 2, 2]
    seconds = {r["video"]: set() for r in results["records"]}
    for record in results["records"]:
        seconds[record["video"]].add(record["seconds"]["features"])
    assert all(len(s) == 1 and min(s) > 0 for s in seconds.values())  # the same time in both records


def test_trackers_with_the_same_features_share_them(tmp_path) -> None:
    """And what masks say about them; others have their own, and those without features get none."""
    seen, given = [], []

    def features(kind: str):
        def compute(clip):
            seen.append(kind)
            return torch.ones(1, clip.shape[1], 2, 4, 4)

        return compute

    def tracker(name: str, compute=None) -> Tracker:
        def track(clip, queries, found):
            given.append(found is not None)
            return Counting()(clip, queries)

        return Tracker(name, track, compute)

    a, b = features("a"), features("b")
    measured = [tracker("a1", a), tracker("a2", a), tracker("none"), tracker("a3", a), tracker("b", b)]
    data = {"d": five(), "masks": Videos({"m": masked()}, kind="masks")}
    results = evaluate(measured, data, tmp_path / "r.json", limit=1)
    assert seen == ["a", "b"] * 2 and given == [True, True, False, True, True] * 2
    seconds = {(r["data"], r["tracker"]): r["seconds"]["features"] for r in results["records"]}
    assert seconds["d", "none"] == 0 and seconds["d", "a1"] == seconds["d", "a3"] > 0
    for record in results["records"]:
        assert ("J&F" in record["metrics"]) == (record["data"] == "masks" and record["tracker"] != "none")


@pytest.mark.parametrize("mode", MODES)
def test_the_worst_tracks_are_numbered_as_in_the_video(mode) -> None:
    """The last track is lost. In the mode strided, queries and tracks have different numbers."""
    video = labelled()
    video.visible[:], video.valid[:] = True, True
    video.visible[0, :2] = False  # strided: no query of track 0 in frame 0
    truth = oracle(video)

    def track(clip, queries, _):
        found = truth.track(clip, queries, None)
        lost = [np.allclose(video.xy[3, int(t)], (x, y), atol=1e-3) for t, x, y in queries[0].tolist()]
        found.xy[0, lost] += 9.0
        return found

    record = one(Tracker("c", track), video, mode)
    lost = [w for w in record["worst"] if w["delta"] < 1]
    queries = {"first": [0], "strided": [0, 5]}[mode]
    assert sorted(w["query"][0] for w in lost) == queries and {w["track"] for w in lost} == {3}
    assert len(record["worst"]) == 3 and [w["delta"] for w in record["worst"]] == sorted(
        w["delta"] for w in record["worst"]
    )
    for worst in record["worst"]:
        t, x, y = worst["query"]
        np.testing.assert_allclose(video.xy[worst["track"], int(t)], (x, y), atol=0.006)
        off = 9.0 if worst["track"] == 3 else 0.0
        np.testing.assert_allclose(np.array(worst["xy"]) - off, video.xy[worst["track"]], atol=0.051)
        assert worst["visible"] == video.visible[worst["track"]].int().tolist()


def test_reliability() -> None:
    """Stated probabilities beside how often points were seen and near."""
    video = labelled()
    video.visible[:], video.valid[:] = True, True
    video.visible[2:, 1:] = False
    confidence = torch.full((1, TRACKS, FRAMES), 0.75)
    confidence[:, 0] = 0.15
    record = one(oracle(video, confidence=confidence), video)
    (low, near_low, n_low), (high, near_high, n_high) = record["reliability"]
    assert (n_low, n_high) == (FRAMES - 1, 3 * (FRAMES - 1))
    assert (low, high) == pytest.approx((0.15, 0.75)) and (near_low, near_high) == pytest.approx((1, 1 / 3))
    assert record["metrics"]["confidence_average_precision"] == pytest.approx(0.5 / 3 + 0.5 / 2)  # precision by recall
    far = one(oracle(video, shift=4.1, confidence=confidence), video)
    assert [seen for _, seen, _ in far["reliability"]] == [0, 0]


def test_certainty_of_being_visible_comes_from_logits() -> None:
    video = labelled()
    logits = torch.zeros(1, TRACKS, FRAMES, 2)
    logits[..., 0] = torch.where(video.visible, 1.0, -1.0)  # the wrong way round
    metrics = one(oracle(video, logits=logits), video)["metrics"]
    assert metrics["average_precision"] < metrics["balanced_accuracy"] == 1


def test_a_tracker_without_visibility_calls_everything_visible() -> None:
    video = labelled()
    blind = from_tracker("blind", lambda clip, queries: Tracks((x := Counting()(clip, queries)).xy, x.similarity))
    record = one(blind, video)
    after = video.valid.clone()
    after[:, 0] = False
    assert record["metrics"]["occlusion_accuracy"] == pytest.approx(float((video.visible & after).sum() / after.sum()))
    assert record["metrics"]["balanced_accuracy"] == 0.5


def test_numbers_that_json_does_not_know(tmp_path) -> None:
    """A tracker that breaks down, and a video in which nothing counts."""
    empty, nan = labelled("empty", "articulated/x"), labelled("nan")
    empty.valid[:, 1:] = False
    lost = from_tracker("lost", lambda clip, queries: Tracks((x := Counting()(clip, queries)).xy / 0, x.similarity))
    out = tmp_path / "r.json"
    evaluate([lost], {"d": Videos({"empty": empty, "nan": nan})}, out)
    first, second = strict(out)["records"]
    assert set(first["metrics"].values()) == {None} == set(first["track_delta"]) and first["worst"] == []
    assert second["metrics"]["average_pts_within_thresh"] == 0 and second["worst"][0]["xy"][2] == [None, None]
    rows = [r for r in strict(out)["summary"] if r["group"] == "articulated/x"]
    assert rows[0]["metrics"]["average_pts_within_thresh"] is None and rows[0]["interval"] == [None, None]
    assert json_safe({"a": [float("inf"), 1.5], "b": None, "c": "x"}) == {"a": [None, 1.5], "b": None, "c": "x"}


@pytest.mark.parametrize("group", ["g", "articulated/x"])
def test_a_video_without_queries(group) -> None:
    """Points that are seen only between the frames that the mode strided asks about."""
    video = labelled(group=group)
    video.visible[:] = False
    video.visible[0, 1] = True
    record = one(Counting().tracker, video, "strided")
    assert record["points"] == 0 and record["worst"] == record["track_delta"] == []
    assert set(record["metrics"].values()) == {None}


def test_tracks_of_another_shape_are_refused() -> None:
    wrong = from_tracker("wrong", lambda clip, queries: Counting()(clip, queries)[:, :1])
    with pytest.raises(ValueError, match=rf"wrong returned xy of shape \(1, 1, {FRAMES}, 2\); expected \(1, {TRACKS}"):
        one(wrong, labelled())


# Masks


def test_masks_with_and_without_features(tmp_path) -> None:
    video, calls = masked(), []

    def features(clip):
        colours = torch.eye(3)[torch.from_numpy(video.masks[:, ::4, ::4])].permute(0, 3, 1, 2)
        return colours[None]

    def moving(clip, queries, found):
        calls.append(queries)
        xy = queries[:, :, None, 1:] + torch.stack([torch.arange(4.0), torch.zeros(4)], -1)
        return Tracks(xy, xy[..., 0])

    data = Videos({"m": video}, kind="masks")
    trackers = [Tracker("plain", moving), Tracker("features", moving, features)]
    results = evaluate(trackers, {"masks": data}, tmp_path / "r.json", modes=MODES)
    (first, second) = sorted(results["records"], key=lambda r: -len(r["tracker"]))
    queries, objects = mask_queries(video)
    torch.testing.assert_close(calls[0][0], torch.from_numpy(queries))
    assert {r["mode"] for r in results["records"]} == {"masks"} and first["points"] == len(queries)
    xy = moving(None, torch.from_numpy(queries)[None], None).xy[0].numpy()
    consistency = mask_consistency(xy, np.ones(xy.shape[:2], bool), objects, video.masks)
    assert second["metrics"] == consistency == {"mask_precision": 1.0, "mask_recall": 1.0}
    plain, coloured = (propagation_metrics(features(None)[0], video, frames) for frames in (None, video.frames))
    assert first["metrics"] == {**plain, "J&F, colours": coloured["J&F"], **consistency}
    assert {"J", "F", "J&F"} < first["metrics"].keys()
    (row, _) = (r for r in results["summary"] if r["tracker"] == "features")
    assert row["metrics"]["J&F"] == first["metrics"]["J&F"]
    assert evaluate(trackers, {"masks": data}, tmp_path / "r.json")["records"] == results["records"]
    assert data.loaded == ["m"]  # there is one mode of masks, whatever is asked for


# Summaries


def record(tracker: str, video: str, group: str, delta: float | None, **changes: Any) -> dict[str, Any]:
    base = {"data": "d", "video": video, "mode": "first", "group": group, "tracker": tracker, "points": 10}
    seconds = {"tracking": 2.0, "features": 3.0}
    return {**base, "metrics": {"average_pts_within_thresh": delta}, "seconds": seconds, **changes}


def test_summary() -> None:
    values = {"v0": 0.2, "v1": 0.4, "v2": None, "v3": 0.9}
    groups = {"v0": "z", "v1": "z", "v2": "z", "v3": "a"}
    records = [record("late", v, groups[v], d) for v, d in values.items()]
    records += [record("early", v, groups[v], 1.0, seconds={"tracking": 0.0, "features": 0.0}) for v in values]
    rows = summarise(records, ["early", "late"])
    shown = [(r["group"], r["tracker"], r["videos"]) for r in rows]
    assert shown == [
        (group, tracker, n) for group, n in (("a", 1), ("z", 3), (ALL, 4)) for tracker in ("early", "late")
    ]
    assert [r["tracker"] for r in summarise(records, ["late", "early"])][:2] == ["late", "early"]
    means = {(r["group"], r["tracker"]): r["metrics"]["average_pts_within_thresh"] for r in rows}
    assert means["z", "late"] == pytest.approx(0.3) and means[ALL, "late"] == pytest.approx(0.5)
    last = rows[-1]
    assert last["interval"] == pytest.approx(bootstrap_interval([0.2, 0.4, 0.9])) and rows[1]["interval"] == [None] * 2
    assert last["points_per_second"] == {"tracking": 40 / 8, "with features": 40 / 20}
    assert rows[0]["points_per_second"] == {"tracking": None, "with features": None}
    assert {(r["data"], r["mode"]) for r in rows} == {("d", "first")}


def test_summary_keeps_data_and_modes_apart() -> None:
    masks = {"mode": "masks", "metrics": {"J&F": 0.5, "J": 0.4}}
    records = [
        record("t", "v", "g", 0.1),
        record("t", "v", "g", 0.3, mode="strided"),
        record("t", "v", "g", 0, **masks),
    ]
    records += [record("t", "w", "g", 0, **{**masks, "metrics": {"J&F": 0.7, "J": 0.4}})]
    records += [record("t", "v", "g", 0.9, data="e")]
    rows = {(r["data"], r["mode"]): r for r in summarise(records, ["t"]) if r["group"] == ALL}
    assert [rows[k]["metrics"].get("average_pts_within_thresh") for k in (("d", "first"), ("d", "strided"))] == [
        0.1,
        0.3,
    ]
    assert rows["e", "first"]["metrics"]["average_pts_within_thresh"] == 0.9
    assert rows["d", "masks"]["interval"] == pytest.approx(bootstrap_interval([0.5, 0.7]))


def test_reliability_is_pooled_by_how_many_were_counted() -> None:
    records = [
        record("a", "v", "g", 0, reliability=[[0.12, 0.0, 1], [1.0, 1.0, 4]]),
        record("a", "w", "g", 0, reliability=[[0.18, 1.0, 3], [0.95, 0.0, 4]]),
        record("b", "v", "g", 0),
    ]
    assert pooled_reliability(records) == {"a": [pytest.approx([0.165, 0.75, 4]), pytest.approx([0.975, 0.5, 8])]}

import base64
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chrono_features.data.clip import Clip
from chrono_features.evaluation.report import write_report
from chrono_features.evaluation.worst_tracks import FOUND, TRUTH

pytest.importorskip("av")
pytest.importorskip("PIL")
pytest.importorskip("jinja2")

FRAMES, POINTS, SIDE = 6, 4, 64
THRESHOLDS = (1, 2, 4, 8, 16)
EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """What a page holds; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []  # of all tables
        self.bold: list[str] = []
        self.texts: list[str] = []
        self.titles: list[str] = []  # tooltips
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))
        if name != "meta":
            self.open.append(name)
        self.titles += [value for key, value in attributes if key == "title" and value]
        if name == "tr":
            self.rows.append([])
        elif name in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        if "style" in self.open:
            return
        self.texts.append(text)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += text
        if "b" in self.open:
            self.bold.append(text)
        if self.open[-1:] == ["title"]:
            self.titles.append(text)

    def after(self, heading: str) -> list[list[str]]:
        """The rows below the first one that is only `heading`, up to the next one like it or the next table."""
        start = self.rows.index([heading]) + 1
        end = next(
            (i for i in range(start, len(self.rows)) if len(self.rows[i]) == 1 or not self.rows[i][0]), len(self.rows)
        )
        return self.rows[start:end]


def labelled(name: str, frames: int = FRAMES, group: str = "precision/planar") -> Clip:
    """Grey frames. Track n stands still at (8 + 12 n, 40); it is hidden in frame 3 and unknown in frame 4."""
    xy = np.stack(
        [np.full((POINTS, frames), 0.0) + 8 + 12 * np.arange(POINTS)[:, None], np.full((POINTS, frames), 40)], -1
    )
    occluded, valid = np.zeros((POINTS, frames), bool), np.ones((POINTS, frames), bool)
    occluded[:, 3], valid[:, 4] = True, False
    pixels = torch.full((frames, 3, SIDE, SIDE), 90, dtype=torch.uint8)
    visible = ~torch.from_numpy(occluded)
    return Clip(pixels, torch.from_numpy(xy), visible, torch.from_numpy(valid), name=name, group=group)


def worst(track: int, delta: float | None, frames: int = FRAMES, t: int = 1) -> dict[str, Any]:
    """Found 16 pixels above the truth; called hidden in the last frame."""
    visible = [1] * (frames - 1) + [0]
    return {
        "track": track,
        "delta": delta,
        "query": [t, 8 + 12 * track, 40],
        "xy": [[8 + 12 * track, 24]] * frames,
        "visible": visible,
    }


def record(tracker: str, video: str, level: float | None, **changes: Any) -> dict[str, Any]:
    """All metrics are `level` or less."""
    metrics: dict[str, Any] = dict.fromkeys(
        ("average_pts_within_thresh", "average_jaccard", "occlusion_accuracy"), level
    )
    for i, threshold in enumerate(THRESHOLDS):
        metrics[f"pts_within_{threshold}"] = None if level is None else level * i / 4
    return {
        "data": "real_tracks",
        "group": "precision/planar",
        "video": video,
        "mode": "first",
        "tracker": tracker,
        "frames": FRAMES,
        "points": POINTS,
        "seconds": {"features": 3.0, "tracking": 0.5},
        "metrics": metrics,
        "track_delta": [level] * POINTS,
        "worst": [worst(0, 0.1), worst(1, 0.2)],
        **changes,
    }


def results_of(records: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "about": {"device": "cpu, of a test", "date": "2026-11-25", "versions": {"torch": "2.6.0"}},
        "protocol": {"size": [256, 256], "thresholds": list(THRESHOLDS), "paper": False, "limit": None},
        "data": {
            "real_tracks": {
                "path": "some/tracks.pkl",
                "fingerprint": {"sha256": "abc123"},
                "total": 5,
                "skipped": {"broken_one": "no point <is> visible"},
            }
        },
        "trackers": {"chrono-tiny": {"weights": "sha256 5f"}, "lucas-kanade": {"window": 15}},
        "records": records,
        **changes,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    mask = {"mode": "masks", "group": "masks/dogs", "metrics": {"J": 0.5, "F": 0.25, "J&F": 0.375}, "worst": []}
    return results_of(
        [
            record("chrono-tiny", "a", 0.8),
            record("chrono-tiny", EVIL, 0.6),
            record("chrono-tiny", "c", 0.1, group="articulated/badja"),
            record("chrono-tiny", "void", None),
            record("lucas-kanade", "a", 0.7),
            record("lucas-kanade", EVIL, 0.7 + 4e-4),
            record("lucas-kanade", "c", 0.3, group="articulated/badja"),
            record("lucas-kanade", "void", math.nan),
            record("chrono-tiny", "a", 0.9, mode="strided"),
            record("chrono-tiny", "dog", None, data="masks", **mask),
        ],
        reliability={"chrono-tiny": [[0.15, 0.25, 12_345], [None, None, 0], [0.95, 0.9, 7]]},
    )


@pytest.fixture
def render(tmp_path: Path) -> Callable[..., str]:
    def render(results: dict[str, Any], clips: int = 6, video: Callable[[str], Clip] = labelled) -> str:
        write_report(tmp_path / "report.html", results, lambda data, name: video(name), clips)
        assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
        return (tmp_path / "report.html").read_text()

    return render


def clips_in(text: str) -> list[bytes]:
    return [base64.b64decode(code) for code in re.findall(r'src="data:video/mp4;base64,([^"]+)"', text)]


@pytest.mark.slow
def test_one_file_with_everything_in_it(results: dict[str, Any], render: Callable[..., str]) -> None:
    text = render(results)
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    for _, attributes in page.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert not {"href", "srcset", "onclick"} & set(attributes)
    said = "\n".join(page.texts)
    for expected in (
        "chrono-tiny",
        "lucas-kanade",
        "a",
        "c",
        "void",
        "dog",
        EVIL,
        "precision/planar",
        "articulated/badja",
    ):
        assert expected in page.texts, expected
    for expected in (
        "cpu, of a test",
        "torch 2.6.0",
        "256, 256",
        "some/tracks.pkl",
        "abc123",
        "sha256 5f",
        "masks/dogs",
    ):
        assert expected in said, expected
    assert "broken_one" in page.texts and "no point <is> visible" in page.texts
    headings = [
        text for text in page.texts if text in ("Results", "By threshold", "By video", "Reliability", "Throughput")
    ]
    assert headings == ["Results", "By threshold", "By video", "Reliability", "Throughput"]
    assert "nan" not in said.lower() and "None" not in said


@pytest.mark.slow
def test_names_are_escaped(results: dict[str, Any], render: Callable[..., str]) -> None:
    text = render(results)
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    odd = render(results_of([record("chrono-tiny", "caf\udce9", 0.5)]), clips=0)  # a file name that is not UTF-8
    assert "caf?" in odd


def test_tables_show_means_over_videos(results: dict[str, Any], render: Callable[..., str]) -> None:
    page = Page(render(results, clips=0))
    planar = page.after("precision/planar")
    assert planar == [
        ["chrono-tiny", "3", "70.0", "70.0", "70.0", "0.0", "17.5", "35.0", "52.5", "70.0"],
        ["lucas-kanade", "3", "70.0", "70.0", "70.0", "0.0", "17.5", "35.0", "52.5", "70.0"],
    ]  # the third video counts nothing; 70.02 reads like 70.0
    badja = page.after("articulated/badja")
    assert [row[2] for row in badja] == ["10.0", "30.0"]
    together = page.after("mean of all videos")
    assert [row[:3] for row in together] == [["chrono-tiny", "4", "50.0"], ["lucas-kanade", "4", "56.7"]]
    assert page.after("masks/dogs") == [["chrono-tiny", "1", "37.5", "50.0", "25.0"]]
    assert ["", "videos", "J&F", "J", "F"] in page.rows
    assert ["", "videos", "<δavg", "AJ", "OA", "<1 px", "<2 px", "<4 px", "<8 px", "<16 px"] in page.rows


def test_best_of_a_column_is_bold(results: dict[str, Any], render: Callable[..., str]) -> None:
    page = Page(render(results, clips=0))
    assert page.bold.count("30.0") == 4 and "10.0" not in page.bold  # <δavg, AJ, OA, <16 px of articulated/badja
    assert page.bold.count("70.0") == 8  # both, where they read the same, in four columns
    assert "37.5" not in page.bold and "90.0" not in page.bold  # alone


def test_further_metrics_and_missing_numbers(render: Callable[..., str]) -> None:
    one = record("chrono-tiny", "a", None)
    one["metrics"]["average_precision"] = 0.25
    page = Page(render(results_of([one]), clips=0))
    assert page.after("precision/planar") == [["chrono-tiny", "1", *["–"] * 8, "25.0"]]
    assert page.rows[0][-1] == "AP"


def test_throughput(render: Callable[..., str]) -> None:
    slow = {"frames": 4, "points": 10, "seconds": {"features": 5.0, "tracking": 1.5}}
    none = {"points": 1234, "seconds": {"features": None, "tracking": 0.5}}
    records = [record("chrono-tiny", "a", 0.5), record("chrono-tiny", "b", 0.5, **slow), record("x", "a", 0.5, **none)]
    page = Page(render(results_of(records), clips=0))
    assert page.after("real_tracks, mode first") == [
        ["chrono-tiny", "10", "14", "0.8", "0.2", "7", "1.4"],
        ["x", "6", "1234", "–", "0.0833", "2468", "–"],
    ]


def test_bars(results: dict[str, Any], render: Callable[..., str]) -> None:
    records = [record(name, "a", level) for name, level in (("x", 0.5), ("y", None), ("z", 1.0))]
    page = Page(render(results_of(records, trackers={"x": {}, "y": {}, "z": {}}), clips=0))
    assert [title for title in page.titles if ":" in title and "px" not in title] == [
        "x: 50.0 %",
        "y: – %",
        "z: 100.0 %",
    ]
    assert [a["style"] for name, a in page.tags if name == "i"] == ["width:50.0%", "width:0%", "width:100.0%"]
    bars = [a["class"] for name, a in page.tags if name == "div" and (a.get("class") or "").startswith("bar")]
    assert bars == ["bar s0", "bar s1", "bar s2"]


def test_reliability_is_shown_where_there_is_some(results: dict[str, Any], render: Callable[..., str]) -> None:
    assert "stated 15.0 %, happened 25.0 %, of 12345" in render(results, clips=0)
    del results["reliability"]
    assert "Reliability" not in render(results, clips=0)


def test_dark_pages_have_colours_of_their_own(results: dict[str, Any], render: Callable[..., str]) -> None:
    """Charts, bars and legends take the series' colours from the same variables of the page."""
    text = render(results, clips=0)
    light, dark = text.split("prefers-color-scheme:dark")
    for variable in ("--s0:", "--s5:", "--faint:", "--rule:", "--page:"):
        assert variable in light and variable in dark
    assert "stroke: var(--s0, #0072b2)" in dark and ".s0{color:var(--s0)}" in dark


def test_clips_are_videos_of_the_worst_tracks(
    results: dict[str, Any], render: Callable[..., str], tmp_path: Path
) -> None:
    from chrono_features.video import read_video

    text = render(results, clips=2)
    clips = clips_in(text)
    assert len(clips) == 4
    players = [a for name, a in Page(text).tags if name == "video"]
    assert all({"controls", "loop", "muted", "playsinline"} <= set(a) for a in players)
    (tmp_path / "clip.mp4").write_bytes(clips[0])
    frames = read_video(tmp_path / "clip.mp4").frames
    assert frames.shape == (FRAMES - 1, 3, 320, 320)  # from the query on, in frame 1
    truth, found = frames[1, :, 200, 40].int(), frames[1, :, 120, 40].int()
    assert (truth - torch.tensor(TRUTH)).abs().max() < 60
    assert (found - torch.tensor(FOUND)).abs().max() < 60
    assert (frames[1, :, 250, 250].int() - 105).abs().max() < 6


@pytest.mark.slow
def test_first_begins_at_the_query_and_long_videos_are_thinned(render: Callable[..., str], tmp_path: Path) -> None:
    from chrono_features.video import read_video

    def long(name: str) -> Clip:
        return labelled(name, 100)

    for mode, t, expected in (("first", 0, 34), ("first", 80, 20), ("strided", 80, 34)):
        one = record("chrono-tiny", "a", 0.5, mode=mode, worst=[worst(0, 0.0, 100, t)])
        text = render(results_of([one]), video=long)
        assert f"query in frame {t}," in text and ("one frame in 3" in text) == (expected == 34)
        (clip,) = clips_in(text)
        (tmp_path / "clip.mp4").write_bytes(clip)
        assert len(read_video(tmp_path / "clip.mp4").frames) == expected
        (tmp_path / "clip.mp4").unlink()


@pytest.mark.slow
def test_clips_vary_and_every_video_is_loaded_once(render: Callable[..., str]) -> None:
    def lost(tracker: str, video: str, *tracks: tuple[int, float | None], mode: str = "first") -> dict[str, Any]:
        return record(tracker, video, 0.5, mode=mode, worst=[worst(*track) for track in tracks])

    loaded = []

    def load(name: str) -> Clip:
        loaded.append(name)
        return labelled(name)

    records = [
        lost("x", "a", (0, 0.0), (0, 0.0), mode="strided"),
        lost("x", "a", (0, 0.0), (1, 0.0), (2, 0.0)),
        lost("x", "b", (3, 0.4), (2, None)),
        lost("x", "c", (0, 0.9)),
        lost("y", "b", (1, 0.3)),
    ]
    texts = Page(render(results_of(records), clips=3, video=load)).texts
    shown = [(m[1], m[2]) for text in texts if (m := re.search(r"track (\d), .*<δavg ([\d.]+)", text))]
    assert shown == [("0", "0.0"), ("3", "40.0"), ("0", "90.0"), ("1", "30.0")]
    assert sorted(loaded) == ["a", "b", "c"]
    texts = Page(render(results_of(records), clips=9)).texts
    tracks = [m[1] for text in texts if (m := re.search(r"track (\d), ", text))]
    assert tracks == ["0", "1", "3", "0", "1"]  # at most two of a, and no track twice
    loaded.clear()
    assert "Worst tracks" not in render(results_of(records), clips=0, video=load) and not loaded


def test_masks_alone(render: Callable[..., str]) -> None:
    one = record("chrono-tiny", "dog", None, mode="masks", metrics={"mask_recall": 0.5, "J&F": 0.25})
    del one["worst"], one["track_delta"]
    page = Page(render(results_of([one])))
    assert page.after("mean of all videos") == [["chrono-tiny", "1", "25.0", "50.0"]]
    assert "chrono-tiny: 25.0 %" in page.titles
    assert "By threshold" not in page.texts and "Worst tracks" not in page.texts


def test_nothing_measured(render: Callable[..., str]) -> None:
    page = Page(render(results_of([])))
    assert "broken_one" in page.texts and "Results" not in page.texts


def test_an_existing_file_survives_a_failure(results: dict[str, Any], tmp_path: Path) -> None:
    def fail(data: str, name: str) -> Clip:
        raise ValueError("the file is gone")

    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(ValueError, match="the file is gone"):
        write_report(path, results, fail)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_refuses(results: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.html"

    def write(one: dict[str, Any]) -> None:
        results["records"] = [record("chrono-tiny", "a", 0.5, worst=[one])]
        write_report(path, results, lambda data, name: labelled(name))

    for clips in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"clips={clips}; expected an integer, 0 or more"):
            write_report(path, results, lambda data, name: labelled(name), clips)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"results has no data, records; expected"):
        write_report(path, {k: v for k, v in results.items() if k not in ("data", "records")}, lambda *_: labelled("a"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere" / "report.html", results, lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="a worst track of a is number 4; expected one of the video's 4"):
        write(worst(4, 0.0))
    with pytest.raises(ValueError, match="xy of length 9; expected the video's 6 frames"):
        write(worst(0, 0.0, frames=9))
    with pytest.raises(ValueError, match="query in frame 6; expected one of the video's 6"):
        write(worst(0, 0.0, t=6))
    assert not path.exists()


def test_bars_of_many_videos_are_folded_away(render: Callable[..., str]) -> None:
    for count in (40, 41):
        records = [record("chrono-tiny", f"video {i}", 0.5) for i in range(count)]
        page = Page(render(results_of(records), clips=0))
        bars = [attributes for name, attributes in page.tags if name == "details"][-1]
        assert f"video {count - 1}" in page.texts and ("open" in bars) == (count == 40)

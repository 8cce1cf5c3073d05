"""Results as one HTML file that opens anywhere: no script, and nothing that it would have to fetch."""

from __future__ import annotations

import base64
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.clip import LabelledVideo
from ..extras import require
from ..files import write_beside
from ..video.reading import write_video
from ..viz import Canvas
from .charts import (
    STYLE,
    Markup,
    Series,
    bar_chart,
    figure,
    grid,
    join,
    legend,
    line_chart,
    percent,
    reliability_chart,
    section,
    table,
    tag,
)
from .summary import ALL
from .tables import TITLES

Record = Mapping[str, Any]  # what one tracker achieved on one video in one mode

TITLE = "Evaluation of point tracking"
UNFOLDED = 40  # videos whose bars are shown at once; more of them are folded away
PER_VIDEO = 2  # most clips of one video for one tracker, so that they vary
CLIP_SIDE, CLIP_FRAMES, CLIP_FPS = 320, 45, 12  # longer side in pixels; most frames, of longer videos every k-th
FADED = 0.4  # towards grey: marks stand out, and clips are half as large
TRUTH, FOUND = (0, 225, 255), (255, 110, 0)  # cyan and orange differ for everyone, and few videos are full of either
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


class Worst(NamedTuple):
    """A track that was lost, and the record that it is from."""

    record: Record
    track: Mapping[str, Any]  # an item of the record's "worst"

    @property
    def delta(self) -> float:
        return _number(self.track["delta"])


def write_report(
    path: str | os.PathLike[str],
    results: Mapping[str, Any],
    videos: Callable[[str, str], LabelledVideo],
    clips: int = 6,
) -> None:
    """Writes results as one HTML file: tables, charts, clips of the worst tracks. An existing file survives a failure.

    Every metric is taken for a share, 0 to 1, of which more is better.

    Args:
        path: The file.
        results: As in results.json.
        videos: Loads a video by the names of its data set and its own; called once for each video that a clip shows.
        clips: Worst tracks to show of each tracker, at most two of one video; 0 shows none and needs no video.

    Raises:
        FileNotFoundError: The parent folder is missing.
        ImportError: There are clips to write and the `video` extra is not installed.
        ValueError: `clips` is not a whole number, `results` lacks something, or a track does not fit its video.
    """
    if not isinstance(clips, int) or isinstance(clips, bool) or clips < 0:
        raise ValueError(f"clips={clips!r}; expected a whole number, 0 or more")
    if missing := sorted({"about", "protocol", "data", "trackers", "records"} - set(results)):
        raise ValueError(f"results has no {', '.join(missing)}; expected what results.json holds")
    with write_beside(path) as file:  # opened first, so that a missing folder shows before the clips are drawn
        page = f"<!DOCTYPE html>\n{_page(results, videos, clips)}\n"
        file.write(page.encode(errors="replace"))  # a file's name may hold bytes that are no text


def _page(results: Mapping[str, Any], videos: Callable[[str, str], LabelledVideo], clips: int) -> Markup:
    # A tracker's place in this list is its colour in every chart.
    trackers = list(dict.fromkeys([*results["trackers"], *(r["tracker"] for r in results["records"])]))
    records, thresholds = results["records"], results["protocol"]["thresholds"]
    viewport = tag("meta", name="viewport", content="width=device-width, initial-scale=1")
    head = tag("head", tag("meta", charset="utf-8"), viewport, tag("title", TITLE), tag("style", Markup(STYLE)))
    sections = (
        _header(results),
        _metrics(records, trackers),
        _curves(records, trackers, thresholds),
        _bars(records, trackers),
        _reliability(results.get("reliability") or {}, trackers),
        _throughput(records, trackers),
        _worst(records, trackers, videos, clips),
    )
    return tag("html", head, tag("body", tag("main", *sections)), lang="en")


# What was measured on what


def _header(results: Mapping[str, Any]) -> Markup:
    cards = [_card("About", _facts(results["about"])), _card("Protocol", _facts(results["protocol"]))]
    cards += [_card(name, *_data_facts(name, about, results["records"])) for name, about in results["data"].items()]
    cards += [_card(name, *_tracker_facts(about)) for name, about in results["trackers"].items()]
    return join(tag("h1", TITLE), grid(cards))


def _card(title: str, *parts: Markup) -> Markup:
    return tag("div", tag("h3", title), *parts, class_="card")


def _data_facts(name: str, about: Mapping[str, Any], records: Sequence[Record]) -> list[Markup]:
    skipped, fingerprint = about.get("skipped") or {}, about.get("fingerprint") or {}
    measured = len({r["video"] for r in records if r["data"] == name})
    facts = {k: v for k, v in about.items() if k not in ("fingerprint", "skipped")}
    parts = [_facts({**facts, "measured": measured, "skipped": len(skipped)})]
    if skipped:
        parts.append(tag("details", tag("summary", "Why skipped"), _facts(skipped), open=True))
    if fingerprint:
        parts.append(tag("details", tag("summary", "Fingerprint"), _facts(fingerprint)))
    return parts


def _tracker_facts(about: Mapping[str, Any]) -> list[Markup]:
    """What a tracker is; a configuration is long, and folded away."""
    folded = [tag("details", tag("summary", k), _facts(v)) for k, v in about.items() if isinstance(v, Mapping)]
    return [_facts({k: v for k, v in about.items() if not isinstance(v, Mapping)}), *folded]


def _facts(values: Mapping[str, Any]) -> Markup:
    return tag("dl", *(join(tag("dt", key), tag("dd", _plain(value))) for key, value in values.items()))


def _plain(value: Any) -> str:
    """A value of JSON as one reads it."""
    if isinstance(value, Mapping):
        value = [f"{key} {_plain(inner)}" for key, inner in value.items()]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# Metrics


def _metrics(records: Sequence[Record], trackers: Sequence[str]) -> Markup:
    note = (
        "In percent, means over videos; the best is bold, a dash stands where there was nothing to measure. <δavg: "
        "share of visible points nearer to the truth than a threshold, mean over the thresholds beside it. AJ: average "
        "Jaccard, which demands the right visibility too. OA: share of points whose visibility is right."
    )
    parts: list[Markup] = []
    for name, run in _runs(records):
        columns = _columns(run)
        groups = [*_grouped(run, "group").items(), (ALL, run)]
        bodies = [(group, _metric_rows(members, trackers, columns)) for group, members in groups]
        parts += [tag("h3", name), table(["videos", *map(_label, columns)], bodies)]
    return section("Results", note, "", parts)


def _metric_rows(members: Sequence[Record], trackers: Sequence[str], columns: Sequence[str]) -> list[list[object]]:
    """One row per tracker: its name, its number of videos, its means."""
    shown = [(s.name, [percent(v) for v in s.values]) for s in _series(members, trackers, columns)]
    rows: list[list[object]] = []
    for name, values in shown:
        rivals = [[other[i] for _, other in shown] for i in range(len(columns))]
        cells = [tag("b", v) if _is_best(v, all_) else v for v, all_ in zip(values, rivals, strict=True)]
        rows.append([name, sum(r["tracker"] == name for r in members), *cells])
    return rows


def _is_best(value: str, rivals: Sequence[str]) -> bool:
    """Compares what is displayed: two numbers that read the same are both best. Alone, nobody is."""
    numbers = [float(v) for v in rivals if v != "–"]
    return len(numbers) > 1 and value != "–" and float(value) == max(numbers)


def _curves(records: Sequence[Record], trackers: Sequence[str], thresholds: Sequence[float]) -> Markup:
    metrics, parts = [f"pts_within_{t}" for t in thresholds], []
    for name, run in _runs(records):
        if set(metrics) & set(_columns(run)):
            figures = [
                figure(group, line_chart(_series(members, trackers, metrics), thresholds, "px"))
                for group, members in _grouped(run, "group").items()
            ]
            parts += [tag("h3", name), grid(figures)]
    note = "Percentage of visible points nearer to the truth than so many pixels."
    return section("By threshold", note, legend(trackers), parts)


def _bars(records: Sequence[Record], trackers: Sequence[str]) -> Markup:
    parts = []
    for name, run in _runs(records):
        main = _columns(run)[:1]
        for group, members in _grouped(run, "group").items():
            by_video = _grouped(members, "video").items()
            figures = [figure(video, bar_chart(_series(own, trackers, main), video)) for video, own in by_video]
            summary = tag("summary", f"{name}, {group}: {', '.join(map(_label, main))} of each video")
            fold = {"open": True} if len(figures) <= UNFOLDED else {}
            parts.append(tag("details", summary, grid(figures), **fold))
    return section("By video", "In percent, one bar per tracker.", legend(trackers), parts)


def _reliability(bins: Mapping[str, Any], trackers: Sequence[str]) -> Markup:
    figures = [figure(t, reliability_chart(t, i, bins[t])) for i, t in enumerate(trackers) if bins.get(t)]
    note = (
        "Percentage of points that were visible and near the truth, over the confidence stated for them, and below how "
        "many points there were. On the dashed line a tracker is as sure as it should be; below it, surer."
    )
    return section("Reliability", note, "", [grid(figures)] if figures else [])


def _throughput(records: Sequence[Record], trackers: Sequence[str]) -> Markup:
    titles = ("frames", "points", "features, s/frame", "tracking, s/frame", "points/s, tracking", "points/s, both")
    bodies = []
    for name, run in _runs(records):
        by_tracker = [(t, [r for r in run if r["tracker"] == t]) for t in trackers]
        bodies.append((name, [[t, *_speed(own)] for t, own in by_tracker if own]))
    note = (
        "Points per second are those tracked through a whole clip, without and with the time for the clip's features."
    )
    return section("Throughput", note, "", [table(titles, bodies)] if bodies else [])


def _speed(own: Sequence[Record]) -> list[str]:
    """A row of the throughput table, from sums over all videos."""
    frames, points = (sum(r[key] for r in own) for key in ("frames", "points"))
    features, tracking = (sum(_number(r["seconds"].get(key)) for r in own) for key in ("features", "tracking"))
    ratios = ((features, frames), (tracking, frames), (points, tracking), (points, features + tracking))
    return [str(frames), str(points), *(_short(a / b) if b else "–" for a, b in ratios)]


def _short(number: float) -> str:
    """Three digits; all of them before the point."""
    if math.isnan(number):
        return "–"
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


# The worst tracks


def _worst(
    records: Sequence[Record],
    trackers: Sequence[str],
    videos: Callable[[str, str], LabelledVideo],
    clips: int,
) -> Markup:
    chosen = {t: _choose([r for r in records if r["tracker"] == t], clips) for t in trackers}
    figures = _clips([one for own in chosen.values() for one in own], videos)
    parts = []
    for tracker, own in chosen.items():
        if own:
            parts += [tag("h3", tracker), grid([figures[id(one)] for one in own])]
    note = f"The lowest <δavg, at most {PER_VIDEO} tracks of one video."
    return section("Worst tracks", note, _marks_legend(), parts)


def _marks_legend() -> Markup:
    disc = tag("circle", cx=8, cy=8, r=6, fill=f"rgb{FOUND}", stroke="#000")
    ring = tag("circle", cx=8, cy=8, r=5, fill="none", stroke=f"rgb{FOUND}", stroke_width=3)
    lines = ((f"rgb{BLACK}", 4), (f"rgb{TRUTH}", 2))
    cross = join(*(tag("path", d="M8 1V15M1 8H15", stroke=colour, stroke_width=width) for colour, width in lines))
    texts = ("found, called visible", "found, called hidden", "truth, where visible; a line joins the two")
    entries = [
        tag("span", tag("svg", mark, width=16, height=16, aria_hidden="true"), " ", text)
        for mark, text in zip((disc, ring, cross), texts, strict=True)
    ]
    return tag("p", *entries, class_="legend")


def _choose(records: Sequence[Record], clips: int) -> list[Worst]:
    """The worst tracks; a video's second one only where the first ones of all videos do not suffice."""
    tracks = [Worst(record, track) for record in records for track in record.get("worst") or []]
    seen: dict[tuple[str, str], list[int]] = {}
    first_ones: list[Worst] = []
    second_ones: list[Worst] = []
    for one in sorted((w for w in tracks if not math.isnan(w.delta)), key=lambda w: w.delta):
        earlier = seen.setdefault((one.record["data"], one.record["video"]), [])
        if one.track["track"] not in earlier and len(earlier) < PER_VIDEO:  # other modes ask for the same tracks
            (second_ones if earlier else first_ones).append(one)
            earlier.append(one.track["track"])
    return sorted((first_ones + second_ones)[:clips], key=lambda w: w.delta)


def _clips(chosen: Sequence[Worst], videos: Callable[[str, str], LabelledVideo]) -> dict[int, Markup]:
    """Clips by the identity of what they show. One video is held at a time, and serves all trackers."""
    by_video: dict[tuple[str, str], list[Worst]] = {}
    for one in chosen:
        by_video.setdefault((one.record["data"], one.record["video"]), []).append(one)
    clips = {}
    for names, of_video in by_video.items():
        video = videos(*names)
        clips.update({id(one): _clip(video, one) for one in of_video})
    return clips


def _clip(video: LabelledVideo, one: Worst) -> Markup:
    record, track = one
    _check_track(video, one)
    query, frames = int(track["query"][0]), len(video.frames)
    start = query if record["mode"] == "first" else 0  # nothing before it counts there
    step = math.ceil((frames - start) / CLIP_FRAMES)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        write_video(file, draw_clip(video, track, range(start, frames, step)), CLIP_FPS)
        source = "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode()
    player = tag("video", src=source, controls=True, loop=True, muted=True, playsinline=True, preload="metadata")
    facts = f"{record['data']}, mode {record['mode']}, track {track['track']}, query in frame {query}, "
    facts += f"<δavg {percent(one.delta)}" + (f", one frame in {step}" if step > 1 else "")
    return figure(record["video"], player, facts)


def _check_track(video: LabelledVideo, one: Worst) -> None:
    track, frames = one.track, len(video.frames)
    where = f"results: a worst track of {one.record['video']}"
    if not 0 <= track["track"] < len(video.xy):
        raise ValueError(f"{where} is number {track['track']}; expected one of the video's {len(video.xy)}")
    if not 0 <= track["query"][0] < frames:
        raise ValueError(f"{where} has its query in frame {track['query'][0]}; expected one of the video's {frames}")
    for key in ("xy", "visible"):
        if len(track[key]) != frames:
            raise ValueError(f"{where} has {key} of length {len(track[key])}; expected the video's {frames} frames")


def draw_clip(video: LabelledVideo, track: Mapping[str, Any], frames: Iterable[int]) -> Iterator[np.ndarray]:
    """Draws where a track was found, and where it truly is, if that is visible and known.

    Args:
        video: The video.
        track: An item of a record's "worst".
        frames: Indices of the frames to draw.

    Returns:
        An iterator over pictures (h, w, 3) uint8, the longer side 320 pixels, faded under the marks.
    """
    image, font = require("PIL.Image", "eval"), require("PIL.ImageFont", "eval").load_default(26)
    height, width = video.frames.shape[2:]
    scale = CLIP_SIDE / max(height, width)
    size = round(width * scale), round(height * scale)
    grey = image.new("RGB", size, "grey")
    truth, found = video.xy[track["track"]] * scale, np.array(track["xy"], np.float64) * scale
    known = video.valid[track["track"]] & ~video.occluded[track["track"]]
    for t in frames:
        picture = image.fromarray(video.frames[t].permute(1, 2, 0).numpy()).resize(size, image.Resampling.BICUBIC)
        canvas = Canvas(np.asarray(image.blend(picture, grey, FADED)))
        true_xy = truth[t].tolist() if known[t] else None
        found_xy = found[t].tolist() if np.isfinite(found[t]).all() else None
        _draw_marks(canvas, true_xy, found_xy, bool(track["visible"][t]))
        label = f"{t}, query" if t == int(track["query"][0]) else str(t)
        canvas.draw.text((12, 8), label, "white", font, stroke_width=3, stroke_fill="black")
        yield canvas.picture()


def _draw_marks(canvas: Canvas, truth: list[float] | None, found: list[float] | None, visible: bool) -> None:
    if truth and found:
        canvas.line(truth, found, 1.5, WHITE)
    if found:
        for radius, colour in ((7.5, BLACK), (6.5, FOUND)):
            canvas.disc(found, radius, colour) if visible else canvas.ring(found, radius, colour)
    if truth:
        x, y = truth
        for reach, width, colour in ((9, 4, BLACK), (8, 2, TRUTH)):
            canvas.line((x - reach, y), (x + reach, y), width, colour)
            canvas.line((x, y - reach), (x, y + reach), width, colour)


# Records


def _grouped(records: Sequence[Record], key: str) -> dict[str, list[Record]]:
    """Records by the value of a key, in the order of their first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record[key], []).append(record)
    return groups


def _runs(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Records of each data set and mode, under a title."""
    return [
        (f"{data}, mode {mode}", run)
        for data, of_data in _grouped(records, "data").items()
        for mode, run in _grouped(of_data, "mode").items()
    ]


def _columns(run: Sequence[Record]) -> list[str]:
    """Metrics that were measured, the most telling one first."""
    measured = dict.fromkeys(metric for r in run for metric in r["metrics"])
    return [m for m in TITLES if m in measured] + [m for m in measured if m not in TITLES]


def _label(metric: str) -> str:
    if metric.startswith("jaccard_"):
        return f"Jac. {metric.removeprefix('jaccard_')} px"
    return TITLES.get(metric, metric.replace("_", " "))


def _series(records: Sequence[Record], trackers: Sequence[str], metrics: Sequence[str]) -> list[Series]:
    """Means over videos of every tracker that has records, one number per metric."""
    return [
        Series(name, style, [_mean(own, metric) for metric in metrics])
        for style, name in enumerate(trackers)
        if (own := [r for r in records if r["tracker"] == name])
    ]


def _mean(records: Sequence[Record], metric: str) -> float:
    """Over the videos in which it is a number; NaN where there is none."""
    values = [v for r in records if not math.isnan(v := _number(r["metrics"].get(metric)))]
    return sum(values) / len(values) if values else math.nan


def _number(value: float | None) -> float:
    """JSON has no NaN: it is null there."""
    return math.nan if value is None else float(value)

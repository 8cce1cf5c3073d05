"""The tracks that were lost most, as short videos: where each was found, and where it truly is."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from ..data.clip import Clip
from ..extras import require
from ..video.writing import encode_video
from ..viz import Canvas
from .charts import percent
from .records import Record
from .summary import grouped, number

MAX_PER_VIDEO = 2  # tracks of one video for one tracker, so that they vary
SIDE = 320  # pixels: the longer side
MAX_FRAMES = 45  # of longer videos every k-th is shown
FPS = 12
FADED = 0.4  # towards grey: marks stand out, and files are half as large
TRUTH, FOUND = (0, 225, 255), (255, 110, 0)  # cyan and orange differ for everyone, and few videos are full of either
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


class WorstClip(NamedTuple):
    """A worst track as the report shows it."""

    video: str
    source: str  # data URI of an MP4 file
    facts: str


def worst_clips(
    records: Sequence[Record],
    trackers: Sequence[str],
    videos: Callable[[str, str], Clip],
    count: int,
) -> dict[str, list[WorstClip]]:
    """Draw the clips of each tracker that has worst tracks. One video is held at a time, and serves all trackers.

    Args:
        records: Of all trackers.
        trackers: Their names, in the order in which they are shown.
        videos: Loads a video by the names of its data set and its own; called once for each.
        count: Of clips for each tracker.
    """
    chosen = {name: _choose([r for r in records if r["tracker"] == name], count) for name in trackers}
    clips: dict[int, WorstClip] = {}
    for names, tracks in grouped(chain(*chosen.values()), "data", "video").items():
        video = videos(*names)
        clips |= {id(track): _clip(video, track) for track in tracks}
    return {name: [clips[id(track)] for track in own] for name, own in chosen.items() if own}


def draw_clip(video: Clip, track: Mapping[str, Any], frames: Iterable[int]) -> Iterator[np.ndarray]:
    """Draw where a track was found, and where it truly is, if that is visible and known.

    Args:
        video: The video.
        track: An item of a record's "worst".
        frames: Indices of the frames to draw.

    Returns:
        An iterator over images (h, w, 3) uint8, the longer side 320 pixels, faded under the marks.
    """
    image = require("PIL.Image", "eval")
    font = require("PIL.ImageFont", "eval").load_default(26)
    height, width = video.frames.shape[2:]
    scale = SIDE / max(height, width)
    size = round(width * scale), round(height * scale)
    grey = image.new("RGB", size, "grey")
    truth = video.xy[track["track"]].numpy() * scale
    found = np.array(track["xy"], np.float64) * scale
    known = (video.valid & video.visible)[track["track"]]
    for t in frames:
        frame = image.fromarray(video.frames[t].permute(1, 2, 0).numpy()).resize(size, image.Resampling.BICUBIC)
        canvas = Canvas(np.asarray(image.blend(frame, grey, FADED)))
        true_xy = truth[t].tolist() if known[t] else None
        found_xy = found[t].tolist() if np.isfinite(found[t]).all() else None
        _draw_marks(canvas, true_xy, found_xy, bool(track["visible"][t]))
        label = f"{t}, query" if t == int(track["query"][0]) else str(t)
        canvas.draw.text((12, 8), label, "white", font, stroke_width=3, stroke_fill="black")
        yield canvas.picture()


def _choose(records: Sequence[Record], count: int) -> list[dict[str, Any]]:
    """The worst tracks, each joined with its record; a video's second one only where the first ones do not suffice."""
    tracks = [{**record, **track} for record in records for track in record.get("worst") or []]
    known = [track for track in tracks if not math.isnan(number(track["delta"]))]
    seen: dict[tuple[str, str], list[int]] = {}
    ranked: list[tuple[int, dict[str, Any]]] = []  # 0 for a video's worst track, 1 for its second one
    for track in sorted(known, key=itemgetter("delta")):
        earlier = seen.setdefault((track["data"], track["video"]), [])
        if track["track"] not in earlier and len(earlier) < MAX_PER_VIDEO:  # other modes ask for the same tracks
            ranked.append((len(earlier), track))
            earlier.append(track["track"])
    chosen = [track for _, track in sorted(ranked, key=itemgetter(0))[:count]]
    return sorted(chosen, key=itemgetter("delta"))


def _clip(video: Clip, track: Mapping[str, Any]) -> WorstClip:
    _check_track(video, track)
    query, frames = int(track["query"][0]), len(video.frames)
    start = query if track["mode"] == "first" else 0  # nothing before it counts there
    step = math.ceil((frames - start) / MAX_FRAMES)
    encoded = io.BytesIO()  # in no file, which a killed run would leave behind
    encode_video(encoded, draw_clip(video, track, range(start, frames, step)), FPS)
    source = "data:video/mp4;base64," + base64.b64encode(encoded.getvalue()).decode()
    facts = f"{track['data']}, mode {track['mode']}, track {track['track']}, query in frame {query}, "
    facts += f"<δavg {percent(track['delta'])}" + (f", one frame in {step}" if step > 1 else "")
    return WorstClip(track["video"], source, facts)


def _check_track(video: Clip, track: Mapping[str, Any]) -> None:
    frames = len(video.frames)
    where = f"results: a worst track of {track['video']}"
    if not 0 <= track["track"] < len(video.xy):
        raise ValueError(f"{where} is number {track['track']}; expected one of the video's {len(video.xy)}")
    if not 0 <= track["query"][0] < frames:
        raise ValueError(f"{where} has its query in frame {track['query'][0]}; expected one of the video's {frames}")
    for key in ("xy", "visible"):
        if len(track[key]) != frames:
            raise ValueError(f"{where} has {key} of length {len(track[key])}; expected the video's {frames} frames")


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

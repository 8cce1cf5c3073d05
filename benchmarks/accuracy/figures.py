"""Figures of docs/results.md: `python -m benchmarks.accuracy.figures results.json --data real_tracks=PATH`.

From the whole of what `chrono-features eval` wrote: the worst tracks of a tracker, frame by frame with the truth, how
reliable the confidences of all trackers are, and their calibration errors.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from chrono_features.cli.evaluation import open_all
from chrono_features.evaluation.charts import SETTINGS, draw_reliability, new_figure
from chrono_features.evaluation.summary import pooled_reliability
from chrono_features.evaluation.worst_tracks import draw_clip

IMAGES = Path(__file__).parents[2] / "docs" / "images"
COLUMNS, SIDE = 6, 200


def worst_tracks(records: list[dict[str, Any]], data: Any, rows: int) -> Image.Image:
    """A row for the worst track of each of the videos in which there is the worst to see."""
    worst = sorted((r for r in records if r["worst"]), key=lambda record: record["worst"][0]["delta"])[:rows]
    entries = {entry.name: entry for entry in data}
    lines = []
    for record in worst:
        video, track = entries[record["video"]].load(), record["worst"][0]
        start, end = int(track["query"][0]), len(video.frames) - 1
        seen = np.flatnonzero((video.valid & video.visible)[track["track"]])
        seen = seen[(seen >= start) & (seen <= end)]  # the truth is marked there
        frames = seen[np.linspace(0, len(seen) - 1, COLUMNS).round().astype(int)]
        pictures = [Image.fromarray(p).resize((SIDE, SIDE)) for p in draw_clip(video, track, frames.tolist())]
        lines.append(np.hstack([np.asarray(p) for p in pictures]))
    return Image.fromarray(np.vstack(lines))


def reliability(bins: dict[str, Any], path: Path) -> None:
    """The plots of all trackers side by side, as an image of its own."""
    with matplotlib.rc_context(SETTINGS):
        figure = new_figure(3.2 * len(bins), 3.8)
        for style, (name, values) in enumerate(bins.items()):
            part = figure.add_subfigure(figure.add_gridspec(1, len(bins))[style])
            part.suptitle(name)
            draw_reliability(part, style, values)
        figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--data", default=[], action="append")
    parser.add_argument("--tracker", default="chrono-tiny, refined")
    parser.add_argument("--rows", type=int, default=5)
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    for name, data in open_all(args.data).items():
        wanted = (name, "first", args.tracker)
        records = [r for r in results["records"] if (r["data"], r["mode"], r["tracker"]) == wanted]
        worst_tracks(records, data, args.rows).save(IMAGES / f"worst_{name}.jpg", quality=85)
    for name in results["data"]:
        pooled = pooled_reliability(r for r in results["records"] if (r["data"], r["mode"]) == (name, "first"))
        for tracker, bins in pooled.items():
            count = sum(n for *_, n in bins)
            error = sum(abs(stated - seen) * n for stated, seen, n in bins) / count
            print(f"{name}, first, {tracker}: calibration error {100 * error:.1f} %, of {count:,}")
    reliability(results["reliability"], IMAGES / "reliability.svg")


if __name__ == "__main__":
    main()

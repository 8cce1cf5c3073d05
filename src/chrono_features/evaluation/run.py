"""Runs trackers over data sets, one video at a time, and resumes interrupted runs."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from itertools import islice
from typing import Any

import torch

from ..checks import check_integer
from ..data.clip import SIZE, Dataset, Entry, MaskClip, Unusable
from ..extras import require
from .protocol import MASK_MODE, MODES, THRESHOLDS
from .records import Record
from .scores import FeatureCache, mask_record, track_records
from .store import Store
from .trackers import Tracker

NEEDED = ("cv2", "scipy.stats", "sklearn.metrics")  # by metrics, whatever is measured
PACKAGES = ("chrono-features", "torch", "timm", "numpy", "pillow", "opencv-python-headless")  # versions that matter


def evaluate(
    trackers: Sequence[Tracker],
    data: Mapping[str, Dataset],
    out: str | os.PathLike[str],
    *,
    modes: Sequence[str] = ("first",),
    limit: int | None = None,
    device: torch.device | str = "cpu",
    size: tuple[int, int] | None = SIZE,
    settings: Mapping[str, Any] | None = None,
    process: int = 0,
    processes: int = 1,
    wait: Callable[[], object] = lambda: None,
    on_video: Callable[[str, int, int | None], object] = lambda name, done, total: None,
) -> dict[str, Any]:
    """Measure every tracker on every video.

    What was measured is on disk at once. Another call with the same `out` measures what is missing: the rest of an
    interrupted run, further videos, modes or trackers. A file that was measured on something else is refused.

    Args:
        trackers: What is measured.
        data: Data sets, by the names that they get in the results.
        out: File of results, JSON.
        modes: Query sampling, "first" and "strided"; for videos with tracks.
        limit: How many videos of each data set, the first ones; None takes all.
        device: Where videos go.
        size: (height, width) at which videos were opened; anything but 256 x 256 is another protocol.
        settings: Further settings that results depend on, plain JSON values.
        process, processes: Each of several processes takes every n-th video; the first one puts the results together.
        wait: Waits for the other processes.
        on_video: Told of each video that is done: its data set, how many of it are done, how many it has (or None).

    Returns:
        What is in `out`: "about", "protocol", "data", "trackers" and "records".

    Raises:
        ValueError: An argument is not as above, `out` holds something else, or a file of a data set is broken.
        MissingExtra: The eval extra is not installed.
    """
    _check(trackers, data, modes, limit)
    for module in NEEDED:
        require(module, "eval")  # before any work
    versions = {package: _version(package) for package in PACKAGES}
    about = {"device": describe_device(device), "date": datetime.date.today().isoformat(), "versions": versions}
    protocol = {"size": size and list(size), "thresholds": list(THRESHOLDS), **(settings or {})}
    sources = {name: {"kind": d.kind, "path": d.path, "fingerprint": d.fingerprint()} for name, d in data.items()}
    measured = {tracker.name: tracker.about for tracker in trackers}
    header = {"about": about, "protocol": protocol, "data": sources, "trackers": measured}
    store = Store(out, header, process)
    for name, dataset in data.items():
        for index, entry in enumerate(islice(dataset, limit)):
            if index % processes == process:
                _measure(store, name, entry, trackers, modes, device)
            on_video(name, index + 1, dataset.total())
        store.totals[name] = dataset.total()
    wait()
    return store.finish() if process == 0 else {}


def describe_device(device: torch.device | str) -> str:
    """The name of a GPU, or the processor and the threads that PyTorch uses."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads"


def _measure(
    store: Store,
    data: str,
    entry: Entry,
    trackers: Sequence[Tracker],
    modes: Sequence[str],
    device: torch.device | str,
) -> None:
    """Add what is missing of one video to the store; reads it only then."""

    def done(tracker: Tracker, mode: str) -> bool:
        return store.has(data=data, video=entry.name, mode=mode, tracker=tracker.name)

    missing = {c.name: [m for m in modes if not done(c, m)] for c in trackers if not done(c, MASK_MODE)}
    if not any(missing.values()) or (data, entry.name) in store.skipped:
        return
    try:
        video = entry.load()
    except Unusable as reason:
        store.skip(data, entry.name, str(reason))
        return
    cache = FeatureCache(video.frames, device)
    about = {"data": data, "group": entry.group, "video": entry.name}
    for tracker in trackers:
        if wanted := missing.get(tracker.name):
            records: Iterable[Record] = (
                [mask_record(tracker, video, cache)]
                if isinstance(video, MaskClip)
                else track_records(tracker, video, wanted, cache)
            )
            for record in records:
                store.add({**about, "tracker": tracker.name, "frames": len(video.frames), **record})


def _check(trackers: Sequence[Tracker], data: Mapping[str, Dataset], modes: Sequence[str], limit: int | None) -> None:
    names = [tracker.name for tracker in trackers]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"trackers={names}; expected at least one, each with a name of its own")
    if not data:
        raise ValueError("data is empty; expected at least one data set")
    if not modes or set(modes) - set(MODES):
        raise ValueError(f"modes={list(modes)}; expected some of {', '.join(MODES)}")
    if limit is not None:
        check_integer("limit", limit, minimum=1)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"

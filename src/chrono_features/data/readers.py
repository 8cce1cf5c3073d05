"""The data sets that can be opened by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ..checks import check_choice, is_integer, refusal
from .clip import SIZE, Dataset
from .davis_masks import DavisMasks
from .photo_warps import PhotoWarps
from .points_csv import PointsCsv
from .reading import Size
from .synthetic_clips import SyntheticClips
from .tapvid import TapVid


class Kind(NamedTuple):
    """A kind of data set."""

    open: Callable[[str, Size | None], Dataset]
    description: str


def open_dataset(kind: str, path: str, size: Size | None = SIZE) -> Dataset:
    """Opens a data set without reading its videos.

    Args:
        kind: One of `KINDS`.
        path: Where it lies.
        size: (height, width) to which frames are resized with Lanczos, as TAP-Vid does; None keeps them.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: Arguments or files are not as described.
    """
    check_choice("kind", kind, tuple(KINDS))
    if size is not None and not (len(size) == 2 and all(is_integer(side, 1) for side in size)):
        raise refusal("size", size, "(height, width), two positive integers, or None")
    return KINDS[kind].open(os.fspath(path), size)


def _real_group(name: str) -> str:
    for prefix, kind in {"planar": "precision", "kitchen": "precision", "badja": "articulated"}.items():
        if name.startswith(prefix):
            return f"{kind}/{prefix}"
    return f"other/{name.split('_')[0]}"


KINDS = {
    "davis": Kind(partial(TapVid, "davis"), "TAP-Vid-DAVIS, one pickle"),
    "rgb-stacking": Kind(partial(TapVid, "rgb-stacking", holds=(list,)), "TAP-Vid-RGB-Stacking, one pickle"),
    "kinetics": Kind(
        # Whoever follows TAP-Vid's script has points half a pixel to the upper left, and so some outside of the frame.
        partial(TapVid, "kinetics", holds=(list, dict), shards="*_of_0010.pkl", slack=0.5),
        "TAP-Vid-Kinetics, a folder of *_of_0010.pkl or one of them",
    ),
    "robotap": Kind(partial(TapVid, "robotap", shards="*.pkl"), "RoboTAP, a folder of pickles or one of them"),
    "real_tracks": Kind(
        partial(TapVid, "real_tracks", keys=("video", "points", "occluded", "valid"), group_of=_real_group),
        "real videos whose points are not known in every frame, one pickle",
    ),
    "masks": Kind(DavisMasks, "masks in DAVIS's layout: JPEGImages/480p/NAME/*.jpg, Annotations/480p/NAME/*.png"),
    "warps": Kind(PhotoWarps, "exact warps of the photographs below a folder"),
    "synthetic": Kind(SyntheticClips, "held-out synthetic clips; a folder of photographs for textures, or no path"),
    "csv": Kind(PointsCsv, "a folder of videos beside points.csv: video,track,t,x,y,visible and maybe group"),
}

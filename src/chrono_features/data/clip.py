"""What training and evaluation take: videos with tracks or with masks, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SIZE = (256, 256)  # (height, width) at which TAP-Vid measures


class Unusable(ValueError):
    """A video that cannot be measured. A run reports it, with this reason, and goes on."""


@dataclass(frozen=True)
class Clip:
    """A video and the tracks of some of its points, in raster pixels: the first pixel's centre is (0.5, 0.5)."""

    frames: Tensor  # (T, 3, H, W) uint8, or floating 0 … 1
    xy: Tensor  # (N, T, 2) float32 or float64
    visible: Tensor  # (N, T) bool: False when occluded or outside the frame
    valid: Tensor  # (N, T) bool: whether the truth is known; where not, a point counts for nothing
    moving: Tensor | None = None  # (N,) bool: on a thing that moves by itself, where that is known
    name: str = ""
    group: str = ""


@dataclass(frozen=True)
class MaskClip:
    """A video and the masks of its objects."""

    name: str
    group: str
    frames: Tensor  # (T, 3, H, W) uint8
    masks: NDArray[np.int64]  # (T, H, W) 0 is background, k the k-th object


@dataclass(frozen=True)
class Entry:
    """A video of a data set, not read yet.

    Attributes:
        name: Unique within its data set, and the same on every run.
        group: What it is shown under; "precision/planar" is the group planar of the kind precision.
        load: Reads it. Raises `Unusable` where it cannot be measured, ValueError where the file is broken.
    """

    name: str
    group: str
    load: Callable[[], Clip | MaskClip]


class Dataset(Protocol):
    """Videos of one source."""

    kind: str  # "davis", "kinetics", "real_tracks", ...
    path: str  # where they come from, as the user gave it

    def __iter__(self) -> Iterator[Entry]:
        """The entries, in the same order on every run. A file is opened only when its turn comes."""

    def total(self) -> int | None:
        """How many entries there are; an estimate from the files read so far; None where nothing is known yet."""

    def fingerprint(self) -> dict[str, int | str]:
        """What the results were measured on, so that it can be told apart: sizes, hashes, parameters."""

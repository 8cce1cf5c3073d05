"""What evaluation runs on: videos with tracks or with masks, read one at a time."""

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
class LabelledVideo:
    """A video and its tracks, in pixels of `frames`."""

    name: str
    group: str
    frames: Tensor  # (T, 3, H, W) uint8
    xy: NDArray[np.float64]  # (N, T, 2) pixels, raster
    occluded: NDArray[np.bool_]  # (N, T)
    valid: NDArray[np.bool_]  # (N, T) whether the truth is known; left out of every count, and of queries, where not


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
    load: Callable[[], LabelledVideo | MaskClip]


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

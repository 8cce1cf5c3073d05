"""Videos and masks in DAVIS's layout."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..video.images import frame_files, natural, not_hidden
from .clip import Entry, MaskClip, Unusable
from .reading import Size, as_rgb, decoded, extent, files_of, read_frames, stacked

VOID = 255  # DAVIS-2017's mark for pixels that count as nothing


class DavisMasks:
    """Videos with masks in DAVIS's layout, at their own size: JPEGImages/480p/NAME/*.jpg, Annotations/480p/NAME/*.png.

    The folder of the resolution may have another name, or be left out; where there are several, 480p is read. Values
    of a video's masks, in order, become the objects 1, 2, ... A value of 255 beside others is DAVIS-2017's void and
    becomes background, as its own evaluation does; on its own it is the one object, as in DAVIS-2016. Masks may be of
    16 bits, where 255 is an object as any; each mask of a video goes by its own type.
    """

    kind = "masks"

    def __init__(self, path: str, size: Size | None = None) -> None:
        self.path = path
        images = Path(path, "JPEGImages")
        self._images = _sequences(images)
        self._masks = Path(path, "Annotations", self._images.relative_to(images))
        for folder in (self._images, self._masks):
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: no such folder; expected JPEGImages and Annotations as in DAVIS")
        videos = sorted(not_hidden(self._images.iterdir()), key=natural)
        self._names = [folder.name for folder in videos if folder.is_dir() and frame_files(folder)]
        if not self._names:
            raise ValueError(f"{self._images}: no folders of images; expected one for each video")

    def __iter__(self) -> Iterator[Entry]:
        for name in self._names:
            yield Entry(name, self.kind, partial(self._load, name))

    def total(self) -> int:
        return len(self._names)

    def fingerprint(self) -> dict[str, int | str]:
        return extent(
            [f for name in self._names for root in (self._images, self._masks) for f in files_of(root / name)]
        )

    def _load(self, name: str) -> MaskClip:
        paths = [self._masks / name / f"{image.stem}.png" for image in frame_files(self._images / name)]
        if missing := [path for path in paths if not path.is_file()]:
            raise Unusable(f"{len(missing)} of {len(paths)} frames have no mask; the first is {missing[0]}")
        frames, size = stacked(read_frames(self._images / name), None)
        masks = [_mask(path) for path in paths]
        if unlike := {mask.shape for mask in masks} - {size}:
            raise Unusable(f"a mask is (H, W)={unlike.pop()}; expected the frames' {size}")
        values = sorted({value for mask in masks for value in np.unique(mask).tolist()} - {0})
        if not values:
            raise Unusable("no mask shows an object; expected at least one")
        if len(values) > 1:
            masks = [_without_void(mask) for mask in masks]
            values = sorted({value for mask in masks for value in np.unique(mask).tolist()} - {0})
        stack = np.stack(masks)
        objects = np.array(values)
        number = np.searchsorted(objects, stack).clip(max=len(objects) - 1)
        return MaskClip(name, self.kind, frames, np.where(objects[number] == stack, number + 1, 0))


def _mask(path: Path) -> NDArray[np.integer[Any]]:
    """(H, W) of an image with a palette, or in grey of 8 or 16 bits."""
    image = decoded(path, str(path), every_bit=True)
    if image.mode in ("P", "L", "I") or image.mode.startswith("I;16"):
        return np.asarray(image)
    channels = np.asarray(as_rgb(image, str(path)))
    if (channels != channels[..., :1]).any():
        raise Unusable(f"{path} is in colour ({image.mode}); expected a palette, or grey")
    return channels[..., 0]


def _without_void(mask: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """An 8-bit mask with void as background; a wider one as it is."""
    return np.where(mask == VOID, 0, mask) if mask.dtype == np.uint8 else mask


def _sequences(folder: Path) -> Path:
    """Where the folders of videos lie: in `folder`, or in that of a resolution."""
    below = [p for p in not_hidden(folder.iterdir()) if p.is_dir()] if folder.is_dir() else []
    resolutions = sorted(p.name for p in below if any(inner.is_dir() for inner in not_hidden(p.iterdir())))
    if len(resolutions) > 1 and "480p" not in resolutions:
        raise ValueError(f"{folder}: resolutions {', '.join(resolutions)}; expected 480p, or only one")
    return folder / ("480p" if "480p" in resolutions else "".join(resolutions))

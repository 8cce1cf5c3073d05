"""Synthetic clips that training never sees."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial

from torch import Tensor

from .clip import SIZE, Clip, Entry
from .reading import names_and_bytes, photographs
from .synthetic import VALIDATION_SEED, Variety, load_textures, make_clip
from .synthetic.textures import HELD_BACK
from .synthetic.variety import USUAL

FIRST_SEED = VALIDATION_SEED + 1000  # those before are for validation during training
CLIPS = 36
FRAMES = 24
POINTS = 128
GROUPS = ("raycast", "layers", "occluded")  # in turn
OCCLUDED = Variety(covers=1.0, blackout=0.5)


class SyntheticClips:
    """Clips of the training generator, from seeds and photographs that it is never trained on.

    A third is ray-cast, a third layered, and in a third, of either kind, much is covered for a while.

    Every track is visible in some frame, half of them on things that move by themselves.

    Args:
        path: A folder of photographs for textures; "" makes all textures procedural.
        size: (height, width) of the frames; None is the same as the default.
        first: Number of the first clip, among all that training never sees.
        part: Which photographs, see `load_textures`: those that training keeps for validation, of five at least, or,
            with None, all.

    Raises:
        FileNotFoundError: `path` is no folder.
        ValueError: There are fewer photographs below it.
    """

    kind = "synthetic"

    def __init__(
        self,
        path: str | os.PathLike[str] = "",
        size: tuple[int, int] | None = SIZE,
        first: int = 0,
        part: str | None = "validation",
    ) -> None:
        self.part = part
        self.path, self.size, self.first = os.fspath(path), size or SIZE, first
        self.photographs = photographs(path) if self.path else []
        if self.path and part is not None and len(self.photographs) < HELD_BACK:
            raise ValueError(f"path={self.path}: {len(self.photographs)} photographs; expected at least {HELD_BACK}")

    def __iter__(self) -> Iterator[Entry]:
        for index in range(CLIPS):
            group = f"synthetic/{GROUPS[index % 3]}"
            yield Entry(f"{group}/{index:02d}", group, partial(self._load, index))

    def total(self) -> int:
        return CLIPS

    def fingerprint(self) -> dict[str, int | str]:
        return {
            "photographs": len(self.photographs),
            "names_and_bytes": names_and_bytes(self.path, self.photographs),
            "part": str(self.part),
            "first_seed": FIRST_SEED + self.first,
            "clips": CLIPS,
            "frames": FRAMES,
            "points": POINTS,
            "height": self.size[0],
            "width": self.size[1],
        }

    @cached_property
    def _textures(self) -> Tensor | None:
        return load_textures(self.path, self.part) if self.path else None

    def _load(self, index: int) -> Clip:
        group = GROUPS[index % 3]
        occluded = group == "occluded"
        clip = make_clip(
            FIRST_SEED + self.first + index,
            frames=FRAMES,
            size=self.size,
            points=POINTS,
            scene=GROUPS[index // 3 % 2] if occluded else group,
            textures=self._textures,
            variety=OCCLUDED if occluded else USUAL,
        )
        return replace(
            clip,
            frames=(255 * clip.frames).round().byte(),
            xy=clip.xy.double(),
            name=f"synthetic/{group}/{index:02d}",
            group=f"synthetic/{group}",
        )

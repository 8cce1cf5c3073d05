"""Photometric refinement of frames as they come: as in `refine`, with past frames only."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from .config import SoftArgmax
from .ops.alignment import Aligner, Patches
from .query_memory import QueryMemory
from .records import joined, replaced, rows
from .refine import RefineOptions, Seeker, Trail, align_from


class FrameRefiner:
    """What refinement remembers of N points from frame to frame. Nothing is changed in place.

    Args:
        size: (height, width) of the grey frames that patches are cut from.
        soft_argmax: How positions are read from similarity maps.
        options: See `RefineOptions`.
        like: A tensor of the type and on the device of positions.
    """

    def __init__(
        self,
        size: tuple[int, int],
        soft_argmax: SoftArgmax,
        options: RefineOptions,
        like: Tensor,
    ) -> None:
        self.options = options
        self._size = size
        self._soft_argmax = soft_argmax
        self._aligner = Aligner(options.alignment, like)
        pixels = len(self._aligner.weights)
        self._patches = Patches(like.new_empty(0, pixels), like.new_empty(0, 4, pixels), like.new_empty(0, 8, pixels))
        self._trail = Trail.start(like.new_empty(0, 2))
        self._memory: QueryMemory | None = None  # None before the first frame
        self._last: Tensor | None = None  # features of the last frame, (1, 1, C, h, w)

    def copy(self) -> FrameRefiner:
        return copy.copy(self)

    def start(
        self,
        grey: Tensor,  # (1, h, w)
        centres: Tensor,  # (N, 2) in its pixels
        own: Tensor,  # (N, C)
    ) -> None:
        """Adds points whose query frame this is."""
        frames = torch.zeros(len(centres), dtype=torch.long, device=centres.device)
        memory = QueryMemory.start(own)
        self._patches = joined(self._patches, self._aligner.patches(grey[None], frames, centres))
        self._trail = joined(self._trail, Trail.start(centres))
        self._memory = memory if self._memory is None else joined(self._memory, memory)

    def keep(self, n: Tensor) -> None:
        """Goes on with these points, by indices or a mask."""
        self._patches = rows(self._patches, n)
        self._trail = rows(self._trail, n)
        self._memory = self._memory and rows(self._memory, n)

    def refine(
        self,
        grey: Tensor,  # (1, h, w)
        features: Tensor,  # (1, 1, C, h, w)
        estimates: Tensor,  # (N, 2)
        old: Tensor,  # (N,) bool: whether the query frame of a point was before this one
    ) -> tuple[Tensor, Tensor]:
        """Positions (N, 2) in pixels of the grey frame, and correlations (N,)."""
        last, self._last = self._last, features
        correlation = torch.ones_like(estimates[:, 0])
        n = old.nonzero()[:, 0]
        if not len(n) or last is None or self._memory is None:
            return estimates, correlation
        seek = Seeker(torch.cat([last, features], dim=1), self._size, self._soft_argmax)
        patches = rows(self._patches, n)
        trail = rows(self._trail, n)
        memory = rows(self._memory, n)
        carried = seek.next(trail.xy, 0, 1)
        path, handed_on = align_from(self._aligner, grey, patches, estimates[n], carried, trail, self.options)
        sure = path.sure
        again = (~sure & (memory.added[:, 0] > 0)).nonzero()[:, 0]  # points that are sought a second time
        if self.options.query_memory and len(again):
            sought = seek.find(1, rows(memory, again).features()).to(estimates)
            some = rows(trail, again)
            second = align_from(self._aligner, grey, rows(patches, again), sought, carried[again], some, self.options)
            path = replaced(path, again, second[0])
            handed_on = replaced(handed_on, again, second[1])
        self._trail = replaced(self._trail, n, handed_on)
        self._memory = replaced(self._memory, n, memory.updated(features[0, 0], seek.cells(path.xy), sure))
        return estimates.index_copy(0, n, path.xy), correlation.index_copy(0, n, path.correlation.clamp(-1, 1))

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"patches.{key}": value for key, value in self._patches._asdict().items()}
        state |= {f"trail.{key}": value for key, value in self._trail._asdict().items()}
        if self._memory is not None and self._last is not None:
            state |= {f"memory.{key}": value for key, value in self._memory._asdict().items()} | {"last": self._last}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._patches = Patches(*(state[f"patches.{key}"] for key in Patches._fields))
        self._trail = Trail(*(state[f"trail.{key}"] for key in Trail._fields))
        self._last = state.get("last")
        if "memory.own" in state:
            self._memory = QueryMemory(*(state[f"memory.{key}"] for key in QueryMemory._fields))

"""A query's memory: its feature, averaged with those along its own track.

One frame shows a point with the noise, the blur and the view of a moment. Other frames show it again, and where a track
is sure of its position, the feature there belongs to the same point. The average finds the point where a single
feature does not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .dtypes import wide_dtype
from .ops.matching import sample_features


class QueryMemory(NamedTuple):
    """The features of N queries, and what frames beside their own have added, one frame at a time.

    Memory ends where a track is first not sure: what follows a gap may be another point.
    """

    own: Tensor  # (N, C) the feature of each query in its own frame
    total: Tensor  # (N, C) the sum of the others
    added: Tensor  # (N, 1) how many these are
    unbroken: Tensor  # (N,) bool: whether the track was sure of every frame so far

    @staticmethod
    def start(own: Tensor) -> QueryMemory:  # (N, C)
        unbroken = torch.ones_like(own[:, 0], dtype=torch.bool)
        return QueryMemory(own, torch.zeros_like(own), torch.zeros_like(own[:, :1]), unbroken)

    def updated(
        self,
        features: Tensor,  # (C, h, w)
        cells: Tensor,  # (N, 2) (x, y)
        sure: Tensor,  # (N,) bool
        seen: Tensor | None = None,  # (N,) bool
    ) -> QueryMemory:
        """The memory after the next frame.

        Args:
            features: Features of the frame.
            cells: Where the queries are in it, in cells.
            sure: Whether these positions are trusted.
            seen: Whose turn the frame is; None is everyone's. The others are as before.
        """
        seen = torch.ones_like(sure) if seen is None else seen
        unbroken = self.unbroken & (sure | ~seen)
        n = (unbroken & seen).nonzero()[:, 0]
        found = sample_features(features[None], torch.zeros_like(n), cells[n], self.own.dtype)
        total = self.total.index_add(0, n, found)
        added = self.added.index_add(0, n, torch.ones_like(found[:, :1]))
        return QueryMemory(self.own, total, added, unbroken)

    def features(self) -> Tensor:
        """L2-normalised (N, C): the query's own feature and the mean of the others, at equal weight."""
        return F.normalize(self.own + self.total / self.added.clamp(min=1), dim=1)


def remember(
    features: Tensor,  # (T, C, h, w)
    frames: Tensor,  # (N,)
    cells: Tensor,  # (N, T, 2)
    sure: Tensor,  # (N, T) bool
) -> QueryMemory:
    """The memory of queries in a whole clip: frames on both sides of a query's own.

    Args:
        features: Features of the clip.
        frames: The frame of each query.
        cells: Where the queries are, (x, y) in cells; in its own frame a query is where it was set.
        sure: Which of these positions are trusted.
    """
    n = torch.arange(len(frames), device=frames.device)
    memory = QueryMemory.start(sample_features(features, frames, cells[n, frames], wide_dtype(features.dtype)))
    for step in (1, -1):
        memory = memory._replace(unbroken=torch.ones_like(memory.unbroken))
        for t in range(len(features))[::step]:
            memory = memory.updated(features[t], cells[:, t], sure[:, t], seen=(t - frames) * step > 0)
    return memory

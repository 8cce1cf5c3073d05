"""A moving average of the weights in training, and the best that it has been."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

DECAY = 0.998


class AveragedWeights:
    """Averages of parameters, by their names.

    Attributes:
        average: The moving average.
        best: The score of the best average, and that average; empty until there is one.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.average = {name: p.detach().clone() for name, p in parameters.items()}
        self.best: tuple[float, dict[str, Tensor]] = (-math.inf, {})

    def load(self, average: dict[str, Tensor], best: tuple[float, dict[str, Tensor]]) -> None:
        self.average = {name: average[name].to(p.device) for name, p in self.parameters.items()}
        self.best = best

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(DECAY, (1 + step) / (10 + step))  # a short average at first: it forgets the start soon
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Puts the average in the parameters while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def score(self, score: float) -> None:
        """Keeps the average if this score of it is the best so far; NaN never is."""
        if score > self.best[0]:
            self.best = score, {name: value.clone() for name, value in self.average.items()}

    def use_best(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.best[1][name])

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.average[name] = self.average[name], parameter.data

"""NamedTuples of tensors that have a row for each point."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", bound=tuple[Any, ...])


def rows(record: Record, n: Tensor) -> Record:
    """Some rows of every field; `n` is indices or a mask."""
    return type(record)(*(field[n] for field in record))  # type: ignore[call-arg]


def joined(one: Record, other: Record) -> Record:
    """The rows of both."""
    pairs = zip(one, other, strict=True)
    return type(one)(*(torch.cat(pair) for pair in pairs))  # type: ignore[call-arg]


def replaced(record: Record, n: Tensor, part: Record) -> Record:
    """A copy with other rows at the indices `n`."""
    pairs = zip(record, part, strict=True)
    return type(record)(*(whole.index_copy(0, n, new) for whole, new in pairs))  # type: ignore[call-arg]

"""Which type sums are made in."""

from __future__ import annotations

import torch

HALF = (torch.float16, torch.bfloat16)


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if any of the types is, else float32: half precision is never accumulated in."""
    return torch.float64 if torch.float64 in dtypes else torch.float32

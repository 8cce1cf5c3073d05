"""Which type sums are made in."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if any of the types is, else float32: half precision is never accumulated in."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def unit_length(
    x: Tensor,  # (B, T, C, h, w)
) -> Tensor:
    """`x` divided by its length along C, computed in float32 at least."""
    wide = x.to(wide_dtype(x.dtype))
    return (wide / wide.square().sum(dim=2, keepdim=True).clamp(min=1e-6).sqrt()).to(x.dtype)

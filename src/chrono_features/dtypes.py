"""Which type sums are made in."""

from __future__ import annotations

import torch
from torch import Tensor

HALF_PRECISION = (torch.float16, torch.bfloat16)


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if any of the types is, else float32: half precision is never accumulated in."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def l2_normalise(
    x: Tensor,  # (B, T, C, h, w)
) -> Tensor:
    """`x` L2-normalised along C, computed in float32 at least (Chrono: the squared norm is clamped to 1e-6)."""
    wide = x.to(wide_dtype(x.dtype))
    return (wide / wide.square().sum(dim=2, keepdim=True).clamp(min=1e-6).sqrt()).to(x.dtype)

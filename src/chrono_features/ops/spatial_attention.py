"""Which of PyTorch's attention kernels the blocks of a ViT run on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .devices import compute_capability

# CUDA compute capability to the kernels to try, best first, where `python -m benchmarks.gpu` measured another one than
# PyTorch's own choice to win by more than the spread. Nothing has been measured yet.
MEASURED_BEST: dict[tuple[int, int], list[SDPBackend]] = {}


def spatial_attention(device: torch.device) -> AbstractContextManager[None]:
    """A context in which attention on `device` runs on the kernel that was measured to be best there."""
    order = _order(device)
    return sdpa_kernel(order, set_priority=True) if order else nullcontext()


def describe_spatial_attention(device: torch.device) -> str:
    """What `spatial_attention` chooses on `device`, and why."""
    if order := _order(device):
        return f"{order[0].name}: measured to be fastest on this kind of GPU"
    reason = "nothing else was measured to win on this kind of GPU" if device.type == "cuda" else device.type
    return f"torch: scaled_dot_product_attention's own choice ({reason})"


def _order(device: torch.device) -> list[SDPBackend]:
    return MEASURED_BEST.get(compute_capability(device), []) if MEASURED_BEST else []

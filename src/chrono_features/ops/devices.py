"""What is asked of a device."""

from __future__ import annotations

import torch


@torch.compiler.assume_constant_result  # torch.compile cannot follow a question to the driver
def compute_capability(device: torch.device) -> tuple[int, int]:
    """CUDA's compute capability; (0, 0) where there is none. ROCm counts in the same numbers, and is none."""
    if device.type != "cuda" or torch.version.cuda is None:
        return 0, 0
    return torch.cuda.get_device_capability(device)

"""Where a run trains, and what it sets there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..extras import require


def make_accelerator(out: Path, mixed_precision: str | None) -> Any:
    """Accelerate's accelerator, logging for TensorBoard.

    Raises:
        ImportError: The train extra is missing.
    """
    for module in ("tensorboard", "rich.progress"):
        require(module, "train")
    if mixed_precision is None:
        mixed_precision = "bf16" if torch.cuda.is_available() else "no"
    # Accelerate would take several processes without a GPU for so many runs of one.
    several_on_cpu = not torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = require("accelerate", "train").Accelerator(
        mixed_precision=mixed_precision,
        cpu=several_on_cpu,
        log_with="tensorboard",
        project_dir=out,
    )
    if accelerator.device.type == "cpu":
        torch.set_flush_denormal(True)  # zero-initialised layers make denormals, which slow Adam tenfold
    return accelerator


def default_workers(device: torch.device) -> int:
    """Processes that make clips for one training process: one, or with GPUs a share of this machine's processors."""
    if device.type != "cuda":
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, (usable - 2) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """TF32 for what lower precision leaves in float32: correlations."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = enabled or before
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before

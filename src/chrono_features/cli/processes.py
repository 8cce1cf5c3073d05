"""`eval` in several processes, which share the videos."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

import torch

from ..extras import require


class Share(NamedTuple):
    """This process's number, how many there are, and how to wait for the others."""

    process: int = 0
    processes: int = 1
    wait: Callable[[], object] = lambda: None

    def place(self, device: torch.device) -> torch.device:
        """This process's own GPU, where there are several."""
        if self.processes > 1 and device.type == "cuda":
            return torch.device("cuda", self.process % torch.cuda.device_count())
        return device


def relaunched(devices: int | None, arguments: Sequence[str]) -> int | None:
    """Start the same command once per device, and return its exit code; None in those processes.

    Raises:
        ImportError: accelerate is missing.
        ValueError: `devices` is not a positive number.
    """
    if devices is None or devices == 1 or "WORLD_SIZE" in os.environ:
        return None
    if devices < 1:
        raise ValueError(f"devices={devices}; expected a positive integer")
    require("accelerate", "eval")
    # Accelerate's own launcher starts one process where there are no GPUs, and heeds a configuration of the user's.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    return subprocess.run([*launch, "-m", "chrono_features", *arguments]).returncode


def share() -> Share:
    """This process's share of the work."""
    if "WORLD_SIZE" not in os.environ:
        return Share()
    # On the CPU, for GPUs too: nothing is exchanged, and who is done waits for as long as the others take.
    state = require("accelerate", "eval").PartialState(cpu=True, timeout=timedelta(days=7))
    return Share(state.process_index, state.num_processes, state.wait_for_everyone)

"""How much memory a training run takes, known before its first step."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .batches import Batch
from .recipes import Stage
from .trainee import Trainee

PROBE_FRAMES = 2
OVERHEAD = 1.4  # peak of a step over what its graph keeps; on CPUs 1.3 to 1.4, measured for both recipes
PROCESS = 1.0e9  # bytes: Python, PyTorch and a process that makes clips
COPIES = 5  # of trained weights: gradients, two moments, their average and the best average
WARN_ABOVE = 0.7  # of the memory there is
GB = 1e9


class MemoryWarning(UserWarning):
    """A run that may not fit into memory."""


def check_memory(trainee: Trainee, stages: Sequence[Stage], device: torch.device, processes: int, force: bool) -> None:
    """Estimates the memory of a run, and refuses one that would not fit.

    Args:
        trainee: Computes the losses of a stage. Which parameters train is changed.
        stages: Those to come.
        device: Where they are trained.
        processes: That share the machine's memory. On a GPU each has its own.
        force: Whether a run that does not fit is only warned of.

    Raises:
        ValueError: It takes more than there is, and `force` is False.
    """
    there = device_memory(device)
    if there is None or not stages:
        return
    shared = 1 if device.type == "cuda" else processes
    needs = [(*step_memory(trainee, stage, device), stage) for stage in stages]
    fixed, clips, stage = max(needs, key=lambda need: sum(need[:2]))
    need = shared * (fixed + clips)
    if need <= WARN_ABOVE * there:
        return
    told = (
        f"training takes about {need / GB:.1f} GB of the {there / GB:.1f} GB of {_place(device)}: stage {stage.name} "
        f"has {stage.batch} clips of {stage.frames[1]} frames, {stage.size[0]} x {stage.size[1]} pixels, "
        f"{stage.grid[0]} x {stage.grid[1]} tokens and {stage.tracks} tracks"
        + (f", in each of {shared} processes" if shared > 1 else "")
    )
    fits = int(stage.batch * (WARN_ABOVE * there / shared - fixed) / clips)
    batch = f"batch={fits} (--batch {fits}), or" if fits > 0 else "batch=1 (--batch 1) and"
    told += f"; expected {batch} smaller frames, size, grid or tracks (--frames, --size, --grid, --tracks)"
    if need > there and not force:
        raise ValueError(f"{told}, or force=True (--force)")
    warnings.warn(told, MemoryWarning, stacklevel=3)


def step_memory(trainee: Trainee, stage: Stage, device: torch.device) -> tuple[float, float]:
    """Bytes that a step takes whatever its clips, and those that grow with them, by a forward pass of a small clip."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in trainee.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    trainee.train_for(stage)
    batch = _stand_in(stage).to(device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = trainee(batch, stage)
        clips = sum(kept.values()) / PROBE_FRAMES * stage.frames[1] * stage.batch * OVERHEAD
    del losses
    trained = sum(p.nbytes for p in trainee.parameters() if p.requires_grad)
    return PROCESS + COPIES * trained, clips


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory of a GPU, or else of this machine or container; None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= names.keys():
        return None
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_container_limits()])


def _container_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that control groups, version 1 and 2, let this process have; none where there is no such limit."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in lines:
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = base / path.strip("/")
        for folder in (group, *group.parents):  # every group above limits it too; in a container only the top is there
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                text = ""
            found += [int(text)] if text.isdecimal() else []  # "max": no limit
            if folder == base:
                break
    return found


def _stand_in(stage: Stage) -> Batch:
    """One short clip of the stage's size, with as many tracks, drawn at random."""
    height, width = stage.size
    count = stage.tracks * stage.views
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(256, (1, PROBE_FRAMES, 3, height, width), dtype=torch.uint8, generator=generator)
    tracks = torch.rand(1, count, PROBE_FRAMES, 2, generator=generator) * torch.tensor([width, height])
    queries = torch.cat([torch.zeros(1, count, 1), tracks[:, :, 0]], dim=-1)
    return Batch(video, queries, tracks, torch.ones(1, count, PROBE_FRAMES, dtype=torch.bool))


def _place(device: torch.device) -> str:
    return f"{device}" if device.type == "cuda" else "this machine"

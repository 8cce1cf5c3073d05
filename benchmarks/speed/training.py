"""Whether clips are made as fast as they are learned from: `python -m benchmarks.speed.training [--textures DIR]`.

On a GPU, start NVIDIA's multi-process service first (`nvidia-cuda-mps-control -d`), or the processes take turns there.

For a stage of a recipe, frames a second: of the clips that some processes make, of training steps on one batch, and of
training as it runs, both at once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from chrono_features import ChronoBackbone
from chrono_features.data.synthetic import load_textures
from chrono_features.training.batches import Batch, SyntheticBatches, loader
from chrono_features.training.recipes import TINY, Stage
from chrono_features.training.trainee import Trainee

from .. import harness


def measure(
    device: str, seconds: float, stage: Stage, textures: Tensor | None, workers: list[int], compiled: bool
) -> dict[str, list[harness.Row]]:
    """Frames a second over about `seconds` each."""
    rows = []
    trainee = Trainee(ChronoBackbone(TINY.config)).to(device).train()
    optimizer = torch.optim.AdamW(trainee.parameters(), 1e-4, fused=True)
    dtype = torch.bfloat16 if device == "cuda" else None

    def step(batch: Batch) -> int:
        batch = batch.to(device)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = trainee(batch, stage)["total"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return batch.video.shape[0] * batch.video.shape[1]

    def over(batches: Iterator[Batch], work: Callable[[Batch], int]) -> float:
        work(next(batches))
        harness.wait(device)
        frames, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            frames += work(next(batches))
            harness.wait(device)
        return frames / (time.perf_counter() - start)

    stage = dataclasses.replace(stage, steps=10_000)
    one = SyntheticBatches(stage, textures, device=device)[0].to(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rows.append({"what": "training steps on one batch", "frames/s": over(iter(lambda: one, None), step)})
    if device == "cuda":
        rows[-1]["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    if compiled:
        trainee.compile_blocks()
        step(one)
        rows.append({"what": "the same, compiled", "frames/s": over(iter(lambda: one, None), step)})
    data = SyntheticBatches(stage, textures, device=device)
    for count in workers:
        batches = iter(loader(data, count, device))
        for _ in range(2 * count):  # what they make ahead, or it would count
            next(batches)
        made = over(batches, lambda batch: batch.video.shape[0] * batch.video.shape[1])
        rows.append({"what": f"clips, {count} processes", "frames/s": made})
        rows.append({"what": f"training as it runs, {count} processes", "frames/s": over(batches, step)})
        del batches
    frames, size = (f"{a} {word} {b}" for (a, b), word in ((stage.frames, "to"), (stage.size, "x")))
    return {f"Stage {stage.name}: {stage.batch} clips a step, {frames} frames, {size}": rows}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--textures", type=Path)
    parser.add_argument("--stage", help="default: all of the recipe's")
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--compile", action="store_true", help="compiled, too")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    textures = None if args.textures is None else load_textures(args.textures, "training")
    tables = {}
    for stage in TINY.stages:
        if args.stage in (None, stage.name):
            tables |= measure(args.device, args.seconds, stage, textures, args.workers, args.compile)
    harness.report("training", args.device, tables, args.out)


if __name__ == "__main__":
    main()

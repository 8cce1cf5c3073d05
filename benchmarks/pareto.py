"""Accuracy against cost over grids: `python -m benchmarks.pareto PATH [--model chrono-tiny]`.

PATH is what `benchmarks.real_tracks` takes, and the protocol is the same. A token grid is the lever on CPUs: half the
side is a quarter of the tokens.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chrono_features import ChronoBackbone

from . import harness
from .real_tracks import evaluate, group_means


def measure(path: Path, name: str, grids: list[int], device: str) -> dict[str, list[harness.Row]]:
    model = ChronoBackbone.from_pretrained(name).to(device)
    rows = []
    for grid in grids:
        video = torch.rand(1, 8, 3, 256, 256, device=device)
        # Of attention's kernels only this one is counted on every device.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(video, (grid, grid))
        start = time.perf_counter()
        results = evaluate(lambda v, q, grid=grid: model.track(v.to(device), q, (grid, grid)).to("cpu"), path)
        seconds = time.perf_counter() - start
        frames = sum(r["frames"] for r in results.values())
        means = {group: m["average_pts_within_thresh"] for group, m in group_means(results).items()}
        row: harness.Row = {"token grid": f"{grid} x {grid}", "GFLOP a frame": counter.get_total_flops() / 8e9}
        rows.append({**row, "ms a frame, with matching": 1000 * seconds / frames, **means})
    return {f"{name}, <delta_avg by group, protocol first at 256 x 256, float32": rows}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--model", default="chrono-tiny")
    parser.add_argument("--grids", type=int, nargs="+", default=[12, 16, 24, 32, 48])
    args = parser.parse_args()
    harness.report("pareto", args.device, measure(args.path, args.model, args.grids, args.device), args.out)


if __name__ == "__main__":
    main()

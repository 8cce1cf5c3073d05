"""Accuracy against cost over grids: `python -m benchmarks.speed.pareto PATH [--model chrono-tiny]`.

PATH is a file of real videos with point tracks, as `chrono-features eval --data real_tracks=PATH` takes it; protocol
*first* at 256 x 256. A token grid is the lever on CPUs: half the side is a quarter of the tokens.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chrono_features import ChronoBackbone
from chrono_features.data.readers import open_dataset
from chrono_features.evaluation.run import evaluate
from chrono_features.evaluation.trackers import from_model

from .. import harness


def measure(path: Path, name: str, grids: list[int], device: str) -> dict[str, list[harness.Row]]:
    rows = []
    for grid in grids:
        model = ChronoBackbone.from_pretrained(name, grid=(grid, grid)).to(device)
        video = torch.rand(1, 8, 3, 256, 256, device=device)
        # Of attention's kernels only this one is counted on every device.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(video)
        data = {"real_tracks": open_dataset("real_tracks", str(path))}
        with tempfile.TemporaryDirectory() as folder:
            results = evaluate([from_model(name, model)], data, Path(folder) / "results.json", device=device)
        frames = sum(record["frames"] for record in results["records"])
        seconds = sum(sum(record["seconds"].values()) for record in results["records"])
        means = {row["group"]: row["metrics"]["average_pts_within_thresh"] for row in results["summary"]}
        row: harness.Row = {"token grid": f"{grid} x {grid}", "GFLOP a frame": counter.get_total_flops() / 8e9}
        rows.append({**row, "ms a frame, with matching": 1000 * seconds / frames, **means})
    return {f"{name}, <delta_avg by group, protocol first at 256 x 256, float32": rows}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--model", default="chrono-tiny")
    parser.add_argument("--grids", type=int, nargs="+", default=[16, 24, 32, 40, 48])
    args = parser.parse_args()
    harness.report("pareto", args.device, measure(args.path, args.model, args.grids, args.device), args.out)


if __name__ == "__main__":
    main()

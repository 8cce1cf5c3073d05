"""From a video tensor to tracks: `python -m benchmarks.speed.end_to_end [--queries 256 1024 4096 100000]`.

ViT-S/14 with adapters (random weights, which do not change the time). Points/s is queries x frames over seconds.
"""

from __future__ import annotations

import torch

from chrono_features import soft_argmax_track

from .. import harness
from .adapters import random_model

IMAGE = (256, 256)


@torch.no_grad()
def measure(
    device: str, repeats: int, grid: int, frames: int, counts: list[int], dtype: torch.dtype
) -> dict[str, list[harness.Row]]:
    model = random_model("small", grid, device, dtype)
    video = torch.randint(0, 256, (1, frames, 3, *IMAGE), dtype=torch.uint8, device=device)
    features = model(video)
    alone = harness.side_by_side({"features": lambda: model(video)}, device, repeats)["features"]
    rows: list[harness.Row] = [{"queries": "features alone", **alone.row("", unit="ms")}]
    for count in counts:
        queries = torch.rand(1, count, 3, device=device) * torch.tensor([0.0, IMAGE[1], IMAGE[0]], device=device)
        queries[..., 0] = torch.randint(frames, (1, count), device=device)

        def matching(queries: torch.Tensor = queries) -> object:
            return soft_argmax_track(features, queries, IMAGE, visibility_head=model.visibility_head)

        times = harness.side_by_side({"matching": matching}, device, repeats)["matching"]
        points = count * frames
        row: harness.Row = {"queries": count, **times.row("", unit="ms")}
        row |= {"points/s, features in": points / (times.median + alone.median)}
        rows.append({**row, "points/s, features out": points / times.median})
    for row in rows:
        del row["what"]
    what = f"ViT-S, {grid} x {grid} grid, {frames} frames, {str(dtype).removeprefix('torch.')}"
    return {f"{what}; ms is the matching's": rows}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--queries", type=int, nargs="+", default=[256, 1024, 4096, 100_000])
    parser.add_argument("--grid", type=int, default=64 if torch.cuda.is_available() else 32)
    parser.add_argument("--frames", type=int, default=24)
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    tables = measure(args.device, args.repeats, args.grid, args.frames, args.queries, dtype)
    harness.report("end_to_end", args.device, tables, args.out)


if __name__ == "__main__":
    main()

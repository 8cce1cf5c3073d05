"""Soft-argmax matching against the formula written out: `python -m benchmarks.speed.matching`.

Time, points/s and peak memory beyond inputs and outputs, of tracking and of a training step through the matching. The
literal formula holds the similarity volume: 1,024 queries x 100 frames x 64 x 64 cells are 1.7 GB, several times over.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from chrono_features import soft_argmax_track

from .. import harness
from .published import literal_track

GRID, CHANNELS, IMAGE = 64, 384, (256, 256)


def draw(count: int, frames: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit-length features in the layout that models return, and queries on random frames."""
    torch.manual_seed(0)
    features = F.normalize(torch.randn(1, frames, GRID, GRID, CHANNELS, device=device), dim=-1).permute(0, 1, 4, 2, 3)
    queries = torch.rand(1, count, 3, device=device) * torch.tensor([0.0, IMAGE[1], IMAGE[0]], device=device)
    queries[..., 0] = torch.randint(frames, (1, count), device=device)
    return features, queries


@torch.no_grad()
def forward(count: int, frames: int, device: str, repeats: int) -> list[harness.Row]:
    features, queries = draw(count, frames, device)
    runs = {
        "ours": lambda: soft_argmax_track(features, queries, IMAGE).xy,
        "literal": lambda: literal_track(features, queries, IMAGE),
    }
    error = (runs["ours"]() - runs["literal"]()).abs().max().item()
    if device == "cuda":  # the authors' evaluation runs so
        half = features.bfloat16()
        options = {"correlation_dtype": torch.bfloat16}
        runs["ours, bfloat16"] = lambda: soft_argmax_track(half, queries, IMAGE, **options).xy
        runs["literal, bfloat16"] = lambda: literal_track(half, queries, IMAGE)
    measured = harness.side_by_side(runs, device, repeats)
    rows = []
    for name, call in runs.items():
        peak, out = harness.peak_bytes(call, device)
        literal = measured["literal, bfloat16" if "bfloat16" in name else "literal"]
        row = {**measured[name].row(name, unit="ms"), "points/s": count * frames / measured[name].median}
        row |= {"peak MB beyond in- and outputs": (peak - harness.size(out)) / 1e6}
        rows.append({**row, "faster than literal": literal.over(measured[name])})
    rows[0]["largest difference, px"] = error
    return rows


def training_step(count: int, frames: int, device: str, repeats: int) -> list[harness.Row]:
    features, queries = draw(count, frames, device)
    features.requires_grad_()

    def step(track) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(track().square().sum(), features)
        return gradient

    runs = {
        "ours": lambda: step(lambda: soft_argmax_track(features, queries, IMAGE).xy),
        "literal": lambda: step(lambda: literal_track(features, queries, IMAGE)),
    }
    measured = harness.side_by_side(runs, device, repeats)
    rows = []
    for name, call in runs.items():
        peak, gradient = harness.peak_bytes(call, device)
        rows.append({**measured[name].row(name, unit="ms"), "peak MB": peak / 1e6})
        rows[-1]["peak MB beyond the gradient"] = (peak - harness.size(gradient)) / 1e6
    for key in ("peak MB", "peak MB beyond the gradient"):
        rows[0][f"share of literal's {key.replace(' MB', '')}"] = rows[0][key] / max(rows[1][key], 1e-9)
    return rows


def measure(device: str, repeats: int, sizes: list[tuple[int, int]], training: list[tuple[int, int]]) -> dict:
    """Every table, for (queries, frames) in `sizes`, and training steps for those in `training`."""
    what = f"{GRID} x {GRID} cells x {CHANNELS} channels, float32"
    tables = {f"Tracking, {n:,} queries x {t} frames x {what}": forward(n, t, device, repeats) for n, t in sizes}
    for n, t in training:
        tables[f"Training step, {n:,} queries x {t} frames x {what}"] = training_step(n, t, device, repeats)
    return tables


def main() -> None:
    parser = harness.parser(__doc__)
    args = parser.parse_args()
    tables = measure(args.device, args.repeats, [(1024, 100), (256, 100)], [(256, 24), (1024, 24)])
    harness.report("matching", args.device, tables, args.out)


if __name__ == "__main__":
    main()

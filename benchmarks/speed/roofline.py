"""FLOPs, bytes and the floors they set, beside measured times: `python -m benchmarks.speed.roofline [--grid 64]`.

For the parts of one frame: the larger of FLOPs over the device's matrix rate and bytes over its bandwidth, both
measured here, is the least that a part can take. Bytes count every input once and every output once; matching runs in
float32 and is held against that rate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from chrono_features import soft_argmax_track
from chrono_features.ops.clip_norm import frame_moments

from .. import harness
from .adapters import VITS, random_model

QUERIES = 1024


def ceilings(device: str, dtype: torch.dtype, repeats: int) -> tuple[float, float]:
    """FLOP/s of a large matrix product, and bytes/s of a large copy (read plus written)."""
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(2**28 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    runs = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    measured = harness.side_by_side(runs, device, repeats)
    # A busy moment says nothing of a ceiling: the best run counts.
    return 2 * side**3 / min(measured["product"].rounds), 2 * harness.size(source) / min(measured["copy"].rounds)


@torch.inference_mode()
def measure(
    device: str, repeats: int, vit: str, grid: int, frames: int, dtype: torch.dtype
) -> dict[str, list[harness.Row]]:
    rate, bandwidth = ceilings(device, dtype, repeats)
    rate32 = rate if dtype == torch.float32 else ceilings(device, torch.float32, repeats)[0]
    model = random_model(vit, grid, device, dtype)
    block, adapter = model.vit.blocks[0], model.adapters["0"]
    dim, depth, heads = model.vit.embed_dim, len(model.vit.blocks), block.attn.num_heads
    inner, cells, tokens = adapter.pool.out_channels, grid * grid, grid * grid + 1
    coarse = cells / adapter.stride**2
    x = torch.randn(1, frames, grid, grid, dim, device=device, dtype=dtype)
    q, k, v = (torch.randn(frames, heads, tokens, dim // heads, device=device, dtype=dtype) for _ in range(3))
    sequence = torch.randn(frames, tokens, dim, device=device, dtype=dtype)
    down = adapter.down(x)
    features = F.normalize(x.float(), dim=-1).permute(0, 1, 4, 2, 3)
    queries = torch.rand(1, QUERIES, 3, device=device) * torch.tensor([0.0, 256.0, 256.0], device=device)
    sampled = 2 * dim * cells * QUERIES

    stream = cells * dim * dtype.itemsize  # bytes of one frame of the stream
    narrow = cells * inner * dtype.itemsize
    parts: dict[str, tuple[Callable[[], object], float, float, int]] = {  # run, FLOPs, bytes, how often
        "block": (lambda: block(sequence), 24 * dim**2 * tokens + 4 * tokens**2 * dim, 2 * stream, depth),
        "of it, attention": (lambda: F.scaled_dot_product_attention(q, k, v), 4 * tokens**2 * dim, 4 * stream, depth),
        "adapter": (
            lambda: adapter(x),
            36 * dim * inner * cells
            + 4 * inner**2 * cells
            + coarse * (8 * inner**2 + 4 * inner * (1 + sum(adapter.mixer.window))),
            2 * stream,
            depth - 1,
        ),
        "of it, statistics": (lambda: frame_moments(x), 0, stream, depth - 1),
        "of it, norm and convolutions down": (
            lambda: adapter.down(x),
            18 * dim * inner * cells + 2 * inner**2 * cells,
            stream,
            depth - 1,
        ),
        "of it, attention over time": (
            lambda: adapter.mixer(down),
            coarse * (8 * inner**2 + 4 * inner * (1 + sum(adapter.mixer.window))),
            2 * narrow / adapter.stride**2,
            depth - 1,
        ),
        "of it, convolutions up and residual": (
            lambda: adapter.up(down, x),
            18 * dim * inner * cells + 2 * inner**2 * cells,
            2 * stream,
            depth - 1,
        ),
        f"matching, {QUERIES:,} queries": (
            lambda: soft_argmax_track(features, queries, (256, 256)),
            sampled,
            4 * cells * dim,
            1,
        ),
    }
    measured = harness.side_by_side({name: part[0] for name, part in parts.items()}, device, repeats)
    rows: list[harness.Row] = []
    for name, (_, flops, moved, times) in parts.items():
        floor = 1000 * max(flops / (rate32 if "matching" in name else rate), moved / bandwidth)
        took = 1000 * measured[name].median / frames
        row: harness.Row = {"part of a frame": name, "times": times, "GFLOP": flops / 1e9, "MB": moved / 1e6}
        rows.append({**row, "floor ms": floor, "measured ms": took, "measured / floor": took / floor})
    facts = f"ViT-{vit[0].upper()}, {grid} x {grid} grid, {frames} frames, {str(dtype).removeprefix('torch.')}"
    return {f"{facts}; ceilings {rate / 1e12:.3g} TFLOP/s (matrix product) and {bandwidth / 1e9:.3g} GB/s (copy)": rows}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--vit", choices=sorted(VITS), default="small")
    parser.add_argument("--grid", type=int, default=64)
    parser.add_argument("--frames", type=int, help="default 2 (GPU: 24)")
    args = parser.parse_args()
    gpu = args.device == "cuda"
    frames, dtype = args.frames or (24 if gpu else 2), torch.bfloat16 if gpu else torch.float32
    tables = measure(args.device, args.repeats, args.vit, args.grid, frames, dtype)
    harness.report("roofline", args.device, tables, args.out)


if __name__ == "__main__":
    main()

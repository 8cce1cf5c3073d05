"""What the temporal adapters cost: `python -m benchmarks.speed.adapters [--grid 64] [--compile] [--backward]`.

Features of a clip by plain timm DINOv2 (ViT-S/14 or ViT-B/14), by this library on each backend, and by the same network
with the adapters in their published form, all in one run. Weights are random: they do not change the time.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch

from chrono_features import ChronoBackbone, ChronoConfig

from .. import harness
from .published import PublishedAdapter, published_network

VITS = {"small": "vit_small_patch14_dinov2.lvd142m", "base": "vit_base_patch14_dinov2.lvd142m"}


def random_model(vit: str, grid: int, device: str, dtype: torch.dtype) -> ChronoBackbone:
    torch.manual_seed(0)
    model = ChronoBackbone(ChronoConfig(vit=VITS[vit], grid=(grid, grid), pos_embed_resize="dinov2"))
    for adapter in model.adapters.values():
        torch.nn.init.normal_(adapter.conv_out.weight, std=0.02)
    return model.to(device, dtype)


def features(
    vit: str, grid: int, frames: int, device: str, dtype: torch.dtype, repeats: int, compiled: bool
) -> list[harness.Row]:
    """Time of a clip's features by every form of the network, and its ratio to plain DINOv2."""
    model = random_model(vit, grid, device, dtype)
    plain = timm.create_model(VITS[vit], num_classes=0, dynamic_img_size=True).eval().to(device, dtype)
    video = torch.rand(1, frames, 3, 14 * grid, 14 * grid, device=device, dtype=dtype)
    published = published_network(model)
    runs: dict[str, Callable[[], object]] = {
        "timm DINOv2": lambda: plain.forward_features(video[0]),
        "ours": lambda: on_backend(model, "torch")(video),
        "published form": lambda: published(video),
    }
    if device == "cuda":
        runs["ours, triton"] = lambda: on_backend(model, "triton")(video)
    if compiled:
        torch._dynamo.reset()  # or what another size left behind would run with sizes left open
        fast = random_model(vit, grid, device, dtype)
        fast.compile()
        fast_plain = timm.create_model(VITS[vit], num_classes=0, dynamic_img_size=True).eval().to(device, dtype)
        for block in fast_plain.blocks:
            block.compile()
        runs["timm DINOv2, compiled"] = lambda: fast_plain.forward_features(video[0])
        runs["ours, compiled"] = lambda: fast(video)
    with torch.inference_mode():
        measured = harness.side_by_side(runs, device, repeats)
    plain_times = measured["timm DINOv2"]
    return [{**times.row(name, frames), "to DINOv2": times.over(plain_times)} for name, times in measured.items()]


def on_backend(model: ChronoBackbone, backend: str) -> ChronoBackbone:
    model.backend = backend
    return model


def one_adapter(
    vit: str, grid: int, frames: int, device: str, dtype: torch.dtype, repeats: int, backward: bool
) -> list[harness.Row]:
    """Time and peak memory of one adapter, ours and published, forward or with backward."""
    model = random_model(vit, grid, device, dtype)
    ours = model.adapters["0"]
    published = PublishedAdapter(ours).to(device, dtype)
    tokens = torch.randn(1, frames, 1 + grid * grid, model.vit.embed_dim, device=device, dtype=dtype)

    def run(adapter: torch.nn.Module) -> None:
        x = tokens.clone().requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            y = adapter(model.patches(x, (grid, grid)))
            if backward:
                y.square().sum().backward()
                adapter.zero_grad()

    runs = {"ours": lambda: run(ours), "published form": lambda: run(published)}
    measured = harness.side_by_side(runs, device, repeats)
    rows = [{**t.row(name, frames), "to published": t.over(measured["published form"])} for name, t in measured.items()]
    for row, call in zip(rows, runs.values(), strict=True):
        row["peak MB a frame"] = harness.peak_bytes(call, device)[0] / 1e6 / frames
    return rows


def measure(
    device: str, repeats: int, *, vit: str, sizes: list[tuple[int, int]], dtype: torch.dtype, compiled: bool
) -> dict[str, list[harness.Row]]:
    """Every table, for (grid, frames) in `sizes`."""
    tables = {}
    for grid, frames in sizes:
        what = f"ViT-{vit[0].upper()}, {grid} x {grid} grid, {frames} frames, {str(dtype).removeprefix('torch.')}"
        tables[f"Features, {what}"] = features(vit, grid, frames, device, dtype, repeats, compiled)
        tables[f"One adapter, {what}"] = one_adapter(vit, grid, frames, device, dtype, repeats, backward=False)
        tables[f"One adapter with backward, {what}"] = one_adapter(
            vit, grid, frames, device, dtype, repeats, backward=True
        )
    return tables


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--vit", choices=sorted(VITS), default="small")
    parser.add_argument(
        "--size", action="append", metavar="GRID,FRAMES", help="default 64,24 and 32,24 (CPU: 64,2 and 32,8)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default float32 (GPU: bfloat16)")
    parser.add_argument("--compile", action="store_true", help="compiled forms too; written as compile_DEVICE.json")
    args = parser.parse_args()
    gpu = args.device == "cuda"
    default = ["64,24", "32,24"] if gpu else ["64,2", "32,8"]
    sizes = [tuple(map(int, s.split(","))) for s in args.size or default]
    dtype = getattr(torch, args.dtype or ("bfloat16" if gpu else "float32"))
    tables = measure(args.device, args.repeats, vit=args.vit, sizes=sizes, dtype=dtype, compiled=args.compile)
    harness.report("compile" if args.compile else "adapters", args.device, tables, args.out)


if __name__ == "__main__":
    main()

"""Everything to run where there is a GPU: `python -m benchmarks.speed.gpu [--out FOLDER] [--part checks|benchmarks]`.

First correctness: every path on the GPU against the CPU in float64 or against its plain twin. Then every benchmark, and
where the kernel for temporal attention won, as an entry for the table in `ops/temporal_attention.py`; and PyTorch's
attention kernels side by side.
`--device cpu --small` tries the script itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from chrono_features import ChronoBackbone, ChronoConfig, grid_queries, soft_argmax_track
from chrono_features.data.synthetic import make_clip
from chrono_features.labels import propagate_labels
from chrono_features.ops.temporal_attention import plain_temporal_attention, temporal_attention

from .. import harness
from . import adapters, end_to_end, long_video, matching, refinement, roofline, tiny

WINS = 0.97  # of the other's time: less is noise
TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "float16": 1e-2, "bfloat16": 5e-2}


def relative(out: torch.Tensor, reference: torch.Tensor) -> float:
    out, reference = out.detach().double().cpu(), reference.detach().double().cpu()
    return float((out - reference).norm() / reference.norm())


def small_model(norm: str, mixer: str) -> ChronoBackbone:
    torch.manual_seed(0)
    vit = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    config = ChronoConfig("vit_tiny_patch16_224", vit, grid=(9, 10), norm=norm, mixer=mixer, adapter_channels=64)
    model = ChronoBackbone(config)
    for adapter in model.adapters.values():
        torch.nn.init.normal_(adapter.conv_out.weight, std=0.5)
    return model


@torch.no_grad()
def check_features(device: str) -> list[harness.Row]:
    """Every norm, mixer and backend, autocast, compiled, in chunks and as a stream."""
    rows = []
    video = torch.rand(2, 5, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    there = video.to(device)
    for norm in ("clip", "token"):
        for mixer in ("attention", "conv1d", "conv3d"):
            reference = small_model(norm, mixer).double()(video.double())
            model = small_model(norm, mixer).to(device)
            name = f"features, {norm}, {mixer}"
            stats = model.clip_statistics(there) if norm == "clip" else None
            stream = model.stream(stats)
            streamed = torch.cat([*(stream(there[:, t : t + 1]) for t in range(5)), stream.flush()], dim=1)
            outs = {"": model(there), ", chunks": model(video, max_frames_in_memory=4)}
            outs |= {", offloaded": model(video, max_frames_in_memory=4, offload="cpu"), ", stream": streamed}
            if mixer == "attention" and device == "cuda":
                model.backend = "triton"
                outs[", triton"] = model(there)
                model.backend = "auto"
            rows += [_checked(name + how, out, reference, "tf32") for how, out in outs.items()]
            with torch.autocast(device, torch.bfloat16):
                rows.append(_checked(f"{name}, bf16 autocast", model(there), reference, "bfloat16"))
            if mixer == "attention" and device == "cuda":
                model.compile()
                rows.append(_checked(f"{name}, compiled", model(there), reference, "tf32"))
                shorter = small_model(norm, mixer).double()(video[:, :3].double())
                rows.append(_checked(f"{name}, compiled, T = 3", model(there[:, :3]), shorter, "tf32"))
                torch._dynamo.reset()
    return rows


def check_kernel(device: str) -> list[harness.Row]:
    """The fused temporal attention and its gradients: no more than twice as far from float64 as the plain twin is."""
    rows = []
    cases = [(2, 24, 64, 4, 32, (6, 6)), (1, 1, 256, 4, 32, (6, 6)), (1, 200, 16, 2, 64, (6, 6))]
    cases += [(1, 33, 7, 3, 16, (9, 0)), (1, 70, 5, 1, 64, (100, 70))]
    cases += [(1, 2, 70_000, 4, 32, (6, 6))] if device == "cuda" else []
    for batch, frames, positions, heads, size, window in cases:
        channels = heads * size
        torch.manual_seed(0)
        vector, matrix = (channels,), (channels, channels)
        shapes = ((batch, frames, positions, channels), vector, vector, (3 * channels, channels), matrix, vector)
        tensors = [torch.randn(s, dtype=torch.double) / (s[-1] ** 0.5 if len(s) == 2 else 1) for s in shapes]
        expected = _with_gradients(plain_temporal_attention, tensors, heads, window)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            here = [t.to(device, dtype) for t in tensors]
            twin = _with_gradients(plain_temporal_attention, here, heads, window)
            backend = "triton" if device == "cuda" else "torch"
            found = _with_gradients(temporal_attention, here, heads, window, backend)
            name = f"kernel, B {batch}, T {frames}, P {positions:,}, {heads} x {size}, {str(dtype)[6:]}"
            parts = ("", ", d x", ", d gamma", ", d beta", ", d qkv", ", d proj", ", d bias")
            for part, ours, plain, exact in zip(parts, found, twin, expected, strict=True):
                error, limit = relative(ours, exact), 2 * relative(plain, exact) + 1e-6
                rows.append({"what": name + part, "error": error, "limit": limit})
    return rows


def _with_gradients(function: Callable[..., torch.Tensor], tensors: list[torch.Tensor], *rest: object) -> tuple:
    inputs = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*inputs, *rest)
    loss = out.double().sin().sum() / inputs[0].shape[:3].numel() ** 0.5  # so that no sum overflows float16
    return out, *torch.autograd.grad(loss, inputs)


def check_matching(device: str) -> list[harness.Row]:
    torch.manual_seed(0)
    features = F.normalize(torch.randn(2, 6, 64, 20, 24, dtype=torch.double), dim=2)
    queries = torch.rand(2, 50, 3, dtype=torch.double) * torch.tensor([0, 96, 80])
    results = []
    for place, dtype in (("cpu", torch.double), (device, torch.float)):
        inputs = features.to(place, dtype).detach().clone().requires_grad_()
        tracks = soft_argmax_track(inputs, queries.to(place, dtype), (80, 96))
        (tracks.xy.sin().sum() + tracks.similarity.sum()).backward()
        results.append((tracks.xy.detach(), inputs.grad))
    names = ("matching, tracks", "matching, gradients")
    rows = [_checked(what, results[1][i], results[0][i], "float32") for i, what in enumerate(names)]
    offloaded = soft_argmax_track(features.float(), queries.float().to(device), (80, 96)).xy
    return [*rows, _checked("matching, features on the host", offloaded, results[0][0], "float32")]


@torch.no_grad()
def check_tracks(device: str) -> list[harness.Row]:
    """Refined positions, correlations and confidences, and labels carried through a clip: of the same features."""
    clip = make_clip(5, frames=6, size=(128, 128))
    model = ChronoBackbone.from_pretrained("chrono-tiny")
    video, queries = clip.frames[None], grid_queries(8, (128, 128), t=2)
    features = model(video)
    masks = (torch.arange(128) < 64).float().expand(1, 1, 128, 128)
    found = []
    for place in ("cpu", device):
        model = model.to(place)
        options = {"features": features.to(place), "refine": "photometric", "confidence": True}
        tracks = model.track(video.to(place), queries.to(place), **options)
        labels = propagate_labels(features.to(place), masks.to(place))
        found.append((tracks.xy, tracks.correlation, tracks.confidence, labels))
    names = ("refined positions", "correlations", "confidences", "propagated labels")
    return [_checked(what, ours, cpu, "tf32") for what, cpu, ours in zip(names, *found, strict=True)]


def check_clips(device: str) -> list[harness.Row]:
    rows = []
    for scene in ("raycast", "layers"):
        cpu, gpu = (make_clip(3, frames=4, scene=scene, device=d) for d in ("cpu", device))
        rows.append(_checked(f"{scene} clips, tracks", gpu.xy, cpu.xy, "tf32"))
        rows.append(_checked(f"{scene} clips, pictures", gpu.frames, cpu.frames, "tf32"))
    return rows


def _checked(what: str, out: torch.Tensor, reference: torch.Tensor, kind: str) -> harness.Row:
    return {"what": what, "error": relative(out, reference), "limit": TOLERANCE[kind]}


@torch.inference_mode()
def spatial_backends(device: str, repeats: int) -> list[harness.Row]:
    """PyTorch's attention kernels at the shapes of ViT-S and ViT-B at a 64 x 64 grid."""
    rows = []
    for heads in (6, 12):
        q, k, v = (torch.randn(24, heads, 4097, 64, device=device, dtype=torch.bfloat16) for _ in range(3))

        def attend(backend: SDPBackend | None, q=q, k=k, v=v) -> torch.Tensor:
            if backend is None:
                return F.scaled_dot_product_attention(q, k, v)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        runs = {"PyTorch's choice": lambda attend=attend: attend(None)}
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            try:
                attend(backend)
                runs[backend.name] = lambda attend=attend, backend=backend: attend(backend)
            except RuntimeError as error:
                rows.append({"what": f"{heads} heads, {backend.name}", "note": str(error).splitlines()[0][:80]})
        measured = harness.side_by_side(runs, device, repeats)
        rows += [times.row(f"{heads} heads, {name}", 24) for name, times in measured.items()]
    return rows


@torch.inference_mode()
def temporal_backends(device: str, repeats: int) -> list[harness.Row]:
    """The temporal attention by the kernel and by its twin, from one frame to long clips."""
    rows, wins, winning = [], 0, device == "cuda"
    model = adapters.random_model("small", 64, device, torch.bfloat16)
    mixer = model.adapters["0"].mixer
    for frames in (1, 2, 4, 8, 24, 48, 100):
        x = torch.randn(1, frames, 16, 16, 128, device=device, dtype=torch.bfloat16)

        def mix(backend: str, x: torch.Tensor = x) -> torch.Tensor:
            mixer.backend = backend
            return mixer(x)

        runs = {b: lambda b=b, mix=mix: mix(b) for b in (("torch", "triton") if device == "cuda" else ("torch",))}
        measured = harness.side_by_side(runs, device, 4 * repeats)
        medians = {f"{name}, ms": 1000 * times.median for name, times in measured.items()}
        rows.append({"frames": frames, "rows": frames * 256, **medians})
        winning = winning and measured["triton"].over(measured["torch"]) < WINS
        wins = frames * 256 if winning else wins
    return [
        *rows,
        {"frames": "enter in ops/temporal_attention.py", "rows": f"MEASURED_WINS[capability, bfloat16] = {wins}"},
    ]


def tiny_speeds(device: str, repeats: int) -> list[harness.Row]:
    model = ChronoBackbone.from_pretrained("chrono-tiny").to(device)
    video = torch.randint(0, 256, (1, 24, 3, 256, 256), dtype=torch.uint8, device=device)
    queries = grid_queries(16, (256, 256)).to(device)
    runs = {
        "chrono-tiny features, 24 frames at 256 x 256": torch.no_grad()(lambda: model(video)),
        "chrono-tiny tracks of 256 points, features included": lambda: model.track(video, queries),
        "synthetic video, 16 frames at 256 x 256": lambda: make_clip(1, frames=16, size=(256, 256), device=device),
    }
    measured = harness.side_by_side(runs, device, repeats)
    return [times.row(name, unit="ms") for name, times in measured.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=harness.RESULTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--part", choices=("checks", "benchmarks"), help="default: both")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script")
    args = parser.parse_args()
    device, repeats, small = args.device, args.repeats, args.small
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    start = time.perf_counter()

    bad = []
    checks = {
        "kernel": check_kernel,
        "matching": check_matching,
        "tracks": check_tracks,
        "clips": check_clips,
        "features": check_features,
    }
    for name, check in checks.items() if args.part != "benchmarks" else ():
        try:
            rows = check(device)
            harness.report(f"gpu_checks_{name}", device, {"Relative errors": rows}, args.out)
            bad += [row["what"] for row in rows if not row["error"] < row["limit"]]
        except Exception as error:
            bad.append(f"{name} ({type(error).__name__}: {error})")
        print(f"\n{len(bad)} failures up to here, {time.perf_counter() - start:.0f} s: {'; '.join(bad)}", flush=True)

    # Each benchmark is written as it ends, so that one that fails takes nothing with it.
    sizes = [(8, 2)] if small else [(64, 24), (32, 24)]
    counts = [16] if small else [256, 1024, 4096, 100_000]
    steps: dict[str, Callable[[], dict[str, list[harness.Row]]]] = {
        "temporal_attention": lambda: {"Temporal attention": temporal_backends(device, repeats)},
        "adapters": lambda: adapters.measure(
            device, repeats, vit="small", sizes=sizes, dtype=dtype, compiled=not small
        ),
        "adapters_one_frame": lambda: adapters.measure(
            device, 3 * repeats, vit="small", sizes=[(8 if small else 32, 1)], dtype=dtype, compiled=False
        ),
        "matching": lambda: matching.measure(
            device,
            repeats,
            [(16, 4)] if small else [(1024, 100), (256, 100)],
            [(16, 4)] if small else [(256, 24), (1024, 24)],
        ),
        "end_to_end": lambda: end_to_end.measure(device, repeats, *sizes[0], counts, dtype),
        "tiny": lambda: tiny.measure(device, repeats, 4 if small else 48),
        "chrono_tiny": lambda: {"chrono-tiny": tiny_speeds(device, repeats)},
        "refinement": lambda: refinement.measure(device, repeats, [4] if small else [16], 4 if small else 48),
        "roofline": lambda: roofline.measure(device, repeats, "small", *sizes[0], dtype),
        "long_video": lambda: long_video.measure(device, [20, 40] if small else [100, 500, 2000], 8 if small else 64),
    }
    if device == "cuda":
        spatial = {"spatial_attention": lambda: {"Spatial attention, bfloat16": spatial_backends(device, repeats)}}
        steps = {**spatial, **steps}
    for name, step in steps.items() if args.part != "checks" else ():
        try:
            harness.report(name, device, step(), args.out)
        except Exception as error:
            bad.append(name)
            print(f"\n{name} failed: {type(error).__name__}: {error}", flush=True)
        print(f"\n{time.perf_counter() - start:.0f} s so far", flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    if bad:
        raise SystemExit(f"failed: {', '.join(bad)}")


if __name__ == "__main__":
    main()

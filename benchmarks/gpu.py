"""Everything to run where there is a GPU: `python -m benchmarks.gpu [--out FOLDER]`, about two minutes.

Checks that every path gives on the GPU what it gives on the CPU, then times features, matching, synthetic videos and
training. Prints a table and writes gpu.json. `--device cpu` tries the script itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import chrono_features
from chrono_features import ChronoBackbone, ChronoConfig, grid_queries, soft_argmax_track
from chrono_features.training.data import SyntheticBatches
from chrono_features.training.loop import Trainee
from chrono_features.training.recipes import TINY
from chrono_features.training.synthetic import make_clip


def relative(out: torch.Tensor, reference: torch.Tensor) -> float:
    out, reference = out.double().cpu(), reference.double().cpu()
    return float((out - reference).norm() / reference.norm())


@torch.no_grad()
def check_features(device: str) -> dict[str, float]:
    """Relative errors against float64 on the CPU, every norm and mixer, and autocast."""
    errors = {}
    video = torch.rand(2, 5, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    for norm in ("clip", "token"):
        for mixer in ("attention", "conv1d", "conv3d"):
            torch.manual_seed(0)
            vit = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
            model = ChronoBackbone(
                ChronoConfig("vit_tiny_patch16_224", vit, grid=(9, 10), norm=norm, mixer=mixer, adapter_channels=32)
            )
            for adapter in model.adapters.values():
                torch.nn.init.normal_(adapter.conv_out.weight, std=0.5)
            reference = model.double()(video.double())
            model = model.float().to(device)
            errors[f"features, {norm}, {mixer}"] = relative(model(video.to(device)), reference)
            with torch.autocast(device, torch.bfloat16):
                errors[f"features, {norm}, {mixer}, bf16 autocast"] = relative(model(video.to(device)), reference)
    return errors


def check_matching(device: str) -> dict[str, float]:
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(2, 6, 64, 20, 24, dtype=torch.double), dim=2)
    queries = torch.rand(2, 50, 3, dtype=torch.double) * torch.tensor([0, 96, 80])
    results = []
    for place, dtype in (("cpu", torch.double), (device, torch.float)):
        inputs = features.to(place, dtype).detach().clone().requires_grad_()
        tracks = soft_argmax_track(inputs, queries.to(place, dtype), (80, 96))
        (tracks.xy.sin().sum() + tracks.similarity.sum()).backward()
        results.append((tracks.xy.detach(), inputs.grad))
    return {
        f"matching, {what}": relative(results[1][i], results[0][i]) for i, what in enumerate(("tracks", "gradients"))
    }


def check_clips(device: str) -> dict[str, float]:
    errors = {}
    for scene in ("raycast", "layers"):
        cpu, gpu = (make_clip(3, frames=4, scene=scene, device=d) for d in ("cpu", device))
        errors[f"{scene} clips, tracks"] = relative(gpu.tracks, cpu.tracks)
        errors[f"{scene} clips, pictures"] = relative(gpu.video, cpu.video)
    return errors


def seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """Median over repeats, after a warm-up, with the device's work awaited."""
    times = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start if i >= 2 else float("nan"))
    return statistics.median(times[2:])


def speeds(device: str, repeats: int) -> dict[str, float]:
    model = ChronoBackbone.from_pretrained("chrono-tiny").to(device)
    video = torch.randint(0, 256, (1, 24, 3, 256, 256), dtype=torch.uint8, device=device)
    queries = grid_queries(16, (256, 256)).to(device)
    stage = dataclasses.replace(TINY.stages[1], steps=1)
    batch = SyntheticBatches(stage, None, device=device)[0]
    trainee = Trainee(ChronoBackbone(TINY.config)).to(device).train()

    def train_step() -> None:
        trainee(batch, stage)["total"].backward()

    with torch.no_grad():
        features = seconds(lambda: model(video), device, repeats)
    return {
        "chrono-tiny features, frames/s at 256 x 256": 24 / features,
        "chrono-tiny tracks, points/s (256 points, features included)": 256
        / seconds(lambda: model.track(video, queries), device, repeats),
        "synthetic videos, frames/s at 256 x 256": 16
        / seconds(lambda: make_clip(1, frames=16, size=(256, 256), device=device), device, repeats),
        "training, clips/s (8 frames at 192 x 192)": 1 / seconds(train_step, device, repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    errors = {**check_features(args.device), **check_matching(args.device), **check_clips(args.device)}
    measured = speeds(args.device, args.repeats)
    name = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    about = {
        "device": name,
        "versions": {"chrono_features": chrono_features.__version__, "torch": torch.__version__},
        "date": datetime.date.today().isoformat(),
    }
    print(f"{name}, torch {torch.__version__}\n\n| relative error against the CPU | |\n|---|---|")
    print("\n".join(f"| {what} | {error:.1e} |" for what, error in errors.items()))
    print("\n| speed | |\n|---|---|")
    print("\n".join(f"| {what} | {value:,.1f} |" for what, value in measured.items()))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu.json").write_text(json.dumps({**about, "errors": errors, "speeds": measured}, indent=1) + "\n")
    if bad := [what for what, error in errors.items() if not error < (0.05 if "bf16" in what else 5e-3)]:
        raise SystemExit(f"too far from the CPU: {', '.join(bad)}")


if __name__ == "__main__":
    main()

"""Peak memory of matching beyond inputs and outputs: `python -m benchmarks.matching_memory` (Linux, CPU).

64 frames x 64 x 64 cells x 384 channels; the similarity volume of 1,024 queries would be 1.07 GB.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from chrono_features import soft_argmax_track

MB = 1e6


def resident(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / MB


def reset_peak() -> float:
    """Sets the peak to what is resident now, and returns that."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def main() -> None:
    features = torch.nn.functional.normalize(torch.randn(1, 64, 384, 64, 64), dim=2).requires_grad_()
    gradient = features.numel() * features.element_size() / MB
    soft_argmax_track(features[:, :1].detach(), torch.zeros(1, 4, 3), (256, 256))  # libraries load what they need
    print("| queries | forward, MB | with backward, MB, beyond the gradient |\n|---|---|---|")
    for count in (1024, 4096):
        queries = torch.rand(1, count, 3) * torch.tensor([0.0, 256.0, 256.0])
        queries[..., 0] = torch.randint(0, 64, (1, count))
        before = reset_peak()
        tracks = soft_argmax_track(features, queries, (256, 256))
        outputs = sum(v.numel() * v.element_size() for v in (tracks.xy, tracks.similarity)) / MB
        forward = resident("VmHWM") - before - outputs
        (tracks.xy.sum() + tracks.similarity.sum()).backward()
        backward = resident("VmHWM") - before - outputs - gradient
        print(f"| {count:,} | {forward:.0f} | {max(forward, backward):.0f} |", flush=True)
        features.grad = None


if __name__ == "__main__":
    main()

"""Memory and time against the length of a clip: `python -m benchmarks.speed.long_video [--frames 100 500 2000]`.

ViT-S/14 with adapters at a 16 x 16 grid, in chunks. Peak memory is what is taken beyond the video; the last column
leaves out the stream of tokens and the features, which grow with the clip and can be offloaded. Every length runs in a
process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch

from .. import harness
from .adapters import random_model

GRID, IMAGE = 16, 128


@torch.no_grad()
def one(frames: int, chunk: int, offload: str | None, device: str) -> harness.Row:
    """A row of the table for one length."""
    model = random_model("small", GRID, device, torch.float32)
    video = torch.randint(0, 256, (1, frames, 3, IMAGE, IMAGE), dtype=torch.uint8)
    model(video[:, :chunk], max_frames_in_memory=chunk)  # warm-up, which libraries keep some memory of
    start = time.perf_counter()
    peak, features = harness.peak_bytes(lambda: model(video, max_frames_in_memory=chunk, offload=offload), device)
    harness.wait(device)
    seconds = time.perf_counter() - start
    tokens = 1 + GRID * GRID
    stream = frames * tokens * model.vit.embed_dim * 4
    row: harness.Row = {"frames": frames, "ms a frame": 1000 * seconds / frames, "peak MB": peak / 1e6}
    return {**row, "stream MB": stream / 1e6, "features MB": harness.size(features) / 1e6,
            "peak MB beyond": (peak - stream - harness.size(features)) / 1e6}  # fmt: skip


def measure(device: str, lengths: list[int], chunk: int, offload: str | None = None) -> dict[str, list[harness.Row]]:
    rows = []
    for frames in lengths:
        call = [
            sys.executable,
            "-m",
            "benchmarks.speed.long_video",
            "--device",
            device,
            "--chunk",
            str(chunk),
            "--one",
            str(frames),
        ]
        call += ["--offload", offload] if offload else []
        printed = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(printed.splitlines()[-1]))
        rows[-1]["to the first"] = rows[-1]["ms a frame"] / rows[0]["ms a frame"]
    place = f"stream and features: {offload or 'memory'}"
    return {f"ViT-S, {GRID} x {GRID} grid, {chunk} frames at a time, float32, {place}": rows}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--offload", help="'cpu' or a folder")
    parser.add_argument("--one", type=int, help="measure this length here and print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.chunk, args.offload, args.device)))
    else:
        tables = measure(args.device, args.frames, args.chunk, args.offload)
        harness.report("long_video", args.device, tables, args.out)


if __name__ == "__main__":
    main()

"""What the plugin weighs: the wheel without weights and demo clip, and what importing it costs over PyTorch alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

LARGEST_WHEEL = 400_000  # bytes
ASSETS = "chrono_features/assets/"
ROUNDS = 3


def wheel_bytes() -> int:
    """Size of the wheel's files, compressed, without its assets."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, "."]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return sum(f.compress_size for f in archive.infolist() if not f.filename.startswith(ASSETS))


def seconds(statement: str) -> float:
    """Wall time of a statement in a process of its own, the fastest of a few."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    size = wheel_bytes()
    print(f"wheel without assets: {size / 1000:.0f} kB")
    if size >= LARGEST_WHEEL:
        sys.exit(f"expected less than {LARGEST_WHEEL / 1000:.0f} kB")
    alone = seconds("import torch")
    print(f"import torch: {alone:.2f} s")
    for name in ("soft_argmax_track", "ChronoBackbone"):
        added = seconds(f"from chrono_features import {name}") - alone
        print(f"from chrono_features import {name}: {added:+.2f} s")


if __name__ == "__main__":
    main()

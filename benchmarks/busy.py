"""What a busy machine costs, by how OpenMP's threads wait for each other: `python -m benchmarks.busy`.

Threads that spin while they wait keep the processor from the one that they wait for, when others want it too. The time
of refined tracks by `chrono-tiny`, in processes of their own, beside as many other busy processes as there are processors, and
beside none.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from . import harness

FRAMES = 24
WAYS = {"as it is": {}, "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"}}
TIMED = f"""
import time
from chrono_features import ChronoBackbone, grid_queries
from chrono_features.training.synthetic import make_clip
model = ChronoBackbone.from_pretrained("chrono-tiny")
video = make_clip(1, frames={FRAMES}, size=(256, 256)).video[None]
queries = grid_queries(16, (256, 256))
model.track(video[:, :4], queries, refine="photometric", confidence=True)
start = time.perf_counter()
model.track(video, queries, refine="photometric", confidence=True)
print(time.perf_counter() - start)
"""


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def measure(repeats: int) -> list[harness.Row]:
    processors = len(os.sched_getaffinity(0))
    times = {(others, way): harness.Times() for others in (0, processors) for way in WAYS}
    for _ in range(repeats):
        for (others, way), found in times.items():
            with busy(others):
                out = subprocess.check_output([sys.executable, "-c", TIMED], env={**os.environ, **WAYS[way]})
            found.rounds.append(float(out))
    return [
        {**time.row(way, per=FRAMES), "other processes": others, "to as it is": time.over(times[others, "as it is"])}
        for (others, way), time in times.items()
    ]


def main() -> None:
    args = harness.parser(__doc__).parse_args()
    harness.report(
        "busy",
        "cpu",
        {f"{FRAMES} frames at 256 x 256, 256 tracks refined, confidence, float32": measure(args.repeats)},
        args.out,
    )


if __name__ == "__main__":
    main()

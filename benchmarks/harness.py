"""What the benchmarks share: timing side by side, peak memory, tables, and results with what they were measured on."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch

import chrono_features

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


@dataclass
class Times:
    """Seconds that a run took, round by round."""

    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def over(self, other: Times) -> float:
        """Median over rounds of the ratio to another run's time in the same round, which drifts cannot move."""
        return statistics.median(a / b for a, b in zip(self.rounds, other.rounds, strict=True))

    def row(self, name: str, per: int = 1, unit: str = "ms a frame") -> Row:
        """A row of a table: median, least and most, in milliseconds over `per`."""
        median, least, most = (1000 * v / per for v in (self.median, min(self.rounds), max(self.rounds)))
        return {"what": name, unit: median, "least": least, "most": most}


def side_by_side(runs: Mapping[str, Callable[[], object]], device: str, repeats: int) -> dict[str, Times]:
    """Times of each run. The runs take turns, so that a busy machine is busy for all."""
    times = {name: Times() for name in runs}
    for run in runs.values():  # warm-up: kernels, compilation, caches
        seconds(run, device)
        if device == "cuda":
            seconds(run, device)
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].rounds.append(seconds(run, device))
    return times


def seconds(run: Callable[[], object], device: str) -> float:
    """Seconds of one run, the device's work awaited."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def peak_bytes(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Peak memory that a run takes beyond what was there before, and what the run returned (Linux for CPUs)."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, result
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not to serve the run unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident now
    before = _resident("VmRSS")
    result = run()
    return _resident("VmHWM") - before, result


def _resident(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def size(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def about(device: str) -> dict[str, Any]:
    """What a result was measured on."""
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        name = f"{torch.cuda.get_device_name()} (capability {major}.{minor})"
    else:
        name = f"{device}, {_processor()}, {torch.get_num_threads()} threads"
    versions = {"chrono_features": chrono_features.__version__, "torch": torch.__version__, "timm": timm.__version__}
    return {"device": name, "versions": versions, "date": datetime.date.today().isoformat()}


def _processor() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"model name\s*:\s*(.+)", info)
    wide = next((w for w in ("avx512f", "avx2") if w in info), platform.machine())
    return f"{name[1] if name else platform.machine()} with {wide}"


def table(rows: Iterable[Row]) -> str:
    """Rows as a Markdown table, one column for every key."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--out", type=Path, default=RESULTS, help="folder for the .json")
    return arguments


def report(name: str, device: str, tables: Mapping[str, list[Row]], out: Path) -> None:
    """Prints the tables and writes them to `NAME_DEVICE.json`, with what they were measured on."""
    facts = about(device)
    print(f"\n# {name}: {facts['device']}, torch {facts['versions']['torch']}, {facts['date']}")
    for title, rows in tables.items():
        print(f"\n{title}\n\n{table(rows)}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}_{device}.json").write_text(json.dumps({**facts, "tables": tables}, indent=1) + "\n")

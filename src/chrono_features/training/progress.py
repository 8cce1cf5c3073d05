"""What a training run shows: a bar in a terminal, a line per step anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..extras import require

Show = Callable[[str, int, int, str], None]  # what, steps done, of how many, and what they gave


@contextmanager
def progress(enabled: bool) -> Iterator[Show]:
    """Yields a function to call after every step; it shows nothing unless `enabled`."""
    console = require("rich.console", "train").Console()
    if not (enabled and console.is_terminal):
        start = time.monotonic()

        def line(what: str, done: int, total: int, text: str) -> None:
            if enabled:
                print(f"{what} {done}/{total}  {text}  {time.monotonic() - start:.1f} s", flush=True)

        yield line
        return
    rich = require("rich.progress", "train")
    columns = rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeElapsedColumn(), rich.TimeRemainingColumn()
    with rich.Progress(rich.TextColumn("{task.description}"), *columns, console=console) as bars:
        task = bars.add_task("", total=None)

        def move(what: str, done: int, total: int, text: str) -> None:
            bars.update(task, description=f"{what}  {text}".rstrip(), completed=done, total=total)

        yield move

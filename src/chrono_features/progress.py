"""Progress on stderr: a line drawn by rich, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from .extras import require


class Update(Protocol):
    """Tells how many steps are done, of how many, and what the last one gave."""

    def __call__(self, done: int, total: int | None = None, text: str = "") -> None: ...


@contextmanager
def progress(
    what: str,
    *,
    counted: bool = True,
    enabled: bool = True,
    line_per_step: bool = False,
) -> Iterator[Update]:
    """Shows a line while the block runs: a spinner, `what`, and the time.

    Args:
        what: What is done, as it is shown.
        counted: Whether steps are counted: the line then has a bar, too.
        enabled: Whether anything is shown.
        line_per_step: Whether each step prints a line where stderr is no terminal, for logs of long runs.

    Yields:
        A function to call after each step.
    """
    rich = require("rich.progress", "cli")
    console = require("rich.console", "cli").Console(stderr=True)
    if line_per_step and enabled and not console.is_terminal:
        yield plain_lines(what, console.file.write)
        return
    bar = (rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeRemainingColumn()) if counted else ()
    columns = (rich.SpinnerColumn(), rich.TextColumn("{task.description}", markup=False), *bar)
    with rich.Progress(*columns, rich.TimeElapsedColumn(), console=console, disable=not enabled) as lines:
        task = lines.add_task(what, total=None)

        def update(done: int, total: int | None = None, text: str = "") -> None:
            lines.update(task, description=f"{what}  {text}".rstrip(), completed=done, total=total)

        yield update


def plain_lines(what: str, write: Callable[[str], object]) -> Update:
    """Writes a line per step, with the time passed and the time left at the mean pace of the steps since the first."""
    start = time.monotonic()
    first: int | None = None

    def update(done: int, total: int | None = None, text: str = "") -> None:
        nonlocal first
        first = done if first is None else first
        passed = time.monotonic() - start
        parts = [f"{what} {done}" if total is None else f"{what} {done}/{total}", text, f"{passed:.1f} s"]
        if total is not None and done > first:
            left = timedelta(seconds=round(passed / (done - first) * (total - done)))
            parts.append(f"{left} left")
        write("  ".join(filter(None, parts)) + "\n")

    return update

"""Processes that are killed while they write: nothing that was there is lost, and the next run does the rest."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from fuzzing import LONG
from killing import COMMANDS, in_process

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
pytestmark = pytest.mark.slow

KILLS = 20 if LONG else 1  # at changes of files, and, in the long form, as many at any moment


def names(folder: Path) -> list[str]:
    found = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(name for name in found if "/events." not in name)  # TensorBoard's have the time in their names


def moments(changes: int, lasts: float) -> list[tuple[int, bool, float | None]]:
    """When to kill: before or after a change of the folder's entries, or after some seconds."""
    draw = random.Random(0)
    at_changes: list[tuple[int, bool, float | None]] = [
        (k, after, None) for k in range(1, changes + 1) for after in (False, True)
    ]
    chosen = at_changes if len(at_changes) <= KILLS else draw.sample(at_changes, KILLS)
    return chosen + ([(0, False, draw.uniform(0, lasts)) for _ in range(2 * KILLS - len(chosen))] if LONG else [])


@pytest.mark.parametrize("name", COMMANDS)
def test_kills(name: str, tmp_path: Path) -> None:
    before, done = tmp_path / "before", tmp_path / "done"
    before.mkdir()
    in_process(name, "prepare", "earlier", folder=before)
    (before / "notes.txt").write_text("mine")
    if (before / "out").is_dir():
        (before / "out" / "notes.txt").write_text("mine")
    mine = {path: (before / path).read_bytes() for path in names(before) if path.endswith("notes.txt")}
    overwritten = any(path.startswith("out") for path in names(before))
    old = in_process(name, "read", folder=before)[1] if overwritten else None
    shutil.copytree(before, done)
    start = time.monotonic()
    changes = in_process(name, "run", folder=done)[0]
    lasts = time.monotonic() - start
    new = in_process(name, "read", folder=done)[1]
    for i, (kill_at, after, seconds) in enumerate(moments(changes, lasts)):
        folder = shutil.copytree(before, tmp_path / str(i))
        killed = in_process(name, "run", folder=folder, kill_at=kill_at, after=after, seconds=seconds) is None
        assert killed or seconds is not None
        assert {path: (folder / path).read_bytes() for path in mine} == mine
        if overwritten:  # readable at any moment, as it was or as it will be
            assert in_process(name, "read", folder=folder)[1] in (old, new)
        assert in_process(name, "run", "read", folder=folder)[1] == new
        assert names(folder) == names(done)
        shutil.rmtree(folder)

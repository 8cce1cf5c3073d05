"""The logs of a run, `log.jsonl` and TensorBoard's, which hold each step once however often the run is stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import naming, open_regular, write_beside
from .recipes import Stage

LOG_FILE, TENSORBOARD = "log.jsonl", "tensorboard"


class RunLog:
    """Starts new logs, or takes from old ones what will be done again.

    Args:
        accelerator: Of the run; its main process writes.
        out: Folder of the run.
        stages: All stages of its recipe.
        resumed: Index of the stage and number of the step that a checkpoint is of; None for a new run.
    """

    def __init__(
        self,
        accelerator: Any,
        out: Path,
        stages: Sequence[Stage],
        resumed: tuple[int, int] | None,
    ) -> None:
        self.accelerator = accelerator
        self.path = out / LOG_FILE
        self.stages = stages
        out.mkdir(parents=True, exist_ok=True)
        if resumed is None:
            options = {}
            if accelerator.is_main_process:
                self.path.unlink(missing_ok=True)
                shutil.rmtree(out / TENSORBOARD, ignore_errors=True)
        else:
            options = {"purge_step": self._steps_before(resumed[0]) + resumed[1] + 1}
            if accelerator.is_main_process and os.path.lexists(self.path):
                self._drop_after(*resumed)
        accelerator.init_trackers(TENSORBOARD, init_kwargs={"tensorboard": options})

    def write(self, stage: int, step: int, values: dict[str, float]) -> None:
        """Logs values of a step of the stage at this index."""
        name = self.stages[stage].name
        total_step = self._steps_before(stage) + step
        self.accelerator.log({f"{name}/{key}": value for key, value in values.items()}, step=total_step)
        if self.accelerator.is_main_process:
            line = {"stage": name, "step": step, **{key: round(value, 5) for key, value in values.items()}}
            descriptor = open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # a link may lead to any file
            with naming(self.path), os.fdopen(descriptor, "a") as file:
                file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _steps_before(self, stage: int) -> int:
        return sum(earlier.steps for earlier in self.stages[:stage])

    def _drop_after(self, stage: int, step: int) -> None:
        """Keeps the lines up to a step of a stage: the rest was logged after the checkpoint."""
        names = [stage.name for stage in self.stages]
        kept = []
        with os.fdopen(open_regular(self.path, os.O_RDONLY), "rb") as file:
            for line in file:
                try:
                    values = json.loads(line)
                    place = (names.index(values["stage"]), values["step"])
                    is_done = place <= (stage, step)
                except (ValueError, KeyError, TypeError):  # a process was killed while it wrote
                    continue
                if is_done:
                    kept.append(line)
        with write_beside(self.path) as target:
            target.writelines(kept)

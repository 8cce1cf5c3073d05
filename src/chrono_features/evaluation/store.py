"""Results on disk: one file that grows from run to run, and never mixes what does not belong together."""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import write_beside
from .summary import pooled_reliability, summarise

Record = dict[str, Any]
_KEY = ("data", "video", "mode", "tracker")


class Store:
    """The records in a file of results, and in the parts that interrupted processes have left beside it.

    Every record is appended to this process's part at once; `finish` puts all of them into the file, whole or not
    at all, and removes the parts.

    Args:
        path: The file of results, JSON.
        header: What records of this run are measured on: "about", "protocol", and by name "data" and "trackers".
        process: The number of this process.

    Raises:
        ValueError: The file or a part holds something else, or results measured on something else.
        FileNotFoundError: Its folder is missing.
    """

    def __init__(self, path: str | os.PathLike[str], header: dict[str, Any], process: int = 0) -> None:
        self.path, self.header = Path(path), header
        if not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(f"out={self.path}: the folder {self.path.absolute().parent} does not exist")
        self.records: dict[tuple[str, ...], Record] = {}
        self.skipped: dict[tuple[str, str], str] = {}
        self.totals: dict[str, int | None] = {}
        self._read()
        self.part = self.path.with_name(f".{self.path.name}.part{process}")
        self._begun = False

    def has(self, **key: str) -> bool:
        """Whether there is a record of this `data`, `video`, `mode` and `tracker`."""
        return tuple(key[name] for name in _KEY) in self.records

    def add(self, record: Record) -> None:
        """Keeps a record."""
        self._keep(record)
        self._write(json.dumps(record))

    def skip(self, data: str, video: str, reason: str) -> None:
        """Notes that a video cannot be measured, and why."""
        self.skipped[data, video] = reason
        self._write(json.dumps({"skip": [data, video, reason]}))

    def finish(self) -> dict[str, Any]:
        """Writes the file with the records of all processes and returns what is in it."""
        self._read()
        results = self.results()
        with write_beside(self.path) as file:
            file.write((json.dumps(results, indent=1) + "\n").encode())
        for part in self._parts():
            part.unlink()
        return results

    def results(self) -> dict[str, Any]:
        """What the file holds: header, skipped videos, means by group, and the records in a fixed order."""
        data = {
            name: {**about, "total": self.totals.get(name, about.get("total")), "skipped": self._skipped_of(name)}
            for name, about in self.header["data"].items()
        }
        records = [self.records[key] for key in sorted(self.records)]
        derived = {
            "summary": summarise(records, list(self.header["trackers"])),
            "reliability": pooled_reliability(records),
        }
        return {**self.header, "data": data, **derived, "records": records}

    def _skipped_of(self, data: str) -> dict[str, str]:
        return {video: reason for (name, video), reason in sorted(self.skipped.items()) if name == data}

    def _keep(self, record: Record) -> None:
        self.records[tuple(record[name] for name in _KEY)] = record

    def _parts(self) -> list[Path]:
        return sorted(self.path.absolute().parent.glob(f".{glob.escape(self.path.name)}.part*"))

    def _write(self, line: str) -> None:
        # A part that holds no record yet stops nobody. The line before may have been broken off.
        start = "" if self._begun else "\n" + json.dumps({"header": self.header}) + "\n"
        with open(self.part, "a") as file:
            file.write(start + line + "\n")
        self._begun = True

    def _read(self) -> None:
        if self.path.exists():
            try:
                saved = json.loads(self.path.read_text())
                records, data = saved["records"], saved["data"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"out={self.path} holds no results ({error!r}); expected another name") from error
            self._adopt(saved, self.path)
            for record in records:
                self._keep(record)
            for name, about in data.items():
                self.skipped |= {(name, video): reason for video, reason in about.get("skipped", {}).items()}
        for part in self._parts():
            for line in _whole_lines(part):
                if "header" in line:
                    self._adopt(line["header"], part)
                elif "skip" in line:
                    data_name, video, reason = line["skip"]
                    self.skipped[data_name, video] = reason
                else:
                    self._keep(line)

    def _adopt(self, saved: dict[str, Any], source: Path) -> None:
        """Takes over the data sets and trackers of earlier runs, if all that both know is the same."""
        for section in ("about", "protocol"):
            _check_same(section, self.header[section], saved.get(section, {}), source, whole=True)
        for section, ignored in (("data", {"total", "skipped", "path"}), ("trackers", set())):
            known = {k: _without(v, ignored) for k, v in saved.get(section, {}).items()}
            mine = self.header[section]
            _check_same(section, {k: _without(v, ignored) for k, v in mine.items()}, known, source, whole=False)
            first = {} if source == self.path else mine  # the file's order stays, that of parts need not
            self.header = {**self.header, section: {**first, **saved.get(section, {}), **mine}}


def _check_same(section: str, mine: dict[str, Any], saved: dict[str, Any], source: Path, whole: bool) -> None:
    mine = json.loads(json.dumps(mine))  # tuples are lists in files
    shared = mine.keys() | saved.keys() if whole else mine.keys() & saved.keys()
    for key in sorted(shared - {"date"}):
        if mine.get(key) != saved.get(key):
            got, expected = mine.get(key), saved.get(key)
            raise ValueError(
                f"{source} was measured with {section} {key} {expected}, and this is {got}; expected the same, or "
                "another --out"
            )


def _without(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in names}


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a part; one that was broken off while it was written is left out."""
    found = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found

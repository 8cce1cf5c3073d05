"""Results on disk: one file that grows from run to run, and never mixes what does not belong together."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any

from ..files import naming, open_regular, regular_target, write_beside
from .records import KEY, Record, check_results, parsed, part_lines
from .summary import pooled_reliability, summarise

MAY_CHANGE: dict[str, set[str]] = {"data": {"total", "skipped", "path"}, "trackers": set()}  # from run to run


class Store:
    """The records in a file of results, and in the parts that interrupted processes have left beside it.

    Every record is appended to this process's part at once; `finish` puts all of them into the file, whole or not
    at all, and removes the parts. A new part has an unpredictable name, and what is not a regular file of one
    name is never taken for a part: a link might lead to any file.

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
        regular_target(self.path)
        self._process = process
        self.records: dict[tuple[str, ...], Record] = {}
        self.skipped: dict[tuple[str, str], str] = {}
        self.totals: dict[str, int | None] = {}
        self._read()
        self._part: Path | None = None

    def has(self, **key: str) -> bool:
        """Whether there is a record of this `data`, `video`, `mode` and `tracker`."""
        return tuple(key[name] for name in KEY) in self.records

    def add(self, record: Record) -> None:
        """Keep a record."""
        self._keep(record)
        self._write(json.dumps(record))

    def skip(self, data: str, video: str, reason: str) -> None:
        """Note that a video cannot be measured, and why."""
        self.skipped[data, video] = reason
        self._write(json.dumps({"skip": [data, video, reason]}))

    def finish(self) -> dict[str, Any]:
        """Write the file with the records of all processes, and return what is in it."""
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
        self.records[tuple(record[name] for name in KEY)] = record

    def _parts(self, process: str = r"\d+") -> list[Path]:
        """The parts of one process, or of all, of this run and of others."""
        form = re.compile(re.escape(_part_prefix(self.path)) + process + r"(-[0-9a-f]{8})?")  # without: up to 0.4
        return sorted(p for p in self.path.absolute().parent.iterdir() if form.fullmatch(p.name) and _is_own(p))

    def _write(self, line: str) -> None:
        part, begun = self._opened_part()
        # Written late: a part without records would block other runs. The line before may have been broken off.
        start = "" if begun else "\n" + json.dumps({"header": self.header}) + "\n"
        with naming(self.path), os.fdopen(part, "a") as file:
            file.write(start + line + "\n")

    def _opened_part(self) -> tuple[int, bool]:
        """This process's part, and whether this run has written to it."""
        if self._part is not None:
            with contextlib.suppress(FileNotFoundError):  # another run has taken its records over
                return open_regular(self._part, os.O_WRONLY | os.O_APPEND), True
        elif older := self._parts(str(self._process)):
            self._part = older[0]
            return open_regular(self._part, os.O_WRONLY | os.O_APPEND), False
        self._part = self.path.with_name(f"{_part_prefix(self.path)}{self._process}-{secrets.token_hex(4)}")
        return open_regular(self._part, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL), False

    def _read(self) -> None:
        if self.path.exists():
            try:
                saved = parsed(self.path.read_bytes())
                check_results(saved)
            except ValueError as error:
                raise ValueError(f"out={self.path} holds no results ({error}); expected another name") from error
            self._adopt(saved, self.path)
            for record in saved["records"]:
                self._keep_known(record, f"out={self.path}")
            for name, about in saved["data"].items():
                self.skipped |= {(name, video): reason for video, reason in about.get("skipped", {}).items()}
        for part in self._parts():
            with open(open_regular(part, os.O_RDONLY), "rb") as file:
                data = file.read()
            try:
                lines = list(part_lines(data))
            except ValueError as error:
                expected = "expected a part of results. Name another --out, or remove it"
                raise ValueError(f"{part}: {error}; {expected}") from error
            for number, value in lines:
                self._take(value, part, number)

    def _take(self, value: dict[str, Any], part: Path, line: int) -> None:
        """Add what a line of a part holds."""
        if "header" in value:
            self._adopt(value["header"], part)
        elif "skip" in value:
            data, video, reason = value["skip"]
            self.skipped[data, video] = reason
        else:
            self._keep_known(value, f"{part}: line {line}")

    def _keep_known(self, record: Record, where: str) -> None:
        for key, section in (("data", "data"), ("tracker", "trackers")):
            if record[key] not in self.header[section]:
                raise ValueError(f"{where} has a record of {key} {record[key]!r}; expected one of its {section}")
        self._keep(record)

    def _adopt(self, saved: dict[str, Any], source: Path) -> None:
        """Take over the data sets and trackers of earlier runs, if all that both know is the same."""
        mine = json.loads(json.dumps(self.header))  # tuples are lists in files
        for section in ("about", "protocol"):
            theirs = saved.get(section, {})
            for key in sorted((mine[section].keys() | theirs.keys()) - {"date"}):
                _check_same(f"{section} {key}", mine[section].get(key), theirs.get(key), source)
        for section in ("data", "trackers"):
            theirs = saved.get(section, {})
            for name in sorted(mine[section].keys() & theirs.keys()):
                here = _without(mine[section][name], MAY_CHANGE[section])
                _check_same(f"{section} {name}", here, _without(theirs[name], MAY_CHANGE[section]), source)
            first = {} if source == self.path else mine[section]  # the file's order stays, that of parts need not
            self.header = {**self.header, section: {**first, **theirs, **self.header[section]}}


def _check_same(what: str, mine: Any, saved: Any, source: Path) -> None:
    if mine != saved:
        expected = "expected the same, or another --out"
        raise ValueError(f"{source} was measured with {what} {saved}, and this is {mine}; {expected}")


def _without(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def _part_prefix(path: Path) -> str:
    name = path.name
    if len(os.fsencode(name)) > 200:  # of the 255 bytes that a name may have
        name = f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return f".{name}.part"


def _is_own(path: Path) -> bool:
    """Whether it is a regular file that has no other name: what is appended to it reaches nothing else."""
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1

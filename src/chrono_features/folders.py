"""Writing several files into a folder so that a reader finds all of them new, or all of them old."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from .files import check_replaceable, folder_target, naming

STAGING = ".saving"  # in a folder that is being written
LOCK_FILE = ".lock"
LOCK_TIMEOUT = 600.0  # seconds; a model is written in a few


@contextmanager
def write_folder(path: str | os.PathLike[str], names: Sequence[str]) -> Iterator[Path]:
    """A folder for new files, which are renamed into the folder `path` in this order once all are written.

    Whatever else is in `path` stays, and so does `path` itself; it is made where there is none. Links instead of
    files are replaced, not followed. Meanwhile no other process writes there. One that is killed between two renames
    leaves the other files in `STAGING`.

    Raises:
        FileExistsError: `path` is a file, or one of `names` is no file.
        TimeoutError: Another process writes there and does not end.
        OSError: There is no space, or the like; the error names a file.
    """
    folder = folder_target(path)
    for name in names:
        check_replaceable(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        staging = folder / STAGING
        _remove(staging)
        staging.mkdir()
        try:
            with naming(folder / names[0]):
                yield staging
        except BaseException:
            _remove(staging)
            raise
        for name in names:
            if (staging / name).exists():
                os.replace(staging / name, folder / name)
        _remove(staging)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = folder / LOCK_FILE
    with ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(lock, timeout=LOCK_TIMEOUT))
        except TimeoutError as error:
            raise TimeoutError(f"{folder} is locked by another process that writes there ({lock})") from error
        try:
            yield
        finally:
            with suppress(OSError):  # on Windows the lock removes it
                os.unlink(lock)


def _remove(staging: Path) -> None:
    if staging.is_dir() and not staging.is_symlink():
        shutil.rmtree(staging)
    else:
        staging.unlink(missing_ok=True)

"""Writing files so that nothing is ever half-written, lost to a second writer or left behind for good."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed either
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
LOCK_TIMEOUT = 600.0  # seconds; a model is written in a few
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def write_beside(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` and renames it to `path` once everything is written.

    Raises:
        FileNotFoundError: The parent folder is missing.
        FileExistsError: `path` is a folder, a device or another thing that is no file.
        OSError: There is no space, or the like; the error names `path`.
    """
    with write_together([regular_target(path)]) as (file,):
        yield file


@contextmanager
def write_together(paths: Sequence[str | os.PathLike[str]]) -> Iterator[list[BinaryIO]]:
    """Like `write_beside` for several files, which are renamed in this order once all of them are written.

    A process that is killed between two renames leaves the rest beside their targets, see `leftovers`. What killed
    processes left of the same targets is removed. Links in the place of a target are replaced, not followed.
    """
    targets = [Path(path) for path in paths]
    for target in targets:
        _check_replaceable(target)
        _clear(target)
    with ExitStack() as stack:
        files = [stack.enter_context(_temporary(target)) for target in targets]
        with naming(targets[0]):
            yield files
            for file in files:
                file.flush()  # what is buffered may not fit
        _rename(files, targets)


@contextmanager
def locked_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder, made where there is none, in which no other process writes meanwhile.

    Raises:
        FileExistsError: `path` is a file.
        TimeoutError: Another process keeps it locked.
    """
    folder = folder_target(path)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, timeout=LOCK_TIMEOUT)
    try:
        lock.acquire()
    except Timeout as error:
        raise TimeoutError(f"{folder} is locked by another process that writes there ({lock.lock_file})") from error
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # on Windows the lock removes it
            os.unlink(lock.lock_file)
        lock.release()


def leftovers(path: str | os.PathLike[str]) -> list[Path]:
    """Temporary files of `path`: of processes that are writing it, or were killed while they did."""
    target = Path(path)
    start = _prefix(target)
    with contextlib.suppress(OSError):
        return [p for p in target.parent.iterdir() if p.name.startswith(start) and _is_temporary(p.name[len(start) :])]
    return []


def regular_target(path: str | os.PathLike[str]) -> Path:
    """The file that `path` stands for, through links; an error unless it can be written as a whole."""
    target = _resolved(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist")
    _check_replaceable(target)
    return target


def folder_target(path: str | os.PathLike[str]) -> Path:
    """The folder that `path` stands for, through links; an error where something else is in its place."""
    target = _resolved(path)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file; expected a folder or a new name")
    return target


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Has errors of a full disk, which name nothing, name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE and error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def open_regular(path: str | os.PathLike[str], flags: int) -> int:
    """A descriptor of a regular file: no link is followed, and no pipe or device is waited for.

    Raises:
        FileExistsError: Something else is in its place.
    """
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a pipe that nobody reads, a folder
            raise FileExistsError(f"{os.fspath(path)} is no regular file; expected to find none there") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileExistsError(f"{os.fspath(path)} is no regular file; expected to find none there")
    return descriptor


def _resolved(path: str | os.PathLike[str]) -> Path:
    target = None
    with contextlib.suppress(RuntimeError):  # how Python up to 3.12 tells of links in a circle
        target = Path(path).resolve()  # a link stays one
    if target is None or target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return target


def _check_replaceable(target: Path) -> None:
    if os.path.lexists(target) and not (target.is_file() or target.is_symlink()):
        raise FileExistsError(f"{target} is no regular file; expected a file or a new name")


def _prefix(target: Path) -> str:
    return f".{target.name[:40]}."  # names have at most 255 bytes


def _is_temporary(rest: str) -> bool:
    return len(rest) == 12 and rest.endswith(".tmp") and set(rest[:8]) <= set("0123456789abcdef")


@contextmanager
def _temporary(target: Path) -> Iterator[BinaryIO]:
    """A new file beside `target`, with the mode that the umask gives, removed at the end if it is still there."""
    while True:
        path = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}.tmp")
        with open(path, "xb") as file:
            try:
                _hold(file.fileno(), wait=True)
                if not path.exists():
                    continue  # `_clear` of another process was faster
                yield file
                return
            finally:
                with contextlib.suppress(OSError):  # what it still buffers did not fit, as was told before
                    file.close()
                path.unlink(missing_ok=True)


def _clear(target: Path) -> None:
    """Removes temporary files of `target` that no process is writing."""
    for path in leftovers(target):
        with contextlib.suppress(OSError):
            descriptor = open_regular(path, os.O_RDONLY)
            try:
                _hold(descriptor, wait=False)
                path.unlink()
            finally:
                os.close(descriptor)


def _hold(descriptor: int, wait: bool) -> None:
    """Marks a file as being written, until it is closed. OSError, unless `wait`, where another process has marked it.

    On Windows nothing is marked: a file that is open cannot be removed there.
    """
    if fcntl is not None:
        with contextlib.suppress(OSError) if wait else contextlib.nullcontext():  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _rename(files: Sequence[BinaryIO], targets: Sequence[Path]) -> None:
    try:
        for file, target in zip(files, targets, strict=True):
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(file.name, target)
    except BaseException:
        left = [(file.name, target) for file, target in zip(files, targets, strict=True) if os.path.exists(file.name)]
        if len(left) < len(files):  # an interrupt between two: new and old may not stand side by side
            for name, target in left:
                os.replace(name, target)
        raise

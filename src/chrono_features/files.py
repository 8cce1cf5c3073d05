"""Files that are safe to read, and written so that none is half-written, lost to a second writer or left behind."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed either
    fcntl = None  # type: ignore[assignment]

_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def write_beside(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` and renames it to `path` once everything is written.

    What killed processes left of the same file is removed.

    Raises:
        FileNotFoundError: The parent folder is missing.
        FileExistsError: `path` is a folder, a device or another thing that is no file.
        OSError: There is no space, or the like; the error names `path`.
    """
    target = regular_target(path)
    _clear(target)
    with naming(target), _temporary(target) as file:
        yield file
        if not file.closed:
            file.flush()  # what is buffered may not fit
        if fcntl is None:
            file.close()  # Windows renames no open file
        os.replace(file.name, target)


def check_regular(path: str | os.PathLike[str], expected: str) -> None:
    """Refuses to read what is no file with contents; reading a pipe would wait for ever.

    Raises:
        FileNotFoundError: There is nothing, or a link to nothing.
        ValueError: It is a folder, a pipe, a socket, a device or an empty file.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        what = "a link to nothing" if os.path.islink(path) else "no such file"
        raise FileNotFoundError(f"{os.fspath(path)}: {what}; expected {expected}") from None
    for test, what in _KINDS.items():
        if test(found.st_mode):
            raise ValueError(f"{os.fspath(path)} is {what}; expected {expected}")
    if not found.st_size:
        raise ValueError(f"{os.fspath(path)} is empty; expected {expected}")


def regular_target(path: str | os.PathLike[str]) -> Path:
    """The file that `path` stands for, through links; an error unless it can be written as a whole."""
    target = _resolved(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist")
    check_replaceable(target)
    return target


def folder_target(path: str | os.PathLike[str]) -> Path:
    """The folder that `path` stands for, through links; an error where something else is in its place."""
    target = _resolved(path)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file; expected a folder or a new name")
    return target


def check_replaceable(target: Path) -> None:
    """FileExistsError where something that is neither a file nor a link stands at `target`."""
    if os.path.lexists(target) and not (target.is_file() or target.is_symlink()):
        raise FileExistsError(f"{target} is no regular file; expected a file or a new name")


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
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a pipe that nobody reads, a folder
            raise
    raise FileExistsError(f"{os.fspath(path)} is no regular file; expected to find none there")


def _resolved(path: str | os.PathLike[str]) -> Path:
    target = Path(os.path.realpath(path))
    if any(part.is_symlink() for part in (target, *target.parents)):  # links in a circle stay
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return target


def _prefix(target: Path) -> str:
    return f".{target.name[:40]}."  # names have at most 255 bytes


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
                with suppress(OSError):  # what it still buffers did not fit, as was told before
                    file.close()
                path.unlink(missing_ok=True)


def _clear(target: Path) -> None:
    """Removes temporary files of `target` that no process is writing."""
    temporary = re.compile(re.escape(_prefix(target)) + r"[0-9a-f]{8}\.tmp")
    for path in target.parent.iterdir():
        if temporary.fullmatch(path.name):
            with suppress(OSError), open(open_regular(path, os.O_RDONLY), "rb") as file:
                _hold(file.fileno(), wait=False)
                path.unlink()


def _hold(descriptor: int, wait: bool) -> None:
    """Marks a file as being written, until it is closed. OSError, unless `wait`, where another process has marked it.

    On Windows nothing is marked: a file that is open cannot be removed there.
    """
    if fcntl is not None:
        with suppress(OSError) if wait else nullcontext():  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))

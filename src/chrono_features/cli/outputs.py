"""Files that commands write: asked before any work whether that can be."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ..files import folder_target, regular_target


def check_output(name: str, path: Path, suffixes: Iterable[str], source: Path | None = None) -> None:
    """Make sure that a file can be written.

    Args:
        name: The argument's name, for messages.
        path: File to write.
        suffixes: Suffixes it may have.
        source: A file that must not be overwritten.

    Raises:
        FileNotFoundError: The parent folder is missing.
        PermissionError: It is not writable.
        FileExistsError: Something that is no file is in its place.
        ValueError: The suffix is another one, `path` is a folder or it is `source`.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{name}={path}; expected a name that ends in {', '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{name}={path} is a folder; expected a file")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise ValueError(f"{name}={path} is the video itself; expected another name")
    _check_target(name, path, regular_target)


def check_folder(name: str, path: Path) -> None:
    """Make sure that a folder can be written.

    Raises:
        FileNotFoundError: The parent folder is missing.
        PermissionError: It is not writable.
        FileExistsError: Something that is no folder is in its place.
    """
    _check_target(name, path, folder_target)


def _check_target(name: str, path: Path, target_of: Callable[[Path], Path]) -> None:
    target = path.absolute()
    if not (target.is_dir() or target.parent.is_dir()):
        raise FileNotFoundError(f"{name}={path}: the folder {target.parent} does not exist")
    try:
        target = target_of(path)
    except OSError as error:
        raise type(error)(f"{name}={path}: {error}") from error
    folder = target if target.is_dir() else target.parent
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{name}={path}: the folder {folder} is not writable")


def free_name(path: Path) -> Path:
    """`path`, or where something is there already the first of NAME-2, NAME-3, … that is free."""
    numbered = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2))
    return next(name for name in itertools.chain([path], numbered) if not os.path.lexists(name))

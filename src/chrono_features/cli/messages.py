"""What commands say: on stdout what they wrote and the next step, on stderr warnings and errors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..checks import printable


def done(path: Path, what: str, then: str) -> None:
    """Say what was written, where, and what to do with it."""
    print(f"wrote {path.absolute()}: {what}")
    next_step(then)


def next_step(then: str) -> None:
    print(f"next: {then}")


def track_with(model: str | Path) -> str:
    """The command that tracks with a model."""
    return f"chrono-features track VIDEO --model {shlex.quote(str(model))}"


def count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


def complain(message: str, colour: str, options: Mapping[str, str]) -> None:
    """Print a message of the library on stderr as one line, in the words of the command line.

    Args:
        message: The message; its arguments are written as in Python, as `end=6`.
        colour: Colour of the line.
        options: The option or argument of the command line for each argument that may be named.
    """
    line = _as_options(printable(" ".join(message.split())), options)
    Console(stderr=True).print(Text(line, colour), soft_wrap=True)


def _as_options(message: str, options: Mapping[str, str]) -> str:
    """Replaces `end=6` by `--end 6`, `refine=True` by `--refine` and `path='x'` by `VIDEO=x`."""

    if not options:
        return message

    def replaced(match: re.Match[str]) -> str:
        name = options[match["name"]]
        value = match["quoted"] or ""
        return f"{name} {value}" if name.startswith("-") else f"{name}={value}"

    names = "|".join(options)
    # Not in the name of a file.
    return re.sub(rf"(?<![\w./-])(?P<name>{names})=(?:True |'(?P<quoted>[^']*)')?", replaced, message)

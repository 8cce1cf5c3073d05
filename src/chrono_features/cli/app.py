"""The command line: a table of commands, and errors as one line.

What a command needs is imported when the command is named, so that `--help` stays quick.
"""

from __future__ import annotations

import importlib
import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..extras import MissingExtra
from .messages import complain

COMMANDS = {  # name: (module, summary)
    "track": ("video", "Track points through a video."),
    "demo": ("video", "Run `track` on the bundled demo clip and draw the result."),
    "features": ("video", "Compute the features of a video."),
    "pca": ("video", "Show features as colours: their first three principal components over the whole clip."),
    "convert": ("models", "Convert an authors' checkpoint to a folder that `--model` takes."),
    "train": ("training", "Train on synthetic clips."),
    "eval": ("evaluation", "Measure models and baselines side by side on videos with tracks or masks."),
    "fit-confidence": ("evaluation", "Fit the confidence of a model's tracks, and save the model with it."),
    "info": ("models", "Print what a model is made of."),
    "verify": ("models", "Fetch the authors' weights, check every key, and print published beside measured numbers."),
}
RENAMED = {"calibrate": "fit-confidence"}


class Commands(TyperGroup):
    """Loads a command when it is named, and turns what a user can correct into one line instead of a traceback."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if new := RENAMED.get(args[0]):
            raise ValueError(f"{args[0]} is now called {new}")
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # names may hold what no encoding has, and are printed at the end
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader has had enough; Typer ends quietly
            raise
        except (ValueError, OSError, MissingExtra) as error:  # any other import that fails is a defect
            if ctx.params.get("traceback"):
                raise
            complain(str(error), "red", _options_of(ctx.invoked_subcommand))
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Dense, temporally-aware video features and point tracks.",
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error was raised.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


for _name, (_, _summary) in COMMANDS.items():
    app.command(_name, help=_summary)(lambda: None)  # for the list of commands; `load` has the command itself


def load(name: str) -> Any:
    """A command. Its module is imported by name, which is the only late import of our own modules."""
    module = importlib.import_module(f"{__package__}.{COMMANDS[name][0]}")
    return typer.main.get_group(module.app).commands[name]


def _options_of(name: str | None) -> dict[str, str]:
    """The option or argument of a command for each argument that a message may name."""
    if name is None:
        return {}
    parameters = load(name).params
    found = {p.name: max(p.opts, key=len) if p.opts[0].startswith("-") else str(p.metavar) for p in parameters}
    return found | {"name": found["model"]} if "model" in found else found

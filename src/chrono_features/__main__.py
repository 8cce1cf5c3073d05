"""`chrono-features` and `python -m chrono_features`."""

from __future__ import annotations

import sys

from .extras import MissingExtra, require


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        for module in ("typer", "rich.progress"):
            require(module, "cli")
    except MissingExtra as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    from .cli.app import app

    app()


if __name__ == "__main__":
    main()

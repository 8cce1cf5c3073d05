"""`chrono-features` and `python -m chrono_features`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line, or says what it needs."""
    try:
        from .cli import app
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("typer", "rich"):
            raise
        print("chrono-features' command line needs the cli extra: pip install chrono-features[cli]", file=sys.stderr)
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()

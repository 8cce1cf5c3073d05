"""Puts the newest results into the documentation: `python -m benchmarks.tables`.

Everything between `<!-- NAME -->` and `<!-- end -->` in docs/performance.md becomes the tables of results/NAME.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from .harness import RESULTS, table

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def main() -> None:
    def render(marker: re.Match[str]) -> str:
        results = json.loads((RESULTS / f"{marker[1]}.json").read_text())
        about = f"{results['device']}, torch {results['versions']['torch'].split('+')[0]}, {results['date']}."
        tables = "\n\n".join(f"{title}:\n\n{table(rows)}" for title, rows in results["tables"].items())
        return f"<!-- {marker[1]} -->\n{about}\n\n{tables}\n<!-- end -->"

    PAGE.write_text(re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", render, PAGE.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()

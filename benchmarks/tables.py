"""Puts the newest results into the documentation: `python -m benchmarks.tables`.

Everything between `<!-- NAME -->` and `<!-- end -->` in docs/models.md, docs/performance.md and docs/results.md becomes
the tables of results/NAME.json, and everything between `<!-- NAME DATA MODE -->` and `<!-- end -->` that table of a
file that `chrono-features eval` wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from chrono_features.evaluation.summary import result_tables

from .harness import RESULTS, table

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    for page in ("models.md", "performance.md", "results.md"):
        fill(DOCS / page, r"<!-- (?!end)(\w+) -->\n.*?<!-- end -->", benchmark)
    fill(DOCS / "results.md", r"<!-- (\w+) (\w+) (\w+) -->\n.*?<!-- end -->", evaluation)


def fill(page: Path, pattern: str, render: Callable[[re.Match[str]], str]) -> None:
    page.write_text(re.sub(pattern, render, page.read_text(), flags=re.DOTALL))


def benchmark(marker: re.Match[str]) -> str:
    results = json.loads((RESULTS / f"{marker[1]}.json").read_text())
    about = f"{results['device']}, torch {results['versions']['torch'].split('+')[0]}, {results['date']}."
    tables = "\n\n".join(f"{title}:\n\n{table(rows)}" for title, rows in results["tables"].items())
    return f"<!-- {marker[1]} -->\n{about}\n\n{tables}\n<!-- end -->"


def evaluation(marker: re.Match[str]) -> str:
    results = json.loads((RESULTS / f"{marker[1]}.json").read_text())
    found = next(t for t in result_tables(results) if (t.data, t.mode) == (marker[2], marker[3]))
    rows = [dict(zip(found.titles, row, strict=True)) for row in found.rows]
    return f"<!-- {marker[1]} {marker[2]} {marker[3]} -->\n{table(rows)}\n<!-- end -->"


if __name__ == "__main__":
    main()

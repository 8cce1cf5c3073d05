"""The benchmarks' modules; their numbers are not tested."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(ROOT).with_suffix("") for path in ROOT.glob("benchmarks/*/*.py"))


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_every_benchmark_imports(module):
    importlib.import_module(".".join(module.parts))


def test_every_table_of_the_docs_has_its_results(monkeypatch):
    """A page asks for the tables of a file by its name."""
    from benchmarks import harness, tables

    pages = "".join(page.read_text() for page in tables.DOCS.glob("*.md"))
    names = set(tables.re.findall(r"<!-- ([a-z_]+_(?:cpu|cuda))", pages))
    assert names and not [name for name in names if not (harness.RESULTS / f"{name}.json").is_file()]

import ast
import importlib
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from chrono_features import ChronoBackbone
from chrono_features.extras import MissingExtra, how_to_install, packages_of, require

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
EXTRAS = ("cli", "video", "weights", "train", "eval")
OPTIONAL = {"typer", "rich", "av", "PIL", "cv2", "accelerate", "tensorboard", "gdown"}
INSTALL_ANOTHERS = re.compile(r"(pip|uv|pipx)\s[^\n]*\binstall\s[^\n.]*chrono[-_]features")


def wanted(extra: str) -> set[str]:
    """The packages of an extra by the standard's own parser."""
    all_of_them = map(Requirement, metadata.requires("chrono-features") or [])
    return {f"{r.name}{r.specifier}" for r in all_of_them if r.marker and r.marker.evaluate({"extra": extra})}


@pytest.mark.parametrize("extra", EXTRAS)
def test_packages_come_from_the_metadata(extra: str) -> None:
    assert set(packages_of(extra)) == wanted(extra) != set()
    assert not any("chrono" in package for package in packages_of(extra))


def test_how_to_install() -> None:
    text = how_to_install("video")
    assert 'pip install "' in text and '"av>=17' in text and '"pillow>=' in text
    assert "pip install '.[video]' in a clone" in text
    assert not INSTALL_ANOTHERS.search(text)


def test_without_metadata_the_clone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert how_to_install("video") == "pip install '.[video]' in a clone of the chrono-features repository"
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=1.24", "sktime>=1; extra == 'all'"])  # another one
    assert "sktime" not in how_to_install("video") and "numpy" not in how_to_install("video")


def test_require_returns_the_module() -> None:
    assert require("email.mime.text", "cli") is importlib.import_module("email.mime.text")


@pytest.mark.parametrize("module", ["av", "PIL.ImageDraw", "not_installed_anywhere.part"])
def test_a_missing_module_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    name = module.partition(".")[0]
    with pytest.raises(MissingExtra, match=re.escape(f"{name} is missing; expected {how_to_install('video')}")):
        require(module, "video")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ImportError('libcodec.so.9: cannot open shared object file')", "libcodec.so.9"),
        ("import its_own_missing_dependency", "its_own_missing_dependency"),
    ],
)
def test_a_broken_module_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    (tmp_path / "broken_codec.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match=f"broken_codec is installed but cannot be imported .*{reason}"):
        require("broken_codec", "video")


def test_an_error_that_is_no_import_error_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "defect_codec.py").write_text("raise KeyError('a defect')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyError, match="a defect"):
        require("defect_codec", "video")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_optional_modules_are_imported_by_require_alone(path: Path) -> None:
    """The command line apart: `__main__` has asked for what it imports."""
    if path.parent.name == "cli":
        pytest.skip("command line")
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not OPTIONAL & {name.partition(".")[0] for name in names}, f"{path}, line {node.lineno}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
            extra = ast.literal_eval(node.args[1])
            assert extra in EXTRAS, f"{path}, line {node.lineno}"
            if isinstance(node.args[0], ast.Constant):
                package = {"PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn"}
                module = node.args[0].value.partition(".")[0]
                assert package.get(module, module) in {Requirement(p).name for p in packages_of(extra)}


def test_no_page_message_or_card_sends_people_to_another_project(tmp_path: Path) -> None:
    pages = [*SOURCES, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.py")]
    pages += [*ROOT.glob("src/**/*.md"), ROOT / "pyproject.toml"]
    assert len(pages) > 50
    found = [str(page) for page in pages if INSTALL_ANOTHERS.search(page.read_text())]
    assert found == []
    for text in (
        "pip install chrono-features",
        "pip install 'chrono-features[video]'",
        "uv pip install chrono_features",
    ):
        assert INSTALL_ANOTHERS.search(text)


def test_saved_cards_say_how_to_install(tmp_path: Path) -> None:
    ChronoBackbone.from_pretrained("chrono-tiny").save_pretrained(tmp_path / "model")
    bundled = ROOT / "src" / "chrono_features" / "assets" / "chrono-tiny" / "README.md"
    for card in (tmp_path / "model" / "README.md", bundled):
        text = " ".join(card.read_text().split())
        assert "pip install ." in text and "on PyPI is another project" in text and "clone" in text

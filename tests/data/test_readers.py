from pathlib import Path

import pytest
from pickled_videos import item, write

from chrono_features.data.readers import open_dataset

Image = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize("kind", ["davis", "rgb-stacking", "kinetics", "robotap", "real_tracks", "masks", "csv"])
def test_nothing_there(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.*expected"):
        open_dataset(kind, str(tmp_path / "nowhere"))
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{tmp_path.name}.*expected"):
        open_dataset(kind, str(tmp_path))


@pytest.mark.parametrize("size", [(256,), (0, 4), (4.5, 4), (1, 2, 3)])
def test_bad_sizes(tmp_path: Path, size: tuple) -> None:
    path = write(tmp_path / "davis.pkl", {"goat": item()})
    with pytest.raises(ValueError, match=r"size=.*expected \(height, width\)"):
        open_dataset("davis", path, size)


def test_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind='davos'; expected one of 'davis', 'rgb-stacking'"):
        open_dataset("davos", str(tmp_path))

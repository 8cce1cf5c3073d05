import os
import stat

import pytest

from chrono_features.files import folder_beside, write_beside


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "file.bin"
    with write_beside(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new" and names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), write_beside(path) as file:
        file.write(b"ne")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file.bin"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), write_beside(tmp_path / "nowhere" / "file"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path, umask):
    previous = os.umask(umask)
    try:
        with write_beside(tmp_path / "file"):
            pass
        with folder_beside(tmp_path / "folder"):
            pass
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_a_folder_takes_the_place_of_the_old_one_and_keeps_its_other_files(tmp_path):
    target = tmp_path / "a" / "model"
    for text in ("first", "second"):
        with folder_beside(target) as beside:
            (beside / "weights").write_text(text)
        if text == "first":
            (target / "notes").write_text("mine")
            (target / "logs").mkdir()
            (target / "logs" / "log").write_text("mine too")
    assert (target / "weights").read_text() == "second"
    assert (target / "notes").read_text() == "mine" and (target / "logs" / "log").read_text() == "mine too"
    assert names(target.parent) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_folder_keeps_the_old_one(tmp_path, error):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(error), folder_beside(target) as beside:
        (beside / "weights").write_text("ne")
        raise error
    assert (target / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"] and names(target) == ["weights"]


def test_a_failing_rename_keeps_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    replace = os.replace

    def fail(source, destination):
        if os.fspath(destination) == os.fspath(target) and (source / "weights").read_text() == "new":
            raise OSError("disk on fire")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="fire"), folder_beside(target) as beside:
        (beside / "weights").write_text("new")
    assert (target / "weights").read_text() == "old" and names(tmp_path) == ["model"]


def test_the_current_folder_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with folder_beside(".") as beside:
        (beside / "weights").write_text("new")
    assert (tmp_path / "weights").read_text() == "new"


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(FileExistsError, match="is a file"), folder_beside(tmp_path / "model"):
        pass
    assert (tmp_path / "model").read_text() == "a file" and names(tmp_path) == ["model"]

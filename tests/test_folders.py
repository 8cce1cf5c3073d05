import os
import stat
import threading
import time

import pytest

from chrono_features import folders
from chrono_features.folders import write_folder


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path, umask):
    previous = os.umask(umask)
    try:
        with write_folder(tmp_path / "folder", ["file"]) as new:
            (new / "file").touch()
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "folder" / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_the_umask_is_never_touched(tmp_path, monkeypatch):
    """It belongs to the process: a file that another thread makes meanwhile would be open to all."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    with write_folder(tmp_path / "folder", ["file"]):
        pass


def test_files_of_a_folder_appear_once_all_are_whole(tmp_path):
    folder = tmp_path / "a" / "model"
    for text in ("first", "second"):
        with write_folder(folder, ["weights", "config"]) as new:
            (new / "config").write_text(text)
            (new / "weights").write_text(text)
            assert text == "second" or not (folder / "weights").exists()
        assert {(folder / name).read_text() for name in ("weights", "config")} == {text}
        (folder / "notes").write_text("mine")
    assert names(folder) == ["config", "notes", "weights"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_folder_keeps_the_old_files(tmp_path, error):
    (tmp_path / "weights").write_text("old")
    with pytest.raises(error), write_folder(tmp_path, ["weights"]) as new:
        (new / "weights").write_text("ne")
        raise error
    assert (tmp_path / "weights").read_text() == "old" and names(tmp_path) == ["weights"]


def test_an_interrupt_between_two_renames_keeps_the_rest(tmp_path, monkeypatch):
    replace = os.replace

    def interrupted(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    def write():
        with write_folder(tmp_path, ["a", "b"]) as new:
            for name in ("a", "b"):
                (new / name).write_text("new")

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert names(tmp_path) == [folders.STAGING, "a"] and names(tmp_path / folders.STAGING) == ["b"]
    monkeypatch.setattr(os, "replace", replace)
    write()
    assert names(tmp_path) == ["a", "b"]


def test_a_folder_is_locked_for_others_and_leaves_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "LOCK_TIMEOUT", 0.1)
    folder = tmp_path / "model"
    with write_folder(folder, ["a"]):
        with pytest.raises(TimeoutError, match=r"model is locked by another process"), write_folder(folder, ["a"]):
            pass
        with write_folder(tmp_path / "other", ["a"]):
            pass
    assert names(folder) == []
    (folder / folders.LOCK_FILE).touch()  # of a killed process: nobody holds it
    with write_folder(folder, ["a"]):
        pass
    assert names(folder) == []


def test_one_writer_at_a_time(tmp_path):
    """Each adds one to a number in the folder; without the lock some additions are lost."""
    (tmp_path / "count").write_text("0")

    def add():
        for _ in range(25):
            with write_folder(tmp_path, ["count"]) as new:
                count = int((tmp_path / "count").read_text())
                time.sleep(0.0005)
                (new / "count").write_text(str(count + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "count").read_text() == "100"


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(FileExistsError, match="is a file"), write_folder(tmp_path / "model", ["a"]):
        pass
    assert (tmp_path / "model").read_text() == "a file" and names(tmp_path) == ["model"]

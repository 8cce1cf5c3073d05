import os
import stat
import subprocess
import sys

import pytest

from chrono_features.files import write_beside


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
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_the_umask_is_never_touched(tmp_path, monkeypatch):
    """It belongs to the process: a file that another thread makes meanwhile would be open to all."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    with write_beside(tmp_path / "file"):
        pass


# What stands in the place of the target


@pytest.fixture(params=["folder", "pipe", "a pipe behind a link", "links in a circle"])
def obstacle(request, tmp_path):
    path = tmp_path / "target"
    if request.param == "folder":
        path.mkdir()
    elif request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "a pipe behind a link":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    else:
        path.symlink_to(path)
    return path


def test_what_is_no_file_is_refused_before_it_is_written(obstacle):
    before = os.lstat(obstacle)
    with pytest.raises(OSError, match="target|pipe"), write_beside(obstacle):
        pytest.fail("too late")
    assert os.lstat(obstacle) == before


def test_a_link_stays_one_and_may_lead_to_nothing_yet(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for text in (b"one", b"two"):
        with write_beside(tmp_path / "link") as file:
            file.write(text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == text


@pytest.mark.parametrize("name", ["x" * 250 + ".npz", "ä" * 125 + ".npz"])
def test_long_names(tmp_path, name):
    with write_beside(tmp_path / name) as file:
        file.write(b"new")
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == [name]


@pytest.mark.slow
def test_a_full_disk_names_the_file(tmp_path):
    code = (
        "import resource, sys; from chrono_features.files import write_beside\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with write_beside(sys.argv[1]) as file: file.write(bytes(2000))"
    )
    target = tmp_path / "tracks.npz"
    ended = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True)
    assert ended.stderr.endswith(f"File too large: '{target}'\n") and names(tmp_path) == []


# Processes that are killed, and others that write at the same time


def killed_while_writing(path):
    """A process that is killed once it has written half of a file; its temporary file stays."""
    child = os.fork()
    if child == 0:
        with write_beside(path) as file:
            file.write(b"half")
            file.flush()
            os._exit(9)
    assert os.waitpid(child, 0)[1] != 0


def test_the_next_run_clears_what_a_killed_one_left(tmp_path):
    for _ in range(3):
        killed_while_writing(tmp_path / "file.npz")
    killed_while_writing(tmp_path / "file.npz2")
    assert len(names(tmp_path)) == 2  # each clears what the one before left
    mine = {".file.npz.bak", ".file.npz.0123456.tmp", ".file.npz.0123456x.tmp", "file.npz.01234567.tmp"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".file.npz.01234567.tmp").symlink_to(tmp_path / ".file.npz.bak")
    os.mkfifo(tmp_path / ".file.npz.76543210.tmp")
    with write_beside(tmp_path / "file.npz") as file:
        file.write(b"new")
    kept = set(names(tmp_path)) - mine
    assert {name for name in kept if ".npz2." not in name} == {
        "file.npz", ".file.npz.01234567.tmp", ".file.npz.76543210.tmp"
    }  # fmt: skip
    assert sum(".npz2." in name for name in kept) == 1  # another target's


def test_what_someone_is_writing_is_not_cleared(tmp_path):
    with write_beside(tmp_path / "file") as slow:
        slow.write(b"slow")
        with write_beside(tmp_path / "file") as fast:
            fast.write(b"fast")
        assert (tmp_path / "file").read_bytes() == b"fast"
    assert (tmp_path / "file").read_bytes() == b"slow" and names(tmp_path) == ["file"]

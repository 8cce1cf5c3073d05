import pytest

pytest.importorskip("rich")

from chrono_features import progress as module
from chrono_features.progress import plain_lines, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_tell_the_time_left(clock):
    """At the pace of the steps that this process did: a resumed run starts at step 10."""
    lines = []
    update = plain_lines("clips", lines.append)
    update(10, 30)
    clock[0] += 8
    update(12, 30, "total 1.5")
    clock[0] += 72
    update(30, 30)
    assert lines == [
        "clips 10/30  0.0 s\n",
        "clips 12/30  total 1.5  8.0 s  0:01:12 left\n",
        "clips 30/30  80.0 s  0:00:00 left\n",
    ]


def test_plain_lines_without_a_total(clock):
    lines = []
    update = plain_lines("reading", lines.append)
    update(1)
    update(2)
    assert lines == ["reading 1  0.0 s\n", "reading 2  0.0 s\n"]


def test_a_line_per_step_where_there_is_no_terminal(capsys):
    with progress("clips", line_per_step=True) as update:
        update(0, 2)
        update(1, 2, "[red]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split("  ")[:2] for line in captured.err.splitlines()][1] == ["clips 1/2", "[red]"]


def test_a_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with progress("clips", line_per_step=True) as update:
        update(2, 2, "[red]")
    shown = capsys.readouterr().err
    assert "clips  [red]" in shown and "2/2" in shown and "━" in shown


@pytest.mark.parametrize("line_per_step", [False, True])
def test_nothing_unless_enabled(capsys, line_per_step):
    with progress("clips", enabled=False, line_per_step=line_per_step) as update:
        update(1, 2)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""

from pathlib import Path

import pytest
import torch
from cli_calls import SIZE

import chrono_features
from chrono_features.cli.queries import parse_queries


def test_queries_as_text() -> None:
    assert parse_queries("0,1.5,2; 3,4,5;")(9, SIZE).tolist() == [[[0, 1.5, 2], [3, 4, 5]]]
    assert torch.equal(parse_queries("grid:4")(9, SIZE), chrono_features.grid_queries(4, SIZE))
    assert torch.equal(parse_queries("grid:4@5")(9, SIZE), chrono_features.grid_queries(4, SIZE, t=5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid:", "expected grid:N"),
        ("grid:0", "expected grid:N"),
        ("grid:4@x", "expected grid:N"),
        ("", "point 1: ''; expected three numbers t,x,y"),
        ("0,1,2;3,4", "point 2: '3,4'"),
        ("0,1,2,3", "point 1"),
        ("0,a,2", "point 1: '0,a,2'"),
        ("0,nan,2", "point 1"),
    ],
)
def test_bad_queries_as_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"queries='{text}'.*{message}"):
        parse_queries(text)


def test_queries_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("\ufefft, x, y\r\n0,1,2\r\n\r\n3,4.5,5\r\n", encoding="utf-8")
    assert parse_queries(str(path))(9, SIZE).tolist() == [[[0, 1, 2], [3, 4.5, 5]]]
    path.write_text("t,x,y\n")
    assert parse_queries(str(path))(9, SIZE).shape == (1, 0, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x,y,t\n1,2,3\n", r"line 1: 'x,y,t'; expected the header t,x,y"),
        ("1,2,3\n", "line 1"),
        ("t,x,y\n0,1,2\n0,1\n", r"line 3: '0,1'; expected three numbers"),
        ("t,x,y\n\n0,1,two\n", "line 3: '0,1,two'"),
        ("t,x,y\n0,1,inf\n", "line 2"),
    ],
)
def test_bad_csv_rows_are_named_by_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"points\.csv, {message}"):
        parse_queries(str(path))


def test_a_csv_that_is_empty_or_no_file(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    with pytest.raises(FileNotFoundError, match=r"queries=.*points\.csv: no such file; expected a \.csv file"):
        parse_queries(str(path))
    path.touch()
    with pytest.raises(
        ValueError, match=r"queries=.*points\.csv is empty; expected a \.csv file with the header t,x,y"
    ):
        parse_queries(str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"queries=.*points\.csv is a folder"):
        parse_queries(str(path))


def test_csv_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"points\.csv.*expected a text file"):
        parse_queries(str(tmp_path / "points.csv"))
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file"):
        parse_queries(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("9,1,1", "t=9; expected a frame index from 0 to 8"),
        ("-1,1,1", "t=-1; expected a frame index"),
        ("0.5,1,1", "t=0.5; expected a frame index"),
        ("0,1600,1", "x=1600; expected 0 to 64, the width"),
        ("0,-1,1", "x=-1; expected"),
        ("0,1,49", "y=49; expected 0 to 48, the height"),
    ],
)
def test_queries_outside_the_video_are_named_by_place(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "late.csv"
    path.write_text(f"t,x,y\n8,64,48\n{row}\n")
    with pytest.raises(ValueError, match=f"^queries=.*late.csv, line 3: {message}"):
        parse_queries(str(path))(9, SIZE)
    with pytest.raises(ValueError, match=f"^queries='8,64,48;{row}', point 2: {message}"):
        parse_queries(f"8,64,48;{row}")(9, SIZE)


def test_a_grid_after_the_last_frame() -> None:
    with pytest.raises(ValueError, match=r"queries='grid:4@9': t=9; expected a frame index from 0 to 8"):
        parse_queries("grid:4@9")(9, SIZE)

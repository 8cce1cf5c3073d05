from pathlib import Path

import numpy as np
import pytest
import torch
from cli_calls import SIZE

import chrono_features
from chrono_features.cli.queries import parse_queries


def test_queries_as_text() -> None:
    assert parse_queries("0,1.5,2; 3,4,5;")(9, SIZE).queries.tolist() == [[[0, 1.5, 2], [3, 4, 5]]]
    assert torch.equal(parse_queries("grid:4")(9, SIZE).queries, chrono_features.grid_queries(4, SIZE))
    assert torch.equal(parse_queries("grid:4@5")(9, SIZE).queries, chrono_features.grid_queries(4, SIZE, t=5))


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
    assert parse_queries(str(path))(9, SIZE).queries.tolist() == [[[0, 1, 2], [3, 4.5, 5]]]
    path.write_text("t,x,y\n")
    assert parse_queries(str(path))(9, SIZE).queries.shape == (1, 0, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x,y\n1,2\n", r"line 1: 'x,y'; expected a header with the columns t, x and y"),
        ("t,x,y,x\n1,2,3,4\n", r"line 1: 't,x,y,x'; expected a header"),
        ("1,2,3\n", "line 1"),
        ("t,x,y\n0,1,2\n0,1\n", r"line 3: '0,1'; expected 3 cells as in line 1"),
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
        ValueError, match=r"queries=.*points\.csv is empty; expected a \.csv file with the columns t, x and y"
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


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_in_any_order_keeps_names_and_further_columns(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "points.csv"
    rows = [["name", "y", "x", "t", "side"], ["ear", "2", "1", "0", "left"], ["töe, big", "5", "4", "3", ""]]
    quoted = [[f'"{cell}"' if delimiter in cell else cell for cell in row] for row in rows]
    path.write_text("\n".join(delimiter.join(row) for row in quoted), encoding="utf-8")
    points = parse_queries(str(path))(9, SIZE)
    assert points.queries.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert points.columns == {"name": ["ear", "töe, big"], "side": ["left", ""]}


def test_grids_of_rows_and_columns_on_the_last_frame_and_in_a_part() -> None:
    expected = chrono_features.grid_queries((2, 3), SIZE, t=8)
    assert torch.equal(parse_queries("grid:2x3@last")(9, SIZE).queries, expected)
    part = parse_queries("grid:2", roi="10,20,30,24")(9, SIZE).queries[0]
    assert part.tolist() == [[0, 15, 21], [0, 25, 21], [0, 15, 23], [0, 25, 23]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roi": "1,2,3"}, "roi='1,2,3'; expected x0,y0,x1,y1"),
        ({"roi": "5,0,3,9"}, "x0 < x1"),
        ({"roi": "a,0,3,9"}, "roi='a,0,3,9'"),
        ({"roi": "0,0,9999,9"}, "roi=.*expected .* <= 64"),
        ({"roi": "0,0,1,1", "text": "0,1,2"}, "roi=0,0,1,1 with queries='0,1,2'; expected a grid"),
        ({"mask": Path("m.png"), "text": "0,1,2"}, "mask=m.png with queries"),
    ],
)
def test_wrong_parts_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_queries(**{"text": "grid:2", **options})(9, SIZE)


def test_masks_name_their_objects(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    labels = np.zeros(SIZE, np.uint8)
    labels[10:30, 10:50] = 1
    labels[36:46, 60:61] = 7  # narrow
    image.fromarray(labels).save(tmp_path / "grey.png")
    palette = image.fromarray(labels, mode="P")
    palette.putpalette([0, 0, 0] * 256)
    palette.save(tmp_path / "palette.png")
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[labels == 1], colours[labels == 7] = (0, 0, 255), (255, 0, 0)
    image.fromarray(colours).save(tmp_path / "colours.png")
    for name, numbers in (("grey", {1, 7}), ("palette", {1, 7}), ("colours", {1, 2})):
        points = parse_queries("grid:4@2", mask=tmp_path / f"{name}.png")(9, SIZE)
        t, x, y = points.queries[0].unbind(-1)
        assert set(t.tolist()) == {2} and set(points.columns["object"]) == numbers
        assert (labels[y.int(), x.int()] > 0).all()
        assert points.columns["object"].count(1) == 16


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros(SIZE, np.uint8), "mask=.*m.png holds 0 objects; expected 1 to 255 objects"),
        (np.ones((9, 12), np.uint8), "mask=.*m.png is 12 x 9; expected the size of the video, 64 x 48"),
        (np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8), "holds [0-9]+ objects"),
    ],
)
def test_masks_that_name_nothing(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    pytest.importorskip("PIL.Image").fromarray(pixels).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=message):
        parse_queries("grid:4", mask=tmp_path / "m.png")(9, SIZE)
    with pytest.raises(FileNotFoundError, match="mask=.*none.png: no such file"):
        parse_queries("grid:4", mask=tmp_path / "none.png")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ValueError, match="mask=.*text.png"):
        parse_queries("grid:4", mask=tmp_path / "text.png")

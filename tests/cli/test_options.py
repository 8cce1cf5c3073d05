import inspect

import pytest

from chrono_features.cli.options import Selection, parse_size, pick_device, with_selection


def test_devices_and_grids() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(ValueError, match="device='cuda:99'"):
        pick_device("cuda:99")
    assert parse_size("grid", "64") == (64, 64) and parse_size("grid", "48x64") == (48, 64)
    for bad in ("", "0", "4x", "4x0", "-4", "a"):
        with pytest.raises(ValueError, match="grid="):
            parse_size("grid", bad)


def test_a_selection_becomes_options_of_the_command() -> None:
    @with_selection
    def command(a: int, *, selection: Selection, b: str = "b") -> None:
        got.append((a, selection, b))

    got: list[tuple] = []
    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["a", *vars(Selection()), "b"]
    assert parameters["end"].default is None and parameters["every"].default == 1
    command(a=1, b="c", **{**vars(Selection()), "end": 6})
    assert got == [(1, Selection(end=6), "c")]

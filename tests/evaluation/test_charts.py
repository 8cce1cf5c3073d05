from __future__ import annotations

import math
import re

import pytest

pytest.importorskip("matplotlib")

from chrono_features.evaluation.charts import Series, line_chart, reliability_chart


def marks(svg: str) -> dict[str, list[tuple[float, float]]]:
    """Where the marks of each colour are."""
    found: dict[str, list[tuple[float, float]]] = {}
    for x, y, colour in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\(--(s\d)', svg):
        found.setdefault(colour, []).append((float(x), float(y)))
    return found


def title(svg: str) -> str:
    return re.findall("<title>(.*?)</title>", svg)[0]


def test_line_chart() -> None:
    svg = line_chart([Series("a", 0, [0.0, 0.5, 1.0]), Series("b", 1, [math.nan, 0.25, 0.75])], (1, 2, 4), "px")
    assert title(svg) == "a: 1 px 0.0 %, 2 px 50.0 %, 4 px 100.0 %; b: 1 px – %, 2 px 25.0 %, 4 px 75.0 %"
    placed = marks(svg)
    assert placed.keys() == {"s0", "s1"} and len(placed["s0"]) == 3 and len(placed["s1"]) == 2  # none for NaN
    (x0, y0), (x1, y1), (x2, y2) = placed["s0"]
    assert x1 - x0 == pytest.approx(x2 - x1) and [x for x, _ in placed["s1"]] == [x1, x2]
    assert y0 - y1 == pytest.approx(y1 - y2) and placed["s1"][0][1] == pytest.approx((y0 + y1) / 2)
    assert re.findall(">([^<>]+)</text>", svg) == ["1", "2", "4", "px", "0", "25", "50", "75", "100"]


def test_reliability_chart() -> None:
    svg = reliability_chart("a", 7, [(0.95, 0.5, 7), (0.25, 0.25, 12_345), (0.5, 0.5, 0)])
    assert title(svg) == "a: stated 25.0 %, happened 25.0 %, of 12345; stated 95.0 %, happened 50.0 %, of 7"
    ((x, y), (right, lower)) = marks(svg)["s1"]  # six colours
    ((x0, y0), (x1, y1)) = [  # the diagonal
        tuple(map(float, point.split()))
        for path in re.findall(r'<path d="M ([^"]*)" style="[^"]*stroke-dasharray', svg)
        for point in path.split("L")
    ]
    assert (x - x0) / (x1 - x0) == pytest.approx((y0 - y) / (y0 - y1), abs=1e-4) == pytest.approx(0.25, abs=1e-4)
    assert (right - x0) / (x1 - x0) == pytest.approx(0.95, abs=1e-4)
    assert (y0 - lower) / (y0 - y1) == pytest.approx(0.5, abs=1e-4)
    assert {"12k", "7", "count"} <= set(re.findall(">([^<>]+)</text>", svg))


def test_charts_stand_in_a_page_of_any_colour() -> None:
    svg = line_chart([Series("<a>", 0, [0.5, 0.6])], (1, 2), "px")
    assert "http" not in svg and "url(" not in svg and "<?xml" not in svg and "<metadata" not in svg
    assert title(svg).startswith("&lt;a&gt;: ")
    colours = re.findall(r"(?:fill|stroke): (?!none|var)[^;\"]+", svg)
    assert colours == []  # all are variables of the page
    assert svg == line_chart([Series("<a>", 0, [0.5, 0.6])], (1, 2), "px")  # the same bytes at every run


def test_nothing_global_is_touched() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    reliability_chart("a", 0, [])
    assert dict(matplotlib.rcParams) == before

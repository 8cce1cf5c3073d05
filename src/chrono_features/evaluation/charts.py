"""The report's charts, drawn by matplotlib as SVG elements that take their colours from the page around them."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..extras import require

# Okabe and Ito's colours, which are told apart without red or green; a page overrides them by --s0 … --s5 when dark.
COLOURS = ("#0072b2", "#d55e00", "#008a62", "#b4609a", "#a87800", "#3f454d")
MARKERS = "os^D>"  # shapes tell series apart where colours do not: thirty series before a pair repeats
SYMBOLS = "●■▲◆▶"  # the same shapes as text
INK, RULE, PAGE = "#5f6670", "#dde1e6", "#fefefe"
VARIABLES = {INK: "faint", RULE: "rule", PAGE: "page", **{colour: f"s{i}" for i, colour in enumerate(COLOURS)}}
BINS = 10  # of a reliability plot
SETTINGS = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "chrono-features",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": RULE,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "lines.markeredgecolor": PAGE,
    "lines.markeredgewidth": 0.7,
}


class Series(NamedTuple):
    """One tracker's numbers in a chart; NaN where there is none."""

    name: str
    style: int  # its colour and its marker
    values: Sequence[float]


def percent(share: float) -> str:
    """A share as it is shown everywhere: "52.3", and a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def line_chart(series: Sequence[Series], ticks: Sequence[object], label: str) -> str:
    """Draw shares, 0 to 1, over ticks at equal distances.

    Args:
        series: As many values each as there are ticks.
        ticks: Below the axis.
        label: Of the axis.

    Returns:
        An SVG element; its title has the numbers.
    """
    with require("matplotlib", "eval").rc_context(SETTINGS):
        figure = new_figure(3.2, 2.1)
        axes = figure.subplots()
        for one in series:
            shown = [(i, 100 * value) for i, value in enumerate(one.values) if not math.isnan(value)]
            axes.plot(*zip(*shown, strict=True) if shown else ((), ()), **_look(one.style))
        axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        axes.set(xlim=(-0.2, len(ticks) - 0.8), xlabel=label)
        _percent_axis(axes)
        told = [
            ", ".join(f"{tick} {label} {percent(v)} %" for tick, v in zip(ticks, one.values, strict=True))
            for one in series
        ]
        return svg(figure, "; ".join(f"{one.name}: {text}" for one, text in zip(series, told, strict=True)))


def reliability_chart(name: str, style: int, bins: Sequence[tuple[float, float, int]]) -> str:
    """Draw shares that happened over the probabilities stated for them, and below how many there were of each.

    Args:
        name: Of the tracker.
        style: Its colour and its marker.
        bins: (mean probability stated, share that happened, count); those that count nothing are left out.

    Returns:
        An SVG element; its title has the numbers.
    """
    with require("matplotlib", "eval").rc_context(SETTINGS):
        figure = new_figure(3.2, 3.6)
        draw_reliability(figure, style, bins)
        told = [f"stated {percent(p)} %, happened {percent(h)} %, of {count}" for p, h, count in _filled(bins)]
        return svg(figure, f"{name}: {'; '.join(told)}")


def draw_reliability(
    figure: Any,  # a matplotlib Figure or SubFigure
    style: int,
    bins: Sequence[tuple[float, float, int]],
) -> None:
    """Draw a reliability plot into a figure; see `reliability_chart`."""
    filled = _filled(bins)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1.2))
    top.plot((0, 100), (0, 100), color=INK, linestyle="--", linewidth=0.8)
    top.plot([100 * stated for stated, *_ in filled], [100 * happened for _, happened, _ in filled], **_look(style))
    top.set(ylabel="happened, %")
    _percent_axis(top)
    counts = [count for *_, count in filled]
    middles = [(min(int(stated * BINS), BINS - 1) + 0.5) * 100 / BINS for stated, *_ in filled]
    bars = below.bar(middles, counts, width=70 / BINS, color=COLOURS[style % len(COLOURS)], alpha=0.6)
    below.bar_label(bars, [_compact(count) for count in counts], fontsize=6, padding=1)
    below.set(xlabel="stated, %", xlim=(-2, 102), xticks=range(0, 101, 20), yticks=[], ylabel="count")


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure, sizes in inches, without pyplot: nothing global is touched."""
    return require("matplotlib.figure", "eval").Figure((width, height), layout="constrained")


def svg(figure: Any, title: str) -> str:
    """A figure as an SVG element without links, whose colours are CSS variables of the page, if it has them."""
    for artist in figure.findobj():
        artist.set_clip_on(False)  # a clip path would be a link
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = file.getvalue()
    head, body = drawn[drawn.index("<svg") :].split(">", 1)
    text = f'{head} role="img"><title>{html.escape(title)}</title>{body}'
    text = re.sub(r' xmlns(:\w+)?="[^"]*"|(?<=<g) id="[^"]*"', "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    return text


def _filled(bins: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    return sorted(one for one in bins if one[2])


def _look(style: int) -> dict[str, Any]:
    return {"color": COLOURS[style % len(COLOURS)], "marker": MARKERS[style % len(MARKERS)]}


def _percent_axis(axes: Any) -> None:
    axes.set(ylim=(-1, 101), yticks=range(0, 101, 25))
    axes.grid(visible=True, axis="y")


def _compact(count: int) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if count >= size:
            return f"{count / size:.{0 if count >= 10 * size else 1}f}{unit}"
    return str(count)

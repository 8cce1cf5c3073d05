"""What the report's page is made of: elements of HTML, their style, and small charts in SVG. No scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WIDTH = 320  # of a chart: a phone shows it unscaled, so that its text stays as large as the page's
COLOURS = 6  # series s0 … s5 of STYLE; more series start over, with other marks
BINS = 10  # of a reliability plot
VOID = ("meta",)  # elements that have no end
MARKS = (  # shapes tell series apart where colours do not
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "M-3.2-3.2h6.4v6.4h-6.4z",
    "M0-4.2L4.2 3.2H-4.2z",
    "M0-4.6L4.6 0L0 4.6L-4.6 0z",
    "M-3.6-4.6L3.6 0L-3.6 4.6z",
)
# The series have Okabe and Ito's colours, which are told apart without red or green, and lighter shades on dark.
STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c1e21;--faint:#5f6670;--rule:#dde1e6;--card:#f6f7f9}
.s0{color:#0072b2}.s1{color:#d55e00}.s2{color:#008a62}.s3{color:#b4609a}.s4{color:#a87800}.s5{color:#3f454d}
@media(prefers-color-scheme:dark){
:root{--page:#15171a;--ink:#e6e8eb;--faint:#a0a7b1;--rule:#33383f;--card:#1e2125}
.s0{color:#56a8e8}.s1{color:#f4894a}.s2{color:#2fc79a}.s3{color:#e29ac8}.s4{color:#e6b000}.s5{color:#c9ced6}
}
body{margin:0 auto;padding:1.2em 16px 4em;max-width:1080px;background:var(--page);color:var(--ink)}
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7em;line-height:1.2;margin:.6em 0}
h2{font-size:1.25em;margin:2.4em 0 .3em;padding-top:.8em;border-top:1px solid var(--rule)}
h3{font-size:1.05em;margin:1.6em 0 .4em}
p{margin:.3em 0;max-width:48em}
.note,dt,summary{color:var(--faint)}
.note,dl,details,figcaption,table,.legend{font-size:.875em}
details{margin:1.2em 0}
details dl,details figcaption,.card dl{font-size:1em}
.columns{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:1.2em}
.columns>*{min-width:0}
.card{background:var(--card);border-radius:8px;padding:.8em 1em}
.card h3{margin:0 0 .4em}
.card{font-size:.875em}
.card h3{font-size:1.2em}
.card details{font-size:1em;margin:.3em 0}
dl{margin:0;display:grid;grid-template-columns:auto 1fr;gap:.1em 1em}
dd{margin:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2em .7em;text-align:right;white-space:nowrap;font-weight:400}
thead{color:var(--faint)}
tr>:first-child{text-align:left;position:sticky;left:0;padding-left:0;background:var(--page)}
tbody{border-top:1px solid var(--rule)}
.group>*{padding-top:.6em;font-weight:600}
@media(max-width:600px){th[scope=row]{white-space:normal;overflow-wrap:break-word;min-width:6.5em}}
b{font-weight:700}
figure{margin:0}
figcaption{margin:.2em 0;font-weight:600}
video{display:block;width:100%;height:auto;border-radius:6px;background:#000}
svg{display:block;max-width:100%;height:auto}
svg text{fill:var(--faint);font:11px system-ui,sans-serif;font-variant-numeric:tabular-nums}
svg .small{font-size:9px}
.grid{stroke:var(--rule);fill:none}
.diagonal{stroke:var(--faint);fill:none;stroke-dasharray:4 4}
.line{stroke:currentColor;stroke-width:2;fill:none;stroke-linejoin:round}
.mark{fill:currentColor;stroke:var(--page);stroke-width:1}
.hit{fill:transparent}
.bar{fill:currentColor}
.rail{fill:var(--rule);opacity:.6}
.legend{display:flex;flex-wrap:wrap;gap:.2em 1.2em;max-width:none}
.legend svg{display:inline;vertical-align:-.15em}
"""


class Markup(str):
    """Text that is HTML already. `tag` escapes any other."""


class Series(NamedTuple):
    """One tracker's numbers in a chart; NaN where there is none."""

    name: str
    style: int  # its colour and its mark
    values: Sequence[float]


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Children and attributes are escaped unless they are `Markup`.

    Args:
        name: Of the element.
        children: What it holds.
        attributes: `class_` stands for class and `text_anchor` for text-anchor; True for an attribute without a value.
    """
    start = name
    for key, value in attributes.items():
        start += f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
    return Markup(f"<{start}>" if name in VOID else f"<{start}>{join(*children)}</{name}>")


def join(*children: object) -> Markup:
    """Elements and texts, one after the other."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(str(c)) for c in children))


def section(title: str, note: str, key: Markup | str, parts: Sequence[Markup]) -> Markup:
    """A part of the page; nothing where there is nothing to show."""
    return join(tag("h2", title), tag("p", note, class_="note"), key, *parts) if parts else Markup()


def table(titles: Sequence[str], bodies: Iterable[tuple[str, Iterable[Sequence[object]]]]) -> Markup:
    """A table in parts, each under its name. Rows begin with their own name, above which there is no title."""
    head = tag("thead", tag("tr", tag("td"), *(tag("th", title, scope="col") for title in titles)))
    parts = []
    for name, rows in bodies:
        lines = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
        heading = tag("tr", tag("th", name, colspan=1 + len(titles), scope="rowgroup"), class_="group")
        parts.append(tag("tbody", heading, *lines))
    return tag("div", tag("table", head, *parts), class_="scroll", tabindex=0)


def figure(title: str, content: Markup, facts: str = "") -> Markup:
    """A chart or a clip under its title, and facts below."""
    return tag("figure", tag("figcaption", title), content, *([tag("p", facts, class_="note")] if facts else []))


def grid(parts: Sequence[Markup]) -> Markup:
    """Parts side by side, as many as fit."""
    return tag("div", *parts, class_="columns")


def percent(share: float) -> str:
    """A share as it is shown everywhere: "52.3", and a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def legend(names: Sequence[str]) -> Markup:
    """Names beside their marks, for the series of styles 0, 1, …"""
    entries = []
    for style, name in enumerate(names):
        mark = tag("svg", _mark(7, 7, style), width=14, height=14, class_=_colour(style), aria_hidden="true")
        entries.append(tag("span", mark, " ", name))
    return tag("p", *entries, class_="legend")


def line_chart(series: Sequence[Series], ticks: Sequence[object], label: str) -> Markup:
    """Shares, 0 to 1, over ticks at equal distances.

    Args:
        series: As many values each as there are ticks.
        ticks: Below the axis.
        label: Of the axis.
    """
    left, right, top, bottom = 34, WIDTH - 14, 10, 170
    xs = [left + 14 + i * (right - left - 14) / max(len(ticks) - 1, 1) for i in range(len(ticks))]
    parts = [*_levels(left, right, top, bottom), _axis_label((left + right) / 2, bottom + 32, label)]
    parts += [
        tag("text", tick, x=_n(x), y=bottom + 16, text_anchor="middle") for x, tick in zip(xs, ticks, strict=True)
    ]
    for one in series:
        points = [
            (x, bottom - v * (bottom - top), tag("title", f"{one.name}, {tick} {label}: {percent(v)} %"))
            for x, tick, v in zip(xs, ticks, one.values, strict=True)
            if not math.isnan(v)
        ]
        parts.append(_connected(points, one.style))
    return _svg(bottom + 38, f"{', '.join(s.name for s in series)}: percent over {label}", parts)


def bar_chart(series: Sequence[Series], label: str) -> Markup:
    """One bar, 0 to 1, per series: the first of its values."""
    left, right, parts = 16, WIDTH - 40, []
    for row, one in enumerate(series):
        value, y = one.values[0], 16 * row
        length = 0 if math.isnan(value) else value * (right - left)
        bars = (
            tag("rect", x=left, y=y + 3, width=right - left, height=10, class_="rail"),
            tag("rect", x=left, y=y + 3, width=_n(length), height=10, class_="bar"),
            tag("text", percent(value), x=right + 6, y=y + 12),
        )
        title = tag("title", f"{one.name}: {percent(value)} %")
        parts.append(tag("g", title, _mark(7, y + 8, one.style), *bars, class_=_colour(one.style)))
    return _svg(16 * len(series), label, parts)


def reliability_chart(name: str, style: int, bins: Sequence[tuple[float, float, int]]) -> Markup:
    """Shares that happened over the probabilities stated for them, and below how many there were of each.

    Args:
        name: Of the tracker.
        style: Its colour and its mark.
        bins: (mean probability stated, share that happened, count); those that count nothing are left out.
    """
    left, right, top, bottom = 34, 264, 10, 240
    side, filled = right - left, sorted(b for b in bins if b[2])
    most = max((count for *_, count in filled), default=1)
    diagonal = tag("path", d=f"M{left} {bottom}L{right} {top}", class_="diagonal")
    ticks = [tag("text", f"{20 * i}", x=left + side * i / 5, y=bottom + 14, text_anchor="middle") for i in range(6)]
    points, bars = [], []
    for stated, happened, count in filled:
        title = tag("title", f"stated {percent(stated)} %, happened {percent(happened)} %, of {count}")
        points.append((left + stated * side, bottom - happened * side, title))
        middle, height = left + (min(int(stated * BINS), BINS - 1) + 0.5) * side / BINS, 34 * count / most
        bar = tag("rect", x=_n(middle - 9), y=_n(306 - height), width=18, height=_n(height), class_="bar", opacity=0.6)
        text = tag("text", _compact(count), x=_n(middle), y=_n(303 - height), text_anchor="middle", class_="small")
        bars.append(tag("g", title, bar, text))
    parts = [
        *_levels(left, right, top, bottom),
        diagonal,
        *ticks,
        tag("text", "count", x=0, y=306, class_="small"),
    ]
    parts += [tag("g", *bars, class_=_colour(style)), _connected(points, style)]
    return _svg(310, f"{name}: share that happened over probability stated", parts)


def _svg(height: int, label: str, parts: Sequence[Markup]) -> Markup:
    size = {"viewBox": f"0 0 {WIDTH} {height}", "width": WIDTH, "height": height}
    return tag("svg", *parts, **size, role="img", aria_label=label)


def _levels(left: float, right: float, top: float, bottom: float) -> list[Markup]:
    """Horizontal lines at 0, 25, …, 100 percent, and their numbers."""
    parts = []
    for level in range(0, 101, 25):
        y = bottom - level / 100 * (bottom - top)
        parts.append(tag("path", d=f"M{left} {_n(y)}H{right}", class_="grid"))
        parts.append(tag("text", level, x=left - 6, y=_n(y + 4), text_anchor="end"))
    return parts


def _axis_label(x: float, y: float, text: str) -> Markup:
    return tag("text", text, x=_n(x), y=_n(y), text_anchor="middle")


def _connected(points: Sequence[tuple[float, float, Markup]], style: int) -> Markup:
    """A line, and a mark with its title on every point; the invisible disc is easier to hit with a finger."""
    path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y, _ in points) if points else ""
    marks = [
        tag("g", title, tag("circle", cx=_n(x), cy=_n(y), r=9, class_="hit"), _mark(x, y, style))
        for x, y, title in points
    ]
    return tag("g", tag("path", d=path, class_="line"), *marks, class_=_colour(style))


def _mark(x: float, y: float, style: int) -> Markup:
    shape = MARKS[style % len(MARKS)]  # five shapes and six colours: thirty series before a pair repeats
    return tag("path", d=shape, transform=f"translate({_n(x)} {_n(y)})", class_="mark")


def _colour(style: int) -> str:
    return f"s{style % COLOURS}"


def _n(number: float) -> str:
    """A coordinate; a tenth of a pixel is enough."""
    return f"{number:.1f}".removesuffix(".0")


def _compact(count: int) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if count >= size:
            return f"{count / size:.{0 if count >= 10 * size else 1}f}{unit}"
    return str(count)

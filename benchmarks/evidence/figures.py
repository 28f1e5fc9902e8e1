"""Line charts of evidence/page.py as SVG files: shares of pairs over gamma, alpha or a floor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.report.charts import Axis, Frame
from pipeline.report.markup import esc, minus
from pipeline.report.page import standalone_charts

FRAME = Frame(width=720, height=340, left=56, right=150, top=34, bottom=44)
COLOURS = ("#1d5f96", "#d66c14", "#3f7d3a", "#7a4a9e", "#6d6f73")
DASHES = ("", "8 3", "2 3", "8 3 2 3", "1 2")
LEAST = 13.0  # between two names


@dataclass(frozen=True)
class Line:
    """A line's name and its points, (value, share), in the order in which they stand on the page; `style` is the number of its
    colour and dashes, its place among the lines where it has none."""

    name: str
    points: list[tuple[float, float]]
    style: int | None = None


def draw_lines(title: str, lines: Sequence[Line], horizontal: str) -> str:
    """An SVG file: the values equally spaced, as gamma's come ever closer to 1; a broken line at one half. All lines have the
    same values."""
    values = [value for value, _ in lines[0].points]
    shares = np.array([100 * share for line in lines for _, share in line.points] + [50.0])
    framed = Axis.framing(shares, 6)
    axis = Axis(max(framed.low, 0), min(framed.high, 100), framed.step, "%")
    x, y = Axis(0, max(len(values) - 1, 1), 1).scale(FRAME.left + 8, FRAME.end - 8), axis.scale(FRAME.floor, FRAME.top)
    parts = [FRAME.rows(axis, y), f'<path class="chance" d="M{FRAME.left} {y(50):.1f}H{FRAME.end}"/>']
    for i, value in enumerate(values):
        text = f"{value:g}".replace("0.", ".")  # or they would touch
        parts.append(f'<text class="tick" x="{x(i):.1f}" y="{FRAME.floor + 18}" text-anchor="middle">{text}</text>')
    names = _apart([y(100 * line.points[-1][1]) for line in lines])
    for number, line in enumerate(lines):
        which = number if line.style is None else line.style
        colour, dash = COLOURS[which % len(COLOURS)], DASHES[which % len(DASHES)]
        path = "L".join(f"{x(i):.1f} {y(100 * share):.1f}" for i, (_, share) in enumerate(line.points))
        style = f"stroke:{colour};stroke-dasharray:{dash or 'none'}"
        parts.append(f'<path class="line" style="{style}" d="M{path}"/>')
        for i, (value, share) in enumerate(line.points):
            touch = f"{esc(line.name)}, {horizontal} {value:g}: {share:.1%}"
            parts.append(
                f'<circle cx="{x(i):.1f}" cy="{y(100 * share):.1f}" r="2.5" fill="{colour}"><title>{touch}</title></circle>'
            )
        at = f'x="{FRAME.end + 6}" y="{names[number] + 4:.1f}"'
        parts.append(f'<text {at} style="fill:{colour}">{esc(line.name)}</text>')
    parts.append(FRAME.names(horizontal, ""))
    [drawn] = standalone_charts(str(FRAME.draw(minus(title), parts))).values()
    return drawn


def _apart(places: Sequence[float]) -> list[float]:
    """Heights of names, moved down where they would cover each other."""
    made = [0.0] * len(places)
    last = -np.inf
    for number in sorted(range(len(places)), key=lambda number: places[number]):
        last = made[number] = max(places[number], last + LEAST)
    return made

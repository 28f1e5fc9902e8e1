"""Charts of figures with their intervals: rewards side by side, accuracy by length, best-of-n, and a heat map.

A dot is a figure and the line through it its 95% interval; chance is a broken line. Numbers stand beside the marks or
in the cells, so that nothing depends on colour alone.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from pipeline.evaluation.documents import Curve, LengthGroup, Matrix
from pipeline.report.charts import Axis, Frame
from pipeline.report.markup import esc, minus, render
from pipeline.store.summary import plain

Interval = tuple[float, float] | list[float]

SMALL = Frame(width=340, height=236, left=46, right=12, top=30, bottom=46)
ROW = 46  # height of one line of `draw_intervals`
DOT, LEAST_DOT = 4.0, 2.0  # radii in `draw_by_length`
FAINTEST, FULLEST = 0.14, 0.62  # opacity of a heat map's lowest and highest cell: the lowest is not an empty one


def share(value: float | None) -> str:
    """`51.0%`; a dash where there is none."""
    return "\N{EN DASH}" if value is None else minus(f"{value:.1%}")


def figure_text(value: float | None, as_share: bool = True) -> str:
    """A figure as it is read: a percentage where it is a share, else four figures."""
    return share(value) if as_share or value is None else minus(plain(value))


def interval_text(interval: Interval | None, as_share: bool = True) -> str:
    """`47.1% to 55.0%`; empty where there is none."""
    return " to ".join(figure_text(end, as_share) for end in interval) if interval else ""


def draw_intervals(
    rows: Sequence[tuple[str, float, Interval | None]], chance: float | None, name: str, as_share: bool = True
) -> Markup:
    """Chart: a line for each row (name, figure, interval; at least one), in the order given.

    `name` is what the figure is called; `chance` is what guessing gives.
    """
    size, unit = (100, "%") if as_share else (1, "")
    ends = [end for _, value, interval in rows for end in (interval or [value])] + [v for _, v, _ in rows]
    ends += [] if chance is None else [chance]
    framed = Axis.framing(np.array(ends) * size, 7)
    low, high = framed.low, framed.high
    if as_share and min(ends) >= 0:
        low, high = max(low, 0), min(high, 100)
    axis = Axis(low, high, framed.step, unit)
    frame = Frame(height=34 + ROW * len(rows) + 44, left=16, right=24)
    x = axis.scale(frame.left, frame.end)
    parts = [frame.columns([v for v in axis.values() if low <= v <= high + 1e-9], axis, x, grid=True)]
    if chance is not None:
        at = x(chance * size)
        anchor = "middle" if 60 < at < frame.end - 60 else "start" if at <= 60 else "end"
        tops = [frame.top - 6, *(frame.top + ROW * i + 25 for i in range(len(rows)))]  # it leaves out the names
        parts.append(
            f'<path class="chance" d="{"".join(f"M{at:.1f} {top}v{10 if top < frame.top else 20}" for top in tops)}"/>'
        )
        label = f"chance {figure_text(chance, as_share)}"
        parts.append(f'<text class="chance" x="{at:.1f}" y="{frame.top - 12}" text-anchor="{anchor}">{label}</text>')
    for i, (row, value, interval) in enumerate(rows):
        top, centre = frame.top + ROW * i, frame.top + ROW * i + 33
        within = f" <tspan>({interval_text(interval, as_share)})</tspan>" if interval else ""
        parts.append(f'<text class="name" x="{frame.left}" y="{top + 18}">{esc(row)}</text>')
        text = figure_text(value, as_share)
        parts.append(f'<text class="name" x="{frame.end}" y="{top + 18}" text-anchor="end">{text}{within}</text>')
        if interval:
            left, right = (x(end * size) for end in interval)
            parts.append(f'<path class="whisker" d="M{left:.1f} {centre}H{right:.1f}"/>')
        parts.append(f'<circle class="dot" cx="{x(value * size):.1f}" cy="{centre}" r="5"/>')
    description = f"{name}: " + "; ".join(
        f"{row} {figure_text(value, as_share)} ({interval_text(interval, as_share)})" for row, value, interval in rows
    )
    return frame.draw(description, parts)


def draw_by_length(groups: Sequence[LengthGroup], name: str) -> Markup:
    """Chart: accuracy by the difference in length, a dot for each group of pairs; the groups are equally wide.

    A dot's area is in proportion to its pairs: `DOT` is the radius of a tenth of them, `LEAST_DOT` the smallest.

    Args:
        groups: at least one, in the order of their lengths.
        name: whose accuracy.
    """
    y_axis, edges = Axis(0, 100, 25, "%"), Axis(0, len(groups), 1)
    x, y = edges.scale(SMALL.left, SMALL.end), y_axis.scale(SMALL.floor, SMALL.top)
    parts = [SMALL.rows(y_axis, y), f'<path class="chance" d="M{SMALL.left} {y(50):.1f}H{SMALL.end}"/>']
    bounds = [group.low for group in groups] + [groups[-1].high]
    for i in range(0, len(bounds), max(1, len(bounds) // 5)):
        parts.append(f'<path class="grid" d="M{x(i):.1f} {SMALL.floor}v4"/>')
        text = minus(f"{bounds[i]:,.0f}")
        parts.append(f'<text class="tick" x="{x(i):.1f}" y="{SMALL.floor + 18}" text-anchor="middle">{text}</text>')
    pairs = sum(group.pairs for group in groups)
    for i, group in enumerate(groups):
        if group.accuracy is None:
            continue
        at, radius = x(i + 0.5), max(DOT * math.sqrt(10 * group.pairs / pairs), LEAST_DOT)
        if group.interval:
            low, high = (y(100 * end) for end in group.interval)
            parts.append(f'<path class="whisker" d="M{at:.1f} {low:.1f}V{high:.1f}"/>')
        tooltip = minus(f"{group.low:,.0f} to {group.high:,.0f} tokens: ")
        tooltip += f"{share(group.accuracy)} of {group.pairs:,} pairs ({interval_text(group.interval)})"
        parts.append(
            f'<circle class="dot" cx="{at:.1f}" cy="{y(100 * group.accuracy):.1f}" r="{radius:.2f}">'
            f"<title>{tooltip}</title></circle>"
        )
    parts.append(SMALL.names("chosen less rejected, tokens", ""))
    return SMALL.draw(f"Accuracy of {name} by the chosen response's length less the rejected one's.", parts)


def draw_curve(curve: Curve, name: str, axis: Axis) -> Markup:
    """Chart: the mean score of the best of n responses by the reward, beside the best there is and a random one.

    Args:
        name: whose choice.
        axis: of the scores, the same for all rewards that are compared.
    """
    counts = curve.n
    steps = Axis(0, max(len(counts) - 1, 1), 1)
    x, y = steps.scale(SMALL.left + 8, SMALL.end - 8), axis.scale(SMALL.floor, SMALL.top)
    size = 100 if axis.unit else 1
    parts = [SMALL.rows(axis, y)]
    for i, count in enumerate(counts):
        parts.append(f'<text class="tick" x="{x(i):.1f}" y="{SMALL.floor + 18}" text-anchor="middle">{count:,}</text>')
    for kind in ("random", "oracle", "score"):
        if values := curve.line(kind):
            points = "L".join(f"{x(i):.1f} {y(size * value):.1f}" for i, value in enumerate(values))
            parts.append(f'<path class="line {kind}" d="M{points}"/>')
    for i, value in enumerate(curve.score):
        tooltip = f"best of {counts[i]:,}: {figure_text(value, bool(axis.unit))}"
        parts.append(
            f'<circle class="dot" cx="{x(i):.1f}" cy="{y(size * value):.1f}" r="4"><title>{tooltip}</title></circle>'
        )
    parts.append(SMALL.names("n", ""))
    return SMALL.draw(f"Score of the best of n responses by {name}.", parts)


def curve_axis(curves: Sequence[Curve]) -> Axis:
    """An axis that holds every line of `curves`; in percent where all values are shares."""
    values = np.array([v for curve in curves for kind in ("score", "oracle", "random") for v in curve.line(kind)])
    if values.min() < 0 or values.max() > 1:
        return Axis.framing(values, 4)
    axis = Axis.framing(100 * values, 4)
    return Axis(max(axis.low, 0), min(axis.high, 100), axis.step, "%")


def draw_matrices(matrices: list[tuple[str, Matrix]]) -> Markup:
    """Heat maps as tables of shares side by side: the darker (in the dark: the brighter), the higher.

    All are on one scale, from the lowest to the highest cell of them all, which is shown once.

    Args:
        matrices: of each reward its name and its matrix; at least one.
    """
    values = [v for _, matrix in matrices for row in matrix.values for v in row if v is not None]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)

    def opacity(value: float) -> str:
        part = (value - low) / ((high - low) or 1)
        return f"{FAINTEST + (FULLEST - FAINTEST) * part:.2f}"

    steps = [opacity(low + (high - low) * i / 7) for i in range(8)] if high > low else []
    maps = [(name, matrix, _heat_rows(matrix, opacity)) for name, matrix in matrices]
    return render("heat_maps", low=share(low), steps=steps, high=share(high), maps=maps)


def _heat_rows(matrix: Matrix, opacity: Callable[[float], str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each row's name and its cells: a share, and how opaque its ground is (empty where there is no value)."""
    return [
        (name, [(share(v), "" if v is None else opacity(v)) for v in values])
        for name, values in zip(matrix.rows, matrix.values, strict=True)
    ]

"""Charts of what a run measured, step by step: raw values, a smoothed line over them, and evaluations as rings.

A long curve is thinned as M4 does (Jugel et al. 2014, doi 10.14778/2732951.2732953): of each column of the drawing the
first, lowest, highest and last value, so that it looks as if all were drawn. Chosen is the accent colour and solid,
rejected is grey and broken.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import numpy as np
from markupsafe import Markup

from pipeline.report.charts import Axis
from pipeline.report.markup import esc, minus
from pipeline.report.shares import SMALL
from pipeline.store.summary import plain

Points = list[tuple[int, float]]  # (step, value), in the order of steps; every value is finite

COLUMNS = 140  # of a long curve; two units of the drawing each
TOUCHES = 40  # places to point at
SINGLE_POINTS = 60  # values that are drawn as points, not as a line
RINGS = 40  # evaluations that have a ring each
MANY = 50  # values of which a few may lie beyond the frame
FAR = 2.0  # ... where the range of all is that many times the range of most
SMOOTHED_OVER = 50  # the standard deviation of the smoothing is this part of the values, but one value at least


@dataclass(frozen=True)
class Curve:
    """One quantity: `kind` is its class in the style sheet, `name` what it is called where there are several."""

    kind: str
    name: str
    train: Points
    evaluated: Points
    smoothed: bool = True


def draw_curves(
    description: str, curves: list[Curve], last: int, resumed: list[int], guide: float | None, share: bool
) -> Markup:
    """Chart: the curves over steps 0 to `last`. At least one value in all.

    Args:
        description: what the chart shows, for those who cannot see it.
        resumed: steps after which the run was started again.
        guide: a value that the curves are held against, such as chance; left out where it lies beyond the frame.
        share: whether the values are shares, read as percentages.
    """
    axis, size, power = _value_axis(curves, share)
    y = axis.scale(SMALL.floor, SMALL.top)
    ticks = Axis.framing(np.array([0, max(last, 1)]), 4, least=1)
    steps = Axis(0, max(last, 1), ticks.step)
    x = steps.scale(SMALL.left, SMALL.end)
    within = [value for value in ticks.values() if value <= steps.high]
    parts = [SMALL.rows(axis, y), SMALL.columns(within, ticks, x, grid=False)]
    if guide is not None and axis.low <= guide * size <= axis.high:
        parts.append(f'<path class="chance" d="M{SMALL.left} {y(guide * size):.1f}H{SMALL.end}"/>')
    parts += [f'<path class="resumed" d="M{x(step):.1f} {SMALL.floor}V{SMALL.top}"/>' for step in resumed]

    def place(points: Points) -> list[str]:
        return [f"{x(step):.1f} {y(min(max(v * size, axis.low), axis.high)):.1f}" for step, v in points]

    for curve in curves:
        parts.append(_raw(curve, place))
    for curve in curves:
        if len(curve.train) > 1:
            smooth = thinned(smoothed(curve.train) if curve.smoothed else curve.train)
            parts.append(f'<path class="line {curve.kind}" d="M{"L".join(place(smooth))}"/>')
    for curve in curves:
        if curve.evaluated:
            parts.append(_evaluated(curve, place))
    parts.append(_touches(curves, max(last, 1), x, share))
    parts.append(SMALL.names("step", power))
    return SMALL.draw(description, parts)


def beyond(curves: list[Curve], share: bool) -> list[float]:
    """The values that lie beyond the frame of their chart and are drawn at its edge, the farthest first."""
    axis, size, _ = _value_axis(curves, share)
    low, high = axis.low / size, axis.high / size
    values = [value for curve in curves for _, value in curve.train]
    return sorted((v for v in values if not low <= v <= high), key=lambda v: -max(low - v, v - high))


def thinned(points: Points, columns: int = COLUMNS) -> Points:
    """At most four points of each of `columns` equal parts of the steps: the first, lowest, highest and last of it."""
    if len(points) <= 4 * columns:
        return points
    x, y = (np.array(side, np.float64) for side in zip(*points, strict=True))
    part = np.minimum((x - x[0]) / (x[-1] - x[0]) * columns, columns - 1).astype(int)
    starts = [*np.flatnonzero(np.diff(part, prepend=-1)).tolist(), len(points)]
    corners = [
        {first, first + int(y[first:end].argmin()), first + int(y[first:end].argmax()), end - 1}
        for first, end in pairwise(starts)
    ]
    return [points[i] for part in corners for i in sorted(part)]


def smoothed(points: Points) -> Points:
    """A mean of each value's neighbours with Gaussian weights, which has no lag; at the ends of those there are."""
    spread = max(1.0, len(points) / SMOOTHED_OVER)
    reach = min(math.ceil(3 * spread), (len(points) - 1) // 2)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / spread) ** 2)
    values = np.array([value for _, value in points])
    means = np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same")
    return [(step, mean) for (step, _), mean in zip(points, means.tolist(), strict=True)]


def value_text(value: float, share: bool) -> str:
    """A value as it is read."""
    return minus(f"{value:.1%}" if share else plain(value))


def _value_axis(curves: list[Curve], share: bool) -> tuple[Axis, float, str]:
    """The vertical axis, what values are multiplied with to lie on it, and what it says of that.

    It frames every value, or where a few lie far off, every evaluation and the middle 98% of each curve.
    """
    ends, middle = [], []
    for curve in curves:
        evaluated = [value for _, value in curve.evaluated]
        values = [value for _, value in curve.train]
        ends += evaluated + values
        cuts = (0.01, 0.99) if len(values) >= MANY else (0.0, 1.0)
        middle += evaluated + ([float(end) for end in np.quantile(values, cuts)] if values else [])
    low, high = min(ends), max(ends)
    if high - low > FAR * (max(middle) - min(middle)):
        low, high = min(middle), max(middle)
    if share:
        axis = Axis.framing(np.array([low, high]) * 100, 4)
        return Axis(max(axis.low, 0), min(axis.high, 100), axis.step, "%"), 100.0, ""
    top = max(abs(low), abs(high))
    power = 3 * math.floor(math.log10(top) / 3) if top and not 0.01 <= top < 10_000 else 0
    if high - low < 1e-9 * top:  # one value, but for rounding
        low = high
    size = 10.0**-power
    name = f'\N{MULTIPLICATION SIGN}10<tspan dy="-4" font-size="75%">{minus(str(power))}</tspan>' if power else ""
    return Axis.framing(np.array([low, high]) * size, 4), size, name


def _raw(curve: Curve, place: Callable[[Points], list[str]]) -> str:
    points = place(thinned(curve.train))
    if not curve.smoothed and len(points) > 1:
        return ""
    if len(points) <= SINGLE_POINTS:
        dots = (f'<circle class="raw {curve.kind}" cx="{at[0]}" cy="{at[1]}" r="2"/>' for at in map(str.split, points))
        return "".join(dots)
    return f'<path class="raw {curve.kind}" d="M{"L".join(points)}"/>'


def _evaluated(curve: Curve, place: Callable[[Points], list[str]]) -> str:
    points = place(thinned(curve.evaluated))
    line = f'<path class="line eval {curve.kind}" d="M{"L".join(points)}"/>'
    if len(points) > RINGS:
        return line
    rings = (f'<circle class="eval {curve.kind}" cx="{at[0]}" cy="{at[1]}" r="3.2"/>' for at in map(str.split, points))
    return line + "".join(rings)


def _touches(curves: list[Curve], last: int, x: Callable[[float], float], share: bool) -> str:
    """What a person reads who points at the chart: of some steps the mean and the range."""
    step_of, count = itemgetter(0), min(TOUCHES, last)
    edges = [round(last * i / count) for i in range(count + 1)]
    cuts = [[bisect_right(curve.train, edge, key=step_of) for edge in edges] for curve in curves]
    parts = []
    for i, (low, high) in enumerate(pairwise(edges)):
        lines = [f"step {high:,}" if high - low == 1 else f"steps {low + 1:,} to {high:,}"]
        for curve, cut in zip(curves, cuts, strict=True):
            values = [value for _, value in curve.train[cut[i] : cut[i + 1]]]
            name = f"{curve.name} " if curve.name else ""
            if len(values) == 1:
                lines.append(f"{name}{value_text(values[0], share)}")
            elif values:
                within = " to ".join(value_text(end, share) for end in (min(values), max(values)))
                lines.append(f"{name}{value_text(math.fsum(values) / len(values), share)} ({within})")
            lines += [
                f"{name}on kept prompts at step {step:,}: {value_text(value, share)}"
                for step, value in curve.evaluated
                if low < step <= high
            ]
        if len(lines) > 1:
            parts.append(
                f'<rect class="touch" x="{x(low):.1f}" y="{SMALL.top}" width="{x(high) - x(low):.1f}" '
                f'height="{SMALL.floor - SMALL.top}"><title>{esc(chr(10).join(lines))}</title></rect>'
            )
    return "".join(parts)

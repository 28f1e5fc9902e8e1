"""Charts of labels as inline SVG, rewards as a histogram and rewards against length, and the axes of every chart.

Colours come from the page's style sheet by class, so that one drawing serves light, dark and paper. Chosen is the
accent colour and filled, rejected is grey and hollow: the two differ without colour too. Both frame the middle 99% of the
values and say how many lie beyond.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from pipeline.report.markup import esc, minus, render
from pipeline.store.summary import signed

Series = dict[str, np.ndarray]  # kind of response ("chosen", "rejected", "other") -> its values, [n]

MAX_POINTS = 4000


@dataclass(frozen=True)
class Axis:
    """A range of values with round ends, multiples of `step`."""

    low: float
    high: float
    step: float
    unit: str = ""

    @classmethod
    def framing(cls, values: np.ndarray, steps: float, least: float = 0.0) -> "Axis":
        """The middle 99% of `values` ([n], n >= 1; fewer than 200 are all framed) in about `steps` round steps.

        No step is smaller than `least`, which is 0, 1, 2 or 5 times a power of ten.
        """
        low = float(np.quantile(values, 0.005, method="lower"))
        high = float(np.quantile(values, 0.995, method="higher"))
        if low == high:
            pad = abs(low) / 10 or 1.0
            low, high = low - pad, high + pad
        step = max(least, _round_step((high - low) / steps))
        return cls(math.floor(low / step) * step, math.ceil(high / step) * step, step)

    def values(self) -> np.ndarray:
        """Every multiple of `step` from end to end."""
        first, last = round(self.low / self.step), round(self.high / self.step)
        return np.arange(first, last + 1) * self.step

    def text(self, value: float) -> str:
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return minus(f"{round(value, decimals) + 0.0:,.{decimals}f}") + self.unit

    def scale(self, start: float, end: float) -> Callable[[float], float]:
        """Values to positions: `low` to `start`, `high` to `end`."""
        return lambda value: start + (value - self.low) / (self.high - self.low) * (end - start)


@dataclass(frozen=True)
class Frame:
    """A chart's size and the room around its axes, in units of the drawing."""

    width: int = 720
    height: int = 320
    left: int = 56
    right: int = 16
    top: int = 34
    bottom: int = 44

    @property
    def end(self) -> int:
        """Where the horizontal axis ends."""
        return self.width - self.right

    @property
    def floor(self) -> int:
        """Where the vertical axis begins."""
        return self.height - self.bottom

    def rows(self, axis: Axis, y: Callable[[float], float]) -> str:
        """Horizontal grid lines with their values."""
        return "".join(
            f'<path class="grid" d="M{self.left} {y(v):.1f}H{self.end}"/>'
            f'<text class="tick" x="{self.left - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{axis.text(v)}</text>'
            for v in axis.values()
            if axis.low <= v <= axis.high
        )

    def columns(self, values: "list[float] | np.ndarray", axis: Axis, x: Callable[[float], float], grid: bool) -> str:
        """Values under the horizontal axis, with a line each or a short tick."""
        top, bottom = (self.top, self.floor) if grid else (self.floor, self.floor + 4)
        return "".join(
            f'<path class="grid" d="M{x(v):.1f} {top}V{bottom}"/>'
            f'<text class="tick" x="{x(v):.1f}" y="{self.floor + 18}" text-anchor="middle">{axis.text(v)}</text>'
            for v in values
        )

    def names(self, horizontal: str, vertical: str) -> str:
        """What the axes show."""
        return (
            f'<text class="axis" x="{self.end}" y="{self.height - 6}" text-anchor="end">{horizontal}</text>'
            f'<text class="axis" x="{self.left - 8}" y="{self.top - 18}" text-anchor="end">{vertical}</text>'
        )

    def draw(self, description: str, parts: list[str]) -> Markup:
        """The drawing; `description` is for those who cannot see it."""
        attributes = f'viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{esc(minus(description))}"'
        return Markup(f'<svg class="chart" {attributes}>{"".join(parts)}</svg>')


FRAME = Frame()


def bin_edges(rewards: np.ndarray) -> np.ndarray:
    """Round histogram edges, [bins + 1], for `rewards` ([n], n >= 1): finer where there are more."""
    return Axis.framing(rewards, min(36.0, 6 + math.sqrt(len(rewards)))).values()


def bin_counts(rewards: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[bins] counts; what lies beyond the edges is in the end bins."""
    return np.histogram(np.clip(rewards, edges[0], edges[-1]), edges)[0]


def draw_histogram(rewards: Series) -> Markup:
    """Figure: how often each reward occurs, a layer for each kind of response. At least one value in all."""
    together = np.concatenate(list(rewards.values()))
    edges = bin_edges(together)
    counts = {kind: bin_counts(values, edges) for kind, values in rewards.items()}
    ticks = Axis.framing(edges, 6)
    x = Axis(edges[0], edges[-1], ticks.step).scale(FRAME.left, FRAME.end)
    heights = Axis.framing(np.array([0, max(c.max() for c in counts.values())]), 4, least=1)
    y = heights.scale(FRAME.floor, FRAME.top)
    within = [value for value in ticks.values() if edges[0] <= value <= edges[-1]]
    parts = [FRAME.rows(heights, y), FRAME.columns(within, ticks, x, grid=False)]
    for kind, count in counts.items():
        steps = "".join(f"V{y(n):.1f}H{x(right):.1f}" for n, right in zip(count, edges[1:], strict=True))
        parts.append(f'<path class="area {kind}" d="M{x(edges[0]):.1f} {y(0):.1f}{steps}V{y(0):.1f}"/>')
    for kind, values in rewards.items():
        at = x(float(np.clip(values.mean(), edges[0], edges[-1])))
        parts.append(f'<path class="mean {kind}" d="M{at:.1f} {y(0):.1f}V{FRAME.top}"/>')
    for i, (low, high) in enumerate(pairwise(edges)):
        counted = ", ".join(f"{count[i]} {_noun(kind, rewards)}" for kind, count in counts.items())
        parts.append(
            f'<rect class="touch" x="{x(low):.1f}" y="{FRAME.top}" width="{x(high) - x(low):.1f}" '
            f'height="{FRAME.floor - FRAME.top}"><title>{minus(f"{low:.6g} to {high:.6g}")}: {counted}</title></rect>'
        )
    parts.append(FRAME.names("reward", "labels"))
    beyond = int(((together < edges[0]) | (together > edges[-1])).sum())
    note = f"The end bars hold the {beyond:,} labels beyond the frame." if beyond else ""
    means = "; ".join(f"{_noun(k, rewards)}: {len(v):,} labels, mean {signed(v.mean())}" for k, v in rewards.items())
    names = {kind: f"{_noun(kind, rewards)}, mean {signed(values.mean())}" for kind, values in rewards.items()}
    return _figure(f"Histogram of rewards. {means}.", parts, names, True, note)


def draw_scatter(tokens: Series, rewards: Series) -> Markup:
    """Figure: reward against length, a point for each label; at most `MAX_POINTS`, evenly taken. At least one point.

    Lengths are whole numbers, so points are spread within a third of a token to either side of theirs.
    """
    all_x, all_y = np.concatenate(list(tokens.values())), np.concatenate(list(rewards.values()))
    x_axis, y_axis = Axis.framing(all_x, 6, least=1), Axis.framing(all_y, 5)
    half = (
        (FRAME.end - FRAME.left) / (x_axis.high - x_axis.low + 1) / 2
    )  # of a token, so that spread points stay in the frame
    x, y = x_axis.scale(FRAME.left + half, FRAME.end - half), y_axis.scale(FRAME.floor, FRAME.top)
    parts = [FRAME.rows(y_axis, y), FRAME.columns(x_axis.values(), x_axis, x, grid=True)]
    every = math.ceil(len(all_x) / MAX_POINTS)
    points: list[tuple[int, str]] = []  # layers take turns, so that none lies on top of the other
    beyond = 0
    for kind in tokens:
        for i, (length, reward) in enumerate(zip(tokens[kind].tolist(), rewards[kind].tolist(), strict=True)):
            if not (x_axis.low <= length <= x_axis.high and y_axis.low <= reward <= y_axis.high):
                beyond += 1
            elif i % every == 0:
                spread = length + ((i * 0.618 + 0.5) % 1 - 0.5) * 0.66
                points.append((i, f'<circle class="{kind}" cx="{x(spread):.1f}" cy="{y(reward):.1f}" r="3"/>'))
    parts += ['<g class="points">', *(mark for _, mark in sorted(points, key=lambda point: point[0])), "</g>"]
    parts.append(FRAME.names("response length, tokens", "reward"))
    note = f"{beyond:,} labels lie beyond the frame." if beyond else ""
    names = {kind: _noun(kind, tokens) for kind in tokens}
    return _figure(f"Reward against response length in tokens, {len(all_x):,} labels.", parts, names, False, note)


def _round_step(size: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below `size`, but for rounding."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size * (1 - 1e-9))


def _noun(kind: str, series: Series) -> str:
    return ("responses" if len(series) == 1 else "no preference") if kind == "other" else kind


def _figure(description: str, parts: list[str], names: dict[str, str], filled: bool, note: str) -> Markup:
    mark = '<path class="area {}" d="M1 1H13V9H1Z"/>' if filled else '<circle class="{}" cx="7" cy="5" r="4"/>'
    keys = [(Markup(mark).format(kind), minus(name)) for kind, name in names.items()]
    return render("figure", keys=keys, chart=FRAME.draw(description, parts), note=note)

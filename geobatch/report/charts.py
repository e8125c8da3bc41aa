"""Charts as SVG paths in the frames of `figures`: curves, bars, dots, spans. No script, nothing from outside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.dates
import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator

from geobatch.report.figures import (
    MARGIN_LEFT,
    MARGIN_RIGHT,
    MARGIN_TOP,
    TALLEST,
    VIEW_WIDTH,
    ClassStyle,
    ColorBar,
    Frame,
    Mark,
    Panel,
    Tick,
)

Array = npt.NDArray[Any]
# More points than a screen has columns show no more.
MOST_POINTS = 1600
MOST_DOTS = 8000
INK, ALERT, SOFT, SECOND = "#4477aa", "#d1495b", "#9aa5b1", "#d98c21"
LINE_COLORS = ("#4477aa", "#d98c21", "#2f9e6e", "#b25690", "#5bb5d6", "#8a6d3b")
MOST_NAMES = 40
MAP_LEFT = 90.0


@dataclass(frozen=True)
class Axis:
    """The numbers along one side of a chart.

    Attributes:
        low: At the left or at the bottom; larger than `high` on an axis that grows downwards.
        high: At the other end.
        label: With unit.
        ticks: Value and text.
        log: Places go by logarithms.
    """

    low: float
    high: float
    label: str
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, values: Any) -> Array:
        """Where values lie, from 0 at `low` to 1 at `high`, cut off there."""
        values, low, high = np.asarray(values, np.float64), self.low, self.high
        if self.log:
            values, low, high = np.log10(np.maximum(values, 1e-300)), math.log10(low), math.log10(high)
        places: Array = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
        return places


def linear(low: float, high: float, label: str, *, count: int = 6, down: bool = False) -> Axis:
    """An axis of numbers; `down` puts the smallest at the top."""
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    values = [float(v) for v in MaxNLocator(nbins=count).tick_values(low, high) if low <= v <= high]
    ticks = tuple((v, spelled(0.0 if abs(v) < 1e-9 * (high - low) else v)) for v in values)
    return Axis(*((high, low) if down else (low, high)), label, ticks)


def logarithmic(low: float, high: float, label: str) -> Axis:
    """An axis of powers of ten."""
    low, high = max(low, 1e-300), max(high, low * 10, 1e-299)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    step = max(1, len(powers) // 8)
    ticks = tuple((10.0**p, f"{10.0**p:g}") for p in powers if p % step == 0 and low <= 10.0**p <= high)
    if len(ticks) < 2:
        ticks = tuple(
            (m * 10.0**p, f"{m * 10.0**p:g}") for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high
        )
    return Axis(low, high, label, ticks, log=True)


def of_time(start_ns: int, end_ns: int, label: str = "time (UTC)") -> Axis:
    """An axis of times, ns since 1970; places are those of ns as float64."""
    low, high = (float(t) / 86_400e9 for t in (start_ns, max(end_ns, start_ns + 1)))
    dates: Any = matplotlib.dates
    locator = dates.AutoDateLocator(minticks=3, maxticks=7)
    formatter = dates.ConciseDateFormatter(locator)
    days = [float(day) for day in locator.tick_values(*dates.num2date([low, high])) if low <= day <= high]
    texts = formatter.format_ticks(days)
    about = formatter.get_offset()
    ticks = tuple((day * 86_400e9, text) for day, text in zip(days, texts, strict=True))
    return Axis(float(start_ns), float(max(end_ns, start_ns + 1)), f"{label}, {about}" if about else label, ticks)


def of_names(names: Sequence[str], label: str = "", *, longest: int = 24) -> Axis:
    """An axis with one place per name, from the top down; the middle of place i is i + 0.5."""
    step = -(-len(names) // MOST_NAMES)
    ticks = tuple((i + 0.5, shortened(name, longest)) for i, name in enumerate(names) if i % step == 0)
    return Axis(float(len(names)), 0.0, label, ticks)


class Chart:
    """A frame between two axes that things are drawn into.

    Args:
        x: To the right.
        y: Upwards.
        ratio: Height per width.
        left: Room for the labels of y.
        height: In view units, in place of the ratio.
    """

    def __init__(
        self, x: Axis, y: Axis, ratio: float = 0.55, left: float = MARGIN_LEFT, height: float | None = None
    ) -> None:
        width = VIEW_WIDTH - left - MARGIN_RIGHT
        if height is None:
            width = min(width, TALLEST / ratio)
            height = width * ratio
        x_ticks = tuple(Tick(left + width * float(x.place(value)), text) for value, text in x.ticks)
        y_ticks = tuple(Tick(MARGIN_TOP + height * (1 - float(y.place(value))), text) for value, text in y.ticks)
        self.x, self.y = x, y
        self.frame = Frame(width, height, x.label, y.label, x_ticks, y_ticks, left=left)
        self.marks: list[Mark] = []

    def line(self, x: Array, y: Array, color: str = INK, width: float = 1.3) -> None:
        """A curve, broken where a value is not finite; of many points the extremes per column are drawn."""
        for part_x, part_y in _unbroken(np.asarray(x, np.float64), np.asarray(y, np.float64)):
            thin_x, thin_y = _thinned(part_x, part_y)
            points = self._points(thin_x, thin_y)
            start = points[0] if len(points) > 1 else f"{points[0]}h0.1"
            self.marks.append(Mark(f"M{start}" + "".join(f"L{point}" for point in points[1:]), color, width))

    def bars(self, edges: Array, heights: Array, color: str = INK) -> None:
        """Bars between edges, from the lower end of y; empty ones are left out."""
        kept = np.flatnonzero(np.asarray(heights) > 0)
        base = self.y.low
        self.areas(edges[:-1][kept], edges[1:][kept], np.full(kept.size, base), np.asarray(heights)[kept], color)

    def areas(
        self, left: Array, right: Array, bottom: Array, top: Array, color: str, least: float = 0.0, opacity: float = 1.0
    ) -> None:
        """Rectangles, at least `least` view units wide."""
        x0, x1 = self._across(left), self._across(right)
        y0, y1 = self._down(bottom), self._down(top)
        x1 = np.maximum(x1, x0 + least)
        parts = [f"M{a:.1f} {c:.1f}H{b:.1f}V{d:.1f}H{a:.1f}Z" for a, b, c, d in zip(x0, x1, y0, y1, strict=True)]
        if parts:
            self.marks.append(Mark("".join(parts), color, filled=True, opacity=opacity))

    def dots(self, x: Array, y: Array, color: str = INK, size: float = 3.0, opacity: float = 1.0) -> None:
        """Round dots."""
        points = self._points(np.asarray(x, np.float64), np.asarray(y, np.float64))
        if points:
            self.marks.append(Mark("".join(f"M{point}h0" for point in points), color, size, opacity=opacity))

    def upright(self, x: float, color: str = ALERT, width: float = 1.4) -> None:
        """A line from bottom to top."""
        at = float(self._across(np.array(x)))
        self.marks.append(Mark(f"M{at:.1f} {self.frame.top:.1f}v{self.frame.height:.1f}", color, width))

    def panel(
        self,
        title: str,
        *,
        legend: Sequence[tuple[str, str]] = (),
        note: str = "",
        picture: str = "",
        bar: ColorBar | None = None,
        pixelated: bool = False,
    ) -> Panel:
        """What was drawn, with a legend of names and colours."""
        classes = tuple(ClassStyle(i, name, color) for i, (name, color) in enumerate(legend))
        return Panel(title, picture, self.frame, pixelated, classes, bar, tuple(self.marks), note)

    def _points(self, x: Array, y: Array) -> list[str]:
        across, down = self._across(x), self._down(y)
        return [f"{a:.1f} {b:.1f}" for a, b in zip(across.tolist(), down.tolist(), strict=True)]

    def _across(self, x: Array) -> Array:
        return np.asarray(self.frame.left + self.frame.width * self.x.place(x))

    def _down(self, y: Array) -> Array:
        return np.asarray(self.frame.top + self.frame.height * (1 - self.y.place(y)))


def position_chart(
    found: Sequence[tuple[Array, Array, str, str]],
    box: tuple[float, float, float, float],
    unit: str,
    size: float = 2.0,
) -> Chart:
    """Dots on a map that is true to scale: x, y, name and colour of each kind, within west, east, south, north."""
    west, east, south, north = box
    squeeze = _squeeze(unit, south, north)
    wide, tall = (east - west) * squeeze, north - south
    # Space around the dots; a line in one direction becomes a strip and no hair.
    side = max(wide, tall, 1e-9)
    pad_x, pad_y = (0.04 * side + max(0.0, 0.1 * side - extent / 2) for extent in (wide, tall))
    x_label, y_label = _map_labels(unit)
    x = linear(west - pad_x / squeeze, east + pad_x / squeeze, x_label, count=4)
    y = linear(south - pad_y, north + pad_y, y_label, count=5)
    chart = Chart(x, y, (tall + 2 * pad_y) / (wide + 2 * pad_x), left=MAP_LEFT)
    for xs, ys, _, color in found:
        chart.dots(xs, ys, color, size)
    return chart


def position_frame(x: Array, y: Array, unit: str) -> Frame:
    """The frame of a picture of cells whose centres are at ascending x and y, true to scale up to 1:5."""
    steps = [abs(v[-1] - v[0]) / max(v.size - 1, 1) or 1.0 for v in (x, y)]
    half_x, half_y = steps[0] / 2, steps[1] / 2
    wide, tall = x.size * steps[0] * _squeeze(unit, y[0], y[-1]), y.size * steps[1]
    x_label, y_label = _map_labels(unit)
    across = linear(float(x[0] - half_x), float(x[-1] + half_x), x_label, count=4)
    upwards = linear(float(y[0] - half_y), float(y[-1] + half_y), y_label, count=5)
    return Chart(across, upwards, min(max(tall / wide, 0.2), 5.0), left=MAP_LEFT).frame


def _squeeze(unit: str, south: float, north: float) -> float:
    """How much shorter a unit of x is than one of y: of degrees the cosine of the latitude."""
    return math.cos(math.radians(min(89.0, abs(south + north) / 2))) if unit.startswith("deg") else 1.0


def _map_labels(unit: str) -> tuple[str, str]:
    if unit.startswith("deg"):
        return "longitude (°)", "latitude (°)"
    return (f"easting ({unit})", f"northing ({unit})") if unit else ("easting", "northing")


def over(panel: Panel, marks: Sequence[Mark], legend: Sequence[tuple[str, str]] = (), note: str = "") -> Panel:
    """A panel with more marks, and their names in its legend."""
    more = tuple(ClassStyle(-1, name, color) for name, color in legend)
    notes = " ".join(filter(None, (panel.note, note)))
    return dataclasses.replace(panel, marks=(*panel.marks, *marks), classes=(*panel.classes, *more), note=notes)


def dots_over(frame: Frame, columns: Array, rows: Array, shape: tuple[int, int], color: str, size: float) -> Mark:
    """Dots on cells of a picture of `shape` rows and columns."""
    x = frame.left + frame.width * (np.asarray(columns) + 0.5) / shape[1]
    y = frame.top + frame.height * (np.asarray(rows) + 0.5) / shape[0]
    return Mark("".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x.tolist(), y.tolist(), strict=True)), color, size)


def histogram(values: Array, label: str, title: str, *, bins: int = 80, note: str = "", tails: float = 0.1) -> Panel:
    """How often values occur between two percentiles; what lies beyond is in the first and the last bar."""
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    if not finite.size:
        return Chart(linear(0, 1, label), linear(0, 1, "count")).panel(title, note="no finite value")
    low, high = (float(v) for v in np.percentile(finite, [tails, 100 - tails]))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    beyond = float(((finite < low) | (finite > high)).mean())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    shares = 100 * np.histogram(np.clip(finite, low, high), edges)[0] / finite.size
    chart = Chart(linear(edges[0], edges[-1], label), linear(0, float(shares.max()) * 1.05, "share of values (%)"))
    chart.bars(edges, shares)
    told = f"{beyond:.2%} lie beyond the ends and stand in the outermost bars." if beyond else ""
    return chart.panel(title, note=" ".join(filter(None, (note, told))))


def spelled(value: float) -> str:
    """A number on an axis: plain while it is short."""
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return f"{value:,.10g}" if abs(value) >= 10_000 else f"{value:.10g}"
    return f"{value:.3g}"


def shortened(text: str, longest: int) -> str:
    """A name that fits."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def thin_out(count: int, most: int = MOST_DOTS) -> Array:
    """At most so many positions, evenly among `count`."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def _unbroken(x: Array, y: Array) -> Iterator[tuple[Array, Array]]:
    good = np.isfinite(x) & np.isfinite(y)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], good, [False])).astype(np.int8)))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        yield x[start:end], y[start:end]


def _thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """Of many points the smallest and largest value in each of some hundred parts, in their order.

    The values are those of x where y grows all along, as in a log over depth.
    """
    if x.size <= MOST_POINTS:
        return x, y
    if np.all(np.diff(y) > 0):
        thin_y, thin_x = _thinned_values(y, x)
        return thin_x, thin_y
    return _thinned_values(x, y)


def _thinned_values(x: Array, y: Array) -> tuple[Array, Array]:
    parts = np.array_split(np.arange(x.size), MOST_POINTS // 2)
    kept = np.unique(np.concatenate([[p[y[p].argmin()], p[y[p].argmax()]] for p in parts]))
    return x[kept], y[kept]

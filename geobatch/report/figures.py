"""Pictures of sections and maps: one pixel per cell, with the axes drawn around them as SVG.

The axes are SVG text in the page's own colours, so that they stay sharp, follow light and dark themes and shrink
with the page; only the cells are a picture.
"""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from geobatch.survey import INVALID_CLASS, class_flags

Array = npt.NDArray[Any]
Rgba = npt.NDArray[np.uint8]

MAX_PIXELS = 2000
VIEW_WIDTH = 480.0
TALLEST = 420.0
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 62.0, 20.0, 8.0, 40.0
OVERLAY_OPACITY = 0.55
BACKGROUND_NAMES = {"background", "none", "no_fault", "not_fault", "non_fault", "nonfault", "no_salt", "other"}
HEX_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
# Okabe & Ito 2008, distinguishable with colour-blind vision; used where the survey names no colour.
FALLBACK_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")


@dataclass(frozen=True)
class ClassStyle:
    """A class as it is drawn."""

    value: int
    name: str
    color: str

    @property
    def is_background(self) -> bool:
        """True for the class that an overlay leaves out."""
        return re.sub(r"[\s-]+", "_", self.name.lower()) in BACKGROUND_NAMES


@dataclass(frozen=True)
class Tick:
    """A label and its place on the axis, in view units."""

    place: float
    label: str


@dataclass(frozen=True)
class ColorBar:
    """A colour scale: CSS colours from first to last, with the values at its ends."""

    colors: tuple[str, ...]
    first: str
    last: str
    label: str


@dataclass(frozen=True)
class Frame:
    """Where the cells lie in a panel and how its axes are labelled, in view units."""

    width: float
    height: float
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: float = MARGIN_LEFT
    top: float = MARGIN_TOP

    @property
    def view_width(self) -> float:
        """Width of the whole panel."""
        return VIEW_WIDTH

    @property
    def view_height(self) -> float:
        """Height of the whole panel."""
        return MARGIN_TOP + self.height + MARGIN_BOTTOM


@dataclass(frozen=True)
class Mark:
    """Lines, dots or areas over a panel, in view units: an SVG path, stroked or filled."""

    path: str
    color: str
    width: float = 1.2
    filled: bool = False
    opacity: float = 1.0


@dataclass(frozen=True)
class Panel:
    """A picture, marks or both within a frame, and the legend as class styles or as a colour bar.

    Attributes:
        title: What it shows.
        picture: Data URI of its cells, empty for marks alone.
        frame: Where it lies, with its axes.
        pixelated: Cells stay sharp when they are enlarged.
        classes: Legend of colours.
        bar: Legend of a colour map.
        marks: What is drawn over the picture.
        note: A sentence below, such as how much of the data is shown.
    """

    title: str
    picture: str
    frame: Frame
    pixelated: bool = False
    classes: tuple[ClassStyle, ...] = ()
    bar: ColorBar | None = None
    marks: tuple[Mark, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Panels under one heading, with a sentence on what they show."""

    title: str
    note: str
    panels: list[Panel]


def class_styles(attributes: Mapping[str, Any]) -> list[ClassStyle]:
    """The classes of a map in CF flag attributes, as lists or as blank-separated words; 255 is left out.

    Colours come from the data and end in a style sheet, so anything but `#rrggbb` is replaced.
    """
    values, names, colors = class_flags(attributes)
    styles = []
    for place, value in enumerate(values):
        if value == INVALID_CLASS:
            continue
        name = names[place].replace("_", " ") if place < len(names) else f"class {value}"
        color = colors[place] if place < len(colors) and HEX_COLOR.fullmatch(colors[place]) else None
        styles.append(ClassStyle(value, name, color or FALLBACK_COLORS[value % len(FALLBACK_COLORS)]))
    return styles


def amplitude_rgba(values: Array, lower: float, upper: float, colormap: str) -> Rgba:
    """Amplitudes between two limits in a colour map, transparent where invalid."""
    span = upper - lower
    scaled = (values - lower) / span if span > 0 else np.full(values.shape, 0.5)
    valid = np.isfinite(values)
    rgba: Rgba = matplotlib.colormaps[colormap](np.where(valid, scaled, 0), bytes=True)
    rgba[~valid, 3] = 0
    return rgba


def class_rgba(classes: Array, styles: Sequence[ClassStyle]) -> Rgba:
    """Classes in their colours, transparent where invalid."""
    table = np.zeros((256, 4), dtype=np.uint8)
    for style in styles:
        table[style.value] = (*bytes.fromhex(style.color[1:]), 255)
    return table[classes]


def overlay_rgba(amplitude: Rgba, classes: Array, styles: Sequence[ClassStyle]) -> Rgba:
    """Class colours over an amplitude picture; background classes and invalid cells let it through."""
    colors = class_rgba(classes, [style for style in styles if not style.is_background])
    opacity = colors[..., 3:] / 255 * OVERLAY_OPACITY
    mixed = amplitude.copy()
    mixed[..., :3] = np.round(amplitude[..., :3] * (1 - opacity) + colors[..., :3] * opacity)
    return mixed


def picture(rgba: Rgba, *, exact: bool = False) -> str:
    """A WebP data URI of rows of pixels, thinned to at most 2000 a side; `exact` keeps every colour as it is."""
    rows, columns = (math.ceil(length / MAX_PIXELS) for length in rgba.shape[:2])
    quality = {"lossless": True} if exact else {"quality": 88}
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(rgba[::rows, ::columns]), format="webp", pil_kwargs=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def section_frame(x: Array, y: Array, x_label: str, y_label: str, height_per_width: float) -> Frame:
    """The frame of a vertical section: lines to the right, time or depth downwards."""
    return _frame(x, y, x_label, y_label, min(max(height_per_width, 0.5), 1.1), upwards=False)


def map_frame(x: Array, y: Array, x_label: str, y_label: str, height_per_width: float) -> Frame:
    """The frame of a map: crosslines to the right, inlines upwards, true to the bin spacing up to 1:5."""
    return _frame(x, y, x_label, y_label, min(max(height_per_width, 0.2), 5.0), upwards=True)


def color_bar(colormap: str, first: str, last: str, label: str) -> ColorBar:
    """The legend of a colour map in nine stops."""
    stops = matplotlib.colormaps[colormap](np.linspace(0, 1, 9), bytes=True)
    return ColorBar(tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b, _ in stops), first, last, label)


def _frame(x: Array, y: Array, x_label: str, y_label: str, height_per_width: float, *, upwards: bool) -> Frame:
    width = VIEW_WIDTH - MARGIN_LEFT - MARGIN_RIGHT
    width = min(width, TALLEST / height_per_width)
    height = width * height_per_width
    x_ticks = tuple(Tick(MARGIN_LEFT + width * place, label) for place, label in _ticks(x, 6))
    y_ticks = tuple(
        Tick(MARGIN_TOP + height * (1 - place if upwards else place), label) for place, label in _ticks(y, 6)
    )
    return Frame(width, height, x_label, y_label, x_ticks, y_ticks)


def _ticks(values: Array, count: int) -> list[tuple[float, str]]:
    """Round values on an axis and their place between its first and last edge, in [0, 1]."""
    low, high = float(values.min()), float(values.max())
    if values.size == 1:
        return [(0.5, f"{low:.10g}")]
    order = np.argsort(values)
    ticks = MaxNLocator(nbins=count, integer=bool(np.all(values == np.round(values)))).tick_values(low, high)
    inside = [float(tick) for tick in ticks if low <= tick <= high]
    places = (np.interp(inside, values[order], order) + 0.5) / values.size
    return [(float(place), f"{tick:.10g}") for place, tick in zip(places, inside, strict=True)]

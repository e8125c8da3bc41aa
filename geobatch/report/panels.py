"""The panels of a report: the pictures of each section and the maps, with what stands beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.report.figures import (
    ClassStyle,
    Frame,
    Panel,
    amplitude_rgba,
    class_rgba,
    color_bar,
    map_frame,
    overlay_rgba,
    picture,
    section_frame,
)
from geobatch.report.record import FAILED, NOT_SCORED, PARTLY, SCORED, RunRecord
from geobatch.report.sections import ScoredSurvey, Section
from geobatch.survey import INVALID_CLASS

Array = npt.NDArray[Any]

DISPLAY_PERCENTILE = 99.0
NOMINAL_VELOCITY_M_S = 2000.0
PROBABILITY_COLORMAP = "magma"
LIVE, DEAD, MISSING = 0, 1, 2
ERROR_STYLES = (ClassStyle(0, "right", "#c9d6df"), ClassStyle(1, "wrong", "#d1495b"))
TRACE_STYLES = (ClassStyle(LIVE, "live", "#7a9cc6"), ClassStyle(DEAD, "dead", "#d1495b"))
BLOCK_STYLES = (
    ClassStyle(SCORED, "scored", "#5aa07a"),
    ClassStyle(PARTLY, "in part", "#b5cf8f"),
    ClassStyle(FAILED, "holds a failed block", "#d1495b"),
    ClassStyle(NOT_SCORED, "not scored", "#9a9a9a"),
)


@dataclass(frozen=True)
class SectionView:
    """A section's title, its panels in the order of reading, and a collapsed row with one panel per class."""

    title: str
    scale: str
    panels: list[Panel]
    per_class: list[Panel]


@dataclass(frozen=True)
class AmplitudeScale:
    """How amplitudes are drawn: limits, colour map and legend."""

    lower: float
    upper: float
    colormap: str
    label: str


def amplitude_scale(survey: ScoredSurvey, sections: list[Section]) -> AmplitudeScale | None:
    """One scale for all sections: symmetric about zero for data of both signs, else from percentile to percentile."""
    if survey.amplitude is None:
        return None
    return scale_of([s.amplitude for s in sections if s.amplitude is not None], survey.amplitude)


def scale_of(sections: Sequence[Array], array: xr.DataArray) -> AmplitudeScale | None:
    """The scale of sections of an array, whose name and unit are its label; None where no value is finite."""
    found = [values[np.isfinite(values)] for values in sections]
    values = np.concatenate(found) if found else np.empty(0)
    if not values.size:
        return None
    name = str(array.attrs.get("long_name") or array.name or "amplitude")
    units = array.attrs.get("units")
    label = f"{name} ({units})" if units and str(units) != "1" else name
    if values.min() < 0 < values.max():
        limit = float(np.percentile(np.abs(values), DISPLAY_PERCENTILE))
        return AmplitudeScale(-limit, limit, "RdBu_r", label)
    lower, upper = np.percentile(values, [100 - DISPLAY_PERCENTILE, DISPLAY_PERCENTILE])
    return AmplitudeScale(float(lower), float(upper), "viridis", label)


def section_view(survey: ScoredSurvey, section: Section, scale: AmplitudeScale | None) -> SectionView:
    """The pictures of one section."""
    vertical = section.axis != "sample"
    frame, note = _section_frame(survey, section)
    classes, styles = _rows(section.classes, vertical), tuple(survey.styles)
    panels = []
    if section.amplitude is not None and scale is not None:
        panels += _amplitude_panels(_rows(section.amplitude, vertical), scale, classes, styles, frame)
    panels.append(class_panel("Prediction", classes, frame, styles))
    if section.truth is not None:
        panels.append(class_panel("Ground truth", _rows(section.truth, vertical), frame, styles))
    per_class = []
    if section.probability is not None:
        stack = np.stack([_rows(part, vertical) for part in section.probability])
        panels.append(_leading_probability(stack, styles, frame))
        if len(stack) > 2:
            named = zip(styles, stack, strict=False)
            per_class = [_probability_panel(f"Probability of {style.name}", part, frame) for style, part in named]
    return SectionView(_title(survey, section), note, panels, per_class)


def error_panel(survey: ScoredSurvey, section: Section) -> Panel:
    """Where a section with labels is right and where it is not."""
    vertical = section.axis != "sample"
    frame, _ = _section_frame(survey, section)
    truth = np.full_like(section.classes, INVALID_CLASS) if section.truth is None else section.truth
    truth, given = _rows(truth, vertical), _rows(section.classes, vertical)
    state = np.where((truth == INVALID_CLASS) | (given == INVALID_CLASS), INVALID_CLASS, truth != given)
    return class_panel("Errors", state.astype(np.uint8), frame, ERROR_STYLES)


def trace_map(survey: ScoredSurvey) -> tuple[Panel | None, dict[str, int]]:
    """Where traces are live, dead or missing, and how many of each; nothing when no mask is at hand."""
    dataset = survey.source if survey.source is not None and "live_mask" in survey.source else survey.scored
    if "live_mask" not in dataset:
        return None, {}
    state = trace_state(dataset.transpose("inline", "crossline", ...))
    counts = {name: int((state == value).sum()) for value, name in enumerate(("live", "dead", "missing"))}
    return _map_panel(survey, "Traces", state, TRACE_STYLES), counts


def trace_state(dataset: xr.Dataset) -> npt.NDArray[np.uint8]:
    """`LIVE`, `DEAD` or `MISSING` per trace, on the axes of `live_mask`."""
    live = np.asarray(dataset["live_mask"].values, dtype=bool)
    recorded = np.asarray(dataset["trace_index"].values) >= 0 if "trace_index" in dataset else np.ones_like(live)
    return np.where(live, LIVE, np.where(recorded, DEAD, MISSING)).astype(np.uint8)


def block_panel(survey: ScoredSurvey, record: RunRecord) -> Panel | None:
    """The state of the blocks under each place of the survey; nothing without a plan of this shape."""
    state = record.block_map()
    if state is None or record.block_cells is None:
        return None
    shape, shard = record.block_cells
    if shape != tuple(survey.scored.sizes[axis] for axis in ("inline", "crossline", "sample")):
        return None
    inlines, crosslines = (np.arange(cells) // block for cells, block in zip(shape[:2], shard[:2], strict=True))
    present = set(state.ravel().tolist())
    styles = tuple(style for style in BLOCK_STYLES if style.value in present)
    return _map_panel(survey, "Blocks", state[np.ix_(inlines, crosslines)], styles)


def _amplitude_panels(
    amplitude: Array, scale: AmplitudeScale, classes: Array, styles: tuple[ClassStyle, ...], frame: Frame
) -> list[Panel]:
    """The amplitudes alone, and in grey under the predicted classes."""
    colored = amplitude_rgba(amplitude, scale.lower, scale.upper, scale.colormap)
    overlay = overlay_rgba(amplitude_rgba(amplitude, scale.lower, scale.upper, "gray"), classes, styles)
    shown = tuple(style for style in styles if not style.is_background)
    bar = color_bar(scale.colormap, number(scale.lower), number(scale.upper), scale.label)
    return [
        Panel("Amplitude", picture(colored), frame, bar=bar),
        Panel("Prediction over amplitude", picture(overlay), frame, classes=shown),
    ]


def _map_panel(survey: ScoredSurvey, title: str, state: Array, styles: tuple[ClassStyle, ...]) -> Panel | None:
    if min(state.shape) == 1:
        return None
    return class_panel(title, state[::-1], _map_frame(survey), styles)


def class_panel(title: str, classes: Array, frame: Frame, styles: tuple[ClassStyle, ...]) -> Panel:
    """Classes in their colours, `(row, column)` as they are drawn."""
    return Panel(title, picture(class_rgba(classes, styles), exact=True), frame, pixelated=True, classes=styles)


def _leading_probability(stack: Array, styles: tuple[ClassStyle, ...], frame: Frame) -> Panel:
    """The probability of the second of two classes, or of the likeliest of several."""
    if len(stack) == 2:
        wanted = 0 if len(styles) > 1 and styles[1].is_background else 1
        name = styles[wanted].name if wanted < len(styles) else f"class {wanted}"
        return _probability_panel(f"Probability of {name}", stack[wanted], frame)
    return _probability_panel("Probability of the predicted class", stack.max(axis=0), frame)


def _probability_panel(title: str, values: Array, frame: Frame) -> Panel:
    bar = color_bar(PROBABILITY_COLORMAP, "0", "1", "probability")
    return Panel(title, picture(amplitude_rgba(values, 0, 1, PROBABILITY_COLORMAP)), frame, bar=bar)


def _rows(values: Array, vertical: bool) -> Array:
    """A section as rows of pixels: samples downwards, or inlines upwards."""
    return values.T if vertical else values[::-1]


def _section_frame(survey: ScoredSurvey, section: Section) -> tuple[Frame, str]:
    if section.axis == "sample":
        return _map_frame(survey), ""
    line = section.axes[0]
    spacing = _spacing_m(survey, line)
    in_time = survey.info.get("domain", "time") == "time"
    return vertical_frame(survey.axis_values(line), survey.axis_values("sample"), _line_label(line), in_time, spacing)


def vertical_frame(lines: Array, samples: Array, label: str, in_time: bool, spacing: float | None) -> tuple[Frame, str]:
    """The frame of a section over lines `spacing` metres apart, and how much it is exaggerated where that is known."""
    distance_m = lines.size * (spacing or 1.0)
    extent = abs(samples[-1] - samples[0]) * samples.size / max(samples.size - 1, 1)
    height_m = extent / 1000 / 2 * NOMINAL_VELOCITY_M_S if in_time else extent
    vertical = "TWT (ms)" if in_time else "depth (m)"
    frame = section_frame(lines, samples, label, vertical, height_m / distance_m)
    if spacing is None:
        return frame, ""
    exaggeration = frame.height / frame.width / (height_m / distance_m)
    at = f" at {NOMINAL_VELOCITY_M_S:.0f} m/s" if in_time else ""
    return frame, f"{distance_m / 1000:.3g} km long, vertical exaggeration {exaggeration:.2g}{at}"


def _map_frame(survey: ScoredSurvey) -> Frame:
    extents = [survey.scored.sizes[axis] * (_spacing_m(survey, axis) or 1.0) for axis in ("inline", "crossline")]
    inlines, crosslines = survey.axis_values("inline"), survey.axis_values("crossline")
    return map_frame(crosslines, inlines, _line_label("crossline"), _line_label("inline"), extents[0] / extents[1])


def _spacing_m(survey: ScoredSurvey, line: str) -> float | None:
    grid = survey.info.get("bin_grid") or survey.source_info.get("bin_grid")
    spacing = grid.get(f"{line}_spacing_m") if isinstance(grid, dict) else None
    return float(spacing) if isinstance(spacing, int | float) and spacing > 0 else None


def _line_label(axis: str) -> str:
    return f"{axis} number"


def _title(survey: ScoredSurvey, section: Section) -> str:
    if section.axis != "sample":
        return f"{section.axis.capitalize()} {section.value:.10g}"
    if survey.info.get("domain", "time") == "time":
        return f"Time slice at {section.value:.10g} ms"
    return f"Depth slice at {section.value:.10g} m"


def number(value: float) -> str:
    """A value to read off a colour bar: four digits, with separators rather than powers of ten while it is short."""
    return f"{float(f'{value:.4g}'):,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"

"""Pictures of seismic data for `geobatch inspect`: sections, maps of traces, fold, positions, amplitudes, spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.formats.seismic_inspect import clipped
from geobatch.report.charts import (
    ALERT,
    SECOND,
    SOFT,
    Chart,
    dots_over,
    histogram,
    linear,
    over,
    position_chart,
    spelled,
    thin_out,
)
from geobatch.report.figures import (
    MAX_PIXELS,
    Frame,
    Group,
    Panel,
    amplitude_rgba,
    class_styles,
    color_bar,
    map_frame,
    picture,
)
from geobatch.report.panels import (
    DEAD,
    LIVE,
    MISSING,
    TRACE_STYLES,
    AmplitudeScale,
    class_panel,
    number,
    scale_of,
    trace_state,
    vertical_frame,
)
from geobatch.sample import Plane, TraceSample, read_plane
from geobatch.spectrum import BAND_DB, trace_spectrum
from geobatch.survey import INVALID_CLASS

Array = npt.NDArray[Any]
PLACES = (
    ("cdp_x", "cdp_y", "bins", "#4477aa"),
    ("source_x", "source_y", "sources", "#d98c21"),
    ("receiver_x", "receiver_y", "receivers", "#2f9e6e"),
)
LOWEST_DB = -60.0
MOST_PLACES = 1_000_000
MAP_PLACES = 5000


@dataclass(frozen=True)
class Seismic:
    """A data set of traces or classes and what is known of it."""

    dataset: xr.Dataset
    info: dict[str, Any]
    told: dict[str, Any]

    @property
    def in_time(self) -> bool:
        """True for two-way time, false for depth."""
        return bool(self.info.get("domain", "time") == "time")

    def values(self, axis: str) -> Array:
        """Numbers along an axis; positions where it has none."""
        if axis in self.dataset.variables and self.dataset[axis].ndim == 1:
            return np.asarray(self.dataset[axis].values, np.float64)
        return np.arange(self.dataset.sizes[axis], dtype=np.float64)

    def spacing_m(self, axis: str) -> float | None:
        """Metres between lines, or between the traces of a line."""
        grid, line = self.told.get("bin_grid") or {}, self.told.get("line") or {}
        found = grid.get(f"{axis}_spacing_m") or (line.get("spacing_median_m") if axis == "trace" else None)
        return float(found) if found else None


def seismic_groups(
    dataset: xr.Dataset, info: dict[str, Any], told: dict[str, Any], sampled: TraceSample | None
) -> list[Group]:
    """The pictures of a volume, of gathers or of single traces; planes and traces are as bounded as `sample` is."""
    survey = Seismic(dataset, info, told)
    groups = [Group("Where the traces are", "", _maps(survey, sampled)), _sections(survey)]
    if sampled is not None and len(sampled.traces):
        groups.append(_amplitudes(survey, sampled))
    return groups


def class_groups(dataset: xr.Dataset, info: dict[str, Any], told: dict[str, Any]) -> list[Group]:
    """The pictures of a volume of classes."""
    survey, volume = Seismic(dataset, info, told), dataset["class_map"]
    styles = tuple(class_styles(volume.attrs))
    panels = []
    for title, axes, at in _planes(survey, tuple(map(str, volume.dims))):
        plane = read_plane(volume, axes, at)
        rows, frame, notes = _oriented(survey, plane, axes)
        classes = np.nan_to_num(rows.astype(np.float64), nan=INVALID_CLASS).astype(np.uint8)
        panels.append(over(class_panel(title, classes, frame, styles), (), note=notes))
    return [Group("Classes", "Hatched: no class.", panels)]


def _sections(survey: Seismic) -> Group:
    array = survey.dataset[survey.info["variable"]]
    found = []
    for title, axes, at in _planes(survey, tuple(map(str, array.dims))):
        plane = read_plane(array, axes, at)
        found.append((title, axes, _masked(survey, plane, axes, at), plane))
    scale = scale_of([values for _, _, values, _ in found], array)
    panels = [_section_panel(survey, title, axes, values, plane, scale) for title, axes, values, plane in found]
    return Group("Sections", "Drawn to the 99th percentile. Hatched: no valid sample.", panels)


def _planes(survey: Seismic, dims: tuple[str, ...]) -> list[tuple[str, tuple[str, str], dict[str, int]]]:
    """Title, axes and position on the other axes of each plane that is shown: through the middle of what is live."""
    middle = _middle(survey, dims)
    places = [d for d in dims if d != "sample"]
    thick = [d for d in places if survey.dataset.sizes[d] > 1]
    if survey.dataset.sizes["sample"] == 1:
        thick, lines = [], []
    else:
        lines = [d for d in ("crossline", "inline", "trace") if d in places]
    found: list[tuple[str, tuple[str, str], dict[str, int]]] = []
    for along in lines:
        if along in thick or len(dims) == 2:
            at = {d: middle[d] for d in places if d != along}
            said = ", ".join(f"{d} {survey.values(d)[i]:.10g}" for d, i in at.items())
            found.append((said[:1].upper() + said[1:] or "Traces in their order", (along, "sample"), at))
    for third in ("offset", "angle"):
        if third in thick:
            at = {d: middle[d] for d in places if d != third}
            said = ", ".join(f"{d} {survey.values(d)[i]:.10g}" for d, i in at.items())
            found.append((f"Gather at {said}", (third, "sample"), at))
    if {"inline", "crossline"} <= set(thick) or survey.dataset.sizes["sample"] == 1:
        at = {d: middle[d] for d in dims if d not in ("inline", "crossline")}
        unit = "ms" if survey.in_time else "m"
        said = ", ".join(
            f"{survey.values(d)[i]:.10g} {unit}" if d == "sample" else f"{d} {survey.values(d)[i]:.10g}"
            for d, i in at.items()
        )
        found.append((f"{'Time' if survey.in_time else 'Depth'} slice at {said}", ("inline", "crossline"), at))
    return found


def _middle(survey: Seismic, dims: tuple[str, ...]) -> dict[str, int]:
    """On each axis the middle position, or of gathers the live trace with most others of its offset and its bin."""
    middle = {d: survey.dataset.sizes[d] // 2 for d in dims}
    if "live_mask" not in survey.dataset:
        return middle
    mask = survey.dataset["live_mask"]
    live = np.asarray(mask.values, np.bool_)
    for place, dim in enumerate(map(str, mask.dims)):
        if dim not in middle or dim == "trace":
            continue
        counts = live.sum(axis=tuple(a for a in range(live.ndim) if a != place))
        good = np.flatnonzero(counts >= 0.9 * counts.max())
        middle[dim] = int(good[np.abs(good - middle[dim]).argmin()])
    return middle


def _masked(survey: Seismic, plane: Plane, axes: tuple[str, str], at: dict[str, int]) -> Array:
    """A plane with NaN where traces are dead or missing."""
    values = np.asarray(plane.values, np.float32)
    if "live_mask" not in survey.dataset:
        return values
    mask = survey.dataset["live_mask"]
    parts = dict(zip(axes, plane.parts, strict=True))
    live = mask.isel({d: parts.get(str(d), at.get(str(d), 0)) for d in mask.dims}).values
    live = live if axes[1] != "sample" else np.broadcast_to(live[:, None], values.shape)
    return np.where(live, values, np.float32(np.nan))


def _oriented(survey: Seismic, plane: Plane, axes: tuple[str, str]) -> tuple[Array, Frame, str]:
    """A plane as rows of pixels, its frame, and what is to be said of it."""
    first, second = (survey.values(axis)[part] for axis, part in zip(axes, plane.parts, strict=True))
    notes = [f"{note}." for note in plane.notes]
    if axes[1] == "sample":
        spacing = survey.spacing_m(axes[0])
        step = plane.parts[0].step or 1
        label = {"trace": "trace", "offset": "offset", "angle": "angle (degrees)"}.get(axes[0], f"{axes[0]} number")
        frame, scale = vertical_frame(first, second, label, survey.in_time, spacing * step if spacing else None)
        return plane.values.T, frame, " ".join([*([f"{scale}."] if scale else []), *notes])
    return plane.values[::-1], _map_of(survey, first, second), " ".join(notes)


def _map_of(survey: Seismic, inlines: Array, crosslines: Array) -> Frame:
    """The frame of a map of bins, true to their spacing."""
    sides = []
    for axis, values in (("inline", inlines), ("crossline", crosslines)):
        whole = survey.values(axis)
        step = (values[1] - values[0]) / (whole[1] - whole[0]) if values.size > 1 and whole[1] != whole[0] else 1.0
        sides.append(values.size * abs(step) * (survey.spacing_m(axis) or 1.0))
    return map_frame(crosslines, inlines, "crossline number", "inline number", sides[0] / sides[1])


def _section_panel(
    survey: Seismic, title: str, axes: tuple[str, str], values: Array, plane: Plane, scale: AmplitudeScale | None
) -> Panel:
    rows, frame, note = _oriented(survey, Plane(values, plane.parts, plane.notes), axes)
    if scale is None:
        return Panel(title, "", frame, note="No sample is valid here.")
    bar = color_bar(scale.colormap, number(scale.lower), number(scale.upper), scale.label)
    return Panel(
        title, picture(amplitude_rgba(rows, scale.lower, scale.upper, scale.colormap)), frame, bar=bar, note=note
    )


def _maps(survey: Seismic, sampled: TraceSample | None) -> list[Panel]:
    """Live, dead and clipped traces on the grid, fold, and positions of single traces."""
    dataset, panels = survey.dataset, []
    sizes = [dataset.sizes.get(axis, 0) for axis in ("inline", "crossline")]
    if "live_mask" in dataset and min(sizes) > 1:
        state = _thinned(trace_state(dataset))
        frame = _map_of(survey, survey.values("inline"), survey.values("crossline"))
        panel = class_panel("Traces" if dataset["live_mask"].ndim == 2 else "Bins", state[::-1], frame, TRACE_STYLES)
        panels.append(_with_clipped(panel, survey, sampled, (sizes[0], sizes[1])))
        if "fold" in dataset:
            panels.append(_fold_panel(np.asarray(dataset["fold"].values), frame))
    places = _positions(survey)
    return [*panels, *([places] if places else [])]


def _thinned(state: Array) -> Array:
    """As many states as a picture shows: a bin is live where any trace is, a cell of many bins dead where any is."""
    if state.ndim > 2:
        state = state.min(axis=tuple(range(2, state.ndim)))
    steps = [-(-size // MAX_PIXELS) for size in state.shape]
    if max(steps) == 1:
        return state
    dead, missing = state == DEAD, state == MISSING
    for axis, step in enumerate(steps):
        starts = np.arange(0, state.shape[axis], step)
        dead = np.logical_or.reduceat(dead, starts, axis=axis)
        missing = np.logical_and.reduceat(missing, starts, axis=axis)
    return np.where(dead, DEAD, np.where(missing, MISSING, LIVE)).astype(np.uint8)


def _with_clipped(panel: Panel, survey: Seismic, sampled: TraceSample | None, shape: tuple[int, int]) -> Panel:
    """The map with dots on sampled traces that are clipped."""
    if sampled is None or survey.info.get("quantity") != "amplitude":
        return over(panel, (), note="Hatched: no trace.")
    bad = np.flatnonzero(clipped(sampled.traces))
    if not bad.size:
        return over(panel, (), note=f"Hatched: no trace. No clipped trace among {sampled.text}.")
    bad = bad[thin_out(bad.size)]
    rows = shape[0] - 1 - sampled.index[0][bad]
    mark = dots_over(panel.frame, sampled.index[1][bad], rows, shape, SECOND, 3.5)
    return over(panel, [mark], [("clipped", SECOND)], f"Hatched: no trace. Clipped traces among {sampled.text}.")


def _fold_panel(fold: Array, frame: Frame) -> Panel:
    """Traces per bin; bins without any are left out."""
    shown = np.where(fold > 0, fold, np.nan).astype(np.float64)
    held = shown[np.isfinite(shown)]
    low, high = (float(held.min()), float(held.max())) if held.size else (0.0, 1.0)
    rgba = amplitude_rgba(shown[::-1], low, high, "viridis")
    bar = color_bar("viridis", spelled(low), spelled(high), "traces per bin")
    return Panel("Fold", picture(rgba, exact=True), frame, pixelated=True, bar=bar)


def _positions(survey: Seismic) -> Panel | None:
    """Positions of bins, sources and receivers on the map, as far as they vary."""
    found, unit, ends = [], "", []
    for x_name, y_name, name, color in PLACES:
        if x_name not in survey.dataset or y_name not in survey.dataset:
            continue
        unit = str(survey.dataset[x_name].attrs.get("units") or unit)
        x, y = (_spread_values(survey.dataset[n]) for n in (x_name, y_name))
        good = np.flatnonzero(np.isfinite(x) & np.isfinite(y) & ((x != 0) | (y != 0)))
        if good.size < 2 or not (np.ptp(x[good]) or np.ptp(y[good])):
            continue
        kept = good[thin_out(good.size, MAP_PLACES)]
        found.append((x[kept], y[kept], name, color))
        ends.append((x[good].min(), x[good].max(), y[good].min(), y[good].max()))
    if not found:
        return None
    west, east = min(e[0] for e in ends), max(e[1] for e in ends)
    south, north = min(e[2] for e in ends), max(e[3] for e in ends)
    return position_chart(found, (west, east, south, north), unit or "m").panel(
        "Positions", legend=[(name, color) for _, _, name, color in found]
    )


def _spread_values(array: xr.DataArray) -> Array:
    """Values of a map or a column, every n-th along each axis; a map as many as are drawn, so that they lie evenly."""
    most = math.ceil((MAP_PLACES if array.ndim > 1 else MOST_PLACES) ** (1 / array.ndim))
    steps = {dim: slice(None, None, -(-size // most)) for dim, size in array.sizes.items()}
    return np.asarray(array.isel(steps).values, np.float64).ravel()


def _amplitudes(survey: Seismic, sampled: TraceSample) -> Group:
    array = survey.dataset[survey.info["variable"]]
    units = str(array.attrs.get("units") or "")
    name = str(survey.info.get("quantity") or array.name)
    values = sampled.traces[np.isfinite(sampled.traces)]
    panels = [histogram(values, f"{name} ({units})" if units and units != "1" else name, "Distribution")]
    figures = survey.told.get("spectrum")
    spectrum = None
    if figures:
        interval, unit = float(survey.info["sample_interval"]), str(survey.info["sample_unit"])
        spectrum = trace_spectrum(sampled.traces, interval, unit)
    if figures and spectrum is not None:
        x = linear(0, figures["nyquist"], f"frequency ({figures['unit']})", count=8)
        chart = Chart(x, linear(LOWEST_DB, 3, "mean amplitude (dB of the largest)"))
        chart.areas(
            np.array([figures["low"]]),
            np.array([figures["high"]]),
            np.array([LOWEST_DB]),
            np.array([3.0]),
            SOFT,
            opacity=0.18,
        )
        level = spectrum.level_db
        chart.line(spectrum.frequency, np.maximum(level, LOWEST_DB), width=1.6)
        chart.upright(figures["dominant"], SECOND)
        for line in figures["hum_hz"]:
            chart.upright(line, ALERT)
        hum = [("mains hum?", ALERT)] if figures["hum_hz"] else []
        legend = [("dominant", SECOND), (f"above {BAND_DB:g} dB", SOFT), *hum]
        panels.append(chart.panel("Mean spectrum", legend=legend, note=f"Welch, {spectrum.segment_samples} samples."))
    return Group("Values", f"Of {sampled.text}.", panels)

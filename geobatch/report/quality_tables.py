"""Pictures of wells and of catalogues for `geobatch inspect`: tracks and coverage, epicentres, magnitudes over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.formats.catalogue_inspect import completeness
from geobatch.report.charts import (
    ALERT,
    INK,
    SECOND,
    SOFT,
    Axis,
    Chart,
    histogram,
    linear,
    logarithmic,
    of_names,
    of_time,
    position_chart,
    shortened,
    thin_out,
)
from geobatch.report.figures import Group, Panel, amplitude_rgba, class_styles, color_bar, picture
from geobatch.survey import INVALID_CLASS

Array = npt.NDArray[Any]
MOST_WELLS = 4
MOST_TRACKS = 6
MOST_CURVES = 40
MATRIX_WELLS = 60
MAGNITUDE_STEP = 0.1
# Depth of the sources, the deepest last.
DEPTH_COLORS = ((10.0, "#d1495b"), (30.0, "#d98c21"), (70.0, "#2f9e6e"), (300.0, "#4477aa"), (np.inf, "#6b4c9a"))


def well_groups(dataset: xr.Dataset, info: dict[str, Any], told: dict[str, Any]) -> list[Group]:
    """Tracks of the wells with most curves, and which curve covers how much of which well."""
    names = [str(name) for name in info["variables"]]
    coverage = np.asarray(dataset["coverage"].values, np.float64)
    wells = [str(well) for well in dataset["well"].values]
    chosen = np.sort(np.argsort(-(coverage > 0).sum(axis=1), kind="stable")[:MOST_WELLS])
    tracks = [_tracks(dataset, int(well), wells[well], names, coverage[well]) for well in chosen]
    note = f"{len(tracks)} of {len(wells)} wells, those with most curves. Red: logged depth without a value."
    groups = [
        Group("Coverage", "Share of each well's logged depth that a curve covers.", [_matrix(coverage, wells, names)])
    ]
    x, y = (np.asarray(dataset[axis].values, np.float64) for axis in ("x", "y"))
    placed = np.isfinite(x) & np.isfinite(y)
    if placed.sum() > 1:
        box = (float(x[placed].min()), float(x[placed].max()), float(y[placed].min()), float(y[placed].max()))
        chart = position_chart([(x[placed], y[placed], "wells", INK)], box, "", size=5.0)
        groups[0].panels.append(chart.panel("Wells on the map"))
    return [*groups, Group("Tracks", note, tracks)]


def _tracks(dataset: xr.Dataset, well: int, title: str, names: list[str], coverage: Array) -> Panel:
    """Curves of one well side by side over depth, each between its own 1st and 99th percentile."""
    shown = [name for name, share in zip(names, coverage, strict=True) if share > 0][:MOST_TRACKS]
    depth = np.asarray(dataset["depth"].values, np.float64)
    top, base = (float(dataset[name].values[well]) for name in ("depth_start", "depth_stop"))
    inside = np.flatnonzero((depth >= top - 1e-6) & (depth <= base + 1e-6))
    part = slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 1)
    ticks = tuple((i + 0.5, shortened(name, 60 // max(len(shown), 1))) for i, name in enumerate(shown))
    chart = Chart(Axis(0, max(len(shown), 1), "", ticks), linear(top, base, "measured depth (m)", down=True), 1.0, 60.0)
    for lane, name in enumerate(shown):
        values = np.asarray(dataset[name][well, part].values, np.float64)
        values = np.where(values == INVALID_CLASS, np.nan, values) if class_styles(dataset[name].attrs) else values
        good = np.isfinite(values)
        edges = np.flatnonzero(np.diff(np.concatenate(([True], good, [True])).astype(np.int8)))
        own = depth[part]
        if edges.size:
            start, end = own[edges[::2]], own[np.minimum(edges[1::2], own.size - 1)]
            wide = np.full(start.size, lane + 0.04), np.full(start.size, lane + 0.96)
            chart.areas(*wide, end, start, ALERT, opacity=0.28)
        if good.any():
            low, high = np.percentile(values[good], [1, 99])
            scaled = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
            chart.line(lane + 0.08 + 0.84 * scaled, own, INK, 0.8)
        chart.upright(lane, SOFT, 0.6)
    more = int((coverage > 0).sum()) - len(shown)
    note = "Each curve from its 1st to its 99th percentile." + (f" {more} more curves." if more > 0 else "")
    return chart.panel(shortened(title, 40), legend=[("no value", ALERT)], note=note)


def _matrix(coverage: Array, wells: list[str], names: list[str]) -> Panel:
    """Wells down, curves across, the share of the logged depth that has values as colour."""
    cut = coverage[:MATRIX_WELLS, :MOST_CURVES]
    down = of_names(wells[:MATRIX_WELLS], longest=20)
    ticks = tuple((i + 0.5, str(i + 1)) for i in range(cut.shape[1]) if cut.shape[1] <= 20 or i % 2 == 0)
    across = Axis(0, cut.shape[1], "number of the curve", ticks)
    chart = Chart(across, down, left=150.0, height=15.0 * cut.shape[0] + 6)
    rgba = amplitude_rgba(np.where(cut > 0, cut, np.nan), 0.0, 1.0, "viridis")
    left_out = len(wells) - len(cut), len(names) - cut.shape[1]
    more = [f"{count} more {what}." for count, what in zip(left_out, ("wells", "curves"), strict=True) if count > 0]
    told = ", ".join(f"{i + 1} {shortened(name, 30)}" for i, name in enumerate(names[:MOST_CURVES]))
    bar = color_bar("viridis", "0", "100 %", "covered; hatched: none")
    note = " ".join([f"Curves: {told}.", *more])
    return chart.panel("Curves of each well", note=note, picture=picture(rgba, exact=True), bar=bar, pixelated=True)


def catalogue_groups(dataset: xr.Dataset) -> list[Group]:
    """Epicentres, magnitudes over time, magnitude and frequency, depths. Columns are in memory, some bytes an event."""
    time = dataset["time"].values.astype("datetime64[ns]").astype(np.int64)
    columns = {n: np.asarray(dataset[n].values, np.float64) for n in ("latitude", "longitude", "depth_km", "magnitude")}
    where = [panel for panel in (_epicentres(columns), _depths(columns["depth_km"])) if panel]
    when = [panel for panel in (_over_time(time, columns["magnitude"]), _per_time(time)) if panel]
    size = [panel for panel in (_frequency(columns["magnitude"]),) if panel]
    return [Group("Where", "", where), Group("When", "", when), *([Group("How large", "", size)] if size else [])]


def _epicentres(columns: dict[str, Array]) -> Panel | None:
    good = np.flatnonzero(np.isfinite(columns["latitude"]) & np.isfinite(columns["longitude"]))
    if not good.size:
        return None
    longitude, latitude, depth = (columns[n][good] for n in ("longitude", "latitude", "depth_km"))
    kept = thin_out(good.size)
    found, low = [], -np.inf
    for limit, color in DEPTH_COLORS:
        name = f"to {limit:g} km" if np.isfinite(limit) else "deeper"
        mine = kept[(depth[kept] > low) & (depth[kept] <= limit)]
        if mine.size:
            found.append((longitude[mine], latitude[mine], name, color))
        low = limit
    mine = kept[~np.isfinite(depth[kept])]
    if mine.size:
        found.append((longitude[mine], latitude[mine], "no depth", SOFT))
    west, east, south, north = (float(f(v)) for v in (longitude, latitude) for f in (np.min, np.max))
    chart = position_chart(found, (west, east, south, north), "degrees", size=2.2)
    note = f"{kept.size:,} of {good.size:,} events." if kept.size < good.size else ""
    return chart.panel("Epicentres", legend=[(name, color) for *_, name, color in found], note=note)


def _depths(depth: Array) -> Panel | None:
    return histogram(depth, "depth (km)", "Depth", bins=60) if np.isfinite(depth).any() else None


def _over_time(time: Array, magnitude: Array) -> Panel | None:
    good = np.flatnonzero(np.isfinite(magnitude))
    if not good.size:
        return None
    largest = good[np.argsort(-magnitude[good], kind="stable")[:200]]
    kept = np.union1d(good[thin_out(good.size)], largest)
    ends = float(magnitude[good].min()), float(magnitude[good].max())
    chart = Chart(of_time(int(time[0]), int(time[-1])), linear(ends[0] - 0.1, ends[1] + 0.1, "magnitude"))
    chart.dots(time[kept], magnitude[kept], INK, 2.0, opacity=0.6)
    note = f"{kept.size:,} of {good.size:,} events, the largest among them." if kept.size < good.size else ""
    return chart.panel("Magnitude over time", note=note)


def _per_time(time: Array) -> Panel:
    """How many events there are in each of a hundred parts of the time."""
    counts, edges = np.histogram(time, 100)
    chart = Chart(of_time(int(time[0]), int(time[-1])), linear(0, float(counts.max()) * 1.05, "events"))
    chart.bars(edges, counts)
    days = (float(time[-1]) - float(time[0])) / 86_400e9 / 100
    return chart.panel("Events over time", note=f"Each bar: {days:.3g} days.")


def _frequency(magnitude: Array) -> Panel | None:
    """Events per bin of 0.1 and events of at least a magnitude, on a logarithmic scale."""
    finite = magnitude[np.isfinite(magnitude)]
    if finite.size < 2 or np.ptp(finite) > 20:
        return None
    bins = np.floor(finite / MAGNITUDE_STEP + 1e-6).astype(np.int64)
    low = int(bins.min())
    counts = np.bincount(bins - low)
    edges = (np.arange(counts.size + 1) + low) * MAGNITUDE_STEP
    reached = counts[::-1].cumsum()[::-1]
    chart = Chart(linear(edges[0], edges[-1], "magnitude"), logarithmic(0.7, reached[0] * 1.3, "events"))
    chart.bars(edges, counts, SOFT)
    chart.dots(edges[:-1], reached, INK, 4.0)
    legend = [("in bins of 0.1", SOFT), ("of at least", INK)]
    if (level := completeness(magnitude)) is not None:
        chart.upright(level, SECOND)
        legend.append((f"complete above {level:g} (maximum curvature)", SECOND))
    return chart.panel("Magnitude and frequency", legend=legend)

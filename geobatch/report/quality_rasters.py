"""Pictures of rasters and of arrays without a name for `geobatch inspect`: a look at each band, and its values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.report.charts import Chart, histogram, linear, over, position_frame, shortened
from geobatch.report.figures import Group, Panel, amplitude_rgba, class_styles, color_bar, map_frame, picture
from geobatch.report.panels import class_panel, number, scale_of
from geobatch.sample import Plane, read_plane
from geobatch.survey import INVALID_CLASS

Array = npt.NDArray[Any]
MOST_BANDS = 12
MOST_VALUES = 2**20


def raster_groups(dataset: xr.Dataset, info: dict[str, Any], told: dict[str, Any]) -> list[Group]:
    """A look at each band and its histogram, of as many cells as `read_plane` reads of it."""
    array = dataset[info["variable"]]
    bands = told["bands"][:MOST_BANDS]
    styles = tuple(class_styles(array.attrs))
    looks, values = [], []
    for position, band in enumerate(bands):
        plane = read_plane(array, ("y", "x"), {"band": position})
        cells = np.asarray(plane.values, np.float64)
        if "valid" in dataset:
            mask = read_plane(dataset["valid"], ("y", "x"), {"band": position}).values
            # The mask has chunks of other sizes in bytes: where it was cut differently nothing could be said.
            cells = np.where(mask, cells, np.nan) if mask.shape == cells.shape else cells
        name = shortened(f"Band {position + 1}: {band['name']}" if band["name"] else f"Band {position + 1}", 60)
        looks.append(_look(dataset, told, plane, cells, name, str(band["units"] or ""), styles))
        if not styles:
            label = f"{shortened(str(band['name'] or 'value'), 30)} {band['units'] or ''}".rstrip()
            share = f"{np.isfinite(cells).mean():.1%} of the cells shown are valid."
            values.append(histogram(cells, label, name, note=share))
    rest = len(told["bands"]) - len(bands)
    note = "Hatched: no value." + (f" {rest} more bands are not shown." if rest else "")
    groups = [Group("Bands", note, looks)]
    return [*groups, Group("Distribution", "Of the cells shown above.", values)] if values else groups


def _look(
    dataset: xr.Dataset,
    told: dict[str, Any],
    plane: Plane,
    cells: Array,
    name: str,
    units: str,
    styles: tuple[Any, ...],
) -> Panel:
    y, x = (np.asarray(dataset[axis].values, np.float64)[part] for axis, part in zip("yx", plane.parts, strict=True))
    # Rows go from north to south as a map is read, whatever their order in the file.
    if y.size > 1 and y[0] < y[-1]:
        y, cells = y[::-1], cells[::-1]
    if x.size > 1 and x[0] > x[-1]:
        x, cells = x[::-1], cells[:, ::-1]
    frame = position_frame(x, y[::-1], str(told["axes"]["x"]["unit"]))
    note = " ".join(f"{n}." for n in plane.notes)
    if styles:
        classes = np.nan_to_num(cells, nan=INVALID_CLASS).astype(np.uint8)
        return over(class_panel(name, classes, frame, styles), (), note=note)
    finite = cells[np.isfinite(cells)]
    if not finite.size:
        return Panel(name, "", frame, note="No cell shown has a value.")
    low, high = (float(v) for v in np.percentile(finite, [1, 99]))
    bar = color_bar("viridis", number(low), number(high), f"{units} (1st to 99th percentile)".strip())
    return Panel(name, picture(amplitude_rgba(cells, low, high, "viridis")), frame, bar=bar, note=note)


def array_groups(dataset: xr.Dataset, told: dict[str, Any]) -> list[Group]:
    """The pictures of an array of which nobody said what it is: planes through its middle, and its values."""
    array = dataset["values"]
    dims = [str(d) for d in array.dims]
    long = [d for d in dims if array.sizes[d] > 1][-3:]
    if len(long) < 2:
        return [Group("Cells", "", [_curve(array)])]
    pairs = [(a, b) for i, a in enumerate(long) for b in long[i + 1 :]]
    planes = [(pair, read_plane(array, pair)) for pair in pairs]
    scale = scale_of([np.asarray(plane.values, np.float32) for _, plane in planes], array)
    panels = []
    for (down, across), plane in planes:
        rows, columns = (np.arange(array.sizes[d])[part] for d, part in zip((down, across), plane.parts, strict=True))
        frame = map_frame(
            columns, rows[::-1], f"{across} (position)", f"{down} (position)", min(1.0, len(rows) / len(columns))
        )
        title = ", ".join(f"{d} {array.sizes[d] // 2}" for d in dims if d not in (down, across)) or str(array.name)
        if scale is not None:
            rgba = amplitude_rgba(np.asarray(plane.values, np.float32), scale.lower, scale.upper, scale.colormap)
            bar = color_bar(scale.colormap, number(scale.lower), number(scale.upper), "value")
            panels.append(Panel(title, picture(rgba), frame, bar=bar, note=" ".join(f"{n}." for n in plane.notes)))
    values = np.concatenate([np.asarray(plane.values, np.float64).ravel() for _, plane in planes])
    panels.append(histogram(values, "value", "Distribution", note="Of the cells shown."))
    return [Group("Cells", "Positions count from 0. Hatched: no value.", panels)]


def _curve(array: xr.DataArray) -> Panel:
    """The values of an array with one axis, from its start."""
    values = np.asarray(array[tuple(slice(0, MOST_VALUES) if n > 1 else 0 for n in array.shape)].values, np.float64)
    values = np.atleast_1d(values)
    finite = values[np.isfinite(values)]
    ends = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    chart = Chart(linear(0, values.size - 1, "position"), linear(*ends, "value"))
    chart.line(np.arange(values.size), values)
    return chart.panel(
        "Values", note="" if values.size == array.size else f"The first {values.size:,} of {array.size:,}."
    )

"""What is in a survey or a SEG-Y file and how good it is, suspicious things first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from rich.console import Console
from rich.table import Table

from geobatch.fanout import open_fanout
from geobatch.formats import FORMATS
from geobatch.formats.catalogue_inspect import catalogue_rows, inspect_catalogue
from geobatch.formats.logs_inspect import inspect_wells, well_rows
from geobatch.formats.miniseed_inspect import inspect_waveforms, waveform_rows
from geobatch.formats.raster_inspect import raster_classes, raster_quality, raster_rows
from geobatch.formats.segy import SegyFile, SegyLayout, open_segy
from geobatch.formats.segy_geometry import make_grid
from geobatch.formats.segy_ingest import SMALL_FILE_BYTES, scan
from geobatch.formats.segy_meaning import judge
from geobatch.formats.segy_survey import describe, sample_axis
from geobatch.formats.windows_survey import inspect_windows, window_rows
from geobatch.preprocess.statistics import as_dask, class_counts, percentiles
from geobatch.storage import absolute_url
from geobatch.survey import VOLUME_AXES, class_names, mask_dead, open_survey, survey_info, valid_volume

LEVELS = (0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)
MANY_DEAD = 0.05
# Half a bin: traces further off stand in their neighbour's place.
MAX_RESIDUAL_BINS = 0.5
HEAVY_TAIL = 100.0

# Kinds that their formats describe, and the lines of each description.
_KINDS: dict[
    str, tuple[Callable[[xr.Dataset, str], dict[str, Any]], Callable[[dict[str, Any]], list[tuple[str, str]]]]
] = {
    "wells": (inspect_wells, well_rows),
    "catalogue": (inspect_catalogue, catalogue_rows),
    "waveforms": (inspect_waveforms, waveform_rows),
    "windows": (inspect_windows, window_rows),
}
_ROWS = {"miniseed": waveform_rows, **{kind: rows for kind, (_, rows) in _KINDS.items()}}


def inspect_survey(url: str, *, layout: SegyLayout | None = None) -> dict[str, Any]:
    """A JSON description of the survey or SEG-Y file at `url`: geometry, units, distribution, dead traces.

    Args:
        url: A survey made by geobatch, or a SEG-Y file, which is scanned without being ingested.
        layout: Trace header positions of a SEG-Y file, SEG-Y rev 1 by default.

    Raises:
        NotFoundError: nothing is there.
        DataError: what is there is no survey, or a damaged file.
    """
    url = absolute_url(url)
    if PurePosixPath(url).suffix.lower() in FORMATS["segy"].suffixes:
        return _inspect_segy(open_segy(url), layout or SegyLayout())
    for name in ("las", "catalogue", "raster", "miniseed"):
        if PurePosixPath(url).suffix.lower() in FORMATS[name].suffixes:
            return {"axes": {}, **FORMATS[name].inspect(url, FORMATS[name].options())}
    dataset = open_survey(url)
    info = survey_info(dataset)
    if info["kind"] in _KINDS:
        return _KINDS[info["kind"]][0](dataset, url)
    axes = {str(axis): dataset[axis].values for axis in dataset.dims if axis in dataset.coords}
    described: dict[str, Any] = {
        "url": url,
        "kind": info["kind"],
        "state": info.get("state"),
        "axes": {axis: _axis(values, _unit(dataset[axis])) for axis, values in axes.items()},
        "domain": info.get("domain"),
        "bin_grid": info.get("bin_grid"),
        "crs": info.get("crs"),
        "variables": {str(name): _storage(array) for name, array in dataset.data_vars.items()},
    }
    if info["kind"] == "volume":
        volume = valid_volume(dataset, url)
        described |= _quality(info, volume.attrs.get("units", ""))
        if "live_mask" in dataset:
            described["traces"] |= _dead_lines(dataset["live_mask"].values, dataset, axes)
        if described["distribution"].get("count") != 0:
            values = percentiles(mask_dead(as_dask(volume)), LEVELS)
            described["distribution"]["percentiles"] = dict(zip(map(str, LEVELS), values, strict=True))
    if info["kind"] == "raster":
        described |= raster_quality(info)
        described |= {"classes": classes} if (classes := raster_classes(dataset, info)) else {}
    if "class_map" in dataset:
        described["classes"] = _classes(dataset["class_map"])
    return {"suspicious": _suspicious(described, info), **described}


def render_text(info: dict[str, Any], width: int = 100) -> str:
    """The description as text for a terminal, suspicious things first."""
    console = Console(width=width, no_color=True, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(info["url"], soft_wrap=True)
        for sentence in info["suspicious"]:
            console.print(f"! {sentence}")
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in _rows(info):
            table.add_row(name, value)
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _inspect_segy(file: SegyFile, layout: SegyLayout) -> dict[str, Any]:
    """The description of a SEG-Y file from one pass over it."""
    with open_fanout(small=file.size_bytes <= SMALL_FILE_BYTES) as fanout:
        table = scan(file, layout, fanout)
    meaning = judge(file, table)
    grid = make_grid(table, layout, file.url)
    samples = sample_axis(file, table, meaning, None)
    info = describe(file, table, grid, meaning, layout, None, identity="")
    values: dict[str, npt.NDArray[Any]] = {"inline": grid.inline, "crossline": grid.crossline, "sample": samples}
    units = {"inline": "", "crossline": "", "sample": meaning.sample_unit}
    described = {
        "url": file.url,
        "kind": "segy",
        "axes": {axis: _axis(values[axis], units[axis]) for axis in VOLUME_AXES},
        "domain": meaning.domain,
        "bin_grid": info["bin_grid"],
        "crs": None,
        "source": info["source"],
        "text": file.text.splitlines(),
        **_quality(info, meaning.units),
    }
    return {"suspicious": _suspicious(described, info), **described}


def _axis(values: npt.NDArray[Any], unit: str) -> dict[str, Any]:
    steps = np.unique(np.diff(values))
    return {
        "count": int(values.size),
        "first": values[0].item(),
        "last": values[-1].item(),
        "step": steps[0].item() if steps.size and np.allclose(steps, steps[0]) else None,
        "unit": unit,
    }


def _unit(axis: xr.DataArray) -> str:
    return str(axis.attrs.get("units", ""))


def _storage(array: xr.DataArray) -> dict[str, Any]:
    """Axes, type and stored shape of one array."""
    return {
        "dims": [str(dim) for dim in array.dims],
        "dtype": str(array.encoding.get("dtype", array.dtype)),
        "shape": list(array.shape),
        "chunks": list(array.encoding.get("chunks") or array.shape),
        "shards": list(array.encoding.get("shards") or array.encoding.get("chunks") or array.shape),
    }


def _quality(info: dict[str, Any], units: str) -> dict[str, Any]:
    """Quantity, distribution and trace counts from the survey's own statistics."""
    statistics = info.get("statistics") or {}
    traces = ("traces", "dead_traces", "missing_traces")
    return {
        "quantity": info.get("quantity"),
        "units": units,
        "evidence": info.get("evidence", {}),
        "distribution": {name: value for name, value in statistics.items() if name not in traces},
        "traces": {name: statistics.get(name) for name in traces},
    }


def _dead_lines(live: npt.NDArray[np.bool_], dataset: xr.Dataset, axes: dict[str, Any]) -> dict[str, Any]:
    """Whole inlines and crosslines without a live trace, and a few dead positions."""
    recorded = dataset["trace_index"].values >= 0 if "trace_index" in dataset else np.ones(live.shape, bool)
    dead = np.argwhere(recorded & ~live)[:5]
    return {
        "dead_examples": [[int(axes["inline"][i]), int(axes["crossline"][j])] for i, j in dead],
        "empty_inlines": [int(number) for number in axes["inline"][~live.any(axis=1)]],
        "empty_crosslines": [int(number) for number in axes["crossline"][~live.any(axis=0)]],
    }


def _classes(class_map: xr.DataArray) -> dict[str, Any]:
    """Voxels per class; `invalid` counts what is unlabelled or was not scored."""
    counts = class_counts(class_map)
    found = {name: int(counts[value]) for value, name in class_names(class_map).items()}
    return {**found, "invalid": class_map.size - sum(found.values())}


def _suspicious(described: dict[str, Any], info: dict[str, Any]) -> list[str]:
    """Sentences on what should be looked at before the survey is used."""
    found = list(info.get("warnings", []))
    if described.get("state") not in (None, "complete"):
        found.insert(0, f"state is {described['state']}, not complete")
    traces = described.get("traces", {})
    recorded, dead, missing = (traces.get(n) or 0 for n in ("traces", "dead_traces", "missing_traces"))
    if recorded and dead / recorded > MANY_DEAD:
        found.append(f"{dead} of {recorded} traces are dead ({dead / recorded:.1%})")
    if missing:
        found.append(
            f"{missing} of {recorded + missing} positions have no trace ({missing / (recorded + missing):.1%})"
        )
    grid = described.get("bin_grid")
    if grid:
        spacing = min(filter(None, (grid["inline_spacing_m"], grid["crossline_spacing_m"])), default=0.0)
        if spacing and grid["rms_residual_m"] > MAX_RESIDUAL_BINS * spacing:
            found.append(
                f"coordinates leave a regular grid by {grid['rms_residual_m']:.1f} m rms, bins are {spacing:.1f} m"
            )
    elif described["kind"] in ("volume", "segy"):
        found.append("no bin grid: coordinates are missing or do not vary")
    return found + _odd_values(described.get("distribution", {}), described.get("quantity"))


def _odd_values(distribution: dict[str, Any], quantity: str | None) -> list[str]:
    found = []
    std = distribution.get("std")
    if std == 0:
        found.append(f"every live sample is {distribution['mean']:g}")
    elif std and quantity == "amplitude":
        peak = max(abs(distribution["min"]), abs(distribution["max"]))
        if peak > HEAVY_TAIL * std:
            found.append(f"largest amplitude {peak:g} is {peak / std:.0f} times the standard deviation: spikes")
        if abs(distribution["mean"]) > 0.5 * std:
            found.append(f"mean {distribution['mean']:g} is far from zero for amplitudes (std {std:g})")
    return found


def _rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line of the rendered description."""
    if info["kind"] in _ROWS:
        return _ROWS[info["kind"]](info)
    domain = f" in {info['domain']}" if "domain" in info and info["kind"] != "raster" else ""
    rows = [("kind", f"{info['kind']} {info.get('quantity') or ''}{domain}".replace("  ", " ").rstrip())]
    for name, axis in info["axes"].items():
        rows.append((name, _axis_text(axis)))
    if grid := info.get("bin_grid"):
        rows.append(("bin grid", _bin_text(grid)))
    rows.append(("crs", info.get("crs") or "not given"))
    if info["kind"] == "raster":
        rows += raster_rows(info)
    if traces := info.get("traces"):
        rows.append(
            (
                "traces",
                f"{traces['traces']} recorded, {traces['dead_traces']} dead, {traces['missing_traces']} missing",
            )
        )
    distribution = dict(info.get("distribution", {}))
    levels = distribution.pop("percentiles", {})
    if distribution:
        text = ", ".join(f"{name} {value:g}" for name, value in distribution.items() if value is not None)
        rows.append(("values", f"{text} {info['units']}".rstrip()))
    if levels:
        rows.append(("percentiles", ", ".join(f"{level}: {value:g}" for level, value in levels.items())))
    unit = "cells" if info["kind"] == "raster" else "voxels"
    rows += [(f"class {name}", f"{count} {unit}") for name, count in info.get("classes", {}).items()]
    rows += [(f"why {name}", "; ".join(reasons)) for name, reasons in info.get("evidence", {}).items()]
    for name, array in info.get("variables", {}).items():
        shape = " x ".join(map(str, array["shape"]))
        rows.append((name, f"{array['dtype']} {shape}, chunks {array['chunks']}, shards {array['shards']}"))
    return rows


def _axis_text(axis: dict[str, Any]) -> str:
    if axis["count"] == 1:
        return f"1: {axis['first']:g} {axis['unit']}".rstrip()
    step = f"{axis['step']:g}" if axis["step"] is not None else "irregular"
    return f"{axis['count']}: {axis['first']:g} to {axis['last']:g} step {step} {axis['unit']}".rstrip()


def _bin_text(grid: dict[str, Any]) -> str:
    parts = [
        f"{name} {grid[key]:.2f} m"
        for name, key in (("inline spacing", "inline_spacing_m"), ("crossline spacing", "crossline_spacing_m"))
        if grid[key] is not None
    ]
    if grid["azimuth_deg"] is not None:
        parts.append(f"inlines run to {grid['azimuth_deg']:.2f} deg")
    parts.append(f"residual {grid['rms_residual_m']:.3f} m rms")
    return ", ".join(parts)

"""What is in a survey or a SEG-Y file and how good it is, suspicious things first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from rich.console import Console
from rich.table import Table

from geobatch.formats import find_format, format_of, parse_options
from geobatch.formats.catalogue_inspect import catalogue_rows, inspect_catalogue
from geobatch.formats.findings import axis_figures, quality, suspicious
from geobatch.formats.logs_inspect import inspect_wells, well_rows
from geobatch.formats.miniseed_inspect import inspect_waveforms, waveform_rows
from geobatch.formats.raster_inspect import raster_classes, raster_quality, raster_rows
from geobatch.formats.segy_geometry import Grid, fit_bin_grid
from geobatch.formats.windows_survey import inspect_windows, window_rows
from geobatch.preprocess.statistics import as_dask, class_counts, percentiles
from geobatch.storage import absolute_url
from geobatch.survey import class_names, mask_dead, open_survey, survey_info, valid_volume

TRACE_KINDS = ("volume", "gathers", "traces")
TRACE_WORDS = {
    "traces": "recorded",
    "dead_traces": "dead",
    "missing_traces": "missing",
    "duplicate_traces": "duplicate",
    "non_finite_traces": "with samples not finite",
    "clipped_traces": "clipped",
}
LEVELS = (0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)

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


def inspect_survey(
    url: str, *, format_name: str | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A JSON description of the survey or raw source at `url`: geometry, units, distribution, what is suspicious.

    Args:
        url: A survey, or a raw file or folder, which is scanned without being ingested.
        format_name: Of a raw source; found by the suffix when not given.
        options: Of the format, as ingest takes them.

    Raises:
        NotFoundError: nothing is there.
        UsageError: the format or an option is unknown.
        DataError: what is there is no survey, or a damaged file.
    """
    url = absolute_url(url)
    # A survey may be called .zarr too: a foreign group is told by --format.
    name = format_name or (None if url.endswith(".zarr") else format_of(url))
    if name is not None:
        format_ = find_format(url, name)[1]
        return {"axes": {}, **format_.inspect(url, parse_options(name, options or {}))}
    dataset = open_survey(url)
    info = survey_info(dataset)
    if info["kind"] in _KINDS:
        return _KINDS[info["kind"]][0](dataset, url)
    axes = {str(axis): dataset[axis].values for axis in dataset.dims if axis in dataset.coords}
    if info["kind"] == "traces":
        axes = {"trace": np.arange(dataset.sizes["trace"]), **axes}
    described: dict[str, Any] = {
        "url": url,
        "kind": info["kind"],
        "state": info.get("state"),
        "axes": {
            axis: axis_figures(values, _unit(dataset[axis]) if axis in dataset.coords else "")
            for axis, values in axes.items()
        },
        "domain": info.get("domain"),
        "bin_grid": info.get("bin_grid"),
        "crs": info.get("crs"),
        "variables": {str(name): _storage(array) for name, array in dataset.data_vars.items()},
    }
    described |= {name: info[name] for name in ("fold", "line") if name in info}
    if info["kind"] in TRACE_KINDS:
        volume = valid_volume(dataset, url) if info["kind"] == "volume" else _valid_traces(dataset, info)
        described |= quality(info, volume.attrs.get("units", ""))
        if "live_mask" in dataset and info["kind"] == "volume" and not info.get("sparse"):
            described["traces"] |= _dead_lines(dataset["live_mask"].values, dataset, axes)
        if info.get("sparse"):
            described |= _of_maps(dataset)
        if described["distribution"].get("count") != 0:
            values = percentiles(mask_dead(as_dask(volume)), LEVELS)
            described["distribution"]["percentiles"] = dict(zip(map(str, LEVELS), values, strict=True))
    if info["kind"] == "raster":
        described |= raster_quality(info)
        described |= {"classes": classes} if (classes := raster_classes(dataset, info)) else {}
    if "class_map" in dataset:
        described["classes"] = _classes(dataset["class_map"])
    return {"suspicious": suspicious(described, info), **described}


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


def _valid_traces(dataset: xr.Dataset, info: dict[str, Any]) -> xr.DataArray:
    """The samples of gathers or single traces, with the mask of live traces as a coordinate."""
    samples: xr.DataArray = dataset[info["variable"]].reset_coords(drop=True)
    return samples.assign_coords(live_mask=dataset["live_mask"].load())


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


def _of_maps(dataset: xr.Dataset) -> dict[str, Any]:
    """Bin grid and number of traces of a group of another maker, which tells neither, from its maps."""
    found: dict[str, Any] = {}
    if "live_mask" in dataset:
        live = dataset["live_mask"].values
        found["traces"] = {"traces": int(live.sum()), "missing_traces": int((~live).sum())}
    if "cdp_x" in dataset and dataset["cdp_x"].dims == ("inline", "crossline"):
        x, y = dataset["cdp_x"].values, dataset["cdp_y"].values
        places = np.nonzero(np.isfinite(x) & np.isfinite(y))
        index = (places[0].astype(np.int32), places[1].astype(np.int32))
        grid = Grid(dataset["inline"].values, dataset["crossline"].values, *index)
        found["bin_grid"] = fit_bin_grid(grid, x[places], y[places]) if places[0].size else None
    return found


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
    if fold := info.get("fold"):
        rows.append(("fold", f"{fold['min']} to {fold['max']}, median {fold['median']:g}"))
    if line := info.get("line"):
        rows.append(("line", f"{line['length_m']:.1f} m, a trace every {line['spacing_median_m']:.2f} m (median)"))
    rows.append(("crs", info.get("crs") or "not given"))
    if info["kind"] == "raster":
        rows += raster_rows(info)
    if traces := info.get("traces"):
        rows.append(
            (
                "traces",
                ", ".join(f"{traces[name] or 0} {word}" for name, word in TRACE_WORDS.items() if name in traces),
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

"""What is in a survey or a SEG-Y file and how good it is, suspicious things first."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from rich.console import Console
from rich.table import Table

from geobatch.formats import FORMATS
from geobatch.formats.findings import axis_figures, quality, suspicious
from geobatch.formats.segy_file import SegyLayout
from geobatch.formats.segy_geometry import Grid, fit_bin_grid
from geobatch.formats.segy_ingest import Options
from geobatch.formats.segy_inspect import inspect_file
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
        at = layout or SegyLayout()
        return inspect_file(
            url,
            Options(
                inline_byte=at.inline,
                crossline_byte=at.crossline,
                x_byte=at.cdp_x,
                y_byte=at.cdp_y,
                offset_byte=at.offset,
            ),
        )
    dataset = open_survey(url)
    info = survey_info(dataset)
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
    rows = [("kind", f"{info['kind']} {info.get('quantity') or ''} in {info.get('domain')}".replace("  ", " "))]
    for name, axis in info["axes"].items():
        rows.append((name, _axis_text(axis)))
    if grid := info.get("bin_grid"):
        rows.append(("bin grid", _bin_text(grid)))
    if fold := info.get("fold"):
        rows.append(("fold", f"{fold['min']} to {fold['max']}, median {fold['median']:g}"))
    if line := info.get("line"):
        rows.append(("line", f"{line['length_m']:.1f} m, a trace every {line['spacing_median_m']:.2f} m (median)"))
    rows.append(("crs", info.get("crs") or "not given"))
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
    rows += [(f"class {name}", f"{count} voxels") for name, count in info.get("classes", {}).items()]
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

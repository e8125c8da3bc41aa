"""What is in a survey or a SEG-Y file and how good it is, suspicious things first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from geobatch.formats import find_format, format_of, parse_options
from geobatch.formats.catalogue_inspect import catalogue_rows, inspect_catalogue
from geobatch.formats.findings import suspicious
from geobatch.formats.logs_inspect import inspect_wells, well_rows
from geobatch.formats.miniseed_inspect import inspect_waveforms, waveform_rows
from geobatch.formats.raster_inspect import raster_classes, raster_quality, raster_rows
from geobatch.formats.seismic_inspect import EXACT_BYTES, axes_figures, exact_percentiles, sample_of, seismic_quality
from geobatch.formats.spec import Inspected
from geobatch.formats.windows_survey import inspect_windows, window_rows
from geobatch.preprocess.statistics import class_counts
from geobatch.sample import sample_traces
from geobatch.spectrum import spectrum_text
from geobatch.storage import absolute_url
from geobatch.survey import class_names, open_survey, survey_info

TRACE_KINDS = ("volume", "gathers", "traces")
TRACE_WORDS = {
    "traces": "recorded",
    "dead_traces": "dead",
    "missing_traces": "missing",
    "duplicate_traces": "duplicate",
    "non_finite_traces": "with samples not finite",
    "clipped_traces": "clipped at the survey's extreme",
}

# Kinds that their formats describe, and the lines of each description.
_DESCRIBED: dict[str, Callable[[xr.Dataset, str], dict[str, Any]]] = {
    "wells": inspect_wells,
    "catalogue": inspect_catalogue,
    "windows": inspect_windows,
}
_ROWS: dict[str, Callable[[dict[str, Any]], list[tuple[str, str]]]] = {
    "wells": well_rows,
    "catalogue": catalogue_rows,
    "windows": window_rows,
    "waveforms": waveform_rows,
    "miniseed": waveform_rows,
}


def inspect_survey(
    url: str, *, format_name: str | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A JSON description of the survey or raw source at `url`: geometry, units, distribution, what is suspicious.

    See `look` for arguments and errors.
    """
    return look(url, format_name=format_name, options=options).told


def look(url: str, *, format_name: str | None = None, options: Mapping[str, Any] | None = None) -> Inspected:
    """The survey or raw source at `url`, described and lazily opened.

    A raw source is scanned in one pass, as ingest does before it writes. Of a survey are read: its description, the
    maps beside the traces (some bytes per trace), the sample that `geobatch.sample` bounds, every sample up to 1 GiB
    for exact percentiles or class counts, and of larger surveys nothing more.

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
        given = parse_options(name, options or {})
        found = find_format(url, name)[1].inspect(url, given)
        if given.attribution:
            found.dataset.attrs["geobatch"] = {
                **found.dataset.attrs.get("geobatch", {}),
                "attribution": given.attribution,
            }
        return found._replace(told={"axes": {}, **found.told})
    dataset = open_survey(url)
    info = survey_info(dataset)
    if info["kind"] == "waveforms":
        return inspect_waveforms(dataset, url)
    if info["kind"] in _DESCRIBED:
        return Inspected(_DESCRIBED[info["kind"]](dataset, url), dataset)
    described: dict[str, Any] = {
        "url": url,
        "kind": info["kind"],
        "state": info.get("state"),
        "axes": axes_figures(dataset, info),
        "domain": info.get("domain"),
        "bin_grid": info.get("bin_grid"),
        "crs": info.get("crs"),
        "variables": {str(name): _storage(array) for name, array in dataset.data_vars.items()},
    }
    sampled = None
    if info["kind"] in TRACE_KINDS:
        sampled = sample_of(dataset, info)
        described |= seismic_quality(dataset, info, sampled)
        if described["distribution"].get("count") != 0:
            described["distribution"] |= exact_percentiles(dataset, info) or {}
    if info["kind"] == "raster":
        described |= raster_quality(info)
        described |= {"classes": classes} if (classes := raster_classes(dataset, info)) else {}
    if "class_map" in dataset:
        described |= _classes(dataset["class_map"])
    return Inspected({"suspicious": suspicious(described, info), **described}, dataset, sampled)


def write_page(found: Inspected, page_url: str) -> str:
    """The URL of the HTML page on what was looked at: suspicious things, figures, pictures, in one file.

    The pictures read a bounded number of chunks or ranges, whatever the size of the survey: see `geobatch.sample`.

    Args:
        found: What `look` found.
        page_url: The file to write, on S3 or a file system.
    """
    # What draws takes seconds to load, which text alone does not need.
    from geobatch.report.html import put_page
    from geobatch.report.quality import render_quality

    return put_page(absolute_url(page_url), render_quality(found, _rows(found.told)))


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


def _storage(array: xr.DataArray) -> dict[str, Any]:
    """Axes, type and stored shape of one array."""
    return {
        "dims": [str(dim) for dim in array.dims],
        "dtype": str(array.encoding.get("dtype", array.dtype)),
        "shape": list(array.shape),
        "chunks": list(array.encoding.get("chunks") or array.shape),
        "shards": list(array.encoding.get("shards") or array.encoding.get("chunks") or array.shape),
    }


def _classes(class_map: xr.DataArray) -> dict[str, Any]:
    """Voxels per class; `invalid` counts what is unlabelled or was not scored. Of a large map, those of a sample."""
    told = {}
    if class_map.nbytes <= EXACT_BYTES:
        counts, size = class_counts(class_map), class_map.size
    else:
        traces = sample_traces(class_map).traces
        counts, size = np.bincount(traces[np.isfinite(traces)].astype(np.uint8), minlength=256), traces.size
        told = {"classes_of": f"a sample of {size:,} of {class_map.size:,} voxels"}
    found = {name: int(counts[value]) for value, name in class_names(class_map).items()}
    return {"classes": {**found, "invalid": size - sum(found.values())}, **told}


def _rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line of the rendered description."""
    if info["kind"] == "array":
        return _array_rows(info)
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
    if regular := info.get("regularity"):
        rows.append(("regularity", _regular_text(regular)))
    if fold := info.get("ensembles"):
        told = f"{fold['min']} to {fold['max']} traces each, median {fold['median']:g}"
        rows.append(("ensembles", f"{fold['count']}, {told}"))
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
    levels, levels_of = distribution.pop("percentiles", {}), distribution.pop("percentiles_of", "")
    if distribution:
        text = ", ".join(f"{name} {value:g}" for name, value in distribution.items() if value is not None)
        rows.append(("values", f"{text} {info['units']}".rstrip()))
    if levels:
        text = ", ".join(f"{level}: {value:g}" for level, value in levels.items())
        rows.append(("percentiles", f"{text} (of {levels_of})"))
    if spectrum := info.get("spectrum"):
        rows.append(("spectrum", spectrum_text(spectrum)))
    if sample := info.get("sample"):
        bad = f", {sample['clipped']} of them clipped at their own extreme" if "clipped" in sample else ""
        rows.append(("sampled", sample["text"] + bad))
    if "classes_of" in info:
        rows.append(("classes of", info["classes_of"]))
    unit = "cells" if info["kind"] == "raster" else "voxels"
    rows += [(f"class {name}", f"{count} {unit}") for name, count in info.get("classes", {}).items()]
    rows += [(f"why {name}", "; ".join(reasons)) for name, reasons in info.get("evidence", {}).items()]
    for name, array in info.get("variables", {}).items():
        shape = " x ".join(map(str, array["shape"]))
        rows.append((name, f"{array['dtype']} {shape}, chunks {array['chunks']}, shards {array['shards']}"))
    return rows


def _array_rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    """What is told of an array that nobody named."""
    sampled = info["sampled"]
    parts = [f"{sampled['valid']:.1%} valid", *(f"{k} {sampled[k]:g}" for k in ("min", "max", "mean") if k in sampled)]
    return [
        ("kind", "array"),
        ("shape", " x ".join(map(str, info["shape"]))),
        ("type", str(info["dtype"])),
        ("axes", ", ".join(info["dims"]) if info["dims"] else "not named: give them with --set dims=[…]"),
        ("sampled", ", ".join(parts)),
        *((f"attribute {name}", str(value)[:200]) for name, value in info["attributes"].items()),
    ]


def _regular_text(regular: Mapping[str, Any]) -> str:
    parts = []
    if regular["filled"] is not None:
        parts.append(f"{regular['filled']:.1%} of the positions filled")
    if regular["residual_bins"] is not None:
        parts.append(f"coordinates {regular['residual_bins']:.2g} bins off the grid (rms)")
    if regular["angle_deg"] is not None:
        parts.append(f"inlines and crosslines meet at {abs(regular['angle_deg']):.1f} deg")
    return ", ".join(parts)


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

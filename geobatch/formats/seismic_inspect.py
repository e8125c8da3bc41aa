"""Geometry, fold, dead and clipped traces, distribution and spectrum of seismic data: of files and surveys alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.formats.findings import axis_figures, quality
from geobatch.formats.segy_geometry import Grid, fit_bin_grid
from geobatch.formats.segy_scan import FLAT_SAMPLES
from geobatch.preprocess.statistics import as_dask, percentiles
from geobatch.sample import TraceSample, sample_traces
from geobatch.spectrum import trace_spectrum
from geobatch.survey import mask_dead

LEVELS = (0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)
# Up to here the percentiles of a survey are those of every sample, beyond of sampled traces.
EXACT_BYTES = 2**30


def axes_figures(dataset: xr.Dataset, info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Count, first, last, step and unit of every axis."""
    axes = {str(axis): dataset[axis] for axis in dataset.dims if axis in dataset.variables}
    told = {name: axis_figures(axis.values, str(axis.attrs.get("units", ""))) for name, axis in axes.items()}
    if info["kind"] == "traces":
        told = {"trace": axis_figures(np.arange(dataset.sizes["trace"]), ""), **told}
    return told


def seismic_quality(dataset: xr.Dataset, info: dict[str, Any], sampled: TraceSample) -> dict[str, Any]:
    """What is told of the traces of a volume, of gathers or of single traces.

    Percentiles, spectrum and clipping are those of the sampled traces; `sample` tells how many they are. Beside them
    only maps are read, which hold some bytes per trace.
    """
    samples = dataset[info["variable"]]
    told: dict[str, Any] = {name: info[name] for name in ("bin_grid", "fold", "line") if name in info}
    told |= quality(info, str(samples.attrs.get("units", "")))
    if info.get("sparse"):
        told |= _of_maps(dataset)
    elif info["kind"] == "volume" and "live_mask" in dataset:
        told["traces"] |= _dead_lines(dataset)
    if info["kind"] == "traces" and "cdp" in dataset and (fold := _ensembles(dataset["cdp"].values)):
        told["ensembles"] = fold
    if grid := told.get("bin_grid"):
        told["regularity"] = _regularity(grid, told["traces"])
    finite = sampled.traces[np.isfinite(sampled.traces)]
    told["sample"] = {"traces": len(sampled.traces), "of": sampled.total, "text": sampled.text}
    if finite.size:
        values = np.percentile(finite.astype(np.float64), LEVELS).tolist()
        told["distribution"] |= {"percentiles": dict(zip(map(str, LEVELS), values, strict=True))}
        told["distribution"]["percentiles_of"] = sampled.text
    if info.get("quantity") == "amplitude":
        told["sample"]["clipped"] = int(clipped(sampled.traces).sum())
        found = trace_spectrum(sampled.traces, float(info["sample_interval"]), str(info["sample_unit"]))
        if found is not None:
            told["spectrum"] = found.figures()
    return told


def sample_of(dataset: xr.Dataset, info: dict[str, Any]) -> TraceSample:
    """Live traces spread over the data set."""
    live = np.asarray(dataset["live_mask"].values, np.bool_) if "live_mask" in dataset else None
    return sample_traces(dataset[info["variable"]], live)


def clipped(traces: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """True for traces `(trace, sample)` that stay at their own largest or smallest sample, which is not 0."""
    found = np.zeros(len(traces), np.bool_)
    if traces.shape[1] < FLAT_SAMPLES:
        return found
    for extreme in (np.fmax, np.fmin):
        value = extreme.reduce(traces, axis=1)
        at = traces == value[:, None]
        stays = at[:, : 1 - FLAT_SAMPLES].copy()
        for shift in range(1, FLAT_SAMPLES):
            stays &= at[:, shift : at.shape[1] - FLAT_SAMPLES + 1 + shift]
        found |= stays.any(axis=1) & (value != 0)
    return found


def exact_percentiles(dataset: xr.Dataset, info: dict[str, Any]) -> dict[str, Any] | None:
    """Percentiles of every sample of live traces, by two passes over them; None where there are too many."""
    samples = dataset[info["variable"]].reset_coords(drop=True)
    if samples.nbytes > EXACT_BYTES:
        return None
    if "live_mask" in dataset:
        samples = samples.assign_coords(live_mask=dataset["live_mask"].load())
    values = percentiles(mask_dead(as_dask(samples)), LEVELS)
    return {"percentiles": dict(zip(map(str, LEVELS), values, strict=True)), "percentiles_of": "every live sample"}


def _of_maps(dataset: xr.Dataset) -> dict[str, Any]:
    """Bin grid and number of traces of a group of another maker, which tells neither, from its maps."""
    found: dict[str, Any] = {"traces": {}}
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


def _dead_lines(dataset: xr.Dataset) -> dict[str, Any]:
    """Whole inlines and crosslines without a live trace, and a few dead positions."""
    live, inline, crossline = (dataset[name].values for name in ("live_mask", "inline", "crossline"))
    recorded = dataset["trace_index"].values >= 0 if "trace_index" in dataset else np.ones(live.shape, bool)
    dead = np.argwhere(recorded & ~live)[:5]
    return {
        "dead_examples": [[int(inline[i]), int(crossline[j])] for i, j in dead],
        "empty_inlines": [int(number) for number in inline[~live.any(axis=1)]],
        "empty_crosslines": [int(number) for number in crossline[~live.any(axis=0)]],
    }


def _ensembles(numbers: npt.NDArray[Any]) -> dict[str, Any] | None:
    """Traces per ensemble number; None where they do not vary or every trace has its own."""
    counts = np.unique(numbers, return_counts=True)[1]
    if counts.size < 2 or counts.max() == 1:
        return None
    return {
        "count": int(counts.size),
        "min": int(counts.min()),
        "median": float(np.median(counts)),
        "max": int(counts.max()),
    }


def _regularity(grid: dict[str, Any], traces: dict[str, Any]) -> dict[str, Any]:
    """How far the bins are from a filled rectangular grid.

    `filled` is the share of positions with a trace, `residual_bins` the rms distance of coordinates from the grid in
    bins, `angle_deg` the angle from the direction of growing crosslines to that of growing inlines, anticlockwise.
    """
    _, inline_x, crossline_x, _, inline_y, crossline_y = grid["affine"]
    cross = crossline_x * inline_y - crossline_y * inline_x
    dot = inline_x * crossline_x + inline_y * crossline_y
    spacing = min(filter(None, (grid["inline_spacing_m"], grid["crossline_spacing_m"])), default=None)
    recorded, missing = (traces.get(name) or 0 for name in ("traces", "missing_traces"))
    kept = recorded - (traces.get("duplicate_traces") or 0)
    return {
        "filled": kept / (kept + missing) if kept + missing > 0 else None,
        "residual_bins": grid["rms_residual_m"] / spacing if spacing else None,
        "angle_deg": math.degrees(math.atan2(cross, dot)) if cross or dot else None,
    }

"""What a training set of event windows says of itself, and what should be looked at before training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.formats.miniseed_survey import text_array
from geobatch.formats.windows_source import Table
from geobatch.moments import PartialMoments, figures
from geobatch.shards import ArraySpec
from geobatch.survey import survey_info

# Version of everything here that decides a sample's value: placement, padding, what counts as missing.
NUMERICAL_VERSION = 1
TEXT_CHUNK = 2**16
MANY = 0.05
VARIABLES: dict[str, dict[str, Any]] = {
    "length": {"long_name": "samples of the window, the rest is padding", "units": "1"},
    "p_sample": {"long_name": "sample of the P arrival, NaN: none picked", "units": "1"},
    "s_sample": {"long_name": "sample of the S arrival, NaN: none picked", "units": "1"},
    "magnitude": {"long_name": "magnitude of the event", "units": "1"},
    "source_latitude": {"long_name": "latitude of the source", "units": "degrees_north"},
    "source_longitude": {"long_name": "longitude of the source", "units": "degrees_east"},
    "source_depth_km": {"long_name": "depth of the source", "units": "km"},
    "sampling_rate_hz": {"long_name": "samples per second", "units": "Hz"},
    "start": {
        "long_name": "time of the first sample, UTC",
        "units": "nanoseconds since 1970-01-01",
        "calendar": "proleptic_gregorian",
    },
}
TEXTS = {"station": "network.station.location", "split": "part of the data set", "place": "name of the trace or file"}
MOMENTS = ("count", "mean", "squares", "minimum", "maximum")


def small_arrays(table: Table, components: Sequence[str]) -> tuple[list[ArraySpec], dict[str, npt.NDArray[Any]]]:
    """Specs and values of the axes and of what is known of each window."""
    spec, codes = text_array("component", ("component",), components, long_name="orientation code")
    specs, values = [spec], {"component": codes}
    chunk = (min(len(table), TEXT_CHUNK),)
    for name, attributes in VARIABLES.items():
        array = table.columns[name]
        fill: Any = math.nan if array.dtype.kind == "f" else 0
        specs.append(ArraySpec(name, ("window",), array.shape, array.dtype.name, chunk, chunk, fill, attributes))
        values[name] = array
    for name, long_name in TEXTS.items():
        key = "name" if name == "place" else name
        array = table.columns[name]
        specs.append(ArraySpec(key, ("window",), array.shape, "T", chunk, chunk, "", {"long_name": long_name}))
        values[key] = array
    return specs, values


def describe(table: Table, components: Sequence[str], parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the training set says of itself, its own warnings among it."""
    columns = table.columns
    total = PartialMoments()
    for part in parts:
        if part["count"]:
            total = _merge(total, PartialMoments(*(part[name] for name in MOMENTS)))
    counted = {
        name: sum(part[name] for part in parts) for name in ("not_finite", "missing_components", "dead", "unread")
    }
    splits, sizes = np.unique(columns["split"], return_counts=True)
    return {
        "kind": "windows",
        "variable": "waveform",
        "quantity": table.told.get("measurement", "ground motion"),
        "windows": len(table),
        "components": list(components),
        "with_p": int(np.isfinite(columns["p_sample"]).sum()),
        "with_s": int(np.isfinite(columns["s_sample"]).sum()),
        "with_magnitude": int(np.isfinite(columns["magnitude"]).sum()),
        "ranges": {
            name: _range(columns[name]) for name in ("magnitude", "source_depth_km", "length", "sampling_rate_hz")
        },
        "splits": {str(name) or "none": int(size) for name, size in zip(splits, sizes, strict=True)},
        "statistics": {**figures(total), **counted},
        "told": table.told,
        "warnings": _warnings(table, counted),
    }


def moments(samples: npt.NDArray[np.float32]) -> PartialMoments:
    """Count, mean, squared deviations and extremes of the finite samples of windows."""
    total = PartialMoments()
    for window in samples:
        values = window[np.isfinite(window)].astype(np.float64)
        if len(values):
            mean = float(values.mean())
            squares = float(((values - mean) ** 2).sum())
            total = _merge(total, PartialMoments(len(values), mean, squares, float(values.min()), float(values.max())))
    return total


def _merge(one: PartialMoments, other: PartialMoments) -> PartialMoments:
    if not one.count or not other.count:
        return one if one.count else other
    count, apart = one.count + other.count, other.mean - one.mean
    return PartialMoments(
        count,
        one.mean + apart * other.count / count,
        one.squares + other.squares + apart**2 * one.count * other.count / count,
        min(one.minimum, other.minimum),
        max(one.maximum, other.maximum),
    )


def _warnings(table: Table, counted: dict[str, int]) -> list[str]:
    """Sentences on what should be looked at before training, the worst first."""
    count, columns = len(table), table.columns
    found = []
    if counted["unread"]:
        found.append(f"{counted['unread']} of {count} windows did not read and are missing")
    if counted["dead"]:
        found.append(f"{counted['dead']} of {count} windows are zero throughout")
    if counted["not_finite"]:
        found.append(f"{counted['not_finite']} samples are no finite float32 and are missing")
    rates = np.unique(columns["sampling_rate_hz"][np.isfinite(columns["sampling_rate_hz"])])
    if len(rates) > 1:
        found.append(
            f"windows have {len(rates)} sampling rates, {rates[0]:g} to {rates[-1]:g} Hz: resample before training"
        )
    if not np.isfinite(columns["sampling_rate_hz"]).all():
        found.append("some windows do not tell their sampling rate")
    both = int(np.count_nonzero(columns["s_sample"] <= columns["p_sample"]))
    if both:
        found.append(f"{both} windows have S before P")
    lengths = np.unique(columns["length"])
    if len(lengths) > 1:
        found.append(f"windows have {len(lengths)} lengths, {lengths[0]} to {lengths[-1]} samples; the rest is NaN")
    if counted["missing_components"] > MANY * count:
        found.append(f"{counted['missing_components']} components are zero throughout and count as missing")
    if not np.isfinite(columns["p_sample"]).any():
        found.append("no window has a P pick")
    return found


def _range(values: npt.NDArray[Any]) -> list[float] | None:
    finite = values[np.isfinite(values)]
    return [float(finite.min()), float(finite.max())] if len(finite) else None


def identity_of(digests: Sequence[str], values: dict[str, npt.NDArray[Any]]) -> str:
    """SHA-256 of all that decides a window: bytes of the shards, and what is known of each."""
    whole = hashlib.sha256(f"geobatch windows {NUMERICAL_VERSION}".encode())
    for digest in digests:
        whole.update(digest.encode())
    for name in sorted(values):
        whole.update(name.encode() + np.ascontiguousarray(values[name]).tobytes())
    return whole.hexdigest()


def inspect_windows(dataset: xr.Dataset, url: str) -> dict[str, Any]:
    """The description of a training set of windows, from what ingest counted: no sample is read."""
    info = survey_info(dataset, url)
    found = [] if info.get("state") == "complete" else [f"state is {info.get('state')}, not complete"]
    found += info["warnings"]
    if info["faults"]:
        told = ", ".join(f"{count} {what}" for what, count in info["faults"].items())
        found.append(f"faults in the sources, listed in the quality table: {told}")
    shown = (
        "state",
        "quantity",
        "crs",
        "windows",
        "components",
        "with_p",
        "with_s",
        "with_magnitude",
        "ranges",
        "splits",
    )
    sizes = {str(name): int(size) for name, size in dataset.sizes.items()}
    kept = {name: info.get(name) for name in (*shown, "statistics", "told", "source")}
    return {"suspicious": found, "url": url, "kind": "windows", "axes": {}, "shape": sizes, **kept}


def window_rows(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line of a description of windows."""
    shape = " x ".join(f"{size} {name}" for name, size in info["shape"].items())
    rows = [("kind", f"windows, {info['quantity']}"), ("shape", shape), ("components", " ".join(info["components"]))]
    picked = {"with P pick": "with_p", "with S pick": "with_s", "with magnitude": "with_magnitude"}
    rows += [(label, f"{info[name]} of {info['windows']}") for label, name in picked.items()]
    rows += [(name, f"{low_high[0]:g} to {low_high[1]:g}") for name, low_high in info["ranges"].items() if low_high]
    rows.append(("splits", ", ".join(f"{name} {size}" for name, size in info["splits"].items())))
    figures = {name: value for name, value in info["statistics"].items() if value is not None}
    rows.append(("values", ", ".join(f"{name} {value:g}" for name, value in figures.items())))
    return rows

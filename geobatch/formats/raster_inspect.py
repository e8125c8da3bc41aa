"""What a raster is and how good it is, for `geobatch inspect`: of files and of surveys alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from geobatch.survey import class_flags


def describe_raster(
    url: str, info: Mapping[str, Any], flags: Mapping[str, Any], counts: Mapping[int, int]
) -> dict[str, Any]:
    """A JSON description of rasters that were read but not ingested, suspicious things first."""
    axes = {}
    a, _, c, _, e, f = info["transform"]
    shape = info["shape"]
    for name, first, step, count in (("y", f, e, shape[1]), ("x", c, a, shape[2])):
        axes[name] = {
            "count": count,
            "first": first + step / 2,
            "last": first + step * (count - 0.5),
            "step": step,
            "unit": info["units_of_axes"],
        }
    described = {"url": url, "kind": "raster", "axes": axes, **raster_quality(info)}
    values, names, _ = class_flags(flags)
    if values:
        described["classes"] = {name: counts.get(value, 0) for value, name in zip(values, names, strict=True)}
    return {"suspicious": list(info["warnings"]), **described}


def raster_quality(info: Mapping[str, Any]) -> dict[str, Any]:
    """CRS, bounds, cell size and the statistics of every band, from what ingest found."""
    a, _, c, _, e, f = info["transform"]
    _, height, width = info["shape"]
    x, y = sorted((c, c + a * width)), sorted((f, f + e * height))
    return {
        "quantity": info.get("quantity"),
        "crs": info.get("crs"),
        "bounds": {"left": x[0], "bottom": y[0], "right": x[1], "top": y[1]},
        "cell": {"x": a, "y": e},
        "bands": info["bands"],
        "source": info["source"],
    }


def raster_rows(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of what is told of a raster besides its axes."""
    bounds = info["bounds"]
    rows = [
        ("bounds", f"{bounds['left']:.10g} {bounds['bottom']:.10g} to {bounds['right']:.10g} {bounds['top']:.10g}"),
        ("cell", f"{info['cell']['x']:.8g} x {info['cell']['y']:.8g}"),
    ]
    for number, band in enumerate(info["bands"], 1):
        names = ("min", "mean", "max", "std")
        told = ", ".join(f"{name} {band[name]:.6g}" for name in names if band[name] is not None)
        nodata = f", nodata {band['nodata']}" if band["nodata"] is not None else ""
        text = f"{told or 'no valid cell'} {band['units']}".rstrip()
        rows.append((f"{number}: {band['name']}", f"{text}; {band['invalid_share']:.2%} invalid{nodata}"))
    return rows


def raster_classes(dataset: xr.Dataset, info: Mapping[str, Any]) -> dict[str, int]:
    """Cells per class of a raster survey with a colour table, as ingest counted them; empty without one."""
    values, names, _ = class_flags(dataset[info["variable"]].attrs)
    counts = {int(value): count for value, count in (info.get("classes") or {}).items()}
    return {name: counts.get(value, 0) for value, name in zip(values, names, strict=False)}

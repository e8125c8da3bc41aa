"""Metres between the cells of a raster, row by row: one number on a map, a function of latitude in degrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import DataError, UsageError
from geobatch.formats.libraries import need

Rows = npt.NDArray[np.float64]
# Beyond it a cell's width changes by more than a tenth from one row to the next at common cell sizes.
HIGHEST_LATITUDE_DEG = 89.0
UNEVEN = 1e-3


@dataclass(frozen=True)
class Spacing:
    """Signed metres from a cell to the next along x (east positive) and along y (north positive), per row, float64."""

    x_m: Rows
    y_m: Rows


def spacing_of(x: xr.DataArray, cell_m: tuple[float, float] | None = None) -> Spacing:
    """The spacing of an array over `(y, x)`, from its coordinates and the CRS in its coordinate `spatial_ref`.

    A projected CRS counts in its own unit, converted to metres; the scale of the projection is taken as 1. In a
    geographic CRS a degree is M(φ) π/180 northwards and N(φ) cos φ π/180 eastwards, with the radii of curvature of its
    ellipsoid (Snyder 1987, equations 4-18 and 4-20).

    Args:
        x: Array with coordinates `y` and `x` of cell centres, evenly spaced.
        cell_m: Cell size `(x, y)` in metres for arrays without CRS; signs follow the coordinates, or rows from north to
            south where there are none.

    Raises:
        UsageError: neither CRS nor `cell_m` tells the cell size.
        DataError: coordinates are uneven, or reach nearer to a pole than 89 degrees.
    """
    rows = x.sizes["y"]
    step_x, step_y = _step(x, "x", 1.0), _step(x, "y", -1.0)
    if cell_m is not None:
        return Spacing(np.full(rows, np.copysign(cell_m[0], step_x)), np.full(rows, np.copysign(cell_m[1], step_y)))
    crs = _crs(x)
    if not crs.is_geographic:
        metres = float(crs.axis_info[0].unit_conversion_factor)
        return Spacing(np.full(rows, step_x * metres), np.full(rows, step_y * metres))
    latitude_deg = np.asarray(x["y"].values, np.float64)
    if rows and np.abs(latitude_deg).max() > HIGHEST_LATITUDE_DEG:
        raise DataError(
            "cells too near to a pole have no width to speak of",
            where=str(x.name or "array"),
            measured=f"latitude {latitude_deg[np.abs(latitude_deg).argmax()]:g}",
            limit=f"{HIGHEST_LATITUDE_DEG:g} degrees",
            remedy="Ingest it on a polar grid: --set to_crs=EPSG:3413 or EPSG:3031.",
        )
    phi, ellipsoid = np.radians(latitude_deg), crs.ellipsoid
    flattening = 1 / ellipsoid.inverse_flattening if ellipsoid.inverse_flattening else 0.0
    eccentricity_squared = flattening * (2 - flattening)
    root = np.sqrt(1 - eccentricity_squared * np.sin(phi) ** 2)
    meridional = ellipsoid.semi_major_metre * (1 - eccentricity_squared) / root**3
    normal = ellipsoid.semi_major_metre / root
    return Spacing(np.radians(step_x) * normal * np.cos(phi), np.radians(step_y) * meridional)


def _step(x: xr.DataArray, axis: str, default: float) -> float:
    """The signed distance between neighbours along an axis, in units of its coordinate."""
    values = np.asarray(x[axis].values, np.float64) if axis in x.coords else np.empty(0)
    if values.size < 2:
        return default
    step = float(values[-1] - values[0]) / (values.size - 1)
    uneven = float(np.abs(np.diff(values) - step).max())
    if not step or uneven > UNEVEN * abs(step):
        raise DataError(
            "coordinates are not evenly spaced",
            where=f"{x.name or 'array'} {axis}",
            measured=f"steps off by {uneven:g}",
            limit=f"{UNEVEN * abs(step):g}",
        )
    return step


def _crs(x: xr.DataArray) -> Any:
    told = x.coords["spatial_ref"].attrs if "spatial_ref" in x.coords else {}
    wkt = told.get("crs_wkt") or told.get("spatial_ref")
    if not wkt:
        raise UsageError(
            "nothing tells the cell size in metres",
            where=str(x.name or "array"),
            measured="no CRS in the coordinate spatial_ref",
            remedy="Ingest the raster with --set crs=EPSG:…, or give cell_m=(x, y).",
        )
    return need("pyproj", "landform").CRS.from_wkt(wkt)

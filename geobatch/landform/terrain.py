"""Terrain derivatives: voids, slope, aspect, curvatures and hillshade of elevation.

Every step takes and returns a Dask-backed DataArray `(y, x)` or `(band, y, x)` and leaves coordinates and chunks as
they are; bands are treated one by one. NaN marks an invalid cell. A derivative is NaN where any of its nine cells is
invalid or lies outside the survey, so that a frame of one cell is always NaN. Cells have Horn's letters:

    a b c      north, when rows run from north to south; signs follow the coordinates, so that
    d e f      surveys with rows from south to north give the same
    g h i

Cell sizes are metres (`spacing.py`); elevation is in metres after `z_factor`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from geobatch.errors import UsageError
from geobatch.formats.libraries import need
from geobatch.landform.neighbourhood import map_neighbourhood
from geobatch.landform.spacing import spacing_of
from geobatch.preprocess.base import dask_data

Array = npt.NDArray[Any]
Halo = dict[str, tuple[int, int]]
Method = Literal["horn", "zevenbergen_thorne"]
FLAT = 0.0


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def reach(self) -> int:
        """Cells needed on every side."""
        return 1

    @property
    def halo(self) -> Halo:
        """Cells needed (before, after) each cell, per axis name."""
        return {"y": (self.reach, self.reach), "x": (self.reach, self.reach)}


class FillVoids(_Step):
    """Fills invalid cells from the valid ones around them, each looked for no further than `max_distance_cells`.

    Inverse distance weighting of the nearest valid cell in each quadrant, by `rasterio.fill.fillnodata` (GDAL's
    FillNodata) without smoothing. Cells further than that from any valid one stay invalid; valid cells never change.
    """

    step: Literal["fill_voids"] = "fill_voids"
    max_distance_cells: int = Field(default=10, ge=1, le=1000)

    @property
    def reach(self) -> int:
        """One cell more than is searched: GDAL compares distances after it has passed the last cell."""
        return self.max_distance_cells + 1

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` with its voids filled, float32."""
        need("rasterio", "landform")
        x = _over_cells(x, self.step)
        function = partial(_each_band, partial(_fill, reach=self.max_distance_cells))
        data = map_neighbourhood(function, x.data, np.empty((x.sizes["y"], 0)), self.reach)
        return x.copy(deep=False, data=data)


class _Derivative(_Step):
    """A derivative of the 3 x 3 neighbourhood.

    Attributes:
        z_factor: Metres per unit of elevation.
        cell_m: Cell size `(x, y)` in metres, for rasters without CRS.
    """

    z_factor: float = Field(default=1.0, gt=0)
    cell_m: tuple[float, float] | None = None

    def _derived(self, x: xr.DataArray, cell: Callable[[Array, Array], Array], **attributes: str) -> xr.DataArray:
        x = _over_cells(x, type(self).model_fields["step"].default)
        spacing = spacing_of(x, self.cell_m)
        rows = np.stack([spacing.x_m, spacing.y_m], axis=1)
        data = map_neighbourhood(partial(_framed, cell, self.z_factor), x.data, rows, self.reach)
        made = x.copy(deep=False, data=data).rename(attributes["name"])
        kept = {key: value for key, value in x.attrs.items() if key == "grid_mapping"}
        made.attrs = {**kept, "long_name": attributes["long_name"], "units": attributes["units"]}
        return made


class Slope(_Derivative):
    """Steepest slope in degrees, 0 to 90.

    `horn`: third-order finite difference of all eight neighbours (Horn 1981). `zevenbergen_thorne`: of the four nearest
    (1987), sharper and noisier; the slope of SAGA's default method.
    """

    step: Literal["slope"] = "slope"
    method: Method = "horn"

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """Slope of the elevation `x`, float32."""
        told = f"slope ({self.method})"
        return self._derived(x, partial(_slope, method=self.method), name="slope", long_name=told, units="degree")


class Aspect(_Derivative):
    """Direction of steepest descent in degrees clockwise from north, 0 to 360, NaN if flat; methods of `Slope`."""

    step: Literal["aspect"] = "aspect"
    method: Method = "horn"

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """Aspect of the elevation `x`, float32."""
        told = f"aspect ({self.method})"
        return self._derived(x, partial(_aspect, method=self.method), name="aspect", long_name=told, units="degree")


class Curvature(_Derivative):
    """Curvature in 1/m of the partial quartic surface of Zevenbergen & Thorne 1987, 0 where it is exactly flat.

    `profile`: along the steepest slope, -2 (D G² + E H² + F G H) / (G² + H²), positive where the slope is convex.
    `plan`: across it, 2 (D H² + E G² - F G H) / (G² + H²), positive where flow gathers.
    With `geometric` they are the curvatures of the lines themselves, as SAGA writes them: profile of the line of
    steepest slope, profile / (1 + G² + H²)^1.5; plan of the contour, -plan / √(G² + H²), positive where flow spreads.
    """

    step: Literal["curvature"] = "curvature"
    kind: Literal["profile", "plan"] = "profile"
    geometric: bool = False

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """Curvature of the elevation `x`, float32."""
        told = f"{self.kind} curvature (Zevenbergen & Thorne 1987)"
        cell: Callable[..., Array] = _profile_curvature if self.kind == "profile" else _plan_curvature
        cell = partial(cell, geometric=self.geometric)
        return self._derived(x, cell, name=f"{self.kind}_curvature", long_name=told, units="1/m")


class Hillshade(_Derivative):
    """Lambertian reflectance, 0 to 1, of a surface lit from `azimuth_deg` at `altitude_deg` (Horn 1981); 0 in shade.

    Attributes:
        azimuth_deg: Where the light comes from, clockwise from north.
        altitude_deg: Its height above the horizon.
    """

    step: Literal["hillshade"] = "hillshade"
    azimuth_deg: float = Field(default=315.0, ge=0, le=360)
    altitude_deg: float = Field(default=45.0, ge=0, le=90)

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """Hillshade of the elevation `x`, float32."""
        cell = partial(_shade, azimuth=np.radians(self.azimuth_deg), altitude=np.radians(self.altitude_deg))
        return self._derived(x, cell, name="hillshade", long_name="hillshade (Horn 1981)", units="1")


TERRAIN_STEPS: dict[str, type[FillVoids | Slope | Aspect | Curvature | Hillshade]] = {
    "fill_voids": FillVoids,
    "slope": Slope,
    "aspect": Aspect,
    "curvature": Curvature,
    "hillshade": Hillshade,
}


def horn_gradient(z: Array, rows: Array) -> tuple[Array, Array]:
    """dz/dx (eastwards) and dz/dy (northwards) of the inner cells of a block, float64 (Horn 1981, equation 18).

    Args:
        z: `(…, y, x)` float64, metres.
        rows: Signed metres along x and y of every row, `(y, 2)`.
    """
    a, b, c = (z[..., :-2, k : z.shape[-1] - 2 + k] for k in range(3))
    d, f = z[..., 1:-1, :-2], z[..., 1:-1, 2:]
    g, h, i = (z[..., 2:, k : z.shape[-1] - 2 + k] for k in range(3))
    step_x, step_y = rows[1:-1, :1], rows[1:-1, 1:]
    return ((c + 2 * f + i) - (a + 2 * d + g)) / (8 * step_x), ((g + 2 * h + i) - (a + 2 * b + c)) / (8 * step_y)


def quartic(z: Array, rows: Array) -> tuple[Array, Array, Array, Array, Array]:
    """D, E, F, G, H of the inner cells of a block, float64 (Zevenbergen & Thorne 1987, equations 4 to 8).

    The surface is D x² + E y² + F x y + G x + H y about each cell, x eastwards and y northwards in metres; cells need
    not be square. Arguments as in `horn_gradient`.
    """
    a, b, c = (z[..., :-2, k : z.shape[-1] - 2 + k] for k in range(3))
    d, e, f = (z[..., 1:-1, k : z.shape[-1] - 2 + k] for k in range(3))
    g, h, i = (z[..., 2:, k : z.shape[-1] - 2 + k] for k in range(3))
    step_x, step_y = rows[1:-1, :1], rows[1:-1, 1:]
    return (
        ((d + f) / 2 - e) / step_x**2,
        ((b + h) / 2 - e) / step_y**2,
        ((a + i) - (c + g)) / (4 * step_x * step_y),
        (f - d) / (2 * step_x),
        (h - b) / (2 * step_y),
    )


def _gradient(z: Array, rows: Array, method: Method) -> tuple[Array, Array]:
    return horn_gradient(z, rows) if method == "horn" else quartic(z, rows)[3:]


def _slope(z: Array, rows: Array, method: Method) -> Array:
    slope: Array = np.degrees(np.arctan(np.hypot(*_gradient(z, rows, method))))
    return slope


def _aspect(z: Array, rows: Array, method: Method) -> Array:
    east, north = _gradient(z, rows, method)
    azimuth = np.degrees(np.arctan2(-east, -north)) % 360.0
    return np.where((east == FLAT) & (north == FLAT), np.nan, azimuth)


def _shade(z: Array, rows: Array, azimuth: float, altitude: float) -> Array:
    east, north = horn_gradient(z, rows)
    lit = np.sin(altitude) - np.cos(altitude) * (east * np.sin(azimuth) + north * np.cos(azimuth))
    shade: Array = np.maximum(lit / np.sqrt(1 + east**2 + north**2), 0.0)
    return shade


def _profile_curvature(z: Array, rows: Array, geometric: bool) -> Array:
    D, E, F, G, H = quartic(z, rows)
    curvature = _over_slope(-2 * (D * G**2 + E * H**2 + F * G * H), G**2 + H**2)
    return curvature / (1 + G**2 + H**2) ** 1.5 if geometric else curvature


def _plan_curvature(z: Array, rows: Array, geometric: bool) -> Array:
    D, E, F, G, H = quartic(z, rows)
    bend = 2 * (D * H**2 + E * G**2 - F * G * H)
    return _over_slope(-bend, (G**2 + H**2) ** 1.5) if geometric else _over_slope(bend, G**2 + H**2)


def _over_slope(bend: Array, slope: Array) -> Array:
    return np.divide(bend, slope, out=bend * 0.0, where=slope != FLAT)


def _framed(cell: Callable[[Array, Array], Array], z_factor: float, block: Array, rows: Array) -> Array:
    """The derivative of every cell of a block, NaN in the frame of one cell whose neighbours are not in it."""
    made = np.full(block.shape, np.nan, block.dtype)
    if block.shape[-1] > 2 and block.shape[-2] > 2:
        # One band at a time: float64 intermediates are many.
        for index in np.ndindex(block.shape[:-2]):
            valid = np.isfinite(block[index])
            z = np.where(valid, block[index], 0).astype(np.float64) * z_factor
            nine = np.lib.stride_tricks.sliding_window_view(valid, (3, 3)).all(axis=(-1, -2))
            made[index][1:-1, 1:-1] = np.where(nine, cell(z, rows), np.nan)
    return made


def _each_band(function: Callable[[Array], Array], block: Array, _rows: Array) -> Array:
    made = np.empty_like(block)
    for index in np.ndindex(block.shape[:-2]):
        made[index] = function(block[index])
    return made


def _fill(z: Array, reach: int) -> Array:
    from rasterio.fill import fillnodata

    valid = np.isfinite(z)
    if valid.all() or not valid.any():
        return z
    filled = fillnodata(np.where(valid, z, np.float32(np.nan)), mask=valid, max_search_distance=reach)
    return np.where(valid, z, filled)


def _over_cells(x: xr.DataArray, step: str) -> xr.DataArray:
    """`x` as Dask-backed float32 with y and x last."""
    if not {"y", "x"} <= set(x.dims):
        raise UsageError(
            f"the step {step} takes a raster",
            where=f"{x.name or 'array'} {x.dims}",
            limit="axes (y, x) or (band, y, x)",
            remedy="Open a raster survey, and take geobatch.formats.raster_survey.valid_raster of it.",
        )
    if x.dims[-2:] != ("y", "x"):
        x = x.transpose(..., "y", "x")
    dask_data(x, f"the step {step}")
    return x if x.dtype == np.float32 else x.astype(np.float32)

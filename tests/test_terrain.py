"""Terrain derivatives against surfaces of known slope and curvature, other programs, and themselves in chunks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pyproj import CRS, Geod

from geobatch.errors import DataError, UsageError
from geobatch.landform.spacing import spacing_of
from geobatch.landform.terrain import TERRAIN_STEPS, Aspect, Curvature, FillVoids, Hillshade, Slope

Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]


def raster(
    surface: Surface | np.ndarray,
    shape: tuple[int, int] = (41, 37),
    cell: tuple[float, float] = (10.0, -10.0),
    crs: int = 32717,
) -> xr.DataArray:
    """The surface over x and y in metres around the middle, float32, as a chunked raster with a CRS."""
    x, y = ((np.arange(n) - n // 2) * step for n, step in zip(shape[::-1], cell, strict=True))
    values = surface(*np.meshgrid(x, y)) if callable(surface) else surface
    told = {"crs_wkt": CRS.from_epsg(crs).to_wkt()}
    coords = {"y": y, "x": x, "spatial_ref": ((), 0, told)}
    return xr.DataArray(np.asarray(values, np.float32), coords, ("y", "x"), name="elevation").chunk()


def inner(made: xr.DataArray) -> np.ndarray:
    values = np.asarray(made.values, np.float64)
    assert np.isnan(values[[0, -1]]).all() and np.isnan(values[:, [0, -1]]).all()
    return values[1:-1, 1:-1]


@pytest.mark.parametrize("cell", [(10.0, -10.0), (5.0, -20.0), (10.0, 10.0), (-10.0, 10.0)])
@pytest.mark.parametrize("method", ["horn", "zevenbergen_thorne"])
def test_plane_has_its_slope_aspect_and_no_curvature(cell: tuple[float, float], method: Any) -> None:
    """A plane that falls towards azimuth 120 degrees at a slope of 30 degrees, rows and columns in any order."""
    fall, azimuth = np.tan(np.radians(30)), np.radians(120)
    plane = raster(lambda x, y: -fall * (x * np.sin(azimuth) + y * np.cos(azimuth)), cell=cell)
    np.testing.assert_allclose(inner(Slope(method=method).apply(plane)), 30, atol=1e-3)
    np.testing.assert_allclose(inner(Aspect(method=method).apply(plane)), 120, atol=1e-3)
    for kind in ("profile", "plan"):
        np.testing.assert_allclose(inner(Curvature(kind=kind).apply(plane)), 0, atol=1e-6)
    facing = Hillshade(azimuth_deg=120, altitude_deg=60).apply(plane)
    np.testing.assert_allclose(inner(facing), 1, atol=1e-6)
    np.testing.assert_allclose(inner(Hillshade(azimuth_deg=300, altitude_deg=60).apply(plane)), 0.5, atol=1e-5)
    assert not inner(Hillshade(azimuth_deg=300, altitude_deg=20).apply(plane)).any()


def test_level_ground_has_no_aspect_and_no_curvature() -> None:
    level = raster(lambda x, y: 100 + 0 * x)
    assert not inner(Slope().apply(level)).any()
    assert np.isnan(inner(Aspect().apply(level))).all()
    assert not inner(Curvature().apply(level)).any()


def test_paraboloid_has_the_curvature_of_its_formula() -> None:
    """z = a x² + b y²: Zevenbergen & Thorne's surface holds it exactly. D = a, E = b, G = 2 a x, H = 2 b y."""
    a, b = 4e-3, -2e-3
    bowl = raster(lambda x, y: a * x**2 + b * y**2 + 0 * x)
    x, y = np.meshgrid(bowl["x"].values[1:-1], bowl["y"].values[1:-1])
    G, H = 2 * a * x, 2 * b * y
    squared = np.where((G == 0) & (H == 0), np.inf, G**2 + H**2)
    profile, plan = -2 * (a * G**2 + b * H**2) / squared, 2 * (a * H**2 + b * G**2) / squared
    np.testing.assert_allclose(inner(Curvature(kind="profile").apply(bowl)), profile, atol=5e-6)
    np.testing.assert_allclose(inner(Curvature(kind="plan").apply(bowl)), plan, atol=5e-6)
    geometric = inner(Curvature(kind="profile", geometric=True).apply(bowl))
    np.testing.assert_allclose(geometric, profile / (1 + G**2 + H**2) ** 1.5, atol=5e-6)
    # The gradient of a quadric is exact in both differences.
    for method in ("horn", "zevenbergen_thorne"):
        found = inner(Slope(method=method).apply(bowl))
        np.testing.assert_allclose(found, np.degrees(np.arctan(np.hypot(G, H))), atol=2e-4)


def test_sphere_has_its_slope_and_the_curvature_of_its_radius() -> None:
    """Slope asin(r / R), aspect outwards, and normal curvature 1 / R of every line of steepest slope."""
    radius = 1000.0
    sphere = raster(lambda x, y: np.sqrt(radius**2 - x**2 - y**2), shape=(61, 61), cell=(5.0, -5.0))
    x, y = np.meshgrid(sphere["x"].values[1:-1], sphere["y"].values[1:-1])
    off = np.hypot(x, y)
    np.testing.assert_allclose(inner(Slope().apply(sphere)), np.degrees(np.arcsin(off / radius)), atol=0.01)
    away = off > 30
    aspect = inner(Aspect().apply(sphere))[away]
    turned = (aspect - np.degrees(np.arctan2(x, y))[away] + 180) % 360 - 180
    np.testing.assert_allclose(turned, 0, atol=0.1)
    curvature = inner(Curvature(kind="profile", geometric=True).apply(sphere))[away]
    np.testing.assert_allclose(curvature, 1 / radius, rtol=0.02)
    contour = inner(Curvature(kind="plan", geometric=True).apply(sphere))[away]
    np.testing.assert_allclose(contour, 1 / off[away], rtol=0.03)


def test_real_slope_and_curvatures_agree_with_their_own_elevation(test_data: Path) -> None:
    """The Ecuador raster's bands were made from its elevation by SAGA, method of Zevenbergen & Thorne."""
    import rioxarray

    bands = rioxarray.open_rasterio(test_data / "landform/ecuador_landslides/ta.tif")
    elevation = bands.isel(band=3).astype(np.float32).chunk({"y": 100, "x": 90})
    made = {
        0: Slope(method="zevenbergen_thorne").apply(elevation).values,
        1: Curvature(kind="plan", geometric=True).apply(elevation).values,
        2: Curvature(kind="profile", geometric=True).apply(elevation).values,
    }
    for band, found in made.items():
        own = bands.values[band]
        both = np.isfinite(found) & np.isfinite(own)
        assert both.sum() > 156_000
        difference = np.sqrt(np.square(found[both] - own[both], dtype=np.float64).mean())
        assert difference < 1e-6 * max(1.0, np.sqrt(np.square(own[both], dtype=np.float64).mean()))
    horn = Slope().apply(elevation).values
    both = np.isfinite(horn) & np.isfinite(bands.values[0])
    assert np.corrcoef(horn[both], bands.values[0][both])[0, 1] > 0.98


def test_degrees_become_metres_by_latitude() -> None:
    """Against geodesics between neighbouring cell centres (GeographicLib)."""
    geod = Geod(ellps="WGS84")
    for latitude in (0.0, 37.3, -60.0, 80.0):
        cells = xr.DataArray(
            np.zeros((3, 3), np.float32),
            {
                "y": latitude - np.arange(3) / 1200,
                "x": 10 + np.arange(3) / 1200,
                "spatial_ref": ((), 0, {"crs_wkt": CRS.from_epsg(4326).to_wkt()}),
            },
            ("y", "x"),
        )
        found = spacing_of(cells)
        y = cells["y"].values
        east = geod.inv(10, y[1], 10 + 1 / 1200, y[1])[2]
        south = geod.inv(10, y[0], 10, y[2])[2] / 2
        assert found.x_m[1] == pytest.approx(east, rel=1e-6)
        assert found.y_m[1] == pytest.approx(-south, rel=1e-6)


def test_slope_in_degrees_is_the_slope_on_the_map(test_data: Path) -> None:
    """Slope of the Zion elevation in EPSG:4326 against gdalwarp to metres and slope there: medians agree."""
    import rioxarray
    from rasterio.enums import Resampling

    dem = rioxarray.open_rasterio(test_data / "landform/zion_dem_nlcd/srtm.tif", masked=True).isel(band=0)
    on_map = dem.rio.reproject("EPSG:32612", resolution=85, resampling=Resampling.cubic)
    one, two = (np.nanmedian(Slope().apply(x.astype(np.float32).chunk()).values) for x in (dem, on_map))
    assert one == pytest.approx(two, rel=0.02)


def test_pole_missing_crs_and_volumes_are_refused() -> None:
    polar = raster(lambda x, y: x, cell=(0.1, -0.1), crs=4326)
    polar = polar.assign_coords(y=89.5 - np.arange(41) / 1e4)
    with pytest.raises(DataError, match="to_crs"):
        Slope().apply(polar)
    bare = raster(lambda x, y: x).drop_vars("spatial_ref")
    with pytest.raises(UsageError, match="crs=EPSG"):
        Slope().apply(bare)
    np.testing.assert_allclose(inner(Slope(cell_m=(10, 10)).apply(bare)), 45, atol=1e-4)
    with pytest.raises(UsageError, match="takes a raster"):
        Slope().apply(xr.DataArray(np.zeros((2, 2, 2)), dims=("inline", "crossline", "sample")).chunk())
    with pytest.raises(UsageError, match="Dask-backed"):
        Slope().apply(raster(lambda x, y: x).compute())
    with pytest.raises(ValidationError):
        Slope(method="evans")  # type: ignore[arg-type]
    uneven = raster(lambda x, y: x)
    with pytest.raises(DataError, match="evenly"):
        Slope().apply(uneven.assign_coords(x=np.arange(37.0) ** 2))


def test_a_void_takes_its_eight_neighbours_with_it() -> None:
    plane = raster(lambda x, y: x).compute()
    plane[10, 10] = np.nan
    for step in (Slope(), Slope(method="zevenbergen_thorne"), Aspect(), Curvature(), Hillshade()):
        found = inner(step.apply(plane.chunk()))
        assert np.isnan(found[8:11, 8:11]).all()
        assert np.isfinite(found).sum() == found.size - 9


def test_voids_are_filled_within_reach_and_no_further() -> None:
    plane = raster(lambda x, y: 500 + x + y).compute()
    whole = plane.values.copy()
    plane[15:18, 15:18] = np.nan
    filled = FillVoids(max_distance_cells=5).apply(plane.chunk()).values
    np.testing.assert_allclose(filled[15:18, 15:18], whole[15:18, 15:18], atol=12)
    np.testing.assert_array_equal(filled[plane.notnull().values], whole[plane.notnull().values])
    plane[5:36, 5:36] = np.nan
    filled = FillVoids(max_distance_cells=3).apply(plane.chunk()).values
    assert np.isnan(filled[9:32, 9:32]).all() and np.isfinite(filled[5:7, 5:36]).all()


@settings(max_examples=30)
@given(data=st.data())
def test_chunks_give_what_the_whole_gives(data: st.DataObject) -> None:
    shape = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    generator = np.random.default_rng(data.draw(st.integers(0, 9)))
    values = generator.normal(900, 50, (2, *shape)).astype(np.float32)
    values[generator.random(values.shape) < data.draw(st.sampled_from([0.0, 0.1, 0.7]))] = np.nan
    crs = data.draw(st.sampled_from([32717, 4326]))
    x = raster(values[0], shape, cell=(1e-3, -1e-3), crs=crs).compute()
    x = xr.DataArray(values, {**x.coords, "band": [1, 2]}, ("band", "y", "x"))
    kind = data.draw(st.sampled_from(sorted(TERRAIN_STEPS)))
    options = {"max_distance_cells": data.draw(st.integers(1, 9))} if kind == "fill_voids" else {}
    step = TERRAIN_STEPS[kind](**options)  # type: ignore[arg-type]
    # Chunks of single rows or of single columns, but not of single cells, of which there are too many for a test.
    thinnest = data.draw(st.sampled_from([(1, 8), (8, 1), (3, 3)]))
    cut = {
        axis: data.draw(st.integers(min(least, size), size))
        for axis, size, least in zip(("y", "x"), shape, thinnest, strict=True)
    }
    whole, chunked = step.apply(x.chunk()), step.apply(x.chunk(cut))
    assert chunked.chunks == x.chunk(cut).chunks
    np.testing.assert_array_equal(np.isnan(chunked.values), np.isnan(whole.values))
    held = np.isfinite(whole.values)
    rms = np.sqrt(np.square(whole.values[held], dtype=np.float64).mean()) if held.any() else 0.0
    assert not held.any() or np.abs(chunked.values[held] - whole.values[held]).max() <= 1e-6 * rms

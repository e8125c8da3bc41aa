"""Labels of another grid and projection on the grid of a survey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from raster_files import field, write_tiff

from geobatch.errors import DataError, MismatchError
from geobatch.formats import IngestRun, raster_labels
from geobatch.formats.raster import Options, ingest_source
from geobatch.formats.raster_labels import align_labels
from geobatch.survey import class_names, open_survey


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, pieces are written here."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def ingested(source: Path, target: Path) -> xr.Dataset:
    ingest_source(str(source), str(target), Options(), IngestRun())
    return open_survey(str(target))


def test_real_land_cover_lies_on_the_elevation_grid(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyproj

    folder = test_data / "landform/zion_dem_nlcd"
    survey, labels = (ingested(folder / f"{name}.tif", tmp_path / name) for name in ("srtm", "nlcd"))
    whole = align_labels(str(folder / "nlcd.tif"), survey).values
    monkeypatch.setattr(raster_labels, "BLOCK_SIDE", 100)
    for source in (str(folder / "nlcd.tif"), labels, str(tmp_path / "nlcd")):
        found = align_labels(source, survey)
        assert (found.dtype, found.dims) == (np.uint8, ("y", "x"))
        np.testing.assert_array_equal(found.values, whole)
    assert class_names(found)[4] == "class_4"
    assert found.rio.crs == rasterio.CRS.from_epsg(4326)
    # By hand: the cell of the land cover into which the centre of each elevation cell falls.
    with rasterio.open(folder / "nlcd.tif") as file:
        raw, inverse = file.read(1), ~file.transform
    to_labels = pyproj.Transformer.from_crs(4326, 26912, always_xy=True)
    x, y = to_labels.transform(*np.meshgrid(survey["x"].values, survey["y"].values))
    column, row = np.floor(inverse.a * x + inverse.c).astype(int), np.floor(inverse.e * y + inverse.f).astype(int)
    inside = (row >= 0) & (row < raw.shape[0]) & (column >= 0) & (column < raw.shape[1])
    expected = np.full(whole.shape, 255, np.uint8)
    expected[inside] = raw[row[inside], column[inside]]
    assert (whole != expected).mean() < 1e-4
    # rioxarray's own transformer is exact to an eighth of a cell.
    match = rioxarray.open_rasterio(folder / "nlcd.tif").rio.reproject_match(
        rioxarray.open_rasterio(folder / "srtm.tif")
    )
    assert (match.values[0] != whole).mean() < 5e-3


def test_labels_that_are_none_are_refused(tmp_path: Path) -> None:
    survey = ingested(write_tiff(tmp_path / "dem.tif", field((60, 60))), tmp_path / "dem")
    good = field((60, 60), "uint8")
    cases = {
        "floats": write_tiff(tmp_path / "a.tif", field((60, 60))),
        "two bands": write_tiff(tmp_path / "b.tif", field((2, 60, 60), "uint8")),
        "no CRS": write_tiff(tmp_path / "c.tif", good, crs=None),
        "elsewhere": write_tiff(tmp_path / "d.tif", good, corner=(100000.0, 8500000.0)),
    }
    for source in cases.values():
        with pytest.raises(MismatchError):
            align_labels(str(source), survey)
    high = write_tiff(tmp_path / "e.tif", good.astype(np.int16) + 200)
    with pytest.raises(DataError, match="no class number"):
        align_labels(str(high), survey).compute()

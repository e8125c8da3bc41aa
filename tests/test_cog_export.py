"""Rasters out: the COG of a survey equals the file it was ingested from; that of a class map names its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from raster_files import field, tiled, write_tiff

from geobatch.errors import UsageError
from geobatch.formats import IngestRun
from geobatch.formats.cog_export import export_cog, is_raster
from geobatch.formats.raster import Options, ingest_source
from geobatch.shards import ArraySpec, create_arrays, finish_group
from geobatch.survey import class_attributes

MASK = field((150, 130), "uint8") > 60
HOLES = np.where(MASK, field((150, 130)), np.float32(-9999))


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, pieces are written here."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def exported(source: Path, folder: Path, **options: Any) -> Path:
    ingest_source(str(source), str(folder / "survey"), Options(**options), IngestRun())
    export_cog(str(folder / "survey"), str(folder / "out.tif"))
    return folder / "out.tif"


def same_files(source: Path, out: Path) -> None:
    """Numbers bit for bit, masks, and everything that gives them a meaning."""
    with rasterio.open(source) as a, rasterio.open(out) as b:
        assert b.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert a.read().tobytes() == b.read().tobytes()
        np.testing.assert_array_equal(a.read_masks() != 0, b.read_masks() != 0)
        for name in ("crs", "transform", "dtypes", "descriptions", "scales", "offsets", "units"):
            assert getattr(a, name) == getattr(b, name), name
        np.testing.assert_equal(a.nodatavals, b.nodatavals)
        assert a.tags() == b.tags()
        if a.colorinterp[0].name == "palette":
            assert a.colormap(1) == b.colormap(1)


@pytest.mark.parametrize("name", ["ecuador_landslides/ta", "zion_dem_nlcd/srtm", "zion_dem_nlcd/nlcd"])
def test_real_raster_comes_out_as_it_went_in(test_data: Path, tmp_path: Path, name: str) -> None:
    source = test_data / "landform" / f"{name}.tif"
    same_files(source, exported(source, tmp_path))


CASES: dict[str, dict[str, Any]] = {
    "floats with nodata": {"values": HOLES, "nodata": -9999.0, "names": ("elevation",)},
    "floats with NaN": {"values": np.where(MASK, HOLES, np.nan)},
    "integers with nodata": {"values": field((4, 150, 130), "int16"), "nodata": 7},
    "integers under a mask": {"values": field((150, 130), "uint16"), "mask": MASK},
    "scaled integers": {
        "values": field((2, 150, 130), "int16"),
        "scales": (0.01, 3.0),
        "offsets": (-5.0, 0.0),
        "nodata": 9,
    },
    "doubles": {"values": field((150, 130), "float64")},
    "south up": {"values": field((150, 130)), "cell": (10.0, 10.0)},
    "no CRS": {"values": field((150, 130)), "crs": None},
    "larger than a block": {"values": field((1100, 700), "uint8"), "AREA_OR_POINT": "Area"},
}


@pytest.mark.parametrize("name", CASES)
def test_raster_comes_out_as_it_went_in(tmp_path: Path, name: str) -> None:
    source = write_tiff(tmp_path / "a.tif", **CASES[name], **tiled())
    same_files(source, exported(source, tmp_path))


def test_export_goes_to_a_bucket_and_overwrites_only_when_told(s3: str, tmp_path: Path) -> None:
    from geobatch.formats.raster_source import find_source, open_raster
    from geobatch.storage import join_url

    values = field((90, 80))
    ingest_source(str(write_tiff(tmp_path / "a.tif", values)), join_url(s3, "survey"), Options(), IngestRun())
    target = join_url(s3, "out.tif")
    export_cog(join_url(s3, "survey"), target)
    with open_raster(find_source(target)) as opened:
        np.testing.assert_array_equal(opened.dataset.read(1), values)
    with pytest.raises(UsageError, match="overwrite"):
        export_cog(join_url(s3, "survey"), target)
    with pytest.raises(UsageError, match="no such raster"):
        export_cog(join_url(s3, "survey"), target, variable="elevation", overwrite=True)


def test_class_map_and_probability_come_out_with_colours_and_names(tmp_path: Path) -> None:
    classes = np.where(MASK, field((150, 130), "uint8") % 2, 255).astype(np.uint8)
    probability = field((2, 150, 130), "float32")
    flags = class_attributes(["stable", "landslide"], ["#113355", "#ff8800"])
    axes = {"y": 9500000.0 - 10 * np.arange(150), "x": 700000.0 + 10 * np.arange(130)}
    specs = [ArraySpec("class_map", ("y", "x"), classes.shape, "uint8", (50, 50), (100, 100), 255, flags)]
    specs += [ArraySpec("probability", ("class", "y", "x"), (2, 150, 130), "float32", (1, 50, 50), (1, 100, 100))]
    specs += [ArraySpec.small(name, (name,), values) for name, values in axes.items()]
    url = str(tmp_path / "scored")
    create_arrays(url, specs, {"class_map": classes, "probability": probability, **axes})
    info = {"schema": 1, "kind": "scored", "state": "complete", "crs": "EPSG:32717"}
    finish_group(url, specs, {"geobatch": info})
    assert is_raster(url)
    export_cog(url, str(tmp_path / "classes.tif"))
    export_cog(url, str(tmp_path / "p.tif"), variable="probability:landslide")
    with rasterio.open(tmp_path / "classes.tif") as file:
        np.testing.assert_array_equal(file.read(1), classes)
        assert (file.nodata, file.crs.to_epsg()) == (255, 32717)
        assert file.colormap(1)[1] == (255, 136, 0, 255)
        assert file.transform[:6] == (10, 0, 699995, 0, -10, 9500005)
    with rasterio.open(tmp_path / "p.tif") as file:
        np.testing.assert_array_equal(file.read(1), probability[1])

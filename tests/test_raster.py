"""Rasters in: every file equals what rasterio reads, mosaics lie where their tiles lie, what does not read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from raster_files import CRS, field, tiled, write_tiff

from geobatch.errors import DataError, GeometryError, MismatchError, TransientError, UsageError
from geobatch.formats import IngestRun, parse_options
from geobatch.formats.ingestion import read_quality, verify_ingested
from geobatch.formats.raster import Options, ingest_source, inspect_source
from geobatch.formats.raster_ranges import Ranges
from geobatch.formats.raster_source import find_source, open_raster
from geobatch.formats.raster_survey import valid_raster
from geobatch.inspect import inspect_survey, render_text
from geobatch.storage import join_url, open_storage
from geobatch.survey import open_survey

SMALL: dict[str, Any] = {"chunk": (32, 32), "shard": (64, 64)}


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, pieces are written here, unless a test asks for it."""
    if "ray_cluster" not in request.fixturenames:
        monkeypatch.setattr("ray.is_initialized", lambda: False)


def ingested(source: Path | str, target: Path | str, **options: Any) -> xr.Dataset:
    ingest_source(str(source), str(target), Options(**{**SMALL, **options}), IngestRun(overwrite=True))
    return open_survey(str(target))


def same_as_rasterio(source: Path, survey: xr.Dataset) -> None:
    """Numbers, validity, coordinates and CRS are those that rasterio reads."""
    with rasterio.open(source) as file:
        raw, valid = file.read(), file.read_masks() != 0
        values = survey["values"]
        assert survey["values"].rio.crs == file.crs
        np.testing.assert_allclose(values.rio.transform()[:6], file.transform[:6], rtol=1e-12)
    if values.dtype.kind == "f":
        valid &= ~np.isnan(raw)
        np.testing.assert_array_equal(values.values, np.where(valid, raw, np.nan))
    else:
        np.testing.assert_array_equal(values.values, raw)
        np.testing.assert_array_equal(survey["valid"].values, valid)
    assert values.dtype == raw.dtype
    np.testing.assert_array_equal(np.isnan(valid_raster(survey).values), ~valid)


@pytest.mark.parametrize("name", ["ecuador_landslides/ta", "zion_dem_nlcd/srtm", "zion_dem_nlcd/nlcd"])
def test_real_raster_equals_what_rasterio_reads(test_data: Path, tmp_path: Path, name: str) -> None:
    source = test_data / "landform" / f"{name}.tif"
    survey = ingested(source, tmp_path / "survey", chunk=(100, 90), shard=(500, 450))
    same_as_rasterio(source, survey)
    of_file, of_survey = inspect_survey(str(source)), inspect_survey(str(tmp_path / "survey"))
    for key in ("crs", "bounds", "cell", "suspicious"):
        assert of_file[key] == of_survey[key]
    for one, two in zip(of_file["bands"], of_survey["bands"], strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert value == (pytest.approx(two[key], rel=1e-9) if isinstance(value, float) else two[key])
    with rasterio.open(source) as file:
        for number, band in enumerate(of_survey["bands"], 1):
            held = file.read(number, masked=True).compressed().astype(float)
            held = held[~np.isnan(held)]
            found = [band["count"], band["min"], band["max"], band["mean"], band["std"]]
            np.testing.assert_allclose(found, [held.size, held.min(), held.max(), held.mean(), held.std()], rtol=1e-9)


def test_pictures_are_rasters_when_told_where_they_lie(test_data: Path, tmp_path: Path) -> None:
    for source in sorted((test_data / "landform/nepal_landslide/masks").glob("*.png"))[:2]:
        survey = ingested(source, tmp_path / "survey", shard=(512, 512), transform=(1, 0, 0, 0, -1, 0))
        with rasterio.open(source) as file:
            np.testing.assert_array_equal(survey["values"].values, file.read())
        assert survey["y"].values[0] == -0.5


CASES: dict[str, dict[str, Any]] = {
    "float": {"values": field((3, 150, 130))},
    "strips": {"values": field((150, 130), "int16"), "nodata": 7},
    "nodata float": {"values": field((100, 90)).round(-2), "nodata": 900.0},
    "double": {"values": field((70, 90), "float64")},
    "wide integers": {"values": field((70, 90), "int32")},
    "eight bits": {"values": field((70, 90), "uint8"), "nodata": 3},
    "internal mask": {"values": field((150, 130), "uint16"), "mask": field((150, 130), "uint8") > 60},
    "mask of floats": {"values": field((150, 130)), "mask": field((150, 130), "uint8") > 60},
    "south up": {"values": field((150, 130)), "cell": (10.0, 10.0)},
    "degrees": {
        "values": field((50, 60), "uint16"),
        "crs": "EPSG:4326",
        "corner": (-79.0, -4.0),
        "cell": (0.01, -0.02),
    },
    "one cell": {"values": field((1, 1))},
    "big endian": {"values": field((90, 80), "int16"), "ENDIANNESS": "BIG"},
    "BigTIFF": {"values": field((90, 80)), "BIGTIFF": "YES"},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_file_equals_what_rasterio_reads(tmp_path: Path, name: str, layout: str) -> None:
    source = write_tiff(tmp_path / "a.tif", **CASES[name], **(tiled() if layout == "tiles" else {}))
    same_as_rasterio(source, ingested(source, tmp_path / "survey"))
    assert not verify_ingested(str(tmp_path / "survey")).findings


def test_alpha_band_is_a_mask_and_no_band(tmp_path: Path) -> None:
    rgb, alpha = field((3, 90, 80), "uint8"), (field((1, 90, 80), "uint8", 1) > 100).astype(np.uint8) * 255
    source = write_tiff(tmp_path / "a.tif", np.concatenate([rgb, alpha]), photometric="RGB", alpha="YES")
    survey = ingested(source, tmp_path / "survey")
    assert survey["values"].shape == (3, 90, 80)
    np.testing.assert_array_equal(survey["valid"].values, np.broadcast_to(alpha != 0, (3, 90, 80)))
    np.testing.assert_array_equal(survey["values"].values, rgb)


def test_mask_file_beside_the_raster_counts(tmp_path: Path) -> None:
    mask = field((90, 80), "uint8") > 60
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        source = write_tiff(tmp_path / "a.tif", field((90, 80), "uint16"), mask=mask)
    assert (tmp_path / "a.tif.msk").exists()
    survey = ingested(source, tmp_path / "survey")
    np.testing.assert_array_equal(survey["valid"].values[0], mask)


def test_scale_and_offset_give_the_values_meant(tmp_path: Path) -> None:
    raw = field((2, 90, 80), "int16")
    raw[:, 3] = -1
    source = write_tiff(tmp_path / "a.tif", raw, nodata=-1, scales=(0.1, 2.0), offsets=(5.0, 0.0))
    survey = ingested(source, tmp_path / "survey")
    expected = raw * np.array([0.1, 2.0])[:, None, None] + np.array([5.0, 0.0])[:, None, None]
    expected[:, 3] = np.nan
    np.testing.assert_allclose(survey["values"].values, expected, rtol=1e-6)
    assert survey["values"].dtype == np.float32


def test_colour_table_becomes_class_flags(test_data: Path, tmp_path: Path) -> None:
    survey = ingested(test_data / "landform/zion_dem_nlcd/nlcd.tif", tmp_path / "survey", shard=(1024, 1024))
    attrs = survey["values"].attrs
    assert attrs["flag_values"] == [1, 2, 3, 4, 5, 6, 7, 8]
    with rasterio.open(test_data / "landform/zion_dem_nlcd/nlcd.tif") as file:
        table = file.colormap(1)
    assert attrs["flag_colors"].split() == ["#{:02x}{:02x}{:02x}".format(*table[value][:3]) for value in range(1, 9)]
    assert survey["values"].dtype == np.uint8
    assert inspect_survey(str(tmp_path / "survey"))["classes"]["class_4"] == 767537


def test_survey_opens_for_rioxarray_and_plain_xarray(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "a.tif", field((90, 80)), names=("elevation",))
    survey = ingested(source, tmp_path / "survey", quantity="elevation", units="m")
    assert survey.rio.crs == rasterio.CRS.from_string(CRS)
    assert survey["elevation"].attrs["units"] == "m"
    plain = xr.open_zarr(str(tmp_path / "survey"), chunks=None)
    assert plain.rio.crs == survey.rio.crs
    assert survey.attrs["geobatch"]["crs"] == CRS


def test_bands_and_wide_strips_are_cut_into_shards_of_bounded_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tiff(tmp_path / "a.tif", field((5, 150, 200), "int16"), compress="deflate", interleave="pixel")
    monkeypatch.setattr("geobatch.formats.raster.PIECE_BYTES", 64 * 64 * 2 * 3)
    same_as_rasterio(source, ingested(source, tmp_path / "survey"))


def mosaic_tiles(folder: Path, values: np.ndarray, side: int, overlap: int = 0, **options: Any) -> None:
    """The values cut into files of `side` cells that share `overlap` cells with their neighbours."""
    for row in range(0, values.shape[0], side):
        for column in range(0, values.shape[1], side):
            part = values[row : row + side + overlap, column : column + side + overlap]
            corner = (700000.0 + 10 * column, 9500000.0 - 10 * row)
            write_tiff(folder / f"tile_{row:03d}_{column:03d}.tif", part, corner=corner, **options)


@settings(max_examples=15)
@given(data=st.data())
def test_mosaic_of_tiles_is_the_raster_they_were_cut_from(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("mosaic")
    values = field((data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150))), "int16")
    mosaic_tiles(folder / "tiles", values, data.draw(st.integers(40, 90)), data.draw(st.integers(0, 20)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.is_initialized", lambda: False)
        survey = ingested(folder / "tiles", folder / "survey", overlap=data.draw(st.sampled_from(["first", "last"])))
    np.testing.assert_array_equal(survey["values"].values[0], values)
    assert survey["valid"].values.all()
    assert not survey.attrs["geobatch"]["warnings"]


def test_overlapping_tiles_that_differ_are_told_and_ordered(tmp_path: Path) -> None:
    for name, value, corner in (("a", 1, 700000.0), ("b", 2, 700200.0)):
        write_tiff(tmp_path / f"tiles/{name}.tif", np.full((40, 40), value, np.uint8), corner=(corner, 9500000.0))
    first, last = (ingested(tmp_path / "tiles", tmp_path / name, overlap=name) for name in ("first", "last"))
    assert first["values"].values[0, 0].tolist() == [1] * 40 + [2] * 20
    assert last["values"].values[0, 0].tolist() == [1] * 20 + [2] * 40
    assert "800 of 800 shared cells" in first.attrs["geobatch"]["warnings"][0]
    with pytest.raises(DataError, match="overlap=first"):
        ingested(tmp_path / "tiles", tmp_path / "refused", overlap="refuse")


def test_list_of_stac_items_names_the_tiles(tmp_path: Path) -> None:
    values = field((80, 80), "int16")
    mosaic_tiles(tmp_path / "tiles", values, 40)
    names = sorted(path.name for path in (tmp_path / "tiles").iterdir())
    plain = [f"tiles/{name}" for name in names]
    items = [
        {"id": name, "assets": {"data": {"href": f"./tiles/{name}"}, "thumbnail": {"href": "x.png"}}} for name in names
    ]
    forms = {"plain": plain, "hrefs": [{"href": href} for href in plain], "collection": {"features": items}}
    for name, form in forms.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(form))
        survey = ingested(tmp_path / f"{name}.json", tmp_path / "survey")
        np.testing.assert_array_equal(survey["values"].values[0], values)
    survey = ingested(tmp_path / "collection.json", tmp_path / "survey", asset="data")
    with pytest.raises(DataError, match="asset="):
        ingested(tmp_path / "collection.json", tmp_path / "survey", asset="red")


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "average", "mode"])
def test_warped_raster_equals_rasterio_however_it_is_cut(tmp_path: Path, resampling: Any) -> None:
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT
    from rasterio.warp import calculate_default_transform

    values = field((150, 130), "int16")
    values[20:40, 30:60] = -9999
    source = write_tiff(tmp_path / "a.tif", values, nodata=-9999, **tiled())
    onto = {"to_crs": "EPSG:4326", "resolution": 0.0002, "resampling": resampling}
    survey = ingested(source, tmp_path / "survey", **onto)
    found = survey["values"]
    coarser = ingested(source, tmp_path / "other", chunk=(16, 16), shard=(16, 48), **onto)
    np.testing.assert_array_equal(coarser["values"].values, found.values)
    with rasterio.open(source) as file:
        own, _, _ = calculate_default_transform(file.crs, "EPSG:4326", file.width, file.height, *file.bounds)
        grid = {"transform": found.rio.transform(), "height": found.sizes["y"], "width": found.sizes["x"]}
        scale = repr(own.a / 0.0002)
        kind = {"dtype": found.dtype.name} if found.dtype.kind == "f" else {}
        how = {"resampling": Resampling[resampling], "tolerance": 1e-6, "XSCALE": scale, "YSCALE": scale, **kind}
        with WarpedVRT(file, crs="EPSG:4326", **grid, **how) as whole:
            raw, mask = whole.read(), whole.read_masks() != 0
    ours = valid_raster(survey).values
    np.testing.assert_array_equal(np.isnan(ours), ~mask)
    np.testing.assert_allclose(ours[mask], raw[mask], rtol=1e-5)
    assert survey.rio.crs == rasterio.CRS.from_epsg(4326)
    assert mask.mean() > 0.8


def test_rotated_raster_is_refused_and_resampled_on_request(tmp_path: Path) -> None:
    turned = (
        rasterio.Affine.translation(700000, 9500000) @ rasterio.Affine.rotation(20) @ rasterio.Affine.scale(10, -10)
    )
    source = write_tiff(tmp_path / "a.tif", field((60, 60)), transform=turned)
    with pytest.raises(GeometryError, match="resolution=10"):
        ingested(source, tmp_path / "survey")
    survey = ingested(source, tmp_path / "survey", resolution=10)
    shares = np.isfinite(survey["values"].values).mean()
    turned_area = (np.cos(np.radians(20)) + np.sin(np.radians(20))) ** 2
    assert shares == pytest.approx(1 / turned_area, abs=0.03)


def test_tiles_off_the_grid_are_refused_and_resampled_on_request(tmp_path: Path) -> None:
    write_tiff(tmp_path / "tiles/a.tif", np.full((40, 40), 5, np.uint8))
    write_tiff(tmp_path / "tiles/b.tif", np.full((40, 40), 5, np.uint8), corner=(700404.0, 9500003.0))
    with pytest.raises(GeometryError, match=r"0\.300 cells"):
        ingested(tmp_path / "tiles", tmp_path / "survey")
    survey = ingested(tmp_path / "tiles", tmp_path / "survey", resolution=10)
    assert set(np.unique(survey["values"].values[survey["valid"].values])) == {5}


def test_sentinel_that_is_not_declared_is_suspected_and_left(tmp_path: Path) -> None:
    values = field((60, 60), "int16")
    values[:20] = -9999
    source = write_tiff(tmp_path / "a.tif", values)
    survey = ingested(source, tmp_path / "survey")
    assert survey["valid"].values.all()
    (told,) = inspect_survey(str(tmp_path / "survey"))["suspicious"]
    assert "-9999 stands in 33.3% of the cells" in told and "--set nodata=-9999" in told
    survey = ingested(source, tmp_path / "survey", nodata=-9999)
    assert survey["valid"].values[0, :20].sum() == 0 and survey["valid"].values[0, 20:].all()
    assert not survey.attrs["geobatch"]["warnings"]


@pytest.mark.parametrize(
    ("dtype", "text", "cast"), [("int16", "nan", 0), ("uint8", "-99", 157), ("uint16", "1e6", 65535)]
)
def test_nodata_that_the_type_cannot_hold_is_told_with_what_it_became(
    dtype: str, text: str, cast: int, tmp_path: Path
) -> None:
    values = field((60, 60), dtype).clip(1, 150)
    values[:20] = cast
    source = write_tiff(tmp_path / "a.tif", values, nodata=111)
    body = source.read_bytes()
    source.write_bytes(body.replace(b"111\0", text.encode() + b"\0"))
    survey = ingested(source, tmp_path / "survey")
    assert survey["valid"].values.all()
    told = inspect_survey(str(tmp_path / "survey"))["suspicious"]
    assert told == inspect_survey(str(source))["suspicious"]
    assert any(f"nodata {float(text):g} cannot occur in {dtype}" in sentence for sentence in told)
    assert any(f"--set nodata={cast}" in sentence for sentence in told)
    (row,) = read_quality(str(tmp_path / "survey"))
    assert row.where.endswith("a.tif band 1") and row.action == "taken as valid throughout"
    survey = ingested(source, tmp_path / "again", nodata=cast)
    assert not survey["valid"].values[0, :20].any() and survey["valid"].values[0, 20:].all()
    assert not survey.attrs["geobatch"]["warnings"] and not read_quality(str(tmp_path / "again"))


def test_text_shows_suspicious_things_first(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "a.tif", field((60, 60)), crs=None)
    survey = ingested(source, tmp_path / "survey")
    assert survey.attrs["geobatch"]["crs"] is None
    lines = render_text(inspect_survey(str(tmp_path / "survey"))).splitlines()
    assert lines[1].startswith("! no CRS")
    assert any(line.split()[:2] == ["cell", "10"] for line in lines)


def test_given_crs_counts_and_a_contradiction_is_told(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "a.tif", field((60, 60)), crs="EPSG:32718")
    survey = ingested(source, tmp_path / "survey", crs=CRS)
    assert survey.attrs["geobatch"]["crs"] == CRS
    assert "another CRS" in survey.attrs["geobatch"]["warnings"][0]


def test_options_are_checked() -> None:
    assert parse_options("raster", {"resolution": 30}).model_dump()["resolution"] == (30, 30)
    for wrong in ({"resolution": -1}, {"resamplng": "mode"}, {"quantity": "a b"}, {"overlap": "mean"}):
        with pytest.raises(UsageError):
            parse_options("raster", wrong)


def test_outage_of_storage_is_no_damaged_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiff(tmp_path / "a.tif", field((200, 200)), **tiled())
    own = Ranges.fetch

    def fail(self: Ranges, spans: Any) -> None:
        own(self, spans)
        self._on_error(TransientError("storage went away"))

    with monkeypatch.context() as patch, pytest.raises(TransientError):
        patch.setattr(Ranges, "fetch", fail)
        ingested(source, tmp_path / "survey")
    assert not open_storage(str(tmp_path / "survey")).exists("zarr.json")
    storage = "geobatch.storage.files.FileStorage.get_range"
    with open_raster(find_source(str(source))) as opened, monkeypatch.context() as patch:
        patch.setattr(storage, lambda *_: (_ for _ in ()).throw(TransientError("storage went away")))
        opened._ranges._pages.clear()
        with pytest.raises(rasterio.errors.RasterioError):
            opened.dataset.read()
        with pytest.raises(TransientError):
            opened.require_storage()
    same_as_rasterio(source, ingested(source, tmp_path / "survey"))


@pytest.mark.usefixtures("ray_cluster")
def test_mosaic_goes_from_bucket_to_bucket_on_the_cluster(s3: str, tmp_path: Path) -> None:
    values = field((150, 140))
    mosaic_tiles(tmp_path / "tiles", values, 64, 3, **tiled())
    for path in (tmp_path / "tiles").iterdir():
        open_storage(s3).put(f"tiles/{path.name}", path.read_bytes())
    open_storage(s3).put("tiles/zz_torn.tif", (tmp_path / "tiles/tile_000_000.tif").read_bytes()[:100])
    target = join_url(s3, "survey")
    survey = ingested(join_url(s3, "tiles"), target)
    np.testing.assert_array_equal(survey["values"].values[0], values)
    assert [fault.where for fault in read_quality(target)] == [join_url(s3, "tiles/zz_torn.tif")]
    assert inspect_source(join_url(s3, "tiles"), Options()).told["bands"][0]["count"] == values.size
    mixed = write_tiff(tmp_path / "mixed.tif", values, crs="EPSG:32718")
    open_storage(s3).put("tiles/mixed.tif", mixed.read_bytes())
    with pytest.raises(MismatchError, match="to_crs"):
        ingested(join_url(s3, "tiles"), target)

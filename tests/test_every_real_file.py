"""Every file of the folder of real data is read by a test that holds what comes out against another reader of it."""

from __future__ import annotations

import csv
import fnmatch
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import test_catalogue
import test_cog_export
import test_labels
import test_logs
import test_miniseed
import test_raster
import test_segy_export
import test_segy_kinds
import test_windows

from geobatch.formats import IngestRun, arrays, catalogue, parse_options, raster
from geobatch.formats.arrays_npy import open_npy
from geobatch.formats.cog_export import export_cog
from geobatch.inspect import inspect_survey
from geobatch.labels.grid import LabelGrid
from geobatch.labels.layers import make_painter
from geobatch.labels.spec import Points
from geobatch.survey import open_survey, survey_info

PICTURES = {"transform": (1, 0, 0, 0, -1, 0), "chunk": (512, 512), "shard": (512, 512)}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, these files are read here."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.mark.parametrize("folder", ["landform/nepal_landslide", "subsurface/f3_facies_crosslines"])
@pytest.mark.parametrize("part", ["images", "masks"])
def test_every_picture_equals_rasterio(folder: str, part: str, test_data: Path, tmp_path: Path) -> None:
    sources = sorted((test_data / folder / part).glob("*.png"))
    assert len(sources) == {"landform/nepal_landslide": 15, "subsurface/f3_facies_crosslines": 23}[folder]
    for source in sources:
        url = str(tmp_path / source.stem)
        raster.ingest_source(str(source), url, raster.Options(**PICTURES), IngestRun())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(source) as file:
                held, alpha = file.read(), [one.name == "alpha" for one in file.colorinterp]
        values = open_survey(url)["values"]
        assert values.dtype == held.dtype
        np.testing.assert_array_equal(values.values, held[~np.array(alpha)])
    for source in sources[:2]:
        url = str(tmp_path / source.stem)
        seen, kept = raster.inspect_source(str(source), raster.Options(**PICTURES)).told, inspect_survey(url)
        assert [band["mean"] for band in seen["bands"]] == pytest.approx([band["mean"] for band in kept["bands"]])


def test_elevations_in_an_archive_equal_numpy_and_come_out_again(test_data: Path, tmp_path: Path) -> None:
    path, url = test_data / "landform/dem/jacksboro_fault_dem.npz", str(tmp_path / "survey")
    with np.load(path) as held:
        elevation, steps = held["elevation"], {"y": -float(held["dy"]), "x": float(held["dx"])}
    given: dict[str, Any] = {
        "kind": "raster",
        "variable": "elevation",
        "dims": ("y", "x"),
        "axes": {name: {"start": 0, "step": step} for name, step in steps.items()},
    }
    arrays.ingest_source(str(path), url, parse_options("arrays", given), IngestRun())  # type: ignore[arg-type]
    survey = open_survey(url)
    np.testing.assert_array_equal(survey[survey_info(survey)["variable"]].values[0], elevation)
    for name, count in (("y", elevation.shape[0]), ("x", elevation.shape[1])):
        np.testing.assert_allclose(survey[name].values, np.arange(count) * steps[name])
    export_cog(url, str(tmp_path / "out.tif"))
    with rasterio.open(tmp_path / "out.tif") as file:
        np.testing.assert_array_equal(file.read(1), elevation)


def test_penalties_equal_numpy(test_data: Path) -> None:
    path = test_data / "subsurface/force2020_las/penalty_matrix.npy"
    source = open_npy(str(path))
    np.testing.assert_array_equal(source.read(tuple(slice(0, n) for n in source.shape)), np.load(path))


def test_landslides_are_painted_where_rasterio_finds_them(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "landform/ecuador_landslides"
    raster.ingest_source(str(folder / "ta.tif"), str(tmp_path / "s"), raster.Options(), IngestRun())
    grid = LabelGrid.of(open_survey(str(tmp_path / "s")), "ta.tif")
    layer = Points(layer="points", url=str(folder / "lsl.csv"), attribute="lslpts", labels={"True": "a", "False": "b"})
    class_map = np.full(grid.shape, 255, np.uint8)
    make_painter(layer, grid, {"a": 1, "b": 0}).paint(tuple(slice(0, n) for n in grid.shape), class_map)
    expected = np.full(grid.shape, 255, np.uint8)
    with rasterio.open(folder / "ta.tif") as file, (folder / "lsl.csv").open() as text:
        for row in csv.DictReader(text):
            expected[file.index(float(row["x"]), float(row["y"]))] = row["lslpts"] == "TRUE"
    np.testing.assert_array_equal(class_map, expected)


@pytest.mark.parametrize("name", ["20140629184208376", "20140629184209388", "20140629184210344"])
def test_located_icequake_is_an_event_of_a_catalogue(name: str, test_data: Path, tmp_path: Path) -> None:
    path = test_data / f"earthquake/iceland_icequake_mseed/{name}.event"
    columns = {"time": "DT", "longitude": "X", "latitude": "Y", "depth_km": "Z", "event_id": "EventID"}
    catalogue.ingest_source(str(path), str(tmp_path / "s"), catalogue.Options(columns=columns), IngestRun())
    survey = open_survey(str(tmp_path / "s"))
    with path.open() as text:
        (row,) = csv.DictReader(text)
    assert survey["event_id"].values.tolist() == [row["EventID"]]
    assert survey["time"].values[0] == np.datetime64(row["DT"].removesuffix("Z"))
    for ours, theirs in (("longitude", "X"), ("latitude", "Y"), ("depth_km", "Z")):
        assert survey[ours].values[0] == float(row[theirs])


SEISMIC = (
    test_segy_export.test_real_file_comes_back_byte_for_byte,
    test_segy_kinds.test_real_lines_and_shot_records_keep_their_traces,
)
# The files of the folder, by pattern, and the tests that read all of them.
READ: dict[str, tuple[Callable[..., None], ...]] = {
    "earthquake/catalogs/SanJac_catalog.csv": (
        test_catalogue.test_san_jacinto_catalogue_equals_pandas_and_comes_out_again,
    ),
    "earthquake/continuous_mseed/CEYT1.mseed": (test_miniseed.test_continuous_record_equals_obspy,),
    "earthquake/iceland_icequake_mseed/*.m": (test_miniseed.test_folder_of_icequakes_equals_obspy,),
    "earthquake/iceland_icequake_mseed/*.event": (test_located_icequake_is_an_event_of_a_catalogue,),
    "earthquake/ncedc_phasenet/*.npz": (test_windows.test_phasenet_windows_equal_numpy,),
    "earthquake/ncedc_phasenet/waveform.csv": (test_windows.test_phasenet_windows_equal_numpy,),
    "earthquake/seisbench_cx/*": (
        test_windows.test_seisbench_chile_equals_h5py,
        test_windows.test_inspect_tells_what_ingest_finds,
    ),
    "landform/dem/jacksboro_fault_dem.npz": (test_elevations_in_an_archive_equal_numpy_and_come_out_again,),
    "landform/ecuador_landslides/ta.tif": (
        test_raster.test_real_raster_equals_what_rasterio_reads,
        test_cog_export.test_real_raster_comes_out_as_it_went_in,
    ),
    "landform/ecuador_landslides/lsl.csv": (test_landslides_are_painted_where_rasterio_finds_them,),
    "landform/nepal_landslide/*/*.png": (test_every_picture_equals_rasterio,),
    "landform/zion_dem_nlcd/*.tif": (
        test_raster.test_real_raster_equals_what_rasterio_reads,
        test_cog_export.test_real_raster_comes_out_as_it_went_in,
    ),
    "subsurface/f3_facies_crosslines/*/*.png": (test_every_picture_equals_rasterio,),
    "subsurface/force2020_las/*.las": (test_logs.test_force_wells_equal_lasio_at_every_native_depth,),
    "subsurface/force2020_las/penalty_matrix.npy": (test_penalties_equal_numpy,),
    "subsurface/penobscot/L-30.las": (test_logs.test_penobscot_well_in_feet_equals_lasio,),
    "subsurface/penobscot/Penobscot_Seabed.npy": (test_labels.test_seabed_of_penobscot_becomes_labels,),
    "subsurface/*/*.sgy": SEISMIC,
    "subsurface/segy/viking_small.segy": SEISMIC,
    "subsurface/seg2016_contest/facies_vectors.csv": (test_logs.test_contest_table_equals_pandas,),
}
# Those that no reader of geobatch is for, and why.
NOT_READ = {
    "README.md": "documentation",
    "SHA256SUMS": "documentation",
    "licenses/*": "documentation",
    "kuberay_crds/*.yaml": "schemas of Kubernetes",
    "weights/*": "weights of networks",
    "earthquake/iceland_icequake_mseed/*.picks": "picks of QuakeMigrate, beside the records that are read",
    "earthquake/iceland_icequake_mseed/iceland_stations.txt": "places of stations come from StationXML",
    "landform/ecuador_landslides/lsl.rda": "the points of lsl.csv for R",
    "subsurface/segy/well_f12_deviation.asc": "deviation surveys are not read",
}


def test_every_file_of_the_folder_is_read_by_a_test(test_data: Path) -> None:
    patterns = {*READ, *NOT_READ}
    files = [path.relative_to(test_data).as_posix() for path in sorted(test_data.rglob("*")) if path.is_file()]
    matched = {file: [p for p in patterns if fnmatch.fnmatchcase(file, p)] for file in files}
    assert not [file for file, found in matched.items() if len(found) != 1]
    assert patterns == {pattern for found in matched.values() for pattern in found}


@pytest.mark.parametrize("pattern", READ)
def test_tests_of_the_table_name_what_they_read(pattern: str) -> None:
    """Each takes the folder of real data and names the file, or the folder of which it takes all."""
    folder, _, name = pattern.rpartition("/")
    words = {name.partition(".")[0], *folder.split("/")[1:], ".sgy" if pattern.endswith(".sgy") else name} - {"*"}
    for test in READ[pattern]:
        assert "test_data" in inspect.signature(test).parameters
        told = inspect.getsource(test) + str(getattr(test, "pytestmark", ""))
        assert any(word in told for word in words), test.__name__


def test_every_seismic_file_comes_out_byte_for_byte(test_data: Path) -> None:
    """By the parameters of the tests that export, from which none of the folder's files is missing."""
    exported = {name for test in SEISMIC for mark in test.pytestmark for name in mark.args[1]}
    root = test_data / "subsurface"
    assert exported == {path.relative_to(root).as_posix() for path in root.rglob("*.s*gy")}

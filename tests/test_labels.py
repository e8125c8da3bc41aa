"""Horizons, fault sticks, polygons and points painted onto the grid of a survey."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_files import GRID, painted

from geobatch.errors import DataError, FormatError, UsageError
from geobatch.formats.ingestion import verify_ingested
from geobatch.formats.raster_labels import align_labels
from geobatch.interpretation.synthetic import SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_survey
from geobatch.job import load_job, parse_job, run_job
from geobatch.labels import LabelJob, layers
from geobatch.labels.grid import LabelGrid
from geobatch.labels.layers import LayerStack
from geobatch.labels.spec import FaultSticks, HorizonFile, Polygons, Reflector
from geobatch.shards import ArraySpec, create_arrays, finish_group
from geobatch.survey import open_survey, survey_info
from geobatch.train.data import open_labelled
from geobatch.train.spec import VolumeData

SHAPE = (18, 14, 40)
CLASSES = [{"name": name} for name in ("rock", "sand", "fault")]


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("labels") / "survey")
    write_survey(SyntheticSurvey(SHAPE, 1), url, (8, 8, 16), (8, 8, 16))
    return url


def grid_of(survey: str) -> LabelGrid:
    return LabelGrid.of(open_survey(survey), survey)


def stack(survey: str, *given: dict[str, Any]) -> LayerStack:
    return LayerStack.of(job(survey, "none", *given), grid_of(survey))


def job(survey: str, output: str, *given: dict[str, Any], **more: Any) -> LabelJob:
    document = {"job": "label", "survey": survey, "output": output, "classes": CLASSES, "layers": list(given), **more}
    parsed = parse_job(document)
    assert isinstance(parsed, LabelJob)
    return parsed


def whole(shape: tuple[int, ...] = SHAPE) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in shape)


def plane(survey: str, path: Path, *, xyz: bool = False) -> tuple[str, np.ndarray]:
    """A dipping horizon on every trace, and its times `(inline, crossline)`."""
    dataset = open_survey(survey)
    i, j = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    times = 40.0 + 1.5 * i + 2.0 * j
    if xyz:
        columns = (dataset["cdp_x"].values, dataset["cdp_y"].values, times)
    else:
        columns = (dataset["inline"].values[i], dataset["crossline"].values[j], times)
    np.savetxt(path, np.column_stack([np.ravel(column) for column in columns]), fmt="%.2f")
    return str(path), times


def test_zones_below_each_other_tile(survey: str, tmp_path: Path) -> None:
    path, times = plane(survey, tmp_path / "horizon.txt")
    above, below = {"layer": "zone", "label": "rock", "base": path}, {"layer": "zone", "label": "sand", "top": path}
    class_map = stack(survey, above, below).paint(whole())
    samples = np.arange(SHAPE[2]) * 4.0
    np.testing.assert_array_equal(class_map, (samples >= times[:, :, None]).astype(np.uint8))
    band = stack(survey, {"layer": "zone", "label": "sand", "top": 40, "base": 60}).paint(whole())
    assert (band[0, 0, 10:15] == 1).all() and band[0, 0, 9] == band[0, 0, 15] == 255


def test_map_coordinates_give_the_same_horizon_as_lines(survey: str, tmp_path: Path) -> None:
    lines, _ = plane(survey, tmp_path / "lines.txt")
    places, _ = plane(survey, tmp_path / "xyz.txt", xyz=True)
    layer = {"layer": "horizon", "label": "sand", "half_thickness": 6}
    by_lines = stack(survey, {**layer, "horizon": lines}).paint(whole())
    by_places = stack(survey, {**layer, "horizon": {"url": places, "columns": "xyz"}}).paint(whole())
    assert (by_lines == 1).sum() >= 3 * SHAPE[0] * SHAPE[1]
    np.testing.assert_array_equal(by_lines, by_places)


def test_horizon_of_no_thickness_has_one_sample_per_trace(survey: str, tmp_path: Path) -> None:
    path, times = plane(survey, tmp_path / "horizon.txt")
    class_map = stack(survey, {"layer": "horizon", "label": "sand", "horizon": path}).paint(whole())
    assert ((class_map == 1).sum(axis=2) == 1).all()
    assert np.abs((class_map == 1).argmax(axis=2) * 4.0 - times).max() <= 2.0


def test_array_of_sample_indices_is_a_horizon(survey: str, tmp_path: Path) -> None:
    inline, crossline = (open_survey(survey)[name].values for name in ("inline", "crossline"))
    values = np.full((40, 30), np.nan)
    values[2:6, 1:4] = 7
    np.save(tmp_path / "horizon.npy", values)
    told = {"url": str(tmp_path / "horizon.npy"), "value": "index"}
    numbered = {"inline": [int(inline[0]) - 2, 1], "crossline": [int(crossline[0]) - 1, 1]}
    layer = {"layer": "zone", "label": "sand", "top": {**told, **numbered}}
    class_map = stack(survey, layer).paint(whole())
    assert (class_map[:4, :3, 7:] == 1).all() and (class_map == 1).sum() == 4 * 3 * (SHAPE[2] - 7)
    with pytest.raises(UsageError, match="inline: "):
        stack(survey, {"layer": "zone", "label": "sand", "top": told})


def vertical_fault(survey: str, path: Path, crossline: int, form: str = "") -> str:
    """Two sticks down one crossline from the first inline to the last."""
    dataset = open_survey(survey)
    lines = []
    for number, i in enumerate((0, SHAPE[0] - 1)):
        x, y = (float(dataset[name].values[i, crossline]) for name in ("cdp_x", "cdp_y"))
        for z in (16.0, 80.0):
            numbers = f"INLINE- {i} XLINE- {crossline} " if form == "charisma" else ""
            tail = f"F1 {number}" if form == "charisma" else f"{number} F1"
            lines.append(f"{numbers}{x:.2f} {y:.2f} {z} {tail}")
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize("form", ["", "charisma"])
def test_fault_between_sticks_is_as_thick_as_told(survey: str, tmp_path: Path, form: str) -> None:
    layer = {"layer": "fault_sticks", "label": "fault", "radius": 2}
    layer["url"] = vertical_fault(survey, tmp_path / "sticks.txt", 6, form)
    class_map = stack(survey, layer).paint(whole())
    _, j, k = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    distance = np.hypot(j - 6, np.maximum(np.maximum(4 - k, k - 20), 0))
    np.testing.assert_array_equal(class_map == 2, distance <= 2)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_labels_do_not_depend_on_blocks(survey: str, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    horizon, _ = plane(survey, folder / "horizon.txt")
    dataset = open_survey(survey)
    x, y = (float(dataset[name].values[5, 5]) for name in ("cdp_x", "cdp_y"))
    (folder / "points.csv").write_text(f"x,y,z\n{x},{y},50\n")
    painted = stack(
        survey,
        {"layer": "zone", "label": "rock", "base": horizon},
        {
            "layer": "points",
            "label": "sand",
            "url": str(folder / "points.csv"),
            "z": "z",
            "radius": 60,
            "half_thickness": 9,
        },
        {"layer": "fault_sticks", "label": "fault", "url": vertical_fault(survey, folder / "f", 6), "radius": 2.5},
    )
    region = []
    for n in SHAPE:
        start = data.draw(st.integers(0, n - 1))
        region.append(slice(start, data.draw(st.integers(start + 1, n))))
    np.testing.assert_array_equal(painted.paint(tuple(region)), painted.paint(whole())[tuple(region)])


def test_polygons_of_another_crs_paint_their_inside(survey: str, tmp_path: Path) -> None:
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    url = raster(tmp_path / "raster", (30, 20))
    square = shapely.box(500_100.0, 4_099_800.0, 500_150.0, 4_099_910.0)
    frame = geopandas.GeoDataFrame({"kind": ["salt", "other"]}, geometry=[square, square], crs="EPSG:32633")
    for name in ("a.gpkg", "a.shp", "a.geojson"):
        frame.to_crs("EPSG:4326").to_file(tmp_path / name)
        layer = {"layer": "polygons", "url": str(tmp_path / name), "attribute": "kind", "labels": {"salt": "sand"}}
        class_map = stack(url, layer).paint(whole((30, 20)))
        expected = np.full((30, 20), 255, np.uint8)
        expected[9:20, 10:15] = 1
        np.testing.assert_array_equal(class_map, expected)
    with pytest.raises(UsageError, match="no such column"):
        stack(url, {**layer, "attribute": "age"})
    (tmp_path / "b.gpkg").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"b\.gpkg"):
        stack(url, {**layer, "url": str(tmp_path / "b.gpkg")})


def raster(folder: Path, shape: tuple[int, int]) -> str:
    """A raster survey of cells of 10 m, its upper left corner at (500000, 4100000) in UTM zone 33."""
    y, x = 4_100_000 - 5.0 - 10.0 * np.arange(shape[0]), 500_000 + 5.0 + 10.0 * np.arange(shape[1])
    specs = [ArraySpec.small("y", ("y",), y), ArraySpec.small("x", ("x",), x)]
    create_arrays(str(folder), specs, {"y": y, "x": x})
    info = {"schema": 1, "kind": "raster", "crs": "EPSG:32633", "identity": "raster", "state": "complete"}
    finish_group(str(folder), specs, {"geobatch": info})
    return str(folder)


def test_points_paint_their_surroundings(survey: str, tmp_path: Path) -> None:
    url = raster(tmp_path / "raster", (30, 20))
    (tmp_path / "p.csv").write_text(
        "x,y,lslpts\n500055,4099945,TRUE\n500105,4099895,FALSE\n500105,text,TRUE\n9,9,TRUE\n"
    )
    layer = {"layer": "points", "url": str(tmp_path / "p.csv"), "attribute": "lslpts"}
    layer["labels"] = {"TRUE": "fault", "True": "fault", "FALSE": "rock", "False": "rock"}
    class_map = stack(url, layer).paint(whole((30, 20)))
    assert class_map[5, 5] == 2 and class_map[10, 10] == 0 and (class_map != 255).sum() == 2
    around = stack(url, {**layer, "radius": 10.5}).paint(whole((30, 20)))
    assert (around == 2).sum() == 5 and (around == 0).sum() == 5
    (tmp_path / "far.csv").write_text("x,y,lslpts\n1,1,TRUE\n")
    with pytest.raises(DataError, match="no point lies on"):
        stack(url, {**layer, "url": str(tmp_path / "far.csv")})


def test_job_writes_labels_that_training_opens(survey: str, tmp_path: Path) -> None:
    path, _ = plane(survey, tmp_path / "horizon.txt")
    layers_of_job = [
        {"layer": "everywhere", "label": "rock"},
        {"layer": "zone", "label": "sand", "top": path},
        {"layer": "fault_sticks", "label": "fault", "url": vertical_fault(survey, tmp_path / "f.txt", 6)},
    ]
    output = str(tmp_path / "labels")
    summary = run_job(job(survey, output, *layers_of_job))
    labelled = open_labelled(VolumeData(survey=survey, labels=output))
    assert [one["name"] for one in labelled.classes] == ["rock", "sand", "fault"]
    class_map = labelled.labels.values
    np.testing.assert_array_equal(class_map, stack(survey, *layers_of_job).paint(whole()))
    assert summary["labels"] == {name: int((class_map == n).sum()) for n, name in enumerate(("rock", "sand", "fault"))}
    assert summary["unlabelled"] == 0
    assert survey_info(open_survey(output))["kind"] == "labels"
    assert verify_ingested(output).findings == ()
    assert run_job(job(survey, output, *layers_of_job))["identity"] == summary["identity"]
    with pytest.raises(UsageError, match="there already"):
        run_job(job(survey, output, layers_of_job[0]))


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        ({"layer": "zone", "label": "salt"}, "names no class: salt"),
        ({"layer": "fault_stick", "label": "fault"}, "fault_stick"),
        ({"layer": "polygons", "url": "a.gpkg"}, "polygons take"),
        ({"layer": "horizon", "label": "sand", "horizon": 8, "half_thickness": -1}, "half_thickness"),
    ],
)
def test_wrong_layer_is_told(layer: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        job("survey", "output", layer)


def test_bad_files_are_told(survey: str, tmp_path: Path) -> None:
    (tmp_path / "sticks.txt").write_text("1 2 3\n")
    with pytest.raises(FormatError, match=r"line 1.*x y z stick"):
        stack(survey, {"layer": "fault_sticks", "label": "fault", "url": str(tmp_path / "sticks.txt")})
    (tmp_path / "far.txt").write_text("1 2 3 1\n1 2 9 1\n")
    with pytest.raises(DataError, match="off the survey"):
        stack(survey, {"layer": "fault_sticks", "label": "fault", "url": str(tmp_path / "far.txt")})
    with pytest.raises(UsageError, match="painted on volumes"):
        stack(raster(tmp_path / "raster", (4, 4)), {"layer": "zone", "label": "sand", "top": 3})


@pytest.mark.parametrize(
    ("name", "body", "match"),
    [
        ("horizon.npy", b"", "no NumPy array"),
        ("horizon.npy", b"PK\3\4" + bytes(60), "no NumPy array"),
        ("horizon.npy", b"\x93NUMPY\x01\x00\x0a\x00{'descr': '", "header of the array"),
        ("horizon.txt", b"100 300 4\n1e308 300 4\n-1e308 -1e308 4\n1e308 -1e308 5\n", "no triangles"),
        ("horizon.txt", b"1 2 3\n1 2\n", "no horizon file"),
        ("horizon.txt", b"# nothing\n", "no pick"),
    ],
)
def test_bad_horizon_is_told(name: str, body: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(body)
    file = HorizonFile(url=str(tmp_path / name), inline=(100, 1), crossline=(300, 1))
    with pytest.raises(DataError, match=match):
        painted(Reflector(layer="horizon", label="a", horizon=file))


def test_sticks_far_off_the_survey_paint_what_near_ones_do(tmp_path: Path) -> None:
    """Two vertical sticks make a plane; how far it goes on beyond the survey changes nothing inside."""
    x, y = GRID.maps
    maps = []
    for number, reach in enumerate((150, 30_000)):
        lines = []
        for stick, i in enumerate((0, 17)):
            for z in (16.0 - 4 * reach, 80.0 + 4 * reach):
                lines.append(f"{x[i, 6]} {y[i, 6]} {z} {stick}")
        (tmp_path / f"{number}.txt").write_text("\n".join(lines))
        maps.append(painted(FaultSticks(layer="fault_sticks", label="a", url=str(tmp_path / f"{number}.txt"))))
    assert (maps[0][:, 6] == 0).all() and (maps[0][:, 9] == 255).all()
    np.testing.assert_array_equal(*maps)


def test_polygons_never_lead_to_another_file(tmp_path: Path) -> None:
    """A GDAL VRT or a streamed algorithm names the file to read; by its first bytes it is no file of shapes."""
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    secret = tmp_path / "secret.geojson"
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 400, 400)], crs=GRID.crs).to_file(secret)
    layer = {"layer": "polygons", "label": "a"}
    assert (painted(Polygons(url=str(secret), **layer)) == 0).any()
    source = f"<SrcDataSource>{secret}</SrcDataSource>"
    vrt = f"<OGRVRTDataSource><OGRVRTLayer name='secret'>{source}</OGRVRTLayer></OGRVRTDataSource>"
    algorithm = {"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline ! read {secret}"}
    for name, body in (("a.geojson", vrt), ("a.vrt", vrt), ("a.gdalg.json", json.dumps(algorithm))):
        (tmp_path / name).write_text(body)
        with pytest.raises(FormatError, match="no file of shapes"):
            painted(Polygons(url=str(tmp_path / name), **layer))


def test_seabed_of_penobscot_becomes_labels(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "subsurface" / "penobscot"
    source, url = str(folder / "penobscot_xl1155.sgy"), str(tmp_path / "survey")
    run_job(parse_job({"job": "ingest", "source": source, "output": url}))
    seabed = {
        "url": str(folder / "Penobscot_Seabed.npy"),
        "inline": [1000, 1],
        "crossline": [1000, 1],
        "value": "index",
    }
    below = [{"layer": "zone", "label": "rock", "base": seabed}, {"layer": "zone", "label": "sand", "top": seabed}]
    run_job(job(url, str(tmp_path / "labels"), *below))
    class_map = open_survey(str(tmp_path / "labels"))["class_map"].values[:, 0]
    picks = np.load(folder / "Penobscot_Seabed.npy")[:, 155]
    known = np.isfinite(picks)
    assert known.sum() > 500
    np.testing.assert_array_equal((class_map == 1).argmax(axis=1)[known], np.ceil(picks[known] - 1e-9))


def test_job_file_of_the_folder_runs(survey: str, tmp_path: Path) -> None:
    lines, times = plane(survey, tmp_path / "top.txt")
    places, _ = plane(survey, tmp_path / "base.xyz", xyz=True)
    np.savetxt(places, np.loadtxt(places) + np.array([0, 0, 20]), fmt="%.2f")
    told = {
        "survey": survey,
        "output": str(tmp_path / "labels"),
        "layers.0.base": lines,
        "layers.1.top": lines,
        "layers.1.base.url": places,
        "layers.2.top.url": places,
        "layers.3.url": vertical_fault(survey, tmp_path / "faults.dat", 6),
    }
    path = Path(__file__).parents[1] / "jobs" / "label_horizons_and_faults.yaml"
    summary = run_job(load_job(str(path), [f"{key}={value}" for key, value in told.items()]))
    assert summary["unlabelled"] == 0 and min(summary["labels"].values()) > 0
    class_map = open_survey(summary["url"])["class_map"].values
    samples = np.arange(SHAPE[2]) * 4.0
    expected = 0 + (samples >= times[:, :, None]) + (samples >= times[:, :, None] + 20)
    np.testing.assert_array_equal(class_map[class_map != 3], expected[class_map != 3])


def test_every_layer_has_a_painter() -> None:
    named = {kind.__name__ for kind in layers._PAINTERS}
    assert named == {"Everywhere", "Zone", "Reflector", "FaultSticks", "Polygons", "Points", "ClassRaster"}


@pytest.fixture
def zion(test_data: Path, tmp_path: Path) -> tuple[str, Path]:
    """A raster survey of the elevation model of Zion in degrees, and its land cover in metres on another grid."""
    folder = test_data / "landform" / "zion_dem_nlcd"
    run_job(parse_job({"job": "ingest", "source": str(folder / "srtm.tif"), "output": str(tmp_path / "dem")}))
    return str(tmp_path / "dem"), folder / "nlcd.tif"


def test_land_cover_of_zion_is_painted_on_its_elevation_model(zion: tuple[str, Path], tmp_path: Path) -> None:
    url, cover = zion
    class_raster = {"layer": "class_raster", "url": str(cover), "labels": {4: "sand", 7: "rock"}}
    everywhere = {"layer": "everywhere", "label": "fault"}
    output = str(tmp_path / "labels")
    summary = run_job(job(url, output, everywhere, class_raster))
    expected = align_labels(str(cover), open_survey(url)).values
    class_map = open_survey(output)["class_map"].values
    assert (expected == 4).sum() > 10_000 and (expected == 7).sum() > 1000
    np.testing.assert_array_equal(class_map == 1, expected == 4)
    np.testing.assert_array_equal(class_map == 0, expected == 7)
    assert summary["labels"]["fault"] == int((~np.isin(expected, (4, 7))).sum())
    assert verify_ingested(output).findings == ()
    part = slice(101, 300), slice(37, 200)
    np.testing.assert_array_equal(stack(url, everywhere, class_raster).paint(part), class_map[part])
    # Labels that a job wrote, and a raster survey, serve as well as a file.
    again = {"layer": "class_raster", "url": output, "labels": {1: "rock"}}
    np.testing.assert_array_equal(stack(url, again).paint(part) == 0, class_map[part] == 1)
    run_job(parse_job({"job": "ingest", "source": str(cover), "output": str(tmp_path / "cover")}))
    by_survey = {**class_raster, "url": str(tmp_path / "cover")}
    np.testing.assert_array_equal(stack(url, everywhere, by_survey).paint(part), class_map[part])


def test_class_rasters_that_do_not_serve_are_told(survey: str, zion: tuple[str, Path], tmp_path: Path) -> None:
    url, cover = zion
    layer = {"layer": "class_raster", "url": str(cover), "labels": {4: "sand"}}
    with pytest.raises(UsageError, match="painted on rasters"):
        stack(survey, layer)
    with pytest.raises(UsageError, match=r"labels\.300"):
        stack(url, {**layer, "labels": {300: "sand"}})
    with pytest.raises(UsageError, match="names no class: salt"):
        stack(url, {**layer, "labels": {4: "salt"}})
    (tmp_path / "tiles").mkdir()
    whole = cover.read_bytes()
    (tmp_path / "tiles" / "a.tif").write_bytes(whole)
    (tmp_path / "tiles" / "b.tif").write_bytes(whole[:100])
    with pytest.raises(FormatError, match=r"b\.tif: a file of labels does not read"):
        stack(url, {**layer, "url": str(tmp_path / "tiles")})
    (tmp_path / "c.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"c\.tif.*a block of the labels does not read"):
        stack(url, {**layer, "url": str(tmp_path / "c.tif")}).paint(whole_of(url))


def whole_of(url: str) -> tuple[slice, ...]:
    return whole(grid_of(url).shape)


def test_job_file_of_land_cover_runs(zion: tuple[str, Path], tmp_path: Path) -> None:
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    url, cover = zion
    dem = open_survey(url)
    middle = shapely.Point(float(dem["x"][200]), float(dem["y"][200])).buffer(0.01)
    frame = geopandas.GeoDataFrame(geometry=[middle], crs="EPSG:4326").to_crs("EPSG:26912")
    frame.to_file(tmp_path / "slides.shp")
    told = {
        "survey": url,
        "output": str(tmp_path / "labels"),
        "layers.0.url": str(cover),
        "layers.0.labels": "{4: forest, 7: water}",
        "layers.1.url": str(tmp_path / "slides.shp"),
    }
    path = Path(__file__).parents[1] / "jobs" / "label_land_cover.yaml"
    overrides = [f"{key}={value}" for key, value in told.items()]
    summary = run_job(load_job(str(path), overrides))
    class_map = open_survey(summary["url"])["class_map"].values
    cell = abs(float(np.diff(dem["x"])[0] * np.diff(dem["y"])[0]))
    assert class_map[200, 200] == 2
    assert summary["labels"]["landslide"] == pytest.approx(np.pi * 0.01**2 / cell, rel=0.05)
    assert summary["labels"]["forest"] > 10_000
    # Each part of a Shapefile belongs to the job: another table is another job.
    (tmp_path / "slides.dbf").write_bytes((tmp_path / "slides.dbf").read_bytes() + b" ")
    with pytest.raises(UsageError, match="there already"):
        run_job(load_job(str(path), overrides))

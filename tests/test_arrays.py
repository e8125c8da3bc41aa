"""Arrays of other tools become surveys: every layout on disk, by regions, with what decides validity and axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geobatch.errors import GeometryError, UsageError
from geobatch.formats import arrays, arrays_npy, parse_options
from geobatch.formats.arrays_npy import open_npy
from geobatch.formats.ingestion import verify_ingested
from geobatch.formats.spec import IngestRun
from geobatch.inspect import inspect_survey
from geobatch.job import load_job, run_job
from geobatch.survey import VOLUME_AXES, class_names, open_survey, require_complete, require_every_shard, valid_volume

SAMPLE = {"sample": {"start": 100, "step": 4, "unit": "ms"}}
SMALL = {"chunk": (8, 8, 8), "shard": (16, 16, 16)}
JOB = Path(__file__).parents[1] / "jobs/ingest_numpy.yaml"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def cube(shape: tuple[int, ...] = (21, 34, 40)) -> Any:
    values = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    values[3, 5] = np.nan
    values[4, 6] = -999.25
    values[5, 7, 3] = -999.25
    return values


def ingest(source: Path, target: Path, **options: Any) -> Any:
    given_options = {"axes": SAMPLE, "nodata": -999.25, **SMALL, **options}
    arrays.ingest_source(str(source), str(target), parse_options("arrays", given_options), IngestRun())  # type: ignore[arg-type]
    return open_survey(str(target))


def expected(values: Any) -> Any:
    return np.where(values == np.float32(-999.25), np.nan, values)


def store(folder: Path, layout: str, values: Any) -> tuple[Path, dict[str, Any]]:
    """The values as a file of that layout, and the options that it needs."""
    if layout in ("C", "F"):
        np.save(folder / "a.npy", np.asarray(values, order=layout))
        return folder / "a.npy", {}
    if layout == "big":
        np.save(folder / "a.npy", values.astype(">f8"))
        return folder / "a.npy", {}
    if layout == "turned":
        np.save(folder / "a.npy", np.ascontiguousarray(values.transpose(2, 0, 1)))
        return folder / "a.npy", {"dims": ("sample", "inline", "crossline")}
    if layout in ("npz", "npz-compressed"):
        save = np.savez if layout == "npz" else np.savez_compressed
        save(folder / "a.npz", cube=values, other=np.arange(3))
        return folder / "a.npz", {"variable": "cube"}
    if layout.startswith("zarr"):
        group = zarr.open_group(str(folder / "a.zarr"), mode="w", zarr_format=int(layout[-1]))
        array = group.create_array("cube", shape=values.shape, dtype="f4", chunks=(7, 9, 40), fill_value=0)
        array[...] = values
        return folder / "a.zarr", {"variable": "cube"}
    with h5py.File(folder / "a.nc", "w") as file:
        file.create_dataset("cube", data=values, chunks=(7, 9, 40), compression="gzip")
    return folder / "a.nc", {"variable": "cube"}


@pytest.mark.parametrize("layout", ["C", "F", "big", "turned", "npz", "npz-compressed", "zarr2", "zarr3", "netcdf"])
def test_every_layout_becomes_the_same_volume(layout: str, tmp_path: Path) -> None:
    source, options = store(tmp_path, layout, cube())
    survey = ingest(source, tmp_path / "survey", **options)
    np.testing.assert_array_equal(survey["amplitude"].values, expected(cube()))
    dead = {(int(i), int(j)) for i, j in np.argwhere(~survey["live_mask"].values)}
    assert dead == {(3, 5), (4, 6)}
    assert survey["sample"].values.tolist() == [100 + 4 * k for k in range(40)]
    info = survey.attrs["geobatch"]
    assert (info["kind"], info["domain"], info["sample_interval"], info["sample_unit"]) == ("volume", "time", 4.0, "ms")
    assert info["statistics"]["dead_traces"] == 2
    assert info["statistics"]["mean"] == pytest.approx(np.nanmean(expected(cube()).astype(float)))
    assert verify_ingested(str(tmp_path / "survey")).findings == ()


def test_array_in_a_bucket_by_ranges_and_by_the_job_file(s3: str, tmp_path: Path) -> None:
    from geobatch.storage import open_storage

    np.save(tmp_path / "a.npy", cube())
    open_storage(s3).put("raw/a.npy", (tmp_path / "a.npy").read_bytes())
    job = load_job(str(JOB), [f"source={s3}/raw/a.npy", f"output={s3}/cube"])
    summary = run_job(job)
    survey = open_survey(f"{s3}/cube")
    np.testing.assert_array_equal(survey["amplitude"].values, expected(cube()))
    assert survey["inline"].values[0] == 1001 and survey["crossline"].values[-1] == 2034
    assert survey.attrs["geobatch"]["crs"] == "EPSG:23031"
    assert run_job(job)["identity"] == summary["identity"]


def test_the_volume_is_what_scoring_takes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", cube())
    survey = ingest(tmp_path / "a.npy", tmp_path / "survey")
    require_complete(survey, "")
    require_every_shard(survey, str(tmp_path / "survey"))
    volume = valid_volume(survey)
    assert volume.dims == VOLUME_AXES and volume.dtype == np.float32 and "live_mask" in volume.coords
    told = inspect_survey(str(tmp_path / "survey"))
    assert told["traces"]["dead_traces"] == 2 and told["quantity"] == "amplitude"


def test_a_scoring_job_can_be_planned_on_an_array(tmp_path: Path) -> None:
    from surveys import write_bundle

    from geobatch.job import forecast, parse_job

    values = np.random.default_rng(0).normal(5, 300, (20, 24, 40)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    ingest(tmp_path / "a.npy", tmp_path / "survey")
    write_bundle(str(tmp_path / "bundle"), values)
    document = {"job": "score", "survey": str(tmp_path / "survey"), "bundle": str(tmp_path / "bundle")}
    told = forecast(parse_job({**document, "output": str(tmp_path / "out")}))
    assert told["voxels"] == values.size


def test_labels_become_a_class_map(tmp_path: Path) -> None:
    codes = np.random.default_rng(1).integers(0, 4, (9, 8, 7)).astype(np.int16) * 10
    codes[0, 0, 0] = -1
    np.save(tmp_path / "a.npy", codes)
    classes = {0: "salt dome", 10: "sand", 20: "shale"}
    survey = ingest(tmp_path / "a.npy", tmp_path / "survey", kind="labels", classes=classes, nodata=-1)
    found = survey["class_map"].values
    assert found.dtype == np.uint8 and found[0, 0, 0] == 255
    np.testing.assert_array_equal(found == 255, (codes == 30) | (codes == -1))
    np.testing.assert_array_equal(found[found < 255] * 10, codes[found < 255])
    assert class_names(survey["class_map"]) == {0: "salt_dome", 1: "sand", 2: "shale"}
    assert survey.attrs["geobatch"]["kind"] == "labels" and survey.attrs["geobatch"]["faults"]
    with pytest.raises(UsageError, match="names of their classes"):
        ingest(tmp_path / "a.npy", tmp_path / "no", kind="labels")


def test_rasters_with_coordinates_beside_them(tmp_path: Path) -> None:
    elevation = np.arange(12, dtype=np.int16).reshape(3, 4)
    x, y = 500_000.0 + 30 * np.arange(4), 4_000_000.0 - 30 * np.arange(3)
    np.savez(tmp_path / "a.npz", dem=elevation, x=x, y=y)
    axes = {"x": {"coordinate": "x"}, "y": {"coordinate": "y"}}
    options = {"kind": "raster", "variable": "dem", "axes": axes, "nodata": 5, "chunk": None, "shard": None}
    survey = ingest(tmp_path / "a.npz", tmp_path / "survey", crs="EPSG:32611", **options)
    np.testing.assert_array_equal(survey["elevation"].values[0], np.where(elevation == 5, np.nan, elevation))
    assert survey["elevation"].dims == ("band", "y", "x")
    np.testing.assert_array_equal(survey["x"].values, x)
    assert survey.attrs["geobatch"]["transform"] == [30.0, 0.0, 499_985.0, 0.0, -30.0, 4_000_015.0]


def test_packed_netcdf_values_are_unpacked_and_its_axes_known(tmp_path: Path) -> None:
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    with h5py.File(tmp_path / "a.nc", "w") as file:
        data = file.create_dataset("velocity", data=stored)
        data.attrs.update({"scale_factor": 0.5, "add_offset": 1500.0, "_FillValue": np.int16(7)})
        for axis, (name, values) in enumerate(
            {"inline": [1, 3], "crossline": [4, 5, 6], "sample": [0, 10, 20, 30]}.items()
        ):
            file[name] = np.array(values, float)
            file[name].make_scale(name)
            data.dims[axis].attach_scale(file[name])
    axes = {"inline": {"coordinate": "inline"}, "sample": {"coordinate": "sample", "unit": "m"}}
    survey = ingest(tmp_path / "a.nc", tmp_path / "survey", axes=axes, quantity="velocity", nodata=None)
    np.testing.assert_array_equal(survey["velocity"].values, np.where(stored == 7, np.nan, stored * 0.5 + 1500))
    assert survey["velocity"].attrs["units"] == "m/s" and survey["inline"].values.tolist() == [1, 3]
    assert survey.attrs["geobatch"]["domain"] == "depth"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dims": ("inline", "sample")}, UsageError, "dims do not name"),
        ({"axes": {}}, UsageError, "unit of the sample axis"),
        ({"axes": {**SAMPLE, "inline": {"step": 0}}}, GeometryError, "coordinates make no axis"),
        ({"axes": {**SAMPLE, "inline": {"step": 0.5}}}, GeometryError, "not whole"),
        ({"axes": {**SAMPLE, "inline": {"coordinate": "a"}}}, UsageError, "holds no coordinates"),
        ({"domain": "depth"}, UsageError, "contradict"),
        ({"chunk": (3, 3, 3), "shard": (4, 4, 4)}, UsageError, "whole multiple"),
        ({"quantity": "../x"}, UsageError, "no name of a variable"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(
    options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", cube())
    with pytest.raises(error, match=words):
        ingest(tmp_path / "a.npy", tmp_path / "survey", **options)


def test_inspection_tells_of_nodata_nobody_named(tmp_path: Path) -> None:
    values = cube()
    values[:, :, 0:10] = -999.25
    np.save(tmp_path / "a.npy", values)
    told = arrays.inspect_source(str(tmp_path / "a.npy"), arrays.Options()).told
    assert any("are -999.25: nodata?" in sentence for sentence in told["suspicious"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_any_region_of_any_layout_is_read_as_numpy_slices_it(data: st.DataObject, tmp_path: Path) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    values = np.arange(np.prod(shape), dtype=data.draw(st.sampled_from([">i2", "<f8", "u1"]))).reshape(shape)
    np.save(tmp_path / "a.npy", np.asarray(values, order=data.draw(st.sampled_from(["C", "F"]))))
    ends = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
    region = tuple(slice(*pair) for pair in ends)
    gap, most = arrays_npy.GAP_BYTES, arrays_npy.RUN_BYTES
    try:
        arrays_npy.GAP_BYTES = data.draw(st.sampled_from([0, 8, gap]))
        arrays_npy.RUN_BYTES = data.draw(st.sampled_from([16, most]))
        np.testing.assert_array_equal(open_npy(str(tmp_path / "a.npy")).read(region), values[region])
    finally:
        arrays_npy.GAP_BYTES, arrays_npy.RUN_BYTES = gap, most

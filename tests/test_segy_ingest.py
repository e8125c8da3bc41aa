"""From SEG-Y to survey: what is stored equals what segyio reads, wherever and in whatever order it was written."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import segyio
import xarray as xr
from segy_files import amplitudes, write_segy

from geobatch.errors import FormatError, GeometryError, NotFoundError, UsageError
from geobatch.fanout import in_order, open_fanout
from geobatch.formats import FORMATS, IngestJob, find_format, ingest, ingest_job, option_table, segy_columns
from geobatch.formats.segy_columns import Column, groups, read_columns
from geobatch.formats.segy_several import open_source
from geobatch.formats.seismic_inspect import LEVELS
from geobatch.inspect import inspect_survey
from geobatch.shards import clip_grid
from geobatch.storage import open_storage
from geobatch.survey import open_survey, survey_info

GRID = {"chunk": (4, 4, 8), "shard": (4, 8, 16)}


def assert_equals_file(survey: xr.Dataset, path: Path) -> None:
    """Every trace of the file, with its header and coordinates, stands at its place, and nothing else does."""
    volume = survey[survey_info(survey)["variable"]].values
    index = survey["trace_index"].values
    with segyio.open(path, ignore_geometry=True) as file:
        assert (index >= 0).sum() == file.tracecount
        scalar = file.attributes(71)[:].astype(float)
        divisor = np.where(scalar < 0, -scalar, 1)
        for name, byte in (("cdp_x", 181), ("cdp_y", 185)):
            places = file.attributes(byte)[:] / divisor
            np.testing.assert_array_equal(survey[name].values[index >= 0], places[index[index >= 0]])
        np.testing.assert_array_equal(volume[index >= 0], file.trace.raw[:][index[index >= 0]])
        places = file.attributes(189)[:], file.attributes(193)[:]
        for axis, numbers in zip(("inline", "crossline"), places, strict=True):
            grid = survey[axis].broadcast_like(survey["trace_index"]).values
            np.testing.assert_array_equal(grid[index >= 0], numbers[index[index >= 0]])
        np.testing.assert_array_equal(survey["sample"].values, file.samples)
        for i, j in np.argwhere(index >= 0)[::7]:
            assert survey["trace_header"].values[i, j].tobytes() == bytes(file.header[int(index[i, j])].buf)
    assert np.isnan(volume[index < 0]).all()
    assert not survey["live_mask"].values[index < 0].any()
    assert np.isnan(survey["cdp_x"].values[index < 0]).all()
    assert survey["file_header"].values.tobytes() == path.read_bytes()[: survey["file_header"].size]


@pytest.mark.parametrize("order", ["inline", "crossline", "random"])
@pytest.mark.parametrize("code", [1, 3, 5])
def test_survey_equals_file_trace_by_trace(code: int, order: str, tmp_path: Path) -> None:
    keep = np.random.default_rng(3).random((9, 11)) > 0.2
    values = np.round(amplitudes((9, 11, 37)) / 8)
    values[1, 1] = 0
    path = write_segy(tmp_path / "a.sgy", values, code=code, order=order, keep=keep, step=(2, 5), delay=12)
    summary = ingest(str(path), str(tmp_path / "survey"), **GRID)
    survey = open_survey(str(tmp_path / "survey"))
    assert_equals_file(survey, path)
    assert survey["amplitude"].encoding["shards"] == (4, 8, 16)
    assert summary["statistics"]["traces"] == keep.sum()
    assert summary["statistics"]["missing_traces"] == (~keep).sum()
    assert summary["statistics"]["dead_traces"] == int(keep[1, 1])
    np.testing.assert_array_equal(survey["live_mask"].values, keep & (values != 0).any(axis=2))


@pytest.mark.parametrize(
    "name",
    ["segy/f3.sgy", "segy/f3-ebcidctest.sgy", "segy/volve10-migvel-depth-sub3d.sgy", "penobscot/penobscot_xl1155.sgy"],
)
def test_real_file_is_ingested_without_options(name: str, test_data: Path, tmp_path: Path) -> None:
    path = test_data / "subsurface" / name
    ingest(str(path), str(tmp_path / "survey"))
    survey = open_survey(str(tmp_path / "survey"))
    assert_equals_file(survey, path)
    info, velocity = survey_info(survey), "volve" in name
    assert info["variable"] == ("velocity" if velocity else "amplitude")
    assert survey["sample"].attrs["units"] == info["sample_unit"] == ("m" if velocity else "ms")
    assert info["sample_interval"] == (20 if velocity else 4)
    assert info["bin_grid"]["rms_residual_m"] < 0.5


def test_ray_and_bucket_give_the_same_survey_as_one_process(
    ray_cluster: None, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    values = amplitudes((9, 11, 37))
    path = write_segy(tmp_path / "a.sgy", values)
    open_storage(s3).put("raw/a.sgy", path.read_bytes())
    monkeypatch.setattr("geobatch.formats.segy_ingest.SLAB_BYTES", 5000)
    seen = []
    far = ingest(f"{s3}/raw/a.sgy", f"{s3}/survey", **GRID, on_progress=lambda *step: seen.append(step))
    assert_equals_file(open_survey(f"{s3}/survey"), path)
    # 388 bytes a trace: 99 traces in slabs of 12, then in columns of 32 at most.
    assert len(seen) == 9 + 6
    assert seen == sorted(seen)
    assert seen[-1] == (99, 99)
    found = inspect_survey(f"{s3}/survey")["distribution"]["percentiles"]
    np.testing.assert_allclose(list(found.values()), np.percentile(values.astype(float), LEVELS))
    with monkeypatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: False)
        near = ingest(str(path), str(tmp_path / "survey"), **GRID)
    assert far["identity"] == near["identity"]
    assert contents(f"{s3}/survey") == contents(str(tmp_path / "survey"))


@pytest.mark.parametrize("order", ["inline", "crossline"])
def test_columns_of_a_bucket_are_read_together_along_its_lines(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes((24, 24, 37)), order=order)
    near = open_source(str(path), truncated="refuse", lengths="auto")
    far = dataclasses.replace(near, url="s3://bucket/a.sgy")
    ordinals = np.arange(24 * 24, dtype=np.int32).reshape(24, 24)
    ordinals = ordinals if order == "inline" else ordinals.T
    columns = [
        Column((i, j), ordinals[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]) for i, j in itertools.product(range(6), range(6))
    ]
    assert len(set(groups(columns, near))) == 36
    monkeypatch.setattr(segy_columns, "GAP_BYTES", 0)
    together = groups(columns, far)
    along = 0 if order == "inline" else 1
    assert together == [tuple(0 if axis != along else n for axis, n in enumerate(column.index)) for column in columns]
    monkeypatch.setattr(segy_columns, "TOGETHER_BYTES", 3 * 16 * near.trace_bytes)
    sizes = collections.Counter(groups(columns, far))
    assert set(sizes.values()) == {3}
    alone, whole = ([read_columns([column], near)[0] for column in columns], read_columns(columns, near))
    for one, other in zip(alone, whole, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_error_in_a_task_comes_out_as_it_was_raised(ray_cluster: None, tmp_path: Path) -> None:
    def refuse(item: int) -> None:
        raise GeometryError("no grid", remedy="such as this")

    with open_fanout(small=True) as fanout, pytest.raises(GeometryError, match="such as this"):
        list(fanout(refuse, [1, 2, 3], 2**20))
    with open_fanout(small=True) as fanout, pytest.raises(UsageError, match="more memory than any node"):
        list(fanout(refuse, [1], 2**60))


def test_killed_worker_loses_no_item(ray_cluster: None, tmp_path: Path) -> None:
    def double(item: int) -> int:
        marker = tmp_path / "killed"
        if item == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * item

    with open_fanout(small=True) as fanout:
        assert in_order(fanout, double, [1, 2, 3], task_bytes=2**20) == [2, 4, 6]


def contents(url: str) -> dict[str, str]:
    """SHA-256 by key of everything that does not tell where and when it was written."""
    storage = open_storage(url)
    keys = [key for key, _ in storage.list() if key != "zarr.json" and not key.startswith("_geobatch/")]
    return {key: hashlib.sha256(storage.get(key)).hexdigest() for key in keys}


def test_identity_follows_every_voxel_and_every_dead_trace(tmp_path: Path) -> None:
    values = amplitudes((4, 5, 20))
    codes = np.ones((4, 5), int)

    def identity(name: str) -> str:
        path = write_segy(tmp_path / f"{name}.sgy", values, trace_codes=codes)
        return str(ingest(str(path), str(tmp_path / name), **GRID)["identity"])

    first = identity("first")
    assert identity("again") == first
    values[2, 2, 7] += 1
    changed = identity("voxel")
    codes[3, 3] = 2
    assert len({first, changed, identity("coded")}) == 3


def test_unfinished_survey_does_not_open_and_is_written_again(tmp_path: Path) -> None:
    path, target = write_segy(tmp_path / "a.sgy", amplitudes((4, 5, 20))), tmp_path / "survey"
    first = ingest(str(path), str(target), **GRID)
    (target / "zarr.json").unlink()
    (target / "amplitude/c/0/0/0").write_bytes(b"torn")
    with pytest.raises(NotFoundError, match="not finished"):
        open_survey(str(target))
    assert ingest(str(path), str(target), **GRID) == first
    assert_equals_file(open_survey(str(target)), path)


def test_complete_survey_is_replaced_only_on_demand(tmp_path: Path) -> None:
    target = str(tmp_path / "survey")
    ingest(str(write_segy(tmp_path / "a.sgy", amplitudes((9, 5, 20)))), target, **GRID)
    path = write_segy(tmp_path / "b.sgy", amplitudes((3, 4, 10), seed=1))
    with pytest.raises(UsageError, match=r"there already.*--overwrite"):
        ingest(str(path), target)
    ingest(str(path), target, quantity="velocity", overwrite=True)
    assert_equals_file(open_survey(target), path)
    assert not [p for p in (tmp_path / "survey/amplitude").rglob("*") if p.is_file()]


def test_overwrite_spares_what_ingest_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text(json.dumps({"attributes": {"title": "someone's"}}))
    path = write_segy(tmp_path / "a.sgy", amplitudes((2, 3, 10)))
    with pytest.raises(UsageError, match="no ingested survey"):
        ingest(str(path), str(tmp_path), overwrite=True)


def test_all_zero_cube_is_stored_and_reported(tmp_path: Path) -> None:
    summary = ingest(str(write_segy(tmp_path / "a.sgy", np.zeros((3, 4, 10), np.float32))), str(tmp_path / "survey"))
    assert summary["statistics"]["dead_traces"] == 12
    assert summary["statistics"]["mean"] is None
    assert any("no trace is live" in sentence for sentence in summary["warnings"])


def test_non_finite_samples_are_kept_counted_and_left_out_of_statistics(tmp_path: Path) -> None:
    values = amplitudes((3, 4, 10))
    values[0, 0, :2], values[1, 1] = np.nan, np.inf
    path = write_segy(tmp_path / "a.sgy", values, code=5)
    summary = ingest(str(path), str(tmp_path / "survey"))
    assert (summary["statistics"]["non_finite"], summary["statistics"]["dead_traces"]) == (2, 1)
    assert np.isfinite(summary["statistics"]["rms"])
    assert_equals_file(open_survey(str(tmp_path / "survey")), path)


def test_uneven_start_is_refused_unless_given(tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes((2, 3, 10)), delay=8)
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        file.header[4] = {109: 16}
    with pytest.raises(GeometryError, match="delays from 8 to 16"):
        ingest(str(path), str(tmp_path / "survey"))
    ingest(str(path), str(tmp_path / "survey"), sample_start=8)
    assert open_survey(str(tmp_path / "survey"))["sample"].values[0] == 8


def test_bad_file_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes((2, 3, 10)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="1 bytes short"):
        ingest(str(path), str(tmp_path / "survey"))
    assert not (tmp_path / "survey").exists()


def test_grid_is_clipped_to_the_survey() -> None:
    assert clip_grid((23, 1, 1501), (64, 64, 64), (128, 128, 128)) == ((23, 1, 64), (23, 1, 128))
    assert clip_grid((100, 300, 70), (64, 64, 64), (128, 128, 128)) == ((64, 64, 64), (128, 128, 128))
    with pytest.raises(UsageError, match=r"crossline.*shard 96, chunk 64"):
        ingest("a.sgy", "b", shard=(128, 96, 128))


def test_suffix_or_name_finds_the_format() -> None:
    assert find_format("s3://bucket/raw/F3.SEGY") == ("segy", FORMATS["segy"])
    assert find_format("s3://bucket/raw/f3.bin", "segy")[0] == "segy"
    with pytest.raises(UsageError, match=r"\.txt.*\.segy, \.sgy"):
        find_format("a.txt")
    with pytest.raises(UsageError, match="Did you mean segy"):
        find_format("a.txt", "sgy")


def test_option_that_a_format_lacks_is_named(tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes((2, 3, 10)))
    job = {"job": "ingest", "source": str(path), "output": str(tmp_path / "survey")}
    with pytest.raises(UsageError, match="Did you mean inline_byte"):
        ingest_job(IngestJob(**job, options={"inline": 189}))
    with pytest.raises(UsageError, match=r"sample_unit.*options of segy|options of segy.*sample_unit"):
        ingest_job(IngestJob(**job, options={"sample_unit": "furlong"}))
    assert ingest_job(IngestJob(**job, options={"chunk": [2, 2, 8], "shard": [2, 2, 8]}))["shards"] == 4


def test_every_option_says_what_it_is() -> None:
    for name in FORMATS:
        assert all(about for _, about in option_table(name))

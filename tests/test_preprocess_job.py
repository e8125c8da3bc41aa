"""`job: preprocess`: a chain over a survey, stored as a survey, equal to the chain applied to the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from segy_files import write_segy
from surveys import random_volume, write_survey

from geobatch.errors import DataError, TransientError, UsageError
from geobatch.formats.ingestion import verify_ingested
from geobatch.formats.segy_export import export_segy
from geobatch.formats.segy_ingest import ingest
from geobatch.job import load_job, parse_job, run_job
from geobatch.preprocess import Chain, materialise
from geobatch.preprocess.resample import Resample
from geobatch.storage import open_storage
from geobatch.survey import open_survey, valid_volume

SHAPE = (20, 18, 50)
STEPS: list[dict[str, Any]] = [
    {"step": "crop", "inline": [104, 130]},
    {"step": "fill", "method": "interpolate", "along": "crossline", "max_gap_traces": 2},
    {"step": "bandpass", "low_hz": 5, "high_hz": 60},
    {"step": "agc", "window_ms": 60},
    {"step": "scale", "method": "standard"},
]
JOB_FILE = Path(__file__).parent.parent / "jobs" / "preprocess_volume.yaml"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def job_of(folder: Path, output: str = "prepared", **keys: Any) -> Any:
    places = {"survey": str(folder / "survey"), "output": str(folder / output)}
    return parse_job({"job": "preprocess", **places, "preprocess": STEPS, **keys})


def prepared(url: Path) -> xr.DataArray:
    return valid_volume(open_survey(str(url)))


def shard_bytes(url: str) -> dict[str, bytes]:
    storage = open_storage(url)
    return {key: storage.get(key) for key, _ in storage.list() if "/c/" in key and not key.startswith("_geobatch")}


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("resample", [None, {"interval_ms": 2}, {"interval_ms": 6}])
def test_prepared_survey_equals_the_chain_on_the_whole(tmp_path: Path, resample: dict[str, float] | None) -> None:
    write_survey(str(tmp_path / "survey"), random_volume(SHAPE))
    seen: list[tuple[int, int]] = []
    summary = run_job(
        job_of(tmp_path, resample=resample, chunk=[4, 4, 8], shard=[8, 8, 16]),
        on_progress=lambda done, total, news: seen.append((done, total)),
    )
    assert seen[-1] == (summary["shards"], summary["shards"])
    source = valid_volume(open_survey(str(tmp_path / "survey")))
    crop, chain = Chain.model_validate(STEPS[:1]), Chain.model_validate(STEPS[1:])
    cropped = crop.crop(source)
    whole = Resample(**resample).apply(cropped) if resample else cropped
    expected = chain.fit(whole).apply(whole.chunk())
    found = prepared(tmp_path / "prepared")
    np.testing.assert_array_equal(found.values.view("u4"), expected.values.view("u4"))
    for axis in found.dims:
        xr.testing.assert_equal(found[axis], whole[axis])
    assert found.encoding["shards"] == (8, 8, 16) and found.encoding["chunks"] == (4, 4, 8)
    info = open_survey(str(tmp_path / "prepared")).attrs["geobatch"]
    assert info["statistics"]["count"] == np.isfinite(found.values).sum()
    assert info["statistics"]["std"] == pytest.approx(np.nanstd(found.values), rel=1e-5)
    assert info["sample_interval"] == (resample or {"interval_ms": 4})["interval_ms"]
    assert [step["step"] for step in info["preprocess"]] == [step["step"] for step in STEPS]
    assert info["preprocess"][-1]["statistics"]["count"] == info["statistics"]["count"]
    assert verify_ingested(str(tmp_path / "prepared")).findings == ()


@pytest.mark.usefixtures("in_this_process")
def test_traces_that_a_step_fills_are_live_afterwards(tmp_path: Path) -> None:
    write_survey(str(tmp_path / "survey"), random_volume(SHAPE))
    before = open_survey(str(tmp_path / "survey"))["live_mask"].values
    run_job(job_of(tmp_path, preprocess=[{"step": "fill", "max_gap_traces": 1}]))
    after = open_survey(str(tmp_path / "prepared"))["live_mask"].values
    values = prepared(tmp_path / "prepared").values
    assert after.sum() > before.sum() and not after.all()
    np.testing.assert_array_equal(after, np.isfinite(values).any(axis=2))


@pytest.mark.usefixtures("in_this_process")
def test_failed_run_goes_on_without_fitting_or_writing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_survey(str(tmp_path / "survey"), random_volume(SHAPE))
    run_job(job_of(tmp_path, "whole", shard=[8] * 3, chunk=[8] * 3))
    own, written = materialise.write_piece, []

    def write(piece: Any, target: Any) -> Any:
        written.append(piece)
        if len(written) == 3:
            raise TransientError("storage went away")
        return own(piece, target)

    job = job_of(tmp_path, shard=[8] * 3, chunk=[8] * 3)
    with monkeypatch.context() as patch:
        patch.setattr(materialise, "write_piece", write)
        with pytest.raises(TransientError):
            run_job(job)
        assert not open_storage(job.output).exists("zarr.json")
        patch.setattr(Chain, "fit", lambda *given: pytest.fail("fitted again"))
        run_job(job)
    # One column of shards is one piece, since the filter needs whole traces.
    assert [len(piece) for piece in written] == [7] * 7
    assert len(written) == len(set(written)) + 1
    assert shard_bytes(job.output) == shard_bytes(str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(materialise, "write_piece", lambda *given: pytest.fail("written again"))
        assert run_job(job)["shards"] == 42


def test_pieces_are_written_on_a_ray_cluster(tmp_path: Path, ray_cluster: None) -> None:
    write_survey(str(tmp_path / "survey"), random_volume(SHAPE))
    run_job(job_of(tmp_path, "cluster"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.is_initialized", lambda: False)
        run_job(job_of(tmp_path, "process"))
    assert shard_bytes(str(tmp_path / "cluster")) == shard_bytes(str(tmp_path / "process"))


@pytest.mark.usefixtures("in_this_process")
def test_prepared_survey_is_exported_with_the_headers_of_its_source(tmp_path: Path) -> None:
    import segyio

    write_segy(tmp_path / "a.sgy", np.random.default_rng(0).normal(size=(9, 17, 37)).astype(np.float32))
    ingest(str(tmp_path / "a.sgy"), str(tmp_path / "survey"))
    run_job(job_of(tmp_path, preprocess=[{"step": "envelope"}], resample={"interval_ms": 2}))
    info = open_survey(str(tmp_path / "prepared")).attrs["geobatch"]
    assert info["quantity"] == "envelope" and info["bin_grid"]
    export_segy(str(tmp_path / "prepared"), str(tmp_path / "b.sgy"))
    with segyio.open(tmp_path / "a.sgy") as old, segyio.open(tmp_path / "b.sgy") as new:
        assert segyio.tools.dt(new) == segyio.tools.dt(old) / 2
        np.testing.assert_array_equal(new.ilines, old.ilines)
        np.testing.assert_array_equal(segyio.cube(new), prepared(tmp_path / "prepared").values)


@pytest.mark.usefixtures("in_this_process")
def test_job_file_prepares_a_survey(tmp_path: Path) -> None:
    write_survey(str(tmp_path / "survey"), random_volume(SHAPE))
    places = [f"survey={tmp_path / 'survey'}", f"output={tmp_path / 'prepared'}"]
    summary = run_job(load_job(str(JOB_FILE), places))
    assert summary["shape"] == [20, 18, 100]
    assert np.isfinite(prepared(tmp_path / "prepared").values).any()


@pytest.mark.usefixtures("in_this_process")
def test_wrong_jobs_are_refused(tmp_path: Path) -> None:
    write_survey(str(tmp_path / "survey"), random_volume(SHAPE))
    with pytest.raises(UsageError, match="into itself"):
        run_job(job_of(tmp_path, "survey"))
    with pytest.raises(UsageError, match="shard a multiple of chunk"):
        run_job(job_of(tmp_path, chunk=[4, 4, 4], shard=[6, 8, 8]))
    with pytest.raises(UsageError, match="Nyquist"):
        run_job(job_of(tmp_path, preprocess=[{"step": "bandpass", "low_hz": 200}]))
    with pytest.raises(UsageError, match="Did you mean resample"):
        job_of(tmp_path, resampled={"interval_ms": 2})
    write_survey(str(tmp_path / "survey"), random_volume(SHAPE), state="writing")
    with pytest.raises(DataError, match="not complete"):
        run_job(job_of(tmp_path))

"""Rasters as training data: channels, blocks of ground held out, and what a network makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from raster_files import write_tiff

from geobatch.errors import DataError, MismatchError, UsageError
from geobatch.formats import IngestRun
from geobatch.formats.raster import Options, ingest_source
from geobatch.job import parse_job, run_job
from geobatch.landform.terrain import Aspect, Slope
from geobatch.models.bundle import load_bundle, save_bundle
from geobatch.preprocess.bands import Bands
from geobatch.train.loop import fit_network
from geobatch.train.places import AlonePlace
from geobatch.train.rasters import Ground, RasterTask
from geobatch.train.spec import TrainJob
from geobatch.train.train import make_plan, trained_bundle

SHAPE = (90, 130)
PLAIN = {"flip": False, "swap": False, "noise": 0, "gain": 0}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hills whose steep cells are one class and whose gentle cells another, with a void and unlabelled cells."""
    folder = tmp_path_factory.mktemp("rasters")
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.float32)
    elevation = 300 + 60 * np.sin(x / 9) * np.cos(y / 13) + 20 * np.sin(y / 5)
    steep = np.hypot(*np.gradient(elevation, 10.0)) > 0.45
    elevation[40:44, 60:66] = -9999
    labels = steep.astype(np.uint8)
    labels[:, :4] = 255
    write_tiff(folder / "dem.tif", elevation.astype(np.float32), nodata=-9999)
    ingest_source(str(folder / "dem.tif"), str(folder / "survey"), Options(), IngestRun())
    np.save(folder / "labels.npy", labels)
    write_labels(folder, labels)
    return {"survey": str(folder / "survey"), "labels": str(folder / "labels")}


def write_labels(folder: Path, labels: Any) -> None:
    write_tiff(folder / "classes.tif", labels, nodata=255)
    layer = {"layer": "class_raster", "url": str(folder / "classes.tif"), "labels": {0: "gentle", 1: "steep"}}
    classes = [{"name": "gentle", "color": "#88aa66"}, {"name": "steep", "color": "#aa5533"}]
    document = {"job": "label", "survey": str(folder / "survey"), "output": str(folder / "labels")}
    run_job(parse_job({**document, "classes": classes, "layers": [layer]}))


def job_of(urls: dict[str, str], folder: Path, bands: dict[str, Any] | None = None, **changes: Any) -> TrainJob:
    document = {
        "job": "train",
        "data": [{"kind": "raster", **urls, "bands": bands or {"derivatives": [{"step": "slope"}], "bands": []}}],
        "validation": {"fraction": 0.2, "block": 20, "guard": 3},
        "model": {"channels": 4, "levels": 2},
        "training": {"patch": [32, 32], "batch": 4, "steps_per_epoch": 25, "epochs": 2, "learning_rate": 0.02},
        "output": str(folder / "bundle"),
    }
    return TrainJob.model_validate({**document, **changes})


def test_labels_in_and_near_held_out_blocks_train_nothing_and_are_all_that_is_judged(
    data: dict[str, str], tmp_path: Path
) -> None:
    task = RasterTask(job_of(data, tmp_path))
    source = task.source(task.fit())
    whole = (slice(0, SHAPE[0]), slice(0, SHAPE[1]))
    training = source.ground.training_labels(whole) != 255
    held = np.zeros(SHAPE, bool)
    for block in source.ground.blocks():
        held[block] = True
    near = np.zeros(SHAPE, bool)
    for row, column in np.argwhere(held):
        near[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4] = True
    labels = source.ground.all_labels(whole)
    np.testing.assert_array_equal(training, ~near & (labels != 255))
    judged = sum(int((part.read().labels != 255).sum()) for part in source.held_out())
    # The void and the frame of a slope are unlabelled too.
    assert 0.9 * (held & (labels != 255)).sum() < judged <= (held & (labels != 255)).sum()
    assert len(source.ground.blocks()) == round(0.2 * 5 * 7)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 5), st.integers(0, 2**30), st.data())
def test_a_window_sees_the_same_guard_as_the_whole(side: int, guard: int, seed: int, data: Any) -> None:
    shape = (17, 23)
    held = np.random.default_rng(seed).random((-(-shape[0] // side), -(-shape[1] // side))) < 0.2
    labels = xr.DataArray(np.zeros(shape, np.uint8), dims=("y", "x"), name="class_map")
    raster = xr.DataArray(np.zeros((1, *shape), np.float32), dims=("band", "y", "x"))
    ground = Ground(raster, labels, 2, held, side, guard, "made up")
    whole = ground.training_labels((slice(0, 17), slice(0, 23)))
    ends = [sorted(data.draw(st.tuples(st.integers(0, size - 1), st.integers(1, size)))) for size in shape]
    window = tuple(slice(first, max(first + 1, last)) for first, last in ends)
    np.testing.assert_array_equal(ground.training_labels(window), whole[window])  # type: ignore[arg-type]


def test_an_example_is_decided_by_its_key_and_holds_a_label(data: dict[str, str], tmp_path: Path) -> None:
    task = RasterTask(job_of(data, tmp_path))
    source, other = (task.source(task.fit()) for _ in range(2))
    for item in range(10):
        first, again = source.draw((1, 2, item)), other.draw((1, 2, item))
        np.testing.assert_array_equal(first.inputs, again.inputs)
        np.testing.assert_array_equal(first.labels, again.labels)
        assert (first.labels != 255).any() and np.isfinite(first.inputs).all()
        assert first.inputs.shape == (1, 32, 32)
    assert not np.array_equal(first.inputs, source.draw((1, 2, 0)).inputs)
    assert source.place((1, 2, 3)).startswith("y ")


def test_channels_are_bands_and_derivatives_of_the_whole_raster_on_one_scale(
    data: dict[str, str], tmp_path: Path
) -> None:
    steps = [{"step": "slope"}, {"step": "aspect"}]
    task = RasterTask(job_of(data, tmp_path, {"derivatives": steps, "bands": [1]}, validation={"fraction": 0}))
    fitted = Bands.model_validate(task.fit()["bands"])
    elevation = task.raster.isel(band=0, drop=True).load().chunk()
    slope, aspect = (step.apply(elevation).values for step in (Slope(), Aspect()))
    expected = np.stack([elevation.values, slope, np.sin(np.radians(aspect)), np.cos(np.radians(aspect))])
    window = (slice(33, 70), slice(50, 90))
    found = fitted.model_copy(update={"mean": (), "deviation": ()}).read(task.raster, window)
    np.testing.assert_allclose(found, expected[:, 33:70, 50:90], rtol=1e-5, atol=1e-6)
    assert np.isnan(found[0]).sum() == 24
    scaled = fitted.read(task.raster, (slice(0, SHAPE[0]), slice(0, SHAPE[1])))
    np.testing.assert_allclose(np.nanmean(scaled, axis=(1, 2)), 0, atol=0.02)
    np.testing.assert_allclose(np.nanstd(scaled, axis=(1, 2)), 1, atol=0.02)
    assert fitted.directed and fitted.halo == 1


def test_a_network_learns_what_is_steep_where_it_has_not_been(data: dict[str, str], tmp_path: Path) -> None:
    job = job_of(data, tmp_path)
    task = RasterTask(job)
    plan, place = make_plan(job, task, "run"), AlonePlace()
    network = fit_network(plan, place, task.source(plan.fitted))
    assert isinstance(network, torch.nn.Module)
    assert place.history[-1]["validation"]["mean_class_accuracy"] > 0.9
    save_bundle(str(tmp_path / "bundle"), trained_bundle(plan, task, network, {}, "run"))
    spec = load_bundle(str(tmp_path / "bundle")).spec
    assert spec.axes == ("y", "x") and spec.bands is not None and len(spec.bands.mean) == spec.in_channels == 1


def test_what_cannot_be_trained_on_is_refused(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no block is left"):
        RasterTask(job_of(data, tmp_path, validation={"fraction": 0.8, "block": 90}))
    with pytest.raises(UsageError, match="larger than a window"):
        RasterTask(job_of(data, tmp_path, validation={"fraction": 0.2, "block": 40}))
    with pytest.raises(UsageError, match="no such band"):
        RasterTask(job_of(data, tmp_path, {"bands": [2]})).fit()
    with pytest.raises(UsageError, match="no cell of training has a label"):
        RasterTask(job_of(data, tmp_path, validation={"fraction": 0.1, "block": 20, "guard": 500})).fit()
    with pytest.raises(MismatchError, match="no such class map"):
        RasterTask(job_of({**data, "labels": data["survey"]}, tmp_path))
    with pytest.raises(ValidationError, match="neither a band nor a derivative"):
        job_of(data, tmp_path, {"bands": []} | {"derivatives": []})
    flat = tmp_path / "flat"
    write_tiff(flat / "dem.tif", np.full(SHAPE, 7, np.float32))
    ingest_source(str(flat / "dem.tif"), str(flat / "survey"), Options(), IngestRun())
    with pytest.raises(DataError, match="same everywhere"):
        RasterTask(job_of({**data, "survey": str(flat / "survey")}, tmp_path, {"bands": [1]})).fit()

"""Leaving stations, networks or events out in folds: each window is judged once, and baselines are what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from events import STATIONS, windows_data, write_events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from geobatch.errors import UsageError
from geobatch.formats import IngestJob, ingest_job
from geobatch.job import load_job, parse_job
from geobatch.models.bundle import save_bundle
from geobatch.models.weights import phasenet_bundle
from geobatch.storage import open_storage
from geobatch.train.blind import Blind, Fold
from geobatch.train.compare import compare, run_fold
from geobatch.train.compare_spec import CompareJob
from geobatch.train.compare_windows import (
    BOOTSTRAPS,
    event_figures,
    magnitude_figures,
    resamples,
    window_folds,
)
from geobatch.train.networks import StaLtaSpec
from geobatch.train.spec import TrainJob
from geobatch.train.train import train
from geobatch.train.window_baselines import largest_ratio

JOBS = Path(__file__).parents[1] / "jobs"
FILES = ("compare_events", "compare_magnitude", "train_event_classifier", "ingest_california", "ingest_chile")
CNN = {"name": "cnn", "channels": 8, "stages": 3}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_events(tmp_path_factory.mktemp("events"))


def job(survey: str, output: str, ask: str = "event", **changes: Any) -> CompareJob:
    document = {
        "job": "compare",
        "data": windows_data(survey, ask),
        "folds": 3,
        "candidates": {"sta_lta": {"model": {"name": "sta_lta", "band_hz": [1, 20]}}},
        "training": {
            "loss": "bce" if ask == "event" else "cross_entropy",
            "batch": 8,
            "steps_per_epoch": 20,
            "epochs": 1,
            "learning_rate": 0.01,
        },
        "output": output,
        "resources": {"workers": 2},
        **changes,
    }
    found = parse_job(document)
    assert isinstance(found, CompareJob)
    return found


@given(by=st.sampled_from(["station", "network", "event"]), folds=st.integers(2, 12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_group_is_left_out_once(survey: str, by: str, folds: int) -> None:
    groups = {"station": 6, "network": 3, "event": 12}[by]
    if folds > groups:
        with pytest.raises(UsageError, match="not enough"):
            window_folds(job(survey, "x", by=by, folds=folds))
        return
    found = window_folds(job(survey, "x", by=by, folds=folds))
    every = [name for fold in found for name in fold]
    assert len(found) == folds and all(found) and len(every) == len(set(every)) == groups
    assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.usefixtures("ray_cluster")
def test_candidates_are_judged_by_stations_they_have_not_seen(survey: str, s3: str) -> None:
    candidates = {
        "sta_lta": {"model": {"name": "sta_lta", "band_hz": [1, 20]}},
        "waveform": {"model": CNN},
        "both": {"mean_of": ["sta_lta", "waveform"]},
    }
    result = compare(job(survey, s3, candidates=candidates))
    assert sorted(name for fold in result["folds"] for name in fold) == sorted(STATIONS)
    assert result["windows"] == 48 and result["groups"] == 6 and result["left_out"] == {}
    for name, figures in result["candidates"].items():
        low, high = figures["auroc"]["interval"]
        assert 0.8 < figures["auroc"]["value"] <= 1 and low <= figures["auroc"]["value"] <= high, name
        assert set(figures) == {"auroc", "auprc", "accuracy"}
    assert [(pair["first"], pair["second"]) for pair in result["pairs"]] == [
        ("sta_lta", "waveform"),
        ("sta_lta", "both"),
        ("waveform", "both"),
    ]
    versions = {key: open_storage(s3).version(key) for key, _ in open_storage(s3).list("folds")}
    assert len(versions) == 6
    assert compare(job(survey, s3, candidates=candidates)) == result
    assert {key: open_storage(s3).version(key) for key, _ in open_storage(s3).list("folds")} == versions


def test_law_of_amplitude_and_s_minus_p_is_found(survey: str, tmp_path: Path) -> None:
    asked = job(
        survey, str(tmp_path), "magnitude", by="event", candidates={"amplitude": {"model": {"name": "amplitude"}}}
    )
    errors = []
    for held_out in window_folds(asked):
        blind = Blind.loaded(run_fold(asked, Fold("amplitude", held_out, 0)))
        assert blind.answers.shape == (1, blind.labels.size)
        errors.append(np.abs(blind.answers[0] - blind.labels))
    # Noise of deviation 1 is on amplitudes of 20 and more.
    assert np.concatenate(errors).max() < 0.15 and np.concatenate(errors).mean() < 0.04


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_ratio_is_that_of_the_energies_before_and_after(factor: float) -> None:
    time_s = np.arange(0, 20, 0.01)
    window = np.tile(np.where(time_s < 10, 1, 10) * np.sin(2 * np.pi * 8 * time_s), (3, 1)).astype(np.float32)
    window[0] = np.nan
    spec = StaLtaSpec(name="sta_lta", short_s=1, long_s=5, band_hz=(1, 40))
    assert largest_ratio(np.float32(factor) * window, 100.0, spec) == pytest.approx(100, rel=0.03)


def test_figures_are_those_of_scikit_learn_with_every_resample() -> None:
    random = np.random.default_rng(2)
    labels, answers = random.integers(0, 2, 40).astype(float), random.integers(0, 12, 40) / 12
    weights = random.integers(0, 4, (5, 40)).astype(float)
    found, errors = event_figures(labels, answers, weights), magnitude_figures(labels, answers, weights)
    for number, weight in enumerate(weights):
        expected = {
            "auroc": roc_auc_score(labels, answers, sample_weight=weight),
            "auprc": average_precision_score(labels, answers, sample_weight=weight),
            "accuracy": accuracy_score(labels, answers > 0.5, sample_weight=weight),
        }
        assert {key: values[number] for key, values in found.items()} == pytest.approx(expected)
        wrong = {
            "rmse": root_mean_squared_error(labels, answers, sample_weight=weight),
            "mae": mean_absolute_error(labels, answers, sample_weight=weight),
            "r2": r2_score(labels, answers, sample_weight=weight),
        }
        assert {key: values[number] for key, values in errors.items()} == pytest.approx(wrong)


def test_bootstrap_draws_whole_groups() -> None:
    group = np.repeat([0, 1, 2], [4, 1, 2])
    weights = resamples(group)
    assert weights.shape == (BOOTSTRAPS, 7)
    for number in range(3):
        own = weights[:, group == number]
        assert (own == own[:, :1]).all()
    assert (weights[:, [0, 4, 5]].sum(axis=1) == 3).all()
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"candidates": {"a": {"model": {"name": "boosting"}}}}, "boosting is no baseline of event"),
        ({"candidates": {"a": {"model": {"name": "amplitude"}}}}, "amplitude is no baseline of event"),
        ({"candidates": {"a": {"model": CNN, "curves": {"missing": "drop"}}}}, "curves are of logs"),
        ({"candidates": {"a": {"model": CNN, "input": {"form": "picture"}}}}, "candidates.a"),
        ({"wells": ["A"]}, "wells and penalty: of logs"),
        ({"by": "window"}, "station"),
    ],
)
def test_wrong_comparisons_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        job("x", "y", **changes)


@pytest.mark.parametrize("name", FILES)
def test_job_files_are_valid(name: str) -> None:
    path = JOBS / f"{name}.yaml"
    assert load_job(str(path)).name == yaml.safe_load(path.read_text())["name"]


SMALL = ["data.input.picture.size=[32, 32]", "training.steps_per_epoch=4", "training.epochs=1"]


@pytest.mark.usefixtures("ray_cluster")
def test_job_files_of_california_run(test_data: Path, tmp_path: Path) -> None:
    _ingest("ingest_california", test_data / "earthquake/ncedc_phasenet", tmp_path / "survey")
    changes = [f"data.survey={tmp_path}/survey", f"output={tmp_path}/compared", "folds=2"]
    comparison = load_job(str(JOBS / "compare_events.yaml"), [*changes, *SMALL])
    assert isinstance(comparison, CompareJob)
    result = compare(comparison)
    assert result["windows"] == 224 and result["groups"] == 78
    assert result["candidates"]["sta_lta"]["auroc"]["value"] > 0.8
    own = [change.replace("data.", "data.0.") for change in [f"data.survey={tmp_path}/survey", *SMALL[1:]]]
    training = load_job(str(JOBS / "train_event_classifier.yaml"), [*own, "training.batch=4", f"output={tmp_path}/b"])
    assert isinstance(training, TrainJob)
    assert train(training) == f"{tmp_path}/b"


@pytest.mark.usefixtures("ray_cluster")
def test_job_files_of_chile_run(test_data: Path, tmp_path: Path) -> None:
    _ingest("ingest_chile", test_data / "earthquake/seisbench_cx", tmp_path / "survey")
    weights = phasenet_bundle(str(test_data / "weights/phasenet_original.safetensors"))
    save_bundle(str(tmp_path / "phasenet"), weights)
    changes = [f"data.survey={tmp_path}/survey", f"output={tmp_path}/compared", "folds=2"]
    changes += [f"candidates.amplitude_s_p.model.weights={tmp_path}/phasenet"]
    comparison = load_job(str(JOBS / "compare_magnitude.yaml"), [*changes, *SMALL])
    assert isinstance(comparison, CompareJob)
    figures = compare(comparison)["candidates"]
    assert figures["amplitude_s_p"]["rmse"]["value"] < figures["amplitude"]["rmse"]["value"] < 0.4


def _ingest(name: str, source: Path, survey: Path) -> None:
    given = load_job(str(JOBS / f"{name}.yaml"), [f"source={source}", f"output={survey}"])
    assert isinstance(given, IngestJob)
    ingest_job(given)

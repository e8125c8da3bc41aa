"""Event windows as training data: where they lie, what they keep of amplitudes, and that no group is on both sides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from events import P_SAMPLE, RATE_HZ, STATIONS, windows_data, write_events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geobatch.errors import DataError, MismatchError, UsageError
from geobatch.models.bundle import load_bundle
from geobatch.models.windows import answer_windows
from geobatch.preprocess.event_windows import WindowInput
from geobatch.train.spec import TrainJob
from geobatch.train.train import train
from geobatch.train.windows import EVENT, NOISE, WindowsSource, WindowsTask, augmented

PICTURE = {"form": "spectrogram", "picture": {"window_s": 0.64, "overlap": 0.5, "size": [24, 20]}}
STILL = {"flip": False, "noise": 0, "gain": 0}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_events(tmp_path_factory.mktemp("events"))


def job(survey: str, ask: str = "event", *, validation: Any = None, training: Any = None, **data: Any) -> TrainJob:
    document = {
        "job": "train",
        "data": [windows_data(survey, ask, **data)],
        "validation": validation or {"by": "station", "groups": ["BB.TWO"]},
        "model": {"name": "cnn", "channels": 8, "stages": 3},
        "training": {"batch": 8, "steps_per_epoch": 20, "epochs": 2, "learning_rate": 0.01, **(training or {})},
        "output": "unused",
    }
    return TrainJob.model_validate(document)


def opened(training: TrainJob) -> WindowsSource:
    task = WindowsTask(training)
    return task.source(task.fit())


def test_window_is_decided_by_its_key_alone(survey: str) -> None:
    sources = [opened(job(survey)), opened(job(survey))]
    keys = [(1, 2, item) for item in range(30)]
    drawn = [sources[0].draw(key) for key in keys]
    for key, expected in reversed(list(zip(keys, drawn, strict=True))):
        again = sources[1].draw(key)
        np.testing.assert_array_equal(again.inputs, expected.inputs)
        assert again.labels == expected.labels and again.labels.dtype == np.uint8
    assert len({example.inputs.tobytes() for example in drawn}) == len(drawn)
    assert {int(example.labels) for example in drawn} == {NOISE, EVENT}


@given(step=st.integers(0, 10**6), margin_s=st.floats(0, 4), low=st.floats(0, 0.5), width=st.floats(0.05, 0.5))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_ends_before_the_margin_and_events_hold_p(
    survey: str, step: int, margin_s: float, low: float, width: float
) -> None:
    source = opened(job(survey, noise_margin_s=margin_s, p_between=(low, low + width), training={"augment": STILL}))
    p_s = P_SAMPLE / RATE_HZ
    cell_s = 1 / RATE_HZ
    for item in range(6):
        start_s = float(re.findall(r"from ([\d.e-]+) s", source.place((0, step, item)))[0])
        example = source.draw((0, step, item))
        if int(example.labels) == NOISE:
            assert start_s >= 0 and start_s + 8 <= p_s - margin_s + cell_s * 0.01
        else:
            assert low * 8 - cell_s <= p_s - start_s <= (low + width) * 8 + cell_s
            assert start_s + 8 <= 30


def test_held_out_windows_do_not_depend_on_what_trains(survey: str) -> None:
    others = {"by": "station", "groups": ["BB.TWO", "AA.ONE"]}
    own, more = opened(job(survey)), opened(job(survey, validation=others))
    first = {part.name: [p.read() for p in more.held_out() if p.name == part.name] for part in own.held_out()}
    assert list(first) == ["BB.TWO"] and len(own.held_out()) == 8
    for part, other in zip(own.held_out(), first["BB.TWO"], strict=True):
        np.testing.assert_array_equal(part.read().inputs, other.inputs)
    assert [int(part.read().labels) for part in own.held_out()] == [NOISE, EVENT] * 4


@given(by=st.sampled_from(["station", "network", "event"]), fraction=st.floats(0, 0.85))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_group_is_on_both_sides(survey: str, by: str, fraction: float) -> None:
    task = WindowsTask(job(survey, validation={"by": by, "fraction": fraction}))
    source = task.source({"input": task.data.unfitted.model_copy(update={"sampling_rate_hz": RATE_HZ}).model_dump()})
    training = {task.records.groups[record] for record in source.training}
    held_out = {part.name for part in source.held_out()}
    assert training and not training & held_out
    assert training | held_out == set(task.records.groups)
    expected = {"station": set(STATIONS), "network": {"AA", "BB", "CC"}}.get(by)
    assert expected is None or training | held_out == expected
    assert by != "event" or len(training | held_out) == 12


def test_factor_changes_no_input_of_detection(survey: str) -> None:
    window = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
    for form in ({}, PICTURE):
        task = WindowsTask(job(survey, input=form))
        windows = WindowInput.model_validate(task.fit()["input"])
        np.testing.assert_array_equal(windows.apply(2 * window), windows.apply(window))


def test_factor_moves_the_input_of_magnitudes_by_its_logarithm(survey: str) -> None:
    window = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
    for form in ({}, PICTURE):
        task = WindowsTask(job(survey, "magnitude", input=form))
        windows = WindowInput.model_validate(task.fit()["input"])
        assert windows.deviation is not None
        moved = windows.apply(2 * window) - windows.apply(window)
        step = np.log10(2) / windows.deviation
        if form:
            np.testing.assert_allclose(moved, step, atol=1e-4)
            assert moved.shape == (3, 24, 20)
        else:
            assert (moved[:3] == 0).all()
            np.testing.assert_allclose(moved[3], step, atol=1e-5)


def test_scale_of_amplitudes_comes_from_training_alone(tmp_path: Path, survey: str) -> None:
    """Half of the records are much larger: only a split that trains on them knows."""

    def fitted(network: str) -> dict[str, Any]:
        task = WindowsTask(job(survey, "magnitude", validation={"by": "network", "groups": [network]}))
        return task.fit()

    assert fitted("AA")["number"]["mean"] != fitted("BB")["number"]["mean"]
    task = WindowsTask(job(survey, "magnitude", validation={"by": "network", "groups": ["AA"]}))
    labels = [task.records.label(k) for k in task.records.usable if task.records.groups[k] != "AA"]
    assert fitted("AA")["number"]["mean"] == pytest.approx(np.mean(labels))


def test_gain_moves_a_magnitude_by_its_logarithm(survey: str) -> None:
    training = {"augment": {"flip": True, "noise": 0, "gain": 0.7}}
    source = opened(job(survey, "magnitude", training=training))
    assert source.windows.deviation is not None
    still = opened(job(survey, "magnitude", training={"augment": STILL}))
    for item in range(10):
        loud, plain = source.draw((0, 0, item)), still.draw((0, 0, item))
        grown = float(loud.labels - plain.labels)
        moved = float(loud.inputs[3, 0] - plain.inputs[3, 0]) * source.windows.deviation
        assert abs(grown) > 1e-4 and moved == pytest.approx(grown, abs=1e-4)
        np.testing.assert_allclose(np.abs(loud.inputs[:3]), np.abs(plain.inputs[:3]), atol=1e-3)


def test_missing_components_are_zeros_and_masks_or_leave_the_record_out(survey: str) -> None:
    for form in ({}, PICTURE):
        made = {m: WindowsTask(job(survey, input={**form, "missing": m})) for m in ("zero", "mask", "drop")}
        assert made["drop"].records.left_out == {"a component missing": 5} and not made["zero"].records.left_out
        window = made["zero"].records.read(0, 0)
        assert np.isnan(window[:2]).all() and np.isfinite(window[2]).all()
        inputs = {m: WindowInput.model_validate(task.fit()["input"]) for m, task in made.items()}
        zero, mask = inputs["zero"].apply(window), inputs["mask"].apply(window)
        assert (zero[:2] == 0).all() and zero[2].any()
        np.testing.assert_array_equal(mask[:3], zero)
        assert (mask[3:5] == 0).all() and (mask[5] == 1).all()
        assert len(mask) == inputs["mask"].channels == 6


def test_component_that_counts_as_missing_is_never_the_last_one() -> None:
    random = np.random.default_rng(0)
    window = random.standard_normal((3, 50)).astype(np.float32)
    augment = job("x", training={"augment": {**STILL, "missing": 0.8}}).training.augment
    left = [np.isfinite(augmented(window, augment, random)[0]).all(axis=1).sum() for _ in range(100)]
    assert set(left) == {1, 2, 3}


def test_windows_of_another_rate_are_resampled_where_one_is_given(tmp_path: Path) -> None:
    mixed = write_events(tmp_path, trace_sampling_rate_hz=lambda number: RATE_HZ / (1 + number % 2))
    with pytest.raises(UsageError, match="several sampling rates"):
        WindowsTask(job(mixed))
    records = WindowsTask(job(mixed, input={"sampling_rate_hz": RATE_HZ, "missing": "drop"})).records
    assert records.rate_hz == RATE_HZ and records.read(1, 0).shape == records.read(2, 0).shape == (3, 400)
    first, last = records.noise_starts(1)
    assert last - first == 2 * P_SAMPLE - 400 - RATE_HZ
    quiet, loud = records.read(1, last), records.read(1, records.starts(1)[0])
    assert np.abs(loud).max() > 3 * np.abs(quiet).max()


@pytest.mark.parametrize(
    ("columns", "changes", "error", "text"),
    [
        ({"trace_P_arrival_sample": ""}, {}, DataError, "24 with no P pick"),
        ({"source_magnitude": ""}, {"ask": "magnitude"}, DataError, "24 with no magnitude"),
        ({"trace_P_arrival_sample": 300}, {}, DataError, "too few samples before P"),
        ({"station_code": "", "station_network_code": ""}, {}, DataError, "names no station"),
        ({"source_latitude_deg": ""}, {"validation": {"by": "event"}}, DataError, "names no event"),
        ({}, {"validation": {"groups": ["DD.ONE"]}}, UsageError, "no such station"),
        ({}, {"validation": {"groups": list(STATIONS)}}, UsageError, "no station is left"),
        (
            {"station_code": "X", "station_network_code": "Y"},
            {"validation": {"fraction": 0.2}},
            UsageError,
            "cannot be split",
        ),
        ({}, {"input": {"components": ["1", "Z"]}}, MismatchError, "no such component"),
        ({"trace_sampling_rate_hz": ""}, {}, DataError, "do not tell their sampling rate"),
        ({}, {"input": {"window_s": 40}}, DataError, "too few samples"),
    ],
)
def test_windows_that_cannot_be_asked_are_refused(
    survey: str, tmp_path: Path, columns: dict[str, Any], changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    url = write_events(tmp_path, **columns) if columns else survey
    with pytest.raises(error, match=text):
        WindowsTask(job(url, **changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"p_between": [0.9, 0.1]}, "the smaller first"),
        ({"input": {"mean": 3.0}}, "follow from"),
        ({"training": {"patch": [40]}}, "as long as data.input.window_s"),
        ({"ask": "magnitude", "training": {"loss": "bce"}}, "bce is of whole windows of two classes"),
        ({"ask": "magnitude", "training": {"loss": "focal"}}, "Huber"),
        ({"validation": {"by": "window"}}, "station"),
    ],
)
def test_wrong_jobs_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        job("x", **changes)


@pytest.mark.usefixtures("ray_cluster")
def test_training_ends_in_a_bundle_that_prepares_windows(survey: str, tmp_path: Path) -> None:
    given = job(survey, training={"loss": "bce", "steps_per_epoch": 30}).model_copy(
        update={"output": str(tmp_path / "bundle")}
    )
    bundle = load_bundle(train(given))
    spec = bundle.spec
    assert [entry.name for entry in spec.classes] == ["noise", "event"] and spec.number is None
    assert spec.model["classes"] == 1 and spec.reach.unbounded == (0,) and spec.axes == ("time",)
    assert spec.metrics["validation"]["pixel_accuracy"] > 0.85
    assert spec.provenance["surveys"][0]["records"] == 24
    assert spec.windows is not None and spec.windows.sampling_rate_hz == RATE_HZ
    source = WindowsTask(given).source({"input": spec.windows.model_dump()})
    records = source.records
    pair = np.stack([records.read(2, start) for start in (0, P_SAMPLE - 100)])
    told = answer_windows(bundle, pair, RATE_HZ)
    assert told.shape == (2, 2) and told[1, EVENT] > 0.5 > told[0, EVENT]
    np.testing.assert_allclose(told.sum(axis=1), 1, rtol=1e-5)
    with pytest.raises(MismatchError, match="not what the bundle was trained on"):
        answer_windows(bundle, pair, 100.0)


@pytest.mark.usefixtures("ray_cluster")
def test_network_of_magnitudes_tells_in_which_scale_it_answers(survey: str, tmp_path: Path) -> None:
    given = job(survey, "magnitude", input=PICTURE).model_copy(update={"output": str(tmp_path / "bundle")})
    bundle = load_bundle(train(given))
    spec = bundle.spec
    assert spec.classes == () and spec.axes == ("frequency", "time") and spec.number is not None
    task = WindowsTask(given)
    labels = [task.records.label(k) for k in task.records.usable if task.records.groups[k] != "BB.TWO"]
    assert spec.number.mean == pytest.approx(np.mean(labels)) and spec.number.name == "magnitude"
    assert spec.windows is not None and spec.windows.amplitude == "kept" and spec.windows.mean is not None
    assert spec.metrics["validation"]["count"] == 4
    held_out = [k for k in task.records.usable if task.records.groups[k] == "BB.TWO"]
    source = task.source(task.fit())
    windows = np.stack([task.records.read(cut.record, cut.start) for k in held_out for cut in source.fixed(k)])
    errors = answer_windows(bundle, windows, RATE_HZ) - [task.records.label(k) for k in held_out]
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(spec.metrics["validation"]["rmse"], rel=1e-3)

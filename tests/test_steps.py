"""Each step of a chain against the library that defines it, and blocks of a survey against the whole of it."""

from __future__ import annotations

import functools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas
import pytest
import scipy.fft
import scipy.ndimage
import scipy.signal
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from geobatch.errors import DataError, UsageError
from geobatch.job import parse_job
from geobatch.preprocess import STEPS, Chain, prepare, read_region
from geobatch.preprocess.despike import without_spikes
from geobatch.preprocess.lines import bridge, window_sums

AXES = ("inline", "crossline", "sample")
RATE_HZ = 250.0
EVERY: list[dict[str, Any]] = [
    {"step": "fill", "method": "interpolate", "along": "inline", "max_gap_traces": 2},
    {"step": "fill", "method": "constant", "value": -3},
    {"step": "clip", "percentile": 95},
    {"step": "scale", "method": "rms"},
    {"step": "balance", "method": "standard"},
    {"step": "balance", "along": "crossline"},
    {"step": "agc", "window_ms": 40},
    {"step": "agc", "window_cells": 7, "along": "inline"},
    {"step": "despike", "window_cells": 5, "threshold": 2},
    {"step": "despike", "window_ms": 30, "threshold": 2, "replace": "mask"},
    {"step": "bandpass", "low_hz": 8, "high_hz": 60},
    {"step": "bandpass", "high_hz": 40, "order": 2},
    {"step": "detrend"},
    {"step": "detrend", "method": "constant", "along": "crossline"},
    {"step": "whiten", "low_hz": 5, "high_hz": 90, "smooth_hz": 20},
    {"step": "envelope"},
    {"step": "phase"},
    {"step": "frequency"},
]
KEEPS_INVALID = [step for step in EVERY if step["step"] != "fill" and step.get("replace") != "mask"]


def name_of(step: dict[str, Any]) -> str:
    return "-".join(map(str, step.values()))


def volume(shape: tuple[int, ...] = (7, 9, 41), seed: int = 0, gaps: float = 0.2) -> xr.DataArray:
    generator = np.random.default_rng(seed)
    values = generator.normal(0.5, 100, shape).cumsum(axis=2).astype(np.float32)
    values[generator.random(shape) < gaps / 4] = np.nan
    values[generator.random(shape[:2]) < gaps] = np.nan
    coords = {
        "inline": np.arange(shape[0]) * 2 + 100,
        "crossline": np.arange(shape[1]) + 500,
        "sample": ("sample", np.arange(shape[2]) * 4.0 + 100, {"units": "ms", "long_name": "two-way time"}),
        "cdp_x": (("inline", "crossline"), generator.random(shape[:2])),
    }
    return xr.DataArray(values, coords, AXES, name="amplitude", attrs={"units": "1"})


def chain_of(*steps: dict[str, Any], x: xr.DataArray) -> Chain:
    return Chain.model_validate(list(steps)).fit(x)


def whole(x: xr.DataArray, *steps: dict[str, Any]) -> npt.NDArray[np.float32]:
    return np.asarray(chain_of(*steps, x=x).apply(x.chunk()).compute(scheduler="synchronous").values)


def valid_traces(**axes: Any) -> xr.DataArray:
    return volume(gaps=0, **axes)


def rms(values: npt.NDArray[Any]) -> float:
    return float(np.sqrt(np.nanmean(np.square(values, dtype=np.float64)))) or 1.0


def rolling(function: str, half: int) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    def of_line(line: npt.NDArray[Any]) -> npt.NDArray[Any]:
        window = pandas.Series(line.astype(np.float64)).rolling(2 * half + 1, center=True, min_periods=1)
        return np.asarray(getattr(window, function)())

    return of_line


def agc_of_pandas(x: npt.NDArray[Any], half: int) -> npt.NDArray[Any]:
    mean_square = np.apply_along_axis(rolling("mean", half), 2, np.square(x.astype(np.float64)))
    return x / np.sqrt(mean_square)


def hampel_of_pandas(x: npt.NDArray[Any], half: int, threshold: float) -> npt.NDArray[Any]:
    def of_line(line: npt.NDArray[Any]) -> npt.NDArray[Any]:
        median = rolling("median", half)(line)
        windows = [line[max(0, i - half) : i + half + 1] for i in range(line.size)]
        pairs = zip(windows, median, strict=True)
        spread = [np.nan if np.isnan(m) else np.nanmedian(np.abs(window - m)) for window, m in pairs]
        return np.where(np.abs(line - median) > threshold * 1.4826 * np.array(spread), median, line)

    return np.apply_along_axis(of_line, 2, x.astype(np.float64))


def whitened_by_definition(x: npt.NDArray[Any], low: float, high: float, smooth: float) -> npt.NDArray[Any]:
    n = x.shape[2]
    spectrum, f = np.fft.rfft(x.astype(np.float64), axis=2), np.fft.rfftfreq(n, 1 / RATE_HZ)
    smoothed = np.apply_along_axis(rolling("mean", round(smooth * n / RATE_HZ / 2)), 2, np.abs(spectrum))
    ramps = [np.clip(1 + (f - low) / 2, 0, 1), np.clip(1 + (high - f) / 2, 0, 1)]
    gain = np.prod([0.5 - 0.5 * np.cos(np.pi * ramp) for ramp in ramps], axis=0)
    return np.fft.irfft(spectrum / np.maximum(smoothed, 1e-3 * smoothed.max(axis=2, keepdims=True)) * gain, n) * n**0.5


def filtered_by_scipy(x: npt.NDArray[Any], cutoffs: Any, kind: str, order: int = 4) -> npt.NDArray[Any]:
    sections = scipy.signal.butter(order, cutoffs, kind, fs=RATE_HZ, output="sos")
    return np.asarray(scipy.signal.sosfiltfilt(sections, x.astype(np.float64), axis=2))


def unwrapped_frequency(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    phase = np.unwrap(np.angle(scipy.signal.hilbert(x.astype(np.float64), axis=2)), axis=2)
    return np.asarray(np.gradient(phase, 1 / RATE_HZ, axis=2) / (2 * np.pi))


REFERENCES: list[tuple[dict[str, Any], Callable[[npt.NDArray[Any]], npt.NDArray[Any]]]] = [
    ({"step": "bandpass", "low_hz": 8, "high_hz": 60}, lambda x: filtered_by_scipy(x, [8, 60], "bandpass")),
    ({"step": "bandpass", "low_hz": 8}, lambda x: filtered_by_scipy(x, 8, "highpass")),
    ({"step": "bandpass", "high_hz": 40, "order": 2}, lambda x: filtered_by_scipy(x, 40, "lowpass", 2)),
    ({"step": "detrend"}, lambda x: scipy.signal.detrend(x.astype(np.float64), axis=2)),
    ({"step": "detrend", "method": "constant"}, lambda x: scipy.signal.detrend(x.astype(np.float64), 2, "constant")),
    ({"step": "envelope"}, lambda x: np.abs(scipy.signal.hilbert(x.astype(np.float64), axis=2))),
    ({"step": "phase"}, lambda x: np.angle(scipy.signal.hilbert(x.astype(np.float64), axis=2))),
    ({"step": "frequency"}, unwrapped_frequency),
    ({"step": "agc", "window_ms": 40}, functools.partial(agc_of_pandas, half=5)),
    ({"step": "despike", "window_cells": 7, "threshold": 2}, functools.partial(hampel_of_pandas, half=3, threshold=2)),
    ({"step": "whiten", "low_hz": 10, "high_hz": 80, "smooth_hz": 20}, lambda x: whitened_by_definition(x, 10, 80, 20)),
    ({"step": "balance"}, lambda x: x / np.sqrt(np.square(x.astype(np.float64)).mean(axis=2, keepdims=True))),
    ({"step": "balance", "method": "standard"}, lambda x: scipy.stats.zscore(x.astype(np.float64), axis=2)),
]


@pytest.mark.parametrize(("step", "reference"), REFERENCES, ids=[name_of(step) for step, _ in REFERENCES])
def test_step_equals_its_reference(step: dict[str, Any], reference: Callable[..., npt.NDArray[Any]]) -> None:
    x = valid_traces(shape=(5, 6, 90))
    expected = reference(x.values)
    assert np.abs(whole(x, step) - expected).max() <= 1e-6 * rms(expected)


@pytest.mark.parametrize("step", [REFERENCES[8], REFERENCES[9]], ids=["agc", "despike"])
def test_windows_skip_invalid_samples_as_pandas_does(step: tuple[dict[str, Any], Callable[..., Any]]) -> None:
    x = volume(gaps=0.5)
    expected = step[1](x.values)
    found = whole(x, step[0])
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(x.values))
    np.testing.assert_allclose(found, np.where(np.isfinite(x.values), expected, np.nan), rtol=1e-6, atol=1e-6)


def test_every_step_of_the_registry_is_held_by_the_tests_of_blocks() -> None:
    assert {step["step"] for step in EVERY} | {"crop"} == set(STEPS)


@settings(max_examples=60)
@given(data=st.data())
def test_block_equals_same_region_of_whole(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 6)), data.draw(st.integers(1, 7)), data.draw(st.integers(2, 60)))
    x = volume(shape, data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0.0, 0.2, 0.7])))
    if not np.isfinite(x.values).any():
        return
    steps = data.draw(st.lists(st.sampled_from(EVERY), min_size=1, max_size=3))
    try:
        chain = chain_of(*steps, x=x)
    except DataError:  # Nothing varies, or nothing is left, for `scale` to be fitted to.
        return
    chunks = {axis: data.draw(st.integers(1, size)) for axis, size in zip(AXES, shape, strict=True)}
    region = []
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        region.append(slice(start, data.draw(st.integers(start + 1, size))))
    chunked = chain.apply(x.chunk(chunks))
    assert chunked.chunks == x.chunk(chunks).chunks
    one = chain.apply(x.chunk()).compute(scheduler="synchronous").values
    np.testing.assert_array_equal(chunked.compute(scheduler="synchronous").values.view("u4"), one.view("u4"))
    block = prepare(read_region(x, chain, region), chain)
    np.testing.assert_array_equal(block.view("u4"), one[tuple(region)].view("u4"))


@pytest.mark.parametrize("step", KEEPS_INVALID, ids=name_of)
def test_invalid_samples_stay_invalid_and_poison_nothing(step: dict[str, Any]) -> None:
    x = volume(gaps=0.4)
    np.testing.assert_array_equal(np.isfinite(whole(x, step)), np.isfinite(x.values))


@pytest.mark.parametrize("step", EVERY, ids=name_of)
def test_steps_keep_coordinates_attributes_and_chunks(step: dict[str, Any]) -> None:
    x = volume()
    chunked = x.chunk({"inline": 3, "sample": 10})
    prepared = chain_of(step, x=x).apply(chunked)
    assert (prepared.dtype, prepared.attrs, prepared.name) == (np.float32, x.attrs, x.name)
    assert prepared.chunks == chunked.chunks
    xr.testing.assert_identical(prepared.coords.to_dataset(), x.coords.to_dataset())


@pytest.mark.parametrize("step", [step for step in KEEPS_INVALID if step["step"] not in ("clip", "scale")], ids=name_of)
def test_dead_traces_stay_invalid(step: dict[str, Any]) -> None:
    x = valid_traces()
    live = np.ones(x.shape[:2], bool)
    live[2:4, 3] = False
    marked = x.assign_coords(live_mask=(AXES[:2], live))
    found = whole(marked, step)
    np.testing.assert_array_equal(np.isfinite(found).all(axis=2), live)
    np.testing.assert_array_equal(found, whole(x.where(xr.DataArray(live, dims=AXES[:2])), step))


@pytest.mark.parametrize("step", EVERY, ids=name_of)
def test_fitted_step_survives_json(step: dict[str, Any]) -> None:
    chain = chain_of(step, x=volume())
    assert chain.fitted
    assert Chain.model_validate_json(chain.model_dump_json()) == chain


def test_gap_is_bridged_by_a_straight_line_before_a_filter() -> None:
    x = valid_traces(shape=(1, 1, 80))
    gap = x.copy(data=x.values.copy())
    gap[0, 0, 30:34] = np.nan
    line = x.copy(data=x.values.copy())
    line[0, 0, 29:35] = np.linspace(x.values[0, 0, 29], x.values[0, 0, 34], 6)
    step = {"step": "bandpass", "high_hz": 50}
    expected = whole(line, step)
    expected[0, 0, 30:34] = np.nan
    np.testing.assert_allclose(whole(gap, step), expected, rtol=1e-5)


@settings(max_examples=50)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=30).filter(lambda v: any(v)))
def test_bridge_equals_numpy_interpolation(values: list[float | None]) -> None:
    line = np.array([np.nan if v is None else v for v in values])[None]
    valid, places = np.isfinite(line), np.arange(line.size)
    expected = np.interp(places, places[valid[0]], line[valid])
    filled = np.where(valid, line, 0)
    bridge(filled, valid)
    np.testing.assert_allclose(filled[0], expected, rtol=1e-9, atol=1e-6)


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(0, 60))
def test_window_sums_equal_convolution(length: int, half: int) -> None:
    line = np.random.default_rng(length).integers(0, 1000, length).astype(np.float64)
    expected = np.convolve(line, np.ones(2 * half + 1))[half : half + length]
    np.testing.assert_array_equal(window_sums(line[None], half)[0], expected)


def test_gain_beside_a_burst_is_exact() -> None:
    x = np.full((1, 1, 400), 1e-6, np.float32)
    x[0, 0, :100] = 1e9
    quiet = xr.DataArray(x, dims=AXES)
    np.testing.assert_allclose(whole(quiet, {"step": "agc", "window_cells": 21})[0, 0, 150:], 1, rtol=1e-6)


def test_a_spike_is_replaced_and_the_rest_is_left() -> None:
    line = np.sin(np.arange(60) / 5)[None]
    spiked = line.copy()
    spiked[0, 20] = 50
    calm = without_spikes(spiked, np.ones(line.shape, bool), half=3, threshold=5)
    assert abs(calm[0, 20] - line[0, 20]) < 0.2
    np.testing.assert_array_equal(np.delete(calm, 20), np.delete(line, 20))


def test_zero_phase_filter_leaves_a_symmetric_wavelet_in_its_place() -> None:
    wavelet = np.zeros((1, 1, 201), np.float32)
    wavelet[0, 0, 100] = 1
    x = xr.DataArray(wavelet, {"sample": np.arange(201) * 4.0}, AXES)
    filtered = whole(x, {"step": "bandpass", "low_hz": 10, "high_hz": 60})[0, 0]
    assert filtered.argmax() == 100
    np.testing.assert_allclose(filtered, filtered[::-1], atol=1e-5)


def test_attributes_of_a_cosine() -> None:
    time_s = np.arange(500) / RATE_HZ
    x = xr.DataArray((3 * np.cos(2 * np.pi * 25 * time_s))[None, None].astype(np.float32), dims=AXES)
    x = x.assign_coords(sample=time_s * 1000)
    np.testing.assert_allclose(whole(x, {"step": "envelope"}), 3, rtol=1e-5)
    np.testing.assert_allclose(whole(x, {"step": "frequency"}), 25, rtol=1e-4)
    np.testing.assert_allclose(np.cos(whole(x, {"step": "phase"})), x.values / 3, atol=1e-5)


def test_whitened_noise_of_any_colour_has_a_flat_spectrum() -> None:
    x = valid_traces(shape=(8, 8, 512))
    white = whole(x, {"step": "whiten", "smooth_hz": 5})
    power = np.square(np.abs(np.fft.rfft(white, axis=2))).mean(axis=(0, 1))[8:-9].reshape(-1, 16).mean(axis=1)
    assert power.max() < 1.5 * power.min()
    assert rms(white) == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        ({"step": "bandpass", "high_hz": 125}, r"Nyquist.*found 125 Hz.*below 125 Hz"),
        ({"step": "bandpass", "low_hz": 300}, r"low_hz.*found 300 Hz"),
        ({"step": "whiten", "high_hz": 200}, r"Nyquist"),
        ({"step": "envelope", "along": "offset"}, r"no axis 'offset'.*inline, crossline, sample"),
        ({"step": "agc", "window_ms": 40, "along": "station"}, r"interval along station is unknown"),
    ],
    ids=str,
)
def test_steps_that_make_no_sense_with_the_survey_are_refused(step: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        whole(volume(), step)


@pytest.mark.parametrize(
    "step",
    [{"step": "bandpass", "high_hz": 9}, {"step": "agc", "window_ms": 9}, {"step": "frequency"}, {"step": "whiten"}],
    ids=name_of,
)
def test_hz_and_ms_on_a_depth_axis_are_refused_with_the_remedy(step: dict[str, Any]) -> None:
    x = volume()
    x["sample"].attrs["units"] = "m"
    with pytest.raises(UsageError, match=r"no time.*steps of 4 m.*survey in time"):
        Chain.model_validate([step]).fit(x)


def test_windows_in_cells_serve_any_axis() -> None:
    x = volume()
    x["sample"].attrs["units"] = "m"
    assert np.isfinite(whole(x, {"step": "agc", "window_cells": 9})).any()


def test_sampling_comes_from_coordinate_or_attribute_or_the_step() -> None:
    x = volume(gaps=0)
    step = {"step": "bandpass", "high_hz": 50}
    expected = whole(x, step)
    bare = x.drop_vars("sample")
    rated = bare.assign_attrs(sampling_rate_hz=RATE_HZ)
    np.testing.assert_array_equal(whole(rated, step), expected)
    np.testing.assert_array_equal(whole(bare, {**step, "sampling": {"interval": 4, "unit": "ms"}}), expected)
    times = x.assign_coords(sample=np.datetime64("2020-01-01", "ns") + np.arange(41) * np.timedelta64(4, "ms"))
    np.testing.assert_array_equal(whole(times, step), expected)
    np.testing.assert_array_equal(chain_of(step, x=x).apply(bare.chunk()).values, expected)


def test_uneven_axes_are_refused() -> None:
    x = volume()
    uneven = x.assign_coords(sample=x.sample.values + np.arange(41) ** 2)
    with pytest.raises(DataError, match="not evenly spaced"):
        Chain.model_validate([{"step": "frequency"}]).fit(uneven)


def test_chain_fitted_to_one_interval_is_sampled_anew_for_another() -> None:
    x, fine = volume(), volume().assign_coords(sample=np.arange(41) * 2.0)
    fine["sample"].attrs["units"] = "ms"
    chain = chain_of({"step": "clip"}, {"step": "agc", "window_ms": 40}, x=x)
    with pytest.raises(UsageError, match=r"another sample interval.*2 ms.*4 ms"):
        chain.apply(fine.chunk())
    again = chain.sampled(fine)
    assert (chain.halo, again.halo) == ({"sample": (5, 5)}, {"sample": (10, 10)})
    assert again.steps[0] == chain.steps[0]


def test_chain_declares_axes_it_needs_whole() -> None:
    chain = Chain.model_validate([{"step": "fill"}, {"step": "envelope"}, {"step": "balance", "along": "inline"}])
    assert chain.whole_axes == {"sample", "inline"}
    assert chain.reach(AXES, (10, 20, 30)) == ((10, 10), (5, 5), (30, 30))
    raw = read_region(volume((7, 30, 41)), chain, (slice(2, 3), slice(10, 12), slice(5, 6)))
    assert raw.values.shape == (7, 12, 41)


def test_steps_of_unknown_name_are_told_with_the_nearest() -> None:
    job = {"job": "train", "data": [{"survey": "a", "labels": "b"}], "output": "c"}
    with pytest.raises(UsageError, match="Did you mean bandpass"):
        parse_job({**job, "preprocess": [{"step": "bandpas", "low_hz": 3}]})
    with pytest.raises(UsageError, match="Did you mean low_hz"):
        parse_job({**job, "preprocess": [{"step": "bandpass", "low_hs": 3}]})


@pytest.mark.parametrize(
    "step",
    [
        {"step": "bandpass"},
        {"step": "bandpass", "low_hz": 50, "high_hz": 40},
        {"step": "bandpass", "low_hz": -1},
        {"step": "agc"},
        {"step": "agc", "window_ms": 40, "window_cells": 3},
        {"step": "agc", "window_cells": 4},
        {"step": "fill", "method": "constant"},
        {"step": "fill", "value": 3},
        {"step": "whiten", "water": 0},
    ],
    ids=name_of,
)
def test_parameters_that_contradict_each_other_are_refused(step: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Chain.model_validate([step])


def test_unfitted_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="no statistics yet"):
        Chain.model_validate([{"step": "bandpass", "low_hz": 5}]).apply(volume().chunk())
    with pytest.raises(UsageError, match="no statistics yet"):
        _ = Chain.model_validate([{"step": "agc", "window_ms": 50}]).halo


def test_traces_of_few_samples_are_filtered() -> None:
    for length in (2, 3, 5):
        x = volume((3, 3, length), gaps=0)
        for step in EVERY:
            assert np.isfinite(whole(x, step)).any()


@pytest.mark.parametrize("steps", [*([step] for step in EVERY), [EVERY[0], EVERY[10], EVERY[6], EVERY[2]]], ids=len)
def test_a_block_is_prepared_in_the_memory_that_plans_project(steps: list[dict[str, Any]]) -> None:
    x = volume((64, 64, 300), gaps=0.05)
    chain = chain_of(*steps, x=x)
    raw = read_region(x.copy(deep=True), chain, [slice(0, n) for n in x.shape])
    prepare(raw, chain)
    tracemalloc.start()
    prepare(raw, chain)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # `geobatch.plan` counts four copies in float32, of which the raw values are one.
    assert peak <= 3 * x.nbytes

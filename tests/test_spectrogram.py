"""Spectrograms against scipy, on arrays and on Dask, with invalid samples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import xarray as xr

from geobatch.errors import UsageError
from geobatch.preprocess.spectrogram import Scaling, spectrogram


def waveforms(samples: int = 1000) -> xr.DataArray:
    values = np.random.default_rng(0).normal(size=(2, 3, samples)).astype(np.float32)
    time = ("time", np.arange(samples) * 0.01, {"units": "s"})
    coords = {"station": ["a", "b"], "component": list("ENZ"), "time": time}
    return xr.DataArray(values, coords, ("station", "component", "time"), attrs={"units": "counts"})


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
@pytest.mark.parametrize(("scaling", "mode"), [("magnitude", "magnitude"), ("density", "psd")])
def test_spectrogram_equals_scipy(scaling: Scaling, mode: str, overlap: float) -> None:
    x = waveforms()
    found = spectrogram(x, window_s=0.64, overlap=overlap, along="time", scaling=scaling)
    scale = "spectrum" if mode == "magnitude" else "density"
    f, t, expected = scipy.signal.spectrogram(
        x.values.astype(np.float64), 100, "hann", 64, int(64 * overlap), detrend=False, mode=mode, scaling=scale
    )
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found["frequency"], f)
    np.testing.assert_allclose(found["time"], t)
    assert found.dims == ("station", "component", "frequency", "time")
    assert found["frequency"].attrs["units"] == "Hz" and found["time"].attrs["units"] == "s"
    assert found["component"].values.tolist() == list("ENZ") and found.attrs == x.attrs


def test_dask_gives_the_same_lazily() -> None:
    x = waveforms()
    lazy = spectrogram(x.chunk({"station": 1, "time": 300}), window_s=0.5, along="time")
    assert lazy.chunks is not None
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), spectrogram(x, window_s=0.5, along="time"))


def test_windows_more_than_half_invalid_are_invalid_and_others_are_not() -> None:
    x = waveforms()
    x[0, 0, 200:400] = np.nan
    x[1] = np.nan
    found = spectrogram(x, window_s=1.0, overlap=0, along="time")
    invalid = np.isnan(found.values)
    assert invalid[0, 0].all(axis=0).tolist() == [False, False, True, True] + [False] * 6
    assert invalid[1].all() and not invalid[0, 1:].any()
    assert (invalid.all(axis=2) == invalid.any(axis=2)).all()


def test_a_tone_stands_at_its_frequency_and_half_its_amplitude() -> None:
    time_ms = np.arange(500) * 4.0
    x = xr.DataArray(6 * np.sin(2 * np.pi * 25 * time_ms / 1000), {"sample": ("sample", time_ms, {"units": "ms"})})
    found = spectrogram(x, window_s=0.4)
    assert set(found["frequency"].values[found.argmax("frequency")]) == {25.0}
    assert float(found.max()) == pytest.approx(3, rel=0.01)
    assert found["sample"].values[0] == 200


def test_rate_in_attributes_gives_seconds_from_the_start() -> None:
    x = waveforms().drop_vars("time").assign_attrs(sampling_rate_hz=100.0)
    found = spectrogram(x, window_s=0.64, along="time")
    np.testing.assert_allclose(found["time"], spectrogram(waveforms(), window_s=0.64, along="time")["time"])
    assert "sampling_rate_hz" not in found.attrs


def test_windows_that_do_not_fit_and_axes_of_no_time_are_refused() -> None:
    with pytest.raises(UsageError, match="2000 samples a window"):
        spectrogram(waveforms(), window_s=20, along="time")
    with pytest.raises(UsageError, match="overlap 1"):
        spectrogram(waveforms(), window_s=1, overlap=1, along="time")
    with pytest.raises(UsageError, match="axis of time"):
        spectrogram(waveforms(), window_s=1, along="component")

"""Another sample interval: equal to scipy on whole traces, and any region of it equal to the whole."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from surveys import write_survey
from test_steps import AXES, volume

from geobatch.errors import UsageError
from geobatch.preprocess import Chain, prepare, read_region
from geobatch.preprocess.resample import Resample
from geobatch.survey import open_survey, valid_volume


def made(x: xr.DataArray, interval_ms: float, **keys: str) -> xr.DataArray:
    return Resample(interval_ms=interval_ms, **keys).apply(x)


@pytest.mark.parametrize(("interval_ms", "up", "down"), [(2, 2, 1), (8, 1, 2), (3, 4, 3), (5, 4, 5), (4, 1, 1)])
def test_resampled_traces_equal_scipy(interval_ms: float, up: int, down: int) -> None:
    x = volume((3, 4, 97), gaps=0)
    expected = scipy.signal.resample_poly(x.values.astype(np.float64), up, down, axis=2, padtype="edge")
    found = made(x, interval_ms)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(found["sample"].values, 100 + interval_ms * np.arange(expected.shape[2]))
    assert found["sample"].attrs == x["sample"].attrs and found.attrs == x.attrs
    xr.testing.assert_identical(found["cdp_x"], x["cdp_x"])


@settings(max_examples=30)
@given(data=st.data())
def test_region_equals_same_region_of_whole(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)), data.draw(st.integers(2, 150)))
    x = volume(shape, data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0.0, 0.3])))
    interval_ms = data.draw(st.sampled_from([1, 2, 3, 5, 6, 8, 12]))
    lazy = made(x, interval_ms)
    whole = lazy.values
    region = []
    for size in lazy.shape:
        start = data.draw(st.integers(0, size - 1))
        region.append(slice(start, data.draw(st.integers(start + 1, size))))
    part = prepare(read_region(lazy, Chain(), region), Chain())
    np.testing.assert_array_equal(part.view("u4"), whole[tuple(region)].view("u4"))
    chunks = {axis: data.draw(st.integers(1, size)) for axis, size in zip(AXES, shape, strict=True)}
    chunked = made(x.chunk(chunks), interval_ms).compute(scheduler="synchronous").values
    np.testing.assert_array_equal(chunked.view("u4"), whole.view("u4"))


def test_a_tone_above_the_new_nyquist_frequency_is_gone_and_one_below_stays() -> None:
    time_s = np.arange(1000) * 0.004
    low, high = np.sin(2 * np.pi * 10 * time_s), np.sin(2 * np.pi * 100 * time_s)
    x = xr.DataArray((low + high)[None, None].astype(np.float32), {"sample": time_s * 1000}, AXES)
    found = made(x, 8).values[0, 0, 50:-50]
    np.testing.assert_allclose(found, low[::2][50:-50], atol=5e-3)


def test_invalid_samples_are_bridged_and_stay_invalid() -> None:
    x = volume((1, 1, 80), gaps=0)
    gap = x.copy(data=x.values.copy())
    gap[0, 0, 30:33] = np.nan
    found = made(gap, 2).values[0, 0]
    assert np.flatnonzero(np.isnan(found)).tolist() == [*range(59, 65)]
    assert np.isnan(made(gap * np.nan, 2).values).all()


def test_any_indexing_reads_what_numpy_would(tmp_path: Path) -> None:
    write_survey(str(tmp_path / "s"), volume((6, 7, 40), gaps=0.1).values)
    lazy = made(valid_volume(open_survey(str(tmp_path / "s"))), 3)
    whole = lazy.values
    assert lazy.chunks is None and not isinstance(lazy.variable._data, np.ndarray)
    backwards = slice(None, None, -3)
    for key in [(2, slice(None), slice(5, 30, 4)), (slice(4, 1, -1), -1, 7), ([0, 3], slice(2, 5), backwards)]:
        np.testing.assert_array_equal(lazy[key].values, whole[key])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy)).values, whole)
    chain = Chain.model_validate([{"step": "scale"}, {"step": "bandpass", "high_hz": 100}]).fit(lazy)
    part = prepare(read_region(lazy, chain, (slice(1, 3), slice(2, 5), slice(10, 20))), chain)
    np.testing.assert_array_equal(part, chain.apply(lazy.chunk()).values[1:3, 2:5, 10:20])


def test_start_and_rate_in_attributes_are_kept() -> None:
    x = volume(gaps=0).drop_vars("sample").assign_attrs(sampling_rate_hz=250.0)
    assert made(x, 2).attrs["sampling_rate_hz"] == 500


def test_intervals_that_make_no_sense_are_refused() -> None:
    x = volume()
    with pytest.raises(UsageError, match="no simple ratio"):
        made(x, 0.001)
    with pytest.raises(UsageError, match="no axis"):
        made(x, 2, along="depth")
    with pytest.raises(UsageError, match=r"makes no sense along sample.*steps of 4 ms"):
        Resample(interval_m=2).apply(x)
    x["sample"].attrs["units"] = "m"
    assert Resample(interval_m=2).apply(x).shape == (7, 9, 82)

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dask
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from geobatch.errors import DataError, UsageError
from geobatch.preprocess import Chain, Clip, Crop, Fill, Scale, moments, percentiles, prepare, read_region, statistics
from geobatch.preprocess.statistics import reading_chunks
from geobatch.shards import ArraySpec, create_arrays, finish_group
from geobatch.survey import open_survey, valid_volume

AXES = ("inline", "crossline", "sample")
FITTED = [
    {"step": "fill", "method": "interpolate", "along": "crossline", "max_gap_traces": 3},
    {"step": "fill", "method": "interpolate", "along": "inline", "max_gap_traces": 2},
    {"step": "clip", "percentile": 95},
    {"step": "scale", "method": "standard"},
]


def volume(shape: tuple[int, ...] = (13, 17, 11), seed: int = 0, gaps: float = 0.3) -> xr.DataArray:
    generator = np.random.default_rng(seed)
    values = generator.normal(3, 100, shape).astype(np.float32)
    values[generator.random(shape) < 0.02] = np.nan
    values[generator.random(shape[:2]) < gaps] = np.nan
    coords = {
        "inline": np.arange(shape[0], dtype=np.int32) * 2 + 100,
        "crossline": np.arange(shape[1], dtype=np.int32) + 500,
        "sample": np.arange(shape[2]) * 4.0,
        "cdp_x": (("inline", "crossline"), generator.random(shape[:2])),
    }
    return xr.DataArray(values, coords, AXES, name="amplitude", attrs={"units": "1"})


def prepared_region(x: xr.DataArray, chain: Chain, region: Sequence[slice]) -> npt.NDArray[np.float32]:
    return prepare(read_region(chain.crop(x), chain, region), chain)


def bits(x: xr.DataArray) -> npt.NDArray[np.uint32]:
    return np.asarray(x.compute(scheduler="synchronous").values).view(np.uint32)


def filled_line(values: list[float], reach: int) -> list[float]:
    x = xr.DataArray(np.array(values, dtype=np.float32).reshape(1, -1, 1), dims=AXES).chunk()
    return [float(v) for v in Fill(max_gap_traces=reach).apply(x).compute().values.ravel()]


def test_a_gap_is_filled_by_the_straight_line_between_its_ends() -> None:
    nan = np.nan
    assert filled_line([1, nan, nan, 4], 3) == [1, 2, 3, 4]


def test_a_sample_with_one_valid_neighbour_in_reach_takes_its_value() -> None:
    nan = np.nan
    np.testing.assert_equal(filled_line([nan, nan, nan, 7, nan, nan, nan], 2), [nan, 7, 7, 7, 7, 7, nan])


def test_zero_makes_gaps_valid_and_mask_leaves_them() -> None:
    x = volume().chunk()
    zeroed, masked = Fill(method="zero").apply(x), Fill(method="mask").apply(x)
    np.testing.assert_array_equal(zeroed.values, np.nan_to_num(x.values, nan=0))
    np.testing.assert_array_equal(masked.values, x.values)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_block_equals_same_region_of_whole(data: st.DataObject) -> None:
    x = volume(seed=data.draw(st.integers(0, 5)), gaps=data.draw(st.sampled_from([0.0, 0.3, 0.8])))
    picked = data.draw(st.lists(st.sampled_from(FITTED), min_size=1, max_size=4))
    crop = data.draw(st.sampled_from([[], [{"step": "crop", "inline": [104, 122], "sample": [4, 36]}]]))
    chain = Chain.model_validate(crop + picked).fit(x.chunk({"inline": 5, "crossline": 6}))
    cropped = chain.crop(x)
    # Chunks thinner than the halo of 3 + 2 among them.
    thinnest = (2, 1, 5)
    chunks = {
        axis: data.draw(st.integers(least, size))
        for axis, least, size in zip(AXES, thinnest, cropped.shape, strict=True)
    }
    region = []
    for size in cropped.shape:
        start = data.draw(st.integers(0, size - 1))
        region.append(slice(start, data.draw(st.integers(start + 1, size))))
    whole = chain.apply(cropped.chunk(chunks))
    assert whole.chunks == cropped.chunk(chunks).chunks
    block = prepared_region(x, chain, region)
    np.testing.assert_array_equal(block.view(np.uint32), bits(whole)[tuple(region)])


def test_steps_keep_coordinates_attributes_and_type() -> None:
    x = volume()
    prepared = Chain.model_validate(FITTED).fit(x).apply(x.chunk({"inline": 4}))
    assert prepared.dtype == np.float32
    assert prepared.attrs == x.attrs
    assert prepared.name == x.name
    xr.testing.assert_equal(prepared.coords.to_dataset(), x.coords.to_dataset())


def test_dead_traces_are_invalid_in_statistics_and_blocks() -> None:
    x = volume(gaps=0)
    live = np.ones(x.shape[:2], dtype=bool)
    live[3:6, 4] = False
    noisy = x.copy(data=np.where(live[..., None], x.values, np.float32(1e9)))
    marked = noisy.assign_coords(live_mask=(("inline", "crossline"), live))
    chain = Chain.model_validate([{"step": "scale"}])
    assert chain.fit(marked) == chain.fit(x.where(xr.DataArray(live, dims=AXES[:2])))
    block = prepared_region(marked, chain.fit(marked), (slice(2, 7), slice(4, 5), slice(0, 11)))
    assert np.isnan(block[1:4]).all()
    np.testing.assert_array_equal(np.isnan(block[[0, 4]]), np.isnan(x.values[[2, 6], 4:5]))


def test_infinite_samples_are_invalid() -> None:
    x = volume(gaps=0)
    x[2, 3, 4] = np.inf
    chain = Chain.model_validate([{"step": "clip"}, {"step": "scale"}]).fit(x)
    prepared = chain.apply(x.chunk())
    assert np.isnan(prepared.values[2, 3, 4])
    np.testing.assert_array_equal(np.isfinite(prepared.values), np.isfinite(x.values))


def test_scaled_survey_has_mean_zero_and_standard_deviation_one() -> None:
    x = volume()
    prepared = Scale().fit(x).apply(x.chunk()).values
    assert abs(np.nanmean(prepared, dtype=np.float64)) < 1e-6
    assert abs(np.nanstd(prepared, dtype=np.float64) - 1) < 1e-6


def test_symmetric_clip_limits_the_magnitude_to_its_percentile() -> None:
    x = volume()
    step = Clip(percentile=90).fit(x)
    limit = np.nanpercentile(np.abs(x.values).astype(np.float64), 90)
    assert step.statistics is not None
    assert (step.statistics.lower, step.statistics.upper) == (-limit, limit)
    assert np.nanmax(np.abs(step.apply(x.chunk()).values)) == np.float32(limit)


def test_clip_and_scale_take_any_axes() -> None:
    raster = xr.DataArray(np.arange(12, dtype=np.float32).reshape(3, 4), dims=("y", "x"))
    chain = Chain.model_validate([{"step": "clip", "lower": 10, "upper": 90}, {"step": "scale", "method": "rms"}])
    assert prepared_region(raster, chain.fit(raster), (slice(0, 3), slice(1, 4))).shape == (3, 3)


def test_crop_includes_both_ends() -> None:
    x = Crop(inline=(104, 110), sample=(8, 16)).apply(volume())
    assert x.inline.values.tolist() == [104, 106, 108, 110]
    assert x.sample.values.tolist() == [8, 12, 16]


@pytest.mark.parametrize("ends", [(110, 104), (0, 50), (104, 4000)])
def test_crop_outside_the_survey_is_refused_with_its_range(ends: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match=r"\[100, 124\]"):
        Crop(inline=ends).apply(volume())


def test_fitted_chain_survives_json_unchanged() -> None:
    chain = Chain.model_validate([{"step": "crop", "inline": [104, 122]}, *FITTED]).fit(volume())
    assert chain.fitted
    assert Chain.model_validate_json(chain.model_dump_json()) == chain


def test_halos_of_a_chain_add_up() -> None:
    chain = Chain.model_validate([FITTED[0], FITTED[0], FITTED[1], FITTED[2]])
    assert chain.halo == {"crossline": (6, 6), "inline": (2, 2)}


@pytest.mark.parametrize(
    "steps",
    [
        [{"step": "clip"}, {"step": "crop", "inline": [1, 2]}],
        [{"step": "sharpen"}],
        [{"step": "clip", "percentile": 99, "lower": 1}],
        [{"step": "clip", "lower": 1}],
        [{"step": "fill", "reach": 3}],
    ],
)
def test_wrong_chains_are_refused(steps: list[dict[str, object]]) -> None:
    with pytest.raises(ValidationError):
        Chain.model_validate(steps)


def test_unfitted_steps_and_arrays_without_dask_are_refused() -> None:
    x = volume()
    with pytest.raises(UsageError, match="no statistics"):
        Clip().apply(x.chunk())
    with pytest.raises(UsageError, match="Dask"):
        Fill().apply(x)
    with pytest.raises(UsageError, match="region"):
        prepared_region(x, Chain(), (slice(0, 14), slice(0, 1), slice(0, 1)))
    with pytest.raises(UsageError, match="no axis"):
        Fill(along="offset").apply(x.chunk())


def test_constant_or_empty_surveys_cannot_be_fitted() -> None:
    x = volume()
    with pytest.raises(DataError, match="do not vary"):
        Scale().fit(x.copy(data=np.full_like(x.values, 3)))
    with pytest.raises(DataError, match="no valid sample"):
        Clip().fit(x.copy(data=np.full_like(x.values, np.nan)))


AWKWARD = st.floats(width=32, allow_subnormal=True) | st.sampled_from([0.0, -0.0, 1.0, np.nan, np.inf, -np.inf])


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(AWKWARD, min_size=1, max_size=80),
    level=st.floats(0, 100),
    absolute=st.booleans(),
    chunk=st.integers(1, 80),
)
def test_percentiles_equal_numpy(values: list[float], level: float, absolute: bool, chunk: int) -> None:
    x = np.array(values, dtype=np.float32)
    finite = x[np.isfinite(x)].astype(np.float64)
    if not finite.size:
        return
    expected = np.percentile(np.abs(finite) if absolute else finite, np.float64(level), method="linear")
    with dask.config.set(scheduler="synchronous"):
        (found,) = percentiles(xr.DataArray(x, dims="trace").chunk(trace=chunk), [level], absolute=absolute)
    assert found == expected


def test_statistics_of_many_chunks_equal_numpy() -> None:
    x = volume((40, 50, 60), seed=3)
    valid = x.values[np.isfinite(x.values)].astype(np.float64)
    found = moments(x.chunk({"inline": 7, "crossline": 11, "sample": 13}))
    assert (found.count, found.minimum, found.maximum) == (valid.size, valid.min(), valid.max())
    np.testing.assert_allclose(
        [found.mean, found.std, found.rms], [valid.mean(), valid.std(), np.sqrt((valid**2).mean())], rtol=1e-12
    )
    levels = [0, 0.5, 50, 99.5, 100]
    assert percentiles(x.chunk({"inline": 7}), levels) == np.percentile(valid, levels).tolist()


def test_mean_keeps_its_digits_far_from_zero() -> None:
    values = (np.arange(100_000) % 2).astype(np.float32) + np.float32(2**20)
    found = moments(xr.DataArray(values, dims="trace").chunk(trace=999))
    assert found.std == pytest.approx(0.5, rel=1e-12)


def test_reads_are_whole_shards_of_bounded_size() -> None:
    x = xr.DataArray(np.zeros((1, 1, 1), np.float32), dims=AXES)
    x.encoding["shards"] = (64, 64, 64)
    wide = xr.DataArray(np.broadcast_to(np.float32(0), (1000, 900, 500)), dims=AXES)
    wide.encoding["shards"] = (64, 64, 64)
    assert reading_chunks(x) == (1, 1, 1)
    assert reading_chunks(wide) == (64, 900, 500)


def stored_survey(folder: str, x: xr.DataArray) -> xr.DataArray:
    specs = [ArraySpec("amplitude", AXES, x.shape, "float32", (8, 8, 8), (16, 16, 16), float("nan"))]
    specs += [ArraySpec.small(axis, (axis,), x[axis].values) for axis in AXES]
    create_arrays(folder, specs, {"amplitude": x.values, **{axis: x[axis].values for axis in AXES}})
    finish_group(folder, specs, {"geobatch": {"schema": 1, "kind": "volume", "variable": "amplitude"}})
    return valid_volume(open_survey(folder))


def test_reads_of_a_stored_survey_are_whole_shards(tmp_path: Path) -> None:
    stored = stored_survey(str(tmp_path), volume((40, 50, 60)))
    assert stored.chunks is None
    assert reading_chunks(stored, target_bytes=4 * 16**3) == (16, 16, 16)
    assert reading_chunks(stored, target_bytes=4 * 16 * 16 * 64) == (16, 16, 60)
    assert reading_chunks(stored) == stored.shape


def test_statistics_on_a_ray_cluster_equal_those_on_threads(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    persist = dask.persist
    chunked = stored_survey(str(tmp_path), volume((40, 50, 60))).chunk({"inline": 16, "crossline": 32, "sample": -1})
    chain = Chain.model_validate(FITTED[1:])
    assert callable(statistics.scheduler())
    on_ray = chain.fit(chunked)
    monkeypatch.setattr(statistics, "scheduler", lambda: "threads")
    assert on_ray == chain.fit(chunked)
    assert dask.persist is persist

"""A bounded part of a survey: which traces, how much is read, and that it is the same each time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from geobatch.formats.lazy import Key, enclosing, lazy_array
from geobatch.formats.seismic_inspect import clipped, seismic_quality
from geobatch.report.quality_seismic import seismic_groups
from geobatch.sample import (
    FEWEST_COLUMNS,
    MOST_TRACES,
    PLANE_BYTES,
    PLANE_CHUNKS,
    SAMPLE_BYTES,
    chunks_of,
    read_plane,
    sample_traces,
)


class Counted:
    """A volume of `i + j + k` that counts the chunks that are read of it."""

    def __init__(self, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
        self.shape, self.chunks, self.read_chunks = shape, chunks, 0
        dims = ("inline", "crossline", "sample")
        cells = lazy_array(dims, shape, "float32", self.read, chunks=chunks)
        self.array = xr.Dataset({"amplitude": cells})["amplitude"]

    def read(self, key: Key) -> Any:
        region, _ = enclosing(key, self.shape)
        self.read_chunks += math.prod(
            -(-part.stop // chunk) - part.start // chunk for part, chunk in zip(region, self.chunks, strict=True)
        )
        axes = [np.arange(size, dtype=np.float32)[part] for size, part in zip(self.shape, key, strict=True)]
        return sum(np.ix_(*map(np.atleast_1d, axes))).reshape([a.size for a in axes if a.ndim])  # type: ignore[union-attr]


def test_all_of_a_small_array_is_sampled() -> None:
    small = Counted((6, 7, 30), (2, 3, 8))
    live = np.ones((6, 7), bool)
    live[2, 3] = False
    sample = sample_traces(small.array, live)
    assert sample.text == "all 41 live traces"
    places = np.stack(sample.index, axis=1)
    assert {tuple(place) for place in places.tolist()} == {tuple(p) for p in np.argwhere(live).tolist()}
    np.testing.assert_array_equal(sample.traces[:, 0], places.sum(axis=1))


def test_sample_is_the_same_each_time_and_of_live_traces() -> None:
    live = np.random.default_rng(3).random((800, 900)) < 0.01
    one, two = (sample_traces(Counted((800, 900, 300), (8, 8, 300)).array, live) for _ in range(2))
    np.testing.assert_array_equal(one.traces, two.traces)
    assert live[one.index].all() and one.total == live.sum()
    np.testing.assert_array_equal(one.traces[:, 3], one.index[0] + one.index[1] + 3)


def test_no_live_trace_gives_an_empty_sample() -> None:
    sample = sample_traces(Counted((3, 4, 5), (2, 2, 5)).array, np.zeros((3, 4), bool))
    assert sample.traces.shape == (0, 5) and len(sample.index) == 2


def test_page_of_a_terabyte_reads_a_bounded_number_of_chunks() -> None:
    shape, chunks = (8192, 8192, 4096), (64, 64, 64)
    huge = Counted(shape, chunks)
    assert huge.array.nbytes == 2**40
    live = np.ones(shape[:2], bool)
    dataset = xr.Dataset({"amplitude": huge.array, "live_mask": (("inline", "crossline"), live)})
    info = {"kind": "volume", "variable": "amplitude", "quantity": "amplitude", "domain": "time"}
    info |= {"sample_interval": 4.0, "sample_unit": "ms", "statistics": {}}
    sampled = sample_traces(huge.array, live)
    column_bytes = 64 * 64 * shape[2] * 4
    columns = max(FEWEST_COLUMNS, SAMPLE_BYTES // column_bytes)
    assert huge.read_chunks == columns * 64 and len(sampled.traces) == MOST_TRACES
    told = seismic_quality(dataset, info, sampled)
    assert told["sample"]["of"] == live.size and "spread over the survey" in told["sample"]["text"]
    assert huge.read_chunks == columns * 64
    groups = seismic_groups(dataset, info, told, sampled)
    per_plane = min(PLANE_CHUNKS, PLANE_BYTES // (64**3 * 4))
    assert huge.read_chunks - columns * 64 <= 3 * per_plane
    notes = [panel.note for panel in groups[1].panels]
    assert "512 of 8,192 along crossline are shown." in notes[0]
    assert "512 of 8,192 along inline are shown." in notes[1]
    assert all(axis in notes[2] for axis in ("along inline", "along crossline"))


def test_lines_are_thinned_where_each_is_a_chunk_of_its_own() -> None:
    raw = Counted((9000, 7000, 100), (1, 1, 100))
    plane = read_plane(raw.array, ("inline", "sample"), {"crossline": 5})
    assert plane.notes == ("every 6. inline is shown",)
    np.testing.assert_array_equal(plane.values[:, 0], np.arange(0, 9000, 6) + 5)
    plane = read_plane(raw.array, ("inline", "crossline"), {"sample": 7})
    assert plane.values.size <= PLANE_CHUNKS and len(plane.notes) == 2


@given(data=st.data())
def test_a_lazy_plane_is_what_numpy_slices(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 9)) for _ in range(3))
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    volume = Counted(shape, chunks)
    whole = np.add.outer(np.add.outer(*(np.arange(n) for n in shape[:2])), np.arange(shape[2]))
    axes = data.draw(st.permutations(["inline", "crossline", "sample"]))
    number = ["inline", "crossline", "sample"].index(axes[2])
    at = data.draw(st.integers(0, shape[number] - 1))
    plane = read_plane(volume.array, (axes[0], axes[1]), {axes[2]: at})
    order = [["inline", "crossline", "sample"].index(axis) for axis in axes]
    np.testing.assert_array_equal(plane.values, whole.transpose(order)[..., at])
    assert chunks_of(volume.array) == chunks


@given(data=st.data())
def test_enclosing_region_gives_what_the_key_asks_for(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    key = data.draw(st.one_of(st.integers(0, size - 1), st.slices(size)))
    region, inside = enclosing((key,), (size,))
    np.testing.assert_array_equal(np.arange(size)[region][inside], np.arange(size)[key])


@pytest.mark.parametrize(
    ("trace", "bad"),
    [
        ([0, 5, 5, 5, 1], True),
        ([0, -5, -5, -5, 1], True),
        ([0, 5, 5, 1, 5], False),
        ([3, 0, 0, 0, 1], False),
        ([0, 5, 5, np.nan, 5], False),
        ([np.nan, 5, 5, 5, np.nan], True),
    ],
)
def test_a_trace_that_stays_at_its_extreme_is_clipped(trace: list[float], bad: bool) -> None:
    assert clipped(np.array([trace], np.float32)).tolist() == [bad]


def test_traces_too_short_to_be_clipped_are_not() -> None:
    assert not clipped(np.ones((2, 2), np.float32)).any()

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from geobatch.errors import NotFoundError
from geobatch.shards import (
    ArraySpec,
    create_arrays,
    decode_shard,
    encode_shard,
    encoded_by_zarr,
    finish_group,
    shard_indices,
    shard_key,
    shard_region,
)
from geobatch.storage import open_storage
from geobatch.survey import open_survey

SPEC = ArraySpec(
    "amplitude", ("inline", "crossline", "sample"), (37, 20, 33), "float32", (8, 8, 8), (16, 16, 32), math.nan
)
GROUP = {"geobatch": {"schema": 1, "kind": "volume", "variable": "amplitude", "state": "complete"}}


def write_volume(url: str, volume: np.ndarray, finish: bool = True) -> None:
    create_arrays(url, [SPEC])
    for index in shard_indices(SPEC):
        open_storage(url).put(shard_key(SPEC, index), encode_shard(SPEC, volume[shard_region(SPEC, index)]))
    if finish:
        finish_group(url, [SPEC], GROUP)


@pytest.mark.parametrize("place", ["file", "s3"])
def test_shards_put_one_by_one_open_as_one_volume(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "v.zarr") if place == "file" else request.getfixturevalue("s3")
    volume = np.random.default_rng(0).normal(size=SPEC.shape).astype("float32")
    write_volume(url, volume)
    np.testing.assert_array_equal(open_survey(url)["amplitude"].values, volume)
    if place == "file":
        np.testing.assert_array_equal(xr.open_zarr(url)["amplitude"].values, volume)


def test_unfinished_survey_does_not_open(tmp_path: Path) -> None:
    url = str(tmp_path / "v.zarr")
    with pytest.raises(NotFoundError, match="no survey there"):
        open_survey(url)
    write_volume(url, np.zeros(SPEC.shape, "float32"), finish=False)
    with pytest.raises(NotFoundError, match="begun but not finished"):
        open_survey(url)


def test_all_fill_shard_is_stored() -> None:
    data = encode_shard(SPEC, np.full(SPEC.shards, np.nan, "float32"))
    assert np.isnan(decode_shard(SPEC, data)).all()
    assert len(data) > 4 * 16, "each inner chunk is there, not only the index"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4),
    st.sampled_from(["float32", "float64", "int32", "int16", "int64", "uint8", "bool"]),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_shard_is_what_zarr_writes(axes: list[tuple[int, int]], dtype: str, seed: int, draw: st.DataObject) -> None:
    chunks = tuple(chunk for chunk, _ in axes)
    shards = tuple(chunk * count for chunk, count in axes)
    spec = ArraySpec("a", tuple("wxyz"[: len(axes)]), tuple(3 * n for n in shards), dtype, chunks, shards)
    shape = tuple(draw.draw(st.integers(1, n)) for n in shards)
    values = np.random.default_rng(seed).integers(0, 3, shape).astype(dtype)
    whole = np.zeros(shards, dtype)
    whole[tuple(slice(0, n) for n in shape)] = values
    assert encode_shard(spec, values) == encoded_by_zarr(spec, whole)


def test_large_chunks_are_packed_to_the_same_bytes_each_time() -> None:
    """With threads of its own Blosc lays blocks down in the order in which they happen to end."""
    spec = ArraySpec("a", ("x",), (2**21,), "float32", (2**20,), (2**21,))
    values = np.cumsum(np.random.default_rng(0).normal(size=2**21)).astype("float32")
    assert len({encode_shard(spec, values) for _ in range(20)}) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 7))
def test_every_flipped_bit_is_caught(position: int, bit: int) -> None:
    data = bytearray(encode_shard(SPEC, np.arange(16 * 16 * 32, dtype="float32").reshape(16, 16, 32)))
    data[position % len(data)] ^= 1 << bit
    with pytest.raises(ValueError, match="amplitude"):
        decode_shard(SPEC, bytes(data))


def test_zero_byte_and_cut_shards_are_caught() -> None:
    data = encode_shard(SPEC, np.ones(SPEC.shards, "float32"))
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="amplitude"):
            decode_shard(SPEC, data[:cut])


def test_wrong_dtype_or_size_is_no_shard() -> None:
    with pytest.raises(ValueError, match="is no shard"):
        encode_shard(SPEC, np.zeros(SPEC.shards, "float64"))
    with pytest.raises(ValueError, match="is no shard"):
        encode_shard(SPEC, np.zeros((17, 16, 32), "float32"))

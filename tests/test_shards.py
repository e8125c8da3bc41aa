from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
import zarr.storage
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from geobatch.errors import NotFoundError
from geobatch.shards import (
    ArraySpec,
    _create_array,
    create_arrays,
    decode_shard,
    encode_shard,
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


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int16", "uint8", "bool", "uint64"])
@pytest.mark.parametrize(
    ("chunks", "shards", "shape"),
    [((2, 3), (4, 9), (4, 9)), ((3, 64), (3, 448), (3, 400)), ((2, 2, 2), (6, 4, 10), (5, 4, 9)), ((5,), (5,), (3,))],
)
def test_shard_is_what_zarr_itself_stores(
    dtype: str, chunks: tuple[int, ...], shards: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    fill = math.nan if dtype.startswith("f") else 0
    spec = ArraySpec("a", ("x", "y", "z")[: len(shape)], shards, dtype, chunks, shards, fill)
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    values[: len(values) // 2] = 1
    whole = np.full(shards, fill, dtype)
    whole[tuple(slice(0, n) for n in shape)] = values
    memory = zarr.storage.MemoryStore()
    with zarr.config.set({"array.write_empty_chunks": True}):
        _create_array(memory, spec, shards)[...] = whole
    stored = sync(memory.get(shard_key(spec, (0,) * len(shape)), default_buffer_prototype()))
    assert encode_shard(spec, values) == stored.to_bytes()


def test_all_fill_shard_is_stored() -> None:
    data = encode_shard(SPEC, np.full(SPEC.shards, np.nan, "float32"))
    assert np.isnan(decode_shard(SPEC, data)).all()
    assert len(data) > 4 * 16, "each inner chunk is there, not only the index"


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

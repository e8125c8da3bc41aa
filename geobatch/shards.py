"""Zarr arrays whose unit of writing is one object: a shard, encoded in memory and stored by one PUT.

Array assignment through Zarr would read the old shard first, upload in parts and leave no bytes to hash. Here a
shard is encoded to the bytes that Zarr itself would store, so that its receipt is made from what is stored
(docs/decisions/0012-chunk-codec.md). Checksums (crc32c) stand inside every chunk and the shard index.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
import zarr.storage
from numcodecs import Blosc, Zstd
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, VLenUTF8Codec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.indexing import morton_order_iter
from zarr.core.sync import sync
from zarr.errors import ZarrUserWarning

from geobatch.blocks import Index as Index
from geobatch.blocks import Region as Region
from geobatch.errors import UsageError
from geobatch.storage import open_storage


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array of a group, before it exists.

    Attributes:
        name: Name in the group.
        dims: Axis names, one per axis.
        shape: Length per axis.
        dtype: NumPy dtype name; `T` is text of any length.
        chunks: Unit of reading, per axis.
        shards: Unit of writing, per axis, a whole multiple of `chunks`.
        fill_value: What a missing shard reads as.
        attributes: Attributes of the array, JSON only.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    fill_value: float | int | bool | str = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def small(cls, name: str, dims: tuple[str, ...], values: npt.NDArray[Any], **attributes: Any) -> ArraySpec:
        """The spec of an array that is one chunk in one shard, such as a coordinate."""
        shape = values.shape
        whole = tuple(max(n, 1) for n in shape)
        if values.dtype.kind in "TU":
            return cls(name, dims, shape, "T", whole, whole, "", attributes)
        fill: float | bool | int = math.nan if values.dtype.kind == "f" else 0
        return cls(name, dims, shape, values.dtype.name, whole, whole, fill, attributes)


def clip_grid(shape: Sequence[int], chunk: Sequence[int], shard: Sequence[int]) -> tuple[Index, Index]:
    """Chunk and shard no larger than an array of this shape needs, the shard still a whole multiple of the chunk."""
    chunks = tuple(min(c, n) for c, n in zip(chunk, shape, strict=True))
    shards = tuple(
        c * min(max(s // old, 1), -(-n // c)) for c, old, s, n in zip(chunks, chunk, shard, shape, strict=True)
    )
    return chunks, shards


def require_whole_multiple(axes: Sequence[str], chunk: Sequence[int], shard: Sequence[int]) -> None:
    """Refuse a shard that is no whole multiple of its chunk.

    Raises:
        UsageError: it names the axis.
    """
    for axis, c, s in zip(axes, chunk, shard, strict=True):
        if c < 1 or s < c or s % c:
            raise UsageError(
                "shard is no whole multiple of the chunk", where=axis, measured=f"shard {s}, chunk {c}", limit="s = k c"
            )


def shard_grid(spec: ArraySpec) -> Index:
    """Number of shards per axis."""
    return tuple(-(-length // shard) for length, shard in zip(spec.shape, spec.shards, strict=True))


def shard_indices(spec: ArraySpec) -> Iterator[Index]:
    """Every shard index, the last axis fastest."""
    return itertools.product(*(range(count) for count in shard_grid(spec)))


def shard_region(spec: ArraySpec, index: Index) -> Region:
    """The cells of one shard, clipped to the array."""
    return tuple(
        slice(i * shard, min((i + 1) * shard, length))
        for i, shard, length in zip(index, spec.shards, spec.shape, strict=True)
    )


def shard_key(spec: ArraySpec, index: Index) -> str:
    """The object that holds one shard, such as `amplitude/c/0/1/0` (Zarr 3, default chunk key encoding)."""
    return "/".join([spec.name, "c", *map(str, index)])


def encode_shard(spec: ArraySpec, data: npt.NDArray[Any]) -> bytes:
    """The stored bytes of one shard.

    Args:
        spec: The array the shard belongs to.
        data: The shard's cells, whole or the part inside the array; the rest is filled with the fill value.

    Raises:
        ValueError: `data` is larger than a shard or of another dtype.
    """
    if data.dtype != np.dtype(spec.dtype) or any(n > s for n, s in zip(data.shape, spec.shards, strict=True)):
        raise ValueError(f"{spec.name}: {data.shape} {data.dtype} is no shard of {spec.shards} {spec.dtype}")
    if spec.shape and data.dtype.kind != "T":
        return _pack_chunks(spec, data)
    memory = zarr.storage.MemoryStore()
    # An all-fill chunk must be stored too: a missing shard and an empty one have to differ.
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = _create_array(memory, spec, shape=spec.shards)
        whole = data
        if data.shape != spec.shards:
            whole = np.full(spec.shards, spec.fill_value, dtype=spec.dtype)
            whole[tuple(slice(0, n) for n in data.shape)] = data
        array[...] = whole
    origin = shard_key(spec, (0,) * len(spec.shape))
    buffer = sync(memory.get(origin, default_buffer_prototype()))
    if buffer is None:
        raise RuntimeError(f"{spec.name}: Zarr stored no object at {origin}")
    return buffer.to_bytes()


def _pack_chunks(spec: ArraySpec, data: npt.NDArray[Any]) -> bytes:
    """A shard of numbers: its chunks in Morton order, each packed and followed by its crc32c, then their index."""
    packer = _packer(data.dtype)
    index = np.zeros((*(shard // chunk for shard, chunk in zip(spec.shards, spec.chunks, strict=True)), 2), "<u8")
    parts: list[bytes] = []
    position, before, packed = 0, b"", b""
    for place in morton_order_iter(index.shape[:-1]):
        cells = data[tuple(slice(n * chunk, (n + 1) * chunk) for n, chunk in zip(place, spec.chunks, strict=True))]
        if cells.shape != spec.chunks:
            inside = tuple(slice(0, n) for n in cells.shape)
            cells, recorded = np.full(spec.chunks, spec.fill_value, spec.dtype), cells
            cells[inside] = recorded
        body = cells.tobytes()
        # Masks, fill and classes repeat chunk after chunk.
        if body != before:
            packed, before = _with_crc(packer.encode(np.frombuffer(body, data.dtype))), body
        parts.append(packed)
        index[place] = position, len(packed)
        position += len(packed)
    return b"".join([*parts, _with_crc(index.tobytes())])


def _with_crc(data: bytes) -> bytes:
    crc: int = google_crc32c.value(data)
    return data + crc.to_bytes(4, "little")


def decode_shard(spec: ArraySpec, data: bytes) -> npt.NDArray[Any]:
    """The cells of a stored shard, whole shard shape; every checksum inside it is verified.

    Raises:
        ValueError: the bytes do not decode or a checksum differs.
    """
    memory = zarr.storage.MemoryStore()
    array = _create_array(memory, spec, shape=spec.shards)
    origin = shard_key(spec, (0,) * len(spec.shape))
    if not data:
        raise ValueError(f"{spec.name}: shard of zero bytes")
    sync(memory.set(origin, default_buffer_prototype().buffer.from_bytes(data)))
    try:
        return np.asarray(array[...])
    except Exception as error:  # Zarr raises several kinds, by the codec that met the damage.
        raise ValueError(f"{spec.name}: shard does not decode: {error}") from error


def create_arrays(url: str, specs: Sequence[ArraySpec], values: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
    """Write each array's metadata, and the data of the small arrays given in `values`.

    The group itself does not exist until `finish_group`: what is unfinished does not open.
    """
    storage = open_storage(url)
    for key, body in array_objects(specs, values or {}):
        storage.put(key, body)


def array_objects(specs: Sequence[ArraySpec], values: Mapping[str, npt.NDArray[Any]]) -> Iterator[tuple[str, bytes]]:
    """Key and bytes of each array's metadata, and of the shards of those given in `values`."""
    for spec in specs:
        yield f"{spec.name}/zarr.json", json.dumps(array_metadata(spec), indent=2).encode()
        if spec.name in values:
            data = np.asarray(values[spec.name], spec.dtype, order="C")
            for index in shard_indices(spec):
                yield shard_key(spec, index), encode_shard(spec, data[shard_region(spec, index)])


def finish_group(
    url: str, specs: Sequence[ArraySpec], attributes: Mapping[str, Any], others: Mapping[str, Any] | None = None
) -> None:
    """Write the group's `zarr.json` with the metadata of all its arrays consolidated: the last write of a survey.

    Args:
        url: The survey.
        specs: Its arrays.
        attributes: Of the group.
        others: Metadata by name of arrays that no spec describes.
    """
    open_storage(url).put("zarr.json", group_metadata(specs, attributes, others))


def group_metadata(
    specs: Sequence[ArraySpec], attributes: Mapping[str, Any], others: Mapping[str, Any] | None = None
) -> bytes:
    """The `zarr.json` of a group that holds these arrays; arguments as of `finish_group`."""
    metadata = {**{spec.name: array_metadata(spec) for spec in specs}, **(others or {})}
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": dict(attributes),
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": metadata},
    }
    return json.dumps(group, indent=2, allow_nan=False).encode()


def array_metadata(spec: ArraySpec) -> dict[str, Any]:
    """The array's `zarr.json` as Zarr itself writes it."""
    memory = zarr.storage.MemoryStore()
    _create_array(memory, spec, shape=spec.shape)
    buffer = sync(memory.get(f"{spec.name}/zarr.json", default_buffer_prototype()))
    if buffer is None:
        raise RuntimeError(f"{spec.name}: Zarr wrote no metadata")
    metadata: dict[str, Any] = json.loads(buffer.to_bytes())
    return metadata


def _create_array(store: zarr.storage.MemoryStore, spec: ArraySpec, shape: tuple[int, ...]) -> zarr.Array[Any]:
    """An array in a memory store under the codecs of every geobatch array."""
    dtype = np.dtype(spec.dtype)
    inner: list[Any] = [VLenUTF8Codec() if dtype.kind == "T" else BytesCodec(), _compression(dtype), Crc32cCodec()]
    sharding = ShardingCodec(
        chunk_shape=spec.chunks, codecs=inner, index_codecs=[BytesCodec(), Crc32cCodec()], index_location="end"
    )
    # Zarr cannot shard an array without axes, such as a grid mapping: its one cell is one object anyway.
    scalar: dict[str, Any] = {"serializer": inner[0], "compressors": [Crc32cCodec()]}
    sharded: dict[str, Any] = {"serializer": sharding, "compressors": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)
        return zarr.create_array(
            store,
            name=spec.name,
            shape=shape,
            dtype=spec.dtype,
            chunks=spec.shards,
            filters=None,
            fill_value=spec.fill_value,
            dimension_names=spec.dims,
            attributes=dict(spec.attributes),
            zarr_format=3,
            **(sharded if spec.shape else scalar),
        )


def _compression(dtype: np.dtype[Any]) -> BloscCodec | ZstdCodec:
    """What packs a chunk: decision 12 has the figures."""
    if _is_shuffled(dtype):
        return BloscCodec(typesize=dtype.itemsize, cname="lz4", clevel=5, shuffle="bitshuffle")
    return ZstdCodec(level=1)


def _packer(dtype: np.dtype[Any]) -> Blosc | Zstd:
    """The same without Zarr around it."""
    return Blosc(cname="lz4", clevel=5, shuffle=Blosc.BITSHUFFLE) if _is_shuffled(dtype) else Zstd(level=1)


def _is_shuffled(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype == np.int32

"""Arrays that other tools stored: Zarr v2 and v3 groups, and NetCDF 4 or HDF5 files, read by regions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.abc.store
from zarr.core.buffer import Buffer, BufferPrototype

from geobatch.blocks import Region
from geobatch.errors import FormatError, GeobatchError, NotFoundError, UsageError
from geobatch.formats.libraries import need
from geobatch.formats.tables import open_object
from geobatch.storage import Storage, open_storage

MOST_CHUNK_BYTES = 2**30
HDF_MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class StoredSource:
    """An array of numbers in a Zarr group or an HDF5 file.

    Attributes:
        url: Of the group or file.
        variable: Path of the array in it; empty when the group is the array.
        library: `zarr` or `hdf`.
        shape: As the array has it.
        dtype: Of its values.
        dims: Names of its axes, where it has them.
        attributes: Numbers and words among its attributes.
    """

    url: str
    variable: str
    library: str
    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...] | None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def fastest(self) -> int:
        """The axis along which values lie side by side."""
        return len(self.shape) - 1

    def read(self, region: Region) -> npt.NDArray[Any]:
        """The values of a region, axes in the order of `shape`, as stored."""
        with _errors(self.url, self.variable):
            if self.library == "zarr":
                return np.asarray(_zarr_array(self.url, self.variable)[region])
            with _hdf_file(self.url) as file:
                return np.asarray(file[self.variable][region])


def open_zarr_array(url: str, variable: str | None) -> StoredSource:
    """The array `variable` of the Zarr group at `url`, version 2 or 3.

    Raises:
        NotFoundError: no Zarr is there.
        FormatError: its metadata do not read.
        UsageError: no such array, or none of several was named.
    """
    with _errors(url, variable or ""):
        array = _zarr_array(url, variable or "")
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    if chunk > MOST_CHUNK_BYTES:
        raise UsageError("chunks are too large to read", where=url, measured=f"{chunk} bytes", limit=MOST_CHUNK_BYTES)
    dims = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    fill = {"_FillValue": array.fill_value} if array.metadata.zarr_format == 2 else {}
    attributes = fill | dict(array.attrs)
    return _stored(url, variable or "", "zarr", array, dims, attributes)


def open_hdf_array(url: str, variable: str | None) -> StoredSource:
    """The data set `variable` of the NetCDF 4 or HDF5 file at `url`.

    Raises:
        FormatError: it is no HDF5 file, or is damaged.
        UsageError: no such data set, none of several was named, or its values lie in another file.
    """
    h5py = need("h5py", "earthquake")
    with _errors(url, variable or ""), _hdf_file(url) as file:
        known: list[str] = []
        file.visititems(lambda name, item: known.append(name) if isinstance(item, h5py.Dataset) else None)
        name = _named(variable, [k for k in known if file[k].ndim > 1] or known, url)
        if name not in known:
            raise UsageError("file has no such variable", where=url, measured=name, limit=", ".join(known)[:300])
        data = file[name]
        if data.external or data.is_virtual:
            raise UsageError("values lie in other files", where=f"{url}:{name}", remedy="Copy them into one file.")
        dims = [dim[0].name.rpartition("/")[2] if len(dim) else "" for dim in data.dims]
        return _stored(url, name, "hdf", data, dims if all(dims) else None, dict(data.attrs))


def arrays_in(url: str) -> list[str]:
    """Paths of the arrays of a Zarr group."""
    keys = [key for key, _ in open_storage(url).list()]
    found = {key.rpartition("/")[0] for key in keys if key.endswith("/.zarray")}
    for key in keys:
        if key.endswith("/zarr.json") and json.loads(open_storage(url).get(key)).get("node_type") == "array":
            found.add(key.removesuffix("/zarr.json"))
    return sorted(found)


class ForeignStore(zarr.abc.store.Store):
    """A read-only Zarr store over any Zarr in storage, whoever wrote it; every byte comes through `Storage`."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(read_only=True)
        self._storage = storage
        self._is_open = True

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForeignStore) and other._storage.url == self._storage.url

    async def get(self, key: str, prototype: BufferPrototype, byte_range: Any = None) -> Buffer | None:
        """The object or a part of it, None when it is not there."""
        try:
            body = await asyncio.to_thread(self._get, key, byte_range)
        except NotFoundError:
            return None
        return prototype.buffer.from_bytes(body)

    def _get(self, key: str, byte_range: Any) -> bytes:
        if byte_range is None:
            return self._storage.get(key)
        start, end = getattr(byte_range, "start", None), getattr(byte_range, "end", None)
        if start is not None and end is not None:
            return self._storage.get_range(key, start, end - start)
        size = self._storage.size(key)
        first = byte_range.offset if hasattr(byte_range, "offset") else max(0, size - byte_range.suffix)
        return self._storage.get_range(key, first, max(0, size - first))

    async def get_partial_values(self, prototype: BufferPrototype, key_ranges: Any) -> list[Buffer | None]:
        """Several parts."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """True when the object is there."""
        return await asyncio.to_thread(self._storage.exists, key)

    async def set(self, key: str, value: Buffer) -> None:
        """Refused."""
        raise NotImplementedError("foreign Zarr is read only")

    async def delete(self, key: str) -> None:
        """Refused."""
        raise NotImplementedError("foreign Zarr is read only")

    async def list(self) -> AsyncIterator[str]:
        """Every key."""
        for key, _ in self._storage.list():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key under a prefix."""
        for key, _ in self._storage.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names directly under a prefix."""
        folder = prefix.strip("/") + "/" if prefix.strip("/") else ""
        names = {key[len(folder) :].partition("/")[0] for key, _ in self._storage.list() if key.startswith(folder)}
        for name in sorted(names):
            yield name


def _zarr_array(url: str, variable: str) -> Any:
    storage = open_storage(url)
    store = ForeignStore(storage)
    if variable or not (storage.exists(".zarray") or _is_array(storage)):
        variable = variable or _named(None, arrays_in(url), url)
        if not any(storage.exists(f"{variable}/{name}") for name in (".zarray", "zarr.json")):
            if next(storage.list(), None) is None:
                raise NotFoundError("nothing is there", where=url)
            known = ", ".join(arrays_in(url)) or "no Zarr array"
            raise UsageError("group has no such array", where=url, measured=variable, limit=known[:300])
    return zarr.open_array(store, path=variable, mode="r")


def _is_array(storage: Storage) -> bool:
    return storage.exists("zarr.json") and json.loads(storage.get("zarr.json")).get("node_type") == "array"


def _named(variable: str | None, known: list[str], url: str) -> str:
    if variable:
        return variable
    if len(known) != 1:
        raise UsageError(
            "no variable was named",
            where=url,
            limit=", ".join(known)[:300] or "one array",
            remedy="Give --set variable=NAME.",
        )
    return known[0]


def _stored(url: str, variable: str, library: str, array: Any, dims: Any, attributes: dict[str, Any]) -> StoredSource:
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "fiub" or not array.shape or 0 in array.shape:
        raise FormatError(
            "variable is no array of numbers",
            where=f"{url}:{variable}",
            measured=f"{dtype} {tuple(array.shape)}",
            limit="floats, integers or booleans, not empty",
        )
    plain = {key: _plain(value) for key, value in attributes.items()}
    named = tuple(str(dim) for dim in dims) if dims else None
    shape = tuple(int(n) for n in array.shape)
    return StoredSource(
        url, variable, library, shape, dtype.str, named, {k: v for k, v in plain.items() if v is not None}
    )


def _plain(value: Any) -> Any:
    """An attribute as a number or word of Python, None for anything else."""
    found = np.asarray(value)
    if found.size != 1 or found.dtype.kind not in "fiubSU":
        return value if isinstance(value, str) else None
    item = found.ravel()[0].item()
    return item.decode(errors="replace") if isinstance(item, bytes) else item


@contextlib.contextmanager
def _hdf_file(url: str) -> Iterator[Any]:
    h5py = need("h5py", "earthquake")
    with open_object(url) as stream:
        if stream.read(len(HDF_MAGIC)) != HDF_MAGIC:
            remedy = "Convert NetCDF 3 with nccopy -4." if _starts_with(stream, b"CDF") else ""
            raise FormatError("no NetCDF 4 or HDF5 file", where=url, limit=HDF_MAGIC.hex(), remedy=remedy)
        stream.seek(0)
        with h5py.File(stream, "r") as file:
            yield file


def _starts_with(stream: Any, mark: bytes) -> bool:
    stream.seek(0)
    return bool(stream.read(len(mark)) == mark)


@contextlib.contextmanager
def _errors(url: str, variable: str) -> Iterator[None]:
    """Whatever a library raises on damaged bytes, as an error of ours."""
    try:
        yield
    except GeobatchError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, IndexError, AttributeError, MemoryError) as error:
        raise FormatError("array does not read", where=f"{url}:{variable}", measured=str(error)[:200]) from error

"""Raw sources as the data sets that ingest would make of them, read only as far as somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from geobatch.formats.spec import Inspected as Inspected
from geobatch.shards import ArraySpec

Array = npt.NDArray[Any]
Key = tuple[int | slice, ...]


class _Cells(BackendArray):
    """An array of which `read` gives any region of cells."""

    def __init__(self, shape: tuple[int, ...], dtype: str, read: Callable[[Key], Array]) -> None:
        self.shape, self.dtype, self.read = shape, np.dtype(dtype), read

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Array:
        found: Array = indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self.read)
        return found


def lazy_array(
    dims: Sequence[str],
    shape: tuple[int, ...],
    dtype: str,
    read: Callable[[Key], Array],
    *,
    chunks: Sequence[int],
    **attributes: Any,
) -> xr.Variable:
    """A variable whose cells `read(key)` gives, `key` an int or a slice per axis; `chunks` is what one read costs."""
    cells = indexing.LazilyIndexedArray(_Cells(shape, dtype, read))
    return xr.Variable(
        dims, cells, attributes, {"chunks": tuple(min(c, n) for c, n in zip(chunks, shape, strict=True))}
    )


def enclosing(key: Key, shape: Sequence[int]) -> tuple[tuple[slice, ...], Key]:
    """The region without steps around what a key asks for, and the key within that region."""
    region: list[slice] = []
    inside: list[int | slice] = []
    for part, size in zip(key, shape, strict=True):
        if isinstance(part, slice):
            places = range(size)[part]
            low = min(places[0], places[-1]) if places else 0
            region.append(slice(low, max(places[0], places[-1]) + 1 if places else low))
            stop = places.stop - low
            inside.append(slice(places.start - low, stop if stop >= 0 else None, places.step))
        else:
            region.append(slice(part, part + 1))
            inside.append(0)
    return tuple(region), tuple(inside)


def small_variables(specs: Sequence[ArraySpec], values: Mapping[str, Array]) -> dict[str, xr.Variable]:
    """Arrays in memory as the variables that their specs store them as."""
    return {
        spec.name: xr.Variable(spec.dims, _plain(values[spec.name]), dict(spec.attributes))
        for spec in specs
        if spec.name in values
    }


def _plain(values: Array) -> Array:
    return values.astype(object) if values.dtype.kind == "T" else values

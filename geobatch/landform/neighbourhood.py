"""Functions of neighbouring cells of a raster, over Dask chunks of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def map_neighbourhood(function: Callable[[Array, Array], Array], data: Any, rows: Array, reach: int) -> Any:
    """The Dask array of `function` applied to every chunk with its neighbours, in the chunks of `data`.

    Each output chunk is computed from its own cells and those up to `reach` rows and columns around it, clipped to the
    array; chunks thinner than the reach are served by as many neighbours as it takes. (`da.map_overlap` re-chunks.)

    Args:
        function: Takes a block `(…, y, x)` and the part of `rows` that belongs to it; returns a block of the same shape
            and dtype. What it returns for a cell may depend on nothing further away than `reach`.
        data: Dask array `(…, y, x)`.
        rows: What belongs to each row, `(y, …)`.
        reach: Cells needed on every side.
    """
    strips = []
    for top, bottom in _edges(data.chunks[-2]):
        first, last = max(0, top - reach), min(data.shape[-2], bottom + reach)
        parts = []
        for left, right in _edges(data.chunks[-1]):
            start, stop = max(0, left - reach), min(data.shape[-1], right + reach)
            block = data[..., first:last, start:stop]
            block = block.rechunk({data.ndim - 2: -1, data.ndim - 1: -1})
            made = block.map_blocks(
                _call, function, rows[first:last], dtype=data.dtype, meta=np.empty((0,) * data.ndim, data.dtype)
            )
            parts.append(made[..., top - first : bottom - first, left - start : right - start])
        strips.append(da.concatenate(parts, axis=-1))
    return da.concatenate(strips, axis=-2)


def _call(block: Array, function: Callable[[Array, Array], Array], rows: Array) -> Array:
    return function(block, rows)


def _edges(thicknesses: tuple[int, ...]) -> list[tuple[int, int]]:
    ends = np.cumsum(thicknesses).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))

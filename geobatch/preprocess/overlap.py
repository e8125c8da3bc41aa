"""Functions of neighbouring cells along one axis, over Dask chunks of any thickness."""

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def map_along_axis(function: Callable[[Array], Array], data: Any, axis: int, before: int, after: int) -> Any:
    """The Dask array of `function` applied to every chunk with its neighbours, in the chunks of `data`.

    Each output chunk is computed from its own cells and the `before` and `after` cells beside it along
    `axis`, clipped to the array. The cells are cut out explicitly, so that chunks thinner than the reach are
    served by as many neighbours as it takes and the chunks never change. (`da.map_overlap` re-chunks instead.)

    Args:
        function: takes a block, returns a block of the same shape and dtype; what it returns for a cell may
            depend on no more than `before` and `after` cells along `axis`.
        data: Dask array.
        axis: number of the axis along which the neighbours lie.
        before: cells needed below a cell's index.
        after: cells needed above it.
    """
    thicknesses = data.chunks[axis]
    if len(thicknesses) == 1:
        return _map(function, data)
    length = data.shape[axis]
    columns = []
    start = 0
    for thickness in thicknesses:
        stop = start + thickness
        first, last = max(0, start - before), min(length, stop + after)
        column = _cut(data, axis, first, last).rechunk({axis: -1})
        columns.append(_cut(_map(function, column), axis, start - first, stop - first))
        start = stop
    return da.concatenate(columns, axis=axis)


def map_whole_axis(function: Callable[[Array], Array], data: Any, axis: int) -> Any:
    """The Dask array of `function` applied to chunks that hold the axis whole, in the chunks of `data`.

    Args:
        function: takes a block, returns a block of the same shape and dtype; what it returns for a cell may
            depend on every cell of its line along `axis`, and on no other line.
        data: Dask array.
        axis: number of the axis.
    """
    if len(data.chunks[axis]) == 1:
        return _map(function, data)
    return _map(function, data.rechunk({axis: -1})).rechunk({axis: data.chunks[axis]})


def _map(function: Callable[[Array], Array], data: Any) -> Any:
    return data.map_blocks(function, dtype=data.dtype, meta=np.empty((0,) * data.ndim, dtype=data.dtype))


def _cut(data: Any, axis: int, start: int, stop: int) -> Any:
    return data[(slice(None),) * axis + (slice(start, stop),)]

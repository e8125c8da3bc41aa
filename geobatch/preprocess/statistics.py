"""Exact statistics of a whole survey in constant memory: percentiles, mean, standard deviation, rms.

A sample is valid when it is finite; the others are ignored. Percentiles have no rank error, whatever the chunks. Each
figure is one Dask reduction (two for percentiles), which runs on the Ray cluster when Ray is initialised and on threads
otherwise. The tree of the reduction is fixed by the chunks, so both give the same bits.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import DataError, UsageError
from geobatch.moments import finite_pieces, merge_moments, partial_moments

READ_BYTES = 128 * 2**20
PIECE_SAMPLES = 2**20
HALF_BINS = 2**16
FAN_IN = 16

Float32Array = npt.NDArray[np.float32]
CountArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Moments:
    """Figures of the valid samples, in the unit of the data; `std` is that of the population (divisor `count`)."""

    count: int
    mean: float
    std: float
    rms: float
    minimum: float
    maximum: float


def moments(x: xr.DataArray) -> Moments:
    """Count, mean, standard deviation, rms, minimum and maximum of the valid samples, in float64.

    Args:
        x: any axes, float32 (other types are converted to it), Dask-backed or lazily opened.

    Raises:
        DataError: no sample is valid.
    """
    total = _reduce(x, partial_moments, merge_moments)
    _require_valid(total.count, x)
    variance = total.squares / total.count
    return Moments(
        count=total.count,
        mean=total.mean,
        std=math.sqrt(variance),
        rms=math.sqrt(variance + total.mean**2),
        minimum=total.minimum,
        maximum=total.maximum,
    )


def percentiles(x: xr.DataArray, levels: Sequence[float], *, absolute: bool = False) -> list[float]:
    """The exact percentiles of the valid samples, one per level, as float64.

    They equal `numpy.percentile(x.astype("float64"), levels, method="linear")` of the valid float32 samples.
    Two passes count order-preserving 32-bit keys: the first by their high 16 bits, the second, in the few bins
    that hold a wanted rank, by their low 16 bits. Memory is 512 KiB per histogram, whatever the size of `x`.

    Args:
        x: any axes, float32 (other types are converted to it), Dask-backed or lazily opened.
        levels: percentiles in [0, 100].
        absolute: take the percentiles of |x|.

    Raises:
        UsageError: a level lies outside [0, 100].
        DataError: no sample is valid.
    """
    for level in levels:
        if not 0 <= level <= 100:
            raise UsageError("a percentile lies outside its range", measured=str(level), limit="0 to 100")
    high_counts = _reduce(x, _HighHistogram(absolute), np.add)
    count = int(high_counts.sum())
    _require_valid(count, x)
    positions = [(count - 1) * (level / 100) for level in levels]
    ranks = sorted({rank for position in positions for rank in (math.floor(position), math.ceil(position))})
    ends = np.cumsum(high_counts)
    bin_of_rank = {rank: int(np.searchsorted(ends, rank, side="right")) for rank in ranks}
    high_bins = sorted(set(bin_of_rank.values()))
    low_counts = _reduce(x, _LowHistogram(absolute, tuple(high_bins)), np.add)
    values = {}
    for rank, high in bin_of_rank.items():
        rank_in_bin = rank - int(ends[high] - high_counts[high])
        low = int(np.searchsorted(np.cumsum(low_counts[high_bins.index(high)]), rank_in_bin, side="right"))
        values[rank] = _value(high << 16 | low)
    return [_interpolate(position, values) for position in positions]


def class_counts(x: xr.DataArray) -> CountArray:
    """Number of samples per class, 256 counts, of an array of uint8 classes; decoded NaN is not counted.

    Args:
        x: any axes, uint8 or what decoding made of it, Dask-backed or lazily opened.
    """
    counts: CountArray = _reduce(x, _count_classes, np.add)
    return counts


def reading_chunks(x: xr.DataArray, target_bytes: int = READ_BYTES) -> tuple[int, ...]:
    """Cells per axis of one read: whole shards (or chunks) of the stored array, up to about `target_bytes`."""
    stored = x.encoding.get("shards") or x.encoding.get("chunks") or (64,) * x.ndim
    cells = [min(size, unit) for size, unit in zip(x.shape, stored, strict=True)]
    limit = target_bytes // 4
    for axis in reversed(range(x.ndim)):
        others = math.prod(cells) // max(cells[axis], 1)
        multiple = max(1, limit // max(others * cells[axis], 1))
        cells[axis] = min(x.shape[axis], cells[axis] * multiple)
    return tuple(cells)


def as_dask(x: xr.DataArray) -> xr.DataArray:
    """`x` as a Dask-backed float32 array: its own chunks where it has them, else whole shards per chunk."""
    if x.chunks is None:
        sizes = reading_chunks(x)
        x = x.copy(data=x.variable.chunk(dict(zip(x.dims, sizes, strict=True))).data)
    return x if x.dtype == np.float32 else x.astype(np.float32)


def scheduler() -> Any:
    """Ray's Dask scheduler when Ray is initialised, the name of the threaded one otherwise."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return "threads"
    return _ray_scheduler()


def _ray_scheduler() -> Any:
    """Ray's scheduler; `dask.persist`, which importing it replaces for everybody, is put back."""
    if "ray.util.dask" in sys.modules:
        from ray.util.dask import ray_dask_get

        return ray_dask_get
    mixin = dask.base.DaskMethodsMixin
    persist, persist_method = dask.persist, mixin.persist
    from ray.util.dask import ray_dask_get

    dask.persist, mixin.persist = persist, persist_method
    return ray_dask_get


def _reduce(x: xr.DataArray, partial: Callable[[Float32Array], Any], merge: Callable[[Any, Any], Any]) -> Any:
    """`partial` of every chunk, merged pairwise in the order of the chunks, over a tree of fan-in 16."""
    data = as_dask(x).data
    ones = tuple((1,) * blocks for blocks in data.numblocks)
    cells = data.map_blocks(_ChunkFigure(partial), chunks=ones, dtype=object, meta=np.empty((0,) * data.ndim, object))
    merged = _MergedFigure(merge)
    total = da.reduction(
        cells, chunk=_unchanged, combine=merged, aggregate=merged, dtype=object, split_every=FAN_IN, keepdims=True
    )
    return dask.compute(total, scheduler=scheduler())[0].item()


@dataclass(frozen=True)
class _ChunkFigure:
    """A chunk's figure as the single cell of an object array, so that Dask's own reduction can carry it."""

    partial: Callable[[Float32Array], Any]

    def __call__(self, block: Float32Array) -> npt.NDArray[np.object_]:
        return _cell(self.partial(block), block.ndim)


@dataclass(frozen=True)
class _MergedFigure:
    """The cells of an object array merged into one, in their order."""

    merge: Callable[[Any, Any], Any]

    def __call__(self, cells: npt.NDArray[np.object_], axis: Any, keepdims: bool) -> npt.NDArray[np.object_]:
        # Dask calls this with an empty array to learn the type.
        return _cell(reduce(self.merge, cells.ravel()), cells.ndim) if cells.size else cells


def _unchanged(cells: npt.NDArray[np.object_], axis: Any, keepdims: bool) -> npt.NDArray[np.object_]:
    return cells


def _cell(figure: Any, ndim: int) -> npt.NDArray[np.object_]:
    cell = np.empty((1,) * ndim, dtype=object)
    cell[(0,) * ndim] = figure
    return cell


@dataclass(frozen=True)
class _HighHistogram:
    absolute: bool

    def __call__(self, block: Float32Array) -> CountArray:
        counts = np.zeros(HALF_BINS, dtype=np.int64)
        for piece in finite_pieces(block, PIECE_SAMPLES):
            counts += np.bincount(_keys(piece, self.absolute) >> 16, minlength=HALF_BINS)
        return counts


@dataclass(frozen=True)
class _LowHistogram:
    absolute: bool
    high_bins: tuple[int, ...]

    def __call__(self, block: Float32Array) -> CountArray:
        slot_of_bin = np.full(HALF_BINS, -1, dtype=np.int64)
        slot_of_bin[list(self.high_bins)] = np.arange(len(self.high_bins))
        shape = (len(self.high_bins), HALF_BINS)
        counts = np.zeros(shape, dtype=np.int64)
        for piece in finite_pieces(block, PIECE_SAMPLES):
            keys = _keys(piece, self.absolute)
            slots = slot_of_bin[keys >> 16]
            wanted = slots >= 0
            cells = slots[wanted] * HALF_BINS + (keys[wanted] & 0xFFFF)
            counts += np.bincount(cells, minlength=counts.size).reshape(shape)
        return counts


def _count_classes(block: Float32Array) -> CountArray:
    counts = np.zeros(256, dtype=np.int64)
    for piece in finite_pieces(block, PIECE_SAMPLES):
        counts += np.bincount(piece.astype(np.uint8), minlength=256)
    return counts


def _keys(values: Float32Array, absolute: bool) -> npt.NDArray[np.uint32]:
    """Unsigned integers in the order of the values; both zeros share one key."""
    # Adding zero turns -0.0 into 0.0, which numpy orders as equals.
    plain = np.abs(values) if absolute else values + np.float32(0)
    bits = plain.view(np.uint32)
    negative = (bits >> 31).astype(bool)
    return np.where(negative, ~bits, bits | np.uint32(0x80000000))


def _value(key: int) -> float:
    bits = key & 0x7FFFFFFF if key & 0x80000000 else ~key & 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))


def _interpolate(position: float, values: dict[int, float]) -> float:
    low, high = values[math.floor(position)], values[math.ceil(position)]
    fraction = position - math.floor(position)
    difference = high - low
    # The form numpy uses, which never leaves [low, high].
    return low + difference * fraction if fraction < 0.5 else high - difference * (1 - fraction)


def _require_valid(count: int, x: xr.DataArray) -> None:
    if count == 0:
        raise DataError(
            "the survey holds no valid sample, so no statistic can be fitted",
            where=f"{x.name or 'array'} {x.shape}",
            measured="0 finite samples",
            limit="at least 1",
            remedy="Check the region and the crop, and `geobatch inspect` the survey.",
        )

"""A bounded, deterministic part of a survey: traces spread over it, and planes through it.

Whatever the size of the survey, `sample_traces` reads at most `SAMPLE_BYTES` (and four columns of chunks where those
are larger), `read_plane` at most `PLANE_BYTES` and `PLANE_CHUNKS` chunks. The same survey gives the same sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

SMALL_BYTES = 64 * 2**20
SAMPLE_BYTES = 256 * 2**20
FEWEST_COLUMNS = 4
MOST_COLUMNS = 512
MOST_TRACES = 4096
PLANE_BYTES = 512 * 2**20
PLANE_CHUNKS = 2048
# As many cells as a picture shows.
PLANE_CELLS = 1500
READERS = 4


@dataclass(frozen=True)
class TraceSample:
    """Some traces of a survey.

    Attributes:
        traces: `(trace, sample)` float32, NaN where there is no sample.
        index: Position of each trace on every axis but the samples', int64.
        total: Live traces of the survey.
    """

    traces: npt.NDArray[np.float32]
    index: tuple[npt.NDArray[np.int64], ...]
    total: int

    @property
    def text(self) -> str:
        """How many of how many."""
        count = len(self.traces)
        if count == self.total:
            return f"all {self.total:,} live traces"
        return f"{count:,} of {self.total:,} live traces, spread over the survey"


@dataclass(frozen=True)
class Plane:
    """The cells of a plane through an array, or as many as may be read of it.

    Attributes:
        values: As they are stored, first axis first.
        parts: Which positions they have on each of the two axes.
        notes: Where the plane is not shown whole, one sentence per axis.
    """

    values: Array
    parts: tuple[slice, slice]
    notes: tuple[str, ...]


def chunks_of(array: xr.DataArray) -> tuple[int, ...]:
    """Cells per axis of what one read brings."""
    return tuple(array.encoding.get("chunks") or array.shape)


def sample_traces(samples: xr.DataArray, live: Mask | None = None) -> TraceSample:
    """Every live trace of an array up to `SMALL_BYTES`; of larger ones traces spread over it, at most `MOST_TRACES`.

    They come from columns of chunks drawn at random, by a fixed seed, from those with live traces.

    Args:
        samples: `(…, sample)`, lazily opened.
        live: Which traces are live, on every axis but the samples'; all when not given.
    """
    places = samples.shape[:-1]
    small = 4 * samples.size <= SMALL_BYTES
    cells = places if small else chunks_of(samples)[:-1]
    if live is None:
        live = np.ones(places, np.bool_)
    held = live
    for axis, cell in enumerate(cells):
        held = np.logical_or.reduceat(held, np.arange(0, held.shape[axis], cell), axis=axis)
    columns = np.argwhere(held)
    column_bytes = 4 * math.prod(cells) * samples.shape[-1]
    count = min(len(columns), MOST_COLUMNS, max(FEWEST_COLUMNS, SAMPLE_BYTES // max(column_bytes, 1)))
    chosen = columns[np.sort(np.random.default_rng(0).choice(len(columns), count, replace=False))]
    most = int(live.sum()) if small else MOST_TRACES // max(count, 1)

    def read(column: Array) -> tuple[Array, Array]:
        region = tuple(slice(c * n, min((c + 1) * n, size)) for c, n, size in zip(column, cells, places, strict=True))
        alive = np.argwhere(live[region])
        if len(alive) > most:
            alive = alive[np.linspace(0, len(alive) - 1, most).astype(np.int64)]
        values = np.asarray(samples[region].values, np.float32)[tuple(alive.T)]
        return values, alive + [part.start for part in region]

    with ThreadPoolExecutor(READERS) as readers:
        found = list(readers.map(read, chosen))
    traces = np.concatenate([values for values, _ in found]) if found else np.zeros((0, samples.shape[-1]), np.float32)
    index = np.concatenate([where for _, where in found]) if found else np.zeros((0, len(places)), np.int64)
    return TraceSample(traces, tuple(index.T), int(live.sum()))


def read_plane(array: xr.DataArray, axes: tuple[str, str], at: Mapping[str, int] | None = None) -> Plane:
    """The plane of two axes at a position of each other one.

    An axis that is too long is cut: to every n-th line where each line is a chunk of its own, else to a window around
    the middle. The axis of samples is the last to be cut. What a picture could not show is left out.
    """
    sizes = dict(zip(map(str, array.dims), array.shape, strict=True))
    cells = dict(zip(sizes, chunks_of(array), strict=True))
    chunk_bytes = math.prod(cells.values()) * np.dtype(array.dtype).itemsize
    allowed = max(1, min(PLANE_CHUNKS, PLANE_BYTES // max(chunk_bytes, 1)))
    grid = {axis: -(-sizes[axis] // cells[axis]) for axis in axes}
    most = _allotted(grid, allowed)
    parts, notes = {}, []
    for axis in axes:
        parts[axis], note = _part(axis, sizes[axis], cells[axis], grid[axis], most[axis])
        notes += [note] if note else []
    position = {axis: (at or {}).get(axis, size // 2) for axis, size in sizes.items() if axis not in axes}
    # Values first: a lazy array that is transposed is read cell by cell.
    values = array.isel({**position, **parts}).load().transpose(*axes).values
    return Plane(np.asarray(values), (parts[axes[0]], parts[axes[1]]), tuple(notes))


def _allotted(grid: dict[str, int], allowed: int) -> dict[str, int]:
    """Chunks along each axis, of those there are, so that together they are no more than allowed."""
    first, second = grid
    if math.prod(grid.values()) <= allowed:
        return grid
    if "sample" in grid:
        line = first if second == "sample" else second
        samples = min(grid["sample"], allowed)
        return {"sample": samples, line: min(grid[line], max(1, allowed // samples))}
    shrink = math.sqrt(allowed / math.prod(grid.values()))
    one = min(grid[first], max(1, int(grid[first] * shrink)))
    return {first: one, second: min(grid[second], max(1, allowed // one))}


def _part(axis: str, size: int, cell: int, grid: int, most: int) -> tuple[slice, str]:
    if most >= grid:
        return slice(0, size, -(-size // PLANE_CELLS)), ""
    if cell == 1:
        step = -(-size // min(most, PLANE_CELLS))
        return slice(0, size, step), f"every {step}. {axis} is shown"
    low = (grid - most) // 2 * cell
    high = min(size, low + most * cell)
    return slice(low, high, -(-(high - low) // PLANE_CELLS)), f"{high - low:,} of {size:,} along {axis} are shown"

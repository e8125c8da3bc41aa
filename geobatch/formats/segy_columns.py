"""Columns of shards: which are read together, their traces read and placed, and their shards stored."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.formats.ingestion import STORERS, Written, store_shards
from geobatch.formats.segy_file import SegyFile
from geobatch.shards import ArraySpec, Index, shard_grid, shard_region
from geobatch.storage import is_remote

RUN_BYTES = 8 * 2**20
# A gap this small between wanted traces costs less to read than another request.
GAP_BYTES = 128 * 2**10
# Ranges of a bucket this long cost more for their bytes than for the request.
RANGE_BYTES = 2 * 2**20
# Columns that are read together come to no more, where they are more than one.
TOGETHER_BYTES = 256 * 2**20

Ordinals = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Column:
    """One column of shards: all samples of a range of inlines and crosslines, of gathers, or of traces.

    Attributes:
        index: Position in the shard grid, on every axis but the samples'.
        traces: Ordinal of each trace in the file, on the same axes, int32, -1 where there is none.
    """

    index: Index
    traces: Ordinals


@dataclass(frozen=True)
class Target:
    """Where columns go: the survey's URL and the two sharded arrays."""

    url: str
    volume: ArraySpec
    headers: ArraySpec


def groups(columns: Sequence[Column], file: SegyFile) -> list[Hashable]:
    """A key per column; those of one key are read together, so that ranges of a bucket are long.

    Neighbours in the direction in which the file runs share the lines that the ranges are parts of. On a file system
    each column is read alone: its ranges cost little, and small tasks fill all cores.
    """
    own = [column.index for column in columns]
    longest = max(columns, key=lambda column: (column.traces >= 0).sum())
    ordinals = np.sort(longest.traces[longest.traces >= 0])
    if not is_remote(file.url) or not ordinals.size:
        return list(own)
    parts = runs(ordinals, file.trace_bytes)
    width = math.ceil(RANGE_BYTES * len(parts) / (ordinals.size * file.trace_bytes))
    width = max(1, min(width, TOGETHER_BYTES // _held_bytes(longest.traces.size, file)))
    axis = _fastest_axis(longest.traces)
    return [(*index[:axis], index[axis] // width, *index[axis + 1 :]) for index in own]


def write_columns(columns: Sequence[Column], file: SegyFile, target: Target) -> list[Written]:
    """Store some columns: of each its headers and its shards, top to bottom."""
    held = zip(columns, read_columns(columns, file), strict=True)
    stored = list(
        store_shards(target.url, (shard for column, data in held for shard in _shards(column, *data, target)))
    )
    each = 1 + shard_grid(target.volume)[-1]
    return [Written(tuple(stored[i : i + each])) for i in range(0, len(stored), each)]


def read_columns(
    columns: Sequence[Column], file: SegyFile
) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]]:
    """Of each column samples `(…, sample)` float32, NaN where there is no trace, and raw trace headers, zero there.

    Each thread places what it has read at once, so that memory stays at the columns and one run per thread.
    """
    wanted = np.concatenate([column.traces.ravel() for column in columns])
    samples = np.full((wanted.size, file.sample_count), np.nan, np.float32)
    headers = np.zeros((wanted.size, file.header_bytes), np.uint8)
    cells = np.flatnonzero(wanted >= 0)
    cells = cells[np.argsort(wanted[cells])]
    ordinals = wanted[cells]

    def place(run: slice) -> None:
        first, last = int(ordinals[run.start]), int(ordinals[run.stop - 1])
        raw = file.read_traces(first, last - first + 1)
        if len(raw) > run.stop - run.start:
            raw = raw[ordinals[run] - first]
        samples[cells[run]] = file.decode(raw)
        headers[cells[run]] = raw[:, : file.header_bytes]

    with ThreadPoolExecutor(file.readers) as readers:
        for _ in readers.map(place, runs(ordinals, file.trace_bytes)):
            pass
    ends = np.cumsum([column.traces.size for column in columns])
    return [
        (
            samples[end - column.traces.size : end].reshape(*column.traces.shape, -1),
            headers[end - column.traces.size : end].reshape(*column.traces.shape, -1),
        )
        for column, end in zip(columns, ends.tolist(), strict=True)
    ]


def runs(ordinals: Ordinals, trace_bytes: int) -> list[slice]:
    """Parts of ascending trace ordinals to be read by one request each: small gaps bridged, size bounded."""
    wide = np.diff(ordinals) - 1 > GAP_BYTES // trace_bytes
    ends = [*(np.flatnonzero(wide) + 1).tolist(), len(ordinals)]
    reach = max(1, RUN_BYTES // trace_bytes)
    found: list[slice] = []
    start = 0
    for end in ends:
        while start < end:
            stop = min(end, int(np.searchsorted(ordinals, ordinals[start] + reach)))
            found.append(slice(start, stop))
            start = stop
    return found


def task_bytes(columns: Sequence[Column], file: SegyFile, target: Target) -> int:
    """Peak memory of one task: the columns, the runs being read, the shard being encoded, those on the way."""
    held: dict[Hashable, int] = {}
    for key, column in zip(groups(columns, file), columns, strict=True):
        held[key] = held.get(key, 0) + _held_bytes(column.traces.size, file)
    shard = 4 * math.prod(target.volume.shards)
    return max(held.values()) + 3 * file.readers * (RUN_BYTES + file.trace_bytes) + (4 + STORERS) * shard


def _shards(
    column: Column, samples: npt.NDArray[np.float32], headers: npt.NDArray[np.uint8], target: Target
) -> Iterator[tuple[ArraySpec, Index, npt.NDArray[Any]]]:
    yield target.headers, (*column.index, 0), headers
    for k in range(shard_grid(target.volume)[-1]):
        index = (*column.index, k)
        yield target.volume, index, samples[..., shard_region(target.volume, index)[-1]]


def _held_bytes(traces: int, file: SegyFile) -> int:
    return traces * (file.sample_count * 4 + file.header_bytes)


def _fastest_axis(ordinals: Ordinals) -> int:
    """The axis on which a step goes the least far in the file."""

    def step(axis: int) -> float:
        steps = np.abs(np.diff(ordinals.astype(np.int64), axis=axis))
        both = (np.take(ordinals, range(1, ordinals.shape[axis]), axis) >= 0) & (
            np.take(ordinals, range(ordinals.shape[axis] - 1), axis) >= 0
        )
        return float(np.median(steps[both])) if both.any() else math.inf

    return min(range(ordinals.ndim), key=step)

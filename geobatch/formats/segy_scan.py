"""One pass over a SEG-Y file in slabs of traces: the headers that make its geometry, and sample statistics.

Headers stand between the samples, so a bucket gives them fastest by reading whole slabs; the samples that come along
are reduced to statistics at once and dropped. Of each trace the table keeps 20 bytes, and packed into some 0.1 to 2
more the words in `KEPT` that vary: what another geometry may be found in.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from geobatch.formats.segy_file import (
    COORDINATE_UNITS,
    DELAY,
    TIME_SCALAR,
    TRACE_CODE,
    TRACE_HEADER_BYTES,
    TRACE_SAMPLES,
    VALUE_UNIT,
    SegyFile,
    SegyLayout,
    header_field,
)
from geobatch.moments import PartialMoments, merge_moments, partial_moments

K = TypeVar("K")
Extreme = tuple[float, int]
Packed = tuple[bytes, ...]
BLOCK_BYTES = 2**20
BLOCKS_PER_RUN = 8
DEAD, DUMMY = 2, 3
# Samples in a row at the largest value of the file: the recorder or a processor could go no higher.
FLAT_SAMPLES = 3
COLUMNS = ("inline", "crossline", "x", "y", "scalar", "live", "spoilt")
# First bytes of the 4-byte words that may hold numbers or places: sequence, record, channel, shot point, ensemble,
# offset, source and receiver coordinates, and all from 189 on.
KEPT = (1, 5, 9, 13, 17, 21, 25, 37, 73, 77, 81, 85, *range(189, 238, 4))
SUMMARY_FIELDS = {
    "delay": DELAY,
    "time_scalar": TIME_SCALAR,
    "trace_samples": TRACE_SAMPLES,
    "value_unit": VALUE_UNIT,
    "coordinate_units": COORDINATE_UNITS,
}


@dataclass(frozen=True)
class TraceTable:
    """What the scan keeps of each trace, in file order, and of all together.

    Attributes:
        inline: Inline number per trace, int32.
        crossline: Crossline number per trace, int32.
        x: Easting per trace before the scalar, int32.
        y: Northing per trace before the scalar, int32.
        scalar: Coordinate scalar per trace, int16.
        live: True where a trace holds a finite non-zero sample and is not coded dead or dummy.
        spoilt: True where a trace holds samples that are not finite.
        moments: Statistics of the finite samples of live traces.
        non_finite: NaN and infinite samples of live traces.
        fields: Smallest and largest value of header fields that must agree between live traces.
        varying: Smallest and largest 4-byte integer at each aligned header position, by its first byte.
        words: 4-byte integer per trace at the positions in `KEPT` and of the offset, where it varies; `word` unpacks.
        highest: Largest sample of live traces, and how many of them stay at it for `FLAT_SAMPLES` samples or more.
        lowest: The same of the smallest sample.
    """

    inline: npt.NDArray[np.int32]
    crossline: npt.NDArray[np.int32]
    x: npt.NDArray[np.int32]
    y: npt.NDArray[np.int32]
    scalar: npt.NDArray[np.int16]
    live: npt.NDArray[np.bool_]
    spoilt: npt.NDArray[np.bool_]
    moments: PartialMoments
    non_finite: int
    fields: dict[str, tuple[int, int]]
    varying: dict[int, tuple[int, int]]
    words: dict[int, Packed]
    highest: Extreme
    lowest: Extreme

    def word(self, byte: int) -> npt.NDArray[np.int32]:
        """The 4-byte integer of each trace at a kept position."""
        if byte in self.words:
            return np.concatenate([_unpacked(part) for part in self.words[byte]])
        return np.full(self.live.size, self.varying[byte][0], np.int32)


@dataclass
class _Samples:
    """What the samples of a slab come to, block by block."""

    live: npt.NDArray[np.bool_]
    spoilt: npt.NDArray[np.bool_]
    moments: PartialMoments = dataclasses.field(default_factory=PartialMoments)
    non_finite: int = 0
    highest: Extreme = (-np.inf, 0)
    lowest: Extreme = (np.inf, 0)

    def add(self, part: slice, samples: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> None:
        """Take in the samples of the traces in `part`, of which `live` says so far that they are not coded dead."""
        highest, lowest = samples.max(axis=1), samples.min(axis=1)
        # NaN and infinity come through the extremes, so that a whole trace needs no look at each sample.
        odd = np.flatnonzero(~(np.isfinite(highest) & np.isfinite(lowest)))
        unfinished = np.zeros(len(samples), np.int64)
        if odd.size:
            finite = np.isfinite(samples[odd])
            unfinished[odd] = lengths[odd] - finite.sum(axis=1)
            highest[odd] = np.where(finite, samples[odd], -np.inf).max(axis=1)
            lowest[odd] = np.where(finite, samples[odd], np.inf).min(axis=1)
        live = (highest > lowest) | ((highest != 0) & np.isfinite(highest))
        live &= self.live[part]
        self.live[part], self.spoilt[part] = live, unfinished > 0
        if not live.all():
            samples, highest, lowest, unfinished = samples[live], highest[live], lowest[live], unfinished[live]
        self.non_finite += int(unfinished.sum())
        self.moments = merge_moments(self.moments, partial_moments(samples))
        if len(samples):
            self.highest = _higher(self.highest, _flat(samples, highest))
            value, traces = _flat(samples, lowest, sign=-1)
            self.lowest = _lower(self.lowest, (value, traces))


def slabs(file: SegyFile, slab_bytes: int) -> list[tuple[int, int]]:
    """First trace and number of traces of each slab of about `slab_bytes`."""
    step = max(1, slab_bytes // file.trace_bytes)
    return [(first, min(step, file.trace_count - first)) for first in range(0, file.trace_count, step)]


def scan_slab(slab: tuple[int, int], file: SegyFile, layout: SegyLayout) -> TraceTable:
    """The table of one slab of traces, read by ranges of some megabytes."""
    first, count = slab
    headers = np.empty((count, TRACE_HEADER_BYTES), np.uint8)
    found = _Samples(np.empty(count, np.bool_), np.zeros(count, np.bool_))
    order = file.byte_order
    begin = 0
    step = max(1, BLOCK_BYTES // file.trace_bytes)
    for raw in file.read_runs(first, count, BLOCKS_PER_RUN * step):
        run = slice(begin, begin + len(raw))
        headers[run] = raw[:, :TRACE_HEADER_BYTES]
        found.live[run] = ~np.isin(header_field(raw, *TRACE_CODE, order), (DEAD, DUMMY))
        lengths = file.lengths(headers[run])
        for start in range(0, len(raw), step):
            block = file.decode(raw[start : start + step])
            found.add(slice(begin + start, begin + start + len(block)), block, lengths[start : start + step])
        begin += len(raw)
    varying = _aligned_ranges(headers, file)
    offset = header_field(headers, layout.offset, "i4", order)
    varying[layout.offset] = (int(offset.min()), int(offset.max()))
    return TraceTable(
        inline=header_field(headers, layout.inline, "i4", order),
        crossline=header_field(headers, layout.crossline, "i4", order),
        x=header_field(headers, layout.cdp_x, "i4", order),
        y=header_field(headers, layout.cdp_y, "i4", order),
        scalar=header_field(headers, layout.coordinate_scalar, "i2", order),
        **vars(found),
        fields=_ranges(headers[found.live] if found.live.any() else headers, file),
        varying=varying,
        words={
            byte: (_packed(header_field(headers, byte, "i4", order)),)
            for byte in {*KEPT, layout.offset}
            if varying[byte][0] != varying[byte][1]
        },
    )


def merge_tables(tables: Sequence[TraceTable]) -> TraceTable:
    """The table of the whole file from those of its slabs in file order."""
    arrays = {name: np.concatenate([getattr(table, name) for table in tables]) for name in COLUMNS}
    spoken = [table for table in tables if table.live.any()] or list(tables)
    varying = _union([table.varying for table in tables])
    kept = {*KEPT, *(byte for table in tables for byte in table.words)}
    return dataclasses.replace(
        tables[0],
        **arrays,
        moments=functools.reduce(merge_moments, (table.moments for table in tables)),
        non_finite=sum(table.non_finite for table in tables),
        fields=_union([table.fields for table in spoken]),
        varying=varying,
        words={
            byte: tuple(part for table in tables for part in _parts(table, byte))
            for byte in sorted(kept)
            if varying[byte][0] != varying[byte][1]
        },
        highest=functools.reduce(_higher, (table.highest for table in tables)),
        lowest=functools.reduce(_lower, (table.lowest for table in tables)),
    )


def dump_table(table: TraceTable) -> bytes:
    """The table of a slab as bytes: a NumPy archive without objects, its figures as JSON inside."""
    told = {
        "moments": dataclasses.astuple(table.moments),
        "non_finite": table.non_finite,
        "fields": table.fields,
        "varying": table.varying,
        "highest": table.highest,
        "lowest": table.lowest,
    }
    sink = io.BytesIO()
    arrays: dict[str, Any] = {name: getattr(table, name) for name in COLUMNS}
    arrays |= {f"word_{byte}": np.frombuffer(parts[0], np.uint8) for byte, parts in table.words.items()}
    np.savez_compressed(sink, told=np.frombuffer(json.dumps(told).encode(), np.uint8), **arrays)
    return sink.getvalue()


def load_table(body: bytes) -> TraceTable:
    """The table that `dump_table` made bytes of."""
    with np.load(io.BytesIO(body), allow_pickle=False) as stored:
        told = json.loads(stored["told"].tobytes())
        return TraceTable(
            **{name: stored[name] for name in COLUMNS},
            moments=PartialMoments(*told["moments"]),
            non_finite=told["non_finite"],
            fields={name: (low, high) for name, (low, high) in told["fields"].items()},
            varying={int(byte): (low, high) for byte, (low, high) in told["varying"].items()},
            words={int(name[5:]): (stored[name].tobytes(),) for name in stored.files if name.startswith("word_")},
            highest=tuple(told["highest"]),
            lowest=tuple(told["lowest"]),
        )


def _packed(values: npt.NDArray[np.int32]) -> bytes:
    """Numbers as the packed differences from one to the next, which repeat where numbers grow in steps."""
    with np.errstate(over="ignore"):
        return zlib.compress(np.diff(values, prepend=np.int32(0)).tobytes(), level=1)


def _unpacked(packed: bytes) -> npt.NDArray[np.int32]:
    return np.cumsum(np.frombuffer(zlib.decompress(packed), np.int32), dtype=np.int32)


def _parts(table: TraceTable, byte: int) -> Packed:
    return table.words[byte] if byte in table.words else (_packed(table.word(byte)),)


def _flat(samples: npt.NDArray[np.float32], extremes: npt.NDArray[np.float32], sign: int = 1) -> Extreme:
    """The extreme of all traces, and how many of them stay at it; 0 is no extreme that clipping leaves."""
    value = (sign * extremes).max() * sign
    if value == 0:
        return float(value), 0
    at = samples[extremes == value] == value
    if at.shape[1] < FLAT_SAMPLES:
        return float(value), 0
    stays = functools.reduce(
        np.logical_and, (at[:, i : at.shape[1] - FLAT_SAMPLES + 1 + i] for i in range(FLAT_SAMPLES))
    )
    return float(value), int(stays.any(axis=1).sum())


def _higher(one: Extreme, two: Extreme) -> Extreme:
    if one[0] == two[0]:
        return one[0], one[1] + two[1]
    return max(one, two)


def _lower(one: Extreme, two: Extreme) -> Extreme:
    value, traces = _higher((-one[0], one[1]), (-two[0], two[1]))
    return -value, traces


def _ranges(headers: npt.NDArray[np.uint8], file: SegyFile) -> dict[str, tuple[int, int]]:
    values = {name: header_field(headers, *place, file.byte_order) for name, place in SUMMARY_FIELDS.items()}
    return {name: (int(value.min()), int(value.max())) for name, value in values.items()}


def _aligned_ranges(headers: npt.NDArray[np.uint8], file: SegyFile) -> dict[int, tuple[int, int]]:
    words = headers.view(np.dtype(file.byte_order + "i4"))
    lowest, highest = words.min(axis=0), words.max(axis=0)
    return {4 * i + 1: (int(lowest[i]), int(highest[i])) for i in range(words.shape[1])}


def _union(ranges: Sequence[dict[K, tuple[int, int]]]) -> dict[K, tuple[int, int]]:
    return {key: (min(r[key][0] for r in ranges), max(r[key][1] for r in ranges)) for key in ranges[0]}

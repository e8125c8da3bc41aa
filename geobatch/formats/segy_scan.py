"""One pass over a SEG-Y file in slabs of traces: the headers that make its geometry, and sample statistics.

Headers stand between the samples, so a bucket gives them fastest by reading whole slabs; the samples that come along
are reduced to statistics at once and dropped.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from geobatch.formats.segy import (
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
from geobatch.preprocess.statistics import PartialMoments, merge_moments, partial_moments

K = TypeVar("K")
BLOCK_BYTES = 2**20
DEAD, DUMMY = 2, 3
COLUMNS = ("inline", "crossline", "x", "y", "scalar", "live")
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
        moments: Statistics of the finite samples of live traces.
        non_finite: NaN and infinite samples of live traces.
        fields: Smallest and largest value of header fields that must agree between live traces.
        varying: Smallest and largest 4-byte integer at each aligned header position, by its first byte.
    """

    inline: npt.NDArray[np.int32]
    crossline: npt.NDArray[np.int32]
    x: npt.NDArray[np.int32]
    y: npt.NDArray[np.int32]
    scalar: npt.NDArray[np.int16]
    live: npt.NDArray[np.bool_]
    moments: PartialMoments
    non_finite: int
    fields: dict[str, tuple[int, int]]
    varying: dict[int, tuple[int, int]]


def slabs(file: SegyFile, slab_bytes: int) -> list[tuple[int, int]]:
    """First trace and number of traces of each slab of about `slab_bytes`."""
    step = max(1, slab_bytes // file.trace_bytes)
    return [(first, min(step, file.trace_count - first)) for first in range(0, file.trace_count, step)]


def scan_slab(slab: tuple[int, int], file: SegyFile, layout: SegyLayout) -> TraceTable:
    """The table of one slab of traces, read by one byte range."""
    raw = file.read_traces(*slab)
    headers = np.ascontiguousarray(raw[:, :TRACE_HEADER_BYTES])
    order = file.byte_order
    coded_dead = np.isin(header_field(headers, *TRACE_CODE, order), (DEAD, DUMMY))
    live = np.zeros(len(raw), np.bool_)
    moments, non_finite = PartialMoments(), 0
    step = max(1, BLOCK_BYTES // file.trace_bytes)
    for start in range(0, len(raw), step):
        part = slice(start, start + step)
        samples = file.decode(raw[part])
        finite = np.isfinite(samples)
        live[part] = ((samples != 0) & finite).any(axis=1) & ~coded_dead[part]
        non_finite += int((~finite[live[part]]).sum())
        moments = merge_moments(moments, partial_moments(samples[live[part]]))
    return TraceTable(
        inline=header_field(headers, layout.inline, "i4", order),
        crossline=header_field(headers, layout.crossline, "i4", order),
        x=header_field(headers, layout.cdp_x, "i4", order),
        y=header_field(headers, layout.cdp_y, "i4", order),
        scalar=header_field(headers, layout.coordinate_scalar, "i2", order),
        live=live,
        moments=moments,
        non_finite=non_finite,
        fields=_ranges(headers[live] if live.any() else headers, file),
        varying=_aligned_ranges(headers, file),
    )


def merge_tables(tables: Sequence[TraceTable]) -> TraceTable:
    """The table of the whole file from those of its slabs in file order."""
    arrays = {name: np.concatenate([getattr(table, name) for table in tables]) for name in COLUMNS}
    spoken = [table for table in tables if table.live.any()] or list(tables)
    return dataclasses.replace(
        tables[0],
        **arrays,
        moments=functools.reduce(merge_moments, (table.moments for table in tables)),
        non_finite=sum(table.non_finite for table in tables),
        fields=_union([table.fields for table in spoken]),
        varying=_union([table.varying for table in tables]),
    )


def dump_table(table: TraceTable) -> bytes:
    """A table as bytes: a NumPy archive without objects, its figures as JSON inside."""
    told = {
        "moments": dataclasses.astuple(table.moments),
        "non_finite": table.non_finite,
        "fields": table.fields,
        "varying": table.varying,
    }
    sink = io.BytesIO()
    np.savez_compressed(
        sink,
        told=np.frombuffer(json.dumps(told).encode(), np.uint8),
        **{name: getattr(table, name) for name in COLUMNS},
    )
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
        )


def _ranges(headers: npt.NDArray[np.uint8], file: SegyFile) -> dict[str, tuple[int, int]]:
    values = {name: header_field(headers, *place, file.byte_order) for name, place in SUMMARY_FIELDS.items()}
    return {name: (int(value.min()), int(value.max())) for name, value in values.items()}


def _aligned_ranges(headers: npt.NDArray[np.uint8], file: SegyFile) -> dict[int, tuple[int, int]]:
    words = headers.view(np.dtype(file.byte_order + "i4"))
    lowest, highest = words.min(axis=0), words.max(axis=0)
    return {4 * i + 1: (int(lowest[i]), int(highest[i])) for i in range(words.shape[1])}


def _union(ranges: Sequence[dict[K, tuple[int, int]]]) -> dict[K, tuple[int, int]]:
    return {key: (min(r[key][0] for r in ranges), max(r[key][1] for r in ranges)) for key in ranges[0]}

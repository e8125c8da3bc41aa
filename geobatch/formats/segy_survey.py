"""The arrays and attributes of a survey that was ingested from SEG-Y."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import GeometryError
from geobatch.formats.segy import TRACE_HEADER_BYTES, SegyFile, SegyLayout
from geobatch.formats.segy_geometry import Grid, coordinates, fit_bin_grid
from geobatch.formats.segy_meaning import Meaning
from geobatch.formats.segy_scan import TraceTable
from geobatch.preprocess.statistics import PartialMoments
from geobatch.shards import ArraySpec
from geobatch.survey import COMPLETE, SCHEMA, VOLUME_AXES

Size3 = tuple[int, int, int]
# Version of everything in the SEG-Y reader that decides a voxel's value: decoding, validity, placement.
NUMERICAL_VERSION = 1
MAP_CHUNK = 1024
METRES = 1
LONG_NAMES = {"amplitude": "seismic amplitude", "velocity": "seismic velocity"}


def clip_grid(shape: Size3, chunk: Size3, shard: Size3) -> tuple[Size3, Size3]:
    """Chunk and shard no larger than a survey needs, the shard still a whole multiple of the chunk."""
    chunks: Any = tuple(min(c, n) for c, n in zip(chunk, shape, strict=True))
    shards: Any = tuple(
        c * min(max(s // old, 1), -(-n // c)) for c, old, s, n in zip(chunks, chunk, shard, shape, strict=True)
    )
    return chunks, shards


def volume_specs(
    file: SegyFile, grid: Grid, meaning: Meaning, chunk: Size3, shard: Size3
) -> tuple[ArraySpec, ArraySpec]:
    """The specs of the volume and of its trace headers, sharded alike."""
    shape = (*grid.shape, file.sample_count)
    chunks, shards = clip_grid(shape, chunk, shard)
    attributes = {
        "long_name": LONG_NAMES[meaning.quantity],
        "units": meaning.units,
        "coordinates": "cdp_x cdp_y",
    }
    volume = ArraySpec(meaning.quantity, VOLUME_AXES, shape, "float32", chunks, shards, math.nan, attributes)
    headers = ArraySpec(
        "trace_header",
        ("inline", "crossline", "header_byte"),
        (*grid.shape, TRACE_HEADER_BYTES),
        "uint8",
        (*chunks[:2], TRACE_HEADER_BYTES),
        (*shards[:2], TRACE_HEADER_BYTES),
        0,
        {"long_name": "raw SEG-Y trace header"},
    )
    return volume, headers


def sample_axis(
    file: SegyFile, table: TraceTable, meaning: Meaning, sample_start: float | None
) -> npt.NDArray[np.float64]:
    """The vertical axis from the delay of the live traces (bytes 109-110, scaled by bytes 215-216) or the option."""
    start = sample_start
    if start is None:
        low, high = table.fields["delay"]
        if low != high:
            raise GeometryError(
                "traces start at different times",
                where=file.url,
                measured=f"delays from {low} to {high} in trace header bytes 109-110",
                limit="one delay for all live traces",
                remedy="Give the start of the axis with --set sample_start=… if the field is wrong.",
            )
        scalar = table.fields["time_scalar"][0]
        start = low / -scalar if scalar < 0 else low * (scalar or 1)
    steps = np.arange(file.sample_count, dtype=np.float64)
    return np.asarray(start * meaning.unit_factor + meaning.sample_interval * steps, np.float64)


def small_arrays(
    file: SegyFile,
    table: TraceTable,
    grid: Grid,
    meaning: Meaning,
    samples: npt.NDArray[np.float64],
    crs: str | None,
) -> tuple[list[ArraySpec], dict[str, npt.NDArray[Any]]]:
    """Specs and values of the axes, the maps `(inline, crossline)` and the file header."""
    x, y = coordinates(table)
    ordinals = np.arange(file.trace_count, dtype=np.int32)
    axes: dict[str, npt.NDArray[Any]] = {"inline": grid.inline, "crossline": grid.crossline, "sample": samples}
    maps = {
        "cdp_x": grid.place(x, math.nan),
        "cdp_y": grid.place(y, math.nan),
        "live_mask": grid.place(table.live, False),
        "trace_index": grid.place(ordinals, -1),
    }
    named: dict[str, dict[str, Any]] = {
        "inline": {"long_name": "inline number"},
        "crossline": {"long_name": "crossline number"},
        "sample": {
            "long_name": "two-way time" if meaning.domain == "time" else "depth",
            "units": meaning.sample_unit,
        },
        "cdp_x": {"long_name": "easting of the bin", "crs": crs},
        "cdp_y": {"long_name": "northing of the bin", "crs": crs},
        "live_mask": {"long_name": "trace was recorded and is not dead"},
        "trace_index": {"long_name": "ordinal of the trace in the source file, -1 where none"},
    }
    fills = {"cdp_x": math.nan, "cdp_y": math.nan, "live_mask": False, "trace_index": -1}
    chunks = tuple(min(MAP_CHUNK, n) for n in grid.shape)
    header = np.frombuffer(file.header, np.uint8)
    specs = [ArraySpec.small(name, (name,), values, **named[name]) for name, values in axes.items()]
    specs += [
        ArraySpec(name, VOLUME_AXES[:2], grid.shape, values.dtype.name, chunks, chunks, fills[name], named[name])
        for name, values in maps.items()
    ]
    specs.append(ArraySpec.small("file_header", ("file_header_byte",), header, long_name="raw SEG-Y file header"))
    return specs, {**axes, **maps, "file_header": header}


def identity_of(digests: list[str], values: dict[str, npt.NDArray[Any]]) -> str:
    """SHA-256 of all that decides a voxel: its shard's bytes, the axes, and which traces are live."""
    whole = hashlib.sha256(f"geobatch segy {NUMERICAL_VERSION}".encode())
    for digest in digests:
        whole.update(digest.encode())
    for name in ("inline", "crossline", "sample", "live_mask"):
        whole.update(values[name].tobytes())
    return whole.hexdigest()


def describe(
    file: SegyFile,
    table: TraceTable,
    grid: Grid,
    meaning: Meaning,
    layout: SegyLayout,
    crs: str | None,
    identity: str,
) -> dict[str, Any]:
    """The `geobatch` attribute of the survey."""
    lengths = table.fields["coordinate_units"][1] <= METRES
    return {
        "schema": SCHEMA,
        "kind": "volume",
        "variable": meaning.quantity,
        "quantity": meaning.quantity,
        "domain": meaning.domain,
        "sample_interval": meaning.sample_interval,
        "sample_unit": meaning.sample_unit,
        "evidence": meaning.evidence,
        "bin_grid": fit_bin_grid(grid, *coordinates(table)) if lengths else None,
        "crs": crs,
        "statistics": {
            **figures(table.moments),
            "non_finite": table.non_finite,
            "traces": file.trace_count,
            "dead_traces": int((~table.live).sum()),
            "missing_traces": math.prod(grid.shape) - file.trace_count,
        },
        "source": {
            "url": file.url,
            "size_bytes": file.size_bytes,
            "version": file.version,
            "format_code": file.format_code,
            "byte_order": "big" if file.byte_order == ">" else "little",
            "revision": file.revision,
            "layout": dataclasses.asdict(layout),
            "unit_factor": meaning.unit_factor,
        },
        "warnings": _warnings(file, table, grid, meaning),
        "numerical_version": NUMERICAL_VERSION,
        "identity": identity,
        "state": COMPLETE,
    }


def figures(moments: PartialMoments) -> dict[str, float | int | None]:
    """Count, mean, std, rms, min and max; None where there was no sample."""
    if not moments.count:
        return {"count": 0, **dict.fromkeys(("mean", "std", "rms", "min", "max"))}
    variance = moments.squares / moments.count
    return {
        "count": moments.count,
        "mean": moments.mean,
        "std": math.sqrt(variance),
        "rms": math.sqrt(variance + moments.mean**2),
        "min": moments.minimum,
        "max": moments.maximum,
    }


def _warnings(file: SegyFile, table: TraceTable, grid: Grid, meaning: Meaning) -> list[str]:
    """What a geophysicist should look at before using the survey."""
    found = list(meaning.doubts)
    live = int(table.live.sum())
    if live == 0:
        found.append("no trace is live: every sample is zero or not finite, or every trace is coded dead")
    if table.non_finite:
        found.append(f"{table.non_finite} samples of live traces are not finite")
    x, y = coordinates(table)
    if file.trace_count > 1 and np.ptp(x) == 0 and np.ptp(y) == 0:
        found.append("cdp_x and cdp_y do not vary: the survey has no map coordinates")
    low, high = table.fields["trace_samples"]
    if low and (low, high) != (file.sample_count, file.sample_count):
        found.append(f"trace headers give {low} to {high} samples, the binary header {file.sample_count}")
    units = table.fields["coordinate_units"]
    if units[1] > METRES:
        found.append(f"coordinates are angles (unit code {units[1]} in bytes 89-90): no bin grid in metres")
    if file.in_feet:
        found.append("the binary header gives lengths in feet: cdp_x and cdp_y are kept as they are")
    return found

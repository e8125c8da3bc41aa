"""The arrays of a survey that was ingested from SEG-Y: on a grid, in gathers, or as single traces."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import GeometryError
from geobatch.formats.segy_describe import describe as describe
from geobatch.formats.segy_detect import RECEIVER_X, RECEIVER_Y, SOURCE_X, SOURCE_Y
from geobatch.formats.segy_file import SegyFile
from geobatch.formats.segy_map import map_coordinates, map_unit
from geobatch.formats.segy_meaning import Meaning
from geobatch.formats.segy_placement import Placement
from geobatch.formats.segy_scan import TraceTable
from geobatch.shards import ArraySpec, clip_grid

Size3 = tuple[int, int, int]
# Version of everything in the SEG-Y reader that decides a voxel's value: decoding, validity, placement.
NUMERICAL_VERSION = 1
MAP_CHUNK = 1024
LINE_CHUNK = 2**20
# Gathers and lines are cut so that a chunk holds about as many samples as one of a volume.
GATHER_TRACES = 64
GATHER_BINS = 8
LINE_SAMPLES = 16
LONG_NAMES = {"amplitude": "seismic amplitude", "velocity": "seismic velocity"}
# 4-byte words of the trace header that become coordinates of single traces, besides the layout's own.
NUMBERS = {
    "field_record": (9, "field record number"),
    "channel": (13, "trace number within the field record"),
    "shot_point": (17, "energy source point number"),
    "cdp": (21, "ensemble number"),
}


def cut(kind: str, sizes: tuple[int, ...], chunk: Size3, shard: Size3) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk and shard of an array of a kind and size, from those of a volume."""
    ratios = [s // c for s, c in zip(shard, chunk, strict=True)]
    if kind == "gathers":
        own = (max(1, chunk[0] // GATHER_BINS), max(1, chunk[1] // GATHER_BINS), GATHER_TRACES, chunk[2])
        return clip_grid(sizes, own, (own[0] * ratios[0], own[1] * ratios[1], GATHER_TRACES, own[3] * ratios[2]))
    if kind == "traces":
        line = (max(1, chunk[0] * chunk[1] // LINE_SAMPLES), chunk[2] * LINE_SAMPLES)
        return clip_grid(sizes, line, (line[0] * ratios[0] * ratios[1], line[1] * ratios[2]))
    return clip_grid(sizes, chunk, shard)


def volume_specs(
    file: SegyFile, placement: Placement, meaning: Meaning, chunk: Size3, shard: Size3
) -> tuple[ArraySpec, ArraySpec]:
    """The specs of the samples and of their trace headers, sharded alike."""
    shape = (*placement.shape, file.sample_count)
    chunks, shards = cut(placement.kind, shape, chunk, shard)
    beside = {
        "volume": "cdp_x cdp_y",
        "gathers": "cdp_x cdp_y",
        "traces": " ".join([*NUMBERS, *_map_names(), "inline", "crossline", "offset"]),
    }
    attributes = {
        "long_name": LONG_NAMES[meaning.quantity],
        "units": meaning.units,
        "coordinates": beside[placement.kind],
    }
    dims = placement.dims
    volume = ArraySpec(meaning.quantity, (*dims, "sample"), shape, "float32", chunks, shards, math.nan, attributes)
    headers = ArraySpec(
        "trace_header",
        (*dims, "header_byte"),
        (*placement.shape, file.header_bytes),
        "uint8",
        (*chunks[:-1], file.header_bytes),
        (*shards[:-1], file.header_bytes),
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
    file: SegyFile, placement: Placement, meaning: Meaning, samples: npt.NDArray[np.float64], crs: str | None
) -> tuple[list[ArraySpec], dict[str, npt.NDArray[Any]]]:
    """Specs and values of the axes, of what stands beside each trace or bin, and of the file header."""
    axes: dict[str, npt.NDArray[Any]] = {**placement.axes, "sample": samples}
    named = _axis_attributes(meaning)
    specs = [ArraySpec.small(name, (name,), values, **named[name]) for name, values in axes.items()]
    beside = _beside_traces(file, placement, crs) + _beside_bins(file, placement, crs)
    for name, dims, values, fill, attributes in beside:
        limit = LINE_CHUNK if len(dims) == 1 else MAP_CHUNK
        chunks = tuple(min(limit, n) for n in values.shape)
        specs.append(ArraySpec(name, dims, values.shape, values.dtype.name, chunks, chunks, fill, attributes))
    found = {**axes, **{name: array for name, _, array, _, _ in beside}}
    raw = {"file_header": ("raw SEG-Y file header", file.header)}
    if file.trailer:
        raw["file_trailer"] = ("raw SEG-Y data trailer", file.trailer)
    for name, (about, body) in raw.items():
        found[name] = np.frombuffer(body, np.uint8)
        specs.append(ArraySpec.small(name, (f"{name}_byte",), found[name], long_name=about))
    return specs, found


def identity_of(kind: str, digests: list[str], values: dict[str, npt.NDArray[Any]]) -> str:
    """SHA-256 of all that decides a voxel: its shard's bytes, the axes, and which traces are live."""
    whole = hashlib.sha256(f"geobatch segy {NUMERICAL_VERSION}".encode())
    for digest in digests:
        whole.update(digest.encode())
    own = {"volume": (), "gathers": ("offset", "angle", "fold"), "traces": ("cdp_x", "cdp_y", "offset", "cdp")}[kind]
    for name in ("inline", "crossline", "sample", "live_mask", *own):
        if name in values:
            whole.update(values[name].tobytes())
    return whole.hexdigest()


Beside = tuple[str, tuple[str, ...], npt.NDArray[Any], float | int | bool, dict[str, Any]]


def _beside_traces(file: SegyFile, placement: Placement, crs: str | None) -> list[Beside]:
    """What has a value for each trace: whether it is live and its place in the file, and of single traces all else."""
    dims, table = placement.dims, placement.table
    live = {"long_name": "trace was recorded and is not dead"}
    ordinal = {"long_name": "ordinal of the trace in the source file, -1 where none"}
    found: list[Beside] = [
        ("live_mask", dims, placement.place(table.live, False), False, live),
        ("trace_index", dims, placement.place(np.arange(file.trace_count, dtype=np.int32), -1), -1, ordinal),
    ]
    if placement.kind != "traces":
        return found
    layout = placement.layout
    found.append(("inline", dims, table.inline, 0, {"long_name": "inline number"}))
    found.append(("crossline", dims, table.crossline, 0, {"long_name": "crossline number"}))
    found.append(("offset", dims, table.word(layout.offset), 0, {"long_name": "source-receiver offset"}))
    found += [(name, dims, table.word(byte), 0, {"long_name": about}) for name, (byte, about) in NUMBERS.items()]
    unit = map_unit(file, placement).name
    for (x_name, y_name), positions, about in (
        (("cdp_x", "cdp_y"), (None, None), "bin"),
        (("source_x", "source_y"), (SOURCE_X, SOURCE_Y), "source"),
        (("receiver_x", "receiver_y"), (RECEIVER_X, RECEIVER_Y), "receiver"),
    ):
        x, y = map_coordinates(file, placement, *positions)
        named = {"units": unit, "crs": crs}
        found.append((x_name, dims, x, math.nan, {"long_name": f"easting of the {about}", **named}))
        found.append((y_name, dims, y, math.nan, {"long_name": f"northing of the {about}", **named}))
    if file.uneven:
        found.append(("sample_count", dims, _sample_counts(file), 0, {"long_name": "samples recorded"}))
    return found


def _beside_bins(file: SegyFile, placement: Placement, crs: str | None) -> list[Beside]:
    """What has a value for each bin of the map `(inline, crossline)`."""
    if placement.bins is None:
        return []
    dims = placement.dims[:2]
    x, y = map_coordinates(file, placement)
    unit = map_unit(file, placement).name
    found: list[Beside] = []
    for name, values, about in (("cdp_x", x, "easting"), ("cdp_y", y, "northing")):
        attributes = {"long_name": f"{about} of the bin", "units": unit, "crs": crs}
        found.append((name, dims, placement.per_bin(values, math.nan), math.nan, attributes))
    if placement.kind == "gathers":
        found.append(("fold", dims, placement.fold(), 0, {"long_name": "traces recorded in the bin"}))
    return found


def _sample_counts(file: SegyFile) -> npt.NDArray[np.int32]:
    """Samples of each trace of files whose traces differ in length."""
    width = (file.trace_bytes - file.header_bytes) // file.sample_count
    starts = [part.starts for part in file.parts or (file,) if part.starts is not None]
    counts = np.concatenate([np.diff(places) for places in starts])
    return ((counts - file.header_bytes) // width).astype(np.int32)


def _map_names() -> tuple[str, ...]:
    return tuple(f"{of}_{axis}" for of in ("cdp", "source", "receiver") for axis in "xy")


def _axis_attributes(meaning: Meaning) -> dict[str, dict[str, Any]]:
    return {
        "inline": {"long_name": "inline number"},
        "crossline": {"long_name": "crossline number"},
        "offset": {"long_name": "source-receiver offset"},
        "angle": {"long_name": "angle of incidence"},
        "sample": {
            "long_name": "two-way time" if meaning.domain == "time" else "depth",
            "units": meaning.sample_unit,
        },
    }

"""Synthetic surveys as SEG-Y objects, as surveys and as label surveys, written slab by slab."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from geobatch.errors import UsageError
from geobatch.formats.segy_file import TRACE_HEADER_BYTES
from geobatch.formats.segy_samples import CODE_IBM, CODE_IEEE, CODE_INT16, encode_samples
from geobatch.interpretation.synthetic import CLASSES, FAULT_CLASS, SyntheticSurvey
from geobatch.shards import (
    ArraySpec,
    create_arrays,
    encode_shard,
    finish_group,
    shard_indices,
    shard_key,
    shard_region,
)
from geobatch.storage import open_storage, split_url
from geobatch.survey import COMPLETE, INVALID_CLASS, SCHEMA, VOLUME_AXES, class_attributes

FIRST_INLINE, FIRST_CROSSLINE = 1001, 2001
BIN_SIZE_M = 25.0
AZIMUTH_DEG = 30.0
ORIGIN_M: Final = (600_000.0, 6_070_000.0)
Size3 = tuple[int, int, int]

_SLAB_CELLS = 2**21
_PLACE = ("cdp_x", "cdp_y", "inline", "crossline")
_TRACE_HEADER = np.dtype(
    {
        "names": ["trace_in_line", "trace_in_file", "cdp", "kind", "scalar", "samples", "interval_us", *_PLACE],
        "formats": [">i4", ">i4", ">i4", ">i2", ">i2", ">u2", ">u2", ">i4", ">i4", ">i4", ">i4"],
        "offsets": [byte - 1 for byte in (1, 5, 21, 29, 71, 115, 117, 181, 185, 189, 193)],
        "itemsize": TRACE_HEADER_BYTES,
    }
)


def write_segy(synthetic: SyntheticSurvey, url: str, format: int = CODE_IBM) -> None:
    """Store the amplitudes as one SEG-Y rev 1 object (SEG, 2002), inlines in order, a few in memory at a time.

    Inline and crossline numbers stand in trace header bytes 189 and 193, bin coordinates in 181 and 185 in
    centimetres (scalar -100), on a grid of 25 m bins turned by 30 degrees.

    Args:
        synthetic: the survey.
        url: of the object: a path or s3://bucket/key.
        format: sample format code, 1 (IBM float), 3 (16-bit integer) or 5 (IEEE float).
    """
    if format not in (CODE_IBM, CODE_INT16, CODE_IEEE):
        raise UsageError("sample format is not written", where=url, measured=format, limit="code 1, 3 or 5")
    inlines, crosslines, samples = synthetic.shape
    root, name = split_url(url)
    with open_storage(root).open_writer(name) as write:
        write(_file_header(synthetic, format))
        thickness = max(1, _SLAB_CELLS // (crosslines * samples))
        for start in range(0, inlines, thickness):
            slab = slice(start, min(start + thickness, inlines))
            amplitude = synthetic.block((slab, slice(0, crosslines), slice(0, samples)))["amplitude"]
            raw = encode_samples(amplitude.reshape(-1, samples), format, ">")
            write(np.concatenate([_trace_headers(synthetic, slab), raw], axis=1).tobytes())


def write_survey(synthetic: SyntheticSurvey, url: str, chunk: Size3 = (64, 64, 64), shard: Size3 = (128,) * 3) -> None:
    """Store the amplitudes as a survey, without the detour over SEG-Y, shard by shard.

    Args:
        synthetic: the survey.
        url: where the survey goes: a path or s3://bucket/prefix.
        chunk: unit of reading (inline, crossline, sample).
        shard: unit of writing, a multiple of `chunk`.
    """
    attributes = {"long_name": "seismic amplitude", "units": "1", "coordinates": "cdp_x cdp_y"}
    volume = _volume_spec("amplitude", synthetic, "float32", chunk, shard, math.nan, attributes)
    live = np.ones(synthetic.shape[:2], bool)
    extra = {"live_mask": live}
    _write(synthetic, url, [volume], extra, {"kind": "volume", "variable": "amplitude", "quantity": "amplitude"})


def write_labels(synthetic: SyntheticSurvey, url: str, chunk: Size3 = (64, 64, 64), shard: Size3 = (128,) * 3) -> None:
    """Store the truth as a label survey: `class_map`, `facies` and `fault`, uint8, shard by shard.

    Args:
        synthetic: the survey.
        url: where the label survey goes: a path or s3://bucket/prefix.
        chunk: unit of reading (inline, crossline, sample).
        shard: unit of writing, a multiple of `chunk`.
    """
    classes = {
        "class_map": [dict(entry) for entry in CLASSES],
        "facies": [dict(entry) for entry in CLASSES[:FAULT_CLASS]],
        "fault": [{"name": "unfaulted", "color": "#ffffff"}, dict(CLASSES[FAULT_CLASS])],
    }
    volumes = [
        _volume_spec(name, synthetic, "uint8", chunk, shard, INVALID_CLASS, _flags(entries))
        for name, entries in classes.items()
    ]
    _write(synthetic, url, volumes, {}, {"kind": "labels", "variable": "class_map"})


def _write(
    synthetic: SyntheticSurvey,
    url: str,
    volumes: Sequence[ArraySpec],
    extra: dict[str, npt.NDArray[Any]],
    meaning: dict[str, str],
) -> None:
    values = _coordinates(synthetic) | extra
    axes = {"sample": ("sample",), "inline": ("inline",), "crossline": ("crossline",)}
    units: dict[str, dict[str, str]] = {"sample": {"units": "ms"}, "cdp_x": {"units": "m"}, "cdp_y": {"units": "m"}}
    small = [
        ArraySpec.small(name, axes.get(name, VOLUME_AXES[:2]), array, **units.get(name, {}))
        for name, array in values.items()
    ]
    specs = [*volumes, *small]
    create_arrays(url, specs, values)
    storage = open_storage(url)
    for index in shard_indices(volumes[0]):
        inline, crossline, sample = shard_region(volumes[0], index)
        block = synthetic.block((inline, crossline, sample))
        for spec in volumes:
            storage.put(shard_key(spec, index), encode_shard(spec, block[spec.name]))
    description = json.dumps(asdict(synthetic), sort_keys=True)
    info = {
        "schema": SCHEMA,
        **meaning,
        "domain": "time",
        "sample_interval": synthetic.sample_interval_ms,
        "sample_unit": "ms",
        "bin_grid": None,
        "crs": None,
        "source": {"synthetic": json.loads(description)},
        "identity": hashlib.sha256(f"synthetic {meaning['kind']} {description}".encode()).hexdigest(),
        "state": COMPLETE,
    }
    finish_group(url, specs, {"geobatch": info})


def _volume_spec(
    name: str,
    synthetic: SyntheticSurvey,
    dtype: str,
    chunk: Size3,
    shard: Size3,
    fill: float,
    attributes: dict[str, Any],
) -> ArraySpec:
    return ArraySpec(name, VOLUME_AXES, synthetic.shape, dtype, chunk, shard, fill, attributes)


def _flags(classes: Sequence[dict[str, str]]) -> dict[str, Any]:
    return class_attributes([entry["name"] for entry in classes], [entry["color"] for entry in classes])


def _coordinates(synthetic: SyntheticSurvey) -> dict[str, npt.NDArray[Any]]:
    inlines, crosslines, samples = synthetic.shape
    x, y = _bin_centres_cm(np.arange(inlines), np.arange(crosslines))
    return {
        "inline": np.arange(FIRST_INLINE, FIRST_INLINE + inlines, dtype=np.int32),
        "crossline": np.arange(FIRST_CROSSLINE, FIRST_CROSSLINE + crosslines, dtype=np.int32),
        "sample": np.arange(samples) * synthetic.sample_interval_ms,
        "cdp_x": x / 100.0,
        "cdp_y": y / 100.0,
    }


def _bin_centres_cm(
    inline_indices: npt.NDArray[Any], crossline_indices: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return easting and northing (inline, crossline) in whole centimetres."""
    azimuth = math.radians(AZIMUTH_DEG)
    along, across = inline_indices[:, None] * BIN_SIZE_M, crossline_indices[None, :] * BIN_SIZE_M
    x = ORIGIN_M[0] + along * math.sin(azimuth) + across * math.cos(azimuth)
    y = ORIGIN_M[1] + along * math.cos(azimuth) - across * math.sin(azimuth)
    return np.rint(100 * x), np.rint(100 * y)


def _trace_headers(synthetic: SyntheticSurvey, slab: slice) -> npt.NDArray[np.uint8]:
    _, crosslines, samples = synthetic.shape
    inline_indices = np.arange(slab.start, slab.stop)
    inline, crossline = np.meshgrid(inline_indices, np.arange(crosslines), indexing="ij")
    x, y = _bin_centres_cm(inline_indices, np.arange(crosslines))
    header = np.zeros(inline.size, _TRACE_HEADER)
    ordinal = inline.ravel() * crosslines + crossline.ravel() + 1
    header["trace_in_line"] = crossline.ravel() + 1
    header["trace_in_file"] = header["cdp"] = ordinal
    header["kind"] = 1
    header["scalar"] = -100
    header["samples"] = samples
    header["interval_us"] = _interval_us(synthetic)
    header["cdp_x"], header["cdp_y"] = x.ravel(), y.ravel()
    header["inline"] = inline.ravel() + FIRST_INLINE
    header["crossline"] = crossline.ravel() + FIRST_CROSSLINE
    return header.view(np.uint8).reshape(inline.size, TRACE_HEADER_BYTES)


def _file_header(synthetic: SyntheticSurvey, format: int) -> bytes:
    lines = [
        "SYNTHETIC SEISMIC SURVEY WITH KNOWN FACIES AND FAULTS, NOT FIELD DATA",
        f"SEED {synthetic.seed}  SHAPE {' X '.join(map(str, synthetic.shape))}  INLINE, CROSSLINE, SAMPLE",
        f"RICKER WAVELET {synthetic.peak_frequency_hz:g} HZ  SAMPLE INTERVAL {synthetic.sample_interval_ms:g} MS TWT",
        "INLINE NUMBER: BYTES 189-192  CROSSLINE NUMBER: BYTES 193-196",
        "BIN EASTING, NORTHING: BYTES 181-184, 185-188, SCALAR IN BYTES 71-72",
        f"BINS {BIN_SIZE_M:g} M, INLINE DIRECTION {AZIMUTH_DEG:g} DEGREES FROM NORTH",
    ]
    numbered = [f"C{n:2d} {lines[n - 1] if n <= len(lines) else ''}" for n in range(1, 39)]
    numbered += ["C39 SEG Y REV1", "C40 END TEXTUAL HEADER"]
    text = "".join(line.ljust(80)[:80] for line in numbered).encode("cp037")
    binary = bytearray(400)
    fields = {
        (3205, 4): 1,
        (3213, 2): 1,
        (3217, 2): _interval_us(synthetic),
        (3221, 2): synthetic.shape[2],
        (3225, 2): format,
        (3229, 2): 4,
        (3255, 2): 1,
        (3501, 2): 0x0100,
        (3503, 2): 1,
    }
    for (byte, size), value in fields.items():
        binary[byte - 3201 : byte - 3201 + size] = value.to_bytes(size, "big")
    return text + bytes(binary)


def _interval_us(synthetic: SyntheticSurvey) -> int:
    return round(1000 * synthetic.sample_interval_ms)

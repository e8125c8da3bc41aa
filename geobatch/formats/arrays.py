"""Arrays of NumPy, Zarr, NetCDF 4 and HDF5 into volumes, rasters and class maps, by a short mapping in the job file.

    format: arrays
    options:
      dims: [crossline, inline, sample]          # the array's own axes, in its order
      axes: {inline: {start: 1000}, crossline: {start: 1155}, sample: {start: 0, step: 4, unit: ms}}
      nodata: -999.25

What is written where is `arrays_survey`'s; this page reads a region, orders its axes and stores shards.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from geobatch.blocks import Region
from geobatch.errors import DataError, FormatError, UsageError
from geobatch.fanout import open_fanout
from geobatch.formats.arrays_npy import NpySource, open_npy, open_npz
from geobatch.formats.arrays_stored import StoredSource, open_hdf_array, open_zarr_array
from geobatch.formats.arrays_survey import NUMERICAL_VERSION, Target, describe, live_mask, make_target
from geobatch.formats.ingestion import Fault, Written, ingesting, store_shard
from geobatch.formats.lazy import Key, enclosing, lazy_array
from geobatch.formats.spec import IngestOptions, IngestRun, Inspected
from geobatch.moments import PartialMoments, merge_moments, partial_moments
from geobatch.shards import shard_grid, shard_region
from geobatch.storage import absolute_url, open_storage, split_url
from geobatch.survey import INVALID_CLASS

Source = NpySource | StoredSource
SMALL_BYTES = 64 * 2**20
HDF_SUFFIXES = (".nc", ".nc4", ".h5", ".hdf5", ".he5")


class Axis(BaseModel):
    """Where the coordinates of an axis come from.

    Attributes:
        start: Of the first cell.
        step: From cell to cell.
        coordinate: Name of the array that holds them, instead of start and step.
        unit: `ms`, `s`, `us`, `m`, `km` or `ft` of a sample axis; converted to ms or m.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    start: float = 0.0
    step: float = 1.0
    coordinate: str | None = None
    unit: Literal["ms", "s", "us", "m", "km", "ft"] | None = None


class Options(IngestOptions):
    """Options of arrays.

    Attributes:
        kind: `volume`, `raster` or `labels`.
        variable: Member of a .npz, or array of a Zarr group or NetCDF file; not needed when there is only one.
        dims: Names of the array's axes in its own order: inline, crossline, sample, or band, y, x; those that it lacks
            are of length one.
        axes: Per axis, start and step or the array that holds its coordinates.
        quantity: What a volume or raster measures, such as `amplitude`, `velocity` or `elevation`.
        units: Of the values; `m/s` for velocity, `m` for elevation, else `1`.
        domain: `time` or `depth` of a volume; by the unit of its sample axis.
        nodata: The value that means none, besides NaN.
        classes: Name per value of a label array, in the order of classes.
        chunk: Unit of reading, three axes.
        shard: Unit of writing, a multiple of `chunk`.
    """

    kind: Literal["volume", "raster", "labels"] = "volume"
    variable: str | None = None
    dims: tuple[str, ...] | None = None
    axes: dict[str, Axis] = Field(default={})
    quantity: str | None = None
    units: str | None = None
    domain: Literal["time", "depth"] | None = None
    nodata: float | None = None
    classes: dict[int, str] = Field(default={})
    chunk: tuple[int, int, int] | None = None
    shard: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Work:
    """All that writing a piece needs."""

    url: str
    source: Source
    target: Target


def ingest_source(src_url: str, dst_url: str, options: Options, run: IngestRun) -> dict[str, Any]:
    """The summary of the survey written to `dst_url` from the array at `src_url`.

    Raises:
        NotFoundError: nothing is there.
        FormatError: the array is damaged, or holds no numbers.
        GeometryError: its coordinates make no axis.
        UsageError: the mapping does not fit the array.
    """
    src_url, dst_url = absolute_url(src_url), absolute_url(dst_url)
    source = open_array(src_url, options.variable)
    version = source_version(src_url)
    decisive = {
        "format": "arrays",
        "numerical_version": NUMERICAL_VERSION,
        "source": [src_url, *version],
        "options": options.decisive(),
    }
    coordinate = functools.partial(read_coordinate, src_url)
    target = make_target(source, options, coordinate)
    cells = int(np.prod(source.shape)) * np.dtype(source.dtype).itemsize
    with (
        ingesting(dst_url, decisive, overwrite=run.overwrite) as work,
        open_fanout(small=cells <= SMALL_BYTES, num_cpus=run.num_cpus) as fanout,
    ):
        pieces = pieces_of(target, source)
        if work.done is not None:
            run.on_progress(len(pieces), len(pieces))
            return {"url": dst_url, **work.done}
        work.create([target.main, *target.small], target.values)
        passed = iter(range(1, len(pieces) + 1))
        written = work.write(
            functools.partial(write_piece, job=Work(dst_url, source, target)),
            pieces,
            fanout=fanout,
            task_bytes=_piece_bytes(target, source),
            on_piece=lambda _: run.on_progress(next(passed), len(pieces)),
        )
        if source_version(src_url) != version:
            raise DataError("array changed while it was being read", where=src_url, remedy="Run ingest again.")
        found = [part.figures for part in written]
        specs = [target.main, *target.small]
        values = dict(target.values)
        if options.kind == "volume":
            spec, live, zero = live_mask(target, [_unpacked(figure) for figure in found])
            work.create([spec], {"live_mask": live})
            specs, values = [*specs, spec], {**values, "live_mask": live}
            target = dataclasses.replace(target, live=int(live.sum()), zero=zero)
        moments = functools.reduce(
            merge_moments, (PartialMoments(**f["moments"]) for f in found if f["moments"]), PartialMoments()
        )
        non_finite = sum(figure["non_finite"] for figure in found)
        info = describe(target, source, options, version, moments, non_finite, work.digests(), values)
        info = work.finish(specs, info)
    return {"url": dst_url, "shape": list(target.main.shape), **info}


def inspect_source(src_url: str, options: Options) -> Inspected:
    """What the array holds, from its header and up to 27 small parts spread over it."""
    src_url = absolute_url(src_url)
    source = open_array(src_url, options.variable)
    spans = [sorted({0, max(0, n // 2 - 8), max(0, n - 16)}) for n in source.shape[-3:]]
    lead = tuple(slice(0, 1) for _ in source.shape[:-3])
    parts = []
    for starts in np.ndindex(*[len(span) for span in spans]):
        region = tuple(
            slice(span[i], min(span[i] + 16, n)) for span, i, n in zip(spans, starts, source.shape[-3:], strict=True)
        )
        parts.append(source.read((*lead, *region)).astype(np.float64).ravel())
    values = np.concatenate(parts)
    missing = ~np.isfinite(values) | (values == (np.nan if options.nodata is None else options.nodata))
    suspicious = []
    if missing.all():
        suspicious.append("no sampled value is valid")
    elif np.ptp(values[~missing]) == 0:
        suspicious.append(f"every sampled value is {values[~missing][0]:g}")
    for odd in (-999.25, -9999.0, -999.0, 1e30, -32768.0):
        if options.nodata != odd and (share := float((values == odd).mean())) > 0.001:
            suspicious.append(f"{share:.1%} of the sampled values are {odd:g}: nodata?")
    told = {
        "suspicious": suspicious,
        "url": src_url,
        "kind": "array",
        "shape": list(source.shape),
        "dtype": source.dtype,
        "dims": list(source.dims) if source.dims else None,
        "attributes": source.attributes,
        "axes": {},
        "sampled": {"valid": float((~missing).mean()), **_range(values[~missing])},
    }
    return Inspected(told, _as_dataset(source, options))


def _as_dataset(source: Source, options: Options) -> xr.Dataset:
    """The array as it is, its axes named as far as anybody knows."""
    dims = options.dims or source.dims or ()
    if len(set(dims)) != len(source.shape):
        dims = tuple(f"axis_{number}" for number in range(len(source.shape)))

    def read(key: Key) -> npt.NDArray[np.float32]:
        region, inside = enclosing(key, source.shape)
        found = source.read(region)[inside].astype(np.float32)
        return found if options.nodata is None else np.where(found == np.float32(options.nodata), np.nan, found)

    side = (64,) * len(source.shape)
    cells = lazy_array(dims, tuple(source.shape), "float32", read, chunks=side)
    return xr.Dataset({"values": cells}, attrs={"geobatch": {"kind": "array", "variable": "values"}})


def open_array(url: str, variable: str | None) -> Source:
    """The array at `url`, whatever keeps it.

    Raises:
        NotFoundError: nothing is there.
        FormatError: it is damaged, or holds no numbers.
        UsageError: it is of no known format, or none of several arrays was named.
    """
    suffix = PurePosixPath(url).suffix.lower()
    if suffix == ".npy":
        return open_npy(url)
    if suffix == ".npz":
        return open_npz(url, variable)
    if suffix in HDF_SUFFIXES:
        return open_hdf_array(url, variable)
    if suffix == ".zarr" or any(open_storage(url).exists(name) for name in ("zarr.json", ".zgroup", ".zarray")):
        return open_zarr_array(url, variable)
    root, name = split_url(url)
    open_storage(root).size(name)
    known = ", ".join((".npy", ".npz", ".zarr", *HDF_SUFFIXES))
    raise UsageError("no array of a known format", where=url, measured=suffix or "no suffix", limit=known)


def source_version(url: str) -> tuple[str, int]:
    """Version and size of a file, or of all objects of a Zarr group together: one listing."""
    root, name = split_url(url)
    folder = list(open_storage(url).list())
    if not folder:
        return open_storage(root).version(name), open_storage(root).size(name)
    # One version per object would be a request each; metadata change when arrays do.
    storage = open_storage(url)
    metadata = [
        storage.version(key) for key, _ in folder if key.rpartition("/")[2] in ("zarr.json", ".zarray", ".zgroup")
    ]
    digest = hash_of("\n".join([*(f"{key} {size}" for key, size in folder), *metadata]))
    return digest, sum(size for _, size in folder)


def hash_of(text: str) -> str:
    """SHA-256 of a text."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def read_coordinate(url: str, name: str) -> npt.NDArray[np.float64]:
    """A one-dimensional array beside the main one, float64."""
    if PurePosixPath(url).suffix.lower() == ".npy":
        raise UsageError("a .npy file holds no coordinates", where=url, measured=name, remedy="Give start and step.")
    source = open_array(url, name)
    if len(source.shape) != 1:
        raise UsageError("coordinate has several axes", where=f"{url}:{name}", measured=source.shape, limit="one axis")
    return source.read((slice(0, source.shape[0]),)).astype(np.float64)


def pieces_of(target: Target, source: Source) -> list[tuple[int, int, int]]:
    """Positions in the shard grid; -1 along the axis whose values lie side by side, of which a piece takes all."""
    grid = list(shard_grid(target.main))
    whole = target.order.index(source.fastest) if source.fastest in target.order else 2
    grid[whole] = 1
    pieces = []
    for index in np.ndindex(*grid):
        position = list(index)
        position[whole] = -1
        pieces.append((position[0], position[1], position[2]))
    return pieces


def write_piece(piece: tuple[int, int, int], job: Work) -> Written:
    """Read a piece, bring its axes in order, store its shards; moments, and which traces hold a value or only zeros."""
    spec, grid = job.target.main, shard_grid(job.target.main)
    whole = piece.index(-1)
    first = tuple(max(0, i) for i in piece)
    region = list(shard_region(spec, first))
    region[whole] = slice(0, spec.shape[whole])
    cells, non_finite, unknown = convert(_read_ordered(job, tuple(region)), job.target)
    objects = []
    for k in range(grid[whole]):
        index = tuple(k if axis == whole else i for axis, i in enumerate(piece))
        own = [slice(0, part.stop - part.start) for part in region]
        own[whole] = shard_region(spec, index)[whole]
        objects.append(store_shard(job.url, spec, index, cells[tuple(own)]))
    figures: dict[str, Any] = {"non_finite": non_finite, "moments": {}}
    if spec.dtype == "uint8":
        valid = np.where(cells == INVALID_CLASS, np.nan, cells).astype(np.float32)
    else:
        valid = cells
        present = np.isfinite(cells)
        figures |= {
            "place": [[part.start, part.stop] for part in region[:2]],
            "live": _packed(present.any(axis=2)),
            "nonzero": _packed((present & (cells != 0)).any(axis=2)),
        }
    moments = partial_moments(valid)
    figures["moments"] = dataclasses.asdict(moments) if moments.count else {}
    where = f"cells {', '.join(f'{part.start} to {part.stop}' for part in region)}"
    told = f"values without a class: {', '.join(f'{value:g}' for value in unknown[:10])}"
    faults = (Fault("region", where, told, "left without a class"),) if unknown.size else ()
    return Written(tuple(objects), faults, figures)


def convert(values: npt.NDArray[Any], target: Target) -> tuple[npt.NDArray[Any], int, npt.NDArray[Any]]:
    """Values as they are stored, float32 with NaN or class numbers; how many were infinite; values without a class."""
    missing = np.zeros(values.shape, bool)
    for nodata in target.nodata:
        missing |= values == nodata
    if target.codes is not None:
        out = np.full(values.shape, INVALID_CLASS, np.uint8)
        for number, code in enumerate(target.codes):
            out[(values == code) & ~missing] = number
        none = (out == INVALID_CLASS) & ~missing
        if values.dtype.kind == "f":
            none &= np.isfinite(values)
        return out, 0, np.unique(values[none])
    with np.errstate(over="ignore"):
        out = values.astype(np.float32, copy=True)
        if target.scale != (1.0, 0.0):
            out = (values * target.scale[0] + target.scale[1]).astype(np.float32)
    infinite = np.isinf(out) & ~missing
    out[missing | infinite] = np.nan
    return out, int(infinite.sum()), np.zeros(0)


def _read_ordered(job: Work, region: Region) -> npt.NDArray[Any]:
    """A region of the target's three axes, from the array's own."""
    order, source = job.target.order, job.source
    own = tuple(region[order.index(axis)] for axis in range(len(source.shape)))
    values = source.read(own)
    present = [axis for axis in order if axis >= 0]
    values = values.transpose(present)
    return values[tuple(slice(None) if axis >= 0 else np.newaxis for axis in order)]


def _piece_bytes(target: Target, source: Source) -> int:
    """Peak memory of one write task: the piece as read and as float32, masks, and the runs being read."""
    whole = target.order.index(source.fastest) if source.fastest in target.order else 2
    sides = [min(s, n) for s, n in zip(target.main.shards, target.main.shape, strict=True)]
    sides[whole] = target.main.shape[whole]
    cells = int(np.prod(sides))
    return cells * (2 * np.dtype(source.dtype).itemsize + 16) + 5 * 32 * 2**20


def _packed(mask: npt.NDArray[np.bool_]) -> str:
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def _unpacked(figure: dict[str, Any]) -> tuple[tuple[slice, slice], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    rows, columns = (slice(*pair) for pair in figure["place"])
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    masks = [
        np.unpackbits(np.frombuffer(base64.b64decode(figure[name]), np.uint8), count=shape[0] * shape[1])
        for name in ("live", "nonzero")
    ]
    return (rows, columns), masks[0].reshape(shape).astype(bool), masks[1].reshape(shape).astype(bool)


def _range(values: npt.NDArray[np.float64]) -> dict[str, float]:
    if not values.size:
        return {}
    return {"min": float(values.min()), "max": float(values.max()), "mean": float(values.mean())}


__all__ = ["FormatError", "Options", "ingest_source", "inspect_source"]

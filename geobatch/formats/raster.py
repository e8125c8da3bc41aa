"""GeoTIFF, COG and mosaics of them to a raster survey `(band, y, x)`: rasterio decodes and warps, window by window.

find_sources → scan_tiles (tasks) → make_mosaic → write_piece (tasks over shards) → finish: attributes, statistics
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import FormatError
from geobatch.fanout import open_fanout
from geobatch.formats.ingestion import Fault, Ingestion, Written, ingesting, store_shard
from geobatch.formats.lazy import Key, enclosing, lazy_array, small_variables
from geobatch.formats.raster_grid import Mosaic, make_mosaic, parse_crs
from geobatch.formats.raster_nodata import useless_faults
from geobatch.formats.raster_read import Cells, Overlap, read_cells
from geobatch.formats.raster_source import BLOCK_BYTES, GDAL_CACHE_BYTES, Tile
from geobatch.formats.raster_spec import Options
from geobatch.formats.raster_survey import (
    NUMERICAL_VERSION,
    axes,
    class_counts,
    class_flags_of,
    describe,
    describe_values,
    identity_of,
    merge_figures,
    raster_specs,
    warnings_of,
)
from geobatch.formats.raster_tiles import find_sources, scan_tiles
from geobatch.formats.spec import IngestRun, Inspected
from geobatch.moments import partial_moments
from geobatch.shards import ArraySpec, require_whole_multiple, shard_grid
from geobatch.storage import absolute_url

SMALL_BYTES = 64 * 2**20
PIECE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Piece:
    """Neighbouring shards of some bands that are read together; first position and the one after the last, per axis."""

    bands: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True)
class Target:
    """Where pieces go: the survey's URL, its values and their mask."""

    url: str
    values: ArraySpec
    valid: ArraySpec | None


def ingest_source(src_url: str, dst_url: str, options: Options, run: IngestRun) -> dict[str, Any]:
    """A summary of the raster survey written to `dst_url` from the file, folder or list of tiles at `src_url`.

    Raises:
        NotFoundError: no such file.
        FormatError: no raster there reads.
        GeometryError: tiles lie on no common grid, or nothing tells where they lie.
        MismatchError: tiles differ in CRS, bands or colours.
        UsageError: another survey is there already, or options contradict each other.
    """
    src_url, dst_url = absolute_url(src_url), absolute_url(dst_url)
    require_whole_multiple("yx", options.chunk, options.shard)
    sources = find_sources(src_url, options.asset)
    decisive = {
        "format": "raster",
        "numerical_version": NUMERICAL_VERSION,
        "sources": [[source.url, source.version, source.size_bytes, source.mask_bytes] for source in sources],
        "options": options.decisive(),
    }
    size_bytes = sum(source.size_bytes for source in sources)
    with (
        ingesting(dst_url, decisive, overwrite=run.overwrite, sources=[(s.url, s.version) for s in sources]) as work,
        open_fanout(small=size_bytes <= SMALL_BYTES, num_cpus=run.num_cpus) as fanout,
    ):
        if work.done is not None:
            return {"url": dst_url, **work.done}
        tiles, faults = scan_tiles(sources, fanout, work)
        work.report(faults)
        mosaic = grid_of(tiles, options, src_url)
        work.report(useless_faults(mosaic))
        variable = options.variable
        told = describe_values(mosaic, variable, options.units)
        target = Target(dst_url, *raster_specs(mosaic, variable, told, options.chunk, options.shard))
        small, values = axes(mosaic)
        work.create([*_arrays(target), *small], values)
        written = _write(mosaic, target, options.overlap, work, fanout, run)
        bad = [fault for part in written for fault in part.faults]
        merged = merge_figures([part.figures for part in written])
        _refuse_unreadable(src_url, bad, merged)
        told = {**target.values.attributes, **class_flags_of(mosaic, merged)}
        target = dataclasses.replace(target, values=dataclasses.replace(target.values, attributes=told))
        work.create([target.values], {})
        info = describe(mosaic, merged, options, src_url, sources, warnings_of(mosaic, merged, len(faults) + len(bad)))
        info["identity"] = identity_of(work.digests(), values, mosaic.crs)
        attributes: dict[str, Any] = {"crs": info["crs"]} if info["crs"] else {}
        info = work.finish([*_arrays(target), *small], info, **attributes)
    return {"url": dst_url, "shape": list(target.values.shape), "shards": len(work.digests()), **info}


def inspect_source(src_url: str, options: Options) -> Inspected:
    """A JSON description of the rasters at `src_url` from one pass over them, suspicious things first."""
    from geobatch.formats.raster_inspect import describe_raster

    src_url = absolute_url(src_url)
    sources = find_sources(src_url, options.asset)
    with open_fanout(small=sum(source.size_bytes for source in sources) <= SMALL_BYTES) as fanout:
        tiles, faults = scan_tiles(sources, fanout, None)
        mosaic = grid_of(tiles, options, src_url)
        values, valid = raster_specs(mosaic, options.variable, {}, options.chunk, options.shard)
        target = Target(src_url, values, valid)
        look = functools.partial(look_at_piece, mosaic=mosaic, target=target, overlap=options.overlap)
        parts = [part for _, part in sorted(fanout(look, list(pieces(mosaic, target)), _task_bytes(mosaic, target)))]
    bad = [fault for found, _ in parts for fault in found]
    merged = merge_figures([figures for _, figures in parts])
    _refuse_unreadable(src_url, bad, merged)
    told = warnings_of(mosaic, merged, len(faults) + len(bad))
    info = describe(mosaic, merged, options, src_url, sources, told)
    del info["state"]
    flags = class_flags_of(mosaic, merged)
    dataset = _as_survey(mosaic, target, options.overlap, {**target.values.attributes, **flags}, info)
    return Inspected(describe_raster(src_url, info, flags, class_counts(merged)), dataset)


def _as_survey(
    mosaic: Mosaic, target: Target, overlap: Overlap, attributes: dict[str, Any], info: dict[str, Any]
) -> xr.Dataset:
    """The data set that ingest would write, its cells read from the files."""

    def read(key: Key, name: str) -> npt.NDArray[Any]:
        region, inside = enclosing(key, target.values.shape)
        found: npt.NDArray[Any] = getattr(read_cells(mosaic, region[1], region[2], overlap, region[0]), name)[inside]
        return found

    variables = small_variables(*axes(mosaic))
    for spec, name, told in ((target.values, "values", attributes), (target.valid, "valid", {})):
        if spec is not None:
            reader = functools.partial(read, name=name)
            variables[spec.name] = lazy_array(
                spec.dims, spec.shape, spec.dtype, reader, chunks=spec.chunks, **dict(told)
            )
    return xr.Dataset(variables, attrs={"geobatch": {**info, "variable": target.values.name}})


def grid_of(tiles: Sequence[Tile], options: Options, where: str) -> Mosaic:
    """The mosaic that the options make of the tiles."""
    return make_mosaic(
        [_told(tile, options) for tile in tiles],
        to_crs=options.to_crs,
        resolution=options.resolution,
        resampling=options.resampling,
        where=where,
    )


def pieces(mosaic: Mosaic, target: Target) -> Iterator[Piece]:
    """Every piece: as many shards as one block of the files crosses, as far as memory allows."""
    bands, rows, columns = shard_grid(target.values)
    height, width = target.values.shards[1:]
    band_bytes = height * width * np.dtype(mosaic.dtype).itemsize
    down, across = 1, 1
    if mosaic.resampling is None:
        down, across = (max(tile.block[axis] for tile in mosaic.tiles) for axis in (0, 1))
    together = max(1, min(bands, PIECE_BYTES // band_bytes))
    wide = max(1, min(columns, math.ceil(across / width), PIECE_BYTES // (band_bytes * together)))
    tall = max(1, min(rows, math.ceil(down / height), PIECE_BYTES // (band_bytes * together * wide)))
    steps = zip((bands, rows, columns), (together, tall, wide), strict=True)
    for band, row, column in itertools.product(*(range(0, count, step) for count, step in steps)):
        yield Piece(
            (band, min(band + together, bands)), (row, min(row + tall, rows)), (column, min(column + wide, columns))
        )


def write_piece(piece: Piece, mosaic: Mosaic, target: Target, overlap: Overlap) -> Written:
    """Store the shards of one piece."""
    cells = _read_piece(piece, mosaic, target, overlap)
    _, height, width = target.values.shards
    objects = []
    for index in itertools.product(*(range(*part) for part in (piece.bands, piece.rows, piece.columns))):
        band, row, column = (
            i - part[0] for i, part in zip(index, (piece.bands, piece.rows, piece.columns), strict=True)
        )
        cut = (
            slice(band, band + 1),
            slice(row * height, (row + 1) * height),
            slice(column * width, (column + 1) * width),
        )
        objects.append(store_shard(target.url, target.values, index, cells.values[cut]))
        if target.valid is not None:
            objects.append(store_shard(target.url, target.valid, index, cells.valid[cut]))
    return Written(tuple(objects), tuple(cells.faults), figures_of(cells, piece, mosaic))


def look_at_piece(piece: Piece, mosaic: Mosaic, target: Target, overlap: Overlap) -> tuple[list[Fault], dict[str, Any]]:
    """Faults and figures of one piece, which is stored nowhere."""
    cells = _read_piece(piece, mosaic, target, overlap)
    return cells.faults, figures_of(cells, piece, mosaic)


def figures_of(cells: Cells, piece: Piece, mosaic: Mosaic) -> dict[str, Any]:
    """What a piece holds, as JSON: moments, extremes and classes per band, and counts over all bands."""
    bands = []
    for position, (values, valid) in enumerate(zip(cells.values, cells.valid, strict=True)):
        held = values[valid]
        moments = partial_moments(held)
        extremes = (
            {repr(float(end)): int(np.count_nonzero(held == end)) for end in (held.min(), held.max())}
            if held.size
            else {}
        )
        low, high = (end if math.isfinite(end) else None for end in (moments.minimum, moments.maximum))
        bands.append(
            {
                "band": piece.bands[0] + position,
                "moments": [moments.count, moments.mean, moments.squares, low, high],
                "invalid": int(valid.size - held.size),
                "extremes": extremes,
                "classes": _classes(held) if mosaic.tiles[0].palette else {},
            }
        )
    return {name: getattr(cells, name) for name in ("hidden", "inexact", "overlap", "differing")} | {"bands": bands}


def _told(tile: Tile, options: Options) -> Tile:
    """The tile with what the user says of it in place of what it says itself."""
    changes: dict[str, Any] = {}
    if options.nodata is not None:
        changes |= {"nodata": (options.nodata,) * len(tile.bands), "nodata_given": True}
    if options.transform is not None and tile.transform == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0):
        changes["transform"] = options.transform
    if options.crs is not None:
        given = parse_crs(options.crs, tile.source.url)
        if tile.crs and parse_crs(tile.crs, tile.source.url) != given:
            changes["tags"] = {**tile.tags, "crs_of_file": tile.crs}
        changes["crs"] = given.to_wkt()
    return dataclasses.replace(tile, **changes)


def _arrays(target: Target) -> list[ArraySpec]:
    return [target.values, *([target.valid] if target.valid else [])]


def _write(
    mosaic: Mosaic, target: Target, overlap: Overlap, work: Ingestion, fanout: Any, run: IngestRun
) -> list[Written]:
    """What every piece wrote; progress counts shards."""
    every = list(pieces(mosaic, target))
    total = math.prod(shard_grid(target.values))
    done = 0

    def count(piece: Piece) -> None:
        nonlocal done
        done += _shards_of(piece)
        run.on_progress(done, total)

    function = functools.partial(write_piece, mosaic=mosaic, target=target, overlap=overlap)
    return work.write(function, every, fanout=fanout, task_bytes=_task_bytes(mosaic, target), on_piece=count)


def _read_piece(piece: Piece, mosaic: Mosaic, target: Target, overlap: Overlap) -> Cells:
    height, width = target.values.shards[1:]
    rows = slice(piece.rows[0] * height, min(piece.rows[1] * height, mosaic.height))
    columns = slice(piece.columns[0] * width, min(piece.columns[1] * width, mosaic.width))
    return read_cells(mosaic, rows, columns, overlap, slice(*piece.bands))


def _task_bytes(mosaic: Mosaic, target: Target) -> int:
    """Peak memory of one piece: values and numbers of a tile, their masks, one block and what is cached."""
    cells = math.prod(target.values.shards) * _shards_of(next(pieces(mosaic, target)))
    block = min(BLOCK_BYTES, max(math.prod(tile.block) * 8 * len(tile.bands) for tile in mosaic.tiles))
    scaled = any(tile.scaled for tile in mosaic.tiles)
    return cells * (3 * np.dtype(mosaic.dtype).itemsize + 4 + 16 * scaled) + block + GDAL_CACHE_BYTES + 2**27


def _shards_of(piece: Piece) -> int:
    return math.prod(last - first for first, last in (piece.bands, piece.rows, piece.columns))


def _classes(held: npt.NDArray[Any]) -> dict[str, int]:
    numbers, counts = np.unique(held, return_counts=True)
    return {str(int(number)): int(count) for number, count in zip(numbers, counts, strict=True)}


def _refuse_unreadable(src_url: str, bad: Sequence[Fault], merged: dict[str, Any]) -> None:
    """A raster of which no block reads is bad as a whole."""
    if bad and not any(band["moments"].count for band in merged["bands"]):
        raise FormatError(
            "no block of the raster reads",
            where=src_url,
            measured=f"{bad[0].where} {bad[0].fault}",
            limit="at least one",
            remedy="Copy it again from where it came.",
        )


__all__ = ["Options", "ingest_source", "inspect_source"]

"""Cells of a mosaic, read window by window: values, which of them are valid, and what was wrong on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from geobatch.errors import DataError
from geobatch.formats.ingestion import Fault
from geobatch.formats.raster_grid import Mosaic, edges_of, overlapping
from geobatch.formats.raster_source import OpenRaster, Tile, cut_at_blocks, gdal_errors, open_raster

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Overlap = Literal["first", "last", "refuse"]
# Blocks of a file that are told one by one; the rest of a piece is counted.
TOLD_BLOCKS = 20
# A warped window is halved down to this side around a block that does not read.
SMALLEST_SIDE = 64
# So little that no window depends on how others are cut; with 0, rasterio 1.4 makes no VRT on a given grid.
TOLERANCE_CELLS = 1e-6


@dataclass
class Cells:
    """What a window of a mosaic holds.

    Attributes:
        values: `(band, y, x)` in the mosaic's type; NaN (floats) or `invalid_number` (integers) where invalid.
        valid: `(band, y, x)` bool.
        faults: Blocks that did not read.
        hidden: Invalid cells whose number in the file is not its nodata value. Integers keep it, floats lose it.
        inexact: Cells whose number does not come back from the value that it stands for.
        overlap: Cells that several tiles cover with valid values, over all bands.
        differing: Those of them where the tiles differ.
    """

    values: Array
    valid: Mask
    faults: list[Fault] = field(default_factory=list)
    hidden: int = 0
    inexact: int = 0
    overlap: int = 0
    differing: int = 0


def invalid_number(dtype: str, nodata: float | None) -> float:
    """What stands in a cell without a value: NaN in floats; in integers nodata where the type holds it, or an extreme.

    Integers come with a mask beside them, so that the extreme is no loss.
    """
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return math.nan
    limits = np.iinfo(kind)
    if nodata is not None and nodata == nodata and limits.min <= nodata <= limits.max and nodata == int(nodata):
        return int(nodata)
    return limits.min if kind.kind == "i" else limits.max


def read_cells(mosaic: Mosaic, rows: slice, columns: slice, overlap: Overlap, bands: slice = slice(None)) -> Cells:
    """The cells of a window of the grid, tile after tile; `bands` are positions among those of the mosaic.

    Raises:
        DataError: tiles overlap with different values and `overlap` is `refuse`.
        TransientError: storage does not answer.
    """
    mosaic = _with_bands(mosaic, bands)
    shape = (mosaic.bands, rows.stop - rows.start, columns.stop - columns.start)
    fill = invalid_number(mosaic.dtype, common_nodata(mosaic))
    cells = Cells(np.full(shape, fill, mosaic.dtype), np.zeros(shape, np.bool_))
    for number in overlapping(mosaic.windows, rows, columns):
        top, bottom, left, right = (int(edge) for edge in mosaic.windows[number])
        top, bottom = max(top, rows.start), min(bottom, rows.stop)
        left, right = max(left, columns.start), min(right, columns.stop)
        tile = mosaic.tiles[number]
        part = _read_part(mosaic, int(number), slice(top, bottom), slice(left, right))
        place = (
            slice(None),
            slice(top - rows.start, bottom - rows.start),
            slice(left - columns.start, right - columns.start),
        )
        _merge(cells, part, place, overlap, tile.source.url)
    return cells


def common_nodata(mosaic: Mosaic) -> float | None:
    """The one nodata value of every band of every tile, None where there is none or more than one."""
    values = {repr(value) for tile in mosaic.tiles for value in tile.nodata}
    return mosaic.tiles[0].nodata[0] if len(values) == 1 else None


def _with_bands(mosaic: Mosaic, bands: slice) -> Mosaic:
    """The mosaic of some of its bands."""
    if bands == slice(None):
        return mosaic
    per_band = ("bands", "names", "units", "nodata", "scales", "offsets", "unheld")
    tiles = [
        dataclasses.replace(tile, **{name: getattr(tile, name)[bands] for name in per_band}) for tile in mosaic.tiles
    ]
    return dataclasses.replace(mosaic, tiles=tuple(tiles))


def _merge(cells: Cells, part: Cells, place: tuple[slice, ...], overlap: Overlap, where: str) -> None:
    """Put the part of a tile into its place."""
    values, valid = cells.values[place], cells.valid[place]
    both = valid & part.valid
    if both.any():
        differing = int(np.count_nonzero(both & (values != part.values)))
        if differing and overlap == "refuse":
            raise DataError(
                "tiles overlap with different values",
                where=where,
                measured=f"{differing} cells of one piece",
                limit="0 with overlap=refuse",
                remedy="Choose whose values count with --set overlap=first or last.",
            )
        cells.overlap += int(np.count_nonzero(both))
        cells.differing += differing
    taken = part.valid if overlap == "last" else part.valid & ~valid
    if values.dtype.kind in "iu":
        # What stands under a mask is kept: the same file comes out again.
        taken = taken | ~(valid | part.valid)
    np.copyto(values, part.values, where=taken)
    valid |= part.valid
    cells.faults += part.faults
    cells.hidden += part.hidden
    cells.inexact += part.inexact


def _read_part(mosaic: Mosaic, number: int, rows: slice, columns: slice) -> Cells:
    """The cells of one tile inside a window of the grid."""
    tile = mosaic.tiles[number]
    unmarked = not tile.masked and all(value is None for value in tile.nodata)
    with open_raster(tile.source) as opened:
        if mosaic.resampling is None:
            top, _, left, _ = (int(edge) for edge in mosaic.windows[number])
            own = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
            missing, torn = opened.fetch(own, tile.bands)
            raw, mask, faults = _read_whole(opened, opened.dataset, tile, own, tile.block, torn)
            if unmarked and missing:
                # GDAL reads them as zeros.
                for part in missing:
                    mask[_within(part, own)] = False
                faults += _faults(missing, "is not in the file", tile, own)
            return _meant(raw, mask, faults, tile, mosaic)
        if unmarked and (count := opened.missing(tile.bands)):
            raise DataError(
                "file lacks blocks and names no nodata value: they would be warped as zeros",
                where=tile.source.url,
                measured=f"{count} blocks",
                limit="0",
                remedy="Give the value with --set nodata=0, or ingest the file on its own grid first.",
            )
        with _warping(opened.dataset, tile, mosaic) as warped:
            raw, mask, faults = _read_whole(opened, warped, tile, (rows, columns), None)
            return _meant(raw, mask, faults, tile, mosaic)


def _read_whole(
    opened: OpenRaster,
    dataset: Any,
    tile: Tile,
    window: tuple[slice, slice],
    block: tuple[int, int] | None,
    torn: Sequence[tuple[slice, slice]] = (),
) -> tuple[Array, Mask, list[Fault]]:
    """Numbers and mask of a window; where it does not read or is torn, of every part of it that does and is not."""
    found = None if torn else _read(opened, dataset, tile, window)
    if found is not None:
        return *found, []
    shape = (len(tile.bands), *(part.stop - part.start for part in window))
    dtype = dataset.dtypes[tile.bands[0] - 1]
    raw, mask = np.full(shape, invalid_number(dtype, tile.nodata[0]), dtype), np.zeros(shape, np.bool_)
    bad = []
    # GDAL tells of a block that does not read once for each band: one band is asked first.
    first = dataclasses.replace(tile, bands=tile.bands[:1], nodata=tile.nodata[:1])
    for part in cut_at_blocks(window, block or (SMALLEST_SIDE, SMALLEST_SIDE)):
        found = None if part in torn else _read(opened, dataset, first, part)
        if found is not None and first.bands != tile.bands:
            found = _read(opened, dataset, tile, part)
        if found is None:
            bad.append(part)
            continue
        raw[_within(part, window)], mask[_within(part, window)] = found
    return raw, mask, _faults(bad, "does not decode", tile, window)


def _faults(parts: Sequence[tuple[slice, slice]], fault: str, tile: Tile, window: tuple[slice, slice]) -> list[Fault]:
    """A fault for each part, the first ones by name."""
    named = [Fault("block", f"{tile.source.url} {_place(part)}", fault, "left invalid") for part in parts]
    if len(named) > TOLD_BLOCKS:
        rest = f"{tile.source.url} and {len(named) - TOLD_BLOCKS} more blocks of {_place(window)}"
        named = [*named[:TOLD_BLOCKS], Fault("block", rest, fault, "left invalid")]
    return named


def _read(opened: OpenRaster, dataset: Any, tile: Tile, window: tuple[slice, slice]) -> tuple[Array, Mask] | None:
    """Numbers `(band, y, x)` and which are valid, None when the file is damaged there."""
    from rasterio.windows import Window

    bands = list(tile.bands)
    part = Window.from_slices(*window)
    try:
        raw = dataset.read(bands, window=part)
        if tile.nodata_given and not tile.masked:
            mask = raw != np.asarray(tile.nodata, np.float64)[:, None, None]
        else:
            mask = dataset.read_masks(bands, window=part) != 0
    except gdal_errors():
        opened.require_storage()
        return None
    opened.require_storage()
    return raw, mask


def _meant(raw: Array, mask: Mask, faults: list[Fault], tile: Tile, mosaic: Mosaic) -> Cells:
    """The values that the numbers stand for, in the mosaic's type."""
    if raw.dtype.kind == "f":
        mask = mask & ~np.isnan(raw)
    hidden, inexact, values = _hidden(raw, mask, tile), 0, raw
    if tile.scaled:
        factors, summands = (np.array(x, np.float64)[:, None, None] for x in (tile.scales, tile.offsets))
        values = (raw * factors + summands).astype(mosaic.dtype)
        if mosaic.resampling is None:
            inexact = int(np.count_nonzero(mask & (unscaled(values, tile.scales, tile.offsets, raw.dtype) != raw)))
    values = values.astype(mosaic.dtype, copy=False)
    if values.dtype.kind == "f":
        values = np.where(mask, values, values.dtype.type(math.nan))
    return Cells(values, mask, faults, hidden, inexact)


def unscaled(values: Array, scales: tuple[float, ...], offsets: tuple[float, ...], dtype: Any) -> Array:
    """The numbers that stand for values `(band, y, x)` under a factor and a summand per band; zero where invalid."""
    factors, summands = (np.array(x, np.float64)[:, None, None] for x in (scales, offsets))
    numbers = (values.astype(np.float64) - summands) / factors
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        numbers = np.clip(np.rint(numbers), limits.min, limits.max)
    return np.nan_to_num(numbers, nan=0.0).astype(dtype)


def _hidden(raw: Array, mask: Mask, tile: Tile) -> int:
    """Invalid cells that do not hold the nodata value of their band."""
    count = 0
    for numbers, valid, nodata in zip(raw, mask, tile.nodata, strict=True):
        if valid.all():
            continue
        gone = numbers[~valid]
        if nodata is None or math.isnan(nodata):
            # Without nodata, NaN itself is what marks a cell of floats.
            same = np.isnan(gone) if gone.dtype.kind == "f" else np.zeros(gone.shape, bool)
        else:
            same = gone.astype(np.float64) == float(nodata)
        count += int(np.count_nonzero(~same))
    return count


@contextlib.contextmanager
def _warping(dataset: Any, tile: Tile, mosaic: Mosaic) -> Iterator[Any]:
    """The file as if it lay on the mosaic's grid. Exact coordinates, so that no window depends on another."""
    from rasterio import Affine
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.vrt import WarpedVRT
    from rasterio.warp import calculate_default_transform

    a, e = mosaic.transform[0], mosaic.transform[4]
    edges = edges_of(tile)
    own, _, _ = calculate_default_transform(
        tile.crs, mosaic.crs, tile.width, tile.height, edges[0], edges[1], right=edges[2], top=edges[3]
    )
    nodata = tile.nodata[0]
    if nodata is None and not tile.masked and np.dtype(tile.dtype).kind == "f":
        nodata = math.nan
    alpha = ColorInterp.alpha in dataset.colorinterp
    how: dict[str, Any] = {"add_alpha": True} if nodata is None and not alpha else {}
    if nodata is not None:
        how |= {"src_nodata": nodata, "nodata": nodata}
    # Only what the file does not say itself: GDAL would make a second source of it.
    if tile.transform != tuple(dataset.transform)[:6]:
        how["src_transform"] = Affine(*tile.transform)
    if dataset.crs is None or tile.crs != dataset.crs.to_wkt():
        how["src_crs"] = tile.crs
    if np.dtype(mosaic.dtype).kind == "f" and np.dtype(tile.dtype).kind in "iu":
        how["dtype"] = mosaic.dtype
    with WarpedVRT(
        dataset,
        crs=mosaic.crs,
        transform=Affine(*mosaic.transform),
        width=mosaic.width,
        height=mosaic.height,
        resampling=Resampling[mosaic.resampling or "nearest"],
        tolerance=TOLERANCE_CELLS,
        # GDAL would draw the width of its filters from the window.
        XSCALE=repr(abs(own.a / a)),
        YSCALE=repr(abs(own.e / e)),
        **how,
    ) as warped:
        yield warped


def _within(part: tuple[slice, slice], window: tuple[slice, slice]) -> tuple[slice, ...]:
    """Where a part of a window lies in an array `(band, y, x)` of the window."""
    return (slice(None), *(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, window, strict=True)))


def _place(window: tuple[slice, slice]) -> str:
    rows, columns = window
    return f"rows {rows.start}-{rows.stop - 1}, columns {columns.start}-{columns.stop - 1}"

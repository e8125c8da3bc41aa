"""The one grid that raster tiles lie on, or are warped onto, and which cells each of them covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from geobatch.errors import FormatError, GeometryError, MismatchError, UsageError
from geobatch.formats.libraries import need
from geobatch.formats.raster_source import Tile

Resampling = Literal["nearest", "bilinear", "cubic", "average", "mode"]
Affine6 = tuple[float, ...]
# Cells by which a tile may be off the grid: rounding of coordinates, nothing that moves a value.
OFF_GRID = 0.01
# A mosaic this much larger than what its tiles cover has one at a wrong place.
MOST_EMPTY = 100
LARGE_CELLS = 2**31


@dataclass(frozen=True)
class Mosaic:
    """Tiles on one grid.

    Attributes:
        tiles: In the order of precedence.
        windows: First row, last row + 1, first column, last column + 1 of each tile on the grid, `(tile, 4)` int64.
        crs: WKT, empty when nobody knows.
        transform: Affine of the grid, as in `Tile`.
        height: Rows.
        width: Columns.
        dtype: Of the stored values.
        resampling: How tiles are warped onto the grid; None when they lie on it and are read as they are.
    """

    tiles: tuple[Tile, ...]
    windows: npt.NDArray[np.int64]
    crs: str
    transform: Affine6
    height: int
    width: int
    dtype: str
    resampling: Resampling | None

    @property
    def bands(self) -> int:
        """Number of bands."""
        return len(self.tiles[0].bands)

    @property
    def exact(self) -> bool:
        """True when values are those of the files: nothing was warped, and one type held them."""
        return self.resampling is None and len({tile.dtype for tile in self.tiles}) == 1


def make_mosaic(
    tiles: Sequence[Tile],
    *,
    to_crs: str | None,
    resolution: tuple[float, float] | None,
    resampling: Resampling,
    where: str,
) -> Mosaic:
    """The tiles on their common grid, or on a new one when `to_crs` or `resolution` is given.

    Raises:
        GeometryError: they lie on no common grid, or on a rotated one.
        MismatchError: their CRS, bands or meaning differ.
        FormatError: no type holds the values of all.
    """
    _refuse_mixed(tiles, where)
    dtype = _common_dtype(tiles, where)
    if to_crs is not None or resolution is not None:
        return _warped(tiles, to_crs, resolution, resampling, dtype, where)
    _refuse_difference(
        tiles, lambda tile: tile.crs, "tiles have different coordinate reference systems", "to_crs=EPSG:…", where
    )
    for tile in tiles:
        a, b, _, d, e, _ = tile.transform
        if b or d:
            raise GeometryError(
                "raster is rotated against its coordinate axes",
                where=tile.source.url,
                measured=f"rotation terms {b:g} and {d:g}",
                limit="0 and 0",
                remedy=f"Resample it with --set resolution={math.hypot(a, d):g}.",
            )
    a, _, _, _, e, _ = tiles[0].transform
    longest = max(max(tile.width, tile.height) for tile in tiles)
    for tile in tiles:
        if max(abs(tile.transform[0] - a) / abs(a), abs(tile.transform[4] - e) / abs(e)) * longest > OFF_GRID:
            raise GeometryError(
                "tiles have different cell sizes",
                where=tile.source.url,
                measured=f"{tile.transform[0]:.9g} x {tile.transform[4]:.9g}",
                limit=f"{a:.9g} x {e:.9g} of {tiles[0].source.url}",
                remedy=f"Resample them with --set resolution={abs(a):.9g}.",
            )
    x = min(tile.transform[2] for tile in tiles) if a > 0 else max(tile.transform[2] for tile in tiles)
    y = max(tile.transform[5] for tile in tiles) if e < 0 else min(tile.transform[5] for tile in tiles)
    windows = np.array([_place(tile, x, y, a, e) for tile in tiles], np.int64)
    height, width = int(windows[:, 1].max()), int(windows[:, 3].max())
    _refuse_sparse(tiles, height, width, where)
    return Mosaic(tuple(tiles), windows, tiles[0].crs, (a, 0.0, x, 0.0, e, y), height, width, dtype, None)


def stored_dtype(tile: Tile) -> str:
    """The type that holds the values of a tile: its own, or floats where a factor applies."""
    kind = np.dtype(tile.dtype)
    if tile.scaled:
        return "float32" if kind.kind in "iu" and kind.itemsize <= 2 else "float64"
    return "float32" if kind == np.float16 else kind.name


def overlapping(windows: npt.NDArray[np.int64], rows: slice, columns: slice) -> npt.NDArray[np.int64]:
    """Positions of the tiles that have cells there."""
    touching = (windows[:, 0] < rows.stop) & (windows[:, 1] > rows.start)
    touching &= (windows[:, 2] < columns.stop) & (windows[:, 3] > columns.start)
    return np.flatnonzero(touching)


def _place(tile: Tile, x: float, y: float, a: float, e: float) -> tuple[int, int, int, int]:
    """The window of a tile on the grid with its corner at (x, y)."""
    column, row = (tile.transform[2] - x) / a, (tile.transform[5] - y) / e
    off = max(abs(column - round(column)), abs(row - round(row)))
    if off > OFF_GRID:
        raise GeometryError(
            "tile lies off the common grid",
            where=tile.source.url,
            measured=f"{off:.3f} cells",
            limit=f"{OFF_GRID} cells",
            remedy=f"Resample all tiles with --set resolution={abs(a):.9g}.",
        )
    return round(row), round(row) + tile.height, round(column), round(column) + tile.width


def _warped(
    tiles: Sequence[Tile],
    to_crs: str | None,
    resolution: tuple[float, float] | None,
    resampling: Resampling,
    dtype: str,
    where: str,
) -> Mosaic:
    """The mosaic on a new grid, its corner on whole cells when a resolution is given."""
    need("rasterio", "landform")
    from rasterio.warp import calculate_default_transform

    for tile in tiles:
        if not tile.crs:
            raise GeometryError(
                "raster names no CRS to be resampled from",
                where=tile.source.url,
                remedy="Give it with --set crs=EPSG:….",
            )
        if len(set(map(repr, tile.nodata))) > 1:
            raise GeometryError(
                "bands with different nodata values cannot be resampled together",
                where=tile.source.url,
                measured=tile.nodata,
                remedy="Write them as one file per band.",
            )
    crs = parse_crs(to_crs, where) if to_crs else parse_crs(tiles[0].crs, where)
    found = []
    for tile in tiles:
        edges = edges_of(tile)
        corners = {"left": edges[0], "bottom": edges[1], "right": edges[2], "top": edges[3]}
        found.append(
            calculate_default_transform(tile.crs, crs, tile.width, tile.height, **corners, resolution=resolution)
        )
    step_x, step_y = resolution or (min(t.a for t, _, _ in found), min(-t.e for t, _, _ in found))
    left, top = min(t.c for t, _, _ in found), max(t.f for t, _, _ in found)
    right = max(t.c + t.a * width for t, width, _ in found)
    bottom = min(t.f + t.e * height for t, _, height in found)
    if resolution:
        left, top = math.floor(left / step_x) * step_x, math.ceil(top / step_y) * step_y
    # An edge on a cell's border must not open another cell by rounding.
    height, width = (math.ceil(round(span, 6)) for span in ((top - bottom) / step_y, (right - left) / step_x))
    transform = (step_x, 0.0, left, 0.0, -step_y, top)
    windows = np.array(
        [
            (
                max(0, math.floor((top - t.f) / step_y) - 1),
                min(height, math.ceil((top - t.f - t.e * rows) / step_y) + 1),
                max(0, math.floor((t.c - left) / step_x) - 1),
                min(width, math.ceil((t.c + t.a * columns - left) / step_x) + 1),
            )
            for t, columns, rows in found
        ],
        np.int64,
    )
    _refuse_sparse(tiles, height, width, where)
    # Means of integers are no integers.
    if resampling not in ("nearest", "mode") and np.dtype(dtype).kind in "iu":
        dtype = "float32" if np.dtype(dtype).itemsize <= 2 else "float64"
    return Mosaic(tuple(tiles), windows, crs.to_wkt(), transform, height, width, dtype, resampling)


def parse_crs(text: str, where: str) -> Any:
    """The rasterio CRS that a WKT or an authority code names. Raises `UsageError` when it names none."""
    rasterio = need("rasterio", "landform")
    try:
        with rasterio.Env():
            return rasterio.CRS.from_user_input(text)
    except rasterio.errors.CRSError as error:
        raise UsageError(
            "unknown coordinate reference system", where=where, measured=text[:200], limit="such as EPSG:32717"
        ) from error


def edges_of(tile: Tile) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of a tile, rotated or not."""
    a, b, c, d, e, f = tile.transform
    corners = [(0, 0), (tile.width, 0), (0, tile.height), (tile.width, tile.height)]
    xs = [a * column + b * row + c for column, row in corners]
    ys = [d * column + e * row + f for column, row in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _common_dtype(tiles: Sequence[Tile], where: str) -> str:
    """The type that holds every value of every tile exactly."""
    kinds = sorted({stored_dtype(tile) for tile in tiles})
    common = np.result_type(*kinds)
    lossy = [
        kind
        for kind in kinds
        if common.kind == "f" and np.dtype(kind).kind in "iu" and _digits(kind) > _digits(common.name)
    ]
    if lossy:
        raise FormatError(
            "no type holds the values of all tiles",
            where=where,
            measured=" and ".join(kinds),
            remedy="Convert them to one type with gdal_translate -ot.",
        )
    return common.name


def _digits(kind: str) -> int:
    """Bits of the largest integers that the type holds one by one."""
    dtype = np.dtype(kind)
    return np.finfo(dtype).nmant + 1 if dtype.kind == "f" else np.iinfo(dtype).bits


def _refuse_mixed(tiles: Sequence[Tile], where: str) -> None:
    """Refuse tiles that do not hold the same things."""
    _refuse_difference(tiles, lambda tile: len(tile.bands), "tiles have different numbers of bands", "", where)
    _refuse_difference(tiles, lambda tile: tile.palette, "tiles have different colour tables", "", where)
    for tile in tiles:
        if tile.transform[:2] == (1.0, 0.0) and tile.transform[2:] == (0.0, 0.0, 1.0, 0.0):
            raise GeometryError(
                "raster has no geotransform: nothing tells where it lies",
                where=tile.source.url,
                measured=f"{tile.width} x {tile.height} cells",
                remedy="Give cell size and upper left corner, --set transform=[a,b,c,d,e,f]; "
                "[1,0,0,0,-1,0] counts cells from there.",
            )
        determinant = tile.transform[0] * tile.transform[4] - tile.transform[1] * tile.transform[3]
        if not all(map(math.isfinite, tile.transform)) or not determinant:
            raise GeometryError("cells of the raster have no area", where=tile.source.url, measured=tile.transform)


def _refuse_difference(tiles: Sequence[Tile], of: Callable[[Tile], Any], what: str, option: str, where: str) -> None:
    first = of(tiles[0])
    for tile in tiles:
        if of(tile) != first:
            raise MismatchError(
                what,
                where=tile.source.url,
                measured=str(of(tile))[:100],
                limit=f"{str(first)[:100]} as in {tiles[0].source.url}",
                remedy=f"Warp them onto one grid with --set {option}."
                if option
                else "Ingest them as surveys of their own.",
            )


def _refuse_sparse(tiles: Sequence[Tile], height: int, width: int, where: str) -> None:
    covered = sum(tile.width * tile.height for tile in tiles)
    if height * width > max(LARGE_CELLS, MOST_EMPTY * covered):
        raise GeometryError(
            "tiles lie too far apart for one survey",
            where=where,
            measured=f"{width} x {height} cells, of which tiles cover {covered / height / width:.2%}",
            limit=f"at least {1 / MOST_EMPTY:.0%}",
            remedy="Leave out the tile at the wrong place, or ingest them as surveys of their own.",
        )

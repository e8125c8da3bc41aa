"""Label rasters on the grid of a survey: from other grids and CRSs, warped by rasterio block by block."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import DataError, FormatError, MismatchError, NotFoundError
from geobatch.fanout import open_fanout
from geobatch.formats.libraries import need
from geobatch.formats.raster_grid import Affine6, Mosaic, parse_crs
from geobatch.formats.raster_read import TOLERANCE_CELLS, read_cells
from geobatch.formats.raster_tiles import find_sources, scan_tiles
from geobatch.storage import absolute_url, join_url, open_storage
from geobatch.survey import INVALID_CLASS, open_survey, survey_info

Classes = npt.NDArray[np.uint8]
BLOCK_SIDE = 1024
# Cells around a block's outline in the labels' grid: corners of cells, and the reach of `mode`.
MARGIN = 4
SMALL_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Grid:
    """A raster grid: WKT or code of its CRS, affine transform of cell corners, rows and columns."""

    crs: str
    transform: Affine6
    height: int
    width: int

    @classmethod
    def of(cls, info: Mapping[str, Any], shape: Sequence[int], what: str) -> Self:
        """The grid of a survey of rows and columns, by its description."""
        if info.get("transform") is None:
            raise MismatchError(f"{what} has no raster grid", measured=f"kind {info.get('kind')}", limit="kind raster")
        return cls(info.get("crs") or "", tuple(info["transform"]), *shape)


def align_labels(
    labels: str | xr.Dataset, survey: xr.Dataset, resampling: Literal["nearest", "mode"] = "nearest"
) -> xr.DataArray:
    """The labels as `class_map` `(y, x)` uint8 on the survey's grid, 255 where there is none; Dask-backed.

    Coordinates are transformed exactly, so that no class depends on how the array is cut.

    Args:
        labels: A raster survey of whole numbers 0 to 254, its URL, or the URL of raster files, which are not copied.
        survey: An opened raster survey.
        resampling: `nearest`, or `mode` for the class that covers most of a cell.

    Raises:
        MismatchError: one of them names no CRS, or the labels have several bands, are no integers, or lie elsewhere.
        DataError: on computing: a label is above 254.
        FormatError: a file of the labels does not read, on computing also a block of one.
    """
    import dask.array as da

    target = Grid.of(survey_info(survey), _sides(survey), "survey")
    read, flags = label_reader(labels, target, resampling)
    sides = [
        tuple(min(BLOCK_SIDE, length - first) for first in range(0, length, BLOCK_SIDE))
        for length in (target.height, target.width)
    ]

    def block(block_info: Any = None) -> Classes:
        (rows, columns) = (slice(*ends) for ends in block_info[None]["array-location"])
        return np.asarray(read(rows, columns), np.uint8)

    data = da.map_blocks(block, dtype=np.uint8, chunks=tuple(sides), meta=np.empty((0, 0), np.uint8))
    coords = {name: survey.coords[name] for name in ("y", "x", "spatial_ref") if name in survey.coords}
    told = {"long_name": "class", "comment": f"{INVALID_CLASS}: no label", "grid_mapping": "spatial_ref", **flags}
    return xr.DataArray(data, coords, ("y", "x"), name="class_map", attrs=told)


def label_reader(
    labels: str | xr.Dataset, target: Grid, resampling: Literal["nearest", "mode"]
) -> tuple[Callable[[slice, slice], Classes], dict[str, Any]]:
    """What reads the classes of rows and columns of `target`, 255 where there is none, and the flags of the labels.

    Raises:
        MismatchError, DataError: as `align_labels`.
        FormatError: a file of the labels does not read.
    """
    _require_crs(target, "survey")
    opened = _open(labels) if isinstance(labels, str) else labels
    flags: dict[str, Any] = {}
    read: Callable[[slice, slice], Classes]
    if isinstance(opened, Mosaic):
        read = functools.partial(_from_files, mosaic=_onto(opened, target, resampling))
        source = Grid(opened.crs, opened.transform, opened.height, opened.width)
    else:
        info = survey_info(opened)
        source = Grid.of(info, _sides(opened), "labels")
        read = functools.partial(_from_survey, labels=opened, source=source, target=target, resampling=resampling)
        name = info.get("variable", "class_map")
        flags = {key: value for key, value in opened[name].attrs.items() if key.startswith("flag_")}
    _require_crs(source, "labels")
    _refuse_elsewhere(source, target)
    return read, flags


def label_files(url: str) -> list[str]:
    """The files that tell when the labels at a URL change: the group of a survey, or every raster file."""
    url = absolute_url(url)
    if open_storage(url).exists("zarr.json"):
        return [join_url(url, "zarr.json")]
    return [source.url for source in find_sources(url, None)]


def _open(url: str) -> Mosaic | xr.Dataset:
    """The labels at a URL: a survey when one is there, else raster files."""
    from geobatch.formats.raster import Options, grid_of

    url = absolute_url(url)
    try:
        return open_survey(url)
    except NotFoundError:
        sources = find_sources(url, None)
    with open_fanout(small=sum(source.size_bytes for source in sources) <= SMALL_BYTES) as fanout:
        tiles, faults = scan_tiles(sources, fanout, None)
    if faults:
        raise FormatError(
            "a file of labels does not read",
            where=faults[0].where,
            measured=faults[0].fault,
            remedy="Copy it again from where it came, or take it out of the folder.",
        )
    return grid_of(tiles, Options(), url)


def _sides(survey: xr.Dataset) -> tuple[int, int]:
    return survey.sizes.get("y", 0), survey.sizes.get("x", 0)


def _onto(mosaic: Mosaic, target: Grid, resampling: Literal["nearest", "mode"]) -> Mosaic:
    """The label files warped onto the survey's grid."""
    if mosaic.bands != 1 or np.dtype(mosaic.dtype).kind not in "iu":
        raise _no_labels(mosaic.bands, mosaic.dtype)
    windows = np.tile(np.array([0, target.height, 0, target.width], np.int64), (len(mosaic.tiles), 1))
    return dataclasses.replace(
        mosaic,
        windows=windows,
        crs=parse_crs(target.crs, "survey").to_wkt() if target.crs else "",
        transform=target.transform,
        height=target.height,
        width=target.width,
        resampling=resampling,
    )


def _from_files(rows: slice, columns: slice, mosaic: Mosaic) -> Classes:
    cells = read_cells(mosaic, rows, columns, "first")
    if cells.faults:
        raise FormatError(
            "a block of the labels does not read",
            where=cells.faults[0].where,
            measured=cells.faults[0].fault,
            remedy="Copy the file again from where it came.",
        )
    return _as_classes(cells.values[0], cells.valid[0])


def _from_survey(
    rows: slice,
    columns: slice,
    labels: xr.Dataset,
    source: Grid,
    target: Grid,
    resampling: Literal["nearest", "mode"],
) -> Classes:
    """Labels of one block, from the part of the label survey that lies under it."""
    own = _window_under(source, target, rows, columns)
    shape = rows.stop - rows.start, columns.stop - columns.start
    if own is None:
        return np.full(shape, INVALID_CLASS, np.uint8)
    name = survey_info(labels).get("variable", "class_map")
    array = labels[name].isel(y=own[0], x=own[1])
    if array.sizes.get("band", 1) != 1 or array.dtype.kind not in "iu":
        raise _no_labels(array.sizes.get("band", 1), str(array.dtype))
    values = array.values.reshape(array.shape[-2:])
    valid = values != INVALID_CLASS
    if "valid" in labels:
        valid = labels["valid"].isel(y=own[0], x=own[1]).values.reshape(values.shape)
    return _warp(_as_classes(values, valid), _part(source, *own), _part(target, rows, columns), resampling)


def _warp(classes: Classes, source: Grid, target: Grid, resampling: Literal["nearest", "mode"]) -> Classes:
    """Classes warped from one grid onto another, by exact coordinates."""
    rasterio = need("rasterio", "landform")
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    place = {"crs": source.crs, "transform": rasterio.Affine(*source.transform), "nodata": INVALID_CLASS}
    with rasterio.Env(), rasterio.MemoryFile() as memory:
        height, width = classes.shape
        with memory.open(driver="GTiff", height=height, width=width, count=1, dtype="uint8", **place) as file:
            file.write(classes, 1)
        with (
            memory.open() as file,
            WarpedVRT(
                file,
                crs=target.crs,
                transform=rasterio.Affine(*target.transform),
                height=target.height,
                width=target.width,
                resampling=Resampling[resampling],
                nodata=INVALID_CLASS,
                tolerance=TOLERANCE_CELLS,
            ) as warped,
        ):
            return np.asarray(warped.read(1), np.uint8)


def _as_classes(values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Classes:
    held = values[valid]
    if held.size and (held.min() < 0 or held.max() >= INVALID_CLASS):
        raise DataError(
            "label is no class number",
            measured=f"{held.min()} to {held.max()}",
            limit=f"0 to {INVALID_CLASS - 1}",
            remedy="Number the classes anew, or ingest it with --set nodata=… where one number means no label.",
        )
    return np.where(valid, values, INVALID_CLASS).astype(np.uint8)


def _window_under(source: Grid, target: Grid, rows: slice, columns: slice) -> tuple[slice, slice] | None:
    """The window of the source grid that a block of the target needs, None where it lies outside."""
    need("rasterio", "landform")
    from rasterio.warp import transform_bounds

    a, _, c, _, e, f = target.transform
    xs, ys = sorted((c + a * columns.start, c + a * columns.stop)), sorted((f + e * rows.start, f + e * rows.stop))
    left, bottom, right, top = transform_bounds(target.crs, source.crs, xs[0], ys[0], xs[1], ys[1], densify_pts=41)
    a, _, c, _, e, f = source.transform
    found = []
    for ends, length in (
        (((bottom - f) / e, (top - f) / e), source.height),
        (((left - c) / a, (right - c) / a), source.width),
    ):
        if not all(map(math.isfinite, ends)):
            return None
        # A coarse target needs as many cells more as one of its own spans.
        first, stop = math.floor(min(ends)) - MARGIN, math.ceil(max(ends)) + MARGIN
        found.append(slice(max(0, first), min(length, stop)))
    return (found[0], found[1]) if all(part.stop > part.start for part in found) else None


def _part(grid: Grid, rows: slice, columns: slice) -> Grid:
    a, b, c, d, e, f = grid.transform
    corner = (c + a * columns.start + b * rows.start, f + d * columns.start + e * rows.start)
    transform = (a, b, corner[0], d, e, corner[1])
    return Grid(grid.crs, transform, rows.stop - rows.start, columns.stop - columns.start)


def _require_crs(grid: Grid, what: str) -> None:
    if not grid.crs:
        raise MismatchError(
            f"{what} has no CRS: nothing tells where labels and survey lie to each other",
            remedy="Ingest it again with --set crs=EPSG:….",
        )


def _refuse_elsewhere(source: Grid, target: Grid) -> None:
    if _window_under(source, target, slice(0, target.height), slice(0, target.width)) is None:
        raise MismatchError(
            "labels and survey do not overlap",
            measured=f"labels from {source.transform[2]:g}, {source.transform[5]:g} in {source.crs[:60]}",
            limit=f"survey from {target.transform[2]:g}, {target.transform[5]:g} in {target.crs[:60]}",
            remedy="Check the CRS of both with geobatch inspect.",
        )


def _no_labels(bands: int, dtype: str) -> MismatchError:
    return MismatchError(
        "raster holds no labels", measured=f"{bands} bands of {dtype}", limit="one band of whole numbers"
    )

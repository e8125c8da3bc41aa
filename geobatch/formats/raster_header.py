"""What the header of a raster file says: one `Tile`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from geobatch.errors import FormatError, GeometryError
from geobatch.formats.raster_source import Source, Tile, damaged, gdal_errors, open_raster


def read_tile(source: Source) -> Tile:
    """The header of the file.

    Raises:
        FormatError: it is no raster file, a damaged one, or holds complex numbers.
        GeometryError: it is placed by control points, not by a transform.
    """
    with open_raster(source) as opened:
        try:
            tile = _described(opened.dataset, source)
        except gdal_errors() as error:
            opened.require_storage()
            raise damaged(source.url, error) from error
        opened.require_storage()
    if "complex" in tile.dtype:
        raise FormatError(
            "raster of complex numbers",
            where=source.url,
            measured=tile.dtype,
            limit="integers or floats",
            remedy="Write amplitude and phase as two bands.",
        )
    return tile


def _described(dataset: Any, source: Source) -> Tile:
    from rasterio.enums import ColorInterp, MaskFlags

    interpretations = dataset.colorinterp
    bands = tuple(number for number in dataset.indexes if interpretations[number - 1] != ColorInterp.alpha)
    if not bands:
        raise FormatError("raster has no band of values", where=source.url, measured="an alpha band alone")
    picked = [number - 1 for number in bands]
    if dataset.gcps[0] and dataset.transform.is_identity:
        raise GeometryError(
            "raster is placed by control points, not by a transform",
            where=source.url,
            measured=f"{len(dataset.gcps[0])} control points",
            remedy="Warp it first: gdalwarp -tps -t_srs … in.tif out.tif.",
        )
    # Each is made anew for all bands whenever it is asked for.
    per_band = {
        name: getattr(dataset, name)
        for name in ("descriptions", "units", "nodatavals", "scales", "offsets", "mask_flag_enums")
    }
    of = {name: [values[number] for number in picked] for name, values in per_band.items()}
    return Tile(
        source=source,
        width=dataset.width,
        height=dataset.height,
        dtype=dataset.dtypes[picked[0]],
        crs=dataset.crs.to_wkt() if dataset.crs else "",
        transform=tuple(dataset.transform)[:6],
        bands=bands,
        names=tuple(name or "" for name in of["descriptions"]),
        units=tuple(unit or "" for unit in of["units"]),
        nodata=tuple(of["nodatavals"]),
        scales=tuple(of["scales"]),
        offsets=tuple(of["offsets"]),
        masked=any(MaskFlags.per_dataset in flags for flags in of["mask_flag_enums"]),
        palette=_palette(dataset, bands),
        block=dataset.block_shapes[picked[0]],
        tags={str(key): str(value) for key, value in dataset.tags().items()},
        unheld=_unheld(dataset, picked),
    )


def _palette(dataset: Any, bands: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The colour table of a raster with one band, without entries that say nothing (black, as writers fill up)."""
    if len(bands) != 1:
        return ()
    try:
        table = dataset.colormap(bands[0])
    except ValueError:
        return ()
    return tuple((value, *colour[:3]) for value, colour in sorted(table.items()) if any(colour[:3]))


def _unheld(dataset: Any, picked: Sequence[int]) -> tuple[float | None, ...]:
    """The nodata values of a file that rasterio leaves out because the type cannot hold them, per picked band.

    GDAL itself keeps them, and tells them in the VRT that it makes of the open file.
    """
    import rasterio
    from rasterio.shutil import copy

    known = dataset.nodatavals
    if not any(known[number] is None and np.dtype(dataset.dtypes[number]).kind in "iu" for number in picked):
        return (None,) * len(picked)
    with rasterio.MemoryFile(ext=".vrt") as memory:
        copy(dataset, memory.name, driver="VRT")
        text = bytes(memory.read()).decode("utf-8", "replace")
    told: dict[int, float] = {}
    for part in text.split("<VRTRasterBand ")[1:]:
        band, value = re.search(r'band="(\d+)"', part), re.search(r"<NoDataValue>([^<]+)</NoDataValue>", part)
        if band and value:
            told[int(band[1]) - 1] = float(value[1])
    return tuple(told.get(number) if known[number] is None else None for number in picked)

"""nodata values that a raster's type cannot hold, and numbers that mark missing cells without being declared.

A value such as NaN in int16 or -9999 in uint8 marks no cell: all of them count as valid. Whoever wrote the file meant
some, whose number the cast made something else; `--set nodata=` tells which.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from geobatch.formats.manifest import Fault
from geobatch.formats.raster_grid import Mosaic
from geobatch.formats.raster_source import Tile

# Numbers that mark missing cells by custom. The extremes of 8-bit types are ordinary colours.
SENTINELS = (-9999.0, -99999.0, -32768.0, -32767.0, 32767.0, 65535.0, -2147483648.0, 1e20)
FLOAT_EXTREME = 3.4e38
SUSPECT_SHARE = 1e-4


def useless(tile: Tile, index: int) -> float | None:
    """The nodata value of a band that its type cannot hold, the user's or the file's; None when there is none."""
    value = tile.nodata[index]
    if value is None and not tile.nodata_given:
        value = tile.unheld[index] if tile.unheld else None
    if value is None or np.dtype(tile.dtype).kind == "f":
        return None
    limits = np.iinfo(tile.dtype)
    return None if limits.min <= value <= limits.max else value


def useless_nodata(mosaic: Mosaic) -> list[str]:
    """A sentence for each value that marks nothing."""
    found = {
        f"nodata {value:g} cannot occur in {tile.dtype}: every cell counts as valid by it;"
        " --set nodata=N names the number that marks cells without a value"
        for tile, _, value in _all_useless(mosaic)
    }
    return sorted(found)


def useless_faults(mosaic: Mosaic) -> list[Fault]:
    """A row of the quality table for each band of each file whose nodata value marks nothing."""
    return [
        Fault(
            "tile",
            f"{tile.source.url} band {tile.bands[index]}",
            f"nodata {value:g} cannot occur in {tile.dtype}",
            "taken as valid throughout",
        )
        for tile, index, value in _all_useless(mosaic)
    ]


def suspected(mosaic: Mosaic, index: int, band: Mapping[str, Any], cells: int) -> list[str]:
    """Sentences about extremes of a band that mark missing cells by custom, or that a cast made of its nodata value.

    Args:
        mosaic: The files.
        index: Position of the band.
        band: Its moments and how often each extreme of a piece occurs.
        cells: How many it has.
    """
    if all(tile.nodata[index] is not None and useless(tile, index) is None for tile in mosaic.tiles):
        return []
    small = all(np.dtype(tile.dtype).itemsize == 1 for tile in mosaic.tiles)
    casts = {number for tile in mosaic.tiles for number in _casts(tile, index)}
    found = []
    for text, count in band["extremes"].items():
        value = float(text)
        at_end = value in (band["moments"].minimum, band["moments"].maximum)
        known = not small and (value in SENTINELS or abs(value) > FLOAT_EXTREME)
        if at_end and (known or value in casts) and count >= SUSPECT_SHARE * cells:
            found.append(
                f"{value:g} stands in {count / cells:.1%} of the cells and is not declared as nodata;"
                f" --set nodata={value:g} makes them invalid"
            )
    return found


def _all_useless(mosaic: Mosaic) -> Iterator[tuple[Tile, int, float]]:
    for tile in mosaic.tiles:
        for index in range(mosaic.bands):
            if (value := useless(tile, index)) is not None:
                yield tile, index, value


def _casts(tile: Tile, index: int) -> set[float]:
    """What writers that cast without looking make of a nodata value that the type cannot hold."""
    value = useless(tile, index)
    if value is None:
        return set()
    limits = np.iinfo(tile.dtype)
    if math.isnan(value):
        return {0.0, float(limits.min)}
    clamped = float(min(max(value, limits.min), limits.max))
    wrapped = {float(int(value) % 2 ** (8 * limits.dtype.itemsize))} if math.isfinite(value) else set()
    return {math.trunc(clamped), *wrapped} if limits.min == 0 else {math.trunc(clamped)}

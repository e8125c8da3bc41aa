"""Small sources of four kinds, each of several pieces and with something for the quality table, and their jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import miniseed_files
import numpy as np
import rasterio
from raster_files import field as random_cells
from raster_files import tiled, write_tiff
from segy_files import amplitudes, write_segy

from geobatch.formats.spec import IngestJob


@dataclass(frozen=True)
class Source:
    """A raw source.

    Attributes:
        format: Its name.
        url: Where it lies.
        pieces: How many pieces its ingest has.
        options: Of the format.
        together: Pieces that one task writes, at most.
    """

    format: str
    url: str
    pieces: int
    options: Mapping[str, Any] = field(default_factory=dict)
    together: int = 1

    def job(self, output: str, **more: Any) -> IngestJob:
        """The ingest of it."""
        options = {"options": dict(self.options), **more}
        return IngestJob(job="ingest", source=self.url, output=output, format=self.format, **options)


def volume(folder: Path) -> Source:
    """A SEG-Y volume of six columns with a dead and a missing trace."""
    values = amplitudes((6, 10, 20))
    values[3, 4] = 0
    keep = np.ones((6, 10), bool)
    keep[5, 9] = False
    path = write_segy(folder / "volume.sgy", values, keep=keep)
    return Source("segy", str(path), 6, {"chunk": (4, 4, 16), "shard": (4, 4, 16)})


def archive(folder: Path) -> Source:
    """An archive of two stations over two days with a gap, and a file that is none."""
    root = folder / "archive"
    for day in range(2):
        for number, station in enumerate(("AAA", "BBB")):
            data = miniseed_files.counts(4000, 10 * day + number)
            miniseed_files.write(
                root / f"{station}.{day}.mseed", miniseed_files.trace(data, 45.0 * day, station=station)
            )
    (root / "torn.mseed").write_bytes(b"nothing")
    return Source("miniseed", str(root), 6, {"chunk": 1024, "shard": 4096})


def mosaic(folder: Path) -> Source:
    """Six tiles of integers, of which one has a block that does not decode."""
    root = folder / "tiles"
    for number in range(6):
        row, column = divmod(number, 3)
        corner = (700000.0 + 640 * column, 9500000.0 - 640 * row)
        write_tiff(root / f"{number}.tif", random_cells((64, 64), "int16", number), corner=corner, **tiled())
    with rasterio.open(root / "5.tif") as file:
        begin = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    damaged = bytearray((root / "5.tif").read_bytes())
    damaged[begin : begin + 20] = bytes(20)
    (root / "5.tif").write_bytes(damaged)
    return Source("raster", str(root), 6, {"chunk": (64, 64), "shard": (64, 64)})


def wells(folder: Path) -> Source:
    """A folder of five logs, one without a number, whose wells are written in groups."""
    root = folder / "logs"
    root.mkdir(parents=True)
    for number in range(5):
        depth = 500 + 0.5 * np.arange(40 + 10 * number)
        rows = [f"{z},{60 + np.sin(z) * 30 + number:.3f},{2.3 + 0.01 * number:.3f}" for z in depth]
        (root / f"W{number}.csv").write_text("\n".join(["DEPT,GR,RHOB", *rows, ""]))
    (root / "empty.csv").write_text("")
    return Source("logs", str(root), 3, {"depth_unit": "m"})


# Constants of modules that make several pieces, slabs and groups of so little.
SMALL = {"geobatch.formats.segy_ingest.SLAB_BYTES": 20_000, "geobatch.formats.logs_ingest.GROUP_BYTES": 4 * 80 * 2}
SOURCES: dict[str, Callable[[Path], Source]] = {
    "volume": volume,
    "archive": archive,
    "mosaic": mosaic,
    "wells": wells,
}

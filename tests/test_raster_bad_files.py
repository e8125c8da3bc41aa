"""Named bad rasters: each ends in a typed error or a documented recovery, quickly, and without much memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from bounds import bounded
from raster_files import field, tiled, write_tiff

from geobatch.errors import DataError, FormatError, GeobatchError, GeometryError, MismatchError
from geobatch.formats import IngestRun
from geobatch.formats.ingestion import read_quality
from geobatch.formats.raster import Options, ingest_source
from geobatch.formats.raster_grid import make_mosaic
from geobatch.formats.raster_header import read_tile
from geobatch.formats.raster_read import read_cells
from geobatch.formats.raster_source import find_source
from geobatch.formats.raster_survey import valid_raster
from geobatch.survey import open_survey


@dataclass(frozen=True)
class Bad:
    """A bad source.

    Attributes:
        make: Writes it below a folder; returns what is ingested.
        error: What ingest raises, None where it recovers.
        says: Part of the error's text, of a warning, or of a row of the quality table.
        valid: Share of valid cells after a recovery.
    """

    make: Callable[[Path], Path]
    error: type[GeobatchError] | None
    says: str
    valid: float | None = None


def truncated(folder: Path) -> Path:
    """Half of the file: the header and some blocks are there."""
    path = write_tiff(folder / "a.tif", field((256, 256)), **tiled())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def cut_header(folder: Path) -> Path:
    path = write_tiff(folder / "a.tif", field((256, 256)), **tiled())
    path.write_bytes(path.read_bytes()[:60])
    return path


def written(data: bytes, name: str = "a.tif") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def tiff(values: Any, **options: Any) -> Callable[[Path], Path]:
    return lambda folder: write_tiff(folder / "a.tif", values, **options)


def nodata(dtype: str, text: bytes) -> Callable[[Path], Path]:
    """A file whose nodata tag says what no writer of today would let it say."""

    def write(folder: Path) -> Path:
        path = write_tiff(folder / "a.tif", field((64, 64), dtype), nodata=111)
        body = path.read_bytes()
        assert body.count(b"111\0") == 1
        path.write_bytes(body.replace(b"111\0", text + b"\0"))
        return path

    return write


def patched_tag(path: Path, tag: int, value: int) -> Path:
    """The classic little-endian TIFF with the value of a LONG or SHORT tag replaced, as LONG."""
    body = bytearray(path.read_bytes())
    start = int.from_bytes(body[4:8], "little")
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(body[start : start + 2], "little"), 12):
        if int.from_bytes(body[entry : entry + 2], "little") == tag:
            body[entry + 2 : entry + 12] = b"".join(n.to_bytes(k, "little") for n, k in ((4, 2), (1, 4), (value, 4)))
    path.write_bytes(body)
    return path


def claims(width: int, height: int, **options: Any) -> Callable[[Path], Path]:
    """A tiny file whose header claims that many cells."""

    def write(folder: Path) -> Path:
        path = write_tiff(folder / "a.tif", field((64, 64), "uint8"), **options)
        return patched_tag(patched_tag(path, 256, width), 257, height)

    return write


def bands(claimed: int, count: int = 1, **options: Any) -> Callable[[Path], Path]:
    """A file of so many bands that claims others."""

    def write(folder: Path) -> Path:
        return patched_tag(write_tiff(folder / "a.tif", field((count, 64, 64), "uint8"), **options), 277, claimed)

    return write


def corrupt_block(folder: Path) -> Path:
    """One of 16 blocks is noise."""
    import rasterio

    path = write_tiff(folder / "a.tif", field((256, 256)), **tiled())
    with rasterio.open(path) as file:
        start, size = (int(file.get_tag_item(f"BLOCK_{word}_1_2", "TIFF", bidx=1)) for word in ("OFFSET", "SIZE"))
    body = bytearray(path.read_bytes())
    body[start : start + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(body)
    return path


def mosaic(**second: Any) -> Callable[[Path], Path]:
    """Two tiles side by side, the second one otherwise."""

    def write(folder: Path) -> Path:
        other = {"values": field((40, 40), "uint8"), "corner": (700400.0, 9500000.0), **second}
        write_tiff(folder / "tiles/a.tif", field((40, 40), "uint8"))
        write_tiff(folder / "tiles/b.tif", other.pop("values"), **other)
        return folder / "tiles"

    return write


def torn_tile(folder: Path) -> Path:
    source = mosaic()(folder)
    (source / "c.tif").write_bytes((source / "a.tif").read_bytes()[:50])
    return source


def empty_folder(folder: Path) -> Path:
    (folder / "tiles").mkdir()
    (folder / "tiles/readme.txt").write_text("no rasters")
    return folder / "tiles"


def gcps(folder: Path) -> Path:
    import rasterio
    from rasterio.control import GroundControlPoint

    points = [
        GroundControlPoint(row, col, -79 + col / 1000, -4 - row / 1000) for row, col in ((0, 0), (0, 60), (60, 0))
    ]
    path = folder / "a.tif"
    how = {"width": 64, "height": 64, "count": 1, "dtype": "uint8", "crs": "EPSG:4326", "gcps": points}
    with rasterio.open(path, "w", driver="GTiff", **how) as file:
        file.write(field((1, 64, 64), "uint8"))
    return path


def sparse(folder: Path) -> Path:
    """A file none of whose blocks was ever written."""
    import rasterio

    path = folder / "a.tif"
    how = {"width": 256, "height": 256, "count": 1, "dtype": "int16", "nodata": -1, "SPARSE_OK": "TRUE"}
    with rasterio.open(path, "w", driver="GTiff", transform=rasterio.Affine(10, 0, 0, 0, -10, 0), **how, **tiled()):
        pass
    return path


def lost_block(folder: Path) -> Path:
    """The table of blocks says that one of four is nowhere; nothing says what stands for it."""
    path = write_tiff(folder / "a.tif", field((128, 128)), **tiled())
    body = bytearray(path.read_bytes())
    start = int.from_bytes(body[4:8], "little")
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(body[start : start + 2], "little"), 12):
        if int.from_bytes(body[entry : entry + 2], "little") in (324, 325):
            table = int.from_bytes(body[entry + 8 : entry + 12], "little")
            body[table : table + 4] = bytes(4)
    path.write_bytes(body)
    return path


SIGNED = field((64, 64), "int16")
VRT = b"<VRTDataset rasterXSize='1' rasterYSize='1'><VRTRasterBand dataType='Byte' band='1'/></VRTDataset>"
BAD: dict[str, Bad] = {
    "truncated TIFF": Bad(truncated, None, "does not decode", valid=0.5),
    "TIFF cut in its header": Bad(cut_header, FormatError, "does not read"),
    "zero bytes": Bad(written(b""), FormatError, "file is empty"),
    "text with .tif suffix": Bad(written(b"No raster at all.\n" * 20), FormatError, "neither TIFF nor PNG"),
    "VRT with .tif suffix": Bad(written(VRT), FormatError, "neither TIFF nor PNG"),
    "TIFF signature and nothing else": Bad(written(b"II*\0"), FormatError, "does not read"),
    "TIFF whose directory lies beyond its end": Bad(written(b"II*\0\xff\xff\xff\x7f"), FormatError, "does not read"),
    "no CRS": Bad(tiff(SIGNED, crs=None), None, "no CRS", valid=1),
    "no geotransform": Bad(tiff(SIGNED, cell=None), GeometryError, "transform=[a,b,c,d,e,f]"),
    "cells without width": Bad(tiff(SIGNED, cell=(0.0, -10.0)), GeometryError, "control points"),
    "control points instead of a transform": Bad(gcps, GeometryError, "control points"),
    "nodata NaN on int16": Bad(nodata("int16", b"nan"), None, "nodata nan cannot occur in int16", valid=1),
    "negative nodata on uint8": Bad(nodata("uint8", b"-99"), None, "nodata -99 cannot occur in uint8", valid=1),
    "every cell nodata": Bad(tiff(np.full((64, 64), -1, np.int16), nodata=-1), None, "no cell is valid", valid=0),
    "no block was ever written": Bad(sparse, None, "no cell is valid", valid=0),
    "header claims 10^9 cells a side in strips": Bad(claims(10**9, 10**9), FormatError, ""),
    "header claims 10^9 cells a side in tiles": Bad(claims(10**9, 10**9, **tiled()), FormatError, ""),
    "header claims a strip of 10^9 cells": Bad(claims(10**9, 64, compress="deflate"), DataError, ""),
    "header claims 65535 bands": Bad(bands(65535, 2, **tiled()), FormatError, ""),
    # Found by fuzzing: a file of 329 bytes and 3,841 bands, each of whose blocks was told once per band.
    "header claims 3,841 bands": Bad(bands(3841), FormatError, "more bands"),
    "header claims 800 bands": Bad(bands(800, blockysize=1), FormatError, "header claims more"),
    "header claims ten times its rows": Bad(claims(64, 640, **tiled()), None, "is not in the file", valid=0.1),
    "complex numbers": Bad(tiff(field((64, 64)).astype(np.complex64)), FormatError, "complex"),
    "one corrupt internal tile": Bad(corrupt_block, None, "does not decode", valid=15 / 16),
    "one internal tile that is nowhere": Bad(lost_block, None, "is not in the file", valid=3 / 4),
    "folder without rasters": Bad(empty_folder, DataError, "no raster there"),
    "list that is not JSON": Bad(written(b"[1, 2", "tiles.json"), FormatError, "not JSON"),
    "list of something else": Bad(written(b'[{"id": 7}]', "tiles.json"), FormatError, "no list of rasters"),
    "empty list": Bad(written(b"[]", "tiles.json"), DataError, "no raster there"),
    "mosaic with mixed CRS": Bad(mosaic(crs="EPSG:32718"), MismatchError, "to_crs=EPSG"),
    "mosaic with mixed types": Bad(mosaic(values=field((40, 40))), None, "different types, stored as float32", valid=1),
    "mosaic of uint8 and float64": Bad(mosaic(values=field((40, 40)).astype(np.float64)), None, "float64", valid=1),
    "mosaic with mixed resolution": Bad(mosaic(cell=(20.0, -20.0)), GeometryError, "resolution=10"),
    "mosaic with mixed band counts": Bad(mosaic(values=field((2, 40, 40), "uint8")), MismatchError, "numbers of bands"),
    "mosaic with overlapping tiles": Bad(mosaic(corner=(700200.0, 9500000.0)), None, "shared cells", valid=1),
    "mosaic with a tile at the wrong place": Bad(mosaic(corner=(-7e8, 9500000.0)), GeometryError, "too far apart"),
    "mosaic with a torn tile": Bad(torn_tile, None, "left out", valid=1),
    "raster of one cell": Bad(tiff(field((1, 1))), None, "", valid=1),
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, pieces are written here."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.fixture(scope="module", autouse=True)
def libraries_are_loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first file imports is no allocation of a bad one."""
    for make in (tiff(SIGNED), truncated, torn_tile):
        folder = tmp_path_factory.mktemp("first")
        ingest_source(str(make(folder)), str(folder / "survey"), Options(), IngestRun())


@pytest.mark.parametrize("name", BAD)
def test_bad_raster_is_a_typed_error_or_a_documented_recovery(tmp_path: Path, name: str) -> None:
    bad, target = BAD[name], str(tmp_path / "survey")
    source = bad.make(tmp_path)
    size = source.stat().st_size if source.is_file() else sum(file.stat().st_size for file in source.iterdir())

    def run() -> Any:
        return ingest_source(str(source), target, Options(), IngestRun())

    if bad.error is not None:
        with pytest.raises(bad.error) as raised:
            bounded(run, size)
        assert bad.says in str(raised.value)
        assert not (tmp_path / "survey/zarr.json").exists()
        return
    info = bounded(run, size)
    told = [*info["warnings"], *(f"{fault.fault} {fault.action}" for fault in read_quality(target))]
    assert any(bad.says in sentence for sentence in told) or not bad.says
    shares = np.isfinite(valid_raster(open_survey(target)).values).mean()
    assert shares == pytest.approx(bad.valid, abs=0.26 if "truncated" in name else 1e-6)


def test_no_flipped_bit_of_a_deflate_block_passes_for_a_value(tmp_path: Path) -> None:
    source = write_tiff(tmp_path / "a.tif", field((64, 64), "int16"), **tiled())
    whole = source.read_bytes()
    with rasterio.open(source) as file:
        begin, size = (int(file.get_tag_item(f"BLOCK_{word}_0_0", "TIFF", bidx=1)) for word in ("OFFSET", "SIZE"))
    chance, window = random.Random(0), slice(0, 64)
    for _ in range(100):
        body = bytearray(whole)
        body[begin + chance.randrange(size)] ^= 1 << chance.randrange(8)
        source.write_bytes(body)
        tile = read_tile(find_source(str(source)))
        mosaic = make_mosaic([tile], to_crs=None, resolution=None, resampling=None, where="a.tif")
        cells = read_cells(mosaic, window, window, "first")
        assert len(cells.faults) == 1 and not cells.valid.any()

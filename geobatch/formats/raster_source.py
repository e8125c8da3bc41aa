"""Raster files opened by rasterio where they lie: GDAL reads through `Storage`, with its retries and credentials.

GDAL knows of a failed read only that it failed. Here what storage raised is kept, so that an outage is never taken for
a damaged tile (decision 14).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import uuid
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from geobatch.errors import DataError, FormatError, GeobatchError
from geobatch.formats.libraries import need
from geobatch.formats.raster_ranges import READERS, RangedFile, Ranges
from geobatch.storage import open_storage, split_url

# A block is decoded whole: larger ones would make memory depend on how the file was written.
BLOCK_BYTES = 128 * 2**20
INFLATED_BYTES = 2**20
# Holds one block of every band: GDAL would decode it anew for each band.
GDAL_CACHE_BYTES = BLOCK_BYTES + 16 * 2**20
# An offset and a byte count, the least that a TIFF holds for each of its blocks.
TABLE_ENTRY_BYTES = 6
# Constant blocks under zstd come near to it. Only files of blocks that were never written exceed it.
MOST_PACKED = 20_000
# Coordinates of the axes are held whole; a raster of a table of blocks and its blocks takes far more than they do.
AXIS_BYTES = 8
MOST_AXES = 4
SMALL_BYTES = 2**20
# Every band is objects of its own. A TIFF tells three numbers of two bytes of each.
BAND_BYTES = 6
MOST_BANDS = 4096
# Of a file without compression that was cut off, this part at least is there.
MOST_CUT_OFF = 100
MASK_SUFFIX = ".msk"
DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\x89PNG": "PNG",
}


@dataclass(frozen=True)
class Source:
    """A raster file as it was found.

    Attributes:
        url: Of the file.
        size_bytes: Its size.
        version: Tells that it changed.
        mask_bytes: Size of the `.msk` file beside it, 0 where there is none.
    """

    url: str
    size_bytes: int
    version: str
    mask_bytes: int = 0


@dataclass(frozen=True)
class Tile:
    """The header of a raster file.

    Attributes:
        source: The file.
        width: Cells along x.
        height: Cells along y.
        dtype: Name of the NumPy type of its bands.
        crs: WKT, empty where the file names none.
        transform: Affine `(a, b, c, d, e, f)`: x = a column + b row + c, y = d column + e row + f, of cell corners.
        bands: Numbers of the bands that hold values, from 1.
        names: Description per band, empty where none.
        units: Unit per band, empty where none.
        nodata: Value per band that marks invalid cells, None where none.
        scales: Factor per band.
        offsets: Summand per band, after the factor.
        masked: An alpha band or a mask tells which cells are valid.
        palette: Colours `(value, red, green, blue)` of the only band, empty where it has no table.
        block: Rows and columns of the file's own unit of reading.
        tags: What else the file says of itself.
        nodata_given: `nodata` is the user's and replaces the file's own.
        unheld: What the file names as nodata per band and its type cannot hold, so that it marks nothing; else None.
    """

    source: Source
    width: int
    height: int
    dtype: str
    crs: str
    transform: tuple[float, ...]
    bands: tuple[int, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    nodata: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    masked: bool
    palette: tuple[tuple[int, ...], ...]
    block: tuple[int, int]
    tags: dict[str, str] = field(default_factory=dict)
    nodata_given: bool = False
    unheld: tuple[float | None, ...] = ()

    @property
    def scaled(self) -> bool:
        """True when stored numbers are not yet the values they stand for."""
        return any(scale != 1 for scale in self.scales) or any(offset != 0 for offset in self.offsets)


class OpenRaster:
    """A raster file that is open.

    Attributes:
        dataset: The rasterio dataset.
    """

    def __init__(self, dataset: Any, ranges: Ranges, failures: list[GeobatchError]) -> None:
        self.dataset = dataset
        self._ranges, self._failures = ranges, failures

    def require_storage(self) -> None:
        """Raise what storage raised while GDAL was reading: GDAL itself goes on without the bytes, or with a guess."""
        if self._failures:
            raise self._failures[0]

    def fetch(
        self, window: tuple[slice, slice], bands: Sequence[int]
    ) -> tuple[list[tuple[slice, slice]], list[tuple[slice, slice]]]:
        """Read ahead the blocks of a TIFF under a window; returns its parts that are not in the file, and torn ones.

        Where blocks lie GDAL tells by its metadata domain TIFF. A block that is not there it reads as nodata, or as 0;
        a damaged deflate stream it may read without a word (decision 14).
        """
        found, missing = [], []
        for part, span in self._blocks(window, bands):
            if span is None:
                missing.append(part)
            else:
                found.append((part, span))
        self._ranges.fetch([span for _, span in found])
        self.require_storage()
        if getattr(self.dataset.compression, "name", "") != "deflate":
            return missing, []
        with ThreadPoolExecutor(READERS) as readers:
            whole = list(readers.map(self._inflates, (span for _, span in found)))
        self.require_storage()
        return missing, [part for (part, _), sound in zip(found, whole, strict=True) if not sound]

    def _inflates(self, span: tuple[int, int]) -> bool:
        """True when a block is a whole zlib stream whose Adler-32 holds."""
        body, stream, seen = self._ranges.read(span[0], span[1] - span[0]), zlib.decompressobj(), 0
        try:
            while seen <= BLOCK_BYTES:
                part = stream.decompress(body, INFLATED_BYTES)
                body, seen = stream.unconsumed_tail, seen + len(part)
                if stream.eof or not (part or body):
                    return stream.eof
        except zlib.error:
            return False
        return True

    def missing(self, bands: Sequence[int]) -> int:
        """How many blocks of the whole TIFF are not in it."""
        window = slice(0, self.dataset.height), slice(0, self.dataset.width)
        return sum(span is None for _, span in self._blocks(window, bands))

    def _blocks(
        self, window: tuple[slice, slice], bands: Sequence[int]
    ) -> Iterator[tuple[tuple[slice, slice], tuple[int, int] | None]]:
        """Part of the window and bytes, first and last + 1, of every block under it; None where there are none."""
        if self.dataset.driver != "GTiff":
            return
        block = self.dataset.block_shapes[bands[0] - 1]
        pixelwise = self.dataset.interleaving is not None and self.dataset.interleaving.name == "pixel"
        parts = cut_at_blocks(window, block)
        for (rows, columns), band in itertools.product(parts, bands[:1] if pixelwise else bands):
            place = f"{columns.start // block[1]}_{rows.start // block[0]}"
            start, size = (
                self.dataset.get_tag_item(f"BLOCK_{word}_{place}", "TIFF", bidx=band) for word in ("OFFSET", "SIZE")
            )
            yield (rows, columns), (int(start), int(start) + int(size)) if start and size else None


def cut_at_blocks(window: tuple[slice, slice], block: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The window cut at the borders of blocks of that many rows and columns."""
    rows, columns = (
        [
            slice(max(axis.start, i * side), min(axis.stop, (i + 1) * side))
            for i in range(axis.start // side, -(-axis.stop // side))
        ]
        for axis, side in zip(window, block, strict=True)
    )
    return list(itertools.product(rows, columns))


def find_source(url: str) -> Source:
    """The file at `url` as it is now.

    Raises:
        NotFoundError: nothing is there.
    """
    root, name = split_url(url)
    storage = open_storage(root)
    mask = storage.size(name + MASK_SUFFIX) if storage.exists(name + MASK_SUFFIX) else 0
    return Source(url, storage.size(name), storage.version(name), mask)


@contextlib.contextmanager
def gdal() -> Iterator[Any]:
    """rasterio, in an environment of bounded memory that looks at no file but the one it is given."""
    rasterio = need("rasterio", "landform")
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES, GDAL_PAM_ENABLED=False, GDAL_DISABLE_READDIR_ON_OPEN="FALSE"):
        yield rasterio


@contextlib.contextmanager
def open_raster(source: Source) -> Iterator[OpenRaster]:
    """The file, open for reading as GeoTIFF or PNG by its first bytes; no other driver of GDAL is let near it.

    Raises:
        FormatError: it is no raster file, or a damaged one.
        TransientError: storage does not answer.
    """
    root, name = split_url(source.url)
    storage = open_storage(root)
    head = storage.get_range(name, 0, min(4, source.size_bytes))
    if head not in DRIVERS:
        raise FormatError(
            "file is empty" if not source.size_bytes else "file is neither TIFF nor PNG",
            where=source.url,
            measured=f"{source.size_bytes} bytes, beginning {head!r}",
            limit="a TIFF or PNG signature",
            remedy="Convert it with gdal_translate -of COG, or leave it out.",
        )
    failures: list[GeobatchError] = []
    with gdal() as rasterio:
        files = {name: Ranges(storage, name, source.size_bytes, failures.append)}
        if source.mask_bytes:
            files[name + MASK_SUFFIX] = Ranges(storage, name + MASK_SUFFIX, source.mask_bytes, failures.append)
        try:
            # Two openings of one name at a time would share what rasterio registers.
            path = f"{uuid.uuid4().hex}/{name}"
            with warnings.catch_warnings():
                # That a file has no transform is told by whoever makes the grid.
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                dataset = rasterio.open(path, driver=DRIVERS[head], opener=_container(files))
        except gdal_errors() as error:
            if failures:
                raise failures[0] from error
            raise damaged(source.url, error) from error
        with dataset:
            opened = OpenRaster(dataset, files[name], failures)
            opened.require_storage()
            _refuse_impossible(dataset, source)
            yield opened


def gdal_errors() -> tuple[type[Exception], ...]:
    """What rasterio raises for what GDAL tells; some of it comes through as GDAL's own."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import CRSError, RasterioError

    return RasterioError, CRSError, CPLE_BaseError


def damaged(where: str, error: Exception) -> FormatError:
    """What GDAL could not read, as our error; its own words without the invented path."""
    words = str(error.__cause__ or error).rpartition("/")[2].splitlines()[0][:200]
    return FormatError(
        "raster does not read",
        where=where,
        measured=words,
        limit="a whole TIFF or PNG",
        remedy="Copy it again from where it came; gdalinfo tells more.",
    )


def _refuse_impossible(dataset: Any, source: Source) -> None:
    """Refuse a header that claims more than the file can hold, before anything is sized by it."""
    most_bands = min(MOST_BANDS, source.size_bytes // BAND_BYTES)
    if dataset.count > most_bands:
        raise FormatError(
            "raster has more bands than any instrument, or than the file can hold",
            where=source.url,
            measured=dataset.count,
            limit=most_bands,
            remedy="Copy it again from where it came, or ingest its bands in several files.",
        )
    rows, columns = dataset.block_shapes[0]
    planes = 1 if dataset.interleaving and dataset.interleaving.name == "pixel" else dataset.count
    blocks = math.ceil(dataset.height / rows) * math.ceil(dataset.width / columns) * planes
    if dataset.driver == "GTiff" and blocks > 1 and blocks * TABLE_ENTRY_BYTES > source.size_bytes:
        raise FormatError(
            "header claims more than the file can hold",
            where=source.url,
            measured=f"{dataset.width} x {dataset.height} cells in {blocks} blocks",
            limit=f"{source.size_bytes // TABLE_ENTRY_BYTES} blocks in a file of {source.size_bytes} bytes",
            remedy="Copy it again from where it came.",
        )
    if AXIS_BYTES * (dataset.width + dataset.height) > max(MOST_AXES * source.size_bytes, SMALL_BYTES):
        raise FormatError(
            "header claims more than the file can hold",
            where=source.url,
            measured=f"axes of {dataset.width} and {dataset.height} cells",
            limit=f"{max(MOST_AXES * source.size_bytes, SMALL_BYTES) // AXIS_BYTES} in both together",
            remedy="Copy it again from where it came.",
        )
    whole_bytes = dataset.height * dataset.width * dataset.count * _item_bytes(dataset.dtypes[0])
    plain = dataset.driver == "GTiff" and dataset.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION") is None
    packed = MOST_CUT_OFF if plain else MOST_PACKED
    if whole_bytes > max(packed * source.size_bytes, SMALL_BYTES if plain else BLOCK_BYTES):
        raise FormatError(
            "header claims more than the file can hold",
            where=source.url,
            measured=f"{dataset.count} bands of {dataset.width} x {dataset.height}, {whole_bytes / 2**30:.1f} GiB",
            limit=f"{packed} times the {source.size_bytes} bytes of the file",
            remedy="Copy it again from where it came; leave out files without a single written block.",
        )
    block_bytes = rows * columns * _item_bytes(dataset.dtypes[0]) * (dataset.count if planes == 1 else 1)
    if block_bytes > BLOCK_BYTES:
        raise DataError(
            "one block of the file is too large to decode",
            where=source.url,
            measured=f"{rows} x {columns} cells, {block_bytes / 2**20:.0f} MiB",
            limit=f"{BLOCK_BYTES / 2**20:.0f} MiB",
            remedy="Write it with small tiles: gdal_translate -co TILED=YES in.tif out.tif.",
        )


def _item_bytes(dtype: str) -> int:
    import numpy as np

    # rasterio's names of complex integers are none of NumPy's.
    return 4 if dtype.startswith("complex_") else np.dtype(dtype).itemsize


def _container(files: Mapping[str, Ranges]) -> Any:
    """What rasterio opens files by: the raster, and the mask beside it where there is one; nothing else is there."""
    from rasterio.abc import FileContainer

    class Siblings(FileContainer):  # type: ignore[misc]
        def open(self, path: str, mode: str = "rb", **_: Any) -> RangedFile:
            if not self.isfile(path) or "r" not in mode:
                raise FileNotFoundError(path)
            return RangedFile(files[path.rpartition("/")[2]])

        def isfile(self, path: str) -> bool:
            return path.rpartition("/")[2] in files

        def isdir(self, path: str) -> bool:
            return "." not in path.rpartition("/")[2]

        def ls(self, path: str) -> list[str]:
            return list(files)

        def mtime(self, path: str) -> int:
            return 0

        def rm(self, path: str) -> None:
            raise PermissionError(path)

        def size(self, path: str) -> int:
            return files[path.rpartition("/")[2]].size if self.isfile(path) else 0

    return Siblings()

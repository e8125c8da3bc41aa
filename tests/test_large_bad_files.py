"""Files of some MiB that claim thousands of times more than they hold: refused or read within four times their size."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import bounded
from label_files import painted
from miniseed_files import counts, records, trace
from raster_files import field, tiled, write_tiff
from segy_files import random_traces, raw_segy
from test_log_bad_files import GOOD_LAS, ROWS, TABLE, C, V, W, events
from test_log_bad_files import header as npy_header
from test_raster_bad_files import patched_tag

from geobatch.errors import GeobatchError
from geobatch.formats import IngestRun, arrays, catalogue, las, logs, miniseed, parse_options, raster, windows
from geobatch.formats import ingest as ingest_segy
from geobatch.labels.spec import FaultSticks, HorizonFile, Points, Polygons, Reflector

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
from targets import TARGETS

MIB = 2**20
SIZE = 4 * MIB
COMMENTS = f"# {'x' * 61}\n" * (SIZE // 64)
INLINES, CROSSLINES = (index.ravel() for index in np.indices((20, 25)))
SAMPLES = 2048
REV2 = {3501: (0x0200, "u2")}


def segy(*, fields: dict[int, Any] | None = None, **options: Any) -> Callable[[Path], None]:
    """20 by 25 traces of 2,048 samples, 4.2 MB."""
    own = {189: INLINES.tolist(), 193: CROSSLINES.tolist(), **(fields or {})}
    return lambda path: raw_segy(path, random_traces(*[SAMPLES] * 500), fields=own, **options) and None


def waveforms(change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    """8,000 records of 512 bytes, changed as an array `(record, byte)`."""

    def write(path: Path) -> None:
        body = records(trace(counts(30_000)))
        whole = np.frombuffer(body * (8000 * 512 // len(body)), np.uint8).reshape(-1, 512).copy()
        change(whole)
        path.write_bytes(whole.tobytes())

    return write


def put(offset: int, kind: str, value: int) -> Callable[[np.ndarray], None]:
    """The same bytes at an offset of every record."""

    def change(whole: np.ndarray) -> None:
        new = np.frombuffer(struct.pack(kind, value), np.uint8)
        whole[:, offset : offset + new.size] = new

    return change


def tiff(tags: dict[int, int], side: int = 1448, **options: Any) -> Callable[[Path], None]:
    """A TIFF of noise, by default 4 MiB, with tags that say something else."""

    def write(path: Path) -> None:
        write_tiff(path, field((side, side), "uint16"), **options)
        for tag, value in tags.items():
            patched_tag(path, tag, value)

    return write


def png(path: Path) -> None:
    """A header of 2^31 - 1 cells a side on 4 MiB of noise."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)
    data = b"IDAT" + np.random.default_rng(0).bytes(SIZE)
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, data)]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def archive(body: bytes, method: int = zipfile.ZIP_DEFLATED, *, name: str = "data.npy", claims: int = 0) -> bytes:
    """An archive of one member, whose directory may claim another size."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as file:
        file.writestr(name, body)
    packed = sink.getvalue()
    if claims:
        packed = packed.replace(struct.pack("<I", len(body)), struct.pack("<I", claims))
    return packed


def zeros(mib: int) -> bytes:
    """An array file `(sample, component)` of so many MiB of zeros."""
    sink = io.BytesIO()
    np.save(sink, np.zeros((mib * MIB // 12, 3), np.float32))
    return sink.getvalue()


def wrapped_without_end() -> str:
    """Rows of 301 curves in lines of two values, so that none ever has as many as it should."""
    curves = "".join(f"C{n}. :\n" for n in range(298))
    return V.replace("NO", "YES") + W + C + curves + "~A\n" + f"{1000.125:63}{2000.25:64}\n" * (SIZE // 128)


def flooded(body: str | bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(body if isinstance(body, bytes) else body.encode()) and None


def read(module: Any, path: Path, target: Path, **options: Any) -> None:
    source = path.parent if module is windows else path
    module.ingest_source(str(source), str(target), module.Options(**options), IngestRun())


def read_array(path: Path, target: Path) -> None:
    options: Any = parse_options("arrays", {"axes": {"sample": {"unit": "ms"}}})
    arrays.ingest_source(str(path), str(target), options, IngestRun())


def layer(kind: Any, **options: Any) -> Callable[[Path, Path], Any]:
    name = {Reflector: "horizon", FaultSticks: "fault_sticks", Polygons: "polygons", Points: "points"}[kind]
    return lambda path, _: painted(kind(layer=name, label="a", **{key: make(path) for key, make in options.items()}))


# By reader: the suffix of its files, the fuzzed reader whose seeds are sound files of the kind, and how it is called.
READERS: dict[str, tuple[str, str, Callable[[Path, Path], Any]]] = {
    "SEG-Y": ("sgy", "segy", lambda path, target: ingest_segy(str(path), str(target))),
    "MiniSEED": ("mseed", "miniseed", partial(read, miniseed)),
    "LAS": ("las", "las", partial(read, las)),
    "logs": ("csv", "logs", partial(read, logs)),
    "catalogue": ("csv", "catalogue", partial(read, catalogue)),
    "QuakeML": ("xml", "quakeml", partial(read, catalogue)),
    "window": ("npz", "window", partial(read, windows)),
    "npy": ("npy", "npy", read_array),
    "npz": ("npz", "npz", read_array),
    "raster": ("tif", "raster", partial(read, raster, transform=(1, 0, 0, 0, -1, 0))),
    "list of rasters": ("json", "tile_list", partial(read, raster)),
    "horizon": ("txt", "horizon", layer(Reflector, horizon=str)),
    "horizon array": (
        "npy",
        "horizon_array",
        layer(Reflector, horizon=lambda path: HorizonFile(url=str(path), inline=(100, 1), crossline=(300, 1))),
    ),
    "fault sticks": ("txt", "sticks", layer(FaultSticks, url=str)),
    "points": ("csv", "points", layer(Points, url=str)),
    "polygons": ("geojson", "polygons", layer(Polygons, url=str)),
}

# By the reader and what ails the file: how it is made, and the words of the error; None where it is read.
BAD: dict[tuple[str, str], tuple[Callable[[Path], None], str | None]] = {
    ("SEG-Y", "a thousand million samples"): (
        segy(binary=REV2 | {3269: (10**9, "u4")}, fields={115: 0}),
        "0 traces and .*1000000000 samples",
    ),
    ("SEG-Y", "4,000 million trace header extensions"): (
        segy(binary=REV2 | {3507: (4 * 10**9, "u4")}),
        "too many trace header extensions",
    ),
    ("SEG-Y", "30,000 extended headers"): (
        segy(binary={3501: (0x0100, "u2"), 3505: (30_000, "i2")}),
        "30000 headers of 3200 bytes",
    ),
    ("SEG-Y", "first trace at 2^60"): (segy(binary=REV2 | {3521: (2**60, "u8")}), "begin outside the file's traces"),
    ("SEG-Y", "2^62 traces"): (segy(binary=REV2 | {3513: (2**62, "u8")}), None),
    ("SEG-Y", "numbers at the ends of the integers"): (
        segy(fields={189: [(-(2**31), 2**31 - 1)[n % 2] for n in range(500)], 193: [n // 2 for n in range(500)]}),
        None,
    ),
    ("SEG-Y", "a trace in a place of its own among 2^62"): (
        segy(fields={189: [*[1] * 499, 2**31 - 1], 193: [*range(499), 2**31 - 1]}),
        None,
    ),
    ("SEG-Y", "zeros"): (flooded(bytes(SIZE)), "unknown sample format code"),
    ("SEG-Y", "noise"): (flooded(np.random.default_rng(0).bytes(SIZE)), "format|sample|trace"),
    ("MiniSEED", "65,535 samples in every record"): (waveforms(put(30, ">H", 65535)), "no MiniSEED record"),
    ("MiniSEED", "records of a gigabyte"): (waveforms(put(54, ">B", 30)), "no MiniSEED record"),
    ("MiniSEED", "samples that begin beyond every record"): (waveforms(put(44, ">H", 65535)), "no MiniSEED record"),
    ("MiniSEED", "zeros"): (flooded(bytes(SIZE)), "no MiniSEED"),
    ("LAS", "one row of two million values"): (flooded(V + W + C + "~A\n" + "1 " * (SIZE // 2)), "longer than"),
    ("LAS", "a row of two million values behind good ones"): (flooded(GOOD_LAS + "1 " * (SIZE // 2) + "\n"), None),
    ("LAS", "100,000 curves"): (
        flooded(V + W + C + "".join(f"C{n}. :\n" for n in range(100_000)) + ROWS + "\n" * SIZE),
        "too many curves",
    ),
    ("LAS", "100,000 lines of ~Well"): (
        flooded(V + W + "".join(f"X{n}. 1 :\n" for n in range(80_000)) + C + ROWS + "\n" * SIZE),
        "too many lines",
    ),
    ("LAS", "wrapped rows that never end"): (
        flooded(wrapped_without_end()),
        "no row of numbers",
    ),
    ("LAS", "10^9 rows claimed"): (
        flooded(V + W.replace("STOP.m 101", "STOP.m 1e9").replace("0.5", "1e-9") + C + ROWS + COMMENTS),
        None,
    ),
    ("LAS", "a header of 4 MiB"): (flooded(V + W + C + "X. 1 : x\n" * (SIZE // 9) + ROWS), "header is too long"),
    ("logs", "a row of four million columns"): (flooded("depth (m),GR\n1,2\n" + "," * SIZE), "does not read"),
    ("logs", "a header of two million columns"): (flooded("depth (m)" + ",x" * (SIZE // 2) + "\n"), "too many columns"),
    ("logs", "a quote that never ends"): (flooded('depth (m),GR\n1,2\n"' + "1,2\n" * MIB), "does not read"),
    ("catalogue", "600 columns of one name"): (
        flooded(TABLE.replace("\n", ",x" * 600 + "\n", 1).replace("3.5", "3.5" + "," * 600) + "\n" * MIB),
        None,
    ),
    ("catalogue", "a row of four million columns"): (flooded(TABLE + "," * SIZE), "does not read"),
    ("QuakeML", "four million letters for a name"): (flooded("<" + "x" * SIZE + "/>"), "no XML"),
    ("QuakeML", "an attribute of four million letters"): (
        flooded(events(1).replace("<origin ", f'<origin a="{"x" * SIZE}" ')),
        None,
    ),
    ("QuakeML", "elements a million deep"): (flooded(events(1).replace("<origin ", "<a>" * MIB)), "Excessive depth"),
    ("window", "10^9 samples"): (
        flooded(archive(npy_header("(1000000000, 3)", "'<f8'") + bytes(SIZE), zipfile.ZIP_STORED)),
        "claims more than its file holds",
    ),
    ("window", "a bomb of 4 GiB"): (
        flooded(archive(zeros(64), claims=2**32 - 1)),
        "packed more densely|too large",
    ),
    ("window", "a bomb of 128 MiB"): (flooded(archive(zeros(128))), "packed more densely"),
    ("window", "a bomb that says it is small"): (flooded(archive(zeros(128), claims=4096)), "damaged|than its file"),
    ("window", "a bomb in bzip2"): (flooded(archive(zeros(64), zipfile.ZIP_BZIP2, claims=4096)), "does not know"),
    ("window", "a bomb in LZMA"): (flooded(archive(zeros(32), zipfile.ZIP_LZMA, claims=4096)), "does not know"),
    ("npy", "10^9 samples"): (flooded(npy_header("(1000, 1000, 1000)") + bytes(SIZE)), "shorter than its shape"),
    ("npy", "a header of 4 MiB"): (
        flooded(b"\x93NUMPY\x02\x00" + struct.pack("<I", SIZE) + b"(" * SIZE),
        "header of the array does not read",
    ),
    ("npz", "10^9 samples"): (
        flooded(archive(npy_header("(1000, 1000, 1000)") + bytes(SIZE), zipfile.ZIP_STORED)),
        "shorter than its shape",
    ),
    ("npz", "a bomb in bzip2"): (flooded(archive(zeros(64), zipfile.ZIP_BZIP2)), "does not know"),
    ("raster", "10^9 cells a side in strips"): (tiff({256: 10**9, 257: 10**9}), "header claims more|does not read"),
    ("raster", "10^9 cells a side in tiles"): (
        tiff({256: 10**9, 257: 10**9}, **tiled(compress="none")),
        "header claims more|does not read",
    ),
    ("raster", "2^31 - 1 columns in one tile"): (
        tiff({256: 2**31 - 1, 257: 1, 322: 2**25, 323: 16}, **tiled(compress="none")),
        "header claims more|does not read|too large",
    ),
    ("raster", "a million columns and tiles of 16 by 16"): (
        tiff({256: 10**6, 257: 10**6, 322: 16, 323: 16}, **tiled(compress="none")),
        "header claims more|does not read",
    ),
    ("raster", "50 million columns and one row"): (
        tiff({256: 5 * 10**7, 257: 1, 322: 2**20, 323: 16}, **tiled(compress="deflate")),
        "header claims more",
    ),
    # GDAL makes an object of every band before it tells how many there are: 25 MiB.
    ("raster", "65,535 bands"): (tiff({277: 65535}, 2100), "header claims more|does not read|more bands|too large"),
    ("raster", "a strip of 10^9 cells"): (tiff({256: 10**9, 257: 64, 278: 64}, compress="deflate"), "too large|more"),
    ("raster", "a PNG of 2^31 - 1 cells a side"): (png, "header claims more|does not read"),
    ("raster", "noise behind a TIFF signature"): (
        flooded(b"II*\0" + np.random.default_rng(0).bytes(SIZE)),
        "does not read",
    ),
    ("list of rasters", "brackets four million deep"): (flooded("[" * SIZE), "not JSON"),
    ("horizon", "a line of two million numbers"): (flooded("1 " * (SIZE // 2)), "line is too long"),
    ("horizon", "picks at the ends of the floats"): (
        flooded("100 300 40\n1e308 300 40\n-1e308 -1e308 40\n1e308 -1e308 50\n" + COMMENTS),
        "no triangles|off the survey",
    ),
    ("horizon array", "10^9 cells"): (flooded(npy_header("(30000, 30000)") + bytes(SIZE)), "shorter than its shape"),
    ("fault sticks", "a point at 10^12"): (
        flooded("0 0 16 0\n0 1e12 80 0\n400 60 16 1\n" + COMMENTS),
        "too large to be one",
    ),
    ("fault sticks", "a surface of 10^10 cells"): (
        flooded("0 0 16 0\n9e5 0 80 0\n0 9e5 16 1\n9e5 9e5 80 1\n" + COMMENTS),
        "too large to be one",
    ),
    ("fault sticks", "a stick without an end to its number"): (flooded("0 0 16 1e999\n"), "no fault sticks"),
    ("points", "a row of four million columns"): (flooded("x,y\n1,2\n" + "," * SIZE), "line is too long"),
    ("fault sticks", "a line of two million numbers"): (flooded("1 " * (SIZE // 2)), "line is too long"),
    ("polygons", "a VRT that names another file"): (
        flooded("<OGRVRTDataSource><OGRVRTLayer name='a'><SrcDataSource>/etc/passwd</SrcDataSource></OGRVRTLayer>"),
        "no file of shapes",
    ),
    ("polygons", "noise behind the signature of FlatGeobuf"): (
        flooded(b"fgb\x03fgb\x00" + b"\xff" * SIZE),
        "no file of shapes",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def libraries_are_loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first file of a kind imports is no allocation of a bad one: sound files, and their first halves."""
    for reader, (suffix, target, reading) in READERS.items():
        folder = tmp_path_factory.mktemp(target)
        for number, seed in enumerate([*TARGETS[target].seeds(folder)]):
            for part in (seed, seed[: len(seed) // 2]):
                path = tmp_path_factory.mktemp(target) / f"a.{suffix}"
                path.write_bytes(part)
                with contextlib.suppress(GeobatchError):
                    reading(path, folder / f"{reader}-{number}-{len(part)}")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, these files are read here, by a decoder that runs already."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(miniseed, "close_decoder", lambda: None)


@pytest.mark.parametrize(("reader", "ails"), BAD, ids=map(" ".join, BAD))
def test_claims_cost_no_more_than_the_file(reader: str, ails: str, tmp_path: Path) -> None:
    make, words = BAD[reader, ails]
    suffix, _, reading = READERS[reader]
    (tmp_path / "raw").mkdir()
    path = tmp_path / f"raw/a.{suffix}"
    make(path)
    if words is None:
        bounded(lambda: reading(path, tmp_path / "survey"), path.stat().st_size)
        return

    def refused() -> None:
        with pytest.raises(GeobatchError, match=words):
            reading(path, tmp_path / "survey")

    bounded(refused, path.stat().st_size)
    assert not (tmp_path / "survey/zarr.json").exists()

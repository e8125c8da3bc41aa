"""What is fuzzed: readers of files that anyone may have made. Whatever the bytes are, only our own errors come out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from miniseed_files import records, trace
from segy_files import random_traces, raw_segy, write_segy

from geobatch.errors import GeobatchError
from geobatch.formats import miniseed
from geobatch.formats.arrays_npy import open_npy
from geobatch.formats.catalogue import Options as CatalogueOptions
from geobatch.formats.catalogue import read_events
from geobatch.formats.las import Options as LasOptions
from geobatch.formats.las import inspect_source as inspect_las
from geobatch.formats.logs import Options as LogTableOptions
from geobatch.formats.logs import read_csv
from geobatch.formats.miniseed_layout import lay_out
from geobatch.formats.miniseed_piece import pieces
from geobatch.formats.miniseed_scan import list_source, parts_of, scan_part
from geobatch.formats.segy_ingest import Options as SegyOptions
from geobatch.formats.segy_inspect import inspect_file
from geobatch.formats.windows_npz import describe, read_npz
from geobatch.formats.windows_seisbench import read_metadata
from geobatch.job import load_job

ROOT = Path(__file__).parents[2]
NAME = "fuzzed"


def read_segy(path: Path) -> None:
    """All of an ingest but its writing."""
    inspect_file(str(path), SegyOptions())


def read_miniseed(path: Path) -> None:
    """All of an ingest up to the samples, which are decoded in a process of their own."""
    source = list_source(str(path))
    parts = parts_of(source, [0])
    tables = [scan_part(part, source) for part in parts]
    layout = lay_out(source, parts, tables, miniseed.Options().cut)
    assert all(piece.placed["records"].sum() for piece in pieces(layout.groups))


def read_window(path: Path) -> None:
    """An NPZ window, its picks and its samples."""
    body = path.read_bytes()
    if describe(body)["length"]:
        read_npz(body)


def read_metadata_rows(path: Path) -> None:
    """The metadata of a SeisBench data set."""
    read_metadata(path.read_bytes(), str(path))


def read_job(path: Path) -> None:
    """A job file up to its schema."""
    load_job(str(path))


def read_well(path: Path) -> None:
    """A LAS file up to its curves on a depth axis."""
    inspect_las(str(path), LasOptions())


def read_log_table(path: Path) -> None:
    """A table of logs up to its wells."""
    read_csv(str(path), LogTableOptions(depth_unit="m"))


def read_catalogue(path: Path) -> None:
    """A table or a QuakeML document up to its events."""
    read_events([(str(path), path.stat().st_size, "")], CatalogueOptions(), lambda done, total: None)


def read_npy(path: Path) -> None:
    """A NumPy file up to a corner of its array."""
    source = open_npy(str(path))
    source.read(tuple(slice(0, min(n, 3)) for n in source.shape))


def _segy_seeds(folder: Path) -> Iterator[bytes]:
    values = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    for code in (1, 2, 3, 5, 8):
        yield write_segy(folder / f"{code}.sgy", values, code=code).read_bytes()
    lines = {189: [1, 1, 2, 2], 193: [1, 2, 1, 2]}
    yield raw_segy(folder / "uneven.sgy", random_traces(5, 9, 3, 1), fields=lines).read_bytes()
    yield raw_segy(folder / "lines.sgy", random_traces(*[5] * 4), fields={9: lines[189], 21: lines[193]}).read_bytes()
    gathers = {**lines, 189: [1, 1, 1, 1], 193: [1, 1, 2, 2], 37: [10, 20, 10, 20]}
    yield raw_segy(folder / "gathers.sgy", random_traces(*[5] * 4), fields=gathers, order="<", code=6).read_bytes()
    newest = {3501: (0x0200, "u2"), 3507: (1, "u4"), 3513: (4, "u8"), 3521: (3700, "u8"), 3529: (1, "i4")}
    yield raw_segy(
        folder / "newest.sgy",
        random_traces(*[5] * 4),
        fields=lines,
        binary=newest,
        before=bytes(100),
        after=bytes(3200),
        extra=1,
    ).read_bytes()


def _miniseed_seeds(folder: Path) -> Iterator[bytes]:
    values = np.random.default_rng(0).integers(-99, 99, 900).astype(np.int32)
    for encoding in ("STEIM1", "STEIM2", "INT32"):
        yield records(trace(values[:300]), trace(values[300:], 5.0, channel="BHN", rate=20.0), encoding=encoding)


def _window_seeds(folder: Path) -> Iterator[bytes]:
    np.savez(folder / "a.npz", data=np.ones((30, 3)), itp=3, its=np.array([5]), channels="HHE_HHN_HHZ")
    yield (folder / "a.npz").read_bytes()
    np.savez_compressed(folder / "b.npz", data=np.ones((30, 3), "f4"))
    yield (folder / "b.npz").read_bytes()


def _metadata_seeds(folder: Path) -> Iterator[bytes]:
    yield b'trace_name,source_magnitude,trace_p_arrival_sample\n"bucket0$1,:3,:90",1.5,40\na,,\n'


def _job_seeds(folder: Path) -> Iterator[bytes]:
    for path in sorted((ROOT / "jobs").glob("*.yaml")):
        yield path.read_bytes()


LAS = (
    "~Version\nVERS. 2.0 : CWLS\nWRAP. NO :\n~Well\nSTRT.FT 100 :\nSTOP.FT 101 :\nSTEP.FT 0.5 :\nNULL. -999.25 :\n"
    "WELL. A-1 :\n~Curve\nDEPT.FT : depth\nGR.GAPI : gamma\nRHOB.K/M3 : density\n~Parameter\nEKB.FT 90 : kelly\n"
    "~A\n100.0 50.0 2400\n100.5 -999.25 2410\n101.0 52.0 2420\n"
)
TABLE = "time,latitude,longitude,depth,mag,magType,id\n2020-01-02T03:04:05.678Z,38.1,-117.9,8.2,3.4,ml,a\n"
EVENT = (
    b'<q:quakeml xmlns:q="http://quakeml.org/xmlns/quakeml/1.2" xmlns="http://quakeml.org/xmlns/bed/1.2"><eventParameters>'
    b'<event publicID="smi:local/1"><origin><time><value>2020-01-01T00:00:00Z</value></time><latitude><value>1</value>'
    b"</latitude><longitude><value>20</value></longitude></origin></event></eventParameters></q:quakeml>"
)


def _well_seeds(folder: Path) -> Iterator[bytes]:
    yield LAS.encode()
    yield LAS.replace("NO :", "YES :").replace(" 5", "\n5").encode()


def _log_table_seeds(folder: Path) -> Iterator[bytes]:
    yield b"Well Name,Depth,GR,Facies\nA,100.5,50,1\nA,101,51,2\nB,100,50,\n"
    yield b"depth [ft];RHOB (kg/m3)\n1;2400\n2;2410\n"


def _catalogue_seeds(folder: Path) -> Iterator[bytes]:
    yield TABLE.encode()
    yield b"year month day hour minute second lat lon depth ml\n2015 2 28 23 59 59.25 45.5 10.2 12 2.1\n"
    yield EVENT


def _npy_seeds(folder: Path) -> Iterator[bytes]:
    for number, array in enumerate((np.zeros((2, 3, 4), np.float32), np.asfortranarray(np.ones((3, 2), ">i2")))):
        np.save(folder / f"{number}.npy", array)
        yield (folder / f"{number}.npy").read_bytes()


TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Iterator[bytes]]]] = {
    "segy": (read_segy, _segy_seeds),
    "miniseed": (read_miniseed, _miniseed_seeds),
    "window": (read_window, _window_seeds),
    "metadata": (read_metadata_rows, _metadata_seeds),
    "job": (read_job, _job_seeds),
    "las": (read_well, _well_seeds),
    "logs": (read_log_table, _log_table_seeds),
    "catalogue": (read_catalogue, _catalogue_seeds),
    "npy": (read_npy, _npy_seeds),
}


def execute(target: str, data: bytes, folder: Path) -> None:
    """Let the target read these bytes; raises what is no error of ours."""
    path = folder / NAME
    path.write_bytes(data)
    with contextlib.suppress(GeobatchError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TARGETS[target][0](path)

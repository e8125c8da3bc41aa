"""What is fuzzed: readers of files that anyone may have made. Whatever the bytes are, only our own errors come out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from miniseed_files import records, trace
from segy_files import write_segy

from geobatch.errors import GeobatchError
from geobatch.fanout import open_fanout
from geobatch.formats import miniseed
from geobatch.formats.miniseed_layout import lay_out
from geobatch.formats.miniseed_piece import pieces
from geobatch.formats.miniseed_scan import list_source, parts_of, scan_part
from geobatch.formats.segy import SegyLayout, open_segy
from geobatch.formats.segy_geometry import make_grid
from geobatch.formats.segy_ingest import scan
from geobatch.formats.segy_meaning import judge
from geobatch.formats.segy_survey import sample_axis
from geobatch.formats.windows_npz import describe, read_npz
from geobatch.formats.windows_seisbench import read_metadata
from geobatch.job import load_job

ROOT = Path(__file__).parents[2]
NAME = "fuzzed"


def read_segy(path: Path) -> None:
    """All of an ingest but its writing."""
    file, layout = open_segy(str(path)), SegyLayout()
    with open_fanout(small=True) as fanout:
        table = scan(file, layout, fanout)
    meaning = judge(file, table)
    make_grid(table, layout, file.url)
    sample_axis(file, table, meaning, None)


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


def _segy_seeds(folder: Path) -> Iterator[bytes]:
    values = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    for code in (1, 2, 3, 5, 8):
        yield write_segy(folder / f"{code}.sgy", values, code=code).read_bytes()


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


TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Iterator[bytes]]]] = {
    "segy": (read_segy, _segy_seeds),
    "miniseed": (read_miniseed, _miniseed_seeds),
    "window": (read_window, _window_seeds),
    "metadata": (read_metadata_rows, _metadata_seeds),
    "job": (read_job, _job_seeds),
}


def execute(target: str, data: bytes, folder: Path) -> None:
    """Let the target read these bytes; raises what is no error of ours."""
    path = folder / NAME
    path.write_bytes(data)
    with contextlib.suppress(GeobatchError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TARGETS[target][0](path)

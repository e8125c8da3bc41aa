"""What is fuzzed: readers of files that anyone may have made. Whatever the bytes are, only our own errors come out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from segy_files import random_traces, raw_segy, write_segy

from geobatch.errors import GeobatchError
from geobatch.formats.segy_ingest import Options
from geobatch.formats.segy_inspect import inspect_file
from geobatch.job import load_job

ROOT = Path(__file__).parents[2]
NAME = "fuzzed"


def read_segy(path: Path) -> None:
    """All of an ingest but its writing."""
    inspect_file(str(path), Options())


def read_job(path: Path) -> None:
    """A job file up to its schema."""
    load_job(str(path))


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


def _job_seeds(folder: Path) -> Iterator[bytes]:
    for path in sorted((ROOT / "jobs").glob("*.yaml")):
        yield path.read_bytes()


TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Iterator[bytes]]]] = {
    "segy": (read_segy, _segy_seeds),
    "job": (read_job, _job_seeds),
}


def execute(target: str, data: bytes, folder: Path) -> None:
    """Let the target read these bytes; raises what is no error of ours."""
    path = folder / NAME
    path.write_bytes(data)
    with contextlib.suppress(GeobatchError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TARGETS[target][0](path)

"""What is fuzzed: readers of files that anyone may have made. Whatever the bytes are, only our own errors come out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from segy_files import write_segy

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

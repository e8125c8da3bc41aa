"""Ingest of SEG-Y into a sharded survey against segyio reading the same traces, on local disk.

    python benchmarks/ingest.py

segyio reads one file that is on this machine and writes nothing: the best that can be hoped for, not the same work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import segyio
from common import record

from geobatch import cluster
from geobatch.formats import ingest
from geobatch.interpretation.synthetic import SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_segy


def main() -> None:
    """Ingest one synthetic file several times and store the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 256))
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/raw.sgy"
        write_segy(SyntheticSurvey(tuple(options.shape), 5), path)
        megabytes = Path(path).stat().st_size / 1e6
        cluster.connect(cpus=os.cpu_count())
        ours = [_ingest_seconds(path, f"{folder}/ingested-{n}") for n in range(options.repetitions)]
        cluster.disconnect()
        theirs = [_segyio_seconds(path) for _ in range(options.repetitions)]
    rate = megabytes / statistics.median(ours)
    figures = {
        "ingest_mb_per_s": round(rate, 1),
        "segyio_cube_read_only_mb_per_s": round(megabytes / statistics.median(theirs), 1),
        "megabytes": round(megabytes, 1),
        "ingest_seconds": [round(seconds, 3) for seconds in ours],
        "segyio_seconds": [round(seconds, 3) for seconds in theirs],
        "shape": options.shape,
    }
    record("ingest", figures)


def _ingest_seconds(path: str, url: str) -> float:
    start = time.perf_counter()
    ingest(path, url)
    return time.perf_counter() - start


def _segyio_seconds(path: str) -> float:
    start = time.perf_counter()
    with segyio.open(path) as file:
        segyio.tools.cube(file)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

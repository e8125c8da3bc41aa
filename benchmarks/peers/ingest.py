"""Ingest by geobatch, on a Ray cluster that stands. Environment: geobatch's own."""

import json
import sys
import time
from pathlib import Path

import psutil

from geobatch import cluster
from geobatch.formats import FORMATS, IngestJob, ingest_job


def main() -> None:
    """Time one ingest, from the call to the group that makes the survey open."""
    order = json.loads(Path(sys.argv[1]).read_text())
    FORMATS[order["format"]].options  # noqa: B018  Imported before the clock runs, as rivals import what they need.
    began = time.perf_counter()
    cluster.connect(cpus=order["cpus"])
    start = time.perf_counter()
    ingest_job(IngestJob(job="ingest", source=order["source"], output=order["output"], format=order["format"]))
    end = time.perf_counter()
    workers = [p.pid for p in psutil.Process().children(recursive=True) if "ray::" in " ".join(p.cmdline()[:1])]
    cluster.disconnect()
    answer = {
        "seconds": end - start,
        "seconds_with_cluster": end - began,
        "processes": [psutil.Process().pid, *workers],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

"""Scoring through Ray Serve against a bare loop over the same blocks, and ingest against segyio, in one run each.

    python benchmarks/scoring.py            prints the ratios and writes benchmarks/results/scoring-<commit>.json

Both sides of a ratio run on the same machine minutes apart; the bare loop is the best that can be hoped for.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geobatch import cluster
from geobatch.formats import ingest
from geobatch.interpretation.synthetic import CLASSES, SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_segy, write_survey
from geobatch.job import parse_job, run_job
from geobatch.models import build_model
from geobatch.models.bundle import ClassInfo, DataDescription, make_bundle, save_bundle
from geobatch.preprocess import Chain
from geobatch.score.run import versions
from geobatch.score.spec import ScorePlan
from geobatch.score.worker import BlockScorer
from geobatch.shards import create_arrays
from geobatch.storage import open_storage
from geobatch.survey import VOLUME_AXES, open_survey, valid_volume

SHAPE = (256, 256, 256)
THREADS = os.cpu_count() or 1


def main() -> None:
    """Run both benchmarks and store the figures."""
    # The bare loop needs the allocator settings that replicas get; they only count from a process's start.
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        os.environ.update(cluster.WORKER_ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory() as folder:
        synthetic = SyntheticSurvey(SHAPE, 5)
        figures = {
            "scoring": scoring(synthetic, folder),
            "ingest": ingesting(synthetic, folder),
            "shape": SHAPE,
            "threads": THREADS,
            "machine": {"cpus": os.cpu_count(), "processor": _processor(), "system": platform.platform()},
            "versions": versions(),
            "commit": _commit(),
        }
    print(json.dumps(figures, indent=2))
    path = Path(__file__).parent / "results" / f"scoring-{figures['commit']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")


def scoring(synthetic: SyntheticSurvey, folder: str) -> dict[str, Any]:
    """Voxels per second of Serve with one replica, and of a bare loop in this process."""
    write_survey(synthetic, f"{folder}/survey")
    _write_bundle(f"{folder}/survey", f"{folder}/bundle")
    places = {"survey": f"{folder}/survey", "bundle": f"{folder}/bundle", "output": f"{folder}/serve"}
    job = parse_job({"job": "score", **places, "resources": {"replicas": 1, "cpus": 1, "threads": THREADS}})
    cluster.connect(cpus=THREADS)
    summary = run_job(job)
    cluster.disconnect()
    manifest = json.loads(open_storage(f"{folder}/serve").get("_geobatch/manifest.json"))
    served = [sum(receipt["seconds"].values()) for receipt in manifest]
    plan = ScorePlan.model_validate_json(open_storage(f"{folder}/serve").get("_geobatch/plan.json"))
    create_arrays(f"{folder}/bare", plan.arrays())
    scorer = BlockScorer(plan, f"{folder}/bare")
    scorer.load()
    start = time.perf_counter()
    looped = [sum(scorer.score_block(index).seconds.values()) for index in plan.grid.indices()]
    bare = time.perf_counter() - start
    return {
        "serve_seconds_whole_job": summary["seconds"],
        "bare_loop_seconds": round(bare, 2),
        "bare_over_serve_whole_job": round(bare / summary["seconds"], 3),
        "serve_seconds_per_block": [round(seconds, 3) for seconds in served],
        "bare_seconds_per_block": [round(seconds, 3) for seconds in looped],
        "bare_over_serve_median_block": round(float(np.median(looped) / np.median(served)), 3),
        "bare_voxels_per_s": round(np.prod(SHAPE) / bare),
        "serve_stages": summary["stage_seconds"],
        "redundancy": summary["redundancy"],
    }


def ingesting(synthetic: SyntheticSurvey, folder: str) -> dict[str, Any]:
    """MB of SEG-Y per second into a sharded survey, and of segyio reading the same traces."""
    import segyio

    path = f"{folder}/raw.sgy"
    write_segy(synthetic, path)
    size_mb = Path(path).stat().st_size / 1e6
    cluster.connect(cpus=THREADS)
    start = time.perf_counter()
    ingest(path, f"{folder}/ingested")
    ours = time.perf_counter() - start
    cluster.disconnect()
    start = time.perf_counter()
    with segyio.open(path) as file:
        segyio.tools.cube(file)
    theirs = time.perf_counter() - start
    return {
        "megabytes": round(size_mb, 1),
        "ingest_mb_per_s": round(size_mb / ours, 1),
        "segyio_cube_read_only_mb_per_s": round(size_mb / theirs, 1),
        "segyio_seconds_over_ingest_seconds": round(theirs / ours, 3),
    }


def _write_bundle(survey: str, url: str) -> None:
    torch.manual_seed(0)
    spec = {"name": "unet", "classes": len(CLASSES), "channels": 8, "levels": 3}
    volume = valid_volume(open_survey(survey))
    bundle = make_bundle(
        name="benchmark",
        network=build_model(spec),
        model=spec,
        axes=VOLUME_AXES,
        stride=(4, 4, 4),
        classes=tuple(ClassInfo(**entry) for entry in CLASSES),
        chain=Chain.model_validate([{"step": "clip", "percentile": 99.5}, {"step": "scale"}]).fit(volume),
        data=DataDescription(quantity="amplitude", domain="time", sample_unit="ms", sample_interval=4.0),
    )
    save_bundle(url, bundle)


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()

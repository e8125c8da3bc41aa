"""The forecast of a scoring job against the job itself, both as commands in processes of their own.

    python benchmarks/forecast.py [--shape 512 384 384] [--blocks 6] [--repetitions 3]

forecast_over_actual  seconds that `geobatch plan --calibrate` tells, over those that `geobatch run` takes from its
                      start to its end, Python, Ray and Serve included; the median of the repetitions. The setting
                      is that of `score.py`, with two replicas of one thread and blocks of 128 cells.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, record
from setting import make_setting

NETWORK = {"channels": 8, "levels": 3}


def main() -> None:
    """Forecast and run in turn; store the figures."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        order = make_setting(folder, tuple(options.shape), NETWORK, options)
        rounds = []
        for number in range(options.repetitions):
            job = Path(folder) / f"score-{number}.json"
            document = {
                "job": "score",
                "survey": order.survey,
                "bundle": order.bundle,
                "output": f"{folder}/scored-{number}",
                "statistics": "bundle",
                "shard": (128,) * 3,
                "chunk": order.chunk,
                "resources": {"replicas": 2, "cpus": 1, "threads": 1, "memory_gib": options.memory_gib},
            }
            job.write_text(json.dumps(document))
            told, _ = _command("plan", str(job), "--calibrate", str(options.blocks))
            summary, actual_s = _command("run", str(job), "--json")
            rounds.append({"told": told["forecast"], "actual_s": round(actual_s, 1), "blocks": summary["blocks"]})
            print(rounds[-1], file=sys.stderr, flush=True)
    ratios = [entry["told"]["seconds"] / entry["actual_s"] for entry in rounds]
    record("forecast", {"forecast_over_actual": round(statistics.median(ratios), 3), "rounds": rounds})


def _command(*arguments: str) -> tuple[dict[str, Any], float]:
    """What a command of geobatch answers, and its seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "geobatch.cli", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), time.perf_counter() - start


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 384, 384))
    parser.add_argument("--blocks", type=int, default=6, help="scored for the forecast")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--memory-gib", type=float, default=4.0)
    parser.set_defaults(workers=2, threads=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

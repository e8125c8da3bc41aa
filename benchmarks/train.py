"""Training from a bucket against training from memory, and two workers against one, all in one run.

    python benchmarks/train.py [--shape 320 320 320] [--steps 40] [--rounds 3]

A sharded survey and its labels lie in a local S3 server (moto), which has to share the machine. Every training is a
process of its own, the demo's network and patches with one thread per worker, two epochs without validation. Rounds
are interleaved, each beginning with another training; figures are medians over the rounds, and `spread` holds the
lowest and the highest ratio of one round.

    s3_over_memory      steps per second of a worker whose cache holds a quarter of what is stored, the first batch and
                        a cold first epoch included, over those of one that has the survey prepared in memory, its
                        preparation left out. Both must end in the same weights.
    two_worker_speedup  steps per second of two workers (DDP over gloo) over those of one with twice the batch, so that
                        both train on the same patches; from memory.
    ddp_share           share of a step that two workers lose against two trainings beside each other that have nothing
                        in common.
    waiting             share of its time that each training waits for batches.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import HERE, ROOT, record

from geobatch import cluster
from geobatch.interpretation.synthetic import SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_labels, write_survey
from geobatch.job import load_job
from geobatch.local_s3 import environment, local_s3
from geobatch.storage import open_storage
from geobatch.train.kinds import open_task
from geobatch.train.places import WorkerPlan
from geobatch.train.spec import TrainJob
from geobatch.train.train import make_plan

BUCKET = "surveys"
TIMES = 4
"""What is stored, over the cache."""
IN_MEMORY_MIB = 2**20
Figures = dict[str, Any]


def main() -> None:
    """Measure and store the figures."""
    options = _options()
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        local_s3(BUCKET, folder=Path(folder)) as server,
        environment(server.environment),
    ):
        figures = measure(f"s3://{BUCKET}", options.shape, options.steps, options.rounds)
    record("train", {**figures, "load_at_end": os.getloadavg()})


def measure(place: str, shape: Sequence[int], steps: int, rounds: int, **training: Any) -> Figures:
    """The figures of trainings on a survey of that shape, which is made under `place`."""
    plan, stored = _plan(place, shape, steps, training)
    cache_mib = stored // TIMES // 2**20
    trainings: dict[str, Callable[[], list[Figures]]] = {
        "s3": lambda: _run(_with(plan, cache_mib=cache_mib)),
        "memory": lambda: _run(_with(plan, cache_mib=IN_MEMORY_MIB)),
        "one_worker": lambda: _run(_with(plan, 2, cache_mib=IN_MEMORY_MIB)),
        "two_workers": lambda: _run(_with(plan, cache_mib=IN_MEMORY_MIB), workers=2),
        "two_apart": lambda: _run(_with(plan, cache_mib=IN_MEMORY_MIB), workers=2, apart=True),
    }
    found: dict[str, list[list[Figures]]] = {name: [] for name in trainings}
    names = list(trainings)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(trainings[name]())
            print(f"round {number + 1}, {name}: {_rate(found[name][-1]):.3f} steps/s", file=sys.stderr)
    require_same_weights(found["s3"] + found["memory"])
    ratios = {
        "s3_over_memory": _ratios(found, "s3", "memory"),
        "two_worker_speedup": _ratios(found, "two_workers", "one_worker"),
    }
    apart = _ratios(found, "two_workers", "two_apart")
    return {
        **{name: round(statistics.median(values), 3) for name, values in ratios.items()},
        "ddp_share": round(1 - statistics.median(apart), 3),
        "spread": {name: [round(min(values), 3), round(max(values), 3)] for name, values in ratios.items()},
        "waiting": {name: round(statistics.median(map(_waiting, runs)), 4) for name, runs in found.items()},
        "steps_per_s": {name: round(statistics.median(map(_rate, runs)), 3) for name, runs in found.items()},
        "trainings": found,
        "setting": {
            "shape": list(shape),
            "stored_bytes": stored,
            "cache_mib": cache_mib,
            "job": plan.job.model_dump(mode="json", include={"model", "training", "preprocess"}),
        },
    }


def require_same_weights(runs: Sequence[Sequence[Figures]]) -> None:
    """Exit unless all of these trainings ended in the same bits."""
    weights = {run["weights"] for processes in runs for run in processes}
    if len(weights) != 1:
        sys.exit(f"trainings ended in {len(weights)} different weights")


def _plan(place: str, shape: Sequence[int], steps: int, training: dict[str, Any]) -> tuple[WorkerPlan, int]:
    """The plan of a training on a new survey, and the bytes that are stored of the two volumes it reads."""
    inlines, crosslines, samples = shape
    synthetic = SyntheticSurvey.varied((inlines, crosslines, samples), 5)
    data = {"survey": f"{place}/survey", "labels": f"{place}/labels"}
    write_survey(synthetic, data["survey"])
    write_labels(synthetic, data["labels"])
    demo = load_job(str(ROOT / "jobs" / "train_synthetic.yaml"))
    assert isinstance(demo, TrainJob)
    values = demo.model_dump(mode="json")
    values |= {"data": [data], "output": f"{place}/unused", "resources": {"workers": 1, "threads": 1}}
    values["training"] |= {"steps_per_epoch": steps, "epochs": 2, **training}
    job = TrainJob.model_validate(values)
    volumes = ((data["survey"], "amplitude/c"), (data["labels"], "class_map/c"))
    stored = sum(size for url, key in volumes for _, size in open_storage(url).list(key))
    return make_plan(job, open_task(job), "benchmark"), stored


def _with(plan: WorkerPlan, times: int = 1, **resources: Any) -> WorkerPlan:
    """The plan with so many times the batch, and other resources."""
    training = plan.job.training.model_copy(update={"batch": times * plan.job.training.batch})
    changed = plan.job.resources.model_copy(update=resources)
    return plan.model_copy(update={"job": plan.job.model_copy(update={"training": training, "resources": changed})})


def _run(plan: WorkerPlan, workers: int = 1, *, apart: bool = False) -> list[Figures]:
    """What the processes of a training tell of it.

    Args:
        plan: Of each.
        workers: Processes.
        apart: They share nothing.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        **os.environ,
        **cluster.worker_environment(),
        "OMP_NUM_THREADS": str(plan.job.resources.threads),
        "PYTHONPATH": str(ROOT),
    }
    processes = []
    for rank in range(workers):
        order = {"plan": plan.model_dump(mode="json"), "rank": rank, "workers": workers, "port": port, "apart": apart}
        command = [sys.executable, str(HERE / "training.py")]
        processes.append(
            subprocess.Popen(command, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stdin = processes[-1].stdin
        assert stdin is not None
        stdin.write(json.dumps(order))
        stdin.close()
    answers = []
    for process in processes:
        assert process.stdout is not None
        answers.append(process.stdout.read())
    if any(process.wait() for process in processes):
        sys.exit("a training failed")
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def _rate(processes: Sequence[Figures]) -> float:
    """Steps per second."""
    return min(run["steps"] / run["seconds"] for run in processes)


def _waiting(processes: Sequence[Figures]) -> float:
    return max(run["waiting_s"] / run["seconds"] for run in processes)


def _ratios(found: dict[str, list[list[Figures]]], one: str, other: str) -> list[float]:
    """Rate over rate, round by round."""
    return [_rate(a) / _rate(b) for a, b in zip(found[one], found[other], strict=True)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(320, 320, 320))
    parser.add_argument("--steps", type=int, default=40, help="of each of the two epochs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the server keeps what is stored")
    return parser.parse_args()


if __name__ == "__main__":
    main()

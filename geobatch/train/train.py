"""From a training job to a bundle: fit the preprocessing, run the workers, measure and save what they made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from geobatch import __version__, cluster
from geobatch.errors import GeobatchError, IntegrityError, NotFoundError, TransientError, UsageError
from geobatch.models import build_model
from geobatch.models.bundle import DESCRIPTION, Bundle, load_bundle, make_bundle, save_bundle
from geobatch.models.reach import verified_reach
from geobatch.storage import absolute_url, arrow_filesystem, join_url
from geobatch.survey import control_url
from geobatch.train.checkpoint import Progress
from geobatch.train.kinds import open_task
from geobatch.train.loop import train_worker
from geobatch.train.memory import require_memory
from geobatch.train.metrics import load_penalty
from geobatch.train.networks import ForeignSpec
from geobatch.train.places import WorkerPlan
from geobatch.train.schedule import epochs_since_best
from geobatch.train.source import Task
from geobatch.train.spec import RasterData, TrainingData, TrainJob, VolumeData
from geobatch.train.state import TrainingState
from geobatch.train.telling import OnProgress, watched

HEALTH_CHECK = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
"""Ray waits 10 minutes by default for a process that does not answer."""


def train(job: TrainJob, on_progress: OnProgress = lambda step, steps, line: None) -> str:
    """Train a network and return the URL of its bundle, which is the job's output.

    The same job run again continues from its last checkpoint, or returns the finished
    bundle; checkpoints stay beside the bundle under `_geobatch/train`.

    Raises:
        NotFoundError: a survey is not there.
        UsageError: the output holds the bundle of another run, a worker does not fit in memory, or loss or weights did
            not stay finite.
        DataError: a label is no class, or nothing is labelled.
        MismatchError: surveys and labels do not fit together, or the network cannot be tiled exactly.
        IntegrityError: every checkpoint of the run is damaged.
        TransientError: workers failed more often than `training.max_failures`.
    """
    job = with_absolute_urls(job)
    task = open_task(job)
    run = run_hash(job, task)
    if _finished(job.output, run):
        return job.output
    cluster.connect(cpus=math.ceil(job.resources.workers * job.resources.threads))
    plan = make_plan(job, task, f"run-{run[:16]}")
    if isinstance(job.model, ForeignSpec):
        # What cannot become a bundle is not trained: strange networks are measured before.
        network, stride = build_model(plan.network), (job.model.stride,) * len(task.axes)
        verified_reach(network.eval(), task.in_channels(plan.fitted), stride)
    require_memory(plan, *task.memory(plan.fitted))
    _tell_damaged(plan, on_progress)
    with watched(plan.place, plan.run, on_progress):
        progress, network = _run_workers(plan)
    save_bundle(job.output, trained_bundle(plan, task, network, kept_figures(job, progress), run))
    return job.output


def kept_figures(job: TrainJob, progress: Progress) -> dict[str, Any]:
    """What a bundle says of its training: figures of the epoch whose weights it has, and of all."""
    after = epochs_since_best(progress.history) if job.training.early_stop else 0
    kept = progress.history[len(progress.history) - 1 - after]
    return {"loss": kept["loss"], "validation": kept["validation"], "history": progress.history}


def _tell_damaged(plan: WorkerPlan, on_progress: OnProgress) -> None:
    """Tell of checkpoints that are damaged and passed over."""
    whole, damaged = plan.checkpoints().whole()
    training = plan.job.training
    for error in damaged:
        line = f"warning: {error.where}: {error.what}; the run continues from {whole[-1]}"
        on_progress(0, training.steps_per_epoch * training.epochs, line)


def trained_bundle(plan: WorkerPlan, task: Task, network: Any, metrics: dict[str, Any], run: str) -> Bundle:
    """The bundle of a trained network."""
    return make_bundle(
        name=plan.job.name,
        network=network,
        model=plan.network,
        axes=task.axes,
        stride=(plan.job.model.stride,) * len(task.axes),
        classes=task.classes,
        data=task.describe(plan.fitted),
        metrics=metrics,
        provenance=_provenance(plan.job, task, run),
        **task.bundled(plan.fitted),
    )


def with_absolute_urls(job: TrainJob) -> TrainJob:
    """The job with plain paths made absolute: workers run in folders of their own."""
    data = tuple(
        item.model_copy(update={key: absolute_url(getattr(item, key)) for key in _urls(item)}) for item in job.data
    )
    begin = None if job.init_from is None else absolute_url(job.init_from)
    return job.model_copy(update={"data": data, "init_from": begin, "output": absolute_url(job.output)})


def _urls(data: TrainingData) -> tuple[str, ...]:
    return ("survey", "labels") if isinstance(data, (VolumeData, RasterData)) else ("survey",)


def run_hash(job: TrainJob, task: Task) -> str:
    """SHA-256 of all that decides the weights: a changed job or survey does not continue an old run."""
    decides = job.model_dump(mode="json", include={"validation", "preprocess", "model", "training"})
    decides["training"].pop("max_failures")
    if job.init_from is not None:
        decides["init_from"] = load_bundle(job.init_from).spec.weights_sha256
    if job.training.penalty is not None:
        decides["training"]["penalty"] = load_penalty(job.training.penalty).tolist()
    decides["workers"] = job.resources.workers
    return hashlib.sha256(json.dumps({**decides, **task.decides()}, sort_keys=True).encode()).hexdigest()


def _finished(output: str, run: str) -> bool:
    """True when this run's bundle is there; a damaged bundle is none, and is trained anew.

    Raises:
        UsageError: the bundle of another run is there.
    """
    try:
        spec = load_bundle(output).spec
    except (NotFoundError, IntegrityError):
        return False
    found = spec.provenance.get("run")
    if found != run:
        raise UsageError(
            "the output holds the bundle of another run",
            where=output,
            measured=f"bundle {spec.name!r} of run {found}",
            limit=f"no bundle, or one of run {run}",
            remedy=f"Give another output, or delete {DESCRIPTION} there.",
        )
    return True


def make_plan(job: TrainJob, task: Task, run: str, fitted: dict[str, Any] | None = None) -> WorkerPlan:
    """What workers are told, the preprocessing fitted unless it is given."""
    fitted = task.fit() if fitted is None else fitted
    objective = task.objective(fitted)
    return WorkerPlan(
        job=job,
        run=run,
        place=join_url(control_url(job.output), "train"),
        fitted=fitted,
        network=job.model.build(task.in_channels(fitted), objective.outputs, len(task.axes), answers=task.answers),
        objective=objective,
    )


def _run_workers(plan: WorkerPlan) -> tuple[Progress, Any]:
    """Train on Ray and return the last epoch's figures and the network."""
    job = plan.job
    filesystem, path = arrow_filesystem(plan.place)
    resources = {"CPU": float(job.resources.threads)}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=plan.model_dump(mode="json"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.resources.workers,
            use_gpu=job.resources.gpu,
            resources_per_worker=resources | ({"GPU": 1.0} if job.resources.gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=plan.run,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=job.training.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": cluster.worker_environment()},
        ),
    )
    try:
        os.environ[HEALTH_CHECK] = str(job.resources.hang_s)
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _explained(error, job) from error
    if result.return_value is not None:
        raise result.return_value
    state = TrainingState.of(build_model(plan.network), job.training)
    return plan.checkpoints().last(state), state.result()


def _explained(error: Exception, job: TrainJob) -> GeobatchError:
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        if isinstance(failure, GeobatchError):
            return failure
    lines = str(failures[0] if failures else error).strip().splitlines()
    return TransientError(
        "training workers failed",
        where=job.output,
        measured=lines[-1] if lines else type(error).__name__,
        limit=f"at most {job.training.max_failures} failures",
        remedy="Run the same job again: it continues from the last checkpoint.",
    )


def _provenance(job: TrainJob, task: Task, run: str) -> dict[str, Any]:
    return {
        "run": run,
        "job": job.model_dump(mode="json"),
        "surveys": task.provenance(),
        "versions": {"geobatch": __version__}
        | {name: importlib.metadata.version(name) for name in ("ray", "torch", "numpy")},
    }

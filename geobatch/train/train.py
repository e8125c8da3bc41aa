"""From a training job to a bundle: fit the preprocessing, run the workers, measure and save what they made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
from ray.train.torch import TorchTrainer

from geobatch import __version__, cluster
from geobatch.errors import GeobatchError, IntegrityError, MismatchError, NotFoundError, TransientError, UsageError
from geobatch.models import build_model
from geobatch.models.bundle import (
    DESCRIPTION,
    QUANTILES,
    ClassInfo,
    DataDescription,
    load_bundle,
    make_bundle,
    save_bundle,
)
from geobatch.storage import absolute_url, arrow_filesystem, join_url
from geobatch.survey import VOLUME_AXES, control_url
from geobatch.train.checkpoint import Progress, load_checkpoint
from geobatch.train.data import LabelledSurvey, PatchReader, class_counts, open_labelled, patch_size, prepared_sample
from geobatch.train.loop import WorkerPlan, class_weights, train_worker
from geobatch.train.spec import TrainJob
from geobatch.train.telling import OnProgress, watched

_MEANING = ("quantity", "domain", "sample_unit", "sample_interval")


def train(job: TrainJob, on_progress: OnProgress = lambda step, steps, line: None) -> str:
    """Train a network and return the URL of its bundle, which is the job's output.

    The same job run again continues from its last checkpoint, or returns the finished
    bundle; checkpoints stay beside the bundle under `_geobatch/train`.

    Raises:
        NotFoundError: a survey is not there.
        UsageError: the output holds the bundle of another run, or loss or weights did not stay finite.
        MismatchError: surveys and labels do not fit together, or the network cannot be tiled exactly.
        TransientError: workers failed more often than `training.max_failures`.
    """
    job = _absolute(job)
    surveys = [open_labelled(data) for data in job.data]
    _require_alike(surveys)
    run = _run_hash(job, surveys)
    if _finished(job.output, run):
        return job.output
    cluster.connect(cpus=math.ceil(job.resources.workers * job.resources.threads))
    plan, readers = _plan(job, surveys, f"run-{run[:16]}")
    with watched(plan.place, plan.run, on_progress):
        progress, network = _run_workers(plan)
    last = progress.history[-1]
    bundle = make_bundle(
        name=job.name,
        network=network,
        model=plan.network,
        axes=VOLUME_AXES,
        stride=(2 ** (job.model.levels - 1),) * len(VOLUME_AXES),
        classes=tuple(ClassInfo(**entry) for entry in surveys[0].classes),
        chain=plan.chains[0],
        data=_describe(surveys[0], readers),
        metrics={"loss": last["loss"], "validation": last["validation"], "history": progress.history},
        provenance=_provenance(job, surveys, run),
    )
    save_bundle(job.output, bundle)
    return job.output


def _absolute(job: TrainJob) -> TrainJob:
    """The job with plain paths made absolute: workers run in folders of their own."""
    data = tuple(
        item.model_copy(update={"survey": absolute_url(item.survey), "labels": absolute_url(item.labels)})
        for item in job.data
    )
    return job.model_copy(update={"data": data, "output": absolute_url(job.output)})


def _require_alike(surveys: Sequence[LabelledSurvey]) -> None:
    first = surveys[0]
    for survey in surveys[1:]:
        if [entry["name"] for entry in survey.classes] != [entry["name"] for entry in first.classes]:
            raise MismatchError(
                "labels name other classes",
                where=survey.url,
                measured=", ".join(entry["name"] for entry in survey.classes),
                limit=", ".join(entry["name"] for entry in first.classes),
            )
        for key in _MEANING:
            if survey.info.get(key) != first.info.get(key):
                raise MismatchError(
                    f"surveys of one training differ in {key}",
                    where=survey.url,
                    measured=survey.info.get(key),
                    limit=f"{first.info.get(key)} as in {first.url}",
                )


def _run_hash(job: TrainJob, surveys: Sequence[LabelledSurvey]) -> str:
    """SHA-256 of all that decides the weights: a changed job or survey does not continue an old run."""
    decides = job.model_dump(mode="json", include={"validation", "preprocess", "model", "training"})
    decides["training"].pop("max_failures")
    decides["workers"] = job.resources.workers
    decides["data"] = [[survey.info["identity"], item.variable] for survey, item in zip(surveys, job.data, strict=True)]
    decides["labels"] = [str(survey.label_identity) for survey in surveys]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


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


def _plan(job: TrainJob, surveys: Sequence[LabelledSurvey], run: str) -> tuple[WorkerPlan, list[PatchReader]]:
    # Amplitudes of different surveys have no common unit, so each is prepared by its own figures.
    chains = tuple(job.preprocess.fit(survey.volume) for survey in surveys)
    readers = [PatchReader.split(survey, chain, job.validation) for survey, chain in zip(surveys, chains, strict=True)]
    counts = class_counts(readers, patch_size(readers, job.training.patch))
    names = tuple(entry["name"] for entry in surveys[0].classes)
    plan = WorkerPlan(
        job=job,
        run=run,
        place=join_url(control_url(job.output), "train"),
        chains=chains,
        network={**job.model.model_dump(), "in_channels": 1, "classes": len(names)},
        class_names=names,
        class_weights=class_weights(counts.tolist(), job.training.class_weights),
    )
    return plan, readers


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
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": cluster.worker_environment()},
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _explained(error, job) from error
    if result.return_value is not None:
        raise result.return_value
    network = build_model(plan.network)
    with result.checkpoint.as_directory() as folder:
        return load_checkpoint(Path(folder), network), network


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


def _describe(survey: LabelledSurvey, readers: Sequence[PatchReader]) -> DataDescription:
    values = np.concatenate([prepared_sample(reader) for reader in readers])
    return DataDescription(
        quantity=str(survey.info["quantity"]),
        domain=str(survey.info["domain"]),
        sample_unit=str(survey.info["sample_unit"]),
        sample_interval=float(survey.info["sample_interval"]),
        polarity=str(survey.info.get("polarity", "unknown")),
        quantiles=tuple(float(value) for value in np.quantile(values, QUANTILES)) if values.size else (),
    )


def _provenance(job: TrainJob, surveys: Sequence[LabelledSurvey], run: str) -> dict[str, Any]:
    return {
        "run": run,
        "job": job.model_dump(mode="json"),
        "surveys": [{"url": survey.url, "identity": survey.info["identity"]} for survey in surveys],
        "versions": {"geobatch": __version__}
        | {name: importlib.metadata.version(name) for name in ("ray", "torch", "numpy")},
    }

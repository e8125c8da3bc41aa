"""What a training worker needs in memory, before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from geobatch import cluster
from geobatch.errors import UsageError
from geobatch.models import build_model
from geobatch.models.inference import tensor_bytes
from geobatch.plan import GIB, WORKER_BYTES, free_memory_bytes
from geobatch.train.places import WorkerPlan
from geobatch.train.spec import Training

SCRATCH = 1.5
"""Resident memory over what the tensors of a step hold: 1.2 to 1.4 was seen of batches of 2 and more."""
_EXAMPLE_COPIES = 6
"""Of an example's inputs while it is read, prepared and augmented, and until its batch is used."""


@dataclass(frozen=True)
class TrainingMemory:
    """Projected peak memory of one worker in bytes, by cause.

    Attributes:
        worker: An idle process.
        data: Surveys and chunks that are kept.
        batches: Batches that are made ahead.
        step: What a step holds between its forward and its backward pass, with weights and optimiser.
    """

    worker: int
    data: int
    batches: int
    step: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.worker + self.data + self.batches + self.step

    def __str__(self) -> str:
        parts = {"worker": self.worker, "data": self.data, "batches": self.batches, "step": self.step}
        return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items()) + " GiB"


def project_training(plan: WorkerPlan, example: Sequence[int], data_bytes: int) -> TrainingMemory:
    """Peak memory of a worker.

    Args:
        plan: Of the training.
        example: Channels and cells per axis of an example.
        data_bytes: What its surveys take, prepared.
    """
    training, resources = plan.job.training, plan.job.resources
    inputs = 4 * math.prod(example) * training.batch
    kept = min(data_bytes, resources.cache_mib * 2**20)
    step = 0 if resources.gpu else step_bytes(plan, (training.batch, *example))
    return TrainingMemory(WORKER_BYTES, kept, (resources.readers + 1) * _EXAMPLE_COPIES * inputs, step)


def step_bytes(plan: WorkerPlan, shape: tuple[int, ...]) -> int:
    """The most that a step of the plan's network holds at once; nothing is computed.

    Args:
        plan: Of the training.
        shape: Of a batch `(batch, channel, *axes)`.
    """
    with torch.device("meta"):
        network = build_model(plan.network).train()
        inputs = torch.empty(shape)

    def step() -> None:
        # Whatever the loss is, it holds something of the size of the output.
        nn.functional.log_softmax(network(inputs), dim=1).mean().backward()  # type: ignore[no-untyped-call]

    weights: int = sum(value.nbytes for value in network.state_dict().values())
    return int(SCRATCH * tensor_bytes(step)) + _copies(plan.job.training) * weights


def _copies(training: Training) -> int:
    """Of the weights: themselves, two moments of AdamW, average, best, and one being stored."""
    return 4 + bool(training.ema) + bool(training.early_stop)


def require_memory(plan: WorkerPlan, example: Sequence[int], data_bytes: int) -> TrainingMemory:
    """The projected memory of a worker that fits on this machine; on a cluster of others it is not known.

    Args:
        plan: Of the training.
        example: Channels and cells per axis of an example.
        data_bytes: What its surveys take, prepared.

    Raises:
        UsageError: it does not fit; the figures are in the message.
    """
    memory = project_training(plan, example, data_bytes)
    resources, training = plan.job.resources, plan.job.training
    limit = free_memory_bytes(resources.workers)
    if not cluster.may_grow() and memory.total > limit:
        raise UsageError(
            f"training on patches of {tuple(example[1:])} in batches of {training.batch} does not fit in memory",
            where=plan.job.output,
            measured=f"{memory.total / GIB:.2f} GiB projected per worker ({memory})",
            limit=f"at most {limit / GIB:.2f} GiB for each of {resources.workers}",
            remedy="Lower training.patch, training.batch (and raise training.accumulate), resources.cache_mib "
            "or resources.workers.",
        )
    return memory

"""What every training worker runs, under Ray Train.

Tensor axes: B batch, C channel, K class, I inline, X crossline, S sample.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.train
import ray.train.torch
import torch
import torch.distributed
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from geobatch.errors import UsageError
from geobatch.models import build_model
from geobatch.preprocess import Chain
from geobatch.survey import INVALID_CLASS
from geobatch.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from geobatch.train.data import (
    PatchReader,
    Size3,
    cache_within,
    draw_patch,
    open_labelled,
    patch_size,
    prefetch,
    validation_patches,
)
from geobatch.train.metrics import Counts, confusion_matrix, scores
from geobatch.train.spec import Training, TrainJob
from geobatch.train.telling import Teller

_WARM_UP = 0.1
_GRADIENT_NORM = 1.0


class WorkerPlan(BaseModel):
    """What is decided before workers start and is the same for all of them.

    Attributes:
        job: the training job.
        chains: fitted, one per survey of the job.
        network: what `build_model` builds.
        class_names: in the order of the network's outputs.
        class_weights: of the loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: TrainJob
    run: str
    place: str
    chains: tuple[Chain, ...]
    network: dict[str, Any]
    class_names: tuple[str, ...]
    class_weights: tuple[float, ...]


@dataclass
class _Worker:
    plan: WorkerPlan
    readers: list[PatchReader]
    patch: Size3
    device: torch.device
    rank: int
    workers: int
    teller: Teller


def train_worker(config: dict[str, Any]) -> UsageError | None:
    """Train until the last epoch, from the last checkpoint where there is one.

    Args:
        config: a `WorkerPlan` as JSON values.

    Returns:
        The error that ended training on every worker, if one did: Ray would retry what is raised here, and the same
        steps would end the same way.
    """
    plan = WorkerPlan.model_validate(config)
    job = plan.job
    # Ray sets OMP_NUM_THREADS=1; and the number holds for the calling thread, so it is set here.
    torch.set_num_threads(job.resources.threads)
    torch.manual_seed(job.training.seed)
    worker = _start_worker(plan)
    network = build_model(plan.network).to(worker.device)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=job.training.learning_rate, weight_decay=job.training.weight_decay
    )
    progress = _restore(network, optimizer)
    # Running statistics stay each worker's own until `_average_buffers`; by default the first worker's win every step.
    parallel = ray.train.torch.prepare_model(network, parallel_strategy_kwargs={"broadcast_buffers": False})
    first = progress.epochs * job.training.steps_per_epoch
    with closing(prefetch(lambda: _batches(worker, first))) as batches:
        for epoch in range(progress.epochs, job.training.epochs):
            losses = _train_epoch(worker, parallel, optimizer, batches, epoch)
            _average_buffers(network)
            if divergence := _divergence(job, network, losses, epoch):
                return divergence
            figures = {"epoch": epoch + 1, "loss": float(losses.mean()), "validation": _validate(worker, network)}
            progress = Progress(epoch + 1, [*progress.history, figures])
            _report(worker, network, optimizer, progress)
    return None


def learning_rate(training: Training, step: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    total = training.steps_per_epoch * training.epochs
    warm_up = max(1, round(_WARM_UP * total))
    if step < warm_up:
        return training.learning_rate * (step + 1) / warm_up
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def segmentation_loss(logits_BKIXS: Tensor, labels_BIXS: Tensor, weights_K: Tensor, dice: float) -> Tensor:
    """Return weighted cross-entropy plus `dice` times soft Dice (Milletari et al. 2016, doi:10.1109/3DV.2016.79).

    Voxels labelled 255 count in neither; a batch without any label has loss 0.
    """
    valid = labels_BIXS != INVALID_CLASS
    total = nn.functional.cross_entropy(
        logits_BKIXS, labels_BIXS, weight=weights_K, ignore_index=INVALID_CLASS, reduction="sum"
    )
    weight = weights_K[labels_BIXS[valid]].sum()
    loss = total / weight.clamp(min=1e-6)
    if dice:
        probability_BKIXS = logits_BKIXS.softmax(dim=1) * valid.unsqueeze(1)
        truth_BKIXS = nn.functional.one_hot(labels_BIXS.where(valid, 0), logits_BKIXS.shape[1]).movedim(-1, 1)
        truth_BKIXS = truth_BKIXS * valid.unsqueeze(1)
        axes = (0, 2, 3, 4)
        shared_K = (probability_BKIXS * truth_BKIXS).sum(axes)
        either_K = probability_BKIXS.sum(axes) + truth_BKIXS.sum(axes)
        loss = loss + dice * (1 - ((2 * shared_K + 1) / (either_K + 1)).mean())
    return loss


def _start_worker(plan: WorkerPlan) -> _Worker:
    job = plan.job
    readers = [
        PatchReader.split(open_labelled(data), chain, job.validation)
        for data, chain in zip(job.data, plan.chains, strict=True)
    ]
    cache_within(readers, job.resources.cache_mib * 2**20)
    context = ray.train.get_context()
    return _Worker(
        plan,
        readers,
        patch_size(readers, job.training.patch),
        ray.train.torch.get_device(),
        context.get_world_rank(),
        context.get_world_size(),
        Teller(plan.place, plan.run, job.training.epochs * job.training.steps_per_epoch),
    )


def _restore(network: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        return load_checkpoint(Path(folder), network, optimizer)


def _batches(worker: _Worker, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield amplitude (B, C, I, X, S) float32 and labels (B, I, X, S) int64, from step `first` to the last."""
    training = worker.plan.job.training
    for step in range(first, training.epochs * training.steps_per_epoch):
        keys = [(training.seed, step, worker.rank, item) for item in range(training.batch)]
        patches = [
            draw_patch(worker.readers, worker.patch, training.augment, key, balance=training.balance) for key in keys
        ]
        amplitude = torch.from_numpy(np.stack([amplitude for amplitude, _ in patches])[:, None])
        labels = torch.from_numpy(np.stack([labels for _, labels in patches])).long()
        yield amplitude, labels


def _train_epoch(
    worker: _Worker,
    parallel: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    epoch: int,
) -> npt.NDArray[np.float64]:
    """Return the loss of each step, the mean over the workers, so that all of them find the same."""
    training = worker.plan.job.training
    weights_K = torch.tensor(worker.plan.class_weights, device=worker.device)
    parallel.train()
    losses = torch.zeros(training.steps_per_epoch, dtype=torch.float64, device=worker.device)
    for index in range(training.steps_per_epoch):
        step = epoch * training.steps_per_epoch + index
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step)
        x_BCIXS, labels_BIXS = _on_device(worker, *next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss = segmentation_loss(parallel(x_BCIXS), labels_BIXS, weights_K, training.dice)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parallel.parameters(), _GRADIENT_NORM)
        optimizer.step()
        losses[index] = loss.detach()
        if worker.rank == 0:
            worker.teller.tell(step + 1)
    mean: npt.NDArray[np.float64] = _summed(losses).cpu().numpy() / worker.workers
    return mean


def _divergence(job: TrainJob, network: nn.Module, losses: npt.NDArray[np.float64], epoch: int) -> UsageError | None:
    """Return the error for a loss, weight or running statistic that is not finite, None where all are."""
    broken = np.flatnonzero(~np.isfinite(losses))
    if not broken.size and all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        return None
    index = int(broken[0]) if broken.size else losses.size - 1
    step = epoch * job.training.steps_per_epoch + index
    return UsageError(
        "the loss did not stay finite" if broken.size else "the weights did not stay finite",
        where=job.output,
        measured=f"loss {losses[index]} in epoch {epoch + 1}, step {step + 1}, "
        f"at learning rate {learning_rate(job.training, step):.3g}",
        limit="finite loss and weights",
        remedy="Lower training.learning_rate, or bring amplitudes near 1 by clip and scale in preprocess.",
    )


def _on_device(worker: _Worker, amplitude: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    # Weights and volumes in this order are 40 % faster on a CPU, if the batch is 2 or more, and suit tensor cores.
    x_BCIXS = amplitude.to(worker.device).contiguous(memory_format=torch.channels_last_3d)
    return x_BCIXS, labels.to(worker.device)


def _validate(worker: _Worker, network: nn.Module) -> dict[str, Any]:
    """Return the metrics of the held-out bands; each worker scores its share of their tiles."""
    names = worker.plan.class_names
    tiles = validation_patches(worker.readers, worker.patch, worker.plan.job.validation.patches)
    counts: Counts = np.zeros((len(names), len(names)), np.int64)
    network.eval()
    with torch.inference_mode():
        for number, region in tiles[worker.rank :: worker.workers]:
            amplitude, labels = worker.readers[number].read(region)
            x_BCIXS = torch.from_numpy(np.ascontiguousarray(amplitude))[None, None].to(worker.device)
            predicted = network(x_BCIXS).argmax(dim=1)[0].cpu().numpy()
            counts += confusion_matrix(labels, predicted, len(names))
    total = _summed(torch.from_numpy(counts).to(worker.device)).cpu().numpy()
    return scores(total, names) if tiles else {}


def _average_buffers(network: nn.Module) -> None:
    """Give every worker the mean of the running statistics of all: each has seen other patches."""
    if not torch.distributed.is_initialized():
        return
    for buffer in network.buffers():
        if buffer.is_floating_point():
            torch.distributed.all_reduce(buffer)
            buffer /= torch.distributed.get_world_size()


def _summed(values: Tensor) -> Tensor:
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def _report(worker: _Worker, network: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    figures = progress.history[-1]
    if worker.rank != 0:
        ray.train.report(figures)
        return
    worker.teller.tell(
        figures["epoch"] * worker.plan.job.training.steps_per_epoch,
        epoch_line(figures, worker.plan.job.training.epochs),
    )
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), network, optimizer, progress)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(figures, checkpoint=checkpoint, checkpoint_dir_name=f"epoch-{progress.epochs:05d}")


def epoch_line(figures: dict[str, Any], epochs: int) -> str:
    """Return an epoch's figures as one line for a log."""
    line = f"epoch {figures['epoch']} of {epochs}: loss {figures['loss']:.4f}"
    validation = figures["validation"]
    if validation:
        line += f", pixel accuracy {_text(validation['pixel_accuracy'])}"
        line += f", mean class accuracy {_text(validation['mean_class_accuracy'])}"
        line += "".join(f", {name} F1 {_text(c['f1'])}" for name, c in validation["classes"].items())
    return line


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def class_weights(counts: Sequence[int], kind: str) -> tuple[float, ...]:
    """Return loss weights per class with a mean of 1 over the labelled voxels.

    Args:
        counts: labelled voxels per class.
        kind: `none`, `sqrt` or `inverse`; a class without voxels weighs 1.
    """
    share = np.asarray(counts, float) / max(1, sum(counts))
    exponent = {"none": 0.0, "sqrt": 0.5, "inverse": 1.0}[kind]
    raw = np.where(share > 0, np.maximum(share, 1e-12) ** -exponent, 0.0)
    weights = np.where(share > 0, raw / max(float((raw * share).sum()), 1e-12), 1.0)
    return tuple(weights.tolist())

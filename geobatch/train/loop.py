"""What every training worker runs, under Ray Train or alone.

Tensor axes: B batch, C channel, K class, I inline, X crossline, S sample.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from geobatch.errors import MismatchError, UsageError
from geobatch.models import build_model
from geobatch.models.bundle import load_bundle
from geobatch.train.checkpoint import Progress
from geobatch.train.data import prefetch
from geobatch.train.kinds import open_task
from geobatch.train.places import Place, RayPlace, WorkerPlan
from geobatch.train.schedule import epochs_since_best, learning_rate
from geobatch.train.source import Batch, Source
from geobatch.train.spec import Training
from geobatch.train.state import TrainingState

_LEAST_FIT = 0.5


@dataclass
class _Worker:
    plan: WorkerPlan
    source: Source
    place: Place


def train_worker(config: dict[str, Any]) -> UsageError | None:
    """Train under Ray Train until the last epoch, from the last checkpoint where there is one.

    Args:
        config: a `WorkerPlan` as JSON values.

    Returns:
        The error that ended training on every worker, if one did: Ray would retry what is raised here, and the same
        steps would end the same way.
    """
    plan = WorkerPlan.model_validate(config)
    source = open_task(plan.job).source(plan.fitted)
    place = RayPlace(plan)
    try:
        found = fit_network(plan, place, source)
    finally:
        place.ended()
    return found if isinstance(found, UsageError) else None


def fit_network(plan: WorkerPlan, place: Place, source: Source) -> nn.Module | UsageError:
    """Train until the last epoch, from what the place remembers; the network, or the error that ended it."""
    job = plan.job
    # Ray sets OMP_NUM_THREADS=1; and the number holds for the calling thread, so it is set here.
    torch.set_num_threads(job.resources.threads)
    torch.manual_seed(job.training.seed)
    worker = _Worker(plan, source, place)
    network = build_model(plan.network).to(place.device)
    if any(isinstance(module, nn.Conv3d) for module in network.modules()):
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if job.init_from is not None:
        begin_from(job.init_from, network)
    state = TrainingState.of(network, job.training)
    progress = place.restored(state)
    parallel = place.prepared(network)
    first = progress.epochs * job.training.steps_per_epoch
    with closing(_batches(worker, first)) as batches:
        for epoch in range(progress.epochs, job.training.epochs):
            if job.training.early_stop and epochs_since_best(progress.history) >= job.training.early_stop:
                break
            losses = _train_epoch(worker, parallel, state, batches, progress)
            for averaged in dict.fromkeys((network, state.judged)):
                _average_buffers(averaged)
            if divergence := _divergence(worker, network, losses, progress):
                return divergence
            judged = _validate(worker, state.judged)
            figures = {"epoch": epoch + 1, "loss": float(losses.mean()), "validation": judged}
            progress = Progress(epoch + 1, [*progress.history, figures])
            if job.training.early_stop and epochs_since_best(progress.history) == 0:
                state.keep_best()
            place.epoch_done(state, progress)
    return state.result()


def begin_from(url: str, network: nn.Module) -> None:
    """Put the weights of a bundle into a network wherever name and shape agree.

    Raises:
        MismatchError: they agree for less than half of the weights.
        NotFoundError, IntegrityError: as `load_bundle`.
    """
    given, own = load_bundle(url).network().state_dict(), network.state_dict()
    alike = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    fits = sum(value.numel() for value in alike.values()) / sum(value.numel() for value in given.values())
    if fits < _LEAST_FIT:
        raise MismatchError(
            "the weights of the bundle do not fit the network",
            where=url,
            measured=f"{fits:.0%} by name and shape",
            limit=f"{_LEAST_FIT:.0%}",
            remedy="Give model the same parameters as the bundle's.",
        )
    network.load_state_dict(alike, strict=False)


def _batches(worker: _Worker, first: int) -> Generator[Batch, None, None]:
    """Yield batches from step `first` to the last, made ahead."""
    training = worker.plan.job.training
    steps = range(first, training.epochs * training.steps_per_epoch)

    def batch(place: tuple[int, int]) -> Batch:
        return Batch.of([worker.source.draw(key) for key in _keys(training, place[0], worker.place.rank, place[1])])

    places = itertools.product(steps, range(training.accumulate))
    return prefetch(batch, places, worker.plan.job.resources.readers)


def _keys(training: Training, step: int, rank: int, part: int) -> list[tuple[int, ...]]:
    """What decides the examples of one batch: their numbers in the step, the same however many workers share it."""
    first = (rank * training.accumulate + part) * training.batch
    return [(training.seed, step, item) for item in range(first, first + training.batch)]


def _train_epoch(
    worker: _Worker,
    parallel: nn.Module,
    state: TrainingState,
    batches: Iterator[Batch],
    progress: Progress,
) -> npt.NDArray[np.float64]:
    """Return the loss of each step, the mean over the workers, so that all of them find the same."""
    training, place = worker.plan.job.training, worker.place
    objective = worker.plan.objective
    parallel.train()
    takes_lengths = _takes_lengths(getattr(parallel, "module", parallel))
    losses = torch.zeros(training.steps_per_epoch, dtype=torch.float64, device=place.device)
    for index in range(training.steps_per_epoch):
        step = progress.epochs * training.steps_per_epoch + index
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(training, step, progress.history)
        state.optimizer.zero_grad(set_to_none=True)
        parts = [next(batches).on(place.device) for _ in range(training.accumulate)]
        # Gradients are averaged over workers, so that each divides by the mean of what their labels weigh.
        weight = _summed(sum((objective.weight(part.labels) for part in parts), torch.zeros((), device=place.device)))
        for number, part in enumerate(parts):
            given = (part.inputs, part.lengths) if takes_lengths else (part.inputs,)
            last = number + 1 == training.accumulate
            with _unsynchronised(parallel) if not last else contextlib.nullcontext():
                with torch.autocast(place.device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
                    outputs_BK = parallel(*given)
                share = 1 / training.accumulate
                loss = objective.value(outputs_BK.float(), part.labels, weight / place.workers, share)
                loss.backward()  # type: ignore[no-untyped-call]
            losses[index] += loss.detach()
        length = torch.nn.utils.clip_grad_norm_(parallel.parameters(), training.clip_norm)
        # A loss may be finite where its gradient is not: the step that breaks the weights is this one.
        losses[index] += length * 0
        state.step()
        place.step_done(step + 1)
    mean: npt.NDArray[np.float64] = _summed(losses).cpu().numpy() / place.workers
    return mean


def _unsynchronised(parallel: nn.Module) -> contextlib.AbstractContextManager[None]:
    """A context in which gradients stay each worker's own."""
    return parallel.no_sync() if isinstance(parallel, DistributedDataParallel) else contextlib.nullcontext()


def _takes_lengths(network: nn.Module) -> bool:
    """Whether a network is told where the padding of each sequence begins."""
    return "lengths_B" in inspect.signature(network.forward).parameters


def _divergence(
    worker: _Worker, network: nn.Module, losses: npt.NDArray[np.float64], progress: Progress
) -> UsageError | None:
    """Return the error for a loss, weight or running statistic that is not finite, None where all are."""
    broken = np.flatnonzero(~np.isfinite(losses))
    if not broken.size and all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        return None
    training = worker.plan.job.training
    index = int(broken[0]) if broken.size else losses.size - 1
    step = progress.epochs * training.steps_per_epoch + index
    rate = learning_rate(training, step, progress.history)
    kept = f"; the checkpoint of epoch {progress.epochs} is kept" if progress.epochs else ""
    return UsageError(
        "the loss did not stay finite" if broken.size else "the weights did not stay finite",
        where=worker.plan.job.output,
        measured=f"loss {losses[index]} in epoch {progress.epochs + 1}, step {step + 1}, at learning rate {rate:.3g}, "
        f"of {_loudest(worker, step)}{kept}",
        limit="finite loss and weights",
        remedy="Lower training.learning_rate, or bring amplitudes near 1 by clip and scale in preprocess.",
    )


def _loudest(worker: _Worker, step: int) -> str:
    """The example of a step, of all workers, with the largest input: which it is, and that value."""
    training = worker.plan.job.training
    largest, name = -1.0, ""
    for rank in range(worker.place.workers):
        for part in range(training.accumulate):
            for key in _keys(training, step, rank, part):
                example = worker.source.draw(key)
                value = float(np.abs(example.inputs).max()) if np.isfinite(example.inputs).all() else math.inf
                if value > largest:
                    largest, name = value, worker.source.place(key)
    return f"{name} with values up to {largest:.3g}"


def _validate(worker: _Worker, network: nn.Module) -> dict[str, Any]:
    """Return the metrics of what is held out; each worker scores its share."""
    objective, place = worker.plan.objective, worker.place
    parts = worker.source.held_out() if place.validates else ()
    tally = objective.tally()
    network.eval()
    with torch.inference_mode():
        for part in parts[place.rank :: place.workers]:
            example = part.read()
            answer_K = worker.source.answer(network, example, place.device, objective.answer)
            tally += objective.count(answer_K.cpu().numpy(), example.labels)
            place.part_done()
    total = _summed(torch.from_numpy(tally).to(place.device)).cpu().numpy()
    return objective.figures(total) if parts else {}


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

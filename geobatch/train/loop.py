"""What every training worker runs, under Ray Train or alone.

Tensor axes: B batch, C channel, K class, I inline, X crossline, S sample.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import ray.train
import ray.train.torch
import torch
import torch.distributed
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from geobatch.errors import MismatchError, UsageError
from geobatch.models import build_model
from geobatch.models.bundle import load_bundle
from geobatch.survey import INVALID_CLASS
from geobatch.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from geobatch.train.data import prefetch
from geobatch.train.kinds import open_task
from geobatch.train.metrics import Counts, confusion_matrix, scores
from geobatch.train.source import Batch, Source
from geobatch.train.spec import Training, TrainJob
from geobatch.train.state import TrainingState, epochs_since_best, plateau_factor
from geobatch.train.telling import Teller
from geobatch.train.watchdog import Watchdog

_WARM_UP = 0.1
_LEAST_FIT = 0.5


class WorkerPlan(BaseModel):
    """What is decided before workers start and is the same for all of them.

    Attributes:
        job: the training job.
        fitted: what the data's `Task` fitted.
        network: what `build_model` builds.
        class_names: in the order of the network's outputs.
        class_weights: of the loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: TrainJob
    run: str
    place: str
    fitted: dict[str, Any]
    network: dict[str, Any]
    class_names: tuple[str, ...]
    class_weights: tuple[float, ...]


class Place(Protocol):
    """Where a worker runs: its device, the others beside it, and who hears of its epochs.

    Attributes:
        device: Of its network.
        rank: Its number among the workers.
        workers: How many there are.
        validates: Whether each epoch ends with a look at what is held out.
    """

    device: torch.device
    rank: int
    workers: int
    validates: bool

    def prepared(self, network: nn.Module) -> nn.Module:
        """The network that shares its gradients with those of the other workers."""
        ...

    def restored(self, state: TrainingState) -> Progress:
        """How far an earlier run came, what it was put into `state`."""
        ...

    def step_done(self, step: int) -> None:
        """Hear that so many steps are done."""
        ...

    def part_done(self) -> None:
        """Hear that a held-out part is judged."""
        ...

    def epoch_done(self, state: TrainingState, progress: Progress) -> None:
        """Keep what an epoch made."""
        ...


class RayPlace:
    """A worker of Ray Train; see `Place`."""

    def __init__(self, plan: WorkerPlan) -> None:
        context = ray.train.get_context()
        self.validates = True
        training = plan.job.training
        self.device = ray.train.torch.get_device()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self._epochs, self._steps = training.epochs, training.steps_per_epoch
        self._teller = Teller(plan.place, plan.run, self._epochs * self._steps)
        self._watchdog = Watchdog(plan.job.resources.hang_s)

    def prepared(self, network: nn.Module) -> nn.Module:
        """See `Place`."""
        # Running statistics stay each worker's own until `_average_buffers`; by default the first worker's win.
        parallel: nn.Module = ray.train.torch.prepare_model(
            network, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
        return parallel

    def restored(self, state: TrainingState) -> Progress:
        """See `Place`."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return Progress()
        with checkpoint.as_directory() as folder:
            return load_checkpoint(Path(folder), state)

    def step_done(self, step: int) -> None:
        """See `Place`."""
        self._watchdog.hear()
        if self.rank == 0:
            self._teller.tell(step)

    def epoch_done(self, state: TrainingState, progress: Progress) -> None:
        """See `Place`."""
        with self._watchdog.paused():
            self._report(state, progress)

    def part_done(self) -> None:
        """See `Place`."""
        self._watchdog.hear()

    def ended(self) -> None:
        """The run is over, however it ended."""
        self._watchdog.end()

    def _report(self, state: TrainingState, progress: Progress) -> None:
        figures = progress.history[-1]
        if self.rank != 0:
            ray.train.report(figures)
            return
        self._teller.tell(figures["epoch"] * self._steps, epoch_line(figures, self._epochs))
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), state, progress)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(figures, checkpoint=checkpoint, checkpoint_dir_name=f"epoch-{progress.epochs:05d}")


class AlonePlace:
    """A process of its own, from the beginning to the end; see `Place`."""

    def __init__(self, device: str = "cpu", *, validates: bool = True) -> None:
        self.device, self.rank, self.workers, self.validates = torch.device(device), 0, 1, validates
        self.history: list[dict[str, Any]] = []

    def prepared(self, network: nn.Module) -> nn.Module:
        """See `Place`."""
        return network

    def restored(self, state: TrainingState) -> Progress:
        """See `Place`."""
        return Progress()

    def step_done(self, step: int) -> None:
        """See `Place`."""

    def part_done(self) -> None:
        """See `Place`."""

    def epoch_done(self, state: TrainingState, progress: Progress) -> None:
        """See `Place`."""
        self.history = progress.history


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
    with closing(prefetch(lambda: _batches(worker, first))) as batches:
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


def learning_rate(training: Training, step: int, history: Sequence[dict[str, Any]] = ()) -> float:
    """Return the rate of a step: linear warm-up, then a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983).

    Args:
        training: With the schedule; `constant` and `plateau` stay at the highest rate after the warm-up.
        step: From 0.
        history: Figures of the epochs before, by which `plateau` halves it.
    """
    total = training.steps_per_epoch * training.epochs
    warm_up = max(1, round(_WARM_UP * total))
    if step < warm_up:
        return training.learning_rate * (step + 1) / warm_up
    if training.schedule != "cosine":
        factor = plateau_factor(history, training.plateau_epochs) if training.schedule == "plateau" else 1.0
        return training.learning_rate * factor
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def segmentation_loss(logits_BK: Tensor, labels_B: Tensor, weights_K: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of the labelled cells, weighted by class; 255 is unlabelled, and without labels it is 0.

    Args:
        logits_BK: `(batch, class, *axes)`.
        labels_B: `(batch, *axes)`.
        weights_K: Of the classes.
        weight: What the sum is divided by, by default what the labels weigh.
    """
    total = nn.functional.cross_entropy(
        logits_BK, labels_B, weight=weights_K, ignore_index=INVALID_CLASS, reduction="sum"
    )
    weight = label_weight(labels_B, weights_K) if weight is None else weight
    return total / weight.clamp(min=1e-6)


def label_weight(labels_B: Tensor, weights_K: Tensor) -> Tensor:
    """Return the sum over labelled cells of the weight of their class."""
    return weights_K[labels_B[labels_B != INVALID_CLASS]].sum()


def dice_loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Return the soft Dice loss of the labelled cells (Milletari et al. 2016, doi:10.1109/3DV.2016.79)."""
    valid = labels_B != INVALID_CLASS
    probability_BK = logits_BK.softmax(dim=1) * valid.unsqueeze(1)
    truth_BK = nn.functional.one_hot(labels_B.where(valid, 0), logits_BK.shape[1]).movedim(-1, 1)
    truth_BK = truth_BK * valid.unsqueeze(1)
    axes = (0, *range(2, logits_BK.ndim))
    shared_K = (probability_BK * truth_BK).sum(axes)
    either_K = probability_BK.sum(axes) + truth_BK.sum(axes)
    return 1 - ((2 * shared_K + 1) / (either_K + 1)).mean()


def _batches(worker: _Worker, first: int) -> Iterator[Batch]:
    """Yield batches from step `first` to the last."""
    training = worker.plan.job.training
    for step in range(first, training.epochs * training.steps_per_epoch):
        for part in range(training.accumulate):
            yield Batch.of([worker.source.draw(key) for key in _keys(training, step, worker.place.rank, part)])


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
    weights_K = torch.tensor(worker.plan.class_weights, device=place.device)
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
        weight = _summed(sum((label_weight(part.labels, weights_K) for part in parts), weights_K.new_zeros(())))
        for number, part in enumerate(parts):
            given = (part.inputs, part.lengths) if takes_lengths else (part.inputs,)
            last = number + 1 == training.accumulate
            with _unsynchronised(parallel) if not last else contextlib.nullcontext():
                with torch.autocast(place.device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
                    logits_BK = parallel(*given)
                loss = segmentation_loss(logits_BK.float(), part.labels, weights_K, weight / place.workers)
                if training.dice:
                    loss = loss + training.dice / training.accumulate * dice_loss(logits_BK.float(), part.labels)
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
    names, place = worker.plan.class_names, worker.place
    parts = worker.source.held_out() if place.validates else ()
    counts: Counts = np.zeros((len(names), len(names)), np.int64)
    network.eval()
    with torch.inference_mode():
        for part in parts[place.rank :: place.workers]:
            example = part.read()
            predicted = worker.source.probabilities(network, example, place.device).argmax(dim=0).cpu().numpy()
            counts += confusion_matrix(example.labels, predicted, len(names))
            place.part_done()
    total = _summed(torch.from_numpy(counts).to(place.device)).cpu().numpy()
    return scores(total, names) if parts else {}


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

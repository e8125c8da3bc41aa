"""Where a training worker runs: under Ray Train beside others, or alone in a process."""

from __future__ import annotations

from typing import Any, Protocol

import ray.train
import ray.train.torch
import torch
import torch.distributed
from pydantic import BaseModel, ConfigDict
from torch import nn

from geobatch.errors import TransientError
from geobatch.storage import join_url
from geobatch.train.board import tell_board
from geobatch.train.checkpoint import Checkpoints, Progress
from geobatch.train.objectives import AnyObjective
from geobatch.train.spec import TrainJob
from geobatch.train.state import TrainingState
from geobatch.train.telling import Teller, epoch_line
from geobatch.train.watchdog import Watchdog


class WorkerPlan(BaseModel):
    """What is decided before workers start and is the same for all of them.

    Attributes:
        job: the training job.
        run: name of the run.
        place: URL of its checkpoints and of what is told of it.
        fitted: what the data's `Task` fitted.
        network: what `build_model` builds.
        objective: what the network is asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: TrainJob
    run: str
    place: str
    fitted: dict[str, Any]
    network: dict[str, Any]
    objective: AnyObjective

    def checkpoints(self) -> Checkpoints:
        """Those of the run."""
        return Checkpoints(join_url(self.place, self.run))


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
        self._folder = join_url(plan.place, plan.run)
        self._teller = Teller(plan.place, plan.run, self._epochs * self._steps)
        self._watchdog = Watchdog(plan.job.resources.hang_s)
        self._checkpoints = plan.checkpoints()

    def prepared(self, network: nn.Module) -> nn.Module:
        """See `Place`."""
        # Running statistics stay each worker's own until `_average_buffers`; by default the first worker's win.
        parallel: nn.Module = ray.train.torch.prepare_model(
            network, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
        return parallel

    def restored(self, state: TrainingState) -> Progress:
        """See `Place`."""
        progress = self._checkpoints.restore(state)
        if torch.distributed.is_initialized():
            epochs = torch.tensor([progress.epochs, -progress.epochs], device=self.device)
            torch.distributed.all_reduce(epochs, torch.distributed.ReduceOp.MAX)
            if epochs[0] != -epochs[1]:
                raise TransientError(
                    "workers found different checkpoints", measured=f"epoch {progress.epochs} and more"
                )
        return progress

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
        if self.rank == 0:
            self._checkpoints.store(state, progress)
            tell_board(self._folder, progress.history)
            self._teller.tell(figures["epoch"] * self._steps, epoch_line(figures, self._epochs))
        # Every worker waits here for the first one.
        ray.train.report(figures)


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

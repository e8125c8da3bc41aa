"""Training in plain processes, which can be told where to end, and in workers of Ray Train that kill themselves.

    line = TrainingLine(folder)
    run = line.start(plan, Fault(point="after step 7"))
    run.wait().signal == SIGKILL
    line.start(plan).wait().summary

Besides what `struck` watches, the end of each step is a point. Steps count from 1.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# A first use imports these, which would be once per process.
import torch
import torch._dynamo  # noqa: F401
from struck import Fault, Orders, Outcome, Run, Trace, forkserver, obeying
from torch import nn

import geobatch.train.loop
from geobatch.errors import GeobatchError
from geobatch.storage import join_url
from geobatch.storage.files import FileStorage
from geobatch.storage.s3 import S3Storage
from geobatch.train.checkpoint import Progress
from geobatch.train.kinds import open_task
from geobatch.train.places import AlonePlace, RayPlace, WorkerPlan
from geobatch.train.state import TrainingState


class StoredPlace(AlonePlace):
    """A process by itself that keeps checkpoints as a worker of Ray Train does, and tells its steps."""

    def __init__(self, plan: WorkerPlan, trace: Trace) -> None:
        super().__init__()
        self.checkpoints, self.trace = plan.checkpoints(), trace

    def restored(self, state: TrainingState) -> Progress:
        progress = self.checkpoints.restore(state)
        self.trace.passes(f"restored {progress.epochs}")
        return progress

    def step_done(self, step: int) -> None:
        self.trace.passes(f"after step {step}")

    def epoch_done(self, state: TrainingState, progress: Progress) -> None:
        super().epoch_done(state, progress)
        self.checkpoints.store(state, progress)


class TrainingLine:
    """Starts trainings; their traces lie in `folder`.

    Args:
        folder: An empty folder.
        environment: Of every process, such as the endpoint of an S3 server.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.environment = folder, environment or {}
        self.runs: list[Run] = []

    def start(self, plan: WorkerPlan, fault: Fault | None = None) -> Run:
        """Start the process of a training; its summary holds its weights and its history."""
        context = forkserver()
        trace = self.folder / f"trace-{len(self.runs):04d}"
        orders = Orders(join_url(plan.place, plan.run), str(trace), self.environment, {})
        answer, theirs = context.Pipe()
        process = context.Process(
            target=_drive, args=(theirs, plan.model_dump(mode="json"), orders, fault), daemon=True
        )
        process.start()
        theirs.close()
        self.runs.append(Run(process, [], answer, trace))
        return self.runs[-1]


def _drive(answer: Connection, config: dict[str, Any], orders: Orders, fault: Fault | None) -> None:
    plan = WorkerPlan.model_validate(config)
    with obeying(orders, "driver", fault) as trace:
        try:
            place = StoredPlace(plan, trace)
            network = geobatch.train.loop.fit_network(plan, place, open_task(plan.job).source(plan.fitted))
            assert isinstance(network, nn.Module)
            weights = {name: value.numpy() for name, value in network.state_dict().items()}
            answer.send(Outcome(summary={"weights": weights, "history": place.history}))
        except GeobatchError as error:
            answer.send(Outcome(error=error))
    os._exit(0)


def struck_worker(folder: str, steps: Sequence[int], keys: Sequence[str], config: dict[str, Any]) -> Any:
    """A worker of Ray Train whose first rank kills itself once at each of these steps and before storing these keys.

    Args:
        folder: Where it is noted which has struck.
        steps: Ends of steps.
        keys: What the key of a stored object ends with.
        config: As `train_worker` takes it.
    """

    def strike(name: str) -> None:
        try:
            os.close(os.open(f"{folder}/{name}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    step_done = RayPlace.step_done

    def stepped(self: RayPlace, step: int) -> None:
        step_done(self, step)
        if self.rank == 0 and step in steps:
            strike(f"step-{step:02d}")

    RayPlace.step_done = stepped  # type: ignore[method-assign]
    for kind in (FileStorage, S3Storage):
        kind.put = _struck_put(kind.put, keys, strike)  # type: ignore[method-assign]
    return geobatch.train.loop.train_worker(config)


def _struck_put(put: Any, keys: Sequence[str], strike: Any) -> Any:
    @functools.wraps(put)
    def watched(self: Any, key: str, data: bytes) -> None:
        for name in keys:
            if key.endswith(name):
                strike(name.replace("/", "-"))
        put(self, key, data)

    return watched

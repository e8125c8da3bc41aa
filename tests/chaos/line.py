"""The scoring line in plain processes, each of which can be told where to end or to stop.

    line = Line(folder)
    run = line.start({"survey": …, "output": …}, driver=Fault(at=17))
    run.wait().signal == SIGKILL
    line.start(…).wait().summary

Driver and workers are processes as `struck` has them; the stages of a block are points too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# A first use imports these, which would be once per process.
import pyarrow.dataset  # noqa: F401
import torch
import torch._dynamo
from struck import Fault, Orders, Outcome, Run, Trace, forkserver, obeying

import geobatch.score.deployment
from geobatch import cluster
from geobatch.errors import GeobatchError, TransientError
from geobatch.score import run as scoring
from geobatch.score.dispatch import Answer
from geobatch.score.spec import ScoreJob, ScorePlan, ScoreResources
from geobatch.score.worker import BlockScorer, Task

STAGES = ("adopt", "read", "predict", "write")
ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "score": lambda job, **options: scoring.score(job, **options),
    "repair": lambda job, **options: scoring.repair(job.output, **options),
    "retry": lambda job, **options: scoring.retry(job.output, **options),
}


class Line:
    """Starts runs; their traces lie in `folder`.

    Args:
        folder: An empty folder.
        environment: Of every process, such as the endpoint of an S3 server.
        settings: Constants of modules to change in every process, by their dotted names.
        on_cluster: The drivers join the Ray cluster that `environment` names; there are no workers of ours.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        *,
        settings: Mapping[str, float] | None = None,
        on_cluster: bool = False,
    ) -> None:
        self.folder, self.on_cluster = folder, on_cluster
        self.environment, self.settings = environment or {}, settings or {}
        self.runs: list[Run] = []

    def start(
        self,
        job: Mapping[str, Any],
        action: str = "score",
        *,
        driver: Fault | None = None,
        workers: Sequence[Fault | None] = (),
        settings: Mapping[str, float] | None = None,
    ) -> Run:
        """Start a driver and its workers.

        Args:
            job: The scoring job.
            action: `score`, `repair` or `retry`.
            driver: Where the driver is struck.
            workers: Where workers are struck, in the order in which the pool takes them.
            settings: More of them, for this run.
        """
        context = forkserver()
        parsed = ScoreJob.model_validate({"job": "score", **job})
        trace = self.folder / f"trace-{len(self.runs):04d}"
        orders = Orders(parsed.output, str(trace), self.environment, {**self.settings, **(settings or {})})
        ends, processes = [], []
        for number in range(0 if self.on_cluster else parsed.resources.most + len(workers)):
            ours, theirs = context.Pipe()
            fault = workers[number] if number < len(workers) else None
            processes.append(context.Process(target=_work, args=(theirs, orders, fault), daemon=True))
            processes[-1].start()
            theirs.close()
            ends.append(ours)
        answer, theirs = context.Pipe()
        open_pool = None if self.on_cluster else functools.partial(_processes, ends)
        process = context.Process(target=_drive, args=(theirs, parsed, action, orders, driver, open_pool), daemon=True)
        process.start()
        for connection in (theirs, *ends):
            # A worker ends when its driver has closed the pipe, so no one else may hold it.
            connection.close()
        self.runs.append(Run(process, processes, answer, trace))
        return self.runs[-1]

    def close(self) -> None:
        """End every process that is left, the stopped ones too."""
        for run in self.runs:
            for process in (run.driver, *run.workers):
                process.kill()
                process.join()


class ProcessPool:
    """Worker processes that score blocks; the next one takes the place of one that died.

    Args:
        ends: Pipes to idle processes.
        size: How many of them work at once.
    """

    def __init__(self, ends: Sequence[Connection], size: int, plan: ScorePlan, url: str, overlap: bool) -> None:
        self._start = (plan.model_dump_json(), url, overlap)
        self._spare = iter(ends)
        self._size = size
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        for _ in range(size):
            self._take_another()

    def score(self, tasks: Sequence[Task]) -> list[Answer]:
        """The answers of one worker, in order; raises TransientError when it was lost on the way."""
        worker = self._idle.get()
        try:
            worker.send(list(tasks))
            answers: list[Answer] = worker.recv()
        except (EOFError, OSError) as error:
            self._take_another()
            raise TransientError("worker was lost", where=f"block {tasks[0].block}") from error
        self._idle.put(worker)
        return answers

    def window(self) -> int:
        """One request for each worker."""
        return self._size

    def _take_another(self) -> None:
        worker = next(self._spare)
        with contextlib.suppress(OSError):
            worker.send(self._start)
        self._idle.put(worker)


@contextlib.contextmanager
def _processes(
    ends: Sequence[Connection], plan: ScorePlan, url: str, resources: ScoreResources
) -> Iterator[ProcessPool]:
    yield ProcessPool(ends, resources.most, plan, url, resources.overlaps)


def _drive(
    answer: Connection,
    job: ScoreJob,
    action: str,
    orders: Orders,
    fault: Fault | None,
    open_pool: scoring.OpenPool | None,
) -> None:
    """A driver: one run, its outcome sent to the test."""
    options = {"open_pool": open_pool} if open_pool else {}
    with _obeying(orders, "driver", fault):
        try:
            answer.send(Outcome(summary=ACTIONS[action](job, **options)))
        except GeobatchError as error:
            answer.send(Outcome(error=error))
        cluster.disconnect()
    # Not by way of the interpreter's end, which would wait for workers that are stopped.
    os._exit(0)


def _work(end: Connection, orders: Orders, fault: Fault | None) -> None:
    """A worker: the replica of a deployment, without its cluster, until its driver closes the pipe."""
    with _obeying(orders, "worker", fault), contextlib.suppress(EOFError, OSError), asyncio.Runner() as runner:
        plan, url, overlap = end.recv()
        replica = geobatch.score.deployment.Replica(plan, url, overlap)
        while True:
            end.send(runner.run(replica.score(end.recv())))
    os._exit(0)


@contextlib.contextmanager
def _obeying(orders: Orders, role: str, fault: Fault | None) -> Iterator[None]:
    torch.set_num_threads(1)
    with obeying(orders, role, fault) as trace:
        for stage in STAGES:
            setattr(BlockScorer, stage, _stage(getattr(BlockScorer, stage), trace))
        yield


def _stage(stage: Callable[..., Any], trace: Trace) -> Callable[..., Any]:
    @functools.wraps(stage)
    def watched(self: BlockScorer, what: Any) -> Any:
        task = what if isinstance(what, Task) else what.task
        with trace.around(f"{stage.__name__} {task.block}"):
            return stage(self, what)

    return watched

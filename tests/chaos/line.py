"""The scoring line in plain processes, each of which can be told where to end or to stop.

    line = Line(folder)
    run = line.start({"survey": …, "output": …}, driver=Fault(at=17))
    run.wait().signal == SIGKILL
    line.start(…).wait().summary

Driver and workers are forked by a server that has everything imported, so that a run costs tenths of a second. Each
writes the points that it passes into one trace: storage operations of the output, before and after, a file's link and
rename among them, and the stages of a block. A fault names a point by its number or its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import itertools
import multiprocessing
import multiprocessing.forkserver
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# A first use imports these, which would be once per process.
import pyarrow.dataset  # noqa: F401
import torch
import torch._dynamo

import geobatch.score.deployment
from geobatch import cluster
from geobatch.errors import GeobatchError, TransientError
from geobatch.local_s3 import environment
from geobatch.score import run as scoring
from geobatch.score.dispatch import Answer
from geobatch.score.spec import ScoreJob, ScorePlan, ScoreResources
from geobatch.score.worker import BlockScorer, Task
from geobatch.storage.files import FileStorage
from geobatch.storage.s3 import S3Storage

WRITES = ("put", "put_if_absent", "put_if_match", "delete")
# Each reads whole objects by the one of its two methods that stands below the other.
OPERATIONS = {FileStorage: ("get", *WRITES), S3Storage: ("read", *WRITES)}
STAGES = ("adopt", "read", "predict", "write")
ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "score": lambda job, **options: scoring.score(job, **options),
    "repair": lambda job, **options: scoring.repair(job.output, **options),
    "retry": lambda job, **options: scoring.retry(job.output, **options),
}
WAIT_S = 120
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Fault:
    """Where a process ends or stops.

    Attributes:
        at: Number of the point, from 1; 0 for none.
        point: What the point's name begins with; the first such point counts.
        signal: What strikes it there.
    """

    at: int = 0
    point: str = ""
    signal: int = signal.SIGKILL

    def strikes(self, number: int, point: str) -> bool:
        """True at the point that is meant."""
        return number == self.at or (bool(self.point) and point.startswith(self.point))


@dataclass(frozen=True)
class Passed:
    """A point that a process came by."""

    role: str
    process_id: int
    number: int
    point: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended: by its summary, by an error of ours, or by a signal."""

    summary: dict[str, Any] | None = None
    error: GeobatchError | None = None
    signal: int = 0


@dataclass(frozen=True)
class Orders:
    """What a process of a run is told before it begins."""

    output: str
    trace: str
    environment: Mapping[str, str]
    settings: Mapping[str, float]


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
        context = _forkserver()
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


@dataclass
class Run:
    """A run on its way: its processes and its trace."""

    driver: Any
    workers: list[Any]
    answer: Connection
    trace: Path

    def wait(self) -> Outcome:
        """How the driver ended; its workers have ended too, but for those that are stopped."""
        outcome = self._answer()
        for worker in self.workers:
            while worker.is_alive() and not _is_stopped(worker.pid):
                worker.join(0.005)
        return outcome

    def passed(self, role: str = "", begins: str = "") -> list[Passed]:
        """The points that its processes came by, in order."""
        if not self.trace.exists():
            return []
        lines = [line.split(maxsplit=3) for line in self.trace.read_text().splitlines()]
        points = [Passed(role, int(process_id), int(number), point) for role, process_id, number, point in lines]
        return [p for p in points if p.role.startswith(role) and p.point.startswith(begins)]

    def predicted(self) -> list[int]:
        """The blocks whose inference was begun, once for each time."""
        return [int(passed.point.split()[-1]) for passed in self.passed("worker", "before predict ")]

    def wait_for_stop(self, role: str) -> int:
        """The id of the first process of that role, once it has stopped itself."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for passed in self.passed(role):
                if _is_stopped(passed.process_id):
                    return passed.process_id
            time.sleep(0.01)
        raise TimeoutError(f"no {role} of {self.trace} stopped")

    def resume(self, process_id: int) -> None:
        """Let a stopped process go on, and wait until it has ended."""
        os.kill(process_id, signal.SIGCONT)
        for process in (self.driver, *self.workers):
            if process.pid == process_id:
                process.join(WAIT_S)
                assert not process.is_alive(), f"process {process_id} did not end"

    def _answer(self) -> Outcome:
        if not self.answer.poll(WAIT_S):
            raise TimeoutError(f"driver of {self.trace} does not end")
        try:
            outcome = self.answer.recv()
        except EOFError:
            self.driver.join()
            return Outcome(signal=-self.driver.exitcode)
        self.driver.join()
        return outcome


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
    """A context in which the process writes its trace, and is struck by its fault."""
    torch.set_num_threads(1)
    for name, value in orders.settings.items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)
    with environment(dict(orders.environment)):
        _watch(_Trace(orders.trace, role, fault), orders.output)
        yield


class _Trace:
    """Writes points, and strikes its own process at one of them."""

    def __init__(self, path: str, role: str, fault: Fault | None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._role, self._fault = role, fault
        self._numbers, self._lock = itertools.count(1), threading.Lock()

    def passes(self, point: str) -> None:
        with self._lock:
            number = next(self._numbers)
            os.write(self._file, f"{self._role} {os.getpid()} {number} {point}\n".encode())
            if self._fault and self._fault.strikes(number, point):
                fault, self._fault = self._fault, None
                os.kill(os.getpid(), fault.signal)

    @contextlib.contextmanager
    def around(self, point: str) -> Iterator[None]:
        self.passes(f"before {point}")
        yield
        self.passes(f"after {point}")


def _watch(trace: _Trace, output: str) -> None:
    """Let storage operations on the output, and the stages of blocks, tell the trace."""
    for kind, names in OPERATIONS.items():
        for name in names:
            setattr(kind, name, _storage_operation(getattr(kind, name), trace, output))
    for stage in STAGES:
        setattr(BlockScorer, stage, _stage(getattr(BlockScorer, stage), trace))
    os.link = _file_operation(os.link, trace, output)
    Path.replace = _file_operation(Path.replace, trace, output)  # type: ignore[method-assign]


def _storage_operation(operation: Callable[..., Any], trace: _Trace, output: str) -> Callable[..., Any]:
    @functools.wraps(operation)
    def watched(self: FileStorage | S3Storage, key: str, *rest: Any) -> Any:
        if self.url != output:
            return operation(self, key, *rest)
        with trace.around(f"{operation.__name__} {key}"):
            return operation(self, key, *rest)

    return watched


def _stage(stage: Callable[..., Any], trace: _Trace) -> Callable[..., Any]:
    @functools.wraps(stage)
    def watched(self: BlockScorer, what: Any) -> Any:
        task = what if isinstance(what, Task) else what.task
        with trace.around(f"{stage.__name__} {task.block}"):
            return stage(self, what)

    return watched


def _file_operation(operation: Callable[..., Any], trace: _Trace, output: str) -> Callable[..., Any]:
    """A link or a rename; `after` stands in the trace only when it was done."""

    @functools.wraps(operation)
    def watched(source: Path, target: Path, *rest: Any, **options: Any) -> Any:
        if not str(target).startswith(output):
            return operation(source, target, *rest, **options)
        with trace.around(f"{operation.__name__} {Path(target).relative_to(output)}"):
            return operation(source, target, *rest, **options)

    return watched


@functools.cache
def _forkserver() -> Any:
    """The context whose processes are forked from one that has imported all this, and runs no thread of Python."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["line", "pytest"])
    # The server imports by its environment alone.
    paths = [str(Path(__file__).parent), str(Path(geobatch.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    # Ray reads as it is imported whether a cluster asks for a token; the token itself it reads when it joins one.
    with environment({**ONE_THREAD, "PYTHONPATH": os.pathsep.join(paths), "RAY_AUTH_MODE": "token"}):
        multiprocessing.forkserver.ensure_running()
    return context


def _is_stopped(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in ("T", "t")

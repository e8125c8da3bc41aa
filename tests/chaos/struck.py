"""Processes that write down the points that they pass, and are killed or stopped at one that was told.

Points are storage operations of an output, before and after, a file's link and rename among them, and whatever a line
adds of its own. A fault names a point by its number or its name. Processes are forked by a server that has everything
imported, so that one costs tenths of a second.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import geobatch
from geobatch.errors import GeobatchError
from geobatch.local_s3 import environment
from geobatch.storage.files import FileStorage
from geobatch.storage.s3 import S3Storage

WRITES = ("put", "put_if_absent", "put_if_match", "delete")
# Each reads whole objects by the one of its two methods that stands below the other.
OPERATIONS = {FileStorage: ("get", *WRITES), S3Storage: ("read", *WRITES)}
WAIT_S = 120
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
LINES = ("line", "ingest_line", "training_line")


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
            while worker.is_alive() and not is_stopped(worker.pid):
                worker.join(0.005)
        return outcome

    def passed(self, role: str = "", begins: str = "") -> list[Passed]:
        """The points that its processes came by, in order."""
        if not self.trace.exists():
            return []
        # The last line may be on its way still.
        whole = self.trace.read_text().rpartition("\n")[0]
        lines = [line.split(maxsplit=3) for line in whole.splitlines()]
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
                if is_stopped(passed.process_id):
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


@contextlib.contextmanager
def obeying(orders: Orders, role: str, fault: Fault | None) -> Iterator[Trace]:
    """A context in which the process writes its trace, and is struck by its fault."""
    for name, value in orders.settings.items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)
    with environment(dict(orders.environment)):
        trace = Trace(orders.trace, role, fault)
        _watch_storage(trace, orders.output)
        yield trace


class Trace:
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


@functools.cache
def forkserver() -> Any:
    """The context whose processes are forked from one that has imported all lines, and runs no thread of Python."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LINES, "pytest"])
    # The server imports by its environment alone.
    paths = [str(Path(__file__).parent), str(Path(geobatch.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    # Ray reads as it is imported whether a cluster asks for a token; the token itself it reads when it joins one.
    with environment({**ONE_THREAD, "PYTHONPATH": os.pathsep.join(paths), "RAY_AUTH_MODE": "token"}):
        multiprocessing.forkserver.ensure_running()
    return context


def is_stopped(process_id: int) -> bool:
    """True while a signal has stopped the process."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in ("T", "t")


def _watch_storage(trace: Trace, output: str) -> None:
    """Let storage operations on the output tell the trace."""
    for kind, names in OPERATIONS.items():
        for name in names:
            setattr(kind, name, _storage_operation(getattr(kind, name), trace, output))
    os.link = _file_operation(os.link, trace, output)
    Path.replace = _file_operation(Path.replace, trace, output)  # type: ignore[method-assign]


def _storage_operation(operation: Callable[..., Any], trace: Trace, output: str) -> Callable[..., Any]:
    @functools.wraps(operation)
    def watched(self: FileStorage | S3Storage, key: str, *rest: Any) -> Any:
        if self.url != output:
            return operation(self, key, *rest)
        with trace.around(f"{operation.__name__} {key}"):
            return operation(self, key, *rest)

    return watched


def _file_operation(operation: Callable[..., Any], trace: Trace, output: str) -> Callable[..., Any]:
    """A link or a rename; `after` stands in the trace only when it was done."""

    @functools.wraps(operation)
    def watched(source: Path, target: Path, *rest: Any, **options: Any) -> Any:
        if not str(target).startswith(output):
            return operation(source, target, *rest, **options)
        with trace.around(f"{operation.__name__} {Path(target).relative_to(output)}"):
            return operation(source, target, *rest, **options)

    return watched

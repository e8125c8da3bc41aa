"""Blocks to replicas: runs of neighbouring blocks in a bounded window, retries by class of failure, dead letters."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import GeobatchError, StorageError, TransientError
from geobatch.score.receipts import STAGES, DeadLetter, Ledger, Numbers, Receipt
from geobatch.score.worker import Task

Answer = Receipt | dict[str, Any]
Score = Callable[[Sequence[Task]], list[Answer]]
LONGEST_WAIT_S = 30.0
MOST_TRANSIENT = 20
RUN_S = 1.0
LONGEST_RUN = 256
STRAGGLER_FACTOR = 4.0
STRAGGLER_LEAST_S = 15.0


@dataclass
class Tally:
    """What happened in a run, counted: nothing here grows with the blocks that went well."""

    scored: int = 0
    adopted: int = 0
    reduced: int = 0
    voxels: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    workers: set[str] = field(default_factory=set)
    dead: list[DeadLetter] = field(default_factory=list)
    unspent: int = 0
    retries: Counter[str] = field(default_factory=Counter)

    def count(self, receipt: Receipt) -> None:
        """Add one receipt's figures."""
        self.scored += 1
        self.adopted += receipt.adopted
        self.reduced += receipt.reduction > 0
        self.voxels += receipt.voxels
        self.bytes_read += receipt.bytes_read
        self.bytes_written += sum(shard.size for shard in receipt.shards)
        self.workers.add(receipt.worker)
        for stage, spent in zip(STAGES, receipt.seconds, strict=True):
            self.seconds[stage] += spent


@dataclass(frozen=True)
class Work:
    """What is to be scored.

    Attributes:
        blocks: Sorted block numbers.
        look: Per entry, whether its shards seem to be stored already. bool.
        replace: Arrays to be replaced, for the blocks that are repaired.
        proven: What a receipt says of shards that are stored, for blocks that are not whole; as in `Task`.
    """

    blocks: Numbers
    look: npt.NDArray[np.bool_]
    replace: dict[int, tuple[str, ...]] = field(default_factory=dict)
    proven: dict[int, tuple[bytes, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, blocks: Sequence[int] | Numbers) -> Work:
        """These blocks, of which nothing is stored."""
        numbers = np.sort(np.asarray(blocks, dtype=np.int64))
        return cls(numbers, np.zeros(len(numbers), bool))

    def task(self, position: int) -> Task:
        """The task of one entry."""
        block = int(self.blocks[position])
        return Task(block, bool(self.look[position]), self.replace.get(block, ()), self.proven.get(block, ()))


@dataclass
class _Trouble:
    """What a block has been through: tries that failed by themselves, and tries that were lost."""

    attempts: int = 0
    transient: int = 0


@dataclass
class _Request:
    tasks: list[Task]
    sent: float


class Dispatcher:
    """Scores all work. One bad block stops nothing; wrong storage stops everything.

    Args:
        work: The blocks.
        score: Scores a run of blocks, and blocks until it is done; raises `TransientError` when its replica is lost.
        ledger: Where receipts are recorded.
        window: Requests that replicas take at present, asked again and again.
        attempts: Tries of a block that fails by itself. Losing a replica and storage that does not answer consume
            none, and are tried `MOST_TRANSIENT` times.
        describe: Name and coordinates of a block, for its dead letter.
        on_receipt: Called for each receipt, from one thread.
        limit_s: After so long no block is begun any more; what is on its way is waited for.
    """

    def __init__(
        self,
        work: Work,
        score: Score,
        ledger: Ledger,
        *,
        window: Callable[[], int],
        attempts: int,
        describe: Callable[[int], tuple[str, dict[str, tuple[float, float]]]],
        on_receipt: Callable[[Receipt], None] = lambda receipt: None,
        limit_s: float = math.inf,
    ) -> None:
        self._deadline = time.monotonic() + limit_s
        self.work, self.score, self.ledger = work, score, ledger
        self.window, self.attempts = window, attempts
        self.describe, self.on_receipt = describe, on_receipt
        self.tally = Tally()
        self._next = 0
        self._open = set[int]()
        self._trouble: dict[int, _Trouble] = {}
        self._again: list[tuple[float, int, Task]] = []
        self._order = itertools.count()
        self._in_flight: dict[int, _Request] = {}
        self._doubled = set[int]()
        self._answers: queue.SimpleQueue[tuple[int, list[Answer]]] = queue.SimpleQueue()
        self._requests: queue.SimpleQueue[tuple[int, list[Task]] | None] = queue.SimpleQueue()
        self._callers: list[threading.Thread] = []
        self._block_seconds: deque[float] = deque(maxlen=64)
        self._reduction = 0

    def run(self) -> Tally:
        """Score everything and return the tally.

        Raises:
            StorageError: the output or the input cannot be used at all.
            LeaseError: another run has taken over the output.
            KeyboardInterrupt: passed on after the receipts in hand are stored.
        """
        try:
            while self._unresolved:
                if time.monotonic() > self._deadline:
                    self._stop()
                self._send()
                self._receive()
        finally:
            for _ in self._callers:
                self._requests.put(None)
            # An error that is on its way must not be hidden by one of storage.
            with contextlib.suppress(GeobatchError):
                self.ledger.flush()
        return self.tally

    def _stop(self) -> None:
        """Begin nothing more: the budget is spent."""
        waiting = {task.block for _, _, task in self._again}
        self.tally.unspent += len(self.work.blocks) - self._next + len(waiting)
        self._next, self._again = len(self.work.blocks), []
        self._open -= waiting

    @property
    def _unresolved(self) -> bool:
        return self._next < len(self.work.blocks) or bool(self._open)

    def _send(self) -> None:
        """Fill the window: what waits for another try first, then fresh runs, at last doubles of stragglers."""
        window = max(self.window(), 1)
        while len(self._callers) < window:
            caller = threading.Thread(target=_call, args=(self._requests, self._answers, self.score), daemon=True)
            caller.start()
            self._callers.append(caller)
        while len(self._in_flight) < window and (tasks := self._take(window)):
            number = next(self._order)
            self._in_flight[number] = _Request(tasks, time.monotonic())
            self._open.update(task.block for task in tasks)
            self._requests.put((number, tasks))

    def _take(self, window: int) -> list[Task]:
        if self._again and self._again[0][0] <= time.monotonic():
            return [heapq.heappop(self._again)[2]]
        if self._next < len(self.work.blocks):
            first, last = self._next, min(self._next + self._run_length(window), len(self.work.blocks))
            self._next = last
            tasks = [self.work.task(position) for position in range(first, last)]
            return [dataclasses.replace(task, reduction=self._reduction) for task in tasks]
        return self._straggler()

    def _run_length(self, window: int) -> int:
        """Neighbouring blocks in one request: about a second's worth, and fair shares towards the end."""
        if not self._block_seconds:
            return 1
        length = RUN_S / max(float(np.median(self._block_seconds)), 1e-6)
        share = (len(self.work.blocks) - self._next) / (2 * window)
        return int(max(1, min(length, share, LONGEST_RUN)))

    def _straggler(self) -> list[Task]:
        """The blocks of the oldest request that takes far longer than others did; no try of a block is doubled twice.

        Shards are written conditionally, so the slower of the two changes nothing.
        """
        typical = float(np.median(self._block_seconds)) if self._block_seconds else np.inf
        for request in sorted(self._in_flight.values(), key=lambda request: request.sent):
            late = max(STRAGGLER_FACTOR * typical * len(request.tasks), STRAGGLER_LEAST_S)
            tasks = [task for task in request.tasks if task.block in self._open and task.block not in self._doubled]
            if tasks and time.monotonic() - request.sent > late:
                self._doubled.update(task.block for task in tasks)
                self.tally.retries["straggler"] += len(tasks)
                return [dataclasses.replace(task, look=True) for task in tasks]
        return []

    def _receive(self) -> None:
        """Take one answer, or wait for the next thing that is due; receipts in hand are flushed meanwhile."""
        due = max(self._again[0][0] - time.monotonic(), 0.01) if self._again else 1.0
        try:
            number, answers = self._answers.get(timeout=min(due, 1.0))
        except queue.Empty:
            self.ledger.flush_if_due()
            return
        request = self._in_flight.pop(number)
        if all(isinstance(answer, Receipt) for answer in answers):
            self._block_seconds.append((time.monotonic() - request.sent) / len(answers))
        for task, answer in zip(request.tasks, answers, strict=True):
            if task.block not in self._open:
                continue
            if isinstance(answer, Receipt):
                self._resolved(task.block)
                self.ledger.add(answer)
                self.tally.count(answer)
                self.on_receipt(answer)
            else:
                self._failed(task, answer)

    def _resolved(self, block: int) -> None:
        self._open.discard(block)
        self._doubled.discard(block)
        self._trouble.pop(block, None)

    def _failed(self, task: Task, failure: dict[str, Any]) -> None:
        """Queue the block again, after a wait that grows, or write it off."""
        kind = failure["kind"]
        if kind == "broken":
            raise GeobatchError("a request to a replica failed in a way that no retry mends", measured=failure["error"])
        if kind == "fatal":
            raise StorageError(failure["error"].rstrip("."), where=f"block {self.describe(task.block)[0]}")
        if self._elsewhere(task.block):
            return
        trouble = self._trouble.setdefault(task.block, _Trouble())
        if kind == "memory":
            self._retry(dataclasses.replace(task, reduction=task.reduction + 1), kind, 0.0)
            if self.tally.retries["memory"] > 2:
                self._reduction = max(self._reduction, 1)
            return
        if kind in ("lost", "transient"):
            trouble.transient += 1
        else:
            trouble.attempts += 1
        tries = trouble.attempts + trouble.transient
        if trouble.attempts < self.attempts and trouble.transient < MOST_TRANSIENT:
            # The first loss of a replica waits for nothing: another one is free, or Serve queues the block.
            wait = 0.0 if kind == "lost" and tries == 1 else min(0.5 * 2**tries, LONGEST_WAIT_S)
            self._retry(dataclasses.replace(task, look=True), kind, wait)
            return
        name, region = self.describe(task.block)
        self.tally.dead.append(
            DeadLetter(
                block=name,
                number=task.block,
                region=region,
                attempts=tries,
                error=failure["error"],
                traceback=failure["traceback"],
            )
        )
        self._resolved(task.block)

    def _elsewhere(self, block: int) -> bool:
        """True when a double of the block is still on its way: its answer decides."""
        waiting = any(entry[2].block == block for entry in self._again)
        return waiting or any(task.block == block for r in self._in_flight.values() for task in r.tasks)

    def _retry(self, task: Task, kind: str, wait: float) -> None:
        self.tally.retries[kind] += 1
        self._doubled.discard(task.block)
        heapq.heappush(self._again, (time.monotonic() + wait, next(self._order), task))


def _call(
    requests: queue.SimpleQueue[tuple[int, list[Task]] | None],
    answers: queue.SimpleQueue[tuple[int, list[Answer]]],
    score: Score,
) -> None:
    """Send one run at a time and hand on its answers."""
    while (request := requests.get()) is not None:
        number, tasks = request
        failure: dict[str, Any]
        try:
            answers.put((number, score(tasks)))
            continue
        except TransientError as error:
            failure = {"kind": "lost", "error": str(error), "traceback": ""}
        except Exception as error:
            failure = {"kind": "broken", "error": f"{type(error).__name__}: {error}", "traceback": ""}
        answers.put((number, [failure] * len(tasks)))


def now() -> str:
    """The time of day in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

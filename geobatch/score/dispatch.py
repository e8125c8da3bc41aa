"""Blocks to replicas: a bounded window of requests, retries by class of failure, receipts, dead letters."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from geobatch.errors import GeobatchError, StorageError, TransientError
from geobatch.score.receipts import DeadLetter, Ledger, Receipt
from geobatch.shards import Index

Score = Callable[[Index], dict[str, Any]]
LONGEST_WAIT_S = 30.0
MOST_TRANSIENT = 20


@dataclass
class Tally:
    """What happened in a run, counted."""

    receipts: list[Receipt] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)


@dataclass
class _Work:
    index: Index
    attempts: int = 0
    transient: int = 0


def dispatch(
    pending: Iterable[Index],
    score: Score,
    ledger: Ledger,
    *,
    window: int,
    attempts: int,
    describe: Callable[[Index], dict[str, tuple[float, float]]],
    on_receipt: Callable[[Receipt], None] = lambda receipt: None,
) -> Tally:
    """Score every pending block and return the tally. One bad block stops nothing; wrong storage stops everything.

    Args:
        pending: Block indices.
        score: Scores one block and blocks until it is done; raises `TransientError` when its replica is lost.
        ledger: Where receipts are recorded.
        window: Requests in flight, which should not exceed what the replicas accept.
        attempts: Tries of a block that fails by itself. Losing a replica and storage that does not answer consume
            none, and are tried `MOST_TRANSIENT` times.
        describe: Coordinates of a block, for its dead letter.
        on_receipt: Called for each receipt, from one thread.

    Raises:
        StorageError: the output or the input cannot be used at all.
        KeyboardInterrupt: passed on after the receipts in hand are stored.
    """
    tally = Tally()
    work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[_Work, dict[str, Any]]] = queue.SimpleQueue()
    count = 0
    for index in pending:
        work.put(_Work(index))
        count += 1
    threads = [
        threading.Thread(target=_caller, args=(work, answers, score), daemon=True) for _ in range(min(window, count))
    ]
    for thread in threads:
        thread.start()
    try:
        while len(tally.receipts) + len(tally.dead) < count:
            item, answer = _next(answers, ledger)
            if "receipt" in answer:
                receipt = Receipt.model_validate(answer["receipt"])
                ledger.add(receipt)
                tally.receipts.append(receipt)
                on_receipt(receipt)
            else:
                _failed(item, answer["failure"], work, tally, attempts, describe)
    finally:
        for _ in threads:
            work.put(None)
        # An error that is on its way must not be hidden by one of storage.
        with contextlib.suppress(GeobatchError):
            ledger.flush()
    return tally


def _caller(
    work: queue.SimpleQueue[_Work | None], answers: queue.SimpleQueue[tuple[_Work, dict[str, Any]]], score: Score
) -> None:
    """Send one block at a time and hand on its answer."""
    while (item := work.get()) is not None:
        try:
            answers.put((item, score(item.index)))
        except TransientError as error:
            answers.put((item, {"failure": {"kind": "lost", "error": str(error), "traceback": ""}}))
        except Exception as error:
            answers.put((item, {"failure": {"kind": "broken", "error": repr(error), "traceback": ""}}))


def _next(answers: queue.SimpleQueue[tuple[_Work, dict[str, Any]]], ledger: Ledger) -> tuple[_Work, dict[str, Any]]:
    """The next answer; receipts in hand are flushed while waiting."""
    while True:
        try:
            return answers.get(timeout=1.0)
        except queue.Empty:
            ledger.flush_if_due()


def _failed(
    item: _Work,
    failure: dict[str, Any],
    work: queue.SimpleQueue[_Work | None],
    tally: Tally,
    attempts: int,
    describe: Callable[[Index], dict[str, tuple[float, float]]],
) -> None:
    """Queue the block again, after a wait that grows, or write it off."""
    kind = failure["kind"]
    if kind == "broken":
        raise GeobatchError("a request to a replica failed in a way that no retry mends", measured=failure["error"])
    if kind == "fatal":
        raise StorageError(failure["error"].rstrip("."), where=f"block {'/'.join(map(str, item.index))}")
    if kind in ("lost", "transient"):
        item.transient += 1
    else:
        item.attempts += 1
    if item.attempts < attempts and item.transient < MOST_TRANSIENT:
        tally.retries[kind] += 1
        tries = item.attempts + item.transient
        # The first loss of a replica waits for nothing: another one is free, or Serve queues the block.
        wait = 0.0 if kind == "lost" and tries == 1 else min(0.5 * 2**tries, LONGEST_WAIT_S)
        timer = threading.Timer(wait, work.put, [item])
        timer.daemon = True
        timer.start()
        return
    tally.dead.append(
        DeadLetter(
            block="/".join(map(str, item.index)),
            region=describe(item.index),
            attempts=item.attempts + item.transient,
            error=failure["error"],
            traceback=failure["traceback"],
        )
    )


def now() -> str:
    """The time of day in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

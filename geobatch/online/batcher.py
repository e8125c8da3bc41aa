"""Small requests that come together go through the network together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

WAIT_S = 0.003
"""How long a small request waits for others of its kind while nothing else is to be done."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Request(Generic[Item, Result]):
    item: Item
    kind: Hashable
    answer: Future[Result] = field(default_factory=Future)


class Batcher(Generic[Item, Result]):
    """The one thread that computes, and the requests that wait for it.

    Requests of one kind that wait at the same time are computed as one batch, in the order of arrival by the first of
    them. When a batch fails, its requests are computed one by one, so that one bad request fails alone.

    Args:
        compute: Results of a batch of items, one each, in order.
        most: The most requests of a batch.
    """

    def __init__(self, compute: Callable[[Sequence[Item]], Sequence[Result]], most: int) -> None:
        self._compute, self._most = compute, most
        self._waiting: deque[_Request[Item, Result]] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="predict", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True while requests are computed."""
        return self._thread.is_alive()

    def submit(self, item: Item, kind: Hashable = None) -> Future[Result]:
        """The answer to come; items of an equal `kind` may share a batch, those of kind None share none.

        A future that is cancelled before its turn is never computed.
        """
        request: _Request[Item, Result] = _Request(item, kind)
        with self._changed:
            self._waiting.append(request)
            self._changed.notify()
        return request.answer

    def _run(self) -> None:
        while True:
            batch = [request for request in self._take() if request.answer.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)

    def _take(self) -> list[_Request[Item, Result]]:
        """The first request that waits and those that may share its batch."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            first = self._waiting[0]
            if first.kind is None:
                return [self._waiting.popleft()]
            self._changed.wait_for(lambda: len(self._like(first)) >= self._most, timeout=WAIT_S)
            batch = self._like(first)[: self._most]
            for request in batch:
                self._waiting.remove(request)
            return batch

    def _like(self, first: _Request[Item, Result]) -> list[_Request[Item, Result]]:
        return [request for request in self._waiting if request.kind == first.kind]

    def _answer(self, batch: list[_Request[Item, Result]]) -> None:
        try:
            results = self._compute([request.item for request in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for request in batch:
                self._answer([request])
            return
        for request, result in zip(batch, results, strict=True):
            request.answer.set_result(result)

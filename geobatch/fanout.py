"""One function over many items: as Ray tasks where a cluster runs, or in this process when the work is small."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from geobatch.cluster import keep_freed_memory
from geobatch.errors import GeobatchError, TransientError, UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")
TASKS_PER_CPU = 2


class FanOut(Protocol):
    """Yields position and result of `function(item)` for every item, in the order in which they finish."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item], task_bytes: int
    ) -> Iterator[tuple[int, Result]]:
        """Run every item; one task takes at most `task_bytes` of memory."""
        ...


@contextlib.contextmanager
def open_fanout(*, small: bool, num_cpus: int | None = None) -> Iterator[FanOut]:
    """A way to fan out: the Ray cluster this process is connected to, or a local one that ends with the context.

    Args:
        small: The work is done before a local cluster would have started: without a cluster, stay in this process.
        num_cpus: CPUs of the local cluster, by default all.
    """
    import ray

    if ray.is_initialized():
        yield _on_ray
    elif small:
        yield _in_process
    else:
        # A process started by a cluster must join it, and may not size it.
        joining = "RAY_ADDRESS" in os.environ
        ray.init(num_cpus=None if joining else num_cpus, include_dashboard=False, log_to_driver=False)
        try:
            yield _on_ray
        finally:
            ray.shutdown()


def in_order(
    fanout: FanOut,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    task_bytes: int,
    on_result: Callable[[Item], None] = lambda item: None,
) -> list[Result]:
    """The results of `function` in the order of `items`; `on_result` hears of each item when it is done."""
    results: dict[int, Result] = {}
    for position, result in fanout(function, items, task_bytes):
        results[position] = result
        on_result(items[position])
    return [results[position] for position in range(len(items))]


def _in_process(
    function: Callable[[Item], Result], items: Sequence[Item], task_bytes: int
) -> Iterator[tuple[int, Result]]:
    for position, item in enumerate(items):
        yield position, function(item)


def _on_ray(function: Callable[[Item], Result], items: Sequence[Item], task_bytes: int) -> Iterator[tuple[int, Result]]:
    """Ray tasks, of which only a few per CPU are submitted at a time: the driver holds little, and so does Ray."""
    import ray

    _refuse_too_large(task_bytes)

    # Exported to the cluster once, with whatever `function` carries; a partial itself cannot be a task.
    @ray.remote(num_cpus=1, memory=task_bytes, max_retries=3, retry_exceptions=[TransientError])  # type: ignore[untyped-decorator]
    def run(item: Item) -> Result:
        keep_freed_memory()
        return function(item)

    waiting = iter(enumerate(items))
    running: dict[Any, int] = {}
    try:
        while True:
            window = max(1, TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
            while len(running) < window and (entry := next(waiting, None)) is not None:
                running[run.remote(entry[1])] = entry[0]
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done[0]), _result(done[0])
    finally:
        for reference in running:
            ray.cancel(reference, force=False)


def _result(reference: Any) -> Any:
    """The task's result; an error of ours comes out as it was raised in the task."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, GeobatchError):
            raise error.cause from error
        raise


def _refuse_too_large(task_bytes: int) -> None:
    """Refuse a task that no node of the cluster could ever hold: Ray would wait for such a node for ever."""
    import ray

    largest = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if 0 < largest < task_bytes:
        raise UsageError(
            "one task needs more memory than any node of the cluster has",
            measured=f"{task_bytes / 2**30:.2f} GiB",
            limit=f"{largest / 2**30:.2f} GiB",
            remedy="Give smaller shards, or larger nodes.",
        )

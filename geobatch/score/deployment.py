"""The Serve application of a run: replicas that receive block numbers and return receipts. No voxel crosses Ray."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from geobatch import cluster
from geobatch.errors import GeobatchError, StorageError, TransientError, UsageError
from geobatch.score.dispatch import Answer
from geobatch.score.spec import ScorePlan, ScoreResources
from geobatch.score.warden import Warden
from geobatch.score.worker import BlockScorer, Task

REQUESTS_PER_REPLICA = 2
START_TIMEOUT_S = 300
GROWTH_TIMEOUT_S = 1800
HEARTBEAT_S = 5.0
ABANDONED_S = 30.0
WINDOW_POLL_S = 2.0
DRAIN_POLL_S = 1.0


class Replica:
    """One replica: a `BlockScorer`, whose stages run in a thread each.

    The event loop stays free to answer health checks while a block is on the device. The next block is read while the
    last one is written; with `overlap` also while one is computed.
    """

    def __init__(self, plan: str, output_url: str, overlap: bool) -> None:
        self._scorer = BlockScorer(ScorePlan.model_validate_json(plan), output_url)
        self._scorer.load()
        self._read, self._compute, self._write = (
            ThreadPoolExecutor(1, thread_name_prefix=stage) for stage in ("read", "predict", "write")
        )
        self._compute.submit(self._scorer.warm_up).result()
        # Blocks in memory at once: one read ahead, one on its way out, and with overlap one on the device between them.
        self._room = asyncio.Semaphore(3 if overlap else 2)
        self._reading, self._turns = asyncio.Lock(), Turns(together=overlap)
        threading.Thread(target=_leave_draining_node, name="leave", daemon=True).start()

    async def score(self, tasks: Sequence[Task]) -> list[Answer]:
        """Per task its receipt, or a failure with its class and traceback."""
        return await asyncio.gather(*(self._one(task) for task in tasks))

    async def _one(self, task: Task) -> Answer:
        run = asyncio.get_running_loop().run_in_executor
        async with self._room:
            try:
                async with self._reading, self._turns.moving():
                    adopted = await run(self._read, self._scorer.adopt, task)
                    if adopted:
                        return adopted
                    fetched = await run(self._read, self._scorer.read, task)
                async with self._turns.computing():
                    predicted = await run(self._compute, self._scorer.predict, fetched)
                async with self._turns.moving():
                    return await run(self._write, self._scorer.write, predicted)
            except Exception as error:
                return describe_failure(error)


class Turns:
    """Whether blocks are computed or moved: a network takes every core of a CPU, and what runs beside it delays it.

    Args:
        together: Both may go on at once.
    """

    def __init__(self, *, together: bool) -> None:
        self._together = together
        self._changed = asyncio.Condition()
        self._moving = self._waiting = 0
        self._computing = False

    @contextlib.asynccontextmanager
    async def moving(self) -> AsyncIterator[None]:
        """A context in which a block is read or written; what is ready to be computed goes first."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._together or not (self._computing or self._waiting))
            self._moving += 1
        try:
            yield
        finally:
            async with self._changed:
                self._moving -= 1
                self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def computing(self) -> AsyncIterator[None]:
        """A context in which a block is computed."""
        async with self._changed:
            self._waiting += 1
            try:
                await self._changed.wait_for(lambda: self._together or not (self._moving or self._computing))
                self._computing = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            async with self._changed:
                self._computing = False
                self._changed.notify_all()


def _leave_draining_node() -> None:
    """End this replica soon after its node is announced to go, which gives its blocks back to the driver.

    Serve would keep it at work until another one runs, or until shortly before the node goes.
    """
    while True:
        time.sleep(DRAIN_POLL_S)
        # While the head does not answer nothing is known.
        with contextlib.suppress(Exception):
            if cluster.is_draining():
                os._exit(0)


def describe_failure(error: Exception) -> dict[str, Any]:
    """A failure's class (C3: transient, memory, fatal or poison), message and traceback."""
    message = str(error)
    out_of_memory = isinstance(error, MemoryError) or "out of memory" in message or "alloc_cpu" in message
    if out_of_memory:
        kind = "memory"
    elif isinstance(error, StorageError):
        kind = "fatal"
    elif isinstance(error, TransientError) or (isinstance(error, OSError) and not isinstance(error, GeobatchError)):
        kind = "transient"
    else:
        kind = "poison"
    return {"kind": kind, "error": f"{type(error).__name__}: {message}", "traceback": traceback.format_exc()}


@dataclass
class Pool:
    """The replicas of a run, as its driver sees them."""

    application: str
    handle: Any
    resources: ScoreResources
    _replicas: int = 0
    _gone: TransientError | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    def score(self, tasks: Sequence[Task]) -> list[Answer]:
        """The answers of one replica, in order; raises TransientError when it was lost on the way.

        A replica answers for each block that fails. When the call itself fails there, no other try will do better.
        """
        try:
            answers: list[Answer] = self.handle.score.remote(list(tasks)).result()
        except (ray.exceptions.RayError, RayServeException) as error:
            # Not so a call that was cancelled because the replica ends, whose cause is no `Exception`.
            if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
                told = str(error).splitlines()[-1]
                raise GeobatchError("a replica cannot take its work", measured=told) from error
            raise TransientError(
                "replica was lost", where=f"block {tasks[0].block}", measured=type(error).__name__
            ) from error
        return answers

    def window(self) -> int:
        """Requests that the replicas running now can take; waits for the first ones.

        Raises:
            UsageError: the replicas did not start.
            TransientError: they were removed.
        """
        if not self._replicas:
            self._remove_stale()
            self._replicas = _wait_until_running(self.application, self.resources)
            threading.Thread(target=self._follow, name="window", daemon=True).start()
        if self._gone:
            raise self._gone
        return self._replicas * REQUESTS_PER_REPLICA

    def close(self) -> None:
        """Ask no more how many replicas there are."""
        self._ended.set()

    def _follow(self) -> None:
        """Keep the count of replicas. A thread of its own: Serve may not answer for minutes when the head is lost."""
        while not self._ended.wait(WINDOW_POLL_S):
            try:
                self._replicas = max(_running(self.application), 1)
            except TransientError as error:
                self._gone = error
            except (ray.exceptions.RayError, RayServeException):
                continue

    def _remove_stale(self) -> None:
        """Remove what an earlier run of this output left, whose replicas hold what these need."""
        for name in serve.status().applications:
            if name != self.application and name.startswith(self.application.rpartition("-")[0]):
                serve.delete(name)


@contextlib.contextmanager
def deployed(
    plan: ScorePlan, output_url: str, resources: ScoreResources, replica: type[Any] = Replica
) -> Iterator[Pool]:
    """A context with a pool of replicas, started at its full size; they load their network meanwhile.

    Each run has an application of its own, named by its output. A warden on the cluster removes it when the driver is
    gone, and the next run of the same output does too, once it holds the lease.

    Args:
        plan: The plan every replica works by.
        output_url: Where shards go.
        resources: Replicas and what each reserves.
        replica: What a replica is, made as `Replica` and with its `score`.

    Raises:
        UsageError: the cluster cannot hold the replicas.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _require_room(resources)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
    family = f"score-{hashlib.sha256(output_url.encode()).hexdigest()[:12]}"
    application = f"{family}-{uuid.uuid4().hex[:8]}"
    target = serve.RunTarget(
        target=_deployment(resources, replica).bind(plan.model_dump_json(), output_url, resources.overlaps),
        name=application,
        route_prefix=None,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    with _watched(application):
        try:
            (handle,) = serve.run_many([target], wait_for_applications_running=False)
            with contextlib.closing(Pool(application, handle, resources)) as pool:
                yield pool
        finally:
            serve.delete(application)


def _deployment(resources: ScoreResources, replica: type[Any]) -> Any:
    options: dict[str, Any] = {"num_cpus": resources.cpus, "runtime_env": {"env_vars": cluster.worker_environment()}}
    if resources.gpus:
        options["num_gpus"] = resources.gpus
    size: dict[str, Any] = {"num_replicas": resources.most}
    if resources.least < resources.most:
        size = {
            "autoscaling_config": {
                "min_replicas": resources.least,
                "initial_replicas": resources.most,
                "max_replicas": resources.most,
                # The window keeps two requests with every replica while there is work: below its size the pool grows.
                "target_ongoing_requests": 1.5,
                "upscale_delay_s": 5,
                "downscale_delay_s": 30,
            }
        }
    return serve.deployment(
        replica,
        name="replica",
        max_ongoing_requests=REQUESTS_PER_REPLICA,
        ray_actor_options=options,
        health_check_period_s=5,
        # What a replica that is taken away was about to write is adopted or redone.
        graceful_shutdown_timeout_s=4,
        graceful_shutdown_wait_loop_s=0.2,
        **size,
    )


@contextlib.contextmanager
def _watched(application: str) -> Iterator[None]:
    """A context in which a detached actor hears that this process lives, and cleans up when it does not."""
    actor = ray.remote(num_cpus=0)(Warden)
    # Its own node may be lost; it starts again on another one.
    options = {"name": f"warden-{application}", "namespace": "geobatch", "lifetime": "detached", "max_restarts": -1}
    warden = actor.options(**options).remote(application, ABANDONED_S)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            warden.beat.remote()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        ray.kill(warden)


def _running(application: str) -> int:
    """Replicas that take requests now."""
    status = serve.status().applications.get(application)
    if status is None:
        raise TransientError(
            "the replicas of this run were removed",
            where=application,
            remedy="Run the job again; what is done is kept.",
        )
    deployment = status.deployments.get("replica")
    return deployment.replica_states.get("RUNNING", 0) if deployment else 0


def _wait_until_running(application: str, resources: ScoreResources) -> int:
    """How many replicas run, once there are enough; raises UsageError when they do not come up."""
    timeout_s = GROWTH_TIMEOUT_S if cluster.may_grow() else START_TIMEOUT_S
    deadline = time.monotonic() + timeout_s
    while (running := _running(application)) < resources.least:
        status = serve.status().applications[application]
        if status.status == "DEPLOY_FAILED" or time.monotonic() > deadline:
            raise UsageError(
                "replicas did not start",
                measured=_told(status),
                limit=f"{_asked(resources)} within {timeout_s} s",
                remedy="Lower resources in the job, or use a larger cluster.",
            )
        time.sleep(0.2)
    return running


def _told(status: Any) -> str:
    """What Serve says of an application, in one line; of a failed replica the end of its traceback."""
    deployment = status.deployments.get("replica")
    message = (deployment.message if deployment else "") or status.message
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return f"{status.status}: {lines[-1] if lines else 'no reason given'}"


def _require_room(resources: ScoreResources) -> None:
    """Refuse replicas that a cluster of fixed size, one that this process started, can never hold."""
    if cluster.may_grow():
        return
    offered = ray.cluster_resources()
    asked = {"CPU": resources.cpus * resources.least, "GPU": resources.gpus * resources.least}
    if any(amount > offered.get(name, 0) for name, amount in asked.items()):
        raise UsageError(
            "the cluster cannot hold the replicas",
            measured=", ".join(f"{offered.get(name, 0):g} {name}" for name in asked),
            limit=_asked(resources),
            remedy="Lower replicas, cpus or gpus under resources in the job.",
        )


def _asked(resources: ScoreResources) -> str:
    each = f"{resources.cpus:g} CPU" + (f" and {resources.gpus:g} GPU" if resources.gpus else "")
    return f"{resources.least} replicas of {each}"

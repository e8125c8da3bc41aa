"""The Serve application of a run: replicas that receive block coordinates and return receipts. No voxel crosses Ray."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from geobatch import cluster
from geobatch.errors import GeobatchError, StorageError, TransientError, UsageError
from geobatch.score.spec import ScorePlan, ScoreResources
from geobatch.score.worker import BlockScorer
from geobatch.shards import Index
from geobatch.storage import TRANSIENT

REQUESTS_PER_REPLICA = 2
START_TIMEOUT_S = 300


class Replica:
    """One replica: a `BlockScorer` and the single thread it computes in.

    The event loop stays free to answer health checks while a block is on the device.
    """

    def __init__(self, plan: str, output_url: str) -> None:
        self._scorer = BlockScorer(ScorePlan.model_validate_json(plan), output_url)
        self._scorer.load()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="block")

    async def score(self, index: Index) -> dict[str, Any]:
        """The receipt of a block as `{"receipt": …}`, or `{"failure": …}` with its class and traceback."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, index)

    def _score(self, index: Index) -> dict[str, Any]:
        try:
            return {"receipt": self._scorer.score_block(tuple(index)).model_dump(mode="json")}
        except Exception as error:
            return {"failure": describe_failure(error)}


def describe_failure(error: Exception) -> dict[str, Any]:
    """A failure's class (C3: transient, memory, fatal or poison), message and traceback."""
    message = str(error)
    out_of_memory = isinstance(error, MemoryError) or "out of memory" in message or "alloc_cpu" in message
    if out_of_memory:
        kind = "memory"
    elif isinstance(error, StorageError):
        kind = "fatal"
    elif isinstance(error, TRANSIENT) or (isinstance(error, OSError) and not isinstance(error, GeobatchError)):
        kind = "transient"
    else:
        kind = "poison"
    return {"kind": kind, "error": f"{type(error).__name__}: {message}", "traceback": traceback.format_exc()}


@contextmanager
def deployed(
    plan: ScorePlan, output_url: str, resources: ScoreResources
) -> Iterator[Callable[[Index], dict[str, Any]]]:
    """A context in which a pool of replicas of its full size runs, and a blocking call that scores one block.

    Each run has an application of its own, named by its output, so that one left by a driver that died is found and
    removed by the next run of the same output.

    Args:
        plan: The plan every replica works by.
        output_url: Where shards go.
        resources: Replicas and what each reserves.

    Raises:
        UsageError: the cluster cannot hold the replicas.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _require_room(resources)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
    family = f"score-{hashlib.sha256(output_url.encode()).hexdigest()[:12]}"
    for stale in [name for name in serve.status().applications if name.startswith(family)]:
        serve.delete(stale)
    application = f"{family}-{uuid.uuid4().hex[:8]}"
    options: dict[str, Any] = {"num_cpus": resources.cpus, "runtime_env": {"env_vars": cluster.WORKER_ENVIRONMENT}}
    if resources.gpus:
        options["num_gpus"] = resources.gpus
    deployment = serve.deployment(
        Replica,
        name="replica",
        num_replicas=resources.replicas,
        max_ongoing_requests=REQUESTS_PER_REPLICA,
        ray_actor_options=options,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.2,
    )
    target = serve.RunTarget(
        target=deployment.bind(plan.model_dump_json(), output_url),
        name=application,
        route_prefix=None,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    try:
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        _wait_until_running(application, resources)
        yield partial(_score_one, handle)
    finally:
        serve.delete(application)


def _score_one(handle: Any, index: Index) -> dict[str, Any]:
    """The answer of a replica; raises TransientError when it was lost on the way."""
    try:
        answer: dict[str, Any] = handle.score.remote(index).result()
    except (ray.exceptions.RayError, RayServeException) as error:
        raise TransientError("replica was lost", where=f"block {index}", measured=type(error).__name__) from error
    return answer


def _wait_until_running(application: str, resources: ScoreResources) -> None:
    """Return when every replica runs; raise UsageError when they do not come up."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (status := serve.status().applications[application]).status != "RUNNING":
        if status.status == "DEPLOY_FAILED" or time.monotonic() > deadline:
            raise UsageError(
                "replicas did not start",
                measured=f"{status.status} {status.message}".strip(),
                limit=f"{_asked(resources)} within {START_TIMEOUT_S} s",
                remedy="Lower resources in the job, or use a larger cluster.",
            )
        time.sleep(0.2)


def _require_room(resources: ScoreResources) -> None:
    """Refuse replicas that a cluster of fixed size, one that this process started, can never hold."""
    if cluster.may_grow():
        return
    offered = ray.cluster_resources()
    asked = {"CPU": resources.cpus * resources.replicas, "GPU": resources.gpus * resources.replicas}
    if any(amount > offered.get(name, 0) for name, amount in asked.items()):
        raise UsageError(
            "the cluster cannot hold the replicas",
            measured=", ".join(f"{offered.get(name, 0):g} {name}" for name in asked),
            limit=_asked(resources),
            remedy="Lower replicas, cpus or gpus under resources in the job.",
        )


def _asked(resources: ScoreResources) -> str:
    each = f"{resources.cpus:g} CPU" + (f" and {resources.gpus:g} GPU" if resources.gpus else "")
    return f"{resources.replicas} replicas of {each}"

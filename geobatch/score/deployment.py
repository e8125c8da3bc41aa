"""The Serve application of a run: replicas that receive block coordinates and return receipts. No voxel crosses Ray."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve

from geobatch import cluster
from geobatch.errors import GeobatchError, StorageError, TransientError
from geobatch.score.spec import ScorePlan, ScoreResources
from geobatch.score.worker import BlockScorer
from geobatch.shards import Index

REQUESTS_PER_REPLICA = 2
START_TIMEOUT_S = 300


class Replica:
    """One replica: a `BlockScorer` and the single thread it computes in.

    The event loop stays free to answer health checks while a block is on the device.
    """

    def __init__(self, plan: str, output_url: str) -> None:
        self._scorer = BlockScorer(ScorePlan.model_validate_json(plan), output_url)
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
    elif isinstance(error, TransientError) or (isinstance(error, OSError) and not isinstance(error, GeobatchError)):
        kind = "transient"
    else:
        kind = "poison"
    return {"kind": kind, "error": f"{type(error).__name__}: {message}", "traceback": traceback.format_exc()}


@contextmanager
def deployed(
    application: str, plan: ScorePlan, output_url: str, resources: ScoreResources
) -> Iterator[Callable[[Index], dict[str, Any]]]:
    """A context in which a pool of replicas of its full size runs, and a blocking call that scores one block.

    Args:
        application: Name of the Serve application, one per run.
        plan: The plan every replica works by.
        output_url: Where shards go.
        resources: Replicas and what each reserves.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
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
    )
    handle = serve.run(
        deployment.bind(plan.model_dump_json(), output_url),
        name=application,
        route_prefix=None,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )

    def score(index: Index) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = handle.score.remote(index).result()
        except ray.exceptions.RayError as error:
            raise TransientError("replica was lost", where=f"block {index}", measured=type(error).__name__) from error
        return answer

    try:
        yield score
    finally:
        serve.delete(application)

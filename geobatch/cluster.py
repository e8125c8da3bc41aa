"""The Ray cluster a job runs on."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

OBJECT_STORE_BYTES = 256 * 2**20
# glibc returns and re-faults the pages of every large tensor by default, which costs half of the time on a CPU.
# Credentials are not among these: nodes have their own, and workers of a local cluster inherit them.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_ARENA_MAX": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def connect(cpus: int | None = None) -> None:
    """Join the cluster that `RAY_ADDRESS` names, or start one on this machine; nothing when already connected.

    No voxel crosses Ray, so a local cluster gets a small object store.

    Args:
        cpus: CPUs a local cluster should offer at least; the machine's own count when that is more.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers give way to everything else by default (niceness 15), its own daemons and ours included.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {
            "num_cpus": max(cpus or 1, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "address": "local",
        }
    # Ray's own handler ends the process three seconds after SIGTERM, whatever is still to be put away.
    at_termination = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    if at_termination is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, at_termination)


def may_grow() -> bool:
    """True on a cluster that was there before this process, whose autoscaler may add nodes."""
    return bool(os.environ.get("RAY_ADDRESS"))


def is_draining() -> bool:
    """True in a worker whose node is about to be taken away."""
    import ray

    # The place where Ray Train asks too; there is no public one.
    return ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()


def disconnect() -> None:
    """Leave the cluster; one that `connect` started ends with it, Serve included."""
    import ray

    if ray.is_initialized():
        ray.shutdown()

"""The Ray cluster a job runs on."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

OBJECT_STORE_BYTES = 256 * 2**20
# Memory is kept for the next block: given back and faulted in again, the pages of large tensors cost half of the time
# on a CPU. jemalloc keeps them apart from everything smaller, which in glibc's heap comes to lie between them until
# they no longer fit (docs/decisions/0011-allocator.md).
JEMALLOC = "dirty_decay_ms:-1,muzzy_decay_ms:-1,narenas:1,oversize_threshold:67108864"
GLIBC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_ARENA_MAX": "1",
}
# M_MMAP_MAX, M_TRIM_THRESHOLD and M_ARENA_MAX of malloc.h: the same for tasks, which come to workers that run already.
MALLOPT = {-4: 0, -1: 2**31 - 1, -8: 1}


def worker_environment() -> dict[str, str]:
    """Environment variables of a process that computes: how it allocates memory, and what Ray leaves alone in it.

    Ray's wheel for Linux brings jemalloc along; where it does not lie at the same place, glibc's settings hold.
    Credentials are not among these: nodes have their own, and workers of a local cluster inherit them.
    """
    environment = {**GLIBC, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    spec = importlib.util.find_spec("ray")
    library = Path(spec.origin).parent / "core" / "libjemalloc.so" if spec and spec.origin else None
    if library and library.exists():
        environment |= {"LD_PRELOAD": str(library), "MALLOC_CONF": JEMALLOC}
    return environment


def keep_freed_memory() -> None:
    """In a worker of tasks, which is already running: glibc keeps what is freed for the next task, in one heap.

    Pages that are new to each task cost a quarter of its time. Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError):
        for option, value in MALLOPT.items():
            ctypes.CDLL(None).mallopt(option, value)


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
    """True in a worker whose node is about to be taken away; never in a process that is on no cluster."""
    import ray

    # Asking for its context would start a cluster.
    if not ray.is_initialized():
        return False
    # The place where Ray Train asks too; there is no public one.
    return ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()


def disconnect() -> None:
    """Leave the cluster; one that `connect` started ends with it, Serve included."""
    import ray

    if ray.is_initialized():
        ray.shutdown()

"""The Serve application of a served bundle: replicas behind one HTTP proxy, until the command ends."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray import serve

from geobatch import cluster
from geobatch.errors import UsageError
from geobatch.models.bundle import load_bundle
from geobatch.online.engine import require_servable
from geobatch.online.memory import REQUESTS_PER_REPLICA, share_memory
from geobatch.online.spec import ServeSettings

APPLICATION = "online"
START_TIMEOUT_S = 300
WAITING_REQUESTS = 256
"""Requests that wait for a replica; further ones are answered 503."""
QUIET: dict[str, Any] = {"log_level": "WARNING", "enable_access_log": False}


@serve.ingress()
class OnlineReplica:
    """One replica: the service and its ASGI application. It exists once its network is loaded."""

    def __init__(self, settings: str) -> None:
        from geobatch.online.app import build_app
        from geobatch.online.service import Service

        parsed = ServeSettings.model_validate_json(settings)
        self._service = Service(parsed)
        self._built = build_app(self._service, parsed.token_sha256)

    def __serve_build_asgi_app__(self) -> Any:
        """The application that Serve puts behind its proxy."""
        return self._built

    def check_health(self) -> None:
        """Serve replaces this replica when it raises: requests would wait for ever."""
        if not self._service.ready:
            raise RuntimeError("the thread that computes has ended")


def serve_bundle(settings: ServeSettings, on_ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve a bundle until interrupted; then nothing of it is left.

    Args:
        settings: What to serve, where and to whom.
        on_ready: Called with the URL once requests are answered.

    Raises:
        UsageError: memory, the cluster or the port cannot hold it.
    """
    bundle = load_bundle(settings.bundle)
    require_servable(bundle.spec)
    share_memory(bundle, settings.memory_bytes, settings.max_voxels)
    with contextlib.suppress(KeyboardInterrupt), _running(settings):
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_ready(f"http://{host}:{settings.port}")
        while True:
            time.sleep(1)


@contextlib.contextmanager
def _running(settings: ServeSettings) -> Iterator[None]:
    """A context in which the application answers."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if not cluster.may_grow():
        _require_free_port(settings.host, settings.port)
    cluster.connect(cpus=math.ceil(settings.cpus * settings.most_replicas))
    _require_gpus(settings)
    _require_idle_serve()
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": settings.port},
            logging_config=QUIET,
        )
        target = serve.RunTarget(
            target=_deployment(settings).bind(settings.model_dump_json()),
            name=APPLICATION,
            route_prefix="/",
            logging_config=QUIET,
        )
        serve.run_many([target], wait_for_applications_running=False)
        _wait_until_running(settings)
        yield
    finally:
        _end()


def _end() -> None:
    """Remove the application, and with it a cluster of our own, or Serve where no run has come to use it too."""
    if APPLICATION in serve.status().applications:
        serve.delete(APPLICATION)
    if not cluster.may_grow():
        cluster.disconnect()
    elif not serve.status().applications:
        serve.shutdown()


def _deployment(settings: ServeSettings) -> Any:
    options: dict[str, Any] = {"num_cpus": settings.cpus, "runtime_env": {"env_vars": cluster.worker_environment()}}
    if settings.gpus:
        options["num_gpus"] = settings.gpus
    scale: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.most_replicas > settings.replicas:
        bounds = {"min_replicas": settings.replicas, "max_replicas": settings.most_replicas}
        scale = {"autoscaling_config": {**bounds, "target_ongoing_requests": 2}}
    return serve.deployment(
        OnlineReplica,
        name="replica",
        max_ongoing_requests=REQUESTS_PER_REPLICA,
        max_queued_requests=WAITING_REQUESTS,
        ray_actor_options=options,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.2,
        **scale,
    )


def _wait_until_running(settings: ServeSettings) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while (status := serve.status().applications[APPLICATION]).status != "RUNNING":
        if status.status == "DEPLOY_FAILED" or time.monotonic() > deadline:
            raise UsageError(
                "replicas did not start",
                measured=f"{status.status} {status.message}".strip(),
                limit=f"{settings.replicas} replicas within {START_TIMEOUT_S} s",
                remedy="Lower --replicas, --cpus or --gpus, or use a larger cluster.",
            )
        time.sleep(0.2)


def _require_gpus(settings: ServeSettings) -> None:
    """Refuse GPUs that a cluster of fixed size, one that this process started, can never give."""
    asked, offered = settings.gpus * settings.most_replicas, ray.cluster_resources().get("GPU", 0)
    if asked > offered and not cluster.may_grow():
        raise UsageError(
            "the cluster cannot hold the replicas",
            measured=f"{offered:g} GPU",
            limit=f"{settings.most_replicas} replicas of {settings.gpus:g} GPU",
            remedy="Lower --replicas or --gpus.",
        )


def _require_idle_serve() -> None:
    """Make room for our proxy: Serve takes its address when it starts, so that one in use cannot be joined."""
    applications = list(serve.status().applications)
    if applications:
        raise UsageError(
            "Ray Serve runs other applications on this cluster, behind an address of its own",
            measured=", ".join(applications),
            remedy="Wait for them to end, run `serve shutdown` where one was left behind, or use another cluster.",
        )
    serve.shutdown()


def _require_free_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before anything starts."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UsageError(
            "address cannot be listened on",
            where="--host, --port",
            measured=f"{host}:{port}: {error.strerror or error}",
            remedy="Give another --port, or end what listens there.",
        ) from error

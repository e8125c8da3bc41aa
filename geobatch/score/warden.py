"""The actor that cleans up after a driver. A module of its own, so that its process loads neither torch nor surveys."""

from __future__ import annotations

import contextlib
import threading
import time

POLL_S = 1.0
TRIES = 60


class Warden:
    """Removes a run's Serve application when its driver is gone. Detached, since what a driver owns dies with it.

    Args:
        application: The application.
        abandoned_s: How long the driver may be silent.
    """

    def __init__(self, application: str, abandoned_s: float) -> None:
        self._application, self._abandoned_s = application, abandoned_s
        self._heard = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def beat(self) -> None:
        """The driver lives."""
        self._heard = time.monotonic()

    def _watch(self) -> None:
        import ray

        while time.monotonic() - self._heard < self._abandoned_s:
            time.sleep(POLL_S)
        # Here and not at the top: importing Serve takes seconds, and this is rarely needed.
        from ray import serve

        for _ in range(TRIES):
            # The controller may be on its way to another node; where Serve itself is gone, so is the application.
            with contextlib.suppress(Exception):
                serve.delete(self._application)
                break
            time.sleep(POLL_S)
        ray.kill(ray.get_runtime_context().current_actor)

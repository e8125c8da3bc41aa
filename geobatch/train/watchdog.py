"""A worker that does not go on ends itself, so that Ray starts it again from the last checkpoint.

Ray asks whether a worker's process answers, which a thread stuck in a driver, a lock or a collective does not prevent.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

from geobatch.storage import patience

FIRST_S = 600.0
"""Seconds to the first step, which may compile, connect and fill caches."""
LONGER = 10.0
"""Times the longest step so far, which no step takes."""
EXIT_CODE = 70


class Watchdog:
    """Ends the process when nothing is heard of its work for too long, after a trace of every thread on stderr.

    Args:
        limit_s: Silence that is allowed; longer while steps are longer, see `LONGER` and `FIRST_S`.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._heard = time.monotonic()
        self._longest: float | None = None
        self._paused = False
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="geobatch-watchdog").start()

    def hear(self) -> None:
        """Work goes on."""
        now = time.monotonic()
        # The first stretch is the start, not a step.
        self._longest = 0.0 if self._longest is None else max(self._longest, now - self._heard)
        self._heard = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context of work that has time limits of its own, such as storing a checkpoint."""
        self._paused = True
        try:
            yield
        finally:
            self._heard = time.monotonic()
            self._paused = False

    def end(self) -> None:
        """Watch no more."""
        self._ended.set()

    @property
    def limit_s(self) -> float:
        """Silence that is allowed now."""
        if self._longest is None:
            return max(self._limit_s, FIRST_S)
        return max(self._limit_s, LONGER * self._longest)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._limit_s / 4)):
            # Who waits for storage to answer again works, and gives up by itself.
            silence_s = time.monotonic() - max(self._heard, patience.waited_at())
            if not self._paused and silence_s > self.limit_s:
                print(
                    f"no step for {silence_s:.0f} s, {self.limit_s:.0f} s allowed: ending", file=sys.stderr, flush=True
                )
                faulthandler.dump_traceback(sys.stderr)
                os._exit(EXIT_CODE)

"""How far training is: told by the first worker as a small object beside the checkpoints, read by who is watching.

Going through the object store, it works the same from a laptop, from a cluster's head and after a reconnection.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from geobatch.errors import GeobatchError
from geobatch.storage import open_storage

PROGRESS = "progress.json"
INTERVAL_S = 3.0
_TOLD = ("pixel_accuracy", "mean_class_accuracy", "rmse", "mae", "r2")

OnProgress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and the last epoch's figures as one line or an empty string."""


def epoch_line(figures: dict[str, Any], epochs: int) -> str:
    """Return an epoch's figures as one line for a log."""
    line = f"epoch {figures['epoch']} of {epochs}: loss {figures['loss']:.4f}"
    validation = figures["validation"]
    for key in _TOLD:
        if key in validation:
            line += f", {key.replace('_', ' ')} {_text(validation[key])}"
    return line + "".join(f", {name} F1 {_text(c['f1'])}" for name, c in validation.get("classes", {}).items())


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


class Teller:
    """Writes how far the run is, at most every three seconds unless there is news of an epoch."""

    def __init__(self, url: str, run: str, steps: int) -> None:
        self._url, self._run, self._steps = url, run, steps
        self._told_at = 0.0
        self._line = ""

    def tell(self, step: int, line: str = "") -> None:
        """Record that `step` steps are done; `line` holds an epoch's figures."""
        now = time.monotonic()
        if not line and now - self._told_at < INTERVAL_S:
            return
        self._told_at, self._line = now, line or self._line
        document = {"run": self._run, "step": step, "steps": self._steps, "line": self._line}
        # Telling must never stop training.
        with contextlib.suppress(GeobatchError):
            open_storage(self._url).put(PROGRESS, json.dumps(document).encode())


@contextlib.contextmanager
def watched(url: str, run: str, on_progress: OnProgress) -> Iterator[None]:
    """A context during which `on_progress` hears what the run's `Teller` writes under `url`."""
    ended = threading.Event()

    def watch() -> None:
        last: object = None
        while not ended.wait(1.0):
            with contextlib.suppress(GeobatchError, ValueError):
                told = json.loads(open_storage(url).get(PROGRESS))
                if told.get("run") == run and told != last:
                    last = told
                    on_progress(told["step"], told["steps"], told["line"])

    thread = threading.Thread(target=watch, daemon=True, name="watch-training")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)

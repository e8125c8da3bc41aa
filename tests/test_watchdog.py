"""A worker that hangs ends itself; one that works, waits for storage or stores a checkpoint does not."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from geobatch.train.watchdog import EXIT_CODE, FIRST_S, Watchdog

PROGRAM = """
import threading, time
from geobatch.train.watchdog import Watchdog
watchdog = Watchdog(1.0)
watchdog.hear()
for _ in range(3):
    time.sleep(0.05)
    watchdog.hear()
{then}
"""


def ended(then: str) -> tuple[int, str, float]:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(then=then)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr, time.monotonic() - began


def test_process_whose_work_hangs_ends_and_tells_where_it_hung() -> None:
    code, told, _ = ended("def stuck_here():\n    threading.Event().wait(50)\nstuck_here()")
    assert code == EXIT_CODE
    assert "no step for" in told and "stuck_here" in told


def test_pause_is_no_hang_and_what_follows_it_is_watched() -> None:
    code, _, took = ended("with watchdog.paused():\n    time.sleep(3)\ntime.sleep(50)")
    assert code == EXIT_CODE and took > 3.9
    assert ended("with watchdog.paused():\n    time.sleep(2)")[0] == 0


def test_who_waits_for_storage_is_not_hung() -> None:
    waiting = "from geobatch.storage.patience import Patience\np = Patience('x')\n"
    assert ended(f"{waiting}for _ in range(8):\n    p.after_failure(OSError()); time.sleep(0.4)")[0] == 0


def test_limit_follows_the_start_and_slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("geobatch.train.watchdog.time.monotonic", lambda: now[0])
    watchdog = Watchdog(45.0)
    watchdog.end()
    assert watchdog.limit_s == FIRST_S
    now[0] += 120
    watchdog.hear()
    assert watchdog.limit_s == 45
    now[0] += 20
    watchdog.hear()
    assert watchdog.limit_s == 200

"""A parent process that watches a command, since a driver whose cluster head is gone is ended without an exception.

The command runs in a child, which says how it ended through a pipe. A child that ends without a word was killed, by
Ray's core or from outside, and its parent says so. When the parent is killed, the child ends as if interrupted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

VERDICT_FD = "GEOBATCH_VERDICT_FD"
PARENT_FD = "GEOBATCH_PARENT_FD"


def is_watched() -> bool:
    """True in a child of `watch`."""
    return VERDICT_FD in os.environ


def watch(arguments: Sequence[str], tell: Callable[[str], None]) -> int:
    """The exit code of `geobatch` with these arguments, run in a child.

    Args:
        arguments: The command line without the program.
        tell: Called with a sentence when the child ended without saying how.
    """
    verdict, verdict_end = os.pipe()
    parent_end, alive = os.pipe()
    environment = {**os.environ, VERDICT_FD: str(verdict_end), PARENT_FD: str(parent_end)}
    child = subprocess.Popen(
        [sys.executable, "-m", "geobatch.cli", *arguments], env=environment, pass_fds=(verdict_end, parent_end)
    )
    os.close(verdict_end)
    os.close(parent_end)
    # A terminal sends the interrupt to both; the child acts on it.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    said = os.read(verdict, 16)
    os.close(alive)
    if said:
        return int(said)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    tell(
        f"The driver ended without a word ({how}): it was killed, or the head of its cluster is gone. "
        "What is done is kept: run the same command to go on."
    )
    return 1


def heed_parent() -> None:
    """In a child of `watch`: end as if interrupted when the parent is gone."""
    parent = int(os.environ[PARENT_FD])

    def wait() -> None:
        os.read(parent, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def say(code: int) -> None:
    """In a child of `watch`: tell the parent the exit code."""
    if is_watched():
        with contextlib.suppress(OSError):
            os.write(int(os.environ[VERDICT_FD]), str(code).encode())

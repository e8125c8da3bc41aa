"""What reading a bad file may cost: two seconds, and memory in proportion to the file."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT_S = 2.0
TIMES_THE_FILE = 4
# Whatever the file: one buffer of 1 MiB over a ranged read, and the metadata and receipts of a small survey.
BASE_BYTES = 2 * 2**20
# What libraries in C take beside Python is seen from outside alone, as pages of the whole process, whose allocators and
# their pools per thread grow by megabytes.
PAGES_BYTES = 8 * 2**20
_PEAK = Path("/proc/self/clear_refs")


def bounded(function: Callable[[], Any], size_bytes: int) -> Any:
    """The result of reading a file of that size, within the limits of processor time and memory.

    What Python and NumPy allocate is traced, from nothing to the highest; what the process takes in all is what the
    kernel tells, on Linux. Imports count, so that a sound file is read first.
    """
    tracemalloc.start()
    resident = _restart_peak()
    start = time.process_time()
    try:
        return function()
    finally:
        seconds, traced = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        grown = _resident("VmHWM") - resident if resident else 0
        tracemalloc.stop()
        assert seconds < LIMIT_S
        assert traced < TIMES_THE_FILE * size_bytes + BASE_BYTES
        assert grown < TIMES_THE_FILE * size_bytes + PAGES_BYTES


def _restart_peak() -> int:
    """Bytes of the process in memory now, from which its peak is counted anew; 0 where the kernel does not tell."""
    if not _PEAK.exists():
        return 0
    _PEAK.write_text("5")
    return _resident("VmRSS")


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

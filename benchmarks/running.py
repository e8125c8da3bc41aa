"""Running a peer as a process of its own, its memory watched from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from common import HERE, ROOT
from order import Order

from geobatch import cluster

WATCH_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Run:
    """What a peer answered, and the peak resident memory of a computing process and of all its processes at once."""

    figures: dict[str, Any]
    peak_bytes: int
    tree_peak_bytes: int


def run_peer(python: Path, script: Path, order: Order, path: Path, cores: Sequence[int] = ()) -> Run:
    """Run a peer to its end.

    Args:
        python: The Python of its environment.
        script: The peer.
        order: What it is asked to do.
        path: Where the order is stored for it.
        cores: The only ones it may use; all when none is named.
    """
    settings = {
        **os.environ,
        **cluster.worker_environment(),
        "OMP_NUM_THREADS": str(order.threads),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [str(python), str(script), order.write(str(path))]
    if cores:
        command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True) as process:
        watch = _Watch(process.pid)
        watch.start()
        output, _ = process.communicate()
        watch.stop()
    if process.returncode:
        sys.exit(f"{script.name} failed with exit code {process.returncode}")
    figures = json.loads(output.splitlines()[-1])
    return Run(figures, watch.peak(figures.get("processes", [process.pid])), watch.tree_peak)


@dataclass
class _Watch:
    """A thread that notes the peak memory of a process and of all that it started."""

    root: int
    tree_peak: int = 0
    peaks: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def peak(self, processes: list[int]) -> int:
        """The highest peak of these processes."""
        return max(self.peaks.get(process, 0) for process in processes)

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_INTERVAL_S):
            now = [_memory(process) for process in _family(self.root)]
            for process, peak, _ in now:
                # One that has just ended says 0.
                self.peaks[process] = max(self.peaks.get(process, 0), peak)
            self.tree_peak = max(self.tree_peak, sum(held for *_, held in now))


def _family(root: int) -> list[int]:
    try:
        return [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _memory(process: int) -> tuple[int, int, int]:
    """The process, its peak resident memory so far and what it holds now, in bytes."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return process, 0, 0
    found = dict(line.split(":", 1) for line in lines)
    peak, held = (int(found.get(name, "0 kB").split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))
    return process, peak, held

"""Memory of replica and driver does not follow the size of the survey, and stays under what the plan projects."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from raylets import REPOSITORY
from surveys import random_volume, write_bundle, write_survey

from geobatch import cluster
from geobatch.job import forecast, parse_job
from geobatch.score.deployment import Replica, deployed
from geobatch.score.dispatch import Answer
from geobatch.score.run import Pool, score
from geobatch.score.spec import ScorePlan, ScoreResources
from geobatch.score.worker import BlockScorer, Task

GROWTH_LIMIT = 1.10
LEAST_BLOCKS = 3


@dataclasses.dataclass
class Memory:
    """Resident bytes of one process: before the first block, and the most there were from then on."""

    idle: int
    peak: int

    @property
    def above_idle(self) -> int:
        return self.peak - self.idle


class Watch:
    """Resident memory of processes from now on; the kernel keeps the peaks."""

    def __init__(self, processes: dict[str, int]) -> None:
        self._processes = processes
        self._idle = {}
        for name, process_id in processes.items():
            Path(f"/proc/{process_id}/clear_refs").write_text("5")
            self._idle[name] = _resident(process_id, "VmRSS")

    def read(self) -> dict[str, Memory]:
        return {name: Memory(self._idle[name], _resident(p, "VmHWM")) for name, p in self._processes.items()}


def _resident(process_id: int, figure: str) -> int:
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith(f"{figure}:")]
    return int(kibibytes) * 1024


class InThisProcess:
    """A pool of this process alone, its network loaded."""

    def __init__(self, plan: ScorePlan, output_url: str) -> None:
        self._scorer = BlockScorer(plan, output_url)
        self._scorer.load()

    def score(self, tasks: Sequence[Task]) -> list[Answer]:
        return [self._scorer.score_block(task) for task in tasks]

    def window(self) -> int:
        return 1


class ColdReplica(Replica):
    """A replica whose network has not run when it is ready: what that holds then counts from the first block on."""

    def __init__(self, plan: str, output_url: str, overlap: bool) -> None:
        BlockScorer.warm_up = lambda _: None  # type: ignore[method-assign]
        super().__init__(plan, output_url, overlap)


def measure(document: str, on_ray: bool) -> dict[str, Any]:
    """Run a job in this process, and return the memory of driver and replica while blocks are scored."""
    found: dict[str, Memory] = {}

    @contextlib.contextmanager
    def watched(plan: ScorePlan, output_url: str, resources: ScoreResources) -> Iterator[Pool]:
        with contextlib.ExitStack() as stack:
            pool: Pool = (
                stack.enter_context(deployed(plan, output_url, resources, ColdReplica))
                if on_ray
                else InThisProcess(plan, output_url)
            )
            pool.window()
            watch = Watch({"driver": os.getpid()} | ({"replica": _replica()} if on_ray else {}))
            yield pool
            found.update(watch.read())

    if on_ray:
        cluster.connect()
    summary = score(parse_job(json.loads(document)), open_pool=watched)
    assert summary["blocks"]["scored"] == summary["blocks"]["wanted"]
    return {name: dataclasses.asdict(memory) for name, memory in found.items()}


def _replica() -> int:
    """The id of the replica's process, of which there is one."""
    (found,) = [
        p.pid for p in psutil.Process().children(recursive=True) if "ServeReplica:score-" in " ".join(p.cmdline())
    ]
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, bool], tuple[dict[str, Memory], int]]:
    """Memory by process, and the projected bytes of a replica, for a survey of a multiple of the least size."""
    folder = tmp_path_factory.mktemp("memory")

    def run(multiple: int, on_ray: bool) -> tuple[dict[str, Memory], int]:
        survey = str(folder / f"survey-{multiple}")
        if not Path(survey).exists():
            volume = write_survey(survey, random_volume((32 * LEAST_BLOCKS * multiple, 64, 64), dead=0))
            if multiple == 1:
                write_bundle(str(folder / "bundle"), volume)
        job = {
            "job": "score",
            "survey": survey,
            "bundle": str(folder / "bundle"),
            "output": str(folder / f"scored-{multiple}-{on_ray}"),
            "statistics": "bundle",
            "shard": [32, 64, 64],
            "chunk": [32, 32, 32],
            "patch": [52, 64, 64],
            "resources": {"replicas": 1, "cpus": 1},
        }
        script = f"import json, test_memory; print(json.dumps(test_memory.measure({json.dumps(job)!r}, {on_ray})))"
        folders = [REPOSITORY, REPOSITORY / "tests", REPOSITORY / "tests/chaos"]
        command = [sys.executable, "-W", "ignore", "-c", script]
        # As in a replica: the line in a plain process allocates with the same library.
        environment = os.environ | ({} if on_ray else cluster.worker_environment())
        environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=600, cwd=REPOSITORY, env=environment
        )
        assert done.returncode == 0, done.stderr
        found = {name: Memory(**figures) for name, figures in json.loads(done.stdout.splitlines()[-1]).items()}
        return found, int(forecast(parse_job(job))["memory_per_replica"]["projected_gib"] * 2**30)

    return run


def require_bounded(figures: dict[int, dict[str, Memory]], projected: int, scorer: str) -> None:
    """The sum over the processes grows by a tenth at most, and the one that scores stays under the projection."""
    least = sum(memory.above_idle for memory in figures[1].values())
    for multiple, processes in figures.items():
        told = ", ".join(
            f"{name} {m.above_idle / 2**20:.1f} MiB above {m.idle / 2**20:.1f}" for name, m in processes.items()
        )
        resident = processes[scorer].peak
        print(f"\n{multiple:2}x: {told}; {scorer} {resident / 2**20:.0f} of {projected / 2**20:.0f} MiB projected")
        assert sum(memory.above_idle for memory in processes.values()) <= GROWTH_LIMIT * least
        assert resident <= projected


@pytest.mark.chaos
def test_memory_of_the_line_does_not_follow_the_survey(measured: Any) -> None:
    figures = {multiple: measured(multiple, False) for multiple in (1, 4)}
    require_bounded({multiple: memory for multiple, (memory, _) in figures.items()}, figures[1][1], "driver")


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_memory_of_replica_and_driver_does_not_follow_the_survey(measured: Any) -> None:
    figures = {multiple: measured(multiple, True) for multiple in (1, 4, 16)}
    require_bounded({multiple: memory for multiple, (memory, _) in figures.items()}, figures[1][1], "replica")

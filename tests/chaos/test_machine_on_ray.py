"""Sequences of runs, kills, damages and repairs on a real Ray cluster, of which drivers, replicas and raylets die."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import rule
from line import Line
from raylets import Cluster, Machine, cluster, kill, wait_until
from scene import Scene, shards
from sequences import ABSENT, REGION, Part, Survey, require_clean
from struck import Outcome, Run

RAYLETS = 2
REPLICAS = st.integers(1, RAYLETS)
# How many more shards than before are stored when a process is struck; a block has two. At 0 its replicas are starting.
MORE = st.integers(0, 5)
DRIVER, DRIVER_AT_ONCE, REPLICA, RAYLET = "driver", "driver, its job run again at once", "replica", "raylet"
VICTIMS = (DRIVER, DRIVER_AT_ONCE, REPLICA, RAYLET)
POLL_S = 0.002
# The replicas of a killed driver go sooner than they would.
ABANDONED_S = {"geobatch.score.deployment.ABANDONED_S": 5.0, "geobatch.score.deployment.HEARTBEAT_S": 1.0}


class SurveyOnRay(Survey):
    """Every run is a process that joins the cluster and has its replicas there.

    Attributes:
        cluster: The cluster of all sequences.
        struck: How often each kind of process was killed among blocks.
    """

    cluster: Cluster
    struck: Counter[str]

    def open_line(self, folder: Path) -> Line:
        return Line(folder, self.cluster.driver_environment, settings=ABANDONED_S, on_cluster=True)

    def wait(self, run: Run) -> Outcome:
        outcome = run.wait()
        if run.driver.exitcode == -signal.SIGKILL:
            wait_until(lambda: not self.cluster.replicas(), "the replicas of a killed driver are gone")
        return outcome

    @rule(part=REGION, replicas=REPLICAS, more=MORE, victim=st.sampled_from(VICTIMS))
    def kill_among_blocks(self, part: Part, replicas: int, more: int, victim: str) -> None:
        """Start a run, and kill some of its processes once so many more shards are stored.

        The run of a killed replica or raylet goes on by itself, and ends as one that was not disturbed. After that of a
        killed driver the next one comes when its replicas are gone, or at once, while they still work.
        """
        run, raylet = self.strike(part, replicas, more, victim)
        self.struck[victim] += raylet is not None
        if victim == RAYLET and raylet:
            self.cluster.remove(raylet)
            self.cluster.add_raylet()
        if victim in (REPLICA, RAYLET) or not raylet:
            self.require_outcome(run, part, more_adopted=raylet is not None)
        elif victim == DRIVER:
            self.wait(run)
            self.take_up(part)
        else:
            run.wait()
            self.take_up(part)
            self.require_outcome(self.line.start(self.job(part)), part, more_adopted=True)
        self.cluster.resize(RAYLETS)

    def strike(self, part: Part, replicas: int, more: int, victim: str) -> tuple[Run, Machine | None]:
        """Start a run, and kill once `more` shards, or all but one that it lacks, are stored.

        Returns:
            The run, and a raylet with a replica of it, or None when the run ended before.
        """
        before = len(shards(self.output))
        lacking = sum(what == ABSENT for (_, block), what in self.shards.items() if block in part[1])
        goal = before + min(more, max(lacking - 1, 0))
        run = self.line.start(self.job(part, replicas=replicas))
        raylet: Machine | None = None
        while run.driver.is_alive():
            raylet = raylet or next((raylet for raylet in self.cluster.raylets if raylet.replicas()), None)
            if raylet and len(shards(self.output)) >= goal:
                processes = {REPLICA: raylet.replicas, RAYLET: raylet.processes}
                for process in processes.get(victim, lambda: [psutil.Process(run.driver.pid)])():
                    kill(process)
                return run, raylet
            time.sleep(POLL_S)
        return run, None

    def require_outcome(self, run: Run, part: Part, *, more_adopted: bool = False) -> None:
        """The run ended by itself, and did what the model says."""
        self.require_figures(self.error(run), *self.expect_score(part), more_adopted=more_adopted)


@pytest.mark.chaos
@pytest.mark.timeout(2400)
def test_20_orders_of_runs_kills_damages_and_repairs_on_a_cluster_end_well(scene: Scene) -> None:
    SurveyOnRay.struck = Counter()
    with cluster(RAYLETS) as SurveyOnRay.cluster:
        # A failing sequence is not made smaller: each try takes a minute.
        require_clean(SurveyOnRay, scene, sequences=20, steps=10, phases=[Phase.generate])
    print(f"\nkilled: {dict(SurveyOnRay.struck)}")
    assert min(SurveyOnRay.struck[victim] for victim in VICTIMS) >= 3

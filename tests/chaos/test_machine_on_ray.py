"""Sequences of runs, kills, damages and repairs on a real Ray cluster, of which drivers, replicas and raylets die."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import rule
from line import Line, Outcome, Run
from raylets import Cluster, Machine, cluster, kill, wait_until
from scene import Scene, shards
from sequences import REGION, Part, Survey, require_clean

RAYLETS = 2
REPLICAS = st.integers(1, RAYLETS)
# How many more shards than before are stored when a process is struck; a block has two. At 0 its replicas are starting.
MORE = st.integers(0, 5)
POLL_S = 0.002
# The replicas of a killed driver go sooner than they would.
ABANDONED_S = {"geobatch.score.deployment.ABANDONED_S": 5.0, "geobatch.score.deployment.HEARTBEAT_S": 1.0}


class SurveyOnRay(Survey):
    """Every run is a process that joins the cluster and has its replicas there.

    Attributes:
        cluster: The cluster of all sequences.
        struck: How often each kind of process was killed in the midst of a run.
    """

    cluster: Cluster
    struck: Counter[str]

    def open_line(self, folder: Path) -> Line:
        return Line(folder, self.cluster.driver_environment, settings=ABANDONED_S, on_cluster=True)

    def wait(self, run: Run) -> Outcome:
        outcome = run.wait()
        if run.driver.exitcode == -signal.SIGKILL:
            self.struck["driver"] += 1
            wait_until(lambda: not self.cluster.replicas(), "the replicas of a killed driver are gone")
        return outcome

    @rule(part=REGION, replicas=REPLICAS, more=MORE, at_once=st.booleans())
    def kill_driver_among_blocks(self, part: Part, replicas: int, more: int, at_once: bool) -> None:
        """The next run comes at once, while replicas still work for the one that was killed, or when they are gone."""
        run, struck = self.strike(part, replicas, more, lambda run, _: [psutil.Process(run.driver.pid)])
        if not struck:
            self.require_outcome(run, part)
        elif at_once:
            run.wait()
            self.take_up(part)
            self.struck["driver, its job run again at once"] += 1
            self.require_outcome(self.line.start(self.job(part)), part, more_adopted=True)
        else:
            self.wait(run)
            self.take_up(part)

    @rule(part=REGION, replicas=REPLICAS, more=MORE)
    def kill_replica(self, part: Part, replicas: int, more: int) -> None:
        """The run goes on by itself, and ends as one that was not disturbed."""
        run, struck = self.strike(part, replicas, more, lambda _, raylet: raylet.replicas())
        self.struck["replica"] += struck
        self.require_outcome(run, part, more_adopted=struck)

    @rule(part=REGION, replicas=REPLICAS, more=MORE)
    def kill_raylet(self, part: Part, replicas: int, more: int) -> None:
        """The run goes on by itself, and another machine joins."""
        lost: list[Machine] = []

        def whole(_: Run, raylet: Machine) -> list[psutil.Process]:
            lost[:] = [raylet]
            return raylet.processes()

        run, struck = self.strike(part, replicas, more, whole)
        if struck:
            self.struck["raylet"] += 1
            self.cluster.remove(lost[0])
            self.cluster.add_raylet()
        self.require_outcome(run, part, more_adopted=struck)
        self.cluster.resize(RAYLETS)

    def strike(
        self, part: Part, replicas: int, more: int, victims: Callable[[Run, Machine], list[psutil.Process]]
    ) -> tuple[Run, bool]:
        """Start a run, and kill processes once so many more shards are stored.

        Args:
            part: What is scored.
            replicas: By how many.
            more: Shards.
            victims: The processes, of the run and a raylet with a replica of it.

        Returns:
            The run, and false when it ended before.
        """
        goal = len(shards(self.output)) + more
        run = self.line.start(self.job(part, replicas=replicas))
        found: list[psutil.Process] = []
        while run.driver.is_alive():
            if not found:
                raylet = next((raylet for raylet in self.cluster.raylets if raylet.replicas()), None)
                found = victims(run, raylet) if raylet else []
            elif len(shards(self.output)) >= goal:
                for process in found:
                    kill(process)
                return run, True
            time.sleep(POLL_S)
        return run, False

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
    kinds = ("driver", "driver, its job run again at once", "replica", "raylet")
    assert min(SurveyOnRay.struck[kind] for kind in kinds) >= 3

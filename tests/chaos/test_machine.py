"""Sequences of runs, kills, damages and repairs in plain processes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule
from line import ACTIONS
from scene import Scene, in_process
from sequences import POINT, REGION, Part, Survey, require_clean
from struck import Fault

from geobatch.errors import IncompleteError
from geobatch.score.spec import ScoreJob


class SurveyInProcesses(Survey):
    """What needs no process of its own runs in this one."""

    def run(self, action: str, job: dict[str, Any]) -> IncompleteError | None:
        try:
            ACTIONS[action](ScoreJob.model_validate(job), open_pool=in_process)
        except IncompleteError as error:
            return error
        return None

    @rule(part=REGION, worker=POINT, replicas=st.integers(1, 2))
    def kill_worker(self, part: Part, worker: int, replicas: int) -> None:
        self.run_and_kill(part, replicas, workers=[Fault(worker)])


def test_any_order_of_runs_kills_damages_and_repairs_ends_well(scene: Scene) -> None:
    require_clean(SurveyInProcesses, scene, sequences=8, steps=6)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_300_orders_of_runs_kills_damages_and_repairs_end_well(scene: Scene) -> None:
    require_clean(SurveyInProcesses, scene, sequences=300, steps=10)

"""The simulation against real runs of Serve replicas whose blocks sleep."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import ray
from surveys import plan_of

from geobatch import cluster
from geobatch.lease import leased
from geobatch.score.deployment import deployed
from geobatch.score.dispatch import Answer, Dispatcher, Work
from geobatch.score.receipts import Ledger, Receipt, ShardReceipt
from geobatch.score.simulate import Workload, simulate
from geobatch.score.spec import ScoreResources
from geobatch.score.worker import Task

# Workers cannot import this module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
PLAN = plan_of((40, 40, 24), (8, 8, 8))
BLOCK_S = (0.2, 0.4, 0.9)


class Sleeper:
    """A replica whose blocks sleep, one after the other."""

    def __init__(self, plan: str, output_url: str, overlap: bool) -> None:
        self._one_at_a_time = asyncio.Lock()

    async def score(self, tasks: Sequence[Task]) -> list[Answer]:
        async with self._one_at_a_time:
            return [await self._sleep(task) for task in tasks]

    async def _sleep(self, task: Task) -> Answer:
        await asyncio.sleep(BLOCK_S[task.block % len(BLOCK_S)])
        return Receipt(task.block, (ShardReceipt(1, bytes(32)),) * 2, 1, 1, False, 0, (0.0,) * 4, 0, "sleeper")


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_simulation_is_within_a_fifth_of_real_replicas(tmp_path: Path, replicas: int) -> None:
    cluster.connect()
    resources = ScoreResources(replicas=replicas, cpus=0.1)
    with leased(str(tmp_path)) as control:
        start = time.perf_counter()
        with deployed(PLAN, str(tmp_path), resources, Sleeper) as pool:
            pool.window()
            opened = time.perf_counter()
            work = Work.of(np.arange(PLAN.grid.total))
            dispatcher = Dispatcher(
                work, pool.score, Ledger(control, PLAN), window=pool.window, attempts=1, describe=lambda b: (str(b), {})
            )
            assert dispatcher.run().scored == PLAN.grid.total
            scored = time.perf_counter()
    told = simulate(Workload(PLAN.grid.total, BLOCK_S, dispatched_per_s=1000), replicas)
    print(f"{replicas} replicas: {scored - opened:.1f} s, simulated {told.seconds:.1f} s, start {opened - start:.1f} s")
    assert told.seconds == pytest.approx(scored - opened, rel=0.2)

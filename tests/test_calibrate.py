"""A forecast in the cases whose answer is known. On real replicas: `tests/chaos/test_forecast.py`."""

from __future__ import annotations

import numpy as np
import pytest
from surveys import plan_of

from geobatch.score.calibrate import _proportion
from geobatch.score.receipts import STAGES, Receipt

PLAN = plan_of((32, 32, 32), (8, 8, 8))
ENDS = {"plan": 3.0, "start replicas": 4.0, "stop replicas": 1.0}


def receipts(count: int, replicas: int) -> list[tuple[float, Receipt]]:
    """Receipts of blocks of half a second each, the first ones after two seconds, and when they came."""
    seconds = (0.1, 0.0, 0.3, 0.1)
    fields = {"shards": (), "voxels": 512, "valid": 512, "adopted": False, "reduction": 0, "bytes_read": 0}
    return [
        (2 + 0.5 * (k // replicas), Receipt(block=k, seconds=seconds, worker=f"{k % replicas}", **fields))
        for k in range(count)
    ]


def test_equal_blocks_take_their_number_times_their_time() -> None:
    found = _proportion(PLAN, np.arange(64), 80, 1, receipts(10, 1), 0.0, ENDS)
    assert found.parts == {**ENDS, "score": pytest.approx(64 * 0.5 + 1.5)}
    assert found.seconds == pytest.approx(41.5)
    assert (found.block_s, found.blocks_measured) == (pytest.approx(0.5), 10)
    assert found.stage_seconds == {key: pytest.approx(s) for key, s in zip(STAGES, (0.1, 0, 0.3, 0.1), strict=True)}
    work = found.work
    assert (work.blocks, work.startup_s, work.finish_s, work.puts_per_block) == (80, 7.0, 1.0, 2)
    assert work.gets_per_block == 2**3
    np.testing.assert_allclose(work.block_seconds, 0.5)


def test_two_replicas_share_the_blocks_and_half_a_block_is_waited_for() -> None:
    found = _proportion(PLAN, np.arange(64), 64, 2, receipts(20, 2), 0.0, ENDS)
    assert found.parts["score"] == pytest.approx(64 * 0.5 / 2 + 1.5 + 0.25)

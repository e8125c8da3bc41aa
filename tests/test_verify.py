"""What `verify` tells of outputs whose description is damaged. Damaged shards: `tests/chaos/test_damage.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from surveys import plan_of

from geobatch.errors import IntegrityError, NotFoundError
from geobatch.score.planning import PLAN
from geobatch.score.verify import verify
from geobatch.shards import create_arrays
from geobatch.storage import open_storage


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An output that was begun, of which no block is scored."""
    plan = plan_of((16, 16, 16), (8, 8, 8))
    create_arrays(str(tmp_path), plan.arrays())
    open_storage(str(tmp_path)).put(PLAN, plan.model_dump_json().encode())
    return str(tmp_path)


def test_plan_that_does_not_read_is_named(output: str) -> None:
    assert verify(output).findings == ()
    open_storage(output).put(PLAN, b'{"grid": ')
    with pytest.raises(IntegrityError, match=r"plan.json of the output does not read.*Restore it"):
        verify(output)
    open_storage(output).delete(PLAN)
    with pytest.raises(NotFoundError, match="no scoring run there"):
        verify(output)

from __future__ import annotations

import time
from pathlib import Path

import pytest

from geobatch.errors import LeaseError
from geobatch.score.lease import Lease


def test_reader_that_was_held_up_itself_takes_no_living_lease_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geobatch.score.lease.TIMEOUT_S", 0.2)
    living = Lease.acquire(str(tmp_path))

    def held_up(holder: str) -> None:
        living.renew()
        time.sleep(0.3)

    with pytest.raises(LeaseError, match="another run is writing this output"):
        Lease.acquire(str(tmp_path), on_wait=held_up)
    living.renew()
    living.release()

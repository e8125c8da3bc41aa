"""Many runs that want the same output at the same instant: exactly one gets its lease."""

from __future__ import annotations

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from proxy import chaos_proxy

from geobatch import lease as leases
from geobatch.errors import LeaseError
from geobatch.lease import LEASE, Holder, Lease
from geobatch.local_s3 import LocalS3, environment
from geobatch.storage import join_url, open_storage

RACERS = 16


@pytest.fixture(autouse=True)
def quick_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who came too late learns it by the winner's next renewal."""
    monkeypatch.setattr(leases, "RENEWAL_S", 0.1)
    monkeypatch.setattr(leases, "POLL_S", 0.02)


def race(output: str) -> Lease:
    """The lease that one of many racers got, when each of the others was refused."""
    start = threading.Barrier(RACERS)

    def acquire(_: int) -> Lease | None:
        start.wait()
        try:
            return Lease.acquire(output)
        except LeaseError:
            return None

    with ThreadPoolExecutor(RACERS) as racers:
        (winner,) = [lease for lease in racers.map(acquire, range(RACERS)) if lease]
    return winner


def require_one_winner_each(folder: str, count: int) -> None:
    """Races for new outputs, for released leases and for leases whose holder is gone, in turns."""
    output, fence = "", 0
    for number in range(count):
        if number % 3 == 0:
            output, fence = join_url(folder, uuid.uuid4().hex), 0
        elif number % 3 == 2:
            abandon(output)
        winner = race(output)
        fence += 1
        stored = json.loads(open_storage(output).get(LEASE))
        assert (winner.fence, stored["run"], stored["fence"]) == (fence, winner.run, fence)
        winner.release()
        assert json.loads(open_storage(output).get(LEASE))["released"]


def abandon(output: str) -> None:
    """Let the lease be one of a process that is gone."""
    storage = open_storage(output)
    document = json.loads(storage.get(LEASE))
    gone = vars(Holder.this_process()) | {"created": 1.0}
    storage.put(LEASE, json.dumps({**document, "holder": gone, "released": False}).encode())


def test_16_racers_have_one_winner_each(tmp_path: Path) -> None:
    require_one_winner_each(str(tmp_path), 10)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_16_racers_have_one_winner_of_200_leases_each(tmp_path: Path) -> None:
    require_one_winner_each(str(tmp_path), 200)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_16_racers_have_one_winner_of_200_leases_each_on_s3(s3: str, s3_server: LocalS3) -> None:
    with chaos_proxy(s3_server.endpoint) as proxy, environment({"AWS_ENDPOINT_URL": proxy.endpoint}):
        require_one_winner_each(s3, 200)

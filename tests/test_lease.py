from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from geobatch.errors import LeaseError, NotFoundError, UsageError
from geobatch.lease import LEASE, Lease
from geobatch.storage import open_storage
from geobatch.storage.s3 import _s3_client


def test_reader_that_was_held_up_itself_takes_no_living_lease_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geobatch.lease.TIMEOUT_S", 0.2)
    living = Lease.acquire(str(tmp_path))

    def held_up(holder: str) -> None:
        living.renew()
        time.sleep(0.3)

    with pytest.raises(LeaseError, match="another run is writing this output"):
        Lease.acquire(str(tmp_path), on_wait=held_up)
    living.renew()
    living.release()


def test_number_of_a_lease_counts_as_the_number_it_reads_as(tmp_path: Path) -> None:
    Lease.acquire(str(tmp_path)).release()
    storage = open_storage(str(tmp_path))
    storage.put(LEASE, json.dumps({**json.loads(storage.get(LEASE)), "fence": "7", "released": 1}).encode())
    lease = Lease.acquire(str(tmp_path))
    assert lease.fence == 8
    lease.release()


def test_lease_that_outranks_an_earlier_one_hands_its_number_on(tmp_path: Path) -> None:
    lease = Lease.acquire(str(tmp_path))
    lease.outrank(0)
    assert lease.fence == 1
    lease.outrank(41)
    assert lease.fence == 42
    lease.renew()
    lease.release()
    following = Lease.acquire(str(tmp_path))
    assert following.fence == 43
    following.release()


def test_server_that_ignores_conditions_is_refused(s3: str) -> None:
    client = _s3_client()

    def forget(params: dict[str, object], **_: object) -> None:
        params.pop("IfMatch", None)
        params.pop("IfNoneMatch", None)

    client.meta.events.register("provide-client-params.s3.PutObject", forget)
    try:
        with pytest.raises(UsageError, match="ignores the condition"):
            Lease.acquire(s3)
    finally:
        client.meta.events.unregister("provide-client-params.s3.PutObject", forget)
    with pytest.raises(NotFoundError):
        open_storage(s3).get(LEASE)
    Lease.acquire(s3).release()


def test_client_takes_the_credentials_that_the_environment_names_now(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _s3_client()._get_credentials().access_key != "another"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert _s3_client()._get_credentials().access_key == "another"

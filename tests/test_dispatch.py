"""The dispatcher against pools that fail in every class, without a cluster."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surveys import plan_of

from geobatch.errors import GeobatchError, LeaseError, StorageError, TransientError
from geobatch.lease import LEASE, Control, Lease
from geobatch.score import dispatch
from geobatch.score.dispatch import Answer, Dispatcher, Tally, Work
from geobatch.score.receipts import BATCHES, MANIFEST, Ledger, Receipt, ShardReceipt, block_numbers
from geobatch.score.worker import Task

PLAN = plan_of((32, 32, 32), (8, 8, 8))
BLOCKS = PLAN.grid.total


def receipt(block: int, **fields: Any) -> Receipt:
    shards = tuple(ShardReceipt(100 + block, bytes([block % 251]) * 32) for _ in PLAN.arrays())
    figures = {"voxels": 512, "valid": 512, "adopted": False, "reduction": 0, "bytes_read": 9, "worker": "w"}
    return Receipt(block=block, shards=shards, seconds=(0.0, 0.0, 0.01, 0.0), **{**figures, **fields})


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    lease = Lease.acquire(str(tmp_path))
    yield Ledger(Control(str(tmp_path), lease), PLAN)
    lease.release()


def run(
    ledger: Ledger,
    answer: Callable[[Task], Answer],
    work: Work | None = None,
    *,
    window: Callable[[], int] = lambda: 2,
    **options: Any,
) -> Tally:
    def score(tasks: Sequence[Task]) -> list[Answer]:
        return [answer(task) for task in tasks]

    work = work or Work.of(np.arange(BLOCKS))
    settings = {"attempts": 3, **options}
    return Dispatcher(work, score, ledger, window=window, describe=lambda b: (str(b), {}), **settings).run()


def failure(kind: str) -> dict[str, Any]:
    return {"kind": kind, "error": f"{kind} it was", "traceback": "Traceback"}


def test_every_block_is_recorded_once(ledger: Ledger) -> None:
    tally = run(ledger, lambda task: receipt(task.block))
    assert (tally.scored, tally.voxels, tally.dead) == (BLOCKS, BLOCKS * 512, [])
    assert ledger.written.all()
    np.testing.assert_array_equal(block_numbers(ledger.load()), np.arange(BLOCKS))


def test_bad_block_dies_after_its_attempts_and_stops_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LONGEST_WAIT_S", 0.01)
    tries = Counter[int]()

    def answer(task: Task) -> Answer:
        tries[task.block] += 1
        return failure("poison") if task.block == 7 else receipt(task.block)

    tally = run(ledger, answer)
    assert [(letter.number, letter.attempts, letter.error) for letter in tally.dead] == [(7, 3, "poison it was")]
    assert tries[7] == 3
    assert tally.scored == BLOCKS - 1


def test_lost_replica_costs_no_attempt_and_its_blocks_are_looked_for_first(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LONGEST_WAIT_S", 0.01)
    tries = Counter[int]()
    looked = set[int]()

    def answer(task: Task) -> Answer:
        tries[task.block] += 1
        if task.block % 5 == 0 and tries[task.block] <= 6:
            raise TransientError("gone")
        if task.look:
            looked.add(task.block)
        return receipt(task.block)

    tally = run(ledger, answer, attempts=1)
    assert (tally.scored, tally.dead) == (BLOCKS, [])
    assert looked >= set(range(0, BLOCKS, 5))
    assert tally.retries["lost"] >= 6 * len(range(0, BLOCKS, 5))


def test_want_of_memory_reduces_and_costs_no_attempt(ledger: Ledger) -> None:
    def answer(task: Task) -> Answer:
        return failure("memory") if task.reduction < 2 else receipt(task.block, reduction=task.reduction)

    tally = run(ledger, answer, attempts=1)
    assert (tally.scored, tally.reduced, tally.dead) == (BLOCKS, BLOCKS, [])


def test_unusable_storage_stops_everything(ledger: Ledger) -> None:
    with pytest.raises(StorageError, match="fatal it was"):
        run(ledger, lambda task: failure("fatal"))


def test_call_that_fails_by_itself_ends_the_run_and_its_cause_is_told(ledger: Ledger) -> None:
    def answer(task: Task) -> Answer:
        raise GeobatchError("a replica cannot take its work", measured="AttributeError: no field look")

    with pytest.raises(GeobatchError, match=r"no retry mends; found .*cannot take its work.*no field look"):
        run(ledger, answer)


def test_straggler_is_doubled_and_its_late_answer_changes_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "STRAGGLER_LEAST_S", 0.2)
    stuck = threading.Event()
    first = threading.Lock()

    def answer(task: Task) -> Answer:
        if task.block == 3 and first.acquire(blocking=False):
            stuck.wait(20)
            return receipt(task.block, worker="late")
        return receipt(task.block, worker="in time")

    tally = run(ledger, answer)
    stuck.set()
    assert tally.scored == BLOCKS
    assert tally.retries["straggler"] >= 1
    assert tally.workers == {"in time"}


def test_block_that_is_slow_everywhere_is_doubled_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "STRAGGLER_LEAST_S", 0.1)
    begun = Counter[int]()

    def answer(task: Task) -> Answer:
        begun[task.block] += 1
        if task.block == 3:
            time.sleep(3.5)
        return receipt(task.block)

    tally = run(ledger, answer, window=lambda: 6)
    assert tally.scored == BLOCKS
    assert (begun[3], tally.retries["straggler"]) == (2, 1)


def test_runs_of_quick_blocks_grow_and_share_the_rest(ledger: Ledger) -> None:
    lengths: list[int] = []

    def score(tasks: Sequence[Task]) -> list[Answer]:
        lengths.append(len(tasks))
        return [receipt(task.block) for task in tasks]

    Dispatcher(
        Work.of(np.arange(BLOCKS)), score, ledger, window=lambda: 1, attempts=1, describe=lambda b: ("", {})
    ).run()
    assert sum(lengths) == BLOCKS
    assert lengths[0] == 1
    assert max(lengths) > 10
    assert lengths[-1] == 1


def test_window_follows_the_pool(ledger: Ledger) -> None:
    in_flight, most = Counter[str](), []

    def answer(task: Task) -> Answer:
        in_flight["now"] += 1
        most.append(in_flight["now"])
        time.sleep(0.005)
        in_flight["now"] -= 1
        return receipt(task.block)

    sizes = itertools.chain([1] * 3, itertools.repeat(4))
    run(ledger, answer, window=lambda: next(sizes))
    assert 2 <= max(most) <= 4


def test_spent_budget_stops_cleanly(ledger: Ledger) -> None:
    def answer(task: Task) -> Answer:
        time.sleep(0.02)
        return receipt(task.block)

    tally = run(ledger, answer, limit_s=0.2)
    assert 0 < tally.scored < BLOCKS
    assert tally.scored + tally.unspent == BLOCKS
    assert ledger.written.sum() == tally.scored == len(ledger.load())


def test_run_that_lost_its_lease_records_nothing_more(ledger: Ledger) -> None:
    ledger.control.storage.put(LEASE, b"{}")
    with pytest.raises(LeaseError, match="taken over"):
        ledger.control.lease.renew()
    ledger.add(receipt(1))
    with pytest.raises(LeaseError):
        ledger.flush()
    assert not list(ledger.control.storage.list(BATCHES))


def test_receipts_outrank_those_from_before_a_lease_was_deleted(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.control.lease.release()
        ledger.control.lease = Lease.acquire(ledger.control.url)
    ledger.add(receipt(5, voxels=1))
    ledger.write_manifest()
    ledger.control.lease.release()
    ledger.control.storage.delete(LEASE)
    lease = Lease.acquire(ledger.control.url)
    again = Ledger(Control(ledger.control.url, lease), PLAN)
    again.load()
    again.add(receipt(5, voxels=2))
    assert again.write_manifest()["voxels"].to_pylist() == [2]
    lease.release()


@settings(max_examples=30)
@given(batches=st.lists(st.tuples(st.integers(1, 3), st.sets(st.integers(0, BLOCKS - 1), min_size=1)), max_size=6))
def test_newest_receipt_of_each_block_survives_the_manifest(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, set[int]]]
) -> None:
    place = str(tmp_path_factory.mktemp("output"))
    lease = Lease.acquire(place)
    expected: dict[int, tuple[int, int]] = {}
    for order, (fence, blocks) in enumerate(batches):
        lease.fence = fence
        ledger = Ledger(Control(place, lease), PLAN)
        ledger._sequence = order
        for block in blocks:
            ledger.add(receipt(block, voxels=order))
            if fence >= expected.get(block, (0, 0))[0]:
                expected[block] = (fence, order)
        ledger.flush()
    merged = Ledger(Control(place, lease), PLAN)
    merged.load()
    table = merged.write_manifest()
    lease.release()
    assert {row["block"]: row["voxels"] for row in table.to_pylist()} == {
        b: order for b, (_, order) in expected.items()
    }
    assert [key for key, _ in merged.control.storage.list(BATCHES)] == []
    assert merged.control.storage.exists(MANIFEST)

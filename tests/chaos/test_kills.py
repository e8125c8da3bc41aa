"""Processes that are killed, or stopped and let go on, at every instant of a run: no shard is lost, none is doubled."""

from __future__ import annotations

import random
import re
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from line import Line
from scene import BLOCKS, Scene, durable_blocks, make_scene, shard_key, shards
from struck import Fault, Outcome, Passed, Run

from geobatch.errors import LeaseError, TransientError
from geobatch.local_s3 import LocalS3
from geobatch.storage import join_url, open_storage

LEASE_S = {"geobatch.lease.TIMEOUT_S": 1.0, "geobatch.lease.RENEWAL_S": 0.3}
# A run that is to be stopped has no thread that renews, which could be stopped inside a folder's lock.
LEASE_OF_STOPPED_S = {"geobatch.lease.TIMEOUT_S": 601, "geobatch.lease.RENEWAL_S": 600}
LOCK_S = {"geobatch.storage.files.LOCK_TIMEOUT_S": 0.5}
STRAGGLER_S = {"geobatch.score.dispatch.STRAGGLER_LEAST_S": 0.5}


@dataclass
class Stage:
    """A scene, its line, and a new output of it."""

    scene: Scene
    line: Line
    folder: str

    def output(self) -> str:
        return join_url(self.folder, uuid.uuid4().hex)

    def run(self, output: str, action: str = "score", **told: Any) -> tuple[Run, Outcome]:
        """A whole run; `replicas` is how many workers it has."""
        resources = {"memory_gib": 4, "replicas": told.pop("replicas", 1)}
        run = self.line.start(self.scene.job(output, resources=resources), action, **told)
        return run, run.wait()


@pytest.fixture
def stage(scene: Scene, tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "traces").mkdir()
    line = Line(tmp_path / "traces")
    yield Stage(scene, line, str(tmp_path))
    line.close()


@pytest.fixture
def stage_s3(s3: str, s3_server: LocalS3, tmp_path: Path) -> Iterator[Stage]:
    line = Line(tmp_path, s3_server.environment)
    yield Stage(make_scene(s3), line, s3)
    line.close()


def undisturbed(stage: Stage) -> Run:
    """A run that nothing disturbs; its trace numbers the points of one that is killed."""
    run, outcome = stage.run(output := stage.output())
    assert outcome.summary and outcome.summary["blocks"]["scored"] == BLOCKS
    stage.scene.require_finished(output)
    return run


def require_nothing_doubled(runs: list[Run]) -> None:
    """Each shard of these runs was published once, as far as files tell."""
    links = Counter(passed.point for run in runs for passed in run.passed("worker", "after link "))
    assert set(links.values()) <= {1}, links.most_common(3)


def require_resumes(stage: Stage, output: str, before: list[Run]) -> Run:
    """Run the job again: what was stored is kept, its blocks are not computed again, and the rest is done."""
    stored = shards(output)
    run, outcome = stage.run(output)
    assert outcome.summary, outcome
    again = run.predicted()
    assert not set(again) & durable_blocks(stored), "what is durable is never computed again"
    assert len(again) == len(set(again))
    blocks = outcome.summary["blocks"]
    assert blocks["scored"] - blocks["adopted"] <= BLOCKS - len(durable_blocks(stored))
    assert {shard: told for shard, told in shards(output).items() if shard in stored} == stored
    stage.scene.require_finished(output)
    require_nothing_doubled([*before, run])
    return run


def kill_driver(stage: Stage, at: int) -> None:
    """Kill a driver at a point, and resume."""
    run, outcome = stage.run(output := stage.output(), driver=Fault(at))
    assert outcome.signal == signal.SIGKILL
    require_resumes(stage, output, [run])


def kill_driver_twice(stage: Stage, first: int, second: int) -> None:
    """Kill a driver, kill the one that resumes, and resume."""
    one, _ = stage.run(output := stage.output(), driver=Fault(first))
    two, outcome = stage.run(output, driver=Fault(second))
    assert outcome.signal == signal.SIGKILL or outcome.summary, outcome
    require_resumes(stage, output, [one, two])


def kill_worker(stage: Stage, *at: int) -> None:
    """Kill workers, one after the other: the run goes on with another one and redoes one block for each."""
    run, outcome = stage.run(output := stage.output(), workers=[Fault(number) for number in at])
    assert outcome.summary, outcome
    assert outcome.summary["retries"]["lost"] >= 1
    assert len(run.predicted()) <= BLOCKS + len(at)
    stage.scene.require_finished(output)
    require_nothing_doubled([run])


def kill_in_repair(stage: Stage, role: str, at: int) -> None:
    """Damage two shards, kill a process of the repair, and repair again: only those two are replaced."""
    stage.run(output := stage.output())
    damaged = {("class_map", 2), ("probability", 5)}
    for shard in damaged:
        flip(output, shard, 40)
    stored = shards(output)
    faults = {"driver": Fault(at)} if role == "driver" else {"workers": [Fault(at)]}
    _, outcome = stage.run(output, "repair", **faults)
    assert outcome.signal == signal.SIGKILL or (role == "worker" and outcome.summary)
    _, outcome = stage.run(output, "repair")
    assert outcome.summary, outcome
    stage.scene.require_finished(output)
    kept = {shard: told for shard, told in stored.items() if shard not in damaged}
    assert {shard: told for shard, told in shards(output).items() if shard in kept} == kept


def flip(output: str, shard: tuple[str, int], byte: int) -> None:
    storage, key = open_storage(output), shard_key(*shard)
    body = bytearray(storage.get(key))
    body[byte % len(body)] ^= 1 << byte % 8
    storage.put(key, bytes(body))


def points_of_blocks(run: Run, blocks: set[int]) -> list[Passed]:
    """The points of the only worker, from a block's first to its last, of these blocks."""
    chosen, block = [], -1
    for passed in run.passed("worker"):
        if passed.point.startswith("before adopt "):
            block = int(passed.point.split()[-1])
        if block in blocks:
            chosen.append(passed)
    return chosen


def test_killed_drivers_cost_time_only(stage: Stage) -> None:
    points = undisturbed(stage).passed("driver")
    wanted = ("after put_if_absent _geobatch/plan", "before link zarr.json", "before put _geobatch/receipts")
    wanted = (*wanted, "after link _geobatch/manifest", "before replace zarr.json")
    numbers = [next(p.number for p in points if p.point.startswith(begin)) for begin in wanted]
    for at in numbers:
        kill_driver(stage, at)
    kill_driver_twice(stage, numbers[2], 20)


def test_killed_workers_cost_their_block_only(stage: Stage) -> None:
    stages = ["after read 2", "after predict 3", "before link class_map/c/0/1/0", "after link probability/c/0/1/0/0"]
    points = undisturbed(stage).passed("worker")
    for at in [passed.number for passed in points if passed.point in stages]:
        kill_worker(stage, at)


def test_killed_repair_is_repaired(stage: Stage) -> None:
    kill_in_repair(stage, "worker", 14)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_200_kills_lose_and_double_nothing(stage: Stage) -> None:
    run = undisturbed(stage)
    driver = [passed.number for passed in run.passed("driver")]
    for at in driver:
        kill_driver(stage, at)
    worker = [passed.number for passed in points_of_blocks(run, {0, 3, BLOCKS - 1})]
    for at in worker:
        kill_worker(stage, at)
    chance = random.Random(0)
    for _ in range(15):
        kill_driver_twice(stage, chance.choice(driver), chance.randint(1, 40))
        kill_worker(stage, chance.choice(worker), chance.randint(1, 30))
    for at in range(1, 60, 3):
        kill_in_repair(stage, "driver", at)
    for at in range(1, 30, 3):
        kill_in_repair(stage, "worker", at)
    # The second kill of a driver may come too late.
    kills = len(driver) + len(worker) + 2 * 15 + 20 + 10
    print(f"\n{kills} kills at least")
    assert kills >= 200


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_kills_beside_other_workers_lose_and_double_nothing(stage: Stage) -> None:
    chance = random.Random(1)
    for _ in range(10):
        output = stage.output()
        driver, worker = Fault(chance.randint(90, 110)), Fault(chance.randint(1, 40))
        run, outcome = stage.run(output, driver=driver, workers=[worker, None], replicas=2)
        assert outcome.signal == signal.SIGKILL or outcome.summary
        require_resumes(stage, output, [run])


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_kills_on_s3_lose_and_double_nothing(stage_s3: Stage) -> None:
    run = undisturbed(stage_s3)
    for at in [passed.number for passed in run.passed("driver")][::4]:
        kill_driver(stage_s3, at)
    for at in [passed.number for passed in points_of_blocks(run, {3})][::2]:
        kill_worker(stage_s3, at)


def stop_worker(stage: Stage, point: str) -> None:
    """Stop a worker, let another one double its block, and let the first go on: it changes nothing."""
    job = stage.scene.job(output := stage.output(), resources={"memory_gib": 4, "replicas": 2})
    run = stage.line.start(job, workers=[Fault(point=point, signal=signal.SIGSTOP)], settings=STRAGGLER_S)
    outcome = run.wait()
    assert outcome.summary and outcome.summary["retries"]["straggler"] >= 1
    require_zombie_changes_nothing(stage, output, run)


def stop_worker_of_killed_driver(stage: Stage, point: str) -> None:
    """Stop a worker, kill its driver, let another run redo the block, and let the worker go on: it changes nothing."""
    run = stage.line.start(
        stage.scene.job(output := stage.output()), workers=[Fault(point=point, signal=signal.SIGSTOP)]
    )
    run.wait_for_stop("worker")
    run.driver.kill()
    run.wait()
    require_resumes(stage, output, [run])
    require_zombie_changes_nothing(stage, output, run)


def require_zombie_changes_nothing(stage: Stage, output: str, run: Run) -> None:
    stage.scene.require_finished(output)
    stored = shards(output)
    run.resume(run.wait_for_stop("worker"))
    assert shards(output) == stored
    stage.scene.require_finished(output)
    require_nothing_doubled([run])


def stop_driver(stage: Stage, point: str) -> None:
    """Stop a driver until another run took over its lease, and let it go on: it learns it, and changes nothing."""
    output = stage.output()
    fault = Fault(point=point, signal=signal.SIGSTOP)
    run = stage.line.start(stage.scene.job(output), driver=fault, settings=LEASE_OF_STOPPED_S)
    stopped = run.wait_for_stop("driver")
    _, outcome = stage.run(output, settings=LEASE_S)
    assert outcome.summary and "waited for process" in outcome.summary["warnings"][0]
    stage.scene.require_finished(output)
    before = control_objects(output)
    run.resume(stopped)
    assert isinstance(run.wait().error, LeaseError)
    assert control_objects(output) == before
    assert stage.run(output)[1].summary["blocks"]["kept"] == BLOCKS
    stage.scene.require_finished(output)


def control_objects(output: str) -> dict[str, bytes]:
    """The control objects of one name each; a receipt batch of a run that lost its lease has a name of its own."""
    storage = open_storage(output)
    keys = [key for key, _ in storage.list("_geobatch") if not key.startswith("_geobatch/receipts/")]
    return {key: storage.get(key) for key in [*keys, "zarr.json"]}


def test_stopped_worker_that_goes_on_changes_nothing(stage: Stage) -> None:
    stop_worker(stage, "before link class_map")
    stop_worker_of_killed_driver(stage, "after predict")


def test_stopped_driver_that_goes_on_ends_with_a_lease_error(stage: Stage) -> None:
    stop_driver(stage, "before put_if_absent _geobatch/manifest")


def test_driver_stopped_inside_a_lock_is_waited_for_and_named(stage: Stage) -> None:
    fault = Fault(point="before replace zarr.json", signal=signal.SIGSTOP)
    job = stage.scene.job(output := stage.output())
    run = stage.line.start(job, driver=fault, settings=LEASE_OF_STOPPED_S)
    stopped = run.wait_for_stop("driver")
    _, outcome = stage.run(output, settings=LEASE_S | LOCK_S)
    assert isinstance(outcome.error, TransientError)
    assert "zarr.json" not in str(outcome.error) and ".lock" in str(outcome.error)
    run.resume(stopped)
    assert run.wait().summary
    stage.scene.require_finished(output)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_zombies_stopped_anywhere_change_nothing(stage: Stage) -> None:
    for point in ("before read", "before predict", "before write", "before put_if_absent class_map", "before link"):
        stop_worker(stage, point)
        stop_worker_of_killed_driver(stage, point)
    for point in ("before put_if_absent probability", "before link probability", "after link probability"):
        stop_worker_of_killed_driver(stage, point)
    for point in points_under_lease(undisturbed(stage)):
        stop_driver(stage, point)


def points_under_lease(run: Run) -> list[str]:
    """The points of a driver from its first write under the lease to its last, but those inside of a folder's lock.

    A name that it passes before it has the lease too is none of them: a fault strikes where a name comes first.
    """
    chosen: list[str] = []
    before, leased, locked = set[str](), False, False
    for passed in run.passed("driver"):
        if passed.point == "before put_if_match _geobatch/lease.json":
            break
        leased = leased or passed.point == "after put_if_absent _geobatch/lease.json"
        if passed.point.startswith("after put_if_match "):
            locked = False
        elif not leased:
            before.add(passed.point)
        elif passed.point.startswith("before ") and "lease" not in passed.point and not locked:
            chosen.append(re.sub(r"receipts/.*", "receipts/", passed.point))
        locked = locked or passed.point.startswith("before put_if_match ")
    return [point for point in dict.fromkeys(chosen) if point not in before]

"""Scoring on a real Ray cluster whose replicas, raylets, head and drivers are killed, or which is partly taken away."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from raylets import Cluster, Command, cluster, kill, output_hash, shards, wait_until
from surveys import random_volume, write_bundle, write_survey

from geobatch.job import parse_job
from geobatch.score.receipts import Receipt
from geobatch.score.run import score
from geobatch.score.spec import ScorePlan, ScoreResources
from geobatch.score.worker import BlockScorer, Task
from geobatch.storage import open_storage

BLOCKS = 4 * 2 * 2
RESTART_LIMIT_S = 45.0
DRAIN_LIMIT_S = 5.0
ABANDONED_LIMIT_S = 45.0


class Place:
    """A survey, a bundle, and the hash of what one undisturbed process scores."""

    def __init__(self, folder: Path, blocks_along_inline: int = 4) -> None:
        self.folder = folder
        volume = write_survey(str(folder / "survey"), random_volume((32 * blocks_along_inline, 64, 64)))
        write_bundle(str(folder / "bundle"), volume)
        job = self.job()
        score(parse_job(job), open_pool=_in_this_process)
        self.truth = output_hash(job["output"])

    def job(self, replicas: int | dict[str, int] = 2) -> dict[str, Any]:
        """A job with an output of its own, whose small patches make its blocks take a second."""
        return {
            "job": "score",
            "survey": str(self.folder / "survey"),
            "bundle": str(self.folder / "bundle"),
            "output": str(self.folder / f"scored-{uuid.uuid4().hex[:8]}"),
            "statistics": "bundle",
            "shard": [32, 32, 32],
            "chunk": [16, 16, 16],
            "patch": [32, 32, 32],
            "resources": {"replicas": replicas, "cpus": 1},
        }

    def require_undisturbed(self, command: Command) -> dict[str, Any]:
        """The summary of a command that went on by itself: the same voxels, nothing given up, no attempt counted."""
        summary = command.summary()
        assert output_hash(command.output) == self.truth
        assert (summary["blocks"]["scored"], summary["blocks"]["dead"]) == (summary["blocks"]["wanted"], 0)
        assert set(summary["retries"]) <= {"lost", "straggler"}
        return summary


class _InThisProcess:
    def __init__(self, plan: ScorePlan, output_url: str) -> None:
        self._scorer = BlockScorer(plan, output_url)

    def score(self, tasks: Sequence[Task]) -> list[Receipt]:
        return [self._scorer.score_block(task) for task in tasks]

    def window(self) -> int:
        return 1


@contextlib.contextmanager
def _in_this_process(plan: ScorePlan, output_url: str, resources: ScoreResources) -> Iterator[Any]:
    yield _InThisProcess(plan, output_url)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with cluster(2) as started:
        yield started


@pytest.fixture
def two_raylets(shared: Cluster) -> Cluster:
    """The cluster of this module, mended."""
    shared.resize(2)
    return shared


def test_run_goes_on_by_itself_without_a_replica_and_a_raylet(place: Place, two_raylets: Cluster) -> None:
    command = Command(two_raylets, place.job(), place.folder)
    command.wait_for_shards(2)
    kill(two_raylets.replicas()[0])
    command.wait_for_shards(5)
    two_raylets.remove(two_raylets.raylets[1])
    summary = place.require_undisturbed(command)
    assert summary["retries"]["lost"] > 0, "blocks were lost with those who held them"
    assert two_raylets.evaluate("list(serve.status().applications)") == []


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_head_killed_and_restarted(place: Place) -> None:
    job = place.job()
    with cluster(2) as doomed:
        command = Command(doomed, job, place.folder)
        command.wait_for_shards(4)
        replicas = doomed.replicas()
        doomed.head.kill()
        # The driver would go on with them for the minute that it takes to notice, long enough for all of these blocks.
        for replica in replicas:
            kill(replica)
        assert command.wait() == 1
    assert "the head of its cluster is gone" in " ".join(command.messages.split())
    assert "run the same command to go on" in command.messages.replace("\n", " ")
    before = shards(job["output"])
    _pretend_the_holder_was_elsewhere(job["output"])
    with cluster(2) as fresh:
        again = Command(fresh, job, place.folder)
        again.wait_for_shards(len(before) + 1)
        waited = time.monotonic() - again.started
        summary = again.summary()
    print(f"\nfirst new block {waited:.1f} s after the command was started again (limit {RESTART_LIMIT_S:g} s)")
    assert waited <= RESTART_LIMIT_S
    assert output_hash(job["output"]) == place.truth
    assert summary["blocks"]["dead"] == 0
    assert any("waited for process" in warning for warning in summary["warnings"])


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_killed_driver_leaves_nothing_behind(place: Place, two_raylets: Cluster) -> None:
    command = Command(two_raylets, place.job(), place.folder)
    command.wait_for_shards(2)
    command.kill()
    killed = time.monotonic()
    wait_until(lambda: not two_raylets.replicas(), "replicas are gone")
    waited = time.monotonic() - killed
    print(f"\nreplicas gone {waited:.1f} s after the driver was killed (limit {ABANDONED_LIMIT_S:g} s)")
    assert two_raylets.evaluate("list(serve.status().applications)") == []
    free = "ray.available_resources().get('CPU', 0) == ray.cluster_resources()['CPU']"
    wait_until(lambda: two_raylets.evaluate(free), "all CPUs are free")
    assert waited <= ABANDONED_LIMIT_S


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_killed_driver_delays_no_second_run(place: Place, two_raylets: Cluster) -> None:
    job = place.job()
    first = Command(two_raylets, job, place.folder)
    first.wait_for_shards(4)
    first.kill()
    second = Command(two_raylets, job, place.folder)
    assert second.summary()["blocks"]["dead"] == 0
    assert output_hash(job["output"]) == place.truth


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("deadline_s", [300, 30])
def test_draining_node_gives_its_blocks_back(place: Place, two_raylets: Cluster, deadline_s: int) -> None:
    leaving = two_raylets.raylets[1]
    announce = two_raylets.drain(leaving, deadline_s)
    command = Command(two_raylets, place.job(), place.folder)
    wait_until(lambda: len(two_raylets.replicas()) == 2, "both replicas run")
    command.wait_for_shards(3)
    announced = announce()
    wait_until(lambda: not leaving.replicas(), "its replica is gone", every_s=0.05)
    waited = time.time() - announced
    print(f"\nblocks given back {waited:.1f} s after the notice of {deadline_s} s (limit {DRAIN_LIMIT_S:g} s)")
    assert waited <= DRAIN_LIMIT_S
    summary = place.require_undisturbed(command)
    assert summary["retries"]["lost"] > 0
    two_raylets.remove(leaving)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_range_of_replicas_begins_with_what_there_is_room_for(tmp_path: Path, shared: Cluster) -> None:
    longer = Place(tmp_path, blocks_along_inline=24)
    shared.resize(1)
    command = Command(shared, longer.job({"min": 1, "max": 2}), tmp_path)
    command.wait_for_shards(1)
    shared.add_raylet()
    summary = longer.require_undisturbed(command)
    assert len(summary["workers"]) == 2, "the replica that came later scored blocks too"


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_range_of_replicas_starts_whole_and_shrinks_with_the_work(place: Place, two_raylets: Cluster) -> None:
    job = place.job({"min": 1, "max": 2})
    command = Command(two_raylets, job, place.folder)
    command.wait_for_shards(1)
    wait_until(lambda: len(two_raylets.replicas()) == 2, "both replicas run")
    place.require_undisturbed(command)
    windows = two_raylets.evaluate(_windows_of_a_trickle(job))
    assert windows[0] == 4, "the window takes two requests for each of two replicas"
    assert windows[-1] == 2, "it follows the replicas when they become fewer"


def _windows_of_a_trickle(job: dict[str, Any]) -> str:
    """An expression: the window of a pool of 1 to 2 replicas that gets one request after another, until it shrinks."""
    return f"__import__('test_cluster').windows_of_a_trickle({json.dumps(job)!r})"


def windows_of_a_trickle(document: str) -> list[int]:
    """Run in a process on the cluster: the sizes of the window, in the order in which they were seen."""
    from geobatch.score.deployment import deployed

    job = parse_job(json.loads(document))
    plan = ScorePlan.model_validate_json(open_storage(job.output).get("_geobatch/plan.json"))
    with deployed(plan, job.output, job.resources) as pool:
        wait_until(lambda: pool.window() == 4, "both replicas take requests")
        seen = [pool.window()]
        while seen[-1] == 4:
            pool.score([Task(0, look=True)])
            seen.append(pool.window())
    return seen


def _pretend_the_holder_was_elsewhere(output: str) -> None:
    """Change the lease as if a process of another machine held it, of which nobody here can tell whether it lives."""
    storage = open_storage(output)
    body, version = storage.read("_geobatch/lease.json")
    document = json.loads(body)
    assert not document["released"]
    document["holder"]["boot"] = "another machine"
    assert storage.put_if_match("_geobatch/lease.json", json.dumps(document).encode(), version)

"""The scoring line through real Serve replicas, against one forward pass over the whole survey."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
import yaml
from surveys import BUCKET, CLASSES, STEPS, random_volume, write_bundle, write_survey

from geobatch.errors import DataError, IncompleteError, MismatchError, UsageError
from geobatch.job import forecast, parse_job, run_job
from geobatch.models.bundle import load_bundle
from geobatch.preprocess import Chain
from geobatch.proof import read_receipts
from geobatch.score.receipts import MANIFEST
from geobatch.score.run import repair
from geobatch.score.spec import ScoreJob, ScorePlan
from geobatch.shards import encode_shard
from geobatch.storage import join_url, open_storage
from geobatch.survey import open_survey, valid_volume

SHAPE = (45, 38, 51)
BLOCKS = 3 * 2 * 2


@pytest.fixture(scope="module")
def finished(ray_cluster: None) -> str:
    """A place with survey and bundle, and a scored survey that one undisturbed run made."""
    base = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    volume = write_survey(join_url(base, "survey"), random_volume(SHAPE))
    write_bundle(join_url(base, "bundle"), volume)
    summary = run_job(parse_job(job_at(base)))
    assert (summary["blocks"]["scored"], summary["blocks"]["dead"]) == (BLOCKS, 0)
    return base


def copy_of(finished: str) -> str:
    """The URL of a copy of the finished output, for a test to disturb."""
    source, name = open_storage(join_url(finished, "scored")), f"copy-{uuid.uuid4().hex[:8]}"
    target = open_storage(join_url(finished, name))
    for key, _ in source.list():
        target.put(key, source.get(key))
    return target.url


@pytest.fixture
def place(s3: str) -> str:
    """A prefix holding a survey and a bundle."""
    volume = write_survey(join_url(s3, "survey"), random_volume(SHAPE))
    write_bundle(join_url(s3, "bundle"), volume)
    return s3


def job_at(place: str, **keys: Any) -> dict[str, Any]:
    return {
        "job": "score",
        "survey": join_url(place, "survey"),
        "bundle": join_url(place, "bundle"),
        "output": join_url(place, "scored"),
        "shard": [16, 32, 32],
        "chunk": [16, 16, 16],
        "probabilities": "float32",
        "resources": {"replicas": 1, "cpus": 0.5},
        **keys,
    }


def whole_volume(place: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Class probabilities of one forward pass over the survey, and which samples are valid."""
    volume = valid_volume(open_survey(join_url(place, "survey"))).load().chunk()
    chain = Chain.model_validate(STEPS).fit(volume)
    prepared = chain.apply(volume).values
    x = torch.from_numpy(np.nan_to_num(prepared))[None, None]
    with torch.inference_mode():
        logits_K = load_bundle(join_url(place, "bundle")).network()(x)[0]
    return torch.softmax(logits_K, 0).numpy(), np.isfinite(prepared)


def require_equal_to_whole(place: str, output: str) -> None:
    scored = open_survey(output)
    probability, valid = whole_volume(place)
    assert 0 < (~valid).sum() < valid.size / 2, "the survey has holes"
    assert len(np.unique(probability.argmax(axis=0))) == len(CLASSES), "every class occurs"
    np.testing.assert_array_equal(np.isfinite(scored["probability"].values[0]), valid)
    np.testing.assert_allclose(scored["probability"].values[:, valid], probability[:, valid], atol=1e-5)
    ordered = np.sort(probability, axis=0)
    sure = valid & (ordered[-1] - ordered[-2] > 1e-5)
    assert sure.sum() > 0.99 * valid.sum()
    np.testing.assert_array_equal(scored["class_map"].values[sure], probability.argmax(axis=0)[sure])
    assert (scored["class_map"].values[~valid] == 255).all()


def shard_bytes(output: str) -> dict[str, bytes]:
    storage = open_storage(output)
    return {key: storage.get(key) for key, _ in storage.list() if "/c/" in key and not key.startswith("_geobatch")}


@pytest.mark.parametrize(
    "layout",
    [
        {"shard": [16, 32, 32], "resources": {"replicas": 2, "cpus": 0.5}},
        {"shard": [48, 16, 64], "chunk": [16, 16, 32], "patch": [36, 36, 36], "batch": 2},
        {"shard": [64, 64, 64], "chunk": [32, 32, 32]},
    ],
)
def test_scored_survey_equals_the_whole_in_one_piece(finished: str, layout: dict[str, Any]) -> None:
    output = join_url(finished, f"scored-{uuid.uuid4().hex[:8]}")
    summary = run_job(parse_job(job_at(finished, output=output, **layout)))
    assert summary["blocks"]["dead"] == 0
    require_equal_to_whole(finished, output)


def test_second_run_scores_nothing_and_changes_nothing(finished: str) -> None:
    job = parse_job(job_at(finished, output=copy_of(finished)))
    before = shard_bytes(job.output)
    summary = run_job(job)
    assert (summary["blocks"]["kept"], summary["blocks"]["scored"]) == (BLOCKS, 0)
    assert shard_bytes(job.output) == before
    names = ("job.json", "plan.json", "scope.json", "run.json", "lease.json", "dead_letters.json", "manifest.parquet")
    assert {key for key, _ in open_storage(job.output).list("_geobatch")} == {f"_geobatch/{name}" for name in names}


@pytest.mark.usefixtures("ray_cluster")
def test_region_grows_and_keeps_what_was_scored(place: str) -> None:
    part = run_job(parse_job(job_at(place, region={"inline": [100, 110]})))
    assert part["blocks"].pop("wanted") == part["blocks"].pop("scored") == 4
    assert set(part["blocks"].values()) == {0}
    assert open_survey(join_url(place, "scored")).attrs["geobatch"]["state"] == "complete"
    rest = run_job(parse_job(job_at(place, resources={"replicas": 2, "cpus": 0.5})))
    assert (rest["blocks"]["kept"], rest["blocks"]["scored"]) == (4, 8)
    require_equal_to_whole(place, join_url(place, "scored"))


def test_shards_without_receipts_are_verified_and_adopted(finished: str) -> None:
    job = parse_job(job_at(finished, output=copy_of(finished)))
    before = shard_bytes(job.output)
    storage = open_storage(job.output)
    storage.delete(MANIFEST)
    plan = ScorePlan.model_validate_json(storage.get("_geobatch/plan.json"))
    earlier = encode_shard(plan.arrays()[0], np.zeros((16, 32, 32), np.uint8))
    storage.put("class_map/c/0/0/0", earlier)
    summary = run_job(job)
    assert (summary["blocks"]["scored"], summary["blocks"]["adopted"]) == (BLOCKS, BLOCKS)
    assert summary["stage_seconds"]["predict"] == 0, "what is stored whole is not computed again"
    assert shard_bytes(job.output) == {**before, "class_map/c/0/0/0": earlier}, "who came first is kept"
    (first, *_) = read_receipts(storage.get(MANIFEST), MANIFEST).to_pylist()
    assert (first["block"], first["class_map.sha256"]) == (0, hashlib.sha256(earlier).digest())


def test_same_job_file_runs_on_s3_and_on_local_disk(finished: str, tmp_path: Path) -> None:
    abandoned = tmp_path / "scored" / "class_map" / "c" / "0" / "0" / ".0.killed.partial"
    abandoned.parent.mkdir(parents=True)
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    run_job(parse_job(job_at(finished, output=str(tmp_path / "scored"))))
    assert not list((tmp_path / "scored").rglob("*.partial")), "what killed writers left is gone"
    assert shard_bytes(str(tmp_path / "scored")) == shard_bytes(join_url(finished, "scored"))


def test_lost_and_damaged_shards_are_found_and_one_bad_block_stops_nothing(finished: str) -> None:
    job = parse_job(job_at(finished, output=copy_of(finished), attempts=2))
    storage, before = open_storage(job.output), shard_bytes(job.output)
    storage.delete("class_map/c/0/0/0")
    storage.put("class_map/c/1/0/0", b"")
    with pytest.raises(IncompleteError, match=r"1 of 12 blocks could not be scored.*damaged shard"):
        run_job(job)
    (letter,) = json.loads(storage.get("_geobatch/dead_letters.json"))
    assert (letter["block"], letter["attempts"]) == ("1/0/0", 2)
    assert letter["region"]["inline"] == [132, 162]
    assert "Traceback" in letter["traceback"]
    assert open_survey(job.output).attrs["geobatch"]["state"] == "incomplete"
    part = run_job(parse_job(job_at(finished, output=job.output, region={"inline": [100, 101]})))
    assert part["blocks"]["scored"] == 0
    assert open_survey(job.output).attrs["geobatch"]["state"] == "incomplete", "a whole part is not the whole"
    assert len(json.loads(storage.get("_geobatch/dead_letters.json"))) == 1
    assert repair(job.output)["blocks"]["scored"] == 1
    assert shard_bytes(job.output) == before
    assert open_survey(job.output).attrs["geobatch"]["state"] == "complete"


def test_changed_settings_are_refused_by_name(finished: str) -> None:
    output = copy_of(finished)
    with pytest.raises(MismatchError, match="probabilities: uint8 now, float32 then"):
        run_job(parse_job(job_at(finished, output=output, probabilities="uint8")))
    with pytest.raises(MismatchError, match="statistics: bundle now, survey then"):
        run_job(parse_job(job_at(finished, output=output, statistics="bundle")))
    write_survey(join_url(output, "other"), random_volume(SHAPE, seed=1), identity="another")
    with pytest.raises(MismatchError, match="survey_identity: another now, test-survey then"):
        run_job(parse_job(job_at(finished, output=output, survey=join_url(output, "other"))))


def test_run_that_ended_right_after_its_plan_is_continued(finished: str) -> None:
    output = copy_of(finished)
    storage = open_storage(output)
    for key, _ in list(storage.list()):
        if key != "_geobatch/plan.json":
            storage.delete(key)
    run_job(parse_job(job_at(finished, output=output)))
    assert shard_bytes(output) == shard_bytes(join_url(finished, "scored"))


def test_replicas_that_the_cluster_cannot_hold_are_refused(finished: str) -> None:
    output = join_url(finished, "never")
    with pytest.raises(UsageError, match=r"cannot hold the replicas; found .*0 GPU.*1 replicas of 0.5 CPU and 1 GPU"):
        run_job(parse_job(job_at(finished, output=output, resources={"cpus": 0.5, "gpus": 1, "gpu_memory_gib": 8})))


def test_wrong_quantity_and_axis_are_refused_with_the_reason(place: str) -> None:
    write_survey(join_url(place, "survey"), random_volume(SHAPE), quantity="velocity", domain="depth", sample_unit="m")
    with pytest.raises(MismatchError, match=r"found velocity in depth \(m\); expected amplitude in time \(ms\)"):
        run_job(parse_job(job_at(place)))
    assert not list(open_storage(join_url(place, "scored")).list()), "nothing was written"


def test_survey_that_lost_an_object_is_refused(place: str) -> None:
    open_storage(join_url(place, "survey")).delete("amplitude/c/1/1/1")
    with pytest.raises(DataError, match="1 missing or empty, such as amplitude/c/1/1/1"):
        run_job(parse_job(job_at(place)))


def test_memory_that_cannot_fit_is_refused_with_figures(place: str) -> None:
    with pytest.raises(UsageError, match=r"GiB projected per replica .*at most 0.50 GiB"):
        run_job(parse_job(job_at(place, resources={"memory_gib": 0.5})))


def test_forecast_states_blocks_patch_and_memory(place: str) -> None:
    told = forecast(parse_job(job_at(place)))
    assert (told["blocks"], told["voxels"]) == (12, np.prod(SHAPE))
    assert told["memory_per_replica"]["projected_gib"] > 0.7
    assert told["redundancy"] > 1


def test_output_that_is_something_else_is_left_alone(place: str) -> None:
    before = shard_bytes(join_url(place, "survey"))
    with pytest.raises(UsageError, match="no scoring run"):
        run_job(parse_job(job_at(place, output=join_url(place, "survey"))))
    assert shard_bytes(join_url(place, "survey")) == before


def test_killed_replicas_cost_time_only(finished: str) -> None:
    from ray import serve

    killed: list[int] = []

    def kill(done: int, total: int, news: str) -> None:
        if done in (2, 5):
            replicas = [p for p in psutil.process_iter(["name", "cmdline"]) if _is_replica(p)]
            os.kill(replicas[0].pid, signal.SIGKILL)
            killed.append(replicas[0].pid)

    output = join_url(finished, "killed-replicas")
    job = parse_job(job_at(finished, output=output, resources={"replicas": 2, "cpus": 0.5}))
    summary = run_job(job, on_progress=kill)
    assert len(killed) == 2
    assert (summary["blocks"]["scored"], summary["blocks"]["dead"]) == (BLOCKS, 0)
    assert shard_bytes(output) == shard_bytes(join_url(finished, "scored"))
    assert serve.status().applications == {}, "no application is left behind"


def _is_agent(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "Agent" in process.name()
    return True


def _is_replica(process: psutil.Process) -> bool:
    return any("ServeReplica" in part for part in process.info["cmdline"] or [])


def test_killed_driver_costs_only_the_blocks_in_flight(finished: str, tmp_path: Path) -> None:
    output = join_url(finished, "killed-driver")
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_at(finished, output=output)))
    command = [sys.executable, "-m", "geobatch.cli", "run", str(path), "--json"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for_shards(output, driver, 3)
    # Ray's own agents hold no device; they leave when their last call to the dead head has timed out.
    workers = [p for p in psutil.Process(driver.pid).children(recursive=True) if not _is_agent(p)]
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, f"left behind: {alive}"
    before = shard_bytes(output)
    assert 3 <= sum(key.startswith("class_map") for key in before) < BLOCKS
    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    blocks = json.loads(again.stdout)["blocks"]
    assert blocks["kept"] + blocks["scored"] == BLOCKS
    after = shard_bytes(output)
    assert {key: after[key] for key in before} == before, "a finished shard is never changed"
    assert after == shard_bytes(join_url(finished, "scored"))


def _wait_for_shards(output: str, driver: subprocess.Popen[bytes], count: int) -> int:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and driver.poll() is None:
        with contextlib.suppress(OSError):
            written = sum(key.startswith("class_map/c/") for key, _ in open_storage(output).list("class_map"))
            if written >= count:
                return written
        time.sleep(0.05)
    raise AssertionError(f"driver ended with {driver.poll()} before {count} blocks were written")


def test_job_schema_has_every_key_of_a_score_job() -> None:
    from geobatch.job import job_schema

    assert set(ScoreJob.model_fields) == set(job_schema()["$defs"]["ScoreJob"]["properties"])

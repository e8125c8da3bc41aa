"""Trainings that are killed at every step and inside every checkpoint: the weights are those of one that was not."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
import training_line
from struck import Fault, Outcome
from training_line import TrainingLine

from geobatch.errors import IntegrityError
from geobatch.interpretation.synthetic import SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_labels, write_survey
from geobatch.local_s3 import LocalS3
from geobatch.models.bundle import load_bundle
from geobatch.storage import join_url, open_storage
from geobatch.train.kinds import open_task
from geobatch.train.places import WorkerPlan
from geobatch.train.spec import TrainJob
from geobatch.train.train import _tell_damaged, make_plan, train

STEPS, EPOCHS = 4, 5
ALL_STEPS = range(1, STEPS * EPOCHS + 1)
FILES = ("model.safetensors", "optimizer.pt", "average.safetensors", "progress.json", "manifest.json")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::UserWarning:ray")


def tiny_job(place: str, output: str, **resources: Any) -> TrainJob:
    return TrainJob.model_validate(
        {
            "data": [{"survey": f"{place}/survey", "labels": f"{place}/labels"}],
            "output": output,
            "validation": {"fraction": 0.2, "guard": 2, "patches": 4},
            "preprocess": [{"step": "clip"}, {"step": "scale"}],
            "model": {"channels": 2, "levels": 2},
            "training": {
                "patch": [8, 8, 8],
                "steps_per_epoch": STEPS,
                "epochs": EPOCHS,
                "seed": 3,
                "ema": 0.8,
                "max_failures": 40,
            },
            "resources": {"workers": 1, "threads": 1, "cache_mib": 0, **resources},
        }
    )


def write_data(place: str) -> str:
    synthetic = SyntheticSurvey((40, 16, 16), seed=8)
    write_survey(synthetic, f"{place}/survey", (16, 16, 16), (48, 48, 48))
    write_labels(synthetic, f"{place}/labels", (16, 16, 16), (48, 48, 48))
    return place


@dataclass
class Stage:
    """A plan whose checkpoints lie in a new place each time, and the training that nothing disturbed."""

    plan: WorkerPlan
    line: TrainingLine
    folder: str
    number: int = 0

    def __post_init__(self) -> None:
        self.whole = self.line.start(self.new_plan())
        outcome = self.whole.wait()
        assert outcome.summary, outcome
        self.weights, self.history = outcome.summary["weights"], outcome.summary["history"]

    def new_plan(self) -> WorkerPlan:
        self.number += 1
        return self.plan.model_copy(update={"place": join_url(self.folder, f"run-{self.number}")})

    def killed(self, fault: Fault) -> WorkerPlan:
        plan = self.new_plan()
        assert self.line.start(plan, fault).wait().signal == signal.SIGKILL, fault
        return plan

    def require_same(self, outcome: Outcome, told: object) -> None:
        assert outcome.summary, (told, outcome)
        assert outcome.summary["history"] == self.history or outcome.summary["history"] == [], told
        for name, value in self.weights.items():
            assert np.array_equal(outcome.summary["weights"][name], value), (told, name)

    def require_resumes(self, plan: WorkerPlan, told: object, epochs: int | None = None) -> None:
        """Run again: the weights are the same; it went on from that epoch."""
        run = self.line.start(plan)
        self.require_same(run.wait(), told)
        if epochs is not None:
            assert [passed.point for passed in run.passed(begins="restored")] == [f"restored {epochs}"], told

    def kill_and_resume(self, fault: Fault, epochs: int | None = None) -> None:
        self.require_resumes(self.killed(fault), fault, epochs)


def make_stage(url: str, folder: Path, environment: dict[str, str] | None = None) -> Stage:
    job = tiny_job(write_data(url), f"{url}/unused")
    folder.mkdir()
    return Stage(make_plan(job, open_task(job), "run"), TrainingLine(folder, environment), url)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    place = tmp_path_factory.mktemp("training")
    return make_stage(str(place), place / "traces")


def test_training_killed_at_a_step_or_inside_a_checkpoint_ends_in_the_same_bits(stage: Stage) -> None:
    for step, epochs in ((1, 0), (7, 1), (8, 1), (20, 4)):
        stage.kill_and_resume(Fault(point=f"after step {step}"), epochs)
    stage.kill_and_resume(Fault(point="before replace epoch-00001/optimizer.pt"), 0)
    stage.kill_and_resume(Fault(point="before replace epoch-00003/manifest.json"), 2)
    stage.kill_and_resume(Fault(point="after replace epoch-00003/manifest.json"), 3)
    stage.kill_and_resume(Fault(point="after delete epoch-00002/model.safetensors"), 4)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_training_killed_anywhere_ends_in_the_same_bits(stage: Stage) -> None:
    points = stage.whole.passed()
    for passed in points:
        stage.kill_and_resume(Fault(passed.number))
    print(f"\n{len(points)} kills")
    assert len(points) > 150
    steps = [passed.point for passed in points if passed.point.startswith("after step")]
    assert steps == [f"after step {step}" for step in ALL_STEPS]


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_training_on_s3_killed_at_many_points_ends_in_the_same_bits(
    s3: str, s3_server: LocalS3, tmp_path: Path
) -> None:
    stage = make_stage(s3, tmp_path / "traces", s3_server.environment)
    points = [passed for passed in stage.whole.passed() if passed.number % 4 == 0]
    points += [passed for passed in stage.whole.passed(begins="before put epoch-00003/manifest.json")]
    for passed in points:
        stage.kill_and_resume(Fault(passed.number))
    print(f"\n{len(points)} kills")
    assert len(points) > 25


def damage(plan: WorkerPlan, key: str) -> None:
    """Flip one byte of a file of a checkpoint."""
    storage = open_storage(join_url(plan.place, plan.run))
    body = bytearray(storage.get(key))
    body[len(body) // 2] ^= 16
    storage.put(key, bytes(body))


@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoint_is_passed_over_for_the_one_before(stage: Stage, name: str) -> None:
    plan = stage.killed(Fault(point="after step 15"))
    damage(plan, f"epoch-00003/{name}")
    whole, damaged = plan.checkpoints().whole()
    assert whole == ["epoch-00002"]
    assert [error.where.rpartition("/")[2] for error in damaged] == ["epoch-00003"]
    told: list[str] = []
    _tell_damaged(plan, lambda step, steps, line: told.append(line))
    assert len(told) == 1 and "/epoch-00003: " in told[0] and told[0].endswith("continues from epoch-00002")
    stage.require_resumes(plan, name, 2)


def test_half_a_manifest_is_passed_over_and_a_missing_one_makes_no_checkpoint(stage: Stage) -> None:
    plan = stage.killed(Fault(point="after step 15"))
    storage = open_storage(join_url(plan.place, plan.run))
    manifest = storage.get("epoch-00003/manifest.json")
    storage.put("epoch-00003/manifest.json", manifest[: len(manifest) // 2])
    storage.delete("epoch-00002/manifest.json")
    with pytest.raises(IntegrityError, match="epoch-00003: a checkpoint is not whole"):
        plan.checkpoints().whole()
    storage.delete("epoch-00003/manifest.json")
    assert plan.checkpoints().whole() == ([], [])
    stage.require_resumes(plan, "no manifest", 0)


def test_damaged_checkpoints_alone_are_an_error_that_names_the_newest(stage: Stage) -> None:
    plan = stage.killed(Fault(point="after step 15"))
    for epoch in (2, 3):
        damage(plan, f"epoch-0000{epoch}/model.safetensors")
    error = stage.line.start(plan).wait().error
    assert isinstance(error, IntegrityError)
    assert "run/epoch-00003: model.safetensors of a checkpoint differs from its hash" in str(error)
    assert "Delete the checkpoint" in str(error)
    for epoch in (2, 3):
        for key, _ in list(open_storage(join_url(plan.place, plan.run)).list(f"epoch-0000{epoch}")):
            open_storage(join_url(plan.place, plan.run)).delete(key)
    stage.require_resumes(plan, "as the remedy says", 0)


@pytest.fixture
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's controller looks at its workers every half second, not every two."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


def strikes(steps: list[int], keys: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the first worker kill itself at these points, once at each; what tells how many have struck."""
    folder.mkdir()
    # Workers cannot import what only tests can.
    ray.cloudpickle.register_pickle_by_value(training_line)
    worker = functools.partial(training_line.struck_worker, str(folder), steps, keys)
    monkeypatch.setattr("geobatch.train.train.train_worker", worker)
    return lambda: len(list(folder.iterdir()))


def require_same_weights(one: str, other: str) -> None:
    first, second = load_bundle(one), load_bundle(other)
    assert first.spec.metrics["history"] == second.spec.metrics["history"]
    for name, value in first.network().state_dict().items():
        assert torch.equal(value, second.network().state_dict()[name]), name


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("quick_reports", "ray_cluster")
def test_workers_of_ray_killed_in_every_epoch_and_in_uploads_end_in_the_same_bits(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_data(s3)
    train(tiny_job(place, f"{s3}/whole", workers=2))
    steps = [1, 6, 11, 16, 20]
    keys = ["epoch-00001/optimizer.pt", "epoch-00001/manifest.json", "epoch-00004/manifest.json"]
    struck = strikes(steps, keys, tmp_path / "struck", monkeypatch)
    train(tiny_job(place, f"{s3}/struck", workers=2))
    assert struck() == len(steps) + len(keys)
    require_same_weights(f"{s3}/whole", f"{s3}/struck")


@contextlib.contextmanager
def command(job: TrainJob, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command `geobatch run` on its way, with all that it starts."""
    path.write_text(job.model_dump_json())
    program = [sys.executable, "-m", "geobatch.cli", "run", str(path)]
    with subprocess.Popen(program, env=os.environ, stdout=subprocess.DEVNULL) as process:
        yield process


def steps_done(job: TrainJob) -> int:
    try:
        return int(json.loads(open_storage(job.output).get("_geobatch/train/progress.json"))["step"])
    except (KeyError, ValueError):
        return 0


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("quick_reports")
def test_killed_driver_goes_on_where_it_was(tmp_path: Path) -> None:
    place = write_data(str(tmp_path))
    whole, killed = (tiny_job(place, f"{tmp_path}/{name}") for name in ("whole", "killed"))
    with command(whole, tmp_path / "whole.json") as process:
        assert process.wait(600) == 0
    for epochs in (1, 3):
        with command(killed, tmp_path / "killed.json") as process:
            while steps_done(killed) < epochs * STEPS:
                assert process.poll() is None
                time.sleep(0.05)
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
            for member in family:
                member.kill()
            assert process.wait(60) == -signal.SIGKILL
    with command(killed, tmp_path / "killed.json") as process:
        assert process.wait(600) == 0
    require_same_weights(f"{tmp_path}/whole", f"{tmp_path}/killed")

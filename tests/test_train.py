from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import psutil
import pytest
import torch

from geobatch.errors import MismatchError, NotFoundError
from geobatch.interpretation.synthetic import SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_labels, write_survey
from geobatch.models.bundle import load_bundle
from geobatch.storage import open_storage
from geobatch.train.spec import TrainJob
from geobatch.train.train import train

EPOCHS = 8
# Ray's own modules use what Ray itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::UserWarning:ray")


@pytest.fixture(scope="module")
def data(s3_server: Any) -> dict[str, str]:
    from geobatch.local_s3 import environment

    with environment(s3_server.environment):
        survey = SyntheticSurvey((36, 32, 32), seed=8)
        write_survey(survey, "s3://surveys/train/survey", (16, 16, 16), (32, 32, 32))
        write_labels(survey, "s3://surveys/train/labels", (16, 16, 16), (32, 32, 32))
    return {"survey": "s3://surveys/train/survey", "labels": "s3://surveys/train/labels"}


def tiny_job(data: dict[str, str], output: str, **changes: Any) -> TrainJob:
    values = {
        "data": [data],
        "output": output,
        "validation": {"fraction": 0.2, "guard": 2},
        "preprocess": [{"step": "clip"}, {"step": "scale"}],
        "model": {"channels": 2, "levels": 2},
        "training": {"patch": [16, 16, 16], "steps_per_epoch": 2, "epochs": EPOCHS, "seed": 3},
        "resources": {"workers": 2, "threads": 1, "cache_mib": 0},
    }
    return TrainJob.model_validate(values | changes)


def train_workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_one_worker_after_an_epoch(output: str, killed: list[int]) -> None:
    storage = open_storage(output)
    while not any(key.endswith("optimizer.pt") for key, _ in storage.list("_geobatch")):
        time.sleep(0.1)
    worker = train_workers()[0]
    os.kill(worker.pid, signal.SIGKILL)
    killed.append(worker.pid)


def test_a_killed_worker_costs_time_and_not_a_bit_of_the_weights(
    ray_cluster: None, s3: str, data: dict[str, str]
) -> None:
    undisturbed = load_bundle(train(tiny_job(data, f"{s3}/undisturbed")))
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_worker_after_an_epoch, args=(f"{s3}/disturbed", killed), daemon=True)
    killer.start()
    disturbed = load_bundle(train(tiny_job(data, f"{s3}/disturbed")))
    assert killed
    assert [entry["epoch"] for entry in disturbed.spec.metrics["history"]] == list(range(1, EPOCHS + 1))
    assert disturbed.spec.metrics["history"] == undisturbed.spec.metrics["history"]
    for name, value in undisturbed.network().state_dict().items():
        assert torch.equal(value, disturbed.network().state_dict()[name]), name

    assert undisturbed.spec.data.quantity == "amplitude"
    assert (undisturbed.spec.data.sample_interval, undisturbed.spec.data.sample_unit) == (4.0, "ms")
    assert undisturbed.spec.reach.stride == (2, 2, 2)
    assert undisturbed.spec.chain.fitted
    assert [entry.name for entry in undisturbed.spec.classes] == ["layered", "transparent", "chaotic", "fault"]
    assert undisturbed.spec.metrics["validation"]["voxels"] == 7 * 32 * 32

    hash_before = undisturbed.spec.hash
    started = time.monotonic()
    assert load_bundle(train(tiny_job(data, f"{s3}/undisturbed"))).spec.hash == hash_before
    assert time.monotonic() - started < 5, "a finished job is not trained again"


def test_a_job_whose_surveys_do_not_exist_or_fit_is_refused_before_workers_start(s3: str, data: dict[str, str]) -> None:
    with pytest.raises(NotFoundError):
        train(tiny_job({**data, "survey": f"{s3}/nothing"}, f"{s3}/out"))
    write_labels(SyntheticSurvey((36, 32, 31), seed=8), f"{s3}/labels", (16, 16, 16), (32, 32, 32))
    with pytest.raises(MismatchError, match="sample"):
        train(tiny_job({**data, "labels": f"{s3}/labels"}, f"{s3}/out"))

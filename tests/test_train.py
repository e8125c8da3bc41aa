from __future__ import annotations

import copy
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from geobatch.errors import IntegrityError, MismatchError, NotFoundError, UsageError
from geobatch.interpretation.synthetic import Block, SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_labels, write_survey
from geobatch.models import build_model
from geobatch.models.bundle import WEIGHTS, Bundle, load_bundle
from geobatch.storage import open_storage
from geobatch.survey import open_survey, valid_volume
from geobatch.train.board import EVENTS, FOLDER
from geobatch.train.checkpoint import Progress
from geobatch.train.data import PatchReader, Region, class_counts, draw_patch, open_labelled
from geobatch.train.losses import class_weights, label_weight, segmentation_loss
from geobatch.train.schedule import learning_rate
from geobatch.train.spec import TrainJob
from geobatch.train.train import train

EPOCHS = 4
WORKERS = 2
CROP = {"step": "crop", "inline": [1001, 1032]}
# Ray's own modules use what Ray itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::UserWarning:ray")


class LoudSurvey(SyntheticSurvey):
    """Amplitudes whose squares are beyond float32."""

    def block(self, region: Region) -> Block:
        block = super().block(region)
        return {**block, "amplitude": block["amplitude"] * np.float32(1e33)}


def write_data(survey: SyntheticSurvey, place: str) -> dict[str, str]:
    write_survey(survey, f"{place}/survey", (16, 16, 16), (48, 48, 48))
    write_labels(survey, f"{place}/labels", (16, 16, 16), (48, 48, 48))
    return {"survey": f"{place}/survey", "labels": f"{place}/labels"}


@pytest.fixture(scope="module", autouse=True)
def quick_reports() -> Iterator[None]:
    """Ray's controller takes an epoch's report every half second, not every two: tiny epochs wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        yield


@pytest.fixture(scope="module")
def data(s3_server: Any) -> dict[str, str]:
    from geobatch.local_s3 import environment

    with environment(s3_server.environment):
        return write_data(SyntheticSurvey((40, 16, 16), seed=8), "s3://surveys/train")


@pytest.fixture(scope="module")
def trained(s3_server: Any, ray_cluster: None, data: dict[str, str]) -> tuple[TrainJob, Bundle]:
    from geobatch.local_s3 import environment

    with environment(s3_server.environment):
        job = tiny_job(data, "s3://surveys/train/bundle")
        return job, load_bundle(train(job))


def tiny_job(data: dict[str, str], output: str, training: dict[str, Any] | None = None, **changes: Any) -> TrainJob:
    values = {
        "data": [data],
        "output": output,
        "validation": {"fraction": 0.2, "guard": 2},
        "preprocess": [CROP, {"step": "clip"}, {"step": "scale"}],
        "model": {"channels": 2, "levels": 2},
        "training": {"patch": [8, 8, 8], "steps_per_epoch": 2, "epochs": EPOCHS, "seed": 3} | (training or {}),
        "resources": {"workers": WORKERS, "threads": 1, "cache_mib": 0},
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
        time.sleep(0.05)
    worker = train_workers()[0]
    os.kill(worker.pid, signal.SIGKILL)
    killed.append(worker.pid)


def test_a_killed_worker_costs_time_and_not_a_bit_of_the_weights(
    s3: str, data: dict[str, str], trained: tuple[TrainJob, Bundle]
) -> None:
    _, undisturbed = trained
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_worker_after_an_epoch, args=(s3, killed), daemon=True)
    killer.start()
    disturbed = load_bundle(train(tiny_job(data, s3)))
    assert killed
    assert [entry["epoch"] for entry in disturbed.spec.metrics["history"]] == list(range(1, EPOCHS + 1))
    assert disturbed.spec.metrics["history"] == undisturbed.spec.metrics["history"]
    for name, value in undisturbed.network().state_dict().items():
        assert torch.equal(value, disturbed.network().state_dict()[name]), name


@pytest.mark.chaos
def test_worker_that_stands_still_is_noticed_within_a_minute(
    s3: str, data: dict[str, str], trained: tuple[TrainJob, Bundle]
) -> None:
    _, undisturbed = trained
    times: list[float] = []

    def freeze() -> None:
        storage = open_storage(s3)
        while not any(key.endswith("optimizer.pt") for key, _ in storage.list("_geobatch")):
            time.sleep(0.05)
        frozen = {worker.pid for worker in train_workers()}
        os.kill(min(frozen), signal.SIGSTOP)
        times.append(time.monotonic())
        while not {worker.pid for worker in train_workers()} - frozen:
            time.sleep(0.1)
        times.append(time.monotonic())

    thread = threading.Thread(target=freeze, daemon=True)
    thread.start()
    disturbed = load_bundle(train(tiny_job(data, s3)))
    thread.join(timeout=1)
    assert times[1] - times[0] < 60
    for name, value in undisturbed.network().state_dict().items():
        assert torch.equal(value, disturbed.network().state_dict()[name]), name


def test_a_bundle_tells_what_it_was_trained_on(s3: str, trained: tuple[TrainJob, Bundle]) -> None:
    job, bundle = trained
    assert bundle.spec.data.quantity == "amplitude"
    assert (bundle.spec.data.sample_interval, bundle.spec.data.sample_unit) == (4.0, "ms")
    assert bundle.spec.reach.stride == (2, 2, 2)
    assert [entry.name for entry in bundle.spec.classes] == ["layered", "transparent", "chaotic", "fault"]
    assert bundle.spec.metrics["validation"]["voxels"] == 6 * 16 * 16
    # The crop stays behind; statistics are those of all that it leaves, the held-out band included.
    url = job.data[0].survey
    assert bundle.spec.chain.steps == job.preprocess.fit(valid_volume(open_survey(url), url)).steps[1:]
    assert bundle.spec.provenance["job"]["preprocess"]["steps"][0]["step"] == "crop"


def test_a_finished_job_is_not_trained_again_and_another_run_does_not_replace_its_bundle(
    s3: str, data: dict[str, str], trained: tuple[TrainJob, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(plan: Any) -> None:
        raise AssertionError("workers were started")

    monkeypatch.setattr("geobatch.train.train._run_workers", never)
    job, bundle = trained
    assert load_bundle(train(job)).spec.hash == bundle.spec.hash
    with pytest.raises(UsageError, match=r"another run.*another output, or delete bundle\.json"):
        train(tiny_job(data, job.output, training={"seed": 4}))


def test_a_bundle_whose_weights_are_torn_is_trained_again(
    s3: str, trained: tuple[TrainJob, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, bundle = trained
    open_storage(job.output).put(WEIGHTS, b"torn")
    with pytest.raises(IntegrityError):
        load_bundle(job.output)

    def resumed(plan: Any) -> tuple[Progress, torch.nn.Module]:
        return Progress(EPOCHS, bundle.spec.metrics["history"]), bundle.network()

    monkeypatch.setattr("geobatch.train.train._run_workers", resumed)
    assert load_bundle(train(job)).spec.hash == bundle.spec.hash


def test_a_training_that_diverges_stops_with_epoch_step_and_rate(ray_cluster: None, s3: str) -> None:
    job = tiny_job(
        write_data(LoudSurvey((24, 16, 16), seed=8), s3), f"{s3}/bundle", preprocess=[], resources={"workers": 1}
    )
    with pytest.raises(
        UsageError,
        match=r"finite; found .* epoch 1, step 1, at learning rate 0\.005, of .*survey, inline .*\+?e.*Lower",
    ) as raised:
        train(job)
    assert raised.value.where == job.output
    with pytest.raises(NotFoundError):
        load_bundle(job.output)


def test_two_workers_train_what_one_process_would_on_the_patches_of_both(
    s3: str, trained: tuple[TrainJob, Bundle]
) -> None:
    job, bundle = trained
    training = job.training
    survey = open_labelled(job.data[0])
    reader = PatchReader.split(survey, job.preprocess.fit(survey.volume), job.validation)
    reader.cache()
    weights_K = torch.tensor(class_weights(class_counts([reader], training.patch).tolist(), training.class_weights))
    torch.manual_seed(training.seed)
    first = build_model(bundle.spec.model).train()
    networks = [first, *(copy.deepcopy(first) for _ in range(WORKERS - 1))]
    optimizers = [torch.optim.AdamW(n.parameters(), weight_decay=training.weight_decay) for n in networks]
    for step in range(training.steps_per_epoch * training.epochs):
        batches = []
        for rank in range(WORKERS):
            keys = [(training.seed, step, rank * training.batch + item) for item in range(training.batch)]
            patches = [draw_patch([reader], training.patch, training.augment, key) for key in keys]
            batches.append([torch.from_numpy(np.stack(part)) for part in zip(*patches, strict=True)])
        weight = sum(label_weight(labels.long(), weights_K) for _, labels in batches) / WORKERS
        for network, (amplitude, labels) in zip(networks, batches, strict=True):
            network.zero_grad()
            segmentation_loss(network(amplitude[:, None]), labels.long(), weights_K, weight).backward()
        for shared in zip(*(n.parameters() for n in networks), strict=True):
            average([parameter.grad for parameter in shared])
        for network, optimizer in zip(networks, optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = learning_rate(training, step)
            optimizer.step()
        if (step + 1) % training.steps_per_epoch == 0:
            for shared in zip(*(n.buffers() for n in networks), strict=True):
                average(shared)
    for name, value in bundle.network().state_dict().items():
        torch.testing.assert_close(value, first.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)


def average(tensors: Sequence[torch.Tensor]) -> None:
    if tensors[0].is_floating_point():
        mean = torch.stack([tensor.detach() for tensor in tensors]).mean(dim=0)
        for tensor in tensors:
            tensor.data.copy_(mean)


def test_a_job_whose_surveys_do_not_exist_or_fit_is_refused_before_workers_start(s3: str, data: dict[str, str]) -> None:
    with pytest.raises(NotFoundError):
        train(tiny_job({**data, "survey": f"{s3}/nothing"}, f"{s3}/out"))
    write_labels(SyntheticSurvey((40, 16, 15), seed=8), f"{s3}/labels", (16, 16, 16), (48, 48, 48))
    with pytest.raises(MismatchError, match="sample"):
        train(tiny_job({**data, "labels": f"{s3}/labels"}, f"{s3}/out"))


def test_a_run_leaves_its_figures_for_tensorboard(s3: str, trained: tuple[TrainJob, Bundle]) -> None:
    job, _ = trained
    (key,) = (key for key, _ in open_storage(job.output).list("_geobatch") if key.endswith(f"{FOLDER}/{EVENTS}"))
    assert b"mean_class_accuracy" in open_storage(job.output).get(key)

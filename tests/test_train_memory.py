"""What a training needs is told before its workers start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from geobatch.errors import UsageError
from geobatch.interpretation.synthetic import SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_labels, write_survey
from geobatch.models.inference import tensor_bytes
from geobatch.train.kinds import open_task
from geobatch.train.memory import project_training, require_memory, step_bytes
from geobatch.train.spec import TrainJob
from geobatch.train.train import make_plan
from geobatch.train.volumes import VolumeTask

SHAPE = (40, 24, 32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("surveys")
    write_survey(SyntheticSurvey(SHAPE, seed=2), f"{folder}/survey", (16, 16, 16), (48, 48, 48))
    write_labels(SyntheticSurvey(SHAPE, seed=2), f"{folder}/labels", (16, 16, 16), (48, 48, 48))
    return {"survey": f"{folder}/survey", "labels": f"{folder}/labels"}


def job_of(data: dict[str, str], **training: Any) -> TrainJob:
    values = {"data": [data], "model": {"channels": 4, "levels": 2}, "training": training, "output": "unused"}
    return TrainJob.model_validate(values)


def test_bytes_of_a_step_are_those_of_its_tensors() -> None:
    x = torch.ones(1000, requires_grad=True)
    # The product, its sum and the gradients of both are alive at the most; the square's input is there before.
    assert 4000 <= tensor_bytes(lambda: (x * 2).square().sum().backward()) <= 5 * 4000
    layers = [nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(n))) for n in (4, 8)]
    inputs = torch.ones(500, 64)
    held = [tensor_bytes(lambda layer=layer: layer(inputs).sum().backward()) for layer in layers]
    kept = 500 * 64 * 4
    # Each layer's activation waits for the backward pass.
    assert held[1] - held[0] >= 4 * kept


def test_projection_grows_with_patch_batch_and_network(data: dict[str, str]) -> None:
    def step(channels: int = 4, cells: int = 16, batch: int = 2) -> int:
        job = job_of(data, patch=[cells] * 3, batch=batch)
        job = job.model_copy(update={"model": job.model.model_copy(update={"channels": channels})})
        return step_bytes(make_plan(job, open_task(job), "run"), (batch, 1, cells, cells, cells))

    assert step(cells=32) == pytest.approx(8 * step(), rel=0.1)
    assert step(batch=4) == pytest.approx(2 * step(), rel=0.1)
    assert step(channels=8) > 1.7 * step()


def test_training_that_does_not_fit_is_refused_with_its_figures(
    data: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(data, patch=[32, 32, 32], batch=4)
    task = open_task(job)
    assert isinstance(task, VolumeTask)
    plan = make_plan(job, task, "run")
    example, data_bytes = task.memory(plan.fitted)
    # The patch is clipped to what the survey offers.
    assert example == (1, 26, 24, 32) and data_bytes == 5 * np.prod(SHAPE)
    needed = project_training(plan, example, data_bytes).total
    monkeypatch.setattr("geobatch.train.memory.free_memory_bytes", lambda workers: needed)
    assert require_memory(plan, example, data_bytes).total == needed
    monkeypatch.setattr("geobatch.train.memory.free_memory_bytes", lambda workers: needed - 1)
    with pytest.raises(
        UsageError,
        match=r"patches of \(26, 24, 32\) in batches of 4 does not fit in memory; found .* GiB projected per worker "
        r"\(worker .*, data .*, batches .*, step .* GiB\); expected at most .* GiB for each .*Lower training\.patch",
    ):
        require_memory(plan, example, data_bytes)

"""The loop by itself: what resumes is what was not interrupted, and each key of a training does what it says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from wells import wells_data, write_wells

from geobatch.errors import IntegrityError, MismatchError, UsageError
from geobatch.models import build_model
from geobatch.models.bundle import save_bundle
from geobatch.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from geobatch.train.loop import begin_from, fit_network
from geobatch.train.places import AlonePlace, WorkerPlan
from geobatch.train.schedule import epochs_since_best, learning_rate, monitored, plateau_factor
from geobatch.train.source import Batch
from geobatch.train.spec import Training, TrainJob
from geobatch.train.state import TrainingState
from geobatch.train.train import make_plan, trained_bundle
from geobatch.train.wells import WellsSource, WellsTask

STEPS, EPOCHS = 4, 5
RNN = {"name": "rnn", "cell": "gru", "hidden": 5, "layers": 1}
CNN = {"name": "cnn", "channels": 4, "stages": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> str:
    return write_wells(tmp_path_factory.mktemp("wells"))


def prepared(survey: str, model: dict[str, Any], **training: Any) -> tuple[WorkerPlan, WellsSource, WellsTask]:
    job = TrainJob.model_validate(
        {
            "data": [wells_data(survey)],
            "validation": {"wells": ["B"]},
            "model": model,
            "training": {"patch": [32], "batch": 4, "steps_per_epoch": STEPS, "epochs": EPOCHS, "seed": 7} | training,
            "output": "unused",
        }
    )
    task = WellsTask(job)
    plan = make_plan(job, task, "run")
    return plan, task.source(plan.fitted), task


class Watched(AlonePlace):
    """Keeps weights after every step and epoch, checkpoints in a folder, and dies at a step when told to."""

    def __init__(self, folder: Path, dies_at: int = 0) -> None:
        super().__init__()
        self.folder, self.dies_at = folder, dies_at
        self.by_step: list[dict[str, torch.Tensor]] = []
        self.by_epoch: list[dict[str, torch.Tensor]] = []

    def restored(self, state: TrainingState) -> Progress:
        self.state = state
        return load_checkpoint(self.folder, state) if (self.folder / "manifest.json").exists() else Progress()

    def step_done(self, step: int) -> None:
        self.by_step.append(weights(self.state.network))
        if step == self.dies_at:
            raise KeyboardInterrupt

    def epoch_done(self, state: TrainingState, progress: Progress) -> None:
        super().epoch_done(state, progress)
        self.by_epoch.append(weights(state.judged))
        save_checkpoint(self.folder, state, progress)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def fitted(plan: WorkerPlan, place: AlonePlace, source: WellsSource) -> nn.Module:
    network = fit_network(plan, place, source)
    assert isinstance(network, nn.Module)
    return network


def test_run_that_died_at_any_step_ends_in_the_same_bits(survey: str, tmp_path: Path) -> None:
    plan, source, _ = prepared(survey, CNN, ema=0.8, schedule="plateau", plateau_epochs=1, early_stop=4)
    (tmp_path / "whole").mkdir()
    whole = fitted(plan, Watched(tmp_path / "whole"), source)
    for step in range(1, STEPS * EPOCHS + 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        with pytest.raises(KeyboardInterrupt):
            fit_network(plan, Watched(folder, dies_at=step), source)
        resumed = fitted(plan, Watched(folder), source)
        for name, value in weights(whole).items():
            assert torch.equal(value, resumed.state_dict()[name]), (step, name)


def test_accumulated_batches_make_the_step_of_one_large_batch(survey: str, tmp_path: Path) -> None:
    networks = []
    for batch, accumulate in ((8, 1), (2, 4)):
        plan, source, _ = prepared(survey, RNN, batch=batch, accumulate=accumulate, class_weights="none")
        networks.append(weights(fitted(plan, AlonePlace(validates=False), source)))
    for name, value in networks[0].items():
        torch.testing.assert_close(value, networks[1][name], rtol=1e-3, atol=1e-5)


def test_average_is_the_exponential_mean_of_the_steps(survey: str, tmp_path: Path) -> None:
    plan, source, _ = prepared(survey, RNN, ema=0.7)
    place = Watched(tmp_path)
    result = fitted(plan, place, source).state_dict()
    expected = copy.deepcopy(place.by_step[0])
    for later in place.by_step[1:]:
        expected = {name: 0.7 * value + 0.3 * later[name] for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-4, atol=1e-6)
        assert not torch.equal(result[name], place.by_step[-1][name])


def test_training_stops_early_and_keeps_the_best_epoch(survey: str, tmp_path: Path) -> None:
    plan, source, _ = prepared(survey, RNN, early_stop=2, epochs=40, learning_rate=0.3, schedule="constant")
    place = Watched(tmp_path)
    result = fitted(plan, place, source).state_dict()
    values = [monitored(figures) for figures in place.history]
    best = int(np.argmax(values))
    assert len(values) == best + 3 < 40
    assert epochs_since_best(place.history) == 2
    for name, value in place.by_epoch[best].items():
        assert torch.equal(result[name], value)


def test_plateau_halves_the_rate_after_epochs_without_gain() -> None:
    def history(*values: float) -> list[dict[str, Any]]:
        return [{"loss": 1.0, "validation": {"mean_class_accuracy": value}} for value in values]

    assert plateau_factor(history(), 2) == 1
    assert plateau_factor(history(0.1, 0.2, 0.2), 2) == 1
    assert plateau_factor(history(0.1, 0.2, 0.2, 0.1), 2) == 0.5
    assert plateau_factor(history(0.1, 0.2, 0.2, 0.1, 0.2, 0.2), 2) == 0.25
    assert plateau_factor(history(0.1, 0.2, 0.2, 0.1, 0.3, 0.2), 2) == 0.5
    training = Training(schedule="plateau", plateau_epochs=1, learning_rate=0.1, steps_per_epoch=10, epochs=3)
    assert learning_rate(training, 25, history(0.2, 0.1)) == 0.05
    assert learning_rate(training, 25) == 0.1


def test_mixed_precision_keeps_weights_in_float32_and_learns(survey: str) -> None:
    plan, source, _ = prepared(survey, CNN, precision="bfloat16", epochs=10, learning_rate=0.02)
    place = AlonePlace()
    network = fitted(plan, place, source)
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert place.history[-1]["validation"]["pixel_accuracy"] > 0.75


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "progress.json"])
def test_checkpoint_that_was_changed_is_not_loaded(name: str, tmp_path: Path) -> None:
    state = TrainingState.of(build_model({**RNN, "in_channels": 3}), Training())
    save_checkpoint(tmp_path, state, Progress(2, [{"loss": 1.0}, {"loss": 0.5}]))
    assert load_checkpoint(tmp_path, state).epochs == 2
    body = bytearray((tmp_path / name).read_bytes())
    body[len(body) // 2] ^= 1
    (tmp_path / name).write_bytes(body)
    with pytest.raises(IntegrityError, match=f"{name} of a checkpoint differs"):
        load_checkpoint(tmp_path, state)
    (tmp_path / name).unlink()
    with pytest.raises(IntegrityError, match="not whole"):
        load_checkpoint(tmp_path, state)


def test_loss_that_is_not_finite_names_the_batch_and_the_checkpoint_kept(
    survey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, source, _ = prepared(survey, RNN)
    draw = source.draw

    def spoilt(key: Any) -> Any:
        example = draw(key)
        if key[1] == STEPS + 1 and key[2] == 2:
            example.inputs[0, 0] = np.float32(np.inf)
        return example

    monkeypatch.setattr(source, "draw", spoilt)
    error = fit_network(plan, Watched(tmp_path), source)
    assert isinstance(error, UsageError)
    text = str(error)
    assert source.place((7, STEPS + 1, 2)) in text and "values up to inf" in text
    assert f"epoch 2, step {STEPS + 2}" in text and "checkpoint of epoch 1 is kept" in text
    state = TrainingState.of(build_model(plan.network), plan.job.training)
    assert load_checkpoint(tmp_path, state).epochs == 1


def test_training_begins_from_a_bundle(survey: str, tmp_path: Path) -> None:
    plan, source, task = prepared(survey, RNN, epochs=1)
    network = fitted(plan, AlonePlace(), source)
    save_bundle(str(tmp_path), trained_bundle(plan, task, network, {}, "run"))
    other = build_model(plan.network)
    begin_from(str(tmp_path), other)
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    more = build_model({**plan.network, "classes": 5})
    begin_from(str(tmp_path), more)
    assert torch.equal(more.state_dict()["recurrent.weight_hh_l0"], network.state_dict()["recurrent.weight_hh_l0"])
    with pytest.raises(MismatchError, match="do not fit the network; found 1%"):
        begin_from(str(tmp_path), build_model({"name": "cnn", "in_channels": 4, "classes": 2, "dims": 1}))


def test_batch_of_padded_examples_tells_their_lengths(survey: str) -> None:
    _, source, _ = prepared(survey, RNN, patch=[200])
    batch = Batch.of([source.draw((0, 0, item)) for item in range(3)])
    assert batch.inputs.shape == (3, 4, 200) and batch.lengths is not None
    assert batch.lengths.tolist() == [158] * 3
    _, source, _ = prepared(survey, RNN)
    assert Batch.of([source.draw((0, 0, 0))]).lengths is None

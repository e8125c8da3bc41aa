"""From a job to the grid, halo and batch of its plan, and blocks scored under it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from surveys import CLASSES, random_volume, strong_network, write_bundle, write_survey
from torch import nn

from geobatch.blocks import Blend
from geobatch.errors import MismatchError, UsageError
from geobatch.job import parse_job
from geobatch.models import MODELS
from geobatch.models.bundle import DataDescription, load_bundle, make_bundle, save_bundle
from geobatch.models.reach import measure_reach
from geobatch.preprocess import Chain
from geobatch.score.deviation import patch_deviation, tolerated_halo
from geobatch.score.planning import forecast_score, make_plan, open_inputs
from geobatch.score.predictor import build_predictor
from geobatch.score.spec import ScoreJob, ScorePlan
from geobatch.survey import VOLUME_AXES

SHAPE = (40, 37, 41)


class Normed(nn.Module):
    """A convolution and a norm over each trace: unbounded along samples."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(1, 3, 3, padding=1), nn.Conv3d(3, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.last(y / (y.std(4, keepdim=True, correction=0) + 0.1))


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    volume = write_survey(str(tmp_path / "survey"), random_volume(SHAPE))
    write_bundle(str(tmp_path / "bundle"), volume, levels=2)
    return {name: str(tmp_path / name) for name in ("survey", "bundle", "output")}


@pytest.fixture
def normed(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setitem(MODELS, "normed", Normed)
    torch.manual_seed(0)
    bundle = make_bundle(
        name="normed",
        network=Normed(len(CLASSES)),
        model={"name": "normed", "classes": len(CLASSES)},
        axes=VOLUME_AXES,
        stride=(1, 1, 1),
        classes=CLASSES,
        chain=Chain.model_validate([]),
        data=DataDescription(quantity="amplitude", domain="time", sample_unit="ms", sample_interval=4.0),
    )
    save_bundle(places["bundle"], bundle)
    return places


def job(places: dict[str, str], **keys: Any) -> ScoreJob:
    defaults = {"statistics": "bundle", "shard": [32, 32, 32], "chunk": [16, 16, 16], "probabilities": "uint8"}
    parsed = parse_job({"job": "score", **places, **defaults, **keys})
    assert isinstance(parsed, ScoreJob)
    return parsed


def planned(places: dict[str, str], **keys: Any) -> ScorePlan:
    return make_plan(open_inputs(job(places, **keys)))


def class_map(plan: ScorePlan, places: dict[str, str]) -> np.ndarray:
    """Scored block by block in this process, without writing."""
    inputs = open_inputs(job(places))
    values = plan.chain.apply(plan.chain.crop(inputs.volume).chunk()).values
    predictor = build_predictor(plan, inputs.bundle.network())
    found = np.empty(values.shape, np.uint8)
    for index in plan.grid.indices():
        block = plan.grid.block(index)
        seen = plan.grid.seen(block.write)
        patches = plan.grid.patches(block.write)
        prediction = predictor.predict(values[seen], patches, [cells.start for cells in seen])
        found[block.write] = prediction.class_map
    return found


def test_a_network_without_bound_is_refused_in_halo_mode_with_the_remedies(normed: dict[str, str]) -> None:
    assert load_bundle(normed["bundle"]).spec.reach.unbounded == (2,)
    with pytest.raises(MismatchError, match=r"axes sample.*whole: \[sample\].*mode: blend"):
        planned(normed)
    with pytest.raises(MismatchError, match="whole patch"):
        planned(normed, halo={"tolerance": 0.01})


def test_a_whole_axis_is_covered_by_patch_and_block(normed: dict[str, str]) -> None:
    inputs = open_inputs(job(normed, whole=["sample"]))
    plan = make_plan(inputs)
    assert plan.grid.whole == (2,)
    assert plan.grid.shard == (32, 32, 48)
    assert any("shard along sample is 48 instead of 32" in warning for warning in inputs.warnings)
    one = planned(normed, whole=["sample"], shard=[48, 48, 48])
    np.testing.assert_array_equal(class_map(plan, normed), class_map(one, normed))


def test_blend_mode_takes_any_network_and_no_notice_of_blocks(normed: dict[str, str]) -> None:
    plan = planned(normed, mode="blend", patch=[16, 16, 16], overlap=0.5)
    assert plan.grid.blend == Blend(0.5)
    assert ScorePlan.model_validate_json(plan.model_dump_json()) == plan
    one = planned(normed, mode="blend", patch=[16, 16, 16], overlap=0.5, shard=[48, 48, 48])
    assert np.mean(class_map(plan, normed) != class_map(one, normed)) < 1e-3
    with pytest.raises(UsageError, match="no meaning in blend mode"):
        job(normed, mode="blend", halo={"tolerance": 0.01})


def test_tolerance_and_precision_are_measured_and_stored_but_decide_nothing(places: dict[str, str]) -> None:
    inputs = open_inputs(job(places, halo={"tolerance": 0.1}, precision="bfloat16"))
    plan = make_plan(inputs)
    assert sum(np.ravel(plan.grid.halo)) < sum(np.ravel(inputs.bundle.spec.reach.halo))
    assert 0 < plan.halo.deviation <= 0.1
    assert 0 < plan.precision_report.deviation < 0.05
    assert len([warning for warning in inputs.warnings if "of the largest" in warning]) == 2
    other = plan.halo.model_copy(update={"deviation": 0.5})
    assert plan.model_copy(update={"halo": other}).hash == plan.hash
    assert plan.model_copy(update={"halo": None}).hash != plan.hash


def test_a_run_goes_on_with_the_halo_that_was_measured(places: dict[str, str]) -> None:
    inputs = open_inputs(job(places, halo={"tolerance": 0.1}))
    inputs.stored = make_plan(inputs)
    assert make_plan(inputs).hash == inputs.stored.hash
    inputs.job = inputs.job.model_copy(update={"halo": "exact"})
    with pytest.raises(MismatchError, match="halo"):
        make_plan(inputs)


def test_the_forecast_of_a_tolerated_halo_reads_no_sample(places: dict[str, str]) -> None:
    forecast = forecast_score(job(places, halo={"tolerance": 0.1}))
    assert any("measured on noise" in warning for warning in forecast["warnings"])
    assert forecast["memory_per_replica"]["projected_gpu_gib"] == 0


def test_the_memory_of_an_unseen_gpu_is_asked_for(places: dict[str, str]) -> None:
    gpu = {"gpus": 1, "gpu_memory_gib": 2}
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"resources.gpu_memory_gib"):
            planned(places, resources={"gpus": 1})
    plan = planned(places, resources=gpu)
    assert plan.device == "cuda"
    assert plan.batch > 1
    with pytest.raises(UsageError, match="device memory"):
        planned(places, resources=gpu | {"gpu_memory_gib": 0.5})


def noise(lengths: tuple[int, ...]) -> Sequence[np.ndarray]:
    return [np.random.default_rng(seed).normal(size=lengths).astype(np.float32) for seed in (0, 1)]


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 1e-3])
def test_deviation_stays_below_the_tolerance_and_one_cell_less_does_not(tolerance: float) -> None:
    network, stride, shape = strong_network(levels=3), (4, 4, 4), (8, 8, 400)
    exact = measure_reach(network, 1, stride).halo
    line = ((0, 0), (0, 0), exact[2])
    found = tolerated_halo(network, noise, shape, stride, line, tolerance)
    before, after = found.halo[2]
    assert found.deviation <= tolerance
    assert found.halo[:2] == ((0, 0), (0, 0))
    assert before < exact[2][0] and after < exact[2][1]
    # With one axis cut, on the same samples, the profile of deviations by distance is all there is to it.
    profile = cut_deviations(network, noise((8, 8, 80)), (24, 40, 52))
    assert profile[before:].max() <= tolerance < profile[before - 1]


def cut_deviations(network: nn.Module, samples: Sequence[np.ndarray], cells: Sequence[int]) -> np.ndarray:
    """The worst deviation by distance after a cut along samples, over the largest logit, of several cuts."""
    worst = np.zeros(22)
    with torch.inference_mode():
        for sample in samples:
            whole = network(torch.from_numpy(sample)[None, None])[0]
            for cell in cells:
                part = network(torch.from_numpy(sample[..., cell:].copy())[None, None])[0]
                deviation = ((part - whole[..., cell:]).abs() / whole.abs().max()).amax((0, 1, 2))[:22]
                worst = np.maximum(worst, deviation.numpy())
    return worst


def test_larger_halos_deviate_no_more() -> None:
    network, stride, shape = strong_network(levels=2), (2, 2, 2), (200, 200, 200)
    exact = measure_reach(network, 1, stride).halo
    deviations = [
        patch_deviation(network, noise, shape, stride, exact, ((cells, cells),) * 3) for cells in (1, 3, 5, 7, 8)
    ]
    assert deviations == sorted(deviations, reverse=True)
    assert deviations[0] > 1e-2
    assert deviations[-1] < 1e-5

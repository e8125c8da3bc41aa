"""Networks of sections, trained on volumes: which lines are held out, and what a bundle of theirs is good for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from geobatch.errors import MismatchError, UsageError
from geobatch.job import parse_job, run_job
from geobatch.models import build_model
from geobatch.models.bundle import load_bundle, save_bundle
from geobatch.models.sections import volume_network
from geobatch.train.data import _held_out
from geobatch.train.loop import fit_network
from geobatch.train.places import AlonePlace
from geobatch.train.spec import TrainJob, Validation
from geobatch.train.train import make_plan, trained_bundle
from geobatch.train.volumes import VolumeTask

CROSSLINES = np.array([300, 302, 310, 340, 341, 380, 420, 421], np.int32)
PLAIN = {"flip": False, "swap": False, "noise": 0, "gain": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two layers on crosslines that lie unevenly, from arrays."""
    folder = tmp_path_factory.mktemp("sections")
    random = np.random.default_rng(0)
    facies = np.zeros((20, CROSSLINES.size, 24), np.uint8)
    facies[:, :, 12:] = 1
    amplitude = np.where(facies == 1, 3.0, -3.0) + random.normal(size=facies.shape)
    np.savez(folder / "a.npz", amplitude=amplitude.astype(np.float32), facies=facies, crossline=CROSSLINES)
    axes = {"crossline": {"coordinate": "crossline"}, "sample": {"step": 4, "unit": "ms"}}
    for name, more in (
        ("survey", {"variable": "amplitude"}),
        ("labels", {"kind": "labels", "variable": "facies", "classes": {0: "upper", 1: "lower"}}),
    ):
        options = {"dims": ["inline", "crossline", "sample"], "axes": axes, **more}
        document = {"job": "ingest", "format": "arrays", "source": str(folder / "a.npz"), "output": str(folder / name)}
        run_job(parse_job({**document, "options": options}))
    return {"survey": str(folder / "survey"), "labels": str(folder / "labels")}


def job_of(urls: dict[str, str], folder: Path, sections: str = "crossline", **changes: Any) -> TrainJob:
    document = {
        "job": "train",
        "data": [{**urls, "sections": sections}],
        "validation": {"lines": [380, 500], "guard": 30},
        "preprocess": [{"step": "scale"}],
        "model": {"channels": 2, "levels": 2},
        "training": {"patch": [16, 16], "batch": 2, "steps_per_epoch": 30, "epochs": 2, "learning_rate": 0.02}
        | {"augment": PLAIN},
        "output": str(folder / "bundle"),
    }
    return TrainJob.model_validate({**document, **changes})


def test_lines_held_out_are_those_named_and_the_guard_counts_numbers(data: dict[str, str], tmp_path: Path) -> None:
    task = VolumeTask(job_of(data, tmp_path))
    (reader,) = task.source(task.fit()).readers
    assert reader.validation is not None
    assert reader.volume["crossline"].values[reader.train[1]].tolist() == [300, 302, 310, 340, 341]
    assert reader.volume["crossline"].values[reader.validation[1]].tolist() == [380, 420, 421]


@given(
    st.lists(st.integers(1, 40), min_size=3, max_size=30),
    st.integers(0, 60),
    st.integers(0, 400),
    st.booleans(),
    st.booleans(),
)
def test_training_keeps_its_distance_from_what_is_held_out(
    steps: list[int], guard: int, reach: int, at_end: bool, downwards: bool
) -> None:
    numbers = np.cumsum(steps)
    ends = (numbers[-1] - reach, numbers[-1]) if at_end else (numbers[0], numbers[0] + reach)
    numbers = numbers[::-1] if downwards else numbers
    held = (numbers >= ends[0]) & (numbers <= ends[1])
    far = np.abs(numbers[:, None] - numbers[held][None]).min(axis=1) > guard
    validation = Validation(lines=(float(ends[0]), float(ends[1])), guard=guard)
    if not (~held & far).any():
        with pytest.raises(UsageError, match=r"validation\.guard"):
            _held_out(numbers, validation, "made up")
        return
    found = _held_out(numbers, validation, "made up")
    assert found is not None
    train, band = found
    np.testing.assert_array_equal(numbers[train], numbers[~held & far])
    np.testing.assert_array_equal(numbers[band], numbers[held])


def test_a_band_inside_the_survey_or_beside_it_is_refused(data: dict[str, str], tmp_path: Path) -> None:
    for lines, message in (([310, 341], "inside the survey"), ([500, 600], "holds out no line")):
        task = VolumeTask(job_of(data, tmp_path, validation={"lines": lines}))
        with pytest.raises(UsageError, match=message):
            task.source(task.fit())


@pytest.mark.parametrize(("sections", "axis"), [("inline", 0), ("crossline", 1), ("sample", 2)])
def test_an_example_is_a_piece_of_one_section(data: dict[str, str], tmp_path: Path, sections: str, axis: int) -> None:
    task = VolumeTask(job_of(data, tmp_path, sections, validation={"fraction": 0}, preprocess=[]))
    source = task.source(task.fit())
    assert task.axes == tuple(a for a in ("inline", "crossline", "sample") if a != sections)
    whole = np.moveaxis(source.readers[0].volume.values, axis, 0)
    size = tuple(min(16, cells) for cells in whole.shape[1:])
    windows = np.lib.stride_tricks.sliding_window_view(whole, size, axis=(1, 2))
    for item in range(5):
        example = source.draw((0, 0, item))
        assert example.inputs.shape == (1, *size) and example.labels.shape == size
        assert (windows == example.inputs[0]).all(axis=(-1, -2)).any()


def test_sections_across_several_axes_are_drawn_alike_and_make_a_network_of_traces(
    data: dict[str, str], tmp_path: Path
) -> None:
    job = job_of(data, tmp_path, data=[{**data, "sections": ["inline", "crossline"]}], validation={"fraction": 0.2})
    task = VolumeTask(job)
    source = task.source(task.fit())
    assert task.axes == ("trace", "sample")
    assert source.patches == {"inline": (1, 8, 16), "crossline": (8, 1, 16)}
    drawn = [source.draw((0, 0, item)) for item in range(60)]
    assert {example.inputs.shape for example in drawn} == {(1, 8, 16)}
    across = [source._across((0, 0, item))[0] for item in range(60)]
    assert 15 < across.count("inline") < 45
    assert {part.read().inputs.shape[1] for part in source.held_out()} <= {8, 4}


def test_patches_and_surveys_of_other_axes_are_refused_by_the_job(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="3 axes, of data with 2"):
        job_of(data, tmp_path, training={"patch": [8, 8, 8]})
    with pytest.raises(ValidationError, match="sections across the same axes"):
        job_of(data, tmp_path, data=[{**data, "sections": "inline"}, data])


def test_a_network_of_sections_learns_what_it_is_shown_and_its_bundle_scores_volumes(
    data: dict[str, str], tmp_path: Path
) -> None:
    job = job_of(data, tmp_path)
    task = VolumeTask(job)
    plan = make_plan(job, task, "run")
    place = AlonePlace()
    network = fit_network(plan, place, task.source(plan.fitted))
    assert isinstance(network, torch.nn.Module)
    judged = place.history[-1]["validation"]
    assert judged["pixel_accuracy"] > 0.95 and judged["voxels"] == 20 * 3 * 24
    bundle = trained_bundle(plan, task, network, {}, "run")
    assert bundle.spec.axes == ("inline", "sample") and bundle.spec.model["dims"] == 2
    with pytest.raises(UsageError, match="not lie in these sections"):
        volume_network(bundle, ("inline",))
    volumes, reach = volume_network(bundle, ("crossline",))
    assert reach.stride == (2, 1, 2)
    with torch.inference_mode():
        assert volumes(torch.zeros(1, 1, 8, 5, 8)).shape == (1, 2, 8, 5, 8)


def test_a_network_of_another_library_is_trained_and_bundled(data: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("monai")
    parameters = {"spatial_dims": "$dims", "in_channels": "$in_channels", "out_channels": "$classes"}
    more = {"channels": [4, 8], "strides": [2], "norm": "batch"}
    path = "monai.networks.nets.UNet"
    model = {"name": "foreign", "path": path, "parameters": {**parameters, **more}, "total_stride": 2}
    job = job_of(data, tmp_path, model=model)
    task = VolumeTask(job)
    plan = make_plan(job, task, "run")
    place = AlonePlace()
    network = fit_network(plan, place, task.source(plan.fitted))
    assert isinstance(network, torch.nn.Module)
    assert place.history[-1]["validation"]["pixel_accuracy"] > 0.9
    url = str(tmp_path / "bundle")
    save_bundle(url, trained_bundle(plan, task, network, {}, "run"))
    bundle = load_bundle(url)
    assert bundle.spec.model["path"] == path and bundle.spec.reach.stride == (2, 2)
    x_BCXS = torch.randn(1, 1, 16, 24)
    torch.testing.assert_close(bundle.network()(x_BCXS), network.eval()(x_BCXS))


@pytest.mark.parametrize(
    ("path", "parameters", "message"),
    [
        ("os.system", {}, "other libraries"),
        ("subprocess.Popen", {}, "other libraries"),
        ("monai._version.get_versions", {}, "other libraries"),
        ("monai.networks.nets.Nonsense", {}, "no network"),
        ("monai.config.print_config", {}, "no network"),
        ("monai.nothing.UNet", {}, "no such module"),
        ("monai.networks.nets.UNet", {"nonsense": 1}, "does not take"),
        ("monai.networks.nets.UNet", {"pretrained": True}, "not fetched"),
        ("timm.create_model", {"model_name": "hf-hub:a/b"}, "not fetched|not installed"),
        ("segmentation_models_pytorch.Unet", {}, "encoder_weights|not installed"),
    ],
)
def test_only_networks_of_known_libraries_are_built(path: str, parameters: dict[str, Any], message: str) -> None:
    pytest.importorskip("monai")
    with pytest.raises(UsageError, match=message):
        build_model({"name": "foreign", "path": path, "parameters": parameters})


def test_a_network_that_answers_in_another_form_says_so() -> None:
    pytest.importorskip("monai")
    parameters = {"in_shape": [1, 16, 16], "classes": 2, "channels": [4], "strides": [2]}
    network = build_model(
        {"name": "foreign", "path": "monai.networks.nets.Classifier", "parameters": parameters, "dims": 2}
    )
    with pytest.raises(MismatchError, match=r"found \(1, 2\); expected a tensor of 4 axes"):
        network(torch.zeros(1, 1, 16, 16))

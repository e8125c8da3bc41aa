from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from pydantic import ValidationError

from geobatch.errors import DataError, MismatchError, UsageError
from geobatch.interpretation.synthetic import SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_labels, write_survey
from geobatch.preprocess import Chain
from geobatch.storage.chunks import KEPT
from geobatch.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from geobatch.train.data import (
    LabelledSurvey,
    PatchReader,
    cache_within,
    class_counts,
    draw_patch,
    open_labelled,
    patch_size,
    prefetch,
    spread_tiles,
    validation_patches,
)
from geobatch.train.losses import class_weights, dice_loss, segmentation_loss
from geobatch.train.schedule import learning_rate
from geobatch.train.spec import Augmentation, Training, TrainJob, Validation, VolumeData
from geobatch.train.state import TrainingState

SHAPE = (40, 24, 32)
PLAIN = Augmentation(flip=False, swap=False, noise=0, gain=0)
PATCH = (16, 16, 16)


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> VolumeData:
    folder = tmp_path_factory.mktemp("surveys")
    survey = SyntheticSurvey(SHAPE, seed=4)
    write_survey(survey, str(folder / "survey"), (16, 16, 16), (32, 32, 32))
    write_labels(survey, str(folder / "labels"), (16, 16, 16), (32, 32, 32))
    return VolumeData(survey=str(folder / "survey"), labels=str(folder / "labels"))


@pytest.fixture
def survey(urls: VolumeData) -> LabelledSurvey:
    return open_labelled(urls)


def reader_of(survey: LabelledSurvey, fraction: float = 0.2, guard: int = 4) -> PatchReader:
    chain = Chain.model_validate([{"step": "clip"}, {"step": "scale"}]).fit(survey.volume)
    return PatchReader.split(survey, chain, Validation(fraction=fraction, guard=guard))


def labelled(values: np.ndarray, labels: np.ndarray, classes: int) -> LabelledSurvey:
    dims = ("inline", "crossline", "sample")
    coordinates = {name: np.arange(size) for name, size in zip(dims, values.shape, strict=True)}
    names = tuple({"name": f"class{k}", "color": "#000000"} for k in range(classes))
    volume = xr.DataArray(values, dims=dims, coords=coordinates, name="amplitude")
    classmap = xr.DataArray(labels, dims=dims, coords=coordinates, name="class_map")
    return LabelledSurvey("made up", volume, classmap, names, {}, "")


def test_a_patch_is_decided_by_its_key_alone(survey: LabelledSurvey) -> None:
    reader = reader_of(survey)
    key = (7, 3, 1, 0)
    first = draw_patch([reader], PATCH, Augmentation(), key)
    draw_patch([reader], PATCH, Augmentation(), (7, 4, 1, 0))
    again = draw_patch([reader_of(survey)], PATCH, Augmentation(), key)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    other_worker = draw_patch([reader], PATCH, Augmentation(), (7, 3, 0, 0))
    assert not np.array_equal(first[0], other_worker[0])


def test_cached_patches_equal_those_read_from_storage(survey: LabelledSurvey) -> None:
    stored, cached = reader_of(survey), reader_of(survey)
    cache_within([cached], 2**20)
    assert cached.cached is not None
    for item in range(3):
        for one, other in zip(
            draw_patch([stored], PATCH, PLAIN, (1, 0, 0, item)),
            draw_patch([cached], PATCH, PLAIN, (1, 0, 0, item)),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)


def test_the_cache_keeps_its_limit(survey: LabelledSurvey) -> None:
    readers = [reader_of(survey), reader_of(survey)]
    cache_within(readers, readers[0].cache_bytes + 1)
    assert readers[0].cached is not None and readers[1].cached is None


def test_kept_chunks_change_no_patch_and_keep_their_limit(urls: VolumeData) -> None:
    patches = [draw_patch([reader_of(open_labelled(urls))], PATCH, PLAIN, (1, 0, item)) for item in range(6)]
    whole = 4 * math.prod(SHAPE)
    try:
        # In the smaller one, what is kept is dropped all the time.
        for limit, turns in ((whole // 4, 2), (4 * whole, 2)):
            KEPT.limit(limit)
            reader = reader_of(open_labelled(urls))
            for _ in range(turns):
                asked = KEPT.hits + KEPT.misses
                before = KEPT.misses
                for item, patch in enumerate(patches):
                    for one, other in zip(draw_patch([reader], PATCH, PLAIN, (1, 0, item)), patch, strict=True):
                        np.testing.assert_array_equal(one, other)
                    assert 0 < KEPT.held_bytes <= limit
                assert KEPT.hits + KEPT.misses > asked
        assert KEPT.misses == before
    finally:
        KEPT.limit(0)
    assert KEPT.held_bytes == 0


def test_training_never_reads_the_validation_band_nor_its_guard(survey: LabelledSurvey) -> None:
    reader = reader_of(survey, fraction=0.2, guard=4)
    assert reader.train[0] == slice(0, 28) and reader.validation is not None
    assert reader.validation[0] == slice(32, 40)
    read: list[slice] = []
    original = reader.read

    def watched(region: tuple[slice, slice, slice]) -> object:
        read.append(region[0])
        return original(region)

    reader.read = watched  # type: ignore[method-assign, assignment]
    for item in range(40):
        draw_patch([reader], PATCH, PLAIN, (1, 0, 0, item))
    assert max(part.stop for part in read) == 28
    tiles = validation_patches([reader], PATCH, 100)
    assert all(region[0] == slice(32, 40) for _, region in tiles)
    assert sum(np.prod([axis.stop - axis.start for axis in region]) for _, region in tiles) == 8 * 24 * 32


def test_validation_that_leaves_nothing_to_train_on_is_refused(survey: LabelledSurvey) -> None:
    with pytest.raises(UsageError, match=r"validation\.guard"):
        reader_of(survey, fraction=0.5, guard=20)


def test_invalid_samples_become_zero_and_unlabelled() -> None:
    values = np.random.default_rng(1).normal(size=(8, 8, 8)).astype(np.float32)
    values[2, 3] = np.nan
    labels = np.ones((8, 8, 8), np.uint8)
    labels[0, 0, 0] = 255
    reader = PatchReader.split(labelled(values, labels, 2), Chain(), Validation(fraction=0))
    amplitude, truth = reader.read((slice(0, 8), slice(0, 8), slice(0, 8)))
    assert (amplitude[2, 3] == 0).all() and (truth[2, 3] == 255).all()
    assert truth[0, 0, 0] == 255 and (truth == 1).sum() == 8**3 - 9
    assert np.isfinite(amplitude).all()


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint8", 7), ("uint8", 254), ("int16", 256), ("int16", -1), ("f4", 0.5), ("f8", np.inf)]
)
def test_a_label_that_is_no_class_is_refused_with_its_place_whatever_its_number_type(dtype: str, value: float) -> None:
    labels = np.ones((4, 4, 4), dtype)
    labels[1, 2, 3] = value
    survey = labelled(np.zeros((4, 4, 4), np.float32), labels, 2)
    reader = PatchReader.split(dataclasses.replace(survey, labels_url="s3://b/labels"), Chain(), Validation(fraction=0))
    place = r"s3://b/labels, inline 1, crossline 2, sample 3: .*"
    with pytest.raises(DataError, match=rf"{place}found {value}; expected an integer from 0 to 1, or 255"):
        reader.read((slice(1, 4), slice(0, 4), slice(0, 4)))


def test_labels_of_any_number_type_are_read_and_nan_is_unlabelled() -> None:
    expected = np.array([0, 1, 255, 1], np.uint8).reshape(1, 1, 4)
    region = (slice(0, 1), slice(0, 1), slice(0, 4))
    for dtype in ("uint8", "int16", "int64", "float32"):
        survey = labelled(np.zeros((1, 1, 4), np.float32), expected.astype(dtype), 2)
        read = PatchReader.split(survey, Chain(), Validation(fraction=0)).read_labels(region)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, expected)
    missing = np.where(expected == 255, np.nan, expected)
    survey = labelled(np.zeros((1, 1, 4), np.float32), missing, 2)
    read = PatchReader.split(survey, Chain(), Validation(fraction=0)).read_labels(region)
    np.testing.assert_array_equal(read, expected)


def test_augmentation_turns_amplitude_and_labels_together_and_keeps_polarity() -> None:
    labels = np.random.default_rng(2).integers(0, 4, (6, 6, 5)).astype(np.uint8)
    reader = PatchReader.split(labelled(labels.astype(np.float32) + 1, labels, 4), Chain(), Validation(fraction=0))
    seen = set()
    for item in range(60):
        amplitude, truth = draw_patch([reader], (6, 6, 5), Augmentation(noise=0, gain=0), (0, 0, 0, item))
        np.testing.assert_array_equal(amplitude, truth + np.float32(1))
        seen.add(truth.tobytes())
    assert len(seen) == 8
    loud, _ = draw_patch([reader], (6, 6, 5), Augmentation(noise=0, gain=0.5), (0, 0, 0, 1))
    assert (loud > 0).all()


def test_added_noise_is_no_stronger_than_allowed_and_leaves_invalid_samples_alone() -> None:
    values = np.random.default_rng(3).normal(size=(24, 24, 24)).astype(np.float32)
    values[5, 5] = np.nan
    labels = np.zeros(values.shape, np.uint8)
    reader = PatchReader.split(labelled(values, labels, 1), Chain(), Validation(fraction=0))
    clean, _ = draw_patch([reader], (24, 24, 24), PLAIN, (0, 0, 0, 0))
    added = []
    for item in range(12):
        noisy, _ = draw_patch([reader], (24, 24, 24), PLAIN.model_copy(update={"noise": 0.5}), (0, 0, 0, item))
        assert (noisy[5, 5] == 0).all()
        added.append(float((noisy - clean).std() / clean.std()))
    assert 0.2 < max(added) < 0.52


def test_balance_finds_a_rare_class() -> None:
    labels = np.zeros((32, 32, 32), np.uint8)
    labels[:3, :3, :8] = 1
    reader = PatchReader.split(labelled(np.zeros(labels.shape, np.float32), labels, 2), Chain(), Validation(fraction=0))

    def found(balance: bool) -> int:
        return sum(
            bool((draw_patch([reader], (8, 8, 8), PLAIN, (0, 0, 0, item), balance=balance)[1] == 1).any())
            for item in range(200)
        )

    assert found(True) > 2 * found(False)


def test_patches_are_clipped_to_the_smallest_survey(survey: LabelledSurvey) -> None:
    assert patch_size([reader_of(survey)], (64, 16, 64)) == (28, 16, 32)


def test_spread_tiles_cover_a_region_once_or_thin_it_evenly() -> None:
    bounds = (slice(2, 12), slice(0, 9), slice(0, 4))
    covered = np.zeros((12, 9, 4), int)
    for tile in spread_tiles(bounds, (4, 4, 4), 10**9):
        covered[tile] += 1
    assert (covered[2:] == 1).all() and (covered[:2] == 0).all()
    assert len(spread_tiles(bounds, (1, 1, 1), 7)) == 7


def test_survey_and_labels_on_other_grids_are_refused(urls: VolumeData, tmp_path: Path) -> None:
    write_labels(SyntheticSurvey((40, 25, 32), seed=4), str(tmp_path / "labels"))
    with pytest.raises(MismatchError, match="crossline"):
        open_labelled(urls.model_copy(update={"labels": str(tmp_path / "labels")}))
    with pytest.raises(MismatchError, match="nonsense"):
        open_labelled(urls.model_copy(update={"variable": "nonsense"}))


def test_class_shares_and_weights(survey: LabelledSurvey) -> None:
    reader = reader_of(survey, fraction=0)
    expected = np.bincount(survey.labels.values.ravel(), minlength=4)
    np.testing.assert_array_equal(class_counts([reader], PATCH), expected)
    assert class_weights([10, 30, 0], "none") == (1.0, 1.0, 1.0)
    rare, common, absent = class_weights([10, 90, 0], "inverse")
    assert rare == pytest.approx(9 * common) and absent == 1.0
    assert 0.1 * rare + 0.9 * common == pytest.approx(1.0)


def test_the_loss_ignores_unlabelled_voxels() -> None:
    logits = torch.tensor([[2.0, 0.0, 5.0], [0.0, 1.0, -5.0]]).reshape(1, 2, 1, 1, 3)
    labels = torch.tensor([0, 1, 255]).reshape(1, 1, 1, 3)
    weights = torch.tensor([1.0, 3.0])
    two = torch.log1p(torch.exp(torch.tensor([-2.0, -1.0])))
    assert segmentation_loss(logits, labels, weights).item() == pytest.approx(((two[0] + 3 * two[1]) / 4).item())
    assert segmentation_loss(logits, torch.full_like(labels, 255), weights).item() == 0.0
    right = torch.zeros(1, 2, 1, 1, 3)
    right[0, 0, 0, 0, 0] = right[0, 1, 0, 0, 1] = 50.0
    assert (segmentation_loss(right, labels, weights) + dice_loss(right, labels)).item() == pytest.approx(0.0, abs=1e-5)


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    training = Training(steps_per_epoch=50, epochs=2, learning_rate=1.0)
    rates = [learning_rate(training, step) for step in range(100)]
    assert rates[9] == 1.0 and rates[0] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.5)
    assert all(a >= b for a, b in pairwise(rates[9:])) and rates[-1] < 0.001


def test_prefetched_items_arrive_in_order_and_an_error_where_it_happened() -> None:
    def slow_at_first(key: int) -> int:
        time.sleep(0.02 / (key + 1))
        return key

    assert list(prefetch(slow_at_first, range(20), 4)) == list(range(20))

    def failing(key: int) -> int:
        if key == 2:
            raise DataError("bad patch")
        return key

    items = prefetch(failing, range(10), 4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(DataError, match="bad patch"):
        next(items)


def test_prefetch_is_no_further_ahead_than_it_has_threads() -> None:
    begun: list[int] = []
    items = prefetch(lambda key: begun.append(key) or key, range(100), 3)
    assert next(items) == 0
    items.close()
    assert len(begun) <= 4


def test_closing_a_prefetch_ends_its_threads() -> None:
    items = prefetch(lambda key: key, itertools.count(), 4)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("geobatch-prefetch")]


def test_a_checkpoint_restores_weights_optimiser_and_progress(tmp_path: Path) -> None:
    states = [TrainingState.of(torch.nn.Linear(3, 2), Training(ema=0.5)) for _ in range(2)]
    states[0].network(torch.ones(1, 3)).sum().backward()
    states[0].step()
    states[0].keep_best()
    save_checkpoint(tmp_path, states[0], Progress(4, [{"loss": 1.0}]))
    assert load_checkpoint(tmp_path, states[1]) == Progress(4, [{"loss": 1.0}])
    for kept, restored in ((s.network.weight for s in states), (s.judged.weight for s in states)):
        assert torch.equal(kept, restored)
    assert states[1].best is not None and torch.equal(states[1].best["weight"], states[0].judged.weight)
    moments = [s.optimizer.state_dict()["state"][0]["exp_avg"] for s in states]
    assert torch.equal(*moments)


def test_a_training_job_refuses_unknown_keys_and_fitted_statistics() -> None:
    job = {"data": [{"survey": "s", "labels": "l"}], "output": "o"}
    assert TrainJob.model_validate(job).model.stride == 4
    with pytest.raises(ValidationError, match="epoch"):
        TrainJob.model_validate({**job, "epoch": 3})
    fitted = {"step": "clip", "statistics": {"lower": -1, "upper": 1}}
    with pytest.raises(ValidationError, match="statistics"):
        TrainJob.model_validate({**job, "preprocess": [fitted]})


def test_the_job_file_of_the_synthetic_training_is_valid() -> None:
    path = Path(__file__).parent.parent / "jobs" / "train_synthetic.yaml"
    job = TrainJob.model_validate(yaml.safe_load(path.read_text()))
    assert job.resources.workers == 2 and len(job.data) == 4


def test_a_labelled_survey_is_not_loaded_before_a_patch_is_read(survey: LabelledSurvey) -> None:
    assert not survey.volume.variable._in_memory and not survey.labels.variable._in_memory

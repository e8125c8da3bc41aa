"""Scored surveys against labels: figures by hand, whatever the blocks, and beside what needs no data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobatch.errors import MismatchError, UsageError
from geobatch.job import parse_job, run_job
from geobatch.shards import ArraySpec, create_arrays, encode_shard, finish_group, shard_indices, shard_key, shard_region
from geobatch.storage import open_storage
from geobatch.survey import VOLUME_AXES, class_attributes
from geobatch.train import evaluate_count
from geobatch.train.evaluate import RESULT
from geobatch.train.metrics import headline, scores

NAMES = ("background", "fault", "salt")
COLORS = ("#dddddd", "#cc2222", "#2222cc")
Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def write_classes(folder: Path, classes: Array, probability: Array | None = None, first_inline: int = 100) -> str:
    """A survey of classes, and of probabilities as scoring packs them."""
    url, shape = str(folder), classes.shape
    coordinates = {
        "inline": np.arange(shape[0], dtype=np.int32) + first_inline,
        "crossline": np.arange(shape[1], dtype=np.int32) + 500,
        "sample": np.arange(shape[2]) * 4.0,
    }
    attributes = class_attributes(NAMES, COLORS)
    specs = [ArraySpec("class_map", VOLUME_AXES, shape, "uint8", shape, shape, 255, attributes)]
    arrays = [classes]
    if probability is not None:
        packing = {"scale_factor": 1 / 254}
        whole = (len(NAMES), *shape)
        specs.append(ArraySpec("probability", ("class", *VOLUME_AXES), whole, "uint8", whole, whole, 255, packing))
        arrays.append(np.round(254 * probability).astype(np.uint8))
    small = [ArraySpec.small(name, (name,), values) for name, values in coordinates.items()]
    create_arrays(url, [*specs, *small], coordinates)
    for spec, values in zip(specs, arrays, strict=True):
        for index in shard_indices(spec):
            open_storage(url).put(shard_key(spec, index), encode_shard(spec, values[shard_region(spec, index)]))
    info: dict[str, Any] = {
        "schema": 1,
        "kind": "labels",
        "variable": "class_map",
        "identity": "made",
        "state": "complete",
    }
    info |= {"domain": "time", "sample_unit": "ms", "sample_interval": 4.0}
    finish_group(url, [*specs, *small], {"geobatch": info})
    return url


def judge(folder: Path, given_: Array, truth: Array, probability: Array | None = None, **keys: Any) -> dict[str, Any]:
    """What the job stores."""
    scored = write_classes(folder / "scored", given_, probability)
    labels = write_classes(folder / "labels", truth)
    document = {"job": "evaluate", "scored": scored, "labels": labels, "output": str(folder / "judged"), **keys}
    run_job(parse_job(document))
    found: dict[str, Any] = json.loads(open_storage(str(folder / "judged")).get(RESULT))
    return found


def noisy(shape: tuple[int, int, int], seed: int = 0) -> tuple[Array, Array]:
    """Truth, and an answer that is right four times of five."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, shape).astype(np.uint8)
    given_ = np.where(random.random(shape) < 0.8, truth, random.integers(0, 3, shape)).astype(np.uint8)
    return truth, given_


@given(st.lists(st.integers(0, 50), min_size=9, max_size=9).filter(any))
def test_figures_of_many_matrices_are_those_of_each(pairs: list[int]) -> None:
    matrix = np.array(pairs).reshape(3, 3)
    one, together = scores(matrix, NAMES), headline(np.stack([matrix.ravel(), np.eye(3).ravel()]), 3)
    for key, values in together.items():
        assert values[0] == pytest.approx(one[key], abs=1e-6) and values[1] == 1


def test_the_result_is_the_same_whatever_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, given_ = noisy((20, 11, 13))
    probability = np.eye(3)[given_].transpose(3, 0, 1, 2) * 0.6 + 0.4 / 3
    truth[3, 4], given_[7, 2, 5:] = 255, 255
    for name, cells in (("whole", 256), ("parts", 6)):
        monkeypatch.setattr(evaluate_count, "_BLOCK_CELLS", cells)
        learnt = {"inline": [100, 104]}
        judge(tmp_path / name, given_, truth, probability, learnt=learnt, region={"inline": [104, 130]}, neighbours=3)
    whole, parts = (json.loads((tmp_path / name / "judged" / RESULT).read_text()) for name in ("whole", "parts"))
    assert whole == parts
    assert whole["unscored"] == 8 and whole["figures"]["voxels"] == 16 * 11 * 13 - 8
    assert [line["inline"] for line in whole["lines"]] == list(range(104, 120))


def test_a_fault_beside_its_place_is_found_within_the_tolerance_and_no_further(tmp_path: Path) -> None:
    truth = np.zeros((8, 12, 9), np.uint8)
    truth[:, 5] = 1
    for shift, found in ((0, 1.0), (2, 1.0), (3, 0.0)):
        given_ = np.roll(truth, shift, axis=1)
        result = judge(tmp_path / str(shift), given_, truth, tolerance=2)
        assert result["within"]["classes"]["fault"] == {"precision": found, "recall": found, "f1": found}
    assert result["figures"]["classes"]["fault"]["f1"] == 0.0
    assert result["within"]["classes"]["salt"]["f1"] is None


@given(st.integers(0, 3), st.integers(0, 2**30), st.floats(0.001, 0.2))
def test_what_is_near_is_near_by_the_distance_itself(cells: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((9, 7, 8)) < share
    places = np.argwhere(mask)
    grid = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), axis=-1)
    expected = (((grid[..., None, :] - places) ** 2).sum(axis=-1) <= cells**2).any(axis=-1)
    np.testing.assert_array_equal(evaluate_count._within_cells(mask, cells), expected)
    shifted, evaluate_count.SHIFTED = evaluate_count.SHIFTED, 0
    try:
        np.testing.assert_array_equal(evaluate_count._within_cells(mask, cells), expected)
    finally:
        evaluate_count.SHIFTED = shifted


def test_what_was_learnt_without_data_stands_beside_the_network(tmp_path: Path) -> None:
    # Two layers; below them, where nothing was labelled in training, the most frequent class stands in.
    truth = np.zeros((12, 6, 9), np.uint8)
    truth[:, :, 5:] = 2
    truth[:6, :, 8] = 255
    result = judge(tmp_path, truth, truth, learnt={"inline": [100, 105]}, region={"inline": [106, 111]})
    prior = result["baselines"]["most_frequent_of_sample"]
    assert prior["figures"]["pixel_accuracy"] == pytest.approx(8 / 9, abs=1e-6)
    assert result["baselines"]["most_frequent"]["figures"]["pixel_accuracy"] == pytest.approx(5 / 9, abs=1e-6)
    assert result["figures"]["pixel_accuracy"] == 1.0
    low, high = prior["better_by"]["pixel_accuracy"]
    assert low == pytest.approx(1 / 9, abs=1e-4) and high == pytest.approx(1 / 9, abs=1e-4)


def test_intervals_are_wider_where_lines_differ_and_hold_the_figure(tmp_path: Path) -> None:
    truth = np.zeros((30, 5, 10), np.uint8)
    even, uneven = truth.copy(), truth.copy()
    even[:, :, :2] = 1
    uneven[::5] = 1
    widths = []
    for name, given_ in (("even", even), ("uneven", uneven)):
        result = judge(tmp_path / name, given_, truth, neighbours=1)
        low, high = result["intervals"]["pixel_accuracy"]
        assert result["figures"]["pixel_accuracy"] == pytest.approx(0.8) and low <= 0.8 <= high
        widths.append(high - low)
    assert widths[0] == 0 and 0.2 < widths[1] < 0.35


@settings(max_examples=10, deadline=None)
@given(st.floats(0.5, 0.95))
def test_calibration_error_is_how_far_sureness_is_from_being_right(tmp_path_factory: Any, sure: float) -> None:
    truth, given_ = noisy((12, 16, 20))
    probability = np.full((3, *truth.shape), (1 - sure) / 2)
    np.put_along_axis(probability, given_[None].astype(int), sure, axis=0)
    result = judge(tmp_path_factory.mktemp("calibration"), given_, truth, probability)
    right = float((truth == given_).mean())
    assert result["calibration"]["expected_error"] == pytest.approx(abs(right - sure), abs=0.003)
    assert sum(entry["cells"] for entry in result["calibration"]["bins"]) == truth.size


def test_the_page_shows_figures_confusion_and_the_worst_line(tmp_path: Path) -> None:
    truth, given_ = noisy((12, 16, 20))
    given_[5] = (truth[5] + 1) % 3
    judge(tmp_path, given_, truth, learnt={"inline": [100, 103]})
    page = (tmp_path / "judged" / "evaluate.html").read_text()
    for text in ("Mean class accuracy", "Network better by", "Confusion", "Accuracy of each inline", "Errors"):
        assert text in page
    assert "nline 105: most errors" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_nothing_in_common_or_nothing_labelled_is_refused(tmp_path: Path) -> None:
    truth, given_ = noisy((6, 4, 5))
    with pytest.raises(MismatchError, match="labelled and scored"):
        judge(tmp_path / "a", given_, np.full_like(truth, 255))
    with pytest.raises(UsageError, match="region holds no inline"):
        judge(tmp_path / "b", given_, truth, region={"inline": [300, 400]})
    labels = write_classes(tmp_path / "far", truth, first_inline=900)
    document = {"job": "evaluate", "scored": str(tmp_path / "b" / "scored"), "labels": labels, "output": str(tmp_path)}
    with pytest.raises(MismatchError, match="do not share"):
        run_job(parse_job(document))

from __future__ import annotations

import json

import numpy as np
import pytest

from geobatch.errors import MismatchError
from geobatch.interpretation.synthetic import SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_labels, write_survey
from geobatch.train.evaluate import evaluate
from geobatch.train.metrics import confusion_matrix, scores


def test_metrics_of_a_matrix_worked_by_hand() -> None:
    # True a: 6 right, 2 called b. True b: 1 called a, 1 right. c does not occur.
    result = scores(np.array([[6, 2, 0], [1, 1, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert result["pixel_accuracy"] == pytest.approx(7 / 10)
    assert result["mean_class_accuracy"] == pytest.approx((6 / 8 + 1 / 2) / 2)
    assert result["classes"]["a"]["iou"] == pytest.approx(6 / 9, abs=1e-6)
    assert result["classes"]["b"]["iou"] == pytest.approx(1 / 4)
    assert result["fwiou"] == pytest.approx((8 * 6 / 9 + 2 * 1 / 4) / 10, abs=1e-6)
    assert result["classes"]["a"]["f1"] == pytest.approx(12 / 15)
    assert result["classes"]["c"] == {"accuracy": None, "precision": None, "iou": None, "f1": None, "voxels": 0}
    json.dumps(result, allow_nan=False)


def test_invalid_voxels_of_either_side_are_left_out() -> None:
    truth = np.array([0, 1, 255, 1], np.uint8)
    given = np.array([0, 0, 1, 255], np.uint8)
    np.testing.assert_array_equal(confusion_matrix(truth, given, 2), [[1, 0], [1, 0]])


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    random = np.random.default_rng(1)
    truth, given = random.integers(0, 4, (2, 1000))
    parts = sum(confusion_matrix(truth[k::3], given[k::3], 4) for k in range(3))
    np.testing.assert_array_equal(parts, confusion_matrix(truth, given, 4))


def test_a_survey_scored_as_the_labels_say_is_perfect_and_another_is_not(tmp_path) -> None:
    survey = SyntheticSurvey((20, 16, 30), seed=2)
    write_labels(survey, str(tmp_path / "labels"), (16, 16, 16), (32, 32, 32))
    perfect = evaluate(str(tmp_path / "labels"), str(tmp_path / "labels"))
    assert perfect["pixel_accuracy"] == perfect["fwiou"] == 1.0
    assert perfect["voxels"] == 20 * 16 * 30
    write_labels(SyntheticSurvey((12, 16, 30), seed=9), str(tmp_path / "other"), (16, 16, 16), (32, 32, 32))
    other = evaluate(str(tmp_path / "other"), str(tmp_path / "labels"))
    assert other["voxels"] == 12 * 16 * 30
    assert other["pixel_accuracy"] < 1.0
    assert other["fault_f1"] == other["classes"]["fault"]["f1"]


def test_a_survey_without_classes_is_not_evaluated(tmp_path) -> None:
    survey = SyntheticSurvey((4, 4, 8), seed=2)
    write_labels(survey, str(tmp_path / "labels"))
    write_survey(survey, str(tmp_path / "survey"))
    with pytest.raises(MismatchError, match="class_map"):
        evaluate(str(tmp_path / "survey"), str(tmp_path / "labels"))

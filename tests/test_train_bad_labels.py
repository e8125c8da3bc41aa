"""Labels that cannot be trained on end a training with an error that says where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geobatch.errors import DataError
from geobatch.interpretation.synthetic import Block, SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_labels, write_survey
from geobatch.train.data import Region
from geobatch.train.spec import TrainJob
from geobatch.train.train import train

SHAPE = (40, 24, 32)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::UserWarning:ray")


class Strange(SyntheticSurvey):
    """The last inline, which is held out, holds a class 9."""

    def block(self, region: Region) -> Block:
        block = super().block(region)
        inlines = np.arange(region[0].start, region[0].stop)
        block["class_map"][inlines == SHAPE[0] - 1, 5, 7] = 9
        return block


class HeldOutAlone(SyntheticSurvey):
    """Only what is held out is labelled."""

    def block(self, region: Region) -> Block:
        block = super().block(region)
        inlines = np.arange(region[0].start, region[0].stop)
        block["class_map"][inlines < SHAPE[0] - 6] = 255
        return block


def job_of(folder: Path, labels: SyntheticSurvey, **changes: Any) -> TrainJob:
    write_survey(SyntheticSurvey(SHAPE, seed=2), f"{folder}/survey", (16, 16, 16), (48, 48, 48))
    write_labels(labels, f"{folder}/labels", (16, 16, 16), (48, 48, 48))
    values = {
        "data": [{"survey": f"{folder}/survey", "labels": f"{folder}/labels"}],
        "validation": {"fraction": 0.15, "guard": 0},
        "model": {"channels": 2, "levels": 2},
        "training": {"patch": [8, 8, 8], "steps_per_epoch": 2, "epochs": 1, "max_failures": 0},
        "output": f"{folder}/bundle",
        **changes,
    }
    return TrainJob.model_validate(values)


def test_label_outside_the_class_list_that_a_worker_meets_is_an_error_with_its_place(
    ray_cluster: None, tmp_path: Path
) -> None:
    # Read by no one before the worker validates.
    job = job_of(tmp_path, Strange(SHAPE, seed=2), resources={"cache_mib": 0})
    with pytest.raises(
        DataError,
        match=r"labels, inline 1040, crossline 2006, sample 28.0: a value of class_map is no class; found 9; "
        r"expected an integer from 0 to 3",
    ):
        train(job)


def test_training_without_a_labelled_cell_is_refused_before_workers_start(tmp_path: Path) -> None:
    job = job_of(tmp_path, HeldOutAlone(SHAPE, seed=2))
    with pytest.raises(DataError, match=r"labels: no cell is labelled outside of what is held out.*validation"):
        train(job)

"""Scores of a scored survey against labels, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from geobatch.errors import MismatchError
from geobatch.survey import VOLUME_AXES, open_survey
from geobatch.train.data import class_indices, class_names, spread_tiles
from geobatch.train.metrics import Counts, confusion_matrix, scores

_BLOCK_CELLS = 256
_ALL = 2**62


def evaluate(scored_url: str, labels_url: str, variable: str = "class_map") -> dict[str, Any]:
    """Return pixel accuracy, mean class accuracy, FWIoU and the figures of each class, voxel by voxel.

    Voxels unscored or unlabelled (255) are left out. Memory is that of two blocks of 256 cells a side.

    Args:
        scored_url: a scored survey, or any label survey.
        labels_url: the truth; where its grid is larger or smaller, the common lines and samples count.
        variable: the volume to compare.

    Returns:
        What `metrics.scores` documents, with `fault_f1` where a class is called `fault`.

    Raises:
        MismatchError: other classes, or no cell in common.
        DataError: a value is neither a class nor 255.
    """
    scored, truth = _volume(scored_url, variable), _volume(labels_url, variable)
    names = [entry["name"] for entry in class_names(truth, labels_url)]
    given = [entry["name"] for entry in class_names(scored, scored_url)]
    if names != given:
        raise MismatchError(
            "scored classes are not those of the labels",
            where=scored_url,
            measured=", ".join(given),
            limit=", ".join(names),
        )
    scored, truth = _common(scored, truth, scored_url)
    counts: Counts = np.zeros((len(names), len(names)), np.int64)
    bounds = tuple(slice(0, size) for size in truth.shape)
    for block in spread_tiles(bounds, (_BLOCK_CELLS,) * 3, _ALL):  # type: ignore[arg-type]
        true = class_indices(truth[block], len(names), labels_url)
        counts += confusion_matrix(true, class_indices(scored[block], len(names), scored_url), len(names))
    result = scores(counts, names)
    if "fault" in names:
        result["fault_f1"] = result["classes"]["fault"]["f1"]
    return result


def _volume(url: str, variable: str) -> xr.DataArray:
    dataset = open_survey(url)
    if variable not in dataset:
        raise MismatchError(
            f"no {variable} to evaluate", where=url, measured=", ".join(map(str, dataset.data_vars)), limit=variable
        )
    return dataset[variable].transpose(*VOLUME_AXES)


def _common(scored: xr.DataArray, truth: xr.DataArray, where: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Return both on the cells they share, as contiguous ranges so that reading stays lazy."""
    cut_scored, cut_truth = {}, {}
    for axis in VOLUME_AXES:
        _, in_scored, in_truth = np.intersect1d(scored[axis].values, truth[axis].values, return_indices=True)
        contiguous = in_scored.size > 0 and all(np.all(np.diff(found) == 1) for found in (in_scored, in_truth))
        if not contiguous:
            raise MismatchError(
                f"scored survey and labels do not share a range of {axis}",
                where=where,
                measured=f"{in_scored.size} common",
                limit="a run of neighbours in both",
            )
        cut_scored[axis] = slice(int(in_scored[0]), int(in_scored[-1]) + 1)
        cut_truth[axis] = slice(int(in_truth[0]), int(in_truth[-1]) + 1)
    return scored.isel(cut_scored), truth.isel(cut_truth)

"""Metrics from what adds up block by block: of classes one confusion matrix, of numbers a few sums.

With n_ij voxels of true class i given class j and t_i = sum_j n_ij (Long et al. 2015, doi:10.1109/CVPR.2015.7298965):

    pixel accuracy              sum_i n_ii / sum_i t_i
    mean class accuracy         mean_i n_ii / t_i
    intersection over union     n_ii / (t_i + sum_j n_ji - n_ii)
    frequency-weighted IoU      sum_i t_i IoU_i / sum_i t_i

and F1 = 2 n_ii / (t_i + sum_j n_ji) (van Rijsbergen 1979), also called the Dice coefficient.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import DataError
from geobatch.storage import open_storage, split_url

Counts = npt.NDArray[np.int64]


def confusion_matrix(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: int) -> Counts:
    """Return voxel counts (true class, predicted class), int64.

    Voxels that are no class in either array, such as the invalid 255, are left out.

    Args:
        truth: class indices, any shape.
        predicted: class indices of the same shape.
        classes: number of classes K.
    """
    true, given = truth.ravel(), predicted.ravel()
    valid = (true < classes) & (given < classes)
    pairs = true[valid].astype(np.intp) * classes + given[valid]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def scores(counts: Counts, names: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of a confusion matrix, as plain numbers for JSON.

    Args:
        counts: voxel counts (true class, predicted class).
        names: class names, one per row.

    Returns:
        `pixel_accuracy`, `mean_class_accuracy` (over classes present in the truth), `fwiou`, `mean_iou` (over classes
        present in the truth or given), `voxels`, and `classes`: per name `accuracy`, `precision`, `iou`, `f1` and
        `voxels`, None where undefined.
    """
    hit, true, given = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    total = int(counts.sum())
    accuracy, iou = _ratio(hit, true), _ratio(hit, true + given - hit)
    per_class = {
        "accuracy": accuracy,
        "precision": _ratio(hit, given),
        "iou": iou,
        "f1": _ratio(2 * hit, true + given),
    }
    present = true > 0
    return {
        "pixel_accuracy": _number(hit.sum() / total) if total else None,
        "mean_class_accuracy": _number(accuracy[present].mean()) if total else None,
        "fwiou": _number((true * np.nan_to_num(iou)).sum() / total) if total else None,
        "mean_iou": _number(float(np.nanmean(iou))) if total else None,
        "voxels": total,
        "classes": {
            name: {key: _number(values[k]) for key, values in per_class.items()} | {"voxels": int(true[k])}
            for k, name in enumerate(names)
        },
    }


def headline(pairs: npt.NDArray[Any], classes: int) -> dict[str, npt.NDArray[np.float64]]:
    """Return the figures of many confusion matrices at once, NaN where undefined.

    Args:
        pairs: `(matrix, true class x given class)` cells.
        classes: Number of classes.

    Returns:
        `pixel_accuracy`, `mean_class_accuracy`, `fwiou` and `mean_iou`, each `(matrix,)`.
    """
    counts = np.asarray(pairs, float).reshape(-1, classes, classes)
    hit, true, given = np.einsum("mkk->mk", counts), counts.sum(axis=2), counts.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy, iou, total = hit / true, hit / (true + given - hit), true.sum(axis=1)
        present, met = true > 0, true + given > 0
        return {
            "pixel_accuracy": hit.sum(axis=1) / total,
            "mean_class_accuracy": np.where(present, accuracy, 0).sum(axis=1) / present.sum(axis=1),
            "fwiou": np.where(present, true * iou, 0).sum(axis=1) / total,
            "mean_iou": np.where(met, iou, 0).sum(axis=1) / met.sum(axis=1),
        }


def number_scores(tally: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return how far numbers are from the truth, as plain numbers for JSON.

    Args:
        tally: count, and sums of error, its size and square, and of the truth and its square.

    Returns:
        `count`, `bias` (mean error), `mae`, `rmse`, and `r2`, the share of the variance of the truth that is
        explained; None where undefined.
    """
    count, error, size, square, truth, truth_square = (float(value) for value in tally)
    if not count:
        return {"count": 0, "bias": None, "mae": None, "rmse": None, "r2": None}
    spread = truth_square - truth**2 / count
    return {
        "count": int(count),
        "bias": _number(error / count),
        "mae": _number(size / count),
        "rmse": _number(math.sqrt(square / count)),
        "r2": _number(1 - square / spread) if spread > 0 else None,
    }


def load_penalty(url: str) -> npt.NDArray[np.float64]:
    """Return the costs `(true class, given class)` of a `.npy` file.

    Raises:
        NotFoundError: it is not there.
        DataError: it is no square matrix of numbers.
    """
    root, name = split_url(url)
    try:
        matrix: npt.NDArray[np.float64] = np.load(io.BytesIO(open_storage(root).get(name)), allow_pickle=False)
    except ValueError as error:
        raise DataError("the penalty is no matrix", where=url, measured=error) from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise DataError("the penalty is no square matrix of numbers", where=url, measured=matrix.shape)
    return matrix.astype(np.float64)


def _ratio(part: Counts, whole: Counts) -> npt.NDArray[np.float64]:
    ratio: npt.NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)

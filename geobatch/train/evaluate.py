"""Scores of a scored survey against labels, block by block: figures, their uncertainty, and where the errors are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import MismatchError
from geobatch.storage import open_storage
from geobatch.train.evaluate_count import Compared, OnBlock, Tally, counted_blocks, learnt_classes, open_compared
from geobatch.train.evaluate_spec import EvaluateJob
from geobatch.train.metrics import Counts, headline, scores

RESULT = "evaluate.json"
BOOTSTRAPS = 2000


def evaluate(scored_url: str, labels_url: str, variable: str = "class_map") -> dict[str, Any]:
    """Return pixel accuracy, mean class accuracy, FWIoU and the figures of each class, voxel by voxel.

    Voxels unscored or unlabelled (255) are left out. Memory is that of a few blocks of 256 cells a side.

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
    job = EvaluateJob(
        job="evaluate", scored=scored_url, labels=labels_url, variable=variable, tolerance=0, output=scored_url
    ).absolute()
    compared = open_compared(job)
    tally = counted_blocks(job, compared, learnt_classes(job, compared), lambda done, total: None)
    result = scores(tally.by_line.sum(axis=0), compared.names)
    if "fault" in compared.names:
        result["fault_f1"] = result["classes"]["fault"]["f1"]
    return result


def evaluate_job(job: EvaluateJob, on_block: OnBlock = lambda done, total: None) -> dict[str, Any]:
    """Judge a scored survey; the result, which is stored as `evaluate.json` under the output.

    Returns:
        `figures` as `metrics.scores` documents them; `intervals`, 95 % by a bootstrap over runs of neighbouring lines
        (Efron & Tibshirani 1993; in blocks: Künsch 1989, doi:10.1214/aos/1176347265); `confusion`, cells by true and
        given class; `within` cells of tolerance: precision, recall and F1 per class; `calibration`: the expected
        calibration error (Guo et al. 2017, arXiv 1706.04599) and its bins; `baselines`: the same figures for what was
        learnt without looking at the data, and by how much the network is better; `lines` with the figures of each,
        `unscored` labelled cells.

    Raises:
        MismatchError: other classes, or no cell in common.
        DataError: a value is neither a class nor 255.
        UsageError: a region holds no cell.
    """
    compared = open_compared(job)
    tally = counted_blocks(job, compared, learnt_classes(job, compared), on_block)
    result = judged(job, compared, tally)
    open_storage(job.output).put(RESULT, json.dumps(result, indent=2).encode())
    return result


def judged(job: EvaluateJob, compared: Compared, tally: Tally) -> dict[str, Any]:
    """The result of what was counted, as `evaluate_job` documents it.

    Raises:
        MismatchError: no cell is both labelled and scored.
    """
    names, numbers = compared.names, compared.truth[job.by].values
    total = tally.by_line.sum(axis=0)
    if not total.sum():
        raise MismatchError(
            "no cell is both labelled and scored", where=job.scored, measured=f"{int(tally.unscored[0])} labelled"
        )
    told = [k for k in range(len(numbers)) if tally.by_line[k].any()]
    figures = scores(total, names)
    resampled = _resampled(tally.by_line[told], job.neighbours)
    drawn = headline(resampled @ _flat(tally.by_line[told], job.neighbours), len(names))
    result: dict[str, Any] = {
        "figures": figures,
        "intervals": {key: _interval(values) for key, values in drawn.items()},
        "resampled": {"lines": len(told), "together": job.neighbours},
        "classes": list(names),
        "confusion": total.tolist(),
        "within": {"cells": job.tolerance, "classes": _within(tally.near, names)},
        "unscored": int(tally.unscored[0]),
        "baselines": {},
        "lines": [{job.by: int(numbers[k]), **_of_line(tally.by_line[k])} for k in told],
    }
    if compared.probability is not None:
        result["calibration"] = _calibration(tally)
    if job.learnt is not None:
        for key, counts in (("most_frequent", tally.most), ("most_frequent_of_sample", tally.prior)):
            others = headline(resampled @ _flat(counts[told], job.neighbours), len(names))
            result["baselines"][key] = {
                "figures": scores(counts.sum(axis=0), names),
                "better_by": {name: _interval(drawn[name] - others[name]) for name in drawn},
            }
    return result


def _of_line(pairs: Counts) -> dict[str, Any]:
    figures = headline(pairs.reshape(1, -1), len(pairs))
    return {"cells": int(pairs.sum()), **{key: round(float(value[0]), 6) for key, value in figures.items()}}


def _flat(by_line: Counts, neighbours: int) -> Counts:
    """`(run of lines, true class x given class)`."""
    starts = np.arange(0, len(by_line), neighbours)
    summed: Counts = np.add.reduceat(by_line.reshape(len(by_line), -1), starts, axis=0)
    return summed


def _resampled(by_line: Counts, neighbours: int) -> Counts:
    """`(resample, run of lines)`: how often each run of lines is drawn."""
    runs = -(-len(by_line) // neighbours)
    drawn = np.random.default_rng(0).integers(runs, size=(BOOTSTRAPS, runs))
    return np.stack([np.bincount(row, minlength=runs) for row in drawn]).astype(np.int64)


def _interval(values: npt.NDArray[np.float64]) -> list[float] | None:
    finite = values[np.isfinite(values)]
    return [round(float(value), 4) for value in np.quantile(finite, (0.025, 0.975))] if finite.size else None


def _within(near: Counts, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    told: dict[str, dict[str, float | None]] = {}
    for name, (hit_given, given, hit_true, true) in zip(names, near.tolist(), strict=True):
        precision = hit_given / given if given else None
        recall = hit_true / true if true else None
        both = (precision or 0.0) + (recall or 0.0)
        f1 = 2 * (precision or 0.0) * (recall or 0.0) / both if both else (0.0 if given or true else None)
        told[name] = {"precision": precision, "recall": recall, "f1": f1}
    return {
        name: {key: None if value is None else round(value, 6) for key, value in figures.items()}
        for name, figures in told.items()
    }


def _calibration(tally: Tally) -> dict[str, Any]:
    cells, right = tally.bins[:, 0], tally.bins[:, 1]
    used = cells > 0
    trust, share = tally.trust[used] / cells[used], right[used] / cells[used]
    return {
        "expected_error": round(float((np.abs(trust - share) * cells[used]).sum() / cells.sum()), 6),
        "bins": [
            {"probability": round(float(p), 6), "right": round(float(s), 6), "cells": int(n)}
            for p, s, n in zip(trust, share, cells[used], strict=True)
        ],
    }


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """What a terminal shows of a result."""
    keys = ("pixel_accuracy", "mean_class_accuracy", "fwiou", "mean_iou")
    told: dict[str, Any] = {key: result["figures"][key] for key in keys}
    told["intervals"] = {key: result["intervals"][key] for key in keys}
    for name, baseline in result["baselines"].items():
        told[name] = {key: baseline["figures"][key] for key in keys}
    if "calibration" in result:
        told["expected_calibration_error"] = result["calibration"]["expected_error"]
    told["f1_within"] = {name: figures["f1"] for name, figures in result["within"]["classes"].items()}
    return told

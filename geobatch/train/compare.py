"""Which model suits the data: every candidate trained without each well in turn, and judged by that well."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch import cluster
from geobatch.errors import UsageError
from geobatch.fanout import in_order, open_fanout
from geobatch.storage import absolute_url, open_storage
from geobatch.survey import INVALID_CLASS
from geobatch.train.compare_folds import Blind, Fold, every_fold, gathered, measured, read_fold, run_fold
from geobatch.train.compare_spec import CompareJob
from geobatch.train.data import class_names
from geobatch.train.metrics import confusion_matrix, load_penalty, scores
from geobatch.train.wells import open_wells

RESULT = "compare.json"
FOLD_BYTES = 2**31
BOOTSTRAPS = 10_000

OnFold = Callable[[int, int], None]


def compare(job: CompareJob, on_progress: OnFold = lambda done, total: None) -> dict[str, Any]:
    """Train and judge every candidate; the result, which is stored as `compare.json` under the output.

    Folds are Ray tasks. Each one's answer is stored under `folds/` by the hash of all that decides it, so that the same
    job run again, or one with more candidates, does what is missing.

    Returns:
        `candidates`: per name `mean_accuracy` over the wells (the micro-averaged F1, as every depth has one class), its
        `standard_error`, `pooled` figures as `metrics.scores` documents them, `wells` with the accuracy of each, and
        `penalty_score` where a penalty is given; `pairs`: per pair the difference of mean accuracy (and of the penalty
        score), its 95 % interval by a paired bootstrap over wells, and the share of bootstraps in which the first is
        better; of a candidate that chooses, `chosen` by well; `best`: the name with the highest mean accuracy, or
        penalty score where one is given.

    Raises:
        UsageError: a well or curve is not there, or a training did not stay finite.
        NotFoundError, DataError, MismatchError: as `train`.
    """
    job = job.model_copy(
        update={
            "output": absolute_url(job.output),
            "data": job.data.model_copy(update={"survey": absolute_url(job.data.survey)}),
        }
    )
    wells = _wells(job)
    penalty = None if job.penalty is None else load_penalty(job.penalty)
    folds = every_fold(job, wells)
    cluster.connect(cpus=job.resources.workers)
    done = 0

    def heard(fold: Fold) -> None:
        nonlocal done
        done += 1
        on_progress(done, len(folds))

    with open_fanout(small=False) as fanout:
        found = in_order(fanout, partial(run_fold, job), folds, task_bytes=FOLD_BYTES, on_result=heard)
    answers, chosen = gathered(job, wells, dict(zip(folds, map(read_fold, found), strict=True)), penalty)
    result = judged(job, wells, answers, penalty)
    for name, by_well in chosen.items():
        result["candidates"][name]["chosen"] = by_well
    open_storage(job.output).put(RESULT, json.dumps(result, indent=2).encode())
    return result


def judged(
    job: CompareJob, wells: Sequence[str], blind: dict[str, list[Blind]], penalty: npt.NDArray[np.float64] | None
) -> dict[str, Any]:
    """The result of the candidates' answers, as `compare` documents it."""
    names = [entry["name"] for entry in class_names(open_wells(job.data)[job.data.labels], job.data.survey)]
    told: dict[str, Any] = {}
    for name, answers in blind.items():
        matrices = [confusion_matrix(a.labels, a.probabilities.argmax(axis=0), len(names)) for a in answers]
        told[name] = {"by_well": matrices, "accuracy": np.array([measured(a, None) for a in answers])}
        if penalty is not None:
            told[name]["score"] = np.array([measured(a, penalty) for a in answers])
    measure = "accuracy" if penalty is None else "score"
    result: dict[str, Any] = {"wells": list(wells), "classes": names, "candidates": {}, "pairs": []}
    for name, figures in told.items():
        accuracy = figures["accuracy"]
        result["candidates"][name] = {
            "mean_accuracy": round(float(accuracy.mean()), 4),
            "standard_error": round(float(accuracy.std(ddof=1) / math.sqrt(len(wells))), 4) if len(wells) > 1 else None,
            "wells": {well: round(float(value), 4) for well, value in zip(wells, accuracy, strict=True)},
            "pooled": scores(np.sum(figures["by_well"], axis=0), names),
        }
        if penalty is not None:
            result["candidates"][name]["penalty_score"] = round(float(figures["score"].mean()), 4)
    for number, first in enumerate(told):
        for second in list(told)[number + 1 :]:
            pair: dict[str, Any] = {"first": first, "second": second}
            for key in ("accuracy", *(("score",) if penalty is not None else ())):
                pair[key] = paired_bootstrap(told[first][key], told[second][key])
            result["pairs"].append(pair)
    result["best"] = max(told, key=lambda name: float(told[name][measure].mean()))
    return result


def paired_bootstrap(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Difference of means over wells, its 95 % interval, and the share of resamples in which the first is better.

    Wells are drawn with replacement, the same for both (Efron & Tibshirani 1993, An Introduction to the Bootstrap).
    """
    random = np.random.default_rng(0)
    drawn = random.integers(len(first), size=(BOOTSTRAPS, len(first)))
    differences = (first - second)[drawn].mean(axis=1)
    low, high = np.quantile(differences, (0.025, 0.975))
    return {
        "difference": round(float((first - second).mean()), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "first_better": round(float((differences > 0).mean()), 4),
    }


def _wells(job: CompareJob) -> list[str]:
    """The wells left out in turn, of those that have a label."""
    wells = open_wells(job.data)
    names = [str(name) for name in wells["well"].values.tolist()]
    if job.wells is not None:
        if unknown := [name for name in job.wells if name not in names]:
            raise UsageError("no such well", where=job.data.survey, measured=unknown[0], limit=", ".join(names))
        return list(job.wells)
    labels = wells[job.data.labels].transpose("well", ...).values
    labelled = ((labels != INVALID_CLASS) & np.isfinite(labels)).any(axis=1)
    free = [n for n, has in zip(names, labelled, strict=True) if has and n not in job.data.training_only]
    if len(free) < 2:
        raise UsageError("leaving one well out needs two with labels", where=job.data.survey, measured=len(free))
    return free

"""Candidates compared by wells: each is left out in turn, and accuracy is that of blind wells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import DataError, UsageError
from geobatch.survey import INVALID_CLASS
from geobatch.train.blind import Blind
from geobatch.train.boosting import boosted_probabilities
from geobatch.train.compare_spec import CompareJob
from geobatch.train.metrics import confusion_matrix, load_penalty, scores
from geobatch.train.networks import BoostingSpec
from geobatch.train.spec import WellsData
from geobatch.train.wells import WellsSource, WellsTask, open_wells

BOOTSTRAPS = 10_000


def well_folds(job: CompareJob) -> list[tuple[str, ...]]:
    """The wells left out in turn, one in each fold, of those that have a label.

    Raises:
        UsageError: a well is not there, or fewer than two have labels.
        NotFoundError, DataError, MismatchError: as `open_wells`.
    """
    data = _data(job)
    wells = open_wells(data)
    names = [str(name) for name in wells["well"].values.tolist()]
    if job.wells is not None:
        if unknown := [name for name in job.wells if name not in names]:
            raise UsageError("no such well", where=data.survey, measured=unknown[0], limit=", ".join(names))
        return [(name,) for name in job.wells]
    labels = wells[data.labels].transpose("well", ...).values
    labelled = ((labels != INVALID_CLASS) & np.isfinite(labels)).any(axis=1)
    free = [n for n, has in zip(names, labelled, strict=True) if has and n not in data.training_only]
    if len(free) < 2:
        raise UsageError("leaving one well out needs two with labels", where=data.survey, measured=len(free))
    return [(name,) for name in free]


def well_places(source: WellsSource, held_out: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Depths of the blind wells, one after the other.

    Raises:
        DataError: none of them counts in one.
    """
    if missing := set(held_out) - {well.name for well in source.wells}:
        raise DataError("a well has no depth at which its curves count", measured=min(missing))
    return np.concatenate([well.depth for well in source.wells])


def well_baseline(source: WellsSource, model: BoostingSpec, classes: int, seed: int) -> npt.NDArray[np.float32]:
    """Probabilities `(class, depth)` of the blind wells, one after the other, by gradient boosting."""
    return np.concatenate(boosted_probabilities(source.training, source.wells, model, classes, seed), axis=1)


def well_measure(job: CompareJob, answer: Blind) -> float:
    """The mean over wells of the accuracy, or of minus the penalty where one is given."""
    penalty = None if job.penalty is None else load_penalty(job.penalty)
    return float(np.mean([_value(answer.of([well]), penalty) for well in np.unique(answer.groups)]))


def _value(answer: Blind, penalty: npt.NDArray[np.float64] | None) -> float:
    """Of one well."""
    matrix = confusion_matrix(answer.labels, answer.answers.argmax(axis=0), len(answer.answers))
    value = np.trace(matrix) if penalty is None else -(matrix * penalty).sum()
    return float(value / max(1, matrix.sum()))


def well_figures(job: CompareJob, folds: Sequence[tuple[str, ...]], blind: dict[str, list[Blind]]) -> dict[str, Any]:
    """The result of the candidates' answers.

    Returns:
        `wells`, `classes`; `candidates`: per name `mean_accuracy` over the wells (the micro-averaged F1, as every depth
        has one class), its `standard_error`, `pooled` figures as `metrics.scores` documents them, `wells` with the
        accuracy of each, and `penalty_score` where a penalty is given; `pairs`: per pair the difference of mean
        accuracy (and of the penalty score), its 95 % interval by a paired bootstrap over wells, and the share of
        bootstraps in which the first is better; `best`: the name with the highest mean accuracy, or penalty score
        where one is given.
    """
    wells = [well for (well,) in folds]
    penalty = None if job.penalty is None else load_penalty(job.penalty)
    first = next(name for name, candidate in job.candidates.items() if candidate.model is not None)
    names = [entry.name for entry in WellsTask(job.fold(first, folds[0], 0)).classes]
    told: dict[str, Any] = {}
    for name, answers in blind.items():
        matrices = [confusion_matrix(answer.labels, answer.answers.argmax(axis=0), len(names)) for answer in answers]
        told[name] = {"by_well": matrices, "accuracy": np.array([_value(answer, None) for answer in answers])}
        if penalty is not None:
            told[name]["score"] = np.array([_value(answer, penalty) for answer in answers])
    measure = "accuracy" if penalty is None else "score"
    result: dict[str, Any] = {"wells": wells, "classes": names, "candidates": {}, "pairs": []}
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
    for number, one in enumerate(told):
        for other in list(told)[number + 1 :]:
            pair: dict[str, Any] = {"first": one, "second": other}
            for key in ("accuracy", *(("score",) if penalty is not None else ())):
                pair[key] = paired_bootstrap(told[one][key], told[other][key])
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


def _data(job: CompareJob) -> WellsData:
    assert isinstance(job.data, WellsData)
    return job.data

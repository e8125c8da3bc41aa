"""Candidates compared by event windows: whole stations, networks or events are left out, some in each fold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from geobatch.errors import UsageError
from geobatch.train.blind import Blind
from geobatch.train.compare_spec import CompareJob
from geobatch.train.records import Records
from geobatch.train.windows import WindowsSource
from geobatch.train.windows_spec import WindowsData

BOOTSTRAPS = 2_000
Values = npt.NDArray[np.float64]
Figures = Callable[[Values, Values, Values], dict[str, float]]
"""Of labels, answers and weights `(window,)`."""


def window_folds(job: CompareJob) -> list[tuple[str, ...]]:
    """The groups left out together, with as many windows in each fold as there can be; every group is in one.

    Raises:
        UsageError: there are fewer groups than folds.
        NotFoundError, DataError, MismatchError, UsageError: as `Records`.
    """
    records = _records(job)
    sizes = Counter(records.groups[record] for record in records.usable)
    count = job.folds or len(sizes)
    if count < 2 or count > len(sizes):
        raise UsageError(
            f"there are not enough {job.by}s to leave some out",
            where=job.data.survey,
            measured=f"{len(sizes)} for {count} folds",
            limit=f"2 {job.by}s or more, one for each fold",
        )
    folds: list[list[str]] = [[] for _ in range(count)]
    held = [0] * count
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        fold = held.index(min(held))
        folds[fold].append(name)
        held[fold] += size
    return [tuple(sorted(fold)) for fold in folds]


def window_places(source: WindowsSource, held_out: tuple[str, ...]) -> Values:
    """Numbers of the records whose windows are held out."""
    return np.array([cut.record for cut in source.held], np.float64)


def window_figures(job: CompareJob, folds: Sequence[tuple[str, ...]], blind: dict[str, list[Blind]]) -> dict[str, Any]:
    """The result of the candidates' answers, each by a model that has seen nothing of the window's group.

    Returns:
        `by`, `groups`, `windows`, `left_out` (records by reason), `folds`; `candidates`: per name its figures over all
        windows, each with `value` and a 95 % `interval` by a bootstrap over groups: of events `auroc`, `auprc` and
        `accuracy` (at probability 1/2), of magnitudes `rmse`, `mae` and `r2`; `pairs`: per pair the difference of
        each figure, its interval by the same resamples for both, and the share of resamples in which the first is
        better; `best`: the name with the highest `auroc`, or the lowest `rmse`.
    """
    records = _records(job)
    of_events = records.picked
    figures = event_figures if of_events else magnitude_figures
    own = next(iter(blind.values()))
    places = np.concatenate([part.places for part in own]).astype(int)
    labels = np.concatenate([part.labels for part in own]).astype(np.float64)
    answers = {
        name: np.concatenate([part.answers[-1] for part in parts]).astype(np.float64) for name, parts in blind.items()
    }
    groups, group = np.unique([records.groups[place] for place in places], return_inverse=True)
    drawn = resampled_figures(partial(figures, labels), answers, group)
    whole = {name: figures(labels, given, np.ones(len(labels))) for name, given in answers.items()}
    result: dict[str, Any] = {
        "by": job.by,
        "groups": len(groups),
        "windows": len(labels),
        "left_out": records.left_out,
        "folds": [list(fold) for fold in folds],
        "candidates": {
            name: {
                key: {"value": round(value, 4), "interval": _interval(drawn[name][key])} for key, value in own.items()
            }
            for name, own in whole.items()
        },
        "pairs": [],
    }
    for number, first in enumerate(whole):
        for second in list(whole)[number + 1 :]:
            pair: dict[str, Any] = {"first": first, "second": second}
            for key in whole[first]:
                differences = drawn[first][key] - drawn[second][key]
                better = differences < 0 if key in ("rmse", "mae") else differences > 0
                pair[key] = {
                    "difference": round(whole[first][key] - whole[second][key], 4),
                    "interval": _interval(differences),
                    "first_better": round(float(better.mean()), 4),
                }
            result["pairs"].append(pair)
    result["best"] = min(whole, key=lambda name: -whole[name]["auroc"] if of_events else whole[name]["rmse"])
    return result


def event_figures(labels: Values, answers: Values, weights: Values) -> dict[str, float]:
    """Areas under the curves of the ROC and of precision over recall, and accuracy.

    Args:
        labels: `(window,)`, 1 of events and 0 of noise.
        answers: `(window,)` probability of an event.
        weights: `(window,)`, how often each counts.
    """
    return {
        "auroc": float(roc_auc_score(labels, answers, sample_weight=weights)),
        "auprc": float(average_precision_score(labels, answers, sample_weight=weights)),
        "accuracy": float(accuracy_score(labels, answers > 0.5, sample_weight=weights)),
    }


def magnitude_figures(labels: Values, answers: Values, weights: Values) -> dict[str, float]:
    """Root mean square and mean size of the errors, and the share of the variance that is explained."""
    errors = answers - labels
    square = float(np.average(errors**2, weights=weights))
    spread = float(np.average((labels - np.average(labels, weights=weights)) ** 2, weights=weights))
    mae = float(np.average(np.abs(errors), weights=weights))
    return {"rmse": square**0.5, "mae": mae, "r2": 1 - square / spread if spread else float("nan")}


def resampled_figures(
    figures: Callable[[Values, Values], dict[str, float]], answers: dict[str, Values], group: npt.NDArray[np.intp]
) -> dict[str, dict[str, Values]]:
    """Per candidate and figure `(resample,)`: groups drawn with replacement, the same for all candidates.

    Efron & Tibshirani 1993, An Introduction to the Bootstrap.

    Args:
        figures: Of answers and weights.
        answers: Per candidate, `(window,)`.
        group: Number of each window's group.
    """
    random = np.random.default_rng(0)
    count = int(group.max()) + 1
    weights = [
        np.bincount(random.integers(count, size=count), minlength=count)[group].astype(float) for _ in range(BOOTSTRAPS)
    ]
    found = {name: [figures(given, weight) for weight in weights] for name, given in answers.items()}
    return {name: {key: np.array([one[key] for one in every]) for key in every[0]} for name, every in found.items()}


def _interval(values: Values) -> list[float]:
    low, high = np.nanquantile(values, (0.025, 0.975))
    return [round(float(low), 4), round(float(high), 4)]


def _records(job: CompareJob) -> Records:
    assert isinstance(job.data, WindowsData)
    return Records(job.data, job.by, job.resources.cache_mib * 2**20)

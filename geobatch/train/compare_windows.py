"""Candidates compared by event windows: whole stations, networks or events are left out, some in each fold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import UsageError
from geobatch.train.blind import Blind
from geobatch.train.compare_spec import CompareJob
from geobatch.train.records import Records
from geobatch.train.windows import WindowsSource
from geobatch.train.windows_spec import WindowsData

BOOTSTRAPS = 10_000
Values = npt.NDArray[np.float64]


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

    Raises:
        UsageError: candidates left out other records.
    """
    records = _records(job)
    of_events = records.picked
    figures = event_figures if of_events else magnitude_figures
    own = next(iter(blind.values()))
    places = np.concatenate([part.places for part in own]).astype(int)
    for name, parts in blind.items():
        if not np.array_equal(np.concatenate([part.places for part in parts]), places):
            raise UsageError(
                "candidates are judged by other windows, and so cannot be compared",
                where=f"candidates.{name}",
                remedy="Give all the same data.input.missing, and components and window_s that leave the same out.",
            )
    labels = np.concatenate([part.labels for part in own]).astype(np.float64)
    answers = {
        name: np.concatenate([part.answers[-1] for part in parts]).astype(np.float64) for name, parts in blind.items()
    }
    groups, group = np.unique([records.groups[place] for place in places], return_inverse=True)
    weights = resamples(group)
    drawn = {name: figures(labels, given, weights) for name, given in answers.items()}
    once = np.ones((1, len(labels)))
    whole = {
        name: {key: float(value[0]) for key, value in figures(labels, given, once).items()}
        for name, given in answers.items()
    }
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


def window_measure(job: CompareJob, answer: Blind) -> float:
    """The area under the curve of the ROC of events, or minus the root mean square error of magnitudes."""
    labels, given = answer.labels.astype(np.float64), answer.answers[-1].astype(np.float64)
    once = np.ones((1, len(labels)))
    if isinstance(job.data, WindowsData) and job.data.ask == "event":
        return float(event_figures(labels, given, once)["auroc"][0])
    return -float(magnitude_figures(labels, given, once)["rmse"][0])


def event_figures(labels: Values, answers: Values, weights: Values) -> dict[str, Values]:
    """Areas under the curves of the ROC and of precision over recall (average precision), and accuracy, `(resample,)`.

    Args:
        labels: `(window,)`, 1 of events and 0 of noise.
        answers: `(window,)` probability of an event.
        weights: `(resample, window)`, how often each counts.
    """
    order = np.argsort(-answers, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(answers[order])), len(order) - 1)
    events, noise = ((weights * (labels == kind))[:, order].cumsum(axis=1)[:, ends] for kind in (1, 0))
    recall, false = events / events[:, -1:], noise / noise[:, -1:]
    with np.errstate(invalid="ignore"):
        precision = np.nan_to_num(events / (events + noise))
    risen, widened = (np.diff(rate, axis=1, prepend=0) for rate in (recall, false))
    right = (answers > 0.5) == (labels == 1)
    return {
        "auroc": (widened * (recall - risen / 2)).sum(axis=1),
        "auprc": (risen * precision).sum(axis=1),
        "accuracy": (weights * right).sum(axis=1) / weights.sum(axis=1),
    }


def magnitude_figures(labels: Values, answers: Values, weights: Values) -> dict[str, Values]:
    """Root mean square and mean size of the errors, and the share of the variance that is explained, `(resample,)`.

    Args:
        labels: `(window,)`.
        answers: `(window,)`.
        weights: `(resample, window)`, how often each counts.
    """
    shares = weights / weights.sum(axis=1, keepdims=True)
    square = shares @ (answers - labels) ** 2
    spread = shares @ labels**2 - (shares @ labels) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = 1 - square / spread
    return {"rmse": np.sqrt(square), "mae": shares @ np.abs(answers - labels), "r2": explained}


def resamples(group: npt.NDArray[np.intp]) -> Values:
    """`(resample, window)`: how often each window counts when groups are drawn with replacement.

    Efron & Tibshirani 1993, An Introduction to the Bootstrap.

    Args:
        group: `(window,)`, number of each window's group.
    """
    random = np.random.default_rng(0)
    count = int(group.max()) + 1
    times = [np.bincount(random.integers(count, size=count), minlength=count) for _ in range(BOOTSTRAPS)]
    weights: Values = np.array(times, np.float64)[:, group]
    return weights


def _interval(values: Values) -> list[float]:
    low, high = np.nanquantile(values, (0.025, 0.975))
    return [round(float(low), 4), round(float(high), 4)]


def _records(job: CompareJob) -> Records:
    assert isinstance(job.data, WindowsData)
    return Records(job.data, job.by, job.resources.cache_mib * 2**20)

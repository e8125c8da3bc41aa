"""Which models a comparison trains, and what it chooses among them without having seen what it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

from geobatch.train.blind import Blind, Fold
from geobatch.train.compare_spec import CompareJob

Groups = tuple[str, ...]
Choices = dict[str, dict[Groups, str]]
"""By candidate and fold: the candidate that was taken."""


def every_fold(job: CompareJob, folds: Sequence[Groups]) -> list[Fold]:
    """The models that are to be trained: each without one fold, and those chosen among without each pair of parts."""
    pairs = [first + second for first, second in combinations(parts_of(job, folds), 2)]
    choosing = {model for c in job.candidates.values() for member in c.choose_of for model in _models_of(job, member)}
    return [
        Fold(name, held_out, seed)
        for name, candidate in job.candidates.items()
        if candidate.model is not None
        for held_out in [*folds, *(pairs if name in choosing else ())]
        for seed in range(candidate.seeds)
    ]


def parts_of(job: CompareJob, folds: Sequence[Groups]) -> list[Groups]:
    """The groups of all folds in parts; folds are dealt out in their order."""
    count = min(job.parts, len(folds))
    return [tuple(group for fold in folds[part::count] for group in fold) for part in range(count)]


def choices(
    job: CompareJob,
    folds: Sequence[Groups],
    found: Mapping[Fold, Blind],
    measure: Callable[[Blind], float],
) -> Choices:
    """What each candidate that chooses takes for each fold.

    For a fold that is the member which is best, on the mean over all other parts, when trained without that part and
    the one of the fold: nothing of the fold is in the choice.
    """
    parts = parts_of(job, folds)

    def inner(name: str, own: Groups, other: Groups) -> Blind:
        first, second = sorted((own, other), key=parts.index)
        models = [
            Blind.mean([found[Fold(model, first + second, seed)] for seed in range(job.candidates[model].seeds)])
            for model in _models_of(job, name)
        ]
        return Blind.mean(models).of(other)

    chosen: Choices = {}
    for name, candidate in job.candidates.items():
        if not candidate.choose_of:
            continue
        chosen[name] = {}
        for own in parts:
            others = [part for part in parts if part != own]
            best = max(
                candidate.choose_of,
                key=lambda member: float(np.mean([measure(inner(member, own, other)) for other in others])),
            )
            chosen[name] |= {fold: best for fold in folds if set(fold) <= set(own)}
    return chosen


def gathered(
    job: CompareJob, folds: Sequence[Groups], found: Mapping[Fold, Blind], chosen: Choices
) -> dict[str, list[Blind]]:
    """Per candidate its answers by fold: of a model the mean over seeds, of a mean that of its members."""

    def of(name: str, fold: Groups) -> Blind:
        candidate = job.candidates[name]
        if candidate.choose_of:
            return of(chosen[name][fold], fold)
        if candidate.mean_of:
            return Blind.mean([of(member, fold) for member in candidate.mean_of])
        return Blind.mean([found[Fold(name, fold, seed)] for seed in range(candidate.seeds)])

    return {name: [of(name, fold) for fold in folds] for name in job.candidates}


def _models_of(job: CompareJob, name: str) -> Groups:
    """The candidates with a model that a candidate consists of."""
    return job.candidates[name].mean_of or (name,)

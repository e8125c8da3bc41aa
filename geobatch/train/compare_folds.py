"""Folds of a comparison: a model trained without some wells, and what it says of them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch

from geobatch.errors import DataError, NotFoundError, UsageError
from geobatch.storage import open_storage
from geobatch.train.boosting import boosted_probabilities
from geobatch.train.compare_spec import CompareJob
from geobatch.train.loop import fit_network
from geobatch.train.metrics import confusion_matrix
from geobatch.train.networks import BoostingSpec
from geobatch.train.places import AlonePlace
from geobatch.train.train import make_plan, run_hash
from geobatch.train.wells import WellsTask


@dataclass(frozen=True)
class Fold:
    """One model of one candidate and the wells it has not seen."""

    candidate: str
    wells: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Blind:
    """What a candidate says of a well it has not seen.

    Attributes:
        probabilities: `(class, depth)` float32.
        labels: `(depth,)` uint8, 255 unlabelled.
        depth: `(depth,)` float64, m.
    """

    probabilities: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float64]


Answers = dict[str, Blind]
"""By well."""


def every_fold(job: CompareJob, wells: Sequence[str]) -> list[Fold]:
    """The models that are to be trained: each without one well, and those that are chosen among without two groups."""
    pairs = [(*first, *second) for first, second in combinations(groups_of(job, wells), 2)]
    choosing = {model for c in job.candidates.values() for member in c.choose_of for model in _models_of(job, member)}
    return [
        Fold(name, held, seed)
        for name, candidate in job.candidates.items()
        if candidate.model is not None
        for held in [*((well,) for well in wells), *(pairs if name in choosing else ())]
        for seed in range(candidate.seeds)
    ]


def groups_of(job: CompareJob, wells: Sequence[str]) -> list[tuple[str, ...]]:
    """The wells in groups, dealt out in their order."""
    count = min(job.groups, len(wells))
    return [tuple(wells[group::count]) for group in range(count)]


def run_fold(job: CompareJob, fold: Fold) -> bytes:
    """Probabilities, labels and depths of the blind wells as NPZ, stored or computed."""
    training = job.fold(fold.candidate, fold.wells, fold.seed)
    task = WellsTask(training)
    key = f"folds/{_fold_hash(job, fold, run_hash(training, task))}.npz"
    storage = open_storage(job.output)
    try:
        return storage.get(key)
    except NotFoundError:
        pass
    model = job.candidates[fold.candidate].model
    plan = make_plan(training, task, "fold")
    source = task.source(plan.fitted)
    if missing := set(fold.wells) - {well.name for well in source.wells}:
        raise DataError("a well has no depth at which its curves count", where=job.data.survey, measured=min(missing))
    if isinstance(model, BoostingSpec):
        seed = training.training.seed
        answers = boosted_probabilities(source.training, source.wells, model, len(task.classes), seed)
    else:
        network = fit_network(plan, AlonePlace(validates=False), source)
        if isinstance(network, UsageError):
            raise network
        network.eval()
        cpu = torch.device("cpu")
        parts = [part.read() for part in source.held_out()]
        answers = [source.answer(network, part, cpu, plan.objective.answer).numpy() for part in parts]
    arrays = {"wells": np.array([well.name for well in source.wells])}
    for number, (well, probabilities) in enumerate(zip(source.wells, answers, strict=True)):
        arrays |= {f"probabilities{number}": probabilities.astype(np.float32)}
        arrays |= {f"labels{number}": well.labels, f"depth{number}": well.depth}
    body = io.BytesIO()
    np.savez(body, allow_pickle=False, **arrays)
    storage.put(key, body.getvalue())
    return body.getvalue()


def read_fold(body: bytes) -> Answers:
    """What a fold says, by well."""
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return {
            str(name): Blind(arrays[f"probabilities{k}"], arrays[f"labels{k}"], arrays[f"depth{k}"])
            for k, name in enumerate(arrays["wells"].tolist())
        }


def gathered(
    job: CompareJob, wells: Sequence[str], found: dict[Fold, Answers], penalty: npt.NDArray[np.float64] | None
) -> tuple[dict[str, list[Blind]], dict[str, dict[str, str]]]:
    """Per candidate its answers in the order of the wells; and of those that choose, what they chose by well.

    A candidate that chooses answers for a well with the member that is best, on the mean over the wells of all other
    groups, when trained without their group and that of the well: nothing of the well is in the choice.
    """
    answers, chosen = {}, {}
    groups = groups_of(job, wells)
    for name, candidate in job.candidates.items():
        if candidate.choose_of:
            chosen[name] = {
                well: _best(job, candidate.choose_of, own, [g for g in groups if g != own], groups, found, penalty)
                for own in groups
                for well in own
            }

    def of(name: str, well: str) -> Blind:
        candidate = job.candidates[name]
        if candidate.choose_of:
            return of(chosen[name][well], well)
        if candidate.mean_of:
            return _mean([of(member, well) for member in candidate.mean_of])
        return _mean([found[Fold(name, (well,), seed)][well] for seed in range(candidate.seeds)])

    for name in job.candidates:
        answers[name] = [of(name, well) for well in wells]
    return answers, {name: {well: chosen[name][well] for well in wells} for name in chosen}


def measured(answer: Blind, penalty: npt.NDArray[np.float64] | None) -> float:
    """The accuracy of an answer, or minus its mean penalty."""
    matrix = confusion_matrix(answer.labels, answer.probabilities.argmax(axis=0), len(answer.probabilities))
    value = np.trace(matrix) if penalty is None else -(matrix * penalty).sum()
    return float(value / max(1, matrix.sum()))


def _best(
    job: CompareJob,
    members: Sequence[str],
    own: tuple[str, ...],
    others: Sequence[tuple[str, ...]],
    groups: Sequence[tuple[str, ...]],
    found: dict[Fold, Answers],
    penalty: npt.NDArray[np.float64] | None,
) -> str:
    """The member with the highest mean over the wells of other groups, of models that have not seen `own` either."""

    def inner(name: str, other: tuple[str, ...], well: str) -> Blind:
        first, second = sorted((own, other), key=groups.index)
        models = _models_of(job, name)
        return _mean(
            [found[Fold(m, (*first, *second), seed)][well] for m in models for seed in range(job.candidates[m].seeds)]
            if len(models) == 1
            else [inner(m, other, well) for m in models]
        )

    def mean(name: str) -> float:
        return float(np.mean([measured(inner(name, other, well), penalty) for other in others for well in other]))

    return max(members, key=mean)


def _models_of(job: CompareJob, name: str) -> tuple[str, ...]:
    """The candidates with a model that a candidate consists of."""
    return job.candidates[name].mean_of or (name,)


def _mean(answers: Sequence[Blind]) -> Blind:
    first = answers[0]
    if any(answer.depth.shape != first.depth.shape for answer in answers):
        raise UsageError(
            "candidates count other depths, so they have no mean", remedy="Give them the same way with missing values."
        )
    return Blind(np.mean([answer.probabilities for answer in answers], axis=0), first.labels, first.depth)


def _fold_hash(job: CompareJob, fold: Fold, run: str) -> str:
    model = job.candidates[fold.candidate].model
    trees = model.model_dump(mode="json") if isinstance(model, BoostingSpec) else None
    return hashlib.sha256(json.dumps([run, trees]).encode()).hexdigest()

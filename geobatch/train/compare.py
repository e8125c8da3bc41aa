"""Which model suits the data: every candidate trained without some groups in turn, and judged by those."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from geobatch import cluster
from geobatch.errors import NotFoundError, UsageError
from geobatch.fanout import in_order, open_fanout
from geobatch.models.bundle import load_bundle
from geobatch.storage import absolute_url, open_storage
from geobatch.train.blind import Blind, Fold
from geobatch.train.compare_choice import choices, every_fold, gathered
from geobatch.train.compare_spec import CompareJob
from geobatch.train.compare_wells import well_baseline, well_figures, well_folds, well_measure, well_places
from geobatch.train.compare_windows import window_figures, window_folds, window_measure, window_places
from geobatch.train.kinds import open_task
from geobatch.train.loop import fit_network
from geobatch.train.networks import AmplitudeSpec, Baseline
from geobatch.train.places import AlonePlace, WorkerPlan
from geobatch.train.source import Source
from geobatch.train.train import make_plan, run_hash
from geobatch.train.window_baselines import window_baseline

RESULT = "compare.json"
FOLD_BYTES = 2**31

OnFold = Callable[[int, int], None]
Groups = tuple[str, ...]


@dataclass(frozen=True)
class Contest:
    """How one kind of data is compared.

    Attributes:
        folds: The groups that are left out together.
        places: Of a source and its held-out groups: what tells their cells apart.
        baseline: Of a source, a baseline, the number of classes and a seed: its answers.
        figures: The result of all candidates' answers.
        measure: How good an answer is, more being better: what a choice goes by.
    """

    folds: Callable[[CompareJob], list[Groups]]
    places: Callable[[Any, Groups], Any]
    baseline: Callable[[Any, Any, int, int], Any]
    figures: Callable[[CompareJob, Sequence[Groups], dict[str, list[Blind]]], dict[str, Any]]
    measure: Callable[[CompareJob, Blind], float]


CONTESTS = {
    "wells": Contest(well_folds, well_places, well_baseline, well_figures, well_measure),
    "windows": Contest(window_folds, window_places, window_baseline, window_figures, window_measure),
}


def compare(job: CompareJob, on_progress: OnFold = lambda done, total: None) -> dict[str, Any]:
    """Train and judge every candidate; the result, which is stored as `compare.json` under the output.

    Folds are Ray tasks. Each one's answer is stored under `folds/` by the hash of all that decides it, so that the same
    job run again, or one with more candidates, does what is missing.

    Returns:
        What `well_figures` and `window_figures` document; of a candidate that chooses also `chosen`, the candidate
        taken for each part that is left out.

    Raises:
        UsageError: a group or curve is not there, or a training did not stay finite.
        NotFoundError, DataError, MismatchError: as `train`.
    """
    job = _absolute(job)
    contest = CONTESTS[job.data.kind]
    groups = contest.folds(job)
    folds = every_fold(job, groups)
    cluster.connect(cpus=job.resources.workers)
    done = 0

    def heard(fold: Fold) -> None:
        nonlocal done
        done += 1
        on_progress(done, len(folds))

    with open_fanout(small=False) as fanout:
        found = in_order(fanout, partial(run_fold, job), folds, task_bytes=FOLD_BYTES, on_result=heard)
    answers = dict(zip(folds, map(Blind.loaded, found), strict=True))
    chosen = choices(job, groups, answers, partial(contest.measure, job))
    result = contest.figures(job, groups, gathered(job, groups, answers, chosen))
    for name, members in chosen.items():
        told = {", ".join(held_out): member for held_out, member in members.items()}
        result["candidates"][name]["chosen"] = told
    open_storage(job.output).put(RESULT, json.dumps(result, indent=2).encode())
    return result


def run_fold(job: CompareJob, fold: Fold) -> bytes:
    """What a candidate says of the groups left out, a `Blind` as NPZ, stored or computed."""
    training = job.fold(fold.candidate, fold.held_out, fold.seed)
    task = open_task(training)
    model = job.candidates[fold.candidate].model
    key = f"folds/{_fold_hash(model, run_hash(training, task))}.npz"
    storage = open_storage(job.output)
    try:
        return storage.get(key)
    except NotFoundError:
        pass
    contest = CONTESTS[job.data.kind]
    plan = make_plan(training, task, "fold")
    source = task.source(plan.fitted)
    places = contest.places(source, fold.held_out)
    network = None if isinstance(model, Baseline) else _trained(plan, source)
    labels, given, groups = [], [], []
    for part in source.held_out():
        example = part.read()
        labels.append(example.labels.reshape(-1))
        groups += [part.name] * example.labels.size
        if network is not None:
            answer = source.answer(network, example, torch.device("cpu"), plan.objective.answer).numpy()
            given.append(answer.reshape(len(answer), -1))
    if network is None:
        answers = contest.baseline(source, model, len(task.classes), training.training.seed)
    else:
        answers = np.concatenate(given, axis=1)
    body = Blind(answers.astype(np.float32), np.concatenate(labels), places, np.array(groups)).dumped()
    storage.put(key, body)
    return body


def _trained(plan: WorkerPlan, source: Source) -> torch.nn.Module:
    network = fit_network(plan, AlonePlace(validates=False), source)
    if isinstance(network, UsageError):
        raise network
    return network.eval()


def _absolute(job: CompareJob) -> CompareJob:
    """The job with plain paths made absolute: folds run in folders of their own."""
    candidates = {}
    for name, candidate in job.candidates.items():
        if isinstance(candidate.model, AmplitudeSpec) and candidate.model.weights:
            model = candidate.model.model_copy(update={"weights": absolute_url(candidate.model.weights)})
            candidate = candidate.model_copy(update={"model": model})
        candidates[name] = candidate
    data = job.data.model_copy(update={"survey": absolute_url(job.data.survey)})
    return job.model_copy(update={"output": absolute_url(job.output), "data": data, "candidates": candidates})


def _fold_hash(model: Any, run: str) -> str:
    """SHA-256 of all that decides a fold's answers."""
    baseline = model.model_dump(mode="json") if isinstance(model, Baseline) else None
    if isinstance(model, AmplitudeSpec) and model.weights:
        baseline = {**model.model_dump(mode="json"), "weights": load_bundle(model.weights).spec.hash}
    return hashlib.sha256(json.dumps([run, baseline]).encode()).hexdigest()

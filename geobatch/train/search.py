"""Which trials are drawn and which are stopped: functions of the job and of the trials before, of nothing else.

A trial knows those that lie at least `together` before it, which have ended when it begins, and nothing of those beside
it. So neither the number of machines nor the order in which trials end decides anything, and a job that was
interrupted draws the same trials and comes to the same end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution

from geobatch.train.schedule import epochs_since_best
from geobatch.train.spec import TrainJob
from geobatch.train.tune_spec import AnySpace, Choice, LogUniform, Stopping, TuneJob, Uniform, resolved

Draft = dict[str, Any]
"""Values by dotted key of the training."""
SIGNS = {"mean_class_accuracy": 1, "pixel_accuracy": 1, "fwiou": 1, "r2": 1, "rmse": -1, "mae": -1}
"""By metric: 1 where more is better."""
State = Literal["running", "complete", "stopped", "failed"]


@dataclass
class Trial:
    """One training of a tuning job.

    Attributes:
        number: From 0, in the order in which they are drawn.
        parameters: What the search chose, as Optuna knows it, by parameter.
        distributions: What it chose them from.
        searched: The same for people, by parameter.
        values: The same by dotted key of the training.
        job: The training, None where the combination is impossible.
        key: Names what is stored of it.
        state: What became of it.
        error: Of a failed one.
        history: Figures of each epoch.
        seconds: That each epoch took.
    """

    number: int
    parameters: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    searched: dict[str, Any]
    values: Draft
    job: TrainJob | None = None
    key: str = ""
    state: State = "running"
    error: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def worth(self, metric: str | None, epoch: int) -> float | None:
        """The figure after so many epochs, the larger the better; None where there is none."""
        figure = figure_of(metric, self.history[epoch - 1])
        return None if figure is None else SIGNS[figure[0]] * figure[1]

    @property
    def kept(self) -> int:
        """After how many epochs the weights are taken: the best of them with `early_stop`, else all."""
        early = self.job is not None and self.job.training.early_stop
        return len(self.history) - (epochs_since_best(self.history) if early else 0)

    @property
    def over(self) -> bool:
        """Whether its training has come to its end by itself."""
        if self.job is None:
            return False
        training = self.job.training
        waited = epochs_since_best(self.history) if training.early_stop else -1
        return len(self.history) >= training.epochs or waited >= training.early_stop > 0


def figure_of(metric: str | None, figures: dict[str, Any]) -> tuple[str, float] | None:
    """Name and value of what an epoch is judged by; None where the held-out part has no such figure."""
    validation = figures.get("validation") or {}
    for name in ("mean_class_accuracy", "rmse") if metric is None else (metric,):
        if validation.get(name) is not None:
            return name, float(validation[name])
    return None


def draw(job: TuneJob, before: Sequence[Trial]) -> Trial:
    """The trial after those before it, by a tree-structured Parzen estimator (Bergstra et al. 2011, NeurIPS 24).

    The first ten are drawn at random. Those that run beside it are taken for bad ones, so that it is drawn elsewhere.
    """
    number = len(before)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int(np.random.SeedSequence([job.seed, number]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials([_told(job, trial, number) for trial in before])
    asked = study.ask()
    searched: dict[str, Any] = {}
    suggest = partial(_suggested, asked)
    values = {key: resolved(space, key, suggest, searched) for key, space in job.search.items()}
    return Trial(number, dict(asked.params), dict(asked.distributions), searched, values)


def is_stopped(job: TuneJob, trials: Sequence[Trial], number: int, epoch: int) -> bool:
    """Whether a trial ends after an epoch: the rule of Ray's `ASHAScheduler`, over the trials it knows.

    At each rung it is stopped when it is below the quantile 1 - 1 / `reduction` of what those had there.
    """
    own = trials[number].worth(job.metric, epoch)
    if job.stopping is None or own is None or not _is_rung(job.stopping, epoch):
        return False
    found = [trial.worth(job.metric, epoch) for trial in known(job, trials, number) if len(trial.history) >= epoch]
    earlier = [worth for worth in found if worth is not None]
    return bool(earlier) and own < float(np.quantile(earlier, 1 - 1 / job.stopping.reduction))


def known(job: TuneJob, trials: Sequence[Trial], number: int) -> Sequence[Trial]:
    """The trials that one is drawn and judged by."""
    return trials[: max(0, number - job.together + 1)]


def ranked(job: TuneJob, trials: Sequence[Trial]) -> list[Trial]:
    """The best first: those that came to their end, by figure; then those stopped, by epochs; then those failed."""

    def place(trial: Trial) -> tuple[int, int, float, int]:
        if trial.state == "failed" or not trial.history:
            return 2, 0, 0.0, trial.number
        worth = trial.worth(job.metric, trial.kept)
        assert worth is not None
        stopped = trial.state == "stopped"
        return int(stopped), -len(trial.history) if stopped else 0, -worth, trial.number

    return sorted(trials, key=place)


def _is_rung(stopping: Stopping, epoch: int) -> bool:
    rung = stopping.grace_epochs
    while rung < epoch:
        rung *= stopping.reduction
    return rung == epoch


def _told(job: TuneJob, trial: Trial, number: int) -> optuna.trial.FrozenTrial:
    """What the search hears of an earlier trial when it draws one."""
    states = optuna.trial.TrialState
    worths = {epoch + 1: trial.worth(job.metric, epoch + 1) for epoch in range(len(trial.history))}
    given: dict[str, Any] = {"state": states.RUNNING}
    if trial.number <= number - job.together:
        if trial.state == "failed":
            given = {"state": states.FAIL}
        elif trial.state == "stopped":
            given = {"state": states.PRUNED, "intermediate_values": worths}
        else:
            given = {"state": states.COMPLETE, "value": worths[trial.kept]}
    return optuna.trial.create_trial(params=trial.parameters, distributions=trial.distributions, **given)


def _suggested(asked: optuna.Trial, name: str, space: AnySpace) -> Any:
    """A number, or the position of a choice: its values may be mappings, which Optuna does not take."""
    if isinstance(space, Choice):
        return asked.suggest_categorical(name, range(len(space.choice)))
    if isinstance(space, Uniform):
        return asked.suggest_float(name, *space.uniform)
    if isinstance(space, LogUniform):
        return asked.suggest_float(name, *space.loguniform, log=True)
    return asked.suggest_int(name, *space.integer)

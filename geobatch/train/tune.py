"""Which parameters suit the data: many trainings by Ray Tune, drawn by Optuna, those behind stopped, the best kept."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable
from typing import Any

import yaml
from pydantic import ValidationError
from ray import tune as ray_tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from geobatch import cluster
from geobatch.errors import GeobatchError, TransientError, UsageError
from geobatch.models import build_model
from geobatch.models.bundle import load_bundle, save_bundle
from geobatch.storage import absolute_url, arrow_filesystem, join_url, open_storage
from geobatch.survey import control_url
from geobatch.train.kinds import open_task
from geobatch.train.places import WorkerPlan
from geobatch.train.search import Trial, draw, figure_of, is_stopped, ranked
from geobatch.train.source import Task
from geobatch.train.spec import TrainJob
from geobatch.train.state import TrainingState
from geobatch.train.train import kept_figures, make_plan, run_hash, trained_bundle, with_absolute_urls
from geobatch.train.trials import TrialStore, run_trial
from geobatch.train.tune_spec import TuneJob

RESULT, BEST = "tune.json", "best.yaml"
_RAY = "ray"
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Ray Tune writes no logs of its own, prints nothing, and leaves an interrupt to us."""

OnTrial = Callable[[int, int, str], None]
"""Called with trials ended, trials in all, and a line on the last one."""


def tune(job: TuneJob, on_progress: OnTrial = lambda done, total, line: None) -> dict[str, Any]:
    """Draw, train and rank the trials; the result, which is stored as `tune.json` under the output.

    The best trial's bundle is stored at the output, and its training as `best.yaml`, a job file. The same job run again
    does what is missing, and more `trials` go on from those.

    Returns:
        `metric`; `trials`, the best first: `number`, `state` (complete, stopped or failed), `figure` of the weights it
        ended with, `epochs`, `figures` of each epoch, `seconds`, `searched` by parameter, `record` under `trials/` and
        `error`; `best`: the training as a job; `bundle` and its `hash`.

    Raises:
        UsageError: the output holds the bundle of another job, or no trial came to its end.
        NotFoundError, DataError, MismatchError: as `train`, of the training as it is without the search.
        TransientError: storage did not answer; the same job run again goes on.
    """
    job = job.model_copy(update={"output": absolute_url(job.output)})
    _require_free(job.output)
    open_task(_training(job, {}))
    driver = _Driver(job, on_progress)
    waiting = driver.next()
    if waiting is not None:
        _run_trials(job, driver, waiting)
    if driver.halted:
        raise TransientError(
            "a trial could not be stored or read",
            where=job.output,
            measured=driver.halted,
            remedy="Run the same job again: it goes on from the last epochs.",
        )
    return _finished(job, driver)


class _Driver:
    """The trials so far. What it is told and asked comes from one thread, Ray Tune's."""

    def __init__(self, job: TuneJob, on_progress: OnTrial) -> None:
        self.job, self.trials, self.halted = job, list[Trial](), ""
        self._on_progress, self._store, self._fitted = on_progress, TrialStore(job.output), dict[str, Any]()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray stores its searcher and scheduler, and who watches progress cannot be stored."""
        return {}

    def next(self) -> WorkerPlan | None:
        """What a worker is to do for the next trial that needs one; None where there is none yet, or no more."""
        while not self.ended and self._may_draw():
            trial = draw(self.job, self.trials)
            self.trials.append(trial)
            if plan := self._begun(trial):
                return plan
        return None

    @property
    def ended(self) -> bool:
        """Whether all trials are drawn."""
        return bool(self.halted) or len(self.trials) == self.job.trials

    def hear(self, number: int, figures: dict[str, Any], seconds: float) -> bool:
        """Take in an epoch's figures; whether the trial is stopped after it. What was heard before changes nothing."""
        trial = self.trials[number]
        if trial.state != "running":
            return True
        if figures["epoch"] <= len(trial.history):
            return False
        trial.history.append(figures)
        trial.seconds.append(seconds)
        if figure_of(self.job.metric, figures) is None:
            self.fail(number, f"what is held out has no {self.job.metric or 'figure to judge by'}")
        elif trial.over:
            self._end(trial, "complete")
        elif is_stopped(self.job, self.trials, number, figures["epoch"]):
            self._end(trial, "stopped")
        return trial.state != "running"

    def fail(self, number: int, error: str) -> None:
        """Take a trial for failed, now and whenever the job is run again."""
        trial = self.trials[number]
        if trial.state == "running":
            trial.error = error
            if trial.key and self._store.record(trial.key)["error"] != error:
                self._store.put_record(trial.key, trial.history, trial.seconds, error)
            self._end(trial, "failed")

    def plan(self, trial: Trial, job: TrainJob, task: Task) -> WorkerPlan:
        """What workers of a trial are told; the same data are fitted once."""
        data = json.dumps(
            [job.model_dump(mode="json", include={"data", "validation", "preprocess"}), job.training.patch]
        )
        if data not in self._fitted:
            self._fitted[data] = task.fit()
        return make_plan(job, task, trial.key, self._fitted[data])

    def _may_draw(self) -> bool:
        """Whether all those that decide the next trial have ended."""
        last = len(self.trials) - self.job.together
        return last < 0 or self.trials[last].state != "running"

    def _begun(self, trial: Trial) -> WorkerPlan | None:
        """What its worker is to do; None where the trial is impossible, or stored to its end."""
        try:
            trial.job = _training(self.job, trial.values)
            task = open_task(trial.job)
            trial.key = run_hash(trial.job, task)
            record = self._store.record(trial.key)
            for figures, seconds in zip(record["history"], record["seconds"], strict=True):
                if self.hear(trial.number, figures, seconds):
                    return None
            if record["error"]:
                self.fail(trial.number, record["error"])
                return None
            return self.plan(trial, trial.job, task)
        except ValidationError as error:
            self.fail(trial.number, str(error.errors()[0]["msg"]).removeprefix("Value error, "))
        except TransientError:
            raise
        except GeobatchError as error:
            self.fail(trial.number, str(error))
        return None

    def _end(self, trial: Trial, state: Any) -> None:
        trial.state = state
        done = [other for other in self.trials if other.state != "running"]
        self._on_progress(len(done), self.job.trials, _line(self.job, trial))


class _Search(Searcher):  # type: ignore[misc]
    """Gives Ray Tune the trials that the driver draws."""

    def __init__(self, driver: _Driver, first: WorkerPlan) -> None:
        super().__init__()
        self._driver, self._first = driver, [first]
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, None where it has to wait for others, or that there are no more."""
        plan = self._first.pop() if self._first else self._driver.next()
        if plan is None:
            return Searcher.FINISHED if self._driver.ended else None
        self._numbers[trial_id] = len(self._driver.trials) - 1
        return {"number": len(self._driver.trials) - 1, "plan": plan.model_dump_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended, with an error when its workers died too often."""
        if error:
            number = self._numbers[trial_id]
            self._driver.fail(number, f"its worker died {self._driver.job.train.training.max_failures + 1} times")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what decides is stored by the trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Scheduler(FIFOScheduler):  # type: ignore[misc]
    """Stops what the driver stops."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__()
        self._driver = driver

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Hear of an epoch, or of an end."""
        number = trial.config["number"]
        if "halted" in result:
            self._driver.halted = result["halted"]
        elif "error" in result:
            self._driver.fail(number, result["error"])
        elif self._driver.hear(number, json.loads(result["figures"]), result["seconds"]):
            return str(FIFOScheduler.STOP)
        return str(FIFOScheduler.CONTINUE)


def _run_trials(job: TuneJob, driver: _Driver, first: WorkerPlan) -> None:
    """Have Ray Tune run all trials that are not stored to their end."""
    cluster.connect(cpus=job.resources.threads)
    os.environ.update(_ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    filesystem, path = arrow_filesystem(join_url(control_url(job.output), "tune"))
    resources = {"CPU": float(job.resources.threads), "GPU": job.resources.gpu}
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(run_trial, {name: share for name, share in resources.items() if share}),
        tune_config=ray_tune.TuneConfig(
            search_alg=_Search(driver, first),
            scheduler=_Scheduler(driver),
            num_samples=job.trials,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray_tune.RunConfig(
            name=_RAY,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray_tune.FailureConfig(max_failures=job.train.training.max_failures),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        # Ray's own state: pickles, which nobody reads again.
        with contextlib.suppress(OSError):
            filesystem.delete_dir(f"{path}/{_RAY}")


def _name(trial: Any) -> str:
    return f"trial-{trial.config['number']:05d}"


def _training(job: TuneJob, values: dict[str, Any]) -> TrainJob:
    return with_absolute_urls(job.training(values))


def _require_free(output: str) -> None:
    """Refuse an output with the bundle of another job.

    Raises:
        UsageError: see above.
    """
    storage = open_storage(output)
    try:
        found = load_bundle(output).spec
    except GeobatchError:
        return
    if not storage.exists(RESULT):
        raise UsageError(
            "the output holds the bundle of another job",
            where=output,
            measured=f"bundle {found.name!r} of run {found.provenance.get('run')}",
            limit="no bundle, or one that a tuning chose",
            remedy="Give another output.",
        )


def _finished(job: TuneJob, driver: _Driver) -> dict[str, Any]:
    """Store result, best training and bundle."""
    order = ranked(job, driver.trials)
    best = order[0]
    if best.state != "complete" or best.job is None:
        raise UsageError(
            "no trial came to its end", where=job.output, measured=f"trial {best.number}: {best.error or best.state}"
        )
    metric, _ = figure_of(job.metric, best.history[best.kept - 1]) or ("", 0.0)
    result: dict[str, Any] = {
        "name": job.name,
        "metric": metric,
        "trials": [_row(metric, trial) for trial in order],
        "best": best.job.model_dump(mode="json"),
        "bundle": job.output,
        "job": job.model_dump(mode="json"),
    }
    storage = open_storage(job.output)
    # The result comes first: by it, an output is known as this job's.
    storage.put(RESULT, json.dumps(result, indent=2).encode())
    short = {"job": "train", **best.job.model_dump(mode="json", exclude_defaults=True)}
    storage.put(BEST, yaml.safe_dump(short, sort_keys=False).encode())
    return {**result, "hash": _store_bundle(driver, best, best.job)}


def _store_bundle(driver: _Driver, best: Trial, job: TrainJob) -> str:
    """Its hash; nothing is stored where it is there already."""
    try:
        found = load_bundle(job.output).spec
        if found.provenance.get("run") == best.key:
            return found.hash
    except GeobatchError:
        pass
    task = open_task(job)
    plan = driver.plan(best, job, task)
    state = TrainingState.of(build_model(plan.network), job.training)
    progress = TrialStore(job.output).load_state(best.key, state)
    return save_bundle(job.output, trained_bundle(plan, task, state.result(), kept_figures(job, progress), best.key))


def _row(metric: str, trial: Trial) -> dict[str, Any]:
    figures = [dict([figure_of(metric, entry) or (metric, None)])[metric] for entry in trial.history]
    return {
        "number": trial.number,
        "state": trial.state,
        "figure": figures[trial.kept - 1] if figures and trial.state != "failed" else None,
        "epochs": len(figures),
        "figures": figures,
        "seconds": round(sum(trial.seconds), 1),
        "searched": trial.searched,
        "error": trial.error,
        "record": f"trials/{trial.key}.json" if trial.key else None,
    }


def _line(job: TuneJob, trial: Trial) -> str:
    if trial.state == "failed":
        return f"trial {trial.number} failed: {trial.error}"
    metric, figure = figure_of(job.metric, trial.history[trial.kept - 1]) or ("", 0.0)
    end = "stopped" if trial.state == "stopped" else "done"
    return f"trial {trial.number} {end} after {len(trial.history)} epochs: {metric.replace('_', ' ')} {figure:.4f}"

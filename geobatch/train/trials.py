"""One trial of a tuning job in a worker of Ray Tune, and what is stored of it.

Its record, figures and seconds by epoch, lies beside the result; weights and optimiser in the control folder, one
object that is replaced as a whole. Both are named by the hash of all that decides the weights, so that neither a worker
that died nor a job that was interrupted trains an epoch again that is stored.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ray import tune
from torch import nn

from geobatch.cluster import keep_freed_memory
from geobatch.errors import IntegrityError, NotFoundError, TransientError, UsageError
from geobatch.storage import join_url, open_storage
from geobatch.survey import control_url
from geobatch.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from geobatch.train.kinds import open_task
from geobatch.train.loop import fit_network
from geobatch.train.places import WorkerPlan
from geobatch.train.state import TrainingState
from geobatch.train.watchdog import Watchdog


class TrialStore:
    """What is stored of the trials of one output."""

    def __init__(self, output: str) -> None:
        self._records = open_storage(join_url(output, "trials"))
        self._states = open_storage(join_url(control_url(output), "tune"))

    def record(self, key: str) -> dict[str, Any]:
        """`history`, `seconds` and `error` of a trial; an empty one where none, or no state of it, is stored."""
        try:
            found: dict[str, Any] = json.loads(self._records.get(f"{key}.json"))
        except (NotFoundError, ValueError):
            return _record([], [])
        return found if found["error"] or self._states.exists(f"{key}.tar") else _record([], [])

    def put_record(self, key: str, history: list[dict[str, Any]], seconds: list[float], error: str = "") -> None:
        """Store it."""
        self._records.put(f"{key}.json", json.dumps(_record(history, seconds, error)).encode())

    def put_state(self, key: str, state: TrainingState, progress: Progress) -> None:
        """Store weights, optimiser and progress in place of earlier ones."""
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), state, progress)
            body = io.BytesIO()
            with tarfile.open(fileobj=body, mode="w") as archive:
                archive.add(folder, arcname="")
        self._states.put(f"{key}.tar", body.getvalue())

    def load_state(self, key: str, state: TrainingState) -> Progress:
        """Restore them; how far the trial is.

        Raises:
            NotFoundError: nothing is stored.
            IntegrityError: it is damaged.
        """
        body = self._states.get(f"{key}.tar")
        with tempfile.TemporaryDirectory() as folder:
            try:
                with tarfile.open(fileobj=io.BytesIO(body)) as archive:
                    archive.extractall(folder, filter="data")
            except (tarfile.TarError, OSError) as error:
                raise IntegrityError("the state of a trial is damaged", where=key, measured=error) from error
            return load_checkpoint(Path(folder), state)


def _record(history: list[dict[str, Any]], seconds: list[float], error: str = "") -> dict[str, Any]:
    return {"history": history, "seconds": seconds, "error": error}


class TunePlace:
    """A worker of Ray Tune, alone with its trial; see `Place`. Trials of several workers are not made for it."""

    def __init__(self, plan: WorkerPlan) -> None:
        gpu = plan.job.resources.gpu and torch.cuda.is_available()
        self.device, self.rank, self.workers, self.validates = torch.device("cuda" if gpu else "cpu"), 0, 1, True
        self._key, self._store = plan.run, TrialStore(plan.job.output)
        self._seconds: list[float] = []
        self._since = time.monotonic()
        self._watchdog = Watchdog(plan.job.resources.hang_s)

    def prepared(self, network: nn.Module) -> nn.Module:
        """See `Place`."""
        return network

    def restored(self, state: TrainingState) -> Progress:
        """See `Place`; the epochs that are done are told again, in case who decides has not heard of them."""
        try:
            progress = self._store.load_state(self._key, state)
        except (NotFoundError, IntegrityError):
            return Progress()
        with self._watchdog.paused():
            seconds = self._store.record(self._key)["seconds"]
            # A worker that died between the two has stored one epoch more of the state.
            self._seconds = (seconds + [0.0] * progress.epochs)[: progress.epochs]
            for figures, spent in zip(progress.history, self._seconds, strict=True):
                tune.report({"figures": json.dumps(figures), "seconds": spent})
        self._since = time.monotonic()
        return progress

    def step_done(self, step: int) -> None:
        """See `Place`."""
        self._watchdog.hear()

    def part_done(self) -> None:
        """See `Place`."""
        self._watchdog.hear()

    def epoch_done(self, state: TrainingState, progress: Progress) -> None:
        """See `Place`; ends the trial's thread where the scheduler stops it."""
        with self._watchdog.paused():
            self._seconds.append(round(time.monotonic() - self._since, 3))
            self._store.put_state(self._key, state, progress)
            self._store.put_record(self._key, progress.history, self._seconds)
            tune.report({"figures": json.dumps(progress.history[-1]), "seconds": self._seconds[-1]})
            self._since = time.monotonic()

    def ended(self) -> None:
        """The trial is over, however it ended."""
        self._watchdog.end()


def run_trial(config: dict[str, Any]) -> None:
    """Train one trial and tell Ray Tune of each epoch, or why the trial failed.

    Args:
        config: `plan`, a `WorkerPlan` as JSON text.
    """
    keep_freed_memory()
    plan = WorkerPlan.model_validate_json(config["plan"])
    place = TunePlace(plan)
    try:
        found = fit_network(plan, place, open_task(plan.job).source(plan.fitted))
        if isinstance(found, UsageError):
            raise found
    except TransientError as error:
        tune.report({"halted": str(error)})
    except Exception as error:
        # Whatever it is, the same combination would end the same way again.
        tune.report({"error": str(error) or type(error).__name__})
    finally:
        place.ended()

"""Any job, run from Python: `geobatch.run_job(load_job("jobs/score.yaml"))`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geobatch.job import Job
from geobatch.score.spec import ScoreJob


def run_job(
    job: Job, *, force: bool = False, on_progress: Callable[[int, int, str], None] = lambda done, total, news: None
) -> dict[str, Any]:
    """Run a job to its end and return its summary.

    Args:
        job: A job from `load_job` or `parse_job`.
        force: Score data of another kind than the bundle's.
        on_progress: Called with how much is done, of how much, and a line of news or an empty string.

    Raises:
        GeobatchError: see `geobatch.errors`.
    """
    if isinstance(job, ScoreJob):
        from geobatch.score.run import score

        return score(job, force=force, on_progress=lambda progress: on_progress(progress.done, progress.total, ""))
    from geobatch.models.bundle import load_bundle
    from geobatch.train.train import train

    bundle = load_bundle(train(job, on_progress)).spec
    figures = {key: value for key, value in bundle.metrics.items() if key != "history"}
    return {"bundle": job.output, "hash": bundle.hash, "halo": bundle.reach.halo, **figures}


def forecast(job: Job) -> dict[str, Any]:
    """What a scoring job would do: blocks, patch, redundancy, bytes and memory.

    Raises:
        UsageError: the job is no scoring job, or memory cannot fit.
    """
    from geobatch.errors import UsageError
    from geobatch.score.run import forecast_score

    if not isinstance(job, ScoreJob):
        raise UsageError("only scoring jobs can be planned", measured=f"job: {job.job}", limit="job: score")
    return forecast_score(job)

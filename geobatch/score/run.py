"""A scoring run from its job to its summary: what surrounds the straight line of `score/worker.py`."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import xarray as xr

from geobatch import __version__, cluster
from geobatch.blocks import Grid
from geobatch.errors import IncompleteError
from geobatch.score.dispatch import Tally, dispatch, now
from geobatch.score.output import ScoredOutput
from geobatch.score.planning import Inputs, make_plan, open_inputs
from geobatch.score.receipts import MANIFEST, Ledger, Receipt
from geobatch.score.region import wanted_blocks
from geobatch.score.spec import ScoreJob, ScorePlan
from geobatch.shards import Index
from geobatch.survey import block_coordinates


@dataclass(frozen=True)
class Progress:
    """What a run reports as it goes on."""

    done: int
    total: int
    receipt: Receipt | None = None


def score(
    job: ScoreJob, *, force: bool = False, on_progress: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Score a survey with a bundle; what an earlier run of the same job has written is kept.

    Args:
        job: The job.
        force: Score data of another quantity or axis than the bundle's; recorded in the summary.
        on_progress: Called as blocks are done.

    Returns:
        The run's summary, as stored in `_geobatch/run.json` beside the output.

    Raises:
        MismatchError: the data are not what the bundle needs, or the output was begun under another plan.
        UsageError: memory cannot fit.
        IncompleteError: dead letters remain; the summary is stored all the same.
    """
    inputs = open_inputs(job, force)
    plan = make_plan(inputs)
    grid = plan.grid
    volume = plan.chain.crop(inputs.volume)
    wanted = [grid.index(number) for number in wanted_blocks(grid, volume, inputs.job.region).tolist()]
    output = ScoredOutput(inputs, plan, volume)
    output.begin(wanted)
    ledger = Ledger(inputs.job.output, plan.hash)
    ledger.load()
    ledger.keep_only(output.stored_whole(ledger.receipts.values()))
    pending = [index for index in wanted if grid.block(index).key not in ledger.receipts]
    on_progress(Progress(len(wanted) - len(pending), len(wanted)))
    started, clock = now(), time.perf_counter()
    tally = _run_blocks(inputs.job, plan, ledger, pending, grid, volume, len(wanted), on_progress)
    summary = _summary(inputs, plan, tally, wanted, pending, started, time.perf_counter() - clock)
    output.finish(ledger, tally, summary)
    if tally.dead:
        raise IncompleteError(
            f"{len(tally.dead)} of {len(wanted)} blocks could not be scored",
            where=inputs.job.output,
            measured=f"block {tally.dead[0].block}: {tally.dead[0].error}",
            remedy="Run the job again to try only those; geobatch report shows where they are.",
        )
    return summary


def _run_blocks(
    job: ScoreJob,
    plan: ScorePlan,
    ledger: Ledger,
    pending: list[Index],
    grid: Grid,
    volume: xr.DataArray,
    total: int,
    on_progress: Callable[[Progress], None],
) -> Tally:
    """Deploy the replicas and dispatch what is missing; a complete output starts nothing."""
    if not pending:
        return Tally()
    from geobatch.score.deployment import REQUESTS_PER_REPLICA, deployed

    finished = total - len(pending)

    def count(receipt: Receipt) -> None:
        nonlocal finished
        finished += 1
        on_progress(Progress(finished, total, receipt))

    replicas = min(job.resources.replicas, len(pending))
    resources = job.resources.model_copy(update={"replicas": replicas})
    cluster.connect(cpus=math.ceil(job.resources.cpus * replicas))
    with deployed(plan, job.output, resources) as score_one:
        return dispatch(
            pending,
            score_one,
            ledger,
            window=replicas * REQUESTS_PER_REPLICA,
            attempts=job.attempts,
            describe=lambda index: block_coordinates(volume, grid.block(index).write),
            on_receipt=count,
        )


def _summary(
    inputs: Inputs,
    plan: ScorePlan,
    tally: Tally,
    wanted: list[Index],
    pending: list[Index],
    started: str,
    seconds: float,
) -> dict[str, Any]:
    """The figures of this run."""
    voxels = sum(receipt.voxels for receipt in tally.receipts)
    stages: dict[str, float] = {}
    for receipt in tally.receipts:
        for stage, spent in receipt.seconds.items():
            stages[stage] = round(stages.get(stage, 0.0) + spent, 3)
    return {
        "name": inputs.job.name,
        "started": started,
        "finished": now(),
        "seconds": round(seconds, 3),
        "blocks": {
            "wanted": len(wanted),
            "kept": len(wanted) - len(pending),
            "scored": len(tally.receipts),
            "dead": len(tally.dead),
            "adopted": sum(receipt.adopted for receipt in tally.receipts),
        },
        "voxels": voxels,
        "voxels_per_s": round(voxels / seconds) if seconds else 0,
        "bytes_written": sum(shard.size for receipt in tally.receipts for shard in receipt.shards),
        "bytes_read": sum(receipt.bytes_read for receipt in tally.receipts),
        "stage_seconds": stages,
        "retries": dict(tally.retries),
        "replicas": inputs.job.resources.replicas,
        "workers": sorted({receipt.worker for receipt in tally.receipts}),
        "redundancy": round(plan.grid.redundancy(), 3),
        "warnings": inputs.warnings,
        "manifest": MANIFEST,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of geobatch, Python and the packages that compute."""
    packages = ("ray", "torch", "dask", "xarray", "zarr", "numpy")
    own = {"geobatch": __version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in packages}

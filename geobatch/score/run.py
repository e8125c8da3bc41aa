"""A scoring run from its job to its summary: what surrounds the straight line of `score/worker.py`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import xarray as xr

from geobatch import __version__, cluster
from geobatch.errors import IncompleteError, NotFoundError
from geobatch.lease import Control, leased
from geobatch.score.dispatch import Answer, Dispatcher, Tally, Work, now
from geobatch.score.output import JOB, ScoredOutput, Stored, require_ours
from geobatch.score.planning import Inputs, make_plan, open_inputs
from geobatch.score.receipts import MANIFEST, Ledger, Numbers, Receipt, block_numbers
from geobatch.score.region import wanted_blocks
from geobatch.score.spec import ScoreJob, ScorePlan, ScoreResources
from geobatch.score.verify import verify_receipts
from geobatch.score.worker import Task
from geobatch.survey import block_coordinates


@dataclass(frozen=True)
class Progress:
    """What a run reports as it goes on."""

    done: int
    total: int
    receipt: Receipt | None = None


class Pool(Protocol):
    """Whatever scores blocks: the replicas of `score.deployment`, or anything that keeps their promises."""

    def score(self, tasks: Sequence[Task]) -> list[Answer]:
        """The answers to these tasks, in order; raises TransientError when they were lost on the way."""
        ...

    def window(self) -> int:
        """How many calls of `score` it takes at once, at present; the first time it may wait until there are any.

        Only a run that holds its output's lease asks.
        """
        ...


OpenPool = Callable[[ScorePlan, str, ScoreResources], contextlib.AbstractContextManager[Pool]]
OnProgress = Callable[[Progress], None]
Choose = Callable[[ScoredOutput, Ledger, pa.Table, Numbers], Work]


def on_serve(plan: ScorePlan, output_url: str, resources: ScoreResources) -> contextlib.AbstractContextManager[Pool]:
    """A pool of Ray Serve replicas, on the cluster of `cluster.connect`."""
    from geobatch.score.deployment import deployed

    cluster.connect(cpus=math.ceil(resources.cpus * resources.most))
    return deployed(plan, output_url, resources)


def score(
    job: ScoreJob,
    *,
    force: bool = False,
    on_progress: OnProgress = lambda progress: None,
    open_pool: OpenPool = on_serve,
) -> dict[str, Any]:
    """Score a survey with a bundle; what an earlier run of the same job has written is kept.

    Args:
        job: The job.
        force: Score data of another quantity or axis than the bundle's; recorded in the summary.
        on_progress: Called as blocks are done.
        open_pool: What scores the blocks.

    Returns:
        The run's summary, as stored in `_geobatch/run.json` beside the output.

    Raises:
        MismatchError: the data are not what the bundle needs, or the output was begun under another plan.
        UsageError: memory cannot fit.
        LeaseError: another run is writing this output.
        IncompleteError: dead letters remain; the summary is stored all the same.
    """
    return _run(job, force, on_progress, open_pool, missing_blocks)


def retry(
    output_url: str, *, on_progress: OnProgress = lambda progress: None, open_pool: OpenPool = on_serve
) -> dict[str, Any]:
    """Score the dead letters of an output once more, and nothing else; returns and raises as `score`."""
    return _run(stored_job(output_url), True, on_progress, open_pool, _dead_blocks)


def repair(
    output_url: str, *, on_progress: OnProgress = lambda progress: None, open_pool: OpenPool = on_serve
) -> dict[str, Any]:
    """Read every shard of an output, and write those again that are missing or damaged; returns and raises as `score`.

    Nothing else replaces a stored shard.
    """
    return _run(stored_job(output_url), True, on_progress, open_pool, _damaged_blocks)


def stored_job(output_url: str) -> ScoreJob:
    """The job that an output was last scored by.

    Raises:
        NotFoundError: there is none.
    """
    document = Control(output_url).get_json(JOB)
    if document is None:
        raise NotFoundError("no scoring run there", where=output_url, remedy="Give the URL of a scored survey.")
    return ScoreJob.model_validate({**document, "output": output_url})


def missing_blocks(output: ScoredOutput, ledger: Ledger, receipts: pa.Table, wanted: Numbers) -> Work:
    """The wanted blocks without a receipt, without shards of the size that it says, or with a dead letter."""
    stored = output.stored(receipts)
    stored.whole[_dead_letters(output)] = False
    ledger.forget(np.flatnonzero(~stored.whole))
    pending = wanted[~stored.whole[wanted]]
    return Work(pending, stored.present[pending], proven=_proven(output.plan, receipts, stored, pending))


def _proven(plan: ScorePlan, receipts: pa.Table, stored: Stored, pending: Numbers) -> dict[int, tuple[bytes, ...]]:
    """Per pending block of which a shard is stored and proven: the SHA-256 of each such shard, in the arrays' order."""
    doubtful = np.zeros(plan.grid.total, bool)
    doubtful[pending] = (stored.sizes[:, pending] >= 0).any(axis=0)
    rows = receipts.filter(pa.array(doubtful[block_numbers(receipts)]))
    hashes = [rows[f"{spec.name}.sha256"].to_pylist() for spec in plan.arrays()]
    blocks = block_numbers(rows).tolist()
    return {
        block: tuple(
            sha256[row] if stored.sizes[position, block] >= 0 else b"" for position, sha256 in enumerate(hashes)
        )
        for row, block in enumerate(blocks)
    }


def _dead_blocks(output: ScoredOutput, ledger: Ledger, receipts: pa.Table, wanted: Numbers) -> Work:
    """Every dead letter, of whichever region."""
    return missing_blocks(output, ledger, receipts, _dead_letters(output))


def _dead_letters(output: ScoredOutput) -> Numbers:
    return np.array(sorted(letter.number for letter in output.dead_letters()), np.int64)


def _damaged_blocks(output: ScoredOutput, ledger: Ledger, receipts: pa.Table, wanted: Numbers) -> Work:
    output.repair_metadata()
    damaged: dict[int, tuple[str, ...]] = {}
    for finding in verify_receipts(output.control, output.plan, receipts).findings:
        if finding.block >= 0:
            damaged[finding.block] = (*damaged.get(finding.block, ()), finding.array)
    work = Work.of(list(damaged))
    ledger.forget(work.blocks)
    return Work(work.blocks, work.look, damaged)


def _run(job: ScoreJob, force: bool, on_progress: OnProgress, open_pool: OpenPool, choose: Choose) -> dict[str, Any]:
    inputs = open_inputs(job, force)
    require_ours(inputs)
    plan = make_plan(inputs)
    volume = plan.chain.crop(inputs.volume)
    wanted = wanted_blocks(plan.grid, volume, inputs.job.region)
    early: list[Pool] = []
    with contextlib.ExitStack() as stack:

        def wait_for(holder: str) -> None:
            inputs.warnings.append(f"waited for {holder}")
            # A lease is waited out for half a minute, which is what replicas take to start.
            resources = inputs.job.resources.for_blocks(len(wanted))
            early.append(stack.enter_context(open_pool(plan, inputs.job.output, resources)))

        control = stack.enter_context(leased(inputs.job.output, on_wait=wait_for))
        output = ScoredOutput(inputs, plan, volume, control)
        output.begin(wanted)
        ledger = Ledger(control, plan)
        work = choose(output, ledger, ledger.load(), wanted)
        started, clock = now(), time.perf_counter()
        kept = int(ledger.written[wanted].sum())
        on_progress(Progress(kept, kept + len(work.blocks)))
        open_now = (lambda *_: contextlib.nullcontext(early[0])) if early else open_pool
        tally = _score_blocks(inputs.job, plan, ledger, work, volume, kept, on_progress, open_now)
        summary = _summary(inputs, plan, tally, (len(wanted), kept), started, time.perf_counter() - clock)
        output.finish(ledger, tally, summary)
    if tally.dead:
        raise IncompleteError(
            f"{len(tally.dead)} of {len(wanted)} blocks could not be scored",
            where=inputs.job.output,
            measured=f"block {tally.dead[0].block}: {tally.dead[0].error}",
            remedy="geobatch retry of this output tries only those; geobatch report shows where they are.",
        )
    if tally.unspent:
        raise IncompleteError(
            f"the budget is spent, and {tally.unspent} blocks are not scored",
            where=inputs.job.output,
            measured=f"{summary['seconds']:.0f} s",
            remedy="Run the job again to go on; what is done is kept.",
        )
    return summary


def _score_blocks(
    job: ScoreJob,
    plan: ScorePlan,
    ledger: Ledger,
    work: Work,
    volume: xr.DataArray,
    kept: int,
    on_progress: OnProgress,
    open_pool: OpenPool,
) -> Tally:
    """Open the pool and dispatch the work; a complete output starts nothing."""
    if not len(work.blocks):
        return Tally()
    finished, total = kept, kept + len(work.blocks)

    def count(receipt: Receipt) -> None:
        nonlocal finished
        finished += 1
        on_progress(Progress(finished, total, receipt))

    with open_pool(plan, job.output, job.resources.for_blocks(len(work.blocks))) as pool:
        return Dispatcher(
            work,
            pool.score,
            ledger,
            window=pool.window,
            attempts=job.attempts,
            describe=lambda block: describe_block(plan, volume, block),
            on_receipt=count,
            limit_s=job.budget.seconds(job.resources.most) if job.budget else math.inf,
        ).run()


def describe_block(plan: ScorePlan, volume: xr.DataArray, number: int) -> tuple[str, dict[str, tuple[float, float]]]:
    """Name and coordinates of a block."""
    block = plan.grid.block(plan.grid.index(number))
    return block.key, block_coordinates(volume, block.write)


def _summary(
    inputs: Inputs, plan: ScorePlan, tally: Tally, wanted_and_kept: tuple[int, int], started: str, seconds: float
) -> dict[str, Any]:
    """The figures of this run."""
    wanted, kept = wanted_and_kept
    return {
        "name": inputs.job.name,
        "started": started,
        "finished": now(),
        "seconds": round(seconds, 3),
        "blocks": {
            "wanted": wanted,
            "kept": kept,
            "scored": tally.scored,
            "dead": len(tally.dead),
            "adopted": tally.adopted,
            "reduced": tally.reduced,
            "left_by_budget": tally.unspent,
        },
        "voxels": tally.voxels,
        "voxels_per_s": round(tally.voxels / seconds) if seconds else 0,
        "bytes_written": tally.bytes_written,
        "bytes_read": tally.bytes_read,
        "stage_seconds": {stage: round(spent, 3) for stage, spent in tally.seconds.items()},
        "retries": dict(tally.retries),
        "replicas": inputs.job.resources.most,
        "workers": sorted(tally.workers),
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

"""The forecast of a run (C5): some of its blocks scored by the replicas it would have, and the rest by proportion."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import UsageError
from geobatch.lease import Control, leased
from geobatch.score.dispatch import Dispatcher, Work
from geobatch.score.output import require_ours
from geobatch.score.planning import Inputs, make_plan, open_inputs
from geobatch.score.receipts import STAGES, Ledger, Receipt
from geobatch.score.region import wanted_blocks
from geobatch.score.run import OpenPool, describe_block, on_serve
from geobatch.score.simulate import Workload
from geobatch.score.spec import ScoreJob, ScorePlan
from geobatch.storage import join_url, open_storage

MOST_MEASURED = 20_000
WARMUP_BLOCKS = 1


@dataclass
class Calibration:
    """What a few blocks have told about a run.

    Attributes:
        work: The run in measured figures.
        replicas: Replicas it was measured with, all busy at once.
        blocks_measured: How many blocks were scored for it.
        block_s: Mean seconds of a block that is still to be scored, in one of those replicas.
        stage_seconds: Of these, the seconds per stage.
        parts: Seconds of the parts of the run.
    """

    work: Workload
    replicas: int
    blocks_measured: int
    block_s: float
    stage_seconds: dict[str, float]
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The whole run, from the command to its end."""
        return sum(self.parts.values())


def calibrate(job: ScoreJob, blocks: int, *, open_pool: OpenPool = on_serve) -> tuple[Inputs, Calibration]:
    """Score `blocks` blocks of the job, spread over what is still missing, beside the output, and keep none of them.

    The replicas, the cluster, the storage and the data are those of the run itself.

    Raises:
        UsageError: nothing is left to be scored.
    """
    start = time.perf_counter()
    inputs = open_inputs(job)
    require_ours(inputs)
    plan = make_plan(inputs)
    volume = plan.chain.crop(inputs.volume)
    wanted = wanted_blocks(plan.grid, volume, inputs.job.region)
    missing = _missing(inputs, plan, wanted)
    live = _live(plan, volume, missing)
    if not live.any():
        raise UsageError("nothing is left to be scored", where=inputs.job.output)
    replicas = inputs.job.resources.for_blocks(len(missing)).most
    chosen = _spread(missing[live], max(blocks, (WARMUP_BLOCKS + 2) * replicas))
    planned = time.perf_counter()
    receipts: list[tuple[float, Receipt]] = []
    with _scratch(inputs.job.output) as scratch, leased(scratch) as control:
        opening = time.perf_counter()
        with open_pool(plan, scratch, inputs.job.resources.for_blocks(len(missing))) as pool:
            pool.window()
            opened = time.perf_counter()
            dispatcher = Dispatcher(
                Work.of(chosen),
                pool.score,
                Ledger(control, plan),
                window=pool.window,
                attempts=1,
                describe=lambda block: describe_block(plan, volume, block),
                on_receipt=lambda receipt: receipts.append((time.perf_counter(), receipt)),
            )
            tally = dispatcher.run()
            closing = time.perf_counter()
        closed = time.perf_counter()
    if tally.dead:
        raise UsageError("a block cannot be scored", where=tally.dead[0].block, measured=tally.dead[0].error)
    ends = {"plan": planned - start, "start replicas": opened - opening, "stop replicas": closed - closing}
    return inputs, _proportion(plan, missing[live], len(missing), replicas, receipts, opened, ends)


def forecast_run(inputs: Inputs, calibration: Calibration) -> dict[str, Any]:
    """The forecast as a document: time by part, what replicas cost in hours, and money where the job names a price."""
    resources, budget = inputs.job.resources, inputs.job.budget
    replica_hours = calibration.seconds * calibration.replicas / 3600
    price = budget.price_per_replica_hour if budget else None
    return {
        "seconds": round(calibration.seconds, 1),
        "parts": {name: round(seconds, 1) for name, seconds in calibration.parts.items()},
        "replicas": calibration.replicas,
        "blocks_measured": calibration.blocks_measured,
        "seconds_per_block": round(calibration.block_s, 4),
        "stage_seconds_per_block": {k: round(v, 4) for k, v in calibration.stage_seconds.items()},
        "gpu_hours": round(replica_hours * resources.gpus, 4),
        "cpu_hours": round(replica_hours * resources.cpus, 4),
        "cost": None if price is None else round(replica_hours * price, 2),
    }


def _proportion(
    plan: ScorePlan,
    blocks: npt.NDArray[np.int64],
    missing: int,
    replicas: int,
    receipts: list[tuple[float, Receipt]],
    opened: float,
    ends: dict[str, float],
) -> Calibration:
    """From the sample to all blocks: each stage in proportion to the cells it handles."""
    warm = _warm(receipts)
    cells = _cells(plan, _sampled(blocks))
    scale = len(blocks) / len(cells)
    sample = _cells(plan, np.array([receipt.block for receipt in warm], np.int64))
    handled = {"read": 0, "preprocess": 0, "predict": 1, "write": 2}
    stages, per_block = {}, np.zeros(len(cells))
    for position, stage in enumerate(STAGES):
        column = handled[stage]
        rate = sum(receipt.seconds[position] for receipt in warm) / sample[:, column].sum()
        stages[stage] = float(rate * cells[:, column].mean())
        per_block += rate * cells[:, column]
    # What a block costs beyond its stages, its way through Serve and the dispatcher; or less, where stages overlap.
    first, last = min(at for at, _ in receipts), max(at for at, _ in receipts)
    span, inside = last - first, sum(sum(r.seconds) for at, r in receipts if at > first)
    others = span * replicas / max(inside, 1e-9) if len(receipts) > 2 * replicas else 1.0
    per_block = per_block * min(max(others, 0.3), 1.5)
    warmup = max(first - opened - float(np.mean(per_block)), 0.0)
    scoring = float(per_block.sum()) * scale / replicas + warmup + float(np.mean(per_block)) * 0.5 * (replicas > 1)
    work = Workload(
        blocks=missing,
        block_seconds=_some(per_block),
        startup_s=ends["plan"] + ends["start replicas"],
        warmup_s=warmup,
        finish_s=ends["stop replicas"],
        gets_per_block=_requests(plan),
        puts_per_block=len(plan.arrays()),
    )
    parts = {
        "plan": ends["plan"],
        "start replicas": ends["start replicas"],
        "score": scoring,
        "stop replicas": ends["stop replicas"],
    }
    return Calibration(work, replicas, len(receipts), float(per_block.mean()), stages, parts)


def _some(per_block: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """A thousand of these figures, in ascending order."""
    quantiles = np.quantile(per_block, np.linspace(0, 1, min(len(per_block), 1000)))
    return tuple(float(value) for value in quantiles)


def _warm(receipts: list[tuple[float, Receipt]]) -> list[Receipt]:
    """The receipts without the first of each worker, which also pays for the first use of the network."""
    seen: set[str] = set()
    warm = []
    for _, receipt in receipts:
        if receipt.worker in seen:
            warm.append(receipt)
        seen.add(receipt.worker)
    return warm or [receipt for _, receipt in receipts]


def _cells(plan: ScorePlan, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Cells `(block, kind)` that are seen, computed and written."""
    rows = []
    for number in blocks.tolist():
        block = plan.grid.block(plan.grid.index(number))
        computed = sum(_size(patch.see) for patch in plan.grid.patches(block.write))
        rows.append((_size(block.read), computed, _size(block.write)))
    return np.array(rows, np.float64)


def _size(region: tuple[slice, ...]) -> int:
    return math.prod(cells.stop - cells.start for cells in region)


def _requests(plan: ScorePlan) -> float:
    """Ranged reads that one block of the middle takes, at a chunk of the output's size each."""
    block = plan.grid.block(tuple(count // 2 for count in plan.grid.counts))
    return float(math.prod(-(-(c.stop - c.start) // n) + 1 for c, n in zip(block.read, plan.chunk, strict=True)))


def _sampled(blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if len(blocks) <= MOST_MEASURED:
        return blocks
    return np.sort(np.random.default_rng(0).choice(blocks, MOST_MEASURED, replace=False))


def _spread(blocks: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """`count` of the blocks, evenly spread."""
    return np.unique(blocks[np.linspace(0, len(blocks) - 1, min(count, len(blocks))).round().astype(int)])


def _missing(inputs: Inputs, plan: ScorePlan, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The wanted blocks that no earlier run has written."""
    ledger = Ledger(Control(inputs.job.output), plan)
    ledger.load()
    return wanted[~ledger.written[wanted]]


def _live(plan: ScorePlan, volume: xr.DataArray, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Per block, whether it holds a live trace; the others cost next to nothing."""
    if "live_mask" not in volume.coords:
        return np.ones(len(blocks), bool)
    mask, (inlines, crosslines) = volume["live_mask"].values, plan.grid.shard[:2]
    by_block = np.add.reduceat(
        np.add.reduceat(mask.astype(np.int64), np.arange(0, mask.shape[0], inlines), axis=0),
        np.arange(0, mask.shape[1], crosslines),
        axis=1,
    )
    columns = np.unravel_index(blocks, plan.grid.counts)[:2]
    return np.asarray(by_block[columns] > 0)


@contextmanager
def _scratch(output_url: str) -> Iterator[str]:
    """A place beside the output, emptied at the end."""
    place = f"_geobatch/calibration-{uuid.uuid4().hex[:8]}"
    storage = open_storage(output_url)
    try:
        yield join_url(output_url, place)
    finally:
        for key, _ in list(storage.list(place)):
            storage.delete(key)

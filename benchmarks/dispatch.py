"""What stands around the blocks: planning a million of them, and handing out blocks that cost nothing.

python benchmarks/dispatch.py [--planned 1000000] [--dispatched 20000]

plan_seconds_per_million  from an opened survey and its grid to work that is ready to be sent: the blocks of the
                          region, plan, scope and arrays stored under the lease, receipts and listing read
bytes_per_block           peak of what Python and NumPy allocated meanwhile, over the blocks
blocks_per_second         blocks through dispatcher and one Serve replica that answers with receipts at once, the
                          receipts stored in batches and merged into the manifest
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from common import record

from geobatch import cluster
from geobatch.blocks import Grid
from geobatch.lease import leased
from geobatch.models import build_model
from geobatch.models.bundle import Bundle, ClassInfo, DataDescription, make_bundle
from geobatch.preprocess import Chain
from geobatch.score.deployment import REQUESTS_PER_REPLICA, Pool
from geobatch.score.dispatch import Dispatcher, Work
from geobatch.score.layout import VolumeModel
from geobatch.score.output import ScoredOutput
from geobatch.score.planning import Inputs
from geobatch.score.receipts import STAGES, Ledger, Receipt, ShardReceipt
from geobatch.score.region import wanted_blocks
from geobatch.score.run import describe_block, missing_blocks
from geobatch.score.spec import ScoreJob, ScorePlan, ScoreResources
from geobatch.score.worker import Task
from geobatch.survey import VOLUME_AXES

SHARD = 64
NETWORK = {"name": "unet", "classes": 2, "channels": 1, "levels": 1}


class Echo:
    """A replica that answers every block with a receipt and does nothing else."""

    async def score(self, tasks: Sequence[Task]) -> list[Receipt]:
        """One receipt per task."""
        proof = (ShardReceipt(1000, bytes(32)),)
        seconds = (0.0,) * len(STAGES)
        return [Receipt(task.block, proof, SHARD**3, SHARD**3, False, 0, seconds, 0, "echo") for task in tasks]


def main() -> None:
    """Measure both and store the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planned", type=int, default=1_000_000, help="blocks planned, rounded up to a cube")
    parser.add_argument("--dispatched", type=int, default=20_000, help="blocks handed out, rounded up to a cube")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    bundle = _bundle()
    planned = [_planning(bundle, options.planned) for _ in range(options.repetitions)]
    peak_bytes = _planning_bytes(bundle, options.planned)
    handed = _dispatching(bundle, options.dispatched, options.repetitions)
    per_million = [seconds / blocks * 1e6 for seconds, blocks in planned]
    figures = {
        "plan_seconds_per_million": round(statistics.median(per_million), 3),
        "bytes_per_block": round(peak_bytes / planned[0][1], 1),
        "blocks_per_second": round(statistics.median(blocks / seconds for seconds, blocks in handed)),
        "planned_blocks": planned[0][1],
        "dispatched_blocks": handed[0][1],
        "plan_seconds": [round(seconds, 3) for seconds, _ in planned],
        "dispatch_seconds": [round(seconds, 3) for seconds, _ in handed],
    }
    record("dispatch", figures)


def _planning(bundle: Bundle, blocks: int) -> tuple[float, int]:
    """Seconds from the opened survey to the work, and how much work it is."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, plan = _opened(folder, bundle, blocks)
        start = time.perf_counter()
        with leased(inputs.job.output) as control:
            work = _plan(inputs, plan, control)[0]
            return time.perf_counter() - start, len(work.blocks)


def _planning_bytes(bundle: Bundle, blocks: int) -> int:
    """The peak of allocated memory while planning; measured apart, since tracing takes time."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, plan = _opened(folder, bundle, blocks)
        with leased(inputs.job.output) as control:
            tracemalloc.start()
            kept = _plan(inputs, plan, control)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            del kept
            return peak


def _dispatching(bundle: Bundle, blocks: int, repetitions: int) -> list[tuple[float, int]]:
    """Seconds and blocks of whole dispatches to a replica that stands, until the manifest is stored."""
    from ray import serve

    cluster.connect(cpus=2)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
    deployment = serve.deployment(Echo, name="replica", max_ongoing_requests=REQUESTS_PER_REPLICA)
    application = f"echo-{uuid.uuid4().hex[:8]}"
    handle = serve.run(deployment.bind(), name=application, route_prefix=None)
    pool = Pool(application, handle, ScoreResources())
    try:
        _dispatch(pool, bundle, REQUESTS_PER_REPLICA)
        return [_dispatch(pool, bundle, blocks) for _ in range(repetitions)]
    finally:
        serve.delete(application)
        cluster.disconnect()


def _dispatch(pool: Pool, bundle: Bundle, blocks: int) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as folder:
        inputs, plan = _opened(folder, bundle, blocks)
        with leased(inputs.job.output) as control:
            work, ledger = _plan(inputs, plan, control)
            start = time.perf_counter()
            tally = Dispatcher(
                work,
                pool.score,
                ledger,
                window=pool.window,
                attempts=1,
                describe=lambda block: describe_block(plan, inputs.volume, block),
            ).run()
            manifest = ledger.write_manifest()
            seconds = time.perf_counter() - start
    if not tally.scored == len(manifest) == len(work.blocks):
        raise RuntimeError(f"{len(work.blocks)} blocks, {tally.scored} answers, {len(manifest)} receipts")
    return seconds, tally.scored


def _plan(inputs: Inputs, plan: ScorePlan, control: Any) -> tuple[Work, Ledger]:
    """What a run does between opening its inputs and sending the first block."""
    wanted = wanted_blocks(plan.grid, inputs.volume, inputs.job.region)
    output = ScoredOutput(inputs, plan, inputs.volume, control)
    output.begin(wanted)
    ledger = Ledger(control, plan)
    return missing_blocks(output, ledger, ledger.load(), wanted), ledger


def _opened(folder: str, bundle: Bundle, blocks: int) -> tuple[Inputs, ScorePlan]:
    """Inputs and plan over a survey of at least so many blocks, of which only the geometry exists."""
    edge = SHARD * int(np.ceil(round(blocks ** (1 / 3), 6)))
    shape = (edge,) * 3
    reach = bundle.spec.reach
    halo = ((0, 0),) * 3
    job = ScoreJob(job="score", survey="survey", bundle="bundle", output=f"{folder}/output", probabilities="none")
    coordinates = {axis: np.arange(edge) for axis in VOLUME_AXES}
    volume = xr.DataArray(np.broadcast_to(np.float32(0), shape), coordinates, VOLUME_AXES)
    plan = ScorePlan(
        survey=job.survey,
        survey_identity="benchmark",
        bundle=job.bundle,
        bundle_hash=bundle.spec.hash,
        statistics="bundle",
        crop=None,
        chain=Chain(),
        grid=Grid(shape, (SHARD,) * 3, (SHARD * 2,) * 3, reach.stride, reach.halo, halo),
        chunk=(SHARD,) * 3,
        batch=1,
        threads=1,
        device="cpu",
        probabilities="none",
        classes=bundle.spec.classes,
    )
    model = VolumeModel(bundle.spec, bundle.network(), reach)
    return Inputs(job, bundle, model, volume, {}, None), plan


def _bundle() -> Bundle:
    return make_bundle(
        name="benchmark",
        network=build_model(NETWORK),
        model=NETWORK,
        axes=VOLUME_AXES,
        stride=(1, 1, 1),
        classes=(ClassInfo(name="below", color="#000000"), ClassInfo(name="above", color="#ffffff")),
        chain=Chain(),
        data=DataDescription(quantity="amplitude", domain="time", sample_unit="ms", sample_interval=4.0),
    )


if __name__ == "__main__":
    main()

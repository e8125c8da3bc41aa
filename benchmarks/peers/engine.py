"""geobatch itself: a scoring job from its survey to its output, through Ray Serve. Environment: geobatch's own.

The clock that counts runs from the start of dispatch, when the replicas stand, to the last receipt; the whole job, with
Ray, Serve and the replicas started and ended and the manifest stored, is reported beside it.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator

from order import Order, answer, order_of_process

from geobatch import cluster
from geobatch.job import parse_job
from geobatch.score.run import Pool, Progress, on_serve, score
from geobatch.score.spec import ScoreJob, ScorePlan, ScoreResources


def main() -> None:
    """Run the job."""
    order = order_of_process()
    clock = Clock()
    called = time.perf_counter()
    summary = score(_job(order), on_progress=clock.note, open_pool=clock.pool)
    whole = time.perf_counter() - called
    cluster.disconnect()
    between = [later - earlier for earlier, later in itertools.pairwise(clock.receipts)]
    answer(
        seconds=clock.ended - clock.began,
        seconds_whole_job=whole,
        seconds_until_replicas_stand=clock.began - called,
        seconds_per_block_after_the_first=sum(between) / len(between) if between else None,
        stages=summary["stage_seconds"],
        processes=[int(worker.rpartition(":")[2]) for worker in summary["workers"]],
    )


class Clock:
    """When dispatch began and ended, and when each receipt came."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0
        self.receipts: list[float] = []

    @contextlib.contextmanager
    def pool(self, plan: ScorePlan, output_url: str, resources: ScoreResources) -> Iterator[Pool]:
        """The pool of replicas on Serve, its use timed."""
        with on_serve(plan, output_url, resources) as pool:
            # Returns when the first replicas stand.
            pool.window()
            self.began = time.perf_counter()
            yield pool
            self.ended = time.perf_counter()

    def note(self, progress: Progress) -> None:
        """Take down a receipt."""
        if progress.receipt is not None:
            self.receipts.append(time.perf_counter())


def _job(order: Order) -> ScoreJob:
    document = {
        "job": "score",
        "survey": order.survey,
        "bundle": order.bundle,
        "output": order.output,
        "statistics": "bundle",
        "probabilities": "none",
        "shard": order.shard,
        "chunk": order.chunk,
        "patch": order.patch,
        "resources": {
            "replicas": order.workers,
            "cpus": order.threads,
            "threads": order.threads,
            "memory_gib": order.memory_bytes / 2**30,
        },
    }
    job = parse_job(document)
    assert isinstance(job, ScoreJob)
    return job


if __name__ == "__main__":
    main()

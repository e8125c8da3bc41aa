"""geobatch itself: a scoring job from its survey to its output, through Ray Serve. Environment: geobatch's own.

The clock that counts runs from the moment the first block is begun, when the replicas stand, to the last receipt;
the whole job, with Ray, Serve and the replicas started and ended and the manifest stored, is reported beside it.
"""

import itertools
import time

from order import answer, order_of_process

from geobatch import cluster
from geobatch.job import parse_job
from geobatch.score.run import Progress, score


def main() -> None:
    """Run the job."""
    order = order_of_process()
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
    began, ended = [], []

    def note(progress: Progress) -> None:
        if progress.receipt is not None:
            ended.append(time.perf_counter())
            began.append(ended[-1] - sum(progress.receipt.seconds.values()))

    called = time.perf_counter()
    summary = score(parse_job(document), on_progress=note)
    whole = time.perf_counter() - called
    cluster.disconnect()
    between = [later - earlier for earlier, later in itertools.pairwise(ended)]
    answer(
        seconds=ended[-1] - min(began),
        seconds_whole_job=whole,
        seconds_until_first_block=min(began) - called,
        seconds_per_block_steady=sum(between) / len(between) if between else None,
        stages=summary["stage_seconds"],
        processes=[int(worker.rpartition(":")[2]) for worker in summary["workers"]],
    )


if __name__ == "__main__":
    main()

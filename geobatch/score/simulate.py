"""A run imagined before it is paid for: replicas, preemption, request limits of the bucket, and where scaling stops.

Every block takes one of the times that a calibration measured. Three things are shared by all replicas and let through
so many blocks a second: the driver that hands them out, and the bucket's limits on reads and on writes.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import UsageError

PUTS_PER_S = 3500.0
GETS_PER_S = 5500.0
"""Requests per second and prefix that Amazon S3 promises: https://docs.aws.amazon.com/AmazonS3/latest/userguide/
optimizing-performance.html"""
MOST_SIMULATED = 200_000
WORTH_DOUBLING = 1.3


@dataclass(frozen=True)
class Workload:
    """What a run has to do, in measured figures.

    Attributes:
        blocks: How many blocks.
        block_seconds: Measured times of blocks in a warm replica, of which each block takes one.
        startup_s: From the command to the first block: plan, cluster, replicas.
        warmup_s: What the first block of a replica takes on top.
        finish_s: From the last block to the end of the command.
        gets_per_block: Requests that read.
        puts_per_block: Requests that write.
        dispatched_per_s: Blocks that the driver hands out and records per second.
    """

    blocks: int
    block_seconds: tuple[float, ...]
    startup_s: float = 0.0
    warmup_s: float = 0.0
    finish_s: float = 0.0
    gets_per_block: float = 1.0
    puts_per_block: float = 1.0
    dispatched_per_s: float = 1000.0


@dataclass(frozen=True)
class Simulated:
    """One imagined run.

    Attributes:
        replicas: How many there were.
        seconds: From the command to its end.
        busy: Share of the replicas' time, from the first block to the last, that went into blocks that counted.
        lost: Blocks that a preemption cost, and that were done again.
        bound_by: What kept it from being faster.
    """

    replicas: int
    seconds: float
    busy: float
    lost: int
    bound_by: str


def simulate(
    work: Workload,
    replicas: int,
    *,
    preemptions_per_hour: float = 0.0,
    replacement_s: float = 120.0,
    seed: int = 0,
) -> Simulated:
    """One run with so many replicas.

    Args:
        work: What is to be done.
        replicas: Replicas, all there at the start.
        preemptions_per_hour: How often each is taken away.
        replacement_s: Until another takes its place.
        seed: Of the random numbers.
    """
    generator = np.random.default_rng(seed)
    scale = max(1, -(-work.blocks // MOST_SIMULATED))
    count = -(-work.blocks // scale)
    times = generator.choice(np.asarray(work.block_seconds), count) * scale
    gates = {
        "dispatch": scale / work.dispatched_per_s,
        "reads from the bucket": scale * work.gets_per_block / GETS_PER_S,
        "writes to the bucket": scale * work.puts_per_block / PUTS_PER_S,
    }
    end, lost, useful = _play(
        times, replicas, gates, work.warmup_s, _Preemptions(generator, preemptions_per_hour, replacement_s)
    )
    shares = {name: count * each / end for name, each in gates.items()}
    busy = useful / (replicas * end)
    return Simulated(
        replicas,
        round(work.startup_s + end + work.finish_s, 3),
        round(busy, 4),
        lost,
        _bound(busy, shares, work, replicas, end, lost / count),
    )


def scaling(work: Workload, most: int, **options: Any) -> dict[str, Any]:
    """Runs with 1, 2, 4 … `most` replicas, and where doubling them stops to pay.

    Returns:
        `runs`, one document each, `useful_replicas`, the largest number that was still worth its doubling, and
        `stops_because`, in words.
    """
    counts = [1]
    while counts[-1] < most:
        counts.append(min(counts[-1] * 2, most))
    runs = [simulate(work, count, **options) for count in counts]
    useful, because = runs[-1], "it does not, up to here"
    for fewer, more in itertools.pairwise(runs):
        if fewer.seconds / more.seconds < WORTH_DOUBLING and more.replicas == 2 * fewer.replicas:
            useful, because = fewer, more.bound_by
            break
    return {"runs": [asdict(run) for run in runs], "useful_replicas": useful.replicas, "stops_because": because}


@dataclass
class _Preemptions:
    generator: np.random.Generator
    per_hour: float
    replacement_s: float

    def next_after(self, time_s: float) -> float:
        return time_s + self.generator.exponential(3600 / self.per_hour) if self.per_hour else np.inf


def _play(
    times: npt.NDArray[np.float64], replicas: int, gates: dict[str, float], warmup_s: float, preemptions: _Preemptions
) -> tuple[float, int, float]:
    """When the last block is done, blocks lost, and seconds of work that counted."""
    free = [(0.0, number) for number in range(replicas)]
    taken = [preemptions.next_after(0.0) for _ in range(replicas)]
    cold = [True] * replicas
    open_at = dict.fromkeys(gates, 0.0)
    end, lost, useful = 0.0, 0, 0.0
    waiting = list(times[::-1])
    while waiting:
        now, number = heapq.heappop(free)
        block_s = waiting.pop()
        spent = block_s + warmup_s * cold[number]
        for gate, each in gates.items():
            now = max(now, open_at[gate])
            open_at[gate] = now + each
        done = now + spent
        cold[number] = False
        if done > taken[number]:
            lost += 1
            waiting.append(block_s)
            _require_progress(lost, len(times))
            back = taken[number] + preemptions.replacement_s
            taken[number], cold[number] = preemptions.next_after(back), True
            heapq.heappush(free, (back, number))
            continue
        useful += spent
        end = max(end, done)
        heapq.heappush(free, (done, number))
    return float(end), lost, float(useful)


def _require_progress(lost: int, blocks: int) -> None:
    if lost > 100 * blocks:
        raise UsageError(
            "replicas are taken away before they finish a block",
            measured=f"{lost} blocks lost of {blocks}",
            remedy="Give a smaller shard, or a lower rate of preemption.",
        )


def _bound(busy: float, shares: dict[str, float], work: Workload, replicas: int, end: float, lost: float) -> str:
    """What kept a run from being faster, in words."""
    name, share = max(shares.items(), key=lambda item: item[1])
    if share > max(busy, 0.7):
        return name
    if work.startup_s + work.finish_s > end:
        return "start-up and finish"
    if busy > 0.7:
        return "replicas"
    return "preemption" if lost > 0.05 else "too few blocks for so many replicas"

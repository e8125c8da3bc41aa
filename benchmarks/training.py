"""One worker of a training that `train.py` measures: takes its order as JSON, tells its figures on the last line."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Generator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import geobatch.train.loop
from geobatch.storage.chunks import KEPT
from geobatch.train.kinds import open_task
from geobatch.train.places import AlonePlace, WorkerPlan

clock = time.monotonic


class Clocked(AlonePlace):
    """A worker that notes when its steps ended, and how long it waited for batches."""

    def __init__(self, rank: int, workers: int) -> None:
        super().__init__(validates=False)
        self.rank, self.workers = rank, workers
        self.began_at = 0.0
        self.waiting_s = 0.0
        self.steps_at: list[float] = []

    def prepared(self, network: nn.Module) -> nn.Module:
        """See `Place`."""
        return DistributedDataParallel(network, broadcast_buffers=False) if self.workers > 1 else network

    def step_done(self, step: int) -> None:
        """See `Place`."""
        self.steps_at.append(clock())

    def watched(self, batches: Generator[Any, None, None]) -> Generator[Any, None, None]:
        """The batches, and how long each was waited for."""
        self.began_at = clock()
        try:
            while True:
                asked_at = clock()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                self.waiting_s += clock() - asked_at
                yield batch
        finally:
            batches.close()


def main() -> None:
    """Train as the order says."""
    order = json.load(sys.stdin)
    plan = WorkerPlan.model_validate(order["plan"])
    workers, rank = order["workers"], order["rank"]
    source = open_task(plan.job).source(plan.fitted)
    if workers > 1:
        # Those that share nothing begin together too.
        torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{order['port']}", rank=rank, world_size=workers)
        torch.distributed.barrier()
    if order["apart"]:
        torch.distributed.destroy_process_group()
        rank, workers = 0, 1
    place = Clocked(rank, workers)
    made = geobatch.train.loop._batches
    geobatch.train.loop._batches = lambda *told: place.watched(made(*told))
    network = geobatch.train.loop.fit_network(plan, place, source)
    assert isinstance(network, nn.Module)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    used = resource.getrusage(resource.RUSAGE_SELF)
    half = len(place.steps_at) // 2
    figures = {
        "steps": len(place.steps_at),
        "seconds": place.steps_at[-1] - place.began_at,
        "first_epoch_s": place.steps_at[half - 1] - place.began_at,
        "first_step_s": place.steps_at[0] - place.began_at,
        "waiting_s": place.waiting_s,
        "processor_s": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "kept": {"hits": KEPT.hits, "misses": KEPT.misses, "bytes": KEPT.held_bytes},
        "weights": _hash(network),
    }
    print(json.dumps(figures))


def _hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
